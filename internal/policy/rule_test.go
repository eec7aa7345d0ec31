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

func TestProtos(t *testing.T) {
	got := Protos([]Rule{
		rule(t, Egress, "udplite://192.0.2.1:1", "192.0.2.1:1"),
		rule(t, Ingress, "sctp://192.0.2.1:1", "192.0.2.1:2"),
	})
	if want := []Proto{TCP, SCTP, UDPLite}; !reflect.DeepEqual(got, want) {
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
