// SPDX-License-Identifier: Apache-2.0

package task

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"agentguard.dev/agentguard/client"
	"agentguard.dev/agentguard/internal/loader"
	"agentguard.dev/agentguard/internal/maps"
	"agentguard.dev/agentguard/internal/policy"
)

func TestRestartRecoversEverything(t *testing.T) {
	f := newFixture(t)
	f.open()
	s, own, granted := f.serve(true), f.serve(true), f.serve(true)
	f.apply(document("coder", "maxTTL: 1h", egress(s.addr)))
	shared := f.begin(client.BeginRequest{ID: "shared", Agent: "coder", Purpose: "p", Labels: map[string]string{"k": "v"}})
	alone := f.begin(client.BeginRequest{ID: "alone", Policy: document("loner", egress(own.addr))})
	dir := newCgroup(t)
	adopted := f.begin(client.BeginRequest{ID: "adopted", Allow: []string{s.addr}, Cgroup: dir.Path()})
	if _, err := f.engine.Grant(t.Context(), "shared", client.Grant{Destination: granted.addr, TTL: client.Duration(time.Minute)}); err != nil {
		t.Fatal(err)
	}
	f.end(f.begin(client.BeginRequest{ID: "ended", Agent: "coder"}).ID)

	p, q, r := f.startProcess(shared.Cgroup), f.startProcess(alone.Cgroup), f.startProcess(adopted.Cgroup)
	p.want("ok", "dial c %s", s.addr)
	p.want("ok", "dial g %s", granted.addr)
	q.want("ok", "dial c %s", own.addr)
	r.want("ok", "dial c %s", s.addr)
	var before []client.Task
	for _, id := range []string{"shared", "alone", "adopted", "ended"} {
		task, err := f.engine.Get(id)
		if err != nil {
			t.Fatal(err)
		}
		before = append(before, task)
	}
	if err := f.engine.Close(); err != nil {
		t.Fatal(err)
	}

	p.want("ok", "write c hello") // nobody is there, and it goes on
	p.want(denied, "dial x %s", own.addr)
	f.open()
	for _, was := range before {
		is, err := f.engine.Get(was.ID)
		if err != nil {
			t.Fatal(err)
		}
		if is.Number != was.Number || is.State != was.State || is.Purpose != was.Purpose || is.Agent != was.Agent ||
			is.Cgroup != was.Cgroup || is.CgroupID != was.CgroupID || is.Adopted != was.Adopted || is.EndReason != was.EndReason ||
			!slices.EqualFunc(is.Grants, was.Grants, func(a, b client.Grant) bool { return a.Destination == b.Destination && a.Rule == b.Rule }) {
			t.Errorf("after a restart %+v, before %+v", is, was)
		}
		for _, c := range was.Counters {
			at := slices.IndexFunc(is.Counters, func(d client.RuleCounters) bool { return d.Rule == c.Rule && d.ID == c.ID })
			if at < 0 || is.Counters[at].Allowed < c.Allowed || is.Counters[at].Bytes < c.Bytes {
				t.Errorf("counters of %s after a restart %+v, before %+v", was.ID, is.Counters, was.Counters)
			}
		}
	}
	p.want("ok hello", "read c")
	p.want("ok", "write g hello")
	q.want("ok", "write c hello")
	r.want("ok", "write c hello")
	r.want("ok", "dial d %s", s.addr)

	fresh := f.begin(client.BeginRequest{ID: "fresh", Agent: "coder", Allow: []string{"192.0.2.2:1"}})
	if slices.ContainsFunc(before, func(task client.Task) bool { return task.Number >= fresh.Number }) {
		t.Errorf("the number %d of a new task was given before", fresh.Number)
	}
	for _, id := range []string{"shared", "alone", "adopted", "fresh"} {
		f.end(id)
	}
	f.wantEmptyMaps()
}

func TestDeadlinesHoldWithoutAnEngine(t *testing.T) {
	f := newFixture(t)
	f.open()
	s := f.serve(true)
	task := f.begin(client.BeginRequest{ID: "a", Allow: []string{s.addr}, TTL: client.Duration(500 * time.Millisecond)})
	lasting := f.begin(client.BeginRequest{ID: "b", Allow: []string{"192.0.2.2:1"}})
	p, q := f.startProcess(task.Cgroup), f.startProcess(lasting.Cgroup)
	p.want("ok", "dial c %s", s.addr)
	if _, err := f.engine.Grant(t.Context(), "b", client.Grant{Destination: s.addr, TTL: client.Duration(500 * time.Millisecond)}); err != nil {
		t.Fatal(err)
	}
	q.want("ok", "dial c %s", s.addr)
	if err := f.engine.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the deadlines have passed", func() bool {
		return p.do("dial d %s", s.addr) == denied && q.do("dial d %s", s.addr) == denied
	})
	f.open()
	eventually(t, "the task has ended", func() bool {
		got, err := f.engine.Get("a")
		return err == nil && got.EndReason == reasonExpired
	})
	eventually(t, "the expired grant is gone", func() bool {
		got, err := f.engine.Get("b")
		return err == nil && len(got.Grants) == 1
	})
	q.want(aborted, "write c hello")
}

// edit opens the fixture's store and kernel half without an engine, as a crash
// might have left them.
func (f *fixture) edit(change func(s *store, k *loader.Kernel)) {
	f.t.Helper()
	if err := f.engine.Close(); err != nil {
		f.t.Fatal(err)
	}
	s, err := openStore(f.cfg.StateDir, false)
	if err != nil {
		f.t.Fatal(err)
	}
	k, err := loader.Open(loader.Config{PinDir: f.cfg.PinDir})
	if err != nil {
		f.t.Fatal(err)
	}
	change(s, k)
	if err := k.Close(); err != nil {
		f.t.Error(err)
	}
	if err := s.Close(); err != nil {
		f.t.Error(err)
	}
	f.open()
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestRecoveryUndoesHalfBegun(t *testing.T) {
	f := newFixture(t)
	f.open()
	dir := newCgroup(t)
	p := f.startProcess(dir.Path())
	s := f.serve(true)
	made := filepath.Join(f.engine.root, "made")
	f.edit(func(s *store, k *loader.Kernel) {
		now := time.Now().UTC()
		must(t, s.putLive(record{ID: "stored", Number: 900, Cgroup: filepath.Join(filepath.Dir(made), "stored"), Begun: now}))
		must(t, os.Mkdir(made, 0o755))
		must(t, s.putLive(record{ID: "made", Number: 901, Cgroup: made, Begun: now}))
		must(t, s.putLive(record{ID: "adopted", Number: 902, Cgroup: dir.Path(), Adopted: true, Begun: now}))
		d, err := policy.ParseDestination("192.0.2.2:1")
		must(t, err)
		compiled, err := policy.Compile([]policy.Input{{Rule: policy.Rule{To: []policy.Destination{d}}, ID: 77}})
		must(t, err)
		must(t, k.Maps().Rules.Replace(902, compiled))
	})
	if live := f.engine.live(); len(live) != 0 {
		t.Errorf("%d live tasks of begins that did not finish", len(live))
	}
	if _, err := os.Stat(made); !os.IsNotExist(err) {
		t.Errorf("the cgroup of a half-begun task: %v, want it gone", err)
	}
	p.want("ok", "dial c %s", s.addr) // it was not yet guarded, and is not killed
	f.wantEmptyMaps()
	// Who asked was not answered, and asks again.
	for _, id := range []string{"stored", "made", "adopted"} {
		if n := f.begin(client.BeginRequest{ID: id, Allow: []string{"192.0.2.2:1"}}).Number; n <= 902 {
			t.Errorf("number %d was given before", n)
		}
	}
}

func TestRecoveryEndsHalfEnded(t *testing.T) {
	f := newFixture(t)
	f.open()
	var processes []*process
	states := map[string]maps.State{"dying": maps.StateDying, "dead": maps.StateDead}
	for id := range states {
		processes = append(processes, f.startProcess(f.begin(client.BeginRequest{ID: id, Allow: []string{"192.0.2.2:1"}}).Cgroup))
	}
	gone := f.begin(client.BeginRequest{ID: "gone", Allow: []string{"192.0.2.2:1"}})
	processes = append(processes, f.startProcess(gone.Cgroup))
	removed := f.begin(client.BeginRequest{ID: "removed", Allow: []string{"192.0.2.2:1"}})
	must(t, os.Remove(removed.Cgroup))
	ids := make(map[uint64]maps.State)
	for id, state := range states {
		task, err := f.engine.Get(id)
		must(t, err)
		ids[task.CgroupID] = state
	}
	f.edit(func(s *store, k *loader.Kernel) {
		for cgroupID, state := range ids {
			record, err := k.Maps().Tasks.Get(cgroupID)
			must(t, err)
			record.State = state
			must(t, k.Maps().Tasks.Put(cgroupID, record))
		}
		must(t, k.Maps().Tasks.Delete(gone.CgroupID))
	})
	for _, p := range processes {
		p.want("gone", "dial c 192.0.2.2:1")
	}
	for _, id := range []string{"dying", "dead", "gone", "removed"} {
		got, err := f.engine.Get(id)
		if err != nil || got.State != client.TaskEnded {
			t.Errorf("task %s: %+v %v, want it ended", id, got, err)
		}
		if _, err := os.Stat(got.Cgroup); !os.IsNotExist(err) {
			t.Errorf("cgroup of %s: %v, want it gone", id, err)
		}
	}
	f.wantEmptyMaps()
}

func TestRecoveryDeniesStrangers(t *testing.T) {
	f := newFixture(t)
	f.open()
	s := f.serve(true)
	dir := newCgroup(t)
	adopted := f.begin(client.BeginRequest{ID: "adopted", Allow: []string{s.addr}, Cgroup: dir.Path()})
	own := f.begin(client.BeginRequest{ID: "own", Allow: []string{s.addr}})
	p, q := f.startProcess(adopted.Cgroup), f.startProcess(own.Cgroup)
	p.want("ok", "dial c %s", s.addr)
	q.want("ok", "dial c %s", s.addr)
	f.edit(func(s *store, k *loader.Kernel) {
		must(t, s.deleteLive(adopted.Number))
		must(t, s.deleteLive(own.Number))
	})
	p.want(denied, "dial d %s", s.addr)
	q.want(denied, "dial d %s", s.addr)
	if problems := f.engine.Status().Problems; len(problems) < 2 || !strings.Contains(problems[0], "does not know") {
		t.Errorf("problems %q", problems)
	}
	if owners := f.engine.maps.Rules.Owners(); len(owners) != 0 {
		t.Errorf("owners %v, want the rules of strangers gone", owners)
	}
	p.cmd.Process.Kill()
	q.cmd.Process.Kill()
	p.cmd.Wait()
	q.cmd.Wait()
	eventually(t, "nothing of them is left", f.engine.isDone)
	f.wantEmptyMaps()
	if guards := f.engine.kernel.Guards(); len(guards) != 1 {
		t.Errorf("guards %+v, want the engine's own alone", guards)
	}
}

func TestRecoveryFinishesAnApply(t *testing.T) {
	f := newFixture(t)
	f.open()
	old, next := f.serve(true), f.serve(true)
	f.apply(document("coder", egress(old.addr)))
	p := f.startProcess(f.begin(client.BeginRequest{ID: "a", Agent: "coder"}).Cgroup)
	p.want("ok", "dial c %s", old.addr)
	// The document was stored, and then the engine was killed.
	f.edit(func(s *store, k *loader.Kernel) {
		must(t, s.putPolicies(map[string]*storedPolicy{"coder": {Document: document("coder", egress(next.addr)), Applied: time.Now()}}))
	})
	p.want(aborted, "write c hello")
	p.want(denied, "dial c %s", old.addr)
	p.want("ok", "dial c %s", next.addr)
	if owners := f.engine.maps.Rules.Owners(); len(owners) != 1 {
		t.Errorf("owners %v, want the new version alone", owners)
	}
}

func TestRebootBeginsAnew(t *testing.T) {
	f := newFixture(t)
	f.open()
	f.apply(document("coder", egress("192.0.2.2:1")))
	f.begin(client.BeginRequest{ID: "a", Agent: "coder"})
	must(t, f.engine.store.setMeta("boot", []byte("another")))
	must(t, f.engine.Close())
	// What a reboot does to the kernel's side.
	must(t, loader.RemovePins(f.cfg.PinDir))
	f.open()
	if tasks := f.engine.List(client.TaskFilter{}); len(tasks) != 0 {
		t.Errorf("tasks after a reboot: %+v", tasks)
	}
	if p, err := f.engine.Policy("coder"); err != nil || p.Rules != 1 {
		t.Errorf("policy after a reboot: %+v %v", p, err)
	}
	p := f.startProcess(f.begin(client.BeginRequest{ID: "a2", Agent: "coder"}).Cgroup)
	p.want("connection refused", "dial c 192.0.2.2:1") // allowed; nobody listens
}

func TestStateDirIsForOne(t *testing.T) {
	f := newFixture(t)
	f.open()
	_, err := Open(t.Context(), f.cfg)
	if err == nil {
		t.Fatal("a second engine opened the same state directory")
	}
	for _, part := range []string{f.cfg.StateDir, "in use"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("error %q does not say %q", err, part)
		}
	}
	info, err := os.Stat(f.cfg.StateDir)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("state directory: %v %v, want mode 0700", info.Mode(), err)
	}
	entries, err := os.ReadDir(f.cfg.StateDir)
	must(t, err)
	for _, entry := range entries {
		if info, err := entry.Info(); err != nil || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: %v %v, want nobody else to read it", entry.Name(), info.Mode(), err)
		}
	}
}
