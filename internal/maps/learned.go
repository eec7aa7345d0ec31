// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"time"

	"agentguard.dev/agentguard/internal/policy"
)

// ErrNoName says that an owner has no named destination with that number, or no
// longer.
var ErrNoName = errors.New("no such named destination")

// grace is for how long after its last flow could begin an address still counts
// as one of its name: a ClientHello comes after the connect that was allowed.
const grace = uint64(30 * time.Second)

// ErrTooMany says that an owner's names have as many addresses as they may.
var ErrTooMany = errors.New("too many addresses")

// maxLearned bounds the addresses of one owner, each counted for each named
// destination that it is one of, so that one cannot take the room of all.
const maxLearned = 131072

// Learned is an address that the resolver found for a named destination.
type Learned struct {
	Number  uint32
	Addr    netip.Addr
	Expires uint64 // CLOCK_BOOTTIME in ns from which on no flow begins
}

// address is a Learned under its address.
type address struct {
	number  uint32
	stale   bool // Expire has found that it is, and flows in progress keep it
	expires uint64
}

// Learn adds addresses of owner's named destinations, or extends their time; an
// expiry that is no later than the one known changes nothing and costs next to
// nothing. When it returns they are in the kernel. With an error nothing of it
// stays behind; ErrNoName and ErrTooMany are such.
func (r *Rules) Learn(owner uint32, learned ...Learned) error {
	return r.learn(owner, r.room, learned)
}

func (r *Rules) learn(owner uint32, most int, learned []Learned) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	o := r.owners[owner]
	var changed []Learned
	more := 0
	for _, l := range learned {
		if o == nil || o.named[l.Number] == nil {
			return fmt.Errorf("learn %s for owner %d: %w", l.Addr, owner, ErrNoName)
		}
		l.Addr = as16(l.Addr)
		if !o.knows(l) {
			changed = append(changed, l)
			if _, ok := find(o.addrs[l.Addr], l.Number); !ok {
				more++
			}
		}
	}
	if len(changed) == 0 {
		return nil
	}
	if more > 0 && o.count()+more > most {
		return fmt.Errorf("%w for these names: %d are kept until their time is over", ErrTooMany, most)
	}
	touched := make([]addrKey, len(changed))
	for i, l := range changed {
		touched[i] = addrKey{l.Number, l.Addr}
	}
	return r.change(owner, o, touched, func() {
		for _, l := range changed {
			o.addrs[l.Addr] = with(o.addrs[l.Addr], address{number: l.Number, expires: l.Expires})
		}
	})
}

// change lets apply change what o knows of the addresses touched, and brings the
// kernel into line; with an error o is as before.
func (r *Rules) change(owner uint32, o *owned, touched []addrKey, apply func()) error {
	before := make(map[netip.Addr][]address, len(touched))
	for _, key := range touched {
		before[key.addr] = o.addrs[key.addr]
	}
	have := o.part(touched)
	apply()
	next := o.part(touched)
	err := r.tables.add(owner, have, next)
	if err == nil {
		o.derived += len(next.hosts) - len(have.hosts)
		if err = r.tables.remove(owner, have, next); err == nil {
			return nil
		}
		o.fixed.uncertain = true
		o.derived -= len(next.hosts) - len(have.hosts)
	}
	for addr, known := range before {
		o.set(addr, known)
	}
	return err
}

// chunk is how many addresses are worked on before others may go first.
const chunk = 256

// Inherit gives the owner to what the owner from has learned, for those of its
// named destinations that cover the name it was learned for. With an error a
// part of it may be there.
func (r *Rules) Inherit(from, to uint32) error {
	for learned := range slices.Chunk(r.legacy(from, to), chunk) {
		// A policy must not fail for what its predecessor has learned.
		if err := r.learn(to, math.MaxInt, learned); err != nil {
			return err
		}
	}
	return nil
}

// legacy returns what the owner to has to learn to know what from knows.
func (r *Rules) legacy(from, to uint32) []Learned {
	r.mu.Lock()
	defer r.mu.Unlock()
	have, next := r.owners[from], r.owners[to]
	if have == nil || next == nil {
		return nil
	}
	heirs := have.heirs(next)
	var learned []Learned
	for addr, known := range have.addrs {
		for _, a := range known {
			for _, heir := range heirs[a.number] {
				learned = append(learned, Learned{heir, addr, a.expires})
			}
		}
	}
	return learned
}

// Expire frees the addresses that have expired by now, unless a flow has used
// them within idle. The caller makes sure that flows in progress have been
// judged lately: that marks what they use.
func (r *Rules) Expire(now uint64, idle time.Duration) (freed int, err error) {
	for _, owner := range r.Owners() {
		for addrs := range slices.Chunk(r.expired(owner, now), chunk) {
			n, err := r.expire(owner, addrs, now, now-min(now, uint64(idle)))
			freed += n
			if err != nil {
				return freed, err
			}
		}
	}
	return freed, nil
}

// expired returns the addresses of owner with something that has expired.
func (r *Rules) expired(owner uint32, now uint64) []netip.Addr {
	r.mu.Lock()
	defer r.mu.Unlock()
	var addrs []netip.Addr
	if o := r.owners[owner]; o != nil && len(o.named) > 0 {
		for addr, known := range o.addrs {
			if slices.ContainsFunc(known, func(a address) bool { return a.expires <= now }) {
				addrs = append(addrs, addr)
			}
		}
	}
	return addrs
}

// expire marks what has expired among addrs as stale, and frees what no flow has
// used after since.
func (r *Rules) expire(owner uint32, addrs []netip.Addr, now, since uint64) (freed int, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	o := r.owners[owner]
	if o == nil {
		return 0, nil
	}
	var touched []addrKey
	after := make(map[netip.Addr][]address, len(addrs))
	for _, addr := range addrs {
		known := slices.Clone(o.addrs[addr])
		for i := range known {
			if known[i].expires <= now {
				known[i].stale = true
				touched = append(touched, addrKey{known[i].number, addr})
			}
		}
		var failed error
		all := known
		known = slices.DeleteFunc(slices.Clone(all), func(a address) bool {
			if !a.stale || failed != nil {
				return false
			}
			var used bool
			used, failed = r.inUse(owner, o, addr, a, all, since)
			if !used && failed == nil {
				freed++
				return true
			}
			return false
		})
		if failed != nil {
			return 0, failed
		}
		after[addr] = known
	}
	err = r.change(owner, o, touched, func() {
		for addr, known := range after {
			o.set(addr, known)
		}
	})
	if err != nil {
		return 0, err
	}
	return freed, nil
}

// inUse reports whether a flow that only the stale address a allows was seen
// after since; known is all that addr stands for.
func (r *Rules) inUse(owner uint32, o *owned, addr netip.Addr, a address, known []address, since uint64) (bool, error) {
	n := o.named[a.number]
	if n == nil {
		return false, nil
	}
	for _, key := range keysOf(n, addr) {
		if _, fixed := o.fixed.hosts[key]; fixed {
			continue
		}
		if m, ok := o.permit(key, known); !ok || !m.stale {
			continue
		}
		used, err := r.tables.used(hostKey(owner, key))
		if err != nil || used > since {
			return err == nil, err
		}
	}
	return false, nil
}

// LearnedNames returns for which of owner's names the address was learned, in
// order.
func (r *Rules) LearnedNames(owner uint32, addr netip.Addr) []policy.Name {
	r.mu.Lock()
	defer r.mu.Unlock()
	o := r.owners[owner]
	if o == nil {
		return nil
	}
	var names []policy.Name
	for _, a := range o.addrs[as16(addr)] {
		if n, ok := o.named[a.number]; ok {
			names = append(names, n.Name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// Learned returns how many addresses owner's names have, each counted for each
// named destination that it is one of.
func (r *Rules) Learned(owner uint32) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	if o := r.owners[owner]; o != nil {
		return o.count()
	}
	return 0
}

func (o *owned) count() int {
	n := 0
	for _, known := range o.addrs {
		n += len(known)
	}
	return n
}

// knows reports whether l would change nothing.
func (o *owned) knows(l Learned) bool {
	known := o.addrs[l.Addr]
	i, ok := find(known, l.Number)
	return ok && l.Expires <= known[i].expires && !o.fixed.uncertain
}

func (o *owned) set(addr netip.Addr, known []address) {
	if len(known) == 0 {
		delete(o.addrs, addr)
	} else {
		o.addrs[addr] = known
	}
}

// find returns where the number is in known, which is in order of numbers.
func find(known []address, number uint32) (int, bool) {
	return slices.BinarySearchFunc(known, number, func(a address, number uint32) int {
		return cmp.Compare(a.number, number)
	})
}

// with returns known with a, unless it lives longer there.
func with(known []address, a address) []address {
	i, ok := find(known, a.number)
	if !ok {
		return slices.Insert(slices.Clone(known), i, a)
	}
	if a.expires <= known[i].expires {
		return known
	}
	known = slices.Clone(known)
	known[i] = a
	return known
}

// renumbered reports whether a number of o's stands for another name in next.
func (o *owned) renumbered(next *owned) bool {
	for number, n := range o.named {
		if m, ok := next.named[number]; ok && m.Name != n.Name {
			return true
		}
	}
	return false
}

// keep takes over what have has learned for names that o has as well.
func (o *owned) keep(have *owned) {
	heirs := have.heirs(o)
	for addr, known := range have.addrs {
		var kept []address
		for _, a := range known {
			for _, heir := range heirs[a.number] {
				a.number = heir
				kept = with(kept, a)
			}
		}
		o.set(addr, kept)
	}
}

// heirs returns by number of o's the numbers of next that cover it: an address
// of a name is one of every wildcard around it. After a restart o knows nothing
// but its numbers, which say the same in next.
func (o *owned) heirs(next *owned) map[uint32][]uint32 {
	heirs := make(map[uint32][]uint32)
	if len(o.addrs) == 0 {
		return heirs
	}
	if len(o.named) == 0 {
		for number := range next.named {
			heirs[number] = []uint32{number}
		}
		return heirs
	}
	names := policy.Compiled{Named: next.list}
	for number, n := range o.named {
		for _, heir := range names.Covering(n.Name) {
			heirs[number] = append(heirs[number], heir.Number)
		}
	}
	return heirs
}

// part is what the kernel has, or is to have, because of the addresses touched.
func (o *owned) part(touched []addrKey) content {
	c := content{
		hosts:     make(map[policy.HostKey]permit),
		learned:   make(map[addrKey]uint64, len(touched)),
		uncertain: o.fixed.uncertain,
	}
	for _, key := range touched {
		o.derive(&c, key)
	}
	return c
}

// derive adds to c what follows from one learned address, if o knows it, and
// from others that share entries with it.
func (o *owned) derive(c *content, key addrKey) {
	known := o.addrs[key.addr]
	n := o.named[key.number]
	if i, ok := find(known, key.number); ok {
		c.learned[key] = known[i].expires + grace
		if n != nil {
			c.learned[key] = earlier(c.learned[key], n.Deadline)
		}
	}
	if n == nil {
		return // its entries of hosts are stray
	}
	for _, k := range keysOf(n, key.addr) {
		if _, fixed := o.fixed.hosts[k]; fixed {
			continue // it allows more
		}
		if _, done := c.hosts[k]; done {
			continue
		}
		if m, ok := o.permit(k, known); ok {
			c.hosts[k] = m.permit
		}
	}
}

// earlier returns the earlier of a time and a deadline, of which 0 is none.
func earlier(at, deadline uint64) uint64 {
	if deadline != 0 && deadline < at {
		return deadline
	}
	return at
}

// keysOf returns the keys of the entries that n makes of addr: one for each port
// or, if n is wide, one for all and one for each port that is checked otherwise.
func keysOf(n *policy.Named, addr netip.Addr) []policy.HostKey {
	key := policy.HostKey{Addr: addr, Proto: n.Proto, Direction: policy.Egress}
	var keys []policy.HostKey
	if n.Wide {
		keys = append(keys, key)
	}
	for _, r := range n.Ranges {
		if n.Wide && r.Lo != r.Hi {
			continue
		}
		for port := uint32(r.Lo); port <= uint32(r.Hi); port++ {
			key.Port = uint16(port)
			keys = append(keys, key)
		}
	}
	return keys
}

// entryOf returns what n alone makes of the entry under key, if that is one of
// its keys.
func entryOf(n *policy.Named, key policy.HostKey) (p permit, check policy.Check, ok bool) {
	if n == nil || n.Proto != key.Proto {
		return permit{}, 0, false
	}
	for _, r := range n.Ranges {
		all := n.Wide && r.Lo != r.Hi
		if all && key.Port == 0 {
			p.low, p.high = n.Bounds()
		}
		if all == (key.Port == 0 && n.Wide) && (all || r.Lo <= key.Port && key.Port <= r.Hi) {
			check, ok = r.Check, true
			break
		}
	}
	p.rule, p.deadline, p.flags = n.Rule, n.Deadline, permitLearned|checkFlags(check)
	return p, check, ok
}

// merged is the entry that several addresses share.
type merged struct {
	permit
	check policy.Check
	stale bool
}

// permit returns the entry of hosts under key that what is known of its address
// makes together. Those that still let flows begin come before stale ones, and
// of those the ones that ask for the least, alone: an entry that asks for
// nothing must not live as long as one that asks for a name.
func (o *owned) permit(key policy.HostKey, known []address) (m merged, ok bool) {
	for _, a := range known {
		n := o.named[a.number]
		p, check, its := entryOf(n, key)
		if !its {
			continue
		}
		p.expires = earlier(a.expires, n.Deadline)
		switch {
		case !ok, m.stale && !a.stale, m.stale == a.stale && check < m.check:
			m, ok = merged{p, check, a.stale}, true
		case m.stale == a.stale && check == m.check:
			m.permit = longest(m.permit, p)
		}
	}
	return m, ok
}

// longest returns an entry that lets flows begin and go on as long as a or b.
func longest(a, b permit) permit {
	if b.expires > a.expires {
		a, b = b, a
	}
	if a.deadline != 0 && (b.deadline == 0 || b.deadline > a.deadline) {
		a.deadline = b.deadline
	}
	return a
}

func as16(addr netip.Addr) netip.Addr { return netip.AddrFrom16(addr.As16()) }
