// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"agentguard.dev/agentguard/client"
	"agentguard.dev/agentguard/internal/audit"
)

// narration tells on stderr what is denied to a task while it happens.
type narration struct {
	cancel context.CancelFunc
	done   chan struct{}
}

// narrate starts a narration, which its caller stops.
func (p *program) narrate(ctx context.Context, host host, task client.Task) *narration {
	ctx, cancel := context.WithCancel(ctx)
	n := &narration{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(n.done)
		for record, err := range host.records(ctx, task) {
			if err != nil {
				return
			}
			if record.Kind == "task" && record.Action == "end" {
				return // the log has an order: every denial is before this
			}
			if record.Verdict == "deny" || record.Verdict == "would-deny" || record.Kind == "lost" {
				p.tell(record)
			}
		}
	}()
	return n
}

func (p *program) tell(record client.Record) {
	if p.json() {
		json.NewEncoder(p.stderr).Encode(record)
		return
	}
	fmt.Fprintln(p.stderr, "agentguard: "+audit.Text(record))
}

// finish waits until all that was logged about the ended task has been told.
func (n *narration) finish() {
	const patience = 2 * time.Second
	select {
	case <-n.done:
	case <-time.After(patience):
	}
}

func (n *narration) stop() {
	n.cancel()
	<-n.done
}
