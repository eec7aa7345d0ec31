// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/tls"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// kind is one thing that a client does over and over.
type kind string

const (
	tcpConnect    kind = "tcp-connect"   // socket, connect, close with a reset: no port is left in TIME_WAIT
	tcpRefused    kind = "tcp-refused"   // as above, where the far end or the guard refuses
	udpConnect    kind = "udp-connect"   // socket, connect, close
	udpReconnect  kind = "udp-reconnect" // connect alone, on a socket that is connected already
	udpSend       kind = "udp-send"      // sendto on an unconnected socket
	udpSendDenied kind = "udp-denied"    // as above, where the guard refuses
	udpConnected  kind = "udp-connected" // send on a connected socket
	tcpRequest    kind = "tcp-request"   // a request and its response on an open connection
	tcpBulk       kind = "tcp-bulk"      // a write of bulkSize on an open connection, and the far end's reading it
	tlsHandshake  kind = "tls-handshake" // connect, a whole handshake, reset
	tlsResumed    kind = "tls-resumed"   // as above, with a session that the server knows
	dnsOne        kind = "dns-one"       // socket, connect, question, answer, close: what a C library does
	dnsMany       kind = "dns-many"      // questions on one socket, all of a batch before their answers
	dnsConnect    kind = "dns-connect"   // dnsOne for a name never asked for, then tcpConnect to the second destination
)

const (
	payloadSize = 64
	bulkSize    = 128 << 10
)

// order is what a client is told to do. The sockets of a workload live from its
// opening until the next one's.
type order struct {
	Open    *work `json:",omitempty"`
	Batch   int   // operations between two looks at the clock
	SliceNS int64 // how long to go on; 0 with Open set
}

type work struct {
	Kind         kind
	Destinations []netip.AddrPort // asked in turn, in an order of chance
}

// answer reports a slice.
type answer struct {
	NS    float64 // an operation, the median of the batches
	Ops   int
	Error string `json:",omitempty"`
}

// sockaddr is a struct sockaddr_in or sockaddr_in6 in the kernel's layout.
type sockaddr struct {
	bytes  [unix.SizeofSockaddrInet6]byte
	length uintptr
}

func newSockaddr(at netip.AddrPort) sockaddr {
	var s sockaddr
	port := [2]byte{byte(at.Port() >> 8), byte(at.Port())}
	if at.Addr().Is4() {
		raw := (*unix.RawSockaddrInet4)(unsafe.Pointer(&s.bytes))
		raw.Family = unix.AF_INET
		raw.Port = *(*uint16)(unsafe.Pointer(&port))
		raw.Addr = at.Addr().As4()
		s.length = unix.SizeofSockaddrInet4
		return s
	}
	raw := (*unix.RawSockaddrInet6)(unsafe.Pointer(&s.bytes))
	raw.Family = unix.AF_INET6
	raw.Port = *(*uint16)(unsafe.Pointer(&port))
	raw.Addr = at.Addr().As16()
	s.length = unix.SizeofSockaddrInet6
	return s
}

// load is a workload in progress. Its system calls are raw: the Go scheduler
// takes no part.
type load struct {
	kind     kind
	family   uintptr
	to       []sockaddr
	next     int
	fd       uintptr
	listener uintptr // the far end's
	far      uintptr // the far end of fd, where nobody else serves it
	buffer   []byte
	failure  error

	tls *tls.Config
	*asking
}

func openLoad(w work, listener uintptr) (*load, error) {
	l := &load{kind: w.Kind, family: unix.AF_INET, listener: listener, buffer: make([]byte, bulkSize)}
	for _, at := range w.Destinations {
		if !at.Addr().Is4() {
			l.family = unix.AF_INET6
		}
		l.to = append(l.to, newSockaddr(at))
	}
	switch w.Kind {
	case tlsHandshake, tlsResumed:
		l.tls = clientTLS(w.Kind == tlsResumed)
	case dnsOne, dnsMany, dnsConnect:
		var err error
		if l.asking, err = newAsking(w.Kind == dnsConnect); err != nil {
			return nil, err
		}
		if w.Kind == dnsMany {
			l.lookUp() // from now on the answer is in the cache
			l.fd = l.resolverSocket()
		}
		return l, l.failure
	}
	rand.Shuffle(len(l.to), func(i, j int) { l.to[i], l.to[j] = l.to[j], l.to[i] })
	switch w.Kind {
	case udpReconnect, udpConnected:
		l.fd = l.socket(unix.SOCK_DGRAM)
		l.connect(l.fd, 0)
	case udpSend, udpSendDenied:
		l.fd = l.socket(unix.SOCK_DGRAM)
	case tcpRequest, tcpBulk:
		l.fd = l.socket(unix.SOCK_STREAM)
		l.connect(l.fd, 0)
		if err := unix.SetsockoptInt(int(l.fd), unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
			l.fail("set TCP_NODELAY", err)
		}
	}
	if w.Kind == tcpBulk {
		l.far = l.accept()
		for _, fd := range []uintptr{l.fd, l.far} {
			if err := unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 8*bulkSize); err != nil {
				l.fail("set SO_SNDBUF", err)
			}
			if err := unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8*bulkSize); err != nil {
				l.fail("set SO_RCVBUF", err)
			}
		}
	}
	return l, l.failure
}

func (l *load) close() {
	for _, fd := range []uintptr{l.fd, l.far} {
		if fd != 0 {
			unix.Close(int(fd))
		}
	}
}

func (l *load) accept() uintptr {
	fd, _, errno := unix.RawSyscall6(unix.SYS_ACCEPT4, l.listener, 0, 0, unix.SOCK_CLOEXEC, 0, 0)
	if errno != 0 {
		l.fail("accept", errno)
	}
	return fd
}

func (l *load) fail(step string, err error) {
	if l.failure == nil {
		l.failure = fmt.Errorf("%s: %s: %w", l.kind, step, err)
	}
}

func (l *load) socket(kind uintptr) uintptr {
	fd, _, errno := unix.RawSyscall(unix.SYS_SOCKET, l.family, kind|unix.SOCK_CLOEXEC, 0)
	if errno != 0 {
		l.fail("socket", errno)
	}
	return fd
}

// connect tolerates an errno that the workload is about.
func (l *load) connect(fd uintptr, tolerated ...unix.Errno) {
	l.connectTo(fd, l.destination(), tolerated...)
}

func (l *load) connectTo(fd uintptr, to *sockaddr, tolerated ...unix.Errno) {
	_, _, errno := unix.RawSyscall(unix.SYS_CONNECT, fd, uintptr(unsafe.Pointer(&to.bytes)), to.length)
	if errno == 0 && tolerated[0] == 0 {
		return
	}
	for _, t := range tolerated {
		if errno == t {
			return
		}
	}
	l.fail("connect", errno)
}

func (l *load) destination() *sockaddr {
	to := &l.to[l.next]
	if l.next++; l.next == len(l.to) {
		l.next = 0
	}
	return to
}

var resetOnClose = unix.Linger{Onoff: 1}

// batch does n operations; an error is kept in failure.
func (l *load) batch(n int) {
	switch l.kind {
	case tcpConnect:
		for range n {
			l.comeAndGo(l.destination())
		}
	case tcpRefused:
		for range n {
			fd := l.socket(unix.SOCK_STREAM)
			l.connect(fd, unix.ECONNREFUSED, unix.EPERM)
			unix.RawSyscall(unix.SYS_CLOSE, fd, 0, 0)
		}
	case udpConnect:
		for range n {
			fd := l.socket(unix.SOCK_DGRAM)
			l.connect(fd, 0)
			unix.RawSyscall(unix.SYS_CLOSE, fd, 0, 0)
		}
	case udpReconnect:
		for range n {
			l.connect(l.fd, 0)
		}
	case udpSend:
		for range n {
			l.sendTo(0)
		}
	case udpSendDenied:
		for range n {
			l.sendTo(unix.EPERM)
		}
	case udpConnected:
		for range n {
			l.write(payloadSize)
		}
	case tcpRequest:
		for range n {
			l.write(payloadSize)
			l.read(payloadSize)
		}
	case tcpBulk:
		for range n {
			l.write(bulkSize)
			l.discard(bulkSize)
		}
	case tlsHandshake, tlsResumed:
		for range n {
			l.handshake()
		}
	case dnsOne:
		for range n {
			l.lookUp()
		}
	case dnsMany:
		for range n {
			l.ask(l.fd)
		}
		for range n {
			l.hear(l.fd)
		}
	case dnsConnect:
		for range n {
			l.lookUp()
			l.comeAndGo(&l.to[1])
		}
	}
}

// comeAndGo connects and hangs up with a reset.
func (l *load) comeAndGo(to *sockaddr) {
	fd := l.socket(unix.SOCK_STREAM)
	unix.RawSyscall6(unix.SYS_SETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_LINGER,
		uintptr(unsafe.Pointer(&resetOnClose)), unsafe.Sizeof(resetOnClose), 0)
	l.connectTo(fd, to, 0)
	unix.RawSyscall(unix.SYS_CLOSE, fd, 0, 0)
}

func (l *load) sendTo(tolerated unix.Errno) {
	to := l.destination()
	_, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, l.fd, uintptr(unsafe.Pointer(&l.buffer[0])), payloadSize, 0,
		uintptr(unsafe.Pointer(&to.bytes)), to.length)
	if errno != 0 && errno != tolerated {
		l.fail("sendto", errno)
	}
}

func (l *load) write(size uintptr) {
	for size > 0 {
		n, _, errno := unix.RawSyscall(unix.SYS_WRITE, l.fd, uintptr(unsafe.Pointer(&l.buffer[0])), size)
		if errno != 0 {
			l.fail("write", errno)
			return
		}
		size -= n
	}
}

func (l *load) read(size uintptr) {
	for size > 0 {
		n, _, errno := unix.RawSyscall(unix.SYS_READ, l.fd, uintptr(unsafe.Pointer(&l.buffer[0])), size)
		if errno != 0 || n == 0 {
			l.fail("read", errno)
			return
		}
		size -= n
	}
}

// discard reads at the far end.
func (l *load) discard(size uintptr) {
	for size > 0 {
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, l.far, uintptr(unsafe.Pointer(&l.buffer[0])), size, 0, 0, 0)
		if errno != 0 || n == 0 {
			l.fail("discard", errno)
			return
		}
		size -= n
	}
}

// rest takes the connections of a batch off the far end's queue. It is not
// timed: a real server does this on a processor of its own.
func (l *load) rest(n int) {
	if l.kind != tcpConnect && l.kind != dnsConnect {
		return
	}
	for range n {
		unix.RawSyscall(unix.SYS_CLOSE, l.accept(), 0, 0)
	}
}
