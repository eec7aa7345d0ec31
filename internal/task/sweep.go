// SPDX-License-Identifier: Apache-2.0

package task

import (
	"context"
	"fmt"

	"agentguard.dev/agentguard/internal/loader"
	"agentguard.dev/agentguard/internal/netns"
)

// sweeper makes one sweep out of all that are asked for while another runs:
// ending a thousand tasks at once walks the sockets a few times, not a
// thousand.
type sweeper struct {
	kernel     *loader.Kernel
	namespaces *namespaces
	requests   chan *sweepRequest
	destroyed  func(task uint32) // told of each socket
}

// sweepRequest is one caller's wish that everything written to the maps before
// it be in force for every socket in the namespaces.
type sweepRequest struct {
	namespaces []netns.ID
	done       chan struct{}
	destroyed  map[uint32]int // sockets, by task number
	err        error
}

func newSweeper(kernel *loader.Kernel, namespaces *namespaces, destroyed func(task uint32)) *sweeper {
	return &sweeper{kernel: kernel, namespaces: namespaces, requests: make(chan *sweepRequest, 1024), destroyed: destroyed}
}

// sweep returns when no program sees what the maps held before the call, every
// socket in the namespaces and in the engine's own that is no longer allowed
// is destroyed, and all denials up to then are in the audit log. It returns how
// many sockets of each task went in the sweep that served the call.
func (s *sweeper) sweep(ctx context.Context, in []netns.ID) (map[uint32]int, error) {
	r := &sweepRequest{namespaces: in, done: make(chan struct{})}
	select {
	case s.requests <- r:
	case <-ctx.Done():
		return nil, fmt.Errorf("sweep sockets: %w", context.Cause(ctx))
	}
	select {
	case <-r.done:
		return r.destroyed, r.err
	case <-ctx.Done():
		return nil, fmt.Errorf("sweep sockets: %w", context.Cause(ctx))
	}
}

// run serves requests until ctx ends.
func (s *sweeper) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case first := <-s.requests:
			s.serve(ctx, s.gather(first))
		}
	}
}

// gather adds to first all that wait already.
func (s *sweeper) gather(first *sweepRequest) []*sweepRequest {
	batch := []*sweepRequest{first}
	for {
		select {
		case r := <-s.requests:
			batch = append(batch, r)
		default:
			return batch
		}
	}
}

func (s *sweeper) serve(ctx context.Context, batch []*sweepRequest) {
	var ids []netns.ID
	for _, r := range batch {
		ids = append(ids, r.namespaces...)
	}
	destroyed, err := s.once(ctx, ids)
	for _, r := range batch {
		r.destroyed, r.err = destroyed, err
		close(r.done)
	}
}

func (s *sweeper) once(ctx context.Context, ids []netns.ID) (map[uint32]int, error) {
	if err := loader.Barrier(); err != nil {
		return nil, err
	}
	handles, release := s.namespaces.hold(ids)
	defer release()
	result, err := s.kernel.Sweep(ctx, handles)
	if err != nil {
		return nil, err
	}
	destroyed := make(map[uint32]int)
	for _, socket := range result.Sockets {
		if socket.Destroyed {
			destroyed[socket.Task]++
			s.destroyed(socket.Task)
		}
	}
	return destroyed, s.kernel.Flush(ctx)
}
