// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	vnetns "github.com/vishvananda/netns"

	"agentguard.dev/agentguard/internal/netns"
)

// patience is for what has to happen soon.
const patience = 10 * time.Second

// namespace makes a network namespace with 192.0.2.1 on lo, gone with its last
// handle: what is reached at that address was reached from inside.
func namespace(t testing.TB) *netns.Handle {
	t.Helper()
	own, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	var made *netns.Handle
	if err := own.Do(func() error {
		if _, err := vnetns.New(); err != nil {
			return err
		}
		made, err = netns.Current()
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { made.Close() })
	in(t, made, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		addr, _ := netlink.ParseAddr("192.0.2.1/32")
		if err := netlink.AddrAdd(lo, addr); err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
	return made
}

func in(t testing.TB, ns *netns.Handle, fn func() error) {
	t.Helper()
	if err := ns.Do(fn); err != nil {
		t.Fatal(err)
	}
}

// fixture is a relay with one station, and the authority over it.
type fixture struct {
	testing.TB
	ns    *netns.Handle
	relay *Server
	port  uint16
	asker Asker

	unknown atomic.Bool // nobody is known
	audit   atomic.Bool

	mu      sync.Mutex
	allowed []string
	records []Record
	changed chan struct{} // closed by the next record
}

func start(t testing.TB, ns *netns.Handle, c Config, to netip.AddrPort) *fixture {
	t.Helper()
	f := &fixture{TB: t, ns: ns, allowed: []string{"good.test"}, changed: make(chan struct{})}
	f.asker = Asker{Task: 7, ID: "t-7", PID: 42, Process: "curl", To: to, Rules: f}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	f.relay = New(c, f)
	t.Cleanup(f.relay.Close)
	var err error
	if f.port, err = f.relay.Listen(ns); err != nil {
		t.Fatal(err)
	}
	return f
}

func (f *fixture) Asker(cookie uint64, src netip.AddrPort) (Asker, bool) {
	if cookie != f.ns.Cookie() || !src.Addr().IsLoopback() || src.Addr().Is4In6() {
		f.Errorf("asked about %v in namespace %d", src, cookie)
	}
	return f.asker, !f.unknown.Load()
}

func (f *fixture) Allows(host string, to netip.AddrPort) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Contains(f.allowed, host) && to == f.asker.To
}

func (f *fixture) allow(hosts ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.allowed = hosts
}

func (f *fixture) Audit() bool { return f.audit.Load() }

func (f *fixture) Hint(host string, to netip.AddrPort) string {
	return fmt.Sprintf("agentguard task grant t-7 %s:%d", host, to.Port())
}

func (f *fixture) Record(r Record) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.records = append(f.records, r)
	close(f.changed)
	f.changed = make(chan struct{})
}

// recorded are the records so far, in short.
func (f *fixture) recorded() (all []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.records {
		if r.Task != 7 || r.To != f.asker.To || (r.Reason == "") != (r.Verdict == Allow) {
			f.Errorf("record %+v", r)
		}
		all = append(all, strings.Join(strings.Fields(r.Verdict+" "+r.Method+" "+r.Host), " "))
	}
	return all
}

// await waits for a record for which is true.
func (f *fixture) await(is func(Record) bool) Record {
	f.Helper()
	deadline := time.After(patience)
	for {
		f.mu.Lock()
		i, changed := slices.IndexFunc(f.records, is), f.changed
		if i >= 0 {
			defer f.mu.Unlock()
			return f.records[i]
		}
		f.mu.Unlock()
		select {
		case <-changed:
		case <-deadline:
			f.Fatalf("no such record in %v", f.recorded())
		}
	}
}

// station is the address that the kernel would redirect to.
func (f *fixture) station() string { return fmt.Sprintf("127.0.0.1:%d", f.port) }

// dial connects to the station as a task does.
func (f *fixture) dial() *net.TCPConn {
	f.Helper()
	return dialIn(f, f.ns, f.station())
}

func dialIn(t testing.TB, ns *netns.Handle, addr string) *net.TCPConn {
	t.Helper()
	var conn net.Conn
	in(t, ns, func() (err error) {
		conn, err = net.Dial("tcp", addr)
		return err
	})
	t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(patience))
	return conn.(*net.TCPConn)
}

// client is Go's, connected to the station whatever the URL says.
func (f *fixture) client() *http.Client {
	transport := &http.Transport{DisableCompression: true, ExpectContinueTimeout: patience}
	transport.DialContext = func(context.Context, string, string) (conn net.Conn, err error) {
		err = f.ns.Do(func() error {
			conn, err = net.Dial("tcp", f.station())
			return err
		})
		return conn, err
	}
	f.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: patience, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// listen opens a server's socket in the namespace; port 80 unless the address says
// otherwise.
func listen(t testing.TB, ns *netns.Handle, addr string) *net.TCPListener {
	t.Helper()
	var l net.Listener
	in(t, ns, func() (err error) {
		l, err = net.Listen("tcp", addr)
		return err
	})
	t.Cleanup(func() { l.Close() })
	return l.(*net.TCPListener)
}

func addrOf(l net.Listener) netip.AddrPort { return l.Addr().(*net.TCPAddr).AddrPort() }

// recorder is a server that keeps every byte it gets, and answers "ok" to each
// request.
type recorder struct {
	net.Listener
	wg  sync.WaitGroup
	mu  sync.Mutex
	got bytes.Buffer
}

func newRecorder(t testing.TB, ns *netns.Handle, addr string) *recorder {
	t.Helper()
	r := &recorder{Listener: listen(t, ns, addr)}
	r.wg.Go(func() {
		for {
			conn, err := r.Accept()
			if err != nil {
				return
			}
			r.wg.Go(func() { r.serve(conn) })
		}
	})
	return r
}

func (r *recorder) serve(conn net.Conn) {
	defer conn.Close()
	buffered := bufio.NewReader(io.TeeReader(conn, r))
	for {
		request, err := http.ReadRequest(buffered)
		if err == nil {
			_, err = io.Copy(io.Discard, request.Body)
		}
		if err != nil {
			_, _ = io.Copy(io.Discard, buffered)
			return
		}
		_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
	}
}

func (r *recorder) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.got.Write(p)
}

// all is what the recorder got, once the relay has been closed.
func (r *recorder) all(f *fixture) string {
	f.relay.Close()
	r.Close()
	r.wg.Wait()
	return r.got.String()
}
