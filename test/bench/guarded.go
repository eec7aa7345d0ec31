// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"agentguard.dev/agentguard/internal/cgroup"
	"agentguard.dev/agentguard/internal/loader"
	"agentguard.dev/agentguard/internal/maps"
	"agentguard.dev/agentguard/internal/policy"
)

// guarded is a kernel half of its own with one task that the bench uses.
type guarded struct {
	*loader.Kernel
	pins  string
	guard *cgroup.Dir
	task  *cgroup.Dir
	rules int
}

// The numbers that the bench gives out.
const (
	benchTask   = 1
	benchPolicy = 2
	firstOther  = 16 // tasks that are only there
)

// newGuarded loads the programs, attaches them to guard and makes dir a task
// with so many exact rules, beside others-1 tasks that do nothing.
func (l *lab) newGuarded(guard, dir *cgroup.Dir, echo uint16, rules, others int) (*guarded, error) {
	l.guards++
	pins := fmt.Sprintf("/sys/fs/bpf/agentguard-bench-%d-%d", os.Getpid(), l.guards)
	kernel, err := loader.Open(loader.Config{PinDir: pins})
	if err != nil {
		return nil, err
	}
	l.closers = append(l.closers, func() {
		if err := kernel.Unload(); err != nil {
			fmt.Fprintln(os.Stderr, "bench: clean up:", err)
		}
	})
	g := &guarded{Kernel: kernel, pins: pins, guard: guard, task: dir, rules: rules}
	if err := g.Maps().Rules.Replace(benchPolicy, rulesFor(echo, rules)); err != nil {
		return nil, err
	}
	if err := g.putTasks(others); err != nil {
		return nil, err
	}
	if err := g.Guard(guard, dir.Level()); err != nil {
		return nil, err
	}
	l.read(kernel)
	return g, nil
}

// read reads events as a daemon does, so that the ring is never full.
func (l *lab) read(kernel *loader.Kernel) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- kernel.Events(ctx, func(loader.Event) {}) }()
	l.closers = append(l.closers, func() {
		cancel()
		if err := <-done; err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
		}
	})
}

// record is that of the task that the bench uses.
func (g *guarded) record() maps.Task {
	return maps.Task{
		Number: benchTask, Policy: benchPolicy, State: maps.StateLive, Loopback: policy.LoopbackTask,
		Deadline: loader.Now() + uint64(time.Hour), // tasks usually have one
	}
}

func (g *guarded) putTasks(count int) error {
	record := g.record()
	if err := g.Maps().Tasks.Put(g.task.ID(), record); err != nil {
		return err
	}
	for i := range uint32(count - 1) {
		record := record
		record.Number, record.Grants = firstOther+i, true
		grant := exact(spread4(int(i)), sinkPort, policy.UDP)
		if err := g.Maps().Rules.Replace(record.Number, policy.Compiled{Hosts: []policy.Host{grant}}); err != nil {
			return err
		}
		const noCgroup = 1 << 48 // ids that the kernel has not come to
		if err := g.Maps().Tasks.Put(noCgroup+uint64(i), record); err != nil {
			return err
		}
	}
	return nil
}

// rulesFor names what the workloads use, and then further addresses.
func rulesFor(echo uint16, count int) policy.Compiled {
	var c policy.Compiled
	for _, addr := range []netip.Addr{destination4, destination6} {
		c.Hosts = append(c.Hosts, exact(addr, sinkPort, policy.UDP), exact(addr, listenPort, policy.TCP),
			exact(addr, echo, policy.TCP))
	}
	for i := 0; len(c.Hosts) < count; i++ {
		c.Hosts = append(c.Hosts, exact(spread4(i), sinkPort, policy.UDP))
	}
	for i := range c.Hosts {
		c.Hosts[i].Rule = maps.RuleFirst + uint32(min(i, 10)) // a rule names many destinations
	}
	return c
}

func exact(addr netip.Addr, port uint16, proto policy.Proto) policy.Host {
	return policy.Host{
		HostKey: policy.HostKey{Addr: netip.AddrFrom16(addr.As16()), Port: port, Proto: proto},
		Rule:    maps.RuleFirst,
	}
}

// spread4 is the i-th further address, in 198.18.0.0/15.
func spread4(i int) netip.Addr {
	base := netip.MustParseAddr("198.18.1.0").As4()
	var addr [4]byte
	binary.BigEndian.PutUint32(addr[:], binary.BigEndian.Uint32(base[:])+uint32(i))
	return netip.AddrFrom4(addr)
}

// spread is so many of them, as destinations of the sink.
func spread(count int) []netip.AddrPort {
	list := make([]netip.AddrPort, count)
	for i := range list {
		list[i] = at(spread4(i), sinkPort)
	}
	return list
}

// programs opens the programs that hang at the guard. They stay open with the bench.
func (g *guarded) programs() (map[string]*ebpf.Program, error) {
	found := make(map[string]*ebpf.Program)
	for _, h := range emptyHooks {
		pinned, err := link.LoadPinnedLink(fmt.Sprintf("%s/guards/%d/%s", g.pins, g.guard.ID(), h.name), nil)
		if err != nil {
			return nil, fmt.Errorf("open link of %s: %w", h.name, err)
		}
		about, err := pinned.Info()
		pinned.Close()
		if err != nil {
			return nil, fmt.Errorf("read link of %s: %w", h.name, err)
		}
		if found[h.name], err = ebpf.NewProgramFromID(about.Program); err != nil {
			return nil, fmt.Errorf("open %s: %w", h.name, err)
		}
	}
	return found, nil
}
