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

// Rule is one entry of a policy, or one grant.
//
// For Egress, To is where the task may connect. For Ingress it is who may
// connect to the task: the peer's addresses with the task's own ports.
type Rule struct {
	Direction Direction
	To        []Destination
}

// String returns the canonical text of r. Rules that mean the same destinations
// have the same text whatever their order, so it identifies a rule across
// versions of a policy. An egress rule that ParseDestination can read prints as
// that destination.
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
