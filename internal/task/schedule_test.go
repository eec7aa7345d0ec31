// SPDX-License-Identifier: Apache-2.0

package task

import (
	"slices"
	"sync"
	"testing"
	"time"

	"agentguard.dev/agentguard/internal/loader"
)

func TestSchedule(t *testing.T) {
	var (
		mu    sync.Mutex
		fired []uint32
	)
	s, err := newSchedule(func(a alarm) {
		mu.Lock()
		defer mu.Unlock()
		fired = append(fired, a.rule)
	})
	if err != nil {
		t.Fatal(err)
	}
	now := loader.Now()
	in := func(d time.Duration) uint64 { return now + uint64(d) }
	s.add(in(time.Hour), alarm{rule: 9})
	s.add(in(120*time.Millisecond), alarm{rule: 3})
	removed := s.add(in(80*time.Millisecond), alarm{rule: 8})
	s.add(in(40*time.Millisecond), alarm{rule: 2})
	s.add(now-1, alarm{rule: 1})
	s.remove(removed)
	s.remove(removed)
	s.remove(nil)
	eventually(t, "three alarms", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(fired) == 3
	})
	if took := time.Duration(loader.Now() - now); took < 120*time.Millisecond || took > 2*time.Second {
		t.Errorf("the last alarm came after %s, want 120 ms", took)
	}
	if err := s.close(); err != nil {
		t.Error(err)
	}
	if !slices.Equal(fired, []uint32{1, 2, 3}) {
		t.Errorf("alarms %v, want 1, 2, 3", fired)
	}
}

func TestSequence(t *testing.T) {
	var reserved uint32
	s := &sequence{reserve: func(upTo uint32) error { reserved = upTo; return nil }}
	s.startAfter(15)
	for want := uint32(16); want < 16+3*sequenceStep; want++ {
		got, err := s.next()
		if err != nil || got != want || reserved < got {
			t.Fatalf("next = %d (%v), want %d; reserved up to %d", got, err, want, reserved)
		}
	}
	s.startAfter(^uint32(0) - 1)
	if got, err := s.next(); err != nil || got != ^uint32(0) {
		t.Errorf("the last number: %d %v", got, err)
	}
	if got, err := s.next(); err == nil {
		t.Errorf("after the last number: %d, want an error", got)
	}
}
