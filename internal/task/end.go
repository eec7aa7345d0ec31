// SPDX-License-Identifier: Apache-2.0

package task

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"agentguard.dev/agentguard/client"
	"agentguard.dev/agentguard/internal/cgroup"
	"agentguard.dev/agentguard/internal/maps"
	"agentguard.dev/agentguard/internal/policy"
)

// How long the end of a task waits for processes to die, and for their cgroup
// to become removable. Nothing of them can send meanwhile.
const (
	killPatience   = 10 * time.Second
	removePatience = 2 * time.Second
)

// The reasons for an end that the engine gives by itself.
const (
	reasonEnded    = "ended"
	reasonExpired  = "expired"
	reasonVanished = "cgroup vanished"
	reasonReboot   = "the machine was rebooted"
	reasonUnload   = "unload"
	reasonGone     = "its record in the kernel was gone"
)

// End ends a task: when it returns, nothing leaves any socket of the task.
// Ending an ended task is no error: the answer's Task has Existing set.
func (e *Engine) End(ctx context.Context, id string, req client.EndRequest) (client.EndResult, error) {
	if err := e.enter(); err != nil {
		return client.EndResult{}, err
	}
	defer e.leave()
	if req.Drain < 0 {
		return client.EndResult{}, invalidf("drain %s: want a positive duration, or none", time.Duration(req.Drain))
	}
	if len(req.Reason) > maxLabel {
		return client.EndResult{}, invalidf("reason: %d bytes, want at most %d", len(req.Reason), maxLabel)
	}
	t, err := e.find(id)
	if err != nil {
		return client.EndResult{}, err
	}
	if req.Drain > 0 {
		e.rememberCaller(ctx, t)
		_, err := e.drain(ctx, t, time.Duration(req.Drain))
		if e.closing.Err() != nil {
			return client.EndResult{}, err // the next engine will be asked again
		}
		// A caller that goes away meanwhile ends the draining, not the end.
		if err != nil && ctx.Err() == nil {
			e.log.Warn("drain before end", "task", id, "err", err)
		}
	}
	if err := t.step.lock(e.ctx); err != nil {
		return client.EndResult{}, wrap("end task "+id, err)
	}
	defer t.step.unlock()
	if !t.isLive() {
		d := t.describe()
		d.Existing = true
		return client.EndResult{Task: d}, nil
	}
	reason := req.Reason
	if reason == "" {
		reason = reasonEnded
	}
	return e.end(ctx, t, ending{reason: reason})
}

func (t *task) isLive() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.state == client.TaskLive
}

// ending says why a task ends, and what is to be otherwise than its policy says.
type ending struct {
	reason string
	kill   bool // the processes in a cgroup of the task's own are killed in any case
}

// end ends a live task whose step the caller holds. From its first step on it
// goes on to the end, whatever becomes of the caller: the kernel lets nothing
// but bare resets through, so there is nothing to go back to.
func (e *Engine) end(ctx context.Context, t *task, why ending) (client.EndResult, error) {
	before := t.destroyed.Load()
	if err := e.startDying(t, why.reason); err != nil {
		return client.EndResult{}, kernelError("end task "+t.id, err)
	}
	e.cut(t)
	result := client.EndResult{Destroyed: int(t.destroyed.Load() - before)}
	e.stations.relay.Cut(t.number) // what it had relayed leaves by sockets of the relay
	e.setState(t, maps.StateDead)
	var left *leftover
	result.Killed, left = e.clear(t, why)
	e.conclude(ctx, t, left, result)
	result.Task = t.describe()
	return result, nil
}

// startDying takes the task's rights away. Failing that, it removes the
// kernel's record, which denies as well. The store learns of it afterwards, so
// that an engine that finds this end half done knows why it was begun.
func (e *Engine) startDying(t *task, reason string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.kernel.State = maps.StateDying
	if err := e.maps.Tasks.Put(t.CgroupID, t.kernel); err != nil {
		if denied := e.maps.Tasks.Delete(t.CgroupID); denied != nil {
			t.kernel.State = maps.StateLive
			return errors.Join(err, denied)
		}
	}
	t.state, t.EndReason = client.TaskEnding, reason
	if err := e.store.putLive(t.record); err != nil {
		e.log.Error("store that a task is ending", "task", t.id, "err", err)
	}
	return nil
}

// setState writes the state of a task that is no longer live. A failure leaves
// the state before, which lets no more through.
func (e *Engine) setState(t *task, state maps.State) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.kernel.State = state
	if err := e.maps.Tasks.Put(t.CgroupID, t.kernel); err != nil {
		e.log.Error("write the kernel's record of an ending task", "task", t.id, "err", err)
	}
}

// cut destroys the task's sockets.
func (e *Engine) cut(t *task) {
	if _, err := e.sweepTasks(t); err != nil {
		e.log.Error("destroy the sockets of an ending task; nothing leaves them all the same", "task", t.id, "err", err)
	}
}

// countDestroyed counts a socket for the task of that number.
func (e *Engine) countDestroyed(number uint32) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if t := e.byNumber[number]; t != nil {
		t.destroyed.Add(1)
	}
}

// clear kills the processes, or leaves them, and gives the cgroup back. What
// stays behind is denied everything until it is gone.
func (e *Engine) clear(t *task, why ending) (killed int, left *leftover) {
	dir, err := t.open()
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errReplaced) {
		e.release(t.CgroupID, t.OwnGuard)
		return 0, nil
	}
	left = &leftover{
		Cgroup: t.Cgroup, CgroupID: t.CgroupID, Level: t.Level, Number: t.number,
		Task: t.id, Adopted: t.Adopted, OwnGuard: t.OwnGuard,
	}
	if err != nil {
		e.log.Error("open the cgroup of an ending task", "task", t.id, "err", err)
		return 0, left
	}
	defer dir.Close()
	if t.mayKill(why) {
		ctx, cancel := context.WithTimeout(e.ctx, killPatience)
		killed, err = dir.Kill(ctx)
		cancel()
		if err != nil {
			e.log.Error("kill the processes of an ended task; they can send nothing", "task", t.id, "err", err)
		}
	}
	if e.giveBack(dir, *left) {
		return killed, nil
	}
	return killed, left
}

func (t *task) mayKill(why ending) bool {
	if why.kill && !t.Adopted {
		return true
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.version.policy.OnEnd == policy.Kill
}

// giveBack removes a cgroup of ours, and frees an adopted one, if no process
// is left in it.
func (e *Engine) giveBack(dir *cgroup.Dir, left leftover) bool {
	populated, err := dir.Populated()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		e.log.Error("look for processes of an ended task", "task", left.Task, "err", err)
		return false
	}
	if populated {
		return false
	}
	if !left.Adopted {
		ctx, cancel := context.WithTimeout(e.ctx, removePatience)
		defer cancel()
		if err := dir.Remove(ctx); err != nil {
			e.log.Error("remove the cgroup of an ended task", "task", left.Task, "err", err)
			return false
		}
	}
	e.release(left.CgroupID, left.OwnGuard)
	return true
}

// release removes the kernel's record of a cgroup in which no process of its
// task is left.
func (e *Engine) release(cgroupID uint64, ownGuard bool) {
	if ownGuard {
		if err := e.kernel.Unguard(cgroupID); err != nil {
			e.log.Error("take the programs off a cgroup", "id", cgroupID, "err", err)
			return
		}
	}
	if err := e.maps.Tasks.Delete(cgroupID); err != nil {
		e.log.Error("remove a record from the kernel", "id", cgroupID, "err", err)
	}
}

// conclude removes what the task had in the maps, and moves it into history.
func (e *Engine) conclude(ctx context.Context, t *task, left *leftover, result client.EndResult) {
	e.dropRules(t)
	e.finalCounters(t)
	t.mu.Lock()
	now := time.Now().UTC().Round(time.Millisecond)
	t.Ended = &now
	t.Mode, t.Last = t.version.policy.Mode.String(), wallTime(t.record.Deadline)
	t.Request.Policy, t.Own, t.Grants = "", nil, nil
	t.state, t.version, t.granted, t.grantRules = client.TaskEnded, nil, policy.Compiled{}, nil
	e.schedule.remove(t.expiry)
	for _, x := range t.expiries {
		e.schedule.remove(x)
	}
	t.expiry, t.expiries = nil, nil
	spaces := t.namespaces
	t.namespaces = nil
	stored := t.record
	t.mu.Unlock()

	e.stations.leave(t.number)
	e.problems.set("names of "+t.id, "")
	e.problems.set("namespaces of "+t.id, "")
	e.stations.names.Forget(t.number)
	for id := range spaces {
		e.spaces.release(id)
	}
	forget := e.retire(t, left)
	if err := e.store.end(stored, left, forget); err != nil {
		// The kernel's maps say that it ended; the next start will find that.
		e.log.Error("store the end of a task", "task", t.id, "err", err)
	}
	e.record(ctx, t, "task", "end", endDetail(stored, result, left))
}

func (e *Engine) dropRules(t *task) {
	err := e.maps.Rules.Delete(t.number)
	if t.Own != nil {
		err = errors.Join(err, e.maps.Rules.Delete(t.Own.Owner))
	}
	if err != nil {
		e.log.Error("remove the rules of an ended task", "task", t.id, "err", err)
	}
}

func endDetail(r record, result client.EndResult, left *leftover) string {
	var sum maps.Counter
	for _, c := range r.Counters {
		sum.Allowed += c.Allowed
		sum.Denied += c.Denied
		sum.Packets += c.Packets
		sum.Bytes += c.Bytes
	}
	words := []string{
		r.EndReason,
		fmt.Sprintf("%d allowed, %d denied, %d packets, %d bytes", sum.Allowed, sum.Denied, sum.Packets, sum.Bytes),
	}
	if result.Destroyed > 0 {
		words = append(words, fmt.Sprintf("%d sockets destroyed", result.Destroyed))
	}
	if result.Killed > 0 {
		words = append(words, fmt.Sprintf("%d processes killed", result.Killed))
	}
	if left != nil {
		words = append(words, "processes run on, cut off, in "+left.Cgroup)
	}
	return strings.Join(words, "; ")
}
