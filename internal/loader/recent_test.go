// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"agentguard.dev/agentguard/bpf"
	"agentguard.dev/agentguard/internal/maps"
	"agentguard.dev/agentguard/internal/policy"
)

// What a CPU remembers of its verdicts ends with what they came from.
func TestWhatIsTakenAwayIsNotRemembered(t *testing.T) {
	for name, take := range map[string]func(k *task){
		"rule":     func(k *task) { k.allow() },
		"policy":   func(k *task) { k.record.Policy += 1000; k.put() },
		"end":      func(k *task) { k.record.State = maps.StateDying; k.put() },
		"record":   func(k *task) { k.forget() },
		"deadline": func(k *task) { k.record.Deadline = Now(); k.put() },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			addr := f.packet("127.0.0.1:0").LocalAddr().String()
			a := f.begin(nil, "udp://"+addr)
			a.want("ok", "packet u udp4 127.0.0.1:0")
			a.want("ok 100", "burst u 100 %s", addr)
			take(a)
			a.want("ok 0", "burst u 100 %s", addr)
		})
	}
	for name, format := range map[string]string{"grant": "udp://127.0.0.1:%d", "prefix": "udp://127.0.0.0/8:%d"} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			addr := netip.MustParseAddrPort(f.packet("127.0.0.1:0").LocalAddr().String())
			a := f.begin(func(r *maps.Task) { r.Grants, r.GrantPrefixes = true, true })
			a.grant(0, fmt.Sprintf(format, addr.Port()))
			a.want("ok", "packet u udp4 127.0.0.1:0")
			a.want("ok 100", "burst u 100 %s", addr)
			a.grant(0)
			a.want("ok 0", "burst u 100 %s", addr)
		})
	}
}

// Deadlines hold to the packet, also where nobody writes to a map.
func TestRememberedVerdictsExpire(t *testing.T) {
	f := newFixture(t)
	addr := f.packet("127.0.0.1:0").LocalAddr().String()
	deadline := Now() + uint64(1500*time.Millisecond)
	a := f.begin(func(r *maps.Task) { r.Grants = true })
	a.grant(deadline, "udp://"+addr)
	b := f.begin(func(r *maps.Task) { r.Deadline = deadline }, "udp://"+addr)
	a.want("ok", "packet u udp4 127.0.0.1:0")
	b.want("ok", "packet u udp4 127.0.0.1:0")
	a.want("ok 100", "burst u 100 %s", addr)
	b.want("ok 100", "burst u 100 %s", addr)
	for Now() < deadline {
		time.Sleep(time.Millisecond)
	}
	a.want("ok 0", "burst u 100 %s", addr)
	b.want("ok 0", "burst u 100 %s", addr)
}

func TestRevokeAtFullSpeed(t *testing.T) {
	f := newFixture(t)
	addr := f.packet("127.0.0.1:0").LocalAddr().String()
	a := f.begin(nil, "udp://"+addr)
	a.want("ok", "packet u udp4 127.0.0.1:0")
	sent := make(chan string)
	go func() { sent <- a.do("burst u 10000000 %s", addr) }()
	time.Sleep(100 * time.Millisecond)
	a.allow()
	select {
	case answer := <-sent:
		if answer == "ok 0" || answer == "ok 10000000" {
			t.Errorf("sent: %s", answer)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("goes on sending after its rule has been taken")
	}
}

// More flows than a CPU remembers, of tasks that may reach different ports of
// one address, each beside a task that opens connections: none has another's
// rights, and each packet is counted once, for its rule.
func TestTasksThatShareACPU(t *testing.T) {
	const (
		ports = 64 // of each: twice what a CPU remembers
		burst = 5
		turns = 20
	)
	f := newFixture(t)
	noise := f.server("tcp4", "127.0.0.1:0")
	f.begin(nil, noise).want("ok", "flood tcp %s", noise)
	var tasks [2]*task
	var addrs [2][]string
	for i := range tasks {
		var rules []string
		for range ports {
			addr := f.packet("127.0.0.1:0").LocalAddr().String()
			addrs[i] = append(addrs[i], addr)
			rules = append(rules, "udp://"+addr)
		}
		tasks[i] = f.begin(nil, rules...)
		tasks[i].want("ok", "packet u udp4 127.0.0.1:0")
	}
	for range turns {
		for i, k := range tasks {
			k.want(fmt.Sprint("ok ", burst*ports), "burst u %d %s", burst, strings.Join(addrs[i], " "))
			for _, addr := range addrs[1-i] {
				k.want("ok 0", "burst u 1 %s", addr)
			}
		}
	}
	for _, k := range tasks {
		var rules []uint32
		for i := range ports {
			rules = append(rules, maps.RuleFirst+uint32(i))
		}
		counters, err := f.Maps().Counters.Read(k.record.Number, rules)
		if err != nil {
			t.Fatal(err)
		}
		for _, rule := range rules {
			const packets, bytes = burst * turns, burst * turns * (28 + 4)
			if c := counters[rule]; c.Packets != packets || c.Bytes != bytes {
				t.Errorf("task %d, rule %d: %+v, want %d packets, %d bytes", k.record.Number, rule, c, packets, bytes)
			}
		}
	}
	all, err := f.Maps().Counters.All()
	if err != nil {
		t.Fatal(err)
	}
	key := maps.CounterKey{Task: tasks[0].record.Number, Rule: maps.RuleFirst}
	if all[key].Packets != burst*turns {
		t.Errorf("all: %+v", all[key])
	}
}

// An entry says yes only while it is whole, of the epoch of now, and of this
// cgroup and destination.
func TestEntriesThatDoNotHold(t *testing.T) {
	f := newFixture(t)
	addr := netip.MustParseAddrPort(f.packet("127.0.0.1:0").LocalAddr().String())
	a := f.begin(func(r *maps.Task) { r.Loopback = policy.LoopbackNone })
	a.want("ok", "packet u udp4 127.0.0.1:0")
	// The socket is known to go there, so that it is egress alone that judges.
	a.allow("udp://" + addr.String())
	a.want("ok 1", "burst u 1 %s", addr)
	a.allow()

	for name, c := range map[string]struct {
		change func(*bpf.GuardRecent)
		want   string
	}{
		"whole":            {func(*bpf.GuardRecent) {}, "ok 1"},
		"being replaced":   {func(e *bpf.GuardRecent) { e.Word |= 1 << bpf.GuardRecentPartRECENT_GENERATION }, "ok 0"},
		"half full":        {func(e *bpf.GuardRecent) { e.Word |= 1 << (bpf.GuardRecentPartRECENT_ALLOWED - 1) }, "ok 0"},
		"an earlier epoch": {func(e *bpf.GuardRecent) { e.Epoch-- }, "ok 0"},
		"another cgroup":   {func(e *bpf.GuardRecent) { e.Cgroup++ }, "ok 0"},
		"another port":     {func(e *bpf.GuardRecent) { e.Flow.Port++ }, "ok 0"},
		"another protocol": {func(e *bpf.GuardRecent) { e.Flow.Proto = 6 }, "ok 0"},
		"another address":  {func(e *bpf.GuardRecent) { e.Flow.Addr[3]++ }, "ok 0"},
		"another family":   {func(e *bpf.GuardRecent) { e.Flow.Addr[2] = 0 }, "ok 0"},
		"passed":           {func(e *bpf.GuardRecent) { e.Deadline = 1 }, "ok 0"},
	} {
		a.allow("udp://" + addr.String())
		a.want("ok 1", "burst u 1 %s", addr) // after a refusal the socket has forgotten
		a.allow()
		entry := bpf.GuardRecent{Cgroup: a.dir.ID(), Task: a.record.Number, Rule: maps.RuleFirst}
		if err := f.objs.Epochs.Lookup(uint32(0), &entry.Epoch); err != nil {
			t.Fatal(err)
		}
		mapped := addr.Addr().As16()
		for i := range entry.Flow.Addr {
			entry.Flow.Addr[i] = binary.NativeEndian.Uint32(mapped[4*i:])
		}
		entry.Flow.Port, entry.Flow.Proto = addr.Port(), 17
		c.change(&entry)
		for i := range f.objs.Recents.MaxEntries() {
			if err := f.objs.Recents.Update(i, entry, ebpf.UpdateAny); err != nil {
				t.Fatal(err)
			}
		}
		if got := a.do("burst u 1 %s", addr); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

func (k *task) grant(deadline uint64, destinations ...string) {
	k.f.t.Helper()
	if err := k.f.Maps().Rules.Replace(k.record.Number, compile(k.f.t, deadline, destinations...)); err != nil {
		k.f.t.Fatal(err)
	}
}

func (k *task) forget() {
	k.f.t.Helper()
	if err := k.f.Maps().Tasks.Delete(k.dir.ID()); err != nil {
		k.f.t.Fatal(err)
	}
}
