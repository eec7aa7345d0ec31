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
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"agentguard.dev/agentguard/client"
	"agentguard.dev/agentguard/internal/cgroup"
)

// How the end of a task that sends is measured.
const (
	lastRounds = 20
	lastEnough = 2000                   // datagrams before the end
	lastWatch  = 100 * time.Millisecond // after it
	lastPort   = 9003
)

// last is the time from the call to end a task to the arrival of its last
// datagram, and to the answer.
type last struct {
	Rounds    int     `json:"rounds"`
	Arrival   spent   `json:"lastArrival"`
	Answer    spent   `json:"answer"`
	Datagrams int64   `json:"datagrams"`
	Rate      float64 `json:"perSecond"` // before the end
}

// runSender is the main of a process that sends for as long as it lives.
func runSender() {
	var to netip.AddrPort
	if json.NewDecoder(os.Stdin).Decode(&to) != nil {
		return
	}
	l := &load{kind: udpSend, family: unix.AF_INET, to: []sockaddr{newSockaddr(to)}, buffer: make([]byte, payloadSize)}
	for l.fd = l.socket(unix.SOCK_DGRAM); ; {
		l.sendTo(unix.EPERM)
	}
}

// gauge receives datagrams and keeps the kernel's time of the latest, so that
// it does not matter when they are read.
type gauge struct {
	fd     int
	count  atomic.Int64
	latest atomic.Int64 // ns since 1970
	done   atomic.Bool
	reader sync.WaitGroup
}

func (l *lab) gauge() (*gauge, error) {
	g := &gauge{}
	err := l.far.Do(func() (err error) {
		if g.fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return errors.Join(
			unix.SetsockoptInt(g.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 256<<20),
			unix.SetsockoptInt(g.fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1),
			unix.SetsockoptTimeval(g.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 10_000}),
			unix.Bind(g.fd, &unix.SockaddrInet4{Port: lastPort}))
	})
	if err != nil {
		return nil, fmt.Errorf("receive datagrams: %w", err)
	}
	g.reader.Go(g.read)
	return g, nil
}

func (g *gauge) read() {
	payload, control := make([]byte, payloadSize), make([]byte, 64)
	for {
		_, n, _, _, err := unix.Recvmsg(g.fd, payload, control, 0)
		if err != nil {
			if g.done.Load() {
				return
			}
			continue // nothing came
		}
		if header := unix.CmsgLen(0); n >= header+16 {
			at := binary.NativeEndian.Uint64(control[header:])*1e9 + binary.NativeEndian.Uint64(control[header+8:])
			g.latest.Store(int64(at))
		}
		g.count.Add(1)
	}
}

func (g *gauge) close() {
	g.done.Store(true)
	g.reader.Wait()
	unix.Close(g.fd)
}

// dropped counts what came and found no room.
func (g *gauge) dropped() (uint32, error) {
	var words [9]uint32
	const drops = 8 // SK_MEMINFO_DROPS
	size := uint32(unsafe.Sizeof(words))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(g.fd), unix.SOL_SOCKET, unix.SO_MEMINFO,
		uintptr(unsafe.Pointer(&words)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return 0, fmt.Errorf("read SO_MEMINFO: %w", errno)
	}
	return words[drops], nil
}

// measureLast ends tasks in the midst of their sending. It is an error when a
// datagram arrives after the answer.
func (o *options) measureLast(l *lab, d *daemon, report *report) error {
	var arrivals, answers []time.Duration
	result := last{Rounds: lastRounds}
	var sending time.Duration
	for range lastRounds {
		r, err := o.lastOf(l, d)
		if err != nil {
			return err
		}
		if r.arrival > r.answer {
			return fmt.Errorf("a datagram arrived %s after the end was answered", r.arrival-r.answer)
		}
		arrivals, answers = append(arrivals, r.arrival), append(answers, r.answer)
		result.Datagrams += r.datagrams
		sending += r.sending
	}
	result.Rate = float64(result.Datagrams) / sending.Seconds()
	result.Arrival, result.Answer = spread99(arrivals), spread99(answers)
	report.last(result)
	return nil
}

type lastRound struct {
	arrival, answer, sending time.Duration
	datagrams                int64
}

func (o *options) lastOf(l *lab, d *daemon) (r lastRound, err error) {
	g, err := l.gauge()
	if err != nil {
		return r, err
	}
	defer g.close()
	to := at(destination4, lastPort)
	task, err := d.task("udp://" + to.String())
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
	if err := sender.in.Encode(to); err != nil {
		return r, fmt.Errorf("order: %w", err)
	}
	begun := time.Now()
	for g.count.Load() < lastEnough {
		if time.Since(begun) > 10*time.Second {
			return r, fmt.Errorf("only %d datagrams of the task arrived", g.count.Load())
		}
		time.Sleep(time.Millisecond)
	}
	called := time.Now()
	if _, err := d.End(context.Background(), task.ID, client.EndRequest{}); err != nil {
		return r, err
	}
	r.answer = time.Since(called)
	time.Sleep(lastWatch)
	r.arrival = time.Duration(g.latest.Load() - called.UnixNano())
	r.datagrams = g.count.Load()
	r.sending = called.Sub(begun) + r.arrival
	dropped, err := g.dropped()
	if err == nil && dropped > 0 {
		err = fmt.Errorf("the receiver had no room for %d datagrams: the last may be among them", dropped)
	}
	return r, err
}
