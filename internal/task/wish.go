// SPDX-License-Identifier: Apache-2.0

package task

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"agentguard.dev/agentguard/client"
	"agentguard.dev/agentguard/internal/policy"
)

// Bounds on what a task carries for people, so that the store stays small.
const (
	maxID      = 64
	maxPurpose = 4096
	maxLabels  = 64
	maxLabel   = 256
	maxAllow   = 4096
)

// wish is a request to begin a task, read and checked as far as that goes
// without looking at anything else.
type wish struct {
	request client.BeginRequest // in one form for the same meaning
	own     *policy.Policy      // given with the request
	allow   []policy.Destination
}

func readWish(req client.BeginRequest, mount string) (wish, error) {
	w := wish{request: req}
	if err := checkDescription(req); err != nil {
		return wish{}, err
	}
	if err := w.readPolicy(); err != nil {
		return wish{}, err
	}
	if err := w.readAllow(); err != nil {
		return wish{}, err
	}
	if err := checkTLS(req.TLS); err != nil {
		return wish{}, err
	}
	if w.request.Agent == "" && w.own == nil && len(w.allow) == 0 {
		return wish{}, invalidf("begin task: say what it may reach: an agent with a policy, a policy, or destinations to allow")
	}
	if req.Cgroup != "" && !filepath.IsAbs(req.Cgroup) {
		w.request.Cgroup = filepath.Join(mount, req.Cgroup)
	}
	return w, nil
}

func checkDescription(req client.BeginRequest) error {
	if req.ID != "" && !validID(req.ID) {
		return invalidf("task id %q: want at most %d letters, digits, dots, hyphens and underscores, beginning with a letter or digit", req.ID, maxID)
	}
	if req.Agent != "" && !policy.ValidName(req.Agent) {
		return invalidf("agent %q: want at most 63 lower-case letters, digits and inner hyphens", req.Agent)
	}
	if req.TTL < 0 {
		return invalidf("ttl %s: want a positive duration, or none", time.Duration(req.TTL))
	}
	if len(req.Purpose) > maxPurpose {
		return invalidf("purpose: %d bytes, want at most %d", len(req.Purpose), maxPurpose)
	}
	if len(req.Labels) > maxLabels {
		return invalidf("labels: %d, want at most %d", len(req.Labels), maxLabels)
	}
	for key, value := range req.Labels {
		if key == "" || len(key) > maxLabel || len(value) > maxLabel {
			return invalidf("label %.40q: want a key of 1 to %d bytes and a value of at most %[2]d", key, maxLabel)
		}
	}
	if len(req.Allow) > maxAllow {
		return invalidf("allow: %d destinations, want at most %d: write a policy", len(req.Allow), maxAllow)
	}
	return nil
}

func validID(id string) bool {
	if id == "" || len(id) > maxID || strings.ContainsAny(id[:1], "._-") {
		return false
	}
	for _, c := range []byte(id) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '.', c == '-', c == '_':
		default:
			return false
		}
	}
	return true
}

func (w *wish) readPolicy() error {
	if w.request.Policy == "" {
		return nil
	}
	found, err := policy.Parse("policy", []byte(w.request.Policy))
	if err != nil {
		return invalidf("%v", err)
	}
	if len(found) != 1 {
		return invalidf("policy: %d documents: a task has one", len(found))
	}
	w.own = &found[0]
	if w.request.Agent == "" {
		w.request.Agent = w.own.Name
	}
	if w.request.Agent != w.own.Name {
		return invalidf("agent %q: the policy given with it is for agent %q", w.request.Agent, w.own.Name)
	}
	return nil
}

func (w *wish) readAllow() error {
	canonical := make([]string, 0, len(w.request.Allow))
	for _, text := range w.request.Allow {
		d, err := policy.ParseDestination(text)
		if err != nil {
			return invalidf("allow: %v", err)
		}
		if name := d.String(); !slices.Contains(canonical, name) {
			w.allow = append(w.allow, d)
			canonical = append(canonical, name)
		}
	}
	w.request.Allow = canonical
	return nil
}

// tlsOf is what the wish says of connections to d, which matters for names only.
func (w *wish) tlsOf(d policy.Destination) string {
	if d.Name == "" {
		return ""
	}
	return w.request.TLS
}

func checkTLS(setting string) error {
	if setting != "" && setting != tlsOff {
		return invalidf("tls %q: want off, or nothing: without it a connection to a name must be TLS", setting)
	}
	return nil
}

// same says whether two requests, both normalized, ask for the same task.
func same(a, b client.BeginRequest) bool {
	return bytes.Equal(text(a), text(b))
}

// text is a request in one form. A request cannot fail to encode.
func text(req client.BeginRequest) []byte {
	req.Allow = slices.Sorted(slices.Values(req.Allow))
	data, _ := json.Marshal(req)
	return data
}

// newID makes up an id that says whose task it is.
func newID(agent string) string {
	if agent == "" {
		agent = "task"
	}
	return agent[:min(len(agent), maxID-11)] + "-" + strings.ToLower(rand.Text()[:10])
}
