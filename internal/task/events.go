// SPDX-License-Identifier: Apache-2.0

package task

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"agentguard.dev/agentguard/client"
	"agentguard.dev/agentguard/internal/loader"
	"agentguard.dev/agentguard/internal/policy"
)

// readEvents turns the kernel's decisions into audit records until ctx ends.
func (e *Engine) readEvents(ctx context.Context) {
	if err := e.kernel.Events(ctx, e.decided); err != nil {
		e.problems.set("events", "the audit log has no decisions: "+err.Error()+": restart agentguard")
	}
}

// decided is called for one decision of the kernel at a time.
func (e *Engine) decided(event loader.Event) {
	e.mu.Lock()
	t := e.byNumber[event.Task]
	e.mu.Unlock()
	r := client.Record{
		Time:    eventTime(event.Time),
		Kind:    "decision",
		Verdict: event.Verdict.String(),
		Reason:  event.Reason.String(),
		Hook:    event.Hook.String(),
		PID:     event.PID,
		Process: event.Process,
		Dest:    destinationOf(event),
		Detail:  detailOf(event),
	}
	if event.PID != 0 {
		r.UID = &event.UID
	}
	if t != nil {
		e.attribute(&r, t, event)
		e.follow(t, event)
	}
	e.records.add(r)
}

// attribute says whose decision it was.
func (e *Engine) attribute(r *client.Record, t *task, event loader.Event) {
	if event.Rule != 0 {
		r.Rule = t.ruleText(event.Rule)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	r.Task, r.Agent, r.Purpose = t.id, t.Agent, t.Request.Purpose
	if event.Verdict != loader.Allow && t.state == client.TaskLive {
		r.Hint = e.hint(t, event, r.Dest)
	}
}

// hint is the one command that would allow what was denied, where there is one.
func (e *Engine) hint(t *task, event loader.Event, dest string) string {
	switch event.Reason {
	case loader.ReasonNoRule, loader.ReasonRuleExpired, loader.ReasonNotOwn:
		d, err := policy.ParseDestination(dest)
		if err != nil {
			return ""
		}
		if e.cfg.Private != "" {
			return fmt.Sprintf("agentguard run --allow '%s'", d)
		}
		return fmt.Sprintf("agentguard task grant %s '%s' --ttl 10m", t.id, d)
	case loader.ReasonIngress:
		return e.policyHint(t, "an ingress rule for the peer")
	case loader.ReasonSocket:
		switch {
		case event.Detail&0xffff == protocolMPTCP:
			return e.policyHint(t, "mptcp: allow")
		case event.Detail>>16 == socketRaw:
			return e.policyHint(t, "raw: allow")
		}
	}
	return ""
}

// policyHint says how a task gets what only a policy can give.
func (e *Engine) policyHint(t *task, what string) string {
	switch {
	case e.cfg.Private != "":
		return "agentguard run --policy FILE, with " + what
	case t.agent == nil:
		return "agentguard task begin --policy FILE, with " + what
	default:
		return "agentguard policy apply FILE, with " + what + " for agent " + t.agent.name
	}
}

// follow does for a task what its events call for.
func (e *Engine) follow(t *task, event loader.Event) {
	if !e.spaces.known(event.Netns) {
		e.seek(t, int(event.PID))
	}
	// A packet of a connection that was allowed once: its program is to notice.
	if event.Verdict == loader.Deny && event.Hook == loader.HookEgress && event.Proto == policy.TCP &&
		event.Reason != loader.ReasonNotOwn && event.Reason != loader.ReasonIngress {
		e.sweepSoon(t)
	}
}

// seek looks for a namespace of a task that is not known yet: in the process
// that was seen there, or in all of them, but not over and over.
func (e *Engine) seek(t *task, pid int) {
	if pid != 0 {
		t.discover(e.spaces, pid)
		return
	}
	t.mu.Lock()
	soon := time.Since(t.sought) < seekInterval
	if !soon {
		t.sought = time.Now()
	}
	t.mu.Unlock()
	if !soon {
		e.background.Go(func() { t.discoverAll(e.spaces) })
	}
}

const (
	seekInterval  = time.Second
	sweepInterval = time.Second
)

// sweepSoon starts a sweep on behalf of t, but not over and over.
func (e *Engine) sweepSoon(t *task) {
	t.mu.Lock()
	soon := time.Since(t.swept) < sweepInterval
	if !soon {
		t.swept = time.Now()
	}
	t.mu.Unlock()
	if soon {
		return
	}
	// Not here: a sweep waits for the reader of events, which this is.
	e.background.Go(func() {
		if _, err := e.sweepTasks(t); err != nil && e.ctx.Err() == nil {
			e.log.Error("destroy sockets that are no longer allowed; their packets are dropped", "task", t.id, "err", err)
		}
	})
}

func eventTime(boot uint64) time.Time {
	return time.Now().Add(time.Duration(int64(boot - loader.Now()))).UTC()
}

// destinationOf is the destination in the form of a rule: proto://addr:port.
// For an ingress decision it is the peer with the task's own port.
func destinationOf(event loader.Event) string {
	if event.Proto == 0 || !event.Addr.IsValid() {
		return ""
	}
	if !event.Proto.HasPorts() {
		host := event.Addr.String()
		if event.Addr.Is6() {
			host = "[" + host + "]"
		}
		return event.Proto.String() + "://" + host
	}
	return event.Proto.String() + "://" + netip.AddrPortFrom(event.Addr, event.Port).String()
}

// Kinds of sockets that details name.
const (
	socketRaw     = 3
	protocolMPTCP = 262
)

func detailOf(event loader.Event) string {
	high, low := event.Detail>>16, event.Detail&0xffff
	switch event.Hook {
	case loader.HookSockCreate:
		switch {
		case low == protocolMPTCP:
			return "MPTCP socket"
		case high == socketRaw:
			return fmt.Sprintf("raw socket, protocol %d", low)
		default:
			return fmt.Sprintf("socket type %d, protocol %d", high, low)
		}
	case loader.HookSetsockopt:
		return fmt.Sprintf("option %d of level %d", low, high)
	}
	if event.Direction == policy.Ingress {
		return "from a peer"
	}
	if event.Task == 0 && event.Cgroup != 0 {
		return fmt.Sprintf("cgroup %d", event.Cgroup)
	}
	return ""
}
