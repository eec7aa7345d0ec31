// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestCompile(t *testing.T) {
	tcp := func(rule uint32, lo, hi uint16) Range { return Range{Lo: lo, Hi: hi, Proto: TCP, Rule: rule} }
	until := func(r Range, deadline uint64) Range { r.Deadline = deadline; return r }
	for _, tt := range []struct {
		name     string
		in       []Input
		hosts    []Host
		prefixes []Prefix
	}{
		{name: "nothing"},
		{
			name: "hosts in the one address form, sorted",
			in:   inputs(t, "[2001:db8::1]:443", "192.0.2.1:80,443", "udp://192.0.2.1:53", "icmp://192.0.2.1"),
			hosts: []Host{
				host("::ffff:192.0.2.1", ICMP, 0, 4, 0),
				host("::ffff:192.0.2.1", TCP, 80, 2, 0), host("::ffff:192.0.2.1", TCP, 443, 2, 0),
				host("::ffff:192.0.2.1", UDP, 53, 3, 0),
				host("2001:db8::1", TCP, 443, 1, 0),
			},
		},
		{
			name:  "a short range of ports of one address is hosts",
			in:    inputs(t, "192.0.2.1:8000-8001"),
			hosts: []Host{host("::ffff:192.0.2.1", TCP, 8000, 1, 0), host("::ffff:192.0.2.1", TCP, 8001, 1, 0)},
		},
		{
			name:     "a long one is a full-length prefix",
			in:       inputs(t, "192.0.2.1:8000-8016", "[2001:db8::1]:*"),
			prefixes: []Prefix{entry("::ffff:192.0.2.1/128", tcp(1, 8000, 8016)), entry("2001:db8::1/128", tcp(2, 0, 65535))},
		},
		{
			name: "covering rules are merged, the most specific first",
			in:   inputs(t, "10.0.0.0/8:443", "10.1.0.0/16:22", "10.1.2.0/24:80", "10.2.0.0/16:80", "11.0.0.0/8:80"),
			prefixes: []Prefix{
				entry("::ffff:10.0.0.0/104", tcp(1, 443, 443)),
				entry("::ffff:10.1.0.0/112", tcp(2, 22, 22), tcp(1, 443, 443)),
				entry("::ffff:10.1.2.0/120", tcp(3, 80, 80), tcp(2, 22, 22), tcp(1, 443, 443)),
				entry("::ffff:10.2.0.0/112", tcp(4, 80, 80), tcp(1, 443, 443)),
				entry("::ffff:11.0.0.0/104", tcp(5, 80, 80)),
			},
		},
		{
			name: "IPv6 rules do not reach IPv4",
			in:   inputs(t, "[::/0]:443", "10.0.0.0/8:80"),
			prefixes: []Prefix{
				entry("::/0", tcp(1, 443, 443)),
				entry("::1/128"),
				entry("::ffff:0:0/96"),
				entry("::ffff:10.0.0.0/104", tcp(2, 80, 80)),
			},
		},
		{
			name: "IPv4 /0 needs no empty entry",
			in:   inputs(t, "[::/0]:443", "0.0.0.0/0:80"),
			prefixes: []Prefix{
				entry("::/0", tcp(1, 443, 443)), entry("::1/128"),
				entry("::ffff:0:0/96", tcp(2, 80, 80)), entry("::ffff:127.0.0.0/104"),
			},
		},
		{
			name:     "an IPv6 prefix beside IPv4 needs no empty entry",
			in:       inputs(t, "[2000::/3]:443", "[::/96]:1"),
			prefixes: []Prefix{entry("::/96", tcp(2, 1, 1)), entry("::1/128"), entry("2000::/3", tcp(1, 443, 443))},
		},
		{
			name:     "the shortest IPv6 prefix around IPv4",
			in:       inputs(t, "[::/80]:443"),
			prefixes: []Prefix{entry("::/80", tcp(1, 443, 443)), entry("::1/128"), entry("::ffff:0:0/96")},
		},
		{
			name: "only a prefix within loopback reaches loopback",
			in:   inputs(t, "0.0.0.0/0:80", "127.0.0.0/16:81", "[::1]:82", "[::/0]:83", "127.0.0.1:84"),
			hosts: []Host{
				host("::1", TCP, 82, 3, 0),
				host("::ffff:127.0.0.1", TCP, 84, 5, 0),
			},
			prefixes: []Prefix{
				entry("::/0", tcp(4, 83, 83)),
				entry("::1/128"),
				entry("::ffff:0:0/96", tcp(1, 80, 80)),
				entry("::ffff:127.0.0.0/104"),
				entry("::ffff:127.0.0.0/112", tcp(2, 81, 81)),
			},
		},
		{
			name:     "ports of one rule are joined across prefixes",
			in:       []Input{{Rule: rule(t, Egress, "10.0.0.0/8:80-90", "10.1.0.0/16:91,85-100"), ID: 7}},
			prefixes: []Prefix{entry("::ffff:10.0.0.0/104", tcp(7, 80, 90)), entry("::ffff:10.1.0.0/112", tcp(7, 80, 100))},
		},
		{
			name: "ports of two rules are not joined",
			in:   inputs(t, "10.0.0.0/8:80-90", "10.0.0.0/8:85-100"),
			prefixes: []Prefix{
				entry("::ffff:10.0.0.0/104", tcp(1, 80, 90), tcp(2, 85, 100)),
			},
		},
		{
			name:     "what an earlier range covers is dropped",
			in:       inputs(t, "10.0.0.0/8:80-90", "10.0.0.0/8:85"),
			prefixes: []Prefix{entry("::ffff:10.0.0.0/104", tcp(1, 80, 90))},
		},
		{
			name:     "what a later range covers is kept, so that it is counted for its rule",
			in:       inputs(t, "10.0.0.0/8:*", "10.1.0.0/16:85"),
			prefixes: []Prefix{entry("::ffff:10.0.0.0/104", tcp(1, 0, 65535)), entry("::ffff:10.1.0.0/112", tcp(2, 85, 85), tcp(1, 0, 65535))},
		},
		{
			name: "other protocols and directions cover nothing",
			in: []Input{
				{Rule: rule(t, Egress, "10.0.0.0/8:*", "udp://10.0.0.0/8:5", "icmp://10.0.0.0/8"), ID: 1},
				{Rule: rule(t, Ingress, "10.0.0.0/8:5"), ID: 2},
			},
			prefixes: []Prefix{entry("::ffff:10.0.0.0/104", tcp(1, 0, 65535),
				Range{5, 5, UDP, Egress, 1, 0}, Range{0, 0, ICMP, Egress, 1, 0}, Range{5, 5, TCP, Ingress, 2, 0})},
		},
		{
			name: "a range with a later deadline is not covered",
			in: []Input{
				{rule(t, Egress, "10.0.0.0/8:*"), 1, 100},
				{rule(t, Egress, "10.0.0.0/8:5"), 2, 200},
				{rule(t, Egress, "10.0.0.0/8:6"), 3, 0},
				{rule(t, Egress, "10.0.0.0/8:7"), 4, 100},
				{rule(t, Egress, "10.0.0.0/8:8"), 5, 99},
			},
			prefixes: []Prefix{entry("::ffff:10.0.0.0/104", until(tcp(1, 0, 65535), 100), until(tcp(2, 5, 5), 200), tcp(3, 6, 6))},
		},
		{
			name: "the entry that lives longest stands for a host",
			in: []Input{
				{rule(t, Egress, "192.0.2.1:1,2,3,4"), 1, 100},
				{rule(t, Egress, "192.0.2.1:1"), 2, 50},
				{rule(t, Egress, "192.0.2.1:2"), 3, 200},
				{rule(t, Egress, "192.0.2.1:3"), 4, 0},
				{rule(t, Egress, "192.0.2.1:3"), 5, 300},
				{rule(t, Egress, "192.0.2.1:4"), 6, 100},
			},
			hosts: []Host{
				host("::ffff:192.0.2.1", TCP, 1, 1, 100), host("::ffff:192.0.2.1", TCP, 2, 3, 200),
				host("::ffff:192.0.2.1", TCP, 3, 4, 0), host("::ffff:192.0.2.1", TCP, 4, 1, 100),
			},
		},
		{
			name:     "a mapped prefix made by hand",
			in:       []Input{{Rule: Rule{To: []Destination{dest(TCP, "::ffff:10.0.0.0/104", Ports{1, 1})}}, ID: 1}},
			prefixes: []Prefix{entry("::ffff:10.0.0.0/104", tcp(1, 1, 1))},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Compile(tt.in)
			if err != nil {
				t.Fatal(err)
			}
			want := Compiled{Hosts: tt.hosts, Prefixes: tt.prefixes}
			if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
				cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }), cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestCompileFull(t *testing.T) {
	many := func(prefix string, first, n int) []string {
		out := make([]string, n)
		for i := range out {
			out[i] = fmt.Sprintf("%s:%d", prefix, first+2*i)
		}
		return out
	}
	for _, tt := range []struct {
		name string
		in   []Input
		want string // of the error; empty is none
	}{
		{"as many as fit", inputs(t, many("10.0.0.0/8", 1, 32)...), ""},
		{"one too many", inputs(t, many("10.0.0.0/8", 1, 33)...), "10.0.0.0/8: 33 port ranges apply to it, with those of the prefixes around it, and at most 32 fit; join ports into ranges or use *"},
		{"far too many", inputs(t, many("10.0.0.0/8", 1, 5000)...), "10.0.0.0/8: 5000 port ranges apply"},
		{"by inheritance", inputs(t, append(many("10.0.0.0/8", 1, 20), many("10.1.0.0/16", 1001, 20)...)...), "10.1.0.0/16: 40 port ranges apply"},
		{"twice", inputs(t, append(many("10.0.0.0/8", 1, 33), many("11.0.0.0/8", 1, 33)...)...), "10.0.0.0/8: 33 port ranges apply to it, with those of the prefixes around it, and at most 32 fit; join ports into ranges or use * (and 1 more prefixes like it)"},
		{"one rule with adjacent ports", []Input{{Rule: rule(t, Egress, many("10.0.0.0/8", 1, 1000)...), ID: 1}, {Rule: rule(t, Egress, "10.0.0.0/8:*"), ID: 2}}, ""},
		{"covered by a later rule", inputs(t, append(many("10.0.0.0/8", 1, 3000), "10.0.0.0/8:*")...), ""},
		{"covered by a rule around it", inputs(t, append(many("10.1.0.0/16", 1, 3000), "10.0.0.0/8:*")...), ""},
		{"no prefix", []Input{{Rule: Rule{To: []Destination{{Proto: TCP}}}, ID: 9}}, "compile rule 9: a destination has no prefix"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Compile(tt.in)
			if tt.want != "" {
				if err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Fatalf("error is %v, want %q", err, tt.want)
				}
				if len(got.Hosts)+len(got.Prefixes) != 0 {
					t.Error("entries beside an error")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range got.Prefixes {
				if len(p.Ranges) > MaxRanges {
					t.Errorf("%s has %d ranges", p.Prefix, len(p.Ranges))
				}
			}
			if err := agree(tt.in, got, netip.MustParseAddr("10.1.2.3"), 0); err != nil {
				t.Error(err)
			}
		})
	}
}

// A compiled policy has to decide like the list of rules that it was made from.
func TestCompileDecidesLikeTheRules(t *testing.T) {
	const rounds = 500
	compiled, allowed := 0, 0
	for seed := range rounds {
		rng := rand.New(rand.NewPCG(uint64(seed), 0))
		g := generator{rng.IntN}
		in := g.inputs()
		got, err := Compile(in)
		if err != nil {
			continue
		}
		compiled++
		n, err := checkCompiled(in, got, g)
		if err != nil {
			t.Fatalf("seed %d: %v\nrules: %v", seed, err, in)
		}
		allowed += n
	}
	if compiled < rounds/2 || allowed < rounds {
		t.Errorf("%d of %d rule sets compiled, %d flows allowed: too few to show anything", compiled, rounds, allowed)
	}
}

func FuzzCompile(f *testing.F) {
	for seed := range uint64(8) {
		data := make([]byte, 400)
		rng := rand.New(rand.NewPCG(seed, 0))
		for i := 0; i+8 <= len(data); i += 8 {
			binary.LittleEndian.PutUint64(data[i:], rng.Uint64())
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		g := generator{func(n int) int {
			if len(data) == 0 {
				return 0
			}
			v := int(data[0]) % n
			data = data[1:]
			return v
		}}
		in := g.inputs()
		got, err := Compile(in)
		if err != nil {
			return
		}
		if _, err := checkCompiled(in, got, g); err != nil {
			t.Fatalf("%v\nrules: %v", err, in)
		}
	})
}

// checkCompiled compares got with the rules at the edges of every prefix and at
// random addresses, at every time that matters, and returns how many flows were
// allowed.
func checkCompiled(in []Input, got Compiled, g generator) (allowed int, err error) {
	for i, p := range got.Prefixes {
		if len(p.Ranges) > MaxRanges || p.Prefix.Addr().BitLen() != 128 || p.Prefix != p.Prefix.Masked() {
			return 0, fmt.Errorf("entry %v does not fit the kernel", p)
		}
		if i > 0 && p.Prefix == got.Prefixes[i-1].Prefix {
			return 0, fmt.Errorf("entry %v twice", p)
		}
	}
	addrs := make(map[netip.Addr]bool)
	for _, rule := range in {
		for _, d := range rule.Rule.To {
			first, last := d.Prefix.Addr(), lastAddr(d.Prefix)
			for _, a := range []netip.Addr{first, last, first.Prev(), last.Next()} {
				addrs[a] = true
			}
		}
	}
	for range 10 {
		addrs[g.addr()] = true
	}
	for addr := range addrs {
		if !addr.IsValid() {
			continue
		}
		for _, now := range []uint64{0, 10, 25, 30} {
			if err := agree(in, got, addr, now); err != nil {
				return 0, err
			}
		}
		if linear(in, flow{Egress, TCP, addr, 3}, 0) != nil {
			allowed++
		}
	}
	return allowed, nil
}

// agree compares got with the rules for flows to addr.
func agree(in []Input, got Compiled, addr netip.Addr, now uint64) error {
	in, got = near(in, addr), lookup(got, as16(addr))
	for _, dir := range []Direction{Egress, Ingress} {
		for _, proto := range []Proto{TCP, UDP, ICMP} {
			for _, port := range []uint16{1, 3, 5, 8, 20, 31, 2999, 65535} {
				f := flow{dir, proto, addr, port}
				want := linear(in, f, now)
				id, ok := kernel(got, f, now)
				if ok != (len(want) > 0) || ok && !slices.Contains(want, id) {
					return fmt.Errorf("%v at %d: compiled %v by rule %d, by the list rules %v", f, now, ok, id, want)
				}
			}
		}
	}
	return nil
}

// near returns the rules with those of their destinations that hold addr.
func near(in []Input, addr netip.Addr) []Input {
	var out []Input
	for _, rule := range in {
		to := rule.Rule.To
		rule.Rule.To = nil
		for _, d := range to {
			if d.Prefix.Contains(addr.Unmap()) {
				rule.Rule.To = append(rule.Rule.To, d)
			}
		}
		if rule.Rule.To != nil {
			out = append(out, rule)
		}
	}
	return out
}

// lookup returns what the kernel's maps find for addr: the hash entries with
// that address, and the one longest prefix.
func lookup(c Compiled, addr netip.Addr) Compiled {
	found := Compiled{Prefixes: make([]Prefix, 1)}
	for _, h := range c.Hosts {
		if h.Addr == addr {
			found.Hosts = append(found.Hosts, h)
		}
	}
	longest := &found.Prefixes[0]
	for _, p := range c.Prefixes {
		if p.Prefix.Contains(addr) && (!longest.Prefix.IsValid() || p.Prefix.Bits() > longest.Prefix.Bits()) {
			*longest = p
		}
	}
	return found
}

type flow struct {
	dir   Direction
	proto Proto
	addr  netip.Addr
	port  uint16
}

// linear returns the numbers of all live rules that cover f.
func linear(in []Input, f flow, now uint64) []uint32 {
	var ids []uint32
	for _, rule := range in {
		if live(rule.Deadline, now) && rule.Rule.Matches(f.dir, f.proto, f.addr, f.port) {
			ids = append(ids, rule.ID)
		}
	}
	return ids
}

// kernel decides f as the kernel half does, with what lookup found.
func kernel(found Compiled, f flow, now uint64) (rule uint32, ok bool) {
	if f.proto == ICMP {
		f.port = 0
	}
	for _, h := range found.Hosts {
		if h.HostKey == (HostKey{as16(f.addr), f.port, f.proto, f.dir}) && live(h.Deadline, now) {
			return h.Rule, true
		}
	}
	for _, r := range found.Prefixes[0].Ranges {
		if r.Proto == f.proto && r.Direction == f.dir && r.Lo <= f.port && f.port <= r.Hi && live(r.Deadline, now) {
			return r.Rule, true
		}
	}
	return 0, false
}

func live(deadline, now uint64) bool { return deadline == 0 || now < deadline }

// generator makes rules that overlap often: few bits of the address differ.
type generator struct{ intn func(n int) int }

func (g generator) inputs() []Input {
	in := make([]Input, 1+g.intn(16))
	for i := range in {
		to := make([]Destination, 1+g.intn(3))
		for j := range to {
			to[j] = g.destination()
		}
		in[i] = Input{
			Rule:     Rule{Direction: Direction(g.intn(2)), To: to},
			ID:       uint32(16 + g.intn(len(in))), // sometimes one rule with two deadlines
			Deadline: []uint64{0, 0, 10, 20, 30}[g.intn(5)],
		}
	}
	return in
}

func (g generator) destination() Destination {
	addr := g.addr()
	bits := g.intn(addr.BitLen() + 1)
	if g.intn(3) == 0 {
		bits = addr.BitLen()
	}
	d := Destination{Proto: []Proto{TCP, TCP, UDP, ICMP}[g.intn(4)]}
	d.Prefix = unmap(netip.PrefixFrom(addr, bits).Masked())
	if !d.Proto.HasPorts() {
		return d
	}
	if g.intn(8) == 0 {
		d.Ports = []Ports{allPorts}
		return d
	}
	for range 1 + g.intn(3) {
		lo := uint16(1 + g.intn(10))
		d.Ports = append(d.Ports, Ports{lo, lo + uint16(g.intn(4)*g.intn(10))})
	}
	d.Ports = mergePorts(d.Ports)
	return d
}

func (g generator) addr() netip.Addr {
	if g.intn(2) == 0 {
		return netip.AddrFrom4([4]byte{[]byte{10, 10, 10, 0, 255}[g.intn(5)], byte(g.intn(3)), 0, byte(g.intn(4))})
	}
	var a [16]byte
	switch g.intn(4) {
	case 0: // around the place of IPv4
		a[8], a[9], a[10], a[11] = byte(g.intn(2)), byte(g.intn(2)), 0xff, []byte{0xff, 0xfe}[g.intn(2)]
	case 1:
		a[0] = byte(g.intn(2)) << 7
	default:
		a[0], a[1], a[2], a[3] = 0x20, 0x01, 0x0d, 0xb8
	}
	a[5], a[15] = byte(g.intn(3)), byte(g.intn(3))
	return netip.AddrFrom16(a).Unmap()
}

func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < 8*len(b); i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

func BenchmarkCompileHosts(b *testing.B) {
	in := make([]Input, 100_000)
	for i := range in {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 32)
		in[i] = Input{Rule: Rule{To: []Destination{{Proto: TCP, Prefix: p, Ports: []Ports{{443, 443}}}}}, ID: uint32(i)}
	}
	benchmarkCompile(b, in)
}

func BenchmarkCompilePrefixes(b *testing.B) {
	in := make([]Input, 10_000)
	for i := range in {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 6), byte(i << 2), 0}), 16+i%9).Masked()
		in[i] = Input{Rule: Rule{To: []Destination{{Proto: TCP, Prefix: p, Ports: []Ports{{uint16(i%4 + 1), uint16(i%4 + 1)}}}}}, ID: uint32(i % 7)}
	}
	benchmarkCompile(b, in)
}

// All rules on one prefix is the worst case of the merge.
func BenchmarkCompileOnePrefix(b *testing.B) {
	in := make([]Input, 20_000)
	for i := range in {
		in[i] = Input{Rule: rule(b, Egress, fmt.Sprintf("10.0.0.0/8:%d", 1+2*i)), ID: uint32(i)}
	}
	in = append(in, Input{Rule: rule(b, Egress, "10.0.0.0/8:*"), ID: 1 << 20})
	benchmarkCompile(b, in)
}

func benchmarkCompile(b *testing.B, in []Input) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Compile(in); err != nil {
			b.Fatal(err)
		}
	}
}

func inputs(t testing.TB, rules ...string) []Input {
	t.Helper()
	in := make([]Input, len(rules))
	for i, s := range rules {
		in[i] = Input{Rule: rule(t, Egress, s), ID: uint32(i + 1)}
	}
	return in
}

func host(addr string, proto Proto, port uint16, rule uint32, deadline uint64) Host {
	return Host{HostKey{netip.MustParseAddr(addr), port, proto, Egress}, rule, deadline}
}

func entry(prefix string, ranges ...Range) Prefix {
	return Prefix{netip.MustParsePrefix(prefix), ranges}
}
