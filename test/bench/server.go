// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"net/netip"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Every client has a server of its own, with one thread for each of the two
// things that it serves, so that nobody waits in a poll.

// runServer listens on two ports and says which: the first echoes requests, the
// second discards.
func runServer() {
	echo, discard := listenAny(), listenAny()
	go serve(echo, true)
	go serve(discard, false)
	json.NewEncoder(os.Stdout).Encode([]int{portOf(echo), portOf(discard)})
	os.Stdin.Read(make([]byte, 1)) // until the bench ends
}

func listenAny() int {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		panic(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet6{}); err != nil {
		panic(err)
	}
	if err := unix.Listen(fd, 16); err != nil {
		panic(err)
	}
	return fd
}

func portOf(fd int) int {
	at, err := unix.Getsockname(fd)
	if err != nil {
		panic(err)
	}
	return at.(*unix.SockaddrInet6).Port
}

func serve(listener int, echo bool) {
	runtime.LockOSThread()
	buffer := make([]byte, 2*bulkSize)
	at := uintptr(unsafe.Pointer(&buffer[0]))
	for {
		fd, _, errno := unix.RawSyscall6(unix.SYS_ACCEPT4, uintptr(listener), 0, 0, unix.SOCK_CLOEXEC, 0, 0)
		if errno != 0 {
			panic(errno)
		}
		if echo {
			unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
		}
		for {
			n, _, errno := unix.RawSyscall(unix.SYS_READ, fd, at, uintptr(len(buffer)))
			if errno != 0 || n == 0 {
				break
			}
			if echo {
				unix.RawSyscall(unix.SYS_WRITE, fd, at, n)
			}
		}
		unix.RawSyscall(unix.SYS_CLOSE, fd, 0, 0)
	}
}

// ports are where one client's server listens.
type ports struct{ echo, discard uint16 }

func (c *child) ports() (ports, error) {
	var two [2]uint16
	err := c.out.Decode(&two)
	return ports{two[0], two[1]}, err
}

// at is the same port at another address.
func at(addr netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(addr, port) }
