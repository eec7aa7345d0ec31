// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"bufio"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"sync"
)

// watch is for a task in mode audit: whatever it sends passes as it is, and what
// the relay would have made of it is recorded.
func (l *link) watch() {
	defer l.finish()
	defer l.Conn.Close()
	if !l.stillAllowed() {
		l.cut() // the mode changed before a Recheck could have found l
	}
	server, err := l.dial()
	if err != nil {
		_ = reset(l.Conn)
		return
	}
	sent, tee := io.Pipe()
	var wg sync.WaitGroup
	wg.Go(func() { l.observe(sent) })
	wg.Go(func() { l.pass(l.Conn, server) })
	l.pass(server, io.TeeReader(l.Conn, tee))
	tee.Close()
	wg.Wait()
}

// pass copies one direction of a connection to its end, which it passes on. After
// an error neither direction is of use.
func (l *link) pass(dst net.Conn, src io.Reader) {
	_, err := io.Copy(dst, src)
	if err == nil {
		err = dst.(interface{ CloseWrite() error }).CloseWrite()
	}
	if err != nil {
		l.cut()
	}
}

// observe records the requests in what a task sends, until it does not know any
// more where one would begin. It reads to the end in any case.
func (l *link) observe(sent io.Reader) {
	defer func() { _, _ = io.Copy(io.Discard, sent) }()
	limited := &io.LimitedReader{R: sent}
	buffered := bufio.NewReader(limited)
	for {
		limited.N = int64(l.server.config.Header)
		r, err := http.ReadRequest(buffered)
		if err == io.EOF {
			return
		}
		if err != nil {
			l.server.authority.Record(Record{
				Asker: l.asker, Verdict: WouldDeny, Reason: fmt.Sprintf("no request that can be relayed: %v", err),
			})
			return
		}
		host, no := l.judge(r)
		l.record(r, host, no)
		limited.N = math.MaxInt64
		if _, err := io.Copy(io.Discard, r.Body); err != nil || r.ProtoMajor != 1 || r.Method == http.MethodConnect || r.Header.Get("Upgrade") != "" {
			return
		}
	}
}
