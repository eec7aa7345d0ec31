// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"net"
	"net/netip"
	"os"
	"testing"

	"agentguard.dev/agentguard/internal/cgroup"
	"agentguard.dev/agentguard/internal/netns"
	"agentguard.dev/agentguard/internal/policy"
)

func TestReceiver(t *testing.T) {
	here, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	defer here.Close()
	path, err := cgroup.OfProcess(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	own, err := cgroup.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	for _, address := range []string{"127.0.0.1:0", "[::1]:0", "0.0.0.0:0", "[::]:0"} {
		udp, err := net.ListenPacket("udp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer udp.Close()
		tcp, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer tcp.Close()
		for proto, bound := range map[policy.Proto]net.Addr{policy.UDP: udp.LocalAddr(), policy.TCP: tcp.Addr()} {
			at := netip.MustParseAddrPort(bound.String())
			if at.Addr().IsUnspecified() {
				at = netip.AddrPortFrom(netip.MustParseAddr("127.0.0.53"), at.Port())
			}
			got, found, err := Receiver(here, proto, at)
			if err != nil || !found || got != own.ID() {
				t.Errorf("%s %s bound to %s: cgroup %d, %v, %v; want %d", proto, at, address, got, found, err, own.ID())
			}
		}
	}
	free, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := netip.MustParseAddrPort(free.LocalAddr().String())
	free.Close()
	for _, proto := range []policy.Proto{policy.UDP, policy.TCP} {
		if _, found, err := Receiver(here, proto, at); found || err != nil {
			t.Errorf("where nobody listens: %v, %v", found, err)
		}
	}
}
