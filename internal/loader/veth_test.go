// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"os"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	vnetns "github.com/vishvananda/netns"

	"agentguard.dev/agentguard/internal/netns"
)

// newVeth joins here with a new namespace, which it returns. The near end has
// 192.0.2.1 and 2001:db8::1, the far end .2 and ::2.
func newVeth(t *testing.T, here *netns.Handle) *netns.Handle {
	t.Helper()
	far := newNamespace(t)
	in := func(ns *netns.Handle, fn func()) {
		if err := ns.Do(func() error { fn(); return nil }); err != nil {
			t.Fatal(err)
		}
	}
	in(here, func() {
		link := &netlink.Veth{
			LinkAttrs:     netlink.LinkAttrs{Name: "eth0"},
			PeerName:      "eth0",
			PeerNamespace: netlink.NsFd(far.FD()),
		}
		if err := netlink.LinkAdd(link); err != nil {
			t.Fatalf("add veth: %v", err)
		}
		raise(t, "eth0", "192.0.2.1/24", "2001:db8::1/64")
	})
	in(far, func() {
		raise(t, "eth0", "192.0.2.2/24", "2001:db8::2/64")
		raise(t, "lo")
	})
	return far
}

// newNamespace makes an unnamed network namespace, gone with its last handle.
func newNamespace(t *testing.T) *netns.Handle {
	t.Helper()
	type result struct {
		ns  *netns.Handle
		err error
	}
	made := make(chan result)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if _, err := vnetns.New(); err != nil {
			made <- result{nil, err}
			return
		}
		ns, err := netns.Current()
		made <- result{ns, err}
	}()
	r := <-made
	if r.err != nil {
		t.Fatalf("new network namespace: %v", r.err)
	}
	t.Cleanup(func() { r.ns.Close() })
	return r.ns
}

// raise gives a link its addresses and brings it up, without waiting for
// duplicate address detection.
func raise(t *testing.T, name string, addrs ...string) {
	t.Helper()
	if len(addrs) > 0 {
		dad := "/proc/sys/net/ipv6/conf/" + name + "/accept_dad"
		if err := os.WriteFile(dad, []byte("0"), 0); err != nil {
			t.Fatal(err)
		}
	}
	l, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range addrs {
		addr, err := netlink.ParseAddr(text)
		if err != nil {
			t.Fatal(err)
		}
		addr.Flags |= 0x02 // IFA_F_NODAD
		if err := netlink.AddrAdd(l, addr); err != nil {
			t.Fatalf("add %s to %s: %v", text, name, err)
		}
	}
	if err := netlink.LinkSetUp(l); err != nil {
		t.Fatal(err)
	}
}
