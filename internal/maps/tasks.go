// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"

	"github.com/cilium/ebpf"

	"agentguard.dev/agentguard/bpf"
	"agentguard.dev/agentguard/internal/policy"
)

// State is where the kernel sees a task in its life.
type State uint8

// The states. In any but StateLive nothing leaves, in StateDying but bare
// resets.
const (
	StateNone  = State(bpf.GuardStateSTATE_NONE)
	StateLive  = State(bpf.GuardStateSTATE_LIVE)
	StateDying = State(bpf.GuardStateSTATE_DYING)
	StateDead  = State(bpf.GuardStateSTATE_DEAD)
)

// String implements fmt.Stringer.
func (s State) String() string {
	switch s {
	case StateLive:
		return "live"
	case StateDying:
		return "dying"
	case StateDead:
		return "dead"
	default:
		return "none"
	}
}

// Task is the kernel's record of a task.
type Task struct {
	Number   uint32 // owner of its grants; names it in counters and events
	Policy   uint32 // owner of its policy's compiled rules
	Deadline uint64 // CLOCK_BOOTTIME in ns; 0 is none
	State    State
	Mode     policy.Mode
	Loopback policy.Loopback

	// Kinds of sockets and options beyond TCP, UDP and ping.
	MPTCP, Raw, Multicast, UDPLite, SCTP, DCCP bool

	// Which further look-ups can find something; without its flag an
	// owner's entries are not asked.
	PolicyPrefixes, Grants, GrantPrefixes bool

	Names     bool // policy or grants name names: DNS goes to the guard's resolver
	WideNames bool // some of them with more than 16 ports
}

// Tasks maps cgroup ids to the tasks that own the cgroups.
type Tasks struct {
	m       *ebpf.Map
	recents recents
}

// Put writes the record of the task that owns the cgroup, or replaces it in one
// step: programs see the old record or the new one.
func (t *Tasks) Put(cgroup uint64, task Task) error {
	defer t.recents.outdate()
	if err := t.m.Put(cgroup, task.record()); err != nil {
		return writeError("tasks", t.m.MaxEntries(), err)
	}
	return nil
}

// Get returns the record of a cgroup, or ebpf.ErrKeyNotExist.
func (t *Tasks) Get(cgroup uint64) (Task, error) {
	var record bpf.GuardTask
	if err := t.m.Lookup(cgroup, &record); err != nil {
		return Task{}, fmt.Errorf("read tasks: %w", err)
	}
	return taskOf(record), nil
}

// Delete removes a record. What is left in the cgroup is denied everything.
func (t *Tasks) Delete(cgroup uint64) error {
	defer t.recents.outdate()
	return remove(t.m, "tasks", cgroup)
}

// All returns every record by cgroup id.
func (t *Tasks) All() (map[uint64]Task, error) {
	var (
		cgroup uint64
		record bpf.GuardTask
		all    = make(map[uint64]Task)
	)
	entries := t.m.Iterate()
	for entries.Next(&cgroup, &record) {
		all[cgroup] = taskOf(record)
	}
	if err := entries.Err(); err != nil {
		return nil, fmt.Errorf("read tasks: %w", err)
	}
	return all, nil
}

// flag pairs a bit of the record with the field that it stands for.
type flag struct {
	bit   bpf.GuardTaskFlag
	field *bool
}

func (t *Task) flags() []flag {
	return []flag{
		{bpf.GuardTaskFlagTASK_MPTCP, &t.MPTCP},
		{bpf.GuardTaskFlagTASK_RAW, &t.Raw},
		{bpf.GuardTaskFlagTASK_MULTICAST, &t.Multicast},
		{bpf.GuardTaskFlagTASK_UDPLITE, &t.UDPLite},
		{bpf.GuardTaskFlagTASK_SCTP, &t.SCTP},
		{bpf.GuardTaskFlagTASK_DCCP, &t.DCCP},
		{bpf.GuardTaskFlagTASK_POLICY_PREFIXES, &t.PolicyPrefixes},
		{bpf.GuardTaskFlagTASK_GRANTS, &t.Grants},
		{bpf.GuardTaskFlagTASK_GRANT_PREFIXES, &t.GrantPrefixes},
		{bpf.GuardTaskFlagTASK_NAMES, &t.Names},
		{bpf.GuardTaskFlagTASK_WIDE_NAMES, &t.WideNames},
	}
}

func (t Task) record() bpf.GuardTask {
	r := bpf.GuardTask{
		Deadline: t.Deadline,
		Number:   t.Number,
		Policy:   t.Policy,
		State:    uint8(t.State),
		Mode:     uint8(t.Mode),
		Loopback: uint8(t.Loopback),
	}
	for _, f := range t.flags() {
		if *f.field {
			r.Flags |= uint32(f.bit)
		}
	}
	return r
}

func taskOf(r bpf.GuardTask) Task {
	t := Task{
		Number:   r.Number,
		Policy:   r.Policy,
		Deadline: r.Deadline,
		State:    State(r.State),
		Mode:     policy.Mode(r.Mode),
		Loopback: policy.Loopback(r.Loopback),
	}
	for _, f := range t.flags() {
		*f.field = r.Flags&uint32(f.bit) != 0
	}
	return t
}
