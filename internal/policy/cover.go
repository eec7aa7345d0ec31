// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
)

// maxCompared bounds the work on a prefix that is far over MaxRanges.
const maxCompared = 1024

// ipv4 is where the trie holds IPv4.
var ipv4 = netip.PrefixFrom(netip.AddrFrom16([16]byte{10: 0xff, 11: 0xff}), 96)

// loopbacks are the machine itself. Who writes 0.0.0.0/0 means the network: only
// a prefix that lies within one of these reaches what listens there.
var loopbacks = []netip.Prefix{
	netip.PrefixFrom(netip.AddrFrom4([4]byte{127}), 8),
	netip.PrefixFrom(netip.IPv6Loopback(), 128),
}

// realm returns the loopback that p lies within, or no prefix.
func realm(p netip.Prefix) netip.Prefix {
	for _, l := range loopbacks {
		if covers(l, p) {
			return l
		}
	}
	return netip.Prefix{}
}

// mergeCovering makes the trie's entries: each prefix with its own ranges and,
// behind them, those of every shorter prefix of the same family and realm that
// covers it. The keys of own are masked, and IPv4 ones are in the 4-byte form.
func mergeCovering(own map[netip.Prefix][]Range) ([]Prefix, error) {
	if len(own) == 0 {
		return nil, nil
	}
	// In this order every prefix comes after all that cover it, and the ones on
	// the stack are those that cover the current one. IPv4 sorts before IPv6.
	order := make([]netip.Prefix, 0, len(own)+len(loopbacks))
	for p := range own {
		order = append(order, p)
	}
	for _, l := range loopbacks {
		_, there := own[l]
		if !there && slices.ContainsFunc(order, func(p netip.Prefix) bool { return covers(p, l) }) {
			order = append(order, l)
		}
	}
	slices.SortFunc(order, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})

	type level struct {
		prefix netip.Prefix
		ranges []Range
	}
	var stack []level
	var full []error
	out := make([]Prefix, 0, len(own)+1)
	shadowsIPv4 := false
	for _, p := range order {
		for len(stack) > 0 && !covers(stack[len(stack)-1].prefix, p) {
			stack = stack[:len(stack)-1]
		}
		ranges := own[p]
		if len(stack) > 0 && realm(stack[len(stack)-1].prefix) == realm(p) {
			ranges = slices.Concat(ranges, stack[len(stack)-1].ranges)
		}
		ranges = reduce(ranges)
		if len(ranges) > MaxRanges {
			full = append(full, fullError(p, len(ranges)))
			ranges = ranges[:MaxRanges]
		}
		stack = append(stack, level{p, ranges})
		out = append(out, Prefix{as128(p), ranges})
		shadowsIPv4 = shadowsIPv4 || p.Addr().Is6() && p.Contains(ipv4.Addr())
	}
	switch len(full) {
	case 0:
	case 1:
		return nil, full[0]
	default:
		return nil, fmt.Errorf("%w (and %d more prefixes like it)", full[0], len(full)-1)
	}
	if _, ok := own[netip.PrefixFrom(netip.IPv4Unspecified(), 0)]; shadowsIPv4 && !ok {
		out = append(out, Prefix{Prefix: ipv4})
	}
	slices.SortFunc(out, func(a, b Prefix) int {
		return cmp.Or(a.Prefix.Addr().Compare(b.Prefix.Addr()), cmp.Compare(a.Prefix.Bits(), b.Prefix.Bits()))
	})
	return out, nil
}

// covers reports whether outer holds inner; both are masked.
func covers(outer, inner netip.Prefix) bool {
	return outer.Bits() <= inner.Bits() && outer.Contains(inner.Addr())
}

func as128(p netip.Prefix) netip.Prefix {
	if p.Addr().Is4() {
		return netip.PrefixFrom(as16(p.Addr()), p.Bits()+96)
	}
	return p
}

func fullError(p netip.Prefix, n int) error {
	return fmt.Errorf("%s: %d port ranges apply to it, with those of the prefixes around it, and at most %d fit; join ports into ranges or use *", p, n, MaxRanges)
}

// reduce leaves out of ranges what changes no decision. Adjacent and overlapping
// ranges of one rule are joined where the first of them stood, and a range goes
// that one before it covers for at least as long. Only when there are still too
// many do ranges go that one behind them covers: that changes which rule a
// decision is counted for.
func reduce(ranges []Range) []Range {
	if len(ranges) < 2 {
		return ranges
	}
	ranges = joinOfRule(ranges)
	ranges = dropCovered(ranges)
	if len(ranges) > MaxRanges {
		slices.Reverse(ranges)
		ranges = dropCovered(ranges)
		slices.Reverse(ranges)
	}
	return ranges
}

func joinOfRule(ranges []Range) []Range {
	type placed struct {
		Range
		place int
	}
	sorted := make([]placed, len(ranges))
	for i, r := range ranges {
		sorted[i] = placed{r, i}
	}
	slices.SortFunc(sorted, func(a, b placed) int {
		return cmp.Or(
			cmp.Compare(a.Rule, b.Rule),
			cmp.Compare(a.Proto, b.Proto),
			cmp.Compare(a.Direction, b.Direction),
			cmp.Compare(a.Deadline, b.Deadline),
			cmp.Compare(a.Lo, b.Lo),
			cmp.Compare(a.place, b.place),
		)
	})
	joined := sorted[:0]
	for _, r := range sorted {
		if n := len(joined); n > 0 && joins(joined[n-1].Range, r.Range) {
			joined[n-1].Hi = max(joined[n-1].Hi, r.Hi)
			joined[n-1].place = min(joined[n-1].place, r.place)
			continue
		}
		joined = append(joined, r)
	}
	slices.SortFunc(joined, func(a, b placed) int { return cmp.Compare(a.place, b.place) })
	out := make([]Range, len(joined))
	for i, r := range joined {
		out[i] = r.Range
	}
	return out
}

// joins reports whether b, which does not start before a, continues a.
func joins(a, b Range) bool {
	return a.Rule == b.Rule && a.Proto == b.Proto && a.Direction == b.Direction && a.Deadline == b.Deadline &&
		uint32(b.Lo) <= uint32(a.Hi)+1
}

// dropCovered removes each range that one before it covers, in place.
func dropCovered(ranges []Range) []Range {
	kept := ranges[:0]
	for _, r := range ranges {
		if !slices.ContainsFunc(kept[:min(len(kept), maxCompared)], func(k Range) bool { return coversRange(k, r) }) {
			kept = append(kept, r)
		}
	}
	return kept
}

func coversRange(outer, inner Range) bool {
	return outer.Proto == inner.Proto && outer.Direction == inner.Direction &&
		outer.Lo <= inner.Lo && inner.Hi <= outer.Hi && !outlives(inner.Deadline, outer.Deadline)
}
