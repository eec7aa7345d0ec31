// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"agentguard.dev/agentguard/internal/cgroup"
)

// trial is one try of one technique.
type trial struct {
	lab       *lab
	guard     guard // nil in an unguarded trial
	guarded   bool
	technique technique
	token     string
	task      guardedTask // nil if it is none
	process   *process
	others    []*process   // of other tasks
	peer      net.Listener // a peer in the sink that this trial alone has
	cleanup   []func() error
}

// result is what came of a trial.
type result struct {
	outcome outcome
	reached string   // where the token was seen; empty if it did not reach
	leaked  []packet // that left although nothing permits them
}

func newToken() string {
	var b [8]byte
	rand.Read(b[:])
	return "token-" + hex.EncodeToString(b[:])
}

// try runs the technique once, in a task if g is not nil.
func (l *lab) try(t technique, g guard) (result, error) {
	r := &trial{lab: l, guard: g, guarded: g != nil, technique: t, token: newToken()}
	res, err := r.run()
	err = errors.Join(err, r.clean())
	if err == nil && !r.guarded && !t.lasting {
		err = l.quiet()
	}
	return res, err
}

func (r *trial) clean() (err error) {
	for i := len(r.cleanup) - 1; i >= 0; i-- {
		err = errors.Join(err, r.cleanup[i]())
	}
	return err
}

func (r *trial) run() (res result, err error) {
	dir, err := r.birthplace()
	if err != nil {
		return res, err
	}
	// What came before is not this trial's.
	if _, err := r.lab.upToNow(); err != nil {
		return res, err
	}
	if r.process, err = r.start(dir, r.technique.class, r.technique.name); err != nil {
		return res, err
	}
	if r.technique.assist != nil {
		err = r.technique.assist(r)
	}
	var waitErr error
	res.outcome, waitErr = r.process.wait()
	if err := errors.Join(err, waitErr); err != nil {
		return res, fmt.Errorf("%w (outcome: %+v)", err, res.outcome)
	}
	packets, err := r.lab.upToNow()
	if err != nil {
		return res, err
	}
	if res.reached, err = r.reached(packets); err != nil {
		return res, err
	}
	for _, p := range packets {
		if !p.background() && !p.bareReset() && !r.lab.wasJoined(p) && !(r.permits(p) && !r.counts(p)) {
			res.leaked = append(res.leaked, p)
		}
	}
	return res, nil
}

// wasJoined says whether p is a late report of a group that an unguarded
// process has left, or of one that the host's own addresses are in.
func (l *lab) wasJoined(p packet) bool {
	if !p.isReport() {
		return false
	}
	for _, group := range l.joined {
		if p.reports(group) {
			return true
		}
	}
	solicited := netip.MustParseAddr("ff02::1:ff00:0").AsSlice()[:13]
	return p.carries(string(solicited))
}

func (r *trial) birthplace() (*cgroup.Dir, error) {
	switch {
	case !r.guarded:
		return r.lab.plain, nil
	case r.technique.place == inStray:
		return r.guard.stray(), nil
	case r.technique.place == inGuard:
		return r.guard.own(), nil
	}
	s := spec{allow: usual(), policy: r.technique.policy}
	if r.technique.allow != nil {
		s.allow = r.technique.allow
	}
	task, err := r.guard.begin(s)
	if err != nil {
		return nil, err
	}
	r.task = task
	r.cleanup = append(r.cleanup, task.close)
	return task.cgroup(), nil
}

func (r *trial) start(dir *cgroup.Dir, c class, name string) (*process, error) {
	p, err := start(r.lab.host, dir, c, name, r.token)
	if err != nil {
		return nil, err
	}
	r.cleanup = append(r.cleanup, func() error { p.kill(); return nil })
	return p, nil
}

// startOther runs a role in a task of its own.
func (r *trial) startOther(role string, s spec) (*process, error) {
	dir := r.lab.plain
	if r.guarded {
		task, err := r.guard.begin(s)
		if err != nil {
			return nil, err
		}
		r.cleanup = append(r.cleanup, task.close)
		dir = task.cgroup()
	}
	p, err := r.start(dir, r.technique.class, role)
	if err == nil {
		r.others = append(r.others, p)
	}
	return p, err
}

func (r *trial) mark() string {
	if r.technique.mark != nil {
		return r.technique.mark(r.token)
	}
	return r.token
}

func (r *trial) permits(p packet) bool {
	return r.technique.permit != nil && r.technique.permit(p) ||
		r.technique.beside != nil && r.technique.beside(p) && !p.carries(r.mark())
}

// counts says whether p is what the technique wants to arrive.
func (r *trial) counts(p packet) bool {
	if r.technique.group != nil {
		return p.reports(r.technique.group(r.token))
	}
	if r.technique.seen != nil {
		// The kernel may still answer the sink's late packet to a socket that
		// an unguarded process has closed.
		return !p.background() && !p.bareReset() && r.technique.seen(p)
	}
	return p.carries(r.mark()) && (r.technique.permit == nil || !r.technique.permit(p))
}

// reached says where the technique got to. An unguarded trial waits for it;
// for a guarded one the markers have shown that nothing more is to come.
func (r *trial) reached(packets []packet) (string, error) {
	var patience time.Duration
	if !r.guarded {
		patience = 5 * time.Second
	}
	for _, p := range packets {
		if r.counts(p) && (r.technique.proof == onWire || r.guarded) {
			return p.String(), nil
		}
	}
	switch r.technique.proof {
	case atSink:
		where, _ := r.lab.outside.waitFor(r.mark(), patience)
		return where, nil
	case atNeighbour:
		if err := r.lab.settleNeighbour(); err != nil {
			return "", err
		}
		where, _ := r.lab.neighbour.waitFor(r.mark(), patience)
		return where, nil
	case atOther:
		return r.receivedByOther()
	}
	if !r.guarded || r.technique.permit != nil {
		return "", nil // the proof is a packet
	}
	where, _ := r.lab.outside.saw(r.mark())
	return where, nil
}

func (r *trial) receivedByOther() (string, error) {
	for _, other := range r.others {
		if err := other.tell("enough"); err != nil {
			return "", err
		}
		text, err := other.expect("received")
		if err != nil {
			return "", err
		}
		if _, err := other.wait(); err != nil {
			return "", err
		}
		if strings.Contains(text, r.token) {
			return "the other task", nil
		}
	}
	return "", nil
}

// tellAfter waits for a word of the process, then for fn, and says word.
func (p *process) tellAfter(expect, word string, fn func()) error {
	if _, err := p.expect(expect); err != nil {
		return err
	}
	fn()
	return p.tell(word)
}

// missing returns the first feature that the kernel lacks.
func (l *lab) missing(features []feature) string {
	for _, f := range features {
		if err := l.host.Do(f.probe); err != nil {
			return fmt.Sprintf("%s: %v", f.name, err)
		}
	}
	return ""
}

// errnoName is the name that programs know an errno by.
func errnoName(o outcome) string {
	switch {
	case o.Errno != 0:
		return unix.ErrnoName(o.Errno)
	case o.Error != "":
		return o.Error
	}
	return "no error"
}

// onDeveloperMachine says that a tool may be missing: never in CI, and a guest
// has only what it was given.
func onDeveloperMachine() bool {
	return os.Getenv("CI") != "true" || os.Getenv("AGENTGUARD_VM") != ""
}
