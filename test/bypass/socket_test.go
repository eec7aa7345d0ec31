// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// sock is a descriptor of a socket, blocking, with time limits.
type sock int

func open(family, kind, proto int) (sock, error) {
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		return -1, step("socket", err)
	}
	for _, option := range []int{unix.SO_SNDTIMEO, unix.SO_RCVTIMEO} {
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, option, &unix.Timeval{Sec: 2}); err != nil {
			unix.Close(fd)
			return -1, step("setsockopt time limit", err)
		}
	}
	return sock(fd), nil
}

// openFor opens a socket of the family of address.
func openFor(address netip.Addr, kind, proto int) (sock, error) {
	return open(familyOf(address), kind, proto)
}

func familyOf(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func (s sock) close() { unix.Close(int(s)) }

func (s sock) set(level, option, value int) error {
	return step("setsockopt", unix.SetsockoptInt(int(s), level, option, value))
}

func (s sock) setBytes(level, option int, value []byte) error {
	return step("setsockopt", unix.SetsockoptString(int(s), level, option, string(value)))
}

func (s sock) bind(to netip.AddrPort) error {
	return step("bind", unix.Bind(int(s), sockaddr(to)))
}

func (s sock) connect(to netip.AddrPort) error {
	err := unix.Connect(int(s), sockaddr(to))
	if errors.Is(err, unix.EINPROGRESS) {
		err = unix.ETIMEDOUT // SO_SNDTIMEO has passed
	}
	return step("connect", err)
}

// disconnect is a connect to nothing.
func (s sock) disconnect() error {
	var none [16]byte // AF_UNSPEC
	_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(s), uintptr(unsafe.Pointer(&none)), uintptr(len(none)))
	if errno != 0 {
		return step("disconnect", errno)
	}
	return nil
}

func (s sock) write(data []byte) error {
	for len(data) > 0 {
		n, err := unix.Write(int(s), data)
		if err != nil {
			return step("write", err)
		}
		data = data[n:]
	}
	return nil
}

func (s sock) send(data []byte, flags int) error {
	return step("send", unix.Send(int(s), data, flags))
}

func (s sock) sendTo(data []byte, flags int, to netip.AddrPort) error {
	return step("sendto", unix.Sendto(int(s), data, flags, sockaddr(to)))
}

func (s sock) sendMsg(data, control []byte, flags int, to netip.AddrPort) error {
	var name unix.Sockaddr
	if to.IsValid() {
		name = sockaddr(to)
	}
	_, err := unix.SendmsgN(int(s), data, control, name, flags)
	return step("sendmsg", err)
}

// port is the one that the socket is bound to.
func (s sock) port() (uint16, error) {
	name, err := unix.Getsockname(int(s))
	if err != nil {
		return 0, step("getsockname", err)
	}
	switch name := name.(type) {
	case *unix.SockaddrInet4:
		return uint16(name.Port), nil
	case *unix.SockaddrInet6:
		return uint16(name.Port), nil
	}
	return 0, fmt.Errorf("getsockname: %T", name)
}

// sockaddr gives a's form for the kernel. A zone is the name of a link.
func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	to := &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
	if zone := a.Addr().Zone(); zone != "" {
		if ifi, err := net.InterfaceByName(zone); err == nil {
			to.ZoneId = uint32(ifi.Index)
		}
	}
	return to
}

// rawSockaddr is the same as octets.
func rawSockaddr(a netip.AddrPort) []byte {
	var b []byte
	b = native16(b, uint16(familyOf(a.Addr())))
	b = append(b, byte(a.Port()>>8), byte(a.Port()))
	if a.Addr().Is4() {
		b = append(b, a.Addr().AsSlice()...)
		return append(b, make([]byte, 8)...)
	}
	b = append(b, 0, 0, 0, 0)
	b = append(b, a.Addr().AsSlice()...)
	return native32(b, sockaddr(a).(*unix.SockaddrInet6).ZoneId)
}

// ancillary is one control message.
func ancillary(level, kind int, data []byte) []byte {
	b := make([]byte, unix.CmsgSpace(len(data)))
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	h.Level, h.Type = int32(level), int32(kind)
	h.SetLen(unix.CmsgLen(len(data)))
	copy(b[unix.CmsgLen(0):], data)
	return b
}

// connectAndSend is the plain way to a TCP server.
func (a *attempt) connectAndSend(s sock, to netip.AddrPort) error {
	if err := s.connect(to); err != nil {
		return err
	}
	return s.write(a.payload())
}

// tcp is a plain connection to one place.
func tcp(to netip.AddrPort) func(*attempt) error {
	return func(a *attempt) error {
		s, err := openFor(to.Addr(), unix.SOCK_STREAM, unix.IPPROTO_TCP)
		if err != nil {
			return err
		}
		defer s.close()
		return a.connectAndSend(s, to)
	}
}

// udpSocket opens one, and hands it to fn.
func udpSocket(like netip.Addr, fn func(*attempt, sock) error) func(*attempt) error {
	return func(a *attempt) error {
		s, err := openFor(like, unix.SOCK_DGRAM, unix.IPPROTO_UDP)
		if err != nil {
			return err
		}
		defer s.close()
		return fn(a, s)
	}
}

// udpTo is a plain datagram to one place.
func udpTo(to netip.AddrPort) func(*attempt) error {
	return udpSocket(to.Addr(), func(a *attempt, s sock) error { return s.sendTo(a.payload(), 0, to) })
}

// tcpSocket opens one, and hands it to fn.
func tcpSocket(like netip.Addr, fn func(*attempt, sock) error) func(*attempt) error {
	return func(a *attempt) error {
		s, err := openFor(like, unix.SOCK_STREAM, unix.IPPROTO_TCP)
		if err != nil {
			return err
		}
		defer s.close()
		return fn(a, s)
	}
}
