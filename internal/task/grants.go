// SPDX-License-Identifier: Apache-2.0

package task

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"agentguard.dev/agentguard/client"
	"agentguard.dev/agentguard/internal/policy"
)

// Grant lets one task reach g.Destination for g.TTL, or until the task ends.
// Granting the same destination again sets its deadline anew.
func (e *Engine) Grant(ctx context.Context, id string, g client.Grant) (client.Grant, error) {
	if err := e.enter(); err != nil {
		return client.Grant{}, err
	}
	defer e.leave()
	if g.TTL < 0 {
		return client.Grant{}, invalidf("ttl %s: want a positive duration, or none", time.Duration(g.TTL))
	}
	d, err := policy.ParseDestination(g.Destination)
	if err != nil {
		return client.Grant{}, invalidf("grant: %v", err)
	}
	if err := checkTLS(g.TLS); err != nil {
		return client.Grant{}, wrap("grant", err)
	}
	wanted := grant{Destination: d.String()}
	if d.Name != "" {
		wanted.TLS = g.TLS
	}
	t, err := e.lockLive(ctx, id)
	if err != nil {
		return client.Grant{}, err
	}
	defer t.step.unlock()
	return e.grant(ctx, t, wanted, time.Duration(g.TTL))
}

func (e *Engine) grant(ctx context.Context, t *task, wanted grant, ttl time.Duration) (client.Grant, error) {
	t.mu.Lock()
	grants := slices.Clone(t.Grants)
	t.mu.Unlock()
	deadline := deadlineIn(ttl)
	at := slices.IndexFunc(grants, func(g grant) bool { return g.Destination == wanted.Destination })
	existing := at >= 0 && !grants[at].Revoked
	if at < 0 {
		rule, err := e.rules.next()
		if err != nil {
			return client.Grant{}, wrap("grant to task "+t.id, err)
		}
		at = len(grants)
		wanted.Rule = rule
		grants = append(grants, wanted)
	}
	grants[at].TLS, grants[at].Deadline, grants[at].Revoked = wanted.TLS, deadline, false
	if err := e.setGrants(t, grants); err != nil {
		return client.Grant{}, err
	}
	given := grants[at]
	if existing {
		e.recheck(t) // it may say something else of TLS now
	}
	e.scheduleGrant(t, given)
	detail := "until the task ends"
	if ttl != 0 {
		detail = "for " + ttl.String()
	}
	if given.TLS != "" {
		detail += ", tls: " + given.TLS
	}
	e.recordGrant(ctx, t, "add", given.Destination, detail)
	d := given.describe()
	d.TTL, d.Existing = client.Duration(ttl), existing
	return d, nil
}

// setGrants puts grants in force instead of those that the task has, in the
// store and in the kernel, or changes nothing. The caller holds the task's step.
func (e *Engine) setGrants(t *task, grants []grant) error {
	step := "change the grants of task " + t.id
	compiled, err := compileGrants(grants)
	if err != nil {
		return invalidf("%s: %v", step, err)
	}
	if len(compiled.Named) > 0 {
		if err := e.stationFor(t); err != nil {
			return wrap(step, err)
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	before, stored := t.Grants, t.record
	// The store goes first: a crash between the two must not bring a revoked
	// grant back.
	stored.Grants = grants
	if err := e.store.putLive(stored); err != nil {
		return wrap(step, err)
	}
	t.Grants = grants
	if err := e.writeGrants(t, compiled); err != nil {
		t.Grants = before
		if undo := e.store.putLive(t.record); undo != nil {
			e.log.Error("take back a grant in the store", "task", t.id, "err", undo)
		}
		return kernelError(step, err)
	}
	return nil
}

// writeGrants is called with t.mu held.
func (e *Engine) writeGrants(t *task, compiled policy.Compiled) error {
	old := t.granted
	if err := e.maps.Rules.Replace(t.number, compiled); err != nil {
		return err
	}
	next := t.version.kernelRecord(&t.record, compiled)
	if next != t.kernel {
		if err := e.maps.Tasks.Put(t.CgroupID, next); err != nil {
			if undo := e.maps.Rules.Replace(t.number, old); undo != nil {
				e.log.Error("take back a grant in the kernel", "task", t.id, "err", undo)
			}
			return err
		}
	}
	t.granted, t.grantRules, t.kernel = compiled, grantRules(t.Grants), next
	return nil
}

// recheck closes the connections of the relay that t may no longer have.
func (e *Engine) recheck(t *task) {
	if t.hasNames() {
		e.stations.relay.Recheck(t.number)
	}
}

func (e *Engine) scheduleGrant(t *task, g grant) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e.schedule.remove(t.expiries[g.Rule])
	delete(t.expiries, g.Rule)
	if g.Deadline != 0 {
		t.expiries[g.Rule] = e.schedule.add(g.Deadline, alarm{task: t, rule: g.Rule})
	}
}

// Revoke takes back the task's grants that destination covers. When it returns,
// nothing more of the task leaves for them unless its policy allows it.
func (e *Engine) Revoke(ctx context.Context, id, destination string) (client.RevokeResult, error) {
	if err := e.enter(); err != nil {
		return client.RevokeResult{}, err
	}
	defer e.leave()
	d, err := policy.ParseDestination(destination)
	if err != nil {
		return client.RevokeResult{}, invalidf("revoke: %v", err)
	}
	t, err := e.lockLive(ctx, id)
	if err != nil {
		return client.RevokeResult{}, err
	}
	defer t.step.unlock()
	t.mu.Lock()
	grants := slices.Clone(t.Grants)
	rules := t.version.policy.Rules
	t.mu.Unlock()

	result := client.RevokeResult{Revoked: []string{}}
	for i, g := range grants {
		if !g.Revoked && covers(d, g.asRule().To) {
			grants[i].Revoked = true
			result.Revoked = append(result.Revoked, g.Destination)
		}
	}
	result.Warning = e.stillAllowed(t, d, grants, rules, len(result.Revoked) == 0)
	if len(result.Revoked) == 0 {
		return result, nil
	}
	before := t.destroyed.Load()
	if err := e.setGrants(t, grants); err != nil {
		return client.RevokeResult{}, err
	}
	for _, g := range grants {
		if g.Revoked {
			e.scheduleGrant(t, grant{Rule: g.Rule})
		}
	}
	e.recheck(t)
	if _, err := e.sweepTasks(t); err != nil {
		return client.RevokeResult{}, wrap("revoke: the grant is gone and its packets are dropped, but its sockets could not be destroyed", err)
	}
	result.Destroyed = int(t.destroyed.Load() - before)
	for _, gone := range result.Revoked {
		e.recordGrant(ctx, t, "revoke", gone, fmt.Sprintf("%d sockets destroyed", result.Destroyed))
	}
	return result, nil
}

// stillAllowed says what goes on allowing a part of d.
func (e *Engine) stillAllowed(t *task, d policy.Destination, grants []grant, rules []policy.Rule, none bool) string {
	var warnings []string
	if none {
		warnings = append(warnings, fmt.Sprintf("task %s has no grant that %s covers", t.id, d))
	}
	for _, rule := range rules {
		if rule.Direction == policy.Egress && overlaps(d, rule.To) {
			warnings = append(warnings, fmt.Sprintf("the policy still allows it: %s (change it with agentguard policy apply)", rule.Short()))
		}
	}
	for _, g := range grants {
		if !g.Revoked && overlaps(d, g.asRule().To) {
			warnings = append(warnings, "the grant of "+g.Destination+" still allows a part of it")
		}
	}
	return strings.Join(warnings, "; ")
}

// covers says whether every one of to lies within d.
func covers(d policy.Destination, to []policy.Destination) bool {
	return len(to) > 0 && !slices.ContainsFunc(to, func(o policy.Destination) bool { return !d.Covers(o) })
}

// overlaps says whether one of to has flows in common with d.
func overlaps(d policy.Destination, to []policy.Destination) bool {
	return slices.ContainsFunc(to, d.Overlaps)
}

// lockLive returns a live task with its step locked.
func (e *Engine) lockLive(ctx context.Context, id string) (*task, error) {
	t, err := e.find(id)
	if err != nil {
		return nil, err
	}
	if err := t.step.lock(ctx); err != nil {
		return nil, wrap("task "+id, err)
	}
	if t.isLive() {
		return t, nil
	}
	t.step.unlock()
	if d := t.describe(); d.Ended != nil {
		return nil, conflictf("task %s has ended, at %s: begin another one", id, d.Ended.Format(time.RFC3339))
	}
	return nil, notFoundf("task %s: its begin failed", id)
}
