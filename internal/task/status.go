// SPDX-License-Identifier: Apache-2.0

package task

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"agentguard.dev/agentguard/client"
	"agentguard.dev/agentguard/internal/loader"
)

// Status is the engine's account of itself.
func (e *Engine) Status() client.Status {
	s := client.Status{
		Version: e.cfg.Version,
		PID:     os.Getpid(),
		Started: e.started,
		Kernel:  loader.KernelRelease(),
		Cgroup:  e.root,
		Paths: map[string]string{
			"state": e.cfg.StateDir, "pins": e.cfg.PinDir, "cgroup": e.root, "audit": e.AuditDir(),
		},
	}
	if err := e.enter(); err != nil {
		s.Problems = []string{err.Error()}
		return s
	}
	defer e.leave()
	s.Tasks, s.Policies = len(e.live()), len(e.Policies())
	s.Guards = e.guards()
	problems := e.problems.list()
	usage, err := e.maps.Usage()
	if err != nil {
		problems = append(problems, err.Error())
	}
	for _, u := range usage {
		s.Maps = append(s.Maps, client.MapUsage{Name: u.Map, Entries: u.Entries, Max: u.Max})
		if uint64(u.Entries)*10 >= uint64(u.Max)*9 {
			problems = append(problems, fmt.Sprintf("map %s is nearly full: %d of %d entries", u.Map, u.Entries, u.Max))
		}
	}
	s.Names = client.NamesStatus{
		Stations: e.stations.count(), Learned: e.maps.Rules.CountLearned(),
		Queries: e.totals.queries.all(), Requests: e.totals.requests.all(),
	}
	stats, err := e.maps.Stats.Read()
	if err != nil {
		problems = append(problems, err.Error())
	}
	s.Lost = stats.EventsLost
	if stats.CountersFull > 0 {
		problems = append(problems, fmt.Sprintf("map counters was full: %d decisions and packets were not counted", stats.CountersFull))
	}
	s.Ready = e.isEnforcing()
	if !s.Ready {
		problems = append(problems, "the programs are not attached to "+e.root+": restart agentguard")
	}
	s.Problems = problems
	return s
}

// isEnforcing says whether the guard's cgroup is there, with the programs.
func (e *Engine) isEnforcing() bool {
	if e.guard == nil {
		return true // each task brings its own
	}
	same, err := openSame(e.guard.Path(), e.guard.ID())
	if err != nil {
		return false
	}
	same.Close()
	for _, g := range e.kernel.Guards() {
		if g.Cgroup == e.guard.ID() {
			return true
		}
	}
	return false
}

// guards are the paths of the cgroups with programs attached, as far as they
// are known.
func (e *Engine) guards() []string {
	paths := make(map[uint64]string)
	if e.guard != nil {
		paths[e.guard.ID()] = e.guard.Path()
	}
	for _, t := range e.live() {
		t.mu.Lock()
		paths[t.CgroupID] = t.Cgroup
		t.mu.Unlock()
	}
	e.mu.Lock()
	for id, left := range e.leftovers {
		paths[id] = left.Cgroup
	}
	e.mu.Unlock()
	var found []string
	for _, g := range e.kernel.Guards() {
		path, known := paths[g.Cgroup]
		if !known {
			path = fmt.Sprintf("cgroup %d", g.Cgroup)
		}
		found = append(found, path)
	}
	return found
}

// Doctor says which protections this kernel has, and whether the engine's files
// are its own.
func (e *Engine) Doctor() []client.Check {
	return append(Probe(e.cfg.Resolvers), checkPrivate("state directory", e.cfg.StateDir))
}

// Probe says which protections this kernel has, and what rules with names come
// to on this machine.
func Probe(resolvers []netip.AddrPort) []client.Check {
	return append(loader.Probe(), checkResolvers(resolvers))
}

// checkResolvers says who is asked for names. Without resolvers, rules with
// names allow nothing; others are not affected.
func checkResolvers(servers []netip.AddrPort) client.Check {
	c := client.Check{Name: "names", OK: true}
	from := "the configuration"
	if len(servers) == 0 {
		var err error
		from = "/etc/resolv.conf"
		if servers, err = readResolvers("/"); err != nil {
			c.OK, c.Detail = false, err.Error()
			c.Open = "nothing: rules with names allow nothing"
			c.Remedy = "name resolvers: dns: {resolvers: [...]} in the daemon's configuration, or --resolver"
			return c
		}
	}
	texts := make([]string, len(servers))
	for i, server := range servers {
		texts[i] = server.String()
	}
	c.Detail = fmt.Sprintf("DNS is answered from %s (%s); TLS server names and plain HTTP hosts are checked; QUIC, ECH and unreadable hellos are denied",
		strings.Join(texts, ", "), from)
	return c
}

// checkPrivate checks that nobody but root reads or writes below dir.
func checkPrivate(name, dir string) client.Check {
	c := client.Check{Name: name, Required: true, Detail: dir}
	info, err := os.Stat(filepath.Clean(dir))
	switch {
	case err != nil:
		c.Detail, c.Remedy = err.Error(), "sudo install -d -m 0700 "+dir
	case info.Mode().Perm()&0o077 != 0:
		c.Detail = fmt.Sprintf("%s has mode %#o", dir, info.Mode().Perm())
		c.Open, c.Remedy = "other users read what tasks do", "sudo chmod 0700 "+dir
	default:
		c.OK = true
	}
	return c
}
