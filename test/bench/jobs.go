// SPDX-License-Identifier: Apache-2.0

package main

import "net/netip"

// paths are the ways that packets and calls take through a guard.
func paths() []job {
	echo := func(addr netip.Addr) func(*lane) []netip.AddrPort {
		return func(l *lane) []netip.AddrPort { return []netip.AddrPort{at(addr, l.echo)} }
	}
	return []job{
		{"TCP connect+close", tcpConnect, 8, one(destination4, listenPort)},
		{"TCP connect+close, IPv6", tcpConnect, 8, one(destination6, listenPort)},
		{"TCP request/response", tcpRequest, 16, echo(destination4)},
		{"TCP bulk, 128 KiB", tcpBulk, 16, one(destination4, listenPort)},
		{"UDP send, unconnected", udpSend, 64, one(destination4, sinkPort)},
		{"UDP send, unconnected, IPv6", udpSend, 64, one(destination6, sinkPort)},
		{"UDP send, connected", udpConnected, 64, one(destination4, sinkPort)},
		{"UDP socket+connect+close", udpConnect, 64, one(destination4, sinkPort)},
		{"UDP connect alone", udpReconnect, 128, one(destination4, sinkPort)},
		{"denied TCP connect", tcpRefused, 16, one(destination4, closedPort)},
		{"denied UDP send", udpSendDenied, 64, one(stranger4, sinkPort)},
	}
}

// scales are the paths that could depend on how much a guard holds.
func scales() []job {
	return []job{
		{"UDP send, unconnected", udpSend, 64, one(destination4, sinkPort)},
		{"UDP socket+connect+close", udpConnect, 64, one(destination4, sinkPort)},
	}
}

// scattered are the same to a different destination each time, so that a
// look-up never finds its entry in the cache.
func scattered(count int) []job {
	to := func(*lane) []netip.AddrPort { return spread(count) }
	return []job{
		{"UDP send, to every rule in turn", udpSend, 64, to},
		{"UDP connect, to every rule in turn", udpConnect, 64, to},
	}
}
