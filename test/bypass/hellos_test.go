// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// spoken picks what an allowed name accounts for before it has been shown: the
// look-up, and packets to its address without payload.
func spoken(p packet) bool {
	return asked(p) || (p.dst == shared4 || p.dst == shared6) && p.proto == unix.IPPROTO_TCP && p.payload == 0
}

// shown is the same after that.
func shown(p packet) bool { return asked(p) || p.dst == shared4 && p.dport == allowedPort }

// said keeps what a TLS client says first, and says nothing back.
type said struct {
	net.Conn
	data []byte
}

func (s *said) Write(b []byte) (int, error) {
	s.data = append(s.data, b...)
	return len(b), nil
}
func (s *said) Read([]byte) (int, error)    { return 0, io.EOF }
func (s *said) SetDeadline(time.Time) error { return nil }

// hello is a ClientHello for the name, with the token as a protocol.
func hello(a *attempt, name string) []byte { return helloWith(name, a.token) }

func helloWith(name, protocol string) []byte {
	var s said
	_ = tls.Client(&s, &tls.Config{
		ServerName: name, InsecureSkipVerify: true, NextProtos: []string{protocol},
		CurvePreferences: []tls.CurveID{tls.X25519}, // small
	}).Handshake()
	return s.data
}

// extended adds an extension to a hello.
func extended(hello []byte, kind uint16, data []byte) []byte {
	h := slices.Clone(hello)
	at := 5 + 4 + 2 + 32
	at += 1 + int(h[at])
	at += 2 + int(binary.BigEndian.Uint16(h[at:]))
	at += 1 + int(h[at])
	h = binary.BigEndian.AppendUint16(h, kind)
	h = append(binary.BigEndian.AppendUint16(h, uint16(len(data))), data...)
	binary.BigEndian.PutUint16(h[3:], uint16(len(h)-5))
	binary.BigEndian.PutUint16(h[7:], uint16(len(h)-9)) // of three octets
	binary.BigEndian.PutUint16(h[at:], uint16(len(h)-at-2))
	return h
}

// serverNames is the content of a server_name extension.
func serverNames(names ...string) []byte {
	var list []byte
	for _, name := range names {
		list = append(list, 0)
		list = append(binary.BigEndian.AppendUint16(list, uint16(len(name))), name...)
	}
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(list))), list...)
}

// outerHello is the content of an encrypted_client_hello extension.
func outerHello(payload []byte) []byte {
	b := []byte{0, 0, 1, 0, 1, 7, 0, 0}
	return append(binary.BigEndian.AppendUint16(b, uint16(len(payload))), payload...)
}

// inRecords is a hello in two records, the first with n octets of it.
func inRecords(hello []byte, n int) []byte {
	head, body := hello[:3:3], hello[5:]
	first := append(binary.BigEndian.AppendUint16(head, uint16(n)), body[:n]...)
	second := append(binary.BigEndian.AppendUint16(head, uint16(len(body)-n)), body[n:]...)
	return append(first, second...)
}

// greet connects and says data first, in pieces if there are more.
func (a *attempt) greet(to netip.AddrPort, data ...[]byte) error {
	return a.greetBy(to, func(s sock) error {
		for _, piece := range data {
			if err := s.write(piece); err != nil {
				return err
			}
		}
		return nil
	})
}

func (a *attempt) greetBy(to netip.AddrPort, send func(s sock) error) error {
	return tcpSocket(to.Addr(), func(a *attempt, s sock) error {
		if err := s.set(unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
			return err
		}
		if err := s.connect(to); err != nil {
			return err
		}
		if err := send(s); err != nil {
			return err
		}
		return s.settled(2 * time.Second) // who is refused is cut
	})(a)
}

// hellos are connections to the address of an allowed name that begin with
// something else.
func hellos() []technique {
	by := func(name, what string, try func(a *attempt, to netip.AddrPort) error) technique {
		return technique{name: name, what: what, allow: named(), beside: spoken, errno: unix.ECONNABORTED, stop: "egress", try: func(a *attempt) error {
			addr, err := a.lookUp("good.test.")
			if err != nil {
				return err
			}
			return try(a, at(addr, allowedPort))
		}}
	}
	first := func(name, what string, data ...func(a *attempt) []byte) technique {
		return by(name, what, func(a *attempt, to netip.AddrPort) error {
			var pieces [][]byte
			for _, d := range data {
				pieces = append(pieces, d(a))
			}
			return a.greet(to, pieces...)
		})
	}
	sni := func(name string) func(*attempt) []byte {
		return func(a *attempt) []byte { return hello(a, name) }
	}
	shared := func(name, what string, send func(s sock, data []byte) error) technique {
		return by(name, what, func(a *attempt, to netip.AddrPort) error {
			return a.greetBy(to, func(s sock) error { return send(s, hello(a, "good.test")) })
		})
	}
	neighbour := sni("neighbour.test")
	short := first("tls-short", "a hello that never ends", func(a *attempt) []byte {
		h := hello(a, "good.test")
		return h[:len(h)-1]
	})
	short.errno = 0 // it is held
	raw := by("tls-raw", "a hello for a neighbour in a segment by a raw socket", func(a *attempt, to netip.AddrPort) error {
		return rawSegment(to, neighbour(a))
	})
	raw.class, raw.proof, raw.policy, raw.errno = netRaw, onWire, []string{"raw: allow"}, unix.EPERM
	multi := by("tls-mptcp", "the name of a neighbour by MPTCP, where the policy allows that", func(a *attempt, to netip.AddrPort) error {
		s, err := openFor(to.Addr(), unix.SOCK_STREAM, unix.IPPROTO_MPTCP)
		if err != nil {
			return err
		}
		defer s.close()
		if err := s.connect(to); err != nil {
			return err
		}
		if err := s.write(neighbour(a)); err != nil {
			return err
		}
		return s.settled(patient)
	})
	multi.needs, multi.policy, multi.errno = []feature{multipath()}, []string{"mptcp: allow"}, 0
	fastOpen := by("tls-fastopen", "the name of a neighbour, on the SYN", func(a *attempt, to netip.AddrPort) error {
		return tcpSocket(to.Addr(), func(a *attempt, s sock) error {
			if err := s.sendTo(neighbour(a), unix.MSG_FASTOPEN, to); err != nil {
				return err
			}
			return s.settled(2 * time.Second)
		})(a)
	})
	again := by("tls-reconnect", "a socket that has shown its name, disconnected and connected again for a neighbour", func(a *attempt, to netip.AddrPort) error {
		return tcpSocket(to.Addr(), func(a *attempt, s sock) error {
			for _, data := range [][]byte{helloWith("good.test", "h2"), neighbour(a)} {
				if err := s.connect(to); err != nil {
					return err
				}
				if err := s.write(data); err != nil {
					return err
				}
				if err := s.settled(2 * time.Second); err != nil {
					return err
				}
				if err := s.disconnect(); err != nil {
					return err
				}
			}
			return nil
		})(a)
	})
	again.beside = shown
	away := by("tls-away", "a socket that has shown its name, disconnected and connected where no rule leads", func(a *attempt, to netip.AddrPort) error {
		return tcpSocket(to.Addr(), func(a *attempt, s sock) error {
			if err := s.connect(to); err != nil {
				return err
			}
			if err := s.write(helloWith("good.test", "h2")); err != nil {
				return err
			}
			if err := s.settled(2 * time.Second); err != nil {
				return err
			}
			if err := s.disconnect(); err != nil {
				return err
			}
			return a.connectAndSend(s, at(denied4, deniedPort))
		})(a)
	})
	away.beside, away.errno, away.stop = shown, unix.EPERM, "connect"
	return []technique{
		first("tls-neighbour", "the name of a neighbour at the same address", neighbour),
		{name: "tls-neighbour6", what: "the same over IPv6", allow: named(), beside: spoken, errno: unix.ECONNABORTED, stop: "egress", try: func(a *attempt) error {
			addr, err := resolve(at(resolver6, dnsPort), "udp", "good.test.", dns.TypeAAAA)
			if err != nil {
				return err
			}
			return a.greet(at(addr, allowedPort), neighbour(a))
		}},
		by("tls-mapped", "the same to the address in its IPv4-mapped form", func(a *attempt, to netip.AddrPort) error {
			return a.greet(at(mapped(to.Addr()), to.Port()), neighbour(a))
		}),
		first("tls-address", "an allowed name that leads to another address", sni("other.test")),
		first("tls-none", "no name", sni("")),
		first("tls-suffix", "a name that ends like an allowed one, without the dot", sni("evilgood.test")),
		first("tls-parent", "the parent of an allowed wildcard", sni("wild.test")),
		first("tls-below", "a name below an allowed one", sni("www.good.test")),
		first("tls-prefix", "a name that begins like an allowed one", sni("good.test.evil.test")),
		first("tls-case", "the name of a neighbour in capitals", sni("NEIGHBOUR.TEST")),
		first("tls-dot", "the name of a neighbour with a trailing dot", func(a *attempt) []byte {
			return bytes.Replace(hello(a, "neighbour.test0"), []byte("test0"), []byte("test."), 1)
		}),
		first("tls-zero", "an allowed name, a zero octet, and more", func(a *attempt) []byte {
			return bytes.Replace(hello(a, "good.test0.evil.test"), []byte("test0"), []byte("test\x00"), 1)
		}),
		first("tls-two-names", "an allowed name, then a neighbour's, in one list", func(a *attempt) []byte {
			return extended(hello(a, ""), 0, serverNames("good.test", "neighbour.test"))
		}),
		first("tls-twice", "an allowed name, then a neighbour's in a second extension", func(a *attempt) []byte {
			return extended(hello(a, "good.test"), 0, serverNames("neighbour.test"))
		}),
		first("tls-ech", "an allowed name outside, an encrypted hello inside", func(a *attempt) []byte {
			return extended(hello(a, "good.test"), 0xfe0d, outerHello(a.payload()))
		}),
		first("tls-records", "the name of a neighbour in two records", func(a *attempt) []byte { return inRecords(neighbour(a), 20) }),
		first("tls-plain", "no TLS", (*attempt).payload),
		first("tls-noise", "something like STARTTLS before the hello", func(a *attempt) []byte {
			return append([]byte("EHLO "+a.token+"\r\nSTARTTLS\r\n"), helloWith("good.test", "h2")...)
		}),
		by("tls-split", "the name of a neighbour, split at every octet", func(a *attempt, to netip.AddrPort) error {
			return splits(to, neighbour(a))
		}),
		by("tls-octets", "the name of a neighbour, octet by octet", func(a *attempt, to netip.AddrPort) error {
			return a.greetBy(to, func(s sock) error {
				for _, octet := range neighbour(a) {
					if err := s.write([]byte{octet}); err != nil {
						return err
					}
				}
				return nil
			})
		}),
		by("tls-urgent", "the name of a neighbour as urgent data", func(a *attempt, to netip.AddrPort) error {
			return a.greetBy(to, func(s sock) error { return s.send(neighbour(a), unix.MSG_OOB) })
		}),
		by("tls-urgent-octet", "a hello with an urgent octet in it, which the server takes out: it reads another name", func(a *attempt, to netip.AddrPort) error {
			return a.greetBy(to, func(s sock) error {
				data := hello(a, "good.test")
				middle := bytes.Index(data, []byte("good.test")) + 4
				if err := s.set(unix.IPPROTO_TCP, unix.TCP_CORK, 1); err != nil {
					return err
				}
				if err := s.send(data[:middle], unix.MSG_OOB); err != nil {
					return err
				}
				if err := s.write(data[middle:]); err != nil {
					return err
				}
				return s.set(unix.IPPROTO_TCP, unix.TCP_CORK, 0)
			})
		}),
		shared("tls-sendfile", "an allowed name by sendfile, whose pages can be another's when they leave", sendfileTo),
		shared("tls-splice", "the same by splice", spliceTo),
		shared("tls-zerocopy", "the same by MSG_ZEROCOPY", zerocopyTo),
		{name: "tls-nat", what: "the name of a neighbour to a service address that the host translates", tools: []string{"nft"}, allow: named("service.test:443"), errno: unix.ECONNABORTED, stop: "egress",
			beside: func(p packet) bool { return asked(p) || p.dst == allowed4 && p.payload == 0 },
			try: func(a *attempt) error {
				a.say("ready")
				if _, err := a.hear(); err != nil {
					return err
				}
				addr, err := a.lookUp("service.test.")
				return errors.Join(err, a.greet(at(addr, allowedPort), neighbour(a)))
			}, assist: func(t *trial) error {
				var err error
				tellErr := t.process.tellAfter("ready", "go on", func() { err = translation(t) })
				return errors.Join(err, tellErr)
			}},
		short, raw, multi, fastOpen, again, away,
	}
}

// splits says data over one connection for each place where it can be split.
func splits(to netip.AddrPort, data []byte) (err error) {
	var all []sock
	defer func() {
		for _, s := range all {
			s.close()
		}
	}()
	for i := 1; i < len(data); i++ {
		s, err := openFor(to.Addr(), unix.SOCK_STREAM, unix.IPPROTO_TCP)
		if err != nil {
			return err
		}
		all = append(all, s)
		if err := s.set(unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
			return err
		}
		if err := s.connect(to); err != nil {
			return err
		}
		if err := s.write(data[:i]); err != nil {
			return err
		}
	}
	for i, s := range all {
		if err := s.write(data[i+1:]); err != nil {
			return err
		}
	}
	for _, s := range all {
		if err = s.settled(2 * time.Second); err != nil && !errors.Is(err, unix.ECONNABORTED) {
			return err
		}
	}
	return err
}
