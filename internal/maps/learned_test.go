// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"

	"agentguard.dev/agentguard/bpf"
	"agentguard.dev/agentguard/internal/policy"
)

// named compiles rules like "api.test:443 tls: off", numbered from RuleFirst.
func named(t *testing.T, rules ...policy.Input) policy.Compiled {
	t.Helper()
	c, err := policy.Compile(rules)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func input(t *testing.T, id uint32, deadline uint64, tls policy.Setting, to string) policy.Input {
	t.Helper()
	d, err := policy.ParseDestination(to)
	if err != nil {
		t.Fatal(err)
	}
	return policy.Input{Rule: policy.Rule{To: []policy.Destination{d}, TLS: tls}, ID: id, Deadline: deadline}
}

// resolve learns addr for what matches host, as the resolver does.
func resolve(s *Set, owner uint32, c policy.Compiled, host, addr string, expires uint64) error {
	var learned []Learned
	for _, n := range c.Matching(host) {
		learned = append(learned, Learned{n.Number, netip.MustParseAddr(addr), expires})
	}
	return s.Rules.Learn(owner, learned...)
}

// kernelHosts is what hosts really holds, as text.
func kernelHosts(t *testing.T, m *bpf.GuardMaps) map[string]string {
	t.Helper()
	var (
		key   bpf.GuardHost
		value bpf.GuardPermit
		all   = make(map[string]string)
	)
	entries := m.Hosts.Iterate()
	for entries.Next(&key, &value) {
		k := fmt.Sprintf("%d %s %s %d", key.Owner, policy.Proto(key.Flow.Proto), Addr(key.Flow.Addr), key.Flow.Port)
		v := fmt.Sprintf("rule %d", value.Rule)
		for bit, text := range map[uint32]string{permitTLS: " tls", permitHTTP: " http"} {
			if value.Flags&bit != 0 {
				v += text
			}
		}
		if value.Flags&permitLearned != 0 {
			v += fmt.Sprintf(" expires %d", value.Expires)
		}
		if value.Deadline != 0 {
			v += fmt.Sprintf(" deadline %d", value.Deadline)
		}
		if value.High != 0 {
			v += fmt.Sprintf(" ports %d-%d", value.Low, value.High)
		}
		if value.Used != 0 {
			v += fmt.Sprintf(" used %d", value.Used)
		}
		all[k] = v
	}
	if err := entries.Err(); err != nil {
		t.Fatal(err)
	}
	return all
}

// kernelLearned is what learned really holds, by the names of c.
func kernelLearned(t *testing.T, m *bpf.GuardMaps, compiled ...policy.Compiled) map[string]uint64 {
	t.Helper()
	names := make(map[uint32]string)
	for _, c := range compiled {
		for _, n := range c.Named {
			names[n.Number] = string(n.Name)
		}
	}
	var (
		key   bpf.GuardLearnedAddr
		until uint64
		all   = make(map[string]uint64)
	)
	entries := m.Learned.Iterate()
	for entries.Next(&key, &until) {
		name, ok := names[key.Number]
		if !ok {
			name = fmt.Sprint(key.Number)
		}
		all[fmt.Sprintf("%d %s %s", key.Owner, name, Addr(key.Addr))] = until
	}
	if err := entries.Err(); err != nil {
		t.Fatal(err)
	}
	return all
}

// use marks an entry of hosts as the programs do.
func use(t *testing.T, m *bpf.GuardMaps, owner uint32, addr string, port uint16, at uint64) {
	t.Helper()
	key := hostKey(owner, policy.HostKey{Addr: as16(netip.MustParseAddr(addr)), Port: port, Proto: policy.TCP})
	var value bpf.GuardPermit
	if err := m.Hosts.Lookup(key, &value); err != nil {
		t.Fatal(err)
	}
	value.Used = at
	if err := m.Hosts.Put(key, value); err != nil {
		t.Fatal(err)
	}
}

func expectHosts(t *testing.T, m *bpf.GuardMaps, want map[string]string) {
	t.Helper()
	if diff := cmp.Diff(want, kernelHosts(t, m)); diff != "" {
		t.Errorf("hosts, -want +kernel:\n%s", diff)
	}
}

func TestLearn(t *testing.T) {
	m := kernelMaps(t, nil)
	s := open(t, m)
	c := named(t,
		input(t, 16, 0, policy.Unset, "api.test:80,443"),
		input(t, 17, 0, policy.Unset, "*.test:8443"),
		input(t, 18, 0, policy.Off, "api.test:1000-2000"),
		input(t, 19, 0, policy.Unset, "udp://ntp.test:123"),
		input(t, 20, 0, policy.Unset, "icmp://ntp.test"),
		input(t, 21, 900, policy.Unset, "grant.test:443"),
	)
	for _, err := range []error{
		s.Rules.Replace(1, c),
		resolve(s, 1, c, "api.test", "192.0.2.1", 500),
		resolve(s, 1, c, "api.test", "2001:db8::1", 500),
		resolve(s, 1, c, "api.test", "::ffff:192.0.2.1", 400), // known, and for longer
		resolve(s, 1, c, "ntp.test", "192.0.2.2", 600),
		resolve(s, 1, c, "grant.test", "192.0.2.3", 1000),
		resolve(s, 1, c, "other.example", "192.0.2.4", 1000),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	expectHosts(t, m, map[string]string{
		"1 tcp 192.0.2.1 80":     "rule 16 http expires 500",
		"1 tcp 192.0.2.1 443":    "rule 16 tls expires 500",
		"1 tcp 192.0.2.1 0":      "rule 18 expires 500 ports 1000-2000",
		"1 tcp 192.0.2.1 8443":   "rule 17 tls expires 500",
		"1 tcp 2001:db8::1 80":   "rule 16 http expires 500",
		"1 tcp 2001:db8::1 443":  "rule 16 tls expires 500",
		"1 tcp 2001:db8::1 0":    "rule 18 expires 500 ports 1000-2000",
		"1 tcp 2001:db8::1 8443": "rule 17 tls expires 500",
		"1 udp 192.0.2.2 123":    "rule 19 expires 600",
		"1 icmp 192.0.2.2 0":     "rule 20 expires 600",
		"1 tcp 192.0.2.2 8443":   "rule 17 tls expires 600",
		"1 tcp 192.0.2.3 443":    "rule 21 tls expires 900 deadline 900",
		"1 tcp 192.0.2.3 8443":   "rule 17 tls expires 1000",
	})
	if until := kernelLearned(t, m, c)["1 grant.test 192.0.2.3"]; until != 900 {
		t.Errorf("after its grant: the address is one of the name until %d", until)
	}
	if until := kernelLearned(t, m, c)["1 *.test 192.0.2.3"]; until != 1000+grace {
		t.Errorf("the address is one of the wildcard until %d", until)
	}
	for addr, want := range map[string][]policy.Name{
		"192.0.2.1": {"*.test", "api.test"}, "::ffff:192.0.2.2": {"*.test", "ntp.test"}, "192.0.2.4": nil,
	} {
		if got := s.Rules.LearnedNames(1, netip.MustParseAddr(addr)); !slices.Equal(got, want) {
			t.Errorf("names of %s: %v, want %v", addr, got, want)
		}
	}
	if got := s.Rules.Learned(1); got != 11 {
		t.Errorf("%d learned", got)
	}
	err := s.Rules.Learn(1, Learned{c.Named[0].Number, netip.MustParseAddr("192.0.2.9"), 500}, Learned{1, netip.MustParseAddr("192.0.2.9"), 500})
	if !errors.Is(err, ErrNoName) || s.Rules.LearnedNames(1, netip.MustParseAddr("192.0.2.9")) != nil {
		t.Errorf("an unknown number: %v", err)
	}
	if err := s.Rules.Learn(2, Learned{1, netip.MustParseAddr("192.0.2.9"), 500}); !errors.Is(err, ErrNoName) {
		t.Errorf("an unknown owner: %v", err)
	}
	usage, err := s.Usage()
	for _, u := range usage {
		if want := map[string]int{"hosts": 13, "learned": 11, "names": 3}[u.Map]; u.Entries != want {
			t.Errorf("%s: %d in use, want %d", u.Map, u.Entries, want)
		}
	}
	if err != nil {
		t.Error(err)
	}
	if err := s.Rules.Delete(1); err != nil {
		t.Fatal(err)
	}
	expectEmpty(t, m)
}

// One owner has room for so many addresses; those that it knows live on.
func TestLearnedAddressesOfAnOwnerAreBounded(t *testing.T) {
	const room = 1024
	s := open(t, kernelMaps(t, nil))
	s.Rules.room = room
	c := named(t, input(t, 16, 0, policy.Unset, "*.test:443"))
	more := named(t, input(t, 16, 0, policy.Unset, "*.test:443"), input(t, 17, 0, policy.Unset, "a.test:22"))
	for owner, c := range map[uint32]policy.Compiled{1: c, 2: c, 3: more} {
		if err := s.Rules.Replace(owner, c); err != nil {
			t.Fatal(err)
		}
	}
	number := c.Named[0].Number
	addr := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}) }
	for i := 0; i < room; i += 64 {
		var l []Learned
		for j := range 64 {
			l = append(l, Learned{number, addr(i + j), 500})
		}
		if err := s.Rules.Learn(1, l...); err != nil {
			t.Fatal(err)
		}
	}
	err := s.Rules.Learn(1, Learned{number, addr(0), 600}, Learned{number, addr(room), 600})
	if !errors.Is(err, ErrTooMany) || s.Rules.Learned(1) != room {
		t.Errorf("one more: %v, and %d are learned", err, s.Rules.Learned(1))
	}
	if err := s.Rules.Learn(1, Learned{number, addr(0), 600}); err != nil {
		t.Errorf("one that is known: %v", err)
	}
	if err := s.Rules.Learn(2, Learned{number, addr(0), 600}); err != nil {
		t.Errorf("another owner: %v", err)
	}
	if err := s.Rules.Inherit(1, 3); err != nil || s.Rules.Learned(3) < room {
		t.Errorf("inherited %d, %v", s.Rules.Learned(3), err)
	}
	if n, err := s.Rules.Expire(550, 0); err != nil || n == 0 {
		t.Errorf("expired %d, %v", n, err)
	}
	if err := s.Rules.Learn(1, Learned{number, addr(room), 600}); err != nil {
		t.Errorf("when there is room again: %v", err)
	}
}

func expectEmpty(t *testing.T, m *bpf.GuardMaps) {
	t.Helper()
	for _, each := range []*ebpf.Map{m.Hosts, m.Prefixes, m.Names, m.Learned} {
		if err := each.NextKey(nil, make([]byte, each.KeySize())); !errors.Is(err, ebpf.ErrKeyNotExist) {
			t.Errorf("%s is not empty: %v", each, err)
		}
	}
}

// Addresses that names share, and static entries for the same flow.
func TestLearnShared(t *testing.T) {
	for _, tt := range []struct {
		name string
		in   []policy.Input
		do   func(s *Set, c policy.Compiled) error
		want string // of 192.0.2.1:443
	}{
		{
			"the later expiry", []policy.Input{input(t, 16, 0, policy.Unset, "a.test:443"), input(t, 17, 0, policy.Unset, "b.test:443")},
			func(s *Set, c policy.Compiled) error {
				return errors.Join(resolve(s, 1, c, "a.test", "192.0.2.1", 500), resolve(s, 1, c, "b.test", "192.0.2.1", 600))
			}, "rule 17 tls expires 600",
		},
		{
			"no check before TLS, and for no longer", []policy.Input{input(t, 16, 0, policy.Unset, "a.test:443"), input(t, 17, 0, policy.Off, "b.test:443")},
			func(s *Set, c policy.Compiled) error {
				return errors.Join(resolve(s, 1, c, "a.test", "192.0.2.1", 600), resolve(s, 1, c, "b.test", "192.0.2.1", 500))
			}, "rule 17 expires 500",
		},
		{
			"a grant with a deadline and a rule without", []policy.Input{input(t, 16, 700, policy.Unset, "a.test:443"), input(t, 17, 0, policy.Unset, "b.test:443")},
			func(s *Set, c policy.Compiled) error {
				return errors.Join(resolve(s, 1, c, "a.test", "192.0.2.1", 900), resolve(s, 1, c, "b.test", "192.0.2.1", 500))
			}, "rule 16 tls expires 700",
		},
		{
			"two deadlines", []policy.Input{input(t, 16, 700, policy.Unset, "a.test:443"), input(t, 17, 800, policy.Unset, "b.test:443")},
			func(s *Set, c policy.Compiled) error {
				return errors.Join(resolve(s, 1, c, "a.test", "192.0.2.1", 900), resolve(s, 1, c, "b.test", "192.0.2.1", 500))
			}, "rule 16 tls expires 700 deadline 800",
		},
		{
			"static wins, before", []policy.Input{input(t, 16, 0, policy.Unset, "a.test:443"), input(t, 17, 0, policy.Unset, "192.0.2.1:443")},
			func(s *Set, c policy.Compiled) error { return resolve(s, 1, c, "a.test", "192.0.2.1", 900) },
			"rule 17",
		},
		{
			"static wins, behind", []policy.Input{input(t, 16, 0, policy.Unset, "a.test:443")},
			func(s *Set, c policy.Compiled) error {
				return errors.Join(resolve(s, 1, c, "a.test", "192.0.2.1", 900),
					s.Rules.Replace(1, named(t, input(t, 16, 0, policy.Unset, "a.test:443"), input(t, 17, 0, policy.Unset, "192.0.2.1:443"))))
			}, "rule 17",
		},
		{
			"and leaves the name behind", []policy.Input{input(t, 16, 0, policy.Unset, "a.test:443"), input(t, 17, 0, policy.Unset, "192.0.2.1:443")},
			func(s *Set, c policy.Compiled) error {
				return errors.Join(resolve(s, 1, c, "a.test", "192.0.2.1", 900),
					s.Rules.Replace(1, named(t, input(t, 16, 0, policy.Unset, "a.test:443"))))
			}, "rule 16 tls expires 900",
		},
		{
			"one of two names goes", []policy.Input{input(t, 16, 0, policy.Off, "a.test:443"), input(t, 17, 0, policy.Unset, "b.test:443")},
			func(s *Set, c policy.Compiled) error {
				return errors.Join(resolve(s, 1, c, "a.test", "192.0.2.1", 500), resolve(s, 1, c, "b.test", "192.0.2.1", 600),
					s.Rules.Replace(1, named(t, input(t, 17, 0, policy.Unset, "b.test:443"))))
			}, "rule 17 tls expires 600",
		},
		{
			"a wildcard comes to a name", []policy.Input{input(t, 16, 0, policy.Unset, "a.test:22")},
			func(s *Set, c policy.Compiled) error {
				return errors.Join(resolve(s, 1, c, "a.test", "192.0.2.1", 500),
					s.Rules.Replace(1, named(t, input(t, 16, 0, policy.Unset, "a.test:22"), input(t, 17, 0, policy.Unset, "*.test:443"))))
			}, "rule 17 tls expires 500",
		},
		{
			"a wildcard makes place for a name", []policy.Input{input(t, 16, 0, policy.Unset, "*.test:443")},
			func(s *Set, c policy.Compiled) error {
				return errors.Join(resolve(s, 1, c, "a.test", "192.0.2.1", 500),
					s.Rules.Replace(1, named(t, input(t, 16, 0, policy.Unset, "a.test:443"))))
			}, "",
		},
		{
			"a deadline moves", []policy.Input{input(t, 16, 300, policy.Unset, "a.test:443")},
			func(s *Set, c policy.Compiled) error {
				return errors.Join(resolve(s, 1, c, "a.test", "192.0.2.1", 500),
					s.Rules.Replace(1, named(t, input(t, 16, 400, policy.Unset, "a.test:443"))))
			}, "rule 16 tls expires 400 deadline 400",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := kernelMaps(t, nil)
			s := open(t, m)
			c := named(t, tt.in...)
			if err := errors.Join(s.Rules.Replace(1, c), tt.do(s, c)); err != nil {
				t.Fatal(err)
			}
			if got := kernelHosts(t, m)["1 tcp 192.0.2.1 443"]; got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

// What the programs wrote about an entry stays when its time is extended.
func TestLearnKeepsUsed(t *testing.T) {
	m := kernelMaps(t, nil)
	s := open(t, m)
	c := named(t, input(t, 16, 0, policy.Unset, "a.test:443"))
	if err := errors.Join(s.Rules.Replace(1, c), resolve(s, 1, c, "a.test", "192.0.2.1", 500)); err != nil {
		t.Fatal(err)
	}
	use(t, m, 1, "192.0.2.1", 443, 77)
	if err := resolve(s, 1, c, "a.test", "192.0.2.1", 600); err != nil {
		t.Fatal(err)
	}
	expectHosts(t, m, map[string]string{"1 tcp 192.0.2.1 443": "rule 16 tls expires 600 used 77"})
}

func TestExpire(t *testing.T) {
	m := kernelMaps(t, nil)
	s := open(t, m)
	c := named(t,
		input(t, 16, 0, policy.Unset, "a.test:443"), input(t, 17, 0, policy.Unset, "b.test:443"),
		input(t, 18, 0, policy.Off, "c.test:443"), input(t, 19, 0, policy.Unset, "d.test:22,443"),
	)
	for _, err := range []error{
		s.Rules.Replace(1, c),
		resolve(s, 1, c, "a.test", "192.0.2.1", 500), // shared
		resolve(s, 1, c, "b.test", "192.0.2.1", 5000),
		resolve(s, 1, c, "a.test", "192.0.2.2", 500), // idle
		resolve(s, 1, c, "a.test", "192.0.2.3", 500), // in use
		resolve(s, 1, c, "c.test", "192.0.2.4", 500), // in use, and unchecked beside a check
		resolve(s, 1, c, "a.test", "192.0.2.4", 5000),
		resolve(s, 1, c, "d.test", "192.0.2.5", 500), // one port in use
		resolve(s, 1, c, "a.test", "192.0.2.6", 1001),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, addr := range []string{"192.0.2.1", "192.0.2.3", "192.0.2.4", "192.0.2.5"} {
		use(t, m, 1, addr, 443, 950)
	}
	use(t, m, 1, "192.0.2.2", 443, 900)
	freed, err := s.Rules.Expire(1000, 100)
	if err != nil || freed != 3 {
		t.Errorf("freed %d, %v", freed, err)
	}
	expectHosts(t, m, map[string]string{
		"1 tcp 192.0.2.1 443": "rule 17 tls expires 5000 used 950",
		"1 tcp 192.0.2.3 443": "rule 16 tls expires 500 used 950",
		"1 tcp 192.0.2.4 443": "rule 16 tls expires 5000 used 950",
		"1 tcp 192.0.2.5 22":  "rule 19 tls expires 500",
		"1 tcp 192.0.2.5 443": "rule 19 tls expires 500 used 950",
		"1 tcp 192.0.2.6 443": "rule 16 tls expires 1001",
	})
	want := map[string]uint64{
		"1 b.test 192.0.2.1": 5000 + grace, "1 a.test 192.0.2.3": 500 + grace, "1 a.test 192.0.2.4": 5000 + grace,
		"1 d.test 192.0.2.5": 500 + grace, "1 a.test 192.0.2.6": 1001 + grace,
	}
	if diff := cmp.Diff(want, kernelLearned(t, m, c)); diff != "" {
		t.Errorf("learned, -want +kernel:\n%s", diff)
	}
	// A stale address lives again.
	if err := resolve(s, 1, c, "a.test", "192.0.2.3", 1500); err != nil {
		t.Fatal(err)
	}
	freed, err = s.Rules.Expire(1200, 100)
	if err != nil || freed != 2 {
		t.Errorf("then freed %d, %v", freed, err)
	}
	expectHosts(t, m, map[string]string{
		"1 tcp 192.0.2.1 443": "rule 17 tls expires 5000 used 950",
		"1 tcp 192.0.2.3 443": "rule 16 tls expires 1500 used 950",
		"1 tcp 192.0.2.4 443": "rule 16 tls expires 5000 used 950",
	})
	if freed, err = s.Rules.Expire(10000, 100); err != nil || freed != 3 || len(kernelHosts(t, m)) != 0 || len(kernelLearned(t, m)) != 0 {
		t.Errorf("in the end freed %d, %v", freed, err)
	}
}

func TestInherit(t *testing.T) {
	m := kernelMaps(t, nil)
	s := open(t, m)
	old := named(t, input(t, 16, 0, policy.Unset, "a.test:443"), input(t, 17, 0, policy.Unset, "*.b.test:443"), input(t, 18, 0, policy.Unset, "c.test:443"))
	next := named(t, input(t, 16, 0, policy.Unset, "a.test:443"), input(t, 20, 0, policy.Unset, "*.test:8443"), input(t, 21, 0, policy.Unset, "x.b.test:443"))
	for _, err := range []error{
		s.Rules.Replace(1, old), s.Rules.Replace(2, next),
		resolve(s, 1, old, "a.test", "192.0.2.1", 500),
		resolve(s, 1, old, "x.b.test", "192.0.2.2", 600),
		resolve(s, 1, old, "c.test", "192.0.2.3", 700),
		resolve(s, 2, next, "a.test", "192.0.2.1", 900),
		s.Rules.Inherit(1, 2), s.Rules.Inherit(1, 3), s.Rules.Inherit(3, 2),
		s.Rules.Delete(1),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	expectHosts(t, m, map[string]string{
		"2 tcp 192.0.2.1 443":  "rule 16 tls expires 900",
		"2 tcp 192.0.2.1 8443": "rule 20 tls expires 900",
		"2 tcp 192.0.2.2 8443": "rule 20 tls expires 600",
		"2 tcp 192.0.2.3 8443": "rule 20 tls expires 700",
	})
}

func TestLearnedAfterRestart(t *testing.T) {
	m := kernelMaps(t, nil)
	s := open(t, m)
	a, b := input(t, 16, 0, policy.Unset, "a.test:80,443"), input(t, 17, 0, policy.Off, "b.test:443")
	address, prefix := input(t, 18, 0, policy.Unset, "192.0.2.9:443"), input(t, 19, 0, policy.Unset, "10.0.0.0/8:443")
	c := named(t, a, b, address, prefix)
	for _, err := range []error{
		s.Rules.Replace(1, c),
		resolve(s, 1, c, "a.test", "192.0.2.1", 1<<40),
		resolve(s, 1, c, "b.test", "192.0.2.1", 1<<41),
		resolve(s, 1, c, "b.test", "192.0.2.2", 1<<41),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	use(t, m, 1, "192.0.2.1", 443, 77)
	hosts, learned := kernelHosts(t, m), kernelLearned(t, m)

	again := open(t, m)
	if got := again.Rules.Get(1); len(got.Hosts) != 1 || len(got.Prefixes) != 1 || len(got.Names) != 1 || len(got.Named) != 0 {
		t.Errorf("after a restart: %+v", got)
	}
	if got := again.Rules.Learned(1); got != 3 {
		t.Errorf("after a restart %d learned", got)
	}
	if err := again.Rules.Replace(1, c); err != nil {
		t.Fatal(err)
	}
	expectHosts(t, m, hosts)
	if diff := cmp.Diff(learned, kernelLearned(t, m)); diff != "" {
		t.Errorf("learned, -before +after:\n%s", diff)
	}
	if got := again.Rules.LearnedNames(1, netip.MustParseAddr("192.0.2.1")); !slices.Equal(got, []policy.Name{"a.test", "b.test"}) {
		t.Errorf("names: %v", got)
	}

	// The rules can be others after the restart, in another order.
	again = open(t, m)
	if err := again.Rules.Replace(1, named(t, prefix, a)); err != nil {
		t.Fatal(err)
	}
	expectHosts(t, m, map[string]string{
		"1 tcp 192.0.2.1 80": "rule 16 http expires 1099511627776", "1 tcp 192.0.2.1 443": "rule 16 tls expires 1099511627776 used 77",
	})
	again = open(t, m)
	if err := again.Rules.Delete(1); err != nil {
		t.Fatal(err)
	}
	expectEmpty(t, m)
}

// Two names could have one number, if only in versions that never meet.
func TestReusedNumber(t *testing.T) {
	m := kernelMaps(t, nil)
	s := open(t, m)
	c := named(t, input(t, 16, 0, policy.Unset, "a.test:443"))
	if err := errors.Join(s.Rules.Replace(1, c), resolve(s, 1, c, "a.test", "192.0.2.1", 500)); err != nil {
		t.Fatal(err)
	}
	other := named(t, input(t, 17, 0, policy.Unset, "b.test:443"))
	other.Named[0].Number, other.Names[0].Claims[0].Number = c.Named[0].Number, c.Named[0].Number
	if err := s.Rules.Replace(1, other); err != nil {
		t.Fatal(err)
	}
	if hosts, learned := kernelHosts(t, m), kernelLearned(t, m); len(hosts)+len(learned) != 0 {
		t.Errorf("addresses of another name: %v, %v", hosts, learned)
	}
}

func TestNameKey(t *testing.T) {
	for name, want := range map[policy.Name]string{
		"a.test": "tset.a\x00", "*.a.test": "tset.a.", "x": "x\x00", "*.x": "x.",
	} {
		key := nameKey(7, name)
		text := make([]byte, (key.Bits-32)/8)
		for i := range text {
			text[i] = byte(key.Text[i])
		}
		if string(text) != want || key.Owner != 7 || policyName(&key) != name {
			t.Errorf("%s: %q, %q", name, text, policyName(&key))
		}
	}
	m := kernelMaps(t, nil)
	s := open(t, m)
	long := policy.Name(strings.Repeat("a.", policy.MaxName/2) + "a")
	c := policy.Compiled{Names: []policy.NameEntry{{Name: long, Claims: []policy.Claim{{Number: 1, Lo: 1, Hi: 2}}}}}
	if err := s.Rules.Replace(1, c); err != nil || len(long) != policy.MaxName {
		t.Fatal(err, len(long))
	}
	if got := open(t, m).Rules.Get(1).Names; !cmp.Equal(got, c.Names) {
		t.Errorf("the longest name: %v", got)
	}
}

// Names, addresses, time and restarts at random: what the kernel has is always
// what somebody who starts from nothing with the same knowledge would write.
func TestLearnedAgreesWithAFreshStart(t *testing.T) {
	m, fresh := kernelMaps(t, nil), kernelMaps(t, nil)
	s := open(t, m)
	r := rand.New(rand.NewPCG(5, 6))
	universe := []string{"a.test:443", "a.test:80,443", "*.test:443", "b.test:22,443", "*.b.test:1-100", "c.b.test:443", "192.0.2.1:443", "192.0.2.0/24:22"}
	hosts := []string{"a.test", "b.test", "c.b.test", "d.b.test", "c.test"}
	compiled := make(map[uint32]policy.Compiled)
	now := uint64(1 << 40)
	for range 200 {
		owner := 1 + r.Uint32N(2)
		var err error
		switch r.IntN(8) {
		case 0:
			var in []policy.Input
			for i, to := range universe {
				if r.IntN(2) == 0 {
					in = append(in, input(t, uint32(16+i), 0, policy.Setting(i%3), to))
				}
			}
			compiled[owner] = named(t, in...)
			err = s.Rules.Replace(owner, compiled[owner])
		case 1:
			_, err = s.Rules.Expire(now, 0)
		case 2:
			err = s.Rules.Inherit(owner, 3-owner)
		default:
			now += r.Uint64N(100)
			addr := fmt.Sprintf("192.0.2.%d", r.IntN(4))
			err = resolve(s, owner, compiled[owner], hosts[r.IntN(len(hosts))], addr, now+r.Uint64N(1000))
		}
		if err != nil {
			t.Fatal(err)
		}
		f := open(t, fresh)
		for owner, c := range compiled {
			if err := f.Rules.Replace(owner, c); err != nil {
				t.Fatal(err)
			}
			o := s.Rules.owners[owner]
			if o == nil {
				continue
			}
			for addr, known := range o.addrs {
				f.Rules.owners[owner].addrs[addr] = known
			}
			if err := f.Rules.replace(owner, newOwned(policy.Compiled{}), f.Rules.owners[owner]); err != nil {
				t.Fatal(err)
			}
		}
		if diff := cmp.Diff(kernelHosts(t, fresh), kernelHosts(t, m)); diff != "" {
			t.Fatalf("hosts, -fresh +kernel:\n%s", diff)
		}
		if diff := cmp.Diff(kernelLearned(t, fresh), kernelLearned(t, m)); diff != "" {
			t.Fatalf("learned, -fresh +kernel:\n%s", diff)
		}
		usage, err := s.Usage()
		if err != nil || usage[1].Entries != len(kernelHosts(t, m)) || usage[4].Entries != len(kernelLearned(t, m)) {
			t.Fatalf("usage %v, %v", usage, err)
		}
		for owner := range compiled {
			if err := f.Rules.Delete(owner); err != nil {
				t.Fatal(err)
			}
		}
		expectEmpty(t, fresh)
	}
}

func TestFailedLearnChangesNothing(t *testing.T) {
	for _, sizes := range []map[string]uint32{{"hosts": 40}, {"learned": 25}} {
		m := kernelMaps(t, sizes)
		s := open(t, m)
		r := rand.New(rand.NewPCG(7, 8))
		c := named(t, input(t, 16, 0, policy.Unset, "a.test:80,443"), input(t, 17, 0, policy.Unset, "*.test:443"), input(t, 18, 0, policy.Unset, "b.test:22"))
		if err := s.Rules.Replace(1, c); err != nil {
			t.Fatal(err)
		}
		failed := 0
		for round := range uint64(100) {
			hosts, learned := kernelHosts(t, m), kernelLearned(t, m)
			known := s.Rules.Learned(1)
			var l []Learned
			for range 1 + r.IntN(40) {
				addr := netip.AddrFrom4([4]byte{192, 0, 2, byte(r.IntN(64))})
				l = append(l, Learned{c.Named[r.IntN(len(c.Named))].Number, addr, 1000 + 10*round})
			}
			switch err := s.Rules.Learn(1, l...); {
			case errors.Is(err, ErrFull):
				failed++
				if diff := cmp.Diff(hosts, kernelHosts(t, m)); diff != "" {
					t.Fatalf("%v: hosts, -before +after:\n%s", sizes, diff)
				}
				if diff := cmp.Diff(learned, kernelLearned(t, m)); diff != "" {
					t.Fatalf("%v: learned, -before +after:\n%s", sizes, diff)
				}
				if got := s.Rules.Learned(1); got != known {
					t.Fatalf("%v: %d known, and before %d", sizes, got, known)
				}
				if _, err := s.Rules.Expire(1000+10*round-30, 0); err != nil {
					t.Fatal(err)
				}
			case err != nil:
				t.Fatal(err)
			}
		}
		if failed < 10 || failed > 90 {
			t.Errorf("%v: %d of 100 met a full map; the test wants both", sizes, failed)
		}
	}
}

// A removal that fails leaves what the next change removes.
func TestFailedRemovalOfLearned(t *testing.T) {
	m := kernelMaps(t, nil)
	s := open(t, m)
	c := named(t, input(t, 16, 0, policy.Unset, "a.test:443"), input(t, 17, 0, policy.Unset, "b.test:443"))
	if err := errors.Join(s.Rules.Replace(1, c), resolve(s, 1, c, "a.test", "192.0.2.1", 500), resolve(s, 1, c, "b.test", "192.0.2.2", 900)); err != nil {
		t.Fatal(err)
	}
	broken, err := m.Learned.Clone()
	if err != nil {
		t.Fatal(err)
	}
	broken.Close()
	s.Rules.tables.learned = broken
	if freed, err := s.Rules.Expire(600, 0); err == nil || freed != 0 {
		t.Errorf("freed %d, %v", freed, err)
	}
	if err := s.Rules.Delete(1); err == nil {
		t.Error("deleted from a closed map")
	}
	s.Rules.tables.learned = m.Learned
	if err := s.Rules.Replace(1, named(t, input(t, 16, 0, policy.Unset, "a.test:443"))); err != nil {
		t.Fatal(err)
	}
	if got := kernelLearned(t, m, c); len(got) > 1 || got["1 b.test 192.0.2.2"] != 0 {
		t.Errorf("still there: %v", got)
	}
	if err := s.Rules.Delete(1); err != nil {
		t.Fatal(err)
	}
	expectEmpty(t, m)
}

func TestStationsAndAskers(t *testing.T) {
	m := kernelMaps(t, nil)
	s := open(t, m)
	if err := errors.Join(s.Stations.Put(7, Station{DNS: 853, HTTP: 880}), s.Stations.Put(8, Station{DNS: 854}), s.Stations.Put(7, Station{DNS: 855}), s.Stations.Delete(8), s.Stations.Delete(8)); err != nil {
		t.Fatal(err)
	}
	if all, err := s.Stations.All(); err != nil || len(all) != 1 || all[7] != (Station{DNS: 855}) {
		t.Errorf("stations: %v, %v", all, err)
	}
	asker := bpf.GuardAsker{
		Cgroup: 5, To: bpf.GuardFlow{Addr: words(netip.MustParseAddr("127.0.0.53")), Port: 53, Proto: uint8(policy.UDP)},
		Task: 9, Pid: 10, Uid: 11, Comm: [16]int8{'d', 'i', 'g'},
	}
	for _, src := range []string{"127.0.0.1", "::1"} {
		key := bpf.GuardPeer{Netns: 7, Addr: words(netip.MustParseAddr(src)), Port: 4242, Proto: uint8(policy.UDP)}
		if err := m.Askers.Put(key, asker); err != nil {
			t.Fatal(err)
		}
	}
	want := Asker{Cgroup: 5, Task: 9, PID: 10, UID: 11, Process: "dig", To: netip.MustParseAddrPort("127.0.0.53:53")}
	for _, src := range []string{"127.0.0.1:4242", "[::ffff:127.0.0.1]:4242", "[::1]:4242"} {
		if got, ok, err := s.Askers.Find(7, policy.UDP, netip.MustParseAddrPort(src)); got != want || !ok || err != nil {
			t.Errorf("%s: %+v, %v, %v", src, got, ok, err)
		}
	}
	for _, other := range []struct {
		cookie uint64
		proto  policy.Proto
		src    string
	}{{8, policy.UDP, "127.0.0.1:4242"}, {7, policy.TCP, "127.0.0.1:4242"}, {7, policy.UDP, "127.0.0.1:4243"}, {7, policy.UDP, "127.0.0.2:4242"}} {
		if got, ok, err := s.Askers.Find(other.cookie, other.proto, netip.MustParseAddrPort(other.src)); ok || err != nil {
			t.Errorf("%v: %+v, %v", other, got, err)
		}
	}
}

// A hundred thousand addresses are cheap: to learn one more, to look for what
// has expired, to hand on, to read again and to free.
func TestManyLearned(t *testing.T) {
	many := 100_000
	if os.Getenv("AGENTGUARD_VM") != "" {
		many = 10_000 // perhaps without KVM
	}
	m := kernelMaps(t, nil)
	s := open(t, m)
	var in []policy.Input
	for i := range 100 {
		in = append(in, input(t, uint32(16+i), 0, policy.Unset, fmt.Sprintf("h%d.test:443", i)))
	}
	c := named(t, in...)
	if err := errors.Join(s.Rules.Replace(1, c), s.Rules.Replace(2, c)); err != nil {
		t.Fatal(err)
	}
	learned := make([]Learned, many)
	for i := range learned {
		learned[i] = Learned{c.Named[i%len(c.Named)].Number, netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), uint64(1000 + i)}
	}
	step := func(name string, most time.Duration, do func() error) {
		t.Helper()
		began := time.Now()
		if err := do(); err != nil {
			t.Fatal(name, err)
		}
		took := time.Since(began)
		t.Logf("%s: %v", name, took.Round(time.Microsecond))
		if took > most {
			t.Errorf("%s took %v, more than %v", name, took, most)
		}
	}
	memory := func() uint64 {
		var stats runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&stats)
		return stats.HeapAlloc
	}
	before := memory()
	step("learn 10 at a time", 20*time.Second, func() error {
		for some := range slices.Chunk(learned, 10) {
			if err := s.Rules.Learn(1, some...); err != nil {
				return err
			}
		}
		return nil
	})
	if used := memory() - before; used > 64<<20 {
		t.Errorf("%d bytes for each address", used/uint64(many))
	} else {
		t.Logf("%d bytes for each address", used/uint64(many))
	}
	step("learn what is known, one by one", 2*time.Second, func() error {
		for i := range learned {
			if err := s.Rules.Learn(1, learned[i]); err != nil {
				return err
			}
		}
		return nil
	})
	step("look for what has expired", 2*time.Second, func() error {
		freed, err := s.Rules.Expire(999, time.Minute)
		if freed != 0 {
			t.Errorf("freed %d", freed)
		}
		return err
	})
	step("free a hundred", 2*time.Second, func() error {
		freed, err := s.Rules.Expire(1099, 0)
		if freed != 100 {
			t.Errorf("freed %d", freed)
		}
		return err
	})
	step("inherit", 10*time.Second, func() error { return s.Rules.Inherit(1, 2) })
	step("replace what is there", 10*time.Second, func() error { return s.Rules.Replace(1, c) })
	step("usage", 2*time.Second, func() error { _, err := s.Usage(); return err })
	step("read again", 10*time.Second, func() error { s = open(t, m); return nil })
	step("reconcile", 10*time.Second, func() error { return errors.Join(s.Rules.Replace(1, c), s.Rules.Replace(2, c)) })
	if n := s.Rules.Learned(1) + s.Rules.Learned(2); n != 2*(many-100) {
		t.Errorf("%d learned", n)
	}
	step("delete an owner", 10*time.Second, func() error { return s.Rules.Delete(1) })
	step("free all", 10*time.Second, func() error {
		freed, err := s.Rules.Expire(1<<40, time.Second)
		if freed != many-100 {
			t.Errorf("freed %d", freed)
		}
		return err
	})
	if hosts := kernelHosts(t, m); len(hosts) != 0 {
		t.Errorf("%d entries of hosts are left", len(hosts))
	}
}

// Many names on one address, as with a large content network.
func TestManyNamesOnOneAddress(t *testing.T) {
	m := kernelMaps(t, nil)
	s := open(t, m)
	var in []policy.Input
	for i := range 2000 {
		in = append(in, input(t, uint32(16+i), 0, policy.Unset, fmt.Sprintf("h%d.test:80,443", i)))
	}
	c := named(t, in...)
	if err := s.Rules.Replace(1, c); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	for i := range 2000 {
		if err := resolve(s, 1, c, fmt.Sprintf("h%d.test", i), "192.0.2.1", uint64(1000+i)); err != nil {
			t.Fatal(err)
		}
	}
	took := time.Since(began)
	t.Logf("%v for each name", (took / 2000).Round(time.Microsecond))
	if took > 10*time.Second {
		t.Errorf("2000 names took %v", took)
	}
	if hosts := kernelHosts(t, m); len(hosts) != 2 {
		t.Errorf("hosts: %v", hosts)
	}
	if freed, err := s.Rules.Expire(2000, 0); freed != 1001 || err != nil {
		t.Errorf("freed %d, %v", freed, err)
	}
}
