// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"agentguard.dev/agentguard/client"
)

// liveCounts are how many tasks live while others begin and end.
var liveCounts = []int{1, 100, 1_000, 10_000}

// pairs are begun and ended, one at a time, at each of them.
const pairs = 500

// life is what a task's beginning and end took through the API, from the call
// until the answer was read.
type life struct {
	Live  int   `json:"live"` // the task measured included
	Pairs int   `json:"pairs"`
	Begin spent `json:"begin"`
	End   spent `json:"end"`
}

// spent is a spread of times, in microseconds.
type spent struct {
	P50 float64 `json:"p50us"`
	P99 float64 `json:"p99us"`
	Max float64 `json:"maxus"`
}

func spread99(times []time.Duration) spent {
	slices.Sort(times)
	rank := func(part float64) float64 {
		return float64(times[int(part*float64(len(times)-1)+0.5)]) / float64(time.Microsecond)
	}
	return spent{P50: rank(0.5), P99: rank(0.99), Max: rank(1)}
}

// measureDaemon measures what a daemon does through its API. Tasks that are
// there for their number alone are begun once and stay.
func (o *options) measureDaemon(l *lab, report *report) error {
	report.progress("build and start a daemon")
	d, err := l.daemon()
	if err != nil {
		return err
	}
	if o.sections["end"] {
		report.progress("end of a task that sends")
		if err := measureLast(l, d, report); err != nil {
			return err
		}
	}
	if !o.sections["api"] && !o.sections["memory"] {
		return nil
	}
	for range 20 { // warms the daemon and the connection
		if _, _, err := d.pair(); err != nil {
			return err
		}
	}
	before, err := d.memory()
	if err != nil {
		return err
	}
	idle := 0
	for _, live := range liveCounts {
		report.progress("%d live tasks", live)
		for ; idle < live-1; idle++ {
			if _, err := d.task("udp://" + at(spread4(idle), sinkPort).String()); err != nil {
				return fmt.Errorf("begin task %d: %w", idle, err)
			}
		}
		if !o.sections["api"] {
			continue
		}
		cost, err := d.measurePairs(live)
		if err != nil {
			return err
		}
		report.life(cost)
	}
	if o.sections["memory"] {
		report.progress("memory of %d tasks", idle)
		return l.measureMemory(d, report, before, idle)
	}
	return nil
}

func (d *daemon) measurePairs(live int) (life, error) {
	var begins, ends []time.Duration
	for range pairs {
		begin, end, err := d.pair()
		if err != nil {
			return life{}, err
		}
		begins, ends = append(begins, begin), append(ends, end)
	}
	return life{Live: live, Pairs: pairs, Begin: spread99(begins), End: spread99(ends)}, nil
}

// pair begins and ends one task.
func (d *daemon) pair() (begin, end time.Duration, err error) {
	start := time.Now()
	t, err := d.task("udp://" + at(stranger4, sinkPort).String())
	begin = time.Since(start)
	if err != nil {
		return 0, 0, fmt.Errorf("begin: %w", err)
	}
	start = time.Now()
	_, err = d.End(context.Background(), t.ID, client.EndRequest{})
	return begin, time.Since(start), err
}
