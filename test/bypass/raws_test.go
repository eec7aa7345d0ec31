// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"net/netip"

	"golang.org/x/sys/unix"
)

// raws write their own headers.
func raws() []technique {
	raw := func(name, what string, to netip.Addr, proto int, data func(*attempt) []byte, set ...[2]int) technique {
		return technique{
			name: name, what: what, class: netRaw, proof: onWire, errno: unix.EPERM, stop: "sock_create",
			try: func(a *attempt) error {
				s, err := openFor(to, unix.SOCK_RAW, proto)
				if err != nil {
					return err
				}
				defer s.close()
				for _, o := range set {
					if err := s.set(o[0], o[1], 1); err != nil {
						return err
					}
				}
				return s.sendTo(data(a), 0, at(to, 0))
			},
		}
	}
	header4 := func(proto byte, fragment uint16, data func(*attempt) []byte) func(*attempt) []byte {
		return func(a *attempt) []byte { return append(ipv4Header(proto, fragment, host4, denied4), data(a)...) }
	}
	datagram := func(a *attempt) []byte { return udpDatagram(40448, deniedPort, a.payload()) }
	datagram6 := func(a *attempt) []byte {
		return udp6Datagram(at(host6, 40448), at(denied6, deniedPort), a.payload())
	}
	payload := func(a *attempt) []byte { return a.payload() }
	return []technique{
		raw("raw-icmp", "an echo request from a raw socket", denied4, unix.IPPROTO_ICMP,
			func(a *attempt) []byte { return echoRequest(false, a.payload()) }),
		raw("raw-icmp6", "the same over IPv6", denied6, unix.IPPROTO_ICMPV6,
			func(a *attempt) []byte { return echoRequest(true, a.payload()) }),
		raw("raw-udp", "UDP from a raw socket", denied4, unix.IPPROTO_UDP, datagram),
		raw("raw-udp6", "the same over IPv6", denied6, unix.IPPROTO_UDP, datagram6),
		raw("raw-tcp", "a TCP segment with payload, and no connection", denied4, unix.IPPROTO_TCP, func(a *attempt) []byte {
			segment := []byte{0x9e, 0, 0x20, 0xfb, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, tcpPSH | tcpACK, 1, 0, 0, 0, 0, 0}
			return append(segment, a.payload()...)
		}),
		raw("raw-reset", "a TCP reset with payload: no bare reset", denied4, unix.IPPROTO_TCP, func(a *attempt) []byte {
			segment := []byte{0x9e, 0, 0x20, 0xfb, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, tcpRST, 1, 0, 0, 0, 0, 0}
			return append(segment, a.payload()...)
		}),
		raw("raw-experimental", "a protocol that nobody knows", denied4, experimental, payload),
		raw("raw-experimental6", "the same over IPv6", denied6, experimental, payload),
		raw("raw-header", "an IPv4 header of one's own (IP_HDRINCL)", denied4, unix.IPPROTO_UDP,
			header4(unix.IPPROTO_UDP, 0, datagram), [2]int{unix.IPPROTO_IP, unix.IP_HDRINCL}),
		raw("raw-fragment", "a later fragment, which has no ports", denied4, unix.IPPROTO_RAW, header4(unix.IPPROTO_UDP, 8, payload)),
		raw("raw-any", "IPPROTO_RAW", denied4, unix.IPPROTO_RAW, header4(experimental, 0, payload)),
		raw("raw-any6", "IPPROTO_RAW over IPv6", denied6, unix.IPPROTO_RAW, func(a *attempt) []byte {
			d := datagram6(a)
			return append(ipv6Header(unix.IPPROTO_UDP, len(d), host6, denied6), d...)
		}),
		raw("raw-header6", "an IPv6 header of one's own (IPV6_HDRINCL)", denied6, unix.IPPROTO_UDP, func(a *attempt) []byte {
			d := datagram6(a)
			return append(ipv6Header(unix.IPPROTO_UDP, len(d), host6, denied6), d...)
		}, [2]int{unix.IPPROTO_IPV6, unix.IPV6_HDRINCL}),
		raw("raw-tunnel", "an IPv4 packet inside an IPv4 packet", denied4, unix.IPPROTO_IPIP, header4(unix.IPPROTO_UDP, 0, datagram)),
		{
			name: "raw-connected", what: "a raw socket connected and written to", class: netRaw,
			proof: onWire, errno: unix.EPERM, stop: "sock_create",
			try: func(a *attempt) error {
				s, err := open(unix.AF_INET, unix.SOCK_RAW, experimental)
				if err != nil {
					return err
				}
				defer s.close()
				return a.connectAndSend(s, at(denied4, 0))
			},
		}, {
			name: "raw-policy-elsewhere", what: "raw: allow in the policy: the destination is judged all the same", class: netRaw,
			policy: []string{"raw: allow"}, proof: onWire, errno: unix.EPERM, stop: "egress",
			try: func(a *attempt) error {
				s, err := open(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP)
				if err != nil {
					return err
				}
				defer s.close()
				return s.sendTo(echoRequest(false, a.payload()), 0, at(denied4, 0))
			},
		}, {
			name: "raw-policy-fragment", what: "raw: allow: a later fragment to an allowed address has no ports to judge", class: netRaw,
			policy: []string{"raw: allow"}, proof: onWire, errno: unix.EPERM, stop: "egress",
			try: func(a *attempt) error {
				s, err := open(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW)
				if err != nil {
					return err
				}
				defer s.close()
				return s.sendTo(append(ipv4Header(unix.IPPROTO_UDP, 8, host4, allowed4), a.payload()...), 0, at(allowed4, 0))
			},
		}, {
			name: "raw-policy-header", what: "raw: allow: the address in the header counts, not the one that was named", class: netRaw,
			policy: []string{"raw: allow"}, proof: onWire, errno: unix.EPERM, stop: "egress",
			seen: func(p packet) bool { return p.dst == denied4 },
			try: func(a *attempt) error {
				s, err := open(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW)
				if err != nil {
					return err
				}
				defer s.close()
				return s.sendTo(append(ipv4Header(unix.IPPROTO_UDP, 0, host4, denied4), datagram(a)...), 0, at(allowed4, 0))
			},
		},
	}
}

// pings are echo requests from datagram sockets, which need no privilege.
func pings() []technique {
	ping := func(name, what, stop string, like netip.Addr, fn func(*attempt, sock, []byte) error) technique {
		proto := unix.IPPROTO_ICMP
		if like.Is6() {
			proto = unix.IPPROTO_ICMPV6
		}
		return technique{
			name: name, what: what, proof: onWire, errno: unix.EPERM, stop: stop,
			try: func(a *attempt) error {
				s, err := openFor(like, unix.SOCK_DGRAM, proto)
				if err != nil {
					return err
				}
				defer s.close()
				return fn(a, s, echoRequest(like.Is6(), a.payload()))
			},
		}
	}
	// The kernel does not look at what becomes of an IPv6 ping.
	silent := func(t technique) technique {
		t.errno = 0
		return t
	}
	elsewhere := ping("ping-elsewhere", "a ping socket connected where it is allowed, and sendto elsewhere", "egress", denied4,
		func(_ *attempt, s sock, request []byte) error {
			if err := s.connect(at(allowed4, 0)); err != nil {
				return err
			}
			return s.sendTo(request, 0, at(denied4, 0))
		})
	return []technique{
		ping("ping-sendto", "a ping, which runs no connect and no sendmsg hook", "egress", denied4,
			func(_ *attempt, s sock, request []byte) error { return s.sendTo(request, 0, at(denied4, 0)) }),
		ping("ping-connect", "a connected ping socket", "connect", denied4,
			func(_ *attempt, s sock, request []byte) error {
				if err := s.connect(at(denied4, 0)); err != nil {
					return err
				}
				return s.write(request)
			}),
		silent(ping("ping6-sendto", "the same over IPv6", "egress", denied6,
			func(_ *attempt, s sock, request []byte) error { return s.sendTo(request, 0, at(denied6, 0)) })),
		ping("ping6-connect", "a connected ping socket over IPv6", "connect", denied6,
			func(_ *attempt, s sock, request []byte) error {
				if err := s.connect(at(denied6, 0)); err != nil {
					return err
				}
				return s.write(request)
			}),
		elsewhere,
		ping("ping-broadcast", "a ping to the broadcast address of the link", "egress", subnet4,
			func(_ *attempt, s sock, request []byte) error {
				if err := s.set(unix.SOL_SOCKET, unix.SO_BROADCAST, 1); err != nil {
					return err
				}
				return s.sendTo(request, 0, at(subnet4, 0))
			}),
		silent(ping("ping-multicast6", "a ping to all nodes of the link", "egress", denied6,
			func(_ *attempt, s sock, request []byte) error {
				return s.sendTo(request, 0, at(netip.MustParseAddr("ff02::1").WithZone(hostLink), 0))
			})),
	}
}
