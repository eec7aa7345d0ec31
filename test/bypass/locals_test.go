// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// locals send what is addressed to this machine out of its network link: the
// loopback permission must not cover it. Each has an own socket at the address
// that is asked for, so that the connect hook finds nothing wrong.
func locals() []technique {
	localhost := netip.MustParseAddr("127.0.0.1")
	away := func(name, what string, to netip.Addr, divert func(sock) error) technique {
		return technique{
			name: name, what: what, proof: onWire, stop: "egress", errno: unix.EPERM,
			try: func(a *attempt) error {
				own, err := openFor(to, unix.SOCK_DGRAM, 0)
				if err != nil {
					return err
				}
				defer own.close()
				if err := own.bind(at(to, 0)); err != nil {
					return err
				}
				port, err := own.port()
				if err != nil {
					return err
				}
				s, err := openFor(to, unix.SOCK_DGRAM, 0)
				if err != nil {
					return err
				}
				defer s.close()
				if err := divert(s); err != nil {
					return err
				}
				return s.sendTo(a.payload(), 0, at(to, port))
			},
		}
	}
	device := func(s sock) error {
		return step("SO_BINDTODEVICE", unix.SetsockoptString(int(s), unix.SOL_SOCKET, unix.SO_BINDTODEVICE, hostLink))
	}
	return []technique{
		away("away-bindtodevice", "SO_BINDTODEVICE sends a datagram for 127.0.0.1 out of the network link", localhost, device),
		away("away-bindtoifindex", "SO_BINDTOIFINDEX does the same", localhost, func(s sock) error {
			index, err := linkIndex()
			if err != nil {
				return err
			}
			return s.set(unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX, index)
		}),
		away("away-unicast-if", "IP_UNICAST_IF does the same", localhost, func(s sock) error {
			index, err := linkIndex()
			if err != nil {
				return err
			}
			return s.setBytes(unix.IPPROTO_IP, unix.IP_UNICAST_IF, []byte{0, 0, 0, byte(index)})
		}),
		{
			name: "away-tcp", what: "SO_BINDTODEVICE: the SYN of a connection to 127.0.0.1 leaves by the network link",
			proof: onWire, stop: "egress",
			seen: func(p packet) bool { return p.proto == unix.IPPROTO_TCP && p.dst == localhost },
			try: func(a *attempt) error {
				ln, err := listener(localhost, 40447)
				if err != nil {
					return err
				}
				defer ln.close()
				s, err := open(unix.AF_INET, unix.SOCK_STREAM, 0)
				if err != nil {
					return err
				}
				defer s.close()
				if err := device(s); err != nil {
					return err
				}
				if err := unix.SetsockoptTimeval(int(s), unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{Usec: 50000}); err != nil {
					return err
				}
				return s.connect(at(localhost, 40447))
			},
		}, {
			name: "away-pktinfo", what: "IP_PKTINFO names the network link for one datagram to 127.0.0.1",
			proof: onWire, stop: "egress", errno: unix.EPERM,
			try: func(a *attempt) error {
				own, err := open(unix.AF_INET, unix.SOCK_DGRAM, 0)
				if err != nil {
					return err
				}
				defer own.close()
				if err := own.bind(at(localhost, 0)); err != nil {
					return err
				}
				port, err := own.port()
				if err != nil {
					return err
				}
				index, err := linkIndex()
				if err != nil {
					return err
				}
				s, err := open(unix.AF_INET, unix.SOCK_DGRAM, 0)
				if err != nil {
					return err
				}
				defer s.close()
				info := append(native32(nil, uint32(index)), make([]byte, 8)...)
				return s.sendMsg(a.payload(), ancillary(unix.IPPROTO_IP, unix.IP_PKTINFO, info), 0, at(localhost, port))
			},
		}, {
			name: "away-6-freebind", what: "IPV6_FREEBIND: a source address that is not the host's, of 128 chosen bits, to an allowed destination",
			proof: onWire, stop: "setsockopt", errno: unix.EPERM,
			seen: func(p packet) bool { return p.src == foreign6 },
			try: udpSocket(host6, func(a *attempt, s sock) error {
				if err := s.set(unix.IPPROTO_IPV6, unix.IPV6_FREEBIND, 1); err != nil {
					return err
				}
				if err := s.bind(at(foreign6, 0)); err != nil {
					return err
				}
				return s.sendTo(a.payload(), 0, at(allowed6, allowedPort))
			}),
		}, {
			name: "away-6-freebind-pktinfo", what: "IPV6_FREEBIND, and the foreign source in IPV6_PKTINFO",
			proof: onWire, stop: "setsockopt", errno: unix.EPERM,
			seen: func(p packet) bool { return p.src == foreign6 },
			try: udpSocket(host6, func(a *attempt, s sock) error {
				if err := s.set(unix.IPPROTO_IPV6, unix.IPV6_FREEBIND, 1); err != nil {
					return err
				}
				info := native32(foreign6.AsSlice(), 0)
				return s.sendMsg(a.payload(), ancillary(unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, info), 0, at(allowed6, allowedPort))
			}),
		}, {
			name: "away-6-ip-freebind", what: "IP_FREEBIND on an IPv6 socket frees IPv6 source addresses too",
			proof: onWire, stop: "setsockopt", errno: unix.EPERM,
			seen: func(p packet) bool { return p.src == foreign6 },
			try: udpSocket(host6, func(a *attempt, s sock) error {
				if err := s.set(unix.IPPROTO_IP, unix.IP_FREEBIND, 1); err != nil {
					return err
				}
				if err := s.bind(at(foreign6, 0)); err != nil {
					return err
				}
				return s.sendTo(a.payload(), 0, at(allowed6, allowedPort))
			}),
		}, {
			name: "away-transparent", what: "IP_TRANSPARENT: a foreign source address to an allowed destination", class: netRaw,
			proof: onWire, stop: "setsockopt", errno: unix.EPERM,
			seen: func(p packet) bool { return p.src == foreign4 },
			try: udpSocket(host4, func(a *attempt, s sock) error {
				if err := s.set(unix.IPPROTO_IP, unix.IP_TRANSPARENT, 1); err != nil {
					return err
				}
				if err := s.bind(at(foreign4, 0)); err != nil {
					return err
				}
				return s.sendTo(a.payload(), 0, at(allowed4, allowedPort))
			}),
		}, {
			name: "away-transparent6", what: "IPV6_TRANSPARENT: the same over IPv6", class: netRaw,
			proof: onWire, stop: "setsockopt", errno: unix.EPERM,
			seen: func(p packet) bool { return p.src == foreign6 },
			try: udpSocket(host6, func(a *attempt, s sock) error {
				if err := s.set(unix.IPPROTO_IPV6, unix.IPV6_TRANSPARENT, 1); err != nil {
					return err
				}
				if err := s.bind(at(foreign6, 0)); err != nil {
					return err
				}
				return s.sendTo(a.payload(), 0, at(allowed6, allowedPort))
			}),
		},
	}
}

// linkIndex is that of the network link, in the namespace of the process.
func linkIndex() (int, error) {
	ifi, err := net.InterfaceByName(hostLink)
	if err != nil {
		return 0, fmt.Errorf("find link: %w", err)
	}
	return ifi.Index, nil
}
