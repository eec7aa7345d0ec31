// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"agentguard.dev/agentguard/client"
	"github.com/google/go-cmp/cmp"
)

func denial(task, dest string, pid uint32) client.Record {
	return client.Record{Time: noon, Kind: "decision", Verdict: "deny", Reason: "no rule", Task: task, Dest: dest, PID: pid}
}

func counted(r client.Record, n uint64) client.Record {
	r.Count = n
	return r
}

func TestFold(t *testing.T) {
	f := NewFold(FoldOptions{Window: 10 * time.Second})
	sec := func(n float64) time.Time { return noon.Add(time.Duration(n * float64(time.Second))) }
	same := func(what string, got []client.Record, want ...client.Record) {
		t.Helper()
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s:\n%s", what, diff)
		}
	}
	task := client.Record{Kind: "task", Task: "t1"}

	same("the first", f.Add(sec(0), denial("t1", "x", 1)), denial("t1", "x", 1))
	same("a repeat", f.Add(sec(1), denial("t1", "x", 2)))
	same("another destination", f.Add(sec(2), denial("t1", "y", 3)), denial("t1", "y", 3))
	same("another task", f.Add(sec(2), denial("t2", "x", 3)), denial("t2", "x", 3))
	same("no decision", f.Add(sec(3), task), task)
	same("no decision again", f.Add(sec(3), task), task)
	same("a counted repeat", f.Add(sec(4), counted(denial("t1", "x", 4), 5)))
	same("before the end", f.Expire(sec(9.9)))
	if next, ok := f.Next(); !ok || !next.Equal(sec(10)) {
		t.Errorf("next at %v, %v", next, ok)
	}
	same("the end", f.Expire(sec(10)), counted(denial("t1", "x", 4), 6))
	same("the ends without repeats", f.Expire(sec(12)))
	same("in the second window", f.Add(sec(13), denial("t1", "x", 5)))
	same("the first again", f.Add(sec(13), denial("t1", "y", 6)), denial("t1", "y", 6))
	same("Add ends windows too", f.Add(sec(20), task), counted(denial("t1", "x", 5), 1), task)
	same("for the flush", f.Add(sec(21), denial("t1", "y", 7)))
	same("flush", f.Flush(), counted(denial("t1", "y", 7), 1))
	same("flush of nothing", f.Flush())
	if _, ok := f.Next(); ok || len(f.keys) != 0 || len(f.tasks) != 0 {
		t.Errorf("left after the flush: %v, %v", f.keys, f.tasks)
	}
}

func TestFoldForgetsTheOldest(t *testing.T) {
	f := NewFold(FoldOptions{MaxKeys: 2})
	f.Add(noon, denial("t1", "x", 1))
	f.Add(noon, denial("t1", "x", 2))
	f.Add(noon, denial("t1", "y", 3))
	got := f.Add(noon, denial("t1", "z", 4))
	if diff := cmp.Diff([]client.Record{counted(denial("t1", "x", 2), 1), denial("t1", "z", 4)}, got); diff != "" {
		t.Error(diff)
	}
	if len(f.keys) != 2 {
		t.Errorf("%d keys", len(f.keys))
	}
}

func TestFoldScan(t *testing.T) {
	f := NewFold(FoldOptions{MaxTask: 10, MaxKeys: 20})
	written := 0
	for port := range 60_000 {
		written += len(f.Add(noon, denial("scanner", fmt.Sprint("tcp://192.0.2.1:", port), 1)))
	}
	if written != 11 {
		t.Errorf("%d records of a scan", written)
	}
	if got := f.Add(noon, denial("other", "x", 2)); len(got) != 1 {
		t.Errorf("another task meanwhile: %v", got)
	}
	last := f.Flush()
	if len(last) != 1 || last[0].Count != 60_000-11 || last[0].Dest != "" || last[0].Task != "scanner" || last[0].Detail == "" {
		t.Errorf("the rest: %+v", last)
	}
}

// Whatever comes, every decision is in exactly one record's count.
func TestFoldLosesNothing(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	f := NewFold(FoldOptions{Window: time.Second, MaxKeys: 8, MaxTask: 3})
	var in, out uint64
	sum := func(records []client.Record) {
		for _, r := range records {
			out += max(r.Count, 1)
		}
	}
	now := noon
	for range 20_000 {
		now = now.Add(time.Duration(random.IntN(100)) * time.Millisecond)
		r := denial(fmt.Sprint(random.IntN(5)), fmt.Sprint(random.IntN(6)), 1)
		r.Count = uint64(random.IntN(3))
		in += max(r.Count, 1)
		sum(f.Add(now, r))
		if len(f.keys) > 8 || len(f.keys) != f.order.Len() {
			t.Fatalf("%d keys, %d in order", len(f.keys), f.order.Len())
		}
	}
	sum(f.Flush())
	if in != out {
		t.Errorf("%d decisions in, %d out", in, out)
	}
}
