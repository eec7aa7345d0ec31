// SPDX-License-Identifier: Apache-2.0

package task

import (
	"log/slog"
	"time"
)

// Config says where an engine keeps what it owns. The zero value of every field
// but the first three is a usable default.
type Config struct {
	StateDir string // stores, lock and audit log; made with mode 0700
	PinDir   string // on bpffs
	Cgroup   string // the guard's cgroup: absolute, or relative to the cgroup2 mount

	// Private, if not empty, is the id of the only task of an engine that
	// serves one `agentguard run`: its state, pins and cgroup stand beside
	// those of a daemon, and guard and task are the same cgroup.
	Private string

	Drain   time.Duration // how long Drain waits when not told; 5 s when zero
	Version string        // of this program, for Status
	Log     *slog.Logger  // slog.Default when nil
}

const defaultDrain = 5 * time.Second
