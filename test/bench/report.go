// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// report is everything measured, printed as it comes unless it is wanted as
// JSON.
type report struct {
	Kernel  string     `json:"kernel"`
	Begun   string     `json:"begun"`
	Seconds float64    `json:"seconds"`
	Rounds  int        `json:"rounds"`
	Slice   string     `json:"slice"`
	Rows    []row      `json:"rows"`
	Costs   []cost     `json:"programs,omitempty"`
	Lasts   []last     `json:"end,omitempty"`
	Lives   []life     `json:"api,omitempty"`
	Memory  *footprint `json:"memory,omitempty"`
	Notes   []string   `json:"notes,omitempty"`

	begun   time.Time
	json    bool
	heading string
}

func newReport(o *options) *report {
	var name unix.Utsname
	unix.Uname(&name)
	r := &report{
		Kernel: unix.ByteSliceToString(name.Release[:]), Rounds: o.rounds, Slice: o.slice.String(),
		begun: time.Now(), json: o.json,
	}
	r.Begun = r.begun.UTC().Format(time.RFC3339)
	r.print("Linux %s, %d rounds of %s on processor %d; ratios are to plain, with the 95%% interval of the median\n",
		r.Kernel, o.rounds, o.slice, o.cpu)
	return r
}

func (r *report) print(format string, args ...any) {
	if !r.json {
		fmt.Fprintf(os.Stdout, format, args...)
	}
}

// progress tells whoever waits what is being done.
func (r *report) progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "bench: %3.0f s: "+format+"\n", append([]any{time.Since(r.begun).Seconds()}, args...)...)
}

func (r *report) note(format string, args ...any) {
	r.Notes = append(r.Notes, fmt.Sprintf(format, args...))
	r.print(format+"\n", args...)
}

func (r *report) row(row row) {
	r.Rows = append(r.Rows, row)
	var lanes []string
	for _, c := range row.Cells[1:] {
		lanes = append(lanes, c.Lane)
	}
	if heading := row.Section + strings.Join(lanes, ","); heading != r.heading {
		r.heading = heading
		r.print("\n%-36s %9s", row.Section, "plain ns")
		for _, name := range lanes {
			r.print("  %-13s", name)
			if row.toEmpty(name) {
				r.print("  %-13s", "/empty")
			}
		}
		r.print("\n")
	}
	r.print("%-36s %9.0f", row.Workload, row.Cells[0].NS)
	for _, c := range row.Cells[1:] {
		r.print("  %-13s", c.Ratio)
		if row.toEmpty(c.Lane) {
			r.print("  %-13s", c.Empty)
		}
	}
	r.print("\n")
}

// toEmpty reports whether a lane's ratio to the one called empty says something.
func (r row) toEmpty(lane string) bool {
	return lane != "again" && lane != "empty" && lane != "nftables" && slices.ContainsFunc(r.Cells, func(c cell) bool { return c.Lane == "empty" })
}

// String is the median and the larger half of its interval.
func (r ratio) String() string {
	return fmt.Sprintf("%.3f ±%.3f", r.Median, max(r.High-r.Median, r.Median-r.Low))
}

func (r *report) cost(c cost) {
	if len(r.Costs) == 0 {
		r.print("\n%-36s %-16s %9s %9s %9s\n", "programs", "", "runs", "ns a run", "empty ns")
	}
	r.Costs = append(r.Costs, c)
	r.print("%-36s %-16s %9.2f %9.0f %9.0f\n", c.Workload, c.Program, c.Runs, c.NS, c.Empty)
}

func (r *report) last(l last) {
	if len(r.Lasts) == 0 {
		r.print("\n%-36s %12s %12s %12s  %12s %12s %12s  %7s %9s\n", "end of a sender, µs",
			"last p50", "p99", "max", "answer p50", "p99", "max", "rounds", "packets/s")
	}
	r.Lasts = append(r.Lasts, l)
	r.print("%-36s %s  %s  %7d %9.0f\n", l.Sender, l.Arrival, l.Answer, l.Rounds, l.Rate)
}

func (r *report) life(l life) {
	if len(r.Lives) == 0 {
		r.print("\n%-20s %12s %12s %12s  %12s %12s %12s\n", "live tasks, µs", "begin p50", "p99", "max", "end p50", "p99", "max")
	}
	r.Lives = append(r.Lives, l)
	r.print("%-20d %s  %s\n", l.Live, l.Begin, l.End)
}

// String is the columns of a table.
func (s spent) String() string { return fmt.Sprintf("%12.0f %12.0f %12.0f", s.P50, s.P99, s.Max) }

func (r *report) memory(f footprint) {
	r.Memory = &f
	r.print("\n%-36s %9s\n", fmt.Sprintf("memory of one of %d idle tasks", f.Tasks), "bytes")
	for _, line := range []struct {
		what  string
		bytes float64
	}{
		{"elements of maps", f.Maps}, {"the kernel's, cgroup included", f.Kernel},
		{"a cgroup that is no task", f.Cgroup}, {"the daemon's", f.Daemon},
	} {
		r.print("%-36s %9.0f\n", line.what, line.bytes)
	}
}

func (r *report) end(out io.Writer) error {
	r.Seconds = time.Since(r.begun).Seconds()
	if !r.json {
		r.print("\n%.0f s\n", r.Seconds)
		return nil
	}
	encoder := json.NewEncoder(out)
	encoder.SetIndent("", "  ")
	return encoder.Encode(r)
}
