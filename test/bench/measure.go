// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"
)

// effort is how long to measure.
type effort struct {
	rounds     int
	slice      time.Duration
	generation int // rounds after which all processes are new
}

// row is one workload in all lanes.
type row struct {
	Section  string `json:"section"`
	Workload string `json:"workload"`
	Cells    []cell `json:"lanes"`
}

// cell is one workload in one lane. The ratios are medians over rounds of the
// lane's slice by the slice of the same round in the first lane, or in the
// lane called empty.
type cell struct {
	Lane   string  `json:"lane"`
	NS     float64 `json:"ns"` // an operation
	Ratio  ratio   `json:"ratio"`
	Empty  ratio   `json:"toEmpty,omitzero"`
	Rounds int     `json:"rounds"`
}

// ratio is a median with its 95% interval, and the spread of what it is of.
type ratio struct {
	Median float64 `json:"median"`
	Low    float64 `json:"low"`
	High   float64 `json:"high"`
	P10    float64 `json:"p10"`
	P90    float64 `json:"p90"`
}

// job is one workload and, lane by lane, where it goes.
type job struct {
	name  string
	kind  kind
	batch int
	to    func(*lane) []netip.AddrPort
}

func one(addr netip.Addr, port uint16) func(*lane) []netip.AddrPort {
	return func(*lane) []netip.AddrPort { return []netip.AddrPort{at(addr, port)} }
}

// measure runs one job in all lanes in turn, in small slices, in a new order
// each round: what disturbs the machine disturbs all of them. Now and then all
// get new processes.
func (e effort) measure(section string, j job, lanes []*lane) (row, error) {
	ns := make([][]float64, len(lanes))
	for round := range e.rounds {
		if round%e.generation == 0 {
			if err := begin(j, lanes); err != nil {
				return row{}, err
			}
		}
		for _, i := range rand.Perm(len(lanes)) {
			a, err := lanes[i].do(order{Batch: j.batch, SliceNS: int64(e.slice)})
			if err != nil {
				return row{}, fmt.Errorf("%s: %w", lanes[i].name, err)
			}
			ns[i] = append(ns[i], a.NS)
		}
	}
	r := row{Section: section, Workload: j.name}
	for i, lane := range lanes {
		c := cell{Lane: lane.name, NS: median(ns[i]), Ratio: ratios(ns[i], ns[0]), Rounds: e.rounds}
		if floor := slices.IndexFunc(lanes, isEmpty); floor >= 0 {
			c.Empty = ratios(ns[i], ns[floor])
		}
		r.Cells = append(r.Cells, c)
	}
	return r, nil
}

func begin(j job, lanes []*lane) error {
	for _, lane := range lanes {
		if err := lane.restart(); err != nil {
			return err
		}
		if _, err := lane.do(order{Open: &work{Kind: j.kind, Destinations: j.to(lane)}}); err != nil {
			return fmt.Errorf("%s: %w", lane.name, err)
		}
	}
	return nil
}

func isEmpty(l *lane) bool { return l.name == "empty" }

func ratios(of, by []float64) ratio {
	all := make([]float64, len(of))
	for i := range of {
		all[i] = of[i] / by[i]
	}
	slices.Sort(all)
	// The ranks that hold the median in 95% of all samples.
	n := float64(len(all))
	low := max(0, int(math.Floor(n/2-0.98*math.Sqrt(n))))
	high := min(len(all)-1, int(math.Ceil(n/2+0.98*math.Sqrt(n))))
	return ratio{
		Median: median(all), Low: all[low], High: all[high],
		P10: all[len(all)/10], P90: all[(len(all)-1)*9/10],
	}
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	if n := len(sorted); n%2 == 0 {
		return (sorted[n/2-1] + sorted[n/2]) / 2
	}
	return sorted[len(sorted)/2]
}
