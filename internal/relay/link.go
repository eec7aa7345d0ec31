// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// link is a connection of a task, and the one to the server that belongs to it.
// As a net.Conn it is the former, as the HTTP server sees it.
type link struct {
	net.Conn
	server    *Server
	station   *station
	asker     Asker
	transport *http.Transport
	watched   bool // in mode audit: what passes is recorded, not relayed

	dead   atomic.Bool     // no dials any more
	ctx    context.Context // of dials
	cancel context.CancelFunc
	mu     sync.Mutex // held while dialling
	remote *remote

	host    atomic.Pointer[string] // of the last request, before it was judged
	serving atomic.Bool            // a request is with the handler
	refused atomic.Bool
	broken  atomic.Bool // the task's side did not end but was reset
	taken   bool        // from the HTTP server, for a WebSocket
	seen    []byte      // what was read since the last request, its beginning
	head    []byte      // the same of the request being parsed
}

// maxSeen is how much of an unreadable request is recorded.
const maxSeen = 64

func newLink(st *station, conn *net.TCPConn, asker Asker) *link {
	l := &link{Conn: conn, server: st.server, station: st, asker: asker, watched: asker.Rules.Audit()}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	l.transport = &http.Transport{
		DialContext:            func(context.Context, string, string) (net.Conn, error) { return l.dial() },
		DisableCompression:     true,
		ExpectContinueTimeout:  time.Second,
		IdleConnTimeout:        st.server.config.IdleTimeout,
		MaxResponseHeaderBytes: 1 << 20,
	}
	return l
}

// dial connects to where the task had connected to, in its namespace. The
// connection before, if there was one, has served its time.
func (l *link) dial() (net.Conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.dead.Load() {
		return nil, net.ErrClosed
	}
	if l.remote != nil {
		l.remote.Close()
	}
	dialer := net.Dialer{Timeout: l.server.config.DialTimeout}
	err := l.station.ns.Do(func() error {
		conn, err := dialer.DialContext(l.ctx, "tcp", l.asker.To.String())
		if err == nil {
			l.remote = &remote{Conn: conn, link: l}
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return l.remote, nil
}

// cut ends both connections, and reports whether they had not ended. When it returns nothing
// is on its way any more, also out of the kernel's buffers.
func (l *link) cut() bool {
	first := !l.dead.Swap(true)
	_ = reset(l.Conn)
	l.cancel()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.remote != nil {
		_ = reset(l.remote.Conn)
	}
	return first
}

// finish is the end of a link, after which nobody knows of it.
func (l *link) finish() {
	l.dead.Store(true)
	l.cancel()
	l.mu.Lock()
	if l.remote != nil {
		l.remote.Close()
	}
	l.mu.Unlock()
	l.transport.CloseIdleConnections()
	l.server.remove(l)
	l.station.links.Done()
}

// follow is told of what the HTTP server does with the connection, by the
// goroutine that does it.
func (l *link) follow(state http.ConnState) {
	switch state {
	case http.StateActive:
		l.head, l.seen = l.seen, nil
	case http.StateIdle:
		l.serving.Store(false)
		l.head = nil
	case http.StateHijacked:
		l.taken = true
	case http.StateClosed:
		l.finish()
	}
}

// Read remembers how the next request begins.
func (l *link) Read(p []byte) (int, error) {
	n, err := l.Conn.Read(p)
	if l.serving.Load() {
		l.seen = nil // a body, so far
	}
	l.seen = append(l.seen, p[:min(n, maxSeen-len(l.seen))]...)
	if err != nil && err != io.EOF && !errors.Is(err, os.ErrDeadlineExceeded) {
		l.broken.Store(true)
	}
	late := errors.Is(err, os.ErrDeadlineExceeded) && !l.serving.Load()
	if late && (l.host.Load() == nil || len(l.seen) > 0) {
		l.refuse(fmt.Sprintf("no whole request came within %v: %s", l.server.config.HeaderTimeout, began(l.seen)))
	}
	return n, err
}

// Write writes an answer. The server's own, without a handler, is to what it
// cannot read.
func (l *link) Write(p []byte) (int, error) {
	if !l.serving.Load() {
		status, _, _ := strings.Cut(string(p), "\r\n")
		l.refuse(fmt.Sprintf("no request that can be relayed (%s): %s", strings.TrimPrefix(status, "HTTP/1.1 "), began(l.head)))
	}
	return l.Conn.Write(p)
}

func began(p []byte) string {
	if len(p) == 0 {
		return "it came close behind another"
	}
	return fmt.Sprintf("it began with %q", p)
}

// CloseWrite tells the task that no more comes.
func (l *link) CloseWrite() error { return l.Conn.(*net.TCPConn).CloseWrite() }

// Close closes the task's side. Unread input would reset the connection, and the
// task not see why it was refused: some of it is read for a short time.
func (l *link) Close() error {
	if l.refused.Load() && l.CloseWrite() == nil {
		_ = l.Conn.SetReadDeadline(time.Now().Add(250 * time.Millisecond))
		_, _ = io.CopyN(io.Discard, l.Conn, 256<<10)
	}
	return l.Conn.Close()
}

// refuse records that a link came to its end for what it sent, once.
func (l *link) refuse(reason string) {
	if !l.refused.Swap(true) {
		l.server.authority.Record(Record{Asker: l.asker, Verdict: Deny, Reason: reason})
	}
}

// stillAllowed reports whether the rules, as they are now, would let the link be.
func (l *link) stillAllowed() bool {
	if l.asker.Rules.Audit() {
		return true
	}
	host := l.host.Load()
	return !l.watched && (host == nil || l.asker.Rules.Allows(*host, l.asker.To))
}

// remote is a connection to a server. The kernel sends what was written to one
// even after Close, when nobody could stop it any more. So nothing is left to it.
type remote struct {
	net.Conn
	link    *link
	writing sync.Mutex
}

func (r *remote) Write(p []byte) (int, error) {
	r.writing.Lock()
	defer r.writing.Unlock()
	return r.Conn.Write(p)
}

// CloseWrite tells the server that no more comes.
func (r *remote) CloseWrite() error { return r.Conn.(*net.TCPConn).CloseWrite() }

// Close resets the connection if not all that was written has arrived, or the
// task's side was reset: one that is cut is to leave nothing but that.
func (r *remote) Close() error {
	if !r.writing.TryLock() {
		return reset(r.Conn)
	}
	defer r.writing.Unlock()
	if r.link.broken.Load() || pending(r.Conn.(*net.TCPConn)) {
		return reset(r.Conn)
	}
	return r.Conn.Close()
}

// pending reports whether conn's peer has not acknowledged everything.
func pending(conn *net.TCPConn) bool {
	raw, err := conn.SyscallConn()
	if err != nil {
		return false
	}
	n, ioctlErr := 0, error(nil)
	err = raw.Control(func(fd uintptr) { n, ioctlErr = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) })
	return err == nil && (ioctlErr != nil || n > 0)
}

// reset closes a TCP connection at once: what waits in the kernel to be sent is
// gone with it.
func reset(conn net.Conn) error {
	_ = conn.(*net.TCPConn).SetLinger(0)
	return conn.Close()
}
