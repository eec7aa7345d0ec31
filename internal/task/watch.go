// SPDX-License-Identifier: Apache-2.0

package task

import (
	"context"
	"encoding/binary"
	"errors"
	"io/fs"
	"time"

	"agentguard.dev/agentguard/client"
	"agentguard.dev/agentguard/internal/maps"
)

// How often what nobody tells the engine about is looked at. Containers come
// and go by themselves; a task's own cgroup is removed by hand at most.
const (
	watchInterval = time.Second
	ownEvery      = 10 // rounds between two looks at cgroups of the engine's own
	expireEvery   = 30 // rounds between two looks at learned addresses
)

// watch notices, until ctx ends, lost events, vanished cgroups, namespaces that
// processes have moved to, and the end of what tasks left behind.
func (e *Engine) watch(ctx context.Context) {
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for round := 1; ; round++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		e.reportLost()
		e.collectLeftovers()
		e.followResolvers()
		if round%expireEvery == 0 {
			e.expireLearned()
		}
		for _, t := range e.live() {
			if t.Adopted || round%ownEvery == 0 {
				e.lookAt(t)
			}
		}
	}
}

// lookAt ends a task whose cgroup is gone, and follows the processes of an
// adopted one.
func (e *Engine) lookAt(t *task) {
	dir, err := t.open()
	if err == nil {
		dir.Close()
		if t.Adopted {
			e.discoverAll(t)
		}
		return
	}
	if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, errReplaced) {
		return
	}
	e.background.Go(func() {
		if t.step.lock(e.ctx) != nil {
			return
		}
		defer t.step.unlock()
		// An end that was under way has removed the cgroup itself.
		if !t.isLive() {
			return
		}
		if _, err := e.end(context.Background(), t, ending{reason: reasonVanished}); err != nil {
			e.log.Error("end a task whose cgroup has vanished", "task", t.id, "err", err)
		}
	})
}

// collectLeftovers gives back the cgroups of ended tasks in which no process is
// left.
func (e *Engine) collectLeftovers() {
	e.mu.Lock()
	lefts := make([]leftover, 0, len(e.leftovers))
	for _, left := range e.leftovers {
		lefts = append(lefts, left)
	}
	e.mu.Unlock()
	for _, left := range lefts {
		e.adopting.Lock() // no new task may take the cgroup meanwhile
		e.collectLeftover(left)
		e.adopting.Unlock()
	}
}

func (e *Engine) collectLeftover(left leftover) {
	e.mu.Lock()
	_, still := e.leftovers[left.CgroupID]
	e.mu.Unlock()
	if !still {
		return
	}
	dir, err := openSame(left.Cgroup, left.CgroupID)
	switch {
	case err == nil:
		defer dir.Close()
		populated, err := dir.Populated()
		if err != nil || populated || !e.giveBack(dir, left) {
			return
		}
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, errReplaced):
		e.release(left.CgroupID, left.OwnGuard)
	default:
		return
	}
	e.forgetLeftover(left.CgroupID, maps.Task{Number: left.Number})
}

const lostKey = "lost"

// reportLost writes how many events were dropped since it was last written.
func (e *Engine) reportLost() {
	stats, err := e.maps.Stats.Read()
	if err != nil {
		e.log.Error("read the kernel's statistics", "err", err)
		return
	}
	reported, err := e.store.meta(lostKey)
	if err != nil {
		return
	}
	var before uint64
	if len(reported) == 8 {
		before = binary.BigEndian.Uint64(reported)
	}
	switch {
	case stats.EventsLost == before:
		return
	case stats.EventsLost > before:
		e.records.add(client.Record{Kind: "lost", Count: stats.EventsLost - before, Detail: "decisions that nobody read in time"})
	}
	if err := e.store.setMeta(lostKey, binary.BigEndian.AppendUint64(nil, stats.EventsLost)); err != nil {
		e.log.Error("store the number of lost events", "err", err)
	}
}
