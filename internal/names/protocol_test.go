// SPDX-License-Identifier: Apache-2.0

package names

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"agentguard.dev/agentguard/internal/policy"
)

func addrs(of ...string) []netip.Addr {
	var made []netip.Addr
	for _, s := range of {
		made = append(made, netip.MustParseAddr(s))
	}
	return made
}

// zone is what the tests ask for, as unbound and dnsmasq have it.
var zoneOfUnbound = []string{
	`local-zone: "test." static`,
	`local-data: "test. 3600 IN SOA ns.test. admin.test. 1 1 1 1 77"`,
	`local-data: "api.good.test. 300 IN A 192.0.2.1"`,
	`local-data: "api.good.test. 300 IN A 192.0.2.2"`,
	`local-data: "api.good.test. 300 IN AAAA 2001:db8::1"`,
	`local-data: "four.good.test. 300 IN A 192.0.2.4"`,
	`local-data: "short.good.test. 1 IN A 192.0.2.5"`,
	`local-data: "long.good.test. 864000 IN A 192.0.2.6"`,
	`local-data: 'https.good.test. 300 IN HTTPS 1 . alpn="h2,h3" port=8443 ipv4hint=192.0.2.66 ipv6hint=2001:db8::66 ech="AEX+DQBBpQAgACB0ZXN0"'`,
	`local-data: "alias.good.test. 300 IN HTTPS 0 api.good.test."`,
	`local-data: "elsewhere.good.test. 300 IN HTTPS 0 cdn.evil.test."`,
	`local-data: "_sip._tcp.good.test. 300 IN SRV 1 2 443 api.good.test."`,
	`local-data: "_sip._tcp.good.test. 300 IN SRV 1 2 443 www.evil.test."`,
	`local-data: 'api.good.test. 300 IN TXT "a text"'`,
	`local-data: "api.good.test. 300 IN MX 1 mx.good.test."`,
	`local-data-ptr: "192.0.2.1 300 api.good.test."`,
	`local-data-ptr: "2001:db8::1 300 api.good.test."`,
	`local-data-ptr: "198.51.100.1 300 other.test."`,
	`local-data: "inside.good.test. 300 IN A 10.1.2.3"`,
	`local-data: "inside.good.test. 300 IN A 192.0.2.9"`,
	`local-data: "only.inside.good.test. 300 IN A 127.0.0.1"`,
	`local-data: "mapped.good.test. 300 IN AAAA ::ffff:127.0.0.1"`,
	`local-data: "own.good.test. 300 IN A 192.0.2.200"`,
	`local-data: "evil.test. 300 IN A 192.0.2.13"`,
	`local-data: "xn--bcher-kva.test. 300 IN A 192.0.2.14"`,
}

func many(n int) (lines []string) {
	for i := range n {
		lines = append(lines, fmt.Sprintf(`local-data: "many.good.test. 300 IN A 198.18.%d.%d"`, i/250, i%250+1),
			fmt.Sprintf(`local-data: "many.good.test. 300 IN TXT %03d"`, i))
	}
	return lines
}

func unboundLab(t testing.TB, c Config) *lab {
	w := newTown("api.good.test", "*.good.test", "good.test", "xn--bcher-kva.test")
	w.own, w.reach = addrs("192.0.2.200"), addrs("192.0.2.1", "2001:db8::1")
	l := newLab(t, w, c)
	unbound(t, l.ns, upstream, append(slices.Clone(zoneOfUnbound), many(400)...)...)
	return l
}

func TestAnswers(t *testing.T) {
	l := unboundLab(t, Config{Rate: 1e6, Burst: 1e6})
	for _, tt := range []struct {
		name    string
		qtype   uint16
		rcode   int
		answer  string // in any order
		learned []netip.Addr
		verdict string
		code    uint16
		text    string
	}{
		{name: "api.good.test", qtype: dns.TypeA, answer: "api.good.test. A 192.0.2.1; api.good.test. A 192.0.2.2", learned: addrs("192.0.2.1", "192.0.2.2")},
		{name: "Four.GOOD.test.", qtype: dns.TypeA, answer: "Four.GOOD.test. A 192.0.2.4", learned: addrs("192.0.2.4")},
		{name: "api.good.test", qtype: dns.TypeAAAA, answer: "api.good.test. AAAA 2001:db8::1", learned: addrs("2001:db8::1")},
		{name: "xn--bcher-kva.test", qtype: dns.TypeA, answer: "xn--bcher-kva.test. A 192.0.2.14", learned: addrs("192.0.2.14")},
		{name: "four.good.test", qtype: dns.TypeAAAA},
		{name: "nosuch.good.test", qtype: dns.TypeA, rcode: dns.RcodeNameError},
		{name: "evil.test", qtype: dns.TypeA, rcode: dns.RcodeNameError, verdict: Deny, code: dns.ExtendedErrorCodeBlocked, text: "agentguard: no rule allows evil.test"},
		{name: "evilgood.test", qtype: dns.TypeA, rcode: dns.RcodeNameError, verdict: Deny, code: dns.ExtendedErrorCodeBlocked, text: "agentguard: no rule allows evilgood.test"},
		{name: "api.good.test.search.example", qtype: dns.TypeA, rcode: dns.RcodeNameError, verdict: Deny, code: dns.ExtendedErrorCodeBlocked, text: "agentguard: no rule allows api.good.test.search.example"},
		{name: `data\000\255.good.test`, qtype: dns.TypeA, rcode: dns.RcodeNameError, verdict: Deny, code: dns.ExtendedErrorCodeBlocked, text: "agentguard: this is not the name of a host"},
		{name: ".", qtype: dns.TypeNS, rcode: dns.RcodeNameError, verdict: Deny, code: dns.ExtendedErrorCodeBlocked, text: "agentguard: this is not the name of a host"},
		{name: "api.good.test", qtype: dns.TypeTXT, verdict: Deny, code: dns.ExtendedErrorCodeNotSupported, text: "agentguard: type TXT is not served"},
		{name: "api.good.test", qtype: dns.TypeANY, verdict: Deny, code: dns.ExtendedErrorCodeNotSupported, text: "agentguard: type ANY is not served"},
		{name: "api.good.test", qtype: 65280, verdict: Deny, code: dns.ExtendedErrorCodeNotSupported, text: "agentguard: type TYPE65280 is not served"},
		{name: "https.good.test", qtype: dns.TypeHTTPS, answer: `https.good.test. HTTPS 1 . alpn="h2,h3" port="8443"`},
		{name: "alias.good.test", qtype: dns.TypeHTTPS, answer: "alias.good.test. HTTPS 0 api.good.test."},
		{name: "elsewhere.good.test", qtype: dns.TypeHTTPS, answer: "", verdict: Deny, code: dns.ExtendedErrorCodeBlocked, text: "agentguard: elsewhere.good.test points to cdn.evil.test, which no rule allows"},
		{name: "_sip._tcp.good.test", qtype: dns.TypeSRV, answer: "_sip._tcp.good.test. SRV 1 2 443 api.good.test.", code: dns.ExtendedErrorCodeBlocked, text: "agentguard: _sip._tcp.good.test points to www.evil.test, which no rule allows"},
		{name: "_sip._tcp.evil.test", qtype: dns.TypeSRV, rcode: dns.RcodeNameError, verdict: Deny, code: dns.ExtendedErrorCodeBlocked, text: "agentguard: no rule allows _sip._tcp.evil.test"},
		{name: "1.2.0.192.in-addr.arpa", qtype: dns.TypePTR, answer: "1.2.0.192.in-addr.arpa. PTR api.good.test."},
		{name: "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa", qtype: dns.TypePTR, answer: "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa. PTR api.good.test."},
		{name: "1.100.51.198.in-addr.arpa", qtype: dns.TypePTR, rcode: dns.RcodeNameError, verdict: Deny, code: dns.ExtendedErrorCodeBlocked, text: "agentguard: no rule allows 198.51.100.1"},
		{name: "inside.good.test", qtype: dns.TypeA, answer: "inside.good.test. A 192.0.2.9", learned: addrs("192.0.2.9"), code: dns.ExtendedErrorCodeBlocked, text: "agentguard: inside.good.test points to 10.1.2.3, which is not a public address"},
		{name: "only.inside.good.test", qtype: dns.TypeA, verdict: Deny, code: dns.ExtendedErrorCodeBlocked, text: "agentguard: only.inside.good.test points to 127.0.0.1, which is not a public address"},
		{name: "mapped.good.test", qtype: dns.TypeAAAA, verdict: Deny, code: dns.ExtendedErrorCodeBlocked, text: "agentguard: mapped.good.test points to 127.0.0.1, which is not a public address"},
		{name: "own.good.test", qtype: dns.TypeA, verdict: Deny, code: dns.ExtendedErrorCodeBlocked, text: "agentguard: own.good.test points to 192.0.2.200, which is this machine's"},
	} {
		t.Run(tt.name+" "+typeName(tt.qtype), func(t *testing.T) {
			// From upstream, then from the cache.
			for _, cached := range []bool{false, true} {
				reply := l.ask(t, tt.name, tt.qtype)
				if reply.Rcode != tt.rcode {
					t.Errorf("rcode %s, want %s", rcodeName(reply.Rcode), rcodeName(tt.rcode))
				}
				if len(reply.Question) != 1 || reply.Question[0].Name != dns.Fqdn(tt.name) {
					t.Errorf("question %v, want it as asked", reply.Question)
				}
				got := strings.Split(show(reply.Answer), "; ")
				slices.Sort(got)
				want := strings.Split(tt.answer, "; ")
				slices.Sort(want)
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("answer (-want +got):\n%s", diff)
				}
				if code, text := ede(reply); code != tt.code || text != tt.text {
					t.Errorf("extended error %d %q, want %d %q", code, text, tt.code, tt.text)
				}
				var learned []netip.Addr
				for _, lesson := range l.lessons() {
					if host, _ := canonical(tt.name); lesson.host != host || lesson.task != 7 {
						t.Errorf("learned %+v, want it for %s and task 7", lesson, host)
					}
					learned = append(learned, lesson.addrs...)
				}
				slices.SortFunc(learned, netip.Addr.Compare)
				if !slices.Equal(learned, tt.learned) {
					t.Errorf("learned %v, want %v", learned, tt.learned)
				}
				record := l.record(t)
				wantVerdict := tt.verdict
				if wantVerdict == "" {
					wantVerdict = Allow
				}
				if record.Verdict != wantVerdict || record.Rcode != rcodeName(tt.rcode) || record.Type != typeName(tt.qtype) || record.Task != 7 {
					t.Errorf("record %+v, want %s, %s", record, wantVerdict, rcodeName(tt.rcode))
				}
				if strings.TrimPrefix(tt.text, "agentguard: ") != record.Reason {
					t.Errorf("reason %q, want %q", record.Reason, tt.text)
				}
				if record.Upstream.IsValid() && (record.Cached != cached || record.Upstream != upstream) {
					t.Errorf("from %s, cached = %v, want %s, %v", record.Upstream, record.Cached, upstream, cached)
				}
			}
		})
	}
}

// raw sends bytes by UDP and returns what comes back.
func (l *lab) raw(t *testing.T, wire []byte) []byte {
	t.Helper()
	conn := dial(t, l.ns, "udp", l.at())
	if _, err := conn.Write(wire); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, maxMessage)
	n, err := conn.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return buf[:n]
}

func packed(t testing.TB, m *dns.Msg) []byte {
	t.Helper()
	wire, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return wire
}

func TestQueriesThatAreNone(t *testing.T) {
	l := newLab(t, newTown("good.test"), Config{})
	query := func(edit func(*dns.Msg)) []byte {
		m := new(dns.Msg).SetQuestion("good.test.", dns.TypeA)
		m.SetEdns0(1232, false)
		edit(m)
		return packed(t, m)
	}
	for _, tt := range []struct {
		name  string
		wire  []byte
		rcode int
	}{
		{"no question", query(func(m *dns.Msg) { m.Question = nil }), dns.RcodeFormatError},
		{"two questions", query(func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }), dns.RcodeFormatError},
		{"with an answer", query(func(m *dns.Msg) {
			m.Answer = []dns.RR{&dns.A{Hdr: header("good.test.", dns.TypeA), A: make([]byte, 4)}}
		}), dns.RcodeFormatError},
		{"cut short", query(func(*dns.Msg) {})[:20], dns.RcodeFormatError},
		{"a pointer to itself", []byte{0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 12, 0, 1, 0, 1}, dns.RcodeFormatError},
		{"two OPT records", query(func(m *dns.Msg) { m.Extra = append(m.Extra, m.Extra[0]) }), dns.RcodeFormatError},
		{"class CHAOS", query(func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }), dns.RcodeNotImplemented},
		{"class ANY", query(func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassANY }), dns.RcodeNotImplemented},
		{"an update", query(func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate }), dns.RcodeNotImplemented},
		{"a notify", query(func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify }), dns.RcodeNotImplemented},
		{"EDNS version 1", query(func(m *dns.Msg) { m.IsEdns0().SetVersion(1) }), dns.RcodeBadVers},
	} {
		var reply dns.Msg
		if err := reply.Unpack(l.raw(t, tt.wire)); err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		if reply.Rcode != tt.rcode || len(reply.Answer) != 0 {
			t.Errorf("%s: %v, want %s", tt.name, &reply, rcodeName(tt.rcode))
		}
		if r := l.record(t); r.Verdict != Deny || r.Rcode != rcodeName(tt.rcode) {
			t.Errorf("%s: record %+v", tt.name, r)
		}
	}
	// A response is not answered, or two resolvers could talk for ever.
	response := query(func(m *dns.Msg) { m.Response = true })
	conn := dial(t, l.ns, "udp", l.at())
	for _, wire := range [][]byte{response, response[:5], query(func(m *dns.Msg) { m.Id = 4711; m.Question = nil })} {
		if _, err := conn.Write(wire); err != nil {
			t.Fatal(err)
		}
	}
	buf := make([]byte, maxSize)
	if _, err := conn.Read(buf); err != nil {
		t.Fatal(err)
	}
	if id := binary.BigEndian.Uint16(buf); id != 4711 {
		t.Errorf("a response was answered: %x", buf[:12])
	}
}

func TestStrangersAreRefused(t *testing.T) {
	w := newTown("good.test")
	w.stranger = true
	l := newLab(t, w, Config{})
	if reply := l.ask(t, "good.test", dns.TypeA); reply.Rcode != dns.RcodeRefused {
		t.Errorf("answer to a stranger %v, want REFUSED", reply)
	}
	conn := dial(t, l.ns, "tcp", l.at())
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("a stranger's connection: %v, want it closed", err)
	}
}

func TestEdnsOnlyToThoseWhoSpeakIt(t *testing.T) {
	l := newLab(t, newTown(), Config{})
	if reply := l.ask(t, "evil.test", dns.TypeA, noEdns); reply.IsEdns0() != nil || reply.Rcode != dns.RcodeNameError {
		t.Errorf("answer without EDNS asked: %v", reply)
	}
	reply := l.ask(t, "evil.test", dns.TypeA, func(m *dns.Msg) { m.IsEdns0().SetDo(); m.CheckingDisabled, m.AuthenticatedData = true, true })
	if opt := reply.IsEdns0(); opt == nil || !opt.Do() || opt.UDPSize() != ednsSize || opt.Version() != 0 {
		t.Errorf("OPT of the answer: %v", opt)
	}
	if reply.AuthenticatedData || reply.Authoritative {
		t.Errorf("flags of the answer: %v", reply)
	}
}

// More addresses than the kernel is to learn of one name are not shown either.
func TestAddressesOfOneAnswerAreBounded(t *testing.T) {
	l := unboundLab(t, Config{})
	for range 2 { // from upstream, and from the cache
		reply := l.askBy(t, "tcp", "many.good.test", dns.TypeA)
		var shown []netip.Addr
		for _, rr := range reply.Answer {
			addr, _ := netip.AddrFromSlice(rr.(*dns.A).A.To4())
			shown = append(shown, addr)
		}
		if learned := l.lessons(); len(shown) != maxAddrs || len(learned) != 1 || !slices.Equal(learned[0].addrs, shown) {
			t.Errorf("%d of 400 addresses were shown, want %d; learned %v", len(shown), maxAddrs, learned)
		}
	}
}

// The end of what is left of a cached answer is no time to connect in.
func TestLearnedForTheFloorAtLeast(t *testing.T) {
	st, q := offline(t, newTown("*.good.test"), Config{})
	w := st.server.authority.(*town)
	now := time.Now()
	a, err := digest(q, &dns.Msg{Answer: says(t, "api.good.test. 300 IN A 192.0.2.1")}, defaultMinTTL, defaultMaxTTL)
	if err != nil {
		t.Fatal(err)
	}
	a.upstream, a.expires = upstream, now.Add(2*time.Second)
	st.server.cache.put(cacheKey{st.ns.Cookie(), upstream, q}, a, now)
	e, ok := st.receive(policy.UDP, upstream, packed(t, new(dns.Msg).SetQuestion("api.good.test.", dns.TypeA)))
	if !ok || !e.now() {
		t.Fatal("no answer from the cache")
	}
	if learned := w.lessons(); len(learned) != 1 || learned[0].ttl != defaultMinTTL || e.reply.ttl > 2 {
		t.Errorf("learned %v, shown for %d s; want %v and what is left", learned, e.reply.ttl, defaultMinTTL)
	}
}

func TestTruncation(t *testing.T) {
	l := unboundLab(t, Config{Types: []string{"TXT"}})
	whole := l.askBy(t, "tcp", "many.good.test", dns.TypeTXT)
	if len(whole.Answer) != 400 || whole.Truncated {
		t.Fatalf("%d answers by TCP, truncated %v, want 400", len(whole.Answer), whole.Truncated)
	}
	for _, tt := range []struct {
		edit func(*dns.Msg)
		size int
	}{
		{noEdns, 512},
		{func(m *dns.Msg) { m.IsEdns0().SetUDPSize(0) }, 512},
		{func(m *dns.Msg) { m.IsEdns0().SetUDPSize(1232) }, 1232},
		{func(m *dns.Msg) { m.IsEdns0().SetUDPSize(65535) }, maxSize},
	} {
		m := new(dns.Msg).SetQuestion("many.good.test.", dns.TypeTXT)
		m.SetEdns0(1232, false)
		tt.edit(m)
		wire := l.raw(t, packed(t, m))
		var reply dns.Msg
		if err := reply.Unpack(wire); err != nil {
			t.Fatal(err)
		}
		if !reply.Truncated || len(wire) > tt.size || len(wire) < tt.size-16 || len(reply.Answer) == 0 {
			t.Errorf("%d bytes with %d answers, truncated %v, want TC and nearly %d bytes", len(wire), len(reply.Answer), reply.Truncated, tt.size)
		}
		// What is there is what comes first.
		if got := show(reply.Answer); !strings.HasPrefix(show(whole.Answer), got) {
			t.Errorf("answers by UDP %s, by TCP %s", got, show(whole.Answer))
		}
		if (reply.IsEdns0() != nil) != (m.IsEdns0() != nil) {
			t.Errorf("OPT %v to %v", reply.IsEdns0(), m.IsEdns0())
		}
	}
}

func TestManyQuestionsOnOneConnection(t *testing.T) {
	l := unboundLab(t, Config{})
	co := dns.Conn{Conn: dial(t, l.ns, "tcp", l.at())}
	var ids []uint16
	for range 3 {
		for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA} {
			m := new(dns.Msg).SetQuestion("api.good.test.", qtype)
			ids = append(ids, m.Id)
			if err := co.WriteMsg(m); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, id := range ids {
		reply, err := co.ReadMsg()
		if err != nil || reply.Id != id || len(reply.Answer) == 0 {
			t.Fatalf("answer %v, error %v, want one to %d", reply, err, id)
		}
	}
}

func TestTTL(t *testing.T) {
	l := unboundLab(t, Config{MinTTL: 40 * time.Second, MaxTTL: 20 * time.Minute})
	for name, want := range map[string]uint32{"short.good.test": 40, "api.good.test": 300, "long.good.test": 1200} {
		reply := l.ask(t, name, dns.TypeA)
		if ttl := reply.Answer[0].Header().Ttl; ttl > want || ttl < want-5 {
			t.Errorf("TTL of %s is %d, want %d", name, ttl, want)
		}
		learned := l.lessons()
		if ttl := learned[0].ttl; ttl > time.Duration(want)*time.Second || ttl < time.Duration(want-5)*time.Second {
			t.Errorf("%s learned for %v, want %d s", name, ttl, want)
		}
	}
	reply := l.ask(t, "nosuch.good.test", dns.TypeA)
	if len(reply.Ns) != 1 {
		t.Fatalf("no SOA in %v", reply)
	}
	soa := reply.Ns[0].(*dns.SOA)
	if soa.Hdr.Name != "test." || soa.Ns != "." || soa.Mbox != "." || soa.Minttl > 77 || soa.Minttl < 70 {
		t.Errorf("SOA %v, want one of test. with nothing but 77 s", soa)
	}
}

func TestFullKernel(t *testing.T) {
	l := unboundLab(t, Config{})
	l.set(func() { l.full = errors.New("the map of addresses is full") })
	for range 2 {
		reply := l.ask(t, "api.good.test", dns.TypeA)
		code, text := ede(reply)
		if reply.Rcode != dns.RcodeServerFailure || code != dns.ExtendedErrorCodeOther || text != "agentguard: the map of addresses is full" {
			t.Errorf("answer %v, want SERVFAIL that says why", reply)
		}
		if r := l.record(t); r.Verdict != Deny || r.Reason != "the map of addresses is full" || len(r.Addrs) > 0 {
			t.Errorf("record %+v", r)
		}
	}
	l.set(func() { l.full = nil })
	if reply := l.ask(t, "api.good.test", dns.TypeA); len(reply.Answer) != 2 {
		t.Errorf("answer %v, want both addresses once there is room", reply)
	}
}

func TestAuditModeAnswersAndSaysWhatItWouldNot(t *testing.T) {
	l := unboundLab(t, Config{})
	l.set(func() { l.audit = true })
	for _, tt := range []struct {
		name   string
		qtype  uint16
		answer string
		learn  int
	}{
		{"evil.test", dns.TypeA, "evil.test. A 192.0.2.13", 0},
		{"only.inside.good.test", dns.TypeA, "only.inside.good.test. A 127.0.0.1", 0},
		{"api.good.test", dns.TypeTXT, `api.good.test. TXT "a text"`, 0},
		{"1.100.51.198.in-addr.arpa", dns.TypePTR, "1.100.51.198.in-addr.arpa. PTR other.test.", 0},
	} {
		reply := l.ask(t, tt.name, tt.qtype)
		if got := show(reply.Answer); got != tt.answer {
			t.Errorf("answer %q, want %q", got, tt.answer)
		}
		if r := l.record(t); r.Verdict != WouldDeny || r.Reason == "" {
			t.Errorf("record %+v, want would-deny with a reason", r)
		}
		if learned := l.lessons(); len(learned) != tt.learn {
			t.Errorf("learned %v", learned)
		}
	}
}

func TestPrefixRuleExemptsFromRebinding(t *testing.T) {
	l := unboundLab(t, Config{})
	l.set(func() { l.prefixes = prefixes("10.1.0.0/16", "127.0.0.1/32") })
	reply := l.ask(t, "inside.good.test", dns.TypeA)
	if len(reply.Answer) != 2 {
		t.Errorf("answer %v, want the private address too", reply)
	}
	if learned := l.lessons(); len(learned) != 1 || len(learned[0].addrs) != 2 {
		t.Errorf("learned %v, want both", learned)
	}
	// The mapped address is the one that the rule covers.
	if reply := l.ask(t, "mapped.good.test", dns.TypeAAAA); len(reply.Answer) != 1 {
		t.Errorf("answer %v, want the mapped address", reply)
	}
}

// Two tasks share the cache, and nothing else.
func TestCacheLeaksNothing(t *testing.T) {
	l := unboundLab(t, Config{})
	l.ask(t, "api.good.test", dns.TypeA)
	l.ask(t, "inside.good.test", dns.TypeA)
	l.lessons()
	l.record(t)
	l.record(t)

	l.set(func() { l.task, l.names = 8, []string{"inside.good.test"}; l.prefixes = prefixes("10.0.0.0/8") })
	if reply := l.ask(t, "api.good.test", dns.TypeA); reply.Rcode != dns.RcodeNameError || len(reply.Answer) > 0 {
		t.Errorf("answer %v from the cache to a task that may not have it", reply)
	}
	if r := l.record(t); r.Cached || r.Upstream.IsValid() || len(r.Addrs) > 0 {
		t.Errorf("record %+v", r)
	}
	if reply := l.ask(t, "inside.good.test", dns.TypeA); len(reply.Answer) != 2 {
		t.Errorf("answer %v, want what the first task was not given too", reply)
	}
	if learned := l.lessons(); len(learned) != 1 || learned[0].task != 8 || len(learned[0].addrs) != 2 {
		t.Errorf("learned %v, want both addresses for task 8", learned)
	}
	if r := l.record(t); !r.Cached {
		t.Errorf("record %+v, want it from the cache", r)
	}
}

func TestRate(t *testing.T) {
	l := unboundLab(t, Config{Rate: 0.001, Burst: 3})
	for i := range 5 {
		reply := l.ask(t, "api.good.test", dns.TypeA)
		if want := i >= 3; (reply.Rcode == dns.RcodeRefused) != want {
			t.Errorf("question %d: %v, refused = %v wanted", i, reply, want)
		}
	}
	l.set(func() { l.task = 8 })
	if reply := l.ask(t, "api.good.test", dns.TypeA); reply.Rcode != dns.RcodeSuccess {
		t.Errorf("another task's first question: %v", reply)
	}
	l.server.Forget(7)
	l.server.Forget(8)
	if n := l.server.quotas.tasks.Len(); n != 0 {
		t.Errorf("%d quotas are kept of tasks that have ended", n)
	}
}

func TestConfiguredTypes(t *testing.T) {
	l := unboundLab(t, Config{Types: []string{"A", "TXT", "MX"}})
	for qtype, want := range map[uint16]string{
		dns.TypeA: "four.good.test. A 192.0.2.4", dns.TypeTXT: `api.good.test. TXT "a text"`, dns.TypeMX: "api.good.test. MX 1 mx.good.test.", dns.TypeAAAA: "",
	} {
		name := "api.good.test"
		if qtype == dns.TypeA {
			name = "four.good.test"
		}
		if got := show(l.ask(t, name, qtype).Answer); got != want {
			t.Errorf("%s: %q, want %q", typeName(qtype), got, want)
		}
	}
	for _, bad := range []string{"ANY", "AXFR", "OPT", "NSEC", "nonsense", ""} {
		if _, err := New(Config{Types: []string{bad}}, newTown()); err == nil {
			t.Errorf("type %q was taken", bad)
		}
	}
}
