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
