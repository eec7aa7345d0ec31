// SPDX-License-Identifier: Apache-2.0

// Command probe is the process of a task: it tries connections that it is told
// of on its standard input, one a line, and answers each with a line of
// standard output: "ok", or the step that failed and its errno. It ends when
// the input does; whoever started it loses patience for it.
package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
	"unsafe"
)

// probe says its number to every server, which sends it back.
type probe struct {
	number [4]byte
	held   int // the socket that stays open, -1 if there is none
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: probe NUMBER")
		os.Exit(2)
	}
	number, err := strconv.ParseUint(os.Args[1], 10, 32)
	if err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(2)
	}
	p := probe{held: -1}
	binary.BigEndian.PutUint32(p.number[:], uint32(number))
	orders := bufio.NewScanner(os.Stdin)
	for orders.Scan() {
		if _, err := fmt.Println(answer(p.obey(orders.Text()))); err != nil {
			return
		}
	}
}

// failure is a step that failed.
type failure struct {
	step string
	err  error
}

func (f failure) Error() string { return f.step + ": " + f.err.Error() }

func at(step string, err error) error {
	if err == nil {
		return nil
	}
	return failure{step, err}
}

func answer(err error) string {
	var failed failure
	var errno syscall.Errno
	if err == nil {
		return "ok"
	}
	if errors.As(err, &failed) && errors.As(failed.err, &errno) {
		return fmt.Sprintf("%s %d", failed.step, int(errno))
	}
	return "failed: " + err.Error()
}

func (p *probe) obey(order string) error {
	verb, argument, _ := strings.Cut(order, " ")
	switch verb {
	case "loopback":
		return p.loopback()
	case "again":
		return p.exchange(p.held)
	case "cut":
		_, err := syscall.Read(p.held, make([]byte, 1))
		return at("read", err)
	}
	to, err := netip.ParseAddrPort(argument)
	if err != nil {
		return err
	}
	switch verb {
	case "tcp":
		fd, err := p.dial(to, syscall.SOCK_STREAM)
		if err == nil {
			syscall.Close(fd)
		}
		return err
	case "hold":
		p.held, err = p.dial(to, syscall.SOCK_STREAM)
		return err
	case "udp":
		return p.send(to)
	}
	return fmt.Errorf("order %q is unknown", order)
}

// dial connects and exchanges the number once.
func (p *probe) dial(to netip.AddrPort, kind int) (fd int, err error) {
	if fd, err = open(to.Addr(), kind); err != nil {
		return -1, err
	}
	if err = at("connect", syscall.Connect(fd, sockaddr(to))); err == nil {
		err = p.exchange(fd)
	}
	if err != nil {
		syscall.Close(fd)
		return -1, err
	}
	return fd, nil
}

// send exchanges the number over an unconnected socket.
func (p *probe) send(to netip.AddrPort) error {
	fd, err := open(to.Addr(), syscall.SOCK_DGRAM)
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	if err := syscall.Sendto(fd, p.number[:], 0, sockaddr(to)); err != nil {
		return at("send", err)
	}
	return p.receive(fd)
}

func (p *probe) exchange(fd int) error {
	if _, err := syscall.Write(fd, p.number[:]); err != nil {
		return at("write", err)
	}
	return p.receive(fd)
}

func (p *probe) receive(fd int) error {
	var back [4]byte
	n, err := syscall.Read(fd, back[:])
	if err == nil && (n != len(back) || back != p.number) {
		return fmt.Errorf("the peer answered %x to %x", back[:n], p.number)
	}
	return at("read", err)
}

// loopback connects to a listener of its own and keeps both ends open.
func (p *probe) loopback() error {
	if err := raiseLoopback(); err != nil {
		return err
	}
	home := netip.MustParseAddr("127.0.0.1")
	listener, err := open(home, syscall.SOCK_STREAM)
	if err != nil {
		return err
	}
	if err := syscall.Bind(listener, sockaddr(netip.AddrPortFrom(home, 0))); err != nil {
		return at("bind", err)
	}
	if err := syscall.Listen(listener, 1); err != nil {
		return at("listen", err)
	}
	address, err := syscall.Getsockname(listener)
	if err != nil {
		return at("getsockname", err)
	}
	fd, err := open(home, syscall.SOCK_STREAM)
	if err != nil {
		return err
	}
	if err := syscall.Connect(fd, address); err != nil {
		return at("connect", err)
	}
	peer, _, err := syscall.Accept(listener)
	if err != nil {
		return at("accept", err)
	}
	if _, err := syscall.Write(fd, p.number[:]); err != nil {
		return at("write", err)
	}
	p.held = fd
	return p.receive(peer)
}

// raiseLoopback sets lo up, in a network namespace of the process's own.
func raiseLoopback() error {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return at("socket", err)
	}
	defer syscall.Close(fd)
	request := struct {
		name  [syscall.IFNAMSIZ]byte
		flags uint16
		_     [22]byte
	}{flags: syscall.IFF_UP | syscall.IFF_RUNNING}
	copy(request.name[:], "lo")
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), syscall.SIOCSIFFLAGS, uintptr(unsafe.Pointer(&request))); errno != 0 {
		return at("raise lo", errno)
	}
	return nil
}

func open(to netip.Addr, kind int) (fd int, err error) {
	family := syscall.AF_INET
	if to.Is6() {
		family = syscall.AF_INET6
	}
	if fd, err = syscall.Socket(family, kind|syscall.SOCK_CLOEXEC, 0); err != nil {
		return -1, at("socket", err)
	}
	return fd, nil
}

func sockaddr(to netip.AddrPort) syscall.Sockaddr {
	if to.Addr().Is6() {
		return &syscall.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()}
	}
	return &syscall.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
}
