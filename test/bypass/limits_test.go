// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"testing"

	"golang.org/x/sys/unix"
)

// limits are ways out that are known to be open, with the reason. They are
// documented as limits; the day one of them is closed, the table says so.
func limits() []technique {
	return []technique{{
		name: "rds", what: "RDS, a family of its own whose TCP connections a worker of the kernel opens", needs: []feature{rds()},
		lasting: true, proof: onWire, stop: "no hook of a cgroup sees the family, and its TCP sockets are the kernel's",
		seen:   func(p packet) bool { return p.dst == denied4 && p.proto == unix.IPPROTO_TCP },
		try:    reliable,
		assist: func(t *trial) error { return t.process.tellAfter("sent", "enough", t.lab.wireSeen(t)) },
	}}
}

// TestLimits tries each in a lab of its own, because what they make in the
// kernel outlives the process that asked for it.
func TestLimits(t *testing.T) {
	rows := newTable(t, "limit", len(limits()))
	for _, technique := range limits() {
		t.Run(technique.name, func(t *testing.T) {
			row := rows.begin(technique.name, technique.what, technique.class, technique.stop)
			l := newLab(t)
			if missing := l.missing(technique.needs); missing != "" {
				row.skip(missing)
				skipForKernel(t, missing)
			}
			if !l.unguarded(t, technique, row) {
				return
			}
			l = newLab(t)
			res, err := l.try(technique, newGuard(t, l))
			if err != nil {
				t.Fatal(err)
			}
			row.guarded, row.held = errnoName(res.outcome), res.reached == ""
		})
	}
}

// reliable sends an RDS message, for which the kernel makes a connection.
func reliable(a *attempt) error {
	fd, err := unix.Socket(unix.AF_RDS, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return step("socket", err)
	}
	s := sock(fd)
	defer s.close()
	if err := s.bind(at(host4, 40450)); err != nil {
		return err
	}
	if err := s.sendTo(a.payload(), unix.MSG_DONTWAIT, at(denied4, deniedPort)); err != nil {
		return err
	}
	a.say("sent")
	_, err = a.hear()
	return err
}
