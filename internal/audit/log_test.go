// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"agentguard.dev/agentguard/client"
	"golang.org/x/sys/unix"
)

func openLog(t *testing.T, dir, name string, opt Options) *Log {
	t.Helper()
	l, err := OpenLog(dir, name, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func add(t *testing.T, l *Log, records ...client.Record) {
	t.Helper()
	for _, r := range records {
		if err := l.Append(r); err != nil {
			t.Fatal(err)
		}
	}
}

// reasons reads the directory and returns what tells its records apart, and how
// many lines were damaged.
func reasons(t *testing.T, dir string, q Query) (got []string, damaged int) {
	t.Helper()
	q.Damaged = func(_ string, n int) { damaged += n }
	err := Read(dir, q, func(r client.Record) error {
		got = append(got, r.Reason)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got, damaged
}

func expect(t *testing.T, dir string, damaged int, want ...string) {
	t.Helper()
	got, bad := reasons(t, dir, Query{})
	if !slices.Equal(got, want) || bad != damaged {
		t.Errorf("got %q and %d damaged lines, want %q and %d", got, bad, want, damaged)
	}
}

func TestAppend(t *testing.T) {
	defer unix.Umask(unix.Umask(0))
	dir := filepath.Join(t.TempDir(), "state", "audit")
	l := openLog(t, dir, "daemon", Options{Now: func() time.Time { return noon }})
	add(t, l, at(0, "one"), client.Record{Kind: "task", Reason: "two"})
	expect(t, dir, 0, "one", "two")
	for path, want := range map[string]fs.FileMode{dir: 0o700, filepath.Join(dir, "daemon.jsonl"): 0o600} {
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != want {
			t.Errorf("%s: mode %v, %v; want %v", path, st.Mode().Perm(), err, want)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := l.Append(at(0, "late")); !errors.Is(err, fs.ErrClosed) || !strings.Contains(err.Error(), "daemon.jsonl") {
		t.Errorf("after Close: %v", err)
	}
	add(t, openLog(t, dir, "daemon", Options{}), at(1, "three"))
	expect(t, dir, 0, "one", "two", "three")
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	open := filepath.Join(dir, "open")
	if err := os.Mkdir(open, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(open, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, "link.jsonl")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(dir, "fifo.jsonl"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		dir, name string
		opt       Options
		want      string
	}{
		{dir: dir, name: "", want: "1 to 64"},
		{dir: dir, name: "a.b", want: `"a.b"`},
		{dir: dir, name: "../x", want: `"../x"`},
		{dir: dir, name: "x", opt: Options{MaxFile: 100, MaxTotal: 150}, want: "raise it"},
		{dir: open, name: "x", want: "chmod 0700 " + open},
		{dir: "/dev/null/x", name: "x", want: "/dev/null"},
		{dir: dir, name: "link", want: dir + "/link.jsonl"},
		{dir: dir, name: "fifo", want: "no regular file"},
	} {
		if l, err := OpenLog(tt.dir, tt.name, tt.opt); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s in %s: %v, %v; want %q", tt.name, tt.dir, l, err, tt.want)
		}
	}
}

func TestTornLine(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "daemon.jsonl")
	add(t, openLog(t, dir, "daemon", Options{}), at(0, "one"), at(1, "two"))
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, st.Size()-5); err != nil {
		t.Fatal(err)
	}
	expect(t, dir, 1, "one")
	// The next writer leaves the torn line alone and starts a new one.
	add(t, openLog(t, dir, "daemon", Options{}), at(2, "three"))
	expect(t, dir, 1, "one", "three")
	lines := strings.Split(string(must(os.ReadFile(path))), "\n")
	if r, err := decodeLine([]byte(lines[len(lines)-2])); err != nil || r.Reason != "three" {
		t.Errorf("the last line: %v", err) // for readers less forgiving than ours
	}
	// A writer that shares the log and did not see it glues its own record on.
	glued := append(must(os.ReadFile(path)), `{"time":"2026-01-`...)
	glued = append(glued, `{"time":"2026-01-02T13:00:00Z","kind":"task","reason":"four"}`+"\n\n\x00\x00\x00\n"...)
	if err := os.WriteFile(path, glued, 0o600); err != nil {
		t.Fatal(err)
	}
	expect(t, dir, 3, "one", "three", "four")
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestRotation(t *testing.T) {
	dir := t.TempDir()
	now := noon
	opt := Options{MaxFile: 1000, MaxTotal: 4000, Now: func() time.Time { return now }}
	l := openLog(t, dir, "daemon", opt)
	beside := openLog(t, dir, "run", opt)
	add(t, beside, at(-time.Hour, "beside"))
	var want []string
	for i := range 200 {
		reason := fmt.Sprintf("record %03d", i)
		want = append(want, reason)
		add(t, l, at(time.Duration(i), reason))
		if i == 100 {
			now = now.Add(-time.Hour) // the clock is set back
		}
		files := must(listFiles(dir))
		var total int64
		for _, f := range files {
			size := must(os.Stat(f.path)).Size()
			if size > 1000 {
				t.Fatalf("%s has %d bytes", f.path, size)
			}
			if f.name == "daemon" {
				total += size
			}
		}
		if total > 4000 {
			t.Fatalf("the log has %d bytes in %d files", total, len(files))
		}
	}
	got, damaged := reasons(t, dir, Query{})
	if damaged != 0 || len(got) < 30 || got[0] != "beside" || !slices.Equal(got[1:], want[len(want)-len(got)+1:]) {
		t.Errorf("%d damaged, got %q", damaged, got)
	}
}

func TestSharedLog(t *testing.T) {
	dir := t.TempDir()
	const writers, records = 4, 300
	var all sync.WaitGroup
	for w := range writers {
		// A log each: as if they were processes.
		l := openLog(t, dir, "run", Options{MaxFile: 4000, MaxTotal: 1 << 20})
		all.Go(func() {
			for i := range records {
				if err := l.Append(at(0, fmt.Sprintf("%d/%03d", w, i))); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	got, damaged := reasons(t, dir, Query{})
	slices.Sort(got)
	if unique := slices.Compact(slices.Clone(got)); len(unique) != writers*records || len(got) != len(unique) || damaged != 0 {
		t.Errorf("got %d records, %d of them different, %d damaged; want %d", len(got), len(unique), damaged, writers*records)
	}
	if files := must(listFiles(dir)); len(files) < 3 {
		t.Errorf("only %d files: nothing was rotated", len(files))
	}
}

func TestDeletedFile(t *testing.T) {
	dir := t.TempDir()
	l := openLog(t, dir, "daemon", Options{})
	add(t, l, at(0, "one"))
	if err := os.Remove(filepath.Join(dir, "daemon.jsonl")); err != nil {
		t.Fatal(err)
	}
	add(t, l, at(1, "two"))
	expect(t, dir, 0, "two")
}

func TestFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root mounts a small file system")
	}
	disk := t.TempDir()
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=64k,mode=0700"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(disk, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	dir := filepath.Join(disk, "audit")
	l := openLog(t, dir, "daemon", Options{})
	add(t, l, at(0, "first"))

	ballast := filepath.Join(disk, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 56<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	lost := 0
	long := client.Record{Time: noon, Kind: "task", Reason: "long", Detail: strings.Repeat("x", 1500)}
	for range 10 {
		if err := l.Append(long); err != nil {
			lost++
			if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), filepath.Join(dir, "daemon.jsonl")) {
				t.Errorf("full disk: %v", err)
			}
		}
	}
	if lost < 5 {
		t.Fatalf("only %d records did not fit", lost)
	}
	// Room for the count of what was lost, but not for the record behind it.
	if err := os.Truncate(ballast, 52<<10); err != nil {
		t.Fatal(err)
	}
	if err := l.Append(client.Record{Time: noon, Kind: "task", Reason: "long", Detail: strings.Repeat("x", 6000)}); err == nil {
		t.Fatal("6,000 bytes fit into one page")
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	add(t, l, at(time.Hour, "after"))

	var said []client.Record
	damaged := 0
	q := Query{Damaged: func(_ string, n int) { damaged += n }}
	if err := Read(dir, q, func(r client.Record) error { said = append(said, r); return nil }); err != nil {
		t.Fatal(err)
	}
	last := said[len(said)-3:]
	if last[0].Kind != "lost" || last[0].Count != uint64(lost) || !strings.Contains(last[0].Detail, "no space left") ||
		last[1].Kind != "lost" || last[1].Count != 1 || last[2].Reason != "after" {
		t.Errorf("lost %d and 1; the log ends with %+v", lost, last)
	}
	if len(said) != 1+(10-lost)+3 || damaged != 2 {
		t.Errorf("%d records, %d damaged lines", len(said), damaged)
	}
	// Said once.
	add(t, l, at(2*time.Hour, "later"))
	if got, _ := reasons(t, dir, Query{Kind: "lost"}); len(got) != 2 {
		t.Errorf("%d records of kind lost", len(got))
	}
}

func TestLostIsSaidAtClose(t *testing.T) {
	dir := t.TempDir()
	l := openLog(t, dir, "daemon", Options{})
	if err := l.Append(client.Record{Kind: "task", Detail: strings.Repeat("x", MaxLine)}); err == nil {
		t.Fatal("no error for a record that is too long")
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	expect(t, dir, 0, "audit log not writable")
}
