// SPDX-License-Identifier: Apache-2.0

package names

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"

	"agentguard.dev/agentguard/internal/policy"
)

// exchange is one question of a client, and its way to a reply.
type exchange struct {
	*station
	query
	asker Asker
	known bool // the asker is
	rcode int  // of a query that is none, else success
	began time.Time

	allowed bool     // a rule allows the very name that is asked for
	choice  Upstream // who may be asked, the preferred first
	quota   *quota
	done    func() // gives back a place among those who wait

	reply    reply
	verdict  string
	reason   string
	addrs    []netip.Addr
	upstream netip.AddrPort
	cached   bool
}

// receive reads a message from src. False if it deserves no answer.
func (st *station) receive(proto policy.Proto, src netip.AddrPort, wire []byte) (*exchange, bool) {
	e := &exchange{station: st, began: time.Now(), verdict: Allow}
	var ok bool
	if e.query, e.rcode, ok = read(wire); !ok {
		return nil, false
	}
	e.asker, e.known = st.server.authority.Asker(st.ns.Cookie(), proto, src)
	return e, true
}

func (e *exchange) deny(r reply) {
	e.reply, e.verdict = r, Deny
	e.reason = strings.TrimPrefix(r.text, "agentguard: ")
}

// fail is for what the rules allow and yet cannot be answered.
func (e *exchange) fail(code uint16, format string, args ...any) {
	e.reply = refusal(dns.RcodeServerFailure, code, format, args...)
	e.reason = strings.TrimPrefix(e.reply.text, "agentguard: ")
}

// now makes the reply, if that can be done without upstream. Else the caller calls
// wait.
func (e *exchange) now() bool {
	if !e.known {
		e.deny(refusal(dns.RcodeRefused, dns.ExtendedErrorCodeProhibited, "nobody here may ask"))
		return true
	}
	s := e.server
	e.quota = s.quotas.of(e.asker.Task)
	if !e.quota.rate.AllowN(e.began, 1) {
		e.deny(refusal(dns.RcodeRefused, dns.ExtendedErrorCodeProhibited, "more than %g questions a second", s.config.Rate))
		return true
	}
	if e.rcode != dns.RcodeSuccess {
		e.deny(refusal(e.rcode, dns.ExtendedErrorCodeNotSupported, "one question of class IN at a time"))
		return true
	}
	if !e.judge() {
		return true
	}
	e.choice = e.choose()
	if len(e.choice.Resolvers) == 0 {
		e.fail(dns.ExtendedErrorCodeNoReachableAuthority, "no resolver is trusted in this network namespace")
		return true
	}
	a := s.cache.get(cacheKey{e.choice.From.Cookie(), e.choice.Resolvers[0], e.question}, e.began)
	if a != nil && slices.Contains(e.choice.Resolvers, a.upstream) {
		e.cached = true
		e.conclude(a)
		return true
	}
	done, ok := s.quotas.takeWait(e.quota)
	if !ok {
		e.fail(dns.ExtendedErrorCodeOther, "too many questions wait for an answer")
		return true
	}
	e.done = done
	return false
}

// judge holds the question to the rules. False if that makes the reply.
func (e *exchange) judge() bool {
	if refused, ok := e.refuse(); ok {
		if !e.asker.Audit || e.name == "" || !isData(e.qtype) {
			e.deny(refused)
			return false
		}
		e.verdict, e.reason = WouldDeny, strings.TrimPrefix(refused.text, "agentguard: ")
	}
	return true
}

// refuse returns the reply to a question that the rules do not allow.
func (e *exchange) refuse() (reply, bool) {
	if e.name == "" {
		return refusal(dns.RcodeNameError, dns.ExtendedErrorCodeBlocked, "this is not the name of a host"), true
	}
	rules := e.asker.Rules
	e.allowed = rules.Allows(e.name)
	subject := e.subject()
	addr, isAddr := e.reverse()
	switch {
	case e.allowed:
	case subject != e.name && rules.Allows(subject):
	case isAddr && rules.MayReach(addr):
	case isAddr:
		return refusal(dns.RcodeNameError, dns.ExtendedErrorCodeBlocked, "no rule allows %s", addr), true
	default:
		return refusal(dns.RcodeNameError, dns.ExtendedErrorCodeBlocked, "no rule allows %s", e.name), true
	}
	if !e.server.types[e.qtype] {
		return refusal(dns.RcodeSuccess, dns.ExtendedErrorCodeNotSupported, "type %s is not served", typeName(e.qtype)), true
	}
	return reply{}, false
}

// choose returns who may be asked: the resolver that the client asked, then those of
// the station, as far as they are trusted.
func (e *exchange) choose() Upstream {
	from := e.station.upstream.Load()
	chosen := make([]netip.AddrPort, 0, 1+len(from.Resolvers))
	for i := -1; i < len(from.Resolvers); i++ {
		r := e.asker.To
		if i >= 0 {
			r = from.Resolvers[i]
		}
		r = unmap(r)
		if r.IsValid() && !slices.Contains(chosen, r) && e.asker.Rules.Trusts(r) {
			chosen = append(chosen, r)
		}
	}
	return Upstream{from.From, chosen}
}

// wait asks upstream and makes the reply. Who asks the same station the same meanwhile
// waits for the same answer.
func (e *exchange) wait() {
	defer e.done()
	s := e.server
	flight := fmt.Sprintf("%d %d %s %d %s", e.ns.Cookie(), e.choice.From.Cookie(), e.choice.Resolvers, e.qtype, e.name)
	made, err, _ := s.flights.Do(flight, func() (any, error) {
		ctx, cancel := context.WithTimeout(e.ctx, s.config.Timeout)
		defer cancel()
		return s.ask(ctx, e.choice, e.question)
	})
	if err != nil {
		e.fail(dns.ExtendedErrorCodeNoReachableAuthority, "%v", err)
		return
	}
	e.conclude(made.(*answer))
}

// conclude makes the reply of an answer of upstream: what of it this task may have, once
// the kernel knows it.
func (e *exchange) conclude(a *answer) {
	e.upstream = a.upstream
	left := min(max(a.expires.Sub(e.began), 0), a.ttl)
	e.reply = reply{rcode: a.rcode, ttl: uint32(left / time.Second), section: a.all}
	e.addrs = a.addrs
	learn := a.addrs
	if dropped := e.filter(a); len(dropped) > 0 {
		kept := a.without(dropped)
		learn = kept.addrs
		e.reason = dropped[0].reason
		if e.asker.Audit {
			e.verdict = WouldDeny
		} else if err := e.reduce(kept); err != nil {
			e.fail(dns.ExtendedErrorCodeOther, "%v", err)
			return
		}
	}
	if len(learn) == 0 || !e.allowed {
		return
	}
	// What is left of a cached answer may be next to nothing, which no client could use.
	if err := e.server.authority.Learn(e.asker, e.name, learn, max(left, e.server.config.MinTTL)); err != nil {
		e.fail(dns.ExtendedErrorCodeOther, "%v", err)
		e.addrs, e.verdict = nil, Deny
	}
}

// reduce makes the reply of what the task may have of an answer.
func (e *exchange) reduce(kept *answer) (err error) {
	e.addrs = kept.addrs
	if len(kept.records) == 0 {
		e.verdict = Deny
	}
	e.reply.code, e.reply.text = dns.ExtendedErrorCodeBlocked, "agentguard: "+e.reason
	e.reply.section, err = pack(kept.name, slices.Concat(kept.chain, kept.records), nil)
	return err
}

// drop is a record that a task may not have.
type drop struct {
	index  int // among the records of the answer
	reason string
}

// filter finds the records that the task may not have.
func (e *exchange) filter(a *answer) (dropped []drop) {
	rules := e.asker.Rules
	for i, addr := range a.addrs {
		what := "not a public address"
		if Public(addr) {
			if !rules.Local(addr) {
				continue
			}
			what = "this machine's"
		}
		if !rules.AllowsAddr(e.name, addr) {
			dropped = append(dropped, drop{i, fmt.Sprintf("%s points to %s, which is %s", e.name, addr, what)})
		}
	}
	if len(a.addrs) > 0 {
		return dropped
	}
	for i, rr := range a.records {
		target := ""
		switch rr := rr.(type) {
		case *dns.SRV:
			target = rr.Target
		case *dns.SVCB:
			target = rr.Target
		case *dns.HTTPS:
			target = rr.Target
		default:
			continue
		}
		// "." is the owner itself, or nobody.
		if target == "." || target == rr.Header().Name {
			continue
		}
		target, _ = canonical(target)
		if rules.Allows(target) {
			continue
		}
		dropped = append(dropped, drop{i, fmt.Sprintf("%s points to %s, which no rule allows", e.name, target)})
	}
	return dropped
}

// without returns the answer without some records, not packed.
func (a *answer) without(dropped []drop) *answer {
	kept := &answer{name: a.name, chain: a.chain}
	for i, rr := range a.records {
		if len(dropped) > 0 && dropped[0].index == i {
			dropped = dropped[1:]
			continue
		}
		kept.records = append(kept.records, rr)
		if i < len(a.addrs) {
			kept.addrs = append(kept.addrs, a.addrs[i])
		}
	}
	return kept
}

// record tells the authority what became of the question, and of sending the reply.
func (e *exchange) record(err error) {
	if !e.known {
		return
	}
	r := Record{
		Asker: e.asker, Host: e.host(), Type: typeName(e.qtype), Verdict: e.verdict, Reason: e.reason,
		Rcode: rcodeName(e.reply.rcode), Addrs: e.addrs, Upstream: e.upstream, Cached: e.cached, Took: time.Since(e.began),
	}
	if err != nil {
		r.Rcode = ""
	}
	e.server.authority.Query(r)
}
