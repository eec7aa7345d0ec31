// SPDX-License-Identifier: Apache-2.0

package task

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"

	"agentguard.dev/agentguard/client"
	"agentguard.dev/agentguard/internal/maps"
	"agentguard.dev/agentguard/internal/names"
)

// Total is what one rule did for all tasks of one agent, ended ones included,
// since the engine was opened.
type Total struct {
	Agent   string
	Rule    string
	Allowed uint64
	Denied  uint64
	Packets uint64
	Bytes   uint64
}

// totals are the counters of tasks that have ended. mu is also held while a
// task's counters move here from the kernel, so that a reader of both sees them
// once.
type totals struct {
	mu    sync.Mutex
	ended map[totalKey]maps.Counter

	queries, requests verdicts
}

// verdicts counts what was decided in this process: allow, deny, would-deny.
type verdicts struct{ allow, deny, wouldDeny atomic.Uint64 }

func (v *verdicts) add(verdict string) {
	switch verdict {
	case names.Allow:
		v.allow.Add(1)
	case names.WouldDeny:
		v.wouldDeny.Add(1)
	default:
		v.deny.Add(1)
	}
}

func (v *verdicts) all() map[string]uint64 {
	return map[string]uint64{
		names.Allow: v.allow.Load(), names.Deny: v.deny.Load(), names.WouldDeny: v.wouldDeny.Load(),
	}
}

type totalKey struct{ agent, rule string }

// Totals adds up the counters of all tasks. Agents without a stored policy are
// put together under the name "", as are the rules that belong to one task.
func (e *Engine) Totals() ([]Total, error) {
	e.totals.mu.Lock()
	defer e.totals.mu.Unlock()
	live, err := e.maps.Counters.All()
	if err != nil {
		return nil, wrap("read counters", err)
	}
	sums := make(map[totalKey]maps.Counter, len(e.totals.ended))
	for key, c := range e.totals.ended {
		sums[key] = c
	}
	for key, c := range live {
		e.mu.Lock()
		t := e.byNumber[key.Task]
		e.mu.Unlock()
		if t != nil && !t.isCounted() {
			add(sums, t.totalKey(key.Rule), c)
		}
	}
	found := make([]Total, 0, len(sums))
	for key, c := range sums {
		found = append(found, Total{key.agent, key.rule, c.Allowed, c.Denied, c.Packets, c.Bytes})
	}
	slices.SortFunc(found, func(a, b Total) int {
		return cmp.Or(cmp.Compare(a.Agent, b.Agent), cmp.Compare(a.Rule, b.Rule))
	})
	return found, nil
}

func add(sums map[totalKey]maps.Counter, key totalKey, c maps.Counter) {
	sum := sums[key]
	sum.Allowed += c.Allowed
	sum.Denied += c.Denied
	sum.Packets += c.Packets
	sum.Bytes += c.Bytes
	sums[key] = sum
}

func (t *task) isCounted() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.counted
}

// totalKey bounds the number of totals: rules of a stored policy have one each.
func (t *task) totalKey(rule uint32) totalKey {
	key := totalKey{rule: "(of one task)"}
	if t.agent != nil {
		key.agent = t.agent.name
	}
	t.mu.Lock()
	isGrant := slices.ContainsFunc(t.Grants, func(g grant) bool { return g.Rule == rule })
	t.mu.Unlock()
	if rule < maps.RuleFirst || t.agent != nil && !isGrant {
		key.rule = t.ruleText(rule)
	}
	return key
}

// countersOf reads the task's counters from the kernel.
func (e *Engine) countersOf(t *task) ([]client.RuleCounters, error) {
	byRule, err := e.maps.Counters.Read(t.number, t.ruleNumbers())
	if err != nil {
		return nil, err
	}
	counters := make([]client.RuleCounters, 0, len(byRule))
	for rule, c := range byRule {
		counters = append(counters, client.RuleCounters{
			Rule: t.ruleText(rule), ID: rule,
			Allowed: c.Allowed, Denied: c.Denied, Packets: c.Packets, Bytes: c.Bytes,
		})
	}
	slices.SortFunc(counters, func(a, b client.RuleCounters) int { return cmp.Compare(a.ID, b.ID) })
	return counters, nil
}

// finalCounters moves the task's counters from the kernel to its record.
func (e *Engine) finalCounters(t *task) {
	e.totals.mu.Lock()
	defer e.totals.mu.Unlock()
	counters, err := e.countersOf(t)
	if err != nil {
		e.log.Error("read the counters of an ended task", "task", t.id, "err", err)
	}
	for _, c := range counters {
		add(e.totals.ended, t.totalKey(c.ID), maps.Counter{Allowed: c.Allowed, Denied: c.Denied, Packets: c.Packets, Bytes: c.Bytes})
	}
	t.mu.Lock()
	t.Counters = counters // before they leave the kernel: Get reads them here or there
	t.mu.Unlock()
	if err := e.maps.Counters.Delete(t.number, t.ruleNumbers()); err != nil {
		e.log.Error("remove the counters of an ended task", "task", t.id, "err", err)
	}
	t.mu.Lock()
	t.counted = true
	t.mu.Unlock()
}
