// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"agentguard.dev/agentguard/internal/netns"
)

// What a socket was allowed to reach decides where the host's own NAT has put
// another address into the packet. These try to have something else go out
// under that cover, in a namespace that the operator trusts.

// receiver is a UDP socket outside any task.
func (f *fixture) receiver(ns *netns.Handle, addr, device string) *net.UDPConn {
	f.t.Helper()
	var conn *net.UDPConn
	err := ns.Do(func() error {
		config := net.ListenConfig{Control: control(func(fd int) error {
			if device == "" {
				return nil
			}
			return unix.BindToDevice(fd, device)
		})}
		p, err := config.ListenPacket(f.t.Context(), "udp", addr)
		if err != nil {
			return err
		}
		conn = p.(*net.UDPConn)
		return nil
	})
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { conn.Close() })
	return conn
}

// wantNothing fails if a datagram is there or arrives.
func wantNothing(t *testing.T, conn *net.UDPConn, what string) {
	t.Helper()
	conn.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	buf := make([]byte, 1000)
	n, err := conn.Read(buf)
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%s: %q, %v arrived", what, buf[:n], err)
	}
}

func (f *fixture) trust() {
	f.t.Helper()
	if err := f.Maps().Namespaces.Trust(f.ns.Cookie()); err != nil {
		f.t.Fatal(err)
	}
}

const (
	kept   = "192.0.2.2:1001" // allowed throughout
	gone   = "192.0.2.2:1002" // no longer
	loHost = "127.0.0.53:53"
)

func TestCorkedDatagramOfARevokedRule(t *testing.T) {
	for family, at := range map[int]string{unix.AF_INET: "192.0.2.2", unix.AF_INET6: "[2001:db8::2]"} {
		t.Run(at, func(t *testing.T) {
			f := newFixture(t)
			far := newVeth(t, f.ns)
			f.trust()
			kept, gone := at+":1001", at+":1002"
			sink := f.receiver(far, gone, "")
			a := f.begin(nil, "udp://"+kept, "udp://"+gone)
			// Neighbours find each other first: nothing arrives late.
			a.want("ok", "open first %d 2 0", family)
			a.want("ok", "send first %s - hello", gone)
			if _, err := sink.Read(make([]byte, 100)); err != nil {
				t.Fatal(err)
			}
			begun := map[string][]string{
				"reconnected":   {"connect reconnected " + gone, "send reconnected - more begun", "connect reconnected " + kept},
				"disconnected":  {"connect disconnected " + gone, "send disconnected - more begun", "disconnect disconnected"},
				"connected":     {"send connected " + gone + " more begun", "connect connected " + kept},
				"unconnected":   {"send unconnected " + gone + " more begun"},
				"after-another": {"send after-another " + kept + " - first", "send after-another " + gone + " more begun"},
			}
			for name, steps := range begun {
				a.want("ok", "open %s %d 2 0", name, family)
				for _, s := range steps {
					a.want("ok", "%s", s)
				}
			}
			a.allow("udp://" + kept)
			a.put()
			for name := range begun {
				a.do("send %s - - secret", name)
				wantNothing(t, sink, name+" after the rule was taken away")
			}
		})
	}
}

func TestStalledDatagramOfARevokedRule(t *testing.T) {
	for name, steps := range map[string][]string{
		"sendto":       {"stall u " + gone, "send u " + kept + " - decoy"},
		"connect":      {"connect u " + gone, "stall u -", "connect u " + kept},
		"disconnect":   {"connect u " + gone, "stall u -", "disconnect u", "send u " + kept + " - decoy"},
		"connected-to": {"connect u " + kept, "stall u " + gone, "send u " + kept + " - decoy"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			far := newVeth(t, f.ns)
			f.trust()
			sink := f.receiver(far, gone, "")
			a := f.begin(nil, "udp://"+kept, "udp://"+gone)
			a.want("ok", "open u 2 2 0")
			for _, s := range steps {
				a.want("ok", "%s", s)
			}
			a.allow("udp://" + kept)
			a.put()
			a.do("release after")
			wantNothing(t, sink, "after the rule was taken away")
		})
	}
}

// A listener bound to a device is hidden from the look-up of the hooks; the
// packet finds it.
func TestHiddenListenerBesideAnAllowedDestination(t *testing.T) {
	for _, full := range []bool{false, true} {
		t.Run(fmt.Sprint(full), func(t *testing.T) {
			f := newFixture(t)
			newVeth(t, f.ns)
			f.trust()
			hidden := f.receiver(f.ns, loHost, "lo")
			a := f.begin(nil, "udp://"+kept)
			a.want("ok", "open u 2 2 0")
			if full {
				a.want("ok", "fill u")
			}
			a.want("ok", "connect u %s", kept)
			a.do("send u %s - secret", loHost)
			wantNothing(t, hidden, "the host's listener")
		})
	}
}

func control(fn func(fd int) error) func(string, string, syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) error {
		var inner error
		if err := c.Control(func(fd uintptr) { inner = fn(int(fd)) }); err != nil {
			return err
		}
		return inner
	}
}
