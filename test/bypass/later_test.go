// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// fairQueue is a queueing discipline that holds packets until a time that the
// socket names: they have passed every hook by then.
func fairQueue() feature {
	return feature{"the fq queueing discipline", func() error {
		link, err := netlink.LinkByName(hostLink)
		if err != nil {
			return err
		}
		queue := queueOf(link.Attrs().Index)
		if err := netlink.QdiscReplace(queue); err != nil {
			return err
		}
		return netlink.QdiscDel(queue)
	}}
}

func queueOf(link int) netlink.Qdisc {
	return netlink.NewFq(netlink.QdiscAttrs{LinkIndex: link, Parent: netlink.HANDLE_ROOT, Handle: netlink.MakeHandle(1, 0)})
}

// queued puts the host's link under fq for one trial.
func queued(t *trial) error {
	queue := queueOf(t.lab.hostIndex)
	if err := t.lab.host.Do(func() error { return netlink.QdiscReplace(queue) }); err != nil {
		return fmt.Errorf("set queueing discipline: %w", err)
	}
	t.cleanup = append(t.cleanup, func() error { return t.lab.host.Do(func() error { return netlink.QdiscDel(queue) }) })
	return nil
}

const delay = 400 * time.Millisecond

// delayedFlow sends one datagram at once and names a later time for another.
func delayedFlow(to netip.AddrPort) func(*attempt) (func(int) error, error) {
	return func(a *attempt) (func(int) error, error) {
		s, err := openFor(to.Addr(), unix.SOCK_DGRAM, unix.IPPROTO_UDP)
		if err != nil {
			return nil, err
		}
		// Where this is refused the second datagram is not sent at all.
		refused := s.setBytes(unix.SOL_SOCKET, unix.SO_TXTIME, native32(native32(nil, unix.CLOCK_MONOTONIC), 0))
		return func(i int) error {
			if i > 0 {
				return refused
			}
			if err := s.sendTo(a.numbered(0), 0, to); err != nil || refused != nil {
				return err
			}
			var now unix.Timespec
			if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
				return err
			}
			when := native64(nil, uint64(now.Nano())+uint64(delay))
			return s.sendMsg(a.numbered(1), ancillary(unix.SOL_SOCKET, unix.SO_TXTIME, when), 0, to)
		}, nil
	}
}

// pacedFlow lets its datagrams queue up behind a rate of its own.
func pacedFlow(to netip.AddrPort) func(*attempt) (func(int) error, error) {
	return func(a *attempt) (func(int) error, error) {
		s, err := openFor(to.Addr(), unix.SOCK_DGRAM, unix.IPPROTO_UDP)
		if err != nil {
			return nil, err
		}
		refused := s.set(unix.SOL_SOCKET, unix.SO_MAX_PACING_RATE, 200) // octets a second
		return func(i int) error {
			if i > 0 {
				return refused
			}
			for range 20 { // each waits at least 0.3 s for the one before
				if err := s.sendTo(a.numbered(i), 0, to); err != nil || refused != nil {
					return err
				}
			}
			return nil
		}, nil
	}
}
