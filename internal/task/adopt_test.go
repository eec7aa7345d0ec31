// SPDX-License-Identifier: Apache-2.0

package task

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"agentguard.dev/agentguard/client"
	"agentguard.dev/agentguard/internal/cgroup"
)

func TestAdopt(t *testing.T) {
	f := newFixture(t)
	f.open()
	s, other := f.serve(true), f.serve(true)
	dir := newCgroup(t)
	p := f.startProcess(dir.Path())
	p.want("ok", "dial c %s", s.addr)
	p.want("ok", "dial o %s", other.addr)

	task := f.begin(client.BeginRequest{ID: "a", Allow: []string{s.addr}, Cgroup: dir.Path()})
	if !task.Adopted || task.Cgroup != dir.Path() || task.CgroupID != dir.ID() {
		t.Errorf("task %+v", task)
	}
	p.want("ok", "write c hello")
	p.want(aborted, "write o hello")
	p.want(denied, "dial d %s", other.addr)
	p.want("ok", "dial e %s", s.addr)

	inner, err := cgroup.Create(filepath.Join(dir.Path(), "inner"))
	if err != nil {
		t.Fatal(err)
	}
	inner.Close()
	q := f.startProcess(inner.Path())
	q.want(denied, "dial d %s", other.addr)

	result := f.end("a")
	if result.Killed != 2 || result.Destroyed != 2 {
		t.Errorf("end: %+v, want 2 processes and 2 sockets", result)
	}
	if _, err := os.Stat(dir.Path()); err != nil {
		t.Errorf("the adopted cgroup: %v", err)
	}
	free := newCgroup(t)
	q = f.startProcess(free.Path())
	must(t, os.WriteFile(filepath.Join(dir.Path(), "cgroup.procs"), []byte(strconv.Itoa(q.cmd.Process.Pid)), 0))
	q.want("ok", "dial o %s", other.addr)
	f.wantEmptyMaps()
}

func TestAdoptLeave(t *testing.T) {
	f := newFixture(t)
	f.open()
	s := f.serve(true)
	dir := newCgroup(t)
	p := f.startProcess(dir.Path())
	f.begin(client.BeginRequest{ID: "a", Policy: document("leaver", "onEnd: leave", egress(s.addr)), Cgroup: dir.Path()})
	p.want("ok", "dial c %s", s.addr)
	f.end("a")
	p.want(aborted, "write c hello")
	p.want(denied, "dial d %s", s.addr)
	f.reopen()
	p.want(denied, "dial d %s", s.addr)
	f.begin(client.BeginRequest{ID: "b", Allow: []string{s.addr}, Cgroup: dir.Path()})
	p.want("ok", "dial d %s", s.addr)
	f.end("b")
	f.wantEmptyMaps()
}

func TestAdoptRefuses(t *testing.T) {
	f := newFixture(t)
	e := f.open()
	mount, err := cgroup.Mount()
	if err != nil {
		t.Fatal(err)
	}
	own, err := cgroup.OfProcess(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	taken := newCgroup(t)
	f.begin(client.BeginRequest{ID: "a", Allow: []string{"192.0.2.2:1"}, Cgroup: taken.Path()})
	inTaken := filepath.Join(taken.Path(), "in")
	child := f.begin(client.BeginRequest{ID: "b", Allow: []string{"192.0.2.2:1"}})
	inChild := filepath.Join(child.Cgroup, "in")
	outer := newCgroup(t)
	inOuter := filepath.Join(outer.Path(), "in")
	for _, path := range []string{inTaken, inChild, inOuter} {
		if err := os.Mkdir(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	f.begin(client.BeginRequest{ID: "c", Allow: []string{"192.0.2.2:1"}, Cgroup: inOuter})

	for name, c := range map[string]struct {
		path, code string
		parts      []string
	}{
		"root":            {mount, "invalid", []string{mount, "root"}},
		"no cgroup":       {t.TempDir(), "invalid", []string{"not a cgroup2 directory", mount}},
		"missing":         {filepath.Join(mount, "agentguard-nonesuch"), "invalid", []string{"agentguard-nonesuch"}},
		"file":            {filepath.Join(mount, "cgroup.procs"), "invalid", []string{"cgroup.procs"}},
		"daemon's own":    {own, "invalid", []string{own}},
		"guard":           {e.root, "invalid", []string{e.root}},
		"taken":           {taken.Path(), "conflict", []string{taken.Path(), "task a"}},
		"inside a task":   {inTaken, "conflict", []string{inTaken, "task a"}},
		"inside a child":  {inChild, "invalid", []string{inChild, e.root}},
		"taken child":     {child.Cgroup, "conflict", []string{"task b"}},
		"contains a task": {outer.Path(), "conflict", []string{outer.Path(), "task c"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := e.Begin(t.Context(), client.BeginRequest{ID: "x", Allow: []string{"192.0.2.2:1"}, Cgroup: c.path})
			wantCode(t, err, c.code, c.parts...)
		})
	}
	if tasks := e.List(client.TaskFilter{}); len(tasks) != 3 {
		t.Errorf("%d tasks, want the 3 that began", len(tasks))
	}
	if guards := e.kernel.Guards(); len(guards) != 3 {
		t.Errorf("guards %+v, want the engine's and two adopted ones", guards)
	}
}

func TestAdoptChildOfTheGuard(t *testing.T) {
	f := newFixture(t)
	e := f.open()
	path := filepath.Join(e.root, "made-before")
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
	s := f.serve(true)
	p := f.startProcess(path)
	p.want(denied, "dial c %s", s.addr) // below the guard, and no task
	_, err := e.Begin(t.Context(), client.BeginRequest{ID: "made-before", Allow: []string{s.addr}})
	wantCode(t, err, "conflict", path, "--cgroup")
	f.begin(client.BeginRequest{ID: "a", Allow: []string{s.addr}, Cgroup: path})
	p.want("ok", "dial c %s", s.addr)
	if guards := e.kernel.Guards(); len(guards) != 1 {
		t.Errorf("guards %+v, want the engine's own alone", guards)
	}
	f.end("a")
	if _, err := os.Stat(path); err != nil {
		t.Errorf("the adopted cgroup: %v", err)
	}
	f.wantEmptyMaps()
}
