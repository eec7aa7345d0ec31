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
		Name:    event.Name,
	}
	if event.PID != 0 {
		r.UID = &event.UID
	}
	e.openers.know(event)
	if wantsName(event.Reason) && event.PID == 0 {
		if opener, ok := e.openers.of(event.Cookie); ok {
			r.PID, r.UID, r.Process = opener.pid, &opener.uid, opener.process
		}
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
	if wantsName(event.Reason) && t.version != nil {
		r.Expected = e.expected(t, event.Addr)
	}
	if event.Verdict != loader.Allow && t.state == client.TaskLive {
		r.Hint = e.hint(t, event, r)
	}
}

// hint is the one command that would allow what was denied, where there is one.
func (e *Engine) hint(t *task, event loader.Event, r *client.Record) string {
	switch event.Reason {
	case loader.ReasonNoRule, loader.ReasonRuleExpired, loader.ReasonNotOwn:
		return e.grantHint(t, r.Dest, "")
	case loader.ReasonSNI:
		return e.nameHint(t, event.Name, event.Port, "")
	case loader.ReasonNotTLS, loader.ReasonNoSNI, loader.ReasonECH, loader.ReasonHello, loader.ReasonShared:
		if len(r.Expected) > 0 {
			return e.nameHint(t, r.Expected[0], event.Port, tlsOff)
		}
	case loader.ReasonQUIC:
		// A connect sends nothing: the C library's look-ups sort addresses by it.
		if event.Hook != loader.HookConnect && len(r.Expected) > 0 {
			return e.grantHint(t, fmt.Sprintf("udp://%s:%d", r.Expected[0], event.Port), tlsOff)
		}
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

// wantsName says whether a flow was denied for what it showed, or did not show,
// of the name that its address is allowed for.
func wantsName(reason loader.Reason) bool {
	switch reason {
	case loader.ReasonQUIC, loader.ReasonNotTLS, loader.ReasonNoSNI, loader.ReasonSNI, loader.ReasonECH,
		loader.ReasonHello, loader.ReasonShared, loader.ReasonHTTP:
		return true
	}
	return false
}

// maxExpected bounds the names of one record.
const maxExpected = 4

// expected are the names for which a task has learned an address. The caller
// holds t.mu.
func (e *Engine) expected(t *task, addr netip.Addr) []string {
	var texts []string
	for _, name := range e.learnedNames([2]uint32{t.version.numbering.Owner, t.number}, addr) {
		if len(texts) < maxExpected {
			texts = append(texts, string(name))
		}
	}
	return texts
}

// nameHint is the command that allows a name, if it is one.
func (e *Engine) nameHint(t *task, name string, port uint16, tls string) string {
	if _, err := policy.ParseName(name); err != nil {
		return ""
	}
	return e.grantHint(t, fmt.Sprintf("%s:%d", name, port), tls)
}

// grantHint is the command that allows a destination, if it is one.
func (e *Engine) grantHint(t *task, dest, tls string) string {
	d, err := policy.ParseDestination(dest)
	if err != nil {
		return ""
	}
	if tls != "" {
		tls = " --tls " + tls
	}
	if e.cfg.Private != "" {
		return fmt.Sprintf("agentguard run --allow '%s'%s", d, tls)
	}
	return fmt.Sprintf("agentguard task grant %s '%s'%s --ttl 10m", t.id, d, tls)
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
	if event.Verdict != loader.Deny || event.Hook != loader.HookEgress || event.Proto != policy.TCP {
		return
	}
	// A packet of a connection that was allowed once, or has shown a wrong name:
	// its program is to notice.
	switch {
	case event.Reason == loader.ReasonNotOwn, event.Reason == loader.ReasonIngress:
	case wantsName(event.Reason):
		e.sweepSoon(t, refusedInterval)
	default:
		e.sweepSoon(t, sweepInterval)
	}
}

// seek looks for a namespace of a task that is not known yet: in the process
// that was seen there, or in all of them, but not over and over.
func (e *Engine) seek(t *task, pid int) {
	if pid != 0 {
		e.discover(t, pid)
		return
	}
	t.mu.Lock()
	soon := time.Since(t.sought) < seekInterval
	if !soon {
		t.sought = time.Now()
	}
	t.mu.Unlock()
	if !soon {
		e.background.Go(func() { e.discoverAll(t) })
	}
}

// How often a task can make the engine look for its namespaces, and for
// sockets that are to be destroyed because a packet was denied.
const (
	seekInterval    = time.Second
	sweepInterval   = time.Second
	refusedInterval = 100 * time.Millisecond
)

// sweepSoon starts a sweep on behalf of t: at once, or when the interval since
// the last one is over. What is asked for meanwhile waits for the same one.
func (e *Engine) sweepSoon(t *task, interval time.Duration) {
	t.mu.Lock()
	asked := t.sweeping
	t.sweeping = true
	wait := interval - time.Since(t.swept)
	t.mu.Unlock()
	if asked {
		return
	}
	// Not here: a sweep waits for the reader of events, which this is.
	e.background.Go(func() {
		select {
		case <-time.After(max(wait, 0)):
		case <-e.ctx.Done():
		case <-e.closing.Done():
		}
		t.mu.Lock()
		t.sweeping, t.swept = false, time.Now()
		t.mu.Unlock()
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
