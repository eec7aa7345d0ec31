// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"agentguard.dev/agentguard/bpf"
	"agentguard.dev/agentguard/internal/policy"
)

// Rules is the compiled rules of all owners: policy versions, and tasks for
// their grants; and the addresses that were learned for the names in them. It
// remembers what it wrote, so that a change is a diff.
type Rules struct {
	tables  tables
	recents recents
	room    int // maxLearned

	mu     sync.Mutex
	owners map[uint32]*owned
}

// owned is what one owner has.
type owned struct {
	fixed content // what follows from the rules alone: nothing learned
	wide  bool
	list  []policy.Named // as compiled
	named map[uint32]*policy.Named

	// What was learned, by address in the 16-byte form. A slice is replaced,
	// never changed.
	addrs   map[netip.Addr][]address
	derived int // entries of hosts that follow from addrs

	// Learned entries of hosts that are there for reasons unknown: after a
	// restart, until Replace says what the owner's names are, and after a failed
	// removal.
	stray map[policy.HostKey]permit
}

func newOwned(c policy.Compiled) *owned {
	o := &owned{
		fixed: content{
			hosts:    make(map[policy.HostKey]permit, len(c.Hosts)),
			prefixes: make(map[netip.Prefix][]policy.Range, len(c.Prefixes)),
			names:    make(map[policy.Name][]policy.Claim, len(c.Names)),
		},
		wide:  c.WideNames,
		list:  c.Named,
		named: make(map[uint32]*policy.Named, len(c.Named)),
		addrs: make(map[netip.Addr][]address),
		stray: make(map[policy.HostKey]permit),
	}
	for _, h := range c.Hosts {
		o.fixed.hosts[h.HostKey] = permit{rule: h.Rule, deadline: h.Deadline}
	}
	for _, p := range c.Prefixes {
		o.fixed.prefixes[p.Prefix] = p.Ranges
	}
	for _, n := range c.Names {
		o.fixed.names[n.Name] = n.Claims
	}
	for i := range c.Named {
		o.named[c.Named[i].Number] = &c.Named[i]
	}
	return o
}

func (o *owned) isEmpty() bool {
	return len(o.fixed.hosts)+len(o.fixed.prefixes)+len(o.fixed.names)+len(o.named) == 0
}

// content is all that the kernel has for o, or is to have.
func (o *owned) content() content {
	if len(o.addrs)+len(o.stray) == 0 {
		return o.fixed
	}
	all := o.fixed
	all.hosts = maps.Clone(o.fixed.hosts)
	all.learned = make(map[addrKey]uint64, len(o.addrs))
	maps.Copy(all.hosts, o.stray)
	for addr, known := range o.addrs {
		for _, a := range known {
			o.derive(&all, addrKey{a.number, addr})
		}
	}
	return all
}

// remember adds to o what it came after, where that could not be removed.
func (o *owned) remember(have *owned, there content) {
	o.fixed = union(have.fixed, o.fixed)
	for key, p := range there.hosts {
		if p.flags&permitLearned != 0 {
			o.stray[key] = p
		}
	}
	for addr, known := range have.addrs {
		for _, a := range known {
			if o.named[a.number] == nil {
				o.addrs[addr] = with(o.addrs[addr], a)
			}
		}
	}
}

func openRules(t tables, recents recents) (*Rules, error) {
	r := &Rules{tables: t, recents: recents, room: maxLearned, owners: make(map[uint32]*owned)}
	if err := each(t.hosts, "hosts", func(key *bpf.GuardHost, value *bpf.GuardPermit) {
		o, p := r.owner(key.Owner), permitOf(*value)
		if p.flags&permitLearned != 0 {
			o.stray[policyHostKey(*key)] = p
		} else {
			o.fixed.hosts[policyHostKey(*key)] = p
		}
	}); err != nil {
		return nil, err
	}
	if err := each(t.learned, "learned", func(key *bpf.GuardLearnedAddr, until *uint64) {
		o, addr := r.owner(key.Owner), as16(Addr(key.Addr))
		o.addrs[addr] = with(o.addrs[addr], address{number: key.Number, expires: *until - min(*until, grace)})
	}); err != nil {
		return nil, err
	}
	var (
		prefix bpf.GuardPrefix
		ranges bpf.GuardRanges
		name   bpf.GuardName
		claims bpf.GuardClaims
	)
	entries := t.prefixes.Iterate()
	for entries.Next(&prefix, &ranges) {
		r.owner(prefix.Owner).fixed.prefixes[policyPrefix(prefix)] = policyRanges(&ranges)
	}
	if err := entries.Err(); err != nil {
		return nil, fmt.Errorf("read prefixes: %w", err)
	}
	entries = t.names.Iterate()
	for entries.Next(&name, &claims) {
		r.owner(name.Owner).fixed.names[policyName(&name)] = policyClaims(&claims)
	}
	if err := entries.Err(); err != nil {
		return nil, fmt.Errorf("read names: %w", err)
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
// flow that both the old and the new rules allow is denied in between. What was
// learned for a name stays where want has that name. If an addition fails the
// old rules stand again; if a removal fails, Get still has what may be left.
func (r *Rules) Replace(owner uint32, want policy.Compiled) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	defer r.recents.outdate() // whatever was written before an error, too
	have, next := r.owners[owner], newOwned(want)
	if have == nil {
		have = newOwned(policy.Compiled{})
	}
	if have.renumbered(next) {
		// No address may count for a name for a moment that only has its number.
		nameless := want
		nameless.Named, nameless.Names = nil, nil
		if err := r.replace(owner, have, newOwned(nameless)); err != nil {
			return err
		}
		have = r.owner(owner)
	}
	next.keep(have)
	return r.replace(owner, have, next)
}

func (r *Rules) replace(owner uint32, have, next *owned) error {
	from, to := have.content(), next.content()
	if err := r.tables.add(owner, from, to); err != nil {
		return err
	}
	next.derived = len(to.hosts) - len(next.fixed.hosts)
	if err := r.tables.remove(owner, from, to); err != nil {
		next.remember(have, from) // what may be there: the next change removes it
		r.owners[owner] = next
		return err
	}
	if next.isEmpty() {
		delete(r.owners, owner)
	} else {
		r.owners[owner] = next
	}
	return nil
}

// Delete removes all rules of owner and what it learned.
func (r *Rules) Delete(owner uint32) error { return r.Replace(owner, policy.Compiled{}) }

// Owners returns the numbers of all that own rules, in order.
func (r *Rules) Owners() []uint32 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Sorted(maps.Keys(r.owners))
}

// Get returns the rules of owner, in the order of policy.Compile. After a
// restart Named is empty until Replace says what the kernel does not know: what
// its numbers stand for.
func (r *Rules) Get(owner uint32) policy.Compiled {
	r.mu.Lock()
	defer r.mu.Unlock()
	have := r.owners[owner]
	if have == nil {
		return policy.Compiled{}
	}
	c := policy.Compiled{Named: have.list, WideNames: have.wide}
	for key, p := range have.fixed.hosts {
		c.Hosts = append(c.Hosts, policy.Host{HostKey: key, Rule: p.rule, Deadline: p.deadline})
	}
	slices.SortFunc(c.Hosts, func(a, b policy.Host) int {
		return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Proto, b.Proto),
			cmp.Compare(a.Direction, b.Direction), cmp.Compare(a.Port, b.Port))
	})
	for _, p := range sortedPrefixes(have.fixed.prefixes) {
		c.Prefixes = append(c.Prefixes, policy.Prefix{Prefix: p, Ranges: have.fixed.prefixes[p]})
	}
	for _, name := range slices.Sorted(maps.Keys(have.fixed.names)) {
		c.Names = append(c.Names, policy.NameEntry{Name: name, Claims: have.fixed.names[name]})
	}
	return c
}

// entries counts what the tables hold.
func (r *Rules) entries() (hosts, prefixes, names, learned int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, o := range r.owners {
		hosts += len(o.fixed.hosts) + len(o.stray) + o.derived
		prefixes += len(o.fixed.prefixes)
		names += len(o.fixed.names)
		learned += o.count()
	}
	return hosts, prefixes, names, learned
}
