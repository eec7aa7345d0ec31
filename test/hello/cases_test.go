// SPDX-License-Identifier: Apache-2.0

package hello

import (
	"bytes"
	"slices"
	"strings"
	"testing"
)

// with is a hello with these extensions.
func with(extensions ...[]byte) []byte { return sketch{extensions: extensions}.payload() }

// changed is payload with other bytes from a place on.
func changed(payload []byte, at int, to ...byte) []byte {
	copy(payload[at:], to)
	return payload
}

func TestRead(t *testing.T) {
	const name = "api.example.com"
	var (
		p     = newParser(t)
		good  = with(hosts(name))
		outer = extension(0xfe0d, []byte{0, 0, 1, 0, 1, 7, 0, 0, 0, 1, 9})
		inner = extension(0xfe0d, []byte{1})
		many  = slices.Repeat([][]byte{extension(0x1a1a, nil)}, 700)
		long  = strings.Repeat("0123456789abcdef.", 14) + "ninebytes"
	)
	if len(long) != 247 {
		t.Fatal(len(long))
	}
	is := func(name string) answer { return answer{named, name} }
	for _, c := range []struct {
		about   string
		payload []byte
		want    answer
	}{
		{"plain", good, is(name)},
		{"with much session id, many suites and methods", sketch{session: make([]byte, 32), suites: make([]byte, 600), methods: make([]byte, 255), extensions: [][]byte{hosts(name)}}.payload(), is(name)},
		{"extensions before and after", with(extension(16, []byte("\x00\x03\x02h2")), hosts(name), extension(43, []byte("\x02\x03\x04"))), is(name)},
		{"many extensions before", with(append(slices.Clone(many), hosts(name))...), is(name)},
		{"data after the record", slices.Concat(good, []byte("early data")), is(name)},
		{"another hello after the record", slices.Concat(good, with(hosts("evil.test"))), is(name)},
		{"TLS 1.0 record", changed(slices.Clone(good), 1, 3, 1), is(name)},
		{"TLS 1.2 record", changed(slices.Clone(good), 1, 3, 3), is(name)},
		{"TLS 1.0 hello", changed(slices.Clone(good), 9, 3, 1), is(name)},

		{"upper case", with(hosts("API.Example.COM")), is(name)},
		{"trailing dot", with(hosts(name + ".")), is(name)},
		{"two trailing dots", with(hosts(name + "..")), answer{verdict: bad}},
		{"dot alone", with(hosts(".")), answer{verdict: bad}},
		{"leading dot", with(hosts(".example.com")), answer{verdict: bad}},
		{"dots in a row", with(hosts("a..example.com")), answer{verdict: bad}},
		{"one character", with(hosts("x")), is("x")},
		{"one label", with(hosts("localhost")), is("localhost")},
		{"underscores, hyphens, digits", with(hosts("_sip-1.xn--bcher-kva.test")), is("_sip-1.xn--bcher-kva.test")},
		{"IPv4 address", with(hosts("192.0.2.7")), is("192.0.2.7")},
		{"IPv6 address", with(hosts("2001:db8::7")), answer{verdict: bad}},
		{"longest name", with(hosts(long)), is(long)},
		{"longest name and a dot", with(hosts(long + ".")), is(long)},
		{"a byte more", with(hosts(long + "x")), answer{verdict: bad}},
		{"far too long", with(hosts(strings.Repeat("a.", 1000) + "a")), answer{verdict: bad}},
		{"no name in the host", with(hosts("")), answer{verdict: bad}},
		{"zero byte inside", with(hosts("api.example.com\x00.evil.test")), answer{verdict: bad}},
		{"zero byte at the end", with(hosts("api.example.com\x00")), answer{verdict: bad}},
		{"space", with(hosts("api.example.com ")), answer{verdict: bad}},
		{"UTF-8", with(hosts("bücher.example.com")), answer{verdict: bad}},
		{"wildcard", with(hosts("*.example.com")), answer{verdict: bad}},
		{"brackets next to letters", with(hosts("a@b")), answer{verdict: bad}},

		{"two hosts in the list", with(hosts(name, "evil.test")), answer{verdict: bad}},
		{"the same host twice", with(hosts(name, name)), answer{verdict: bad}},
		{"two server_name extensions", with(hosts(name), hosts("evil.test")), answer{verdict: bad}},
		{"the second of them empty", with(hosts(name), extension(0, nil)), answer{verdict: bad}},
		{"no hosts in the list", with(hosts()), answer{verdict: bad}},
		{"empty server_name", with(extension(0, nil)), answer{verdict: bad}},
		{"name of another type", with(extension(0, vector(2, []byte("\x01\x00\x03abc")))), answer{verdict: bad}},
		{"list shorter than its extension", with(extension(0, append(vector(2, []byte("\x00\x00\x03abc")), 'x'))), answer{verdict: bad}},
		{"list longer than its extension", with(extension(0, []byte("\x00\x07\x00\x00\x03abc"))), answer{verdict: bad}},
		{"host shorter than its list", with(extension(0, vector(2, []byte("\x00\x00\x03abcd")))), answer{verdict: bad}},
		{"host longer than its list", with(extension(0, vector(2, []byte("\x00\x00\x05abcd")))), answer{verdict: bad}},

		{"encrypted hello after the name", with(hosts(name), outer), answer{verdict: encrypted}},
		{"encrypted hello before the name", with(outer, hosts(name)), answer{verdict: encrypted}},
		{"encrypted hello without a name", with(outer), answer{verdict: encrypted}},
		{"encrypted hello last of many", with(append(append([][]byte{hosts(name)}, many...), outer)...), answer{verdict: encrypted}},
		{"encrypted hello of no type", with(hosts(name), extension(0xfe0d, nil)), answer{verdict: encrypted}},
		{"encrypted hello of an unknown type", with(hosts(name), extension(0xfe0d, []byte{2})), answer{verdict: encrypted}},
		{"inner hello", with(hosts(name), inner), is(name)},
		{"inner hello with more", with(hosts(name), extension(0xfe0d, []byte{1, 0})), answer{verdict: encrypted}},
		{"inner and outer", with(inner, hosts(name), outer), answer{verdict: encrypted}},

		{"no extensions", sketch{bare: true}.payload(), answer{verdict: noName}},
		{"empty list of extensions", with(), answer{verdict: noName}},
		{"extensions without a name", with(many...), answer{verdict: noName}},

		{"one byte", []byte{22}, answer{verdict: incomplete}},
		{"alert record", changed(slices.Clone(good), 0, 21), answer{verdict: notTLS}},
		{"SSL 3.0", changed(slices.Clone(good), 1, 3, 0), answer{verdict: notTLS}},
		{"record of TLS 1.3", changed(slices.Clone(good), 1, 3, 4), answer{verdict: notTLS}},
		{"record of another major version", changed(slices.Clone(good), 1, 2, 3), answer{verdict: notTLS}},
		{"DTLS", changed(slices.Clone(good), 1, 0xfe, 0xfd), answer{verdict: notTLS}},
		{"SSLv2 hello", append([]byte("\x80\x2e\x01\x03\x01\x00\x15\x00\x00\x00\x10"), make([]byte, 37)...), answer{verdict: notTLS}},
		{"HTTP", []byte("GET / HTTP/1.1\r\nHost: api.example.com\r\n\r\n"), answer{verdict: notTLS}},
		{"STARTTLS before the hello", append([]byte("STARTTLS\r\n"), good...), answer{verdict: notTLS}},
		{"proxy protocol before the hello", append([]byte("PROXY TCP4 192.0.2.1 192.0.2.2 1 443\r\n"), good...), answer{verdict: notTLS}},
		{"zeros", make([]byte, 100), answer{verdict: notTLS}},

		{"server hello", changed(slices.Clone(good), 5, 2), answer{verdict: bad}},
		{"hello request", record(message(0, nil)), answer{verdict: bad}},
		{"empty record before the hello", append(record(nil), good...), answer{verdict: bad}},
		{"record of one byte", append(record(good[5:6]), record(good[6:])...), answer{verdict: bad}},
		{"hello in two records", append(record(good[5:60]), record(good[60:])...), answer{verdict: bad}},
		{"hello shorter than its record", record(append(slices.Clone(good[5:]), 0)), answer{verdict: bad}},
		{"two hellos in a record", record(append(slices.Clone(good[5:]), good[5:]...)), answer{verdict: bad}},
		{"hello of 16 MB", changed(slices.Clone(good), 6, 1), answer{verdict: bad}},
		{"hello shorter than what it holds", changed(slices.Clone(good), 8, good[8]-1), answer{verdict: bad}},
		{"list of extensions shorter than what it holds", changed(slices.Clone(good), 53, good[53]-1), answer{verdict: bad}},
		{"header of a record too short for a hello", []byte{22, 3, 1, 0, 44}, answer{verdict: bad}},
		{"header of a record too long", []byte{22, 3, 1, 0x40, 1}, answer{verdict: bad}},
		{"record too long", changed(slices.Clone(good), 3, 0x40, 0x01), answer{verdict: bad}},
		{"hello of SSL 3.0", changed(slices.Clone(good), 9, 3, 0), answer{verdict: bad}},
		{"hello of TLS 1.3 by its old field", changed(slices.Clone(good), 9, 3, 4), answer{verdict: bad}},
		{"hello of another major version", changed(slices.Clone(good), 9, 2, 3), answer{verdict: bad}},
		{"session id too long", sketch{session: make([]byte, 33), extensions: [][]byte{hosts(name)}}.payload(), answer{verdict: bad}},
		{"no suites", sketch{suites: []byte{}, extensions: [][]byte{hosts(name)}}.payload(), answer{verdict: bad}},
		{"half a suite", sketch{suites: make([]byte, 3), extensions: [][]byte{hosts(name)}}.payload(), answer{verdict: bad}},
		{"no methods", sketch{methods: []byte{}, extensions: [][]byte{hosts(name)}}.payload(), answer{verdict: bad}},
		{"a byte after the extensions", record(message(1, append(slices.Clone(good[9:]), 0))), answer{verdict: bad}},
		{"a byte after the methods", record(message(1, append(sketch{bare: true}.payload()[9:], 0))), answer{verdict: bad}},
		{"an extension without length", with(hosts(name), []byte{0, 1, 0}), answer{verdict: bad}},
		{"an extension longer than the rest", with(hosts(name), []byte{0, 1, 0, 1}), answer{verdict: bad}},
		{"an extension far longer than the rest", with(hosts(name), []byte{0, 1, 0xff, 0xff}), answer{verdict: bad}},
		{"suites longer than the rest", changed(slices.Clone(good), 44, 0xff, 0xfe), answer{verdict: bad}},
	} {
		t.Run(c.about, func(t *testing.T) {
			if got := reference(c.payload); got != c.want {
				t.Errorf("reference: %v, want %v", got, c.want)
			}
			if len(c.payload) > maxPayload {
				t.Fatalf("%d bytes", len(c.payload))
			}
			if got := p.read(t, c.payload); got != c.want {
				t.Errorf("%v, want %v", got, c.want)
			}
		})
	}
}

// What is there of a hello is never taken for all of it.
func checkPrefixes(t *testing.T, p *parser, payload []byte) {
	t.Helper()
	for n := 1; n < len(payload); n++ {
		if got := p.read(t, payload[:n]); got.verdict != incomplete {
			t.Fatalf("first %d of %d bytes: %v", n, len(payload), got)
		}
	}
}

// check compares the kernel's reading with the reference's, and with a server's where that would hear another name.
func check(t *testing.T, p *parser, payload []byte) {
	t.Helper()
	got := p.read(t, payload)
	if want := reference(payload); got != want {
		t.Fatalf("%v, want %v: % x", got, want, payload)
	}
	name, ok := seenByServer(payload)
	if !ok {
		return
	}
	switch got.verdict {
	case notTLS, bad, encrypted: // stricter than the server
	case named, noName:
		if !strings.EqualFold(name, got.name) {
			t.Fatalf("%v, and a server hears %q: % x", got, name, payload)
		}
	default:
		t.Fatalf("%v, and a server hears %q: % x", got, name, payload)
	}
}

// Every byte of every recorded hello, a little and entirely different.
func TestChangedBytes(t *testing.T) {
	p := newParser(t)
	for _, r := range recordings(t) {
		t.Run(r.client, func(t *testing.T) {
			for i := range r.payload {
				for _, change := range []byte{0x01, 0xff} {
					payload := bytes.Clone(r.payload)
					payload[i] ^= change
					check(t, p, payload)
				}
			}
		})
	}
}

func FuzzHello(f *testing.F) {
	p := newParser(f)
	for _, r := range recordings(f) {
		f.Add(r.payload)
	}
	f.Add(with(extension(0xfe0d, []byte{1}), hosts("a.test")))
	f.Add(sketch{bare: true}.payload())
	f.Fuzz(func(t *testing.T, payload []byte) {
		if len(payload) == 0 || len(payload) > maxPayload {
			return
		}
		check(t, p, payload)
		check(t, p, mended(payload))
	})
}

// mended has the outer lengths of payload right, so that what is mutated is read.
func mended(payload []byte) []byte {
	if len(payload) < 44 {
		return payload
	}
	return record(message(1, payload[9:]))
}
