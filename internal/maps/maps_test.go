// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"math/rand/v2"
	"net/netip"
	"os"
	"sync"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"agentguard.dev/agentguard/bpf"
	"agentguard.dev/agentguard/internal/policy"
)

var guardSpec = sync.OnceValues(bpf.LoadGuard)

// kernelMaps makes the real maps, with few entries where sizes says so.
func kernelMaps(t *testing.T, sizes map[string]uint32) *bpf.GuardMaps {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes maps in the kernel")
	}
	spec, err := guardSpec()
	if err != nil {
		t.Fatal(err)
	}
	spec = spec.Copy()
	for name, size := range sizes {
		spec.Maps[name].MaxEntries = size
	}
	var m bpf.GuardMaps
	if err := spec.LoadAndAssign(&m, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return &m
}

func open(t *testing.T, m *bpf.GuardMaps) *Set {
	t.Helper()
	s, err := Open(m)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestTaskRecord(t *testing.T) {
	s := open(t, kernelMaps(t, nil))
	want := Task{
		Number: 7, Policy: 8, Deadline: 9, State: StateLive, Mode: policy.Audit, Loopback: policy.LoopbackHost,
		MPTCP: true, Multicast: true, SCTP: true, PolicyPrefixes: true, GrantPrefixes: true,
	}
	other := Task{Number: 1, Raw: true, UDPLite: true, DCCP: true, Grants: true}
	if err := errors.Join(s.Tasks.Put(100, want), s.Tasks.Put(200, other)); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Tasks.Get(100); err != nil || got != want {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	all, err := s.Tasks.All()
	if err != nil || len(all) != 2 || all[200] != other {
		t.Errorf("all: %+v, %v", all, err)
	}
	if err := errors.Join(s.Tasks.Delete(100), s.Tasks.Delete(100)); err != nil {
		t.Errorf("delete twice: %v", err)
	}
	if _, err := s.Tasks.Get(100); !errors.Is(err, ebpf.ErrKeyNotExist) {
		t.Errorf("after delete: %v", err)
	}
}

// randomRules compiles a few of a small universe of destinations, so that
// versions overlap.
func randomRules(t *testing.T, r *rand.Rand) policy.Compiled {
	t.Helper()
	universe := []string{
		"192.0.2.1:443", "192.0.2.1:80,443", "udp://192.0.2.2:53", "[2001:db8::1]:1-16", "10.0.0.0/8:443",
		"10.1.0.0/16:22", "10.1.2.0/24:*", "[::/0]:443", "0.0.0.0/0:80", "icmp://192.0.2.0/24", "127.0.0.1:1-100",
		"a.test:443", "*.test:443,8443", "b.a.test:80", "*.a.test:22",
	}
	var in []policy.Input
	for i, text := range universe {
		if r.IntN(2) == 0 {
			continue
		}
		d, err := policy.ParseDestination(text)
		if err != nil {
			t.Fatal(err)
		}
		in = append(in, policy.Input{
			Rule: policy.Rule{To: []policy.Destination{d}},
			ID:   RuleFirst + uint32(i), Deadline: uint64(r.IntN(2)) * 1000,
		})
	}
	c, err := policy.Compile(in)
	if err != nil {
		t.Fatal(err)
	}
	c.Named, c.WideNames = nil, false // the kernel does not know them
	return c
}

var sameRules = []cmp.Option{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	cmpopts.EquateEmpty(),
	cmpopts.SortSlices(func(a, b policy.Host) bool {
		return a.Addr.Less(b.Addr) || a.Addr == b.Addr && (a.Proto < b.Proto || a.Proto == b.Proto && a.Port < b.Port)
	}),
	cmpopts.SortSlices(func(a, b policy.Prefix) bool {
		return a.Prefix.Bits() < b.Prefix.Bits() || a.Prefix.Bits() == b.Prefix.Bits() && a.Prefix.Addr().Less(b.Prefix.Addr())
	}),
}

func TestReplaceLeavesExactlyWhatIsWanted(t *testing.T) {
	m := kernelMaps(t, nil)
	s := open(t, m)
	r := rand.New(rand.NewPCG(1, 2))
	want := make(map[uint32]policy.Compiled)
	for range 200 {
		owner := 1 + r.Uint32N(3)
		want[owner] = randomRules(t, r)
		if err := s.Rules.Replace(owner, want[owner]); err != nil {
			t.Fatal(err)
		}
		again := open(t, m) // what the kernel really holds
		for owner, c := range want {
			if diff := cmp.Diff(c, again.Rules.Get(owner), sameRules...); diff != "" {
				t.Fatalf("owner %d, -want +kernel:\n%s", owner, diff)
			}
		}
	}
	for owner := range want {
		if err := s.Rules.Delete(owner); err != nil {
			t.Fatal(err)
		}
	}
	if again := open(t, m); len(again.Rules.Owners()) != 0 {
		t.Errorf("after deleting all owners: %v", again.Rules.Owners())
	}
}

func TestFailedReplaceChangesNothing(t *testing.T) {
	for _, sizes := range []map[string]uint32{{"hosts": 18}, {"prefixes": 6}, {"names": 3}} {
		m := kernelMaps(t, sizes)
		s := open(t, m)
		r := rand.New(rand.NewPCG(3, 4))
		have := make(map[uint32]policy.Compiled)
		failed := 0
		for range 200 {
			owner := 1 + r.Uint32N(2)
			next := randomRules(t, r)
			switch err := s.Rules.Replace(owner, next); {
			case errors.Is(err, ErrFull):
				failed++
			case err != nil:
				t.Fatal(err)
			default:
				have[owner] = next
			}
			again := open(t, m)
			for owner, c := range have {
				if diff := cmp.Diff(c, again.Rules.Get(owner), sameRules...); diff != "" {
					t.Fatalf("%v: owner %d, -want +kernel:\n%s", sizes, owner, diff)
				}
			}
		}
		if failed < 10 || failed > 190 {
			t.Errorf("%v: %d of 200 changes met a full map; the test wants both", sizes, failed)
		}
	}
}

func TestLocalAddrs(t *testing.T) {
	m := kernelMaps(t, nil)
	s := open(t, m)
	a, b, c := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("fe80::1%eth0"), netip.MustParseAddr("2001:db8::1")
	if err := errors.Join(
		s.LocalAddrs.Replace(1, []netip.Addr{a, b}),
		s.LocalAddrs.Replace(2, []netip.Addr{c}),
		s.LocalAddrs.Replace(1, []netip.Addr{a, c}),
	); err != nil {
		t.Fatal(err)
	}
	again := open(t, m)
	if got := again.LocalAddrs.have[1]; len(got) != 2 {
		t.Errorf("namespace 1: %v", got)
	}
	if err := again.LocalAddrs.Replace(1, nil); err != nil {
		t.Fatal(err)
	}
	if got := open(t, m).LocalAddrs.have; len(got) != 1 || len(got[2]) != 1 {
		t.Errorf("after forgetting namespace 1: %v", got)
	}
}

func TestCountersAndStats(t *testing.T) {
	m := kernelMaps(t, nil)
	s := open(t, m)
	for _, rule := range []uint32{RuleNone, 16, 17} {
		if err := m.Counters.Put(bpf.GuardCounterKey{Task: 5, Rule: rule}, bpf.GuardCounter{Allowed: uint64(rule)}); err != nil {
			t.Fatal(err)
		}
	}
	got, err := s.Counters.Read(5, []uint32{16, 17, 18})
	if err != nil || len(got) != 2 || got[17].Allowed != 17 {
		t.Errorf("read: %+v, %v", got, err)
	}
	if err := s.Counters.Delete(5, []uint32{16, 99}); err != nil {
		t.Error(err)
	}
	if all, err := s.Counters.All(); err != nil || len(all) != 2 {
		t.Errorf("all: %+v, %v", all, err)
	}
	perCPU := make([]uint64, ebpf.MustPossibleCPU())
	for i := range perCPU {
		perCPU[i] = 3
	}
	if err := m.Stats.Put(uint32(bpf.GuardStatSTAT_EVENTS_LOST), perCPU); err != nil {
		t.Fatal(err)
	}
	if totals, err := s.Stats.Read(); err != nil || totals.EventsLost != uint64(3*len(perCPU)) || totals.Denied != 0 {
		t.Errorf("stats: %+v, %v", totals, err)
	}
	usage, err := s.Usage()
	if err != nil || len(usage) != 8 {
		t.Errorf("usage: %+v, %v", usage, err)
	}
}

// A rule that could not be taken out of the kernel is still there, and goes
// with the next attempt.
func TestFailedRemovalIsNotForgotten(t *testing.T) {
	m := kernelMaps(t, nil)
	s := open(t, m)
	want := policy.Compiled{Hosts: []policy.Host{{
		HostKey: policy.HostKey{Addr: netip.MustParseAddr("::ffff:192.0.2.1"), Port: 443, Proto: policy.TCP}, Rule: 16,
	}}}
	if err := s.Rules.Replace(7, want); err != nil {
		t.Fatal(err)
	}
	broken, err := m.Hosts.Clone()
	if err != nil {
		t.Fatal(err)
	}
	broken.Close()
	s.Rules.tables.hosts = broken
	if err := s.Rules.Delete(7); err == nil {
		t.Fatal("deleted from a closed map")
	}
	if got := s.Rules.Get(7); !cmp.Equal(got, want, cmpopts.EquateComparable(netip.Addr{})) {
		t.Errorf("after a failed removal: %+v, want %+v", got, want)
	}
	// It may as well be gone, and wanted again.
	s.Rules.tables.hosts = m.Hosts
	if err := m.Hosts.Delete(hostKey(7, want.Hosts[0].HostKey)); err != nil {
		t.Fatal(err)
	}
	if err := s.Rules.Replace(7, want); err != nil {
		t.Fatal(err)
	}
	if there := open(t, m).Rules.Owners(); len(there) != 1 {
		t.Errorf("what is wanted again is not in the kernel: %v", there)
	}
	if err := s.Rules.Delete(7); err != nil {
		t.Fatal(err)
	}
	if left := open(t, m).Rules.Owners(); len(left) != 0 {
		t.Errorf("still in the kernel: rules of %v", left)
	}
}
