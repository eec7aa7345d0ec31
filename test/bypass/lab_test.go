// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/vishvananda/netlink"
	nl "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"agentguard.dev/agentguard/internal/cgroup"
	"agentguard.dev/agentguard/internal/netns"
)

// lab is the two namespaces with everything that listens and records in them.
type lab struct {
	host, sink *netns.Handle
	hostIndex  int // of the host's link
	wire       *capture
	loopback   *capture
	outside    *recorder // in the sink
	neighbour  *recorder // on the host, in no task
	markers    *markers
	plain      *cgroup.Dir  // where unguarded processes are born
	joined     []netip.Addr // groups that unguarded processes have been in
}

func newLab(t *testing.T) *lab {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("network namespaces need root")
	}
	l := &lab{host: newNamespace(t), sink: newNamespace(t)}
	l.join(t)
	l.settings(t)
	l.addresses(t)
	l.wire = newCapture(t, l.sink, sinkLink)
	l.loopback = newCapture(t, l.host, "lo")
	l.outside = newSink(t, l.sink)
	l.neighbour = newNeighbour(t, l.host)
	l.markers = newMarkers(t, l)
	l.plain = newCgroup(t, "")
	return l
}

func newNamespace(t *testing.T) *netns.Handle {
	t.Helper()
	own, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	var made *netns.Handle
	if err := own.Do(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make network namespace: %w", err)
		}
		made, err = netns.Current()
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { made.Close() })
	return made
}

func links(t *testing.T, ns *netns.Handle) *netlink.Handle {
	t.Helper()
	h, err := netlink.NewHandleAt(nl.NsHandle(ns.FD()), unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatalf("open netlink: %v", err)
	}
	t.Cleanup(h.Close)
	return h
}

// join lays the veth pair.
func (l *lab) join(t *testing.T) {
	t.Helper()
	h := links(t, l.host)
	pair := &netlink.Veth{
		LinkAttrs:        netlink.LinkAttrs{Name: hostLink, HardwareAddr: hostMAC},
		PeerName:         sinkLink,
		PeerHardwareAddr: sinkMAC,
		PeerNamespace:    netlink.NsFd(l.sink.FD()),
	}
	if err := h.LinkAdd(pair); err != nil {
		t.Fatalf("add veth pair: %v", err)
	}
}

// settings come before the links are up: a quiet wire is one on which the
// kernel itself says nothing.
func (l *lab) settings(t *testing.T) {
	t.Helper()
	both := map[string]string{
		"ipv4/conf/all/rp_filter":             "0",
		"ipv4/conf/default/rp_filter":         "0",
		"ipv4/tcp_fastopen":                   "1543", // client and server, with no cookies
		"ipv4/ping_group_range":               "0 2147483647",
		"ipv4/icmp_ratelimit":                 "0",
		"ipv4/icmp_echo_ignore_broadcasts":    "0",
		"ipv6/conf/all/disable_ipv6":          "0",
		"ipv6/conf/default/accept_dad":        "0",
		"ipv6/conf/default/accept_ra":         "0",
		"ipv6/conf/LINK/accept_dad":           "0",
		"ipv6/conf/LINK/accept_ra":            "0",
		"ipv6/conf/LINK/addr_gen_mode":        "1", // no address of its own making
		"ipv6/conf/LINK/router_solicitations": "0",
		"ipv4/igmp_qrv":                       "1", // a report is sent once
		"ipv6/mld_qrv":                        "1",
		"mptcp/enabled":                       "1",
	}
	sinkOnly := map[string]string{
		"ipv4/conf/all/accept_source_route":  "1",
		"ipv4/conf/LINK/accept_source_route": "1",
		"ipv4/conf/all/route_localnet":       "1",
		"ipv4/conf/LINK/rp_filter":           "0",
		"ipv6/conf/all/seg6_enabled":         "1",
		"ipv6/conf/LINK/seg6_enabled":        "1",
		"ipv6/conf/all/forwarding":           "0",
	}
	setSysctls(t, l.host, hostLink, both)
	setSysctls(t, l.sink, sinkLink, both)
	setSysctls(t, l.sink, sinkLink, sinkOnly)
}

// setSysctls leaves out what the kernel does not have: whoever needs it finds
// out by trying.
func setSysctls(t *testing.T, ns *netns.Handle, link string, values map[string]string) {
	t.Helper()
	if err := ns.Do(func() error {
		for name, value := range values {
			dir, base := filepath.Split(name)
			if filepath.Base(dir) == "LINK" {
				dir = filepath.Join(filepath.Dir(filepath.Clean(dir)), link)
			}
			path := filepath.Join("/proc/sys/net", dir, base)
			if err := os.WriteFile(path, []byte(value), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

func (l *lab) addresses(t *testing.T) {
	t.Helper()
	host, sink := links(t, l.host), links(t, l.sink)
	l.hostIndex = up(t, host, hostLink)
	sinkIndex := up(t, sink, sinkLink)
	up(t, host, "lo")
	up(t, sink, "lo")

	for _, a := range []string{host4.String() + "/24", host6.String() + "/64", hostLinkLocal.String() + "/64"} {
		give(t, host, l.hostIndex, netip.MustParsePrefix(a))
	}
	for _, a := range []string{gateway4.String() + "/24", gateway6.String() + "/64", sinkLinkLocal.String() + "/64"} {
		give(t, sink, sinkIndex, netip.MustParsePrefix(a))
	}
	for _, a := range sinkAddresses()[3:] {
		give(t, sink, sinkIndex, netip.PrefixFrom(a, a.BitLen()))
	}
	for _, n := range []struct {
		h     *netlink.Handle
		index int
		addr  netip.Addr
		mac   []byte
	}{
		{host, l.hostIndex, gateway4, sinkMAC}, {host, l.hostIndex, gateway6, sinkMAC}, {host, l.hostIndex, sinkLinkLocal, sinkMAC},
		{sink, sinkIndex, host4, hostMAC}, {sink, sinkIndex, host6, hostMAC}, {sink, sinkIndex, hostLinkLocal, hostMAC},
	} {
		if err := n.h.NeighSet(&netlink.Neigh{
			LinkIndex: n.index, IP: n.addr.AsSlice(), HardwareAddr: n.mac, State: netlink.NUD_PERMANENT,
		}); err != nil {
			t.Fatalf("set neighbour %s: %v", n.addr, err)
		}
	}
	for _, gw := range []netip.Addr{gateway4, gateway6} {
		if err := host.RouteAdd(&netlink.Route{LinkIndex: l.hostIndex, Gw: gw.AsSlice()}); err != nil {
			t.Fatalf("add default route through %s: %v", gw, err)
		}
	}
}

func up(t *testing.T, h *netlink.Handle, name string) int {
	t.Helper()
	link, err := h.LinkByName(name)
	if err != nil {
		t.Fatalf("find link %s: %v", name, err)
	}
	if err := h.LinkSetUp(link); err != nil {
		t.Fatalf("set link %s up: %v", name, err)
	}
	return link.Attrs().Index
}

func give(t *testing.T, h *netlink.Handle, index int, p netip.Prefix) {
	t.Helper()
	link, err := h.LinkByIndex(index)
	if err != nil {
		t.Fatalf("find link %d: %v", index, err)
	}
	addr := &netlink.Addr{
		IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())},
		Flags: unix.IFA_F_NODAD,
	}
	if p.Addr().Is4() {
		addr.Flags = 0
	}
	if err := h.AddrAdd(link, addr); err != nil {
		t.Fatalf("add address %s: %v", p, err)
	}
}
