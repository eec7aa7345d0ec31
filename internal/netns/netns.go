// SPDX-License-Identifier: Apache-2.0

// Package netns holds network namespaces open and runs code inside them.
package netns

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// ID names a network namespace for as long as somebody holds it open.
type ID struct {
	Dev, Inode uint64
}

// Handle keeps a network namespace alive until it is closed.
type Handle struct {
	file   *os.File
	id     ID
	cookie uint64
}

// Open opens the namespace behind a path such as /run/netns/NAME or
// /proc/PID/ns/net. The caller closes it.
func Open(path string) (*Handle, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	h := &Handle{file: file}
	if err := h.identify(); err != nil {
		file.Close()
		return nil, fmt.Errorf("open network namespace %s: %w", path, err)
	}
	return h, nil
}

// OfProcess opens the namespace of a process's main thread.
func OfProcess(pid int) (*Handle, error) {
	return Open(fmt.Sprintf("/proc/%d/ns/net", pid))
}

// Current opens the namespace of the calling thread.
func Current() (*Handle, error) {
	return Open("/proc/thread-self/ns/net")
}

func (h *Handle) identify() error {
	var st unix.Stat_t
	if err := unix.Fstat(h.FD(), &st); err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	h.id = ID{Dev: uint64(st.Dev), Inode: st.Ino}
	return h.Do(func() (err error) {
		h.cookie, err = currentCookie()
		return err
	})
}

// currentCookie asks for the cookie of the calling thread's namespace: the
// number that programs in the kernel know it by, never used twice on one boot.
func currentCookie() (uint64, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open socket: %w", err)
	}
	defer unix.Close(fd)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0, fmt.Errorf("read SO_NETNS_COOKIE (Linux 5.14): %w", err)
	}
	return cookie, nil
}

// ID tells handles of the same namespace from others.
func (h *Handle) ID() ID { return h.id }

// Cookie is the kernel's SO_NETNS_COOKIE of the namespace.
func (h *Handle) Cookie() uint64 { return h.cookie }

// FD is the descriptor, valid until Close.
func (h *Handle) FD() int { return int(h.file.Fd()) }

// Close lets go of the namespace.
func (h *Handle) Close() error { return h.file.Close() }

// Do runs fn on a thread that is inside the namespace. Sockets that fn opens
// stay in the namespace; goroutines that it starts do not run there.
func (h *Handle) Do(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		err, back := h.enter(fn)
		// A thread that could not return stays locked, and ends with the
		// goroutine.
		if back {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

func (h *Handle) enter(fn func() error) (err error, back bool) {
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return fmt.Errorf("open own network namespace: %w", err), true
	}
	defer home.Close()
	if err := unix.Setns(h.FD(), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace %d: %w", h.id.Inode, err), true
	}
	err = fn()
	if homeErr := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); homeErr != nil {
		return errors.Join(err, fmt.Errorf("leave network namespace %d: %w", h.id.Inode, homeErr)), false
	}
	return err, true
}
