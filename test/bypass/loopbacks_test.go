// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"

	"golang.org/x/sys/unix"
)

// loopbacks reach for services of the host, or of another task, which are as
// good a way out as a router.
func loopbacks() []technique {
	local := func(name, what string, to netip.Addr) technique {
		return technique{name: name, what: what, proof: atNeighbour, errno: unix.EPERM, stop: "connect", try: tcp(at(to, hostPort))}
	}
	datagram := func(name, what string, to netip.Addr) technique {
		return technique{name: name, what: what, proof: atNeighbour, errno: unix.EPERM, stop: "sendmsg", try: udpTo(at(to, hostPort))}
	}
	addr := netip.MustParseAddr
	all := []technique{
		local("lo-tcp4", "a service of the host at 127.0.0.1", addr("127.0.0.1")),
		local("lo-tcp4-other", "the same at 127.0.0.2", addr("127.0.0.2")),
		local("lo-tcp6", "the same at ::1", addr("::1")),
		local("lo-tcp-mapped", "the same at ::ffff:127.0.0.1", addr("::ffff:127.0.0.1")),
		local("lo-tcp-any4", "the same at 0.0.0.0, which means oneself", netip.IPv4Unspecified()),
		local("lo-tcp-any6", "the same at ::", netip.IPv6Unspecified()),
		local("lo-tcp-any-mapped", "the same at ::ffff:0.0.0.0", addr("::ffff:0.0.0.0")),
		local("own-tcp4", "the same at the host's own IPv4 address", host4),
		local("own-tcp6", "the same at the host's own IPv6 address", host6),
		local("own-tcp-link-local", "the same at the host's own link-local address", hostLinkLocal.WithZone(hostLink)),
		datagram("lo-udp4", "UDP to a service of the host at 127.0.0.1", addr("127.0.0.1")),
		datagram("lo-udp6", "the same at ::1", addr("::1")),
		datagram("lo-udp-any4", "the same at 0.0.0.0", netip.IPv4Unspecified()),
		datagram("own-udp4", "the same at the host's own IPv4 address", host4),
		datagram("own-udp6", "the same at the host's own IPv6 address", host6),
	}
	return append(all, []technique{
		{
			name: "lo-udp-connect", what: "a connected UDP socket to a service of the host",
			proof: atNeighbour, errno: unix.EPERM, stop: "connect",
			try: udpSocket(host4, func(a *attempt, s sock) error { return a.connectAndSend(s, at(addr("127.0.0.1"), hostPort)) }),
		}, {
			name: "lo-host-denied", what: "loopback: none; even that service is not the task's", policy: []string{"loopback: none"},
			proof: atNeighbour, errno: unix.EPERM, stop: "connect", try: tcp(at(addr("127.0.0.1"), hostPort)),
		}, {
			name: "lo-tfo", what: "Fast Open to a service of the host",
			proof: atNeighbour, errno: unix.EPERM, stop: "connect", try: fastOpenSend(at(addr("127.0.0.1"), hostPort)),
		}, {
			name: "lo-other-task-tcp", what: "TCP to a listener of another task on 127.0.0.1",
			proof: atOther, errno: unix.EPERM, stop: "connect",
			try:    toOtherTask(func(a *attempt, port uint16) error { return tcp(at(addr("127.0.0.1"), port))(a) }),
			assist: withOtherTask("other-tcp"),
		}, {
			name: "lo-other-task-udp", what: "UDP to a socket of another task on 127.0.0.1",
			proof: atOther, errno: unix.EPERM, stop: "sendmsg",
			try:    toOtherTask(func(a *attempt, port uint16) error { return udpTo(at(addr("127.0.0.1"), port))(a) }),
			assist: withOtherTask("other-udp"),
		}, {
			name: "lo-reuseport-tcp", what: "own listener beside the host's on one port (SO_REUSEPORT): of many connections some reach the host's",
			proof: atNeighbour, stop: "egress",
			try: reuseportTCP,
		}, {
			name: "lo-reuseport-udp", what: "the same with UDP",
			proof: atNeighbour, stop: "egress",
			try: reuseportUDP,
		}, {
			name: "lo-reuseport-cbpf", what: "a filter that gives every connection of the shared port to the host's listener",
			proof: atNeighbour, errno: unix.EPERM, stop: "setsockopt",
			try: reuseportFilter,
		}, {
			name: "lo-broadcast", what: "own socket beside the host's on one port (SO_REUSEADDR): a broadcast to 127.255.255.255 reaches both",
			proof: atNeighbour, errno: unix.EPERM, stop: "sendmsg",
			try: broadcastBeside(addr("127.255.255.255")),
		}, {
			name: "lo-udp-handover", what: "connect to an own UDP socket, close it, and go on sending to who takes the port",
			proof: atOther, stop: "egress",
			try: func(a *attempt) error {
				own, err := open(unix.AF_INET, unix.SOCK_DGRAM, 0)
				if err != nil {
					return err
				}
				defer own.close()
				if err := own.bind(at(addr("127.0.0.1"), 0)); err != nil {
					return err
				}
				port, err := own.port()
				if err != nil {
					return err
				}
				s, err := open(unix.AF_INET, unix.SOCK_DGRAM, 0)
				if err != nil {
					return err
				}
				defer s.close()
				if err := s.connect(at(addr("127.0.0.1"), port)); err != nil {
					return err
				}
				own.close()
				a.say(fmt.Sprintf("take %d", port))
				if _, err := a.hear(); err != nil {
					return err
				}
				return s.write(a.payload())
			},
			assist: func(t *trial) error {
				port, err := t.process.expect("take")
				if err != nil {
					return err
				}
				other, err := t.startOther("other-udp", spec{})
				if err != nil {
					return err
				}
				if err := other.tell(port); err != nil {
					return err
				}
				if _, err := other.expect("port"); err != nil {
					return err
				}
				return t.process.tell("taken")
			},
		},
	}...)
}

// toOtherTask hears from the test where the other task listens.
func toOtherTask(fn func(a *attempt, port uint16) error) func(*attempt) error {
	return func(a *attempt) error {
		text, err := a.hear()
		if err != nil {
			return err
		}
		port, err := strconv.ParseUint(text, 10, 16)
		if err != nil {
			return err
		}
		return fn(a, uint16(port))
	}
}

// withOtherTask starts the role in a task of its own and tells the technique
// where it listens.
func withOtherTask(role string) func(*trial) error {
	return func(t *trial) error {
		other, err := t.startOther(role, spec{})
		if err != nil {
			return err
		}
		if err := other.tell("0"); err != nil {
			return err
		}
		port, err := other.expect("port")
		if err != nil {
			return err
		}
		return t.process.tell(port)
	}
}

// reuseTries is how often a shared port is asked: that all go to the own
// socket has a chance of 2^-24.
const reuseTries = 24

func reuseportTCP(a *attempt) error {
	shared := at(netip.MustParseAddr("127.0.0.1"), reusePort)
	ln, err := listener(shared.Addr(), shared.Port())
	if err != nil {
		return err
	}
	defer ln.close()
	var failed error
	for range reuseTries {
		s, err := open(unix.AF_INET, unix.SOCK_STREAM, 0)
		if err != nil {
			return err
		}
		// A SYN that egress drops would be repeated after a second.
		if err := unix.SetsockoptTimeval(int(s), unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{Usec: 20000}); err != nil {
			return err
		}
		failed = errors.Join(failed, a.connectAndSend(s, shared))
		s.close()
	}
	return failed
}

func reuseportUDP(a *attempt) error {
	shared := at(netip.MustParseAddr("127.0.0.1"), reusePort)
	own, err := open(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer own.close()
	if err := own.set(unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
		return err
	}
	if err := own.bind(shared); err != nil {
		return err
	}
	var failed error
	for range reuseTries {
		s, err := open(unix.AF_INET, unix.SOCK_DGRAM, 0)
		if err != nil {
			return err
		}
		failed = errors.Join(failed, s.sendTo(a.payload(), 0, shared))
		s.close()
	}
	return failed
}

// reuseportFilter tries both members, because which one the host's is depends
// on who came first.
func reuseportFilter(a *attempt) error {
	shared := at(netip.MustParseAddr("127.0.0.1"), reusePort)
	ln, err := listener(shared.Addr(), shared.Port())
	if err != nil {
		return err
	}
	defer ln.close()
	for member := range uint32(2) {
		filter := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: member}}
		program := unix.SockFprog{Len: 1, Filter: &filter[0]}
		if err := unix.SetsockoptSockFprog(int(ln), unix.SOL_SOCKET, unix.SO_ATTACH_REUSEPORT_CBPF, &program); err != nil {
			return step("setsockopt SO_ATTACH_REUSEPORT_CBPF", err)
		}
		if err := tcp(shared)(a); err != nil {
			return err
		}
	}
	return nil
}

func broadcastBeside(to netip.Addr) func(*attempt) error {
	return udpSocket(to, func(a *attempt, s sock) error {
		if err := s.set(unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return err
		}
		if err := s.set(unix.SOL_SOCKET, unix.SO_BROADCAST, 1); err != nil {
			return err
		}
		if err := s.bind(at(netip.IPv4Unspecified(), broadcastPort)); err != nil {
			return err
		}
		return s.sendTo(a.payload(), 0, at(to, broadcastPort))
	})
}

// roles are what processes beside a technique do.
func roles() map[string]func(*attempt) error {
	return map[string]func(*attempt) error{
		"other-tcp":    otherTCP,
		"other-udp":    otherUDP,
		"inner":        tcp(at(denied4, deniedPort)),
		"inner-daemon": daemon,
		"inner-ask":    innerAsk,
		"other-asks":   otherAsks,
	}
}

// otherTCP says what its listener was sent.
func otherTCP(a *attempt) error {
	ln, err := listener(netip.MustParseAddr("127.0.0.1"), 0)
	if err != nil {
		return err
	}
	defer ln.close()
	if _, err := a.hear(); err != nil {
		return err
	}
	port, err := ln.port()
	if err != nil {
		return err
	}
	a.say(fmt.Sprintf("port %d", port))
	return a.receive(ln, func() (sock, error) {
		fd, _, err := unix.Accept(int(ln))
		return sock(fd), err
	})
}

// otherUDP takes the port that it is told, 0 for any.
func otherUDP(a *attempt) error {
	s, err := open(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer s.close()
	text, err := a.hear()
	if err != nil {
		return err
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return err
	}
	if err := s.bind(at(netip.MustParseAddr("127.0.0.1"), uint16(port))); err != nil {
		return err
	}
	bound, err := s.port()
	if err != nil {
		return err
	}
	a.say(fmt.Sprintf("port %d", bound))
	return a.receive(s, func() (sock, error) { return s, nil })
}

// receive reads once from what next gives, when the test says that everything
// has been sent.
func (a *attempt) receive(from sock, next func() (sock, error)) error {
	if _, err := a.hear(); err != nil {
		return err
	}
	if err := unix.SetNonblock(int(from), true); err != nil {
		return err
	}
	s, err := next()
	if err != nil {
		a.say("received nothing")
		return nil
	}
	buffer := make([]byte, 4096)
	n, _, _ := unix.Recvfrom(int(s), buffer, unix.MSG_DONTWAIT)
	a.say("received " + strconv.Quote(string(buffer[:max(n, 0)])))
	return nil
}
