// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"agentguard.dev/agentguard/internal/maps"
	"agentguard.dev/agentguard/internal/netns"
	"agentguard.dev/agentguard/internal/policy"
)

// A connected socket that sends with ancillary data and no address asks for
// nothing new.
func TestAncillaryDataOnAConnectedSocket(t *testing.T) {
	f := newFixture(t)
	far := newVeth(t, f.ns)
	f.trust()
	sink := f.receiver(far, "192.0.2.2:5353", "")
	f.nft(`table ip nat { chain output { type nat hook output priority -100;
		ip daddr 198.51.100.1 udp dport 53 dnat to 192.0.2.2:5353
	}
	}`)
	f.in(func() error { return route("198.51.100.0/24", "192.0.2.2") })
	a := f.begin(func(r *maps.Task) { r.Loopback = policy.LoopbackNone }, "udp://198.51.100.1:53")
	a.want("ok", "open u 2 2 0")
	a.want("ok", "connect u 198.51.100.1:53")
	a.want("ok", "cmsg u hello")
	buf := make([]byte, 100)
	sink.SetReadDeadline(time.Now().Add(2 * time.Second))
	if n, err := sink.Read(buf); string(buf[:n]) != "hello" {
		t.Errorf("arrived: %q, %v", buf[:n], err)
	}
	a.allow()
	a.put()
	a.want(eperm, "cmsg u more")
}

// A grant that is over takes nothing from what needs no grant.
func TestOwnListenerAfterItsGrantExpired(t *testing.T) {
	f := newFixture(t)
	a := f.begin(nil)
	own := strings.TrimPrefix(a.do("serve s tcp4 127.0.0.1:0"), "ok ")
	host := f.server("tcp4", "127.0.0.1:0")
	if err := f.Maps().Rules.Replace(a.record.Number, compile(t, Now(), own, host)); err != nil {
		t.Fatal(err)
	}
	a.record.Grants = true
	a.put()
	f.watch()
	a.want("ok", "dial t tcp4 %s", own)
	a.want(eperm, "dial u tcp4 %s", host)
	f.event("why", func(e Event) bool { return e.Verdict == Deny && e.Reason == ReasonRuleExpired })
}

// A policy that takes raw sockets away takes those away that are open.
func TestRawSocketOfAnEarlierPolicy(t *testing.T) {
	f := newFixture(t)
	newVeth(t, f.ns)
	a := f.begin(func(r *maps.Task) { r.Raw = true }, "icmp://192.0.2.2")
	a.want("ok", "open r 2 3 1")
	a.want("ok", "send r 192.0.2.2:0 - 12345678")
	a.record.Raw = false
	a.put()
	a.want(eperm, "send r 192.0.2.2:0 - 12345678")
}

// Extension headers of more than 4,095 octets: what stands at the ports' place
// is not what a mask of the offset finds.
func TestPortsBehindLongHeaders(t *testing.T) {
	f := newFixture(t)
	far := newVeth(t, f.ns)
	for _, ns := range []*netns.Handle{f.ns, far} {
		if err := ns.Do(func() error {
			l, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			return netlink.LinkSetMTU(l, 9000)
		}); err != nil {
			t.Fatal(err)
		}
	}
	sink := f.receiver(far, "[2001:db8::2]:9999", "")
	// What a mask of twelve bits makes of offset 40+4,096 is 40: there, where
	// ports would be, stands the first option's type and length.
	const forged = 0x1eff
	a := f.begin(func(r *maps.Task) { r.Raw = true }, fmt.Sprintf("udp://[2001:db8::2]:%d", forged))
	udp := binary.BigEndian.AppendUint16(nil, 4000)
	udp = binary.BigEndian.AppendUint16(udp, 9999)
	udp = append(udp, 0, 14, 0, 0)
	udp = append(udp, "secret"...)
	from, to := netip.MustParseAddr("2001:db8::1").As16(), netip.MustParseAddr("2001:db8::2").As16()
	binary.BigEndian.PutUint16(udp[6:], checksum(from[:], to[:], []byte{0, unix.IPPROTO_UDP, 0, byte(len(udp))}, udp))
	body := slices.Concat(ignoredOptions(unix.IPPROTO_DSTOPTS), ignoredOptions(unix.IPPROTO_UDP), udp)
	packet := []byte{0x60, 0, 0, 0, byte(len(body) >> 8), byte(len(body)), unix.IPPROTO_DSTOPTS, 64}
	packet = slices.Concat(packet, from[:], to[:], body)
	a.want("ok", "open r 10 3 255")
	a.want(eperm, "hex r [2001:db8::2]:0 %x", packet)
	wantNothing(t, sink, "at a port that no rule names")
}

// ignoredOptions is a destination options header of 2,048 octets, full of
// options that receivers skip.
func ignoredOptions(next byte) []byte {
	h := make([]byte, 2048)
	h[0], h[1] = next, 255
	for at := 2; at < len(h); {
		n := min(len(h)-at, 257)
		h[at], h[at+1] = 0x1e, byte(n-2)
		at += n
	}
	return h
}

// checksum is that of the Internet, of parts of even length.
func checksum(parts ...[]byte) uint16 {
	var sum uint32
	for _, part := range parts {
		for i := 0; i < len(part); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(part[i:]))
		}
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
