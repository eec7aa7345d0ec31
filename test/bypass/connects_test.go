// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// connects are TCP connections to what no rule names.
func connects() []technique {
	plain := func(name, what string, to netip.AddrPort) technique {
		return technique{name: name, what: what, errno: unix.EPERM, stop: "connect", try: tcp(to)}
	}
	return []technique{
		plain("tcp4", "TCP to an address that no rule names", at(denied4, deniedPort)),
		plain("tcp6", "TCP over IPv6 to an address that no rule names", at(denied6, deniedPort)),
		plain("tcp-mapped", "TCP from an IPv6 socket to an IPv4-mapped address", at(mapped(denied4), deniedPort)),
		plain("tcp-port", "TCP to another port of an allowed address", at(allowed4, deniedPort)),
		plain("tcp-address", "TCP to an allowed port of another address", at(denied4, allowedPort)),
		plain("tcp-metadata4", "TCP to the cloud's metadata service", at(metadata4, allowedPort)),
		plain("tcp-metadata6", "TCP to the cloud's metadata service over IPv6", at(metadata6, allowedPort)),
		plain("tcp-link-local", "TCP to a link-local neighbour, by its scope", at(sinkLinkLocal.WithZone(hostLink), allowedPort)),
		plain("tcp-gateway", "TCP to the router", at(gateway4, allowedPort)),
		{
			name: "tcp-nonblocking", what: "non-blocking connect, then poll and write",
			errno: unix.EPERM, stop: "connect",
			try: nonblocking(at(denied4, deniedPort)),
		}, {
			name: "tcp-bound", what: "connect from a chosen source address and port",
			errno: unix.EPERM, stop: "connect",
			try: tcpSocket(denied4, func(a *attempt, s sock) error {
				if err := s.bind(at(host4, 40443)); err != nil {
					return err
				}
				return a.connectAndSend(s, at(denied4, deniedPort))
			}),
		}, {
			name: "tcp-own-port", what: "connect from the port of an own listener (SO_REUSEADDR), as if the peer had come to it",
			errno: unix.EPERM, stop: "connect",
			try: func(a *attempt) error {
				ln, err := listener(netip.IPv4Unspecified(), 40444)
				if err != nil {
					return err
				}
				defer ln.close()
				s, err := open(unix.AF_INET, unix.SOCK_STREAM, 0)
				if err != nil {
					return err
				}
				defer s.close()
				if err := s.set(unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
					return err
				}
				if err := s.set(unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
					return err
				}
				if err := s.bind(at(host4, 40444)); err != nil {
					return err
				}
				return a.connectAndSend(s, at(denied4, deniedPort))
			},
		}, {
			name: "tcp-own-listener", what: "own listener on 0.0.0.0 at the port that is asked for elsewhere",
			errno: unix.EPERM, stop: "connect",
			try: func(a *attempt) error {
				ln, err := listener(netip.IPv4Unspecified(), deniedPort)
				if err != nil {
					return err
				}
				defer ln.close()
				return tcp(at(denied4, deniedPort))(a)
			},
		}, {
			name: "tcp6-own-listener", what: "own listener on [::] at the port that is asked for elsewhere",
			errno: unix.EPERM, stop: "connect",
			try: func(a *attempt) error {
				ln, err := listener(netip.IPv6Unspecified(), deniedPort)
				if err != nil {
					return err
				}
				defer ln.close()
				return tcp(at(denied6, deniedPort))(a)
			},
		},
	}
}

func nonblocking(to netip.AddrPort) func(*attempt) error {
	return tcpSocket(to.Addr(), func(a *attempt, s sock) error {
		if err := unix.SetNonblock(int(s), true); err != nil {
			return err
		}
		if err := unix.Connect(int(s), sockaddr(to)); err != unix.EINPROGRESS && err != nil {
			return step("connect", err)
		}
		poll := []unix.PollFd{{Fd: int32(s), Events: unix.POLLOUT}}
		if _, err := unix.Poll(poll, int(2*time.Second/time.Millisecond)); err != nil {
			return step("poll", err)
		}
		if code, err := unix.GetsockoptInt(int(s), unix.SOL_SOCKET, unix.SO_ERROR); err != nil || code != 0 {
			return step("connect", unix.Errno(code))
		}
		return s.write(a.payload())
	})
}

// listener listens for TCP with a shareable port.
func listener(address netip.Addr, port uint16) (sock, error) {
	s, err := openFor(address, unix.SOCK_STREAM, unix.IPPROTO_TCP)
	if err != nil {
		return -1, err
	}
	for _, option := range []int{unix.SO_REUSEADDR, unix.SO_REUSEPORT} {
		if err := s.set(unix.SOL_SOCKET, option, 1); err != nil {
			s.close()
			return -1, err
		}
	}
	if err := s.bind(at(address, port)); err != nil {
		s.close()
		return -1, err
	}
	if err := unix.Listen(int(s), 8); err != nil {
		s.close()
		return -1, step("listen", err)
	}
	return s, nil
}
