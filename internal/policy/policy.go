// SPDX-License-Identifier: Apache-2.0

// Package policy turns policy files and destinations into rules, and rules into
// what the kernel's maps hold. It is pure: no I/O, no clock, no kernel.
package policy

import (
	"fmt"
	"time"
)

// Mode says what becomes of a flow that no rule allows.
type Mode uint8

// The modes of a policy.
const (
	Enforce Mode = iota // it is denied
	Audit               // it is recorded and let through
)

// String returns the name that a policy file uses.
func (m Mode) String() string {
	switch m {
	case Enforce:
		return "enforce"
	case Audit:
		return "audit"
	default:
		return fmt.Sprintf("Mode(%d)", uint8(m))
	}
}

// Loopback says which listeners on this host's own addresses a task reaches
// without a rule.
type Loopback uint8

// The settings of loopback. A policy file that is silent means LoopbackTask.
const (
	LoopbackNone Loopback = iota // none
	LoopbackTask                 // those that the task owns itself
	LoopbackHost                 // all
)

// String returns the name that a policy file uses.
func (l Loopback) String() string {
	switch l {
	case LoopbackNone:
		return "none"
	case LoopbackTask:
		return "task"
	case LoopbackHost:
		return "host"
	default:
		return fmt.Sprintf("Loopback(%d)", uint8(l))
	}
}

// OnEnd says what becomes of a task's processes when it ends. Its sockets are
// destroyed either way.
type OnEnd uint8

// The settings of onEnd.
const (
	Kill  OnEnd = iota // they are killed
	Leave              // they run on, cut off
)

// String returns the name that a policy file uses.
func (o OnEnd) String() string {
	switch o {
	case Kill:
		return "kill"
	case Leave:
		return "leave"
	default:
		return fmt.Sprintf("OnEnd(%d)", uint8(o))
	}
}

// Policy is what an agent may ever reach, and how that is enforced.
type Policy struct {
	Name      string
	Mode      Mode
	Loopback  Loopback
	MPTCP     bool          // Multipath TCP sockets are allowed, and judged like TCP
	Raw       bool          // raw sockets are allowed
	Multicast bool          // multicast groups may be joined
	MaxTTL    time.Duration // the longest life of a task; 0 is no limit
	OnEnd     OnEnd
	Rules     []Rule   // egress, then ingress, each in file order; no two with the same String
	Notes     []string // what its author may not have meant, for people
	Document  string   // the YAML that Parse read it from, comments included
}

// Default returns the policy that a file with an empty spec describes: no rules,
// and loopback within the task.
func Default(name string) Policy {
	return Policy{Name: name, Loopback: LoopbackTask}
}
