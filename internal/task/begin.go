// SPDX-License-Identifier: Apache-2.0

package task

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"agentguard.dev/agentguard/client"
	"agentguard.dev/agentguard/internal/cgroup"
	"agentguard.dev/agentguard/internal/loader"
	"agentguard.dev/agentguard/internal/maps"
	"agentguard.dev/agentguard/internal/netns"
)

// Begin begins a task. If a live task has the same id and was begun by the
// same request, that task is returned with Existing set.
func (e *Engine) Begin(ctx context.Context, req client.BeginRequest) (client.Task, error) {
	if err := e.enter(); err != nil {
		return client.Task{}, err
	}
	defer e.leave()
	w, err := readWish(req, e.mount)
	if err != nil {
		return client.Task{}, err
	}
	if err := e.lookUpPolicy(&w); err != nil {
		return client.Task{}, err
	}
	if w.request.ID == "" {
		if w.request.ID = e.cfg.Private; w.request.ID == "" {
			w.request.ID = newID(w.request.Agent)
		}
	}
	for {
		t, mine, err := e.claim(ctx, w.request.ID)
		if err != nil {
			return client.Task{}, err
		}
		if mine {
			defer t.step.unlock()
			return e.beginClaimed(ctx, t, w)
		}
		found, gone, err := existing(t, w)
		t.step.unlock()
		if !gone {
			return found, err
		}
	}
}

// lookUpPolicy makes the stored policy of the wish's agent its own in a private
// engine, which shares none.
func (e *Engine) lookUpPolicy(w *wish) error {
	if e.cfg.Private == "" || w.own != nil || w.request.Agent == "" {
		return nil
	}
	stored, err := e.store.readPolicies(e.cfg.StateDir)
	if err != nil {
		return wrap("look for the policy of agent "+w.request.Agent, err)
	}
	found, ok := stored[w.request.Agent]
	if !ok {
		return nil // versionFor says so
	}
	p, err := parseStored(w.request.Agent, found.Document)
	if err != nil {
		return wrap("look for the policy of agent "+w.request.Agent, err)
	}
	w.own = &p
	return nil
}

// claim returns the task of that id with its step locked, and whether it is a
// new one that the caller is to begin.
func (e *Engine) claim(ctx context.Context, id string) (t *task, mine bool, err error) {
	e.mu.Lock()
	t = e.tasks[id]
	if t == nil {
		if e.cfg.Private != "" && len(e.tasks) > 0 {
			e.mu.Unlock()
			return nil, false, conflictf("begin task %s: an engine without a daemon has one task", id)
		}
		t = newTask(id)
		t.step <- struct{}{}
		e.tasks[id] = t
		e.mu.Unlock()
		return t, true, nil
	}
	e.mu.Unlock()
	if err := t.step.lock(ctx); err != nil {
		return nil, false, wrap("begin task "+id, err)
	}
	return t, false, nil
}

// existing answers a request to begin a task that is there already; gone says
// that its begin failed.
func existing(t *task, w wish) (d client.Task, gone bool, err error) {
	t.mu.Lock()
	state, was, ended := t.state, t.Request, t.Ended
	t.mu.Unlock()
	switch {
	case state == "":
		return d, true, nil
	case state == client.TaskEnded && ended != nil:
		return d, false, conflictf("begin task %s: a task of that id ended at %s: choose another id, or none", t.id, ended.Format(time.RFC3339))
	case state != client.TaskLive:
		return d, false, conflictf("begin task %s: a task of that id is just ending: choose another id, or none", t.id)
	case !same(was, w.request):
		return d, false, conflictf("begin task %s: a task of that id is live and was begun otherwise: choose another id, or end it (agentguard task end %[1]s)", t.id)
	}
	d = t.describe()
	d.Existing = true
	return d, false, nil
}

func (e *Engine) beginClaimed(ctx context.Context, t *task, w wish) (client.Task, error) {
	if w.request.Cgroup != "" {
		e.adopting.Lock()
		defer e.adopting.Unlock()
	}
	var u undo
	if err := u.after(e.begin(ctx, t, w, &u)); err != nil {
		e.mu.Lock()
		delete(e.tasks, t.id)
		e.mu.Unlock()
		return client.Task{}, err
	}
	e.settle(ctx, t)
	e.record(ctx, t, "task", "begin", e.beginDetail(t))
	return t.describe(), nil
}

// begin does everything that can fail. The kernel's record of the task is what
// makes it live; all before that can be taken back unseen.
func (e *Engine) begin(ctx context.Context, t *task, w wish, u *undo) error {
	t.agent = e.sharedAgent(w)
	if t.agent != nil {
		// A change of the policy waits until this task is on record with the
		// version that it found.
		t.agent.change.RLock()
		defer t.agent.change.RUnlock()
	}
	v, err := e.versionFor(t, w)
	if err != nil {
		return err
	}
	if err := e.write(t, w, v); err != nil {
		return err
	}
	if err := e.store.putLive(t.record); err != nil {
		return wrap("begin task "+t.id, err)
	}
	u.add(func() error { return e.store.deleteLive(t.number) })
	dir, err := e.place(t, u)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := e.writeRules(t, v, u); err != nil {
		return err
	}
	if err := e.prepareNames(ctx, t, u); err != nil {
		return err
	}
	return e.enforce(t, v, dir, u)
}

// sharedAgent is the agent whose stored policy the task will share, if any.
func (e *Engine) sharedAgent(w wish) *agent {
	if w.own != nil || w.request.Agent == "" {
		return nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.agents[w.request.Agent]
}

func (e *Engine) versionFor(t *task, w wish) (*version, error) {
	var v *version
	switch {
	case t.agent != nil && t.agent.version != nil:
		v = t.agent.version
	case w.own != nil:
		owner, err := e.owners.next()
		if err != nil {
			return nil, wrap("begin task "+t.id, err)
		}
		if v, err = newVersion(*w.own, owner, nil, e.rules); err != nil {
			return nil, invalidf("begin task %s: %v", t.id, err)
		}
	case w.request.Agent != "":
		return nil, notFoundf("agent %s has no policy: apply one (agentguard policy apply FILE, with the daemon)", w.request.Agent)
	default:
		v = noPolicy()
	}
	if limit, ttl := v.policy.MaxTTL, time.Duration(w.request.TTL); limit != 0 && ttl > limit {
		return nil, invalidf("ttl %s: the policy of agent %s allows at most %s", ttl, v.policy.Name, limit)
	}
	return v, nil
}

// write fills the task's record.
func (e *Engine) write(t *task, w wish, v *version) error {
	number, err := e.owners.next()
	if err != nil {
		return wrap("begin task "+t.id, err)
	}
	grants := make([]grant, 0, len(w.allow))
	for _, d := range w.allow {
		rule, err := e.rules.next()
		if err != nil {
			return wrap("begin task "+t.id, err)
		}
		grants = append(grants, grant{Destination: d.String(), TLS: w.tlsOf(d), Rule: rule})
	}
	ttl := time.Duration(w.request.TTL)
	if ttl == 0 {
		ttl = v.policy.MaxTTL
	}
	path := w.request.Cgroup
	if path == "" {
		path = e.ownPath(t.id)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.number = number
	t.record = record{
		ID: t.id, Number: number, Agent: w.request.Agent, Request: w.request,
		Adopted: w.request.Cgroup != "", Cgroup: path,
		Begun: time.Now().UTC().Round(time.Millisecond), BegunAt: loader.Now(),
		Deadline: deadlineIn(ttl), Grants: grants,
	}
	if w.own != nil {
		t.Own = &v.numbering
	}
	return nil
}

// writeRules writes what only this task owns in the rule maps.
func (e *Engine) writeRules(t *task, v *version, u *undo) error {
	grants, err := compileGrants(t.Grants)
	if err != nil {
		return invalidf("begin task %s: %v", t.id, err)
	}
	rules := e.maps.Rules
	u.add(func() error { return rules.Delete(t.number) })
	if err := rules.Replace(t.number, grants); err != nil {
		return kernelError("begin task "+t.id, err)
	}
	if t.Own != nil {
		u.add(func() error { return rules.Delete(t.Own.Owner) })
		if err := rules.Replace(t.Own.Owner, v.compiled); err != nil {
			return kernelError("begin task "+t.id, err)
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.version, t.granted, t.kernel = v, grants, v.kernelRecord(&t.record, grants)
	t.grantRules = grantRules(t.Grants)
	return nil
}

// prepareNames opens the stations of a task with names before the task is in
// force: where its caller is, and where the processes of an adopted cgroup are.
func (e *Engine) prepareNames(ctx context.Context, t *task, u *undo) error {
	if !t.hasNames() {
		return nil
	}
	u.add(func() error {
		e.stations.leave(t.number)
		for _, id := range t.spaces() {
			e.spaces.release(id)
		}
		return nil
	})
	e.rememberCaller(ctx, t)
	if t.Adopted {
		e.discoverAll(t)
	}
	if err := e.station(t); err != nil {
		return wrap("begin task "+t.id, err)
	}
	return nil
}

// enforce puts the kernel's record in force, and the guard around an adopted
// cgroup. The record comes first, so that what the processes there are allowed
// to do is not denied in between.
func (e *Engine) enforce(t *task, v *version, dir *cgroup.Dir, u *undo) error {
	e.register(t)
	u.add(func() error { e.unregister(t); return nil })
	before, lookup := e.maps.Tasks.Get(dir.ID()) // of a task that left processes here
	if err := e.maps.Tasks.Put(dir.ID(), t.kernel); err != nil {
		return kernelError("begin task "+t.id, err)
	}
	u.add(func() error {
		if lookup == nil {
			return e.maps.Tasks.Put(dir.ID(), before)
		}
		return e.maps.Tasks.Delete(dir.ID())
	})
	if t.OwnGuard {
		if err := e.kernel.Guard(dir, dir.Level()); err != nil {
			return kernelError("begin task "+t.id, err)
		}
	}
	if lookup == nil {
		e.forgetLeftover(dir.ID(), before)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.state = client.TaskLive
	if t.record.Deadline != 0 {
		t.expiry = e.schedule.add(t.record.Deadline, alarm{task: t})
	}
	if !t.Adopted {
		return nil
	}
	// With the cgroup's id in the store a restart knows that the task was in
	// force, and not only about to be.
	if err := e.store.putLive(t.record); err != nil {
		e.log.Error("store a task", "task", t.id, "err", err)
	}
	return nil
}

// Enter says that the caller is about to start a process in a live task, in its
// own network namespace.
func (e *Engine) Enter(ctx context.Context, id string) (client.Task, error) {
	if err := e.enter(); err != nil {
		return client.Task{}, err
	}
	defer e.leave()
	t, err := e.lockLive(ctx, id)
	if err != nil {
		return client.Task{}, err
	}
	defer t.step.unlock()
	e.rememberCaller(ctx, t)
	if err := e.station(t); err != nil {
		return client.Task{}, wrap("enter task "+id, err)
	}
	return t.describe(), nil
}

// settle does for a task that is live what need not hold up anything else: it
// remembers where it and its caller have sockets, and cuts the flows that an
// adopted cgroup had and the task may not have.
func (e *Engine) settle(ctx context.Context, t *task) {
	e.rememberCaller(ctx, t)
	if !t.Adopted {
		return
	}
	if _, err := e.sweepTasks(t); err != nil {
		e.log.Warn("cut what the task found and may not have; its packets are dropped", "task", t.id, "err", err)
	}
}

// rememberCaller keeps the namespace of the process that asked: it is where a
// command that it starts in the task will have its sockets.
func (e *Engine) rememberCaller(ctx context.Context, t *task) {
	caller, ok := callerOf(ctx)
	if !ok {
		return
	}
	path := fmt.Sprintf("/proc/%d/ns/net", caller.PID)
	if id, err := netns.Stat(path); err == nil {
		t.keep(e.spaces, id, path)
	}
}

func (e *Engine) beginDetail(t *task) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	words := []string{"cgroup " + t.Cgroup}
	if t.record.Deadline != 0 {
		words = append(words, "for "+time.Duration(t.record.Deadline-t.BegunAt).Round(time.Millisecond).String())
	}
	if len(t.Request.Allow) > 0 {
		words = append(words, "allowed "+strings.Join(t.Request.Allow, " "))
	}
	return strings.Join(words, ", ")
}

// kernelError gives a failed write to the kernel its code.
func kernelError(step string, err error) error {
	if errors.Is(err, maps.ErrFull) {
		return fullf("%s: %v", step, err)
	}
	return wrap(step, err)
}
