// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// cost is what one program took in one workload.
type cost struct {
	Workload string  `json:"workload"`
	Program  string  `json:"program"`
	Runs     uint64  `json:"runs"`
	NS       float64 `json:"ns"` // a run, the kernel's two looks at the clock included
}

// profile runs each workload in one lane with the kernel's own accounting of
// programs, which costs time itself: no ratio comes of it.
func (o *options) profile(l *lab, report *report, lane *lane) error {
	programs, err := lane.guard.programs()
	if err != nil {
		return err
	}
	defer func() {
		for _, p := range programs {
			p.Close()
		}
	}()
	accounting, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
	if err != nil {
		return fmt.Errorf("account for programs: %w", err)
	}
	defer accounting.Close()
	for _, j := range paths() {
		if !o.only.MatchString(j.name) {
			continue
		}
		if _, err := lane.do(order{Open: &work{Kind: j.kind, Destinations: j.to(lane)}}); err != nil {
			return err
		}
		before, err := runs(programs)
		if err != nil {
			return err
		}
		if _, err := lane.do(order{Batch: j.batch, SliceNS: int64(300 * time.Millisecond)}); err != nil {
			return err
		}
		after, err := runs(programs)
		if err != nil {
			return err
		}
		for _, h := range emptyHooks {
			count := after[h.name].RunCount - before[h.name].RunCount
			if count < 100 {
				continue
			}
			spent := after[h.name].Runtime - before[h.name].Runtime
			report.cost(cost{j.name, h.name, count, float64(spent) / float64(count)})
		}
	}
	return nil
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
