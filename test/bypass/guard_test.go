// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"agentguard.dev/agentguard/internal/cgroup"
)

// guard is what techniques are tried against.
type guard interface {
	begin(spec) (guardedTask, error)
	// stray is a cgroup below the guard that is no task; own the guard's.
	stray() *cgroup.Dir
	own() *cgroup.Dir
}

// spec is what a task may do.
type spec struct {
	allow  []string      // destinations, in the policy
	policy []string      // further lines of the policy's spec
	grants []string      // destinations, as grants
	ttl    time.Duration // 0 is no limit
}

func (s spec) document(name string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "apiVersion: agentguard.dev/v1alpha1\nkind: AgentPolicy\nmetadata: {name: %s}\nspec:\n  onEnd: leave\n", name)
	for _, line := range s.policy {
		fmt.Fprintf(&b, "  %s\n", line)
	}
	b.WriteString("  egress:\n")
	for _, d := range s.allow {
		fmt.Fprintf(&b, "    - to: [%q]\n", d)
	}
	if len(s.allow) == 0 {
		b.WriteString("    []\n")
	}
	return b.String()
}

// guardedTask is one task. When its methods return, what they say holds.
type guardedTask interface {
	cgroup() *cgroup.Dir
	end() error // the processes stay
	grant(destination string, ttl time.Duration) error
	revoke(destination string) error
	apply(spec) error // another policy
	deadline() time.Time
	close() error // ends it and removes its cgroup
}

// newCgroup makes a cgroup below parent, or below the mount, and removes it
// with what still runs in it.
func newCgroup(t *testing.T, parent string) *cgroup.Dir {
	t.Helper()
	if parent == "" {
		mount, err := cgroup.Mount()
		if err != nil {
			t.Fatal(err)
		}
		parent = mount
	}
	dir, err := cgroup.Create(filepath.Join(parent, fmt.Sprintf("bypass-%d-%d", os.Getpid(), time.Now().UnixNano())))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := remove(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func remove(dir *cgroup.Dir) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	defer dir.Close()
	if _, err := dir.Kill(ctx); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return dir.Remove(ctx)
}
