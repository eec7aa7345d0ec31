// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"

	"agentguard.dev/agentguard/internal/netns"
)

// The ports of stations: those that need a privilege, or anybody could take one
// while the daemon is down. The resolver's stations begin one above.
const (
	highestPort = 1022
	lowestPort  = 512
)

// station relays in one namespace.
type station struct {
	server    *Server
	ns        *netns.Handle
	port      uint16
	listeners []*net.TCPListener
	accepting sync.WaitGroup // the listeners' goroutines, which begin links
	links     sync.WaitGroup
}

// open opens the sockets of a station.
func open(s *Server, ns *netns.Handle) (*station, error) {
	st := &station{server: s, ns: ns}
	err := ns.Do(func() error {
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
		return nil, err
	}
	return st, nil
}

// bind binds both families to one port. A machine without IPv6 has no ::1 for
// anybody to connect from.
func (st *station) bind(port uint16) error {
	for network, addr := range map[string]netip.Addr{
		"tcp4": netip.AddrFrom4([4]byte{127, 0, 0, 1}), "tcp6": netip.IPv6Loopback(),
	} {
		l, err := net.ListenTCP(network, net.TCPAddrFromAddrPort(netip.AddrPortFrom(addr, port)))
		switch {
		case err == nil:
			st.listeners = append(st.listeners, l)
		case addr.Is6() && (errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EAFNOSUPPORT)):
		case errors.Is(err, unix.EADDRNOTAVAIL):
			return fmt.Errorf("%w: the interface lo is down", err)
		default:
			return err
		}
	}
	return nil
}

func (st *station) unbind() {
	for _, l := range st.listeners {
		l.Close()
	}
	st.listeners = nil
}

func (st *station) serve() {
	for _, l := range st.listeners {
		st.accepting.Go(func() {
			err := st.server.http.Serve(listener{l, st})
			if !errors.Is(err, net.ErrClosed) && !errors.Is(err, http.ErrServerClosed) {
				st.server.config.Log.Error("plain HTTP is not relayed any more", "address", l.Addr(), "error", err)
			}
		})
	}
}

// close ends what the station does, and waits for everybody who does it.
func (st *station) close() {
	st.unbind()
	st.accepting.Wait()
	st.server.cut(func(l *link) bool { return l.station == st })
	st.links.Wait()
}

// listener gives the HTTP server the connections that it is to serve.
type listener struct {
	*net.TCPListener
	station *station
}

func (l listener) Accept() (net.Conn, error) {
	for {
		conn, err := l.AcceptTCP()
		if err != nil {
			return nil, err
		}
		if link := l.station.admit(conn); link != nil {
			return link, nil
		}
	}
}

// admit finds out whose a connection is. It returns nil for one that is not to be
// served: of nobody, too many, or of a task in mode audit.
func (st *station) admit(conn *net.TCPConn) *link {
	src := conn.RemoteAddr().(*net.TCPAddr).AddrPort()
	asker, ok := st.server.authority.Asker(st.ns.Cookie(), netip.AddrPortFrom(src.Addr().Unmap(), src.Port()))
	if !ok {
		reset(conn)
		return nil
	}
	l := newLink(st, conn, asker)
	if err := st.server.add(l); err != nil {
		l.refuse(err.Error())
		reset(conn)
		return nil
	}
	st.links.Add(1)
	if l.watched {
		go l.watch()
		return nil
	}
	return l
}
