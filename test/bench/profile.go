// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// cost is what one program took in one workload, the kernel's two looks at the
// clock included.
type cost struct {
	Workload string  `json:"workload"`
	Program  string  `json:"program"`
	NS       float64 `json:"ns"` // a run
	Empty    float64 `json:"empty"`
	Runs     float64 `json:"runs"` // an operation
}

// profile runs each workload with the kernel's own accounting of programs,
// which costs time itself: no ratio comes of it.
func (o *options) profile(report *report, guarded, empty *lane) error {
	accounting, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
	if err != nil {
		return fmt.Errorf("account for programs: %w", err)
	}
	defer accounting.Close()
	for _, j := range paths() {
		if !o.only.MatchString(j.name) {
			continue
		}
		report.progress("programs: %s", j.name)
		with, err := o.account(j, guarded)
		if err != nil {
			return err
		}
		without, err := o.account(j, empty)
		if err != nil {
			return err
		}
		for _, h := range emptyHooks {
			if c := with[h.name]; c.Runs > 0.1 {
				c.Empty = without[h.name].NS
				report.cost(c)
			}
		}
	}
	return nil
}

func (o *options) account(j job, of *lane) (map[string]cost, error) {
	if err := begin(j, []*lane{of}); err != nil {
		return nil, err
	}
	before, err := runs(of.programs)
	if err != nil {
		return nil, err
	}
	done, err := of.do(order{Batch: j.batch, SliceNS: int64(300 * time.Millisecond)})
	if err != nil {
		return nil, err
	}
	after, err := runs(of.programs)
	if err != nil {
		return nil, err
	}
	costs := make(map[string]cost)
	for name := range of.programs {
		count := float64(after[name].RunCount - before[name].RunCount)
		spent := float64(after[name].Runtime - before[name].Runtime)
		costs[name] = cost{Workload: j.name, Program: name, NS: spent / max(count, 1), Runs: count / float64(done.Ops)}
	}
	return costs, nil
}

func runs(programs map[string]*ebpf.Program) (map[string]ebpf.ProgramStats, error) {
	stats := make(map[string]ebpf.ProgramStats)
	for name, p := range programs {
		s, err := p.Stats()
		if err != nil {
			return nil, fmt.Errorf("read statistics of %s: %w", name, err)
		}
		stats[name] = *s
	}
	return stats, nil
}
