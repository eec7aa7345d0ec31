// SPDX-License-Identifier: Apache-2.0

package hello

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"net"
	"strings"
	"time"
)

// reference reads a payload as bpf/hello.h should, written from the RFCs and its contract alone.
func reference(payload []byte) answer {
	start := []func(byte) bool{
		func(b byte) bool { return b == 22 },
		func(b byte) bool { return b == 3 },
		func(b byte) bool { return 1 <= b && b <= 3 },
	}
	for i, right := range start {
		if i == len(payload) {
			return answer{verdict: incomplete}
		}
		if !right(payload[i]) {
			return answer{verdict: notTLS}
		}
	}
	rest := fields(payload[3:])
	record, ok := rest.number(2)
	if !ok {
		return answer{verdict: incomplete}
	}
	if record < 4+41 || record > 1<<14 {
		return answer{verdict: bad}
	}
	whole := len(rest) >= record
	if whole {
		rest = rest[:record]
	}
	if kind, ok := rest.number(1); ok && kind != 1 {
		return answer{verdict: bad}
	}
	if length, ok := rest.number(3); ok && length != record-4 {
		return answer{verdict: bad}
	}
	if !whole {
		return answer{verdict: incomplete}
	}
	return rest.hello()
}

// fields are what is left to read of a message. A failed read leaves nothing.
type fields []byte

func (f *fields) take(n int) (fields, bool) {
	if n > len(*f) {
		*f = nil
		return nil, false
	}
	taken := (*f)[:n]
	*f = (*f)[n:]
	return taken, true
}

func (f *fields) number(size int) (int, bool) {
	b, ok := f.take(size)
	n := 0
	for _, c := range b {
		n = n<<8 | int(c)
	}
	return n, ok
}

// vector takes a field of variable size, that many bytes of length before it.
func (f *fields) vector(size int) (fields, bool) {
	n, ok := f.number(size)
	if !ok {
		return nil, false
	}
	return f.take(n)
}

func (f fields) hello() answer {
	version, _ := f.number(2)
	_, ok := f.take(32)
	if !ok || version < 0x0301 || version > 0x0303 {
		return answer{verdict: bad}
	}
	if session, ok := f.vector(1); !ok || len(session) > 32 {
		return answer{verdict: bad}
	}
	if suites, ok := f.vector(2); !ok || len(suites) < 2 || len(suites)%2 != 0 {
		return answer{verdict: bad}
	}
	if methods, ok := f.vector(1); !ok || len(methods) < 1 {
		return answer{verdict: bad}
	}
	if len(f) == 0 {
		return answer{verdict: noName}
	}
	extensions, ok := f.vector(2)
	if !ok || len(f) != 0 {
		return answer{verdict: bad}
	}
	return extensions.extensions()
}

func (f fields) extensions() answer {
	var servers []fields
	outer := false
	for len(f) > 0 {
		kind, _ := f.number(2)
		content, ok := f.vector(2)
		if !ok {
			return answer{verdict: bad}
		}
		switch kind {
		case 0:
			servers = append(servers, content)
		case 0xfe0d:
			outer = outer || !bytes.Equal(content, []byte{1})
		}
	}
	switch {
	case len(servers) > 1:
		return answer{verdict: bad}
	case outer:
		return answer{verdict: encrypted}
	case len(servers) == 0:
		return answer{verdict: noName}
	}
	return servers[0].serverName()
}

func (f fields) serverName() answer {
	list, ok := f.vector(2)
	if !ok || len(f) != 0 {
		return answer{verdict: bad}
	}
	kind, _ := list.number(1)
	host, ok := list.vector(2)
	if !ok || kind != 0 || len(list) != 0 {
		return answer{verdict: bad}
	}
	name := strings.TrimSuffix(string(host), ".")
	if len(name) > 247 {
		return answer{verdict: bad}
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || strings.Trim(label, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return answer{verdict: bad}
		}
	}
	return answer{named, strings.ToLower(name)}
}

// seenByServer is the name that a server, Go's, reads in a payload.
func seenByServer(payload []byte) (name string, ok bool) {
	stop := errors.New("seen enough")
	server := tls.Server(&oneWay{in: bytes.NewReader(payload)}, &tls.Config{
		MinVersion: tls.VersionTLS10,
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			name, ok = hello.ServerName, true
			return nil, stop
		},
	})
	_ = server.Handshake()
	return name, ok
}

// oneWay is a connection with a peer that says what is in and does not listen.
type oneWay struct {
	in *bytes.Reader
	net.Conn
}

func (c *oneWay) Read(b []byte) (int, error)       { return c.in.Read(b) }
func (c *oneWay) Write(b []byte) (int, error)      { return len(b), nil }
func (c *oneWay) Close() error                     { return nil }
func (c *oneWay) SetDeadline(time.Time) error      { return nil }
func (c *oneWay) SetWriteDeadline(time.Time) error { return nil }

// sketch is a ClientHello to be: the zero value is a plain one of TLS 1.2.
type sketch struct {
	session    []byte
	suites     []byte
	methods    []byte
	extensions [][]byte
	bare       bool // not even an empty list of extensions
}

func (s sketch) payload() []byte {
	if s.suites == nil {
		s.suites = []byte{0x13, 0x01, 0xc0, 0x2f}
	}
	if s.methods == nil {
		s.methods = []byte{0}
	}
	body := append([]byte{3, 3}, make([]byte, 32)...)
	body = append(body, vector(1, s.session)...)
	body = append(body, vector(2, s.suites)...)
	body = append(body, vector(1, s.methods)...)
	if !s.bare {
		body = append(body, vector(2, s.extensions...)...)
	}
	return record(message(1, body))
}

func record(content []byte) []byte {
	return append([]byte{22, 3, 1}, vector(2, content)...)
}

func message(kind byte, body []byte) []byte {
	return append([]byte{kind}, vector(3, body)...)
}

// vector is the parts with their length before them.
func vector(size int, parts ...[]byte) []byte {
	content := bytes.Join(parts, nil)
	length := binary.BigEndian.AppendUint32(nil, uint32(len(content)))
	return append(length[4-size:], content...)
}

func extension(kind uint16, content []byte) []byte {
	return append(binary.BigEndian.AppendUint16(nil, kind), vector(2, content)...)
}

// hosts is a server_name extension with these host names.
func hosts(names ...string) []byte {
	var list [][]byte
	for _, name := range names {
		list = append(list, append([]byte{0}, vector(2, []byte(name))...))
	}
	return extension(0, vector(2, list...))
}
