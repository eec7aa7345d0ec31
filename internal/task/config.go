// SPDX-License-Identifier: Apache-2.0

package task

import (
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"agentguard.dev/agentguard/internal/cgroup"
	"agentguard.dev/agentguard/internal/loader"
	"agentguard.dev/agentguard/internal/names"
)

// Config says where an engine keeps what it owns. The zero value of every field
// but the first three is a usable default.
type Config struct {
	StateDir string // stores, lock and audit log; made with mode 0700
	PinDir   string // on bpffs
	Cgroup   string // the guard's cgroup: absolute, or relative to the cgroup2 mount

	// Private, if not empty, names an engine that serves one task, that of
	// `agentguard run`: its state, pins and cgroup stand beside those of a
	// daemon, and guard and task are the same cgroup. Letters, digits and
	// hyphens.
	Private string

	// TrustedNamespaces are paths of network namespaces whose NAT is the
	// operator's, as that of the machine itself is in any case: a destination
	// that was rewritten there is judged by what was asked for.
	TrustedNamespaces []string

	// DNS is how names are looked up for tasks whose rules have names. Its Log is
	// this one's.
	DNS names.Config

	// Resolvers, if there are any, are asked for tasks in every network namespace,
	// from the engine's own, in place of those of resolv.conf.
	Resolvers []netip.AddrPort

	Sizes   loader.Sizes  // of the kernel's maps
	Drain   time.Duration // how long Drain waits when not told; 5 s when zero
	Version string        // of this program, for Status
	Log     *slog.Logger  // slog.Default when nil
}

const (
	defaultDrain = 5 * time.Second
	runDir       = "run" // below StateDir and PinDir, for private engines
)

// runRoot is the cgroup below which the tasks of private engines have theirs.
func runRoot(guard string) string { return guard + ".run" }

// resolve fills in defaults and makes the cgroup absolute.
func (c Config) resolve() (Config, error) {
	mount, err := cgroup.Mount()
	if err != nil {
		return c, err
	}
	if !filepath.IsAbs(c.Cgroup) {
		c.Cgroup = filepath.Join(mount, c.Cgroup)
	}
	c.Cgroup = filepath.Clean(c.Cgroup)
	if !within(c.Cgroup, mount) || c.Cgroup == mount {
		return c, invalidf("cgroup %s: want one below the cgroup2 mount %s", c.Cgroup, mount)
	}
	if c.Drain == 0 {
		c.Drain = defaultDrain
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	return c, nil
}

// own is where this engine keeps what no other one touches.
func (c Config) own() (stateDir, pinDir, root string) {
	if c.Private == "" {
		return c.StateDir, c.PinDir, c.Cgroup
	}
	return filepath.Join(c.StateDir, runDir, c.Private), filepath.Join(c.PinDir, runDir, c.Private), runRoot(c.Cgroup)
}

// removeParents removes the directories in which private engines have theirs.
// Those that others still use are not empty, and stay.
func (c Config) removeParents() {
	for _, dir := range []string{
		runRoot(c.Cgroup), filepath.Join(c.PinDir, runDir), c.PinDir, filepath.Join(c.StateDir, runDir),
	} {
		_ = os.Remove(dir)
	}
}
