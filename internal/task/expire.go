// SPDX-License-Identifier: Apache-2.0

package task

import (
	"context"
	"slices"
	"time"

	"agentguard.dev/agentguard/internal/loader"
	"agentguard.dev/agentguard/internal/netns"
)

// due is called when a deadline has passed. The kernel has been denying since
// then; what is left is to make programs notice, and to clean up.
func (e *Engine) due(a alarm) {
	e.background.Go(func() {
		if a.rule == 0 {
			e.expireTask(a.task)
		} else {
			e.expireGrant(a.task, a.rule)
		}
	})
}

func (e *Engine) expireTask(t *task) {
	if t.step.lock(e.ctx) != nil {
		return
	}
	defer t.step.unlock()
	// A policy may have moved the deadline since.
	if !t.isLive() || !passed(t.deadline()) {
		return
	}
	if _, err := e.end(context.Background(), t, ending{reason: reasonExpired}); err != nil {
		e.log.Error("end an expired task; it can send nothing", "task", t.id, "err", err)
	}
}

func (e *Engine) expireGrant(t *task, rule uint32) {
	if t.step.lock(e.ctx) != nil {
		return
	}
	defer t.step.unlock()
	if !t.isLive() {
		return
	}
	t.mu.Lock()
	grants := slices.Clone(t.Grants)
	t.mu.Unlock()
	at := slices.IndexFunc(grants, func(g grant) bool { return g.Rule == rule && !g.Revoked && passed(g.Deadline) })
	if at < 0 {
		return // revoked or given anew since
	}
	grants[at].Revoked = true
	if err := e.setGrants(t, grants); err != nil {
		e.log.Error("remove an expired grant; it allows nothing", "task", t.id, "err", err)
	}
	e.recheck(t)
	if _, err := e.sweepTasks(t); err != nil {
		e.log.Error("destroy the sockets of an expired grant; their packets are dropped", "task", t.id, "err", err)
	}
	e.recordGrant(context.Background(), t, "expire", grants[at].Destination, "")
}

// learnedIdle is for how long nothing of a flow in progress has to be seen
// before its address, once expired, is forgotten.
const learnedIdle = time.Minute

// expireLearned frees addresses whose time is over and that no flow uses. The
// listing counts as use of every address that a socket is connected to.
func (e *Engine) expireLearned() {
	if e.maps.Rules.CountLearned() == 0 {
		return
	}
	var in []netns.ID
	for _, t := range e.live() {
		if t.hasNames() {
			in = append(in, t.spaces()...)
		}
	}
	handles, release := e.spaces.hold(in)
	_, err := e.kernel.Sockets(e.ctx, handles, 0)
	release()
	if err == nil {
		_, err = e.maps.Rules.Expire(loader.Now(), learnedIdle)
	}
	if err != nil && e.ctx.Err() == nil {
		e.log.Error("forget addresses whose time is over", "err", err)
	}
}

// passed says whether a deadline lies in the past; 0 is none.
func passed(deadline uint64) bool { return deadline != 0 && deadline <= loader.Now() }
