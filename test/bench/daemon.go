// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/cilium/ebpf"

	"agentguard.dev/agentguard/client"
	"agentguard.dev/agentguard/internal/cgroup"
)

// daemon is an agentguard of the bench's own, built from this tree, with
// directories that nobody else has.
type daemon struct {
	*client.Client
	program          string
	dir, pins, guard string
	pid              int
}

// daemon builds and starts one. It goes with the lab, and all its tasks with it.
func (l *lab) daemon() (*daemon, error) {
	d, err := l.startDaemon("daemon", func(fn func() error) error { return fn() })
	if err != nil {
		return nil, err
	}
	_, err = d.ApplyPolicies(context.Background(), "bench.yaml", []byte(benchDocument()))
	return d, err
}

// daemonForNames builds and starts one that is at home in the clients' namespace
// and on their processor, as the dnsmasq is that it asks.
func (l *lab) daemonForNames() (*daemon, error) {
	file, err := os.CreateTemp("", "bench")
	if err != nil {
		return nil, err
	}
	l.closers = append(l.closers, func() { os.Remove(file.Name()) })
	_, err = fmt.Fprintf(file, "dns: {resolvers: [%s, %s], rate: 1000000000}\n", nearResolver.Addr(), farResolver.Addr())
	if err := errors.Join(err, file.Close()); err != nil {
		return nil, err
	}
	return l.startDaemon("names", func(fn func() error) error {
		return l.near.Do(func() error { return privileged(l.cpu, fn) })
	}, "--config", file.Name())
}

// adopt makes below a task that may reach names.
func (d *daemon) adopt(_, below *cgroup.Dir, _ uint16) (map[string]*ebpf.Program, error) {
	_, err := d.Begin(context.Background(), client.BeginRequest{
		Purpose: "bench", Cgroup: below.Path(), Allow: []string{fmt.Sprintf("%s:%d", benchNames, listenPort)},
	})
	return nil, err
}

func (l *lab) startDaemon(suffix string, around func(func() error) error, args ...string) (*daemon, error) {
	mount, err := cgroup.Mount()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "bench") // short, because the path of a socket has to be
	if err != nil {
		return nil, fmt.Errorf("start a daemon: %w", err)
	}
	l.closers = append(l.closers, func() { os.RemoveAll(dir) })
	name := fmt.Sprintf("agentguard-bench-%d-%s", os.Getpid(), suffix)
	d := &daemon{
		program: filepath.Join(dir, "agentguard"), dir: dir,
		pins: "/sys/fs/bpf/" + name, guard: filepath.Join(mount, name),
	}
	build := exec.Command("go", "build", "-trimpath", "-o", d.program, "agentguard.dev/agentguard/cmd/agentguard")
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build agentguard: %w\n%s", err, out)
	}
	process := d.command(append([]string{"daemon"}, args...)...)
	var log strings.Builder
	process.Stderr = &log
	if err := around(process.Start); err != nil {
		return nil, fmt.Errorf("start a daemon: %w", err)
	}
	d.pid = process.Process.Pid
	d.Client = client.New(filepath.Join(dir, "run", "admin.sock"))
	l.closers = append(l.closers, func() {
		d.Client.Close()
		if err := errors.Join(process.Process.Signal(syscall.SIGTERM), process.Wait()); err != nil {
			fmt.Fprintf(os.Stderr, "bench: stop the daemon: %v\n%s", err, log.String())
		}
		if out, err := d.command("unload").CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "bench: unload: %v\n%s", err, out)
		}
	})
	if out, err := d.command("status", "--wait", "20s").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("wait for the daemon: %w\n%s", err, out)
	}
	return d, nil
}

func (d *daemon) command(args ...string) *exec.Cmd {
	command := exec.Command(d.program, args...)
	command.Env = append(os.Environ(),
		"AGENTGUARD_STATE_DIR="+filepath.Join(d.dir, "state"), "AGENTGUARD_RUN_DIR="+filepath.Join(d.dir, "run"),
		"AGENTGUARD_PIN_DIR="+d.pins, "AGENTGUARD_CGROUP="+d.guard)
	return command
}

const benchAgent = "bench"

// benchDocument is a policy of ten destinations, which all tasks share.
func benchDocument() string {
	var rules strings.Builder
	for i := range 10 {
		fmt.Fprintf(&rules, "    - to: [%q]\n", at(spread4(i), listenPort))
	}
	return fmt.Sprintf(`apiVersion: agentguard.dev/v1alpha1
kind: AgentPolicy
metadata: {name: %s}
spec:
  egress:
%s`, benchAgent, rules.String())
}

// task begins one under the policy, with one destination of its own.
func (d *daemon) task(grant string) (client.Task, error) {
	return d.Begin(context.Background(), client.BeginRequest{Agent: benchAgent, Purpose: "bench", Allow: []string{grant}})
}
