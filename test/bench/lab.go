// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"agentguard.dev/agentguard/internal/cgroup"
	"agentguard.dev/agentguard/internal/netns"
)

// The destinations of all clients are addresses of the far namespace, one hop
// away: 198.18.0.0/15 and 2001:db8:ffff::/48 are routed there and local there.
var (
	destination4 = netip.MustParseAddr("198.18.0.1")
	destination6 = netip.MustParseAddr("2001:db8:ffff::1")
	stranger4    = netip.MustParseAddr("198.19.255.1") // in no rule
)

const (
	sinkPort   = 9000 // UDP: queued until the buffer is full, then dropped
	listenPort = 9001 // TCP: accepts
	closedPort = 9002 // TCP: refuses
)

// lab is the ground that the bench stands on. Clients without packet filter
// share one namespace; nftables, whose rules every packet of a namespace
// passes, has one to itself.
type lab struct {
	root            *cgroup.Dir
	near, far       *netns.Handle
	filtered        *netns.Handle
	listener        *os.File
	closers         []func()
	cpu             int
	cgroups, guards int
}

func newLab(cpu int) (_ *lab, err error) {
	l := &lab{cpu: cpu}
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	mount, err := cgroup.Mount()
	if err != nil {
		return nil, err
	}
	if l.root, err = l.cgroup(filepath.Join(mount, fmt.Sprintf("agentguard-bench-%d", os.Getpid()))); err != nil {
		return nil, err
	}
	for _, ns := range []**netns.Handle{&l.near, &l.filtered, &l.far} {
		if *ns, err = newNamespace(); err != nil {
			return nil, err
		}
		l.closers = append(l.closers, func() { (*ns).Close() })
	}
	for _, ns := range []*netns.Handle{l.near, l.filtered, l.far} {
		if err := ns.Do(prepare); err != nil {
			return nil, err
		}
	}
	if err := l.far.Do(l.prepareFar); err != nil {
		return nil, err
	}
	for i, ns := range []*netns.Handle{l.near, l.filtered} {
		if err := l.join(ns, i); err != nil {
			return nil, err
		}
	}
	return l, nil
}

func (l *lab) close() {
	for i := len(l.closers) - 1; i >= 0; i-- {
		l.closers[i]()
	}
}

// cgroup makes one that goes with the lab.
func (l *lab) cgroup(path string) (*cgroup.Dir, error) {
	dir, err := cgroup.Create(path)
	if err != nil {
		return nil, err
	}
	l.closers = append(l.closers, func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_, killed := dir.Kill(ctx)
		if err := errors.Join(killed, dir.Remove(ctx), dir.Close()); err != nil {
			fmt.Fprintln(os.Stderr, "bench: clean up:", err)
		}
	})
	return dir, nil
}

// pair makes a cgroup and one below it: every client stands equally deep.
func (l *lab) pair(name string) (above, below *cgroup.Dir, err error) {
	l.cgroups++
	if above, err = l.cgroup(filepath.Join(l.root.Path(), fmt.Sprintf("%s-%d", name, l.cgroups))); err != nil {
		return nil, nil, err
	}
	below, err = l.cgroup(filepath.Join(above.Path(), "task"))
	return above, below, err
}

// newNamespace makes an unnamed network namespace, gone with its last handle.
func newNamespace() (*netns.Handle, error) {
	own, err := netns.Current()
	if err != nil {
		return nil, err
	}
	defer own.Close()
	var made *netns.Handle
	err = own.Do(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("new network namespace: %w", err)
		}
		made, err = netns.Current()
		return err
	})
	return made, err
}

// prepare makes the current namespace a quiet one.
func prepare() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("raise lo: %w", err)
	}
	for name, value := range map[string]string{
		"core/somaxconn":              "65535",
		"ipv4/tcp_max_syn_backlog":    "65535",
		"ipv4/conf/all/rp_filter":     "0", // what nftables resets comes back over lo
		"ipv4/conf/default/rp_filter": "0",
		"ipv6/conf/default/accept_ra": "0",
	} {
		if err := os.WriteFile("/proc/sys/net/"+name, []byte(value), 0); err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	return nil
}

// prepareFar makes every destination local, and listens.
func (l *lab) prepareFar() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	for _, prefix := range []string{"198.18.0.0/15", "2001:db8:ffff::/48"} {
		route := netlink.Route{LinkIndex: lo.Attrs().Index, Dst: parseNet(prefix), Type: unix.RTN_LOCAL,
			Scope: unix.RT_SCOPE_HOST, Table: unix.RT_TABLE_LOCAL}
		if err := netlink.RouteAdd(&route); err != nil {
			return fmt.Errorf("make %s local: %w", prefix, err)
		}
	}
	return l.listen()
}

// listen opens what needs no server process. The clients inherit the listener,
// to take connections off its queue; it stays outside their cgroups.
func (l *lab) listen() error {
	listener, err := newListener(listenPort)
	if err != nil {
		return err
	}
	l.listener = listener
	l.closers = append(l.closers, func() { listener.Close() })
	small := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 4096) })
	}}
	sink, err := small.ListenPacket(context.Background(), "udp", fmt.Sprintf("[::]:%d", sinkPort))
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	l.closers = append(l.closers, func() { sink.Close() })
	return nil
}

// newListener opens one on a port of its own, for a server to inherit.
func (l *lab) newListener() (listener *os.File, port uint16, err error) {
	err = l.far.Do(func() error {
		if listener, err = newListener(0); err != nil {
			return err
		}
		l.closers = append(l.closers, func() { listener.Close() })
		name, err := unix.Getsockname(int(listener.Fd()))
		if err != nil {
			return fmt.Errorf("listen: %w", err)
		}
		port = uint16(name.(*unix.SockaddrInet6).Port)
		return nil
	})
	return listener, port, err
}

// newListener listens on both families, in the current namespace. Accepting
// blocks.
func newListener(port int) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	file := os.NewFile(uintptr(fd), "listener")
	if err := unix.Bind(fd, &unix.SockaddrInet6{Port: port}); err != nil {
		file.Close()
		return nil, fmt.Errorf("listen: %w", err)
	}
	if err := unix.Listen(fd, 65535); err != nil {
		file.Close()
		return nil, fmt.Errorf("listen: %w", err)
	}
	return file, nil
}

// join lays a veth pair from near to the far namespace.
func (l *lab) join(near *netns.Handle, number int) error {
	name := fmt.Sprintf("veth%d", number)
	err := near.Do(func() error {
		return netlink.LinkAdd(&netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: name, PeerNamespace: netlink.NsFd(l.far.FD()),
		})
	})
	if err != nil {
		return fmt.Errorf("add veth pair: %w", err)
	}
	ends := [2]end{{ns: near, host: 1}, {ns: l.far, host: 2}}
	for i := range ends {
		if err := ends[i].raise(name, number); err != nil {
			return fmt.Errorf("raise veth: %w", err)
		}
	}
	for i := range ends {
		if err := ends[i].meet(&ends[1-i]); err != nil {
			return fmt.Errorf("set up veth: %w", err)
		}
	}
	return near.Do(func() error {
		for _, route := range []netlink.Route{
			{Dst: parseNet("198.18.0.0/15"), Gw: ends[1].addr4.AsSlice()},
			{Dst: parseNet("2001:db8:ffff::/48"), Gw: ends[1].addr6.AsSlice()},
		} {
			if err := netlink.RouteAdd(&route); err != nil {
				return fmt.Errorf("route to %s: %w", route.Dst, err)
			}
		}
		return nil
	})
}

// end is one end of a veth pair.
type end struct {
	ns           *netns.Handle
	host         byte
	link         netlink.Link
	addr4, addr6 netip.Addr
}

func (e *end) raise(name string, number int) error {
	e.addr4 = netip.AddrFrom4([4]byte{192, 0, 2, byte(number)<<4 | e.host})
	e.addr6 = netip.MustParseAddr(fmt.Sprintf("2001:db8:%d::%d", number, e.host))
	return e.ns.Do(func() error {
		// Unanswered solicitations would be traffic of nobody's.
		for _, setting := range []string{"accept_dad", "accept_ra", "router_solicitations"} {
			if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/"+setting, []byte("0"), 0); err != nil {
				return err
			}
		}
		var err error
		if e.link, err = netlink.LinkByName(name); err != nil {
			return err
		}
		for _, prefix := range []netip.Prefix{netip.PrefixFrom(e.addr4, 28), netip.PrefixFrom(e.addr6, 64)} {
			addr, err := netlink.ParseAddr(prefix.String())
			if err != nil {
				return err
			}
			addr.Flags |= unix.IFA_F_NODAD
			if err := netlink.AddrAdd(e.link, addr); err != nil {
				return err
			}
		}
		return netlink.LinkSetUp(e.link)
	})
}

// meet makes the other end's link address known for good.
func (e *end) meet(other *end) error {
	return e.ns.Do(func() error {
		for _, addr := range []netip.Addr{other.addr4, other.addr6} {
			neighbour := netlink.Neigh{
				LinkIndex: e.link.Attrs().Index, State: unix.NUD_PERMANENT,
				IP: addr.AsSlice(), HardwareAddr: other.link.Attrs().HardwareAddr,
			}
			if err := netlink.NeighSet(&neighbour); err != nil {
				return err
			}
		}
		return nil
	})
}

func parseNet(s string) *net.IPNet {
	p := netip.MustParsePrefix(s)
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// lastCPU is the processor farthest from where interrupts usually go.
func lastCPU() int { return runtime.NumCPU() - 1 }
