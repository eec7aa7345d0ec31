// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"io"
	"net"
	"testing"
	"time"

	"agentguard.dev/agentguard/internal/maps"
	"agentguard.dev/agentguard/internal/netns"
	"agentguard.dev/agentguard/internal/policy"
)

// peer is a TCP listener outside any task that hands out what it accepted.
func (f *fixture) peer(ns *netns.Handle, network, addr string) (string, func() net.Conn) {
	t := f.t
	t.Helper()
	var l net.Listener
	err := ns.Do(func() (err error) { l, err = net.Listen(network, addr); return err })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.Addr().String(), func() net.Conn {
		t.Helper()
		l.(*net.TCPListener).SetDeadline(time.Now().Add(5 * time.Second))
		conn, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
}

func (f *fixture) sweepNow() SweepResult {
	f.t.Helper()
	if err := Barrier(); err != nil {
		f.t.Fatal(err)
	}
	result, err := f.Sweep(context.Background(), []*netns.Handle{f.ns})
	if err != nil {
		f.t.Fatal(err)
	}
	return result
}

func TestSweepCutsWhatIsNoLongerAllowed(t *testing.T) {
	for _, network := range []string{"tcp4", "tcp6", "tcp"} {
		t.Run(network, func(t *testing.T) {
			f := newFixture(t)
			far := newVeth(t, f.ns)
			listen := map[string]string{"tcp4": "192.0.2.2:0", "tcp6": "[2001:db8::2]:0", "tcp": "192.0.2.2:0"}[network]
			addr, accept := f.peer(far, network, listen)
			a := f.begin(nil, addr)
			a.want("ok", "dial a tcp %s", addr)
			conn := accept()
			a.want("ok", "write a hello")

			if kept := f.sweepNow(); kept.Destroyed != 0 || len(kept.Sockets) == 0 {
				t.Errorf("nothing was taken away, yet: %+v", kept)
			}
			a.allow() // the policy shrinks to nothing
			a.put()
			cut := f.sweepNow()
			if cut.Destroyed != 1 {
				t.Errorf("destroyed %d sockets, want 1: %+v", cut.Destroyed, cut)
			}
			a.want("software caused connection abort", "read a")
			wantReset(t, conn, "hello")
		})
	}
}

// wantReset reads what was sent and then expects the peer's reset.
func wantReset(t *testing.T, conn net.Conn, sent string) {
	t.Helper()
	conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	got, err := io.ReadAll(conn)
	if err == nil || rootCause(err).Error() != "connection reset by peer" {
		t.Errorf("the peer read %q, %v; want a reset", got, err)
	}
	if string(got) != sent && string(got) != "" {
		t.Errorf("the peer read %q, want %q", got, sent)
	}
}

func TestEndedTask(t *testing.T) {
	f := newFixture(t)
	addr, accept := f.peer(f.ns, "tcp4", "127.0.0.1:0")
	p := f.packet("127.0.0.1:0")
	a := f.begin(nil, addr, "udp://"+p.LocalAddr().String())
	a.want("ok", "dial a tcp %s", addr)
	conn := accept()
	a.want("ok", "dial u udp %s", p.LocalAddr())

	a.record.State = maps.StateDying
	a.put()
	if cut := f.sweepNow(); cut.Destroyed != 2 {
		t.Errorf("destroyed %d, want the TCP and the UDP socket: %+v", cut.Destroyed, cut)
	}
	a.record.State = maps.StateDead
	a.put()
	wantReset(t, conn, "")
	a.want("software caused connection abort", "read a")
	a.want(eperm, "dial b tcp %s", addr)
	a.want(eperm, "dial c udp %s", p.LocalAddr())

	if err := f.Maps().Tasks.Delete(a.dir.ID()); err != nil {
		t.Fatal(err)
	}
	a.want(eperm, "dial b tcp %s", addr)
}

func TestDeadlines(t *testing.T) {
	f := newFixture(t)
	addr, accept := f.peer(f.ns, "tcp4", "127.0.0.1:0")
	a := f.begin(nil)
	grant := func(deadline uint64) {
		if err := f.Maps().Rules.Replace(a.record.Number, compile(t, deadline, addr)); err != nil {
			t.Fatal(err)
		}
	}
	grant(0)
	a.record.Grants = true
	a.put()
	a.want("ok", "dial a tcp %s", addr)
	conn := accept()
	a.want("ok", "write a before")
	soon := Now() + uint64(300*time.Millisecond)
	grant(soon)
	waitUntil(t, soon)
	a.want("ok", "write a after") // into the send buffer, no further
	a.want(eperm, "dial b tcp %s", addr)
	conn.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
	if got, _ := io.ReadAll(conn); string(got) != "before" {
		t.Errorf("the peer read %q, want only what was sent before the deadline", got)
	}

	b := f.begin(nil, addr)
	b.want("ok", "dial a tcp %s", addr)
	left := accept()
	b.record.Deadline = Now() + uint64(200*time.Millisecond)
	b.put()
	waitUntil(t, b.record.Deadline)
	b.want(eperm, "dial b tcp %s", addr)
	// The record is still that of a live task.
	if cut := f.sweepNow(); cut.Destroyed != 2 {
		t.Errorf("destroyed %d, want the sockets of the expired rule and of the expired task: %+v", cut.Destroyed, cut)
	}
	a.want("software caused connection abort", "read a")
	b.want("software caused connection abort", "read a")
	wantReset(t, left, "")
}

func waitUntil(t *testing.T, deadline uint64) {
	t.Helper()
	for Now() < deadline {
		time.Sleep(time.Duration(deadline - Now()))
	}
}

func TestAuditModeLetsThrough(t *testing.T) {
	f := newFixture(t)
	f.watch()
	addr, _ := f.peer(f.ns, "tcp4", "127.0.0.1:0")
	a := f.begin(func(r *maps.Task) { r.Mode = policy.Audit })
	a.want("ok", "dial a tcp %s", addr)
	a.want("ok", "socket 2 3 1")
	f.event("would-deny", func(e Event) bool { return e.Verdict == WouldDeny && e.Hook == HookConnect })
}

func TestSubCgroup(t *testing.T) {
	f := newFixture(t)
	addr, _ := f.peer(f.ns, "tcp4", "127.0.0.1:0")
	other, _ := f.peer(f.ns, "tcp4", "127.0.0.1:0")
	a := f.begin(nil, addr)
	inner := f.agent(newCgroup(t, newCgroup(t, a.dir.Path()).Path()))
	inner.want("ok", "dial a tcp %s", addr)
	inner.want(eperm, "dial b tcp %s", other)

	// Below the guard, in no task.
	stray := f.agent(newCgroup(t, f.guard.Path()))
	stray.want(eperm, "dial a tcp %s", addr)
	root := f.agent(f.guard)
	root.want(eperm, "dial a tcp %s", addr)
}
