// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"agentguard.dev/agentguard/client"
)

// TestCalls sends every call of the client through a socket and looks at what
// the engine was asked, which it echoes.
func TestCalls(t *testing.T) {
	engine := &echo{status: client.Status{Ready: true, Version: "v1"}}
	c := dial(t, serve(t, newServer(t, engine)))
	ctx := t.Context()
	call := func(name string, got any, err error, want any) {
		t.Helper()
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}

	status, err := c.Status(ctx)
	call("Status", status, err, engine.status)
	checks, err := c.Doctor(ctx)
	call("Doctor", checks, err, engine.Doctor())

	task, err := c.Begin(ctx, client.BeginRequest{ID: "t", Agent: "a", Purpose: "\x00 <é>", Labels: map[string]string{"k": "v"}})
	call("Begin", task, err, client.Task{ID: "t", Agent: "a", Purpose: "\x00 <é>", Labels: map[string]string{"k": "v"}})
	for _, id := range []string{"t", "a/b", "ä ?#%", "..x"} {
		task, err = c.Task(ctx, id)
		call("Task", task, err, client.Task{ID: id})
	}
	tasks, err := c.Tasks(ctx, client.TaskFilter{Agent: "a&state=ended", State: client.TaskLive})
	call("Tasks", tasks, err, []client.Task{{Agent: "a&state=ended", State: client.TaskLive}})
	tasks, err = c.Tasks(ctx, client.TaskFilter{})
	call("Tasks, none", tasks, err, []client.Task{})
	end, err := c.End(ctx, "t", client.EndRequest{Drain: 7, Reason: "r"})
	call("End", end, err, client.EndResult{Task: client.Task{ID: "t", EndReason: "r"}, Killed: 7})
	drain, err := c.Drain(ctx, "t", client.DrainRequest{Drain: 7})
	call("Drain", drain, err, client.DrainResult{Drained: true, Left: 7})
	grant, err := c.Grant(ctx, "t", client.Grant{Destination: "[2001:db8::/32]:443,80", TTL: client.Duration(time.Minute)})
	call("Grant", grant, err, client.Grant{Destination: "[2001:db8::/32]:443,80", TTL: client.Duration(time.Minute), Existing: true})
	revoked, err := c.Revoke(ctx, "t", "[2001:db8::/32]:443,80")
	call("Revoke", revoked, err, client.RevokeResult{Revoked: []string{"[2001:db8::/32]:443,80"}, Warning: "t"})

	applied, err := c.ApplyPolicies(ctx, "a b.yaml", []byte("kind: AgentPolicy"))
	call("ApplyPolicies", applied, err, client.ApplyResult{Policies: []client.AppliedPolicy{{Name: "a b.yaml", Action: "kind: AgentPolicy"}}})
	policies, err := c.Policies(ctx)
	call("Policies", policies, err, []client.Policy{})
	policy, err := c.Policy(ctx, "coder")
	call("Policy", policy, err, client.Policy{Name: "coder"})
	call("DeletePolicy", nil, c.DeletePolicy(ctx, "coder"), nil)

	err = c.DeletePolicy(ctx, "other")
	var answered *client.Error
	if !errors.As(err, &answered) {
		t.Fatalf("DeletePolicy of another: %v; want a *client.Error", err)
	}
	call("DeletePolicy of another", answered, nil,
		&client.Error{Status: 404, Code: "not_found", Message: "delete policy other: there is none"})
}

func TestNoDaemon(t *testing.T) {
	_, err := dial(t, t.TempDir()+"/admin.sock").Status(t.Context())
	if !errors.Is(err, client.ErrNoDaemon) || !strings.Contains(err.Error(), "agentguard daemon") {
		t.Errorf("%v; want ErrNoDaemon and the way out", err)
	}
}

func TestCallEndsWithItsContext(t *testing.T) {
	c := dial(t, serve(t, newServer(t, &echo{})))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Status(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("%v; want context.Canceled", err)
	}
}

func TestAuditIsReadAndFollowed(t *testing.T) {
	engine := &echo{dir: t.TempDir()}
	log := openLog(t, engine.dir)
	append := func(task, verdict string) {
		t.Helper()
		if err := log.Append(client.Record{Kind: "decision", Task: task, Verdict: verdict, Reason: "no rule"}); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		append("a", "deny")
		append("b", "deny")
	}
	c := dial(t, serve(t, newServer(t, engine)))

	n := 0
	for record, err := range c.Audit(t.Context(), client.AuditQuery{Task: "a", Verdict: "deny", Kind: "decision", Since: time.Now().Add(-time.Hour), Limit: 2}) {
		if err != nil || record.Task != "a" {
			t.Fatalf("%+v, %v", record, err)
		}
		n++
	}
	if n != 2 {
		t.Errorf("%d records; want the limit of 2", n)
	}

	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	n = 0
	for record, err := range c.Audit(ctx, client.AuditQuery{Task: "a", Follow: true}) {
		if err != nil || record.Task != "a" {
			t.Fatalf("%+v, %v", record, err)
		}
		if n++; n == 5 {
			cancel() // ends the sequence without an error
		} else if n >= 3 {
			append("b", "deny")
			append("a", "deny")
		}
	}
	if n != 5 || !errors.Is(ctx.Err(), context.Canceled) {
		t.Errorf("followed %d records (%v); want 5", n, ctx.Err())
	}
}

func TestFollowerLearnsThatTheDaemonStopped(t *testing.T) {
	engine := &echo{dir: t.TempDir()}
	log := openLog(t, engine.dir)
	if err := log.Append(client.Record{Kind: "daemon", Action: "start"}); err != nil {
		t.Fatal(err)
	}
	lock, err := LockRunDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	socket, err := Listen(lock, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Remove()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	done := make(chan error, 1)
	go func() { done <- newServer(t, engine).Serve(ctx, socket.Listener) }()

	var last error
	for _, err := range dial(t, socket.path).Audit(t.Context(), client.AuditQuery{Follow: true}) {
		stop()
		last = err
	}
	if !errors.Is(last, io.ErrUnexpectedEOF) {
		t.Errorf("the sequence ended with %v; want io.ErrUnexpectedEOF", last)
	}
	if err := <-done; err != nil {
		t.Errorf("Serve: %v", err)
	}
}
