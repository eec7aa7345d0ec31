// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"crypto/sha256"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// groups reach many at once: multicast, broadcast, and the reports that the
// kernel sends when a group is joined.
func groups() []technique {
	broadcast := func(name, what string, to netip.Addr) technique {
		return technique{
			name: name, what: what, errno: unix.EPERM, stop: "sendmsg",
			try: udpSocket(to, func(a *attempt, s sock) error {
				if err := s.set(unix.SOL_SOCKET, unix.SO_BROADCAST, 1); err != nil {
					return err
				}
				// Without a link the limited broadcast has no route.
				if err := unix.SetsockoptString(int(s), unix.SOL_SOCKET, unix.SO_BINDTODEVICE, hostLink); err != nil {
					return step("SO_BINDTODEVICE", err)
				}
				return s.sendTo(a.payload(), 0, at(to, groupPort))
			}),
		}
	}
	join := func(name, what string, like netip.Addr, join func(s sock, group netip.Addr, link int) error) technique {
		group := func(token string) netip.Addr {
			if strings.HasPrefix(name, "igmp") {
				return ownGroup4(token)
			}
			return ownGroup6(token)
		}
		return technique{
			name: name, what: what, proof: onWire, errno: unix.EPERM, stop: "setsockopt",
			group: group,
			try: udpSocket(like, func(a *attempt, s sock) error {
				link, err := linkIndex()
				if err != nil {
					return err
				}
				if err := join(s, group(a.token), link); err != nil {
					return err
				}
				a.say("joined")
				_, err = a.hear()
				return err
			}),
			assist: reported,
		}
	}
	return []technique{
		broadcast("broadcast-limited", "a datagram to 255.255.255.255", netip.MustParseAddr("255.255.255.255")),
		broadcast("broadcast-subnet", "a datagram to the broadcast address of the link", subnet4),
		{
			name: "multicast4", what: "a datagram to a multicast group",
			errno: unix.EPERM, stop: "sendmsg", try: udpTo(at(group4, groupPort)),
		}, {
			name: "multicast4-connect", what: "a UDP socket connected to a multicast group",
			errno: unix.EPERM, stop: "connect",
			try: udpSocket(group4, func(a *attempt, s sock) error { return a.connectAndSend(s, at(group4, groupPort)) }),
		}, {
			name: "multicast4-if", what: "IP_MULTICAST_IF chooses the link",
			errno: unix.EPERM, stop: "sendmsg",
			try: udpSocket(group4, func(a *attempt, s sock) error {
				if err := s.setBytes(unix.IPPROTO_IP, unix.IP_MULTICAST_IF, host4.AsSlice()); err != nil {
					return err
				}
				return s.sendTo(a.payload(), 0, at(group4, groupPort))
			}),
		}, {
			name: "multicast6", what: "a datagram to an IPv6 multicast group, by its scope",
			errno: unix.EPERM, stop: "sendmsg", try: udpTo(at(group6.WithZone(hostLink), groupPort)),
		}, {
			name: "multicast6-if", what: "IPV6_MULTICAST_IF chooses the link",
			errno: unix.EPERM, stop: "sendmsg",
			try: udpSocket(group6, func(a *attempt, s sock) error {
				link, err := linkIndex()
				if err != nil {
					return err
				}
				if err := s.set(unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_IF, link); err != nil {
					return err
				}
				return s.sendTo(a.payload(), 0, at(group6, groupPort))
			}),
		},
		join("igmp-join", "joining a group makes the kernel report 28 bits of the task's choice", group4, func(s sock, group netip.Addr, link int) error {
			return step("IP_ADD_MEMBERSHIP", unix.SetsockoptIPMreqn(int(s), unix.IPPROTO_IP, unix.IP_ADD_MEMBERSHIP,
				&unix.IPMreqn{Multiaddr: group.As4(), Ifindex: int32(link)}))
		}),
		join("igmp-source", "joining a source of a group reports the source as well", group4, func(s sock, group netip.Addr, _ int) error {
			request := append(group.AsSlice(), host4.AsSlice()...)
			return s.setBytes(unix.IPPROTO_IP, unix.IP_ADD_SOURCE_MEMBERSHIP, append(request, denied4.AsSlice()...))
		}),
		join("igmp-join-group", "MCAST_JOIN_GROUP, the form for both families", group4, func(s sock, group netip.Addr, link int) error {
			return s.setBytes(unix.IPPROTO_IP, unix.MCAST_JOIN_GROUP, groupRequest(link, at(group, 0)))
		}),
		join("igmp-join-from-6", "an IPv6 socket joins an IPv4 group", group6, func(s sock, group netip.Addr, link int) error {
			return s.setBytes(unix.IPPROTO_IP, unix.MCAST_JOIN_GROUP, groupRequest(link, at(group, 0)))
		}),
		join("mld-join", "joining an IPv6 group reports 112 bits of the task's choice", group6, func(s sock, group netip.Addr, link int) error {
			return step("IPV6_JOIN_GROUP", unix.SetsockoptIPv6Mreq(int(s), unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP,
				&unix.IPv6Mreq{Multiaddr: group.As16(), Interface: uint32(link)}))
		}),
		join("mld-join-group", "MCAST_JOIN_GROUP over IPv6", group6, func(s sock, group netip.Addr, link int) error {
			return s.setBytes(unix.IPPROTO_IPV6, unix.MCAST_JOIN_GROUP, groupRequest(link, at(group, 0)))
		}),
		join("mld-tcp-join", "a TCP socket joins a group", group6, func(_ sock, group netip.Addr, link int) error {
			s, err := open(unix.AF_INET6, unix.SOCK_STREAM, 0)
			if err != nil {
				return err
			}
			return s.setBytes(unix.IPPROTO_IPV6, unix.MCAST_JOIN_GROUP, groupRequest(link, at(group, 0)))
		}),
	}
}

// reported keeps the group joined until its report, which a timer sends, has
// arrived.
func reported(t *trial) error {
	if !t.guarded {
		t.lab.joined = append(t.lab.joined, t.technique.group(t.token))
	}
	if _, err := t.process.expect("joined"); err != nil {
		if t.guarded {
			return nil // it could not join, and has ended
		}
		return err
	}
	for deadline := time.Now().Add(2 * time.Second); !t.lab.wire.has(t.counts) && time.Now().Before(deadline); {
		time.Sleep(5 * time.Millisecond)
	}
	return t.process.tell("enough")
}

// ownGroup4 and ownGroup6 make a group of the token, as whoever wants to tell
// something does.
func ownGroup4(token string) netip.Addr {
	sum := sha256.Sum256([]byte(token))
	return netip.AddrFrom4([4]byte{239, 192 | sum[0]&3, sum[1], sum[2]})
}

func ownGroup6(token string) netip.Addr {
	sum := sha256.Sum256([]byte(token))
	b := group6.As16()
	copy(b[8:], sum[:8])
	return netip.AddrFrom16(b)
}

// groupRequest is struct group_req: a link and a sockaddr_storage.
func groupRequest(link int, group netip.AddrPort) []byte {
	b := native64(nil, 0)
	copy(b, native32(nil, uint32(link)))
	b = append(b, rawSockaddr(group)...)
	return append(b, make([]byte, 8+128-len(b))...)
}
