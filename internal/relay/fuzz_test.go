// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"bufio"
	"io"
	"net"
	"net/http/httputil"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// FuzzRequests sends anything, and holds the server behind to have got nothing but
// whole requests for the allowed host, in the one form that the relay writes.
func FuzzRequests(f *testing.F) {
	for _, seed := range []string{
		"GET / HTTP/1.1\r\nHost: good.test\r\n\r\nGET /evil HTTP/1.1\r\nHost: evil.test\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: good.test\r\nContent-Length: 47\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\nHost: evil.test\r\n\r\n",
		"POST / HTTP/1.1\nHost: good.test\nTransfer-Encoding: chunked\nTrailer: X\n\n2;x=y\r\nab\r\n0\r\nX: 1\r\nHost: evil.test\r\n\r\n",
		"GET http://good.test/ HTTP/1.1\r\nHost: evil.test\r\nX: a\r\n b\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: good.test\r\nConnection: upgrade, host\r\nUpgrade: websocket\r\n\r\nGET / HTTP/1.1\r\nHost: evil.test\r\n\r\n",
		"OPTIONS * HTTP/1.1\r\nHost: good.test:80\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\nx",
		"CONNECT good.test:80 HTTP/1.1\r\nHost: good.test:80\r\n\r\n",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
	} {
		f.Add([]byte(seed))
	}
	ns := namespace(f)
	l := listen(f, ns, "192.0.2.1:80")
	judge := start(f, ns, Config{}, addrOf(l))
	f.Fuzz(func(t *testing.T, in []byte) {
		judge.mu.Lock()
		judge.records = nil
		judge.mu.Unlock()
		checked := make(chan struct{})
		go func() {
			defer close(checked)
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				last := strict(t, conn)
				conn.Close()
				if last {
					return
				}
			}
		}()
		conn := dialIn(t, ns, judge.station())
		// Most of what is a beginning of something ends with this.
		in = append(slices.Clone(in), "\r\n\r\nGET /end HTTP/1.1\r\nHost: end.test\r\n\r\n"...)
		go func() { _, _ = conn.Write(in) }()
		_ = conn.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		_, _ = io.Copy(io.Discard, conn)
		conn.Close()
		await(t, "the link ends", func() bool { return len(links(judge)) == 0 })

		last := dialIn(t, ns, l.Addr().String())
		_, _ = io.WriteString(last, "LAST")
		last.Close()
		<-checked
	})
}

// strict reads requests as a server does that knows of only one way to write them.
// It reports whether the connection was the test's own.
func strict(t *testing.T, conn net.Conn) (last bool) {
	r := bufio.NewReader(conn)
	if b, _ := r.Peek(4); string(b) == "LAST" {
		return true
	}
	for {
		var hosts, lengths, codings []string
		first, err := r.ReadString('\n')
		if err != nil {
			if first != "" {
				t.Errorf("the server gets half a line, %q", first)
			}
			return false
		}
		if parts := strings.Split(first, " "); len(parts) != 3 || parts[2] != "HTTP/1.1\r\n" {
			t.Errorf("the server gets the request line %q", first)
			return false
		}
		for {
			line, err := r.ReadString('\n')
			name, value, ok := strings.Cut(strings.TrimSuffix(line, "\r\n"), ": ")
			if line == "\r\n" {
				break
			}
			if err != nil || !ok || !strings.HasSuffix(line, "\r\n") || strings.ContainsAny(name, " \t\r\n") || strings.ContainsAny(value, "\r\n\x00") {
				t.Errorf("the server gets the line %q, %v", line, err)
				return false
			}
			switch strings.ToLower(name) {
			case "host":
				hosts = append(hosts, value)
			case "content-length":
				lengths = append(lengths, value)
			case "transfer-encoding":
				codings = append(codings, value)
			}
		}
		if !slices.Equal(hosts, []string{"good.test"}) || len(lengths)+len(codings) > 1 {
			t.Errorf("the server gets hosts %q, lengths %q, codings %q", hosts, lengths, codings)
		}
		var body io.Reader = strings.NewReader("")
		switch {
		case len(lengths) > 0:
			n, err := strconv.ParseUint(lengths[0], 10, 63)
			if err != nil {
				t.Errorf("the server gets the length %q", lengths[0])
			}
			body = io.LimitReader(r, int64(n))
		case len(codings) > 0 && codings[0] != "chunked":
			t.Errorf("the server gets the coding %q", codings[0])
		case len(codings) > 0:
			body = httputil.NewChunkedReader(r)
		}
		if _, err := io.Copy(io.Discard, body); err != nil {
			if r.Buffered() > 0 {
				t.Errorf("the server gets a body that it cannot read, %v", err)
			}
			return false
		}
		for len(codings) > 0 {
			line, err := r.ReadString('\n')
			if err != nil || line == "\r\n" {
				break
			}
			if name, _, ok := strings.Cut(line, ": "); !ok || strings.EqualFold(name, "host") {
				t.Errorf("the server gets the trailer %q", line)
			}
		}
		_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
	}
}
