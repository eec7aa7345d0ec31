// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"
)

func TestParseDestination(t *testing.T) {
	https := []Ports{{443, 443}}
	for _, tt := range []struct {
		in   string
		want Destination
		text string // of want, when it is not in
	}{
		{"192.0.2.1:443", dest(TCP, "192.0.2.1/32", https...), ""},
		{"192.0.2.1/32:443", dest(TCP, "192.0.2.1/32", https...), "192.0.2.1:443"},
		{"tcp://192.0.2.1:443", dest(TCP, "192.0.2.1/32", https...), "192.0.2.1:443"},
		{"TCP://192.0.2.1:443", dest(TCP, "192.0.2.1/32", https...), "192.0.2.1:443"},
		{"Udp://192.0.2.1:53", dest(UDP, "192.0.2.1/32", Ports{53, 53}), "udp://192.0.2.1:53"},
		{"sctp://192.0.2.1:5000", dest(SCTP, "192.0.2.1/32", Ports{5000, 5000}), ""},
		{"dccp://192.0.2.1:5000", dest(DCCP, "192.0.2.1/32", Ports{5000, 5000}), ""},
		{"udplite://192.0.2.1:5000", dest(UDPLite, "192.0.2.1/32", Ports{5000, 5000}), ""},
		{"icmp://192.0.2.1", dest(ICMP, "192.0.2.1/32"), ""},
		{"icmp://10.0.0.0/8", dest(ICMP, "10.0.0.0/8"), ""},
		{"icmp://[2001:db8::/32]", dest(ICMP, "2001:db8::/32"), ""},
		{"10.0.0.0/8:443", dest(TCP, "10.0.0.0/8", https...), ""},
		{"0.0.0.0/0:443", dest(TCP, "0.0.0.0/0", https...), ""},
		{"0.0.0.0/8:443", dest(TCP, "0.0.0.0/8", https...), ""},
		{"255.255.255.255:9", dest(TCP, "255.255.255.255/32", Ports{9, 9}), ""},
		{"[::/0]:443", dest(TCP, "::/0", https...), ""},
		{"[::1]:443", dest(TCP, "::1/128", https...), ""},
		{"[2001:db8::/32]:443", dest(TCP, "2001:db8::/32", https...), ""},
		{"[2001:DB8:0:0::1]:443", dest(TCP, "2001:db8::1/128", https...), "[2001:db8::1]:443"},
		{"[2001:db8::1/128]:443", dest(TCP, "2001:db8::1/128", https...), "[2001:db8::1]:443"},
		{"[fe80::1]:443", dest(TCP, "fe80::1/128", https...), ""},
		{"[::ffff:192.0.2.1]:443", dest(TCP, "192.0.2.1/32", https...), "192.0.2.1:443"},
		{"[::ffff:c000:201]:443", dest(TCP, "192.0.2.1/32", https...), "192.0.2.1:443"},
		{"[::ffff:10.0.0.0/104]:443", dest(TCP, "10.0.0.0/8", https...), "10.0.0.0/8:443"},
		{"[::ffff:0:0/96]:443", dest(TCP, "0.0.0.0/0", https...), "0.0.0.0/0:443"},
		{"[::/80]:443", dest(TCP, "::/80", https...), ""},
		{"api.example.com:443", named(TCP, "api.example.com", https...), ""},
		{"API.Example.com.:443", named(TCP, "api.example.com", https...), "api.example.com:443"},
		{"*.example.com:80,443", named(TCP, "*.example.com", Ports{80, 80}, Ports{443, 443}), ""},
		{"*.münchen.example:443", named(TCP, "*.xn--mnchen-3ya.example", https...), "*.xn--mnchen-3ya.example:443"},
		{"udp://ntp.example.org:123", named(UDP, "ntp.example.org", Ports{123, 123}), ""},
		{"icmp://gateway", named(ICMP, "gateway"), ""},
		{"localhost:*", named(TCP, "localhost", Ports{0, 65535}), ""},
		{"192.0.2.1:*", dest(TCP, "192.0.2.1/32", Ports{0, 65535}), ""},
		{"192.0.2.1:1-65535", dest(TCP, "192.0.2.1/32", Ports{1, 65535}), ""},
		{"192.0.2.1:8000-8100", dest(TCP, "192.0.2.1/32", Ports{8000, 8100}), ""},
		{"192.0.2.1:80-80", dest(TCP, "192.0.2.1/32", Ports{80, 80}), "192.0.2.1:80"},
		{"192.0.2.1:443,80", dest(TCP, "192.0.2.1/32", Ports{80, 80}, Ports{443, 443}), "192.0.2.1:80,443"},
		{"192.0.2.1:80,81,82-90,85,65535", dest(TCP, "192.0.2.1/32", Ports{80, 90}, Ports{65535, 65535}), "192.0.2.1:80-90,65535"},
	} {
		t.Run(tt.in, func(t *testing.T) {
			got, err := ParseDestination(tt.in)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got %#v, want %#v", got, tt.want)
			}
			text := tt.text
			if text == "" {
				text = tt.in
			}
			if got.String() != text {
				t.Errorf("String is %q, want %q", got.String(), text)
			}
		})
	}
}

// The error has to lead to what the author meant, so most cases require the
// corrected form.
func TestParseDestinationError(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"", "empty destination"},
		{" 192.0.2.1:443", "white space"},
		{"192.0.2.1:80, 443", "white space"},
		{"192.0.2.1:443\n", "white space"},
		{"192.0.2.1\x00:443", "unprintable"},
		{"192.0.2.1\u200b:443", "unprintable"},
		{"192.0.2.1\u00a0:443", "white space"},

		{"ftp://192.0.2.1:21", `unknown protocol "ftp"; expected tcp, udp, icmp`},
		{"https://192.0.2.1", "write HOST:443"},
		{"icmpv6://[::1]", "icmp covers ICMPv6"},
		{"://192.0.2.1:1", `unknown protocol ""`},
		{"tcp://", "no host"},
		{"tcp://udp://192.0.2.1:1", "too many colons"},

		{"192.0.2.1", "no port; write 192.0.2.1:443, "},
		{"10.0.0.0/8", "no port; write 10.0.0.0/8:443, "},
		{"udp://[2001:db8::1]", "no port; write udp://[2001:db8::1]:443, "},
		{"192.0.2.1:", "empty ports"},
		{"192.0.2.1:,", "empty port in the list"},
		{"192.0.2.1:80,", "empty port in the list"},
		{"192.0.2.1:80,,443", "empty port in the list"},
		{"192.0.2.1:*,80", "* stands alone"},
		{"192.0.2.1:*-80", `port "*"`},
		{"192.0.2.1:0", `port "0" is not a number from 1 to 65535`},
		{"192.0.2.1:0-10", `port "0"`},
		{"192.0.2.1:65536", `port "65536"`},
		{"192.0.2.1:99999999999999999999", `port "99999999999999999999"`},
		{"192.0.2.1:+80", `port "+80"`},
		{"192.0.2.1:-80", `port ""`},
		{"192.0.2.1:80-", `port ""`},
		{"192.0.2.1:0x50", `port "0x50"`},
		{"192.0.2.1:080", `port "080"`},
		{"192.0.2.1:https", `port "https"`},
		{"192.0.2.1:٨٠", `port "٨٠"`},
		{"192.0.2.1:443/path", `port "443/path"`},
		{"192.0.2.1:100-80", "write 80-100"},
		{"192.0.2.1:1-2-3", `port "2-3"`},
		{"icmp://192.0.2.1:8", "icmp has no ports; write icmp://192.0.2.1"},
		{"icmp://192.0.2.1:*", "icmp has no ports; write icmp://192.0.2.1"},
		{"192.0.2.1:" + oddPorts(MaxRanges+1), "33 separate port ranges, at most 32"},

		{":443", "no host"},
		{"[]:443", "no host"},
		{"/8:443", `"" is not a name or an address`},
		{"*:443", "write *.example.com, for every address 0.0.0.0/0 (IPv4) and [::/0] (IPv6)"},
		{"10.0.0.1/8:443", "10.0.0.1/8 has bits set beyond /8; write 10.0.0.0/8 for the prefix or 10.0.0.1 for the one address"},
		{"[2001:db8::1/32]:443", "write [2001:db8::/32] for the prefix or [2001:db8::1] for the one address"},
		{"[::ffff:10.0.0.1/104]:443", "write [::ffff:10.0.0.0/104] for the prefix"},
		{"[::ffff:10.0.0.0/90]:443", "has bits set beyond /90"},
		{"10.0.0.0/33:443", `prefix length "33" is not a number from 0 to 32`},
		{"10.0.0.0/:443", `prefix length ""`},
		{"10.0.0.0/08:443", `prefix length "08"`},
		{"10.0.0.0/-1:443", `prefix length "-1"`},
		{"10.0.0.0/255.0.0.0:443", `prefix length "255.0.0.0"`},
		{"[2001:db8::/129]:443", `prefix length "129" is not a number from 0 to 128`},
		{"[2001:db8::]/32:443", "write [2001:db8::/32]:443"},
		{"[2001:db8::1", "missing ]"},
		{"[2001:db8::1]443", `unexpected "443" after ]`},
		{"[[::1]]:443", `unexpected "]:443" after ]`},
		{"[192.0.2.1]:443", "brackets are for IPv6; write 192.0.2.1"},
		{"[example]:443", "not an IPv6 address"},
		{"2001:db8::1:443", "write [2001:db8::1]:443"},
		{"2001:db8::1", "write [2001:db8::1]:PORT"},
		{"2001:db8::ff", "write [2001:db8::ff]:PORT"},
		{"2001:db8::/32:443", "write [2001:db8::/32]:443"},
		{"2001:db8::/32", "write [2001:db8::/32]:PORT"},
		{"::ffff:192.0.2.1:443", "write [::ffff:192.0.2.1]:443"},
		{"192.0.2.1:443:80", "too many colons"},
		{"192.0.2.1]:443", "is not a name or an address"},
		{"[fe80::1%eth0]:443", "a zone (%) is not allowed"},
		{"fe80::1%eth0", "a zone (%) is not allowed"},
		{"192.0.2.1%eth0:443", "a zone (%) is not allowed"},
		{"0.0.0.0:443", "write 127.0.0.1 for loopback or 0.0.0.0/0 for every address"},
		{"0.0.0.0/32:443", "write 127.0.0.1 for loopback"},
		{"[::]:443", "write [::1] for loopback or [::/0] for every address"},
		{"[::/128]:443", "write [::1] for loopback"},
		{"[::ffff:0.0.0.0]:443", "write 127.0.0.1 for loopback"},

		{"10.1:443", "four decimal numbers"},
		{"2130706433:443", "four decimal numbers"},
		{"0x7f.1:443", "four decimal numbers"},
		{"0x7f000001:443", "four decimal numbers"},
		{"010.0.0.1:443", "without leading zeros"},
		{"256.0.0.1:443", "four decimal numbers"},
		{"10.0.0.1.:443", "four decimal numbers"},

		{"api.example.com", "no port; write api.example.com:443, "},
		{"icmp://api.example.com:8", "icmp has no ports; write icmp://api.example.com"},
		{"api.example.com/v1:443", "a name has no path and no prefix length; write api.example.com:443"},
		{"https://api.example.com", "write HOST:443"},
		{"[api.example.com]:443", "not an IPv6 address"},
		{"*foo.com:443", "write *.foo.com"},
		{"**.example.com:443", "write *.example.com"},
		{".example.com:443", "write *.example.com"},
		{"api..example.com:443", "empty label"},
		{"*.192.0.2.1:443", "four decimal numbers"},
		{"user@example.com:443", "is not a name or an address"},
		{"user@192.0.2.1:443", "is not a name or an address"},
	} {
		t.Run(tt.in, func(t *testing.T) {
			d, err := ParseDestination(tt.in)
			if err == nil {
				t.Fatalf("read as %s", d)
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error is %q, want it to contain %q", err, tt.want)
			}
			if !strings.HasPrefix(err.Error(), quoteIfOdd(tt.in)+": ") {
				t.Errorf("error %q does not name %q", err, tt.in)
			}
		})
	}
}

func TestParseDestinationErrorIsShort(t *testing.T) {
	_, err := ParseDestination("192.0.2.1:" + strings.Repeat("1,", 1<<20) + "1")
	if err == nil || len(err.Error()) > 1000 || !strings.Contains(err.Error(), "more than the 2048") {
		t.Errorf("error is %v", err)
	}
}

func TestDestinationMatches(t *testing.T) {
	for _, tt := range []struct {
		dest  string
		proto Proto
		addr  string
		port  uint16
		want  bool
	}{
		{"10.0.0.0/8:80-90", TCP, "10.1.2.3", 80, true},
		{"10.0.0.0/8:80-90", TCP, "10.1.2.3", 90, true},
		{"10.0.0.0/8:80-90", TCP, "10.1.2.3", 79, false},
		{"10.0.0.0/8:80-90", TCP, "10.1.2.3", 91, false},
		{"10.0.0.0/8:80-90", TCP, "::ffff:10.1.2.3", 80, true},
		{"10.0.0.0/8:80-90", TCP, "11.1.2.3", 80, false},
		{"10.0.0.0/8:80-90", UDP, "10.1.2.3", 80, false},
		{"[::/0]:80", TCP, "2001:db8::1", 80, true},
		{"[::/0]:80", TCP, "10.1.2.3", 80, false},
		{"[::/0]:80", TCP, "::ffff:10.1.2.3", 80, false},
		{"icmp://10.0.0.0/8", ICMP, "10.0.0.1", 0, true},
		{"icmp://10.0.0.0/8", ICMP, "10.0.0.1", 7, true},
		{"icmp://10.0.0.0/8", TCP, "10.0.0.1", 0, false},
		{"api.example.com:80", TCP, "10.0.0.1", 80, false},
	} {
		d := mustParse(t, tt.dest)
		if got := d.Matches(tt.proto, netip.MustParseAddr(tt.addr), tt.port); got != tt.want {
			t.Errorf("%s matches %s %s %d: %v, want %v", d, tt.proto, tt.addr, tt.port, got, tt.want)
		}
	}
}

func TestDestinationMatchesHost(t *testing.T) {
	for _, tt := range []struct {
		dest  string
		proto Proto
		host  string
		port  uint16
		want  bool
	}{
		{"api.example.com:80-90", TCP, "api.example.com", 85, true},
		{"api.example.com:80-90", TCP, "api.example.com", 91, false},
		{"api.example.com:80-90", UDP, "api.example.com", 85, false},
		{"*.example.com:80", TCP, "a.b.example.com", 80, true},
		{"*.example.com:80", TCP, "example.com", 80, false},
		{"icmp://api.example.com", ICMP, "api.example.com", 7, true},
		{"0.0.0.0/0:80", TCP, "", 80, false},
	} {
		r := Rule{To: []Destination{mustParse(t, tt.dest)}}
		if got := r.MatchesHost(tt.proto, tt.host, tt.port); got != tt.want {
			t.Errorf("%s matches %s %s %d: %v, want %v", r, tt.proto, tt.host, tt.port, got, tt.want)
		}
		r.Direction = Ingress
		if r.MatchesHost(tt.proto, tt.host, tt.port) {
			t.Errorf("%s matches an egress flow", r)
		}
	}
}

func TestDestinationCovers(t *testing.T) {
	for _, tt := range []struct {
		a, b             string
		covers, overlaps bool
	}{
		{"10.0.0.0/8:80-90", "10.1.0.0/16:85", true, true},
		{"10.1.0.0/16:85", "10.0.0.0/8:80-90", false, true},
		{"10.0.0.0/8:80-90", "10.0.0.0/8:85-95", false, true},
		{"10.0.0.0/8:80", "10.0.0.0/8:81", false, false},
		{"10.0.0.0/8:80", "11.0.0.0/8:80", false, false},
		{"10.0.0.0/8:80", "udp://10.0.0.0/8:80", false, false},
		{"icmp://10.0.0.0/8", "icmp://10.0.0.1", true, true},
		{"[::/0]:80", "10.0.0.0/8:80", false, false},
		{"0.0.0.0/0:*", "[::/0]:80", false, false},
		{"*.example.com:*", "api.example.com:443", true, true},
		{"api.example.com:443", "*.example.com:*", false, true},
		{"*.example.com:443", "*.a.example.com:443", true, true},
		{"*.a.example.com:443", "*.b.example.com:443", false, false},
		{"*.example.com:443", "example.com:443", false, false},
		{"api.example.com:443", "api.example.com:80,443", false, true},
		{"icmp://api.example.com", "icmp://api.example.com", true, true},
		{"0.0.0.0/0:*", "api.example.com:443", false, false},
		{"api.example.com:443", "0.0.0.0/0:*", false, false},
	} {
		a, b := mustParse(t, tt.a), mustParse(t, tt.b)
		if got := a.Covers(b); got != tt.covers {
			t.Errorf("%s covers %s: %v", a, b, got)
		}
		if a.Overlaps(b) != tt.overlaps || b.Overlaps(a) != tt.overlaps {
			t.Errorf("%s and %s overlap: %v, %v", a, b, a.Overlaps(b), b.Overlaps(a))
		}
	}
}

func FuzzParseDestination(f *testing.F) {
	for _, s := range []string{
		"192.0.2.1:443", "udp://10.0.0.0/8:*", "icmp://[2001:db8::/32]", "[::ffff:10.0.0.0/104]:80,443-450",
		"[::/0]:1-65535", "2001:db8::1:443", "[fe80::1%eth0]:1", "api.example.com:443", "0.0.0.0:1", "https://x",
		"SCTP://[::1]:9,8,7", "192.0.2.1:80-79", "[]:*", "\xff", "10.0.0.1/8:1", "*.münchen.example.:443", "udp://*.x:*", "**.com:1", "xn--a.b:1",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, err := ParseDestination(s)
		if err != nil {
			if len(err.Error()) > 10*maxText {
				t.Errorf("error of %d bytes for %d bytes of input", len(err.Error()), len(s))
			}
			return
		}
		again, err := ParseDestination(d.String())
		if err != nil || !reflect.DeepEqual(again, d) {
			t.Fatalf("%q reads as %#v, printed as %q, which reads as %#v, %v", s, d, d.String(), again, err)
		}
		if (len(d.Ports) > 0) != d.Proto.HasPorts() || (d.Name == "") != d.Prefix.IsValid() || !d.Covers(d) || !d.Overlaps(d) {
			t.Fatalf("%q reads as %#v, which cannot be", s, d)
		}
		p := d.Prefix
		if d.Name == "" && p != p.Masked() || p.Addr().Is4In6() && p.Bits() >= 96 {
			t.Fatalf("%q reads as %#v, which is not the canonical form", s, d)
		}
	})
}

func dest(proto Proto, prefix string, ports ...Ports) Destination {
	return Destination{Proto: proto, Prefix: netip.MustParsePrefix(prefix), Ports: ports}
}

func named(proto Proto, name Name, ports ...Ports) Destination {
	return Destination{Proto: proto, Name: name, Ports: ports}
}

func mustParse(t testing.TB, s string) Destination {
	t.Helper()
	d, err := ParseDestination(s)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// oddPorts writes n ports that do not touch.
func oddPorts(n int) string {
	ports := make([]string, n)
	for i := range ports {
		ports[i] = Ports{uint16(2*i + 1), uint16(2*i + 1)}.String()
	}
	return strings.Join(ports, ",")
}
