// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"

	"github.com/cilium/ebpf"

	"agentguard.dev/agentguard/bpf"
)

// Stats counts since the guard was made what concerns no single task.
type Stats struct{ m *ebpf.Map }

// Totals are the values of Stats at one moment.
type Totals struct {
	EventsLost   uint64 // decisions that found the ring buffer full
	CountersFull uint64 // decisions and packets that found the counter map full
	NoTask       uint64 // denials below a guard but outside any task
	Denied       uint64 // all denials
}

// Read sums over all CPUs.
func (s *Stats) Read() (Totals, error) {
	var t Totals
	for which, to := range map[bpf.GuardStat]*uint64{
		bpf.GuardStatSTAT_EVENTS_LOST:   &t.EventsLost,
		bpf.GuardStatSTAT_COUNTERS_FULL: &t.CountersFull,
		bpf.GuardStatSTAT_NO_TASK:       &t.NoTask,
		bpf.GuardStatSTAT_DENIED:        &t.Denied,
	} {
		var perCPU []uint64
		if err := s.m.Lookup(uint32(which), &perCPU); err != nil {
			return Totals{}, fmt.Errorf("read stats: %w", err)
		}
		for _, n := range perCPU {
			*to += n
		}
	}
	return t, nil
}
