// SPDX-License-Identifier: Apache-2.0

package soak

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"agentguard.dev/agentguard/internal/netns"
)

// world is the network that tasks want to reach: a namespace at the other end
// of a cable, in which every address of all agents is local and served. Its
// servers send back what they are told, and check who tells it.
type world struct {
	t *testing.T

	mu       sync.Mutex
	visitors map[uint32]*visitor
	visits   int
	open     map[net.Conn]struct{}
}

// visitor is what the servers know of one task.
type visitor struct {
	allowed map[netip.AddrPort]bool // at any time of its life
	resets  chan netip.AddrPort     // where its connections were reset
}

// The two ends of the cable.
var (
	homeEnd  = []string{"192.0.2.1/30", "2001:db8::1/64"}
	worldEnd = []string{"192.0.2.2/30", "2001:db8::2/64"}
)

func newWorld(t *testing.T, agents []*agent) *world {
	t.Helper()
	ns, err := newNamespace()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	if err := wire(ns); err != nil {
		t.Fatal("set up the network: ", err)
	}
	w := &world{t: t, visitors: make(map[uint32]*visitor), open: make(map[net.Conn]struct{})}
	for port := exactPort; port <= neverPort; port++ {
		if port != datagramPort {
			w.serve(ns, uint16(port))
		}
	}
	for _, a := range agents {
		w.serveDatagrams(ns, a.datagram())
	}
	return w
}

func newNamespace() (made *netns.Handle, err error) {
	own, err := netns.Current()
	if err != nil {
		return nil, err
	}
	defer own.Close()
	// Do brings the thread back, whatever namespace it is left in.
	err = own.Do(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		made, err = netns.Current()
		return err
	})
	return made, err
}

func wire(ns *netns.Handle) error {
	cable := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "home"}, PeerName: "world", PeerNamespace: netlink.NsFd(ns.FD())}
	if err := netlink.LinkAdd(cable); err != nil {
		return err
	}
	if err := errors.Join(raise("lo"), raise("home", homeEnd...)); err != nil {
		return err
	}
	err := ns.Do(func() error {
		if err := errors.Join(raise("lo"), raise("world", worldEnd...)); err != nil {
			return err
		}
		return errors.Join(makeLocal("198.18.0.0/15"), makeLocal("2001:db8:ffff::/48"))
	})
	if err != nil {
		return err
	}
	return errors.Join(route("198.18.0.0/15", worldEnd[0]), route("2001:db8:ffff::/48", worldEnd[1]))
}

func raise(link string, addresses ...string) error {
	at, err := netlink.LinkByName(link)
	if err != nil {
		return err
	}
	for _, address := range addresses {
		addr, err := netlink.ParseAddr(address)
		if err != nil {
			return err
		}
		if addr.IP.To4() == nil {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(at, addr); err != nil {
			return fmt.Errorf("give %s to %s: %w", address, link, err)
		}
	}
	return netlink.LinkSetUp(at)
}

// makeLocal lets this namespace answer for every address of a prefix.
func makeLocal(prefix string) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	_, to, err := net.ParseCIDR(prefix)
	if err != nil {
		return err
	}
	return netlink.RouteAdd(&netlink.Route{LinkIndex: lo.Attrs().Index, Dst: to, Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST, Table: unix.RT_TABLE_LOCAL})
}

func route(prefix, through string) error {
	_, to, err := net.ParseCIDR(prefix)
	if err != nil {
		return err
	}
	gateway, _, err := net.ParseCIDR(through)
	if err != nil {
		return err
	}
	return netlink.RouteAdd(&netlink.Route{Dst: to, Gw: gateway})
}

// expect lets the servers know of a task before it can reach them.
func (w *world) expect(number uint32) *visitor {
	v := &visitor{allowed: make(map[netip.AddrPort]bool), resets: make(chan netip.AddrPort, 16)}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.visitors[number] = v
	return v
}

// mayReach is called before the task is allowed to.
func (w *world) mayReach(v *visitor, to netip.AddrPort) {
	w.mu.Lock()
	defer w.mu.Unlock()
	v.allowed[to] = true
}

// forget makes every further visit of an ended task an escape.
func (w *world) forget(number uint32) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.visitors, number)
}

// visit checks that a task is where it may be. An escape fails the test.
func (w *world) visit(number uint32, at netip.AddrPort) *visitor {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.visits++
	v := w.visitors[number]
	switch {
	case v == nil:
		w.t.Errorf("ESCAPE: task %d reached %s after its end", number, at)
	case !v.allowed[at]:
		w.t.Errorf("ESCAPE: task %d reached %s, which it was never allowed to", number, at)
	default:
		return v
	}
	return nil
}

// serve accepts connections at every address until the test is over.
func (w *world) serve(ns *netns.Handle, port uint16) {
	// Without keep-alive only a reset tells a server of a cut connection.
	listen := net.ListenConfig{KeepAlive: -1}
	var listener net.Listener
	if err := ns.Do(func() (err error) {
		listener, err = listen.Listen(w.t.Context(), "tcp", fmt.Sprintf(":%d", port))
		return err
	}); err != nil {
		w.t.Fatal(err)
	}
	var serving sync.WaitGroup
	w.t.Cleanup(func() {
		listener.Close()
		w.hangUp()
		serving.Wait()
	})
	serving.Go(func() {
		for {
			conn, err := listener.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				w.t.Errorf("accept at port %d: %v", port, err)
				return
			}
			w.mu.Lock()
			w.open[conn] = struct{}{}
			w.mu.Unlock()
			serving.Go(func() { w.attend(conn) })
		}
	})
}

// hangUp ends what peers have left without a word.
func (w *world) hangUp() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for conn := range w.open {
		conn.SetDeadline(time.Now())
	}
}

func (w *world) leave(conn net.Conn) {
	conn.Close()
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.open, conn)
}

// attend sends back what a task says until the connection ends.
func (w *world) attend(conn net.Conn) {
	defer w.leave(conn)
	at := conn.LocalAddr().(*net.TCPAddr).AddrPort()
	at = netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
	if at.Port() == neverPort {
		w.t.Errorf("ESCAPE: a connection to %s, which no rule names", at)
	}
	var said [4]byte
	var v *visitor
	for {
		_, err := io.ReadFull(conn, said[:])
		if err == nil {
			v = w.visit(binary.BigEndian.Uint32(said[:]), at)
			_, err = conn.Write(said[:])
		}
		if err == nil {
			continue
		}
		if errors.Is(err, unix.ECONNRESET) && v != nil {
			select {
			case v.resets <- at:
			default:
			}
		}
		return
	}
}

func (w *world) serveDatagrams(ns *netns.Handle, at netip.AddrPort) {
	var socket *net.UDPConn
	if err := ns.Do(func() (err error) {
		socket, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		return err
	}); err != nil {
		w.t.Fatal(err)
	}
	var serving sync.WaitGroup
	w.t.Cleanup(func() {
		socket.Close()
		serving.Wait()
	})
	serving.Go(func() {
		var said [4]byte
		for {
			n, from, err := socket.ReadFromUDPAddrPort(said[:])
			if errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrClosed) {
				return
			}
			if err != nil || n != len(said) {
				w.t.Errorf("a datagram of %d bytes at %s: %v", n, at, err)
				return
			}
			w.visit(binary.BigEndian.Uint32(said[:]), at)
			if _, err := socket.WriteToUDPAddrPort(said[:], from); err != nil {
				w.t.Errorf("answer a datagram at %s: %v", at, err)
			}
		}
	})
}
