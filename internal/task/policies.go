// SPDX-License-Identifier: Apache-2.0

package task

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"agentguard.dev/agentguard/client"
	"agentguard.dev/agentguard/internal/policy"
)

// agent is a workload identity with a stored policy, which its tasks share.
type agent struct {
	name string

	// change is held for reading while a task takes the version up, and for
	// writing while it is replaced. It guards version and applied.
	change  sync.RWMutex
	version *version // nil once the policy is deleted
	applied time.Time

	tasks map[*task]struct{} // guarded by the engine's mu
}

// ValidatePolicies checks every document of a policy file as ApplyPolicies
// would. The file name appears in errors only.
func ValidatePolicies(file string, data []byte) ([]client.Policy, error) {
	parsed, err := parsePolicies(file, data)
	if err != nil {
		return nil, err
	}
	numbers := &sequence{reserve: func(uint32) error { return nil }}
	found := make([]client.Policy, 0, len(parsed))
	for _, p := range parsed {
		if _, err := newVersion(p, 0, nil, numbers); err != nil {
			return nil, invalidf("%s: policy %s: %v", file, p.Name, err)
		}
		found = append(found, client.Policy{
			Name: p.Name, Mode: p.Mode.String(), Rules: len(p.Rules), Notes: p.Notes, Document: p.Document,
		})
	}
	return found, nil
}

func parsePolicies(file string, data []byte) ([]policy.Policy, error) {
	parsed, err := policy.Parse(file, data)
	if err != nil {
		return nil, invalidf("%v", err)
	}
	if len(parsed) == 0 {
		return nil, invalidf("%s: no AgentPolicy document", file)
	}
	return parsed, nil
}

// change is one document of an apply on its way.
type change struct {
	agent  *agent
	from   *version // nil for a new policy
	to     *version
	action string // created, updated or unchanged
	since  time.Time
	tasks  []*task
}

// ApplyPolicies applies every AgentPolicy document in data, or none. The file
// name appears in errors only.
func (e *Engine) ApplyPolicies(ctx context.Context, file string, data []byte) (client.ApplyResult, error) {
	if err := e.enter(); err != nil {
		return client.ApplyResult{}, err
	}
	defer e.leave()
	if e.cfg.Private != "" {
		return client.ApplyResult{}, invalidf("apply policies: an engine without a daemon stores none")
	}
	parsed, err := parsePolicies(file, data)
	if err != nil {
		return client.ApplyResult{}, err
	}
	e.applying.Lock()
	defer e.applying.Unlock()

	var u undo
	changes, err := e.applyAll(parsed, file, &u)
	if err := u.after(err); err != nil {
		return client.ApplyResult{}, err
	}
	return e.applied(ctx, changes)
}

// applyAll puts new versions in force. On an error the caller takes back what
// stands in u.
func (e *Engine) applyAll(parsed []policy.Policy, file string, u *undo) ([]change, error) {
	changes := make([]change, 0, len(parsed))
	for _, p := range parsed {
		if slices.ContainsFunc(changes, func(c change) bool { return c.agent.name == p.Name }) {
			return nil, invalidf("%s: policy %s: it is there twice", file, p.Name)
		}
		c, err := e.prepare(p, file, u)
		if err != nil {
			return nil, err
		}
		changes = append(changes, c)
	}
	// Before the locks: no task that begins waits for the disk.
	if err := e.storePolicies(changes, u); err != nil {
		return nil, err
	}
	// The locks of several agents are taken in one order, though nobody else
	// takes more than one.
	inOrder := slices.Clone(changes)
	slices.SortFunc(inOrder, func(a, b change) int { return cmp.Compare(a.agent.name, b.agent.name) })
	for _, c := range inOrder {
		c.agent.change.Lock()
		defer c.agent.change.Unlock()
	}
	for i := range changes {
		if err := e.swap(&changes[i], u); err != nil {
			return nil, err
		}
	}
	for _, c := range changes {
		c.agent.version, c.agent.applied = c.to, c.since
	}
	return changes, nil
}

// prepare compiles p and, if it means something new, writes its rules beside
// those of the version in force.
func (e *Engine) prepare(p policy.Policy, file string, u *undo) (change, error) {
	a, fresh := e.agentNamed(p.Name)
	if fresh {
		u.add(func() error { e.dropAgent(a); return nil })
	}
	old := a.version // applying is held: nobody else changes it
	var known map[string]uint32
	if old != nil {
		known = old.numbering.Rules
		if sameMeaning(old.policy, p) {
			to := *old
			to.policy.Document, to.numbering.Document = p.Document, p.Document
			return change{agent: a, from: old, to: &to, action: "unchanged", since: a.applied}, nil
		}
		known = e.countedRules(a, known)
	}
	owner, err := e.owners.next()
	if err != nil {
		return change{}, wrap("apply policy "+p.Name, err)
	}
	to, err := newVersion(p, owner, known, e.rules)
	if err != nil {
		return change{}, invalidf("%s: policy %s: %v", file, p.Name, err)
	}
	u.add(func() error { return e.maps.Rules.Delete(owner) })
	if err := e.maps.Rules.Replace(owner, to.compiled); err != nil {
		return change{}, kernelError("apply policy "+p.Name, err)
	}
	action := "updated"
	if old == nil {
		action = "created"
	}
	return change{agent: a, from: old, to: to, action: action, since: time.Now().UTC().Round(time.Millisecond)}, nil
}

// sameMeaning says whether two policies allow the same under the same
// conditions.
func sameMeaning(a, b policy.Policy) bool {
	sameRules := slices.EqualFunc(a.Rules, b.Rules, func(x, y policy.Rule) bool { return x.String() == y.String() })
	return sameRules && a.Mode == b.Mode && a.Loopback == b.Loopback && a.MPTCP == b.MPTCP && a.Raw == b.Raw &&
		a.Multicast == b.Multicast && a.MaxTTL == b.MaxTTL && a.OnEnd == b.OnEnd
}

// countedRules leaves out the numbers of rules of earlier versions that no live
// task of the agent has counters of.
func (e *Engine) countedRules(a *agent, known map[string]uint32) map[string]uint32 {
	current := make(map[string]bool)
	for _, rule := range a.version.policy.Rules {
		current[ruleName(rule)] = true
	}
	if len(current) == len(known) {
		return known
	}
	counters, err := e.maps.Counters.All()
	if err != nil {
		return known
	}
	counted := make(map[uint32]bool)
	for key := range counters {
		counted[key.Rule] = true
	}
	kept := make(map[string]uint32, len(known))
	for text, number := range known {
		if current[text] || counted[number] {
			kept[text] = number
		}
	}
	return kept
}

// storePolicies makes the new documents the ones that a restart finds.
func (e *Engine) storePolicies(changes []change, u *undo) error {
	before, after := make(map[string]*storedPolicy), make(map[string]*storedPolicy)
	for _, c := range changes {
		after[c.agent.name] = &storedPolicy{Document: c.to.policy.Document, Applied: c.since}
		before[c.agent.name] = nil
		if c.from != nil {
			before[c.agent.name] = &storedPolicy{Document: c.from.policy.Document, Applied: c.agent.applied}
		}
	}
	if err := e.store.putPolicies(after); err != nil {
		return wrap("apply policies", err)
	}
	u.add(func() error { return e.store.putPolicies(before) })
	return nil
}

// swap moves every task of the agent to the new version, each in one step of
// the kernel. The agent's change is held.
func (e *Engine) swap(c *change, u *undo) error {
	if c.action == "unchanged" {
		c.tasks = e.tasksOf(c.agent)
		return nil
	}
	tasks := e.tasksOf(c.agent)
	if len(c.to.compiled.Named) > 0 {
		for _, t := range tasks {
			if err := e.stationFor(t); err != nil {
				return wrap("apply policy "+c.agent.name+" to task "+t.id, err)
			}
		}
	}
	// Nothing is learned between what the new version takes over and the last
	// task's change to it.
	e.learning.Lock()
	defer e.learning.Unlock()
	if c.from != nil {
		if err := e.maps.Rules.Inherit(c.from.numbering.Owner, c.to.numbering.Owner); err != nil {
			return kernelError("apply policy "+c.agent.name, err)
		}
	}
	for _, t := range tasks {
		before := t.deadline()
		done, err := e.move(t, c.to, t.capped(c.to.policy.MaxTTL))
		if err != nil {
			return kernelError("apply policy "+c.agent.name+" to task "+t.id, err)
		}
		if !done {
			continue
		}
		c.tasks = append(c.tasks, t)
		u.add(func() error {
			_, err := e.move(t, c.from, before)
			return err
		})
	}
	return nil
}

func (t *task) deadline() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.record.Deadline
}

// capped is the task's deadline under a policy with that maxTTL: never later
// than it was.
func (t *task) capped(maxTTL time.Duration) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	if maxTTL == 0 {
		return t.record.Deadline
	}
	return earlier(t.record.Deadline, t.BegunAt+uint64(maxTTL))
}

// move puts a live task under another version of its policy.
func (e *Engine) move(t *task, to *version, deadline uint64) (done bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.state != client.TaskLive {
		return false, nil
	}
	next := t.record
	next.Deadline = deadline
	record := to.kernelRecord(&next, e.maps.Rules.Get(t.number))
	if err := e.maps.Tasks.Put(t.CgroupID, record); err != nil {
		return false, err
	}
	t.version, t.kernel = to, record
	if deadline != t.record.Deadline {
		t.record.Deadline = deadline
		e.schedule.remove(t.expiry)
		t.expiry = nil
		if deadline != 0 {
			t.expiry = e.schedule.add(deadline, alarm{task: t})
		}
		if err := e.store.putLive(t.record); err != nil {
			e.log.Error("store a task's deadline", "task", t.id, "err", err)
		}
	}
	return true, nil
}

// applied finishes an apply that is in force: it removes the versions that no
// task uses any more and cuts the flows that are no longer allowed.
func (e *Engine) applied(ctx context.Context, changes []change) (client.ApplyResult, error) {
	numberings := make(map[string]*numbering)
	var swept []*task
	for _, c := range changes {
		numberings[c.agent.name] = &c.to.numbering
		if c.action == "updated" {
			swept = append(swept, c.tasks...)
		}
	}
	if err := e.store.putNumberings(numberings); err != nil {
		e.log.Error("store rule numbers; counters may begin anew after a restart", "err", err)
	}
	var destroyed map[uint32]int
	var err error
	if len(swept) > 0 {
		destroyed, err = e.sweepTasks(swept...)
		for _, t := range swept {
			e.recheck(t)
		}
	}
	for _, c := range changes {
		if c.action != "updated" {
			continue
		}
		if err := e.maps.Rules.Delete(c.from.numbering.Owner); err != nil {
			e.log.Error("remove the rules of an earlier policy", "policy", c.agent.name, "err", err)
		}
	}
	var result client.ApplyResult
	for _, c := range changes {
		done := client.AppliedPolicy{Name: c.agent.name, Action: c.action, Tasks: len(c.tasks)}
		for _, t := range c.tasks {
			done.Destroyed += destroyed[t.number]
		}
		result.Policies = append(result.Policies, done)
		e.recordPolicy(ctx, c.agent.name, "apply", c.action)
	}
	return result, wrap("the policies are in force, but sockets that they no longer allow could not be destroyed; their packets are dropped", err)
}

// Policies describes the policies by name, without their documents.
func (e *Engine) Policies() []client.Policy {
	var found []client.Policy
	for _, a := range e.allAgents() {
		if p, ok := e.describePolicy(a); ok {
			p.Document = ""
			found = append(found, p)
		}
	}
	slices.SortFunc(found, func(a, b client.Policy) int { return cmp.Compare(a.Name, b.Name) })
	return found
}

// Policy describes one policy with its document.
func (e *Engine) Policy(name string) (client.Policy, error) {
	e.mu.Lock()
	a := e.agents[name]
	e.mu.Unlock()
	if a != nil {
		if p, ok := e.describePolicy(a); ok {
			return p, nil
		}
	}
	return client.Policy{}, notFoundf("policy %s: there is none (agentguard policy list shows what there is)", name)
}

func (e *Engine) describePolicy(a *agent) (p client.Policy, ok bool) {
	tasks := len(e.tasksOf(a))
	a.change.RLock()
	defer a.change.RUnlock()
	if a.version == nil {
		return p, false
	}
	return client.Policy{
		Name: a.name, Version: a.version.numbering.Owner, Mode: a.version.policy.Mode.String(),
		Rules: len(a.version.policy.Rules), Tasks: tasks, Applied: a.applied, Document: a.version.policy.Document,
	}, true
}

// DeletePolicy removes a policy that no live task uses.
func (e *Engine) DeletePolicy(ctx context.Context, name string) error {
	if err := e.enter(); err != nil {
		return err
	}
	defer e.leave()
	e.applying.Lock()
	defer e.applying.Unlock()
	e.mu.Lock()
	a := e.agents[name]
	e.mu.Unlock()
	if a == nil || e.cfg.Private != "" {
		return notFoundf("policy %s: there is none (agentguard policy list shows what there is)", name)
	}
	a.change.Lock()
	defer a.change.Unlock()
	if n := len(e.tasksOf(a)); n > 0 {
		return conflictf("policy %s: %d live tasks use it: end them first (agentguard task list --agent %[1]s)", name, n)
	}
	if err := e.store.putPolicies(map[string]*storedPolicy{name: nil}); err != nil {
		return wrap("delete policy "+name, err)
	}
	owner := a.version.numbering.Owner
	a.version = nil
	e.dropAgent(a)
	if err := e.store.putNumberings(map[string]*numbering{name: nil}); err != nil {
		e.log.Error("forget rule numbers", "err", err)
	}
	if err := e.maps.Rules.Delete(owner); err != nil {
		e.log.Error("remove the rules of a deleted policy", "policy", name, "err", err)
	}
	e.recordPolicy(ctx, name, "delete", "")
	return nil
}
