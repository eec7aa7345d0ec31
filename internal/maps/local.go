// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"github.com/cilium/ebpf"

	"agentguard.dev/agentguard/bpf"
)

// LocalAddrs are the hosts' own addresses, by network namespace: connecting to
// one of them stays on the machine.
type LocalAddrs struct {
	m *ebpf.Map

	mu   sync.Mutex
	have map[uint64]map[netip.Addr]struct{}
}

func openLocalAddrs(m *ebpf.Map) (*LocalAddrs, error) {
	l := &LocalAddrs{m: m, have: make(map[uint64]map[netip.Addr]struct{})}
	var (
		key   bpf.GuardLocalAddr
		value uint32
	)
	entries := m.Iterate()
	for entries.Next(&key, &value) {
		l.of(key.Netns)[Addr(key.Addr)] = struct{}{}
	}
	if err := entries.Err(); err != nil {
		return nil, fmt.Errorf("read local_addrs: %w", err)
	}
	return l, nil
}

func (l *LocalAddrs) of(cookie uint64) map[netip.Addr]struct{} {
	if l.have[cookie] == nil {
		l.have[cookie] = make(map[netip.Addr]struct{})
	}
	return l.have[cookie]
}

// Replace makes addrs the addresses of the namespace with that cookie; an
// empty list forgets the namespace.
func (l *LocalAddrs) Replace(cookie uint64, addrs []netip.Addr) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	have := l.of(cookie)
	want := make(map[netip.Addr]struct{}, len(addrs))
	for _, addr := range addrs {
		addr = addr.WithZone("").Unmap()
		want[addr] = struct{}{}
		if _, ok := have[addr]; ok {
			continue
		}
		if err := l.m.Put(bpf.GuardLocalAddr{Netns: cookie, Addr: words(addr)}, uint32(1)); err != nil {
			return writeError("local_addrs", l.m.MaxEntries(), err)
		}
		have[addr] = struct{}{}
	}
	for addr := range have {
		if _, ok := want[addr]; ok {
			continue
		}
		if err := remove(l.m, "local_addrs", bpf.GuardLocalAddr{Netns: cookie, Addr: words(addr)}); err != nil {
			return err
		}
		delete(have, addr)
	}
	if len(have) == 0 {
		delete(l.have, cookie)
	}
	return nil
}

// Contains says whether addr is one of the namespace's own.
func (l *LocalAddrs) Contains(cookie uint64, addr netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, ok := l.have[cookie][addr.WithZone("").Unmap()]
	return ok
}

// Cookies returns the namespaces that the table has addresses of, in order.
func (l *LocalAddrs) Cookies() []uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Sorted(maps.Keys(l.have))
}

func (l *LocalAddrs) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, addrs := range l.have {
		n += len(addrs)
	}
	return n
}

// Namespaces says which network namespaces are the operator's. There a
// destination that the host's own NAT has rewritten is judged by what was asked
// for; elsewhere the task could have written the NAT rule itself.
type Namespaces struct{ m *ebpf.Map }

// Trust marks the namespace with that cookie.
func (n *Namespaces) Trust(cookie uint64) error {
	if err := n.m.Put(cookie, uint32(bpf.GuardNamespaceFlagNAMESPACE_TRUSTED)); err != nil {
		return writeError("namespaces", n.m.MaxEntries(), err)
	}
	return nil
}

// Forget takes the mark back.
func (n *Namespaces) Forget(cookie uint64) error { return remove(n.m, "namespaces", cookie) }
