// SPDX-License-Identifier: Apache-2.0

package names

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
)

const (
	maxChain    = 16   // aliases from a question to its records
	maxRecords  = 1024 // of one answer; more are left out
	maxAddrs    = 256  // the same, of addresses: each is entries in the kernel
	maxNegative = 5 * time.Minute
)

// answer is what upstream said, of all that counts: for every task, and filtered
// for none. It does not change.
type answer struct {
	name     string
	rcode    int
	chain    []dns.RR     // CNAMEs, each the alias of the one before; the first of name
	records  []dns.RR     // of the type of the question, at the end of the chain
	addrs    []netip.Addr // of the records, each in its place, if they are A or AAAA; IPv4 is not mapped
	all      section      // chain and records
	upstream netip.AddrPort
	ttl      time.Duration
	expires  time.Time
}

// digest takes from an answer of upstream to q what counts. Its TTL lies within
// the limits, or is that of a negative answer.
func digest(q question, m *dns.Msg, floor, ceiling time.Duration) (*answer, error) {
	a := &answer{name: q.name, rcode: m.Rcode}
	ttl := uint32(1<<31 - 1)
	at := dns.Fqdn(q.name)
	if q.qtype != dns.TypeCNAME {
		for {
			alias := aliasOf(m.Answer, at)
			if alias == nil {
				break
			}
			if len(a.chain) == maxChain {
				return nil, fmt.Errorf("more than %d aliases", maxChain)
			}
			target, ok := canonical(alias.Target)
			if !ok {
				break
			}
			ttl = min(ttl, lifetime(alias))
			a.chain = append(a.chain, &dns.CNAME{Hdr: header(at, dns.TypeCNAME), Target: target + "."})
			at = target + "."
		}
	}
	if a.rcode == dns.RcodeSuccess {
		for _, rr := range m.Answer {
			if len(a.records) == maxRecords {
				break
			}
			if !belongs(rr, at, q.qtype) {
				continue
			}
			if a.add(rr, header(at, q.qtype)) {
				ttl = min(ttl, lifetime(rr))
			}
		}
	}
	a.ttl = min(max(time.Duration(ttl)*time.Second, floor), ceiling)
	var authority []dns.RR
	if len(a.records) == 0 {
		a.ttl = 0
		if soa := authorityOf(m.Ns, at); soa != nil {
			negative := min(ttl, lifetime(soa), soa.Minttl, uint32(min(ceiling, maxNegative)/time.Second))
			a.ttl = time.Duration(negative) * time.Second
			// Who runs the zone is nobody's business; how long the answer holds is in here.
			authority = []dns.RR{&dns.SOA{
				Hdr: header(strings.ToLower(soa.Hdr.Name), dns.TypeSOA), Ns: ".", Mbox: ".", Serial: 1, Minttl: negative,
			}}
		}
	}
	var err error
	a.all, err = pack(q.name, slices.Concat(a.chain, a.records), authority)
	return a, err
}

func header(name string, rrtype uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: rrtype, Class: dns.ClassINET}
}

// belongs reports whether rr is a record of this type of the name.
func belongs(rr dns.RR, name string, rrtype uint16) bool {
	h := rr.Header()
	return h.Rrtype == rrtype && h.Class == dns.ClassINET && strings.EqualFold(h.Name, name)
}

func aliasOf(rrs []dns.RR, name string) *dns.CNAME {
	for _, rr := range rrs {
		if alias, ok := rr.(*dns.CNAME); ok && belongs(rr, name, dns.TypeCNAME) {
			return alias
		}
	}
	return nil
}

// authorityOf finds the SOA of a zone that name lies in.
func authorityOf(rrs []dns.RR, name string) *dns.SOA {
	for _, rr := range rrs {
		soa, ok := rr.(*dns.SOA)
		if !ok || soa.Hdr.Class != dns.ClassINET {
			continue
		}
		if _, ok := canonical(soa.Hdr.Name); (ok || soa.Hdr.Name == ".") && dns.IsSubDomain(soa.Hdr.Name, name) {
			return soa
		}
	}
	return nil
}

// lifetime is the TTL of a record; one with the top bit set is none (RFC 2181).
func lifetime(rr dns.RR) uint32 {
	if ttl := rr.Header().Ttl; ttl < 1<<31 {
		return ttl
	}
	return 0
}

// add takes over a record, rebuilt below header. False if there is nothing left of
// it, or if it was there already.
func (a *answer) add(rr dns.RR, header dns.RR_Header) bool {
	switch rr := rr.(type) {
	case *dns.A:
		addr, ok := netip.AddrFromSlice(rr.A.To4())
		return ok && a.addAddr(addr, &dns.A{Hdr: header, A: addr.AsSlice()})
	case *dns.AAAA:
		addr, ok := netip.AddrFromSlice(rr.AAAA.To16())
		return ok && a.addAddr(addr, &dns.AAAA{Hdr: header, AAAA: addr.AsSlice()})
	case *dns.CNAME:
		target, ok := canonical(rr.Target)
		if ok {
			a.records = append(a.records, &dns.CNAME{Hdr: header, Target: target + "."})
		}
		return ok
	case *dns.SRV:
		target, ok := targetOf(rr.Target)
		if ok {
			a.records = append(a.records, &dns.SRV{Hdr: header, Priority: rr.Priority, Weight: rr.Weight, Port: rr.Port, Target: target})
		}
		return ok
	case *dns.SVCB:
		svcb, ok := scrub(*rr, header)
		if ok {
			a.records = append(a.records, &svcb)
		}
		return ok
	case *dns.HTTPS:
		svcb, ok := scrub(rr.SVCB, header)
		if ok {
			a.records = append(a.records, &dns.HTTPS{SVCB: svcb})
		}
		return ok
	default:
		rr = dns.Copy(rr)
		*rr.Header() = header
		a.records = append(a.records, rr)
		return true
	}
}

func (a *answer) addAddr(addr netip.Addr, rr dns.RR) bool {
	addr = addr.Unmap()
	if len(a.addrs) == maxAddrs || slices.Contains(a.addrs, addr) {
		return false
	}
	a.addrs = append(a.addrs, addr)
	a.records = append(a.records, rr)
	return true
}

// targetOf is where an SRV, SVCB or HTTPS record points: a host, or "." itself.
func targetOf(name string) (string, bool) {
	if name == "." {
		return name, true
	}
	name, ok := canonical(name)
	return name + ".", ok
}

// scrub rebuilds an SVCB record with what a client may know. Address hints would
// lead it to addresses that the kernel does not know, ECH hides the name that the
// kernel checks, and of further parameters nobody knows what they do.
func scrub(rr dns.SVCB, header dns.RR_Header) (dns.SVCB, bool) {
	target, ok := targetOf(rr.Target)
	if !ok {
		return dns.SVCB{}, false
	}
	made := dns.SVCB{Hdr: header, Priority: rr.Priority, Target: target}
	if rr.Priority == 0 {
		return made, true // an alias has no parameters
	}
	var mandatory []dns.SVCBKey
	for _, v := range rr.Value {
		switch v := v.(type) {
		case *dns.SVCBAlpn, *dns.SVCBNoDefaultAlpn, *dns.SVCBPort:
			made.Value = append(made.Value, v)
		case *dns.SVCBMandatory:
			mandatory = v.Code
		}
	}
	// A client must not use a record without a parameter that is mandatory. Hints
	// are only ever help.
	var left []dns.SVCBKey
	for _, key := range mandatory {
		switch {
		case key == dns.SVCB_IPV4HINT || key == dns.SVCB_IPV6HINT:
		case slices.ContainsFunc(made.Value, func(v dns.SVCBKeyValue) bool { return v.Key() == key }):
			left = append(left, key)
		default:
			return dns.SVCB{}, false
		}
	}
	if len(left) > 0 {
		made.Value = append(made.Value, &dns.SVCBMandatory{Code: left})
	}
	return made, true
}
