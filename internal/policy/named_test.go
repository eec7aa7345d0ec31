// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestCompileNamed(t *testing.T) {
	tls, plain := NamedRange{443, 443, CheckTLS}, NamedRange{80, 80, CheckHTTP}
	for _, tt := range []struct {
		name string
		in   []Input
		want []Named // but for the numbers
	}{
		{
			"sorted by name", inputs(t, "b.test:443", "*.test:443", "a.test:80,443"),
			[]Named{
				{Rule: 2, Name: "*.test", Proto: TCP, Ranges: []NamedRange{tls}},
				{Rule: 3, Name: "a.test", Proto: TCP, Ranges: []NamedRange{plain, tls}},
				{Rule: 1, Name: "b.test", Proto: TCP, Ranges: []NamedRange{tls}},
			},
		},
		{
			"other protocols", inputs(t, "udp://a.test:123", "icmp://a.test"),
			[]Named{
				{Rule: 1, Name: "a.test", Proto: UDP, Ranges: []NamedRange{{123, 123, CheckNone}}},
				{Rule: 2, Name: "a.test", Proto: ICMP, Ranges: []NamedRange{{}}},
			},
		},
		{
			"port 80 stands out", inputs(t, "a.test:79-81", "b.test:*"),
			[]Named{
				{Rule: 1, Name: "a.test", Proto: TCP, Ranges: []NamedRange{{79, 79, CheckTLS}, plain, {81, 81, CheckTLS}}},
				{Rule: 2, Name: "b.test", Proto: TCP, Ranges: []NamedRange{{0, 79, CheckTLS}, plain, {81, 65535, CheckTLS}}, Wide: true},
			},
		},
		{
			"unless it is like the others", []Input{{Rule: with(rule(t, Egress, "a.test:*"), Off, Off), ID: 1}},
			[]Named{{Rule: 1, Name: "a.test", Proto: TCP, Ranges: []NamedRange{{0, 65535, CheckNone}}, Wide: true}},
		},
		{
			"as many ports as are not wide", inputs(t, "a.test:1-16"),
			[]Named{{Rule: 1, Name: "a.test", Proto: TCP, Ranges: []NamedRange{{1, 16, CheckTLS}}}},
		},
		{
			"wide ones of two protocols", inputs(t, "a.test:1000-2000", "b.test:1000-2000", "udp://a.test:5000-6000", "a.test:22"),
			[]Named{
				{Rule: 1, Name: "a.test", Proto: TCP, Ranges: []NamedRange{{1000, 2000, CheckTLS}}, Wide: true},
				{Rule: 3, Name: "a.test", Proto: UDP, Ranges: []NamedRange{{5000, 6000, CheckNone}}, Wide: true},
				{Rule: 4, Name: "a.test", Proto: TCP, Ranges: []NamedRange{{22, 22, CheckTLS}}},
				{Rule: 2, Name: "b.test", Proto: TCP, Ranges: []NamedRange{{1000, 2000, CheckTLS}}, Wide: true},
			},
		},
		{
			"of equal ones the one that lives longest",
			[]Input{{rule(t, Egress, "a.test:443"), 1, 10}, {rule(t, Egress, "a.test:443"), 1, 30}, {rule(t, Egress, "a.test:443"), 1, 20}, {rule(t, Egress, "a.test:443"), 2, 20}},
			[]Named{
				{Rule: 1, Deadline: 30, Name: "a.test", Proto: TCP, Ranges: []NamedRange{tls}},
				{Rule: 2, Deadline: 20, Name: "a.test", Proto: TCP, Ranges: []NamedRange{tls}},
			},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Compile(tt.in)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got.Named, cmpopts.IgnoreFields(Named{}, "Number")); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			wide := slices.ContainsFunc(tt.want, func(n Named) bool { return n.Wide })
			if got.WideNames != wide || len(got.Hosts)+len(got.Prefixes) != 0 {
				t.Errorf("wide %v, and %v, %v", got.WideNames, got.Hosts, got.Prefixes)
			}
			for i, n := range got.Named {
				if n.Number == 0 || slices.ContainsFunc(got.Named[:i], func(o Named) bool { return o.Number == n.Number }) {
					t.Errorf("number %d of %s", n.Number, n.Name)
				}
			}
		})
	}
}

// Of what an address is one is remembered by number.
func TestNumbersStay(t *testing.T) {
	number := func(name Name, in ...Input) uint32 {
		c, err := Compile(in)
		if err != nil {
			t.Fatal(err)
		}
		return c.Matching(string(name))[0].Number
	}
	a := Input{Rule: rule(t, Egress, "a.test:443"), ID: 7}
	b := Input{Rule: rule(t, Egress, "b.test:443"), ID: 8, Deadline: 9}
	alone, longer := number("b.test", b), b
	longer.Deadline = 0
	for _, in := range [][]Input{{a, b}, {b, a}, {longer}, {{Rule: rule(t, Egress, "b.test:443", "c.test:1"), ID: 8}}} {
		if got := number("b.test", in...); got != alone {
			t.Errorf("%v: %d, want %d", in, got, alone)
		}
	}
	for _, in := range []Input{{Rule: b.Rule, ID: 9}, {Rule: rule(t, Egress, "b.test:444"), ID: 8}, {Rule: with(b.Rule, Off, Unset), ID: 8}} {
		if number("b.test", in) == alone {
			t.Errorf("%v has the number of %v", in, b)
		}
	}
}

func TestCompileClaims(t *testing.T) {
	c, err := Compile([]Input{
		{Rule: rule(t, Egress, "*.example.com:443", "*.b.example.com:8443", "a.b.example.com:22,443", "b.example.com:80", "example.com:443"), ID: 1},
		{Rule: with(rule(t, Egress, "c.b.example.com:443"), Off, Unset), ID: 2},
		{Rule: rule(t, Egress, "udp://d.b.example.com:123", "icmp://e.b.example.com", "evilexample.com:444"), ID: 3},
	})
	if err != nil {
		t.Fatal(err)
	}
	of := make(map[uint32]Name)
	for _, n := range c.Named {
		of[n.Number] = n.Name
	}
	got := make(map[Name]string)
	for _, n := range c.Names {
		for _, claim := range n.Claims {
			got[n.Name] += fmt.Sprintf("%s:%s ", of[claim.Number], Ports{claim.Lo, claim.Hi})
		}
	}
	want := map[Name]string{
		"*.example.com":   "*.example.com:443 ",
		"*.b.example.com": "*.b.example.com:8443 *.example.com:443 ",
		"a.b.example.com": "a.b.example.com:22 a.b.example.com:443 *.b.example.com:8443 *.example.com:443 ",
		"example.com":     "example.com:443 ",
		"evilexample.com": "evilexample.com:444 ",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestCompileNamesErrors(t *testing.T) {
	crowd := func(n int, name string) []string {
		out := make([]string, n)
		for i := range out {
			out[i] = fmt.Sprintf("%s:%d", name, 1000+2*i)
		}
		return out
	}
	for _, tt := range []struct {
		name string
		in   []Input
		want string // of the error; empty is none
	}{
		{"two ranges", inputs(t, "a.test:1-10,20-30"), "a.test:1-10,20-30: more than 16 ports of a name have to be one range; write each range as a destination of its own, or *"},
		{"other ranges", inputs(t, "a.test:1-30", "b.test:1-31"), "a.test:1-30 and b.test:1-31: all names with more than 16 ports have to have the same range; give both the same one, or *"},
		{"other ranges of another protocol", inputs(t, "a.test:1-30", "udp://b.test:1-31"), ""},
		{"as many claims as fit", inputs(t, crowd(16, "a.test")...), ""},
		{"one too many", inputs(t, crowd(17, "a.test")...), "a.test: 17 port ranges with TLS apply to it, with those of the wildcards around it, and at most 16 fit"},
		{"by a wildcard", inputs(t, append(crowd(16, "*.test"), "a.test:443")...), "a.test: 17 port ranges with TLS apply"},
		{"which makes the same ones", inputs(t, append(crowd(16, "*.test"), crowd(16, "a.test")...)...), ""},
		{"by many rules with the same", inputs(t, slices.Repeat([]string{"a.test:443"}, 100)...), ""},
		{"many unchecked ones", []Input{{Rule: with(rule(t, Egress, crowd(100, "a.test")...), Off, Unset), ID: 1}}, ""},
		{"QUIC", inputs(t, "udp://a.test:443"), "udp://a.test:443: UDP port 443 is QUIC, whose name cannot be checked; leave the port out, clients then use TCP, or give the rule tls: off"},
		{"QUIC in a range", inputs(t, "udp://a.test:*"), "UDP port 443 is QUIC"},
		{"QUIC that is not checked", []Input{{Rule: with(rule(t, Egress, "udp://a.test:443"), Off, Unset), ID: 1}}, ""},
		{"ingress", []Input{{Rule: rule(t, Ingress, "a.test:443"), ID: 1}}, "a.test:443: nobody can tell the name of a peer; write its address or prefix"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := Compile(tt.in)
			if tt.want == "" && err == nil {
				for _, n := range c.Names {
					if len(n.Claims) > MaxClaims {
						t.Errorf("%s has %d claims", n.Name, len(n.Claims))
					}
				}
				return
			}
			if err == nil || tt.want == "" || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error is %v, want %q", err, tt.want)
			}
		})
	}
}

func TestMatching(t *testing.T) {
	c, err := Compile(inputs(t, "example.com:443", "*.example.com:443", "*.example.com:22", "api.example.com:443", "*.b.example.com:443", "*.com:1", "com:1"))
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"example.com", "api.example.com", "x.b.example.com", "b.example.com", "com", "org", "evilexample.com", ""} {
		var got, want []uint32
		for _, n := range c.Matching(host) {
			got = append(got, n.Number)
		}
		for _, n := range c.Named {
			if n.Name.Matches(host) {
				want = append(want, n.Number)
			}
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", host, got, want)
		}
	}
}

func TestCheckOf(t *testing.T) {
	c, err := Compile(inputs(t, "a.test:22,80", "icmp://b.test"))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		of    int
		port  uint16
		check Check
		ok    bool
	}{{0, 22, CheckTLS, true}, {0, 80, CheckHTTP, true}, {0, 443, CheckNone, false}, {1, 0, CheckNone, true}, {1, 7, CheckNone, true}} {
		if check, ok := c.Named[tt.of].CheckOf(tt.port); check != tt.check || ok != tt.ok {
			t.Errorf("%s, port %d: %s, %v", c.Named[tt.of].Name, tt.port, check, ok)
		}
	}
}

// The kernel's look-up in the compiled names has to say what the rules, looked
// at one by one, say.
func TestCompiledNamesDecideLikeTheRules(t *testing.T) {
	const rounds = 500
	compiled, allowed := 0, 0
	for seed := range rounds {
		g := generator{rand.New(rand.NewPCG(uint64(seed), 1)).IntN}
		in := g.namedInputs()
		got, err := Compile(in)
		if err != nil {
			continue
		}
		compiled++
		n, err := checkNames(in, got, g)
		if err != nil {
			t.Fatalf("seed %d: %v\nrules: %v", seed, err, in)
		}
		allowed += n
	}
	if compiled < rounds/2 || allowed < rounds {
		t.Errorf("%d of %d rule sets compiled, %d hellos allowed: too few to show anything", compiled, rounds, allowed)
	}
}

func FuzzCompileNames(f *testing.F) {
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
		in := g.namedInputs()
		got, err := Compile(in)
		if err != nil {
			return
		}
		if _, err := checkNames(in, got, g); err != nil {
			t.Fatalf("%v\nrules: %v", err, in)
		}
	})
}

// checkNames resolves hosts to addresses that many share, and compares what may
// be shown to which of them with the rules, at every time that matters. It
// returns how often it may.
func checkNames(in []Input, got Compiled, g generator) (allowed int, err error) {
	type learned struct {
		number uint32
		addr   int
	}
	const addrs = 4
	hosts := []string{"b.a", "c.b.a", "d.c.b.a", "c.a", "bb.a", "a", "x.c.b.a"}
	answers := make(map[string]int)
	has := make(map[learned]uint64) // until when
	for _, host := range hosts {
		if answers[host] = g.intn(addrs); g.intn(4) == 0 {
			continue // not asked for
		}
		for _, n := range got.Matching(host) {
			has[learned{n.Number, answers[host]}] = n.Deadline
		}
	}
	asked := func(addr int, name Name) bool {
		return slices.ContainsFunc(hosts, func(host string) bool {
			if answers[host] != addr || !name.Matches(host) {
				return false
			}
			for _, n := range got.Matching(host) {
				_, ok := has[learned{n.Number, addr}]
				return ok
			}
			return false
		})
	}
	for _, host := range hosts {
		for addr := range addrs {
			for _, port := range []uint16{1, 2, 3, 79, 80, 81, 443} {
				for _, now := range []uint64{0, 10, 25} {
					want := slices.ContainsFunc(in, func(in Input) bool {
						return live(in.Deadline, now) && slices.ContainsFunc(in.Rule.To, func(d Destination) bool {
							return d.MatchesHost(TCP, host, port) && in.Rule.Check(d, port) == CheckTLS && asked(addr, d.Name)
						})
					})
					may := slices.ContainsFunc(longestName(got.Names, host), func(c Claim) bool {
						until, ok := has[learned{c.Number, addr}]
						return ok && live(until, now) && c.Lo <= port && port <= c.Hi
					})
					if may != want {
						return 0, fmt.Errorf("%s at address %d, port %d, time %d: compiled %v, by the rules %v\nnames: %v\nanswers: %v", host, addr, port, now, may, want, got.Names, answers)
					}
					if may {
						allowed++
					}
				}
			}
		}
	}
	return allowed, nil
}

// longestName looks host up as the kernel's trie does, from its end.
func longestName(names []NameEntry, host string) []Claim {
	text := reversed(host) + "\x00"
	longest, claims := -1, []Claim(nil)
	for _, n := range names {
		key := reversed(string(n.Name)) + "\x00"
		if n.Name.IsWildcard() {
			key = reversed(string(n.Name[1:]))
		}
		if strings.HasPrefix(text, key) && len(key) > longest {
			longest, claims = len(key), n.Claims
		}
	}
	return claims
}

func reversed(s string) string {
	b := []byte(s)
	slices.Reverse(b)
	return string(b)
}

// namedInputs makes rules whose names cover each other often.
func (g generator) namedInputs() []Input {
	names := []Name{"a", "*.a", "b.a", "*.b.a", "c.b.a", "*.c.b.a", "d.c.b.a", "c.a", "bb.a", "*.bb.a"}
	in := make([]Input, 1+g.intn(12))
	for i := range in {
		r := Rule{TLS: Setting(g.intn(3)), HTTP: []Setting{Unset, Unset, Off, Required}[g.intn(4)]}
		for range 1 + g.intn(3) {
			d := Destination{Proto: []Proto{TCP, TCP, TCP, UDP, ICMP}[g.intn(5)], Name: names[g.intn(len(names))]}
			switch {
			case !d.Proto.HasPorts():
			case g.intn(6) == 0:
				d.Ports = []Ports{{1, 100}}
			default:
				for range 1 + g.intn(3) {
					lo := []uint16{1, 2, 78, 80, 443}[g.intn(5)]
					d.Ports = append(d.Ports, Ports{lo, lo + uint16(g.intn(4))})
				}
				d.Ports = mergePorts(d.Ports)
			}
			r.To = append(r.To, d)
		}
		in[i] = Input{Rule: r, ID: uint32(16 + g.intn(len(in))), Deadline: []uint64{0, 0, 10, 20, 30}[g.intn(5)]}
	}
	return in
}

func BenchmarkCompileNames(b *testing.B) {
	in := make([]Input, 100_000)
	for i := range in {
		name := Name(fmt.Sprintf("h%d.d%d.example.com", i, i%1000))
		if i%100 == 0 {
			name = Name(fmt.Sprintf("*.d%d.example.com", i/100))
		}
		in[i] = Input{Rule: Rule{To: []Destination{named(TCP, name, Ports{443, 443})}}, ID: uint32(i + 1)}
	}
	benchmarkCompile(b, in)
}
