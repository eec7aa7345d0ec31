// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"agentguard.dev/agentguard/internal/cgroup"
	"agentguard.dev/agentguard/internal/netns"
)

// roleVariable makes the executable, started once more, a client or a server.
const roleVariable = "AGENTGUARD_BENCH_ROLE"

// inherited is the first descriptor that a child gets beyond stdio.
const inherited = 3

// child is a process of the bench's own that obeys over its standard input.
type child struct {
	cmd *exec.Cmd
	in  *json.Encoder
	end io.Closer
	out *json.Decoder
}

// start starts a child in a cgroup and a namespace, on one processor and before
// all that runs at ordinary priority.
func start(role string, dir *cgroup.Dir, ns *netns.Handle, cpu int, files ...*os.File) (*child, error) {
	return spawn(role, dir, ns, func(fn func() error) error { return privileged(cpu, fn) }, files...)
}

// spawn starts a child, which inherits from the thread what around has made of it.
func spawn(role string, dir *cgroup.Dir, ns *netns.Handle, around func(func() error) error, files ...*os.File) (*child, error) {
	cmd := exec.Command("/proc/self/exe")
	// Nothing may interrupt the loops: no collector, no preemption. Each blocks
	// its thread unseen by the Go scheduler, so there have to be enough.
	cmd.Env = []string{roleVariable + "=" + role, "GODEBUG=asyncpreemptoff=1", "GOMAXPROCS=4"}
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = files
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: dir.FD(), Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	err = ns.Do(func() error { return around(cmd.Start) })
	if err != nil {
		return nil, fmt.Errorf("start %s in %s: %w", role, dir.Path(), err)
	}
	return &child{cmd, json.NewEncoder(in), in, json.NewDecoder(out)}, nil
}

// privileged runs fn on one processor and before all that runs at ordinary
// priority. What fn starts, with all its threads, inherits both.
func privileged(cpu int, fn func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return fmt.Errorf("read affinity: %w", err)
	}
	one.Set(cpu)
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return fmt.Errorf("stay on processor %d: %w", cpu, err)
	}
	if err := unix.Setpriority(unix.PRIO_PROCESS, 0, -20); err != nil {
		return fmt.Errorf("raise priority: %w", err)
	}
	return errors.Join(fn(), unix.Setpriority(unix.PRIO_PROCESS, 0, 0), unix.SchedSetaffinity(0, &before))
}

func (c *child) stop() {
	c.end.Close()
	c.cmd.Process.Kill()
	c.cmd.Wait()
}

// do has the client carry out one order.
func (c *child) do(o order) (answer, error) {
	var a answer
	if err := c.in.Encode(o); err != nil {
		return a, fmt.Errorf("order: %w", err)
	}
	if err := c.out.Decode(&a); err != nil {
		return a, fmt.Errorf("client died: %w", err)
	}
	if a.Error != "" {
		return a, errors.New(a.Error)
	}
	return a, nil
}

// runClient is the client's main: it carries out orders until its input ends.
func runClient() {
	runtime.LockOSThread()
	debug.SetGCPercent(-1)
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	batches := make([]time.Duration, 0, 1<<16)
	var current *load
	for {
		var o order
		if in.Decode(&o) != nil {
			return
		}
		var a answer
		if o.Open != nil {
			if current != nil {
				current.close()
			}
			runtime.GC()
			var err error
			if current, err = openLoad(*o.Open, inherited); err != nil {
				a.Error = err.Error()
			}
		} else {
			a = current.slice(o, batches[:0])
		}
		if out.Encode(a) != nil {
			return
		}
	}
}

func (l *load) slice(o order, batches []time.Duration) answer {
	l.batch(o.Batch) // warms caches that another client has used meanwhile
	l.rest(o.Batch)
	begun := time.Now()
	for len(batches) < cap(batches) {
		before := time.Now()
		l.batch(o.Batch)
		batches = append(batches, time.Since(before))
		l.rest(o.Batch)
		if time.Since(begun) >= time.Duration(o.SliceNS) {
			break
		}
	}
	if l.failure != nil {
		return answer{Error: l.failure.Error()}
	}
	slices.Sort(batches)
	middle := batches[len(batches)/2]
	return answer{NS: float64(middle) / float64(o.Batch), Ops: len(batches) * o.Batch}
}
