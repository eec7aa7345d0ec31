// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"errors"
	"net/netip"

	"golang.org/x/sys/unix"
)

// streams are TCP's other ways to begin.
func streams() []technique {
	denied := at(denied4, deniedPort)
	return []technique{
		{
			name: "tfo-sendto", what: "Fast Open: sendto(MSG_FASTOPEN) puts data on the SYN",
			errno: unix.EPERM, stop: "connect",
			try: fastOpenSend(denied),
		}, {
			name: "tfo6-sendto", what: "Fast Open over IPv6",
			errno: unix.EPERM, stop: "connect",
			try: fastOpenSend(at(denied6, deniedPort)),
		}, {
			name: "tfo-connect", what: "Fast Open: TCP_FASTOPEN_CONNECT, where connect does nothing until the first write",
			errno: unix.EPERM, stop: "connect",
			try: fastOpenConnect(denied),
		}, {
			name: "tcp-reconnect", what: "connect where it is allowed, disconnect with AF_UNSPEC, connect elsewhere",
			errno: unix.EPERM, stop: "connect", permit: to(allowed4),
			try: tcpSocket(denied4, func(a *attempt, s sock) error {
				if err := s.connect(at(allowed4, allowedPort)); err != nil {
					return err
				}
				if err := s.disconnect(); err != nil {
					return err
				}
				return a.connectAndSend(s, denied)
			}),
		}, {
			name: "tcp-defer", what: "bind, listen, disconnect, connect: a socket with a past as a listener",
			errno: unix.EPERM, stop: "connect",
			try: func(a *attempt) error {
				s, err := listener(netip.IPv4Unspecified(), 40445)
				if err != nil {
					return err
				}
				defer s.close()
				if err := s.disconnect(); err != nil {
					return err
				}
				return a.connectAndSend(s, denied)
			},
		}, {
			name: "tcp-addrform", what: "IPV6_ADDRFORM turns a connected IPv6 socket into an IPv4 one, which is then reconnected",
			errno: unix.EPERM, stop: "connect", permit: to(allowed4),
			try: tcpSocket(denied6, func(a *attempt, s sock) error {
				if err := s.connect(at(mapped(allowed4), allowedPort)); err != nil {
					return err
				}
				if err := s.set(unix.IPPROTO_IPV6, unix.IPV6_ADDRFORM, unix.AF_INET); err != nil {
					return err
				}
				if err := s.disconnect(); err != nil {
					return err
				}
				return a.connectAndSend(s, denied)
			}),
		}, {
			name: "tcp-repair", what: "TCP_REPAIR makes an established connection without a handshake",
			class: netAdmin, proof: onWire, errno: unix.EPERM, stop: "connect", seen: to(denied4),
			try: tcpSocket(denied4, func(a *attempt, s sock) error {
				if err := s.set(unix.IPPROTO_TCP, unix.TCP_REPAIR, 1); err != nil {
					return err
				}
				if err := s.bind(at(host4, 40446)); err != nil {
					return err
				}
				if err := s.connect(denied); err != nil {
					return err
				}
				if err := s.set(unix.IPPROTO_TCP, unix.TCP_REPAIR, 0); err != nil {
					return err
				}
				// Leaving repair mode sends a packet; the peer, which knows
				// nothing of the connection, resets it.
				if err := s.write(a.payload()); !errors.Is(err, unix.ECONNRESET) {
					return err
				}
				return nil
			}),
		},
	}
}

// to permits packets to one address.
func to(address netip.Addr) func(packet) bool {
	return func(p packet) bool { return p.dst == address && !p.routed }
}

func fastOpenSend(to netip.AddrPort) func(*attempt) error {
	return tcpSocket(to.Addr(), func(a *attempt, s sock) error {
		return s.sendTo(a.payload(), unix.MSG_FASTOPEN, to)
	})
}

func fastOpenConnect(to netip.AddrPort) func(*attempt) error {
	return tcpSocket(to.Addr(), func(a *attempt, s sock) error {
		if err := s.set(unix.IPPROTO_TCP, unix.TCP_FASTOPEN_CONNECT, 1); err != nil {
			return err
		}
		if err := s.connect(to); err != nil {
			return err
		}
		return s.write(a.payload())
	})
}
