// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"sync/atomic"
	"testing"
	"time"
)

func TestFlushWaitsForTheReader(t *testing.T) {
	f := newFixture(t)
	if err := f.Flush(t.Context()); err != nil {
		t.Fatalf("without a reader: %v", err)
	}
	k := f.begin(nil)
	var denied atomic.Int32
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	done := make(chan error, 1)
	go func() {
		done <- f.Events(ctx, func(e Event) {
			if e.Task == k.record.Number && e.Verdict == Deny {
				denied.Add(1)
			}
		})
	}()
	k.want("operation not permitted", "dial a tcp4 192.0.2.1:443")
	for denied.Load() == 0 { // until the reader runs, Flush has nothing to wait for
		if ctx.Err() != nil {
			t.Fatal("the reader handed nothing over")
		}
		time.Sleep(time.Millisecond)
	}
	for want := int32(1); want <= 20; want++ {
		if want > 1 {
			k.want("operation not permitted", "dial a tcp4 192.0.2.1:443")
		}
		if err := f.Flush(ctx); err != nil {
			t.Fatal(err)
		}
		if got := denied.Load(); got != want {
			t.Fatalf("after Flush %d of %d denials were handed over", got, want)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if err := f.Flush(t.Context()); err != nil {
		t.Fatalf("after the reader ended: %v", err)
	}
}

// A task that goes on trying what it is denied cannot hold up who waits.
func TestFlushUnderAFloodOfDenials(t *testing.T) {
	f := newFixture(t)
	f.watch()
	k := f.begin(nil)
	k.want("ok", "flood udp4 192.0.2.1:1")
	f.event("the flood", func(e Event) bool { return e.Verdict == Deny && e.Task == k.record.Number })
	for range 10 {
		begun := time.Now()
		if err := f.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begun); took > 5*time.Second {
			t.Fatalf("Flush took %s", took)
		}
	}
}
