// SPDX-License-Identifier: Apache-2.0

package task

import (
	"context"
	"path/filepath"

	"agentguard.dev/agentguard/client"
)

// AuditDir is where the audit log is, for package audit's readers.
func (e *Engine) AuditDir() string { return AuditDir(e.cfg.StateDir) }

// AuditDir is where the audit log is below a state directory.
func AuditDir(stateDir string) string { return filepath.Join(stateDir, "audit") }

// record writes what was done to a task.
func (e *Engine) record(ctx context.Context, t *task, kind, action, detail string) {
	t.mu.Lock()
	r := client.Record{Kind: kind, Action: action, Task: t.id, Agent: t.Agent, Purpose: t.Request.Purpose, Detail: detail}
	t.mu.Unlock()
	e.records.add(by(ctx, r))
}

func (e *Engine) recordGrant(ctx context.Context, t *task, action, destination, detail string) {
	t.mu.Lock()
	r := client.Record{Kind: "grant", Action: action, Task: t.id, Agent: t.Agent, Dest: destination, Detail: detail}
	t.mu.Unlock()
	e.records.add(by(ctx, r))
}

func (e *Engine) recordPolicy(ctx context.Context, name, action, detail string) {
	e.records.add(by(ctx, client.Record{Kind: "policy", Action: action, Agent: name, Detail: detail}))
}

func (e *Engine) recordEngine(action, detail string) {
	e.records.add(client.Record{Kind: "daemon", Action: action, Detail: detail})
}

// by names the caller in a record of what it did.
func by(ctx context.Context, r client.Record) client.Record {
	if caller, ok := callerOf(ctx); ok {
		r.PID, r.UID = caller.PID, &caller.UID
	}
	return r
}
