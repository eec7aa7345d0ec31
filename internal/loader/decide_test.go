// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"net"
	"strings"
	"testing"

	"agentguard.dev/agentguard/internal/maps"
)

// server is a TCP echo server outside any task.
func (f *fixture) server(network, addr string) string {
	f.t.Helper()
	var l net.Listener
	f.in(func() (err error) { l, err = net.Listen(network, addr); return err })
	f.t.Cleanup(func() { l.Close() })
	go echo(l)
	return l.Addr().String()
}

// packet is a UDP socket outside any task.
func (f *fixture) packet(addr string) (p net.PacketConn) {
	f.t.Helper()
	f.in(func() (err error) { p, err = net.ListenPacket("udp", addr); return err })
	f.t.Cleanup(func() { p.Close() })
	return p
}

const eperm = "operation not permitted"

func TestConnect(t *testing.T) {
	f := newFixture(t)
	f.watch()
	v4, v6 := f.server("tcp4", "127.0.0.1:0"), f.server("tcp6", "[::1]:0")
	other := f.server("tcp4", "127.0.0.1:0")
	a := f.begin(nil, v4, v6)

	a.want("ok", "dial a tcp %s", v4)
	a.want("ok", "write a hello")
	a.want("ok hello", "read a")
	a.want("ok", "dial b tcp %s", v6)
	a.want("ok", "write b hello")
	a.want("ok hello", "read b")
	a.want(eperm, "dial c tcp %s", other)

	denied := f.event("denied connect", func(e Event) bool { return e.Verdict == Deny && e.Hook == HookConnect })
	if denied.Reason != ReasonNotOwn || denied.PID == 0 || denied.Task != a.record.Number ||
		net.JoinHostPort(denied.Addr.String(), "") == "" || !strings.Contains(other, denied.Addr.String()) {
		t.Errorf("denied: %+v", denied)
	}
	allowed := f.event("allowed connect", func(e Event) bool { return e.Verdict == Allow && e.Hook == HookConnect })
	if allowed.Reason != ReasonRule || allowed.Rule < maps.RuleFirst {
		t.Errorf("allowed: %+v", allowed)
	}

	counters, err := f.Maps().Counters.Read(a.record.Number, []uint32{maps.RuleNone, maps.RuleFirst, maps.RuleFirst + 1})
	if err != nil {
		t.Fatal(err)
	}
	if counters[maps.RuleNone].Denied != 1 || counters[maps.RuleFirst].Allowed != 1 || counters[maps.RuleFirst].Packets == 0 {
		t.Errorf("counters: %+v", counters)
	}
}

func TestUDP(t *testing.T) {
	f := newFixture(t)
	p, q := f.packet("127.0.0.1:0"), f.packet("127.0.0.1:0")
	a := f.begin(nil, "udp://"+p.LocalAddr().String())
	a.want("ok", "packet u udp4 127.0.0.1:0")
	a.want("ok", "sendto u %s one", p.LocalAddr())
	a.want(eperm, "sendto u %s two", q.LocalAddr())
	a.want(eperm, "dial c udp4 %s", q.LocalAddr())
	a.want("ok", "dial c udp4 %s", p.LocalAddr())
	a.want("ok", "write c three")
	buf := make([]byte, 100)
	for _, want := range []string{"one", "three"} {
		n, _, err := p.ReadFrom(buf)
		if err != nil || string(buf[:n]) != want {
			t.Errorf("received %q, %v; want %q", buf[:n], err, want)
		}
	}
}

func TestLoopbackBelongsToTheTask(t *testing.T) {
	f := newFixture(t)
	a, b := f.begin(nil), f.begin(nil)
	for _, addr := range []string{"127.0.0.1:0", "[::1]:0", "127.0.0.2:0"} {
		own := strings.TrimPrefix(a.do("serve s tcp %s", addr), "ok ")
		a.want("ok", "dial x tcp %s", own)
		a.want("ok", "write x hello")
		a.want("ok hello", "read x")
		b.want(eperm, "dial x tcp %s", own)

		// A connection from the host to the task's server works.
		var conn net.Conn
		f.in(func() (err error) { conn, err = net.Dial("tcp", own); return err })
		defer conn.Close()
		conn.Write([]byte("from outside"))
		buf := make([]byte, 100)
		n, err := conn.Read(buf)
		if err != nil || string(buf[:n]) != "from outside" {
			t.Errorf("host to task's server at %s: %q, %v", own, buf[:n], err)
		}
	}
	a.want("connection refused", "dial y tcp 127.0.0.1:1")
}

func TestSocketKinds(t *testing.T) {
	f := newFixture(t)
	a := f.begin(nil)
	a.want("ok", "socket 2 1 0")
	a.want("ok", "socket 10 2 0")
	a.want(eperm, "socket 2 3 1")
	a.want(eperm, "socket 10 3 255")
	a.want(eperm, "socket 2 2 136")
	a.want("protocol not supported", "socket 2 1 262")
	multipath := f.begin(func(r *maps.Task) { r.MPTCP = true; r.Raw = true })
	multipath.want("ok", "socket 2 1 262")
	multipath.want("ok", "socket 2 3 1")
}

func TestSocketOptions(t *testing.T) {
	f := newFixture(t)
	a := f.begin(nil)
	for option, want := range map[string]string{
		"2 0 4 4":    eperm, // IP_OPTIONS
		"10 41 57 8": eperm, // IPV6_RTHDR
		"2 0 35 8":   eperm, // IP_ADD_MEMBERSHIP
		"2 0 15 4":   eperm, // IP_FREEBIND
		"2 1 51 16":  eperm, // SO_ATTACH_REUSEPORT_CBPF
		"2 1 9 4":    "ok",  // SO_KEEPALIVE
		"2 0 4 0":    "ok",  // clearing IP_OPTIONS
	} {
		a.want(want, "setsockopt %s", option)
	}
}
