// SPDX-License-Identifier: Apache-2.0

package names

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"

	"agentguard.dev/agentguard/internal/netns"
	"agentguard.dev/agentguard/internal/policy"
)

// errImpostor is a trusted resolver whose socket is a task's.
var errImpostor = errors.New("a task listens there")

// attempts is how many resolvers there is time for if none answers.
const attempts = 3

// ask puts q to one resolver after the other until one answers, and keeps the answer.
func (s *Server) ask(ctx context.Context, from Upstream, q question) (*answer, error) {
	resolvers := from.Resolvers
	var failed error
	for try := range max(attempts, len(resolvers)) {
		resolver := resolvers[try%len(resolvers)]
		a, err := s.askOne(ctx, from.From, resolver, q)
		if err == nil {
			now := time.Now()
			a.upstream = resolver
			if resolver != resolvers[0] {
				a.ttl = min(a.ttl, s.config.MinTTL) // the preferred one may be back soon, and know better
			}
			a.expires = now.Add(a.ttl)
			s.cache.put(cacheKey{from.From.Cookie(), resolvers[0], q}, a, now)
			return a, nil
		}
		failed = fmt.Errorf("resolver %s: %w", resolver, err)
		if ctx.Err() != nil {
			break
		}
	}
	return nil, failed
}

// askOne gives one resolver its share of the time.
func (s *Server) askOne(ctx context.Context, from *netns.Handle, resolver netip.AddrPort, q question) (*answer, error) {
	ctx, cancel := context.WithTimeout(ctx, s.config.Timeout/attempts)
	defer cancel()
	m, err := s.consult(ctx, from, resolver, q)
	if err != nil {
		return nil, err
	}
	return digest(q, m, s.config.MinTTL, s.config.MaxTTL)
}

// consult puts q to one resolver, by UDP and, if the answer is too large for that, by TCP.
// Nothing of the query is the task's but name and type.
func (s *Server) consult(ctx context.Context, from *netns.Handle, resolver netip.AddrPort, q question) (*dns.Msg, error) {
	m := &dns.Msg{
		MsgHdr:   dns.MsgHdr{Id: dns.Id(), RecursionDesired: true},
		Question: []dns.Question{{Name: q.name + ".", Qtype: q.qtype, Qclass: dns.ClassINET}},
	}
	m.SetEdns0(ednsSize, false)
	answer, err := s.roundTrip(ctx, from, policy.UDP, resolver, m)
	if err == nil && answer.Rcode == dns.RcodeFormatError {
		m.Extra = nil // a resolver from before EDNS
		answer, err = s.roundTrip(ctx, from, policy.UDP, resolver, m)
	}
	if err == nil && answer.Truncated {
		answer, err = s.roundTrip(ctx, from, policy.TCP, resolver, m)
	}
	if err != nil {
		return nil, err
	}
	if answer.Rcode != dns.RcodeSuccess && answer.Rcode != dns.RcodeNameError {
		return nil, errors.New(rcodeName(answer.Rcode))
	}
	return answer, nil
}

// roundTrip sends m and waits for what answers it.
func (s *Server) roundTrip(
	ctx context.Context, from *netns.Handle, proto policy.Proto, resolver netip.AddrPort, m *dns.Msg,
) (*dns.Msg, error) {
	if !s.authority.Genuine(from.Cookie(), proto, resolver) {
		return nil, errImpostor
	}
	conn, err := connect(ctx, from, proto, resolver)
	if err != nil {
		return nil, plain(err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	co := dns.Conn{Conn: conn, UDPSize: maxSize}
	if err := co.WriteMsg(m); err != nil {
		return nil, plain(err)
	}
	for {
		answer, err := co.ReadMsg()
		switch {
		case answer == nil: // the socket's error
			return nil, plain(err)
		case !answers(answer, m) && proto == policy.UDP:
			continue // of somebody who hoped to be faster
		case !answers(answer, m):
			return nil, errors.New("an answer to another question")
		case err != nil:
			return nil, errors.New("an answer that cannot be read")
		case !s.authority.Genuine(from.Cookie(), proto, resolver):
			return nil, errImpostor
		}
		return answer, nil
	}
}

// answers reports whether a is an answer to m: the socket is connected, so that it
// came from whom it was sent to.
func answers(a, m *dns.Msg) bool {
	if a.Id != m.Id || !a.Response || a.Opcode != dns.OpcodeQuery {
		return false
	}
	if len(a.Question) == 0 && a.Rcode == dns.RcodeFormatError {
		return true // who cannot read a question does not repeat it
	}
	want := m.Question[0]
	return len(a.Question) == 1 && a.Question[0].Qtype == want.Qtype && a.Question[0].Qclass == want.Qclass &&
		strings.EqualFold(a.Question[0].Name, want.Name)
}

// connect opens a socket to a resolver, outside of any guard. The kernel chooses the port.
func connect(ctx context.Context, from *netns.Handle, proto policy.Proto, resolver netip.AddrPort) (conn net.Conn, err error) {
	var d net.Dialer
	err = from.Do(func() error {
		conn, err = d.DialContext(ctx, proto.String(), resolver.String())
		return err
	})
	return conn, err
}

// plain is what an error of the network comes to, without the addresses of sockets.
func plain(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		if op.Timeout() {
			return errors.New("no answer in time")
		}
		return op.Err
	}
	return err
}

func rcodeName(rcode int) string {
	if s, ok := dns.RcodeToString[rcode]; ok {
		return s
	}
	return fmt.Sprintf("RCODE%d", rcode)
}
