// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// zone is what names lead to. Those that are not listed lead where everybody
// does.
func zone(name string) []netip.Addr {
	if label, ok := strings.CutSuffix(name, ".rebind.test."); ok {
		return []netip.Addr{insides()[label].Addr()}
	}
	switch name {
	case "other.test.":
		return []netip.Addr{allowed4}
	case "service.test.":
		return []netip.Addr{service4}
	}
	return []netip.Addr{shared4, shared6}
}

// poison is a zone of an attacker's.
func poison(string) []netip.Addr { return []netip.Addr{denied4, denied6} }

// answerOf is the reply to a question, nil if nobody could read it.
func answerOf(question []byte, zone func(name string) []netip.Addr) []byte {
	var q dns.Msg
	if q.Unpack(question) != nil || len(q.Question) == 0 || q.Response {
		return nil
	}
	var r dns.Msg
	r.SetReply(&q)
	for _, a := range zone(strings.ToLower(q.Question[0].Name)) {
		head := dns.RR_Header{Name: q.Question[0].Name, Rrtype: q.Question[0].Qtype, Class: dns.ClassINET, Ttl: 60}
		if strings.HasPrefix(head.Name, "stale.") {
			head.Ttl = 1
		}
		switch {
		case head.Rrtype == dns.TypeA && a.Is4():
			r.Answer = append(r.Answer, &dns.A{Hdr: head, A: a.AsSlice()})
		case head.Rrtype == dns.TypeAAAA && a.Is6():
			r.Answer = append(r.Answer, &dns.AAAA{Hdr: head, AAAA: a.AsSlice()})
		}
	}
	data, err := r.Pack()
	if err != nil {
		return nil
	}
	return data
}

// dns answers questions from the zone, UDP and TCP, and keeps them as they came.
func (r *recorder) dns(t *testing.T, address netip.AddrPort, zone func(name string) []netip.Addr) {
	t.Helper()
	var pc net.PacketConn
	var ln net.Listener
	r.inside(t, func() (err error) {
		if pc, err = net.ListenPacket("udp", address.String()); err == nil {
			ln, err = net.Listen("tcp", address.String())
		}
		return err
	})
	r.keep(pc)
	r.keep(ln)
	r.wg.Go(func() {
		buffer := make([]byte, 1<<16)
		for {
			n, peer, err := pc.ReadFrom(buffer)
			if err != nil {
				return
			}
			r.add(r.begin("dns udp "+address.String(), peer.String()), buffer[:n])
			if data := answerOf(buffer[:n], zone); data != nil {
				_, _ = pc.WriteTo(data, peer)
			}
		}
	})
	r.wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			r.keep(conn)
			r.wg.Go(func() {
				defer conn.Close()
				c := dns.Conn{Conn: r.recorded("dns tcp "+address.String(), conn)}
				for {
					question, err := c.ReadMsgHeader(nil)
					if err != nil {
						return
					}
					if data := answerOf(question, zone); data != nil {
						_, _ = c.Write(data)
					}
				}
			})
		}
	})
}

// recorded is a connection whose every octet is kept as it is read.
func (r *recorder) recorded(server string, conn net.Conn) net.Conn {
	return &recordedConn{Conn: conn, r: r, part: r.begin(server, conn.RemoteAddr().String())}
}

type recordedConn struct {
	net.Conn
	r    *recorder
	part int
}

func (c *recordedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.r.add(c.part, b[:n])
	return n, err
}

type recordedListener struct {
	net.Listener
	r *recorder
}

func (l recordedListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return l.r.recorded("http "+l.Addr().String(), conn), nil
}

// http says to every request whose it was, and keeps what it was sent.
func (r *recorder) http(t *testing.T, address string) {
	t.Helper()
	var ln net.Listener
	r.inside(t, func() (err error) {
		ln, err = new(net.ListenConfig).Listen(context.Background(), "tcp", address)
		return err
	})
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		buffer := make([]byte, 1<<12)
		for {
			if _, err := q.Body.Read(buffer); err != nil {
				break
			}
		}
		_, _ = w.Write([]byte("for " + q.Host + "\n"))
	})}
	r.keep(server)
	r.wg.Go(func() { _ = server.Serve(recordedListener{ln, r}) })
}
