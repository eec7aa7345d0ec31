// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"agentguard.dev/agentguard/internal/netns"
)

// The path manager's netlink words, of linux/mptcp.h.
const (
	pmAddAddr  = 1
	pmSetLimit = 5

	pmAttrAddr        = 1
	pmAttrRcvAddAddrs = 2
	pmAttrSubflows    = 3

	pmAddrFamily = 1
	pmAddrAddr4  = 3
	pmAddrFlags  = 6
	pmAddrSignal = 1
)

// announce makes the sink's MPTCP servers tell their clients of address, and
// the host's clients take such news.
func (l *lab) announce(t *testing.T, address netip.Addr) {
	t.Helper()
	if pathManager(t, l.host, func(uint16) {}) {
		limits := []*nl.RtAttr{
			nl.NewRtAttr(pmAttrRcvAddAddrs, native32(nil, 2)),
			nl.NewRtAttr(pmAttrSubflows, native32(nil, 2)),
		}
		for _, ns := range []*netns.Handle{l.host, l.sink} {
			pathManager(t, ns, func(family uint16) { pathManagerDo(t, family, pmSetLimit, limits...) })
		}
		addr := nl.NewRtAttr(pmAttrAddr|unix.NLA_F_NESTED, nil)
		addr.AddRtAttr(pmAddrFamily, native16(nil, unix.AF_INET))
		addr.AddRtAttr(pmAddrAddr4, address.AsSlice())
		addr.AddRtAttr(pmAddrFlags, native32(nil, pmAddrSignal))
		pathManager(t, l.sink, func(family uint16) { pathManagerDo(t, family, pmAddAddr, addr) })
	}
}

// pathManager runs fn in ns with the family's number; false if there is none.
func pathManager(t *testing.T, ns *netns.Handle, fn func(family uint16)) (found bool) {
	t.Helper()
	if err := ns.Do(func() error {
		family, err := netlink.GenlFamilyGet("mptcp_pm")
		if err != nil {
			return nil
		}
		found = true
		fn(family.ID)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return found
}

func pathManagerDo(t *testing.T, family uint16, command uint8, attrs ...*nl.RtAttr) {
	request := nl.NewNetlinkRequest(int(family), unix.NLM_F_ACK)
	request.AddData(&nl.Genlmsg{Command: command, Version: 1})
	for _, a := range attrs {
		request.AddData(a)
	}
	if _, err := request.Execute(unix.NETLINK_GENERIC, 0); err != nil {
		t.Errorf("set MPTCP path manager, command %d: %v", command, err)
	}
}

// wireSeen waits for what a worker of the kernel sends when it gets to it. The limit bounds only how long a guarded
// run waits for what must not come.
func (l *lab) wireSeen(t *trial) func() {
	return func() {
		for deadline := time.Now().Add(300 * time.Millisecond); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
			if l.wire.has(t.technique.seen) {
				return
			}
		}
	}
}
