// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"agentguard.dev/agentguard/internal/cgroup"
	"agentguard.dev/agentguard/internal/maps"
	"agentguard.dev/agentguard/internal/netns"
	"agentguard.dev/agentguard/internal/policy"
)

// fixture is a loaded kernel half with one guard.
type fixture struct {
	*Kernel
	t     *testing.T
	cfg   Config
	guard *cgroup.Dir
	ns    *netns.Handle

	mu     sync.Mutex
	events []Event
	next   uint32
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: loads programs into the kernel")
	}
	f := &fixture{t: t, next: 100}
	f.cfg.PinDir = filepath.Join(bpffsMount, fmt.Sprintf("agentguard-test-%d-%d", os.Getpid(), time.Now().UnixNano()))
	f.guard = newCgroup(t, "")
	f.Kernel = openKernel(t, f.cfg)
	t.Cleanup(func() {
		if err := f.Unload(); err != nil {
			t.Error(err)
		}
	})
	if err := f.Guard(f.guard, f.guard.Level()+1); err != nil {
		t.Fatal(err)
	}
	f.ns = newNamespace(t)
	f.in(func() error { return raise("lo") })
	return f
}

// in runs fn in the fixture's network namespace, where its agents live. It runs
// on another goroutine, so fn returns its error instead of failing the test.
func (f *fixture) in(fn func() error) {
	f.t.Helper()
	if err := f.ns.Do(fn); err != nil {
		f.t.Fatal(err)
	}
}

func openKernel(t *testing.T, cfg Config) *Kernel {
	t.Helper()
	k, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// newCgroup makes a cgroup below parent, or below the mount, and removes it
// with what still runs in it.
func newCgroup(t *testing.T, parent string) *cgroup.Dir {
	t.Helper()
	if parent == "" {
		mount, err := cgroup.Mount()
		if err != nil {
			t.Fatal(err)
		}
		parent = mount
	}
	dir, err := cgroup.Create(filepath.Join(parent, fmt.Sprintf("agentguard-test-%d-%d", os.Getpid(), time.Now().UnixNano())))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if _, err := dir.Kill(ctx); err != nil {
			t.Error(err)
		}
		if err := dir.Remove(ctx); err != nil {
			t.Error(err)
		}
		dir.Close()
	})
	return dir
}

// task is one task of the fixture with its agent.
type task struct {
	*agent
	f      *fixture
	dir    *cgroup.Dir
	record maps.Task
}

// begin makes a live task that may reach the destinations.
func (f *fixture) begin(change func(*maps.Task), allow ...string) *task {
	f.t.Helper()
	k := &task{f: f, dir: newCgroup(f.t, f.guard.Path())}
	f.next += 2
	k.record = maps.Task{Number: f.next, Policy: f.next + 1, State: maps.StateLive, Loopback: policy.LoopbackTask}
	if change != nil {
		change(&k.record)
	}
	k.allow(allow...)
	k.put()
	k.agent = f.agent(k.dir)
	return k
}

// agent starts one in dir and in the fixture's network namespace.
func (f *fixture) agent(dir *cgroup.Dir) (a *agent) {
	f.t.Helper()
	f.in(func() (err error) { a, err = startAgent(dir); return err })
	a.t = f.t
	f.t.Cleanup(a.stop)
	return a
}

// allow replaces the policy of the task.
func (k *task) allow(destinations ...string) {
	k.f.t.Helper()
	compiled := compile(k.f.t, 0, destinations...)
	if err := k.f.Maps().Rules.Replace(k.record.Policy, compiled); err != nil {
		k.f.t.Fatal(err)
	}
	k.record.PolicyPrefixes = len(compiled.Prefixes) > 0
}

func (k *task) put() {
	k.f.t.Helper()
	if err := k.f.Maps().Tasks.Put(k.dir.ID(), k.record); err != nil {
		k.f.t.Fatal(err)
	}
}

// compile numbers the rules from maps.RuleFirst on.
func compile(t *testing.T, deadline uint64, destinations ...string) policy.Compiled {
	t.Helper()
	var in []policy.Input
	for i, text := range destinations {
		d, err := policy.ParseDestination(text)
		if err != nil {
			t.Fatal(err)
		}
		in = append(in, policy.Input{
			Rule:     policy.Rule{To: []policy.Destination{d}},
			ID:       maps.RuleFirst + uint32(i),
			Deadline: deadline,
		})
	}
	compiled, err := policy.Compile(in)
	if err != nil {
		t.Fatal(err)
	}
	return compiled
}

// watch collects events from now on.
func (f *fixture) watch() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- f.Events(ctx, func(e Event) {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.events = append(f.events, e)
		})
	}()
	f.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			f.t.Error(err)
		}
	})
}

// event waits for one that matches.
func (f *fixture) event(what string, match func(Event) bool) Event {
	f.t.Helper()
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		f.mu.Lock()
		for _, e := range f.events {
			if match(e) {
				f.mu.Unlock()
				return e
			}
		}
		f.mu.Unlock()
	}
	f.t.Fatalf("no event: %s; have %+v", what, f.events)
	return Event{}
}

// local makes the kernel know addr as the fixture namespace's own.
func (f *fixture) local(addrs ...string) {
	f.t.Helper()
	var list []netip.Addr
	for _, a := range addrs {
		list = append(list, netip.MustParseAddr(a))
	}
	if err := f.Maps().LocalAddrs.Replace(f.ns.Cookie(), list); err != nil {
		f.t.Fatal(err)
	}
}

func linkProgram(t *testing.T, pin string) ebpf.ProgramID {
	t.Helper()
	l, err := link.LoadPinnedLink(pin, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	info, err := l.Info()
	if err != nil {
		t.Fatal(err)
	}
	return info.Program
}
