// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"testing"

	"agentguard.dev/agentguard/internal/maps"
	"agentguard.dev/agentguard/internal/policy"
)

func auditing(r *maps.Task) { r.Mode = policy.Audit }

// What would be denied is counted and told once per connection, its packets
// and bytes all.
func TestAuditCountsConnections(t *testing.T) {
	f := newFixture(t)
	f.watch()
	far := newVeth(t, f.ns)
	addr, _ := f.peer(far, "tcp4", "192.0.2.2:0")
	sink := f.receiver(far, "192.0.2.2:4000", "")
	a := f.begin(auditing)
	a.want("ok", "dial t tcp4 %s", addr)
	a.want("ok", "open u 2 2 0")
	for range 20 {
		a.want("ok", "write t hello")
		a.want("ok", "send u %s - hello", sink.LocalAddr())
	}
	counters, err := f.Maps().Counters.Read(a.record.Number, []uint32{maps.RuleNone})
	if err != nil {
		t.Fatal(err)
	}
	if c := counters[maps.RuleNone]; c.Denied != 2 || c.Packets < 40 || c.Bytes < 40*20 {
		t.Errorf("two connections of 20 packets each: %+v", c)
	}
	if err := f.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range f.events {
		if e.Verdict != WouldDeny || e.PID == 0 {
			t.Errorf("event: %+v", e)
		}
	}
	if len(f.events) != 2 {
		t.Errorf("%d events, want 2", len(f.events))
	}
}

// Mode audit is about rules. A task that is over is over.
func TestAuditEndsWithTheTask(t *testing.T) {
	f := newFixture(t)
	f.watch()
	addr, _ := f.peer(f.ns, "tcp4", "127.0.0.1:0")
	a, b := f.begin(auditing), f.begin(func(r *maps.Task) { r.Mode, r.Deadline = policy.Audit, Now() })
	a.want("ok", "dial t tcp4 %s", addr)
	a.record.State = maps.StateDead
	a.put()
	for _, k := range []*task{a, b} {
		k.want(eperm, "dial t tcp4 %s", addr)
		f.event("denied, not let through", func(e Event) bool { return e.Task == k.record.Number && e.Verdict == Deny })
	}
}
