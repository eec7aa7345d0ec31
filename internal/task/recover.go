// SPDX-License-Identifier: Apache-2.0

package task

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"agentguard.dev/agentguard/client"
	"agentguard.dev/agentguard/internal/cgroup"
	"agentguard.dev/agentguard/internal/loader"
	"agentguard.dev/agentguard/internal/maps"
	"agentguard.dev/agentguard/internal/policy"
)

// recovery brings the store and the kernel's maps together by difference: what
// agrees is not touched, so that nothing is allowed or denied in between.
type recovery struct {
	*Engine
	inKernel map[uint64]maps.Task // by cgroup id; what is accounted for is taken out
	used     map[uint32]bool      // owners of rules
	ends     map[*task]ending
}

func (e *Engine) recover(ctx context.Context) error {
	lost, err := e.store.sameBoot()
	if err != nil {
		return err
	}
	r := &recovery{Engine: e, used: make(map[uint32]bool), ends: make(map[*task]ending)}
	if r.inKernel, err = e.maps.Tasks.All(); err != nil {
		return err
	}
	if err := r.sequences(); err != nil {
		return err
	}
	if err := r.loadHistory(); err != nil {
		return err
	}
	if err := r.loadPolicies(); err != nil {
		return err
	}
	if err := r.loadTasks(); err != nil {
		return err
	}
	if err := r.loadLeftovers(); err != nil {
		return err
	}
	r.denyStrangers(ctx)
	r.dropUnused()
	r.keepGuards()
	r.finish(lost)
	return r.dropCounters()
}

// sequences goes on after every number that the store or the kernel knows.
func (r *recovery) sequences() (err error) {
	if r.owners, err = r.store.sequence("owners", 1); err != nil {
		return err
	}
	if r.rules, err = r.store.sequence("rules", maps.RuleFirst); err != nil {
		return err
	}
	for _, t := range r.inKernel {
		r.owners.startAfter(max(t.Number, t.Policy))
	}
	for _, owner := range r.maps.Rules.Owners() {
		r.owners.startAfter(owner)
		compiled := r.maps.Rules.Get(owner)
		for _, h := range compiled.Hosts {
			r.rules.startAfter(h.Rule)
		}
		for _, p := range compiled.Prefixes {
			for _, of := range p.Ranges {
				r.rules.startAfter(of.Rule)
			}
		}
	}
	counters, err := r.maps.Counters.All()
	for key := range counters {
		r.owners.startAfter(key.Task)
		r.rules.startAfter(key.Rule)
	}
	return err
}

func (r *recovery) loadHistory() error {
	ended, err := r.store.ended()
	if err != nil {
		return err
	}
	for _, stored := range ended {
		t := newTask(stored.ID)
		t.record, t.number = stored, stored.Number
		t.state, t.counted = client.TaskEnded, true
		r.tasks[t.id], r.byNumber[t.number] = t, t
		r.history = append(r.history, t)
	}
	return nil
}

// loadPolicies takes up the stored policies, each in the version that the kernel
// has of it if that is the same.
func (r *recovery) loadPolicies() error {
	if r.cfg.Private != "" {
		return nil
	}
	stored, err := r.store.readPolicies("")
	if err != nil {
		return err
	}
	numberings := make(map[string]*numbering)
	for name, p := range stored {
		a, _ := r.agentNamed(name)
		a.applied = p.Applied
		numbers, err := r.store.numbering(name)
		if err != nil {
			return err
		}
		if a.version, err = r.version(name, p.Document, numbers); err != nil {
			r.problems.set("policy "+name, fmt.Sprintf("policy %s is not in force: %v", name, err))
			r.log.Error("take up a policy", "policy", name, "err", err)
			a.version = r.earlier(name, numbers)
		}
		if a.version != nil {
			r.used[a.version.numbering.Owner] = true
			numberings[name] = &a.version.numbering
		}
	}
	return r.store.putNumberings(numberings)
}

// version compiles a stored policy and makes sure that the kernel has it.
func (r *recovery) version(name, document string, numbers *numbering) (*version, error) {
	p, err := parseStored(name, document)
	if err != nil {
		return nil, err
	}
	var known map[string]uint32
	owner := uint32(0)
	if numbers != nil {
		known = numbers.Rules
		if numbers.Document == document {
			owner = numbers.Owner
		}
	}
	if owner == 0 {
		if owner, err = r.owners.next(); err != nil {
			return nil, err
		}
	}
	v, err := newVersion(p, owner, known, r.rules)
	if err != nil {
		return nil, err
	}
	return v, r.maps.Rules.Replace(owner, v.compiled)
}

// earlier is the version that the kernel still has when a newer document
// cannot be put in force; nil if there is none.
func (r *recovery) earlier(name string, numbers *numbering) *version {
	if numbers == nil {
		return nil
	}
	v, err := r.version(name, numbers.Document, numbers)
	if err != nil {
		return nil
	}
	return v
}

func parseStored(name, document string) (policy.Policy, error) {
	parsed, err := policy.Parse("policy "+name, []byte(document))
	if err != nil {
		return policy.Policy{}, err
	}
	if len(parsed) != 1 {
		return policy.Policy{}, fmt.Errorf("policy %s: %d documents in the store", name, len(parsed))
	}
	return parsed[0], nil
}

func (r *recovery) loadTasks() error {
	stored, err := r.store.live()
	if err != nil {
		return err
	}
	byNumber := make(map[uint32]uint64, len(r.inKernel))
	for cgroupID, k := range r.inKernel {
		byNumber[k.Number] = cgroupID
	}
	for _, s := range stored {
		r.owners.startAfter(s.Number)
		t := newTask(s.ID)
		t.record, t.number = s, s.Number
		cgroupID, inKernel := byNumber[s.Number]
		if err := r.loadTask(t, cgroupID, inKernel); err != nil {
			return err
		}
	}
	return nil
}

// loadTask takes up one task that was live, or being begun or ended, when the last
// engine stopped.
func (r *recovery) loadTask(t *task, cgroupID uint64, inKernel bool) error {
	begun := inKernel || t.CgroupID != 0 || t.EndReason != ""
	if inKernel {
		t.kernel = r.inKernel[cgroupID]
		t.CgroupID = cgroupID
		delete(r.inKernel, cgroupID)
	}
	dir, err := r.locate(t)
	if err == nil {
		defer dir.Close()
	}
	if !begun && (err != nil || t.Adopted || isEmpty(dir)) {
		return r.forget(t)
	}
	r.used[t.number] = true
	if t.Own != nil {
		r.used[t.Own.Owner] = true
	}
	if t.Own == nil && t.Agent != "" {
		t.agent, _ = r.agentNamed(t.Agent)
	}
	t.version = r.versionOf(t)
	t.state = client.TaskLive
	r.tasks[t.id] = t
	r.register(t)

	if err != nil {
		r.ends[t] = ending{reason: cmp.Or(t.EndReason, reasonVanished)}
		return nil
	}
	switch {
	case t.EndReason != "", inKernel && t.kernel.State != maps.StateLive:
		r.ends[t] = ending{reason: cmp.Or(t.EndReason, reasonEnded)}
	case !inKernel:
		r.ends[t] = ending{reason: reasonGone}
	}
	if t.OwnGuard {
		// Complete a begin, or an end, that was interrupted.
		if err := r.kernel.Guard(dir, dir.Level()); err != nil {
			return err
		}
	}
	if _, ends := r.ends[t]; !ends {
		r.resume(t)
	}
	return nil
}

// forget undoes a begin that did not come as far as the kernel. Its caller was
// not answered, and may ask again.
func (r *recovery) forget(t *task) error {
	if !t.Adopted && t.CgroupID != 0 {
		if err := removeCgroup(t.Cgroup, t.CgroupID); err != nil {
			return err
		}
	}
	return r.store.deleteLive(t.number)
}

func isEmpty(dir *cgroup.Dir) bool {
	populated, err := dir.Populated()
	return err == nil && !populated
}

// locate opens the task's cgroup and completes what the store may not have of
// it.
func (r *recovery) locate(t *task) (*cgroup.Dir, error) {
	dir, err := cgroup.Open(t.Cgroup)
	if err == nil && t.CgroupID != 0 && dir.ID() != t.CgroupID {
		dir.Close()
		err = errReplaced
	}
	if err != nil {
		return nil, err
	}
	t.CgroupID, t.Level = dir.ID(), dir.Level()
	t.OwnGuard = r.hasOwnGuard(dir)
	return dir, nil
}

// versionOf is the policy that the task is under. Where it cannot be told any
// more, what the kernel has stays in force unchanged.
func (r *recovery) versionOf(t *task) *version {
	switch {
	case t.Own != nil:
		v, err := r.version(t.Agent, t.Own.Document, t.Own)
		if err == nil {
			return v
		}
		r.log.Error("take up the policy of a task", "task", t.id, "err", err)
	case t.Agent == "":
		return noPolicy()
	case t.agent.version != nil:
		return t.agent.version
	}
	r.problems.set("task "+t.id, fmt.Sprintf("the policy of task %s cannot be read: it goes on under the one that the kernel has; end it (agentguard task end %[1]s)", t.id))
	r.used[t.kernel.Policy] = true
	v := noPolicy()
	v.numbering.Owner = t.kernel.Policy
	return v
}

// resume makes the kernel's record and rules of a live task what the store
// says.
func (r *recovery) resume(t *task) {
	compiled, err := compileGrants(t.Grants)
	if err == nil {
		err = r.maps.Rules.Replace(t.number, compiled)
	}
	if err != nil {
		r.log.Error("take up the grants of a task", "task", t.id, "err", err)
		compiled = r.maps.Rules.Get(t.number)
	}
	t.granted, t.grantRules = compiled, grantRules(t.Grants)
	t.record.Deadline = earlier(t.record.Deadline, t.kernel.Deadline)
	known := t.agent == nil && t.Own == nil || t.version.policy.Document != ""
	if want := t.version.kernelRecord(&t.record, compiled); known && want != t.kernel {
		if err := r.maps.Tasks.Put(t.CgroupID, want); err != nil {
			r.log.Error("bring a task up to date in the kernel", "task", t.id, "err", err)
		} else {
			t.kernel = want
		}
	}
	r.discoverAll(t)
	if t.record.Deadline != 0 {
		t.expiry = r.schedule.add(t.record.Deadline, alarm{task: t})
	}
	for _, g := range t.Grants {
		if !g.Revoked && g.Deadline != 0 {
			t.expiries[g.Rule] = r.schedule.add(g.Deadline, alarm{task: t, rule: g.Rule})
		}
	}
}

// loadLeftovers takes up the cgroups of ended tasks in which processes run on.
func (r *recovery) loadLeftovers() error {
	stored, err := r.store.leftovers()
	if err != nil {
		return err
	}
	for _, left := range stored {
		delete(r.inKernel, left.CgroupID)
		r.leftovers[left.CgroupID] = left
	}
	return nil
}

// denyStrangers denies what the kernel knows and the store does not. Below the
// guard, having no record is that; outside it the cgroup is kept guarded as
// long as processes are in it.
func (r *recovery) denyStrangers(ctx context.Context) {
	for cgroupID, k := range r.inKernel {
		k.State = maps.StateDead
		if err := r.maps.Tasks.Put(cgroupID, k); err != nil {
			r.log.Error("deny a task that the store does not know", "number", k.Number, "err", err)
		}
		r.problems.set(fmt.Sprint("number ", k.Number), fmt.Sprintf(
			"the kernel had a task, number %d, that the store does not know: it is denied everything", k.Number))
		left := leftover{CgroupID: cgroupID, Number: k.Number, Task: fmt.Sprint("number ", k.Number), Adopted: true}
		if dir, err := findCgroup(r.mount, cgroupID); err == nil {
			left.Cgroup, left.Level, left.OwnGuard = dir.Path(), dir.Level(), r.hasOwnGuard(dir)
			left.Adopted = left.OwnGuard
			dir.Close()
		}
		r.leftovers[cgroupID] = left
	}
	if len(r.inKernel) > 0 {
		if _, err := r.sweeper.sweep(ctx, nil); err != nil {
			r.log.Error("destroy the sockets of unknown tasks; their packets are dropped", "err", err)
		}
	}
}

// dropUnused removes what belongs to nothing that was taken up.
func (r *recovery) dropUnused() {
	unused := slices.DeleteFunc(r.maps.Rules.Owners(), func(owner uint32) bool { return r.used[owner] })
	if len(unused) == 0 {
		return
	}
	// A task that was moved to another version may just be judged by the last.
	if err := loader.Barrier(); err != nil {
		r.log.Error("remove unused rules", "err", err)
		return
	}
	for _, owner := range unused {
		if err := r.maps.Rules.Delete(owner); err != nil {
			r.log.Error("remove unused rules", "owner", owner, "err", err)
		}
	}
}

// keepGuards takes the programs off cgroups that nothing that was taken up needs
// guarded, and keeps those in which something runs.
func (r *recovery) keepGuards() {
	for _, g := range r.kernel.Guards() {
		if r.guard != nil && g.Cgroup == r.guard.ID() || r.isNeeded(g.Cgroup) {
			continue
		}
		left := leftover{CgroupID: g.Cgroup, Task: "unknown", Adopted: true, OwnGuard: true, Level: g.Level}
		if dir, err := findCgroup(r.mount, g.Cgroup); err == nil {
			left.Cgroup = dir.Path()
			dir.Close()
		}
		r.leftovers[g.Cgroup] = left
	}
}

func (r *recovery) isNeeded(cgroupID uint64) bool {
	if _, left := r.leftovers[cgroupID]; left {
		return true
	}
	for _, t := range r.live() {
		if t.CgroupID == cgroupID {
			return true
		}
	}
	return false
}

// finish ends what was found to have ended, and cuts what is no longer allowed.
func (r *recovery) finish(lost []record) {
	for _, s := range lost {
		r.records.add(client.Record{Kind: "task", Action: "end", Task: s.ID, Agent: s.Agent, Purpose: s.Request.Purpose, Detail: reasonReboot})
	}
	if r.cfg.Private == "" {
		r.recordEngine("start", fmt.Sprintf("version %s, %d live tasks, %d policies", r.cfg.Version, len(r.live())-len(r.ends), len(r.Policies())))
	}
	var all sync.WaitGroup
	for t, why := range r.ends {
		all.Go(func() {
			t.step <- struct{}{}
			defer t.step.unlock()
			if _, err := r.end(context.Background(), t, why); err != nil {
				r.log.Error("end a task", "task", t.id, "err", err)
			}
		})
	}
	all.Wait()
	if live := r.live(); len(live) > 0 {
		if _, err := r.sweepTasks(live...); err != nil {
			r.log.Error("destroy sockets that are no longer allowed; their packets are dropped", "err", err)
		}
	}
	r.collectLeftovers()
	r.forgetNamespaces()
	if err := r.stations.forget(); err != nil {
		r.log.Error("close stations that nobody uses any more", "err", err)
	}
}

// dropCounters removes those of tasks that are not live any more.
func (r *recovery) dropCounters() error {
	counters, err := r.maps.Counters.All()
	if err != nil {
		return err
	}
	gone := make(map[uint32][]uint32)
	for key := range counters {
		if t := r.byNumber[key.Task]; t == nil || t.isCounted() {
			gone[key.Task] = append(gone[key.Task], key.Rule)
		}
	}
	for number, rules := range gone {
		err = errors.Join(err, r.maps.Counters.Delete(number, rules))
	}
	return err
}

// forgetNamespaces removes the addresses of network namespaces in which no task
// has processes any more.
func (r *recovery) forgetNamespaces() {
	for _, cookie := range r.maps.LocalAddrs.Cookies() {
		if r.spaces.known(cookie) {
			continue
		}
		if err := r.maps.LocalAddrs.Replace(cookie, nil); err != nil {
			r.log.Error("forget the addresses of a network namespace", "netns", cookie, "err", err)
		}
	}
}

// findCgroup looks for the cgroup with an id below the mount.
func findCgroup(mount string, id uint64) (*cgroup.Dir, error) {
	var found string
	err := filepath.WalkDir(mount, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.IsDir() {
			return nil // gone meanwhile, or a control file
		}
		var st unix.Stat_t
		if unix.Stat(path, &st) == nil && st.Ino == id {
			found = path
			return fs.SkipAll
		}
		return nil
	})
	if err != nil || found == "" {
		return nil, fmt.Errorf("find cgroup %d: %w", id, fs.ErrNotExist)
	}
	return openSame(found, id)
}
