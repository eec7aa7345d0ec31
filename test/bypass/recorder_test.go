// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"agentguard.dev/agentguard/internal/netns"
)

// recorder is a set of servers that keep what they are sent and send it back.
type recorder struct {
	ns *netns.Handle
	wg sync.WaitGroup

	mu      sync.Mutex
	parts   []part
	open    int // connections whose end has not been read
	grown   chan struct{}
	closers []io.Closer
}

// part is what one connection, or one datagram, has brought.
type part struct {
	server string
	peer   string
	data   []byte
}

func newRecorder(t *testing.T, ns *netns.Handle) *recorder {
	t.Helper()
	r := &recorder{ns: ns, grown: make(chan struct{})}
	t.Cleanup(func() {
		r.mu.Lock()
		for _, c := range r.closers {
			c.Close()
		}
		r.closers = nil
		r.mu.Unlock()
		r.wg.Wait()
	})
	return r
}

func (r *recorder) changed() {
	close(r.grown)
	r.grown = make(chan struct{})
}

// begin opens a part; the number that it returns is used to add to it.
func (r *recorder) begin(server, peer string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.parts = append(r.parts, part{server: server, peer: peer})
	return len(r.parts) - 1
}

func (r *recorder) add(i int, data []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	// Enough to find a token in, and not all of a bulk transfer.
	if p := &r.parts[i]; len(p.data) < 1<<16 {
		p.data = append(p.data, data...)
	}
	r.changed()
}

// keep remembers what is to be closed at the end.
func (r *recorder) keep(c io.Closer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closers = append(r.closers, c)
}

// saw says which server was sent the token, if one was.
func (r *recorder) saw(token string) (string, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.find(token)
}

func (r *recorder) find(token string) (string, bool) {
	for _, p := range r.parts {
		if bytes.Contains(p.data, []byte(token)) {
			return fmt.Sprintf("%s from %s", p.server, p.peer), true
		}
	}
	return "", false
}

// waitFor waits until some server was sent the token.
func (r *recorder) waitFor(token string, limit time.Duration) (string, bool) {
	deadline := time.After(limit)
	for {
		r.mu.Lock()
		where, found := r.find(token)
		grown := r.grown
		r.mu.Unlock()
		if found {
			return where, true
		}
		select {
		case <-grown:
		case <-deadline:
			return "", false
		}
	}
}

// tcp serves one address. Go's listeners answer MPTCP as well.
func (r *recorder) tcp(t *testing.T, address string, control ...func(fd int) error) {
	t.Helper()
	var ln net.Listener
	r.inside(t, func() (err error) {
		config := listenConfig(control)
		// What a control does to an MPTCP socket, its subflow does not see.
		config.SetMultipathTCP(len(control) == 0)
		ln, err = config.Listen(context.Background(), "tcp", address)
		return err
	})
	r.keep(ln)
	r.wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			r.connection("tcp "+ln.Addr().String(), conn.RemoteAddr().String(), conn)
		}
	})
}

// connection records and echoes until the peer has said everything.
func (r *recorder) connection(server, peer string, conn io.ReadWriteCloser) {
	i := r.begin(server, peer)
	r.keep(conn)
	r.mu.Lock()
	r.open++
	r.mu.Unlock()
	r.wg.Go(func() {
		defer conn.Close()
		defer func() {
			r.mu.Lock()
			r.open--
			r.changed()
			r.mu.Unlock()
		}()
		buffer := make([]byte, 1<<16)
		for {
			n, err := conn.Read(buffer)
			r.add(i, buffer[:n])
			if n > 0 {
				// A peer that was cut off cannot be answered; it may still
				// have sent more.
				_, _ = conn.Write(buffer[:n])
			}
			if err != nil {
				return
			}
		}
	})
}

// udp serves one address.
func (r *recorder) udp(t *testing.T, address string, control ...func(fd int) error) {
	t.Helper()
	var pc net.PacketConn
	network := "udp"
	if a, err := netip.ParseAddrPort(address); err == nil && a.Addr().Is4() {
		network = "udp4" // or 0.0.0.0 would mean [::] as well
	}
	r.inside(t, func() (err error) {
		pc, err = listenConfig(control).ListenPacket(context.Background(), network, address)
		return err
	})
	r.keep(pc)
	r.wg.Go(func() {
		buffer := make([]byte, 1<<16)
		for {
			n, peer, err := pc.ReadFrom(buffer)
			if err != nil {
				return
			}
			r.add(r.begin("udp "+pc.LocalAddr().String(), peer.String()), buffer[:n])
			if portOf(peer) != portOf(pc.LocalAddr()) { // or it might answer itself for ever
				_, _ = pc.WriteTo(buffer[:n], peer)
			}
		}
	})
}

func portOf(addr net.Addr) int { return addr.(*net.UDPAddr).Port }

func listenConfig(control []func(fd int) error) *net.ListenConfig {
	return &net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		if controlErr := raw.Control(func(fd uintptr) {
			for _, set := range control {
				if err = set(int(fd)); err != nil {
					return
				}
			}
		}); controlErr != nil {
			return controlErr
		}
		return err
	}}
}

// stream serves a protocol that Go's net package does not speak. It reports
// false if this kernel does not speak it either.
func (r *recorder) stream(t *testing.T, family, proto int, address netip.AddrPort) bool {
	t.Helper()
	name := fmt.Sprintf("protocol %d %s", proto, address)
	var file *os.File
	r.inside(t, func() error {
		fd, err := streamSocket(family, proto)
		if err != nil {
			return nil
		}
		file = os.NewFile(uintptr(fd), name)
		if err := unix.Bind(fd, sockaddr(address)); err != nil {
			return fmt.Errorf("bind %s: %w", name, err)
		}
		if err := unix.Listen(fd, 8); err != nil {
			return fmt.Errorf("listen at %s: %w", name, err)
		}
		return nil
	})
	if file == nil {
		return false
	}
	r.keep(file)
	raw, err := file.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	r.wg.Go(func() {
		for {
			conn := -1
			if err := raw.Read(func(fd uintptr) bool {
				conn, _, _ = unix.Accept4(int(fd), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
				return conn >= 0
			}); err != nil || conn < 0 {
				return
			}
			r.connection(name, "a peer", os.NewFile(uintptr(conn), name))
		}
	})
	return true
}

func streamSocket(family, proto int) (int, error) {
	kind := unix.SOCK_STREAM
	if proto == unix.IPPROTO_DCCP {
		kind = unix.SOCK_DCCP
	}
	return unix.Socket(family, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, proto)
}

// datagrams serves a protocol of datagrams that Go's net package does not
// speak. It reports false if this kernel does not speak it either.
func (r *recorder) datagrams(t *testing.T, family, kind, proto int, address netip.AddrPort) bool {
	t.Helper()
	name := fmt.Sprintf("protocol %d %s", proto, address)
	var file *os.File
	r.inside(t, func() error {
		fd, err := unix.Socket(family, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, proto)
		if err != nil {
			return nil
		}
		file = os.NewFile(uintptr(fd), name)
		return unix.Bind(fd, sockaddr(address))
	})
	if file == nil {
		return false
	}
	r.keep(file)
	r.wg.Go(func() {
		buffer := make([]byte, 1<<16)
		for {
			n, err := file.Read(buffer)
			if err != nil {
				return
			}
			r.add(r.begin(name, "a peer"), buffer[:n])
		}
	})
	return true
}

func (r *recorder) inside(t *testing.T, fn func() error) {
	t.Helper()
	if err := r.ns.Do(fn); err != nil {
		t.Fatal(err)
	}
}

// settle waits until everything that has been delivered to the servers has
// been read. It works only from inside r's own namespace.
func (r *recorder) settle(tcp, udp []string) error {
	mark := "settle " + newToken()
	for _, network := range []struct {
		name      string
		addresses []string
	}{{"tcp", tcp}, {"udp", udp}} {
		for _, address := range network.addresses {
			if err := r.ns.Do(func() error {
				conn, err := net.Dial(network.name, address)
				if err != nil {
					return err
				}
				defer conn.Close()
				_, err = conn.Write([]byte(mark + address))
				return err
			}); err != nil {
				return fmt.Errorf("settle: %w", err)
			}
			if _, ok := r.waitFor(mark+address, 5*time.Second); !ok {
				return fmt.Errorf("settle: the marker did not reach %s %s within 5s", network.name, address)
			}
		}
	}
	// Accepting keeps the order of connections, so what came before the
	// markers has been accepted; now it has to be read.
	deadline := time.After(2 * time.Second)
	for {
		r.mu.Lock()
		open, grown := r.open, r.grown
		r.mu.Unlock()
		if open == 0 {
			return nil
		}
		select {
		case <-grown:
		case <-deadline:
			return nil
		}
	}
}
