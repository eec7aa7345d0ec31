// SPDX-License-Identifier: Apache-2.0

package task

import (
	"slices"
	"strings"
	"testing"
	"time"

	"agentguard.dev/agentguard/client"
	"agentguard.dev/agentguard/internal/policy"
)

func TestGrantAndRevoke(t *testing.T) {
	f := newFixture(t)
	f.open()
	s, wide := f.serve(true), f.serve(true)
	p := f.taskWith("a")
	p.want(denied, "dial c %s", s.addr)

	given, err := f.engine.Grant(t.Context(), "a", client.Grant{Destination: s.addr})
	if err != nil || given.Existing || given.Rule == 0 || given.Deadline != nil {
		t.Fatalf("grant: %+v %v", given, err)
	}
	p.want("ok", "dial c %s", s.addr)
	again, err := f.engine.Grant(t.Context(), "a", client.Grant{Destination: "tcp://" + s.addr, TTL: client.Duration(time.Hour)})
	if err != nil || !again.Existing || again.Rule != given.Rule || again.Deadline == nil {
		t.Errorf("the same grant again: %+v %v", again, err)
	}
	p.want("ok", "write c hello")
	p.want("ok hello", "read c")

	if _, err := f.engine.Grant(t.Context(), "a", client.Grant{Destination: "192.0.2.0/24:1024-65535"}); err != nil {
		t.Fatal(err)
	}
	p.want("ok", "dial w %s", wide.addr)
	result, err := f.engine.Revoke(t.Context(), "a", s.addr)
	if err != nil || !slices.Equal(result.Revoked, []string{s.addr}) || result.Destroyed != 0 ||
		!strings.Contains(result.Warning, "192.0.2.0/24:1024-65535") {
		t.Errorf("revoke what a wider grant still allows: %+v %v", result, err)
	}
	p.want("ok", "write c hello")
	result, err = f.engine.Revoke(t.Context(), "a", "192.0.2.0/24:*")
	if err != nil || len(result.Revoked) != 1 || result.Destroyed != 2 || result.Warning != "" {
		t.Errorf("revoke by a destination that covers the grant: %+v %v", result, err)
	}
	p.want(aborted, "write c hello")
	p.want(denied, "dial e %s", s.addr)
	eventually(t, "the peers got resets", func() bool { return s.resets() == 1 && wide.resets() == 1 })
	result, err = f.engine.Revoke(t.Context(), "a", s.addr)
	if err != nil || len(result.Revoked) != 0 || !strings.Contains(result.Warning, "no grant") {
		t.Errorf("revoke again: %+v %v", result, err)
	}
	third, err := f.engine.Grant(t.Context(), "a", client.Grant{Destination: s.addr})
	if err != nil || third.Existing || third.Rule != given.Rule {
		t.Errorf("the grant anew: %+v %v, want the rule number that its counters have", third, err)
	}
	f.end("a")
	_, err = f.engine.Grant(t.Context(), "a", client.Grant{Destination: s.addr})
	wantCode(t, err, "conflict", "a", "ended")
	f.wantEmptyMaps()
}

func TestGrantExpires(t *testing.T) {
	f := newFixture(t)
	f.open()
	sub := f.engine.Subscribe()
	defer sub.Close()
	s := f.serve(true)
	p := f.taskWith("a")
	if _, err := f.engine.Grant(t.Context(), "a", client.Grant{Destination: s.addr, TTL: client.Duration(700 * time.Millisecond)}); err != nil {
		t.Fatal(err)
	}
	p.want("ok", "dial c %s", s.addr)
	record := waitFor(t, sub, func(r client.Record) bool { return r.Kind == "grant" && r.Action == "expire" })
	if record.Task != "a" || record.Dest != s.addr {
		t.Errorf("record %+v", record)
	}
	p.want(aborted, "write c hello")
	p.want(denied, "dial d %s", s.addr)
	got, err := f.engine.Get("a")
	if err != nil || slices.ContainsFunc(got.Grants, func(g client.Grant) bool { return g.Destination == s.addr }) {
		t.Errorf("grants %+v %v, want it gone", got.Grants, err)
	}
}

func waitFor(t *testing.T, sub *Subscription, match func(client.Record) bool) client.Record {
	t.Helper()
	patience := time.After(10 * time.Second)
	for {
		select {
		case r := <-sub.C:
			if match(r) {
				return r
			}
		case <-patience:
			t.Fatal("no such record")
		}
	}
}

func TestDenialExplainsItself(t *testing.T) {
	f := newFixture(t)
	f.open()
	sub := f.engine.Subscribe()
	defer sub.Close()
	task := f.begin(client.BeginRequest{ID: "a", Allow: []string{"192.0.2.2:1"}, Purpose: "try"})
	p := f.startProcess(task.Cgroup)
	p.want(denied, "dial c 192.0.2.2:7")
	r := waitFor(t, sub, func(r client.Record) bool { return r.Verdict == "deny" })
	if r.Task != "a" || r.Purpose != "try" || r.Dest != "tcp://192.0.2.2:7" || r.Hook != "connect" || r.Reason != "no rule" ||
		r.PID != uint32(p.cmd.Process.Pid) || r.UID == nil || r.Process == "" || time.Since(r.Time) > time.Minute {
		t.Errorf("record %+v", r)
	}
	if want := "agentguard task grant a '192.0.2.2:7' --ttl 10m"; r.Hint != want {
		t.Errorf("hint %q, want %q", r.Hint, want)
	}
	ended := make(chan client.Record, 1)
	go func() {
		for r := range sub.C {
			if r.Kind == "task" && r.Action == "end" {
				ended <- r
				return
			}
		}
	}()
	f.end("a")
	select {
	case r := <-ended:
		if !strings.Contains(r.Detail, "1 denied") || !strings.Contains(r.Detail, "1 processes killed") {
			t.Errorf("record of the end: %+v", r)
		}
	case <-time.After(10 * time.Second):
		t.Error("no record of the end")
	}
}

func TestCovers(t *testing.T) {
	for _, c := range []struct {
		wide, narrow     string
		covers, overlaps bool
	}{
		{"192.0.2.1:443", "192.0.2.1:443", true, true},
		{"192.0.2.0/24:*", "192.0.2.1:443", true, true},
		{"192.0.2.0/24:1-100", "192.0.2.1:80,443", false, true},
		{"192.0.2.1:443", "192.0.2.0/24:443", false, true},
		{"192.0.2.1:443", "udp://192.0.2.1:443", false, false},
		{"192.0.2.1:443", "192.0.2.1:80", false, false},
		{"[::/0]:443", "192.0.2.1:443", false, false},
		{"[2001:db8::/32]:443", "[2001:db8::1]:443", true, true},
		{"icmp://192.0.2.0/24", "icmp://192.0.2.1", true, true},
	} {
		wide, err := policy.ParseDestination(c.wide)
		if err != nil {
			t.Fatal(err)
		}
		narrow, err := policy.ParseDestination(c.narrow)
		if err != nil {
			t.Fatal(err)
		}
		to := []policy.Destination{narrow}
		if got := covers(wide, to); got != c.covers {
			t.Errorf("%s covers %s: %t, want %t", c.wide, c.narrow, got, c.covers)
		}
		if got := overlaps(wide, to); got != c.overlaps {
			t.Errorf("%s overlaps %s: %t, want %t", c.wide, c.narrow, got, c.overlaps)
		}
	}
}

func TestDeniedPacketCutsItsFlow(t *testing.T) {
	f := newFixture(t)
	f.open()
	s := f.serve(true)
	p := f.taskWith("a", s.addr)
	p.want("ok", "dial c %s", s.addr)
	task, err := f.engine.Get("a")
	must(t, err)
	// Behind the engine's back, so that nothing but the packet tells it.
	must(t, f.engine.maps.Rules.Delete(task.Number))
	p.want("ok", "write c hello")
	eventually(t, "the socket is destroyed", func() bool { return p.do("write c hello") == aborted })
	eventually(t, "the peer got a reset", func() bool { return s.resets() == 1 })
}

func TestSlowSubscriberLosesAlone(t *testing.T) {
	f := newFixture(t)
	f.open()
	slow, quick := f.engine.Subscribe(), f.engine.Subscribe()
	defer slow.Close()
	got := make(chan int)
	go func() {
		n := 0
		for range quick.C {
			n++
		}
		got <- n
	}()
	const records = subscriptionBuffer + 100
	for n := range records {
		f.engine.records.add(client.Record{Kind: "task", Action: "begin", Detail: strings.Repeat("x", n%7)})
		for len(quick.C) > subscriptionBuffer/2 {
			time.Sleep(time.Millisecond)
		}
	}
	quick.Close()
	if n := <-got; n != records || quick.Lost() != 0 {
		t.Errorf("the quick one got %d of %d and lost %d", n, records, quick.Lost())
	}
	if slow.Lost() != records-subscriptionBuffer {
		t.Errorf("the slow one lost %d, want %d", slow.Lost(), records-subscriptionBuffer)
	}
}
