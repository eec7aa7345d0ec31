// SPDX-License-Identifier: Apache-2.0

package task

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"agentguard.dev/agentguard/client"
)

func TestManyAtOnce(t *testing.T) {
	f := newFixture(t)
	f.open()
	s := f.serve(true)
	f.apply(document("coder", egress(s.addr)))
	before := openDescriptors(t)
	const rounds, at = 5, 40
	for range rounds {
		var all sync.WaitGroup
		for range at {
			all.Go(func() {
				task, err := f.engine.Begin(t.Context(), client.BeginRequest{Agent: "coder", Allow: []string{"192.0.2.2:1"}})
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := f.engine.Grant(t.Context(), task.ID, client.Grant{Destination: "192.0.2.2:2", TTL: client.Duration(time.Hour)}); err != nil {
					t.Error(err)
				}
				if _, err := f.engine.End(t.Context(), task.ID, client.EndRequest{}); err != nil {
					t.Error(err)
				}
			})
		}
		all.Go(func() {
			f.apply(document("coder", egress(s.addr, fmt.Sprintf("192.0.2.3:%d", 1+time.Now().UnixNano()%60000))))
		})
		all.Wait()
	}
	f.wantEmptyMaps()
	if after := openDescriptors(t); after > before+2 {
		t.Errorf("%d descriptors, before %d", after, before)
	}
	f.engine.schedule.mu.Lock()
	left := len(f.engine.schedule.due)
	f.engine.schedule.mu.Unlock()
	if left != 0 {
		t.Errorf("%d alarms of tasks that have ended", left)
	}
	entries, err := os.ReadDir(f.engine.root)
	if err != nil || slices.ContainsFunc(entries, os.DirEntry.IsDir) {
		t.Errorf("cgroups left below %s: %v %v", f.engine.root, entries, err)
	}
}

func openDescriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestHistoryIsBounded(t *testing.T) {
	f := newFixture(t)
	f.open()
	for n := range maxHistory + 10 {
		ended := newTask(fmt.Sprint("t", n))
		ended.number = uint32(n + 1)
		ended.Number = ended.number
		ended.state = client.TaskEnded
		f.engine.mu.Lock()
		f.engine.tasks[ended.id], f.engine.byNumber[ended.number] = ended, ended
		f.engine.mu.Unlock()
		must(t, f.engine.store.end(ended.record, nil, f.engine.retire(ended, nil)))
	}
	stored, err := f.engine.store.ended()
	must(t, err)
	if len(stored) != maxHistory || len(f.engine.tasks) != maxHistory || len(f.engine.byNumber) != maxHistory {
		t.Errorf("%d ended tasks stored, %d and %d remembered, want %d", len(stored), len(f.engine.tasks), len(f.engine.byNumber), maxHistory)
	}
	if stored[0].Number != 11 {
		t.Errorf("the oldest is number %d, want 11", stored[0].Number)
	}
}

// BenchmarkBegin reports the latency of begin with many live tasks.
func BenchmarkBegin(b *testing.B) {
	for _, live := range []int{1, 1000, 10000} {
		b.Run(fmt.Sprint(live), func(b *testing.B) { benchmarkBegin(b, live) })
	}
}

func benchmarkBegin(b *testing.B, live int) {
	e := openForBenchmark(b)
	begin := func(id string) time.Duration {
		began := time.Now()
		if _, err := e.Begin(b.Context(), client.BeginRequest{ID: id, Allow: []string{"192.0.2.2:1"}}); err != nil {
			b.Fatal(err)
		}
		return time.Since(began)
	}
	for n := range live {
		begin(fmt.Sprint("live-", n))
	}
	runtime.GC()
	var took []time.Duration
	n := 0
	for b.Loop() {
		took = append(took, begin(fmt.Sprint("t-", n)))
		n++
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "µs-p50")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "µs-p99")
}

func openForBenchmark(b *testing.B) *Engine {
	b.Helper()
	if os.Geteuid() != 0 {
		b.Skip("needs root: loads programs into the kernel")
	}
	name := fmt.Sprintf("agentguard-bench-task-%d-%d", os.Getpid(), time.Now().UnixNano())
	e, err := Open(b.Context(), Config{
		StateDir: b.TempDir(), PinDir: "/sys/fs/bpf/" + name, Cgroup: name, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := e.Unload(context.Background()); err != nil {
			b.Error(err)
		}
	})
	return e
}

// BenchmarkEnd reports the latency of ends that come one after the other, and
// of those that share sweeps.
func BenchmarkEnd(b *testing.B) {
	for _, at := range []int{1, 50} {
		b.Run(fmt.Sprintf("%d-at-once", at), func(b *testing.B) {
			e := openForBenchmark(b)
			for b.Loop() {
				b.StopTimer()
				for range at {
					if _, err := e.Begin(b.Context(), client.BeginRequest{Allow: []string{"192.0.2.2:1"}}); err != nil {
						b.Fatal(err)
					}
				}
				b.StartTimer()
				var all sync.WaitGroup
				for _, t := range e.live() {
					all.Go(func() {
						if _, err := e.End(b.Context(), t.id, client.EndRequest{}); err != nil {
							b.Error(err)
						}
					})
				}
				all.Wait()
			}
		})
	}
}
