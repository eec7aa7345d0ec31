// SPDX-License-Identifier: Apache-2.0

// Package hello tests bpf/hello.h, the kernel's reader of TLS ClientHellos, by itself: in a program that is not part of
// the product, on packets made here and on those of real sockets, beside what real clients send and another reader says.
package hello

import (
	"encoding/binary"
	"flag"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
)

//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -cflags "-O2 -g -Wall -Werror -mcpu=v3 -I/usr/include/x86_64-linux-gnu" -type hello_verdict -type reading parser hello.bpf.c

var update = flag.Bool("update", false, "record anew in testdata what this machine's TLS clients send")

type verdict = parserHelloVerdict

const (
	notTLS     = parserHelloVerdictHELLO_NOT_TLS
	bad        = parserHelloVerdictHELLO_BAD
	incomplete = parserHelloVerdictHELLO_INCOMPLETE
	noName     = parserHelloVerdictHELLO_NO_NAME
	encrypted  = parserHelloVerdictHELLO_ECH
	named      = parserHelloVerdictHELLO_NAMED
)

// answer is what a reader makes of a payload.
type answer struct {
	verdict verdict
	name    string // of named
}

func (a answer) String() string {
	word := map[verdict]string{
		notTLS: "not TLS", bad: "bad", incomplete: "incomplete", noName: "no name", encrypted: "encrypted", named: "named",
	}[a.verdict]
	return strings.TrimSpace(word + " " + a.name)
}

// parser is the kernel's reader.
type parser struct {
	objs parserObjects
}

func newParser(t testing.TB) *parser {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: loads programs into the kernel")
	}
	p := new(parser)
	if err := loadParserObjects(&p.objs, nil); err != nil {
		t.Fatalf("%+v", err)
	}
	t.Cleanup(func() { p.objs.Close() })
	return p
}

// maxPayload is about what fits into the page of a test run on every kernel.
const maxPayload = 3500

// read has the kernel read payload as the first one of a connection.
func (p *parser) read(t testing.TB, payload []byte) answer {
	t.Helper()
	before := p.reading(t).Packets
	if _, err := p.objs.ReadPayload.Run(&ebpf.RunOptions{Data: frame(payload)}); err != nil {
		t.Fatalf("run with %d bytes: %v", len(payload), err)
	}
	r := p.reading(t)
	if r.Packets != before+1 {
		t.Fatalf("the program has read %d payloads, not one", r.Packets-before)
	}
	return r.answer(t)
}

func (p *parser) reading(t testing.TB) reading {
	t.Helper()
	var r reading
	if err := p.objs.Readings.Lookup(uint32(0), &r); err != nil {
		t.Fatal(err)
	}
	return r
}

type reading parserReading

// answer undoes what makes the name a key.
func (r reading) answer(t testing.TB) answer {
	t.Helper()
	a := answer{verdict: r.Verdict}
	length := int(r.Hello.NameLength)
	if r.Verdict != named {
		if length != 0 {
			t.Fatalf("%v, and a name of %d bytes", a, length)
		}
		return a
	}
	if length == 0 || length >= len(r.Name.Text) || r.Name.Text[length] != 0 {
		t.Fatalf("a name of %d bytes in %d", length, r.Name.Text)
	}
	var b strings.Builder
	for _, c := range slices.Backward(r.Name.Text[:length]) {
		b.WriteByte(byte(c))
	}
	a.name = b.String()
	return a
}

// frame puts headers before a payload: Ethernet, IPv4, TCP with 12 bytes of options.
func frame(payload []byte) []byte {
	const ethernet, ip, tcp = 14, 20, 32
	b := make([]byte, ethernet+ip+tcp, ethernet+ip+tcp+len(payload))
	binary.BigEndian.PutUint16(b[12:], 0x0800)
	h := b[ethernet:]
	h[0] = 4<<4 | ip/4
	binary.BigEndian.PutUint16(h[2:], uint16(ip+tcp+len(payload)))
	h[8], h[9] = 64, 6
	copy(h[12:], []byte{192, 0, 2, 1, 192, 0, 2, 2})
	h[ip+12] = tcp / 4 << 4
	return append(b, payload...)
}
