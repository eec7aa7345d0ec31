// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"net/netip"
	"reflect"
	"testing"
)

func TestRuleString(t *testing.T) {
	for _, tt := range []struct {
		rule        Rule
		want, short string
	}{
		{rule(t, Egress, "tcp://192.0.2.1/32:443"), "192.0.2.1:443", "192.0.2.1:443"},
		{rule(t, Ingress, "10.0.0.0/8:8080"), "ingress 10.0.0.0/8:8080", "ingress 10.0.0.0/8:8080"},
		{
			rule(t, Egress, "[2001:db8::/32]:443", "udp://10.0.0.0/8:53", "10.0.0.0/8:53", "10.0.0.0/16:53", "10.0.0.0/8:53"),
			"10.0.0.0/8:53 udp://10.0.0.0/8:53 10.0.0.0/16:53 [2001:db8::/32]:443",
			"10.0.0.0/8:53 udp://10.0.0.0/8:53 10.0.0.0/16:53 and 1 more",
		},
		{
			rule(t, Egress, "*.example.com:443", "192.0.2.1:443", "api.example.com:443", "[2001:db8::1]:443"),
			"192.0.2.1:443 [2001:db8::1]:443 *.example.com:443 api.example.com:443",
			"192.0.2.1:443 [2001:db8::1]:443 *.example.com:443 and 1 more",
		},
		{Rule{To: []Destination{mustParse(t, "github.com:22")}, TLS: Off}, "github.com:22 tls: off", "github.com:22 tls: off"},
		{Rule{To: []Destination{mustParse(t, "a.test:80")}, TLS: Required, HTTP: Off}, "a.test:80 http: off", "a.test:80 http: off"},
		{Rule{To: []Destination{mustParse(t, "a.test:8080")}, TLS: Off, HTTP: Required}, "a.test:8080 tls: off http: required", "a.test:8080 tls: off http: required"},
		{Rule{}, "", ""},
	} {
		if got := tt.rule.String(); got != tt.want {
			t.Errorf("String is %q, want %q", got, tt.want)
		}
		if got := tt.rule.Short(); got != tt.short {
			t.Errorf("Short is %q, want %q", got, tt.short)
		}
	}
}

func TestRuleStringIgnoresOrder(t *testing.T) {
	a := rule(t, Egress, "10.0.0.0/8:80,443", "[::ffff:192.0.2.1]:1", "icmp://192.0.2.1")
	before := fmt.Sprint(a.To)
	b := rule(t, Egress, "icmp://192.0.2.1", "192.0.2.1:1", "192.0.2.1:1-1", "10.0.0.0/8:443,80")
	if a.String() != b.String() {
		t.Errorf("%q and %q are the same rule", a, b)
	}
	if fmt.Sprint(a.To) != before {
		t.Error("String changed the rule")
	}
	if c := (Rule{Direction: Ingress, To: a.To}); c.String() == a.String() {
		t.Errorf("egress and ingress rules are both %q", c)
	}
}

func TestRuleMatches(t *testing.T) {
	r := rule(t, Ingress, "10.0.0.0/8:8080", "udp://[2001:db8::/32]:53")
	for _, tt := range []struct {
		dir   Direction
		proto Proto
		addr  string
		port  uint16
		want  bool
	}{
		{Ingress, TCP, "10.1.1.1", 8080, true},
		{Ingress, UDP, "2001:db8::1", 53, true},
		{Egress, TCP, "10.1.1.1", 8080, false},
		{Ingress, TCP, "2001:db8::1", 53, false},
	} {
		if got := r.Matches(tt.dir, tt.proto, netip.MustParseAddr(tt.addr), tt.port); got != tt.want {
			t.Errorf("%v: got %v", tt, got)
		}
	}
}

func TestRuleCheck(t *testing.T) {
	for _, tt := range []struct {
		tls, http Setting
		dest      string
		port      uint16
		want      Check
	}{
		{Unset, Unset, "a.test:*", 443, CheckTLS},
		{Unset, Unset, "a.test:*", 22, CheckTLS},
		{Unset, Unset, "a.test:*", 80, CheckHTTP},
		{Required, Unset, "a.test:*", 80, CheckHTTP},
		{Off, Unset, "a.test:*", 80, CheckHTTP},
		{Off, Unset, "a.test:*", 443, CheckNone},
		{Unset, Off, "a.test:*", 80, CheckTLS},
		{Off, Off, "a.test:*", 80, CheckNone},
		{Unset, Required, "a.test:*", 8080, CheckHTTP},
		{Off, Required, "a.test:*", 8080, CheckHTTP},
		{Unset, Unset, "udp://a.test:123", 123, CheckNone},
		{Unset, Unset, "icmp://a.test", 0, CheckNone},
		{Unset, Required, "192.0.2.1:80", 80, CheckNone},
	} {
		d := mustParse(t, tt.dest)
		r := Rule{To: []Destination{d}, TLS: tt.tls, HTTP: tt.http}
		if got := r.Check(d, tt.port); got != tt.want {
			t.Errorf("%s, port %d: %s, want %s", r, tt.port, got, tt.want)
		}
	}
}

func TestProtos(t *testing.T) {
	got := Protos([]Rule{
		rule(t, Egress, "udplite://192.0.2.1:1", "192.0.2.1:1"),
		rule(t, Ingress, "sctp://192.0.2.1:1", "192.0.2.1:2"),
		rule(t, Egress, "udp://a.test:1"),
	})
	if want := []Proto{TCP, UDP, SCTP, UDPLite}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestEnumNames(t *testing.T) {
	for _, tt := range []struct {
		value fmt.Stringer
		want  string
	}{
		{Egress, "egress"}, {Ingress, "ingress"}, {Direction(9), "Direction(9)"},
		{Enforce, "enforce"}, {Audit, "audit"}, {Mode(9), "Mode(9)"},
		{LoopbackNone, "none"}, {LoopbackTask, "task"}, {LoopbackHost, "host"}, {Loopback(9), "Loopback(9)"},
		{Kill, "kill"}, {Leave, "leave"}, {OnEnd(9), "OnEnd(9)"},
		{TCP, "tcp"}, {Proto(9), "Proto(9)"},
		{Unset, ""}, {Required, "required"}, {Off, "off"}, {Setting(9), "Setting(9)"},
		{CheckNone, "none"}, {CheckTLS, "tls"}, {CheckHTTP, "http"}, {Check(9), "Check(9)"},
	} {
		if got := tt.value.String(); got != tt.want {
			t.Errorf("got %q, want %q", got, tt.want)
		}
	}
}

// The kernel reads zeroed memory as these.
func TestZeroValuesAreTheStrictOnes(t *testing.T) {
	var p Policy
	if p.Mode != Enforce || p.Loopback != LoopbackNone || p.OnEnd != Kill || p.MPTCP || p.Raw || p.Multicast {
		t.Errorf("the zero policy is %+v", p)
	}
}

func rule(t testing.TB, dir Direction, to ...string) Rule {
	t.Helper()
	r := Rule{Direction: dir}
	for _, s := range to {
		r.To = append(r.To, mustParse(t, s))
	}
	return r
}
