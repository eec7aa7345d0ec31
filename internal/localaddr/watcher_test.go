// SPDX-License-Identifier: Apache-2.0

package localaddr

import (
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"agentguard.dev/agentguard/internal/netns"
)

// table records what the watcher writes, in place of the kernel's map.
type table struct {
	mu   sync.Mutex
	held map[uint64][]netip.Addr
}

func (t *table) Replace(cookie uint64, addrs []netip.Addr) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.held == nil {
		t.held = make(map[uint64][]netip.Addr)
	}
	t.held[cookie] = slices.Clone(addrs)
	return nil
}

func (t *table) has(cookie uint64, addr string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Contains(t.held[cookie], netip.MustParseAddr(addr))
}

func namespace(t *testing.T) *netns.Handle {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("making a network namespace needs root")
	}
	own, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	var made *netns.Handle
	if err := own.Do(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		made, err = netns.Current()
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { made.Close() })
	return made
}

func change(t *testing.T, ns *netns.Handle, addr string, do func(netlink.Link, *netlink.Addr) error) {
	t.Helper()
	if err := ns.Do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		parsed, err := netlink.ParseAddr(addr)
		if err != nil {
			return err
		}
		return do(lo, parsed)
	}); err != nil {
		t.Fatal(err)
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("after 10 s still not: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestFollowsAddresses(t *testing.T) {
	ns, other := namespace(t), namespace(t)
	change(t, ns, "192.0.2.1/24", netlink.AddrAdd)

	var held table
	w := New(&held, slog.New(slog.DiscardHandler))
	defer w.Close()
	for _, h := range []*netns.Handle{ns, other, ns} {
		if err := w.Add(h); err != nil {
			t.Fatal(err)
		}
	}
	if !held.has(ns.Cookie(), "192.0.2.1") {
		t.Error("an address that was there is not in the table when Add returns")
	}
	if held.has(other.Cookie(), "192.0.2.1") {
		t.Error("the address is in the table of a namespace that does not have it")
	}

	change(t, ns, "2001:db8::1/64", netlink.AddrAdd)
	eventually(t, "new address in the table", func() bool { return held.has(ns.Cookie(), "2001:db8::1") })
	change(t, ns, "192.0.2.1/24", netlink.AddrDel)
	eventually(t, "removed address gone", func() bool { return !held.has(ns.Cookie(), "192.0.2.1") })

	if err := w.Remove(ns.ID()); err != nil {
		t.Fatal(err)
	}
	if held.has(ns.Cookie(), "2001:db8::1") {
		t.Error("addresses are in the table after Remove")
	}
	change(t, other, "192.0.2.2/24", netlink.AddrAdd)
	eventually(t, "the other namespace is still followed", func() bool { return held.has(other.Cookie(), "192.0.2.2") })
}
