// SPDX-License-Identifier: Apache-2.0

package soak

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"agentguard.dev/agentguard/client"
	"agentguard.dev/agentguard/internal/cgroup"
)

// daemon is an agentguard of the test's own.
type daemon struct {
	*client.Client
	program                string
	dir, pins, guard, side string // side is where cgroups to be adopted are made
	pid                    int
}

func startDaemon(t *testing.T, program string) *daemon {
	t.Helper()
	mount, err := cgroup.Mount()
	if err != nil {
		t.Fatal(err)
	}
	// Short, because the path of a socket has to be.
	dir, err := os.MkdirTemp("", "soak")
	if err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("agentguard-soak-%d", os.Getpid())
	d := &daemon{
		program: program, dir: dir, pins: "/sys/fs/bpf/" + name,
		guard: filepath.Join(mount, name), side: filepath.Join(mount, name+"-side"),
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	side, err := cgroup.Create(d.side)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := side.Remove(ctx); err != nil {
			t.Error(err)
		}
		side.Close()
	})
	d.run(t)
	d.Client = client.New(filepath.Join(dir, "run", "admin.sock"))
	t.Cleanup(d.Client.Close)
	return d
}

func (d *daemon) command(args ...string) *exec.Cmd {
	command := exec.Command(d.program, args...)
	command.Env = append(os.Environ(),
		"AGENTGUARD_STATE_DIR="+d.state(), "AGENTGUARD_RUN_DIR="+filepath.Join(d.dir, "run"),
		"AGENTGUARD_PIN_DIR="+d.pins, "AGENTGUARD_CGROUP="+d.guard)
	return command
}

func (d *daemon) state() string { return filepath.Join(d.dir, "state") }

// run starts the daemon and waits until it is ready. When the test is over it
// has to stop and unload, and may have nothing to complain of.
func (d *daemon) run(t *testing.T) {
	t.Helper()
	process := d.command("daemon")
	var log bytes.Buffer
	process.Stderr = &log
	if err := process.Start(); err != nil {
		t.Fatal(err)
	}
	d.pid = process.Process.Pid
	t.Cleanup(func() {
		if err := process.Process.Signal(syscall.SIGTERM); err != nil {
			t.Errorf("stop the daemon: %v", err)
		}
		if err := process.Wait(); err != nil {
			t.Errorf("daemon: %v", err)
		}
		for _, line := range bytes.Split(log.Bytes(), []byte("\n")) {
			if len(line) > 0 && !bytes.Contains(line, []byte("level=INFO")) {
				t.Errorf("the daemon said: %s", line)
			}
		}
		d.unload(t)
	})
	if out, err := d.command("status", "--wait", patience.String()).CombinedOutput(); err != nil {
		t.Fatalf("status: %v\n%s", err, out)
	}
}

func (d *daemon) unload(t *testing.T) {
	if out, err := d.command("unload").CombinedOutput(); err != nil {
		t.Errorf("unload: %v\n%s", err, out)
	}
	for _, left := range []string{d.pins, d.guard, filepath.Join(d.dir, "run")} {
		if _, err := os.Lstat(left); !os.IsNotExist(err) {
			t.Errorf("unload left %s behind (%v)", left, err)
		}
	}
}

// settled polls until condition holds, and returns what it said last if it
// never does.
func settled(limit time.Duration, condition func() error) error {
	deadline := time.Now().Add(limit)
	for {
		err := condition()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(100 * time.Millisecond)
	}
}
