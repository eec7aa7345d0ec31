// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// refused connects, which the relay resets at once.
func (f *fixture) refused() {
	f.Helper()
	var conn net.Conn
	err := f.ns.Do(func() (err error) {
		conn, err = net.Dial("tcp", f.station())
		return err
	})
	if err == nil {
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(patience))
		_, err = conn.Read(make([]byte, 1))
	}
	if !errors.Is(err, unix.ECONNRESET) {
		f.Error(err)
	}
}

func TestUnknown(t *testing.T) {
	ns := namespace(t)
	server := newRecorder(t, ns, "192.0.2.1:80")
	f := start(t, ns, Config{}, addrOf(server))
	f.unknown.Store(true)
	f.refused()
	if got := server.all(f); got != "" || len(f.recorded()) != 0 {
		t.Errorf("%q, %q", got, f.recorded())
	}
}

func TestLimits(t *testing.T) {
	ns := namespace(t)
	server := newRecorder(t, ns, "192.0.2.1:80")
	for _, test := range []struct {
		config Config
		reason string
	}{
		{Config{Conns: 2}, "the relay has 2 connections, as many as it may"},
		{Config{ConnsPerTask: 2}, "the task has 2 connections through the relay, as many as it may"},
	} {
		f := start(t, ns, test.config, addrOf(server))
		first := f.dial()
		f.dial()
		await(t, "two links", func() bool { return len(links(f)) == 2 })
		f.refused()
		f.await(func(r Record) bool { return r.Verdict == Deny && r.Reason == test.reason })
		first.Close()
		await(t, "one link", func() bool { return len(links(f)) == 1 })
		response, err := f.client().Get("http://good.test/")
		body(t, response, err)
		f.relay.Close()
	}
}

func TestTimeouts(t *testing.T) {
	ns := namespace(t)
	server := newRecorder(t, ns, "192.0.2.1:80")
	f := start(t, ns, Config{HeaderTimeout: 50 * time.Millisecond, IdleTimeout: 100 * time.Millisecond}, addrOf(server))
	for _, test := range []struct {
		first, in string
		records   int
	}{
		{"", "", 1},
		{"", "GET / HTTP/1.1\r\nHost: good", 1},
		{"GET / HTTP/1.1\r\nHost: good.test\r\n\r\n", "", 1},
		{"GET / HTTP/1.1\r\nHost: good.test\r\n\r\n", "GET /", 2},
	} {
		f.mu.Lock()
		f.records = nil
		f.mu.Unlock()
		conn := f.dial()
		if test.first != "" {
			_, _ = io.WriteString(conn, test.first)
			if _, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil {
				t.Fatal(err)
			}
		}
		_, _ = io.WriteString(conn, test.in)
		if _, err := io.ReadAll(conn); err != nil {
			t.Errorf("%q: %v", test.in, err)
		}
		if got := f.recorded(); len(got) != test.records {
			t.Errorf("%q: records %q", test.in, got)
		}
	}
	if f.await(func(r Record) bool { return r.Verdict == Deny }).Reason != `no whole request came within 50ms: it began with "GET /"` {
		t.Error(f.records)
	}
}

func TestAudit(t *testing.T) {
	ns := namespace(t)
	for _, test := range []struct {
		in      string
		records []string
	}{
		{
			"GET / HTTP/1.1\r\nhost: good.test\r\n\r\nPOST /x HTTP/1.1\r\nHost: evil.test\r\nContent-Length: 2\r\n\r\nabGET / HTTP/1.0\r\n\r\n",
			[]string{"allow GET good.test", "would-deny POST evil.test", "would-deny GET"},
		},
		{"SSH-2.0\r\n\x00\x01", []string{"would-deny"}},
		{"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", []string{"would-deny PRI"}},
		{"CONNECT evil.test:443 HTTP/1.1\r\nHost: evil.test\r\n\r\n\x16\x03", []string{"would-deny CONNECT evil.test:443"}},
		{"GET / HTTP/1.1\r\nHost: good.test\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n\x16\x03", []string{"allow GET good.test"}},
		{"GET / HTTP/1.1\r\nX: " + strings.Repeat("a", 1<<20), []string{"would-deny"}},
	} {
		server := newRecorder(t, ns, "192.0.2.1:80")
		f := start(t, ns, Config{}, addrOf(server))
		f.audit.Store(true)
		conn := f.dial()
		_, _ = io.WriteString(conn, test.in)
		_ = conn.CloseWrite()
		if _, err := io.ReadAll(conn); err != nil {
			t.Errorf("%.40q: %v", test.in, err)
		}
		if got := server.all(f); got != test.in {
			t.Errorf("%.40q: the server got %.80q", test.in, got)
		}
		if got := f.recorded(); !reflect.DeepEqual(got, test.records) {
			t.Errorf("%.40q: records %q", test.in, got)
		}
	}
}

// TestModeChange takes connections over that began in another mode.
func TestModeChange(t *testing.T) {
	ns := namespace(t)
	server := newRecorder(t, ns, "192.0.2.1:80")
	f := start(t, ns, Config{}, addrOf(server))
	ask := func(conn net.Conn, host string) error {
		if _, err := fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", host); err != nil {
			return err
		}
		response, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			return err
		}
		if response.StatusCode != 200 {
			return errors.New(response.Status)
		}
		_, err = io.Copy(io.Discard, response.Body)
		return err
	}
	enforced := f.dial()
	if err := ask(enforced, "good.test"); err != nil {
		t.Error(err)
	}
	f.audit.Store(true)
	if n := f.relay.Recheck(7); n != 0 {
		t.Errorf("%d cut", n)
	}
	watched := f.dial()
	for _, conn := range []net.Conn{enforced, watched} {
		if err := ask(conn, "evil.test"); err != nil {
			t.Error(err)
		}
	}
	want := []string{"allow GET good.test", "would-deny GET evil.test", "would-deny GET evil.test"}
	if got := f.recorded(); !reflect.DeepEqual(got, want) {
		t.Errorf("records %q", got)
	}
	f.audit.Store(false)
	if n := f.relay.Recheck(7); n != 2 {
		t.Errorf("%d cut, want both", n)
	}
	for _, conn := range []net.Conn{enforced, watched} {
		if err := ask(conn, "good.test"); err == nil {
			t.Error("a connection of mode audit goes on")
		}
	}
}

func TestRecheck(t *testing.T) {
	ns := namespace(t)
	l := listen(t, ns, "192.0.2.1:80")
	f := start(t, ns, Config{}, addrOf(l))
	f.allow("good.test", "bad.test")
	// One without a request, one between requests, two within one.
	idle, good, bad, waiting := f.dial(), f.dial(), f.dial(), f.dial()
	var servers []net.Conn
	for conn, host := range map[net.Conn]string{good: "good.test", bad: "bad.test", waiting: "bad.test"} {
		_, _ = fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", host)
		server, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		if _, err := http.ReadRequest(bufio.NewReader(server)); err != nil {
			t.Fatal(err)
		}
		if conn != waiting {
			_, _ = io.WriteString(server, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
			if _, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil {
				t.Fatal(err)
			}
		}
		if host == "bad.test" {
			servers = append(servers, server)
		}
	}
	await(t, "all four are links", func() bool { return len(links(f)) == 4 })
	if n := f.relay.Recheck(7); n != 0 {
		t.Errorf("%d cut without a change", n)
	}
	f.allow("good.test")
	if n := f.relay.Recheck(8); n != 0 {
		t.Errorf("%d of another task cut", n)
	}
	if n := f.relay.Recheck(7); n != 2 {
		t.Errorf("%d cut, want 2", n)
	}
	for _, conn := range append(servers, bad, waiting) {
		_ = conn.SetReadDeadline(time.Now().Add(patience))
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) && err != io.EOF {
			t.Errorf("a connection that is not allowed any more: %v", err)
		}
	}
	if n := f.relay.Cut(8); n != 0 {
		t.Errorf("%d of another task cut", n)
	}
	if n := f.relay.Cut(7); n != 2 {
		t.Errorf("%d cut, want the other 2", n)
	}
	for _, conn := range []net.Conn{idle, good} {
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
			t.Error(err)
		}
	}
}

// TestNothingLeavesAfter fills the buffers towards a server that does not read, and
// has the server read when the connection is cut.
func TestNothingLeavesAfter(t *testing.T) {
	ns := namespace(t)
	l := listen(t, ns, "192.0.2.1:80")
	for _, upgrade := range []bool{false, true} {
		for name, end := range map[string]func(*fixture){
			"cut":   func(f *fixture) { f.relay.Cut(7) },
			"leave": func(f *fixture) { f.relay.Leave(f.ns.ID()) },
		} {
			t.Run(fmt.Sprintf("%s, upgrade %v", name, upgrade), func(t *testing.T) {
				f := start(t, ns, Config{}, addrOf(l))
				conn := f.dial()
				_, _ = io.WriteString(conn, "POST / HTTP/1.1\r\nHost: good.test\r\n")
				if upgrade {
					_, _ = io.WriteString(conn, "Connection: upgrade\r\nUpgrade: websocket\r\n\r\n")
				} else {
					_, _ = io.WriteString(conn, "Content-Length: 1000000000\r\n\r\n")
				}
				server, err := l.Accept()
				if err != nil {
					t.Fatal(err)
				}
				defer server.Close()
				if _, err := http.ReadRequest(bufio.NewReader(server)); err != nil {
					t.Fatal(err)
				}
				if upgrade {
					_, _ = io.WriteString(server, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
					if _, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil {
						t.Fatal(err)
					}
				}
				sent := fill(t, conn)
				if sent > 64<<20 {
					t.Errorf("%d bytes are on their way to a server that reads none", sent)
				}
				end(f)
				ended(t, server.(*net.TCPConn))
			})
		}
	}
}

// TestRemoteClose has the kernel keep nothing of what was written to a server.
func TestRemoteClose(t *testing.T) {
	ns := namespace(t)
	l := listen(t, ns, "192.0.2.1:80")
	for _, writing := range []bool{false, true} {
		r := &remote{Conn: dialIn(t, ns, "192.0.2.1:80"), link: new(link)}
		server, err := l.AcceptTCP()
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		fill(t, r.Conn.(*net.TCPConn))
		if writing {
			_ = r.SetWriteDeadline(time.Time{})
			go func() { _, _ = r.Write(make([]byte, 64<<20)) }()
			await(t, "a write under way", func() bool {
				free := r.writing.TryLock()
				if free {
					r.writing.Unlock()
				}
				return !free
			})
		}
		_ = r.Close()
		ended(t, server)
	}

	r := &remote{Conn: dialIn(t, ns, "192.0.2.1:80"), link: new(link)}
	server, err := l.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	_, _ = r.Write([]byte("x"))
	await(t, "it has arrived", func() bool { return !pending(r.Conn.(*net.TCPConn)) })
	_ = r.Close()
	if got, err := io.ReadAll(server); string(got) != "x" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
}

// fill writes until nothing fits any more, and returns how much it was.
func fill(t *testing.T, conn *net.TCPConn) (sent int64) {
	for {
		_ = conn.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
		n, err := conn.Write(make([]byte, 64<<10))
		sent += int64(n)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return sent
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// ended checks that a server gets nothing but what has arrived by now.
func ended(t *testing.T, server *net.TCPConn) {
	t.Helper()
	arrived := inQueue(t, server)
	_ = server.SetReadDeadline(time.Now().Add(patience))
	n, err := io.Copy(io.Discard, server)
	if !errors.Is(err, unix.ECONNRESET) || n != int64(arrived) {
		t.Errorf("%d bytes had arrived, then came %d: %v", arrived, n-int64(arrived), err)
	}
}

// inQueue is how much there is to be read.
func inQueue(t *testing.T, conn *net.TCPConn) (n int) {
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if controlErr := raw.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.SIOCINQ) }); controlErr != nil || err != nil {
		t.Fatal(controlErr, err)
	}
	return n
}

// TestDialInFlight cuts connections whose server does not answer, and has limits.
func TestDialInFlight(t *testing.T) {
	ns := namespace(t)
	in(t, ns, func() error {
		link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "near", Flags: net.FlagUp}, PeerName: "void"}
		if err := netlink.LinkAdd(link); err != nil {
			return err
		}
		void, err := netlink.LinkByName("void")
		if err != nil {
			return err
		}
		addr, _ := netlink.ParseAddr("198.51.100.1/24")
		nobody := &netlink.Neigh{
			LinkIndex: link.Index, State: netlink.NUD_PERMANENT,
			IP: net.IPv4(198, 51, 100, 2), HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 2},
		}
		return errors.Join(netlink.LinkSetUp(void), netlink.AddrAdd(link, addr), netlink.NeighSet(nobody))
	})
	to := netip.MustParseAddrPort("198.51.100.2:80")
	request := "GET / HTTP/1.1\r\nHost: good.test\r\n\r\n"
	f := start(t, ns, Config{}, to)
	for _, audit := range []bool{false, true} {
		f.audit.Store(audit)
		var conns []net.Conn
		for range 4 {
			conn := f.dial()
			_, _ = io.WriteString(conn, request)
			conns = append(conns, conn)
		}
		await(t, "four dials", func() bool { return connecting(t, f, to) == 4 })
		if n := f.relay.Cut(7); n != 4 {
			t.Errorf("%d cut", n)
		}
		if n := connecting(t, f, to); n != 0 {
			t.Errorf("%d sockets still try to connect", n)
		}
		for _, conn := range conns {
			if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
				t.Error(err)
			}
		}
		await(t, "no links", func() bool { return len(links(f)) == 0 })
	}
	f.relay.Close()

	f = start(t, ns, Config{DialTimeout: 50 * time.Millisecond}, to)
	response, err := f.client().Get("http://good.test/")
	if got := body(t, response, err); response.StatusCode != 502 || !strings.Contains(got, "198.51.100.2:80 does not answer: i/o timeout") {
		t.Errorf("%s %q", response.Status, got)
	}
}

// connecting counts sockets in the namespace that wait for an answer to their SYN.
func connecting(t *testing.T, f *fixture, to netip.AddrPort) (n int) {
	in(t, f.ns, func() error {
		table, err := os.ReadFile("/proc/thread-self/net/tcp")
		a := to.Addr().As4()
		slices.Reverse(a[:])
		for line := range strings.Lines(string(table)) {
			if f := strings.Fields(line); f[2] == fmt.Sprintf("%X:%04X", a, to.Port()) && f[3] == "02" {
				n++
			}
		}
		return err
	})
	return n
}

// TestStations has one a namespace, leaves what it does not need, and leaves
// nothing behind.
func TestStations(t *testing.T) {
	before, open := runtime.NumGoroutine(), sockets(t)
	near, far := namespace(t), namespace(t)
	o := newRecorder(t, near, "192.0.2.1:80")
	f := start(t, near, Config{}, addrOf(o))
	if again, err := f.relay.Listen(near); err != nil || again != f.port {
		t.Errorf("a second time: port %d, %v", again, err)
	}
	taken := listen(t, far, fmt.Sprintf("127.0.0.1:%d", f.port))
	port, err := f.relay.Listen(far)
	if err != nil || port >= f.port {
		t.Errorf("port %d, %v, where %d is taken", port, err, f.port)
	}
	conns := []net.Conn{f.dial(), f.dial()}
	for _, conn := range conns {
		_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: good.test\r\n\r\n")
		if _, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil {
			t.Error(err)
		}
	}
	f.relay.Leave(far.ID())
	if n := len(links(f)); n != 2 {
		t.Errorf("%d links, want those of the other station", n)
	}
	f.relay.Leave(near.ID())
	f.relay.Leave(near.ID())
	if n := len(links(f)); n != 0 {
		t.Errorf("%d links", n)
	}
	for _, conn := range conns {
		if _, err := io.Copy(io.Discard, conn); !errors.Is(err, unix.ECONNRESET) {
			t.Error(err)
		}
		conn.Close()
	}
	if _, err := f.relay.Listen(near); err != nil {
		t.Error(err)
	}
	o.all(f) // closes both
	taken.Close()
	if _, err := f.relay.Listen(near); err == nil {
		t.Error("a station of a closed relay")
	}
	if tasks := f.relay.perTask; len(tasks) != 0 {
		t.Errorf("tasks left: %v", tasks)
	}
	await(t, "as many goroutines as before", func() bool { return runtime.NumGoroutine() <= before })
	if after := sockets(t); after > open {
		t.Errorf("%d sockets, %d before", after, open)
	}
}

// sockets counts descriptors of sockets.
func sockets(t *testing.T) (n int) {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && strings.HasPrefix(to, "socket:") {
			n++
		}
	}
	return n
}
