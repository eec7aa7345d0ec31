// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"agentguard.dev/agentguard/internal/cgroup"
	"golang.org/x/sys/unix"
)

// A process born in a frozen cgroup never runs an instruction, so what it is
// then shows that it joined before its first one.
func TestBornInside(t *testing.T) {
	d := scratch(t)
	freeze := func(state string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(d.Path(), "cgroup.freeze"), []byte(state), 0); err != nil {
			t.Fatal(err)
		}
	}
	freeze("1")
	defer freeze("0")
	finished := make(chan result, 1)
	go func() { finished <- run(t, Command{Argv: []string{"cat", "/proc/self/cgroup"}, Cgroup: d}) }()

	var pids []int
	until(t, "a process is in the cgroup", func() bool {
		var err error
		pids, err = d.Procs()
		return err == nil && len(pids) == 1
	})
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pids[0]))
	if err != nil {
		t.Fatal(err)
	}
	own, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	if string(comm) != string(own) {
		t.Errorf("the newborn is %q already, want the image of its parent %q", comm, own)
	}
	freeze("0")
	r := <-finished
	if want := "0::/" + filepath.Base(d.Path()); r.code != 0 || !slices.Contains(strings.Split(r.out, "\n"), want) {
		t.Errorf("got %+v, want the line %q", r, want)
	}
}

func TestSubCgroup(t *testing.T) {
	d := scratch(t)
	sub := create(t, filepath.Join(d.Path(), "sub"))
	r := run(t, Command{Argv: []string{"cat", "/proc/self/cgroup"}, Cgroup: sub, User: "65534"})
	if want := "0::/" + filepath.Base(d.Path()) + "/sub"; !slices.Contains(strings.Split(r.out, "\n"), want) {
		t.Errorf("got %+v, want the line %q", r, want)
	}
}

func TestExitCode(t *testing.T) {
	d := scratch(t)
	dir := t.TempDir()
	write := func(name, content string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, tt := range []struct {
		name string
		cmd  Command
		code int
		err  string // empty: none
	}{
		{name: "success", cmd: Command{Argv: []string{"true"}}},
		{name: "its own", cmd: Command{Argv: []string{"sh", "-c", "exit 3"}}, code: 3},
		{name: "its own 125", cmd: Command{Argv: []string{"sh", "-c", "exit 125"}}, code: 125},
		{name: "killed", cmd: Command{Argv: []string{"sh", "-c", "kill -KILL $$"}}, code: 137},
		{name: "terminated", cmd: Command{Argv: []string{"sh", "-c", "kill -TERM $$"}}, code: 143},
		{name: "not in PATH", cmd: Command{Argv: []string{"no-such-command"}}, code: 127, err: "not found in PATH"},
		{name: "no file", cmd: Command{Argv: []string{dir + "/none"}}, code: 127, err: dir + "/none"},
		{name: "no directory", cmd: Command{Argv: []string{"/etc/passwd/x"}}, code: 127, err: "not a directory"},
		{name: "not executable", cmd: Command{Argv: []string{write("plain", "", 0o644)}}, code: 126, err: dir + "/plain: permission denied"},
		{name: "a directory", cmd: Command{Argv: []string{dir}}, code: 126, err: dir},
		{name: "no format", cmd: Command{Argv: []string{write("noformat", "exit 9\n", 0o755)}}, code: 126, err: "#! line"},
		{name: "no interpreter", cmd: Command{Argv: []string{write("nointerp", "#!/no/such\n", 0o755)}}, code: 127, err: "interpreter"},
		{name: "too long", cmd: Command{Argv: []string{"true", strings.Repeat("x", 1<<20)}}, code: 126, err: "too long"},
		{name: "no command", code: 125, err: "no command"},
		{name: "empty command", cmd: Command{Argv: []string{""}}, code: 125, err: "no command"},
		{name: "NUL", cmd: Command{Argv: []string{"true", "a\x00b"}}, code: 126, err: "invalid argument"},
		{name: "no such user", cmd: Command{Argv: []string{"true"}, User: "no-such-user"}, code: 125, err: `user "no-such-user"`},
		{name: "no such directory", cmd: Command{Argv: []string{"true"}, Dir: "/nowhere"}, code: 125, err: "/nowhere"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.cmd.Cgroup = d
			r := run(t, tt.cmd)
			if r.code != tt.code || (r.err == nil) != (tt.err == "") || r.err != nil && !strings.Contains(r.err.Error(), tt.err) {
				t.Errorf("got %d, %v; want %d, %q", r.code, r.err, tt.code, tt.err)
			}
		})
	}
}

func TestNoCgroup(t *testing.T) {
	if code, err := Run(t.Context(), Command{Argv: []string{"true"}}); code != ExitFailure || err == nil {
		t.Errorf("without a cgroup: %d, %v", code, err)
	}
	d := scratch(t)
	gone := create(t, filepath.Join(d.Path(), "gone"))
	if err := unix.Rmdir(gone.Path()); err != nil {
		t.Fatal(err)
	}
	r := run(t, Command{Argv: []string{"true"}, Cgroup: gone})
	if r.code != ExitFailure || r.err == nil || !strings.Contains(r.err.Error(), gone.Path()+": it has been removed") {
		t.Errorf("in a removed cgroup: %d, %v", r.code, r.err)
	}
}

func TestLookPathAsTheUser(t *testing.T) {
	d := scratch(t)
	dir, err := os.MkdirTemp("/tmp", "launch")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]os.FileMode{"closed": 0o700, "open": 0o755} {
		if err := os.Mkdir(filepath.Join(dir, name), mode); err != nil {
			t.Fatal(err)
		}
		script := "#!/bin/sh\necho " + name + "\n"
		if err := os.WriteFile(filepath.Join(dir, name, "tool"), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	env := []string{"PATH=" + dir + "/none:" + dir + "/closed:" + dir + "/open:/bin:/usr/bin"}
	for user, want := range map[string]string{"": "closed", "65534": "open"} {
		if r := run(t, Command{Argv: []string{"tool"}, Cgroup: d, Env: env, User: user}); r.out != want || r.err != nil {
			t.Errorf("as %q: got %+v, want %q", user, r, want)
		}
	}
	if r := run(t, Command{Argv: []string{"true"}, Cgroup: d, Env: []string{}}); r.code != 0 {
		t.Errorf("without PATH: %+v", r)
	}
}

func TestArgumentsAreBytes(t *testing.T) {
	d := scratch(t)
	long := strings.Repeat("x", 100_000) // more than a pipe holds
	r := run(t, Command{
		Argv:   []string{"sh", "-c", `printf '%s|%s|%s' "$1" "$V" "${#2}"`, "sh", "a\xff\n\"", long},
		Env:    []string{"PATH=/bin:/usr/bin", "V=\xfe\x01", "L=" + long},
		Cgroup: d,
	})
	if want := "a\xff\n\"|\xfe\x01|100000"; r.out != want {
		t.Errorf("got %q, %v; want %q", r.out, r.err, want)
	}
}

func TestStdio(t *testing.T) {
	d := scratch(t)
	in, feed, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	go func() {
		io.WriteString(feed, "hello")
		feed.Close()
	}()
	if r := run(t, Command{Argv: []string{"cat"}, Stdin: in, Cgroup: d}); r.out != "hello" {
		t.Errorf("through pipes: %+v", r)
	}
	if r := run(t, Command{Argv: []string{"cat"}, Cgroup: d}); r.out != "" || r.code != 0 {
		t.Errorf("without stdin: %+v", r)
	}
}

func TestReturnsWithTheMainProcess(t *testing.T) {
	d := scratch(t)
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	defer in.Close()
	r := run(t, Command{Argv: []string{"sh", "-c", "sleep 1000 & exit 4"}, Stdout: in, Cgroup: d})
	if r.code != 4 || r.err != nil {
		t.Errorf("got %+v", r)
	}
	if pids, err := d.Procs(); err != nil || len(pids) != 1 {
		t.Errorf("left behind: %v, %v; want the sleeper", pids, err)
	}
}

func TestContext(t *testing.T) {
	d := scratch(t)
	over := errors.New("over")
	ctx, cancel := context.WithCancelCause(t.Context())
	go func() {
		for live, _ := d.Populated(); !live && t.Context().Err() == nil; live, _ = d.Populated() {
			time.Sleep(time.Millisecond)
		}
		cancel(over)
	}()
	code, err := Run(ctx, Command{Argv: []string{"sleep", "1000"}, Cgroup: d})
	if code != 137 || !errors.Is(err, over) {
		t.Errorf("got %d, %v", code, err)
	}
	if code, err = Run(ctx, Command{Argv: []string{"true"}, Cgroup: d}); code != ExitFailure || !errors.Is(err, over) {
		t.Errorf("with ctx over before: %d, %v", code, err)
	}
}

func TestKeeps(t *testing.T) {
	d := scratch(t)
	dir := t.TempDir()
	show := newLauncher(d, "sh", "-c", `umask; ulimit -Sn; ulimit -Hn; pwd; grep SigIgn /proc/self/status`)
	script := `umask 0027; ulimit -Sn 77; ulimit -Hn 88; cd "$1"; trap "" HUP; grep SigIgn /proc/$$/status; shift; exec "$@"`
	cmd := exec.Command("sh", append([]string{"-c", script, "sh", dir, "/proc/" + fmt.Sprint(os.Getpid()) + "/exe"}, show.Args[1:]...)...)
	cmd.Env = show.Env
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	// The shell says first what it ignores: HUP, and what the test inherited.
	ignored, rest, _ := strings.Cut(string(out), "\n")
	var mask uint64
	if _, err := fmt.Sscanf(ignored, "SigIgn: %x", &mask); err != nil || mask&1 == 0 {
		t.Errorf("the shell ignores no HUP: %q, %v", ignored, err)
	}
	if want := fmt.Sprintf("0027\n77\n88\n%s\n%s\n", dir, ignored); rest != want {
		t.Errorf("got %q, want %q", rest, want)
	}
	sub := t.TempDir()
	if r := run(t, Command{Argv: []string{"pwd"}, Dir: sub, Cgroup: d}); r.out != sub {
		t.Errorf("directory: %+v, want %s", r, sub)
	}
}

// The stage by hand, without the parent's order, does nothing.
func TestStageByHand(t *testing.T) {
	cmd := &exec.Cmd{Path: "/proc/self/exe", Args: []string{stageName}}
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState.ExitCode() != ExitFailure || !strings.Contains(string(out), "internal to agentguard") {
		t.Errorf("got %v: %s", err, out)
	}
}

// When whoever ran it dies, the command lives on.
func TestSurvivesItsParent(t *testing.T) {
	d := scratch(t)
	cmd := newLauncher(d, "sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	until(t, "the command runs", func() bool { return commandIs(d, "sleep") })
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	if !commandIs(d, "sleep") {
		t.Error("the command is gone")
	}
}

// commandIs says whether the only process in the cgroup has this name.
func commandIs(d *cgroup.Dir, name string) bool {
	pids, err := d.Procs()
	if err != nil || len(pids) != 1 {
		return false
	}
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pids[0]))
	return err == nil && strings.TrimSpace(string(comm)) == name
}
