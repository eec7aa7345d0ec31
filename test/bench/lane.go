// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"

	"agentguard.dev/agentguard/internal/cgroup"
	"agentguard.dev/agentguard/internal/netns"
)

// lane is one way of being guarded, or not, with a client and a server of its
// own.
type lane struct {
	name string
	// programs that hang at the lane's guard, by the names of agentguard's
	programs map[string]*ebpf.Program
	echo     uint16 // the server's port
	role     string // of the server
	*child

	lab      *lab
	dir      *cgroup.Dir
	ns       *netns.Handle
	listener *os.File
	server   *child
}

// setUp guards what is below in its way, if it has one.
type setUp func(above, below *cgroup.Dir, echo uint16) (map[string]*ebpf.Program, error)

// newLane prepares a lane. The server's cgroup and namespace are the bench's
// and the far ones, whatever the lane.
func (l *lab) newLane(name string, ns *netns.Handle, prepare setUp) (*lane, error) {
	fail := func(err error) (*lane, error) { return nil, fmt.Errorf("%s: %w", name, err) }
	above, below, err := l.pair(name)
	if err != nil {
		return fail(err)
	}
	lane := &lane{name: name, role: roleServer, lab: l, dir: below, ns: ns}
	if lane.listener, lane.echo, err = l.newListener(); err != nil {
		return fail(err)
	}
	if prepare != nil {
		if lane.programs, err = prepare(above, below, lane.echo); err != nil {
			return fail(err)
		}
	}
	l.closers = append(l.closers, lane.stop)
	return lane, nil
}

// restart gives the lane new processes: where their memory happens to lie makes
// some faster than others.
func (l *lane) restart() (err error) {
	l.stop()
	if l.server, err = start(l.role, l.lab.root, l.lab.far, l.lab.cpu, l.listener); err != nil {
		return err
	}
	l.child, err = start(roleClient, l.dir, l.ns, l.lab.cpu, l.lab.listener)
	return err
}

func (l *lane) stop() {
	for _, c := range []*child{l.child, l.server} {
		if c != nil {
			c.stop()
		}
	}
	l.child, l.server = nil, nil
}

func (l *lab) plain(name string) (*lane, error) { return l.newLane(name, l.near, nil) }

func (l *lab) empty() (*lane, error) {
	return l.newLane("empty", l.near, func(above, _ *cgroup.Dir, _ uint16) (map[string]*ebpf.Program, error) {
		return l.attachEmpty(above)
	})
}

func (l *lab) guarded(name string, rules, tasks int) (*lane, error) {
	return l.newLane(name, l.near, func(above, below *cgroup.Dir, echo uint16) (map[string]*ebpf.Program, error) {
		g, err := l.newGuarded(above, below, echo, rules, tasks)
		if err != nil {
			return nil, err
		}
		return g.programs()
	})
}

// nftables guards by a packet filter in the same way: the cgroup, then a set of
// what it may reach, counted; the rest refused.
func (l *lab) nftables() (*lane, error) {
	return l.newLane("nftables", l.filtered, func(_, below *cgroup.Dir, echo uint16) (map[string]*ebpf.Program, error) {
		return nil, l.filtered.Do(func() error { return loadRuleset(below, echo) })
	})
}

// cgroupRoot is where nft looks for cgroups, whatever is mounted there.
const cgroupRoot = "/sys/fs/cgroup"

func loadRuleset(dir *cgroup.Dir, echo uint16) error {
	relative, err := filepath.Rel(cgroupRoot, dir.Path())
	if err != nil || strings.HasPrefix(relative, "..") {
		return fmt.Errorf("nft names cgroups below %s only, not %s", cgroupRoot, dir.Path())
	}
	ruleset := fmt.Sprintf(`
table inet bench {
	set allowed4 {
		type ipv4_addr . inet_proto . inet_service
		elements = { %[1]s . udp . %[3]d, %[1]s . tcp . %[4]d, %[1]s . tcp . %[5]d }
	}
	set allowed6 {
		type ipv6_addr . inet_proto . inet_service
		elements = { %[2]s . udp . %[3]d, %[2]s . tcp . %[4]d, %[2]s . tcp . %[5]d }
	}
	chain task {
		ip daddr . meta l4proto . th dport @allowed4 counter accept
		ip6 daddr . meta l4proto . th dport @allowed6 counter accept
		counter
		meta l4proto tcp reject with tcp reset
		reject
	}
	chain output {
		type filter hook output priority filter; policy accept;
		socket cgroupv2 level %[6]d "%[7]s" jump task
	}
}`, destination4, destination6, sinkPort, listenPort, echo, dir.Level(), relative)
	nft := exec.Command("nft", "-f", "-")
	nft.Stdin = strings.NewReader(ruleset)
	nft.Stdout, nft.Stderr = os.Stderr, os.Stderr
	if err := nft.Run(); err != nil {
		return fmt.Errorf("nft: %w", err)
	}
	return nil
}
