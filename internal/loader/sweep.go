// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"agentguard.dev/agentguard/bpf"
	"agentguard.dev/agentguard/internal/maps"
	"agentguard.dev/agentguard/internal/netns"
)

// sweeper runs the iterators over a namespace's sockets.
type sweeper struct {
	links []*link.Iter
}

func (s *sweeper) open(objs *bpf.GuardObjects) error {
	for name, program := range map[string]*ebpf.Program{"ag_iter_tcp": objs.AgIterTcp, "ag_iter_udp": objs.AgIterUdp} {
		l, err := link.AttachIter(link.IterOptions{Program: program})
		if err != nil {
			return fmt.Errorf("attach %s: %w", name, err)
		}
		s.links = append(s.links, l)
	}
	return nil
}

func (s *sweeper) Close() error {
	var errs []error
	for _, l := range s.links {
		errs = append(errs, l.Close())
	}
	s.links = nil
	return errors.Join(errs...)
}

// Socket is one TCP or UDP socket of a task.
type Socket struct {
	Task          uint32 // number
	Cgroup        uint64 // of the task
	Proto         uint8  // as the socket has it
	State         uint8  // TCP's, of net/tcp_states.h
	Local, Remote netip.AddrPort
	Unsent        uint32 // TCP: bytes written and not yet acknowledged by the peer
	Cut           Reason // why it had to go; ReasonNone if it may stay
	Destroyed     bool

	raw bpf.GuardSocket
}

// SweepResult is what a sweep found and did.
type SweepResult struct {
	Sockets   []Socket // of all tasks, those destroyed included
	Destroyed int
}

// Sweep judges every TCP and UDP socket of every task in the namespaces by the
// rules of now, and destroys those that may no longer be: of tasks that are not
// live, or connected to what is no longer allowed. The program at such a socket
// gets ECONNABORTED, its peer a reset. MPTCP sockets lose their subflows but do
// not notice.
func (k *Kernel) Sweep(ctx context.Context, namespaces []*netns.Handle) (SweepResult, error) {
	return k.iterate(ctx, namespaces, 0, true)
}

// Sockets lists the sockets of one task, or of all if number is 0.
func (k *Kernel) Sockets(ctx context.Context, namespaces []*netns.Handle, number uint32) ([]Socket, error) {
	result, err := k.iterate(ctx, namespaces, number, false)
	return result.Sockets, err
}

func (k *Kernel) iterate(ctx context.Context, namespaces []*netns.Handle, number uint32, cut bool) (SweepResult, error) {
	k.sweep.Lock()
	defer k.sweep.Unlock()
	var result SweepResult
	if err := k.configureSweep(number, cut); err != nil {
		return result, err
	}
	for _, ns := range namespaces {
		if err := ctx.Err(); err != nil {
			return result, err
		}
		err := ns.Do(func() error {
			sockets, err := k.sweeper.sockets()
			if err == nil && cut {
				if err = k.sweeper.spareOwn(sockets); err == nil {
					err = destroyRest(sockets)
				}
			}
			result.Sockets = append(result.Sockets, sockets...)
			return err
		})
		if err != nil {
			return result, fmt.Errorf("sweep network namespace %d: %w", ns.Cookie(), err)
		}
	}
	for _, s := range result.Sockets {
		if s.Destroyed {
			result.Destroyed++
		}
	}
	return result, nil
}

func (k *Kernel) configureSweep(number uint32, cut bool) error {
	var levels uint32
	for _, g := range k.Guards() {
		levels |= 1 << g.Level
	}
	v := &k.objs.GuardVariables
	return errors.Join(v.SweepLevels.Set(levels), v.SweepTask.Set(number), v.SweepCut.Set(cut))
}

// sockets runs the iterators in the namespace of the calling thread.
func (s *sweeper) sockets() ([]Socket, error) {
	var found []Socket
	for _, l := range s.links {
		if err := readSockets(l, &found); err != nil {
			return found, err
		}
	}
	return found, nil
}

// spareOwn takes the verdict from flows whose other end is the task's own. What
// has just connected can be listed by one end only, so a second look decides.
func (s *sweeper) spareOwn(sockets []Socket) error {
	if !clearOwn(sockets) {
		return nil
	}
	again, err := s.sockets()
	if err != nil {
		return err
	}
	clearOwn(again)
	strange := make(map[uint64]bool)
	for _, other := range again {
		strange[other.raw.Cookie] = other.Cut == ReasonNotOwn
	}
	for i := range sockets {
		if sockets[i].Cut == ReasonNotOwn && !strange[sockets[i].raw.Cookie] {
			sockets[i].Cut = ReasonNone
		}
	}
	return nil
}

// clearOwn reports whether it leaves any flow to somebody else.
func clearOwn(sockets []Socket) (left bool) {
	type end struct {
		task  uint32
		proto uint8
		at    netip.AddrPort
	}
	own := make(map[end]bool)
	for _, s := range sockets {
		own[end{s.Task, s.Proto, s.Local}] = true
	}
	for i := range sockets {
		s := &sockets[i]
		if s.Cut != ReasonNotOwn {
			continue
		}
		port := s.Remote.Port()
		for _, at := range []netip.AddrPort{s.Remote,
			netip.AddrPortFrom(netip.IPv4Unspecified(), port), netip.AddrPortFrom(netip.IPv6Unspecified(), port)} {
			if own[end{s.Task, s.Proto, at}] {
				s.Cut = ReasonNone
			}
		}
		left = left || s.Cut == ReasonNotOwn
	}
	return left
}

const socketSize = int(unsafe.Sizeof(bpf.GuardSocket{}))

func readSockets(l *link.Iter, into *[]Socket) error {
	r, err := l.Open()
	if err != nil {
		return fmt.Errorf("open iterator: %w", err)
	}
	defer r.Close()
	data, err := readIterator(r)
	if err != nil {
		return fmt.Errorf("read iterator: %w", err)
	}
	for len(data) >= socketSize {
		var raw bpf.GuardSocket
		copy(unsafe.Slice((*byte)(unsafe.Pointer(&raw)), socketSize), data)
		data = data[socketSize:]
		*into = append(*into, socketOf(raw))
	}
	return nil
}

// readIterator reads to the end. An iterator that has gone over a million
// objects without output asks to be read again, with EAGAIN.
func readIterator(r io.Reader) ([]byte, error) {
	var data []byte
	for {
		more, err := io.ReadAll(r)
		data = append(data, more...)
		if !errors.Is(err, unix.EAGAIN) {
			return data, err
		}
	}
}

func socketOf(raw bpf.GuardSocket) Socket {
	return Socket{
		Task:      raw.Task,
		Cgroup:    raw.Cgroup,
		Proto:     raw.Proto,
		State:     raw.State,
		Local:     netip.AddrPortFrom(socketAddr(raw.Family, raw.Local), raw.LocalPort),
		Remote:    netip.AddrPortFrom(socketAddr(raw.Family, raw.Remote), raw.RemotePort),
		Unsent:    raw.Unsent,
		Cut:       Reason(raw.Cut),
		Destroyed: raw.Destroyed != 0,
		raw:       raw,
	}
}

func socketAddr(family uint8, words [4]uint32) netip.Addr {
	if family == unix.AF_INET6 {
		return maps.Addr(words)
	}
	b := *(*[4]byte)(unsafe.Pointer(&words[0]))
	return netip.AddrFrom4(b)
}
