// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"fmt"

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
type Counters struct{ m *ebpf.Map }

// Read returns the counters that the task has of the rules named.
func (c *Counters) Read(task uint32, rules []uint32) (map[uint32]Counter, error) {
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
	all, err := c.All()
	return len(all), err
}

func counterOf(v bpf.GuardCounter) Counter {
	return Counter{Allowed: v.Allowed, Denied: v.Denied, Packets: v.Packets, Bytes: v.Bytes}
}
