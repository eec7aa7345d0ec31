// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"agentguard.dev/agentguard/bpf"
	"agentguard.dev/agentguard/internal/maps"
	"agentguard.dev/agentguard/internal/policy"
)

const (
	dnsStation  = 553
	httpStation = 580
)

// station makes f's namespace have a resolver and a relay that answer each
// message with what the kernel says of who asks: "TASK CGROUP PID PROCESS ASKED".
func (f *fixture) station() {
	f.t.Helper()
	for _, host := range []string{"127.0.0.1", "::1"} {
		f.oneStation(host, dnsStation)
		f.oneStation(host, httpStation)
	}
	f.stationed()
}

func (f *fixture) stationed() {
	f.t.Helper()
	if err := f.objs.Stations.Put(f.ns.Cookie(), bpf.GuardStation{Dns: dnsStation, Http: httpStation}); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) oneStation(host string, port int) {
	at := net.JoinHostPort(host, fmt.Sprint(port))
	p := f.packet(at)
	go func() {
		buf := make([]byte, 2000)
		for {
			_, from, err := p.ReadFrom(buf)
			if err != nil {
				return
			}
			p.WriteTo([]byte(f.asker(unix.IPPROTO_UDP, from)), from)
		}
	}()
	var l net.Listener
	f.in(func() (err error) { l, err = net.Listen("tcp", at); return err })
	f.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				buf := make([]byte, 2000)
				for {
					if _, err := conn.Read(buf); err != nil {
						return
					}
					conn.Write([]byte(f.asker(unix.IPPROTO_TCP, conn.RemoteAddr())))
				}
			}()
		}
	}()
}

func (f *fixture) asker(proto uint8, from net.Addr) string {
	at := netip.MustParseAddrPort(from.String())
	key := bpf.GuardPeer{Netns: f.ns.Cookie(), Addr: mapWords(at.Addr()), Port: at.Port(), Proto: proto}
	var a bpf.GuardAsker
	if err := f.objs.Askers.Lookup(key, &a); err != nil {
		return err.Error()
	}
	comm := make([]byte, 0, len(a.Comm))
	for _, c := range a.Comm {
		if c != 0 {
			comm = append(comm, byte(c))
		}
	}
	return fmt.Sprintf("%d %d %d %s %s", a.Task, a.Cgroup, a.Pid, comm, netip.AddrPortFrom(maps.Addr(a.To.Addr), a.To.Port))
}

// mapWords is an address as the programs keep it.
func mapWords(addr netip.Addr) (w [4]uint32) {
	b := addr.As16()
	for i := range w {
		w[i] = nativeWord(netip.AddrFrom4([4]byte(b[4*i : 4*i+4])))
	}
	return w
}

func withNames(r *maps.Task) { r.Names = true }

// shown is a destination as the kernel's records have it.
func shown(addr string) string {
	ap := netip.MustParseAddrPort(addr)
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()).String()
}

// asks is a station's answer to the task's agent.
func (k *task) asks(addr string) string {
	return fmt.Sprintf("ok %d %d %d exe %s", k.record.Number, k.dir.ID(), k.cmd.Process.Pid, shown(addr))
}

func TestDNSIsRedirected(t *testing.T) {
	f := newFixture(t)
	f.station()
	a := f.begin(withNames, "udp://192.0.2.7:53")
	answer := func(addr string) string {
		return fmt.Sprintf("%s from %s", a.asks(addr), addr)
	}
	for _, c := range []struct {
		name        string
		family      int
		first, next string
		only6       bool
	}{
		{name: "v4", family: unix.AF_INET, first: "192.0.2.7:53", next: "127.0.0.53:53"},
		{name: "v6", family: unix.AF_INET6, first: "[2001:db8::7]:53", next: "[::1]:53"},
		{name: "v6only", family: unix.AF_INET6, first: "[2001:db8::7]:53", next: "[2001:db8::8]:53", only6: true},
		{name: "mapped", family: unix.AF_INET6, first: "[::ffff:192.0.2.7]:53", next: "[::ffff:127.0.0.53]:53"},
		{name: "mixed", family: unix.AF_INET6, first: "[::ffff:192.0.2.7]:53", next: "[2001:db8::8]:53"},
	} {
		t.Run(c.name, func(t *testing.T) {
			open := func(kind int) {
				a.want("ok", "open s %d %d 0", c.family, kind)
				if c.only6 {
					a.want("ok", "v6only s")
				}
			}
			open(unix.SOCK_DGRAM)
			for _, to := range []string{c.first, c.next, c.first} {
				a.want("ok", "send s %s - unconnected", to)
				a.want(answer(to), "fetch-from s")
			}

			// A socket that has sent to a v4-mapped address first is bound to
			// 0.0.0.0 and cannot connect to another family.
			open(unix.SOCK_DGRAM)
			again := c.next
			if c.name == "mixed" {
				again = "[::ffff:192.0.2.9]:53"
			}
			for _, to := range []string{c.first, again} {
				a.want("ok", "connect s %s", to)
				a.want("ok "+to, "peer s")
				a.want("ok", "send s - - connected")
				a.want(answer(to), "fetch-from s")
			}
			a.want("ok", "send s %s - elsewhere", c.first)
			a.want("ok", "disconnect s")
			a.want("ok", "connect s %s", c.first)
			a.want("ok", "send s - - reconnected")

			for _, to := range []string{c.first, c.next} {
				open(unix.SOCK_STREAM)
				a.want("ok", "connect s %s", to)
				a.want("ok "+to, "peer s")
				a.want("ok", "send s - - hello")
				a.want(a.asks(to), "fetch s")
			}
		})
	}
	if cut := f.sweepNow(); cut.Destroyed != 0 {
		t.Errorf("a sweep destroyed what goes to the resolver: %+v", cut)
	}
	a.record.Names = false
	a.put()
	if cut := f.sweepNow(); cut.Destroyed == 0 {
		t.Errorf("a sweep without names leaves what goes to the resolver: %+v", cut)
	}
}

// What does not ask for names has its DNS as its rules say.
func TestDNSOfAddressRulesIsTheirs(t *testing.T) {
	f := newFixture(t)
	f.station()
	resolver := f.packet("127.0.0.53:53")
	a := f.begin(nil, "udp://127.0.0.53:53")
	a.want("ok", "packet u udp4 127.0.0.1:0")
	a.want("ok", "sendto u 127.0.0.53:53 query")
	buf := make([]byte, 100)
	if n, _, err := resolver.ReadFrom(buf); err != nil || string(buf[:n]) != "query" {
		t.Errorf("the resolver got %q, %v", buf[:n], err)
	}
}

func TestWithoutAResolver(t *testing.T) {
	f := newFixture(t)
	f.watch()
	newVeth(t, f.ns)
	a := f.begin(withNames, "udp://192.0.2.2:53", "tcp://192.0.2.2:53")
	refused := func(what string) {
		t.Helper()
		const want = "connection refused"
		a.want("ok", "open u 2 2 0")
		a.want(want, "send u 192.0.2.2:53 - query")
		a.want(want, "connect u 192.0.2.2:53")
		a.want("ok", "open s 2 1 0")
		a.want(want, "connect s 192.0.2.2:53")
		a.want("ok", "open v 10 2 0")
		a.want(want, "send v [2001:db8::2]:53 - query")
		a.want(want, "send v [::ffff:192.0.2.2]:53 - query")
		denied := f.event(what, func(e Event) bool { return e.Reason == ReasonResolver })
		if denied.Verdict != Deny || denied.Port != 53 || denied.PID == 0 {
			t.Errorf("%s: %+v", what, denied)
		}
		f.mu.Lock()
		f.events = nil
		f.mu.Unlock()
	}
	refused("no station")
	f.stationed()
	refused("nobody at the station")

	// The port is free while the daemon is down: a task takes it.
	thief := f.begin(nil)
	for _, proto := range []string{"2 2 0", "2 1 0", "10 2 0"} {
		thief.want("ok", "open t %s", proto)
		at := "127.0.0.1"
		if proto[0] == '1' {
			at = "[::1]"
		}
		thief.want("ok", "bind t %s:%d", at, dnsStation)
		if strings.Contains(proto, " 1 ") {
			thief.want("ok", "listen t")
		}
	}
	refused("a task at the station")
	a.want("ok", "open x 2 2 0")
	a.want(eperm, "send x 127.0.0.1:%d - direct", dnsStation)
}

// A packet for port 53 that no hook has turned, here because the socket was
// connected before there were names.
func TestDNSBesideTheResolver(t *testing.T) {
	f := newFixture(t)
	f.watch()
	far := newVeth(t, f.ns)
	f.station()
	sink := f.receiver(far, "192.0.2.2:53", "")
	a := f.begin(nil, "udp://192.0.2.2:53")
	a.want("ok", "open u 2 2 0")
	a.want("ok", "connect u 192.0.2.2:53")
	a.want("ok", "send u - - before")
	if _, err := sink.Read(make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	a.want("ok", "open n 2 2 0")
	a.want("ok", "send n 192.0.2.2:53 - before")
	if _, err := sink.Read(make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	a.record.Names = true
	a.put()
	a.want(eperm, "send u - - after")
	a.want(eperm, "send n 192.0.2.2:53 - after")
	wantNothing(t, sink, "the resolver beside agentguard's")
	denied := f.event("the packet", func(e Event) bool { return e.Reason == ReasonResolver })
	if denied.Hook != HookEgress {
		t.Errorf("%+v", denied)
	}
	if cut := f.sweepNow(); cut.Destroyed != 1 {
		t.Errorf("the sweep destroyed %d, want the connected one: %+v", cut.Destroyed, cut)
	}
	a.want("ok", "send n 192.0.2.2:53 - again") // forgotten, so turned
	a.want("ok", "fetch-from n")
}

// Nothing of a task gets to a station by its own address, not even where the
// host's listeners are open to it: there would be nobody who asks.
func TestStationIsReachedOnlyByRedirection(t *testing.T) {
	for _, change := range []func(*maps.Task){
		func(r *maps.Task) { r.Names = true; r.Loopback = policy.LoopbackHost },
		func(r *maps.Task) { r.Loopback = policy.LoopbackHost },
	} {
		f := newFixture(t)
		f.station()
		a := f.begin(change, "udp://127.0.0.0/8:*", "127.0.0.0/8:*", "udp://[::1]:*")
		a.want("ok", "open u 2 2 0")
		a.want(eperm, "send u 127.0.0.1:%d - direct", dnsStation)
		a.want("ok", "open v 10 2 0")
		a.want(eperm, "send v [::1]:%d - direct", dnsStation)
		a.want("ok", "open w 2 2 0")
		for range 4 { // a rule allows that, which must not be remembered
			a.want("ok", "connect w 127.0.0.1:%d", dnsStation)
		}
		a.want(eperm, "send w - - direct")
		a.want("ok", "open s 2 1 0")
		a.do("connect s 127.0.0.1:%d", dnsStation)
		a.do("send s - - direct")
		var key bpf.GuardPeer
		var value bpf.GuardAsker
		if f.objs.Askers.Iterate().Next(&key, &value) {
			t.Errorf("recorded as asking: %+v", value)
		}
	}
}

// learn puts an address of the named destination 1 of the task's policy into
// the kernel.
func (k *task) learn(addr string, flags bpf.GuardPermitFlag, expires uint64) bpf.GuardHost {
	k.f.t.Helper()
	at := netip.MustParseAddrPort(addr)
	key := bpf.GuardHost{Owner: k.record.Policy, Flow: bpf.GuardFlow{
		Addr: mapWords(at.Addr()), Port: at.Port(), Proto: unix.IPPROTO_TCP,
	}}
	permit := bpf.GuardPermit{
		Rule: maps.RuleFirst, Flags: uint32(bpf.GuardPermitFlagPERMIT_LEARNED | flags), Expires: expires,
	}
	known := bpf.GuardLearnedAddr{Owner: k.record.Policy, Number: 1, Addr: key.Flow.Addr}
	if err := errors.Join(k.f.objs.Hosts.Put(key, permit), k.f.objs.Learned.Put(known, expires)); err != nil {
		k.f.t.Fatal(err)
	}
	return key
}

func (f *fixture) permit(key bpf.GuardHost) (p bpf.GuardPermit) {
	f.t.Helper()
	if err := f.objs.Hosts.Lookup(key, &p); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		f.t.Fatal(err)
	}
	return p
}
