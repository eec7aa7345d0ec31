// SPDX-License-Identifier: Apache-2.0

package task

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"agentguard.dev/agentguard/client"
	"agentguard.dev/agentguard/internal/loader"
	kernel "agentguard.dev/agentguard/internal/maps"
	"agentguard.dev/agentguard/internal/netns"
	"agentguard.dev/agentguard/internal/policy"
)

// maxHistory is how many ended tasks are remembered, so that ending one again
// is answered as such.
const maxHistory = 4096

// find returns the task of that id, live or ended.
func (e *Engine) find(id string) (*task, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	t := e.tasks[id]
	if t == nil {
		return nil, notFoundf("task %.80s: there is none (agentguard task list shows what there is)", id)
	}
	return t, nil
}

// register makes a task known by its number, its cgroup and its agent.
func (e *Engine) register(t *task) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.byNumber[t.number] = t
	e.places[t.Cgroup] = t
	if t.agent != nil {
		t.agent.tasks[t] = struct{}{}
	}
}

func (e *Engine) unregister(t *task) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.byNumber, t.number)
	e.leavePlace(t)
}

// leavePlace is called with mu held.
func (e *Engine) leavePlace(t *task) {
	if e.places[t.Cgroup] == t {
		delete(e.places, t.Cgroup)
	}
	if t.agent != nil {
		delete(t.agent.tasks, t)
	}
}

// retire moves a task among those that have ended, and returns the number of
// one that is forgotten for it, or 0.
func (e *Engine) retire(t *task, left *leftover) (forget uint32) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.leavePlace(t)
	if left != nil {
		e.leftovers[left.CgroupID] = *left
	}
	e.history = append(e.history, t)
	if len(e.history) <= maxHistory {
		return 0
	}
	oldest := e.history[0]
	e.history = slices.Delete(e.history, 0, 1)
	delete(e.byNumber, oldest.number)
	if e.tasks[oldest.id] == oldest {
		delete(e.tasks, oldest.id)
	}
	return oldest.number
}

// forgetLeftover drops what is remembered of a cgroup whose processes are gone
// or have a task again.
func (e *Engine) forgetLeftover(cgroupID uint64, was kernel.Task) {
	e.mu.Lock()
	_, known := e.leftovers[cgroupID]
	e.mu.Unlock()
	if !known {
		return
	}
	if err := e.store.deleteLeftover(cgroupID); err != nil {
		e.log.Error("forget the cgroup of an ended task", "id", cgroupID, "err", err)
	}
	// What it was denied since its end has been counted.
	always := []uint32{kernel.RuleNone, kernel.RuleLoopback, kernel.RuleReply}
	if err := e.maps.Counters.Delete(was.Number, always); err != nil {
		e.log.Error("remove the counters of an ended task", "number", was.Number, "err", err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.leftovers, cgroupID) // the last, because it says that nothing is left
}

// all returns every task, by number.
func (e *Engine) all() []*task {
	e.mu.Lock()
	defer e.mu.Unlock()
	return byNumber(slices.Collect(maps.Values(e.byNumber)))
}

// live returns the tasks that are in force or ending, by number.
func (e *Engine) live() []*task {
	e.mu.Lock()
	defer e.mu.Unlock()
	return byNumber(slices.Collect(maps.Values(e.places)))
}

func byNumber(tasks []*task) []*task {
	slices.SortFunc(tasks, func(a, b *task) int { return cmp.Compare(a.number, b.number) })
	return tasks
}

func (e *Engine) tasksOf(a *agent) []*task {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Collect(maps.Keys(a.tasks))
}

func (e *Engine) allAgents() []*agent {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Collect(maps.Values(e.agents))
}

// agentNamed returns the agent, made if there was none.
func (e *Engine) agentNamed(name string) (a *agent, fresh bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if a = e.agents[name]; a != nil {
		return a, false
	}
	a = &agent{name: name, tasks: make(map[*task]struct{})}
	e.agents[name] = a
	return a, true
}

func (e *Engine) dropAgent(a *agent) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.agents[a.name] == a {
		delete(e.agents, a.name)
	}
}

// Get describes one task, with its counters.
func (e *Engine) Get(id string) (client.Task, error) {
	if err := e.enter(); err != nil {
		return client.Task{}, err
	}
	defer e.leave()
	t, err := e.find(id)
	if err != nil {
		return client.Task{}, err
	}
	t.mu.Lock()
	state, last := t.state, t.Counters
	t.mu.Unlock()
	switch state {
	case "":
		return client.Task{}, notFoundf("task %s: it is just being begun", id)
	case client.TaskEnded:
		d := t.describe()
		d.Counters = last
		return d, nil
	}
	d := t.describe()
	d.Learned = e.learnedOf(t)
	if d.Counters, err = e.countersOf(t); err != nil {
		return client.Task{}, wrap("task "+id, err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.Counters != nil {
		d.Counters = t.Counters // an end has come in between
	}
	return d, nil
}

// maxLearned bounds the names of one description.
const maxLearned = 100

// learnedOf are the names that t may reach now, with their addresses.
func (e *Engine) learnedOf(t *task) []client.LearnedName {
	now := t.rules(e, 0)
	addresses := make(map[policy.Name][]netip.Addr)
	for _, owner := range now.owners {
		for name, addrs := range e.maps.Rules.Known(owner, loader.Now()) {
			addresses[name] = append(addresses[name], addrs...)
		}
	}
	var found []client.LearnedName
	for _, name := range slices.Sorted(maps.Keys(addresses)) {
		if len(found) == maxLearned {
			break
		}
		addrs := addresses[name]
		slices.SortFunc(addrs, netip.Addr.Compare)
		addrs = slices.Compact(addrs)
		found = append(found, client.LearnedName{
			Name: string(name), Addresses: addressTexts(addrs), More: max(len(addrs)-maxAddresses, 0),
		})
	}
	return found
}

// List describes tasks, oldest first, without their counters.
func (e *Engine) List(filter client.TaskFilter) []client.Task {
	found := []client.Task{}
	for _, t := range e.all() {
		d := t.describe()
		if d.State == "" || filter.Agent != "" && filter.Agent != d.Agent || filter.State != "" && filter.State != d.State {
			continue
		}
		found = append(found, d)
	}
	return found
}

// sweepTasks makes what was written to the maps before the call hold for every
// socket of the tasks, wherever their processes stand now. It returns how many
// sockets of each task it destroyed.
func (e *Engine) sweepTasks(tasks ...*task) (map[uint32]int, error) {
	var in []netns.ID
	for _, t := range tasks {
		e.discoverAll(t)
		in = append(in, t.spaces()...)
	}
	return e.sweeper.sweep(e.ctx, in)
}
