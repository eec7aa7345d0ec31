// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"agentguard.dev/agentguard/client"
	"agentguard.dev/agentguard/internal/cgroup"
	"agentguard.dev/agentguard/internal/names"
	"agentguard.dev/agentguard/internal/task"
)

// engineGuard is the whole of it, as the daemon has it.
type engineGuard struct {
	engine    *task.Engine
	dir, none *cgroup.Dir
	next      int
}

// newGuard opens an engine in the lab's host, whose own NAT it trusts.
func newGuard(t *testing.T, l *lab) guard {
	t.Helper()
	dir := newCgroup(t, "")
	cfg := task.Config{
		StateDir:          filepath.Join(t.TempDir(), "state"),
		PinDir:            filepath.Join("/sys/fs/bpf", filepath.Base(dir.Path())),
		Cgroup:            dir.Path(),
		TrustedNamespaces: []string{fmt.Sprintf("/proc/self/fd/%d", l.host.FD())},
		DNS:               names.Config{MinTTL: time.Second},
		Resolvers:         []netip.AddrPort{at(resolver4, dnsPort)},
		Log:               slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelWarn})),
	}
	g := &engineGuard{dir: dir}
	if err := l.host.Do(func() (err error) {
		g.engine, err = task.Open(t.Context(), cfg)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := g.engine.Unload(ctx); err != nil {
			t.Error(err)
		}
	})
	g.none = newCgroup(t, dir.Path())
	return g
}

// testWriter shows what the engine complains of with the test's own output.
type testWriter struct{ t *testing.T }

func (w testWriter) Write(line []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(line)))
	return len(line), nil
}

func (g *engineGuard) stray() *cgroup.Dir { return g.none }
func (g *engineGuard) own() *cgroup.Dir   { return g.dir }

func (g *engineGuard) begin(s spec) (guardedTask, error) {
	g.next++
	k := &engineTask{engine: g.engine, agent: fmt.Sprintf("agent-%d", g.next)}
	if err := k.apply(s); err != nil {
		return nil, err
	}
	ctx, cancel := patience()
	defer cancel()
	begun, err := g.engine.Begin(ctx, client.BeginRequest{Agent: k.agent, Allow: s.grants, TTL: client.Duration(s.ttl)})
	if err != nil {
		return nil, err
	}
	k.id = begun.ID
	if begun.Deadline != nil {
		k.until = *begun.Deadline
	}
	if k.dir, err = cgroup.Open(begun.Cgroup); err != nil {
		return nil, err
	}
	return k, nil
}

type engineTask struct {
	engine    *task.Engine
	agent, id string
	dir       *cgroup.Dir
	until     time.Time
}

func patience() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), 10*time.Second)
}

func (k *engineTask) cgroup() *cgroup.Dir { return k.dir }
func (k *engineTask) deadline() time.Time { return k.until }

func (k *engineTask) apply(s spec) error {
	ctx, cancel := patience()
	defer cancel()
	_, err := k.engine.ApplyPolicies(ctx, "bypass.yaml", []byte(s.document(k.agent)))
	return err
}

func (k *engineTask) grant(destination string, ttl time.Duration) error {
	ctx, cancel := patience()
	defer cancel()
	_, err := k.engine.Grant(ctx, k.id, client.Grant{Destination: destination, TTL: client.Duration(ttl)})
	return err
}

func (k *engineTask) revoke(destination string) error {
	ctx, cancel := patience()
	defer cancel()
	_, err := k.engine.Revoke(ctx, k.id, destination)
	return err
}

func (k *engineTask) end() error {
	ctx, cancel := patience()
	defer cancel()
	_, err := k.engine.End(ctx, k.id, client.EndRequest{})
	return err
}

// close also ends the processes that the end of the task has left.
func (k *engineTask) close() error {
	defer k.dir.Close()
	ctx, cancel := patience()
	defer cancel()
	errs := []error{k.end()}
	if _, err := k.dir.Kill(ctx); err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, err)
	}
	return errors.Join(append(errs, k.dir.Remove(ctx), k.engine.DeletePolicy(ctx, k.agent))...)
}
