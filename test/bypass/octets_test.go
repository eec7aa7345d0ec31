// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"encoding/binary"
	"net/netip"
)

func native16(b []byte, v uint16) []byte { return binary.NativeEndian.AppendUint16(b, v) }
func native32(b []byte, v uint32) []byte { return binary.NativeEndian.AppendUint32(b, v) }
func native64(b []byte, v uint64) []byte { return binary.NativeEndian.AppendUint64(b, v) }

// ipv4Header is one without options; the kernel fills in length, checksum and
// identification of what a raw socket sends.
func ipv4Header(proto byte, fragment uint16, src, dst netip.Addr) []byte {
	b := []byte{0x45, 0, 0, 0, 0x12, 0x34, byte(fragment >> 8), byte(fragment), 64, proto, 0, 0}
	b = append(b, src.AsSlice()...)
	return append(b, dst.AsSlice()...)
}

func ipv6Header(next byte, length int, src, dst netip.Addr) []byte {
	b := []byte{0x60, 0, 0, 0, byte(length >> 8), byte(length), next, 64}
	b = append(b, src.AsSlice()...)
	return append(b, dst.AsSlice()...)
}

// udpDatagram has no checksum, which IPv4 permits.
func udpDatagram(sport, dport uint16, data []byte) []byte {
	n := 8 + len(data)
	b := []byte{byte(sport >> 8), byte(sport), byte(dport >> 8), byte(dport), byte(n >> 8), byte(n), 0, 0}
	return append(b, data...)
}

// udp6Datagram has the checksum that IPv6 demands.
func udp6Datagram(src, dst netip.AddrPort, data []byte) []byte {
	d := udpDatagram(src.Port(), dst.Port(), data)
	pseudo := append(src.Addr().AsSlice(), dst.Addr().AsSlice()...)
	pseudo = append(pseudo, 0, 0, byte(len(d)>>8), byte(len(d)), 0, 0, 0, 17)
	sum := checksum(append(pseudo, d...))
	d[6], d[7] = byte(sum>>8), byte(sum)
	return d
}

func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(b[i]) << 8
		if i+1 < len(b) {
			sum += uint32(b[i+1])
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// echoRequest is an ICMP or ICMPv6 echo request around data; only the first
// has its checksum, as the kernel makes the other.
func echoRequest(v6 bool, data []byte) []byte {
	kind := byte(8)
	if v6 {
		kind = 128
	}
	b := append([]byte{kind, 0, 0, 0, 0, 1, 0, 1}, data...)
	if !v6 {
		sum := checksum(b)
		b[2], b[3] = byte(sum>>8), byte(sum)
	}
	return b
}

// sourceRoute is an IP option, loose (131) or strict (137), through one hop.
func sourceRoute(kind byte, hop netip.Addr) []byte {
	b := append([]byte{kind, 7, 4}, hop.AsSlice()...)
	return append(b, 0)
}

// segments is a segment routing header (type 4). The kernel puts the socket's
// destination in place of the last segment; the packet goes to the first.
func segments(via ...netip.Addr) []byte {
	n := len(via)
	b := []byte{0, byte(2 * (n + 1)), 4, byte(n), byte(n), 0, 0, 0}
	b = append(b, make([]byte, 16)...)
	for i := n - 1; i >= 0; i-- { // listed from the last to the first
		b = append(b, via[i].AsSlice()...)
	}
	return b
}

// homeAddress is a routing header of type 2: the packet goes to the address in it.
func homeAddress(via netip.Addr) []byte {
	return append([]byte{0, 2, 2, 1, 0, 0, 0, 0}, via.AsSlice()...)
}
