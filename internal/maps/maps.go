// SPDX-License-Identifier: Apache-2.0

// Package maps is the typed face of the kernel's maps: what the daemon writes
// for the programs to enforce, and what they count. Byte order, key layout and
// the kernel's enumerations appear here and nowhere else on the Go side.
package maps

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"agentguard.dev/agentguard/bpf"
)

// Rule numbers that are not rules of a policy, and the first one that is free.
const (
	RuleNone     = uint32(bpf.GuardRuleRULE_NONE)
	RuleLoopback = uint32(bpf.GuardRuleRULE_LOOPBACK)
	RuleReply    = uint32(bpf.GuardRuleRULE_REPLY)
	RuleFirst    = uint32(bpf.GuardRuleRULE_FIRST)
)

// ErrFull says that a map has no room; errors.Is finds it in the errors of all
// writers. Nothing of the write that met it stays behind.
var ErrFull = errors.New("map is full")

// Set is one guard's maps.
type Set struct {
	Tasks      *Tasks
	Rules      *Rules
	Counters   *Counters
	LocalAddrs *LocalAddrs
	Namespaces *Namespaces
	Stations   *Stations
	Askers     *Askers
	Stats      *Stats

	recents recents
}

// Open reads what the maps hold, and returns their typed forms. The maps stay
// the caller's to close.
func Open(objs *bpf.GuardMaps) (*Set, error) {
	recents, err := openRecents(objs)
	if err != nil {
		return nil, err
	}
	rules, err := openRules(tables{hosts: objs.Hosts, prefixes: objs.Prefixes, names: objs.Names, learned: objs.Learned}, recents)
	if err != nil {
		return nil, err
	}
	local, err := openLocalAddrs(objs.LocalAddrs)
	if err != nil {
		return nil, err
	}
	return &Set{
		Tasks:      &Tasks{objs.Tasks, recents},
		Rules:      rules,
		Counters:   &Counters{objs.Counters, recents},
		LocalAddrs: local,
		Namespaces: &Namespaces{objs.Namespaces},
		Stations:   &Stations{objs.Stations, recents},
		Askers:     &Askers{objs.Askers},
		Stats:      &Stats{objs.Stats},
		recents:    recents,
	}, nil
}

// Outdate makes the programs forget what they have found in the maps. All that
// writes to the maps here does it by itself.
func (s *Set) Outdate() { s.recents.outdate() }

// Usage is how full a map is.
type Usage struct {
	Map     string
	Entries int
	Max     uint32
}

// Usage counts the entries of the maps that can fill up.
func (s *Set) Usage() ([]Usage, error) {
	tasks, err := s.Tasks.All()
	if err != nil {
		return nil, err
	}
	counters, err := s.Counters.count()
	if err != nil {
		return nil, err
	}
	stations, err := s.Stations.All()
	if err != nil {
		return nil, err
	}
	hosts, prefixes, names, learned := s.Rules.entries()
	t := s.Rules.tables
	return []Usage{
		{"tasks", len(tasks), s.Tasks.m.MaxEntries()},
		{"hosts", hosts, t.hosts.MaxEntries()},
		{"prefixes", prefixes, t.prefixes.MaxEntries()},
		{"names", names, t.names.MaxEntries()},
		{"learned", learned, t.learned.MaxEntries()},
		{"stations", len(stations), s.Stations.m.MaxEntries()},
		{"counters", counters, s.Counters.m.MaxEntries()},
		{"local_addrs", s.LocalAddrs.count(), s.LocalAddrs.m.MaxEntries()},
	}, nil
}

// writeError names the map and, when it is full, the setting that enlarges it.
func writeError(m string, max uint32, err error) error {
	if errors.Is(err, unix.E2BIG) || errors.Is(err, unix.ENOSPC) {
		return fmt.Errorf("write %s: %w: it holds %d entries; raise sizes.%s in the daemon's configuration", m, ErrFull, max, m)
	}
	return fmt.Errorf("write %s: %w", m, err)
}

// remove deletes a key; one that is gone already is no error.
func remove(m *ebpf.Map, name string, key any) error {
	if err := m.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("delete from %s: %w", name, err)
	}
	return nil
}
