// SPDX-License-Identifier: Apache-2.0

// Package client speaks to the agentguard daemon over its admin socket.
//
// The types in this file are the JSON of the HTTP API: the same bodies that
// curl or any other HTTP client sends and receives, and what the command line
// prints with -o json. Durations are strings in Go's form ("90s", "1h"); times
// are RFC 3339 in UTC; absent and zero mean the same.
package client

import (
	"encoding/json"
	"fmt"
	"time"
)

// Duration is a time.Duration whose JSON form is a string such as "1m30s".
type Duration time.Duration

// MarshalJSON implements json.Marshaler.
func (d Duration) MarshalJSON() ([]byte, error) {
	return json.Marshal(time.Duration(d).String())
}

// UnmarshalJSON implements json.Unmarshaler. It refuses bare numbers, whose
// unit would be a guess.
func (d *Duration) UnmarshalJSON(data []byte) error {
	var s string
	if err := json.Unmarshal(data, &s); err != nil {
		return fmt.Errorf("a duration is a string such as \"90s\" or \"1h\", not %s", data)
	}
	v, err := time.ParseDuration(s)
	if err != nil {
		return fmt.Errorf("duration %q: write it as \"90s\" or \"1h\"", s)
	}
	*d = Duration(v)
	return nil
}

// TaskState says where a task is in its life.
type TaskState string

// The states of a task, in the order in which it passes them.
const (
	TaskLive   TaskState = "live"   // its rules are enforced
	TaskEnding TaskState = "ending" // sockets are being destroyed
	TaskEnded  TaskState = "ended"  // nothing of it can send
)

// BeginRequest asks for a new task. POST /v1/tasks.
type BeginRequest struct {
	ID      string            `json:"id,omitempty"`      // chosen by the daemon when empty
	Agent   string            `json:"agent,omitempty"`   // whose policy applies; may be empty when Policy or Allow is given
	Policy  string            `json:"policy,omitempty"`  // one AgentPolicy document (YAML), for this task alone
	Purpose string            `json:"purpose,omitempty"` // free text for people and the audit log
	TTL     Duration          `json:"ttl,omitempty"`     // the policy's maxTTL when zero
	Cgroup  string            `json:"cgroup,omitempty"`  // an existing cgroup to adopt; its own is made when empty
	Labels  map[string]string `json:"labels,omitempty"`
	Allow   []string          `json:"allow,omitempty"` // destinations granted until the task ends
	TLS     string            `json:"tls,omitempty"`   // "off": what is allowed by name need not be TLS
}

// Task is one bounded piece of work of an agent.
type Task struct {
	ID        string            `json:"id"`
	Number    uint32            `json:"number"` // the kernel's name for it, never used twice on one boot
	Agent     string            `json:"agent"`
	Purpose   string            `json:"purpose,omitempty"`
	Labels    map[string]string `json:"labels,omitempty"`
	State     TaskState         `json:"state"`
	Mode      string            `json:"mode"`   // enforce or audit
	Cgroup    string            `json:"cgroup"` // absolute path of the directory
	CgroupID  uint64            `json:"cgroupID"`
	Adopted   bool              `json:"adopted,omitempty"` // the cgroup existed before the task
	Begun     time.Time         `json:"begun"`
	Deadline  *time.Time        `json:"deadline,omitempty"`
	Ended     *time.Time        `json:"ended,omitempty"`
	EndReason string            `json:"endReason,omitempty"` // ended, expired, command exited, cgroup vanished
	Grants    []Grant           `json:"grants,omitempty"`
	Counters  []RuleCounters    `json:"counters,omitempty"` // only from GET /v1/tasks/{id}
	Learned   []LearnedName     `json:"learned,omitempty"`  // only from GET /v1/tasks/{id}, at most 100
	Existing  bool              `json:"existing,omitempty"` // begin found this task already begun, or end found it already ended
}

// LearnedName is a name of a task's rules and the addresses at which it may be
// reached now, because the resolver answered with them.
type LearnedName struct {
	Name      string   `json:"name"`
	Addresses []string `json:"addresses"`      // at most 16
	More      int      `json:"more,omitempty"` // addresses beyond these
}

// Grant is a destination given to one task just in time. The body of
// POST /v1/tasks/{id}/grants uses Destination, TLS and TTL.
type Grant struct {
	Destination string     `json:"destination"`
	TLS         string     `json:"tls,omitempty"` // "off": a connection to the name need not be TLS
	TTL         Duration   `json:"ttl,omitempty"` // until the task ends when zero
	Rule        uint32     `json:"rule,omitempty"`
	Deadline    *time.Time `json:"deadline,omitempty"`
	Existing    bool       `json:"existing,omitempty"` // the same grant was there; its deadline was set anew
}

// RevokeResult is the answer to DELETE /v1/tasks/{id}/grants?destination=D.
type RevokeResult struct {
	Revoked   []string `json:"revoked"`           // the grants taken back, as destinations
	Destroyed int      `json:"destroyed"`         // sockets cut
	Warning   string   `json:"warning,omitempty"` // for example: a policy rule still allows it
}

// RuleCounters counts what one rule did for one task.
type RuleCounters struct {
	Rule    string `json:"rule"` // the rule as written, or "(no rule)", "(loopback)", "(reply)"
	ID      uint32 `json:"id"`
	Allowed uint64 `json:"allowed"` // connections and first datagrams to a destination
	Denied  uint64 `json:"denied"`
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"` // at the network layer, headers included
}

// EndResult is the answer to POST /v1/tasks/{id}/end.
type EndResult struct {
	Task      Task `json:"task"`
	Destroyed int  `json:"destroyed"` // sockets cut
	Killed    int  `json:"killed"`    // processes killed
}

// EndRequest is the optional body of POST /v1/tasks/{id}/end.
type EndRequest struct {
	Drain  Duration `json:"drain,omitempty"`  // first wait this long for data already written
	Reason string   `json:"reason,omitempty"` // for the audit log
}

// DrainRequest is the optional body of POST /v1/tasks/{id}/drain.
type DrainRequest struct {
	Drain Duration `json:"drain,omitempty"` // at most this long; the daemon's default when zero
}

// DrainResult says whether all data that the task had written was sent before
// the time was over.
type DrainResult struct {
	Drained bool `json:"drained"`
	Left    int  `json:"left,omitempty"` // sockets that still hold unsent data
}

// TaskFilter selects tasks in GET /v1/tasks. Empty fields select all.
type TaskFilter struct {
	Agent string    // ?agent=
	State TaskState // ?state=
}

// AuditQuery selects records in GET /v1/audit. Empty fields select all.
type AuditQuery struct {
	Since   time.Time // ?since=, RFC 3339 or an age such as 10m
	Task    string    // ?task=
	Agent   string    // ?agent=
	Verdict string    // ?verdict=allow, deny or would-deny
	Kind    string    // ?kind=decision, dns, http, task, grant, policy, daemon or lost
	Limit   int       // ?limit=, the newest so many
	Follow  bool      // ?follow=1, go on with records as they are made
}

// Policy is an agent's policy as the daemon holds it.
type Policy struct {
	Name     string    `json:"name"`
	Version  uint32    `json:"version"` // the kernel's owner number of the compiled rules
	Mode     string    `json:"mode"`
	Rules    int       `json:"rules"`
	Tasks    int       `json:"tasks"` // live tasks under it
	Applied  time.Time `json:"applied"`
	Notes    []string  `json:"notes,omitempty"`    // what one might not expect of it; only from a validation
	Document string    `json:"document,omitempty"` // the YAML; absent in lists
}

// ApplyResult is the answer to POST /v1/policies, whose body is YAML: one or
// more AgentPolicy documents, all of them applied or none.
type ApplyResult struct {
	Policies []AppliedPolicy `json:"policies"`
}

// AppliedPolicy says what one document of an apply did.
type AppliedPolicy struct {
	Name      string `json:"name"`
	Action    string `json:"action"` // created, updated, unchanged
	Tasks     int    `json:"tasks"`  // live tasks that now see it
	Destroyed int    `json:"destroyed"`
}

// Status is the daemon's own account of itself. GET /v1/status.
type Status struct {
	Ready    bool              `json:"ready"` // attached and enforcing
	Version  string            `json:"version"`
	PID      int               `json:"pid"`
	Started  time.Time         `json:"started"`
	Kernel   string            `json:"kernel"`
	Cgroup   string            `json:"cgroup"`
	Tasks    int               `json:"tasks"`
	Policies int               `json:"policies"`
	Guards   []string          `json:"guards"` // cgroups with programs attached
	Maps     []MapUsage        `json:"maps"`
	Names    NamesStatus       `json:"names"`
	Lost     uint64            `json:"lost"` // events dropped since the guard was created
	Problems []string          `json:"problems,omitempty"`
	Paths    map[string]string `json:"paths"`
}

// NamesStatus is what rules with names use.
type NamesStatus struct {
	Stations int               `json:"stations"` // network namespaces in which the daemon answers DNS
	Learned  int               `json:"learned"`  // addresses that are known for names
	Queries  map[string]uint64 `json:"queries"`  // DNS, by verdict, since the daemon started
	Requests map[string]uint64 `json:"requests"` // plain HTTP through the relay, by verdict
}

// MapUsage is how full one kernel map is.
type MapUsage struct {
	Name    string `json:"name"`
	Entries int    `json:"entries"`
	Max     uint32 `json:"max"`
}

// Check is one line of `agentguard doctor`.
type Check struct {
	Name     string `json:"name"`
	OK       bool   `json:"ok"`
	Required bool   `json:"required"`
	Detail   string `json:"detail"`           // what was found
	Open     string `json:"open,omitempty"`   // what stays open without it
	Remedy   string `json:"remedy,omitempty"` // the way out
}

// Record is one line of the audit log, in JSON Lines.
type Record struct {
	Time      time.Time `json:"time"`
	Kind      string    `json:"kind"`              // decision, dns, http, task, grant, policy, daemon, lost
	Action    string    `json:"action,omitempty"`  // kind task: begin, end; grant: add, revoke, expire; policy: apply, delete; daemon: start, stop, upgrade
	Verdict   string    `json:"verdict,omitempty"` // kinds decision, dns, http: allow, deny, would-deny (mode audit)
	Reason    string    `json:"reason,omitempty"`
	Hook      string    `json:"hook,omitempty"` // connect, sendmsg, sock_create, setsockopt, egress
	Agent     string    `json:"agent,omitempty"`
	Task      string    `json:"task,omitempty"`
	Purpose   string    `json:"purpose,omitempty"`
	PID       uint32    `json:"pid,omitempty"`
	UID       *uint32   `json:"uid,omitempty"`
	Process   string    `json:"process,omitempty"`     // comm
	Dest      string    `json:"destination,omitempty"` // in DEST form, e.g. tcp://192.0.2.1:443
	Name      string    `json:"name,omitempty"`        // kind dns: asked for; http: the Host; decision: the server name that TLS showed
	Type      string    `json:"type,omitempty"`        // kind dns: A, AAAA, ...; http: the method
	Addresses []string  `json:"addresses,omitempty"`   // kind dns: what was answered, at most 16
	Expected  []string  `json:"expected,omitempty"`    // decision: the names that the address is allowed for, when none of them was shown
	Rule      string    `json:"rule,omitempty"`
	Hint      string    `json:"hint,omitempty"`  // the one command that would allow it
	Count     uint64    `json:"count,omitempty"` // repeats folded into this record, or events lost
	Detail    string    `json:"detail,omitempty"`
}

// Error is the body of every answer outside 2xx.
type Error struct {
	Status  int    `json:"status"` // the HTTP status
	Code    string `json:"code"`   // stable: invalid, not_found, conflict, full, forbidden, unavailable, internal
	Message string `json:"message"`
}

// Error implements error.
func (e *Error) Error() string { return e.Message }
