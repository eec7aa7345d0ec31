// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"agentguard.dev/agentguard/internal/maps"
	"agentguard.dev/agentguard/internal/policy"
)

// ingress makes the destinations those of peers that may begin.
func (k *task) ingress(peers ...string) {
	k.f.t.Helper()
	var in []policy.Input
	for _, text := range peers {
		d, err := policy.ParseDestination(text)
		if err != nil {
			k.f.t.Fatal(err)
		}
		in = append(in, policy.Input{
			Rule: policy.Rule{Direction: policy.Ingress, To: []policy.Destination{d}}, ID: maps.RuleFirst,
		})
	}
	compiled, err := policy.Compile(in)
	if err != nil {
		k.f.t.Fatal(err)
	}
	if err := k.f.Maps().Rules.Replace(k.record.Policy, compiled); err != nil {
		k.f.t.Fatal(err)
	}
	k.record.PolicyPrefixes = len(compiled.Prefixes) > 0
	k.put()
}

// A socket that a peer's connection made is taken apart from it and connects:
// it is no answer any more. The listener is bound to a device, so the hook does
// not find it.
func TestAcceptedSocketThatConnectsElsewhere(t *testing.T) {
	f := newFixture(t)
	arrived := make(chan struct{}, 1)
	var host net.Listener
	f.in(func() (err error) {
		config := net.ListenConfig{Control: control(func(fd int) error { return unix.BindToDevice(fd, "lo") })}
		host, err = config.Listen(t.Context(), "tcp4", loHost)
		return err
	})
	t.Cleanup(func() { host.Close() })
	go func() {
		for {
			conn, err := host.Accept()
			if err != nil {
				return
			}
			conn.Close()
			arrived <- struct{}{}
		}
	}()
	a := f.begin(nil)
	a.want("ok", "open s 2 1 0")
	a.want("ok", "bind s 127.0.0.1:7777")
	a.want("ok", "listen s")
	var client net.Conn
	f.in(func() (err error) { client, err = net.Dial("tcp4", "127.0.0.1:7777"); return err })
	defer client.Close()
	a.want("ok", "accept s")
	a.want("ok", "send s - - hello") // an answer
	a.want("ok", "disconnect s")
	a.do("connect s %s", loHost)
	select {
	case <-arrived:
		t.Error("the host's listener was reached")
	case <-time.After(200 * time.Millisecond):
	}
}

// A peer that an ingress rule names gets datagrams back, from the port that the
// rule names and from no other.
func TestDatagramsBackToAPeer(t *testing.T) {
	f := newFixture(t)
	far := newVeth(t, f.ns)
	peer := f.receiver(far, "192.0.2.2:4000", "")
	a := f.begin(nil)
	a.ingress("udp://192.0.2.2:5353")
	buf := make([]byte, 100)
	for name, connect := range map[string]bool{"u": false, "c": true} {
		a.want("ok", "open %s 2 2 0", name)
		a.want("ok", "bind %s 192.0.2.1:5353", name)
		to := "192.0.2.2:4000"
		if connect {
			a.want("ok", "connect %s %s", name, to)
			to = "-"
			if kept := f.sweepNow(); kept.Destroyed != 0 {
				t.Errorf("the sweep destroyed what is allowed: %+v", kept)
			}
		}
		a.want("ok", "send %s %s - hello", name, to)
		peer.SetReadDeadline(time.Now().Add(2 * time.Second))
		if n, err := peer.Read(buf); string(buf[:n]) != "hello" {
			t.Errorf("the peer got %q, %v", buf[:n], err)
		}
	}
	a.want("ok", "open other 2 2 0")
	a.want("ok", "bind other 192.0.2.1:5354")
	a.want(eperm, "send other 192.0.2.2:4000 - hello")
	a.want(eperm, "connect other 192.0.2.2:4000")
	a.ingress()
	a.want(eperm, "send u 192.0.2.2:4000 - hello")
	if cut := f.sweepNow(); cut.Destroyed != 1 {
		t.Errorf("destroyed %d, want the connected socket: %+v", cut.Destroyed, cut)
	}
}
