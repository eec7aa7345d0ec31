// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"github.com/cilium/ebpf"

	"agentguard.dev/agentguard/bpf"
	"agentguard.dev/agentguard/internal/policy"
)

// Rules is the compiled rules of all owners: policy versions, and tasks for
// their grants. It remembers what it wrote, so that a change is a diff.
type Rules struct {
	hosts, prefixes *ebpf.Map
	recents         recents

	mu     sync.Mutex
	owners map[uint32]*owned
}

// owned is what the maps hold for one owner.
type owned struct {
	hosts    map[policy.HostKey]permit
	prefixes map[netip.Prefix][]policy.Range

	// After a failed removal they hold at most this, so all that is wanted
	// is written again.
	uncertain bool
}

type permit struct {
	rule     uint32
	deadline uint64
}

func (p permit) kernel() bpf.GuardPermit {
	return bpf.GuardPermit{Rule: p.rule, Deadline: p.deadline}
}

func newOwned(c policy.Compiled) *owned {
	o := &owned{
		hosts:    make(map[policy.HostKey]permit, len(c.Hosts)),
		prefixes: make(map[netip.Prefix][]policy.Range, len(c.Prefixes)),
	}
	for _, h := range c.Hosts {
		o.hosts[h.HostKey] = permit{h.Rule, h.Deadline}
	}
	for _, p := range c.Prefixes {
		o.prefixes[p.Prefix] = p.Ranges
	}
	return o
}

func openRules(hosts, prefixes *ebpf.Map, recents recents) (*Rules, error) {
	r := &Rules{hosts: hosts, prefixes: prefixes, recents: recents, owners: make(map[uint32]*owned)}
	var (
		host   bpf.GuardHost
		value  bpf.GuardPermit
		prefix bpf.GuardPrefix
		ranges bpf.GuardRanges
	)
	entries := hosts.Iterate()
	for entries.Next(&host, &value) {
		r.owner(host.Owner).hosts[policyHostKey(host)] = permit{value.Rule, value.Deadline}
	}
	if err := entries.Err(); err != nil {
		return nil, fmt.Errorf("read hosts: %w", err)
	}
	entries = prefixes.Iterate()
	for entries.Next(&prefix, &ranges) {
		r.owner(prefix.Owner).prefixes[policyPrefix(prefix)] = policyRanges(&ranges)
	}
	if err := entries.Err(); err != nil {
		return nil, fmt.Errorf("read prefixes: %w", err)
	}
	return r, nil
}

func (r *Rules) owner(number uint32) *owned {
	if r.owners[number] == nil {
		r.owners[number] = newOwned(policy.Compiled{})
	}
	return r.owners[number]
}

// Replace makes want the rules of owner. It writes only what differs: additions
// first, the most specific before what covers it, removals last, so that no
// flow that both the old and the new rules allow is denied in between. If an
// addition fails the old rules stand again; if a removal fails, Get still has
// what may be left.
func (r *Rules) Replace(owner uint32, want policy.Compiled) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	defer r.recents.outdate() // whatever was written before an error, too
	have, next := r.owners[owner], newOwned(want)
	if have == nil {
		have = newOwned(policy.Compiled{})
	}
	if err := r.add(owner, have, next); err != nil {
		if undo := r.remove(owner, next, have); undo != nil {
			return errors.Join(err, undo)
		}
		return errors.Join(err, r.add(owner, next, have))
	}
	if err := r.remove(owner, have, next); err != nil {
		r.owners[owner] = union(have, next) // what may be there: the next change removes it
		return err
	}
	if len(next.hosts)+len(next.prefixes) == 0 {
		delete(r.owners, owner)
	} else {
		r.owners[owner] = next
	}
	return nil
}

// union is both, b's where they differ.
func union(a, b *owned) *owned {
	u := &owned{hosts: maps.Clone(a.hosts), prefixes: maps.Clone(a.prefixes), uncertain: true}
	maps.Copy(u.hosts, b.hosts)
	maps.Copy(u.prefixes, b.prefixes)
	return u
}

// Delete removes all rules of owner.
func (r *Rules) Delete(owner uint32) error { return r.Replace(owner, policy.Compiled{}) }

// Owners returns the numbers of all that own rules, in order.
func (r *Rules) Owners() []uint32 {
	r.mu.Lock()
	defer r.mu.Unlock()
	owners := make([]uint32, 0, len(r.owners))
	for number := range r.owners {
		owners = append(owners, number)
	}
	slices.Sort(owners)
	return owners
}

// Get returns the rules of owner, in the order of policy.Compile.
func (r *Rules) Get(owner uint32) policy.Compiled {
	r.mu.Lock()
	defer r.mu.Unlock()
	var c policy.Compiled
	have := r.owners[owner]
	if have == nil {
		return c
	}
	for key, p := range have.hosts {
		c.Hosts = append(c.Hosts, policy.Host{HostKey: key, Rule: p.rule, Deadline: p.deadline})
	}
	slices.SortFunc(c.Hosts, func(a, b policy.Host) int {
		return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Proto, b.Proto),
			cmp.Compare(a.Direction, b.Direction), cmp.Compare(a.Port, b.Port))
	})
	for _, p := range sortedPrefixes(have.prefixes) {
		c.Prefixes = append(c.Prefixes, policy.Prefix{Prefix: p, Ranges: have.prefixes[p]})
	}
	return c
}

func (r *Rules) count() (hosts, prefixes int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, o := range r.owners {
		hosts += len(o.hosts)
		prefixes += len(o.prefixes)
	}
	return hosts, prefixes
}

// add writes what next has and have lacks or has otherwise.
func (r *Rules) add(owner uint32, have, next *owned) error {
	var (
		keys   []bpf.GuardHost
		values []bpf.GuardPermit
	)
	for key, value := range next.hosts {
		if old, ok := have.hosts[key]; !ok || old != value || have.uncertain {
			keys = append(keys, hostKey(owner, key))
			values = append(values, value.kernel())
		}
	}
	if err := putHosts(r.hosts, keys, values); err != nil {
		return err
	}
	prefixes := sortedPrefixes(next.prefixes)
	slices.Reverse(prefixes) // the longest first
	for _, p := range prefixes {
		ranges := next.prefixes[p]
		if old, ok := have.prefixes[p]; ok && slices.Equal(old, ranges) && !have.uncertain {
			continue
		}
		if err := r.prefixes.Put(prefixKey(owner, p), kernelRanges(ranges)); err != nil {
			return writeError("prefixes", r.prefixes.MaxEntries(), err)
		}
	}
	return nil
}

// remove deletes what have has and next lacks, what covers before what it
// covers, so that nothing falls through to a wider entry that goes as well.
func (r *Rules) remove(owner uint32, have, next *owned) error {
	for key := range have.hosts {
		if _, ok := next.hosts[key]; ok {
			continue
		}
		if err := remove(r.hosts, "hosts", hostKey(owner, key)); err != nil {
			return err
		}
	}
	for _, p := range sortedPrefixes(have.prefixes) {
		if _, ok := next.prefixes[p]; ok {
			continue
		}
		if err := remove(r.prefixes, "prefixes", prefixKey(owner, p)); err != nil {
			return err
		}
	}
	return nil
}

// batchFrom is the number of entries from which one batch call beats single
// ones.
const batchFrom = 32

func putHosts(m *ebpf.Map, keys []bpf.GuardHost, values []bpf.GuardPermit) error {
	if len(keys) >= batchFrom {
		if _, err := m.BatchUpdate(keys, values, nil); err != nil {
			return writeError("hosts", m.MaxEntries(), err)
		}
		return nil
	}
	for i := range keys {
		if err := m.Put(keys[i], values[i]); err != nil {
			return writeError("hosts", m.MaxEntries(), err)
		}
	}
	return nil
}

// sortedPrefixes returns the keys, shorter prefixes first.
func sortedPrefixes(prefixes map[netip.Prefix][]policy.Range) []netip.Prefix {
	keys := make([]netip.Prefix, 0, len(prefixes))
	for p := range prefixes {
		keys = append(keys, p)
	}
	slices.SortFunc(keys, func(a, b netip.Prefix) int {
		return cmp.Or(cmp.Compare(a.Bits(), b.Bits()), a.Addr().Compare(b.Addr()))
	})
	return keys
}
