// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"agentguard.dev/agentguard/internal/api"
	"agentguard.dev/agentguard/internal/cgroup"
)

// patience bounds every wait for something that is about to happen.
const patience = 20 * time.Second

// instance is an agentguard of a test's own, beside all others on the machine.
type instance struct {
	stateDir, runDir, pinDir, cgroup string
}

var instances atomic.Int32

// newInstance places an instance below dir, which must have a short path.
func newInstance(dir string) (instance, error) {
	mount, err := cgroup.Mount()
	if err != nil {
		return instance{}, err
	}
	name := fmt.Sprintf("agtest-%d-%d", os.Getpid(), instances.Add(1))
	return instance{
		stateDir: filepath.Join(dir, "state"),
		runDir:   filepath.Join(dir, "run"),
		pinDir:   "/sys/fs/bpf/" + name,
		cgroup:   filepath.Join(mount, name),
	}, nil
}

func (i instance) env() []string {
	return []string{
		"AGENTGUARD_STATE_DIR=" + i.stateDir,
		"AGENTGUARD_RUN_DIR=" + i.runDir,
		"AGENTGUARD_PIN_DIR=" + i.pinDir,
		"AGENTGUARD_CGROUP=" + filepath.Base(i.cgroup),
	}
}

// command runs agentguard, which TestMain has put into PATH, on the instance.
func (i instance) command(args ...string) *exec.Cmd {
	command := exec.Command("agentguard", args...)
	command.Env = append(os.Environ(), i.env()...)
	return command
}

// start starts a daemon and waits until it is ready. The test stops it.
func (i instance) start(t *testing.T) {
	t.Helper()
	daemon := i.command("daemon")
	var log strings.Builder
	daemon.Stderr = &log
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := daemon.Process.Signal(os.Interrupt); err != nil {
			t.Errorf("stop the daemon: %v", err)
		}
		if err := daemon.Wait(); err != nil {
			t.Errorf("daemon: %v\n%s", err, &log)
		}
		if err := i.unload(); err != nil {
			t.Error(err)
		}
	})
	if out, err := i.command("status", "--wait", patience.String()).CombinedOutput(); err != nil {
		t.Fatalf("status: %v\n%s", err, out)
	}
}

// unload takes the instance out of the kernel, stopping its daemon first if
// one runs, and looks whether something is left.
func (i instance) unload() error {
	if err := i.stop(); err != nil {
		return err
	}
	if out, err := i.command("unload").CombinedOutput(); err != nil {
		return fmt.Errorf("unload: %w\n%s", err, out)
	}
	return i.leftovers()
}

// stop terminates the daemon, if there is one, and waits for its end.
func (i instance) stop() error {
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		lock, err := api.LockRunDir(i.runDir)
		if err == nil {
			return lock.Close()
		}
		// The lock is held, so what stands in it is the id of a live process.
		text, err := os.ReadFile(filepath.Join(i.runDir, "daemon.lock"))
		if err != nil {
			return err
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
		if err != nil {
			continue // just being written
		}
		syscall.Kill(pid, syscall.SIGTERM)
	}
	return fmt.Errorf("the daemon of %s does not stop", i.runDir)
}

// leftovers names what is on the machine that unload should have removed.
func (i instance) leftovers() error {
	var errs []error
	for _, pattern := range []string{i.pinDir + "*", i.cgroup + "*", i.runDir} {
		found, err := filepath.Glob(pattern)
		if err != nil || len(found) > 0 {
			errs = append(errs, fmt.Errorf("left behind: %v %v", found, err))
		}
	}
	return errors.Join(errs...)
}

// stateModes checks that others cannot read the state.
func (i instance) stateModes() error {
	return filepath.WalkDir(i.stateDir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		about, err := entry.Info()
		if err != nil {
			return err
		}
		want := fs.FileMode(0o600)
		if entry.IsDir() {
			want = 0o700
		}
		if about.Mode().Perm() != want {
			return fmt.Errorf("%s has mode %v; want %v", path, about.Mode().Perm(), want)
		}
		return nil
	})
}
