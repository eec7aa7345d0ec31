// SPDX-License-Identifier: Apache-2.0

// Package localaddr keeps the kernel's table of local addresses in step with
// the network namespaces in which tasks run.
//
// Programs in the kernel cannot ask whether an address is the host's own; they
// look it up in that table.
package localaddr

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"sync"

	"github.com/vishvananda/netlink"
	vnetns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"agentguard.dev/agentguard/internal/netns"
)

// Table is the kernel's table, as *maps.LocalAddrs implements it.
type Table interface {
	// Replace makes addrs the addresses of the namespace with that cookie.
	Replace(cookie uint64, addrs []netip.Addr) error
}

// Watcher follows the addresses of namespaces until it is closed.
type Watcher struct {
	table Table
	log   *slog.Logger

	mu       sync.Mutex
	watching map[netns.ID]*watch
}

// New returns a watcher that watches nothing yet.
func New(table Table, log *slog.Logger) *Watcher {
	return &Watcher{table: table, log: log, watching: make(map[netns.ID]*watch)}
}

// Add writes the namespace's addresses to the table and follows their changes
// until Remove. The watch keeps the namespace alive, but not ns, which may be
// closed. Adding a namespace twice is one watch.
func (w *Watcher) Add(ns *netns.Handle) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.watching[ns.ID()] != nil {
		return nil
	}
	following, err := w.follow(ns)
	if err != nil {
		return fmt.Errorf("watch addresses of network namespace %d: %w", ns.ID().Inode, err)
	}
	w.watching[ns.ID()] = following
	return nil
}

// Remove stops watching and removes the namespace's addresses from the table.
func (w *Watcher) Remove(id netns.ID) error {
	w.mu.Lock()
	following := w.watching[id]
	delete(w.watching, id)
	w.mu.Unlock()
	if following == nil {
		return nil
	}
	following.stop()
	return w.table.Replace(following.cookie, nil)
}

// Close stops watching. The table keeps what it holds, for the programs that
// go on using it.
func (w *Watcher) Close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for id, following := range w.watching {
		following.stop()
		delete(w.watching, id)
	}
}

// watch is one namespace. Its reader owns both sockets.
type watch struct {
	cookie  uint64
	dump    *netlink.Handle
	changes *os.File
	stopped chan struct{}
}

func (w *Watcher) follow(ns *netns.Handle) (*watch, error) {
	// Subscribed before the first dump: no change falls between the two.
	changes, err := subscribe(ns)
	if err != nil {
		return nil, err
	}
	dump, err := netlink.NewHandleAt(vnetns.NsHandle(ns.FD()), unix.NETLINK_ROUTE)
	if err != nil {
		changes.Close()
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	following := &watch{cookie: ns.Cookie(), dump: dump, changes: changes, stopped: make(chan struct{})}
	if err := w.refresh(following); err != nil {
		following.close()
		return nil, err
	}
	go w.read(following)
	return following, nil
}

// subscribe opens a netlink socket inside ns that becomes readable when an
// address comes or goes.
func subscribe(ns *netns.Handle) (*os.File, error) {
	fd := -1
	err := ns.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	groups := &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR}
	if err := unix.Bind(fd, groups); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("subscribe to address changes: %w", err)
	}
	return os.NewFile(uintptr(fd), "netlink"), nil
}

func (w *Watcher) read(following *watch) {
	defer close(following.stopped)
	defer following.close()
	buf := make([]byte, 64<<10)
	for {
		// What a notification says is not looked at: the dump that it causes
		// also covers those that were dropped for want of room.
		_, err := following.changes.Read(buf)
		if errors.Is(err, os.ErrClosed) {
			return
		}
		if err != nil && !errors.Is(err, unix.ENOBUFS) {
			w.log.Error("watch addresses", "netns", following.cookie, "error", err)
			return
		}
		if err := w.refresh(following); err != nil {
			w.log.Error("refresh local addresses", "netns", following.cookie, "error", err)
		}
	}
}

func (w *Watcher) refresh(following *watch) error {
	list, err := following.dump.AddrList(nil, netlink.FAMILY_ALL)
	for errors.Is(err, netlink.ErrDumpInterrupted) {
		list, err = following.dump.AddrList(nil, netlink.FAMILY_ALL)
	}
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	addrs := make([]netip.Addr, 0, len(list))
	for _, addr := range list {
		if ip, ok := netip.AddrFromSlice(addr.IP); ok {
			addrs = append(addrs, ip.Unmap())
		}
	}
	if err := w.table.Replace(following.cookie, addrs); err != nil {
		return fmt.Errorf("write local addresses: %w", err)
	}
	return nil
}

func (f *watch) stop() {
	f.changes.Close()
	<-f.stopped
}

func (f *watch) close() {
	f.changes.Close()
	f.dump.Close()
}
