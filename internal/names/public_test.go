// SPDX-License-Identifier: Apache-2.0

package names

import (
	"net/netip"
	"testing"
)

func TestPublic(t *testing.T) {
	for _, tt := range []struct {
		addr string
		want bool
	}{
		{"93.184.216.34", true},
		{"1.1.1.1", true},
		{"192.0.2.1", true},
		{"198.51.100.1", true},
		{"203.0.113.255", true},
		{"198.18.0.1", true},
		{"0.0.0.0", false},
		{"0.255.255.255", false},
		{"1.0.0.0", true},
		{"9.255.255.255", true},
		{"10.0.0.0", false},
		{"10.255.255.255", false},
		{"11.0.0.0", true},
		{"100.63.255.255", true},
		{"100.64.0.0", false},
		{"100.127.255.255", false},
		{"100.128.0.0", true},
		{"127.0.0.1", false},
		{"127.255.255.255", false},
		{"169.254.169.254", false},
		{"172.15.255.255", true},
		{"172.16.0.0", false},
		{"172.31.255.255", false},
		{"172.32.0.0", true},
		{"192.0.0.192", false},
		{"192.168.0.0", false},
		{"192.169.0.0", true},
		{"223.255.255.255", true},
		{"224.0.0.1", false},
		{"239.255.255.255", false},
		{"240.0.0.1", false},
		{"255.255.255.255", false},

		{"2606:2800:220:1::1", true},
		{"2001:db8::1", true},
		{"3fff::1", true},
		{"::", false},
		{"::1", false},
		{"::5db8:d822", false}, // IPv4-compatible: nobody routes it
		{"::7f00:1", false},
		{"::ffff:93.184.216.34", true},
		{"::ffff:127.0.0.1", false},
		{"::ffff:10.0.0.1", false},
		{"::ffff:0:127.0.0.1", false}, // IPv4-translated
		{"::ffff:0:93.184.216.34", false},
		{"64:ff9b::93.184.216.34", true},
		{"64:ff9b::127.0.0.1", false},
		{"64:ff9b::10.1.2.3", false},
		{"64:ff9b::169.254.169.254", false},
		{"64:ff9b:1::93.184.216.34", false},
		{"100::1", false},
		{"2002:5db8:d822::1", true},
		{"2002:7f00:1::1", false},
		{"2002:a00:1::", false},
		{"2002:c0a8:101::1", false},
		{"2001:0:5db8:d822::a247:27dd", true},  // server and client are 93.184.216.34
		{"2001:0:5db8:d822::80ff:fffe", false}, // the client is 127.0.0.1
		{"2001:0:a00:1::a247:27dd", false},     // the server is 10.0.0.1
		{"2001:10::1", false},
		{"2001:20::1", false},
		{"2606::5efe:10.0.0.1", false}, // ISATAP
		{"2606::200:5efe:10.0.0.1", false},
		{"2606::200:5efe:93.184.216.34", true},
		{"fc00::1", false},
		{"fdff::1", false},
		{"fe80::1", false},
		{"fe80::1%eth0", false},
		{"fec0::1", false},
		{"ff02::1", false},
		{"4000::1", false},
		{"5f00::1", false},
	} {
		if got := Public(netip.MustParseAddr(tt.addr)); got != tt.want {
			t.Errorf("Public(%s) = %v, want %v", tt.addr, got, tt.want)
		}
	}
}

func TestLinkLocal(t *testing.T) {
	for addr, want := range map[string]bool{
		"169.254.169.254": true, "::ffff:169.254.169.254": true, "fe80::1": true, "64:ff9b::169.254.169.254": true, "2002:a9fe:a9fe::1": true,
		"169.253.0.1": false, "10.0.0.1": false, "fd00::1": false, "64:ff9b::10.0.0.1": false, "2001:db8::1": false,
	} {
		if got := LinkLocal(netip.MustParseAddr(addr)); got != want {
			t.Errorf("LinkLocal(%s) = %v, want %v", addr, got, want)
		}
	}
}
