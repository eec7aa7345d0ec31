// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"bytes"
	"encoding/binary"
	"testing"
	"time"
	"unsafe"

	"agentguard.dev/agentguard/bpf"
)

func FuzzDecodeEvent(f *testing.F) {
	f.Add([]byte{})
	f.Add(make([]byte, eventSize-1))
	f.Add(make([]byte, eventSize))
	long := make([]byte, eventSize+8)
	for i := range long {
		long[i] = 0xff
	}
	f.Add(long)
	named := make([]byte, namedSize)
	binary.NativeEndian.PutUint32(named[eventSize:], 5)
	copy(named[eventSize+4:], "tset.a")
	f.Add(named)
	f.Add(bytes.Repeat([]byte{0xff}, namedSize))
	f.Fuzz(func(t *testing.T, sample []byte) {
		event, ok := decodeEvent(sample)
		if ok != (len(sample) == eventSize || len(sample) == namedSize) {
			t.Fatalf("%d bytes: %v", len(sample), ok)
		}
		// Whatever the bytes are, it can be shown.
		_ = event.Verdict.String() + event.Hook.String() + event.Reason.String() + event.Addr.String() + event.Process
		if len(event.Process) > 16 || len(event.Name) > len(sample) {
			t.Fatalf("process %q, name %q", event.Process, event.Name)
		}
	})
}

func TestNameOfAnEvent(t *testing.T) {
	raw := bpf.GuardNamedEvent{Length: 6}
	for i, c := range "tset.a" {
		raw.Name[i] = int8(c)
	}
	event, ok := decodeEvent(unsafe.Slice((*byte)(unsafe.Pointer(&raw)), namedSize))
	if !ok || event.Name != "a.test" {
		t.Errorf("name %q, %v", event.Name, ok)
	}
}

// A ring buffer that nobody reads loses events, counts them, and changes no
// verdict.
func TestLostEventsAreCounted(t *testing.T) {
	f := newFixture(t)
	if err := f.Unload(); err != nil {
		t.Fatal(err)
	}
	f.cfg.Sizes.Events = 4096
	f.Kernel = openKernel(t, f.cfg)
	if err := f.Guard(f.guard, f.guard.Level()+1); err != nil {
		t.Fatal(err)
	}
	a := f.begin(nil)
	const denials = 100 // 4096 bytes hold fewer than 40 records
	for range denials {
		a.want(eperm, "dial a udp4 192.0.2.1:1")
	}
	totals, err := f.Maps().Stats.Read()
	if err != nil {
		t.Fatal(err)
	}
	if totals.Denied != denials || totals.EventsLost < 50 {
		t.Errorf("denied %d, lost %d of %d", totals.Denied, totals.EventsLost, denials)
	}
	f.watch()
	f.event("one that fitted", func(e Event) bool { return e.Verdict == Deny })
	deadline := time.Now().Add(5 * time.Second)
	for time.Now().Before(deadline) {
		f.mu.Lock()
		n := len(f.events)
		f.mu.Unlock()
		if uint64(n)+totals.EventsLost == denials {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("%d read + %d lost, want %d", len(f.events), totals.EventsLost, denials)
}
