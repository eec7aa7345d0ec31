// SPDX-License-Identifier: Apache-2.0

package names

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/miekg/dns"
)

func TestListensOnBothFamilies(t *testing.T) {
	l := unboundLab(t, Config{})
	if l.port >= 1024 {
		t.Errorf("port %d is anybody's", l.port)
	}
	for _, addr := range []string{"127.0.0.1", "::1"} {
		for _, network := range []string{"udp", "tcp"} {
			co := dns.Conn{Conn: dial(t, l.ns, network, netip.AddrPortFrom(netip.MustParseAddr(addr), l.port))}
			if err := co.WriteMsg(new(dns.Msg).SetQuestion("four.good.test.", dns.TypeA)); err != nil {
				t.Fatal(err)
			}
			if r, err := co.ReadMsg(); err != nil || len(r.Answer) != 1 {
				t.Errorf("%s %s: %v, error %v", network, addr, r, err)
			}
		}
	}
	again, err := l.server.Listen(l.ns, Upstream{From: l.ns})
	if err != nil || again != l.port {
		t.Errorf("listening again: port %d, error %v, want %d", again, err, l.port)
	}
	if reply := l.ask(t, "four.good.test", dns.TypeA); reply.Rcode != dns.RcodeSuccess {
		t.Errorf("answer %v: the resolver that was asked is still trusted", reply)
	}
}

func TestNamespacesThatLackSomething(t *testing.T) {
	s, err := New(Config{}, newTown())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	if _, err := s.Listen(namespace(t, false), Upstream{}); err == nil || !strings.Contains(err.Error(), "the interface lo is down") {
		t.Errorf("lo is down, error %v", err)
	}
	ns := namespace(t, true)
	if err := ns.Do(func() error {
		// /proc/sys/net is that of the thread that opens it.
		return os.WriteFile("/proc/sys/net/ipv6/conf/all/disable_ipv6", []byte("1"), 0)
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Listen(ns, Upstream{From: ns}); err != nil {
		t.Errorf("without IPv6: %v", err)
	}
}

func TestPortsOfOthersAreLeftAlone(t *testing.T) {
	ns := namespace(t, true)
	var held []io.Closer
	if err := ns.Do(func() error {
		for i, listen := range []func(string) (io.Closer, error){
			func(at string) (io.Closer, error) { return net.ListenPacket("udp4", at) },
			func(at string) (io.Closer, error) { return net.Listen("tcp4", at) },
			func(at string) (io.Closer, error) { return net.ListenPacket("udp6", at) },
			func(at string) (io.Closer, error) { return net.Listen("tcp6", at) },
		} {
			c, err := listen(fmt.Sprint(":", highestPort-i))
			if err != nil {
				return err
			}
			held = append(held, c)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	l := labIn(t, ns, newTown(), Config{})
	if want := uint16(highestPort - len(held)); l.port != want {
		t.Errorf("port %d, want %d, the first free for all", l.port, want)
	}
	for _, c := range held {
		c.Close()
	}
}

// Two namespaces have resolvers at the same address, that say different things.
func TestNamespacesAreApart(t *testing.T) {
	w := newTown("api.good.test")
	s, err := New(Config{}, w)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	var labs []*lab
	for i := range 2 {
		ns := namespace(t, true)
		dnsmasq(t, ns, upstream, fmt.Sprintf("--host-record=api.good.test,192.0.2.%d", i+1))
		port, err := s.Listen(ns, Upstream{ns, []netip.AddrPort{upstream}})
		if err != nil {
			t.Fatal(err)
		}
		labs = append(labs, &lab{town: w, ns: ns, server: s, port: port})
	}
	for range 2 {
		for i, l := range labs {
			want := fmt.Sprintf("api.good.test. A 192.0.2.%d", i+1)
			if got := show(l.ask(t, "api.good.test", dns.TypeA).Answer); got != want {
				t.Errorf("namespace %d: %q, want %q", i, got, want)
			}
		}
	}
	s.Leave(labs[0].ns.ID())
	if keys := s.cache.lru.Len(); keys != 1 {
		t.Errorf("%d answers in the cache, want that of the other namespace alone", keys)
	}
	if got := show(labs[1].ask(t, "api.good.test", dns.TypeA).Answer); got != "api.good.test. A 192.0.2.2" {
		t.Errorf("the other namespace: %q", got)
	}
}

func TestConnectionsAreBounded(t *testing.T) {
	l := newLab(t, newTown(), Config{})
	for range maxTaskConns {
		dial(t, l.ns, "tcp", l.at())
	}
	waitFor(t, func() bool { return l.server.quotas.total.conns.Load() == maxTaskConns })
	if _, err := dial(t, l.ns, "tcp", l.at()).Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("one connection more: %v, want it closed", err)
	}
	l.set(func() { l.task = 8 })
	if reply := l.askBy(t, "tcp", "evil.test", dns.TypeA); reply.Rcode != dns.RcodeNameError {
		t.Errorf("another task: %v", reply)
	}
}

// Whatever is under way, closing leaves nothing behind.
func TestCloseLeavesNothing(t *testing.T) {
	w := newTown("*.good.test")
	ns := namespace(t, true)
	silent := make(chan struct{})
	impolite(t, ns, upstream, func(dns.ResponseWriter, *dns.Msg) { <-silent })
	defer close(silent)
	for range 5 {
		s, err := New(Config{}, w)
		if err != nil {
			t.Fatal(err)
		}
		port, err := s.Listen(ns, Upstream{ns, []netip.AddrPort{upstream}})
		if err != nil {
			t.Fatal(err)
		}
		l := &lab{town: w, ns: ns, server: s, port: port}
		var conns []net.Conn
		for i := range 10 {
			for _, network := range []string{"udp", "tcp"} {
				co := dns.Conn{Conn: dial(t, ns, network, l.at())}
				if err := co.WriteMsg(new(dns.Msg).SetQuestion(fmt.Sprintf("n%d.good.test.", i), dns.TypeA)); err != nil {
					t.Fatal(err)
				}
				conns = append(conns, co.Conn)
			}
		}
		waitFor(t, func() bool { return s.quotas.total.waits.Load() == 20 })
		var closing sync.WaitGroup
		for range 2 {
			closing.Go(s.Close)
		}
		closing.Go(func() { s.Leave(ns.ID()) })
		closing.Wait()
		if _, err := s.Listen(ns, Upstream{From: ns}); err == nil {
			t.Error("a closed resolver listens")
		}
		for _, conn := range conns {
			conn.Close()
		}
	}
	// Who has told that it ends is there a moment longer.
	stacks := make([]byte, 1<<20)
	waitFor(t, func() bool {
		left := string(stacks[:runtime.Stack(stacks, true)])
		return !strings.Contains(left, "names.(*station)") && !strings.Contains(left, "names.(*exchange)")
	})
	var busy []string
	if err := ns.Do(func() error {
		for _, network := range []string{"udp4", "udp6"} {
			pc, err := net.ListenPacket(network, fmt.Sprint(":", highestPort))
			if err != nil {
				busy = append(busy, err.Error())
				continue
			}
			pc.Close()
		}
		return nil
	}); err != nil || len(busy) > 0 {
		t.Errorf("the port is not free again: %v %v", busy, err)
	}
}
