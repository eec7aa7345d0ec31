// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"agentguard.dev/agentguard/client"
	"agentguard.dev/agentguard/internal/cgroup"
)

// How the end of a task that sends is measured.
const (
	lastPort   = 9003
	lastEnough = 1 << 20                // bytes of receive buffer in use when it ends
	lastRoom   = 512 << 20              // nothing is read before the end
	lastWatch  = 100 * time.Millisecond // after it
)

// lastOrder is what a sender is told.
type lastOrder struct {
	To netip.AddrPort
}

// last is the time from the call to end a task to the arrival of its last
// datagram, and to the answer.
type last struct {
	Sender  string  `json:"sender"`
	Rounds  int     `json:"rounds"`
	Arrival spent   `json:"lastArrival"`
	Answer  spent   `json:"answer"`
	Rate    float64 `json:"perSecond"` // datagrams, until the last
}

// runSender is the main of a process that sends until it is refused, or killed.
func runSender() {
	var o lastOrder
	in := json.NewDecoder(os.Stdin)
	if in.Decode(&o) != nil {
		return
	}
	l := &load{kind: udpSend, family: unix.AF_INET, to: []sockaddr{newSockaddr(o.To)}, buffer: make([]byte, payloadSize)}
	l.fd = l.socket(unix.SOCK_DGRAM)
	for l.failure == nil {
		l.sendTo(0)
	}
	in.Decode(&o) // never comes
}

// gauge is a socket that keeps datagrams, with the kernel's time of their
// arrival, until they are read.
type gauge struct{ fd int }

func (l *lab) gauge() (*gauge, error) {
	g := &gauge{}
	err := l.far.Do(func() (err error) {
		if g.fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
			return err
		}
		return errors.Join(
			unix.SetsockoptInt(g.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, lastRoom),
			unix.SetsockoptInt(g.fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1),
			unix.Bind(g.fd, &unix.SockaddrInet4{Port: lastPort}))
	})
	if err != nil {
		return nil, fmt.Errorf("receive datagrams: %w", err)
	}
	return g, nil
}

func (g *gauge) close() { unix.Close(g.fd) }

// read takes all datagrams and returns their number and the arrival of the
// first and the last.
func (g *gauge) read() (count int, first, latest time.Time, err error) {
	payload, control := make([]byte, payloadSize), make([]byte, 64)
	for {
		_, n, _, _, err := unix.Recvmsg(g.fd, payload, control, 0)
		if errors.Is(err, unix.EAGAIN) {
			return count, first, latest, nil
		}
		header := unix.CmsgLen(0)
		if err == nil && n < header+16 {
			err = errors.New("a datagram without a time")
		}
		if err != nil {
			return count, first, latest, fmt.Errorf("receive datagrams: %w", err)
		}
		latest = time.Unix(int64(binary.NativeEndian.Uint64(control[header:])), int64(binary.NativeEndian.Uint64(control[header+8:])))
		if count == 0 {
			first = latest
		}
		count++
	}
}

// room reads how much of the buffer is in use, and how many datagrams found no
// place in it.
func (g *gauge) room() (used, dropped uint32, err error) {
	var words [9]uint32
	const rmem, drops = 0, 8 // SK_MEMINFO_RMEM_ALLOC, SK_MEMINFO_DROPS
	size := uint32(unsafe.Sizeof(words))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(g.fd), unix.SOL_SOCKET, unix.SO_MEMINFO,
		uintptr(unsafe.Pointer(&words)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return 0, 0, fmt.Errorf("read SO_MEMINFO: %w", errno)
	}
	return words[rmem], words[drops], nil
}

// measureLast ends tasks in the midst of their sending. It is an error when a
// datagram arrives after the answer.
func measureLast(l *lab, d *daemon, report *report) error {
	for _, sender := range []struct {
		name   string
		rounds int
	}{{"waits once refused", 30}} {
		var arrivals, answers []time.Duration
		var datagrams int
		var sending time.Duration
		for range sender.rounds {
			r, err := lastOf(l, d)
			if err != nil {
				return err
			}
			if r.arrival > r.answer {
				return fmt.Errorf("a datagram arrived %s after the end was answered", r.arrival-r.answer)
			}
			arrivals, answers = append(arrivals, r.arrival), append(answers, r.answer)
			datagrams += r.datagrams
			sending += r.sending
		}
		report.last(last{
			Sender: sender.name, Rounds: sender.rounds, Rate: float64(datagrams) / sending.Seconds(),
			Arrival: spread99(arrivals), Answer: spread99(answers),
		})
	}
	return nil
}

type lastRound struct {
	arrival, answer, sending time.Duration
	datagrams                int
}

func lastOf(l *lab, d *daemon) (r lastRound, err error) {
	g, err := l.gauge()
	if err != nil {
		return r, err
	}
	defer g.close()
	order := lastOrder{To: at(destination4, lastPort)}
	task, err := d.task("udp://" + order.To.String())
	if err != nil {
		return r, err
	}
	dir, err := cgroup.Open(task.Cgroup)
	if err != nil {
		return r, err
	}
	defer dir.Close()
	sender, err := spawn(roleSender, dir, l.near, func(fn func() error) error { return fn() })
	if err != nil {
		return r, err
	}
	defer sender.stop()
	if err := sender.in.Encode(order); err != nil {
		return r, fmt.Errorf("order: %w", err)
	}
	if err := g.fill(); err != nil {
		return r, err
	}
	called := time.Now()
	if _, err := d.End(context.Background(), task.ID, client.EndRequest{}); err != nil {
		return r, err
	}
	r.answer = time.Since(called)
	time.Sleep(lastWatch)
	count, first, latest, err := g.read()
	if err != nil {
		return r, err
	}
	r.arrival, r.sending, r.datagrams = latest.Sub(called), latest.Sub(first), count
	_, dropped, err := g.room()
	if err == nil && dropped > 0 {
		err = fmt.Errorf("no room for %d datagrams: the last may be among them", dropped)
	}
	return r, err
}

// fill waits until enough has arrived.
func (g *gauge) fill() error {
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		used, _, err := g.room()
		if err != nil || used >= lastEnough {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("only %d bytes arrived of a task that sends", used)
		}
	}
}
