// SPDX-License-Identifier: Apache-2.0

package names

import "net/netip"

func prefixes(of ...string) []netip.Prefix {
	made := make([]netip.Prefix, len(of))
	for i, s := range of {
		made[i] = netip.MustParsePrefix(s)
	}
	return made
}

var (
	// notPublic4 is IPv4 that somebody's own network may use, or nobody can.
	// Networks for documentation and benchmarks are not among it.
	notPublic4 = prefixes(
		"0.0.0.0/8",      // this network
		"10.0.0.0/8",     // private
		"100.64.0.0/10",  // shared by carriers
		"127.0.0.0/8",    // loopback
		"169.254.0.0/16", // link-local, and where clouds have their metadata
		"172.16.0.0/12",  // private
		"192.0.0.0/24",   // protocol assignments, and metadata again
		"192.168.0.0/16", // private
		"224.0.0.0/4",    // multicast
		"240.0.0.0/4",    // reserved, broadcast
	)

	global6 = netip.MustParsePrefix("2000::/3") // all that has been given out

	// notGlobal6 is what lies in global6 and is not, or not always.
	notGlobal6 = prefixes(
		"2001:10::/28", // ORCHID
		"2001:20::/28", // ORCHIDv2
	)

	nat64   = netip.MustParsePrefix("64:ff9b::/96")
	sixTo4  = netip.MustParsePrefix("2002::/16")
	teredo  = netip.MustParsePrefix("2001::/32")
	isatap  = [...]byte{0x00, 0x00, 0x5e, 0xfe}
	isatapU = [...]byte{0x02, 0x00, 0x5e, 0xfe}
)

// public reports whether addr is one that a stranger's name may point to. An
// IPv6 address that carries IPv4 is as public as that.
func public(addr netip.Addr) bool {
	addr = addr.Unmap().WithZone("")
	if addr.Is4() {
		return !within(addr, notPublic4)
	}
	b := addr.As16()
	switch {
	case nat64.Contains(addr):
		return public4(b[12:16])
	case sixTo4.Contains(addr):
		return public4(b[2:6])
	case teredo.Contains(addr):
		for i := 12; i < 16; i++ {
			b[i] ^= 0xff
		}
		return public4(b[4:8]) && public4(b[12:16])
	}
	if !global6.Contains(addr) || within(addr, notGlobal6) {
		return false
	}
	if tag := [4]byte(b[8:12]); tag == isatap || tag == isatapU {
		return public4(b[12:16])
	}
	return true
}

func public4(b []byte) bool {
	return !within(netip.AddrFrom4([4]byte(b)), notPublic4)
}

func within(addr netip.Addr, networks []netip.Prefix) bool {
	for _, p := range networks {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}
