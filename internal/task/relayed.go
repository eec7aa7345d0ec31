// SPDX-License-Identifier: Apache-2.0

package task

import (
	"net/netip"
	"slices"

	"agentguard.dev/agentguard/client"
	"agentguard.dev/agentguard/internal/policy"
	"agentguard.dev/agentguard/internal/relay"
)

// relaySide is the engine as the relay sees it.
type relaySide struct{ *Engine }

// Asker implements relay.Authority.
func (r relaySide) Asker(netns uint64, src netip.AddrPort) (relay.Asker, bool) {
	asker, t, ok := r.asker(netns, policy.TCP, src)
	if !ok {
		return relay.Asker{}, false
	}
	return relay.Asker{
		Task: t.number, ID: t.id, PID: asker.PID, UID: asker.UID, Process: asker.Process, To: asker.To,
		Rules: relayRules{r.Engine, t, netns},
	}, true
}

// relayRules are those of a task whenever the relay asks: a connection outlives
// changes of them.
type relayRules struct {
	engine *Engine
	task   *task
	netns  uint64
}

// Allows implements relay.Rules.
func (r relayRules) Allows(host string, to netip.AddrPort) bool {
	return r.task.isLive() && r.task.rules(r.engine, r.netns).allowsHTTP(host, to)
}

// Audit implements relay.Rules.
func (r relayRules) Audit() bool {
	return r.task.isLive() && r.task.rules(r.engine, r.netns).mode == policy.Audit
}

// Hint implements relay.Rules.
func (r relayRules) Hint(host string, to netip.AddrPort) string {
	return r.engine.nameHint(r.task, host, to.Port(), "")
}

// allowsHTTP says whether a request for host may go to an address: a live rule
// says HTTP of that port, and the address was learned for its name.
func (r *rules) allowsHTTP(host string, to netip.AddrPort) bool {
	for i, compiled := range r.named {
		if compiled == nil {
			continue
		}
		learned := r.engine.maps.Rules.LearnedNames(r.owners[i], to.Addr())
		for _, n := range compiled.Matching(host) {
			check, ok := n.CheckOf(to.Port())
			if ok && check != policy.CheckTLS && n.Proto == policy.TCP && !passed(n.Deadline) && slices.Contains(learned, n.Name) {
				return true
			}
		}
	}
	return false
}

// Record implements relay.Authority.
func (r relaySide) Record(q relay.Record) {
	r.totals.requests.add(q.Verdict)
	record := client.Record{
		Kind: "http", Verdict: q.Verdict, Reason: q.Reason, Name: q.Host, Type: q.Method,
		Dest: "tcp://" + q.To.String(), PID: q.PID, Process: q.Process,
	}
	if q.PID != 0 {
		record.UID = &q.UID
	}
	r.mu.Lock()
	t := r.byNumber[q.Task]
	r.mu.Unlock()
	if t != nil {
		r.attributeName(&record, t, q.Verdict != relay.Allow, q.To.Port())
	}
	r.records.add(record)
}
