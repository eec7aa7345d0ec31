// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"fmt"
	"runtime"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"agentguard.dev/agentguard/internal/netns"
)

// markers come from a process on the host that is in no task. They leave from
// the processor on which techniques run: a veth pair keeps the order of what
// one processor sends.
type markers struct {
	host *netns.Handle
	next atomic.Uint64
}

func newMarkers(t *testing.T, l *lab) *markers {
	t.Helper()
	m := &markers{host: l.host}
	for _, to := range []unix.Sockaddr{
		&unix.SockaddrInet4{Addr: gateway4.As4(), Port: markerPort},
		&unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: markerPort},
	} {
		if _, err := m.send(to); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

func (m *markers) send(to unix.Sockaddr) (string, error) {
	mark := fmt.Sprintf("marker-%08d;", m.next.Add(1))
	err := m.host.Do(func() error {
		return pinned(func() error {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return fmt.Errorf("send marker: %w", err)
			}
			defer unix.Close(fd)
			if err := unix.Sendto(fd, []byte(mark), 0, to); err != nil {
				return fmt.Errorf("send marker: %w", err)
			}
			return nil
		})
	})
	return mark, err
}

// upToNow takes what has left the host since the last time.
func (l *lab) upToNow() ([]packet, error) {
	mark, err := l.markers.send(&unix.SockaddrInet4{Addr: gateway4.As4(), Port: markerPort})
	if err != nil {
		return nil, err
	}
	return l.wire.until(mark)
}

// pinned runs fn, and the processes that it starts, on one processor.
func pinned(fn func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return fmt.Errorf("read processor affinity: %w", err)
	}
	for cpu := 0; cpu < 1024; cpu++ {
		if before.IsSet(cpu) {
			one.Set(cpu)
			break
		}
	}
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return fmt.Errorf("set processor affinity: %w", err)
	}
	defer unix.SchedSetaffinity(0, &before)
	return fn()
}
