// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
)

const (
	// MaxRanges is how many port ranges one entry of the kernel's trie holds.
	MaxRanges = 32
	// maxHostPorts is how many ports of one address are worth a hash entry each.
	// An address with more goes to the trie, a name with more is wide.
	maxHostPorts = 16
)

// Input is one rule to compile, under the number that the kernel reports for it.
type Input struct {
	Rule     Rule
	ID       uint32
	Deadline uint64 // CLOCK_BOOTTIME in ns from which on the rule is dead; 0 is never
}

// Compiled is what the kernel's maps hold for one owner: a policy version, or
// the grants of a task. It is sorted, and the same input compiles to the same
// output.
//
// The kernel looks a flow up in Hosts first. On a miss, or when that entry is
// dead, it takes the longest matching entry of Prefixes, that one only, and in
// it the first live range that covers the flow.
//
// Named says what becomes entries beside Hosts as addresses are learned. The name
// in a ClientHello is looked up in Names: the longest matching entry, that one
// only, and in it the claims on its port.
type Compiled struct {
	Hosts     []Host
	Prefixes  []Prefix
	Named     []Named
	Names     []NameEntry
	WideNames bool // some of Named are wide
}

// HostKey is one key of the flat hash.
type HostKey struct {
	Addr      netip.Addr // the 16-byte form; IPv4 is ::ffff:a.b.c.d
	Port      uint16     // 0 for ICMP
	Proto     Proto
	Direction Direction
}

// Host is one entry of the flat hash.
type Host struct {
	HostKey
	Rule     uint32
	Deadline uint64
}

// Range is one element of a trie entry. Those of ICMP are {0, 0}.
type Range struct {
	Lo, Hi    uint16 // inclusive
	Proto     Proto
	Direction Direction
	Rule      uint32
	Deadline  uint64
}

// Prefix is one entry of the trie. With no Ranges it denies: it keeps the
// addresses below it from a shorter entry.
type Prefix struct {
	Prefix netip.Prefix // the 128-bit form; 10.0.0.0/8 is ::ffff:10.0.0.0/104
	Ranges []Range      // the most specific rule's first, at most MaxRanges
}

// Compile turns rules into map entries that allow what any of the rules, looked
// at one by one, allows. An IPv6 prefix never covers IPv4 addresses, and only a
// prefix within 127.0.0.0/8 or ::1 covers loopback ones. The error names the
// prefix that needs more than MaxRanges ranges, the name that needs more than
// MaxClaims, or the destination that nothing could enforce.
func Compile(in []Input) (Compiled, error) {
	hosts := make(map[HostKey]Host)
	ranges := make(map[netip.Prefix][]Range)
	var named []Named
	for _, rule := range in {
		for _, d := range rule.Rule.To {
			if err := rule.Rule.problem(d); err != nil {
				return Compiled{}, err
			}
			if d.Name != "" {
				named = append(named, newNamed(rule, d))
				continue
			}
			if !d.Prefix.IsValid() {
				return Compiled{}, fmt.Errorf("compile rule %d: a destination has no prefix", rule.ID)
			}
			d.Prefix = unmap(d.Prefix).Masked()
			if d.Prefix.IsSingleIP() && countPorts(d.Ports) <= maxHostPorts {
				addHosts(hosts, rule, d)
				continue
			}
			ranges[d.Prefix] = appendRanges(ranges[d.Prefix], rule, d)
		}
	}
	prefixes, err := mergeCovering(ranges)
	if err != nil {
		return Compiled{}, err
	}
	c := Compiled{Hosts: sortedHosts(hosts), Prefixes: prefixes, Named: named}
	if err := c.compileNames(); err != nil {
		return Compiled{}, err
	}
	return c, nil
}

func countPorts(ports []Ports) int {
	n := 0
	for _, p := range ports {
		n += int(p.Hi) - int(p.Lo) + 1
	}
	return n
}

func addHosts(hosts map[HostKey]Host, in Input, d Destination) {
	key := HostKey{Addr: as16(d.Prefix.Addr()), Proto: d.Proto, Direction: in.Rule.Direction}
	if !d.Proto.HasPorts() {
		addHost(hosts, Host{key, in.ID, in.Deadline})
		return
	}
	for _, p := range d.Ports {
		for port := uint32(p.Lo); port <= uint32(p.Hi); port++ {
			key.Port = uint16(port)
			addHost(hosts, Host{key, in.ID, in.Deadline})
		}
	}
}

// addHost keeps the entry that lives longest, and the first of equals.
func addHost(hosts map[HostKey]Host, h Host) {
	if old, ok := hosts[h.HostKey]; ok && !outlives(h.Deadline, old.Deadline) {
		return
	}
	hosts[h.HostKey] = h
}

// outlives reports whether deadline a is later than b; 0 is later than any.
func outlives(a, b uint64) bool {
	return b != 0 && (a == 0 || a > b)
}

func appendRanges(ranges []Range, in Input, d Destination) []Range {
	r := Range{Proto: d.Proto, Direction: in.Rule.Direction, Rule: in.ID, Deadline: in.Deadline}
	if !d.Proto.HasPorts() {
		return append(ranges, r)
	}
	for _, p := range d.Ports {
		r.Lo, r.Hi = p.Lo, p.Hi
		ranges = append(ranges, r)
	}
	return ranges
}

func sortedHosts(hosts map[HostKey]Host) []Host {
	if len(hosts) == 0 {
		return nil
	}
	out := make([]Host, 0, len(hosts))
	for _, h := range hosts {
		out = append(out, h)
	}
	slices.SortFunc(out, func(a, b Host) int {
		return cmp.Or(
			a.Addr.Compare(b.Addr),
			cmp.Compare(a.Proto, b.Proto),
			cmp.Compare(a.Port, b.Port),
			cmp.Compare(a.Direction, b.Direction),
		)
	})
	return out
}

func as16(a netip.Addr) netip.Addr {
	return netip.AddrFrom16(a.As16())
}
