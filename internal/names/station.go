// SPDX-License-Identifier: Apache-2.0

package names

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"agentguard.dev/agentguard/internal/netns"
	"agentguard.dev/agentguard/internal/policy"
)

// The ports of stations: those that need a privilege, or anybody could take one
// while the daemon is down. From the top down, where no services are.
const (
	highestPort = 1023
	lowestPort  = 512
)

// idle is how long a TCP connection may say nothing, and take for one message.
const idle = 10 * time.Second

// station answers in one namespace.
type station struct {
	server   *Server
	ns       *netns.Handle
	port     uint16
	upstream atomic.Pointer[Upstream]

	udp []*net.UDPConn
	tcp []*net.TCPListener

	ctx    context.Context // of what is under way
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// open opens the sockets of a station.
func open(s *Server, ns *netns.Handle) (*station, error) {
	st := &station{server: s, ns: ns}
	st.ctx, st.cancel = context.WithCancel(context.Background())
	err := ns.Do(func() error {
		// Sockets can be bound to 127.0.0.1 without it, and reached by nobody.
		if lo, err := net.InterfaceByName("lo"); err != nil {
			return fmt.Errorf("look for the interface lo: %w", err)
		} else if lo.Flags&net.FlagUp == 0 {
			return errors.New("the interface lo is down")
		}
		for port := uint16(highestPort); port >= lowestPort; port-- {
			err := st.bind(port)
			if err == nil {
				st.port = port
				return nil
			}
			st.unbind()
			if !errors.Is(err, unix.EADDRINUSE) {
				return err
			}
		}
		return fmt.Errorf("no port from %d to %d is free", lowestPort, highestPort)
	})
	if err != nil {
		st.cancel()
		return nil, err
	}
	return st, nil
}

// bind binds UDP and TCP of both families to one port. A machine without IPv6 has
// no ::1 for anybody to ask.
func (st *station) bind(port uint16) error {
	err := st.bindTo(netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port), "4")
	if err != nil {
		return err
	}
	err = st.bindTo(netip.AddrPortFrom(netip.IPv6Loopback(), port), "6")
	if errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EAFNOSUPPORT) {
		return nil
	}
	return err
}

func (st *station) bindTo(at netip.AddrPort, family string) error {
	udp, err := net.ListenUDP("udp"+family, net.UDPAddrFromAddrPort(at))
	if err != nil {
		return err
	}
	st.udp = append(st.udp, udp)
	tcp, err := net.ListenTCP("tcp"+family, net.TCPAddrFromAddrPort(at))
	if err != nil {
		return err
	}
	st.tcp = append(st.tcp, tcp)
	return nil
}

func (st *station) unbind() {
	for _, conn := range st.udp {
		conn.Close()
	}
	for _, l := range st.tcp {
		l.Close()
	}
	st.udp, st.tcp = nil, nil
}

func (st *station) serve() {
	for _, conn := range st.udp {
		st.wg.Go(func() { st.serveUDP(conn) })
	}
	for _, l := range st.tcp {
		st.wg.Go(func() { st.serveTCP(l) })
	}
}

// close takes the sockets away, and waits for everybody who used them.
func (st *station) close() {
	st.cancel()
	st.unbind()
	st.wg.Wait()
}

func (st *station) serveUDP(conn *net.UDPConn) {
	in, out := make([]byte, maxSize), make([]byte, 0, maxSize)
	for {
		n, src, err := conn.ReadFromUDPAddrPort(in)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			st.pause("read DNS questions", err)
			continue
		}
		out = st.answerUDP(conn, src, in[:n], out)
	}
}

// pause is for errors that may last, such as a lack of descriptors or memory: the next
// try must not come at once.
func (st *station) pause(what string, err error) {
	st.server.log.Warn(what, "err", err)
	select {
	case <-time.After(100 * time.Millisecond):
	case <-st.ctx.Done():
	}
}

// answerUDP answers what can be answered at once into buf, which it returns, and the
// rest in a goroutine.
func (st *station) answerUDP(conn *net.UDPConn, src netip.AddrPort, wire, buf []byte) []byte {
	e, ok := st.receive(policy.UDP, unmap(src), wire)
	if !ok {
		return buf
	}
	send := func(buf []byte) []byte {
		buf = e.reply.write(buf, &e.query, e.size)
		_, err := conn.WriteToUDPAddrPort(buf, src)
		e.record(err)
		return buf
	}
	if e.now() {
		return send(buf)
	}
	st.wg.Go(func() {
		e.wait()
		send(nil)
	})
	return buf
}

func (st *station) serveTCP(l *net.TCPListener) {
	for {
		conn, err := l.AcceptTCP()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			st.pause("accept a DNS connection", err)
			continue
		}
		st.wg.Go(func() { st.serveConn(conn) })
	}
}

// serveConn answers one question after the other until the client has had enough, or
// is idle.
func (st *station) serveConn(conn *net.TCPConn) {
	defer conn.Close()
	src := unmap(conn.RemoteAddr().(*net.TCPAddr).AddrPort())
	asker, ok := st.server.authority.Asker(st.ns.Cookie(), policy.TCP, src)
	if !ok {
		return
	}
	done, ok := st.server.quotas.takeConn(st.server.quotas.of(asker.Task))
	if !ok {
		return
	}
	defer done()
	stop := context.AfterFunc(st.ctx, func() { conn.Close() })
	defer stop()
	var in, out []byte
	for {
		_ = conn.SetDeadline(time.Now().Add(idle))
		wire, err := readMessage(conn, in)
		if err != nil {
			return
		}
		in = wire
		e, ok := st.receive(policy.TCP, src, wire)
		if !ok {
			return
		}
		if !e.now() {
			e.wait()
			_ = conn.SetDeadline(time.Now().Add(idle))
		}
		out = append(out[:0], 0, 0)
		out = append(out, e.reply.write(nil, &e.query, maxMessage)...)
		binary.BigEndian.PutUint16(out, uint16(len(out)-2))
		_, err = conn.Write(out)
		e.record(err)
		if err != nil {
			return
		}
	}
}

// maxQuery is the size of the largest message that is read as a query.
const maxQuery = maxSize

// readMessage reads a message with its length before it into buf, or into a larger one.
func readMessage(r io.Reader, buf []byte) ([]byte, error) {
	var length [2]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint16(length[:]))
	if n > maxQuery {
		return nil, errors.New("too large for a query")
	}
	if cap(buf) < n {
		buf = make([]byte, n)
	}
	_, err := io.ReadFull(r, buf[:n])
	return buf[:n], err
}

func unmap(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }
