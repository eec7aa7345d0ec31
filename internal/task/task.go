// SPDX-License-Identifier: Apache-2.0

package task

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"agentguard.dev/agentguard/client"
	"agentguard.dev/agentguard/internal/cgroup"
	"agentguard.dev/agentguard/internal/maps"
	"agentguard.dev/agentguard/internal/netns"
	"agentguard.dev/agentguard/internal/policy"
)

// task is one task in memory. Locks are taken in this order: step, then the
// agent's, then mu; the engine's own lock is never held while another is taken.
type task struct {
	id     string
	number uint32
	agent  *agent // of the policy that it shares; nil for one with its own or none
	step   step   // held through begin, end, grant and revoke

	// Sockets of the task that any sweep has destroyed: what is taken away can
	// be noticed by a packet, and swept for it, before who took it away sweeps.
	destroyed atomic.Int64

	mu sync.Mutex // guards what follows
	record
	state      client.TaskState // "" while it is begun, or if that failed
	version    *version
	granted    policy.Compiled // the grants that are in force
	grantRules []grantRule     // the same as rules
	kernel     maps.Task       // as last written
	expiry     *entry
	expiries   map[uint32]*entry // of grants, by rule
	namespaces map[netns.ID]struct{}
	crowded    bool      // there were more of them than are kept
	counted    bool      // its counters are in the engine's totals
	sought     time.Time // its namespaces, last
	swept      time.Time // its sockets, because a packet was denied, last
	sweeping   bool      // that is about to happen
}

func newTask(id string) *task {
	t := &task{id: id, step: newStep(), namespaces: make(map[netns.ID]struct{}), expiries: make(map[uint32]*entry)}
	t.record.ID = id
	return t
}

// step is a lock that can be waited for with a context.
type step chan struct{}

func newStep() step { return make(step, 1) }

func (s step) lock(ctx context.Context) error {
	select {
	case s <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (s step) unlock() { <-s }

// describe is the task as callers see it, without counters.
func (t *task) describe() client.Task {
	t.mu.Lock()
	defer t.mu.Unlock()
	d := client.Task{
		ID:        t.id,
		Number:    t.number,
		Agent:     t.record.Agent,
		Purpose:   t.Request.Purpose,
		Labels:    t.Request.Labels,
		State:     t.state,
		Cgroup:    t.Cgroup,
		CgroupID:  t.CgroupID,
		Adopted:   t.Adopted,
		Begun:     t.Begun,
		Deadline:  wallTime(t.record.Deadline),
		Ended:     t.Ended,
		EndReason: t.EndReason,
	}
	if t.state == client.TaskEnded {
		d.Mode, d.Deadline = t.Mode, t.Last
		return d
	}
	d.Mode = t.version.policy.Mode.String()
	for _, g := range t.Grants {
		if !g.Revoked {
			d.Grants = append(d.Grants, g.describe())
		}
	}
	return d
}

func (g grant) describe() client.Grant {
	d := client.Grant{Destination: g.Destination, TLS: g.TLS, Rule: g.Rule, Deadline: wallTime(g.Deadline)}
	if d.Deadline != nil {
		d.TTL = client.Duration(time.Until(*d.Deadline).Round(time.Millisecond))
	}
	return d
}

// ruleText is the rule that the kernel names by number in what it says of t.
func (t *task) ruleText(number uint32) string {
	switch number {
	case maps.RuleNone:
		return "(no rule)"
	case maps.RuleLoopback:
		return "(loopback)"
	case maps.RuleReply:
		return "(reply)"
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, g := range t.Grants {
		if g.Rule == number {
			return g.text()
		}
	}
	if t.version != nil {
		for text, n := range t.version.numbering.Rules {
			if n == number {
				return text
			}
		}
	}
	return fmt.Sprintf("(rule %d)", number)
}

// ruleNumbers are all rules that may have counted something for t.
func (t *task) ruleNumbers() []uint32 {
	t.mu.Lock()
	defer t.mu.Unlock()
	numbers := []uint32{maps.RuleNone, maps.RuleLoopback, maps.RuleReply}
	for _, g := range t.Grants {
		numbers = append(numbers, g.Rule)
	}
	if t.version != nil {
		for _, n := range t.version.numbering.Rules {
			numbers = append(numbers, n)
		}
	}
	slices.Sort(numbers)
	return numbers
}

// spaces are the namespaces known to hold sockets of t, beside the engine's own.
func (t *task) spaces() []netns.ID {
	t.mu.Lock()
	defer t.mu.Unlock()
	ids := make([]netns.ID, 0, len(t.namespaces))
	for id := range t.namespaces {
		ids = append(ids, id)
	}
	return ids
}

// open opens the task's cgroup, unless another one has taken its place.
func (t *task) open() (*cgroup.Dir, error) {
	t.mu.Lock()
	path, id := t.Cgroup, t.CgroupID
	t.mu.Unlock()
	return openSame(path, id)
}

// openSame opens the cgroup at path if it still is the one with that id.
func openSame(path string, id uint64) (*cgroup.Dir, error) {
	dir, err := cgroup.Open(path)
	if err != nil {
		return nil, err
	}
	if dir.ID() != id {
		dir.Close()
		return nil, fmt.Errorf("open cgroup %s: %w", path, errReplaced)
	}
	return dir, nil
}

// maxNamespaces bounds the network namespaces that are kept for one task: any
// process can make more, and each costs descriptors.
const maxNamespaces = 64

// keep holds a namespace open for the task, if that is not so already. One too
// many gets no station, and what has sockets there cannot look up names.
func (t *task) keep(in *namespaces, id netns.ID, path string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, kept := t.namespaces[id]; kept || t.state == client.TaskEnded {
		return
	}
	if len(t.namespaces) == maxNamespaces {
		t.crowded = t.crowded || id != in.home.ID()
		return
	}
	if in.use(id, path) {
		t.namespaces[id] = struct{}{}
	}
}
