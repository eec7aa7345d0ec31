// SPDX-License-Identifier: Apache-2.0

package task

import (
	"os"
	"path/filepath"
	"testing"

	"agentguard.dev/agentguard/client"
)

func (f *fixture) openPrivate(name string) *Engine {
	f.t.Helper()
	cfg := f.cfg
	cfg.Private = name
	e, err := Open(f.t.Context(), cfg)
	if err != nil {
		f.t.Fatal(err)
	}
	return e
}

func (f *fixture) wantNothingPrivate() {
	f.t.Helper()
	cfg, err := f.cfg.resolve()
	must(f.t, err)
	if names := privateNames(cfg); len(names) != 0 {
		f.t.Errorf("left behind: %q", names)
	}
	if _, err := os.Stat(runRoot(cfg.Cgroup)); !os.IsNotExist(err) {
		f.t.Errorf("%s: %v, want it gone", runRoot(cfg.Cgroup), err)
	}
}

func TestPrivateEngineLeavesNothing(t *testing.T) {
	f := newFixture(t)
	s := f.serve(true)
	e := f.openPrivate("run-1")
	task, err := e.Begin(t.Context(), client.BeginRequest{Allow: []string{s.addr}})
	must(t, err)
	if task.ID != "run-1" {
		t.Errorf("task %+v, want the engine's name as its id", task)
	}
	p := f.startProcess(task.Cgroup)
	p.want("ok", "dial c %s", s.addr)
	p.want(denied, "dial d 192.0.2.2:1")
	_, err = e.Begin(t.Context(), client.BeginRequest{ID: "second", Allow: []string{s.addr}})
	wantCode(t, err, "conflict", "second")
	result, err := e.End(t.Context(), "run-1", client.EndRequest{})
	if err != nil || result.Destroyed != 1 || result.Killed != 1 {
		t.Errorf("end: %+v %v", result, err)
	}
	must(t, e.Close())
	f.wantNothingPrivate()
}

func TestPrivateEngineUsesStoredPolicy(t *testing.T) {
	f := newFixture(t)
	f.open()
	s := f.serve(true)
	f.apply(document("coder", egress(s.addr)))
	must(t, f.engine.Close())
	e := f.openPrivate("run-1")
	_, err := e.Begin(t.Context(), client.BeginRequest{Agent: "stranger"})
	wantCode(t, err, "not_found", "stranger")
	task, err := e.Begin(t.Context(), client.BeginRequest{Agent: "coder"})
	must(t, err)
	f.startProcess(task.Cgroup).want("ok", "dial c %s", s.addr)
	_, err = e.End(t.Context(), task.ID, client.EndRequest{})
	must(t, err)
	must(t, e.Close())
	f.wantNothingPrivate()
}

func TestFailedPrivateBeginLeavesNothing(t *testing.T) {
	f := newFixture(t)
	e := f.openPrivate("run-1")
	if _, err := e.Begin(t.Context(), client.BeginRequest{Allow: []string{"nonsense"}}); err == nil {
		t.Error("begun with a bad destination")
	}
	must(t, e.Close())
	f.wantNothingPrivate()
}

// A private engine that is closed with its task live is one that was killed.
func TestCollectPrivate(t *testing.T) {
	f := newFixture(t)
	s := f.serve(true)
	e := f.openPrivate("run-1")
	task, err := e.Begin(t.Context(), client.BeginRequest{Allow: []string{s.addr}})
	must(t, err)
	p := f.startProcess(task.Cgroup)
	p.want("ok", "dial c %s", s.addr)
	must(t, CollectPrivate(t.Context(), f.cfg, true)) // its engine lives
	p.want("ok", "write c hello")
	must(t, e.Close())

	must(t, CollectPrivate(t.Context(), f.cfg, false)) // its command lives
	p.want("ok", "write c hello")
	p.want(denied, "dial d 192.0.2.2:1")
	p.cmd.Process.Kill()
	p.cmd.Wait()
	must(t, CollectPrivate(t.Context(), f.cfg, false))
	f.wantNothingPrivate()
}

func TestCollectAllPrivate(t *testing.T) {
	f := newFixture(t)
	s := f.serve(true)
	e := f.openPrivate("run-1")
	task, err := e.Begin(t.Context(), client.BeginRequest{Allow: []string{s.addr}})
	must(t, err)
	p := f.startProcess(task.Cgroup)
	p.want("ok", "dial c %s", s.addr)
	must(t, e.Close())
	must(t, CollectPrivate(t.Context(), f.cfg, true))
	p.want("gone", "write c hello")
	eventually(t, "the peer got a reset", func() bool { return s.resets() == 1 })
	f.wantNothingPrivate()
	if _, err := os.Stat(filepath.Join(f.cfg.StateDir, "audit")); err != nil {
		t.Errorf("the audit log: %v", err)
	}
}
