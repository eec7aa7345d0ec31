// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"agentguard.dev/agentguard/internal/netns"
)

// capture records every frame that arrives on one link, in order.
type capture struct {
	link string
	file *os.File
	done chan struct{}

	mu     sync.Mutex
	frames []packet
	grown  chan struct{} // closed and replaced when frames grows
}

// newCapture begins to record in ns. On a veth link only what the other end
// sent is kept.
func newCapture(t *testing.T, ns *netns.Handle, link string) *capture {
	t.Helper()
	c := &capture{link: link, done: make(chan struct{}), grown: make(chan struct{})}
	if err := ns.Do(func() error {
		ifi, err := net.InterfaceByName(link)
		if err != nil {
			return err
		}
		all := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_ALL))
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(all))
		if err != nil {
			return err
		}
		c.file = os.NewFile(uintptr(fd), "capture on "+link)
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20); err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: ifi.Index})
	}); err != nil {
		t.Fatalf("capture on %s: %v", link, err)
	}
	go c.read()
	t.Cleanup(func() {
		c.complete(t)
		c.file.Close()
		<-c.done
	})
	return c
}

// complete fails the test if the kernel dropped frames: what was dropped may
// have been an escape.
func (c *capture) complete(t *testing.T) {
	raw, err := c.file.SyscallConn()
	if err != nil {
		t.Error(err)
		return
	}
	if err := raw.Control(func(fd uintptr) {
		stats, err := unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS)
		if err != nil {
			t.Errorf("capture on %s: read statistics: %v", c.link, err)
		} else if stats.Drops > 0 {
			t.Errorf("capture on %s: %d frames dropped, so nothing is shown", c.link, stats.Drops)
		}
	}); err != nil {
		t.Error(err)
	}
}

func (c *capture) read() {
	defer close(c.done)
	buffer := make([]byte, 1<<18)
	for {
		n, err := c.file.Read(buffer)
		if err != nil {
			return
		}
		if c.link != "lo" && n >= 12 && !bytes.Equal(buffer[6:12], hostMAC) {
			continue
		}
		p := parse(bytes.Clone(buffer[:n]))
		c.mu.Lock()
		c.frames = append(c.frames, p)
		close(c.grown)
		c.grown = make(chan struct{})
		c.mu.Unlock()
	}
}

// has says whether a frame that match picks has been recorded and not taken.
func (c *capture) has(match func(packet) bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.ContainsFunc(c.frames, match)
}

// until takes what was recorded up to the frame that carries mark.
func (c *capture) until(mark string) ([]packet, error) {
	deadline := time.After(5 * time.Second)
	seen := 0
	for {
		c.mu.Lock()
		for ; seen < len(c.frames); seen++ {
			if c.frames[seen].carries(mark) {
				before := c.frames[:seen:seen]
				c.frames = c.frames[seen+1:]
				c.mu.Unlock()
				return before, nil
			}
		}
		grown := c.grown
		c.mu.Unlock()
		select {
		case <-grown:
		case <-deadline:
			return nil, fmt.Errorf("capture on %s: the marker did not arrive within 5s", c.link)
		}
	}
}
