// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"agentguard.dev/agentguard/bpf"
)

const generation = uint64(1) << bpf.GuardRecentPartRECENT_GENERATION

// A reader sees what was counted once, while it moves from entries to counters
// as the programs move it, and no less than before.
func TestCountersWhileEntriesAreReplaced(t *testing.T) {
	m := kernelMaps(t, nil)
	s := open(t, m)
	keys := []bpf.GuardCounterKey{{Task: 5, Rule: 16}, {Task: 5, Rule: 17}, {Task: 6, Rule: 16}}
	for _, key := range keys {
		if err := m.Counters.Put(key, bpf.GuardCounter{}); err != nil {
			t.Fatal(err)
		}
	}
	const turns, packets, size = 3000, 100, 50 // packets in each turn
	var sent atomic.Uint64
	done := make(chan error, 1)
	go func() {
		entry := &s.recents.entries.values[3]
		for i := range turns {
			time.Sleep(10 * time.Microsecond) // a reader must not miss it for all the others
			if i%5 == 0 {                     // another rule or task takes the place
				word := atomic.AddUint64(&entry.Word, generation)
				old := bpf.GuardCounterKey{Task: entry.Task, Rule: entry.Rule}
				var c bpf.GuardCounter
				if old.Task != 0 {
					if err := m.Counters.Lookup(old, &c); err != nil {
						done <- err
						return
					}
					counter := counterOf(c)
					recent{word: word}.addTo(&counter)
					if err := m.Counters.Put(old, bpf.GuardCounter{Packets: counter.Packets, Bytes: counter.Bytes}); err != nil {
						done <- err
						return
					}
				}
				next := keys[i/5%len(keys)]
				time.Sleep(10 * time.Microsecond)
				atomic.StoreUint32(&entry.Task, next.Task)
				atomic.StoreUint32(&entry.Rule, next.Rule)
				atomic.StoreUint64(&entry.Word, word&^(generation-1)+generation)
			}
			atomic.AddUint64(&entry.Word, packets<<bpf.GuardRecentPartRECENT_PACKETS|packets*size)
			sent.Add(packets)
		}
		done <- nil
	}()
	var last uint64
	total := func() (c Counter) {
		for _, task := range []uint32{5, 6} {
			found, err := s.Counters.Read(task, []uint32{16, 17, 18})
			if err != nil {
				t.Fatal(err)
			}
			for _, one := range found {
				c.Packets += one.Packets
				c.Bytes += one.Bytes
			}
		}
		return c
	}
	for running := true; running; {
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			running = false
		default:
		}
		c := total()
		if c.Packets < last || c.Packets > sent.Load()+packets || c.Bytes != size*c.Packets {
			t.Fatalf("read %+v after %d, of at most %d packets", c, last, sent.Load())
		}
		last = c.Packets
	}
	if c := total(); c.Packets != turns*packets || c.Bytes != size*c.Packets {
		t.Errorf("in the end %+v, want %d packets", c, turns*packets)
	}
	all, err := s.Counters.All()
	if err != nil {
		t.Fatal(err)
	}
	var sum uint64
	for _, c := range all {
		sum += c.Packets
	}
	if sum != turns*packets {
		t.Errorf("all: %d packets, want %d", sum, turns*packets)
	}
}

// What an ended task has left in an entry makes no counter.
func TestEntriesOfEndedTasksCountNothing(t *testing.T) {
	m := kernelMaps(t, nil)
	s := open(t, m)
	s.recents.entries.values[0] = bpf.GuardRecent{Task: 7, Rule: 16, Word: 1 << bpf.GuardRecentPartRECENT_PACKETS}
	if found, err := s.Counters.Read(7, []uint32{16}); err != nil || len(found) != 0 {
		t.Errorf("read: %+v, %v", found, err)
	}
	if all, err := s.Counters.All(); err != nil || len(all) != 0 {
		t.Errorf("all: %+v, %v", all, err)
	}
}

// Nothing is told before the programs have forgotten.
func TestEveryWriteOutdates(t *testing.T) {
	s := open(t, kernelMaps(t, nil))
	epoch := func() uint64 { return atomic.LoadUint64(&s.recents.epoch.values[0]) }
	for name, write := range map[string]func() error{
		"put a task":    func() error { return s.Tasks.Put(1, Task{Number: 1}) },
		"delete a task": func() error { return s.Tasks.Delete(1) },
		"replace rules": func() error { return s.Rules.Replace(1, randomRules(t, rand.New(rand.NewPCG(1, 2)))) },
		"delete rules":  func() error { return s.Rules.Delete(1) },
	} {
		before := epoch()
		if err := write(); err != nil {
			t.Fatal(err)
		}
		if epoch() == before {
			t.Errorf("%s: the epoch is still %d", name, before)
		}
	}
}
