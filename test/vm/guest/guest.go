// SPDX-License-Identifier: Apache-2.0

// Package guest is what the host and the guest's init say to each other.
package guest

import "time"

const (
	PlanFile = "/plan.json"         // the Plan, in the initramfs
	Channel  = "agentguard.results" // the virtio-serial port that carries Events
)

// Plan is what a guest does before it powers itself off.
type Plan struct {
	Modules []string // files, in loading order
	Env     []string
	Runs    []Run
}

// Run is one test binary.
type Run struct {
	Package string
	Dir     string
	Argv    []string
	Limit   time.Duration // then it is killed
}

// Event reports a piece of a Run's output, or its end.
type Event struct {
	Package string
	Output  []byte   `json:",omitempty"`
	Done    bool     `json:",omitempty"`
	Error   string   `json:",omitempty"` // with Done: how it failed, or empty
	Left    []string `json:",omitempty"` // with Done: what the tests left behind
}
