// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Direction says who opens a flow: the task or its peer.
type Direction uint8

// The directions of a rule.
const (
	Egress  Direction = iota // the task connects to a destination
	Ingress                  // a peer connects to a server of the task
)

// String returns "egress" or "ingress".
func (d Direction) String() string {
	switch d {
	case Egress:
		return "egress"
	case Ingress:
		return "ingress"
	default:
		return fmt.Sprintf("Direction(%d)", uint8(d))
	}
}

// Setting says whether a rule insists on a check of names.
type Setting uint8

// The settings of tls and http. What Unset means is with Rule.Check.
const (
	Unset Setting = iota
	Required
	Off
)

// String returns the name that a policy file uses; that of Unset is empty.
func (s Setting) String() string {
	switch s {
	case Unset:
		return ""
	case Required:
		return "required"
	case Off:
		return "off"
	default:
		return fmt.Sprintf("Setting(%d)", uint8(s))
	}
}

// Check is what a flow to an address that was learned for a name has to show.
type Check uint8

// The checks.
const (
	CheckNone Check = iota // nothing: the address stands for the name
	CheckTLS               // a ClientHello with an allowed name, first of all
	CheckHTTP              // an allowed name in the Host of every request
)

// String returns "none", "tls" or "http".
func (c Check) String() string {
	switch c {
	case CheckNone:
		return "none"
	case CheckTLS:
		return "tls"
	case CheckHTTP:
		return "http"
	default:
		return fmt.Sprintf("Check(%d)", uint8(c))
	}
}

// Rule is one entry of a policy, or one grant.
//
// For Egress, To is where the task may connect. For Ingress it is who may
// connect to the task: the peer's addresses with the task's own ports.
type Rule struct {
	Direction Direction
	To        []Destination
	TLS, HTTP Setting // of the names among To
}

// Check returns what flows to port of d, one of r's destinations, have to show.
// Only TCP to a name can be checked: as plain HTTP with http: required and,
// unless it is off, on port 80; as TLS everywhere else, unless that is off.
func (r Rule) Check(d Destination, port uint16) Check {
	switch {
	case d.Name == "" || d.Proto != TCP:
		return CheckNone
	case r.HTTP == Required, r.HTTP != Off && port == portHTTP:
		return CheckHTTP
	case r.TLS == Off:
		return CheckNone
	default:
		return CheckTLS
	}
}

const (
	portDNS  = 53
	portHTTP = 80
	portQUIC = 443
)

// problem returns what keeps d from being one of r's destinations.
func (r Rule) problem(d Destination) error {
	switch {
	case d.Name == "":
		return nil
	case r.Direction == Ingress:
		return fmt.Errorf("%s: nobody can tell the name of a peer; write its address or prefix", d)
	case d.Proto == UDP && r.TLS != Off && d.hasPort(portQUIC):
		return fmt.Errorf("%s: UDP port 443 is QUIC, whose name cannot be checked; leave the port out, clients then use TCP, or give the rule tls: off", d)
	}
	return nil
}

// String returns the canonical text of r. Rules that mean the same destinations
// have the same text whatever their order, so it identifies a rule across
// versions of a policy. An egress rule that ParseDestination can read prints as
// that destination, with its settings behind it.
func (r Rule) String() string {
	return r.text(len(r.To))
}

// Short returns the text of r with at most three destinations written out, for
// log lines and tables.
func (r Rule) Short() string {
	return r.text(3)
}

func (r Rule) text(most int) string {
	to := canonical(r.To)
	var b strings.Builder
	if r.Direction != Egress {
		b.WriteString(r.Direction.String())
		b.WriteByte(' ')
	}
	for i, d := range to {
		if i == most {
			fmt.Fprintf(&b, " and %d more", len(to)-most)
			break
		}
		if i > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(d.String())
	}
	// What is the default stays out: rules that mean the same have one text.
	if r.TLS == Off {
		b.WriteString(" tls: off")
	}
	if r.HTTP != Unset {
		b.WriteString(" http: " + r.HTTP.String())
	}
	return b.String()
}

// canonical returns to sorted and without repeats.
func canonical(to []Destination) []Destination {
	to = slices.Clone(to)
	slices.SortFunc(to, Destination.compare)
	return slices.CompactFunc(to, func(a, b Destination) bool { return a.compare(b) == 0 })
}

// Matches reports whether one of r's destinations covers a flow. For an ingress
// rule addr is the peer's and port the task's own.
func (r Rule) Matches(dir Direction, proto Proto, addr netip.Addr, port uint16) bool {
	return r.Direction == dir && slices.ContainsFunc(r.To, func(to Destination) bool { return to.Matches(proto, addr, port) })
}

// MatchesHost is Matches for a host as CanonicalHost returns it.
func (r Rule) MatchesHost(proto Proto, host string, port uint16) bool {
	return r.Direction == Egress && slices.ContainsFunc(r.To, func(to Destination) bool { return to.MatchesHost(proto, host, port) })
}

// Protos returns the protocols that rules name, in order and without repeats. A
// task may make sockets of SCTP, DCCP and UDP-Lite only when they are among them.
func Protos(rules []Rule) []Proto {
	var protos []Proto
	for _, r := range rules {
		for _, d := range r.To {
			if !slices.Contains(protos, d.Proto) {
				protos = append(protos, d.Proto)
			}
		}
	}
	slices.Sort(protos)
	return protos
}
