// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// options write another destination into the packet than the one that is
// asked for.
func options() []technique {
	allowed, allowedSix := at(allowed4, allowedPort), at(allowed6, allowedPort)
	viaDenied4 := func(p packet) bool { return p.dst == denied4 }
	viaDenied6 := func(p packet) bool { return p.dst == denied6 }
	routed := func(p packet) bool { return p.routed }
	lsrr := func(s sock) error {
		return s.setBytes(unix.IPPROTO_IP, unix.IP_OPTIONS, sourceRoute(131, denied4))
	}
	srv6 := func(s sock) error {
		return s.setBytes(unix.IPPROTO_IPV6, unix.IPV6_RTHDR, segments(denied6))
	}
	return []technique{
		{
			name: "lsrr-udp", what: "loose source route (IP_OPTIONS) through a denied host", class: netRaw,
			proof: onWire, stop: "setsockopt", errno: unix.EPERM, seen: viaDenied4,
			try: udpSocket(allowed4, func(a *attempt, s sock) error {
				if err := lsrr(s); err != nil {
					return err
				}
				return s.sendTo(a.payload(), 0, allowed)
			}),
		}, {
			name: "lsrr-after-connect", what: "the source route is set after an allowed connect", class: netRaw,
			proof: onWire, stop: "setsockopt", errno: unix.EPERM, seen: viaDenied4,
			try: udpSocket(allowed4, func(a *attempt, s sock) error {
				if err := s.connect(allowed); err != nil {
					return err
				}
				if err := lsrr(s); err != nil {
					return err
				}
				return s.send(a.payload(), 0)
			}),
		}, {
			name: "lsrr-tcp", what: "a TCP connection on a loose source route", class: netRaw,
			proof: onWire, stop: "setsockopt", errno: unix.EPERM, seen: viaDenied4,
			try: tcpSocket(allowed4, func(a *attempt, s sock) error {
				if err := lsrr(s); err != nil {
					return err
				}
				return a.connectAndSend(s, allowed)
			}),
		}, {
			name: "ssrr-udp", what: "strict source route", class: netRaw,
			proof: onWire, stop: "setsockopt", errno: unix.EPERM, seen: func(p packet) bool { return p.dst == gateway4 && p.routed },
			try: udpSocket(allowed4, func(a *attempt, s sock) error {
				if err := s.setBytes(unix.IPPROTO_IP, unix.IP_OPTIONS, sourceRoute(137, gateway4)); err != nil {
					return err
				}
				return s.sendTo(a.payload(), 0, allowed)
			}),
		}, {
			name: "lsrr-cmsg", what: "the source route as ancillary data of one datagram (IP_RETOPTS)", class: netRaw,
			proof: onWire, stop: "egress", errno: unix.EPERM, seen: viaDenied4,
			try: udpSocket(allowed4, func(a *attempt, s sock) error {
				return s.sendMsg(a.payload(), ancillary(unix.IPPROTO_IP, unix.IP_RETOPTS, sourceRoute(131, denied4)), 0, allowed)
			}),
		}, {
			name: "lsrr-waypoint", what: "a source route that begins where it is allowed and goes on to a denied host", class: netRaw,
			proof: onWire, stop: "egress", errno: unix.EPERM, seen: routed,
			try: udpSocket(allowed4, func(a *attempt, s sock) error {
				option := append([]byte{131, 11, 4}, allowed4.AsSlice()...)
				option = append(append(option, denied4.AsSlice()...), 0)
				return s.sendMsg(a.payload(), ancillary(unix.IPPROTO_IP, unix.IP_RETOPTS, option), 0, allowed)
			}),
		}, {
			name: "srv6-udp", what: "segment routing header (IPV6_RTHDR) through a denied host, no privilege needed",
			proof: onWire, stop: "setsockopt", errno: unix.EPERM, seen: viaDenied6,
			try: udpSocket(allowed6, func(a *attempt, s sock) error {
				if err := srv6(s); err != nil {
					return err
				}
				return s.sendTo(a.payload(), 0, allowedSix)
			}),
		}, {
			name: "srv6-tcp", what: "a TCP connection through a segment routing header",
			proof: onWire, stop: "setsockopt", errno: unix.EPERM,
			seen: func(p packet) bool { return viaDenied6(p) && p.payload > 0 },
			try: tcpSocket(allowed6, func(a *attempt, s sock) error {
				if err := srv6(s); err != nil {
					return err
				}
				return a.connectAndSend(s, allowedSix)
			}),
		}, {
			name: "srv6-after-connect", what: "the segment routing header is set on an established connection",
			proof: onWire, stop: "setsockopt", errno: unix.EPERM, seen: viaDenied6, permit: to(allowed6),
			try: tcpSocket(allowed6, func(a *attempt, s sock) error {
				if err := s.connect(allowedSix); err != nil {
					return err
				}
				if err := srv6(s); err != nil {
					return err
				}
				return s.write(a.payload())
			}),
		}, {
			name: "srv6-waypoint", what: "segments that begin and end where it is allowed, with a denied host between",
			proof: onWire, stop: "setsockopt", errno: unix.EPERM, seen: routed,
			try: udpSocket(allowed6, func(a *attempt, s sock) error {
				if err := s.setBytes(unix.IPPROTO_IPV6, unix.IPV6_RTHDR, segments(allowed6b, denied6)); err != nil {
					return err
				}
				return s.sendTo(a.payload(), 0, allowedSix)
			}),
		}, {
			name: "rthdr2-udp", what: "routing header of type 2 (IPV6_RTHDR)", needs: []feature{mobility()},
			proof: onWire, stop: "setsockopt", errno: unix.EPERM, seen: viaDenied6,
			try: udpSocket(allowed6, func(a *attempt, s sock) error {
				if err := s.setBytes(unix.IPPROTO_IPV6, unix.IPV6_RTHDR, homeAddress(denied6)); err != nil {
					return err
				}
				return s.sendTo(a.payload(), 0, allowedSix)
			}),
		}, {
			name: "rthdr2-cmsg", what: "the routing header as ancillary data of one datagram", needs: []feature{mobility()},
			proof: onWire, stop: "egress", errno: unix.EPERM, seen: viaDenied6,
			try: udpSocket(allowed6, func(a *attempt, s sock) error {
				return s.sendMsg(a.payload(), ancillary(unix.IPPROTO_IPV6, unix.IPV6_RTHDR, homeAddress(denied6)), 0, allowedSix)
			}),
		}, {
			name: "rthdr2-cmsg-2292", what: "the same by the older IPV6_2292RTHDR", needs: []feature{mobility()},
			proof: onWire, stop: "egress", errno: unix.EPERM, seen: viaDenied6,
			try: udpSocket(allowed6, func(a *attempt, s sock) error {
				return s.sendMsg(a.payload(), ancillary(unix.IPPROTO_IPV6, unix.IPV6_2292RTHDR, homeAddress(denied6)), 0, allowedSix)
			}),
		}, {
			name: "rthdr2-pktoptions", what: "the routing header through IPV6_2292PKTOPTIONS", needs: []feature{mobility()},
			proof: onWire, stop: "setsockopt", errno: unix.EPERM, seen: viaDenied6,
			try: udpSocket(allowed6, func(a *attempt, s sock) error {
				control := ancillary(unix.IPPROTO_IPV6, unix.IPV6_RTHDR, homeAddress(denied6))
				if err := s.setBytes(unix.IPPROTO_IPV6, unix.IPV6_2292PKTOPTIONS, control); err != nil {
					return err
				}
				return s.sendTo(a.payload(), 0, allowedSix)
			}),
		}, {
			name: "rthdr2-flowlabel", what: "the routing header hung on a flow label (IPV6_FLOWLABEL_MGR)", needs: []feature{mobility()},
			proof: onWire, stop: "egress", errno: unix.EPERM, seen: viaDenied6,
			try: udpSocket(allowed6, func(a *attempt, s sock) error { return flowLabel(a, s) }),
		}, {
			name: "rthdr2-waypoint", what: "a routing header that begins where it is allowed and ends at a denied host", needs: []feature{mobility()},
			proof: onWire, stop: "egress", errno: unix.EPERM, seen: routed,
			try: udpSocket(allowed6, func(a *attempt, s sock) error {
				return s.sendMsg(a.payload(), ancillary(unix.IPPROTO_IPV6, unix.IPV6_RTHDR, homeAddress(allowed6b)), 0, allowedSix)
			}),
		},
	}
}

// flowLabel makes a label whose packets carry a routing header, and uses it.
func flowLabel(a *attempt, s sock) error {
	const (
		flowLabelManager = 32 // IPV6_FLOWLABEL_MGR
		flowInfoSend     = 33
		getLabel         = 0
		create           = 1
		exclusive        = 1
	)
	label := []byte{0, 0x0a, 0xbc, 0xde}
	request := append(allowed6.AsSlice(), label...)
	request = append(request, getLabel, exclusive)
	request = native16(request, create)
	request = native16(request, 60) // seconds of life
	request = native16(request, 60)
	request = native32(request, 0)
	request = append(request, ancillary(unix.IPPROTO_IPV6, unix.IPV6_RTHDR, homeAddress(denied6))...)
	if err := s.setBytes(unix.IPPROTO_IPV6, flowLabelManager, request); err != nil {
		return err
	}
	if err := s.set(unix.IPPROTO_IPV6, flowInfoSend, 1); err != nil {
		return err
	}
	name := rawSockaddr(at(allowed6, allowedPort))
	copy(name[4:8], label)
	data := a.payload()
	_, _, errno := unix.Syscall6(unix.SYS_SENDTO, uintptr(s), uintptr(unsafe.Pointer(&data[0])), uintptr(len(data)), 0,
		uintptr(unsafe.Pointer(&name[0])), uintptr(len(name)))
	if errno != 0 {
		return step("sendto", errno)
	}
	return nil
}
