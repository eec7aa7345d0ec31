// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"errors"

	"golang.org/x/sys/unix"
)

// protocols are the transports beside TCP and UDP.
func protocols() []technique {
	stream := func(name, what string, need feature, family, kind, proto int) technique {
		target := at(denied4, deniedPort)
		if family == unix.AF_INET6 {
			target = at(denied6, deniedPort)
		}
		return technique{
			name: name, what: what, needs: []feature{need}, errno: unix.EPERM, stop: "sock_create",
			try: func(a *attempt) error {
				s, err := open(family, kind, proto)
				if err != nil {
					return err
				}
				defer s.close()
				if proto == unix.IPPROTO_DCCP {
					if err := s.set(unix.SOL_DCCP, dccpService, 0); err != nil {
						return err
					}
				}
				return a.connectAndSend(s, target)
			},
		}
	}
	lite := func(name, what string, like string) technique {
		target, family := at(denied4, deniedPort), unix.AF_INET
		if like == "6" {
			target, family = at(denied6, deniedPort), unix.AF_INET6
		}
		return technique{
			name: name, what: what, needs: []feature{udplite()}, errno: unix.EPERM, stop: "sock_create",
			try: func(a *attempt) error {
				s, err := open(family, unix.SOCK_DGRAM, unix.IPPROTO_UDPLITE)
				if err != nil {
					return err
				}
				defer s.close()
				return s.sendTo(a.payload(), 0, target)
			},
		}
	}
	allSCTP := []string{"sctp://198.51.100.10:443", "198.51.100.10:443"}
	return []technique{
		lite("udplite", "UDP-Lite, which no address hook of older kernels sees", "4"),
		lite("udplite6", "UDP-Lite over IPv6", "6"),
		{
			name: "udplite-rule-elsewhere", what: "UDP-Lite is allowed to one destination and used for another", needs: []feature{udplite()},
			allow: []string{"udplite://198.51.100.10:443"}, errno: unix.EPERM, stop: "sendmsg",
			try: func(a *attempt) error {
				s, err := open(unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_UDPLITE)
				if err != nil {
					return err
				}
				defer s.close()
				return s.sendTo(a.payload(), 0, at(denied4, deniedPort))
			},
		},
		stream("sctp", "SCTP, one socket for one association", sctp(), unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_SCTP),
		stream("sctp6", "SCTP over IPv6", sctp(), unix.AF_INET6, unix.SOCK_STREAM, unix.IPPROTO_SCTP),
		{
			name: "sctp-sendto", what: "SCTP, one socket for many associations, made by the first sendto",
			needs: []feature{sctp()}, errno: unix.EPERM, stop: "sock_create",
			try: func(a *attempt) error {
				s, err := open(unix.AF_INET, unix.SOCK_SEQPACKET, unix.IPPROTO_SCTP)
				if err != nil {
					return err
				}
				defer s.close()
				return s.sendTo(a.payload(), 0, at(denied4, deniedPort))
			},
		}, {
			name: "sctp-rule-elsewhere", what: "SCTP is allowed to one destination and used for another",
			needs: []feature{sctp()}, allow: allSCTP, stop: "egress",
			proof: onWire, seen: func(p packet) bool { return p.dst == denied4 && p.proto == unix.IPPROTO_SCTP },
			try: func(a *attempt) error {
				s, err := open(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_SCTP)
				if err != nil {
					return err
				}
				defer s.close()
				if err := unix.SetsockoptTimeval(int(s), unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{Usec: 100000}); err != nil {
					return err
				}
				return a.connectAndSend(s, at(denied4, deniedPort))
			},
		}, {
			name: "sctp-connectx", what: "SCTP_SOCKOPT_CONNECTX: an association made by a socket option",
			needs: []feature{sctp()}, allow: allSCTP, stop: "egress",
			proof: onWire, seen: func(p packet) bool { return p.dst == denied4 && p.proto == unix.IPPROTO_SCTP },
			try: func(a *attempt) error {
				s, err := open(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_SCTP)
				if err != nil {
					return err
				}
				defer s.close()
				if err := unix.SetNonblock(int(s), true); err != nil {
					return err
				}
				err = s.setBytes(unix.IPPROTO_SCTP, sctpConnectx, rawSockaddr(at(denied4, deniedPort)))
				if errors.Is(err, unix.EINPROGRESS) {
					err = nil
				}
				return err
			},
		},
		stream("dccp", "DCCP", dccp(), unix.AF_INET, unix.SOCK_DCCP, unix.IPPROTO_DCCP),
		stream("dccp6", "DCCP over IPv6", dccp(), unix.AF_INET6, unix.SOCK_DCCP, unix.IPPROTO_DCCP),
		{
			name: "smc", what: "SMC, a family of its own that opens a TCP connection inside the kernel", needs: []feature{smc()},
			errno: unix.EPERM, stop: "connect",
			try: func(a *attempt) error {
				s, err := open(unix.AF_SMC, unix.SOCK_STREAM, 0)
				if err != nil {
					return err
				}
				defer s.close()
				return a.connectAndSend(s, at(denied4, deniedPort))
			},
		}, {
			name: "l2tp", what: "L2TP over IP, from an unprivileged datagram socket", needs: []feature{l2tp()},
			proof: onWire, errno: unix.EPERM, stop: "sock_create",
			try: func(a *attempt) error {
				s, err := open(unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_L2TP)
				if err != nil {
					return err
				}
				defer s.close()
				name := rawSockaddr(at(denied4, 0)) // the connection's number, 0, stands after the address
				return s.sendToRaw(a.payload(), name)
			},
		}, {
			name: "mptcp", what: "MPTCP, in a policy that does not speak of it", needs: []feature{multipath()},
			errno: unix.EPROTONOSUPPORT, stop: "sock_create", try: multipathTo(unix.AF_INET),
		}, {
			name: "mptcp6", what: "MPTCP over IPv6", needs: []feature{multipath()},
			errno: unix.EPROTONOSUPPORT, stop: "sock_create", try: multipathTo(unix.AF_INET6),
		}, {
			name: "mptcp-policy-elsewhere", what: "mptcp: allow in the policy: the destination is judged all the same", needs: []feature{multipath()},
			policy: []string{"mptcp: allow"}, errno: unix.EPERM, stop: "connect", try: multipathTo(unix.AF_INET),
		}, {
			name: "mptcp-policy-fastopen", what: "mptcp: allow, with MSG_FASTOPEN", needs: []feature{multipath(), multipathFastOpen()},
			policy: []string{"mptcp: allow"}, errno: unix.EPERM, stop: "connect",
			try: func(a *attempt) error {
				s, err := open(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP)
				if err != nil {
					return err
				}
				defer s.close()
				return s.sendTo(a.payload(), unix.MSG_FASTOPEN, at(denied4, deniedPort))
			},
		}, {
			name: "mptcp-add-addr", what: "mptcp: allow, to an allowed server that announces a denied address: the kernel opens a subflow there", needs: []feature{multipath()},
			policy: []string{"mptcp: allow"}, proof: onWire, stop: "connect", permit: to(allowed4),
			seen:   func(p packet) bool { return p.dst == denied4 && p.proto == unix.IPPROTO_TCP },
			try:    announced,
			assist: func(t *trial) error { return t.process.tellAfter("connected", "enough", t.lab.wireSeen(t)) },
		},
	}
}

const (
	sctpConnectx = 110 // SCTP_SOCKOPT_CONNECTX
	dccpService  = 2   // DCCP_SOCKOPT_SERVICE
)

func multipathTo(family int) func(*attempt) error {
	return func(a *attempt) error {
		target := at(denied4, deniedPort)
		if family == unix.AF_INET6 {
			target = at(denied6, deniedPort)
		}
		s, err := open(family, unix.SOCK_STREAM, unix.IPPROTO_MPTCP)
		if err != nil {
			return err
		}
		defer s.close()
		return a.connectAndSend(s, target)
	}
}

// announced keeps a connection to the allowed server open, and in use, until
// the test has seen enough.
func announced(a *attempt) error {
	s, err := open(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP)
	if err != nil {
		return err
	}
	defer s.close()
	if err := s.connect(at(allowed4, allowedPort)); err != nil {
		return err
	}
	// The announcement is taken up when the connection is in full swing,
	// which takes an answer.
	buffer := make([]byte, 256)
	for range 3 {
		if err := s.write(a.payload()); err != nil {
			return err
		}
		if _, err := unix.Read(int(s), buffer); err != nil {
			return step("read", err)
		}
	}
	a.say("connected")
	_, err = a.hear()
	return err
}
