// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unsafe"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"agentguard.dev/agentguard/bpf"
)

// sockDestroy is SOCK_DESTROY of linux/sock_diag.h.
const sockDestroy = 21

// destroyRest destroys over netlink what has to go and the iterators did not
// destroy: before 6.5 they have no bpf_sock_destroy, and flows on this machine
// are decided after them. It runs in the sockets' namespace.
func destroyRest(sockets []Socket) error {
	for i := range sockets {
		s := &sockets[i]
		if s.Cut == ReasonNone || s.Destroyed {
			continue
		}
		request := nl.NewNetlinkRequest(sockDestroy, unix.NLM_F_ACK)
		request.AddData((*diagRequest)(&s.raw))
		_, err := request.Execute(unix.NETLINK_INET_DIAG, 0)
		switch {
		case err == nil:
			s.Destroyed = true
		case errors.Is(err, unix.ENOENT): // gone meanwhile
		case errors.Is(err, unix.ESTALE): // the kernel finds another's at its address; nothing leaves either
		case errors.Is(err, unix.EOPNOTSUPP) && s.Cut == ReasonNotOwn: // without CONFIG_INET_DIAG_DESTROY
		default:
			return fmt.Errorf("destroy socket %s -> %s: %w", s.Local, s.Remote, err)
		}
	}
	return nil
}

// diagRequest is a socket as struct inet_diag_req_v2 of linux/inet_diag.h.
type diagRequest bpf.GuardSocket

const diagRequestSize = 56

func (d *diagRequest) Len() int { return diagRequestSize }

func (d *diagRequest) Serialize() []byte {
	b := make([]byte, 0, diagRequestSize)
	b = append(b, d.Family, d.Proto, 0, 0)
	b = binary.NativeEndian.AppendUint32(b, ^uint32(0)) // any state
	b = binary.BigEndian.AppendUint16(b, d.LocalPort)
	b = binary.BigEndian.AppendUint16(b, d.RemotePort)
	b = append(b, unsafe.Slice((*byte)(unsafe.Pointer(&d.Local)), 16)...)
	b = append(b, unsafe.Slice((*byte)(unsafe.Pointer(&d.Remote)), 16)...)
	b = binary.NativeEndian.AppendUint32(b, d.Ifindex)
	return binary.NativeEndian.AppendUint64(b, d.Cookie)
}
