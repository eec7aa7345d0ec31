// SPDX-License-Identifier: Apache-2.0

package names

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

func TestCanonical(t *testing.T) {
	for name, want := range map[string]string{
		"api.good.test.": "api.good.test", "API.Good.test": "api.good.test", "_a-1.test": "_a-1.test", "xn--bcher-kva.test": "xn--bcher-kva.test",
		"": "", ".": "", `a\.b.test`: "", `a\000.test`: "", "a b.test": "", "*.test": "", "bücher.test": "", "a@test": "", "a/b": "",
	} {
		if got, ok := canonical(name); got != want || ok != (want != "") {
			t.Errorf("canonical(%q) = %q, %v, want %q", name, got, ok, want)
		}
	}
}

func TestSubject(t *testing.T) {
	for _, tt := range []struct {
		name  string
		qtype uint16
		want  string
	}{
		{"_sip._tcp.good.test", dns.TypeSRV, "good.test"},
		{"_xmpp-client._tcp.good.test", dns.TypeSRV, "good.test"},
		{"_sips._tls.good.test", dns.TypeSRV, "good.test"},
		{"_sixteenletters16._tcp.good.test", dns.TypeSRV, "_sixteenletters16._tcp.good.test"},
		{"_sip._tcp.good.test", dns.TypeA, "_sip._tcp.good.test"},
		{"_sip._secret.good.test", dns.TypeSRV, "_sip._secret.good.test"},
		{"a._sip._tcp.good.test", dns.TypeSRV, "a._sip._tcp.good.test"},
		{"sip._tcp.good.test", dns.TypeSRV, "sip._tcp.good.test"},
		{"_._tcp.good.test", dns.TypeSRV, "_._tcp.good.test"},
		{"_sip._tcp", dns.TypeSRV, "_sip._tcp"},
		{"good.test", dns.TypeSRV, "good.test"},
		{"_8443._https.good.test", dns.TypeHTTPS, "good.test"},
		{"_8443._https.good.test", dns.TypeSVCB, "good.test"},
		{"_65536._https.good.test", dns.TypeHTTPS, "_65536._https.good.test"},
		{"_secret._https.good.test", dns.TypeHTTPS, "_secret._https.good.test"},
		{"_dns.good.test", dns.TypeSVCB, "_dns.good.test"},
	} {
		if got := (question{tt.name, tt.qtype}).subject(); got != tt.want {
			t.Errorf("subject of %s %s = %s, want %s", tt.name, typeName(tt.qtype), got, tt.want)
		}
	}
}

func TestReverse(t *testing.T) {
	for _, addr := range []string{"192.0.2.1", "0.0.0.0", "255.255.255.255", "2001:db8::1", "::", "fedc:ba98:7654:3210:123:4567:89ab:cdef"} {
		name, err := dns.ReverseAddr(addr)
		if err != nil {
			t.Fatal(err)
		}
		name = strings.TrimSuffix(name, ".")
		if got, ok := (question{name, dns.TypePTR}).reverse(); !ok || got != netip.MustParseAddr(addr) {
			t.Errorf("%s is %s, %v, want %s", name, got, ok, addr)
		}
	}
	for _, name := range []string{
		"2.0.192.in-addr.arpa", "5.1.2.0.192.in-addr.arpa", "256.2.0.192.in-addr.arpa", "01.2.0.192.in-addr.arpa", "x.2.0.192.in-addr.arpa",
		"1.8.b.d.0.1.0.0.2.ip6.arpa", strings.Repeat("1.", 31) + "g.ip6.arpa", strings.Repeat("1.", 30) + "111.ip6.arpa", strings.Repeat("1-", 31) + "1.ip6.arpa",
		"good.test", "in-addr.arpa", "ip6.arpa",
	} {
		if addr, ok := (question{name, dns.TypePTR}).reverse(); ok {
			t.Errorf("%s is %s, want no address", name, addr)
		}
	}
	if _, ok := (question{"1.2.0.192.in-addr.arpa", dns.TypeA}).reverse(); ok {
		t.Error("a question for an address is one for a name")
	}
}
