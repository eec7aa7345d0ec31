// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/netip"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// runServer is the main of a server, which every lane has for itself: it echoes
// what comes on one connection after another, with a thread that waits in no
// poll.
func runServer() {
	runtime.LockOSThread()
	buffer := make([]byte, payloadSize)
	at := uintptr(unsafe.Pointer(&buffer[0]))
	for {
		fd, _, errno := unix.RawSyscall6(unix.SYS_ACCEPT4, inherited, 0, 0, unix.SOCK_CLOEXEC, 0, 0)
		if errno != 0 {
			return
		}
		unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
		for {
			n, _, errno := unix.RawSyscall(unix.SYS_READ, fd, at, uintptr(len(buffer)))
			if errno != 0 || n == 0 {
				break
			}
			unix.RawSyscall(unix.SYS_WRITE, fd, at, n)
		}
		unix.RawSyscall(unix.SYS_CLOSE, fd, 0, 0)
	}
}

// at is a port at an address.
func at(addr netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(addr, port) }
