// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"agentguard.dev/agentguard/client"
)

func TestQuery(t *testing.T) {
	dir := t.TempDir()
	daemon, run := openLog(t, dir, "daemon", Options{}), openLog(t, dir, "run", Options{})
	add(t, daemon,
		client.Record{Time: noon, Kind: "task", Task: "t1", Agent: "a", Reason: "0"},
		client.Record{Time: noon.Add(2), Kind: "decision", Verdict: "deny", Task: "t1", Agent: "a", Reason: "2"},
		client.Record{Time: noon.Add(3), Kind: "decision", Verdict: "allow", Task: "t2", Agent: "a", Reason: "3"},
	)
	add(t, run,
		client.Record{Time: noon.Add(1), Kind: "decision", Verdict: "deny", Task: "t3", Agent: "b", Reason: "1"},
		client.Record{Time: noon.Add(4), Kind: "lost", Reason: "4"},
	)
	if err := os.WriteFile(filepath.Join(dir, "notes.txt"), []byte("no log\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		q    Query
		want string
	}{
		{"all", Query{}, "0 1 2 3 4"},
		{"since", Query{Since: noon.Add(2)}, "2 3 4"},
		{"until", Query{Until: noon.Add(2)}, "0 1"},
		{"task", Query{Task: "t1"}, "0 2"},
		{"agent", Query{Agent: "b"}, "1"},
		{"verdict", Query{Verdict: "deny"}, "1 2"},
		{"kind", Query{Kind: "lost"}, "4"},
		{"both", Query{Task: "t1", Verdict: "allow"}, ""},
		{"newest", Query{Limit: 2}, "3 4"},
		{"newest of some", Query{Limit: 2, Kind: "decision"}, "2 3"},
		{"limit above", Query{Limit: 9}, "0 1 2 3 4"},
		{"limit equal", Query{Limit: 5}, "0 1 2 3 4"},
	} {
		if got, _ := reasons(t, dir, tt.q); strings.Join(got, " ") != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}

	enough := errors.New("enough")
	n := 0
	err := Read(dir, Query{}, func(client.Record) error { n++; return enough })
	if !errors.Is(err, enough) || n != 1 {
		t.Errorf("an error of fn: %v after %d records", err, n)
	}
	if err := Read(filepath.Join(dir, "none"), Query{}, nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
}

func TestLongLine(t *testing.T) {
	dir := t.TempDir()
	l := openLog(t, dir, "daemon", Options{})
	add(t, l, at(0, "one"))
	path := filepath.Join(dir, "daemon.jsonl")
	long := string(must(os.ReadFile(path))) + strings.Repeat("x", 2*MaxLine) + "\n"
	if err := os.WriteFile(path, []byte(long), 0o600); err != nil {
		t.Fatal(err)
	}
	big := client.Record{Time: noon.Add(1), Kind: "task", Reason: "big", Detail: strings.Repeat("y", MaxLine-200)}
	add(t, l, big, at(2, "two"))
	expect(t, dir, 1, "one", "big", "two")
}

// following runs Follow and hands over what it delivers.
func following(t *testing.T, dir string, q Query) (next func() string, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	records := make(chan string)
	ended := make(chan error, 1)
	go func() {
		ended <- Follow(ctx, dir, q, func(r client.Record) error {
			select {
			case records <- r.Reason:
			case <-ctx.Done():
			}
			return nil
		})
	}()
	next = func() string {
		t.Helper()
		select {
		case r := <-records:
			return r
		case err := <-ended:
			t.Fatalf("Follow ended: %v", err)
		case <-time.After(10 * time.Second):
			t.Fatal("nothing came")
		}
		return ""
	}
	return next, func() {
		t.Helper()
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

func TestFollow(t *testing.T) {
	dir := t.TempDir()
	l := openLog(t, dir, "daemon", Options{MaxFile: 1000, MaxTotal: 1 << 20})
	add(t, l, at(0, "old"), at(1, "older than the limit"), at(2, "last"))
	next, stop := following(t, dir, Query{Limit: 1, Kind: "decision"})
	defer stop()
	if got := next(); got != "last" {
		t.Errorf("first %q, want last", got)
	}
	// Through several rotations, none twice and none missing.
	for i := range 100 {
		add(t, l, at(time.Duration(3+i), fmt.Sprint(i)))
		if i%10 == 9 {
			for j := i - 9; j <= i; j++ {
				if got := next(); got != fmt.Sprint(j) {
					t.Fatalf("got %q, want %d", got, j)
				}
			}
		}
	}
	if files := must(listFiles(dir)); len(files) < 5 {
		t.Fatalf("only %d files: nothing was rotated", len(files))
	}
	// Another log appears, and a record that the query leaves out.
	other := openLog(t, dir, "run", Options{})
	add(t, other, client.Record{Time: noon, Kind: "task", Reason: "no"}, at(200, "other"))
	if got := next(); got != "other" {
		t.Errorf("got %q, want other", got)
	}
}

// A line that arrives in parts is one record once it is whole.
func TestFollowParts(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "daemon.jsonl")
	f := must(os.Create(path))
	defer f.Close()
	var damaged []string
	q := Query{Damaged: func(file string, _ int) { damaged = append(damaged, file) }}
	next, stop := following(t, dir, q)
	for _, part := range []string{`{"time":"2026-01-02T12:00:00Z",`, `"kind":"task","reason":"whole"}`, "\n"} {
		if _, err := f.WriteString(part); err != nil {
			t.Fatal(err)
		}
	}
	if got := next(); got != "whole" {
		t.Errorf("got %q", got)
	}
	if _, err := f.WriteString("garbage\n" + `{"time":"2026-01-02T12:00:00Z","kind":"task","reason":"next"}` + "\n"); err != nil {
		t.Fatal(err)
	}
	if got := next(); got != "next" {
		t.Errorf("got %q", got)
	}
	stop()
	if !slices.Equal(damaged, []string{path}) {
		t.Errorf("damaged: %q", damaged)
	}
}

func TestFollowEnds(t *testing.T) {
	dir := t.TempDir()
	l := openLog(t, dir, "daemon", Options{})
	add(t, l, at(0, "one"))
	enough := errors.New("enough")
	if err := Follow(t.Context(), dir, Query{}, func(client.Record) error { return enough }); !errors.Is(err, enough) {
		t.Errorf("an error of fn: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Follow(ctx, dir, Query{}, func(client.Record) error { return nil }); err != nil {
		t.Errorf("ctx over: %v", err)
	}
	if err := Follow(ctx, filepath.Join(dir, "none"), Query{}, nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
}

// Files that change their names while they are listed leave no hole.
func TestReadDuringRotation(t *testing.T) {
	dir := t.TempDir()
	l := openLog(t, dir, "daemon", Options{MaxFile: 300, MaxTotal: 1 << 20})
	const records = 300
	written := make(chan error, 1)
	go func() {
		for i := range records {
			if err := l.Append(at(time.Duration(i), fmt.Sprint(i))); err != nil {
				written <- err
				return
			}
		}
		written <- nil
	}()
	for done := false; !done; {
		select {
		case err := <-written:
			if err != nil {
				t.Fatal(err)
			}
			done = true
		default:
		}
		got, _ := reasons(t, dir, Query{})
		for i, r := range got {
			if r != fmt.Sprint(i) {
				t.Fatalf("record %d is %q", i, r)
			}
		}
		if done && len(got) != records {
			t.Fatalf("%d records at the end", len(got))
		}
	}
}
