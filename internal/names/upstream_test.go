// SPDX-License-Identifier: Apache-2.0

package names

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// say makes a record from a line of a zone file.
func say(t testing.TB, line string) dns.RR {
	t.Helper()
	rr, err := dns.NewRR(line)
	if err != nil || rr == nil {
		t.Fatalf("%s: %v", line, err)
	}
	return rr
}

func says(t testing.TB, lines ...string) []dns.RR {
	t.Helper()
	var rrs []dns.RR
	for _, line := range lines {
		rrs = append(rrs, say(t, line))
	}
	return rrs
}

// What upstream sees is the same whatever a client hides in its query.
func TestQueriesAreRebuilt(t *testing.T) {
	l := newLab(t, newTown("*.good.test"), Config{})
	pc := listenPacket(t, l, upstream)
	seen := make(chan []byte, 100)
	ports := make(chan string, 100)
	var serving sync.WaitGroup
	serving.Go(func() {
		buf := make([]byte, maxMessage)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			seen <- bytes.Clone(buf[:n])
			ports <- from.String()
			reply := bytes.Clone(buf[:n])
			reply[2] |= 0x80
			_, _ = pc.WriteTo(reply, from)
		}
	})
	t.Cleanup(func() { pc.Close(); serving.Wait() })

	var ids, froms []string
	for i, edit := range []func(m *dns.Msg){
		func(*dns.Msg) {},
		noEdns,
		func(m *dns.Msg) { m.Question[0].Name = "DaTa.GooD.tEst." },
		func(m *dns.Msg) {
			m.CheckingDisabled, m.AuthenticatedData, m.Zero, m.Authoritative = true, true, true, true
		},
		func(m *dns.Msg) { m.RecursionDesired = false },
		func(m *dns.Msg) { m.IsEdns0().SetDo(); m.IsEdns0().SetUDPSize(4096); m.IsEdns0().SetZ(0x7fff) },
		func(m *dns.Msg) {
			m.IsEdns0().Option = []dns.EDNS0{
				&dns.EDNS0_LOCAL{Code: 65001, Data: []byte("secret")},
				&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0123456789abcdef"},
				&dns.EDNS0_SUBNET{Code: dns.EDNS0SUBNET, Family: 1, SourceNetmask: 32, Address: net.IPv4(6, 6, 6, 6)},
				&dns.EDNS0_PADDING{Padding: []byte("secret")},
				&dns.EDNS0_NSID{Code: dns.EDNS0NSID, Nsid: "736563726574"},
			}
		},
		func(m *dns.Msg) { m.Extra = append(m.Extra, say(t, "x.good.test. 1 IN TXT secret")) },
	} {
		m := new(dns.Msg).SetQuestion("data.good.test.", dns.TypeA)
		m.SetEdns0(1232, false)
		edit(m)
		for _, wire := range [][]byte{packed(t, m), append(packed(t, m), "secret"...)} {
			l.raw(t, wire)
			got := <-seen
			ids, froms = append(ids, fmt.Sprintf("%x", got[:2])), append(froms, <-ports)
			want := "0100000100000000000104646174610467" + "6f6f640474657374000001000100002904d0000000000000"
			if fmt.Sprintf("%x", got[2:]) != want {
				t.Errorf("query %d reached upstream as\n%x, want\n%s", i, got[2:], want)
			}
		}
	}
	slices.Sort(ids)
	slices.Sort(froms)
	if len(slices.Compact(ids)) < 10 || len(slices.Compact(froms)) < 10 {
		t.Errorf("identifiers %v and ports %v, want them at random", ids, froms)
	}
}

func listenPacket(t *testing.T, l *lab, at netip.AddrPort) net.PacketConn {
	t.Helper()
	var pc net.PacketConn
	if err := l.ns.Do(func() (err error) {
		pc, err = net.ListenPacket("udp", at.String())
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return pc
}

// Only the chain from the question, and what stands at its end, counts.
func TestBailiwick(t *testing.T) {
	loop := []string{}
	for i := range 40 {
		loop = append(loop, fmt.Sprintf("c%d.good.test. 60 IN CNAME c%d.good.test.", i, (i+1)%40))
	}
	for _, tt := range []struct {
		name    string
		q       string
		qtype   uint16
		answer  []string
		extra   []string
		want    string
		learned string
		rcode   int
	}{
		{
			name: "addresses of others", q: "api.good.test", qtype: dns.TypeA,
			answer:  []string{"api.good.test. 60 IN A 192.0.2.1", "www.evil.test. 60 IN A 192.0.2.66", "good.test. 60 IN A 192.0.2.67"},
			extra:   []string{"api.good.test. 60 IN A 192.0.2.68", "ns.good.test. 60 IN A 192.0.2.69"},
			want:    "api.good.test. A 192.0.2.1",
			learned: "[192.0.2.1]",
		},
		{
			name: "another type and class", q: "api.good.test", qtype: dns.TypeA,
			answer: []string{"api.good.test. 60 IN AAAA 2001:db8::66", "api.good.test. 60 CH A 192.0.2.66", "api.good.test. 60 IN TXT x"},
		},
		{
			name: "aliases in any order and case", q: "api.good.test", qtype: dns.TypeA,
			answer:  []string{"end.cdn.test. 60 IN A 192.0.2.1", "B.cdn.test. 60 IN CNAME End.CDN.test.", "API.good.test. 60 IN CNAME b.cdn.test.", "other.cdn.test. 60 IN A 192.0.2.66"},
			want:    "api.good.test. CNAME b.cdn.test.; b.cdn.test. CNAME end.cdn.test.; end.cdn.test. A 192.0.2.1",
			learned: "[192.0.2.1]",
		},
		{
			name: "a broken chain", q: "api.good.test", qtype: dns.TypeA,
			answer: []string{"api.good.test. 60 IN CNAME b.cdn.test.", "c.cdn.test. 60 IN A 192.0.2.66"},
			want:   "api.good.test. CNAME b.cdn.test.",
		},
		{
			name: "an alias beside addresses", q: "api.good.test", qtype: dns.TypeA,
			answer:  []string{"api.good.test. 60 IN A 192.0.2.66", "api.good.test. 60 IN CNAME b.cdn.test.", "b.cdn.test. 60 IN A 192.0.2.1"},
			want:    "api.good.test. CNAME b.cdn.test.; b.cdn.test. A 192.0.2.1",
			learned: "[192.0.2.1]",
		},
		{name: "a loop", q: "c0.good.test", qtype: dns.TypeA, answer: loop, rcode: dns.RcodeServerFailure},
		{name: "a loop of one", q: "api.good.test", qtype: dns.TypeA, answer: []string{"api.good.test. 60 IN CNAME api.good.test."}, rcode: dns.RcodeServerFailure},
		{
			name: "the alias itself", q: "api.good.test", qtype: dns.TypeCNAME,
			answer: []string{"api.good.test. 60 IN CNAME b.cdn.test.", "b.cdn.test. 60 IN CNAME c.cdn.test."},
			want:   "api.good.test. CNAME b.cdn.test.",
		},
		{
			name: "the same twice", q: "api.good.test", qtype: dns.TypeA,
			answer:  []string{"api.good.test. 60 IN A 192.0.2.2", "api.good.test. 60 IN A 192.0.2.1", "api.good.test. 60 IN A 192.0.2.2"},
			want:    "api.good.test. A 192.0.2.2; api.good.test. A 192.0.2.1",
			learned: "[192.0.2.2 192.0.2.1]",
		},
		{
			name: "signatures", q: "api.good.test", qtype: dns.TypeA,
			answer:  []string{"api.good.test. 60 IN A 192.0.2.1", "api.good.test. 60 IN RRSIG A 8 3 60 20300101000000 20200101000000 1 good.test. AAAA"},
			want:    "api.good.test. A 192.0.2.1",
			learned: "[192.0.2.1]",
		},
		{
			name: "HTTPS behind an alias", q: "api.good.test", qtype: dns.TypeHTTPS,
			answer: []string{"api.good.test. 60 IN CNAME b.cdn.test.", `b.cdn.test. 60 IN HTTPS 1 . alpn=h2 ech=AAAA mandatory=alpn,ipv4hint ipv4hint=192.0.2.66`},
			want:   `api.good.test. CNAME b.cdn.test.; b.cdn.test. HTTPS 1 . mandatory="alpn" alpn="h2"`,
		},
		{
			name: "HTTPS that needs ECH", q: "api.good.test", qtype: dns.TypeHTTPS,
			answer: []string{`api.good.test. 60 IN HTTPS 1 . alpn=h2 mandatory=ech ech=AAAA`, `api.good.test. 60 IN HTTPS 2 . alpn=h2 key65000=x`},
			want:   `api.good.test. HTTPS 2 . alpn="h2"`,
		},
		{
			name: "HTTPS that points to its own owner", q: "api.good.test", qtype: dns.TypeHTTPS,
			answer: []string{"api.good.test. 60 IN CNAME b.cdn.test.", `b.cdn.test. 60 IN HTTPS 1 B.cdn.test. alpn=h2`, `b.cdn.test. 60 IN HTTPS 2 c.cdn.test. alpn=h2`},
			want:   `api.good.test. CNAME b.cdn.test.; b.cdn.test. HTTPS 1 b.cdn.test. alpn="h2"`,
		},
		{
			name: "SVCB of a port", q: "_8443._https.api.good.test", qtype: dns.TypeHTTPS,
			answer: []string{`_8443._https.api.good.test. 60 IN HTTPS 1 api.good.test. ipv6hint=2001:db8::66`},
			want:   `_8443._https.api.good.test. HTTPS 1 api.good.test.`,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := newLab(t, newTown("api.good.test", "c0.good.test"), Config{})
			impolite(t, l.ns, upstream, func(w dns.ResponseWriter, m *dns.Msg) {
				r := new(dns.Msg).SetReply(m)
				r.Answer, r.Extra = says(t, tt.answer...), says(t, tt.extra...)
				_ = w.WriteMsg(r)
			})
			reply := l.ask(t, tt.q, tt.qtype)
			if got := show(reply.Answer); got != tt.want || reply.Rcode != tt.rcode {
				t.Errorf("%s, %q, want %s, %q", rcodeName(reply.Rcode), got, rcodeName(tt.rcode), tt.want)
			}
			if len(reply.Extra) > 1 {
				t.Errorf("additional records %v", reply.Extra)
			}
			learned := ""
			for _, lesson := range l.lessons() {
				learned += fmt.Sprint(lesson.addrs)
			}
			if learned != tt.learned {
				t.Errorf("learned %s, want %s", learned, tt.learned)
			}
		})
	}
}

func TestNextResolverWhereOneFails(t *testing.T) {
	second := netip.MustParseAddrPort("127.0.0.54:53")
	good := func(w dns.ResponseWriter, m *dns.Msg) {
		r := new(dns.Msg).SetReply(m)
		r.Answer = []dns.RR{&dns.A{Hdr: header(m.Question[0].Name, dns.TypeA), A: net.IPv4(192, 0, 2, 1)}}
		_ = w.WriteMsg(r)
	}
	for name, first := range map[string]dns.HandlerFunc{
		"closed": nil,
		"silent": func(dns.ResponseWriter, *dns.Msg) {},
		"SERVFAIL": func(w dns.ResponseWriter, m *dns.Msg) {
			_ = w.WriteMsg(new(dns.Msg).SetRcode(m, dns.RcodeServerFailure))
		},
		"REFUSED": func(w dns.ResponseWriter, m *dns.Msg) { _ = w.WriteMsg(new(dns.Msg).SetRcode(m, dns.RcodeRefused)) },
		"garbage": func(w dns.ResponseWriter, m *dns.Msg) {
			wire, _ := new(dns.Msg).SetReply(m).Pack()
			wire[7] = 9 // answers, of which half a one is there
			_, _ = w.Write(append(wire, 0, 0))
		},
		"wrong id": func(w dns.ResponseWriter, m *dns.Msg) {
			m.Id++
			good(w, m)
		},
		"wrong question": func(w dns.ResponseWriter, m *dns.Msg) {
			m.Question[0].Name = "evil.test."
			good(w, m)
		},
		"a query": func(w dns.ResponseWriter, m *dns.Msg) { _ = w.WriteMsg(m) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, newTown("good.test"), Config{Timeout: 9 * time.Second})
			if _, err := l.server.Listen(l.ns, Upstream{l.ns, []netip.AddrPort{upstream, second}}); err != nil {
				t.Fatal(err)
			}
			if first != nil {
				impolite(t, l.ns, upstream, first)
			}
			impolite(t, l.ns, second, good)
			reply := l.ask(t, "good.test", dns.TypeA)
			if got := show(reply.Answer); got != "good.test. A 192.0.2.1" {
				t.Errorf("answer %v, want that of the second", reply)
			}
			if r := l.record(t); r.Upstream != second {
				t.Errorf("record %+v, want %s", r, second)
			}
		})
	}
	t.Run("none answers", func(t *testing.T) {
		t.Parallel()
		l := newLab(t, newTown("good.test"), Config{Timeout: time.Second})
		reply := l.ask(t, "good.test", dns.TypeA)
		code, text := ede(reply)
		if reply.Rcode != dns.RcodeServerFailure || code != dns.ExtendedErrorCodeNoReachableAuthority || !strings.Contains(text, "resolver 127.0.0.53:53: ") {
			t.Errorf("answer %v, want SERVFAIL that says which resolver failed", reply)
		}
		if r := l.record(t); r.Verdict != Allow || r.Rcode != "SERVFAIL" || r.Reason == "" {
			t.Errorf("record %+v", r)
		}
	})
}

// A forger who sends before the resolver does is not believed.
func TestForgedAnswersAreIgnored(t *testing.T) {
	l := newLab(t, newTown("good.test"), Config{})
	pc := listenPacket(t, l, upstream)
	forger := listenPacket(t, l, netip.MustParseAddrPort("127.0.0.99:53"))
	var serving sync.WaitGroup
	serving.Go(func() {
		buf := make([]byte, maxSize)
		n, from, err := pc.ReadFrom(buf)
		if err != nil {
			return
		}
		var m dns.Msg
		if err := m.Unpack(buf[:n]); err != nil {
			t.Error(err)
			return
		}
		send := func(pc net.PacketConn, id uint16, name, addr string) {
			r := new(dns.Msg).SetReply(&m)
			r.Id, r.Question[0].Name = id, name
			r.Answer = []dns.RR{&dns.A{Hdr: header(name, dns.TypeA), A: net.ParseIP(addr)}}
			wire, _ := r.Pack()
			_, _ = pc.WriteTo(wire, from)
		}
		send(forger, m.Id, "good.test.", "192.0.2.66")
		send(pc, m.Id+1, "good.test.", "192.0.2.66")
		send(pc, m.Id, "evil.test.", "192.0.2.66")
		send(pc, m.Id, "good.test.", "192.0.2.1")
	})
	t.Cleanup(func() { pc.Close(); forger.Close(); serving.Wait() })
	if got := show(l.ask(t, "good.test", dns.TypeA).Answer); got != "good.test. A 192.0.2.1" {
		t.Errorf("answer %q", got)
	}
}

func TestUpstreamByTCPWhereTruncated(t *testing.T) {
	l := newLab(t, newTown("good.test"), Config{})
	var rrs []dns.RR
	for i := range maxAddrs {
		rrs = append(rrs, &dns.A{Hdr: header("good.test.", dns.TypeA), A: net.IPv4(198, 18, byte(i/250), byte(i%250))})
	}
	impolite(t, l.ns, upstream, func(w dns.ResponseWriter, m *dns.Msg) {
		r := new(dns.Msg).SetReply(m)
		r.Answer = rrs
		if w.RemoteAddr().Network() == "udp" {
			r.Truncate(512)
		}
		_ = w.WriteMsg(r)
	})
	reply := l.askBy(t, "tcp", "good.test", dns.TypeA)
	if got, want := show(reply.Answer), show(rrs); got != want {
		t.Errorf("%d answers, want %d in the order of upstream", len(reply.Answer), maxAddrs)
	}
}

func TestUpstreamWithoutEdns(t *testing.T) {
	l := newLab(t, newTown("good.test"), Config{})
	impolite(t, l.ns, upstream, func(w dns.ResponseWriter, m *dns.Msg) {
		r := new(dns.Msg).SetReply(m)
		if m.IsEdns0() != nil {
			r = &dns.Msg{MsgHdr: dns.MsgHdr{Id: m.Id, Response: true, Rcode: dns.RcodeFormatError}}
		} else {
			r.Answer = says(t, "good.test. 60 IN A 192.0.2.1")
		}
		_ = w.WriteMsg(r)
	})
	if got := show(l.ask(t, "good.test", dns.TypeA).Answer); got != "good.test. A 192.0.2.1" {
		t.Errorf("answer %q", got)
	}
}

// The resolver that was asked is asked, if it is trusted.
func TestWhoIsAsked(t *testing.T) {
	second, third := netip.MustParseAddrPort("127.0.0.54:53"), netip.MustParseAddrPort("127.0.0.55:53")
	l := newLab(t, newTown("*.good.test"), Config{})
	for i, at := range []netip.AddrPort{upstream, second, third} {
		impolite(t, l.ns, at, func(w dns.ResponseWriter, m *dns.Msg) {
			r := new(dns.Msg).SetReply(m)
			r.Answer = []dns.RR{&dns.A{Hdr: header(m.Question[0].Name, dns.TypeA), A: net.IPv4(192, 0, 2, byte(i+1))}}
			_ = w.WriteMsg(r)
		})
	}
	asked := func(to netip.AddrPort) netip.AddrPort {
		t.Helper()
		l.set(func() { l.to = to })
		reply := l.ask(t, "api.good.test", dns.TypeA)
		r := l.record(t)
		if len(reply.Answer) == 1 && fmt.Sprint(r.Addrs) != "["+reply.Answer[0].(*dns.A).A.String()+"]" {
			t.Errorf("record %+v of %v", r, reply)
		}
		return r.Upstream
	}
	stranger := netip.MustParseAddrPort("192.0.2.53:53")
	l.set(func() { l.untrusted = []netip.AddrPort{stranger} })
	for _, tt := range []struct{ to, want netip.AddrPort }{
		{upstream, upstream}, {second, second}, {third, third}, {stranger, upstream},
		{netip.AddrPortFrom(netip.AddrFrom16(second.Addr().As16()), 53), second},
		{netip.AddrPort{}, upstream},
	} {
		// Twice, so that answers from the cache are told apart too.
		for range 2 {
			if got := asked(tt.to); got != tt.want {
				t.Errorf("who asked %s got the answer of %s, want %s", tt.to, got, tt.want)
			}
		}
	}
	l.set(func() { l.untrusted = []netip.AddrPort{stranger, upstream} })
	if got := asked(stranger); got.IsValid() {
		t.Errorf("who asked %s got the answer of %s, want none: nobody is trusted", stranger, got)
	}
}

// A resolver that turns out to be a task's is not believed, before or after.
func TestImpostors(t *testing.T) {
	second := netip.MustParseAddrPort("127.0.0.54:53")
	for _, after := range []bool{false, true} {
		t.Run(fmt.Sprint("after the answer: ", after), func(t *testing.T) {
			l := newLab(t, newTown("good.test"), Config{})
			if _, err := l.server.Listen(l.ns, Upstream{l.ns, []netip.AddrPort{upstream, second}}); err != nil {
				t.Fatal(err)
			}
			var asked atomic.Int32
			impolite(t, l.ns, upstream, func(w dns.ResponseWriter, m *dns.Msg) {
				asked.Add(1)
				r := new(dns.Msg).SetReply(m)
				r.Answer = says(t, "good.test. 60 IN A 192.0.2.66")
				_ = w.WriteMsg(r)
			})
			impolite(t, l.ns, second, func(w dns.ResponseWriter, m *dns.Msg) {
				r := new(dns.Msg).SetReply(m)
				r.Answer = says(t, "good.test. 60 IN A 192.0.2.1")
				_ = w.WriteMsg(r)
			})
			l.set(func() {
				l.impostor = func(r netip.AddrPort) bool { return r == upstream && (!after || asked.Load() > 0) }
			})
			if got := show(l.ask(t, "good.test", dns.TypeA).Answer); got != "good.test. A 192.0.2.1" {
				t.Errorf("answer %q, want that of the second", got)
			}
			if n := asked.Load(); (n > 0) != after {
				t.Errorf("the impostor was asked %d times", n)
			}
		})
	}
}

// Many who ask the same at once make one query.
func TestOneQueryForManyWhoAsk(t *testing.T) {
	l := newLab(t, newTown("good.test"), Config{})
	var asked atomic.Int32
	release := make(chan struct{})
	impolite(t, l.ns, upstream, func(w dns.ResponseWriter, m *dns.Msg) {
		asked.Add(1)
		<-release
		r := new(dns.Msg).SetReply(m)
		r.Answer = says(t, "good.test. 60 IN A 192.0.2.1")
		_ = w.WriteMsg(r)
	})
	const clients = 20
	wire := packed(t, new(dns.Msg).SetQuestion("good.test.", dns.TypeA))
	var conns []net.Conn
	for range clients {
		conn := dial(t, l.ns, "udp", l.at())
		if _, err := conn.Write(wire); err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
	}
	waitFor(t, func() bool { return l.server.quotas.of(7).waits.Load() == clients })
	close(release)
	for _, conn := range conns {
		if _, err := conn.Read(make([]byte, maxSize)); err != nil {
			t.Fatal(err)
		}
	}
	if n := asked.Load(); n != 1 {
		t.Errorf("upstream was asked %d times", n)
	}
	if n := len(l.lessons()); n != clients {
		t.Errorf("learned %d times, want it for each of %d", n, clients)
	}
	waitFor(t, func() bool { return l.server.quotas.total.waits.Load() == 0 })
}

// What waits for upstream is bounded, and told so at once.
func TestWaitsAreBounded(t *testing.T) {
	l := newLab(t, newTown("*.good.test"), Config{})
	release := make(chan struct{})
	impolite(t, l.ns, upstream, func(w dns.ResponseWriter, m *dns.Msg) {
		<-release
		_ = w.WriteMsg(new(dns.Msg).SetReply(m))
	})
	conn := dial(t, l.ns, "udp", l.at())
	for i := range maxTaskWaits {
		if _, err := conn.Write(packed(t, new(dns.Msg).SetQuestion(fmt.Sprintf("n%d.good.test.", i), dns.TypeA))); err != nil {
			t.Fatal(err)
		}
	}
	waitFor(t, func() bool { return l.server.quotas.of(7).waits.Load() == maxTaskWaits })
	reply := l.ask(t, "more.good.test", dns.TypeA)
	if code, text := ede(reply); reply.Rcode != dns.RcodeServerFailure || code != dns.ExtendedErrorCodeOther || !strings.Contains(text, "too many") {
		t.Errorf("answer %v, want SERVFAIL at once", reply)
	}
	close(release)
	waitFor(t, func() bool { return l.server.quotas.total.waits.Load() == 0 })
}

// waitFor looks until ok, as long as a test may take.
func waitFor(t testing.TB, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatal("what was waited for did not come")
		}
	}
}
