// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const patience = 10 * time.Second

// scratch makes a cgroup that is killed and removed at the end of the test.
func scratch(t *testing.T, name string) *Dir {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root makes cgroups")
	}
	point, err := Mount()
	if err != nil {
		t.Fatal(err)
	}
	d, err := Create(filepath.Join(point, fmt.Sprintf("agentguard-test-%d-%s", os.Getpid(), name)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if _, err := d.Kill(ctx); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
		if err := d.Remove(ctx); err != nil {
			t.Error(err)
		}
		d.Close()
	})
	return d
}

func child(t *testing.T, d *Dir, name string) *Dir {
	t.Helper()
	c, err := Create(filepath.Join(d.Path(), name))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// spawn starts a process in the cgroup, which lives until killed. It is reaped
// at once when it ends.
func spawn(t *testing.T, d *Dir, argv ...string) int {
	t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: d.FD()}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var reaper sync.WaitGroup
	reaper.Go(func() { cmd.Wait() })
	t.Cleanup(func() {
		cmd.Process.Kill()
		reaper.Wait()
	})
	return cmd.Process.Pid
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v in vain until %s", patience, what)
		}
	}
}

func TestIdentity(t *testing.T) {
	d := scratch(t, "main")
	point, err := Mount()
	if err != nil {
		t.Fatal(err)
	}
	root, err := Open(point)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if root.Level() != 0 || root.ID() != rootID {
		t.Errorf("root: level %d, id %d; want 0, %d", root.Level(), root.ID(), rootID)
	}

	inner := child(t, child(t, d, "a"), "b")
	if d.Level() != 1 || inner.Level() != 3 {
		t.Errorf("levels %d and %d, want 1 and 3", d.Level(), inner.Level())
	}
	var st unix.Stat_t
	if err := unix.Stat(inner.Path(), &st); err != nil {
		t.Fatal(err)
	}
	if inner.ID() != st.Ino { // on every 64-bit machine
		t.Errorf("id %d, inode %d", inner.ID(), st.Ino)
	}

	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(inner.Path(), link); err != nil {
		t.Fatal(err)
	}
	again, err := Open(link)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if again.Path() != inner.Path() || again.ID() != inner.ID() || again.Level() != 3 {
		t.Errorf("through a link: %s, id %d, level %d; want %s, %d, 3",
			again.Path(), again.ID(), again.Level(), inner.Path(), inner.ID())
	}
}

func TestRefusals(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		step    func(string) (*Dir, error)
		path    string
		want    string
		missing bool
	}{
		{step: Open, path: dir, want: "not a cgroup2 directory"},
		{step: Open, path: file, want: "not a directory"},
		{step: Open, path: "/nowhere", want: "no such file", missing: true},
		{step: Create, path: dir + "/x", want: "not a cgroup2 directory"},
		{step: Create, path: file + "/x", want: "not a directory"},
		{step: Create, path: "/nowhere/x", want: "no such file", missing: true},
		{step: Create, path: "/", want: "no name"},
		{step: Create, path: "..", want: "no name"},
	} {
		d, err := tt.step(tt.path)
		if err == nil {
			d.Close()
			t.Errorf("%s: no error", tt.path)
			continue
		}
		if !strings.Contains(err.Error(), "cgroup "+tt.path+": ") || !strings.Contains(err.Error(), tt.want) ||
			errors.Is(err, fs.ErrNotExist) != tt.missing {
			t.Errorf("%s: %v; want %q", tt.path, err, tt.want)
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("left in %s: %v, %v", dir, entries, err)
	}
}

func TestCreate(t *testing.T) {
	d := scratch(t, "main")
	defer unix.Umask(unix.Umask(0))
	first, second := child(t, d, "x"), child(t, d, "x")
	if first.ID() != second.ID() {
		t.Errorf("made twice: ids %d and %d", first.ID(), second.ID())
	}
	st, err := os.Stat(first.Path())
	if err != nil {
		t.Fatal(err)
	}
	if st.Mode().Perm() != 0o755 {
		t.Errorf("mode %v, want 0755", st.Mode().Perm())
	}
	if _, err := Create(filepath.Join(d.Path(), "no", "parent")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a parent: %v", err)
	}
	if made, err := Create(d.Path() + "/cgroup.procs"); err == nil {
		made.Close()
		t.Error("over a file: no error")
	}
}

func TestProcs(t *testing.T) {
	d := scratch(t, "main")
	if live, err := d.Populated(); err != nil || live {
		t.Fatalf("new cgroup: populated %v, %v", live, err)
	}
	inner := child(t, child(t, d, "a"), "b")
	want := []int{spawn(t, d, "sleep", "1000"), spawn(t, inner, "sleep", "1000"), spawn(t, inner, "sleep", "1000")}
	slices.Sort(want)
	if got, err := d.Procs(); err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v; want %v", got, err, want)
	}
	if live, err := d.Populated(); err != nil || !live {
		t.Errorf("populated %v, %v", live, err)
	}
	if path, err := OfProcess(want[0]); err != nil || path != d.Path() {
		t.Errorf("OfProcess: %s, %v; want %s", path, err, d.Path())
	}
}

func TestThreadedProcs(t *testing.T) {
	d := scratch(t, "main")
	c := child(t, d, "t")
	if err := writeAt(c.FD(), "cgroup.type", "threaded"); err != nil {
		t.Fatal(err)
	}
	pid := spawn(t, d, "sleep", "1000")
	if err := writeAt(c.FD(), "cgroup.threads", fmt.Sprint(pid)); err != nil {
		t.Fatal(err)
	}
	if got, err := c.Procs(); err != nil || !slices.Equal(got, []int{pid}) {
		t.Errorf("threaded cgroup: got %v, %v; want [%d]", got, err, pid)
	}
	if got, err := d.Procs(); err != nil || !slices.Equal(got, []int{pid}) {
		t.Errorf("its domain: got %v, %v; want [%d]", got, err, pid)
	}
	// cgroup.kill refuses here, so this is the kill one by one.
	if n, err := c.Kill(deadline(t)); err != nil || n != 1 {
		t.Errorf("kill: %d, %v", n, err)
	}
}

func deadline(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

func TestKill(t *testing.T) {
	d := scratch(t, "main")
	inner := child(t, d, "a")
	outside := spawn(t, scratch(t, "beside"), "sleep", "1000")
	spawn(t, inner, "sleep", "1000")
	// A process that never stops to fork, and heeds no other signal.
	spawn(t, d, "sh", "-c", `trap "" TERM INT HUP; while :; do (sleep 1000 &) ; sleep 0.001; done`)
	until(t, "there are many processes", func() bool {
		pids, err := d.Procs()
		return err == nil && len(pids) >= 20 // some are on their way out
	})
	n, err := d.Kill(deadline(t))
	if err != nil || n < 10 {
		t.Fatalf("killed %d, %v", n, err)
	}
	if pids, err := d.Procs(); err != nil || len(pids) != 0 {
		t.Errorf("left: %v, %v", pids, err)
	}
	if err := unix.Kill(outside, 0); err != nil {
		t.Errorf("a process beside it: %v", err)
	}
	if n, err := d.Kill(deadline(t)); err != nil || n != 0 {
		t.Errorf("a second time: %d, %v", n, err)
	}
}

func TestKillOneByOne(t *testing.T) {
	d := scratch(t, "main")
	spawn(t, child(t, d, "a"), "sleep", "1000")
	spawn(t, d, "sleep", "1000")
	if err := d.whenEmpty(deadline(t), d.killEach); err != nil {
		t.Fatal(err)
	}
	if pids, err := d.Procs(); err != nil || len(pids) != 0 {
		t.Errorf("left: %v, %v", pids, err)
	}
}

func TestKillWaits(t *testing.T) {
	d := scratch(t, "main")
	spawn(t, d, "sleep", "1000")
	gaveUp := errors.New("gave up")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(gaveUp)
	err := d.whenEmpty(ctx, func() error { return nil })
	if !errors.Is(err, gaveUp) || !strings.Contains(err.Error(), "1 processes still there") {
		t.Errorf("with its context over: %v", err)
	}
	if err := d.Remove(ctx); !errors.Is(err, gaveUp) || !errors.Is(err, unix.EBUSY) || !strings.Contains(err.Error(), d.Path()) {
		t.Errorf("remove: %v", err)
	}
}

func TestKillSparesItself(t *testing.T) {
	d := scratch(t, "main")
	before, err := OfProcess(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	home, err := Open(before)
	if err != nil {
		t.Fatal(err)
	}
	defer home.Close()
	if err := writeAt(d.FD(), "cgroup.procs", "0"); err != nil {
		t.Fatal(err)
	}
	n, killErr := d.Kill(deadline(t))
	if err := writeAt(home.FD(), "cgroup.procs", "0"); err != nil {
		t.Fatal(err)
	}
	if killErr == nil || n != 0 {
		t.Errorf("killed %d, %v", n, killErr)
	}
}

func TestRemove(t *testing.T) {
	d := scratch(t, "main")
	top := child(t, d, "top")
	inner := child(t, child(t, child(t, top, "a"), "b"), "c")
	child(t, top, "d")
	pid := spawn(t, inner, "sleep", "1000")

	removed := make(chan error, 1)
	ctx := deadline(t)
	go func() { removed <- top.Remove(ctx) }()
	until(t, "the empty one is gone", func() bool {
		_, err := os.Stat(filepath.Join(top.Path(), "d"))
		return errors.Is(err, fs.ErrNotExist)
	})
	select {
	case err := <-removed:
		t.Fatalf("removed with a process in it: %v", err)
	default:
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := <-removed; err != nil {
		t.Fatal(err)
	}
	if err := top.Remove(ctx); err != nil {
		t.Errorf("a second time: %v", err)
	}
}

func TestVanished(t *testing.T) {
	d := scratch(t, "main")
	old := child(t, d, "x")
	if err := unix.Rmdir(old.Path()); err != nil {
		t.Fatal(err)
	}
	// Another one takes the name; nothing below may touch it.
	heir := child(t, d, "x")
	pid := spawn(t, heir, "sleep", "1000")

	ctx := deadline(t)
	_, procs := old.Procs()
	_, live := old.Populated()
	_, kill := old.Kill(ctx)
	for step, err := range map[string]error{"Procs": procs, "Populated": live, "Kill": kill} {
		if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), old.Path()) {
			t.Errorf("%s: %v", step, err)
		}
	}
	if err := old.Remove(ctx); err != nil {
		t.Errorf("Remove: %v", err)
	}
	if got, err := heir.Procs(); err != nil || !slices.Equal(got, []int{pid}) {
		t.Errorf("the heir of the name: %v, %v; want [%d]", got, err, pid)
	}
	if _, err := OfProcess(1 << 30); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no process: %v", err)
	}
}

// A file that was open when its cgroup was removed answers ENODEV.
func TestVanishedMeanwhile(t *testing.T) {
	d := scratch(t, "main")
	c := child(t, d, "x")
	pid := spawn(t, c, "sleep", "1000")
	err := c.whenEmpty(deadline(t), func() error {
		unix.Kill(pid, unix.SIGKILL)
		for unix.Rmdir(c.Path()) != nil {
			time.Sleep(time.Millisecond)
		}
		return nil
	})
	if !gone(err) || !errors.Is(failure("kill", "x", err), fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}
