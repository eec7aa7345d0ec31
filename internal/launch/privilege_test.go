// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestNoInheritedDescriptors(t *testing.T) {
	d := scratch(t)
	open, err := unix.Open("/dev/null", unix.O_RDONLY, 0) // no O_CLOEXEC
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(open)
	list := []string{"ls", "/proc/self/fd"}
	control, err := exec.Command(list[0], list[1:]...).Output()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(strings.Fields(string(control)), strconv.Itoa(open)) {
		t.Fatalf("an ordinary child has %q, without %d: this test shows nothing", control, open)
	}
	// ls itself opens the fourth.
	if r := run(t, Command{Argv: list, Cgroup: d}); r.out != "0\n1\n2\n3" {
		t.Errorf("the command has %+v", r)
	}
}

// status returns fields of /proc/self/status of a command run as the user.
func status(t *testing.T, cmd Command) map[string]string {
	t.Helper()
	cmd.Argv = []string{"cat", "/proc/self/status"}
	r := run(t, cmd)
	if r.code != 0 {
		t.Fatalf("%+v", r)
	}
	fields := map[string]string{}
	for line := range strings.Lines(r.out) {
		name, value, _ := strings.Cut(line, ":")
		fields[name] = strings.TrimSpace(value)
	}
	return fields
}

func TestCapabilities(t *testing.T) {
	d := scratch(t)
	own, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, bound, _ := strings.Cut(string(own), "CapBnd:\t")
	bound, _, _ = strings.Cut(bound, "\n")
	had, err := strconv.ParseUint(bound, 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	if had&^uint64(harmless) == 0 {
		t.Fatalf("this process has only %x to lose: this test shows nothing", had)
	}
	const none = "0000000000000000"
	kept := fmt.Sprintf("%016x", had&uint64(harmless))
	for _, tt := range []struct{ user, inh, bnd, prm, eff string }{
		{user: "", inh: none, bnd: kept, prm: kept, eff: kept},
		{user: "0:0", inh: none, bnd: kept, prm: kept, eff: kept},
		{user: "65534", inh: none, bnd: none, prm: none, eff: none},
	} {
		s := status(t, Command{Cgroup: d, User: tt.user})
		got := []string{s["CapInh"], s["CapBnd"], s["CapPrm"], s["CapEff"], s["CapAmb"], s["NoNewPrivs"]}
		if want := []string{tt.inh, tt.bnd, tt.prm, tt.eff, none, "1"}; !slices.Equal(got, want) {
			t.Errorf("user %q: inh, bnd, prm, eff, amb, nnp = %v, want %v", tt.user, got, want)
		}
	}
}

// What the dropped ones would have been good for fails, for root too.
func TestRootIsBounded(t *testing.T) {
	d := scratch(t)
	for _, script := range []string{
		"unshare --mount true",
		"unshare --net true",
		"nsenter --target 1 --mount true",
		"mknod x c 1 3",
		"mount -t tmpfs none .",
	} {
		dir := t.TempDir()
		argv := []string{"sh", "-c", script}
		if _, err := exec.LookPath(strings.Fields(script)[0]); err != nil {
			t.Logf("%s: not installed", script)
			continue
		}
		control := exec.Command("sh", "-c", script)
		control.Dir = dir
		if out, err := control.CombinedOutput(); err != nil {
			t.Logf("%s: fails here anyway: %s", script, out)
			continue
		}
		unix.Unmount(dir, unix.MNT_DETACH)
		os.Remove(filepath.Join(dir, "x"))
		if r := run(t, Command{Argv: argv, Dir: dir, Cgroup: d}); r.code == 0 {
			t.Errorf("%s: succeeds", script)
		}
	}
}

// Root owns the files that make the kernel do things; in its view they are
// read-only, and in the host's they stay as they were.
func TestRootCannotSteerTheKernel(t *testing.T) {
	d := scratch(t)
	outside := filepath.Dir(d.Path())
	const setting = "/proc/sys/kernel/core_pattern"
	for name, script := range map[string]string{
		"leave its cgroup":   "echo $$ > " + outside + "/cgroup.procs",
		"make a cgroup":      "mkdir " + outside + "/agentguard-test-by-root",
		"change a setting":   "cat " + setting + " > /dev/shm/x; cat /dev/shm/x > " + setting,
		"unpin":              "mkdir /sys/fs/bpf/agentguard-test-by-root",
		"remount":            "mount -o remount,rw " + outside,
		"take the mount off": "umount -l " + outside,
	} {
		if r := run(t, Command{Argv: []string{"sh", "-c", script}, Cgroup: d}); r.err != nil || r.code == 0 {
			t.Errorf("%s: %+v", name, r)
		}
	}
	os.Remove("/dev/shm/x")
	if r := run(t, Command{Argv: []string{"sh", "-c", "mkdir sub && echo $$ > sub/cgroup.procs && cat /proc/self/cgroup"}, Dir: d.Path(), Cgroup: d}); !strings.Contains(r.out, "0::/"+filepath.Base(d.Path())+"/sub") {
		t.Errorf("a cgroup below its own: %+v", r)
	}

	made := filepath.Join(outside, fmt.Sprintf("agentguard-test-%d-after", os.Getpid()))
	if err := os.Mkdir(made, 0o755); err != nil {
		t.Errorf("on the host: %v", err)
	}
	os.Remove(made)
	if value, err := os.ReadFile(setting); err != nil {
		t.Error(err)
	} else if err := os.WriteFile(setting, value, 0); err != nil {
		t.Errorf("on the host: %v", err)
	}
}

func TestUser(t *testing.T) {
	d := scratch(t)
	daemon, err := user.Lookup("daemon")
	if err != nil {
		t.Skip("not in a VM: there is no user daemon in its user database")
	}
	who := []string{"sh", "-c", `echo $(id -u) $(id -g) $(id -G) $HOME $USER $LOGNAME`}
	root := fmt.Sprintf("0 0 0 %s me me", t.TempDir())
	t.Setenv("HOME", strings.Fields(root)[3])
	t.Setenv("USER", "me")
	t.Setenv("LOGNAME", "me")
	for _, tt := range []struct {
		name, user, sudoUID, sudoGID string
		want, err                    string
	}{
		{name: "current", want: root},
		{name: "number", user: "12345", want: "12345 65534 65534 / 12345 12345"},
		{name: "number and group", user: "12345:54321", want: "12345 54321 54321 / 12345 12345"},
		{name: "name", user: "daemon", want: fmt.Sprintf("%s %s %[2]s %s daemon daemon", daemon.Uid, daemon.Gid, daemon.HomeDir)},
		{name: "name and group", user: "daemon:54321", want: fmt.Sprintf("%s 54321 54321 %s daemon daemon", daemon.Uid, daemon.HomeDir)},
		{name: "known number", user: daemon.Uid, want: fmt.Sprintf("%s %s %[2]s %s daemon daemon", daemon.Uid, daemon.Gid, daemon.HomeDir)},
		{name: "sudo", sudoUID: "12345", sudoGID: "54321", want: "12345 54321 54321 / 12345 12345"},
		{name: "sudo without a group", sudoUID: daemon.Uid, want: fmt.Sprintf("%s %s %[2]s %s daemon daemon", daemon.Uid, daemon.Gid, daemon.HomeDir)},
		{name: "rather than sudo", user: "1:1", sudoUID: "12345", want: fmt.Sprintf("1 1 1 %s daemon daemon", daemon.HomeDir)},
		{name: "no user", user: "no-such", err: "no such user"},
		{name: "no group", user: "1:no-such", err: "no such group"},
		{name: "empty group", user: "1:", err: "no such group"},
		{name: "the unchanged id", user: "4294967295", err: "no such user"},
		{name: "negative", user: "-1", err: "no such user"},
		{name: "bad sudo", sudoUID: "x", err: "SUDO_UID"},
		{name: "empty sudo", sudoUID: "empty", err: "SUDO_UID"},
		{name: "bad sudo group", sudoUID: "12345", sudoGID: "x", err: "SUDO_GID"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.sudoUID != "" {
				t.Setenv("SUDO_UID", strings.TrimPrefix(tt.sudoUID, "empty"))
				t.Setenv("SUDO_GID", tt.sudoGID)
			}
			r := run(t, Command{Argv: who, User: tt.user, Cgroup: d})
			if tt.err != "" {
				if r.code != ExitFailure || r.err == nil || !strings.Contains(r.err.Error(), tt.err) {
					t.Errorf("got %+v, want %q", r, tt.err)
				}
				return
			}
			if r.out != tt.want || r.err != nil {
				t.Errorf("got %+v, want %q", r, tt.want)
			}
		})
	}
}

func TestCannotLeave(t *testing.T) {
	d := scratch(t)
	task := create(t, filepath.Join(d.Path(), "task"))
	beside := create(t, filepath.Join(d.Path(), "beside"))
	for _, to := range []string{beside.Path(), d.Path(), filepath.Dir(d.Path())} {
		r := run(t, Command{Argv: []string{"sh", "-c", "echo $$ > " + to + "/cgroup.procs"}, User: "65534", Cgroup: task})
		if r.err != nil || r.code == 0 {
			t.Errorf("into %s: %+v", to, r)
		}
	}

	// Where the user owns both ends, the kernel would let it: then it does not start.
	for _, path := range []string{d.Path(), beside.Path()} {
		if err := os.Chown(filepath.Join(path, "cgroup.procs"), 65534, 65534); err != nil {
			t.Fatal(err)
		}
	}
	r := run(t, Command{Argv: []string{"true"}, User: "65534", Cgroup: task})
	if r.code != ExitFailure || r.err == nil || !strings.Contains(r.err.Error(), d.Path()+"/cgroup.procs") {
		t.Errorf("below a cgroup of the user: %+v", r)
	}
	if r := run(t, Command{Argv: []string{"true"}, User: "65533", Cgroup: task}); r.code != 0 {
		t.Errorf("below a cgroup of another user: %+v", r)
	}
}
