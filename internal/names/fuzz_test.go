// SPDX-License-Identifier: Apache-2.0

package names

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"agentguard.dev/agentguard/internal/policy"
)

// FuzzQuery gives a station whatever bytes a task may send it.
func FuzzQuery(f *testing.F) {
	for _, edit := range []func(*dns.Msg){
		func(*dns.Msg) {},
		noEdns,
		func(m *dns.Msg) { m.Question[0].Name = "evil.test." },
		func(m *dns.Msg) { m.Question[0].Name = "API.good.TEST." },
		func(m *dns.Msg) { m.Question[0].Name = `a\000b\.c.good.test.` },
		func(m *dns.Msg) {
			m.Question[0] = dns.Question{Name: "1.2.0.192.in-addr.arpa.", Qtype: dns.TypePTR, Qclass: 1}
		},
		func(m *dns.Msg) {
			m.Question[0] = dns.Question{Name: "_sip._tcp.good.test.", Qtype: dns.TypeSRV, Qclass: 1}
		},
		func(m *dns.Msg) {
			m.Question[0] = dns.Question{Name: "_1._https.good.test.", Qtype: dns.TypeHTTPS, Qclass: 1}
		},
		func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeANY },
		func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS },
		func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate },
		func(m *dns.Msg) { m.IsEdns0().SetVersion(9) },
		func(m *dns.Msg) { m.IsEdns0().SetUDPSize(1) },
		func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) },
	} {
		m := new(dns.Msg).SetQuestion("api.good.test.", dns.TypeA)
		m.SetEdns0(1232, false)
		edit(m)
		f.Add(packed(f, m))
	}
	w := newTown("*.good.test")
	w.reach = addrs("192.0.2.1")
	w.records = make(chan Record, 1)
	st, known := offline(f, w, Config{Rate: 1e9, Burst: 1e9})
	a, err := digest(known, &dns.Msg{Answer: manyA(known.name, 200)}, time.Hour, time.Hour)
	if err != nil {
		f.Fatal(err)
	}
	a.upstream, a.expires = upstream, time.Now().Add(time.Hour)
	st.server.cache.put(cacheKey{st.ns.Cookie(), upstream, known}, a, time.Now())
	src := netip.MustParseAddrPort("127.0.0.1:40000")
	f.Fuzz(func(t *testing.T, wire []byte) {
		w.lessons()
		e, ok := st.receive(policy.UDP, src, slices.Clone(wire))
		if !ok {
			return
		}
		if !e.now() {
			// This would reach upstream.
			defer e.done()
			subject := e.subject()
			if addr, ok := e.reverse(); ok {
				if !w.MayReach(addr) {
					t.Errorf("asks for the name of %s", addr)
				}
			} else if !w.Allows(subject) && !w.Allows(e.name) {
				t.Errorf("asks for %s", e.name)
			}
			if name, ok := canonical(e.name); !ok || name != e.name || strings.ToLower(name) != name || !st.server.types[e.qtype] {
				t.Errorf("asks for %s %d", e.name, e.qtype)
			}
			if _, err := (&dns.Msg{Question: []dns.Question{{Name: e.name + ".", Qtype: e.qtype, Qclass: 1}}}).Pack(); err != nil {
				t.Errorf("asks for %s, which is no name: %v", e.name, err)
			}
			return
		}
		out := e.reply.write(nil, &e.query, e.size)
		e.record(nil)
		r := <-w.records
		if len(out) > e.size {
			t.Errorf("%d bytes, and the client takes %d", len(out), e.size)
		}
		var m dns.Msg
		if err := m.Unpack(out); err != nil {
			t.Fatalf("answer %x: %v", out, err)
		}
		if !m.Response || m.Id != uint16(wire[0])<<8|uint16(wire[1]) {
			t.Errorf("header %+v", m.MsgHdr)
		}
		if (len(m.Answer) > 0 || len(w.lessons()) > 0) && (e.question != known || r.Verdict != Allow) {
			t.Errorf("answers of %s to %s", known.name, e.name)
		}
	})
}

func manyA(name string, n int) []dns.RR {
	var rrs []dns.RR
	for i := range n {
		rrs = append(rrs, &dns.A{Hdr: dns.RR_Header{Name: name + ".", Rrtype: dns.TypeA, Class: 1, Ttl: 60}, A: []byte{198, 18, byte(i >> 8), byte(i)}})
	}
	return rrs
}

// FuzzAnswer gives a station whatever bytes upstream may send it.
func FuzzAnswer(f *testing.F) {
	for _, lines := range [][]string{
		{"api.good.test. 60 IN A 192.0.2.1", "api.good.test. 60 IN AAAA ::1", "evil.test. 60 IN A 192.0.2.66"},
		{"api.good.test. 60 IN CNAME b.test.", "b.test. 60 IN CNAME c.test.", "c.test. 60 IN A 192.0.2.1", "c.test. 60 IN AAAA 2001:db8::1"},
		{"api.good.test. 60 IN A 10.0.0.1", "api.good.test. 60 IN AAAA ::ffff:127.0.0.1", "api.good.test. 60 IN A 192.0.2.1"},
		{"api.good.test. 60 IN HTTPS 1 . alpn=h2 mandatory=alpn ipv4hint=192.0.2.1 ech=AAAA ipv6hint=2001:db8::1 key65000=x"},
		{"api.good.test. 60 IN SVCB 0 x.good.test.", "api.good.test. 60 IN SVCB 1 x.evil.test. port=1 no-default-alpn dohpath=/x"},
		{"api.good.test. 60 IN SRV 1 2 3 x.good.test.", "api.good.test. 60 IN SRV 1 2 3 x.evil.test."},
		{"api.good.test. 60 IN PTR x.good.test.", "api.good.test. 60 IN TXT a b", "api.good.test. 60 IN CNAME api.good.test."},
	} {
		for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeHTTPS, dns.TypeSVCB, dns.TypeSRV, dns.TypeCNAME, dns.TypePTR, dns.TypeTXT} {
			m := new(dns.Msg).SetQuestion("api.good.test.", qtype)
			m.Answer = says(f, lines...)
			m.Ns = says(f, "good.test. 60 IN SOA ns.good.test. x.good.test. 1 2 3 4 5")
			f.Add(packed(f, m), qtype)
			m.Compress = true
			f.Add(packed(f, m), qtype)
		}
	}
	w := newTown("*.good.test")
	w.records = make(chan Record, 1)
	st, _ := offline(f, w, Config{Types: []string{"A", "AAAA", "CNAME", "HTTPS", "SVCB", "SRV", "PTR", "TXT", "MX", "NS", "SOA", "CAA"}})
	f.Fuzz(func(t *testing.T, wire []byte, qtype uint16) {
		var m dns.Msg
		if err := m.Unpack(wire); err != nil {
			return
		}
		m.Rcode &= 3
		q := question{"api.good.test", qtype}
		a, err := digest(q, &m, time.Second, time.Hour)
		if err != nil {
			return
		}
		a.upstream, a.expires = upstream, time.Now().Add(a.ttl)
		w.lessons()
		e := &exchange{station: st, began: time.Now(), verdict: Allow, known: true, allowed: true}
		e.question, e.asked, e.class, e.edns = q, "api.good.test.", dns.ClassINET, true
		e.asker, _ = w.Asker(0, policy.UDP, netip.AddrPort{})
		e.conclude(a)
		wire = e.reply.write(nil, &e.query, maxMessage)
		var reply dns.Msg
		if err := reply.Unpack(wire); err != nil {
			t.Fatalf("the answer to the client cannot be read: %v", err)
		}
		checkReply(t, &m, &reply, qtype, w.lessons())
	})
}

// checkReply holds a reply to what upstream has said.
func checkReply(t *testing.T, m, reply *dns.Msg, qtype uint16, learned []lesson) {
	t.Helper()
	at := "api.good.test."
	var given []netip.Addr
	for i, rr := range reply.Answer {
		h := rr.Header()
		if h.Name != at || h.Class != dns.ClassINET {
			t.Fatalf("answer %d is of %s, want %s", i, h.Name, at)
		}
		said := func(want dns.RR) bool {
			return strings.EqualFold(want.Header().Name, at) && want.Header().Rrtype == h.Rrtype
		}
		if !slices.ContainsFunc(m.Answer, said) {
			t.Fatalf("upstream has not said %v", rr)
		}
		if alias, ok := rr.(*dns.CNAME); ok {
			at = strings.ToLower(alias.Target)
			continue
		}
		if h.Rrtype != qtype {
			t.Fatalf("answer %v to a question for %s", rr, typeName(qtype))
		}
		switch rr := rr.(type) {
		case *dns.A:
			given = append(given, netip.AddrFrom4([4]byte(rr.A.To4())))
		case *dns.AAAA:
			given = append(given, netip.AddrFrom16([16]byte(rr.AAAA.To16())).Unmap())
		case *dns.SRV:
			allowed(t, rr)
		case *dns.SVCB:
			allowed(t, rr)
			allowedParameters(t, rr.Value)
		case *dns.HTTPS:
			allowed(t, rr)
			allowedParameters(t, rr.Value)
		}
	}
	var known []netip.Addr
	for _, l := range learned {
		if l.host != "api.good.test" {
			t.Errorf("learned for %s", l.host)
		}
		known = append(known, l.addrs...)
	}
	if !slices.Equal(known, given) {
		t.Errorf("learned %v, given %v", known, given)
	}
	for _, addr := range given {
		if !Public(addr) {
			t.Errorf("gives %s, which is not public", addr)
		}
	}
}

func allowed(t *testing.T, rr dns.RR) {
	target := ""
	switch rr := rr.(type) {
	case *dns.SRV:
		target = rr.Target
	case *dns.SVCB:
		target = rr.Target
	case *dns.HTTPS:
		target = rr.Target
	}
	name, _ := canonical(target)
	if target != "." && target != rr.Header().Name && !newTown("*.good.test").Allows(name) {
		t.Errorf("points to %s", target)
	}
}

func allowedParameters(t *testing.T, values []dns.SVCBKeyValue) {
	for _, v := range values {
		switch v.Key() {
		case dns.SVCB_ALPN, dns.SVCB_PORT, dns.SVCB_NO_DEFAULT_ALPN, dns.SVCB_MANDATORY:
		default:
			t.Errorf("parameter %v is left", v)
		}
	}
}
