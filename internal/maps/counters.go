// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"

	"agentguard.dev/agentguard/bpf"
)

// Counter is what one rule did for one task.
type Counter struct {
	Allowed, Denied uint64 // connections, and destinations of unconnected sockets
	Packets, Bytes  uint64 // let through by egress; bytes from the network header on
}

// CounterKey names a counter.
type CounterKey struct{ Task, Rule uint32 }

// Counters are made by the programs as they are needed. A full map loses
// counts, never a verdict; Stats has how many.
type Counters struct {
	m       *ebpf.Map
	recents recents
}

// Read returns the counters that the task has of the rules named: exactly, once
// nothing of the task is sent any more.
func (c *Counters) Read(task uint32, rules []uint32) (map[uint32]Counter, error) {
	for try := 0; ; try++ {
		pending := c.recents.of(func(t uint32) bool { return t == task })
		found, err := c.settled(task, rules)
		if err != nil {
			return nil, err
		}
		// What moved to a counter meanwhile could be in both or in neither.
		if slices.ContainsFunc(pending, func(e recent) bool { return !e.stands() }) && try < maxTries {
			continue
		}
		for _, e := range pending {
			if counter, ok := found[e.key.Rule]; ok {
				e.addTo(&counter)
				found[e.key.Rule] = counter
			}
		}
		return found, nil
	}
}

// maxTries is how often a task that sends meanwhile can make Read begin again.
const maxTries = 100

// settled is what the map has.
func (c *Counters) settled(task uint32, rules []uint32) (map[uint32]Counter, error) {
	found := make(map[uint32]Counter)
	for _, rule := range rules {
		var value bpf.GuardCounter
		err := c.m.Lookup(bpf.GuardCounterKey{Task: task, Rule: rule}, &value)
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read counters: %w", err)
		}
		found[rule] = counterOf(value)
	}
	return found, nil
}

// Delete removes the counters that the task has of the rules named.
func (c *Counters) Delete(task uint32, rules []uint32) error {
	var errs []error
	for _, rule := range rules {
		errs = append(errs, remove(c.m, "counters", bpf.GuardCounterKey{Task: task, Rule: rule}))
	}
	return errors.Join(errs...)
}

// All returns every counter.
func (c *Counters) All() (map[CounterKey]Counter, error) {
	// Looked at first: what is not there any more the map will have.
	pending := c.recents.of(func(uint32) bool { return true })
	all, err := c.allSettled()
	if err != nil {
		return nil, err
	}
	for _, e := range pending {
		found, err := c.Read(e.key.Task, []uint32{e.key.Rule})
		if err != nil {
			return nil, err
		}
		if counter, ok := found[e.key.Rule]; ok {
			all[e.key] = counter
		}
	}
	return all, nil
}

// allSettled is all that the map has.
func (c *Counters) allSettled() (map[CounterKey]Counter, error) {
	var (
		key   bpf.GuardCounterKey
		value bpf.GuardCounter
		all   = make(map[CounterKey]Counter)
	)
	entries := c.m.Iterate()
	for entries.Next(&key, &value) {
		all[CounterKey{key.Task, key.Rule}] = counterOf(value)
	}
	if err := entries.Err(); err != nil {
		return nil, fmt.Errorf("read counters: %w", err)
	}
	return all, nil
}

func (c *Counters) count() (int, error) {
	all, err := c.allSettled()
	return len(all), err
}

func counterOf(v bpf.GuardCounter) Counter {
	return Counter{Allowed: v.Allowed, Denied: v.Denied, Packets: v.Packets, Bytes: v.Bytes}
}
