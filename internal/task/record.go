// SPDX-License-Identifier: Apache-2.0

package task

import (
	"time"

	"agentguard.dev/agentguard/client"
)

// record is what the store keeps of a task. What the kernel needs for
// enforcement is in its maps; this is the rest, and what the maps are made from.
type record struct {
	ID       string              `json:"id"`
	Number   uint32              `json:"number"`
	Agent    string              `json:"agent,omitempty"`
	Request  client.BeginRequest `json:"request"` // normalized
	Cgroup   string              `json:"cgroup"`
	CgroupID uint64              `json:"cgroupID,omitempty"` // 0 until the cgroup exists
	Level    int                 `json:"level,omitempty"`
	Adopted  bool                `json:"adopted,omitempty"`  // the cgroup was there before the task
	OwnGuard bool                `json:"ownGuard,omitempty"` // the programs hang at this cgroup
	Begun    time.Time           `json:"begun"`
	BegunAt  uint64              `json:"begunAt"` // CLOCK_BOOTTIME ns, as are deadlines
	Deadline uint64              `json:"deadline,omitempty"`
	Grants   []grant             `json:"grants,omitempty"`
	// Own numbers the rules of a policy that was given with the request.
	Own *numbering `json:"own,omitempty"`

	Mode      string                `json:"mode,omitempty"` // of an ended task
	Ended     *time.Time            `json:"ended,omitempty"`
	EndReason string                `json:"endReason,omitempty"`
	Counters  []client.RuleCounters `json:"counters,omitempty"` // the last ones, of an ended task
	Last      *time.Time            `json:"last,omitempty"`     // the deadline of an ended task
}

// grant is a rule of one task's own.
type grant struct {
	Destination string `json:"destination"` // canonical
	TLS         string `json:"tls,omitempty"`
	Rule        uint32 `json:"rule"`
	Deadline    uint64 `json:"deadline,omitempty"`
	Revoked     bool   `json:"revoked,omitempty"` // kept for its counters
}

// numbering is how the kernel knows the rules of one policy version: its owner
// and the number of each rule's text. Texts of earlier versions stay in it
// while counters may name them.
type numbering struct {
	Owner    uint32            `json:"owner"`
	Rules    map[string]uint32 `json:"rules"`
	Document string            `json:"document"` // that the numbers were made for
}

// storedPolicy is a policy as it was applied.
type storedPolicy struct {
	Document string    `json:"document"`
	Applied  time.Time `json:"applied"`
}

// leftover is a cgroup whose task has ended and in which processes run on, cut
// off. It is kept until they are gone.
type leftover struct {
	Cgroup   string `json:"cgroup"`
	CgroupID uint64 `json:"cgroupID"`
	Level    int    `json:"level"`
	Number   uint32 `json:"number"`
	Task     string `json:"task"`
	Adopted  bool   `json:"adopted,omitempty"`
	OwnGuard bool   `json:"ownGuard,omitempty"`
}
