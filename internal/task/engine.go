// SPDX-License-Identifier: Apache-2.0

// Package task is the life cycle of tasks: what begins, changes and ends them,
// and what brings the kernel's maps and the stored state together again after
// a crash.
//
// The kernel enforces what stands in its maps whether or not an engine is
// running. An engine writes those maps, keeps what people need to know beside
// them, and destroys the sockets of flows that are no longer allowed.
package task

import (
	"context"
)

// Engine owns one guard and its tasks. Its methods may be called concurrently.
type Engine struct {
	cfg Config
}

// Open takes the state directory for itself, loads or takes over the programs
// in the kernel, brings tasks, policies and maps into agreement, and ends what
// expired while no engine ran. The caller closes the engine.
func Open(ctx context.Context, cfg Config) (*Engine, error) {
	return nil, unavailablef("not there yet")
}

// Close stops the engine. What it had set up goes on being enforced.
func (e *Engine) Close() error { return nil }

// Unload ends every task, takes the programs out of the kernel and removes
// all that belongs to the engine but its policies and its audit log, and closes it.
func (e *Engine) Unload(ctx context.Context) error { return nil }
