// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"agentguard.dev/agentguard/internal/cgroup"
	"agentguard.dev/agentguard/internal/loader"
	"agentguard.dev/agentguard/internal/maps"
	"agentguard.dev/agentguard/internal/netns"
	"agentguard.dev/agentguard/internal/policy"
)

// kernelGuard drives the kernel half by itself: no engine, and so no daemon that
// could help it. It does not trust the host's own NAT, as that of a container.
type kernelGuard struct {
	kernel    *loader.Kernel
	dir, none *cgroup.Dir
	host      *netns.Handle
	next      uint32
}

func newKernelGuard(t *testing.T, l *lab) guard {
	t.Helper()
	g := &kernelGuard{dir: newCgroup(t, ""), host: l.host, next: 100}
	g.none = newCgroup(t, g.dir.Path())
	kernel, err := loader.Open(loader.Config{PinDir: fmt.Sprintf("/sys/fs/bpf/agentguard-bypass-%d", os.Getpid())})
	if err != nil {
		t.Fatal(err)
	}
	g.kernel = kernel
	t.Cleanup(func() {
		if err := kernel.Unload(); err != nil {
			t.Error(err)
		}
	})
	if err := kernel.Guard(g.dir, g.dir.Level()+1); err != nil {
		t.Fatal(err)
	}
	if err := kernel.Maps().LocalAddrs.Replace(l.host.Cookie(), append(hostAddresses(), loopbackAddresses()...)); err != nil {
		t.Fatal(err)
	}
	// Nobody is there: it is as if the daemon had been killed.
	if err := kernel.Maps().Stations.Put(l.host.Cookie(), maps.Station{DNS: stationPort, HTTP: stationPort + 1}); err != nil {
		t.Fatal(err)
	}
	return g
}

func (g *kernelGuard) stray() *cgroup.Dir { return g.none }
func (g *kernelGuard) own() *cgroup.Dir   { return g.dir }

func (g *kernelGuard) begin(s spec) (guardedTask, error) {
	g.next += 2
	dir, err := cgroup.Create(filepath.Join(g.dir.Path(), fmt.Sprintf("task-%d", g.next)))
	if err != nil {
		return nil, err
	}
	k := &kernelTask{guard: g, dir: dir, record: maps.Task{Number: g.next, Policy: g.next + 1, State: maps.StateLive}, granted: map[string]uint64{}}
	if s.ttl > 0 {
		k.record.Deadline = loader.Now() + uint64(s.ttl)
		k.until = time.Now().Add(s.ttl)
	}
	if err := k.apply(s); err != nil {
		return nil, err
	}
	for _, d := range s.grants {
		if err := k.grant(d, 0); err != nil {
			return nil, err
		}
	}
	return k, nil
}

type kernelTask struct {
	guard   *kernelGuard
	dir     *cgroup.Dir
	record  maps.Task
	granted map[string]uint64 // destination to deadline
	until   time.Time
}

func (k *kernelTask) deadline() time.Time { return k.until }

func (k *kernelTask) cgroup() *cgroup.Dir { return k.dir }

func (k *kernelTask) put() error {
	return k.guard.kernel.Maps().Tasks.Put(k.dir.ID(), k.record)
}

func (k *kernelTask) apply(s spec) error {
	policies, err := policy.Parse("bypass.yaml", []byte(s.document("bypass")))
	if err != nil {
		return err
	}
	p := policies[0]
	var in []policy.Input
	for i, rule := range p.Rules {
		in = append(in, policy.Input{Rule: rule, ID: maps.RuleFirst + uint32(i)})
		for _, d := range rule.To {
			switch d.Proto {
			case policy.SCTP:
				k.record.SCTP = true
			case policy.DCCP:
				k.record.DCCP = true
			case policy.UDPLite:
				k.record.UDPLite = true
			}
		}
	}
	compiled, err := policy.Compile(in)
	if err != nil {
		return err
	}
	if err := k.guard.kernel.Maps().Rules.Replace(k.record.Policy, compiled); err != nil {
		return err
	}
	k.record.Mode, k.record.Loopback = p.Mode, p.Loopback
	k.record.MPTCP, k.record.Raw, k.record.Multicast = p.MPTCP, p.Raw, p.Multicast
	k.record.Names = len(compiled.Named) > 0
	k.record.PolicyPrefixes = len(compiled.Prefixes) > 0
	if err := k.put(); err != nil {
		return err
	}
	return k.sweep()
}

func (k *kernelTask) writeGrants() error {
	var in []policy.Input
	for d, deadline := range k.granted {
		parsed, err := policy.ParseDestination(d)
		if err != nil {
			return err
		}
		rule := policy.Rule{To: []policy.Destination{parsed}}
		in = append(in, policy.Input{Rule: rule, ID: maps.RuleFirst + 100, Deadline: deadline})
	}
	compiled, err := policy.Compile(in)
	if err != nil {
		return err
	}
	if err := k.guard.kernel.Maps().Rules.Replace(k.record.Number, compiled); err != nil {
		return err
	}
	k.record.Grants, k.record.GrantPrefixes = len(compiled.Hosts) > 0, len(compiled.Prefixes) > 0
	return k.put()
}

func (k *kernelTask) grant(destination string, ttl time.Duration) error {
	k.granted[destination] = 0
	if ttl > 0 {
		k.granted[destination] = loader.Now() + uint64(ttl)
	}
	return k.writeGrants()
}

func (k *kernelTask) revoke(destination string) error {
	delete(k.granted, destination)
	if err := k.writeGrants(); err != nil {
		return err
	}
	return k.sweep()
}

func (k *kernelTask) sweep() error {
	if err := loader.Barrier(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_, err := k.guard.kernel.Sweep(ctx, []*netns.Handle{k.guard.host})
	return err
}

func (k *kernelTask) end() error {
	k.record.State = maps.StateDying
	if err := k.put(); err != nil {
		return err
	}
	if err := k.sweep(); err != nil {
		return err
	}
	k.record.State = maps.StateDead
	if err := k.put(); err != nil {
		return err
	}
	return loader.Barrier()
}

func (k *kernelTask) close() error {
	if err := k.end(); err != nil {
		return err
	}
	if err := remove(k.dir); err != nil {
		return err
	}
	for _, owner := range []uint32{k.record.Number, k.record.Policy} {
		if err := k.guard.kernel.Maps().Rules.Delete(owner); err != nil {
			return err
		}
	}
	return k.guard.kernel.Maps().Tasks.Delete(k.dir.ID())
}
