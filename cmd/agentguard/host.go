// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"iter"
	"log/slog"
	"net/netip"
	"strings"
	"time"

	"agentguard.dev/agentguard/client"
	"agentguard.dev/agentguard/internal/task"
)

// host is where `run` has its task: in the daemon, or in an engine of its own.
type host interface {
	Begin(ctx context.Context, request client.BeginRequest) (client.Task, error)
	End(ctx context.Context, id string, request client.EndRequest) (client.EndResult, error)
	// records yields the audit records of a task since its beginning, until ctx ends.
	records(ctx context.Context, begun client.Task) iter.Seq2[client.Record, error]
	close() error
}

// host prefers the daemon and does without one if none listens.
func (p *program) host(ctx context.Context, resolvers []netip.AddrPort) (host, error) {
	daemon := p.client()
	_, err := daemon.Status(ctx)
	switch {
	case err == nil && len(resolvers) > 0:
		daemon.Close()
		return nil, errors.New("a daemon runs, and it is the one that looks names up: " +
			"name the resolvers in its configuration (dns: {resolvers: [...]}), not with --resolver")
	case err == nil:
		return daemonHost{daemon, p}, nil
	case !errors.Is(err, client.ErrNoDaemon):
		daemon.Close()
		return nil, err
	}
	daemon.Close()
	config := p.engineConfig(slog.New(slog.NewTextHandler(p.stderr, &slog.HandlerOptions{Level: slog.LevelWarn})))
	if err := task.CollectPrivate(ctx, config, false); err != nil {
		p.say("remove what earlier runs left: %v", err)
	}
	config.Resolvers = resolvers
	config.Private = "run-" + strings.ToLower(rand.Text()[:10])
	engine, err := task.Open(ctx, config)
	if err != nil {
		return nil, err
	}
	return &privateHost{Engine: engine, subscription: engine.Subscribe()}, nil
}

func (p *program) engineConfig(log *slog.Logger) task.Config {
	return task.Config{
		StateDir: p.stateDir, PinDir: p.pinDir, Cgroup: p.cgroup,
		Version: version(), Log: log,
	}
}

type daemonHost struct {
	*client.Client
	program *program
}

// restartTime is how long a daemon may take to come back before a command
// that ran meanwhile gives up telling it.
const restartTime = 10 * time.Second

// End waits for a daemon that is just being restarted.
func (h daemonHost) End(ctx context.Context, id string, request client.EndRequest) (client.EndResult, error) {
	result, err := h.Client.End(ctx, id, request)
	var answered *client.Error
	if err == nil || errors.As(err, &answered) {
		return result, err
	}
	if _, notBack := h.program.waitReady(ctx, restartTime); notBack != nil {
		return result, err
	}
	return h.Client.End(ctx, id, request)
}

// records goes on after a restart of the daemon where it was.
func (h daemonHost) records(ctx context.Context, begun client.Task) iter.Seq2[client.Record, error] {
	return func(yield func(client.Record, error) bool) {
		since := begun.Begun
		for ctx.Err() == nil {
			query := client.AuditQuery{Task: begun.ID, Since: since, Follow: true}
			for record, err := range h.Audit(ctx, query) {
				if err != nil {
					break
				}
				since = record.Time.Add(1)
				if !yield(record, nil) {
					return
				}
			}
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
		}
	}
}

func (h daemonHost) close() error {
	h.Client.Close()
	return nil
}

// privateHost is an engine for one task, subscribed to before the task begins.
type privateHost struct {
	*task.Engine
	subscription *task.Subscription
}

func (h *privateHost) records(ctx context.Context, begun client.Task) iter.Seq2[client.Record, error] {
	return func(yield func(client.Record, error) bool) {
		for {
			select {
			case <-ctx.Done():
				return
			case record, open := <-h.subscription.C:
				if !open {
					yield(client.Record{}, io.ErrUnexpectedEOF)
					return
				}
				if record.Task == begun.ID && !yield(record, nil) {
					return
				}
			}
		}
	}
}

func (h *privateHost) close() error {
	h.subscription.Close()
	return h.Engine.Close()
}
