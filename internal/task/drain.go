// SPDX-License-Identifier: Apache-2.0

package task

import (
	"context"
	"time"

	"agentguard.dev/agentguard/client"
)

// Between two looks at the sockets of a task that is drained.
const (
	drainFirst = 2 * time.Millisecond
	drainLast  = 50 * time.Millisecond
)

// Drain waits until no socket of the task holds data that its peer has not
// acknowledged, or the time is over.
func (e *Engine) Drain(ctx context.Context, id string, req client.DrainRequest) (client.DrainResult, error) {
	if err := e.enter(); err != nil {
		return client.DrainResult{}, err
	}
	defer e.leave()
	patience := time.Duration(req.Drain)
	if patience < 0 {
		return client.DrainResult{}, invalidf("drain %s: want a positive duration, or none", patience)
	}
	if patience == 0 {
		patience = e.cfg.Drain
	}
	t, err := e.find(id)
	if err != nil {
		return client.DrainResult{}, err
	}
	e.rememberCaller(ctx, t)
	result, err := e.drain(ctx, t, patience)
	return result, wrap("drain task "+id, err)
}

func (e *Engine) drain(ctx context.Context, t *task, patience time.Duration) (client.DrainResult, error) {
	deadline := time.Now().Add(patience)
	for wait := drainFirst; ; wait = min(2*wait, drainLast) {
		if !t.isLive() {
			return client.DrainResult{Drained: true}, nil
		}
		left, err := e.undrained(ctx, t)
		if err != nil || left == 0 {
			return client.DrainResult{Drained: err == nil}, err
		}
		remaining := time.Until(deadline)
		if remaining <= 0 {
			return client.DrainResult{Left: left}, nil
		}
		timer := time.NewTimer(min(wait, remaining))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return client.DrainResult{Left: left}, context.Cause(ctx)
		case <-e.closing.Done():
			timer.Stop()
			return client.DrainResult{Left: left}, unavailablef("agentguard is stopping")
		}
	}
}

// undrained counts the sockets that hold data which is not acknowledged.
func (e *Engine) undrained(ctx context.Context, t *task) (int, error) {
	e.discoverAll(t)
	handles, release := e.spaces.hold(t.spaces())
	defer release()
	sockets, err := e.kernel.Sockets(ctx, handles, t.number)
	if err != nil {
		return 0, err
	}
	n := 0
	for _, s := range sockets {
		if s.Unsent > 0 {
			n++
		}
	}
	return n, nil
}
