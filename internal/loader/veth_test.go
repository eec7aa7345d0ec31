// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
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
	err := here.Do(func() error {
		link := &netlink.Veth{
			LinkAttrs:     netlink.LinkAttrs{Name: "eth0"},
			PeerName:      "eth0",
			PeerNamespace: netlink.NsFd(far.FD()),
		}
		if err := netlink.LinkAdd(link); err != nil {
			return fmt.Errorf("add veth: %w", err)
		}
		return raise("eth0", "192.0.2.1/24", "2001:db8::1/64")
	})
	if err != nil {
		t.Fatal(err)
	}
	err = far.Do(func() error {
		return errors.Join(raise("eth0", "192.0.2.2/24", "2001:db8::2/64"), raise("lo"))
	})
	if err != nil {
		t.Fatal(err)
	}
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
func raise(name string, addrs ...string) error {
	if len(addrs) > 0 {
		dad := "/proc/sys/net/ipv6/conf/" + name + "/accept_dad"
		if err := os.WriteFile(dad, []byte("0"), 0); err != nil {
			return err
		}
	}
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	for _, text := range addrs {
		addr, err := netlink.ParseAddr(text)
		if err != nil {
			return err
		}
		addr.Flags |= 0x02 // IFA_F_NODAD
		if err := netlink.AddrAdd(l, addr); err != nil {
			return fmt.Errorf("add %s to %s: %w", text, name, err)
		}
	}
	return netlink.LinkSetUp(l)
}

// route sends a prefix by a gateway.
func route(prefix, gateway string) error {
	_, to, err := net.ParseCIDR(prefix)
	if err != nil {
		return err
	}
	return netlink.RouteAdd(&netlink.Route{Dst: to, Gw: net.ParseIP(gateway)})
}

// nativeWord is an IPv4 address as programs find it in a context.
func nativeWord(addr netip.Addr) uint32 {
	b := addr.As4()
	return binary.NativeEndian.Uint32(b[:])
}
