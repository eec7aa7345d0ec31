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

// Destination is where a rule points: addresses, protocol and ports.
//
// ParseDestination returns the one form of each: Prefix is masked, an
// IPv4-mapped prefix is an IPv4 one, Ports are sorted, disjoint and not
// adjacent, and nil for ICMP.
type Destination struct {
	Proto  Proto
	Prefix netip.Prefix
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
	host := d.Prefix.String()
	if d.Prefix.IsSingleIP() {
		host = d.Prefix.Addr().String()
	}
	if d.Prefix.Addr().Is6() {
		host = "[" + host + "]"
	}
	b.WriteString(host)
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

// Matches reports whether d covers a flow of proto to port at addr. An
// IPv4-mapped addr is the IPv4 address; port is ignored for ICMP. A loopback
// address is covered only by a prefix that lies within 127.0.0.0/8 or ::1.
func (d Destination) Matches(proto Proto, addr netip.Addr, port uint16) bool {
	addr = addr.Unmap()
	if d.Proto != proto || !d.Prefix.Contains(addr) {
		return false
	}
	if addr.IsLoopback() && !realm(d.Prefix).IsValid() {
		return false
	}
	if !proto.HasPorts() {
		return true
	}
	return slices.ContainsFunc(d.Ports, func(p Ports) bool { return p.Lo <= port && port <= p.Hi })
}

// compare orders destinations by address, prefix length, protocol and ports.
func (d Destination) compare(o Destination) int {
	return cmp.Or(
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
