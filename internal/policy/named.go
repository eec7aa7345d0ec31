// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"slices"
	"sort"
	"strings"
)

// MaxClaims is how many claims one entry of the kernel's names holds.
const MaxClaims = 16

// Named is a destination with a name. The addresses that are learned for the
// name are allowed as its Ranges say.
type Named struct {
	// Number names the destination within its owner. It follows from what the
	// destination is, so that it stays the same in another version and after a
	// restart; it is never 0.
	Number   uint32
	Rule     uint32
	Deadline uint64
	Name     Name
	Proto    Proto
	Ranges   []NamedRange // sorted and disjoint; that of ICMP is {0, 0}

	// Wide is set when there are too many ports for an entry each: an address
	// has one for all, and one more for port 80 if that is checked otherwise.
	// All wide destinations of a protocol then have the same ports.
	Wide bool
}

// NamedRange is ports of a Named that have one Check.
type NamedRange struct {
	Lo, Hi uint16 // inclusive
	Check  Check
}

// Claim says that a name may be shown to addresses learned for the destination
// with that number, on those ports.
type Claim struct {
	Number uint32
	Lo, Hi uint16 // inclusive
}

// NameEntry is one entry of the kernel's names.
type NameEntry struct {
	Name   Name
	Claims []Claim // its own, then those of the wildcards around it; at most MaxClaims
}

// CheckOf returns what a flow to port has to show; ok is false if n does not
// have the port.
func (n Named) CheckOf(port uint16) (check Check, ok bool) {
	for _, r := range n.Ranges {
		if r.Lo <= port && port <= r.Hi || !n.Proto.HasPorts() {
			return r.Check, true
		}
	}
	return CheckNone, false
}

// Bounds returns the first and the last port.
func (n Named) Bounds() (lo, hi uint16) {
	return n.Ranges[0].Lo, n.Ranges[len(n.Ranges)-1].Hi
}

// Matching returns those of c.Named whose names match host, which is as
// CanonicalHost returns it.
func (c Compiled) Matching(host string) []Named { return c.Covering(Name(host)) }

// Covering returns those of c.Named whose names cover name.
func (c Compiled) Covering(name Name) []Named {
	var found []Named
	add := func(name Name) bool {
		first := sort.Search(len(c.Named), func(i int) bool { return c.Named[i].Name >= name })
		for ; first < len(c.Named) && c.Named[first].Name == name; first++ {
			found = append(found, c.Named[first])
		}
		return true
	}
	add(name)
	name.wildcards(add)
	return found
}

func newNamed(in Input, d Destination) Named {
	n := Named{
		Rule: in.ID, Deadline: in.Deadline, Name: d.Name, Proto: d.Proto,
		Ranges: []NamedRange{{}},
		Wide:   d.Proto.HasPorts() && countPorts(d.Ports) > maxHostPorts,
	}
	if !d.Proto.HasPorts() {
		return n
	}
	n.Ranges = n.Ranges[:0]
	for _, p := range d.Ports {
		// Only port 80 can differ from the ports around it.
		for _, part := range []Ports{{p.Lo, min(p.Hi, portHTTP-1)}, {max(p.Lo, portHTTP), min(p.Hi, portHTTP)}, {max(p.Lo, portHTTP+1), p.Hi}} {
			if part.Lo <= part.Hi {
				n.Ranges = appendNamed(n.Ranges, NamedRange{part.Lo, part.Hi, in.Rule.Check(d, part.Lo)})
			}
		}
	}
	return n
}

// appendNamed joins r to the last of ranges if it continues that.
func appendNamed(ranges []NamedRange, r NamedRange) []NamedRange {
	if n := len(ranges); n > 0 && ranges[n-1].Check == r.Check && uint32(ranges[n-1].Hi)+1 == uint32(r.Lo) {
		ranges[n-1].Hi = r.Hi
		return ranges
	}
	return append(ranges, r)
}

// identity is what the number of n follows from.
func (n Named) identity() uint32 {
	h := fnv.New32a()
	h.Write(binary.LittleEndian.AppendUint32(nil, n.Rule))
	h.Write([]byte(n.Name))
	h.Write([]byte{0, byte(n.Proto)})
	for _, r := range n.Ranges {
		h.Write([]byte{byte(r.Lo), byte(r.Lo >> 8), byte(r.Hi), byte(r.Hi >> 8), byte(r.Check)})
	}
	return h.Sum32()
}

func (n Named) compare(o Named) int {
	return cmp.Or(
		cmp.Compare(n.Name, o.Name),
		cmp.Compare(n.Rule, o.Rule),
		cmp.Compare(n.Proto, o.Proto),
		slices.CompareFunc(n.Ranges, o.Ranges, func(a, b NamedRange) int {
			return cmp.Or(cmp.Compare(a.Lo, b.Lo), cmp.Compare(a.Hi, b.Hi), cmp.Compare(a.Check, b.Check))
		}),
		compareDeadlines(o.Deadline, n.Deadline),
	)
}

// compareDeadlines orders the earlier first.
func compareDeadlines(a, b uint64) int {
	switch {
	case outlives(b, a):
		return -1
	case outlives(a, b):
		return 1
	}
	return 0
}

// compileNames sorts and numbers c.Named and makes the rest that follows from
// them.
func (c *Compiled) compileNames() error {
	slices.SortFunc(c.Named, Named.compare)
	// Of those that differ only in the deadline, the one that lives longest.
	c.Named = slices.CompactFunc(c.Named, func(a, b Named) bool {
		b.Deadline = a.Deadline
		return a.compare(b) == 0
	})
	taken := make(map[uint32]bool, len(c.Named))
	for i := range c.Named {
		number := c.Named[i].identity()
		for number == 0 || taken[number] {
			number++
		}
		taken[number] = true
		c.Named[i].Number = number
	}
	if err := c.checkWide(); err != nil {
		return err
	}
	var err error
	c.Names, err = mergeNames(c.Named)
	return err
}

// checkWide makes sure that wide destinations can share one entry for each
// address and protocol.
func (c *Compiled) checkWide() error {
	first := make(map[Proto]Named)
	for _, n := range c.Named {
		if !n.Wide {
			continue
		}
		c.WideNames = true
		if lo, hi := n.Bounds(); countNamed(n.Ranges) != int(hi)-int(lo)+1 {
			return fmt.Errorf("%s: more than %d ports of a name have to be one range; write each range as a destination of its own, or *", n.destination(), maxHostPorts)
		}
		other, ok := first[n.Proto]
		if !ok {
			first[n.Proto] = n
			continue
		}
		lo, hi := n.Bounds()
		if otherLo, otherHi := other.Bounds(); lo != otherLo || hi != otherHi {
			return fmt.Errorf("%s and %s: all names with more than %d ports have to have the same range; give both the same one, or *",
				other.destination(), n.destination(), maxHostPorts)
		}
	}
	return nil
}

func countNamed(ranges []NamedRange) int {
	n := 0
	for _, r := range ranges {
		n += int(r.Hi) - int(r.Lo) + 1
	}
	return n
}

// destination is n as it was written.
func (n Named) destination() Destination {
	d := Destination{Proto: n.Proto, Name: n.Name}
	if n.Proto.HasPorts() {
		for _, r := range n.Ranges {
			d.Ports = append(d.Ports, Ports{r.Lo, r.Hi})
		}
		d.Ports = mergePorts(d.Ports)
	}
	return d
}

// claimant is a claim with whose it is.
type claimant struct {
	Claim
	of *Named
}

// mergeNames makes the entries of names: each name with its own claims and those
// of every wildcard that covers it.
func mergeNames(named []Named) ([]NameEntry, error) {
	own := make(map[Name][]claimant)
	for i, n := range named {
		for _, r := range n.Ranges {
			if r.Check == CheckTLS {
				own[n.Name] = append(own[n.Name], claimant{Claim{n.Number, r.Lo, r.Hi}, &named[i]})
			}
		}
	}
	var names []NameEntry
	for name, claims := range own {
		claims = slices.Clip(claims)
		name.wildcards(func(w Name) bool {
			claims = append(claims, own[w]...)
			return true
		})
		if len(claims) > MaxClaims {
			claims = dropRedundant(claims)
		}
		if len(claims) > MaxClaims {
			return nil, fmt.Errorf("%s: %d port ranges with TLS apply to it, with those of the wildcards around it, and at most %d fit; join ports into ranges or give a rule tls: off", name, len(claims), MaxClaims)
		}
		entry := NameEntry{Name: name}
		for _, c := range claims {
			entry.Claims = append(entry.Claims, c.Claim)
		}
		names = append(names, entry)
	}
	slices.SortFunc(names, func(a, b NameEntry) int { return strings.Compare(string(a.Name), string(b.Name)) })
	return names, nil
}

// dropRedundant removes the claims that another one makes as well: an address
// that is learned for a name is learned for all that cover the name.
func dropRedundant(claims []claimant) []claimant {
	var kept []claimant
	for i, c := range claims {
		makes := func(j int) bool {
			o := claims[j]
			return j != i && o.of.Name.Covers(c.of.Name) && o.Lo <= c.Lo && c.Hi <= o.Hi && !outlives(c.of.Deadline, o.of.Deadline)
		}
		redundant := false
		for j := range claims {
			// Of two that make each other, the first stays.
			equal := claims[j].of.Name == c.of.Name && claims[j].Lo == c.Lo && claims[j].Hi == c.Hi && claims[j].of.Deadline == c.of.Deadline
			redundant = redundant || makes(j) && (j < i || !equal)
		}
		if !redundant {
			kept = append(kept, c)
		}
	}
	return kept
}
