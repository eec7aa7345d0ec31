// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"fmt"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Operations and flags of linux/io_uring.h.
const (
	ringNop     = 0
	ringSendmsg = 9
	ringConnect = 16
	ringTimeout = 11
	ringSend    = 26
	ringSocket  = 45
	ringSendZC  = 47

	ringLink     = 1 << 2 // IOSQE_IO_LINK
	ringHardLink = 1 << 3 // IOSQE_IO_HARDLINK: goes on after a failure
	ringAsync    = 1 << 4 // IOSQE_ASYNC

	ringPoll = 1 << 1 // IORING_SETUP_SQPOLL
)

// entry is struct io_uring_sqe.
type entry struct {
	op, flags    uint8
	priority     uint16
	fd           int32
	offset       uint64
	addr         uint64
	length       uint32
	opFlags      uint32
	data         uint64
	buffer       uint16
	personality  uint16
	addrLength   uint16 // or, with the next, the file's index
	_            uint16
	addr3, spare uint64
}

type completion struct {
	data   uint64
	result int32
	flags  uint32
}

type submissionOffsets struct{ head, tail, mask, entries, flags, dropped, array, _ uint32 }

type completionOffsets struct{ head, tail, mask, entries, overflow, array, flags, _ uint32 }

type ringParams struct {
	sqEntries, cqEntries, flags, cpu, idle, features, wq uint32
	_                                                    [3]uint32
	sq                                                   submissionOffsets
	_                                                    uint64
	cq                                                   completionOffsets
	_                                                    uint64
}

// ring is an io_uring of 32 entries. What the kernel reads later is kept in its
// arena, which the garbage collector neither moves nor frees.
type ring struct {
	fd             int
	params         ringParams
	sq, cq, memory []byte
	entries        []byte
	used           int
	queued         uint32
}

const (
	ringDepth = 32
	arenaSize = 1 << 16
)

func newRing(flags uint32) (*ring, error) {
	r := &ring{}
	r.params.flags = flags
	r.params.idle = 1000 // ms that a polling thread stays awake
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, ringDepth, uintptr(unsafe.Pointer(&r.params)), 0)
	if errno != 0 {
		return nil, step("io_uring_setup", errno)
	}
	r.fd = int(fd)
	var err error
	shared := func(offset int64, size int) (b []byte) {
		if err == nil {
			b, err = unix.Mmap(r.fd, offset, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
		}
		return b
	}
	r.sq = shared(0, int(r.params.sq.array+r.params.sqEntries*4))
	r.cq = shared(0x8000000, int(r.params.cq.array+r.params.cqEntries*16))
	r.entries = shared(0x10000000, int(r.params.sqEntries)*64)
	if err == nil {
		r.memory, err = unix.Mmap(-1, 0, arenaSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	}
	if err != nil {
		r.close()
		return nil, step("map io_uring", err)
	}
	return r, nil
}

func (r *ring) close() {
	for _, b := range [][]byte{r.sq, r.cq, r.entries, r.memory} {
		if b != nil {
			unix.Munmap(b)
		}
	}
	unix.Close(r.fd)
}

// keep copies b to where the kernel may read it for as long as the ring lives.
func (r *ring) keep(b []byte) uint64 {
	at := r.memory[r.used:]
	r.used += (len(b) + 15) &^ 15
	copy(at, b)
	return uint64(uintptr(unsafe.Pointer(&at[0])))
}

func word(b []byte, offset uint32) *uint32 { return (*uint32)(unsafe.Pointer(&b[offset])) }

// queue adds an entry, to be submitted by run.
func (r *ring) queue(e entry) {
	tail := atomic.LoadUint32(word(r.sq, r.params.sq.tail))
	slot := tail & *word(r.sq, r.params.sq.mask)
	*(*entry)(unsafe.Pointer(&r.entries[slot*64])) = e
	*word(r.sq, r.params.sq.array+slot*4) = slot
	atomic.StoreUint32(word(r.sq, r.params.sq.tail), tail+1)
	r.queued++
}

// run submits what is queued and waits until all of it is done. It returns the
// first failure among the results, which come in any order.
func (r *ring) run() ([]int32, error) {
	const getEvents, wakeUp = 1, 2
	var results []int32
	var failed error
	for want := r.queued; uint32(len(results)) < want; {
		flags, submit := uintptr(getEvents), r.queued
		if r.params.flags&ringPoll != 0 {
			flags, submit = getEvents|wakeUp, 0
		}
		_, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), uintptr(submit), 1, flags, 0, 0)
		if errno != 0 && errno != unix.EINTR {
			return nil, step("io_uring_enter", errno)
		}
		r.queued = 0
		for {
			head := atomic.LoadUint32(word(r.cq, r.params.cq.head))
			if head == atomic.LoadUint32(word(r.cq, r.params.cq.tail)) {
				break
			}
			slot := head & *word(r.cq, r.params.cq.mask)
			c := *(*completion)(unsafe.Pointer(&r.cq[r.params.cq.array+slot*16]))
			atomic.StoreUint32(word(r.cq, r.params.cq.head), head+1)
			const notification = 1 << 3 // a zero-copy buffer is free again
			if c.flags&notification != 0 {
				continue
			}
			results = append(results, c.result)
			if c.result < 0 && failed == nil && unix.Errno(-c.result) != unix.ECANCELED {
				failed = fmt.Errorf("io_uring operation %d: %w", c.data, unix.Errno(-c.result))
			}
		}
	}
	return results, failed
}

// submit hands over what is queued and waits for nothing.
func (r *ring) submit() error {
	_, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), uintptr(r.queued), 0, 0, 0, 0)
	r.queued = 0
	if errno != 0 {
		return step("io_uring_enter", errno)
	}
	return nil
}

// supports asks the kernel for its operations.
func (r *ring) supports(op uint8) (bool, error) {
	const registerProbe = 8
	probe := make([]byte, 16+256*8)
	_, _, errno := unix.Syscall6(unix.SYS_IO_URING_REGISTER, uintptr(r.fd), registerProbe, uintptr(unsafe.Pointer(&probe[0])), 256, 0, 0)
	if errno != 0 {
		return false, step("io_uring_register", errno)
	}
	return op <= probe[0] && probe[16+int(op)*8+2]&1 != 0, nil
}
