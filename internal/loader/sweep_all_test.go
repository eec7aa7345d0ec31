// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"agentguard.dev/agentguard/internal/maps"
)

// shared is a UDP socket outside any task whose port others may share.
func (f *fixture) shared(addr string) net.PacketConn {
	f.t.Helper()
	var p net.PacketConn
	f.in(func() (err error) {
		config := net.ListenConfig{Control: control(func(fd int) error {
			return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
		})}
		p, err = config.ListenPacket(f.t.Context(), "udp4", addr)
		return err
	})
	f.t.Cleanup(func() { p.Close() })
	return p
}

// Sockets of others that share a port with a task's are none of its business.
func TestSweepSparesOthersOnThePort(t *testing.T) {
	f := newFixture(t)
	a := f.begin(nil)
	a.want("ok", "open u 2 2 0")
	a.want("ok", "bind u 0.0.0.0:5353")
	others := []net.PacketConn{f.shared("0.0.0.0:5353"), f.shared("0.0.0.0:5353")}
	a.record.State = maps.StateDying
	a.put()
	f.sweepNow()
	for i, p := range others {
		p.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		if _, _, err := p.ReadFrom(make([]byte, 10)); rootCause(err).Error() != "i/o timeout" {
			t.Errorf("socket %d of the host: %v", i, err)
		}
	}
}

// However many sockets there are, and however they lie in the kernel's tables,
// one sweep finds them all.
func TestSweepFindsAll(t *testing.T) {
	f := newFixture(t)
	newVeth(t, f.ns)
	a := f.begin(nil, "udp://192.0.2.2:1000-3000")
	const n = 700
	a.want("ok", "crowd %d 192.0.2.1:5353 192.0.2.2 1000", n)
	if have := f.sweepNow(); len(have.Sockets) != n || have.Destroyed != 0 {
		t.Errorf("found %d sockets, destroyed %d; want %d, 0", len(have.Sockets), have.Destroyed, n)
	}
	a.allow()
	a.put()
	cut := f.sweepNow()
	left := 0
	for _, s := range f.sweepNow().Sockets {
		if s.Remote.Port() != 0 {
			left++
		}
	}
	if left > 0 || cut.Destroyed != n {
		t.Errorf("destroyed %d of %d; %d are still connected", cut.Destroyed, n, left)
	}
}

// A flow to a listener of the host is cut with its rule, as any other; flows
// within the task, and what the host began, are not.
func TestSweepOfLoopbackFlows(t *testing.T) {
	f := newFixture(t)
	newVeth(t, f.ns)
	f.local("192.0.2.1")
	addr, accept := f.peer(f.ns, "tcp4", "127.0.0.1:0")
	own, acceptOwn := f.peer(f.ns, "tcp4", "192.0.2.1:0")
	host := f.receiver(f.ns, "127.0.0.1:0", "")
	a := f.begin(nil, addr, own, "udp://"+host.LocalAddr().String())
	a.want("ok", "dial lo tcp4 %s", addr)
	a.want("ok", "dial own tcp4 %s", own)
	a.want("ok", "dial u udp4 %s", host.LocalAddr())
	conns := []net.Conn{accept(), acceptOwn()}

	a.want("ok", "open s 2 1 0")
	a.want("ok", "bind s 127.0.0.1:7777")
	a.want("ok", "listen s")
	a.want("ok", "dial within tcp4 127.0.0.1:7777")
	a.want("ok", "accept s")
	a.want("ok", "open v 2 2 0")
	a.want("ok", "bind v 127.0.0.1:7778")
	a.want("ok", "dial w udp4 127.0.0.1:7778")
	a.want("ok", "serve echo tcp4 127.0.0.1:7779")
	var client net.Conn
	f.in(func() (err error) { client, err = net.Dial("tcp4", "127.0.0.1:7779"); return err })
	defer client.Close()

	if have := f.sweepNow(); have.Destroyed != 0 {
		t.Errorf("nothing was taken away, yet: %+v", have)
	}
	a.allow()
	a.put()
	if cut := f.sweepNow(); cut.Destroyed != 2 {
		t.Errorf("destroyed %d, want the two connections to the host: %+v", cut.Destroyed, cut)
	}
	for _, name := range []string{"lo", "own"} {
		a.want("software caused connection abort", "read %s", name)
	}
	a.want(eperm, "write u hello")
	a.want("ok", "write w hello")
	for _, conn := range conns {
		wantReset(t, conn, "")
	}
	a.want("ok", "write within hello")
	a.want("ok hello", "fetch s")
	client.Write([]byte("hello"))
	client.SetReadDeadline(time.Now().Add(2 * time.Second))
	if n, err := client.Read(make([]byte, 10)); n != 5 {
		t.Errorf("what the host began: %d, %v", n, err)
	}
}
