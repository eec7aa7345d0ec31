// SPDX-License-Identifier: Apache-2.0

package task

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"agentguard.dev/agentguard/client"
)

// taskWith is a fresh task that may reach the destinations, with a process in it.
func (f *fixture) taskWith(id string, allow ...string) *process {
	f.t.Helper()
	task := f.begin(client.BeginRequest{ID: id, Allow: append(allow, "203.0.113.1:1")})
	return f.startProcess(task.Cgroup)
}

func TestBeginAllowsAndEndCuts(t *testing.T) {
	f := newFixture(t)
	f.open()
	s, other := f.serve(true), f.serve(true)
	p := f.taskWith("a", s.addr)
	p.want("ok", "dial c %s", s.addr)
	p.want("ok", "write c hello")
	p.want("ok hello", "read c")
	p.want(denied, "dial d %s", other.addr)

	got, err := f.engine.Get("a")
	if err != nil {
		t.Fatal(err)
	}
	var allowed, refused uint64
	for _, c := range got.Counters {
		switch c.Rule {
		case s.addr:
			allowed = c.Allowed
			if c.Packets == 0 || c.Bytes == 0 {
				t.Errorf("counters of %s: %+v, want packets and bytes", c.Rule, c)
			}
		case "(no rule)":
			refused = c.Denied
		}
	}
	if allowed != 1 || refused != 1 {
		t.Errorf("counters %+v, want 1 allowed and 1 denied", got.Counters)
	}

	result := f.end("a")
	if result.Destroyed == 0 || result.Killed != 1 || result.Task.State != client.TaskEnded || result.Task.EndReason != reasonEnded {
		t.Errorf("end: %+v", result)
	}
	eventually(t, "the peer got a reset", func() bool { return s.resets() == 1 })
	p.want("gone", "write c more")
	if _, err := os.Stat(got.Cgroup); !os.IsNotExist(err) {
		t.Errorf("the cgroup %s is still there", got.Cgroup)
	}
	if again := f.end("a"); !again.Task.Existing || again.Task.EndReason != reasonEnded {
		t.Errorf("second end: %+v, want the task as ended before", again)
	}
	f.wantEmptyMaps()
}

// wantEmptyMaps checks that no task has left anything in the kernel.
func (f *fixture) wantEmptyMaps() {
	f.t.Helper()
	tasks, err := f.engine.maps.Tasks.All()
	if err != nil || len(tasks) != 0 {
		f.t.Errorf("tasks left in the kernel: %v %v", tasks, err)
	}
	counters, err := f.engine.maps.Counters.All()
	if err != nil || len(counters) != 0 {
		f.t.Errorf("counters left in the kernel: %v %v", counters, err)
	}
	if owners := f.engine.maps.Rules.Owners(); len(owners) != len(f.engine.Policies()) {
		f.t.Errorf("owners of rules left in the kernel: %v", owners)
	}
	f.engine.spaces.mu.Lock()
	defer f.engine.spaces.mu.Unlock()
	if len(f.engine.spaces.inUse) != 0 {
		f.t.Errorf("network namespaces still held: %v", f.engine.spaces.inUse)
	}
}

func TestProcessesThatAreLeftAreCutOff(t *testing.T) {
	f := newFixture(t)
	f.open()
	s := f.serve(true)
	task := f.begin(client.BeginRequest{ID: "a", Policy: document("leaver", "onEnd: leave", egress(s.addr))})
	p := f.startProcess(task.Cgroup)
	p.want("ok", "dial c %s", s.addr)
	result := f.end("a")
	if result.Killed != 0 || result.Destroyed == 0 {
		t.Errorf("end: %+v, want sockets destroyed and nobody killed", result)
	}
	p.want(aborted, "write c hello")
	p.want(denied, "dial d %s", s.addr)
	_, err := f.engine.Begin(t.Context(), client.BeginRequest{ID: "b", Allow: []string{s.addr}, Cgroup: task.Cgroup + "/"})
	if err != nil {
		t.Errorf("a new task for the processes that are left: %v", err)
	}
	p.want("ok", "dial e %s", s.addr)
	f.end("b")
	p.want("gone", "write e hello") // its policy kills
	f.wantEmptyMaps()
}

func TestLeftoverIsGivenBack(t *testing.T) {
	f := newFixture(t)
	f.open()
	task := f.begin(client.BeginRequest{ID: "a", Policy: document("leaver", "onEnd: leave")})
	p := f.startProcess(task.Cgroup)
	f.end("a")
	if _, err := os.Stat(task.Cgroup); err != nil {
		t.Fatal(err)
	}
	f.reopen()
	p.want(denied, "dial d 192.0.2.2:1")
	p.cmd.Process.Kill()
	p.cmd.Wait()
	eventually(t, "the cgroup is removed", func() bool {
		_, err := os.Stat(task.Cgroup)
		return os.IsNotExist(err)
	})
	eventually(t, "nothing is remembered", f.engine.isDone)
	f.wantEmptyMaps()
}

func TestBeginTwice(t *testing.T) {
	f := newFixture(t)
	f.open()
	req := client.BeginRequest{ID: "a", Allow: []string{"192.0.2.2:2", "tcp://192.0.2.2:1"}, Purpose: "p", Labels: map[string]string{"k": "v"}}
	first := f.begin(req)
	again := f.begin(client.BeginRequest{ID: "a", Allow: []string{"192.0.2.2:1", "192.0.2.2:2", "192.0.2.2:1"}, Purpose: "p", Labels: map[string]string{"k": "v"}})
	if !again.Existing || again.Number != first.Number || first.Existing {
		t.Errorf("first %+v, again %+v", first, again)
	}
	req.Purpose = "q"
	_, err := f.engine.Begin(t.Context(), req)
	wantCode(t, err, "conflict", "a", "live")
	f.end("a")
	_, err = f.engine.Begin(t.Context(), req)
	wantCode(t, err, "conflict", "a", "ended")
	f.reopen()
	_, err = f.engine.Begin(t.Context(), req)
	wantCode(t, err, "conflict", "a", "ended")
}

func TestBeginRefuses(t *testing.T) {
	f := newFixture(t)
	f.open()
	f.apply(document("coder", "maxTTL: 1h", egress("192.0.2.2:1")))
	for name, c := range map[string]struct {
		req   client.BeginRequest
		code  string
		parts []string
	}{
		"nothing":       {client.BeginRequest{}, "invalid", []string{"agent"}},
		"unknown agent": {client.BeginRequest{Agent: "stranger"}, "not_found", []string{"stranger", "policy apply"}},
		"bad agent":     {client.BeginRequest{Agent: "No"}, "invalid", []string{`"No"`}},
		"bad id":        {client.BeginRequest{ID: "../x", Agent: "coder"}, "invalid", []string{"../x"}},
		"control file":  {client.BeginRequest{ID: "cgroup.procs", Agent: "coder"}, "invalid", []string{"cgroup.procs", "another id"}},
		"bad allow":     {client.BeginRequest{Allow: []string{"192.0.2.1:http"}}, "invalid", []string{"http"}},
		"long ttl":      {client.BeginRequest{Agent: "coder", TTL: client.Duration(2 * time.Hour)}, "invalid", []string{"2h0m0s", "1h0m0s"}},
		"negative ttl":  {client.BeginRequest{Agent: "coder", TTL: -1}, "invalid", []string{"-1ns"}},
		"two policies":  {client.BeginRequest{Policy: document("a", "mode: enforce") + "---\n" + document("b", "mode: enforce")}, "invalid", []string{"2 documents"}},
		"bad policy":    {client.BeginRequest{Policy: document("a", "mod: enforce")}, "invalid", []string{"mod"}},
		"other agent":   {client.BeginRequest{Agent: "b", Policy: document("a", "mode: enforce")}, "invalid", []string{`"a"`, `"b"`}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := f.engine.Begin(t.Context(), c.req)
			wantCode(t, err, c.code, c.parts...)
		})
	}
	if left := f.engine.List(client.TaskFilter{}); len(left) != 0 {
		t.Errorf("tasks of failed begins: %+v", left)
	}
	f.wantEmptyMaps()
	for _, err := range []error{
		errOf(f.engine.End(t.Context(), "x", client.EndRequest{})),
		errOf(f.engine.Get("x")),
		errOf(f.engine.Grant(t.Context(), "x", client.Grant{Destination: "192.0.2.2:1"})),
		errOf(f.engine.Drain(t.Context(), "x", client.DrainRequest{})),
	} {
		wantCode(t, err, "not_found", "x")
	}
}

func errOf[T any](_ T, err error) error { return err }

func TestTTLEndsTheTask(t *testing.T) {
	f := newFixture(t)
	f.open()
	s := f.serve(true)
	f.apply(document("coder", "maxTTL: 1s", egress(s.addr)))
	task := f.begin(client.BeginRequest{Agent: "coder"})
	if task.Deadline == nil || time.Until(*task.Deadline) > time.Second+time.Millisecond {
		t.Fatalf("deadline %v, want one in a second", task.Deadline)
	}
	if !strings.HasPrefix(task.ID, "coder-") {
		t.Errorf("made-up id %q does not name the agent", task.ID)
	}
	p := f.startProcess(task.Cgroup)
	p.want("ok", "dial c %s", s.addr)
	eventually(t, "the task has expired", func() bool {
		got, err := f.engine.Get(task.ID)
		return err == nil && got.State == client.TaskEnded && got.EndReason == reasonExpired
	})
	p.want("gone", "write c hello")
	eventually(t, "the peer got a reset", func() bool { return s.resets() == 1 })
}

func TestVanishedCgroupEndsTheTask(t *testing.T) {
	f := newFixture(t)
	f.open()
	dir := newCgroup(t)
	task := f.begin(client.BeginRequest{Allow: []string{"192.0.2.2:1"}, Cgroup: dir.Path()})
	if err := os.Remove(dir.Path()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the task has ended", func() bool {
		got, err := f.engine.Get(task.ID)
		return err == nil && got.State == client.TaskEnded && got.EndReason == reasonVanished
	})
	f.wantEmptyMaps()
	if guards := f.engine.kernel.Guards(); len(guards) != 1 {
		t.Errorf("guards %+v, want the engine's own alone", guards)
	}
}

func TestDrain(t *testing.T) {
	f := newFixture(t)
	f.open()
	s := f.serve(false) // reads nothing
	p := f.taskWith("a", s.addr)
	p.want("ok", "dial c %s", s.addr)
	p.want("ok", "flood c")
	began := time.Now()
	result, err := f.engine.Drain(t.Context(), "a", client.DrainRequest{Drain: client.Duration(300 * time.Millisecond)})
	if err != nil || result.Drained || result.Left != 1 {
		t.Errorf("drain while the peer reads nothing: %+v %v, want one socket left", result, err)
	}
	if took := time.Since(began); took < 300*time.Millisecond || took > 3*time.Second {
		t.Errorf("it took %s, want about the 300 ms", took)
	}
	s.mu.Lock()
	conn := s.conns[0]
	s.mu.Unlock()
	go func() {
		buf := make([]byte, 1<<20)
		for {
			if _, err := conn.Read(buf); err != nil {
				return
			}
		}
	}()
	result, err = f.engine.Drain(t.Context(), "a", client.DrainRequest{Drain: client.Duration(10 * time.Second)})
	if err != nil || !result.Drained {
		t.Errorf("drain while the peer reads: %+v %v", result, err)
	}
}

func TestDrainOfAnEndedProcess(t *testing.T) {
	f := newFixture(t)
	f.open()
	s := f.serve(false)
	p := f.taskWith("a", s.addr)
	p.want("ok", "dial c %s", s.addr)
	if _, err := f.engine.Drain(t.Context(), "a", client.DrainRequest{}); err != nil { // finds the namespace
		t.Fatal(err)
	}
	p.want("ok", "flood c")
	p.cmd.Process.Kill()
	p.cmd.Wait()
	result, err := f.engine.Drain(t.Context(), "a", client.DrainRequest{Drain: client.Duration(50 * time.Millisecond)})
	if err != nil || result.Drained {
		t.Errorf("drain of what an ended process wrote: %+v %v, want it not drained", result, err)
	}
	if ended := f.end("a"); ended.Destroyed != 1 {
		t.Errorf("end: %+v, want the socket without process destroyed", ended)
	}
}

func TestEndWhileTheCallerIsGone(t *testing.T) {
	f := newFixture(t)
	f.open()
	s := f.serve(false)
	p := f.taskWith("a", s.addr)
	p.want("ok", "dial c %s", s.addr)
	p.want("ok", "flood c")
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	result, err := f.engine.End(ctx, "a", client.EndRequest{Drain: client.Duration(time.Minute)})
	if err != nil || result.Task.State != client.TaskEnded {
		t.Errorf("end with a caller that goes away while it drains: %+v %v, want it ended", result, err)
	}
}
