// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

	"agentguard.dev/agentguard/internal/maps"
	"agentguard.dev/agentguard/internal/policy"
)

// nft loads rules into the fixture's namespace.
func (f *fixture) nft(rules string) {
	f.t.Helper()
	f.in(func() error {
		cmd := exec.Command("nft", "-f", "-")
		cmd.Stdin = strings.NewReader(rules)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("nft: %w: %s", err, out)
		}
		return nil
	})
}

// A service address that the host itself translates keeps working for what was
// allowed, and only where the operator trusts the namespace.
func TestHostNAT(t *testing.T) {
	f := newFixture(t)
	far := newVeth(t, f.ns)
	f.peer(far, "tcp4", "192.0.2.2:8443")
	var backend net.PacketConn
	if err := far.Do(func() (err error) { backend, err = net.ListenPacket("udp4", "192.0.2.2:5353"); return err }); err != nil {
		t.Fatal(err)
	}
	defer backend.Close()
	go func() {
		buf := make([]byte, 100)
		for {
			n, from, err := backend.ReadFrom(buf)
			if err != nil {
				return
			}
			backend.WriteTo(buf[:n], from)
		}
	}()
	f.nft(`table ip nat { chain output { type nat hook output priority -100;
		ip daddr 198.51.100.1 tcp dport 443 dnat to 192.0.2.2:8443
		ip daddr 198.51.100.1 udp dport 53 dnat to 192.0.2.2:5353
		ip daddr 198.51.100.2 udp dport 53 dnat to 192.0.2.2:5353
	}
	}`)
	f.in(func() error { return route("198.51.100.0/24", "192.0.2.2") })

	a := f.begin(nil, "198.51.100.1:443", "udp://198.51.100.1:53")
	// Not trusted: the task could have written the translation itself.
	a.want("ok", "packet u udp4 0.0.0.0:0")
	a.want(eperm, "sendto u 198.51.100.1:53 one")

	if err := f.Maps().Namespaces.Trust(f.ns.Cookie()); err != nil {
		t.Fatal(err)
	}
	a.want("ok", "dial t tcp 198.51.100.1:443")
	a.want("ok", "sendto u 198.51.100.1:53 two")
	a.want("ok two", "receive u")
	a.want(eperm, "sendto u 198.51.100.2:53 three")
	a.want("ok", "dial c udp4 198.51.100.1:53")
	a.want("ok", "write c four")
	a.want("ok four", "read c")
	a.want(eperm, "dial d tcp 192.0.2.2:8443") // the backend by its own address

	a.allow()
	a.put()
	a.want(eperm, "sendto u 198.51.100.1:53 five")
	a.want(eperm, "write c six")
	if cut := f.sweepNow(); cut.Destroyed != 2 {
		t.Errorf("destroyed %d, want the translated TCP and UDP flows: %+v", cut.Destroyed, cut)
	}
}

// A socket-level load balancer at a higher cgroup rewrites what connect asked
// for, after the guard has judged it.
func TestRewrittenAbove(t *testing.T) {
	f := newFixture(t)
	far := newVeth(t, f.ns)
	f.peer(far, "tcp4", "192.0.2.2:8443")
	outer := newCgroup(t, "")
	rewriter := rewriteConnect4(t, netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("192.0.2.2"))
	l, err := link.AttachCgroup(link.CgroupOptions{Path: outer.Path(), Attach: ebpf.AttachCGroupInet4Connect, Program: rewriter})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f.guard = newCgroup(t, outer.Path())
	if err := f.Guard(f.guard, f.guard.Level()+1); err != nil {
		t.Fatal(err)
	}
	if err := f.Maps().Namespaces.Trust(f.ns.Cookie()); err != nil {
		t.Fatal(err)
	}
	a := f.begin(nil, "198.51.100.1:8443")
	a.want("ok", "dial t tcp4 198.51.100.1:8443")
	a.want("ok", "write t hello")
	if kept := f.sweepNow(); kept.Destroyed != 0 {
		t.Errorf("a flow that is allowed was cut: %+v", kept)
	}
	a.want(eperm, "dial d tcp4 192.0.2.2:8443")
	a.allow()
	a.put()
	if cut := f.sweepNow(); cut.Destroyed != 1 {
		t.Errorf("destroyed %d, want 1: %+v", cut.Destroyed, cut)
	}
}

// rewriteConnect4 is connect4 with every connect to from sent to instead.
func rewriteConnect4(t *testing.T, from, to netip.Addr) *ebpf.Program {
	t.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type:       ebpf.CGroupSockAddr,
		AttachType: ebpf.AttachCGroupInet4Connect,
		License:    "GPL",
		Instructions: asm.Instructions{
			asm.LoadMem(asm.R2, asm.R1, 4, asm.Word), // user_ip4
			asm.LoadImm(asm.R3, int64(nativeWord(from)), asm.DWord),
			asm.JNE.Reg(asm.R2, asm.R3, "out"),
			asm.LoadImm(asm.R3, int64(nativeWord(to)), asm.DWord),
			asm.StoreMem(asm.R1, 4, asm.R3, asm.Word),
			asm.Mov.Imm(asm.R0, 1).WithSymbol("out"),
			asm.Return(),
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// A peer outside the machine that connects in gets nothing back, unless an
// ingress rule names it.
func TestIngress(t *testing.T) {
	f := newFixture(t)
	far := newVeth(t, f.ns)
	a := f.begin(nil)
	a.want("ok", "serve s tcp4 192.0.2.1:8080")
	dial := func(patience time.Duration) error {
		return far.Do(func() error {
			conn, err := net.DialTimeout("tcp4", "192.0.2.1:8080", patience)
			if err != nil {
				return err
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(5 * time.Second))
			if _, err := conn.Write([]byte("hello")); err != nil {
				return err
			}
			_, err = conn.Read(make([]byte, 10))
			return err
		})
	}
	if err := dial(500 * time.Millisecond); err == nil || !strings.Contains(err.Error(), "timeout") {
		t.Errorf("a peer without an ingress rule: %v, want silence", err)
	}
	peer, err := policy.ParseDestination("192.0.2.0/24:8080")
	if err != nil {
		t.Fatal(err)
	}
	compiled, err := policy.Compile([]policy.Input{{
		Rule: policy.Rule{Direction: policy.Ingress, To: []policy.Destination{peer}}, ID: maps.RuleFirst,
	}})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Maps().Rules.Replace(a.record.Policy, compiled); err != nil {
		t.Fatal(err)
	}
	a.record.PolicyPrefixes = true
	a.put()
	if err := dial(5 * time.Second); err != nil {
		t.Errorf("a peer with an ingress rule: %v", err)
	}
	a.want(eperm, "dial x tcp4 192.0.2.2:8080") // the rule is for the other direction
}

// With loopback rules, the host's own addresses and packets that are pushed
// out of another device.
func TestOwnAddresses(t *testing.T) {
	f := newFixture(t)
	newVeth(t, f.ns)
	f.local("192.0.2.1", "2001:db8::1")
	host := f.server("tcp4", "192.0.2.1:0")
	a, b := f.begin(nil), f.begin(func(r *maps.Task) { r.Loopback = policy.LoopbackHost })
	for _, addr := range []string{"192.0.2.1:0", "[2001:db8::1]:0"} {
		own := strings.TrimPrefix(a.do("serve s tcp %s", addr), "ok ")
		a.want("ok", "dial x tcp %s", own)
		a.want("ok", "write x hello")
		a.want("ok hello", "read x")
	}
	a.want(eperm, "dial x tcp4 %s", host)
	b.want("ok", "dial x tcp4 %s", host)
	none := f.begin(func(r *maps.Task) { r.Loopback = policy.LoopbackNone })
	own := strings.TrimPrefix(none.do("serve s tcp4 127.0.0.1:0"), "ok ")
	none.want(eperm, "dial x tcp4 %s", own)
}
