// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"encoding/binary"
	"net/netip"

	"agentguard.dev/agentguard/bpf"
	"agentguard.dev/agentguard/internal/policy"
)

// words is an address as the programs keep it: 16 bytes in network order, IPv4
// as ::ffff:a.b.c.d.
func words(addr netip.Addr) (w [4]uint32) {
	b := addr.As16()
	for i := range w {
		w[i] = binary.NativeEndian.Uint32(b[4*i:])
	}
	return w
}

// Addr turns the programs' form of an address back, IPv4 unmapped.
func Addr(w [4]uint32) netip.Addr {
	var b [16]byte
	for i := range w {
		binary.NativeEndian.PutUint32(b[4*i:], w[i])
	}
	return netip.AddrFrom16(b).Unmap()
}

func hostKey(owner uint32, k policy.HostKey) bpf.GuardHost {
	return bpf.GuardHost{Owner: owner, Flow: bpf.GuardFlow{
		Addr:      words(k.Addr),
		Port:      k.Port,
		Proto:     uint8(k.Proto),
		Direction: uint8(k.Direction),
	}}
}

func policyHostKey(k bpf.GuardHost) policy.HostKey {
	return policy.HostKey{
		Addr:      netip.AddrFrom16(Addr(k.Flow.Addr).As16()),
		Port:      k.Flow.Port,
		Proto:     policy.Proto(k.Flow.Proto),
		Direction: policy.Direction(k.Flow.Direction),
	}
}

// The flags of an entry of hosts.
const (
	permitLearned = uint32(bpf.GuardPermitFlagPERMIT_LEARNED)
	permitTLS     = uint32(bpf.GuardPermitFlagPERMIT_TLS)
	permitHTTP    = uint32(bpf.GuardPermitFlagPERMIT_HTTP)
)

// checkFlags is what a flow to a learned address has to show. What is unknown
// is asked for everything, which no flow can show.
func checkFlags(c policy.Check) uint32 {
	switch c {
	case policy.CheckNone:
		return 0
	case policy.CheckTLS:
		return permitTLS
	case policy.CheckHTTP:
		return permitHTTP
	default:
		return permitTLS | permitHTTP
	}
}

func (p permit) kernel() bpf.GuardPermit {
	return bpf.GuardPermit{
		Deadline: p.deadline, Expires: p.expires, Rule: p.rule, Flags: p.flags, Low: p.low, High: p.high,
	}
}

func permitOf(p bpf.GuardPermit) permit {
	return permit{
		rule: p.Rule, flags: p.Flags, deadline: p.Deadline, expires: p.Expires, low: p.Low, high: p.High,
	}
}

// ownerBits are the leading bits of a trie key that hold the owner.
const ownerBits = 32

func prefixKey(owner uint32, p netip.Prefix) bpf.GuardPrefix {
	return bpf.GuardPrefix{Bits: ownerBits + uint32(p.Bits()), Owner: owner, Addr: words(p.Addr())}
}

func policyPrefix(k bpf.GuardPrefix) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom16(Addr(k.Addr).As16()), int(k.Bits)-ownerBits)
}

func kernelRanges(ranges []policy.Range) (out bpf.GuardRanges) {
	for i, r := range ranges {
		out.Of[i] = bpf.GuardRange{
			Deadline:  r.Deadline,
			Rule:      r.Rule,
			Low:       r.Lo,
			High:      r.Hi,
			Proto:     uint8(r.Proto),
			Direction: uint8(r.Direction),
		}
	}
	return out
}

func policyRanges(in *bpf.GuardRanges) []policy.Range {
	var out []policy.Range
	for _, r := range in.Of {
		if r.Proto == 0 {
			break
		}
		out = append(out, policy.Range{
			Lo: r.Low, Hi: r.High,
			Proto:     policy.Proto(r.Proto),
			Direction: policy.Direction(r.Direction),
			Rule:      r.Rule,
			Deadline:  r.Deadline,
		})
	}
	return out
}

// nameKey is the name from its end, so that the trie finds wildcards as
// prefixes; a zero byte ends an exact one.
func nameKey(owner uint32, n policy.Name) (key bpf.GuardName) {
	text, last := string(n), byte(0)
	if n.IsWildcard() {
		text, last = text[len("*."):], '.'
	}
	for i := range len(text) {
		key.Text[i] = int8(text[len(text)-1-i])
	}
	key.Text[len(text)] = int8(last)
	key.Owner, key.Bits = owner, ownerBits+8*uint32(len(text)+1)
	return key
}

func policyName(key *bpf.GuardName) policy.Name {
	n := int(key.Bits-ownerBits) / 8
	text := make([]byte, n-1)
	for i := range text {
		text[i] = byte(key.Text[n-2-i])
	}
	if key.Text[n-1] == '.' {
		return "*." + policy.Name(text)
	}
	return policy.Name(text)
}

func kernelClaims(claims []policy.Claim) (out bpf.GuardClaims) {
	for i, c := range claims {
		out.Of[i] = bpf.GuardClaim{Number: c.Number, Low: c.Lo, High: c.Hi}
	}
	return out
}

func policyClaims(in *bpf.GuardClaims) []policy.Claim {
	var out []policy.Claim
	for _, c := range in.Of {
		if c.Number == 0 {
			break
		}
		out = append(out, policy.Claim{Number: c.Number, Lo: c.Low, Hi: c.High})
	}
	return out
}

func learnedKey(owner uint32, k addrKey) bpf.GuardLearnedAddr {
	return bpf.GuardLearnedAddr{Owner: owner, Number: k.number, Addr: words(k.addr)}
}
