// SPDX-License-Identifier: Apache-2.0

package names

import (
	"encoding/binary"
	"fmt"

	"github.com/miekg/dns"
)

// ednsSize is the size of UDP messages that this resolver takes, from clients
// and from upstream: one that no path fragments.
const ednsSize = 1232

// maxMessage is the size of the largest message, by TCP.
const maxMessage = 65535

// section is the records of an answer, packed once for all who ask the same. All of
// them have the same TTL.
type section struct {
	wire    []byte // as it follows the question
	records []span
	answers int // so many of the records are answers, the others are authority
}

// span is one record in a section.
type span struct{ ttl, end int }

// pack packs the records of an answer to a question for name.
func pack(name string, answers, authority []dns.RR) (section, error) {
	size := headerSize + len(name) + 2 + 4
	for _, rr := range answers {
		size += dns.Len(rr)
	}
	for _, rr := range authority {
		size += dns.Len(rr)
	}
	buf := make([]byte, size)
	compression := make(map[string]int)
	off, err := dns.PackDomainName(dns.Fqdn(name), buf, headerSize, compression, true)
	if err != nil {
		return section{}, fmt.Errorf("pack %s: %w", name, err)
	}
	off += 4 // type and class
	start := off
	s := section{answers: len(answers), records: make([]span, 0, len(answers)+len(authority))}
	for i := range len(answers) + len(authority) {
		rr := dns.RR(nil)
		if i < len(answers) {
			rr = answers[i]
		} else {
			rr = authority[i-len(answers)]
		}
		end, err := dns.PackRR(rr, buf, off, compression, true)
		if err != nil {
			return section{}, fmt.Errorf("pack a record of %s: %w", name, err)
		}
		s.records = append(s.records, span{ttl: afterName(buf, off) + 4 - start, end: end - start})
		off = end
	}
	s.wire = buf[start:off:off]
	return s, nil
}

// afterName returns where the name at off of a packed message ends.
func afterName(buf []byte, off int) int {
	for {
		switch c := int(buf[off]); {
		case c == 0:
			return off + 1
		case c >= 0xc0:
			return off + 2
		default:
			off += 1 + c
		}
	}
}

// reply is what a client is told.
type reply struct {
	rcode int
	ttl   uint32
	section
	code uint16 // an Extended DNS Error, if there is a text
	text string
}

// refusal is a reply without records.
func refusal(rcode int, code uint16, format string, args ...any) reply {
	return reply{rcode: rcode, code: code, text: "agentguard: " + fmt.Sprintf(format, args...)}
}

// write packs r as the answer to q into buf, in at most size bytes: what does not
// fit is left out, and the client told to ask by TCP.
func (r *reply) write(buf []byte, q *query, size int) []byte {
	buf = append(buf[:0], make([]byte, headerSize)...)
	binary.BigEndian.PutUint16(buf, q.id)
	buf[2] = 0x80 | byte(q.op)<<3
	if q.rd {
		buf[2] |= 0x01
	}
	buf[3] = 0x80 | byte(r.rcode)&0xf // recursion is available
	if q.asked != "" {
		var name [256]byte
		if n, err := dns.PackDomainName(q.asked, name[:], 0, nil, false); err == nil {
			buf = append(buf, name[:n]...)
			buf = binary.BigEndian.AppendUint16(buf, q.qtype)
			buf = binary.BigEndian.AppendUint16(buf, q.class)
			buf[5] = 1
		}
	}
	room := size - len(buf)
	if q.edns {
		room -= r.optSize()
	}
	fit := len(r.records)
	for fit > 0 && r.records[fit-1].end > room {
		fit--
	}
	if fit < len(r.records) {
		buf[2] |= 0x02
	}
	if fit > 0 {
		start := len(buf)
		buf = append(buf, r.wire[:r.records[fit-1].end]...)
		for _, record := range r.records[:fit] {
			binary.BigEndian.PutUint32(buf[start+record.ttl:], r.ttl)
		}
		answers := min(fit, r.answers)
		binary.BigEndian.PutUint16(buf[6:], uint16(answers))
		binary.BigEndian.PutUint16(buf[8:], uint16(fit-answers))
	}
	if q.edns {
		buf = r.appendOpt(buf, q)
		buf[11] = 1
	}
	return buf
}

// maxText keeps the smallest message large enough for every error.
const maxText = 160

func (r *reply) optSize() int {
	if r.text == "" {
		return 11
	}
	return 11 + 6 + min(len(r.text), maxText)
}

// appendOpt appends an OPT record (RFC 6891), with an Extended DNS Error (RFC
// 8914) if there is one.
func (r *reply) appendOpt(buf []byte, q *query) []byte {
	buf = append(buf, 0) // the root
	buf = binary.BigEndian.AppendUint16(buf, dns.TypeOPT)
	buf = binary.BigEndian.AppendUint16(buf, ednsSize)
	flags := byte(0)
	if q.do {
		flags = 0x80
	}
	buf = append(buf, byte(r.rcode>>4), 0, flags, 0)
	buf = binary.BigEndian.AppendUint16(buf, uint16(r.optSize()-11))
	if r.text != "" {
		text := r.text[:min(len(r.text), maxText)]
		buf = binary.BigEndian.AppendUint16(buf, dns.EDNS0EDE)
		buf = binary.BigEndian.AppendUint16(buf, uint16(2+len(text)))
		buf = binary.BigEndian.AppendUint16(buf, r.code)
		buf = append(buf, text...)
	}
	return buf
}
