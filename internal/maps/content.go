// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"

	"agentguard.dev/agentguard/bpf"
	"agentguard.dev/agentguard/internal/policy"
)

// tables are the kernel's maps that rules are in.
type tables struct{ hosts, prefixes, names, learned *ebpf.Map }

// content is what the tables hold for one owner, or a part of that.
type content struct {
	hosts    map[policy.HostKey]permit
	prefixes map[netip.Prefix][]policy.Range
	names    map[policy.Name][]policy.Claim
	learned  map[addrKey]uint64 // until when the address counts

	// After a failed removal the tables hold at most this, so all that is
	// wanted is written again.
	uncertain bool
}

// permit is an entry of hosts, but for what the programs write themselves.
type permit struct {
	rule, flags       uint32
	deadline, expires uint64
	low, high         uint16
}

// addrKey is an address of a named destination.
type addrKey struct {
	number uint32
	addr   netip.Addr // the 16-byte form
}

// union is both, b's where they differ.
func union(a, b content) content {
	u := content{hosts: maps.Clone(a.hosts), prefixes: maps.Clone(a.prefixes), names: maps.Clone(a.names), uncertain: true}
	maps.Copy(u.hosts, b.hosts)
	maps.Copy(u.prefixes, b.prefixes)
	maps.Copy(u.names, b.names)
	return u
}

// add writes what next has and have lacks or has otherwise: addresses and names
// before the entries that send programs to look for them. If it fails, have
// stands again.
func (t tables) add(owner uint32, have, next content) error {
	err := t.write(owner, have, next)
	if err == nil {
		return nil
	}
	if undo := t.remove(owner, next, have); undo != nil {
		return errors.Join(err, undo)
	}
	next.uncertain = true // how far it came is not known
	return errors.Join(err, t.write(owner, next, have))
}

func (t tables) write(owner uint32, have, next content) error {
	if err := t.writeLearned(owner, have, next); err != nil {
		return err
	}
	names := sortedNames(next.names)
	slices.Reverse(names) // the longest first
	for _, name := range names {
		claims := next.names[name]
		if old, ok := have.names[name]; ok && slices.Equal(old, claims) && !have.uncertain {
			continue
		}
		if err := t.names.Put(nameKey(owner, name), kernelClaims(claims)); err != nil {
			return writeError("names", t.names.MaxEntries(), err)
		}
	}
	if err := t.writeHosts(owner, have, next); err != nil {
		return err
	}
	prefixes := sortedPrefixes(next.prefixes)
	slices.Reverse(prefixes)
	for _, p := range prefixes {
		ranges := next.prefixes[p]
		if old, ok := have.prefixes[p]; ok && slices.Equal(old, ranges) && !have.uncertain {
			continue
		}
		if err := t.prefixes.Put(prefixKey(owner, p), kernelRanges(ranges)); err != nil {
			return writeError("prefixes", t.prefixes.MaxEntries(), err)
		}
	}
	return nil
}

func (t tables) writeLearned(owner uint32, have, next content) error {
	var (
		keys   []bpf.GuardLearnedAddr
		values []uint64
	)
	for key, until := range next.learned {
		if old, ok := have.learned[key]; !ok || old != until || have.uncertain {
			keys = append(keys, learnedKey(owner, key))
			values = append(values, until)
		}
	}
	return put(t.learned, "learned", keys, values)
}

func (t tables) writeHosts(owner uint32, have, next content) error {
	var (
		keys   []bpf.GuardHost
		values []bpf.GuardPermit
	)
	for key, p := range next.hosts {
		old, ok := have.hosts[key]
		if ok && old == p && !have.uncertain {
			continue
		}
		k, value := hostKey(owner, key), p.kernel()
		if ok && p.flags&permitLearned != 0 {
			used, err := t.used(k)
			if err != nil {
				return err
			}
			value.Used = used
		}
		keys = append(keys, k)
		values = append(values, value)
	}
	return put(t.hosts, "hosts", keys, values)
}

// used returns when a flow last began or went on by an entry of hosts; 0 is
// never.
func (t tables) used(key bpf.GuardHost) (uint64, error) {
	var value bpf.GuardPermit
	err := t.hosts.Lookup(key, &value)
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return 0, fmt.Errorf("read hosts: %w", err)
	}
	return value.Used, nil
}

// remove deletes what have has and next lacks, what covers before what it
// covers, so that nothing falls through to a wider entry that goes as well.
func (t tables) remove(owner uint32, have, next content) error {
	var hosts []bpf.GuardHost
	for key := range have.hosts {
		if _, ok := next.hosts[key]; !ok {
			hosts = append(hosts, hostKey(owner, key))
		}
	}
	if err := removeAll(t.hosts, "hosts", hosts); err != nil {
		return err
	}
	for _, p := range sortedPrefixes(have.prefixes) {
		if _, ok := next.prefixes[p]; ok {
			continue
		}
		if err := remove(t.prefixes, "prefixes", prefixKey(owner, p)); err != nil {
			return err
		}
	}
	for _, name := range sortedNames(have.names) {
		if _, ok := next.names[name]; ok {
			continue
		}
		if err := remove(t.names, "names", nameKey(owner, name)); err != nil {
			return err
		}
	}
	var learned []bpf.GuardLearnedAddr
	for key := range have.learned {
		if _, ok := next.learned[key]; !ok {
			learned = append(learned, learnedKey(owner, key))
		}
	}
	return removeAll(t.learned, "learned", learned)
}

// batchFrom is the number of entries from which one batch call beats single
// ones.
const batchFrom = 32

func put[K, V any](m *ebpf.Map, name string, keys []K, values []V) error {
	if len(keys) >= batchFrom {
		if _, err := m.BatchUpdate(keys, values, nil); err != nil {
			return writeError(name, m.MaxEntries(), err)
		}
		return nil
	}
	for i := range keys {
		if err := m.Put(keys[i], values[i]); err != nil {
			return writeError(name, m.MaxEntries(), err)
		}
	}
	return nil
}

// removeAll deletes keys; those that are gone already are no error.
func removeAll[K any](m *ebpf.Map, name string, keys []K) error {
	for len(keys) >= batchFrom {
		n, err := m.BatchDelete(keys, nil)
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			n++ // it stops at the one that is gone
		} else if err != nil {
			return fmt.Errorf("delete from %s: %w", name, err)
		}
		keys = keys[min(n, len(keys)):]
	}
	for _, key := range keys {
		if err := remove(m, name, key); err != nil {
			return err
		}
	}
	return nil
}

// each calls do with every entry of a hash map that nobody else writes to.
func each[K, V any](m *ebpf.Map, name string, do func(*K, *V)) error {
	var (
		cursor ebpf.MapBatchCursor
		keys   = make([]K, 4096)
		values = make([]V, len(keys))
	)
	for {
		n, err := m.BatchLookup(&cursor, keys, values, nil)
		for i := range n {
			do(&keys[i], &values[i])
		}
		switch {
		case errors.Is(err, ebpf.ErrKeyNotExist):
			return nil // that was the last
		case err != nil:
			return fmt.Errorf("read %s: %w", name, err)
		}
	}
}

// sortedPrefixes returns the keys, shorter prefixes first.
func sortedPrefixes(prefixes map[netip.Prefix][]policy.Range) []netip.Prefix {
	return slices.SortedFunc(maps.Keys(prefixes), func(a, b netip.Prefix) int {
		return cmp.Or(cmp.Compare(a.Bits(), b.Bits()), a.Addr().Compare(b.Addr()))
	})
}

// sortedNames returns the keys, shorter names first.
func sortedNames(names map[policy.Name][]policy.Claim) []policy.Name {
	return slices.SortedFunc(maps.Keys(names), func(a, b policy.Name) int {
		return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b))
	})
}
