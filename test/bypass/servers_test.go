// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"fmt"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"agentguard.dev/agentguard/internal/netns"
)

// newSink serves every address of the sink.
func newSink(t *testing.T, ns *netns.Handle) *recorder {
	t.Helper()
	r := newRecorder(t, ns)
	// Markers are not answered: their sender is gone.
	r.datagrams(t, unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_UDP, at(gateway4, markerPort))
	for _, port := range []uint16{allowedPort, deniedPort} {
		r.tcp(t, fmt.Sprintf(":%d", port))
		for _, a := range sinkAddresses() {
			// One socket each: a wildcard socket would answer from another
			// address than it was asked at.
			if a == sinkLinkLocal {
				r.udp(t, fmt.Sprintf("[%s%%%s]:%d", a, sinkLink, port))
			} else {
				r.udp(t, at(a, port).String())
			}
		}
	}
	for _, a := range []netip.Addr{resolver4, resolver6} {
		r.dns(t, at(a, dnsPort), zone)
	}
	r.dns(t, at(denied4, dnsPort), poison)
	r.http(t, fmt.Sprintf(":%d", httpPort))
	r.udp(t, fmt.Sprintf("0.0.0.0:%d", groupPort), joinGroup4)
	r.udp(t, fmt.Sprintf("[::]:%d", groupPort), joinGroup6(t, ns))
	r.datagrams(t, unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_UDPLITE, at(denied4, deniedPort))
	r.datagrams(t, unix.AF_INET6, unix.SOCK_DGRAM, unix.IPPROTO_UDPLITE, at(denied6, deniedPort))
	for _, proto := range []int{unix.IPPROTO_ICMP, unix.IPPROTO_UDP, experimental} {
		r.datagrams(t, unix.AF_INET, unix.SOCK_RAW, proto, at(denied4, 0))
	}
	for _, proto := range []int{unix.IPPROTO_ICMPV6, experimental} {
		r.datagrams(t, unix.AF_INET6, unix.SOCK_RAW, proto, at(denied6, 0))
	}
	for _, proto := range []int{unix.IPPROTO_SCTP, unix.IPPROTO_DCCP} {
		r.stream(t, unix.AF_INET, proto, at(denied4, deniedPort))
		r.stream(t, unix.AF_INET6, proto, at(denied6, deniedPort))
	}
	return r
}

// experimental is the protocol number that RFC 3692 sets aside for tests.
const experimental = 253

func joinGroup4(fd int) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return err
	}
	return unix.SetsockoptIPMreq(fd, unix.IPPROTO_IP, unix.IP_ADD_MEMBERSHIP,
		&unix.IPMreq{Multiaddr: group4.As4(), Interface: gateway4.As4()})
}

func joinGroup6(t *testing.T, ns *netns.Handle) func(fd int) error {
	var index int
	if err := ns.Do(func() error {
		ifi, err := net.InterfaceByName(sinkLink)
		if err == nil {
			index = ifi.Index
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return func(fd int) error {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
			return err
		}
		return unix.SetsockoptIPv6Mreq(fd, unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP,
			&unix.IPv6Mreq{Multiaddr: group6.As16(), Interface: uint32(index)})
	}
}

// newNeighbour serves the host's own addresses, as a service that belongs to
// no task does.
func newNeighbour(t *testing.T, ns *netns.Handle) *recorder {
	t.Helper()
	r := newRecorder(t, ns)
	r.datagrams(t, unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_UDP, at(netip.MustParseAddr("127.0.0.1"), markerPort))
	r.tcp(t, fmt.Sprintf(":%d", hostPort))
	r.udp(t, fmt.Sprintf(":%d", hostPort))
	// A port can be shared only between sockets of one user, and the task's
	// user is nobody.
	r.tcp(t, fmt.Sprintf("127.0.0.1:%d", reusePort), shared(unix.SO_REUSEPORT), ownedBy(nobody))
	r.udp(t, fmt.Sprintf("127.0.0.1:%d", reusePort), shared(unix.SO_REUSEPORT), ownedBy(nobody))
	r.udp(t, fmt.Sprintf("0.0.0.0:%d", broadcastPort), shared(unix.SO_REUSEADDR))
	return r
}

func shared(option int) func(fd int) error {
	return func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, 1) }
}

// ownedBy gives a socket to a user, as if a process of his had made it.
func ownedBy(uid int) func(fd int) error {
	return func(fd int) error { return unix.Fchown(fd, uid, -1) }
}

// settleNeighbour waits until the host's services have read what they have
// been sent. The shared ports come last, and the markers may go to a task's
// socket there, so they are left to the count of open connections.
func (l *lab) settleNeighbour() error {
	address := at(netip.MustParseAddr("127.0.0.1"), hostPort).String()
	return l.neighbour.settle([]string{address}, []string{address})
}
