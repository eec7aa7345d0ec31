// SPDX-License-Identifier: Apache-2.0

package task

import (
	"container/heap"
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"agentguard.dev/agentguard/internal/loader"
)

// schedule calls functions when the boot-time clock, which also counts time
// spent suspended, reaches their deadlines. It is the clock by which the
// kernel judges the same deadlines.
type schedule struct {
	mu      sync.Mutex
	due     dueHeap
	timer   *os.File
	run     func(alarm)
	stopped chan struct{}
}

// alarm is what was scheduled.
type alarm struct {
	task *task
	rule uint32 // of a grant; 0 is the task's own deadline
}

// entry is one alarm in the schedule. The zero index is a valid one; a removed
// entry has index -1.
type entry struct {
	alarm
	at    uint64 // CLOCK_BOOTTIME ns
	index int
}

// newSchedule calls run, on one goroutine, for every alarm that is due.
func newSchedule(run func(alarm)) (*schedule, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_BOOTTIME, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("create timer: %w", err)
	}
	s := &schedule{timer: os.NewFile(uintptr(fd), "timerfd"), run: run, stopped: make(chan struct{})}
	go s.loop()
	return s, nil
}

// add schedules a for the time at.
func (s *schedule) add(at uint64, a alarm) *entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := &entry{alarm: a, at: at}
	heap.Push(&s.due, e)
	if e.index == 0 {
		s.arm()
	}
	return e
}

// remove takes e out of the schedule. A nil or past entry is ignored.
func (s *schedule) remove(e *entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e != nil && e.index >= 0 {
		heap.Remove(&s.due, e.index)
	}
}

// close stops the schedule and waits for a call of run to return.
func (s *schedule) close() error {
	err := s.timer.Close()
	<-s.stopped
	return err
}

// arm sets the timer to the first entry. A time that has passed fires at once.
func (s *schedule) arm() {
	first := unix.NsecToTimespec(int64(s.due[0].at))
	spec := unix.ItimerSpec{Value: first}
	raw, err := s.timer.SyscallConn()
	if err != nil {
		return // closed
	}
	// The descriptor is a timer until it is closed, and the time is valid.
	_ = raw.Control(func(fd uintptr) {
		_ = unix.TimerfdSettime(int(fd), unix.TFD_TIMER_ABSTIME, &spec, nil)
	})
}

func (s *schedule) loop() {
	defer close(s.stopped)
	var ticks [8]byte
	for {
		if _, err := s.timer.Read(ticks[:]); errors.Is(err, os.ErrClosed) {
			return
		}
		for _, a := range s.take(loader.Now()) {
			s.run(a)
		}
	}
}

// take removes what is due at now and arms the timer for what is left.
func (s *schedule) take(now uint64) []alarm {
	s.mu.Lock()
	defer s.mu.Unlock()
	var due []alarm
	for len(s.due) > 0 && s.due[0].at <= now {
		due = append(due, heap.Pop(&s.due).(*entry).alarm)
	}
	if len(s.due) > 0 {
		s.arm()
	}
	return due
}

// dueHeap orders entries by time for container/heap.
type dueHeap []*entry

func (h dueHeap) Len() int           { return len(h) }
func (h dueHeap) Less(i, j int) bool { return h[i].at < h[j].at }

func (h dueHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

func (h *dueHeap) Push(x any) {
	e := x.(*entry)
	e.index = len(*h)
	*h = append(*h, e)
}

func (h *dueHeap) Pop() any {
	last := len(*h) - 1
	e := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	e.index = -1
	return e
}
