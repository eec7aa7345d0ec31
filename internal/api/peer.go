// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/http"
	"slices"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"agentguard.dev/agentguard/client"
	"agentguard.dev/agentguard/internal/task"
)

// peer is the process at the other end as it was when it connected. The zero
// peer is nobody and may do nothing.
type peer struct {
	known    bool
	pid      int32
	uid, gid uint32
	groups   []uint32
}

type peerKey struct{}

// withPeer asks the kernel once per connection who connected.
func withPeer(ctx context.Context, conn net.Conn) context.Context {
	who, err := peerOf(conn)
	if err != nil {
		return ctx // no peer in ctx: denied
	}
	return context.WithValue(ctx, peerKey{}, who)
}

func peerOf(conn net.Conn) (who peer, err error) {
	raw, ok := conn.(syscall.Conn)
	if !ok {
		return peer{}, fmt.Errorf("read peer credentials: %T is not a socket", conn)
	}
	control, err := raw.SyscallConn()
	if err != nil {
		return peer{}, fmt.Errorf("read peer credentials: %w", err)
	}
	controlErr := control.Control(func(fd uintptr) {
		var cred *unix.Ucred
		if cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err != nil {
			return
		}
		who = peer{known: true, pid: cred.Pid, uid: cred.Uid, gid: cred.Gid}
		who.groups, err = peerGroups(int(fd))
	})
	if err == nil {
		err = controlErr
	}
	if err != nil {
		return peer{}, fmt.Errorf("read peer credentials: %w", err)
	}
	return who, nil
}

// peerGroups reads SO_PEERGROUPS (Linux 4.13), for which x/sys has no call:
// the supplementary groups at the time of connect. Unlike a look into
// /proc/PID it cannot meet a recycled PID.
func peerGroups(fd int) ([]uint32, error) {
	const gidSize = 4
	size := uint32(64 * gidSize)
	for {
		buf := make([]byte, size)
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&buf[0])), uintptr(unsafe.Pointer(&size)), 0)
		if errno == unix.ERANGE && int(size) > len(buf) {
			continue
		}
		if errno != 0 {
			return nil, errno
		}
		groups := make([]uint32, size/gidSize)
		for i := range groups {
			groups[i] = binary.NativeEndian.Uint32(buf[i*gidSize:])
		}
		return groups, nil
	}
}

func (p peer) mayOperate(group int) bool {
	if !p.known {
		return false
	}
	if p.uid == 0 {
		return true
	}
	return group >= 0 && (p.gid == uint32(group) || slices.Contains(p.groups, uint32(group)))
}

// onlyOperators is the second lock behind the socket's file mode: it also
// holds for a socket that was handed on, or whose mode someone widened.
func (s *Server) onlyOperators(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		who, _ := r.Context().Value(peerKey{}).(peer)
		if !who.mayOperate(s.Group) {
			s.Log.Warn("refused a caller", "uid", who.uid, "pid", who.pid, "path", r.URL.Path)
			s.fail(w, r, &client.Error{Status: http.StatusForbidden, Code: "forbidden", Message: s.refusal(who)})
			return
		}
		ctx := task.WithCaller(r.Context(), task.Caller{PID: uint32(who.pid), UID: who.uid})
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}

func (s *Server) refusal(who peer) string {
	if s.Group < 0 {
		return fmt.Sprintf("uid %d may not use the admin socket: use sudo, or set a group in the daemon's configuration", who.uid)
	}
	return fmt.Sprintf("uid %d may not use the admin socket: use sudo, or join group %d", who.uid, s.Group)
}
