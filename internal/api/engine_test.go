// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"path/filepath"
	"testing"

	"agentguard.dev/agentguard/client"
	"agentguard.dev/agentguard/internal/audit"
)

// echo is an engine that answers with what it was asked. The tests here are
// about HTTP; those of package task and of the command line have the real one.
type echo struct {
	dir    string
	status client.Status
	err    error
}

func (e *echo) Begin(_ context.Context, request client.BeginRequest) (client.Task, error) {
	return client.Task{ID: request.ID, Agent: request.Agent, Purpose: request.Purpose, Labels: request.Labels}, e.err
}

func (e *echo) End(_ context.Context, id string, request client.EndRequest) (client.EndResult, error) {
	return client.EndResult{Task: client.Task{ID: id, EndReason: request.Reason}, Killed: int(request.Drain)}, e.err
}

func (e *echo) Drain(_ context.Context, id string, request client.DrainRequest) (client.DrainResult, error) {
	return client.DrainResult{Drained: id == "t", Left: int(request.Drain)}, e.err
}

func (e *echo) Get(id string) (client.Task, error) { return client.Task{ID: id}, e.err }

func (e *echo) Enter(_ context.Context, id string) (client.Task, error) {
	return client.Task{ID: id}, e.err
}

func (e *echo) List(filter client.TaskFilter) []client.Task {
	if filter == (client.TaskFilter{}) {
		return nil
	}
	return []client.Task{{Agent: filter.Agent, State: filter.State}}
}

func (e *echo) Grant(_ context.Context, id string, grant client.Grant) (client.Grant, error) {
	grant.Existing = id == "t"
	return grant, e.err
}

func (e *echo) Revoke(_ context.Context, id, destination string) (client.RevokeResult, error) {
	return client.RevokeResult{Revoked: []string{destination}, Warning: id}, e.err
}

func (e *echo) ApplyPolicies(_ context.Context, file string, yaml []byte) (client.ApplyResult, error) {
	return client.ApplyResult{Policies: []client.AppliedPolicy{{Name: file, Action: string(yaml)}}}, e.err
}

func (e *echo) Policies() []client.Policy                 { return nil }
func (e *echo) Policy(name string) (client.Policy, error) { return client.Policy{Name: name}, e.err }
func (e *echo) DeletePolicy(_ context.Context, name string) error {
	if name != "coder" {
		return fmt.Errorf("delete policy %s: %w", name, &client.Error{Code: "not_found", Message: "there is none"})
	}
	return e.err
}
func (e *echo) Status() client.Status  { return e.status }
func (e *echo) Doctor() []client.Check { return []client.Check{{Name: "bpf", OK: true}} }
func (e *echo) AuditDir() string       { return e.dir }

func newServer(t testing.TB, engine *echo) *Server {
	if engine.dir == "" {
		engine.dir = t.TempDir()
	}
	return New(Config{
		Engine: engine, Group: -1, Log: slog.New(slog.DiscardHandler),
		Metrics: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "agentguard_ready 1\n") }),
	})
}

// serve answers on an admin socket until the test ends, and returns its path.
func serve(t *testing.T, server *Server) (socketPath string) {
	t.Helper()
	dir := t.TempDir()
	lock, err := LockRunDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	socket, err := Listen(lock, server.Group)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Serve(ctx, socket.Listener) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
		if err := socket.Remove(); err != nil {
			t.Errorf("Remove: %v", err)
		}
		if err := lock.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return filepath.Join(dir, SocketName)
}

func dial(t *testing.T, path string) *client.Client {
	c := client.New(path)
	t.Cleanup(c.Close)
	return c
}

func openLog(t *testing.T, dir string) *audit.Log {
	t.Helper()
	log, err := audit.OpenLog(dir, "test", audit.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { log.Close() })
	return log
}
