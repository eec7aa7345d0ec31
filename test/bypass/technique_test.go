// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"fmt"
	"net/netip"
	"syscall"
)

// class is what the process that tries a technique may do.
type class uint8

const (
	user     class = iota // nobody, no capability
	netRaw                // nobody, with CAP_NET_RAW
	netAdmin              // nobody, with CAP_NET_ADMIN
	root                  // root
)

func (c class) String() string {
	return [...]string{"user", "CAP_NET_RAW", "CAP_NET_ADMIN", "root"}[c]
}

// place is where in the guard the process is born.
type place uint8

const (
	inTask  place = iota
	inStray       // a cgroup below the guard that belongs to no task
	inGuard       // the guard's own cgroup
)

// proof is what shows that a technique has reached its target.
type proof uint8

const (
	atSink      proof = iota // a server in the sink was sent the token
	onWire                   // a packet for it arrived at the sink's end
	atNeighbour              // a service of the host was sent the token
	atOther                  // a listener of another task was
)

// technique is one way out.
type technique struct {
	name  string
	what  string // one line, for the table
	class class
	place place
	proof proof
	needs []feature
	tools []string // programs
	// lasting says that what it makes in the kernel outlives the process.
	lasting bool
	// alone takes the guard that has no engine and trusts nobody's NAT.
	alone bool
	// allow replaces the usual rules, as destinations; policy adds lines to
	// the spec.
	allow  []string
	policy []string
	// errno is what the process must be told at once when guarded; 0 where
	// nothing can be said. stop says where it is stopped, for the table.
	errno syscall.Errno
	stop  string
	// seen, with proof onWire, picks the packets that count. Without it they
	// are those that carry the token.
	seen func(packet) bool
	// group, if set, is what a multicast report has to name instead.
	group func(token string) netip.Addr
	// permit picks packets that may leave the guarded task.
	permit func(packet) bool
	// beside picks those that may leave if they do not carry the token: what an
	// allowed name accounts for, and what the guard itself sends.
	beside func(packet) bool
	// mark, if set, is how the token looks on the wire.
	mark func(token string) string

	// try runs in a process of its own, assist beside it in the test.
	try    func(*attempt) error
	assist func(*trial) error
}

// techniques lists them all, in the order of the table.
func techniques() []technique {
	var all []technique
	for _, group := range [][]technique{
		connects(), streams(), datagrams(), elsewhere(), translations(),
		loopbacks(), locals(), groups(), options(), raws(), pings(),
		protocols(), rings(), processes(), inbounds(), rewrites(),
		questions(), learnt(), rebindings(), hellos(), requests(),
	} {
		all = append(all, group...)
	}
	return all
}

// byName finds the technique, or the flow, or the control that a process is
// told to try.
func byName(name string) (func(*attempt) error, error) {
	for _, t := range append(techniques(), limits()...) {
		if t.name == name {
			return t.try, nil
		}
	}
	for _, f := range flows() {
		if f.name == name {
			return f.keepSending, nil
		}
	}
	for _, c := range controls() {
		if "control-"+c.name == name {
			return c.try, nil
		}
	}
	for name2, role := range roles() {
		if name2 == name {
			return role, nil
		}
	}
	return nil, fmt.Errorf("no technique is called %q", name)
}
