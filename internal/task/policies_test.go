// SPDX-License-Identifier: Apache-2.0

package task

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"agentguard.dev/agentguard/client"
	"agentguard.dev/agentguard/internal/loader"
)

func TestApplyMovesLiveTasks(t *testing.T) {
	f := newFixture(t)
	f.open()
	kept, dropped, added := f.serve(true), f.serve(true), f.serve(true)
	if r := f.apply(document("coder", egress(kept.addr, dropped.addr))); r.Policies[0].Action != "created" {
		t.Errorf("apply: %+v", r)
	}
	before, err := f.engine.Policy("coder")
	if err != nil {
		t.Fatal(err)
	}
	task := f.begin(client.BeginRequest{ID: "a", Agent: "coder"})
	p := f.startProcess(task.Cgroup)
	p.want("ok", "dial k %s", kept.addr)
	p.want("ok", "dial d %s", dropped.addr)
	p.want(denied, "dial x %s", added.addr)

	r := f.apply(document("coder", egress(added.addr, kept.addr)))
	if got := r.Policies[0]; got.Action != "updated" || got.Tasks != 1 || got.Destroyed != 1 {
		t.Errorf("apply: %+v, want one task and one socket cut", got)
	}
	p.want(aborted, "write d hello")
	p.want("ok", "write k hello")
	p.want("ok hello", "read k")
	p.want("ok", "dial n %s", added.addr)
	p.want(denied, "dial x %s", dropped.addr)

	got, err := f.engine.Get("a")
	if err != nil {
		t.Fatal(err)
	}
	allowed := map[string]uint64{}
	for _, c := range got.Counters {
		allowed[c.Rule] = c.Allowed
	}
	if allowed[kept.addr] != 1 || allowed[dropped.addr] != 1 || allowed[added.addr] != 1 {
		t.Errorf("counters %+v: want those of kept and dropped rules to go on", got.Counters)
	}
	after, err := f.engine.Policy("coder")
	if err != nil || after.Version == before.Version || after.Tasks != 1 {
		t.Errorf("policy %+v %v, before %+v", after, err, before)
	}
	if owners := f.engine.maps.Rules.Owners(); len(owners) != 1 {
		t.Errorf("owners %v: the old version is still in the kernel", owners)
	}

	same := f.apply("# a comment\n" + document("coder", egress(added.addr, kept.addr)))
	if got := same.Policies[0]; got.Action != "unchanged" || got.Tasks != 1 {
		t.Errorf("apply the same: %+v", got)
	}
	if err := f.engine.DeletePolicy(t.Context(), "coder"); err == nil {
		t.Error("deleted the policy of a live task")
	} else {
		wantCode(t, err, "conflict", "1 live")
	}
	f.end("a")
	if err := f.engine.DeletePolicy(t.Context(), "coder"); err != nil {
		t.Error(err)
	}
	wantCode(t, f.engine.DeletePolicy(t.Context(), "coder"), "not_found", "coder")
	f.wantEmptyMaps()
}

func TestApplyIsAllOrNothing(t *testing.T) {
	f := newFixture(t, func(c *Config) { c.Sizes = loader.Sizes{Hosts: 8} })
	f.open()
	s := f.serve(true)
	f.apply(document("coder", egress(s.addr)))
	task := f.begin(client.BeginRequest{ID: "a", Agent: "coder"})
	p := f.startProcess(task.Cgroup)
	p.want("ok", "dial c %s", s.addr)
	was, err := f.engine.Policy("coder")
	if err != nil {
		t.Fatal(err)
	}

	many := make([]string, 16)
	for i := range many {
		many[i] = "198.51.100." + string(rune('0'+i%10)) + ":" + []string{"1", "2"}[i/10]
	}
	for name, c := range map[string]struct {
		doc, code string
		parts     []string
	}{
		"full map":       {document("coder", egress("192.0.2.9:9")) + "---\n" + document("other", egress(many...)), "full", []string{"hosts", "8"}},
		"bad document":   {document("coder", egress("192.0.2.9:9")) + "---\n" + document("other", "mode: strict"), "invalid", []string{"test.yaml", "strict"}},
		"name twice":     {document("coder", egress("192.0.2.9:9")) + "---\n" + document("coder", egress("192.0.2.8:9")), "invalid", []string{"coder"}},
		"empty document": {"", "invalid", []string{"test.yaml"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := f.engine.ApplyPolicies(t.Context(), "test.yaml", []byte(c.doc))
			wantCode(t, err, c.code, c.parts...)
			now, err := f.engine.Policy("coder")
			if err != nil || !reflect.DeepEqual(now, was) {
				t.Errorf("policy now %+v %v, before %+v", now, err, was)
			}
			if n := len(f.engine.Policies()); n != 1 {
				t.Errorf("%d policies, want the one", n)
			}
			p.want("ok", "write c hello")
			p.want("ok hello", "read c")
			p.want("ok", "dial d %s", s.addr)
			p.want("ok", "close d")
		})
	}
	_, err = f.engine.Grant(t.Context(), "a", client.Grant{Destination: "198.51.100.1:1-9"})
	wantCode(t, err, "full", "hosts")
	_, err = f.engine.Begin(t.Context(), client.BeginRequest{ID: "b", Allow: many})
	wantCode(t, err, "full", "hosts")
	if tasks := f.engine.List(client.TaskFilter{}); len(tasks) != 1 || len(tasks[0].Grants) != 0 {
		t.Errorf("tasks %+v, want a alone, without grants", tasks)
	}
	f.reopen()
	if now, err := f.engine.Policy("coder"); err != nil || !reflect.DeepEqual(now, was) {
		t.Errorf("policy after a restart %+v %v, before %+v", now, err, was)
	}
	p.want("ok", "write c hello")
}

func TestFullTaskMap(t *testing.T) {
	f := newFixture(t, func(c *Config) { c.Sizes = loader.Sizes{Tasks: 2} })
	f.open()
	f.begin(client.BeginRequest{ID: "a", Allow: []string{"192.0.2.2:1"}})
	f.begin(client.BeginRequest{ID: "b", Allow: []string{"192.0.2.2:1"}})
	_, err := f.engine.Begin(t.Context(), client.BeginRequest{ID: "c", Allow: []string{"192.0.2.2:1"}})
	wantCode(t, err, "full", "tasks", "2")
	if problems := f.engine.Status().Problems; len(problems) == 0 || !strings.Contains(problems[0], "tasks") {
		t.Errorf("problems %q, want the full map among them", problems)
	}
	f.end("a")
	f.begin(client.BeginRequest{ID: "c", Allow: []string{"192.0.2.2:1"}})
	f.end("b")
	f.end("c")
	f.wantEmptyMaps()
}

func TestLowerMaxTTLEndsEarlier(t *testing.T) {
	f := newFixture(t)
	f.open()
	f.apply(document("coder", "maxTTL: 1h"))
	task := f.begin(client.BeginRequest{ID: "a", Agent: "coder"})
	f.apply(document("coder", "maxTTL: 2h"))
	if got, err := f.engine.Get("a"); err != nil || got.Deadline.Sub(*task.Deadline).Abs() > 10*time.Millisecond {
		t.Errorf("a longer maxTTL moved the deadline from %v to %v (%v)", task.Deadline, got.Deadline, err)
	}
	f.apply(document("coder", "maxTTL: 500ms"))
	eventually(t, "the task has expired", func() bool {
		got, err := f.engine.Get("a")
		return err == nil && got.EndReason == reasonExpired
	})
}

func TestAuditModeLetsThrough(t *testing.T) {
	f := newFixture(t)
	f.open()
	sub := f.engine.Subscribe()
	defer sub.Close()
	s := f.serve(true)
	f.apply(document("coder", "mode: audit"))
	task := f.begin(client.BeginRequest{ID: "a", Agent: "coder"})
	p := f.startProcess(task.Cgroup)
	p.want("ok", "dial c %s", s.addr)
	if r := waitFor(t, sub, func(r client.Record) bool { return r.Kind == "decision" }); r.Verdict != "would-deny" || r.Hint == "" {
		t.Errorf("record %+v", r)
	}
	if r := f.apply(document("coder", "mode: enforce")); r.Policies[0].Destroyed != 1 {
		t.Errorf("apply: %+v, want the connection cut", r)
	}
	p.want(aborted, "write c hello")
}

func TestTotals(t *testing.T) {
	f := newFixture(t)
	f.open()
	s := f.serve(true)
	f.apply(document("coder", egress(s.addr)))
	want := func(n uint64) {
		t.Helper()
		totals, err := f.engine.Totals()
		if err != nil {
			t.Fatal(err)
		}
		for _, total := range totals {
			if total.Agent == "coder" && total.Rule == s.addr {
				if total.Allowed != n {
					t.Errorf("%+v, want %d allowed", total, n)
				}
				return
			}
		}
		t.Errorf("totals %+v: nothing of coder", totals)
	}
	for n := range uint64(3) {
		task := f.begin(client.BeginRequest{Agent: "coder"})
		p := f.startProcess(task.Cgroup)
		p.want("ok", "dial c %s", s.addr)
		want(n + 1)
		f.end(task.ID)
		want(n + 1)
	}
}
