// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Proto is an IP protocol number. ICMPv6 is folded into ICMP.
type Proto uint8

// The protocols that a destination can name.
const (
	ICMP    Proto = 1
	TCP     Proto = 6
	UDP     Proto = 17
	DCCP    Proto = 33
	SCTP    Proto = 132
	UDPLite Proto = 136
)

var schemes = [...]struct {
	name  string
	proto Proto
}{
	{"tcp", TCP}, {"udp", UDP}, {"icmp", ICMP}, {"sctp", SCTP}, {"dccp", DCCP}, {"udplite", UDPLite},
}

// String returns the scheme of p in a destination, or Proto(N).
func (p Proto) String() string {
	for _, s := range schemes {
		if s.proto == p {
			return s.name
		}
	}
	return "Proto(" + strconv.Itoa(int(p)) + ")"
}

// HasPorts reports whether destinations of p carry ports.
func (p Proto) HasPorts() bool { return p != ICMP }

// Ports is an inclusive range of ports, Lo <= Hi.
type Ports struct{ Lo, Hi uint16 }

// allPorts is what "*" stands for.
var allPorts = Ports{0, 65535}

// String returns "443", "8000-8100" or "*".
func (p Ports) String() string {
	switch {
	case p == allPorts:
		return "*"
	case p.Lo == p.Hi:
		return strconv.Itoa(int(p.Lo))
	default:
		return strconv.Itoa(int(p.Lo)) + "-" + strconv.Itoa(int(p.Hi))
	}
}

// Destination is where a rule points: addresses or a name, protocol and ports.
//
// ParseDestination returns the one form of each: Prefix is masked, an
// IPv4-mapped prefix is an IPv4 one, Ports are sorted, disjoint and not
// adjacent, and nil for ICMP.
type Destination struct {
	Proto  Proto
	Prefix netip.Prefix // not valid beside a Name
	Name   Name         // or ""
	Ports  []Ports
}

// String returns the text that ParseDestination turns back into d. A single
// address has no prefix length and TCP has no scheme.
func (d Destination) String() string {
	var b strings.Builder
	if d.Proto != TCP {
		b.WriteString(d.Proto.String())
		b.WriteString("://")
	}
	b.WriteString(d.host())
	for i, p := range d.Ports {
		if i == 0 {
			b.WriteByte(':')
		} else {
			b.WriteByte(',')
		}
		b.WriteString(p.String())
	}
	return b.String()
}

func (d Destination) host() string {
	if d.Name != "" {
		return string(d.Name)
	}
	host := d.Prefix.String()
	if d.Prefix.IsSingleIP() {
		host = d.Prefix.Addr().String()
	}
	return bracketIPv6(host, d.Prefix.Addr())
}

// Matches reports whether d covers a flow of proto to port at addr. An
// IPv4-mapped addr is the IPv4 address; port is ignored for ICMP. A loopback
// address is covered only by a prefix that lies within 127.0.0.0/8 or ::1. A
// name covers no address by itself.
func (d Destination) Matches(proto Proto, addr netip.Addr, port uint16) bool {
	addr = addr.Unmap()
	if d.Proto != proto || !d.Prefix.Contains(addr) {
		return false
	}
	if addr.IsLoopback() && !realm(d.Prefix).IsValid() {
		return false
	}
	return d.hasPort(port)
}

// MatchesHost is Matches for a host as CanonicalHost returns it; addresses
// cover no name.
func (d Destination) MatchesHost(proto Proto, host string, port uint16) bool {
	return d.Name != "" && d.Proto == proto && d.Name.Matches(host) && d.hasPort(port)
}

func (d Destination) hasPort(port uint16) bool {
	return !d.Proto.HasPorts() ||
		slices.ContainsFunc(d.Ports, func(p Ports) bool { return p.Lo <= port && port <= p.Hi })
}

// Covers reports whether every flow that o covers is one that d covers. Between
// a name and an address nobody can tell, and it is false.
func (d Destination) Covers(o Destination) bool {
	if d.Proto != o.Proto || (d.Name == "") != (o.Name == "") {
		return false
	}
	if d.Name != "" && !d.Name.Covers(o.Name) || d.Name == "" && !covers(d.Prefix, o.Prefix) {
		return false
	}
	return !slices.ContainsFunc(o.Ports, func(p Ports) bool {
		return !slices.ContainsFunc(d.Ports, func(q Ports) bool { return q.Lo <= p.Lo && p.Hi <= q.Hi })
	})
}

// Overlaps reports whether there are flows that both d and o cover. Between a
// name and an address nobody can tell, and it is false.
func (d Destination) Overlaps(o Destination) bool {
	if d.Proto != o.Proto || (d.Name == "") != (o.Name == "") {
		return false
	}
	if d.Name != "" && !d.Name.Covers(o.Name) && !o.Name.Covers(d.Name) || d.Name == "" && !d.Prefix.Overlaps(o.Prefix) {
		return false
	}
	return !d.Proto.HasPorts() || slices.ContainsFunc(o.Ports, func(p Ports) bool {
		return slices.ContainsFunc(d.Ports, func(q Ports) bool { return q.Lo <= p.Hi && p.Lo <= q.Hi })
	})
}

// compare orders destinations by address and prefix length or, behind those, by
// name; then by protocol and ports.
func (d Destination) compare(o Destination) int {
	return cmp.Or(
		cmp.Compare(d.Name, o.Name),
		d.Prefix.Addr().Compare(o.Prefix.Addr()),
		cmp.Compare(d.Prefix.Bits(), o.Prefix.Bits()),
		cmp.Compare(d.Proto, o.Proto),
		slices.CompareFunc(d.Ports, o.Ports, Ports.compare),
	)
}

func (p Ports) compare(o Ports) int {
	return cmp.Or(cmp.Compare(p.Lo, o.Lo), cmp.Compare(p.Hi, o.Hi))
}

// mergePorts sorts ports and joins those that overlap or touch.
func mergePorts(ports []Ports) []Ports {
	slices.SortFunc(ports, Ports.compare)
	out := ports[:0]
	for _, p := range ports {
		if n := len(out); n > 0 && uint32(p.Lo) <= uint32(out[n-1].Hi)+1 {
			out[n-1].Hi = max(out[n-1].Hi, p.Hi)
			continue
		}
		out = append(out, p)
	}
	return out
}
