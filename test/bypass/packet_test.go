// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// packet is one frame as it came off the wire, with what the judges need read
// out of it. Frames that are not IP have no addresses.
type packet struct {
	frame            []byte
	ether            uint16
	src, dst         netip.Addr
	proto            uint8 // of the first header that is no extension
	sport, dport     uint16
	flags            uint8      // TCP
	payload          int        // TCP and UDP: octets after the header
	abort            bool       // SCTP: nothing but "that association is gone"
	routed, fragment bool       // source route or routing header; offset above zero
	icmp             uint8      // type
	quoted           netip.Addr // destination of the packet that an ICMP error is about
}

const (
	tcpFIN, tcpSYN, tcpRST, tcpPSH, tcpACK = 1, 2, 4, 8, 16
)

func parse(frame []byte) packet {
	p := packet{frame: frame}
	if len(frame) < 14 {
		return p
	}
	p.ether = binary.BigEndian.Uint16(frame[12:])
	body := frame[14:]
	switch {
	case p.ether == unix.ETH_P_IP && len(body) >= 20:
		p.ipv4(body)
	case p.ether == unix.ETH_P_IPV6 && len(body) >= 40:
		p.ipv6(body)
	}
	return p
}

func (p *packet) ipv4(b []byte) {
	p.src, p.dst = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
	p.proto = b[9]
	header := int(b[0]&15) * 4
	if header > len(b) {
		return
	}
	for options := b[20:header]; len(options) > 1; {
		switch kind := options[0]; {
		case kind == 0:
			options = nil
		case kind == 1:
			options = options[1:]
		default:
			p.routed = p.routed || kind == 131 || kind == 137
			options = options[min(max(int(options[1]), 2), len(options)):]
		}
	}
	if binary.BigEndian.Uint16(b[6:])&0x1fff != 0 {
		p.fragment = true
		return
	}
	if total := int(binary.BigEndian.Uint16(b[2:])); total >= header && total < len(b) {
		b = b[:total]
	}
	p.transport(b[header:])
}

func (p *packet) ipv6(b []byte) {
	p.src, p.dst = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
	if length := int(binary.BigEndian.Uint16(b[4:])); length > 0 && 40+length < len(b) {
		b = b[:40+length]
	}
	p.proto = b[6]
	rest := b[40:]
	for len(rest) >= 8 {
		size := (int(rest[1]) + 1) * 8
		switch p.proto {
		case unix.IPPROTO_ROUTING:
			p.routed = true
		case unix.IPPROTO_FRAGMENT:
			size = 8
			p.fragment = binary.BigEndian.Uint16(rest[2:])&^7 != 0
		case unix.IPPROTO_HOPOPTS, unix.IPPROTO_DSTOPTS:
		default:
			p.transport(rest)
			return
		}
		p.proto = rest[0]
		if p.fragment || size > len(rest) {
			return
		}
		rest = rest[size:]
	}
}

func (p *packet) transport(b []byte) {
	switch p.proto {
	case unix.IPPROTO_TCP:
		if len(b) >= 20 {
			p.ports(b)
			p.flags = b[13]
			p.payload = len(b) - int(b[12]>>4)*4
		}
	case unix.IPPROTO_UDP, unix.IPPROTO_UDPLITE:
		if len(b) >= 8 {
			p.ports(b)
			p.payload = len(b) - 8
		}
	case unix.IPPROTO_SCTP, unix.IPPROTO_DCCP:
		if len(b) >= 4 {
			p.ports(b)
		}
		// One ABORT chunk (type 6) without causes, RFC 9260 section 3.3.7.
		p.abort = p.proto == unix.IPPROTO_SCTP && len(b) >= 16 && b[12] == 6 && b[14] == 0 && b[15] == 4
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		if len(b) >= 1 {
			p.icmp = b[0]
		}
		if inner := b[min(len(b), 8):]; p.proto == unix.IPPROTO_ICMP && len(inner) >= 20 {
			p.quoted = netip.AddrFrom4([4]byte(inner[16:20]))
		} else if p.proto == unix.IPPROTO_ICMPV6 && len(inner) >= 40 {
			p.quoted = netip.AddrFrom16([16]byte(inner[24:40]))
		}
	}
}

func (p *packet) ports(b []byte) {
	p.sport, p.dport = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
}

func (p packet) carries(token string) bool { return bytes.Contains(p.frame, []byte(token)) }

// bareReset is the one packet that may leave a task that is being cut.
func (p packet) bareReset() bool {
	return p.proto == unix.IPPROTO_TCP && p.flags&tcpRST != 0 && p.payload == 0
}

// isReport says whether p is a kernel's report of the groups it is in.
func (p packet) isReport() bool {
	return p.proto == unix.IPPROTO_IGMP || p.proto == unix.IPPROTO_ICMPV6 && (p.icmp == 143 || p.icmp == 131 || p.icmp == 132)
}

// reports says whether p is a report of the group.
func (p packet) reports(group netip.Addr) bool {
	return p.isReport() && p.carries(string(group.AsSlice()))
}

// background is what a kernel says for itself.
func (p packet) background() bool {
	switch {
	case !p.dst.IsValid():
		return p.ether == unix.ETH_P_ARP
	case p.proto == unix.IPPROTO_ICMP && p.icmp == 3, p.proto == unix.IPPROTO_ICMPV6 && p.icmp == 1:
		// A port is unreachable: the peer is shown its own packet.
		return p.quoted == host4 || p.quoted == host6
	case p.proto == unix.IPPROTO_ICMPV6:
		return p.icmp >= 133 && p.icmp <= 136
	case p.abort:
		// Its control socket answers a peer whose association is gone.
		return true
	}
	return false
}

func (p packet) String() string {
	if !p.dst.IsValid() {
		return fmt.Sprintf("ethertype %#04x, %d octets", p.ether, len(p.frame))
	}
	s := fmt.Sprintf("protocol %d %s:%d > %s:%d, %d octets of payload", p.proto, p.src, p.sport, p.dst, p.dport, p.payload)
	if p.proto == unix.IPPROTO_TCP {
		s += fmt.Sprintf(", flags %#02x", p.flags)
	}
	if p.routed {
		s += ", source-routed"
	}
	if p.fragment {
		s += ", later fragment"
	}
	return s
}
