// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// inbounds answer a peer outside that begins, which is a way out as well.
func inbounds() []technique {
	fromPeer := at(denied4, 0)
	return []technique{
		{
			name: "in-tcp", what: "a peer outside connects to the task's server and is told",
			proof: onWire, stop: "egress",
			try: serve(netip.IPv4Unspecified()), assist: visit(host4, fromPeer, false),
		}, {
			name: "in-tcp6", what: "the same over IPv6",
			proof: onWire, stop: "egress",
			try: serve(netip.IPv6Unspecified()), assist: visit(host6, at(denied6, 0), false),
		}, {
			name: "in-tcp-dual", what: "the same from an IPv4 peer to an IPv6 listener",
			proof: onWire, stop: "egress",
			try: serve(netip.IPv6Unspecified()), assist: visit(host4, fromPeer, false),
		}, {
			name: "in-tfo", what: "the peer comes with Fast Open: data goes back before the handshake is done",
			proof: onWire, stop: "egress",
			try: serve(netip.IPv4Unspecified()), assist: visit(host4, fromPeer, true),
		}, {
			name: "in-tcp-other-peer", what: "ingress is allowed to another peer", policy: []string{`ingress: [{from: ["198.51.100.10:*"]}]`},
			proof: onWire, stop: "egress",
			try: serve(netip.IPv4Unspecified()), assist: visit(host4, fromPeer, false),
		}, {
			name: "in-mptcp", what: "mptcp: allow: the peer comes with MPTCP", policy: []string{"mptcp: allow"}, needs: []feature{multipath()},
			proof: onWire, stop: "egress",
			try: serveWith(netip.IPv4Unspecified(), unix.IPPROTO_MPTCP), assist: visit(host4, fromPeer, false),
		}, {
			name: "in-udp-reply", what: "a peer outside sends a datagram and is answered",
			proof: onWire, errno: unix.EPERM, stop: "sendmsg",
			try: answer(func(a *attempt, s sock, peer unix.Sockaddr) error {
				return step("sendto", unix.Sendto(int(s), a.payload(), 0, peer))
			}),
			assist: callUDP,
		}, {
			name: "in-udp-connect", what: "the same by connecting to the peer",
			proof: onWire, errno: unix.EPERM, stop: "connect",
			try: answer(func(a *attempt, s sock, peer unix.Sockaddr) error {
				if err := unix.Connect(int(s), peer); err != nil {
					return step("connect", err)
				}
				return s.write(a.payload())
			}),
			assist: callUDP,
		},
	}
}

func serve(address netip.Addr) func(*attempt) error { return serveWith(address, unix.IPPROTO_TCP) }

// serveWith listens, and tells the first who comes. The test says when nobody
// will come any more.
func serveWith(address netip.Addr, proto int) func(*attempt) error {
	return func(a *attempt) error {
		s, err := openFor(address, unix.SOCK_STREAM, proto)
		if err != nil {
			return err
		}
		defer s.close()
		if err := s.bind(at(address, 0)); err != nil {
			return err
		}
		if err := unix.Listen(int(s), 8); err != nil {
			return step("listen", err)
		}
		port, err := s.port()
		if err != nil {
			return err
		}
		a.say(fmt.Sprintf("listening %d", port))
		poll := []unix.PollFd{{Fd: int32(s), Events: unix.POLLIN}, {Fd: 0, Events: unix.POLLIN}}
		if _, err := unix.Poll(poll, 5000); err != nil {
			return step("poll", err)
		}
		if poll[0].Revents == 0 {
			return nil
		}
		conn, _, err := unix.Accept(int(s))
		if err != nil {
			return step("accept", err)
		}
		defer sock(conn).close()
		if err := sock(conn).write(a.payload()); err != nil {
			return err
		}
		_, err = a.hear()
		return err
	}
}

// visit connects from the sink and reads what it is told.
func visit(host netip.Addr, from netip.AddrPort, fastOpen bool) func(*trial) error {
	return func(t *trial) error {
		port, err := t.listening()
		if err != nil {
			return err
		}
		if err := t.lab.sink.Do(func() error { return visitOnce(at(host, port), from, fastOpen) }); err != nil && !t.guarded {
			return err
		}
		return t.process.tell("enough")
	}
}

func visitOnce(to, from netip.AddrPort, fastOpen bool) error {
	s, err := openFor(to.Addr(), unix.SOCK_STREAM, unix.IPPROTO_TCP)
	if err != nil {
		return err
	}
	defer s.close()
	// Long enough for an answer on one machine, and the whole wait of a
	// guarded run.
	for _, option := range []int{unix.SO_SNDTIMEO, unix.SO_RCVTIMEO} {
		if err := unix.SetsockoptTimeval(int(s), unix.SOL_SOCKET, option, &unix.Timeval{Usec: 300000}); err != nil {
			return err
		}
	}
	if err := s.bind(from); err != nil {
		return err
	}
	if fastOpen {
		err = s.sendTo([]byte("hello"), unix.MSG_FASTOPEN, to)
	} else {
		err = s.connect(to)
	}
	if err != nil {
		return err
	}
	_, err = unix.Read(int(s), make([]byte, 256))
	return step("read", err)
}

// listening is the port that the process says it listens on.
func (t *trial) listening() (uint16, error) {
	text, err := t.process.expect("listening")
	if err != nil {
		return 0, err
	}
	port, err := strconv.ParseUint(text, 10, 16)
	return uint16(port), err
}

// answer waits for a datagram and hands its sender to fn.
func answer(fn func(*attempt, sock, unix.Sockaddr) error) func(*attempt) error {
	return udpSocket(host4, func(a *attempt, s sock) error {
		if err := s.bind(at(netip.IPv4Unspecified(), 0)); err != nil {
			return err
		}
		port, err := s.port()
		if err != nil {
			return err
		}
		a.say(fmt.Sprintf("listening %d", port))
		_, peer, err := unix.Recvfrom(int(s), make([]byte, 256), 0)
		if err != nil {
			return step("recvfrom", err)
		}
		return fn(a, s, peer)
	})
}

// callUDP sends a datagram from the sink.
func callUDP(t *trial) error {
	port, err := t.listening()
	if err != nil {
		return err
	}
	return t.lab.sink.Do(func() error {
		s, err := open(unix.AF_INET, unix.SOCK_DGRAM, 0)
		if err != nil {
			return err
		}
		defer s.close()
		if err := s.bind(at(denied4, 40449)); err != nil {
			return err
		}
		return s.sendTo([]byte("hello"), 0, at(host4, port))
	})
}

// fromSink dials from the sink's namespace.
func (l *lab) fromSink(network, from, to string) (conn net.Conn, err error) {
	err = l.sink.Do(func() error {
		dialer := net.Dialer{Timeout: 2 * time.Second}
		if host, err := netip.ParseAddr(from); err == nil {
			dialer.LocalAddr = &net.TCPAddr{IP: host.AsSlice()}
		}
		conn, err = dialer.Dial(network, to)
		return err
	})
	return conn, err
}
