// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"

	"agentguard.dev/agentguard/internal/cgroup"
	"agentguard.dev/agentguard/internal/loader"
	"agentguard.dev/agentguard/internal/maps"
	"agentguard.dev/agentguard/internal/policy"
)

// The names that clients ask for and show: one whose answer is always in the
// cache, and others below the same name that nobody has asked for before.
const (
	benchHost  = "api.good.test"
	benchNames = "*.good.test"
)

// measureNames compares connections by name with those by address, and look-ups
// with those at a dnsmasq.
func (o *options) measureNames(l *lab, report *report) error {
	if err := o.measureHandshakes(l, report); err != nil {
		return err
	}
	return o.measureLookups(l, report)
}

func (o *options) measureHandshakes(l *lab, report *report) error {
	var lanes []*lane
	for _, open := range []func() (*lane, error){
		func() (*lane, error) { return l.plain("plain") },
		func() (*lane, error) { return l.plain("again") },
		l.empty,
		func() (*lane, error) { return l.guarded("by address", ruleCounts[0], taskCounts[0]) },
		func() (*lane, error) { return l.named("by name") },
	} {
		lane, err := open()
		if err != nil {
			return err
		}
		lane.role = roleTLS
		lanes = append(lanes, lane)
	}
	server := func(l *lane) []netip.AddrPort { return []netip.AddrPort{at(destination4, l.echo)} }
	return o.section(report, "handshakes", []job{
		{"TLS 1.3 handshake", tlsHandshake, 4, server},
		{"TLS 1.3 handshake, resumed", tlsResumed, 4, server},
	}, lanes)
}

// named is a guarded lane whose server has a name in the rules.
func (l *lab) named(name string) (*lane, error) {
	return l.newLane(name, l.near, func(above, below *cgroup.Dir, echo uint16) (map[string]*ebpf.Program, error) {
		g, err := l.newGuarded(above, below, 0, ruleCounts[0], taskCounts[0])
		if err != nil {
			return nil, err
		}
		if err := g.name(echo); err != nil {
			return nil, err
		}
		return g.programs()
	})
}

// name lets the task reach the server's port by name alone, as if it had just
// looked up the address.
func (g *guarded) name(port uint16) error {
	to, err := policy.ParseDestination(fmt.Sprintf("%s:%d", benchNames, port))
	if err != nil {
		return err
	}
	compiled, err := policy.Compile([]policy.Input{{
		Rule: policy.Rule{Direction: policy.Egress, To: []policy.Destination{to}}, ID: maps.RuleFirst,
	}})
	if err != nil {
		return err
	}
	compiled.Hosts = rulesFor(0, g.rules).Hosts
	if err := g.Maps().Rules.Replace(benchPolicy, compiled); err != nil {
		return err
	}
	learned := maps.Learned{Number: compiled.Named[0].Number, Addr: destination4, Expires: loader.Now() + uint64(time.Hour)}
	if err := g.Maps().Rules.Learn(benchPolicy, learned); err != nil {
		return err
	}
	record := g.record()
	record.Names = true
	return g.Maps().Tasks.Put(g.task.ID(), record)
}

// asking is a guarded lane that may ask dnsmasq by address.
func (l *lab) asking(name string) (*lane, error) {
	return l.newLane(name, l.near, func(above, below *cgroup.Dir, echo uint16) (map[string]*ebpf.Program, error) {
		g, err := l.newGuarded(above, below, echo, ruleCounts[0], taskCounts[0])
		if err != nil {
			return nil, err
		}
		rules := rulesFor(echo, g.rules)
		for _, r := range []netip.AddrPort{nearResolver, farResolver} {
			rules.Hosts = append(rules.Hosts, exact(r.Addr(), r.Port(), policy.UDP))
		}
		if err := g.Maps().Rules.Replace(benchPolicy, rules); err != nil {
			return nil, err
		}
		return g.programs()
	})
}

// measureLookups compares dnsmasq, asked without a guard, with a daemon's
// resolver, which has it for upstream.
func (o *options) measureLookups(l *lab, report *report) error {
	report.progress("build and start a daemon and a dnsmasq")
	if err := l.dnsmasq(); err != nil {
		report.note("without look-ups: %v", err)
		return nil
	}
	d, err := l.daemonForNames()
	if err != nil {
		return err
	}
	var lanes []*lane
	for _, open := range []func() (*lane, error){
		func() (*lane, error) { return l.plain("plain") },
		func() (*lane, error) { return l.plain("again") },
		func() (*lane, error) { return l.asking("guarded") },
		func() (*lane, error) { return l.newLane("agentguard", l.near, d.adopt) },
	} {
		lane, err := open()
		if err != nil {
			return err
		}
		lanes = append(lanes, lane)
	}
	from := func(resolver netip.AddrPort) func(*lane) []netip.AddrPort {
		return func(*lane) []netip.AddrPort { return []netip.AddrPort{resolver, at(destination4, listenPort)} }
	}
	return o.section(report, "look-ups", []job{
		{"cached, one by one", dnsOne, 16, from(nearResolver)},
		{"cached, 32 at a time", dnsMany, 32, from(nearResolver)},
		{"first connection, resolver at home", dnsConnect, 4, from(nearResolver)},
		{"first connection, resolver abroad", dnsConnect, 4, from(farResolver)},
	}, lanes)
}
