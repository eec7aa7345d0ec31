// SPDX-License-Identifier: Apache-2.0

package names

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"

	"agentguard.dev/agentguard/internal/policy"
)

// BenchmarkCached is the time from question to answer, one after the other and many at
// once, of what is in the cache: of a station, and of dnsmasq beside it.
func BenchmarkCached(b *testing.B) {
	w := newTown("api.good.test")
	l := newLab(b, w, Config{Rate: 1e9, Burst: 1e9})
	dnsmasq(b, l.ns, upstream, "--host-record=api.good.test,192.0.2.1,2001:db8::1")
	w.records = nil
	quiet := &mute{w}
	l.server.authority = quiet
	m := new(dns.Msg).SetQuestion("api.good.test.", dns.TypeA)
	m.SetEdns0(1232, false)
	query := packed(b, m)
	for _, to := range []struct {
		name string
		at   netip.AddrPort
	}{{"agentguard", l.at()}, {"dnsmasq", upstream}} {
		for _, flight := range []struct {
			name string
			n    int
		}{{"one", 1}, {"many", 32}} {
			b.Run(to.name+"/"+flight.name, func(b *testing.B) {
				conn := dial(b, l.ns, "udp", to.at).(*net.UDPConn)
				_ = conn.SetDeadline(time.Now().Add(time.Hour))
				buf := make([]byte, maxSize)
				b.ReportAllocs()
				flying := 0
				for b.Loop() {
					for ; flying < flight.n; flying++ {
						if _, err := conn.Write(query); err != nil {
							b.Fatal(err)
						}
					}
					if n, err := conn.Read(buf); err != nil || buf[7] != 1 {
						b.Fatal(n, err)
					}
					flying--
				}
			})
		}
	}
}

// mute is a town that keeps nothing.
type mute struct{ *town }

func (mute) Learn(Asker, string, []netip.Addr, time.Duration) error { return nil }
func (mute) Query(Record)                                           {}

// BenchmarkReply is what a station does for a cached answer, but for its socket.
func BenchmarkReply(b *testing.B) {
	st, e := offline(b, newTown("api.good.test"), Config{Rate: 1e9, Burst: 1e9})
	st.server.authority = &mute{st.server.authority.(*town)}
	a, err := digest(e, &dns.Msg{Answer: says(b, "api.good.test. 300 IN A 192.0.2.1")}, time.Minute, time.Hour)
	if err != nil {
		b.Fatal(err)
	}
	a.upstream, a.expires = upstream, time.Now().Add(time.Hour)
	st.server.cache.put(cacheKey{st.ns.Cookie(), upstream, e}, a, time.Now())
	m := new(dns.Msg).SetQuestion("api.good.test.", dns.TypeA)
	m.SetEdns0(1232, false)
	query := packed(b, m)
	src := netip.MustParseAddrPort("127.0.0.1:40000")
	var buf []byte
	b.ReportAllocs()
	for b.Loop() {
		x, ok := st.receive(policy.UDP, src, query)
		if !ok || !x.now() || !x.cached {
			b.Fatalf("%+v", x)
		}
		buf = x.reply.write(buf, &x.query, x.size)
		x.record(nil)
	}
}
