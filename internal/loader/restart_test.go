// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"

	"agentguard.dev/agentguard/internal/maps"
	"agentguard.dev/agentguard/internal/policy"
)

func TestRestartKeepsEverything(t *testing.T) {
	f := newFixture(t)
	addr, other := f.server("tcp4", "127.0.0.1:0"), f.server("tcp4", "127.0.0.1:0")
	a := f.begin(nil, addr, "10.0.0.0/8:443", "[2001:db8::/32]:80")
	f.local("192.0.2.77")
	a.want("ok", "dial a tcp %s", addr)
	wantRules := f.Maps().Rules.Get(a.record.Policy)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}

	// Nobody holds the kernel half, and it goes on deciding.
	a.want("ok", "write a hello")
	a.want("ok hello", "read a")
	a.want(eperm, "dial b tcp %s", other)

	f.Kernel = openKernel(t, f.cfg)
	if got, err := f.Maps().Tasks.Get(a.dir.ID()); err != nil || got != a.record {
		t.Errorf("task after restart: %+v, %v; want %+v", got, err, a.record)
	}
	if got := f.Maps().Rules.Get(a.record.Policy); !equalRules(got, wantRules) {
		t.Errorf("rules after restart:\n%+v\nwant\n%+v", got, wantRules)
	}
	if guards := f.Guards(); len(guards) != 1 || guards[0].Cgroup != f.guard.ID() || guards[0].Level != f.guard.Level()+1 {
		t.Errorf("guards after restart: %+v", guards)
	}
	counters, err := f.Maps().Counters.Read(a.record.Number, []uint32{maps.RuleFirst})
	if err != nil || counters[maps.RuleFirst].Allowed != 1 {
		t.Errorf("counters after restart: %+v, %v", counters, err)
	}
	a.want("ok", "write a again")
	a.want("ok again", "read a")
	a.want(eperm, "dial b tcp %s", other)
}

func equalRules(a, b policy.Compiled) bool {
	if len(a.Hosts) != len(b.Hosts) || len(a.Prefixes) != len(b.Prefixes) {
		return false
	}
	for i := range a.Hosts {
		if a.Hosts[i] != b.Hosts[i] {
			return false
		}
	}
	for i := range a.Prefixes {
		if a.Prefixes[i].Prefix != b.Prefixes[i].Prefix || len(a.Prefixes[i].Ranges) != len(b.Prefixes[i].Ranges) {
			return false
		}
	}
	return true
}

func TestUpgradeUnderTraffic(t *testing.T) {
	f := newFixture(t)
	addr, other := f.server("tcp4", "127.0.0.1:0"), f.server("tcp4", "127.0.0.1:0")
	a := f.begin(nil, addr)
	before := programs(t, f)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
			}
			a.want("ok", "dial a tcp %s", addr)
			a.want("ok", "write a hello")
			a.want("ok hello", "read a")
			a.want(eperm, "dial b tcp %s", other)
		}
	}()
	for range 5 {
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		f.Kernel = openKernel(t, f.cfg)
	}
	close(stop)
	<-done
	for name, id := range programs(t, f) {
		if id == before[name] {
			t.Errorf("%s: program %d is still the one from before", name, id)
		}
	}
}

func programs(t *testing.T, f *fixture) map[string]ebpf.ProgramID {
	t.Helper()
	ids := make(map[string]ebpf.ProgramID)
	for name, l := range f.guards[f.guard.ID()].links {
		info, err := l.Info()
		if err != nil {
			t.Fatal(err)
		}
		ids[name] = info.Program
	}
	return ids
}

// A newer version whose map layout differs must not touch what is there.
func TestIncompatibleUpgradeIsRefused(t *testing.T) {
	f := newFixture(t)
	addr, other := f.server("tcp4", "127.0.0.1:0"), f.server("tcp4", "127.0.0.1:0")
	a := f.begin(nil, addr)
	before := programs(t, f)
	pin := filepath.Join(f.cfg.PinDir, mapsDir, "prefixes")
	if err := os.Remove(pin); err != nil {
		t.Fatal(err)
	}
	wrong, err := ebpf.NewMap(&ebpf.MapSpec{Name: "prefixes", Type: ebpf.Hash, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	if err := wrong.Pin(pin); err != nil {
		t.Fatal(err)
	}
	wrong.Close()
	k, err := Open(f.cfg)
	if err == nil {
		k.Close()
		t.Fatal("opened over an incompatible map")
	}
	if !strings.Contains(err.Error(), "prefixes") || !strings.Contains(err.Error(), "agentguard unload") {
		t.Errorf("the error names neither map nor way out: %v", err)
	}
	for name, id := range programs(t, f) {
		if id != before[name] {
			t.Errorf("%s was replaced", name)
		}
	}
	a.want("ok", "dial a tcp %s", addr)
	a.want(eperm, "dial b tcp %s", other)
}

func TestFailedReplacementPutsBackTheRest(t *testing.T) {
	f := newFixture(t)
	addr, other := f.server("tcp4", "127.0.0.1:0"), f.server("tcp4", "127.0.0.1:0")
	a := f.begin(nil, addr)
	before := programs(t, f)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	// The last hook's pin leads to the link of another hook, which the kernel
	// will not give a program of the wrong type.
	last := filepath.Join(f.pins.guard(f.guard.ID()), "ag_connect6")
	aside := filepath.Join(f.pins.guard(f.guard.ID()), "aside")
	if err := os.Rename(last, aside); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(filepath.Join(f.pins.guard(f.guard.ID()), "ag_egress"), last); err != nil {
		t.Fatal(err)
	}
	if k, err := Open(f.cfg); err == nil {
		k.Close()
		t.Fatal("opened with a link of the wrong hook")
	}
	if err := errors.Join(os.Remove(last), os.Rename(aside, last)); err != nil {
		t.Fatal(err)
	}
	a.want("ok", "dial a tcp %s", addr)
	a.want(eperm, "dial b tcp %s", other)
	for name, id := range pinnedPrograms(t, f) {
		if id != before[name] {
			t.Errorf("%s runs program %d, want %d back", name, id, before[name])
		}
	}
	f.Kernel = openKernel(t, f.cfg)
}

func pinnedPrograms(t *testing.T, f *fixture) map[string]ebpf.ProgramID {
	t.Helper()
	ids := make(map[string]ebpf.ProgramID)
	for _, h := range hooks(&f.objs.GuardPrograms) {
		ids[h.name] = linkProgram(t, filepath.Join(f.pins.guard(f.guard.ID()), h.name))
	}
	return ids
}

func TestMissingLinkIsAttachedAnew(t *testing.T) {
	f := newFixture(t)
	addr, other := f.server("tcp4", "127.0.0.1:0"), f.server("tcp4", "127.0.0.1:0")
	a := f.begin(nil, addr)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(f.pins.guard(f.guard.ID()), "ag_connect4")); err != nil {
		t.Fatal(err)
	}
	f.Kernel = openKernel(t, f.cfg)
	a.want("ok", "dial a tcp %s", addr)
	a.want(eperm, "dial b tcp %s", other)
}

func TestFullMap(t *testing.T) {
	f := newFixture(t)
	if err := f.Unload(); err != nil {
		t.Fatal(err)
	}
	f.cfg.Sizes = Sizes{Tasks: 2, Hosts: 3}
	f.Kernel = openKernel(t, f.cfg)
	if err := f.Guard(f.guard, f.guard.Level()+1); err != nil {
		t.Fatal(err)
	}
	addr := f.server("tcp4", "127.0.0.1:0")
	a := f.begin(nil, addr, "192.0.2.9:1")
	have := f.Maps().Rules.Get(a.record.Policy)
	err := f.Maps().Rules.Replace(a.record.Policy, compile(t, 0, "192.0.2.1:1-4"))
	if !errors.Is(err, maps.ErrFull) || !strings.Contains(err.Error(), "sizes.hosts") {
		t.Errorf("full map: %v", err)
	}
	if got := f.Maps().Rules.Get(a.record.Policy); !equalRules(got, have) {
		t.Errorf("after a failed change: %+v, want %+v", got, have)
	}
	a.want("ok", "dial a tcp %s", addr)
	// What the maps hold is what the typed side believes.
	if again, err := maps.Open(&f.objs.GuardMaps); err != nil || !equalRules(again.Rules.Get(a.record.Policy), have) {
		t.Errorf("the map itself: %+v, %v", again.Rules.Get(a.record.Policy), err)
	}

	f.begin(nil)
	third := f.Maps().Tasks.Put(1, maps.Task{Number: 9})
	if !errors.Is(third, maps.ErrFull) || !strings.Contains(third.Error(), "sizes.tasks") {
		t.Errorf("third task: %v", third)
	}
}

func TestUnloadLeavesNothing(t *testing.T) {
	f := newFixture(t)
	f.begin(nil, "192.0.2.1:1")
	if err := f.Unload(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(f.cfg.PinDir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("pin directory after unload: %v", err)
	}
	f.Kernel = openKernel(t, f.cfg)
	if guards := f.Guards(); len(guards) != 0 {
		t.Errorf("guards after unload: %+v", guards)
	}
}
