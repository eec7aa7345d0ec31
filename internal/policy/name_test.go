// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"strings"
	"testing"
)

func TestParseName(t *testing.T) {
	long := strings.Repeat("a.", 122) + "com" // 247 bytes
	for _, tt := range []struct{ in, want string }{
		{"api.example.com", "api.example.com"},
		{"API.Example.COM.", "api.example.com"},
		{"*.example.com", "*.example.com"},
		{"*.Example.com.", "*.example.com"},
		{"*.com", "*.com"},
		{"localhost", "localhost"},
		{"a", "a"},
		{"_sip._tcp.example.com", "_sip._tcp.example.com"},
		{"my_host.example", "my_host.example"},
		{"r3---sn-p5qlsn7s.example.com", "r3---sn-p5qlsn7s.example.com"},
		{"1password.com", "1password.com"},
		{"0x.example", "0x.example"},
		{"xn--mnchen-3ya.example", "xn--mnchen-3ya.example"},
		{"XN--MNCHEN-3YA.example", "xn--mnchen-3ya.example"},
		{"münchen.example", "xn--mnchen-3ya.example"},
		{"MÜNCHEN.example", "xn--mnchen-3ya.example"},
		{"mu\u0308nchen.example", "xn--mnchen-3ya.example"},
		{"*.münchen.example", "*.xn--mnchen-3ya.example"},
		{"münchen。example", "xn--mnchen-3ya.example"},
		{"straße.example", "xn--strae-oqa.example"},
		{"_ü.example", "xn--_-eha.example"},
		{"例え.テスト", "xn--r8jz45g.xn--zckzah"},
		{"ＡＰＩ.example", "api.example"},
		{long, long},
		{strings.Repeat("a", 63) + ".example", strings.Repeat("a", 63) + ".example"},
	} {
		got, err := ParseName(tt.in)
		if err != nil || string(got) != tt.want {
			t.Errorf("%q reads as %q, %v; want %q", tt.in, got, err, tt.want)
		}
	}
}

func TestParseNameError(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"", "write for example api.example.com or *.example.com"},
		{"*.", "write *.example.com"},
		{".", "names nothing"},
		{".example.com", "for every name below it write *.example.com"},
		{"*..example.com", ".example.com has an empty label"},
		{"example..com", "has an empty label"},
		{"example.com..", "one of the dots"},
		{"*", "write *.example.com"},
		{"**", "write *.example.com"},
		{"**.example.com", "write *.example.com"},
		{"*foo.com", "write *.foo.com"},
		{"foo.*.com", "write *.com"},
		{"*.*.com", "write *.com"},
		{"foo*", "write *.example.com"},
		{"f*o.example.com", "write *.o.example.com"},
		{"＊.example.com", `'*' in the label "*"`},
		{"192.0.2.1", "ends in a number"},
		{"*.2.1", "ends in a number"},
		{"example.1", "ends in a number"},
		{"example.0x1f", "ends in a number"},
		{"example.1.", "ends in a number"},
		{"example.１", "ends in a number"},
		{"a b.example", `' ' in the label "a b"`},
		{"a/b.example", "letters, digits, hyphens and underscores"},
		{"a\x00.example", "letters, digits, hyphens and underscores"},
		{"user@example.com", "letters, digits, hyphens and underscores"},
		{"-ü-.example\u200d", "not an internationalised name"},
		{"\u0301a.example", "not an internationalised name"},
		{strings.Repeat("a", 64) + ".example", "has 64 bytes, more than 63"},
		{strings.Repeat("ü", 60) + ".example", "more than 63"},
		{strings.Repeat("a.", 123) + "com", "249 bytes, more than the 247"},
		{"*." + strings.Repeat("a.", 121) + "comm", "248 bytes, more than the 247"},
	} {
		got, err := ParseName(tt.in)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q reads as %q, %v; want %q", tt.in, got, err, tt.want)
		}
	}
}

func TestNameMatches(t *testing.T) {
	for _, tt := range []struct {
		name, host string
		want       bool
	}{
		{"api.example.com", "api.example.com", true},
		{"api.example.com", "a.api.example.com", false},
		{"api.example.com", "example.com", false},
		{"*.example.com", "api.example.com", true},
		{"*.example.com", "a.b.c.example.com", true},
		{"*.example.com", "example.com", false},
		{"*.example.com", ".example.com", false},
		{"*.example.com", "evilexample.com", false},
		{"*.example.com", "api.example.com.evil.test", false},
		{"*.example.com", "*.example.com", true}, // no host has such a name
		{"*.example.com", "", false},
		{"*.com", "example.com", true},
		{"localhost", "localhost", true},
		{"localhost", "a.localhost", false},
	} {
		if got := Name(tt.name).Matches(tt.host); got != tt.want {
			t.Errorf("%s matches %q: %v", tt.name, tt.host, got)
		}
	}
}

func TestNameCovers(t *testing.T) {
	for _, tt := range []struct {
		outer, inner string
		want         bool
	}{
		{"example.com", "example.com", true},
		{"example.com", "*.example.com", false},
		{"example.com", "a.example.com", false},
		{"*.example.com", "*.example.com", true},
		{"*.example.com", "a.example.com", true},
		{"*.example.com", "*.a.example.com", true},
		{"*.example.com", "example.com", false},
		{"*.a.example.com", "*.example.com", false},
		{"*.example.com", "*.evilexample.com", false},
	} {
		if got := Name(tt.outer).Covers(Name(tt.inner)); got != tt.want {
			t.Errorf("%s covers %s: %v", tt.outer, tt.inner, got)
		}
	}
}

func TestCanonicalHost(t *testing.T) {
	for in, want := range map[string]string{
		"API.example.com.": "api.example.com", "_x.example": "_x.example", "1.2.0.192.in-addr.arpa": "1.2.0.192.in-addr.arpa",
		"": "", ".": "", "a..b": "", "münchen.example": "", `a\.b`: "", "a:80": "", "[::1]": "", "a\x00b": "",
		"*.example.com": "", "\u212aelvin.example": "", // a Kelvin sign is no k
	} {
		got, err := CanonicalHost(in)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: got %q, %v; want %q", in, got, err, want)
		}
	}
}

func FuzzParseName(f *testing.F) {
	for _, s := range []string{"api.example.com", "*.münchen.example.", "*.*", "xn--a", "＊.com", "a。b", "_", "\u200d", "ß", "1.1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if host, err := CanonicalHost(s); err == nil {
			if again, err := CanonicalHost(host); again != host || err != nil {
				t.Fatalf("%q: %q, then %q, %v", s, host, again, err)
			}
		}
		n, err := ParseName(s)
		if err != nil {
			return
		}
		if again, err := ParseName(string(n)); again != n || err != nil {
			t.Fatalf("%q reads as %q, which reads as %q, %v", s, n, again, err)
		}
		if len(n) > MaxName {
			t.Fatalf("%q is too long", n)
		}
		host := n.bare()
		if n.IsWildcard() {
			if n.Matches(host) {
				t.Fatalf("%q matches %q", n, host)
			}
			host = "a." + host
		}
		if _, err := CanonicalHost(host); err == nil && !n.Matches(host) {
			t.Fatalf("%q does not match %q", n, host)
		}
	})
}
