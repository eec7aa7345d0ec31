// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"
	"os"
	"runtime"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"agentguard.dev/agentguard/bpf"
)

// SizeForCPUs gives every CPU its share of the map of remembered verdicts.
func SizeForCPUs(spec *ebpf.CollectionSpec) error {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return fmt.Errorf("count processors: %w", err)
	}
	spec.Maps["recents"].MaxEntries *= uint32(cpus)
	return nil
}

// recents are the verdicts that the programs remember, in memory shared with
// them. bpf/recent.h says when one holds, and what its word counts.
type recents struct {
	epoch   *shared[uint64]
	entries *shared[bpf.GuardRecent]
}

func openRecents(objs *bpf.GuardMaps) (r recents, err error) {
	if r.epoch, err = share[uint64](objs.Epochs); err != nil {
		return recents{}, fmt.Errorf("map epochs: %w", err)
	}
	if r.entries, err = share[bpf.GuardRecent](objs.Recents); err != nil {
		return recents{}, fmt.Errorf("map recents: %w", err)
	}
	return r, nil
}

// outdate makes every remembered verdict void. It follows each write that can
// change one, and comes before anybody is told of the change.
func (r recents) outdate() { atomic.AddUint64(&r.epoch.values[0], 1) }

// recent is what one CPU has counted for one rule of one task, and not yet added
// to its counter.
type recent struct {
	at   *bpf.GuardRecent
	word uint64
	key  CounterKey // of the counter that it belongs to
}

// of returns what is remembered of the tasks that match.
func (r recents) of(match func(task uint32) bool) []recent {
	var found []recent
	for i := range r.entries.values {
		if e, ok := read(&r.entries.values[i]); ok && match(e.key.Task) {
			found = append(found, e)
		}
	}
	return found
}

// read waits for an entry that is being replaced: a moment, or longer if whoever
// does it has lost its processor.
func read(at *bpf.GuardRecent) (recent, bool) {
	for try := range 1000 {
		e := recent{at: at, word: atomic.LoadUint64(&at.Word)}
		e.key = CounterKey{atomic.LoadUint32(&at.Task), atomic.LoadUint32(&at.Rule)}
		if e.word>>bpf.GuardRecentPartRECENT_GENERATION&1 == 0 && e.stands() {
			return e, e.key.Task != 0
		}
		if try >= 10 {
			time.Sleep(100 * time.Microsecond)
		}
	}
	return recent{}, false // not in a tenth of a second: nobody will
}

// stands says that the entry has not been replaced since it was read.
func (e recent) stands() bool {
	return (atomic.LoadUint64(&e.at.Word)^e.word)>>bpf.GuardRecentPartRECENT_GENERATION == 0
}

func (e recent) addTo(c *Counter) {
	part := func(from, to bpf.GuardRecentPart) uint64 { return e.word >> from & (1<<(to-from) - 1) }
	c.Bytes += part(0, bpf.GuardRecentPartRECENT_PACKETS)
	c.Packets += part(bpf.GuardRecentPartRECENT_PACKETS, bpf.GuardRecentPartRECENT_ALLOWED)
	c.Allowed += part(bpf.GuardRecentPartRECENT_ALLOWED, bpf.GuardRecentPartRECENT_GENERATION)
}

// shared is the memory of an array map.
type shared[T any] struct{ values []T }

func share[T any](m *ebpf.Map) (*shared[T], error) {
	page := os.Getpagesize()
	size := (int(m.ValueSize()*m.MaxEntries()) + page - 1) &^ (page - 1)
	memory, err := unix.Mmap(m.FD(), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	s := &shared[T]{unsafe.Slice((*T)(unsafe.Pointer(&memory[0])), m.MaxEntries())}
	runtime.AddCleanup(s, func(memory []byte) { unix.Munmap(memory) }, memory)
	return s, nil
}
