// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// datagrams are UDP to what no rule names.
func datagrams() []technique {
	plain := func(name, what string, to netip.AddrPort) technique {
		return technique{name: name, what: what, errno: unix.EPERM, stop: "sendmsg", try: udpTo(to)}
	}
	connected := func(name, what string, to netip.AddrPort) technique {
		return technique{name: name, what: what, errno: unix.EPERM, stop: "connect",
			try: udpSocket(to.Addr(), func(a *attempt, s sock) error { return a.connectAndSend(s, to) })}
	}
	denied := at(denied4, deniedPort)
	return []technique{
		plain("udp4-sendto", "sendto an address that no rule names", denied),
		plain("udp6-sendto", "sendto over IPv6", at(denied6, deniedPort)),
		plain("udp-mapped-sendto", "sendto an IPv4-mapped address from an IPv6 socket", at(mapped(denied4), deniedPort)),
		plain("udp-port", "sendto another port of an allowed address", at(allowed4, deniedPort)),
		plain("udp-metadata4", "sendto the cloud's metadata service", at(metadata4, allowedPort)),
		plain("udp-metadata6", "sendto the cloud's metadata service over IPv6", at(metadata6, allowedPort)),
		plain("udp-link-local", "sendto a link-local neighbour, by its scope", at(sinkLinkLocal.WithZone(hostLink), allowedPort)),
		connected("udp4-connect", "connect a UDP socket and send", denied),
		connected("udp6-connect", "the same over IPv6", at(denied6, deniedPort)),
		connected("udp-mapped-connect", "the same to an IPv4-mapped address", at(mapped(denied4), deniedPort)),
		{
			name: "udp-unspec-family", what: "sendto with AF_UNSPEC, which UDP takes for AF_INET",
			errno: unix.EPERM, stop: "sendmsg",
			try: udpSocket(denied4, func(a *attempt, s sock) error {
				name := rawSockaddr(denied)
				name[0], name[1] = 0, 0
				return s.sendToRaw(a.payload(), name)
			}),
		}, {
			name: "udp6-inet-family", what: "sendto with an AF_INET address from an IPv6 socket",
			errno: unix.EPERM, stop: "sendmsg",
			try: udpSocket(denied6, func(a *attempt, s sock) error {
				return s.sendToRaw(a.payload(), rawSockaddr(denied))
			}),
		}, {
			name: "udp-sendmsg", what: "sendmsg with a name and ancillary data",
			errno: unix.EPERM, stop: "sendmsg",
			try: udpSocket(denied4, func(a *attempt, s sock) error {
				return s.sendMsg(a.payload(), ancillary(unix.IPPROTO_IP, unix.IP_TTL, native32(nil, 64)), 0, denied)
			}),
		}, {
			name: "udp-sendmmsg", what: "sendmmsg: the first message where it is allowed, the second elsewhere",
			stop: "sendmsg", permit: to(allowed4), // it reports how many went
			try: udpSocket(denied4, func(a *attempt, s sock) error {
				return s.sendMany(a.payload(), at(allowed4, allowedPort), denied)
			}),
			seen: func(p packet) bool { return p.dst == denied4 }, proof: onWire,
		}, {
			name: "udp-gso", what: "UDP_SEGMENT: one send that the link splits into many",
			errno: unix.EPERM, stop: "sendmsg",
			try: udpSocket(denied4, func(a *attempt, s sock) error {
				if err := s.set(unix.IPPROTO_UDP, unix.UDP_SEGMENT, len(a.payload())); err != nil {
					return err
				}
				three := append(append(a.payload(), a.payload()...), a.payload()...)
				return s.sendTo(three, 0, denied)
			}),
		}, {
			name: "udp-fragments", what: "a datagram of 5,000 octets, in fragments",
			errno: unix.EPERM, stop: "sendmsg",
			try: udpSocket(denied4, func(a *attempt, s sock) error {
				return s.sendTo(append(a.payload(), make([]byte, 5000)...), 0, denied)
			}),
		}, {
			name: "udp-zerocopy", what: "MSG_ZEROCOPY",
			errno: unix.EPERM, stop: "sendmsg",
			try: udpSocket(denied4, func(a *attempt, s sock) error {
				if err := s.set(unix.SOL_SOCKET, unix.SO_ZEROCOPY, 1); err != nil {
					return err
				}
				return s.sendTo(a.payload(), unix.MSG_ZEROCOPY, denied)
			}),
		}, {
			name: "udp-empty", what: "datagrams without a single octet: their number and their ports speak",
			proof: onWire, errno: unix.EPERM, stop: "sendmsg",
			seen: func(p packet) bool { return p.dst == denied4 && p.proto == unix.IPPROTO_UDP },
			try:  udpSocket(denied4, func(a *attempt, s sock) error { return s.sendTo(nil, 0, denied) }),
		}, {
			name: "udp-cork", what: "MSG_MORE: what was begun for one destination is finished by a send to another",
			errno: unix.EPERM, stop: "sendmsg", permit: to(allowed4),
			try: udpSocket(denied4, func(a *attempt, s sock) error {
				first := s.sendTo(a.payload(), unix.MSG_MORE, denied)
				if err := s.sendTo([]byte("end"), 0, at(allowed4, allowedPort)); err != nil {
					return err
				}
				return first
			}),
		}, {
			name: "udp-ttl-1", what: "a TTL of one: a router on the way answers instead of the destination",
			errno: unix.EPERM, stop: "sendmsg",
			try: udpSocket(denied4, func(a *attempt, s sock) error {
				if err := s.set(unix.IPPROTO_IP, unix.IP_TTL, 1); err != nil {
					return err
				}
				return s.sendTo(a.payload(), 0, denied)
			}),
		},
	}
}

// sendToRaw is sendto with an address that the kernel has to make sense of.
func (s sock) sendToRaw(data, name []byte) error {
	_, _, errno := unix.Syscall6(unix.SYS_SENDTO, uintptr(s), uintptr(unsafe.Pointer(&data[0])), uintptr(len(data)), 0,
		uintptr(unsafe.Pointer(&name[0])), uintptr(len(name)))
	if errno != 0 {
		return step("sendto", errno)
	}
	return nil
}

// sendMany sends data to each of the destinations in one call.
func (s sock) sendMany(data []byte, to ...netip.AddrPort) error {
	type message struct {
		header unix.Msghdr
		length uint32
		_      uint32
	}
	messages := make([]message, len(to))
	iov := unix.Iovec{Base: &data[0]}
	iov.SetLen(len(data))
	for i, address := range to {
		name := rawSockaddr(address)
		messages[i].header.Name = &name[0]
		messages[i].header.Namelen = uint32(len(name))
		messages[i].header.Iov = &iov
		messages[i].header.SetIovlen(1)
	}
	// What stops a later message is told only to the next call, if at all.
	_, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(s), uintptr(unsafe.Pointer(&messages[0])), uintptr(len(messages)), 0, 0, 0)
	if errno != 0 {
		return step("sendmmsg", errno)
	}
	return nil
}

// elsewhere are sockets that are allowed one destination and used for another.
func elsewhere() []technique {
	denied, allowed := at(denied4, deniedPort), at(allowed4, allowedPort)
	connected := func(name, what string, class class, fn func(*attempt, sock) error) technique {
		return technique{
			name: name, what: what, class: class, errno: unix.EPERM, stop: "sendmsg", permit: to(allowed4),
			try: udpSocket(denied4, func(a *attempt, s sock) error {
				if err := s.connect(allowed); err != nil {
					return err
				}
				return fn(a, s)
			}),
		}
	}
	reconnect := connected("udp-reconnect", "connect to an allowed destination, then to another", user,
		func(a *attempt, s sock) error { return a.connectAndSend(s, denied) })
	reconnect.stop = "connect"
	return []technique{
		connected("udp-connected-sendto", "sendto elsewhere on a connected socket", user,
			func(a *attempt, s sock) error { return s.sendTo(a.payload(), 0, denied) }),
		connected("udp-connected-sendmsg", "sendmsg elsewhere on a connected socket", user,
			func(a *attempt, s sock) error { return s.sendMsg(a.payload(), nil, 0, denied) }),
		connected("udp-disconnect-sendto", "disconnect with AF_UNSPEC, then sendto elsewhere", user,
			func(a *attempt, s sock) error {
				if err := s.disconnect(); err != nil {
					return err
				}
				return s.sendTo(a.payload(), 0, denied)
			}),
		connected("udp-used-then-elsewhere", "a datagram where it is allowed, then one elsewhere on the same socket", user,
			func(a *attempt, s sock) error {
				if err := s.send([]byte("allowed"), 0); err != nil {
					return err
				}
				return s.sendTo(a.payload(), 0, denied)
			}),
		reconnect,
		{
			name: "udp-addrform", what: "IPV6_ADDRFORM turns a connected IPv6 socket into an IPv4 one, used elsewhere",
			errno: unix.EPERM, stop: "sendmsg", permit: to(allowed4),
			try: udpSocket(denied6, func(a *attempt, s sock) error {
				if err := s.connect(at(mapped(allowed4), allowedPort)); err != nil {
					return err
				}
				if err := s.set(unix.IPPROTO_IPV6, unix.IPV6_ADDRFORM, unix.AF_INET); err != nil {
					return err
				}
				return s.sendTo(a.payload(), 0, denied)
			}),
		}, {
			name: "udp-unconnected-turn", what: "an allowed sendto, then another destination on the same unconnected socket",
			errno: unix.EPERM, stop: "sendmsg", permit: to(allowed4),
			try: udpSocket(denied4, func(a *attempt, s sock) error {
				if err := s.sendTo([]byte("allowed"), 0, allowed); err != nil {
					return err
				}
				return s.sendTo(a.payload(), 0, denied)
			}),
		},
	}
}

// translations are addresses that mean another, and rules for one family that
// must not open the other.
func translations() []technique {
	inside := func(name, what string, to netip.Addr) technique {
		return technique{
			name: name, what: what, allow: []string{"198.51.100.0/24:*", "udp://198.51.100.0/24:*"},
			errno: unix.EPERM, stop: "connect", try: tcp(at(to, deniedPort)),
		}
	}
	all6 := []string{"[::/0]:*", "udp://[::/0]:*", "icmp://[::/0]"}
	all4 := []string{"0.0.0.0/0:*", "udp://0.0.0.0/0:*", "icmp://0.0.0.0/0"}
	return []technique{
		inside("form-6to4", "an allowed IPv4 address in its 6to4 form is another address", sixToFour),
		inside("form-nat64", "the same in its NAT64 form", nat64),
		inside("form-isatap", "the same in its ISATAP form", isatap),
		inside("form-compatible", "the same in its IPv4-compatible form", compatible),
		{name: "all6-tcp4", what: "everything IPv6 is allowed: TCP over IPv4", allow: all6, errno: unix.EPERM, stop: "connect",
			try: tcp(at(denied4, deniedPort))},
		{name: "all6-tcp-mapped", what: "everything IPv6 is allowed: TCP to an IPv4-mapped address", allow: all6, errno: unix.EPERM, stop: "connect",
			try: tcp(at(mapped(denied4), deniedPort))},
		{name: "all6-udp-mapped", what: "everything IPv6 is allowed: UDP to an IPv4-mapped address", allow: all6, errno: unix.EPERM, stop: "sendmsg",
			try: udpTo(at(mapped(denied4), deniedPort))},
		{name: "all4-tcp6", what: "everything IPv4 is allowed: TCP over IPv6", allow: all4, errno: unix.EPERM, stop: "connect",
			try: tcp(at(denied6, deniedPort))},
		{name: "all4-form-compatible", what: "everything IPv4 is allowed: TCP to an IPv4-compatible IPv6 address", allow: all4, errno: unix.EPERM, stop: "connect",
			try: tcp(at(compatible, deniedPort))},
		{name: "tcp-rule-udp", what: "a TCP rule says nothing about UDP", allow: []string{"198.51.100.66:8443"}, errno: unix.EPERM, stop: "sendmsg",
			try: udpTo(at(denied4, deniedPort))},
		{name: "udp-rule-tcp", what: "a UDP rule says nothing about TCP", allow: []string{"udp://198.51.100.66:8443"}, errno: unix.EPERM, stop: "connect",
			try: tcp(at(denied4, deniedPort))},
	}
}
