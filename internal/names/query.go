// SPDX-License-Identifier: Apache-2.0

package names

import (
	"net/netip"
	"strconv"
	"strings"

	"github.com/miekg/dns"
)

// headerSize is that of every DNS message.
const headerSize = 12

// question is what upstream is asked: nothing else of a query gets there.
type question struct {
	name  string // lower case, no trailing dot; empty if it is no host name
	qtype uint16
}

// query is what is taken from a client's message.
type query struct {
	question
	asked string // the name as it came, with its case and trailing dot: the answer repeats it
	class uint16
	id    uint16
	op    int
	rd    bool
	edns  bool
	do    bool
	size  int // of the largest answer that the client takes by UDP
}

// The sizes of answers by UDP. A client may ask for more than any network would
// carry, but not for everything.
const (
	minSize = dns.MinMsgSize
	maxSize = 4096
)

// read takes a client's message apart. Unless rcode is success it is answered with that alone;
// what is not a query at all is not answered.
func read(wire []byte) (q query, rcode int, ok bool) {
	if len(wire) < headerSize || wire[2]&0x80 != 0 {
		return q, 0, false
	}
	q.id = uint16(wire[0])<<8 | uint16(wire[1])
	q.op = int(wire[2]>>3) & 0xf
	q.rd = wire[2]&1 != 0
	q.size = minSize
	if q.op != dns.OpcodeQuery {
		return q, dns.RcodeNotImplemented, true
	}
	var m dns.Msg
	if err := m.Unpack(wire); err != nil || len(m.Question) != 1 || len(m.Answer) > 0 || len(m.Ns) > 0 {
		return q, dns.RcodeFormatError, true
	}
	q.asked, q.qtype, q.class = m.Question[0].Name, m.Question[0].Qtype, m.Question[0].Qclass
	q.name, _ = canonical(q.asked)
	if opts(m.Extra) > 1 {
		return q, dns.RcodeFormatError, true
	}
	if opt := m.IsEdns0(); opt != nil {
		q.edns, q.do = true, opt.Do()
		q.size = min(max(int(opt.UDPSize()), minSize), maxSize)
		if opt.Version() != 0 {
			return q, dns.RcodeBadVers, true
		}
	}
	if q.class != dns.ClassINET {
		return q, dns.RcodeNotImplemented, true
	}
	return q, dns.RcodeSuccess, true
}

// opts counts OPT records, of which RFC 6891 allows one.
func opts(rrs []dns.RR) (n int) {
	for _, rr := range rrs {
		if rr.Header().Rrtype == dns.TypeOPT {
			n++
		}
	}
	return n
}

// host is how a record shows the name of q.
func (q *query) host() string {
	if q.name != "" {
		return q.name
	}
	return strings.ToLower(strings.TrimSuffix(q.asked, "."))
}

// canonical returns a name of a message in lower case, without the trailing dot.
// False if it holds anything but letters, digits, hyphens and underscores: that is
// no host that a rule could name.
func canonical(name string) (string, bool) {
	name = strings.TrimSuffix(name, ".")
	upper := false
	for i := range len(name) {
		switch c := name[i]; {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9', c == '-', c == '_', c == '.':
		case c >= 'A' && c <= 'Z':
			upper = true
		default:
			return "", false
		}
	}
	if upper {
		name = strings.ToLower(name)
	}
	return name, name != ""
}

// subject is the host that q is about: the name itself, or what follows the
// labels of a service.
func (q question) subject() string {
	service, rest, _ := strings.Cut(q.name, ".")
	proto, host, ok := strings.Cut(rest, ".")
	if !ok || len(service) < 2 || service[0] != '_' {
		return q.name
	}
	switch q.qtype {
	case dns.TypeSRV:
		// A service's name has 15 characters at most (RFC 6335): no room for
		// telling its servers much.
		if len(service) <= 16 && (proto == "_tcp" || proto == "_udp" || proto == "_tls" || proto == "_sctp") {
			return host
		}
	case dns.TypeHTTPS, dns.TypeSVCB:
		if _, err := strconv.ParseUint(service[1:], 10, 16); err == nil && (proto == "_https" || proto == "_http" || proto == "_wss") {
			return host
		}
	}
	return q.name
}

// reverse returns the address that a PTR question is about.
func (q question) reverse() (netip.Addr, bool) {
	if q.qtype != dns.TypePTR {
		return netip.Addr{}, false
	}
	if name, ok := strings.CutSuffix(q.name, ".in-addr.arpa"); ok {
		labels := strings.Split(name, ".")
		if len(labels) != 4 {
			return netip.Addr{}, false
		}
		addr, err := netip.ParseAddr(labels[3] + "." + labels[2] + "." + labels[1] + "." + labels[0])
		return addr, err == nil
	}
	name, ok := strings.CutSuffix(q.name, ".ip6.arpa")
	if !ok || len(name) != 63 {
		return netip.Addr{}, false
	}
	var b [16]byte
	for i := range 32 {
		// The last nibble stands first.
		digit, err := strconv.ParseUint(name[2*i:2*i+1], 16, 8)
		if err != nil || i < 31 && name[2*i+1] != '.' {
			return netip.Addr{}, false
		}
		b[15-i/2] |= byte(digit) << (4 * (i % 2))
	}
	return netip.AddrFrom16(b), true
}

// typeName is how people write a type.
func typeName(qtype uint16) string {
	if s, ok := dns.TypeToString[qtype]; ok {
		return s
	}
	return "TYPE" + strconv.Itoa(int(qtype))
}
