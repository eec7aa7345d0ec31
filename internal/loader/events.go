// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"agentguard.dev/agentguard/bpf"
	"agentguard.dev/agentguard/internal/maps"
	"agentguard.dev/agentguard/internal/policy"
)

// Event is one decision of the kernel.
type Event struct {
	Time      uint64 // CLOCK_BOOTTIME in ns
	Cgroup    uint64 // of the task; 0 below a guard but outside any task
	Cookie    uint64 // of the socket
	Netns     uint64 // cookie
	Task      uint32 // number; 0 for none
	Rule      uint32
	PID       uint32 // 0 where the hook cannot know the process, as in egress
	UID       uint32 // valid if PID is
	Process   string // comm
	Addr      netip.Addr
	Port      uint16
	Proto     policy.Proto
	Direction policy.Direction
	Hook      Hook
	Verdict   Verdict
	Reason    Reason
	Mode      policy.Mode
	Detail    uint32 // sock_create: type<<16 | protocol; setsockopt: level<<16 | option
	Name      string // that a ClientHello gave, as it was read: not checked to be a host name
}

// pollInterval bounds how long a record that woke nobody waits to be read.
const pollInterval = 50 * time.Millisecond

// Events reads decisions and hands them to fn, in order, until ctx ends or the
// reader fails. Only one reader may run for a kernel half: records are consumed.
func (k *Kernel) Events(ctx context.Context, fn func(Event)) error {
	reader, err := ringbuf.NewReader(k.objs.Events)
	if err != nil {
		return fmt.Errorf("open events: %w", err)
	}
	defer reader.Close()
	flushed := k.flush.start(reader)
	defer k.flush.stop()
	var record ringbuf.Record
	for ctx.Err() == nil {
		reader.SetDeadline(time.Now().Add(pollInterval))
		for {
			err := reader.ReadInto(&record)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if errors.Is(err, ringbuf.ErrFlushed) {
				select {
				case flushed <- struct{}{}:
				default: // nobody waits any more
				}
				continue
			}
			if err != nil {
				return fmt.Errorf("read events: %w", err)
			}
			event, ok := decodeEvent(record.RawSample)
			if !ok {
				k.skipped.Add(1)
				continue
			}
			fn(event)
			k.flush.passed(event.Time)
		}
	}
	return nil
}

// flush lets others wait for the reader of events.
type flush struct {
	turn sync.Mutex // one at a time: the reader cannot tell two apart

	mu     sync.Mutex
	reader *ringbuf.Reader
	done   chan struct{} // closed when the reader ends
	caught chan struct{} // the reader has read what was there

	since atomic.Uint64 // time of the call that waits; 0 if none does
}

// flushPatience bounds how long decisions that keep coming can hold up who
// waits for those before them.
const flushPatience = 250 * time.Millisecond

// passed ends the wait for what was decided before time: under a flood of
// denials the reader never finds the ring empty.
func (f *flush) passed(time uint64) {
	since := f.since.Load()
	if since == 0 || time <= since || !f.since.CompareAndSwap(since, 0) {
		return
	}
	select {
	case f.caught <- struct{}{}:
	default:
	}
}

func (f *flush) start(reader *ringbuf.Reader) chan<- struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reader, f.done, f.caught = reader, make(chan struct{}), make(chan struct{}, 1)
	return f.caught
}

func (f *flush) stop() {
	f.mu.Lock()
	defer f.mu.Unlock()
	close(f.done)
	f.reader = nil
}

// Flush returns when a running Events has handed over the decisions made before
// the call, or has had a quarter of a second to do so: what a task does must not
// hold up its own end. If none runs it returns at once.
func (k *Kernel) Flush(ctx context.Context) error {
	f := &k.flush
	f.turn.Lock()
	defer f.turn.Unlock()
	f.mu.Lock()
	reader, done, caught := f.reader, f.done, f.caught
	if reader == nil {
		f.mu.Unlock()
		return nil
	}
	select {
	case <-caught: // of a call that gave up waiting
	default:
	}
	f.since.Store(Now())
	defer f.since.Store(0)
	err := reader.Flush()
	f.mu.Unlock()
	if err != nil {
		return fmt.Errorf("flush events: %w", err)
	}
	patience := time.NewTimer(flushPatience)
	defer patience.Stop()
	select {
	case <-caught:
		return nil
	case <-done:
		return nil
	case <-patience.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// SkippedEvents counts the records that Events could not read.
func (k *Kernel) SkippedEvents() uint64 { return k.skipped.Load() }

const (
	eventSize = int(unsafe.Sizeof(bpf.GuardEvent{}))
	namedSize = int(unsafe.Sizeof(bpf.GuardNamedEvent{}))
)

// decodeEvent tells the kinds of records by their size; another one is of a
// kind that this version does not know.
func decodeEvent(sample []byte) (Event, bool) {
	var raw bpf.GuardNamedEvent
	if len(sample) != eventSize && len(sample) != namedSize {
		return Event{}, false
	}
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&raw)), namedSize), sample)
	event := eventOf(&raw.Event)
	event.Name = shownName(&raw)
	return event, true
}

// shownName turns the name round: the kernel keeps it from its end.
func shownName(raw *bpf.GuardNamedEvent) string {
	name := make([]byte, min(int(raw.Length), len(raw.Name)))
	for i := range name {
		name[len(name)-1-i] = byte(raw.Name[i])
	}
	return string(name)
}

func eventOf(raw *bpf.GuardEvent) Event {
	comm := unsafe.Slice((*byte)(unsafe.Pointer(&raw.Comm[0])), len(raw.Comm))
	return Event{
		Time:      raw.Time,
		Cgroup:    raw.Cgroup,
		Cookie:    raw.Cookie,
		Netns:     raw.Netns,
		Task:      raw.Task,
		Rule:      raw.Rule,
		PID:       raw.Pid,
		UID:       raw.Uid,
		Process:   unix.ByteSliceToString(comm),
		Addr:      maps.Addr(raw.Flow.Addr),
		Port:      raw.Flow.Port,
		Proto:     policy.Proto(raw.Flow.Proto),
		Direction: policy.Direction(raw.Flow.Direction),
		Hook:      Hook(raw.Hook),
		Verdict:   Verdict(raw.Verdict),
		Reason:    Reason(raw.Reason),
		Mode:      policy.Mode(raw.Mode),
		Detail:    raw.Detail,
	}
}
