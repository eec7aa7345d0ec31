// SPDX-License-Identifier: Apache-2.0

package bypass

import "net/netip"

// The addresses of the two namespaces, from the ranges set aside for
// documentation where there is a choice.
var (
	hostMAC = []byte{0x02, 0, 0, 0, 0, 0x02}
	sinkMAC = []byte{0x02, 0, 0, 0, 0, 0x01}

	host4         = netip.MustParseAddr("192.0.2.2")
	host6         = netip.MustParseAddr("2001:db8:1::2")
	hostLinkLocal = netip.MustParseAddr("fe80::2")

	gateway4      = netip.MustParseAddr("192.0.2.1")
	gateway6      = netip.MustParseAddr("2001:db8:1::1")
	sinkLinkLocal = netip.MustParseAddr("fe80::1")
	subnet4       = netip.MustParseAddr("192.0.2.255") // broadcast of the link

	allowed4 = netip.MustParseAddr("198.51.100.10")
	allowed6 = netip.MustParseAddr("2001:db8:a::10")
	// Two more that the rules allow, to hide a denied waypoint between.
	allowed6b = netip.MustParseAddr("2001:db8:a::20")
	denied4   = netip.MustParseAddr("198.51.100.66")
	denied6   = netip.MustParseAddr("2001:db8:d::66")

	metadata4 = netip.MustParseAddr("169.254.169.254")
	metadata6 = netip.MustParseAddr("fd00:ec2::254")

	// denied4 inside IPv6 addresses, in every form that has been in use.
	sixToFour  = netip.MustParseAddr("2002:c633:6442::1")
	nat64      = netip.MustParseAddr("64:ff9b::c633:6442")
	isatap     = netip.MustParseAddr("2001:db8:d:0:0:5efe:c633:6442")
	compatible = netip.MustParseAddr("::c633:6442")

	group4 = netip.MustParseAddr("233.252.0.66")
	group6 = netip.MustParseAddr("ff05::db8:66")
	// An address that is nobody's here, to send from.
	foreign4 = netip.MustParseAddr("203.0.113.66")
	foreign6 = netip.MustParseAddr("2001:db8:f::66")

	// The resolver that the guard trusts, one that only a rule can name, and where
	// nearly every name of the lab leads, for good ones and others.
	resolver4 = netip.MustParseAddr("198.51.100.53")
	resolver6 = netip.MustParseAddr("2001:db8:53::53")
	another4  = netip.MustParseAddr("198.51.100.54")
	shared4   = netip.MustParseAddr("198.51.100.80")
	shared6   = netip.MustParseAddr("2001:db8:80::80")
	// Inside somebody's network, as it is and as NAT64 would have it.
	private4 = netip.MustParseAddr("10.0.0.66")
	private6 = netip.MustParseAddr("64:ff9b::a00:42")

	// What a host translates to allowed4 before a packet leaves it.
	service4 = netip.MustParseAddr("203.0.113.10")
)

const (
	hostLink = "up0"   // the host's end of the veth pair
	sinkLink = "sink0" // the sink's

	allowedPort = 443  // with an allowed address: what rules allow
	deniedPort  = 8443 // answered everywhere, allowed nowhere
	markerPort  = 9
	dnsPort     = 53
	httpPort    = 80
	stationPort = 1001 // of the guard that has no engine
	groupPort   = 5353 // the sink's wildcard receiver for groups and broadcasts

	// Ports of the host's own services, which no task may reach.
	hostPort      = 7001
	reusePort     = 7002 // shares its port with whoever asks (SO_REUSEPORT)
	broadcastPort = 7003 // shares its port with whoever asks (SO_REUSEADDR)

	nobody = 65534
)

func sinkAddresses() []netip.Addr {
	return []netip.Addr{
		gateway4, gateway6, sinkLinkLocal, allowed4, allowed6, allowed6b, denied4, denied6,
		metadata4, metadata6, sixToFour, nat64, isatap, compatible,
		resolver4, resolver6, another4, shared4, shared6, private4, private6,
	}
}

func at(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }

// mapped is a's IPv4-mapped form.
func mapped(a netip.Addr) netip.Addr { return netip.AddrFrom16(a.As16()) }

// usual is what the rules of a task allow when a technique asks for nothing else.
func usual() []string {
	return []string{
		"198.51.100.10:443", "[2001:db8:a::/48]:443",
		"udp://198.51.100.10:443", "udp://[2001:db8:a::/48]:443",
		"icmp://198.51.100.10", "icmp://[2001:db8:a::/48]",
	}
}

func hostAddresses() []netip.Addr { return []netip.Addr{host4, host6, hostLinkLocal} }

func loopbackAddresses() []netip.Addr {
	return []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()}
}
