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

// LinkLocal reports whether addr is one of a link, in whatever form: there are
// the addresses at which clouds hand out credentials.
func LinkLocal(addr netip.Addr) bool {
	addr = addr.Unmap()
	if addr.IsLinkLocalUnicast() {
		return true
	}
	for _, inner := range carried(addr) {
		if inner.IsLinkLocalUnicast() {
			return true
		}
	}
	return false
}

// Public reports whether addr is one that a stranger's name may point to. An
// IPv6 address that carries IPv4 is as public as that.
func Public(addr netip.Addr) bool {
	addr = addr.Unmap().WithZone("")
	if addr.Is4() {
		return !within(addr, notPublic4)
	}
	for _, inner := range carried(addr) {
		if within(inner, notPublic4) {
			return false
		}
	}
	return nat64.Contains(addr) || global6.Contains(addr) && !within(addr, notGlobal6)
}

// carried returns the IPv4 addresses that an IPv6 address stands for, beside itself.
func carried(addr netip.Addr) []netip.Addr {
	b := addr.As16()
	inner := func(at int) netip.Addr { return netip.AddrFrom4([4]byte(b[at : at+4])) }
	tag := [4]byte(b[8:12])
	switch {
	case addr.Is4():
		return nil
	case nat64.Contains(addr):
		return []netip.Addr{inner(12)}
	case sixTo4.Contains(addr):
		return []netip.Addr{inner(2)}
	case teredo.Contains(addr):
		for i := 12; i < 16; i++ {
			b[i] ^= 0xff
		}
		return []netip.Addr{inner(4), inner(12)}
	case tag == isatap || tag == isatapU:
		return []netip.Addr{inner(12)}
	}
	return nil
}

func within(addr netip.Addr, networks []netip.Prefix) bool {
	for _, p := range networks {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}
