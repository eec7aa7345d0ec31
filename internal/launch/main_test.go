// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"agentguard.dev/agentguard/internal/cgroup"
)

const patience = 10 * time.Second

// launcherCgroup makes the test binary a program like `agentguard run`: it runs
// its arguments in the cgroup that this variable names.
const launcherCgroup = "LAUNCH_TEST_CGROUP"

func TestMain(m *testing.M) {
	Child()
	if path := os.Getenv(launcherCgroup); path != "" {
		os.Exit(launcher(path))
	}
	heedSignals()
	os.Exit(m.Run())
}

// heedSignals undoes what whoever started the tests has ignored (nohup, a shell
// in the background): exec gives a signal that is handled its default back, but
// not one that is ignored.
func heedSignals() {
	for _, s := range []os.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT} {
		if signal.Ignored(s) {
			signal.Notify(make(chan os.Signal, 1), s)
		}
	}
}

func launcher(path string) int {
	dir, err := cgroup.Open(path)
	if err == nil {
		var code int
		code, err = Run(context.Background(), Command{
			Argv: os.Args[1:], Cgroup: dir, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		})
		if err == nil {
			return code
		}
	}
	fmt.Fprintln(os.Stderr, err)
	return ExitFailure
}

// newLauncher returns that program, not yet started.
func newLauncher(dir *cgroup.Dir, argv ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", argv...)
	cmd.Env = append(os.Environ(), launcherCgroup+"="+dir.Path())
	cmd.Stderr = os.Stderr
	return cmd
}

// scratch makes a cgroup that is killed and removed at the end of the test.
func scratch(t *testing.T) *cgroup.Dir {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root makes cgroups")
	}
	// The account that runs the tests may itself have come by sudo.
	t.Setenv("SUDO_UID", "")
	os.Unsetenv("SUDO_UID")
	point, err := cgroup.Mount()
	if err != nil {
		t.Fatal(err)
	}
	return create(t, filepath.Join(point, fmt.Sprintf("agentguard-test-%d-launch", os.Getpid())))
}

func create(t *testing.T, path string) *cgroup.Dir {
	t.Helper()
	d, err := cgroup.Create(path)
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

// result is what became of a command.
type result struct {
	out  string // both streams
	code int
	err  error
}

// run runs cmd with its output in a file, which takes any amount.
func run(t *testing.T, cmd Command) result {
	t.Helper()
	out, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if cmd.Stdout == nil {
		cmd.Stdout = out
	}
	cmd.Stderr = out
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var r result
	r.code, r.err = Run(ctx, cmd)
	if _, err := out.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	content, err := io.ReadAll(out)
	if err != nil {
		t.Fatal(err)
	}
	r.out = strings.TrimSuffix(string(content), "\n")
	return r
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v in vain until %s", patience, what)
		}
	}
}
