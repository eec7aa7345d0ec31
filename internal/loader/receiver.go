// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"agentguard.dev/agentguard/internal/netns"
	"agentguard.dev/agentguard/internal/policy"
)

const (
	diagByFamily  = 20 // SOCK_DIAG_BY_FAMILY of linux/sock_diag.h
	diagMsgSize   = 72 // struct inet_diag_msg
	diagCgroupID  = 21 // INET_DIAG_CGROUP_ID, Linux 5.8
	noCookie      = ^uint64(0)
	somebodysPort = 1
)

// Receiver finds the socket in the namespace that gets what a process there
// sends to an address of the machine, and returns the id of its cgroup. ok is
// false if there is none.
func Receiver(ns *netns.Handle, proto policy.Proto, at netip.AddrPort) (cgroup uint64, ok bool, err error) {
	err = ns.Do(func() error {
		cgroup, ok, err = receiver(proto, at)
		return err
	})
	return cgroup, ok, err
}

func receiver(proto policy.Proto, at netip.AddrPort) (cgroup uint64, ok bool, err error) {
	request := nl.NewNetlinkRequest(diagByFamily, 0)
	request.AddData(lookup{proto, at})
	answers, err := request.Execute(unix.NETLINK_INET_DIAG, diagByFamily)
	if errors.Is(err, unix.ENOENT) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, fmt.Errorf("look for the socket at %s %s: %w", proto, at, err)
	}
	for _, answer := range answers {
		if len(answer) < diagMsgSize {
			continue
		}
		attrs, err := nl.ParseRouteAttr(answer[diagMsgSize:])
		if err != nil {
			return 0, false, fmt.Errorf("look for the socket at %s %s: %w", proto, at, err)
		}
		for _, attr := range attrs {
			if attr.Attr.Type == diagCgroupID && len(attr.Value) >= 8 {
				return binary.NativeEndian.Uint64(attr.Value), true, nil
			}
		}
		return 0, false, fmt.Errorf("look for the socket at %s %s: the kernel does not say whose it is", proto, at)
	}
	return 0, false, nil
}

// lookup is a struct inet_diag_req_v2 that finds a receiver as a packet would.
type lookup struct {
	proto policy.Proto
	at    netip.AddrPort
}

func (l lookup) Len() int { return diagRequestSize }

func (l lookup) Serialize() []byte {
	addr := l.at.Addr().Unmap()
	family, own := byte(unix.AF_INET6), addr.AsSlice()
	if addr.Is4() {
		family = unix.AF_INET
	}
	var to, from [16]byte // from is the machine itself as well
	copy(to[:], own)
	copy(from[:], own)
	ports := binary.BigEndian.AppendUint16(nil, l.at.Port())
	ports = binary.BigEndian.AppendUint16(ports, somebodysPort)
	addrs := append(to[:], from[:]...)
	if l.proto == policy.UDP {
		// For UDP the kernel takes the source for the packet's.
		ports = append(ports[2:4:4], ports[:2]...)
		addrs = append(from[:], to[:]...)
	}
	b := make([]byte, 0, diagRequestSize)
	b = append(b, family, byte(l.proto), 0, 0)
	b = binary.NativeEndian.AppendUint32(b, ^uint32(0)) // any state
	b = append(append(b, ports...), addrs...)
	b = binary.NativeEndian.AppendUint32(b, 0) // any interface
	return binary.NativeEndian.AppendUint64(b, noCookie)
}
