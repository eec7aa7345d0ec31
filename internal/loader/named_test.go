// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"agentguard.dev/agentguard/bpf"
	"agentguard.dev/agentguard/internal/maps"
	"agentguard.dev/agentguard/internal/netns"
	"agentguard.dev/agentguard/internal/policy"
)

// realHello is what Go's client says first, with a post-quantum key share if
// large.
func realHello(t *testing.T, name string, large bool) []byte {
	t.Helper()
	near, far := net.Pipe()
	defer near.Close()
	config := &tls.Config{ServerName: name, InsecureSkipVerify: name == ""}
	if !large {
		config.CurvePreferences = []tls.CurveID{tls.X25519}
	}
	go func() {
		defer far.Close()
		_ = tls.Client(far, config).Handshake()
	}()
	record := make([]byte, 5)
	if _, err := io.ReadFull(near, record); err != nil {
		t.Fatal(err)
	}
	body := make([]byte, binary.BigEndian.Uint16(record[3:]))
	if _, err := io.ReadFull(near, body); err != nil {
		t.Fatal(err)
	}
	return append(record, body...)
}

// madeHello has the extensions and nothing else of interest.
func madeHello(extensions ...[]byte) []byte {
	block := bytes.Join(extensions, nil)
	body := append([]byte{3, 3}, make([]byte, 32)...) // version, random
	body = append(body, 0, 0, 2, 0x13, 0x01, 1, 0)    // session, cipher suites, compression
	body = append(binary.BigEndian.AppendUint16(body, uint16(len(block))), block...)
	message := append([]byte{1, 0, byte(len(body) >> 8), byte(len(body))}, body...)
	return append([]byte{22, 3, 1, byte(len(message) >> 8), byte(len(message))}, message...)
}

func extension(kind uint16, content ...byte) []byte {
	e := binary.BigEndian.AppendUint16(nil, kind)
	return append(binary.BigEndian.AppendUint16(e, uint16(len(content))), content...)
}

func serverName(name string) []byte {
	entry := append([]byte{0, byte(len(name) >> 8), byte(len(name))}, name...)
	return extension(0, append([]byte{byte(len(entry) >> 8), byte(len(entry))}, entry...)...)
}

// claim lets the owner's named destination use the name on the ports.
func (f *fixture) claim(owner uint32, name string, number uint32, low, high uint16) {
	f.t.Helper()
	key := bpf.GuardName{Owner: owner}
	text := []byte(strings.TrimPrefix(name, "*"))
	for i, c := range text {
		key.Text[len(text)-1-i] = int8(c)
	}
	length := len(text)
	if text[0] != '.' {
		length++ // the zero that says that this is all
	}
	key.Bits = uint32(32 + 8*length)
	var claims bpf.GuardClaims
	claims.Of[0] = bpf.GuardClaim{Number: number, Low: low, High: high}
	if err := f.objs.Names.Put(key, claims); err != nil {
		f.t.Fatal(err)
	}
}

const tlsPermit = bpf.GuardPermitFlagPERMIT_TLS

// never is an expiry that does not come.
func never() uint64 { return Now() + uint64(time.Hour) }

// named is a task that may reach api.good.test, at the address of a listener
// beyond a veth.
type named struct {
	*task
	addr   string
	accept func() net.Conn
	far    *netns.Handle
}

func newNamed(t *testing.T, at string, change func(*maps.Task), allow ...string) *named {
	t.Helper()
	f := newFixture(t)
	f.watch()
	far := newVeth(t, f.ns)
	network := "tcp4"
	if at[0] == '[' {
		network = "tcp6"
	}
	n := &named{far: far}
	n.addr, n.accept = f.peer(far, network, at)
	// Neighbours find each other first: over a path that seems to take a
	// second, BBR sends no more than a segment at once.
	f.in(func() error {
		conn, err := net.Dial(network, n.addr)
		if err != nil {
			return err
		}
		return conn.Close()
	})
	n.accept()
	n.task = f.begin(func(r *maps.Task) {
		r.Names = true
		if change != nil {
			change(r)
		}
	}, allow...)
	n.learn(n.addr, tlsPermit, never())
	f.claim(n.record.Policy, "api.good.test", 1, 443, 443)
	return n
}

// connect opens a socket called s and returns its far end.
func (n *named) connect() net.Conn {
	n.f.t.Helper()
	family := unix.AF_INET
	if n.addr[0] == '[' {
		family = unix.AF_INET6
	}
	n.want("ok", "open s %d 1 0", family)
	n.want("ok", "connect s %s", n.addr)
	return n.accept()
}

func wantRead(t *testing.T, conn net.Conn, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	if n, err := io.ReadFull(conn, got); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the server read %d of %d octets, %v", n, len(want), err)
	}
}

func wantSilence(t *testing.T, conn net.Conn) {
	t.Helper()
	conn.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
	buf := make([]byte, 4000)
	if n, err := conn.Read(buf); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the server read %d octets %q, %v", n, buf[:n], err)
	}
}

func TestShownNameOpensTheFlow(t *testing.T) {
	for _, at := range []string{"192.0.2.2:443", "[2001:db8::2]:443"} {
		n := newNamed(t, at, nil)
		n.f.claim(n.record.Policy, "*.wild.test", 1, 443, 443)
		for name, hello := range map[string][]byte{
			"real":         realHello(t, "api.good.test", false),
			"large":        realHello(t, "api.good.test", true),
			"made":         madeHello(serverName("api.good.test")),
			"case":         madeHello(serverName("API.good.Test")),
			"wildcard":     madeHello(serverName("b.wild.test")),
			"two labels":   madeHello(serverName("a.b.wild.test")),
			"with payload": append(madeHello(serverName("api.good.test")), "early data"...),
		} {
			t.Run(at+" "+name, func(t *testing.T) {
				conn := n.connect()
				n.want("ok", "hex s - %x", hello)
				wantRead(t, conn, hello)
				n.want("ok", "send s - - anything")
				wantRead(t, conn, []byte("anything"))
			})
		}
		for name, pieces := range map[string]int{"two": 2, "three": 3, "single octets": 1 << 16} {
			t.Run(at+" in "+name, func(t *testing.T) {
				hello := realHello(t, "api.good.test", false)
				conn := n.connect()
				n.want("ok", "drip s %d %x", pieces, hello)
				wantRead(t, conn, hello)
				n.want("ok", "send s - - anything")
				wantRead(t, conn, []byte("anything"))
			})
		}
		if cut := n.f.sweepNow(); cut.Destroyed != 0 {
			t.Errorf("%s: the sweep destroyed %+v", at, cut)
		}
	}
}

func TestOtherFirstPayloads(t *testing.T) {
	n := newNamed(t, "192.0.2.2:443", nil)
	f := n.f
	// A name of the policy, but not of this address or this port.
	f.claim(n.record.Policy, "far.good.test", 2, 443, 443)
	f.claim(n.record.Policy, "port.good.test", 1, 8443, 8443)
	f.claim(n.record.Policy, "*.wild.test", 1, 443, 443)
	f.claim(n.record.Policy+1, "stranger.test", 1, 443, 443)
	for _, c := range []struct {
		what   string
		send   []byte
		reason Reason
		name   string
	}{
		{"another name", realHello(t, "www.evil.test", true), ReasonSNI, "www.evil.test"},
		{"a name of another address", madeHello(serverName("far.good.test")), ReasonSNI, "far.good.test"},
		{"a name of another port", madeHello(serverName("port.good.test")), ReasonSNI, "port.good.test"},
		{"a name of another owner", madeHello(serverName("stranger.test")), ReasonSNI, "stranger.test"},
		{"a longer name", madeHello(serverName("xapi.good.test")), ReasonSNI, "xapi.good.test"},
		{"a name below", madeHello(serverName("x.api.good.test")), ReasonSNI, "x.api.good.test"},
		{"a name above", madeHello(serverName("good.test")), ReasonSNI, "good.test"},
		{"the wildcard's parent", madeHello(serverName("wild.test")), ReasonSNI, "wild.test"},
		{"beside the wildcard", madeHello(serverName("evilwild.test")), ReasonSNI, "evilwild.test"},
		{"no name", realHello(t, "", false), ReasonNoSNI, ""},
		{"an encrypted name", madeHello(serverName("api.good.test"), extension(0xfe0d, 0, 0, 1, 0, 1, 9, 0, 0, 0, 0)), ReasonECH, ""},
		{"HTTP", []byte("GET / HTTP/1.1\r\nHost: api.good.test\r\n\r\n"), ReasonNotTLS, ""},
		{"noise before the hello", append([]byte("220 ready\r\n"), realHello(t, "api.good.test", false)...), ReasonNotTLS, ""},
		{"two names", madeHello(serverName("api.good.test"), serverName("www.evil.test")), ReasonHello, ""},
	} {
		t.Run(c.what, func(t *testing.T) {
			f.mu.Lock()
			f.events = nil
			f.mu.Unlock()
			conn := n.connect()
			n.want("ok", "hex s - %x", c.send)
			denied := f.event(c.what, func(e Event) bool { return e.Verdict == Deny })
			if denied.Reason != c.reason || denied.Name != c.name || denied.Hook != HookEgress || denied.Cookie == 0 ||
				denied.Port != 443 || denied.Addr != netip.MustParseAddr("192.0.2.2") {
				t.Errorf("%+v, want %s of %q", denied, c.reason, c.name)
			}
			n.want("ok", "hex s - %x", realHello(t, "api.good.test", false))
			wantSilence(t, conn)
			if cut := f.sweepNow(); cut.Destroyed != 1 {
				t.Errorf("the sweep destroyed %d sockets: %+v", cut.Destroyed, cut)
			}
			n.want("software caused connection abort", "fetch s")
			wantReset(t, conn, "")
		})
	}
}

// What can be written to after the check is no first payload.
func TestSharedFirstPayload(t *testing.T) {
	n := newNamed(t, "192.0.2.2:443", nil)
	hello := realHello(t, "api.good.test", true)
	for _, how := range []string{"sendfile", "zerocopy"} {
		t.Run(how, func(t *testing.T) {
			n.f.mu.Lock()
			n.f.events = nil
			n.f.mu.Unlock()
			conn := n.connect()
			n.want("ok", "%s s %x", how, hello)
			n.f.event(how, func(e Event) bool { return e.Reason == ReasonShared })
			wantSilence(t, conn)

			conn = n.connect()
			n.want("ok", "hex s - %x", hello)
			wantRead(t, conn, hello)
			n.want("ok", "%s s %x", how, hello) // any payload but the first
			wantRead(t, conn, hello)
		})
	}
}

func TestFastOpenPayload(t *testing.T) {
	n := newNamed(t, "192.0.2.2:443", nil)
	// 1, 2: both sides; 4, 0x200: without a cookie.
	enable := func() error { return os.WriteFile("/proc/sys/net/ipv4/tcp_fastopen", []byte("519"), 0) }
	if err := errors.Join(n.f.ns.Do(enable), n.far.Do(enable)); err != nil {
		t.Fatal(err)
	}
	n.addr, n.accept = n.f.peer(n.far, "tcp4", "192.0.2.2:444")
	n.learn(n.addr, tlsPermit, never())
	n.f.claim(n.record.Policy, "api.good.test", 1, 443, 444)
	hello := realHello(t, "api.good.test", false)
	for name, pieces := range map[string]int{"whole": 1, "in two": 2} {
		t.Run(name, func(t *testing.T) {
			first := len(hello) / pieces
			n.want("ok", "open s 2 1 0")
			n.want("ok", "fastopen s %s %x", n.addr, hello[:first])
			if first < len(hello) {
				n.want("ok", "hex s - %x", hello[first:])
			}
			conn := n.accept()
			wantRead(t, conn, hello)
			n.want("ok", "send s - - anything")
			wantRead(t, conn, []byte("anything"))
		})
	}
	n.want("ok", "open s 2 1 0")
	n.want("ok", "fastopen s %s %x", n.addr, "not TLS at all")
	n.f.event("the first payload", func(e Event) bool { return e.Reason == ReasonNotTLS })
	wantSilence(t, n.accept())
}

// An urgent octet is not in the stream that the server reads.
func TestUrgentOctetInAHello(t *testing.T) {
	n := newNamed(t, "192.0.2.2:443", nil)
	hello := realHello(t, "api.good.test", false)
	conn := n.connect()
	n.want("ok", "urgent s %d %x", bytes.Index(hello, []byte("api."))+3, hello)
	n.f.event("the first payload", func(e Event) bool { return e.Reason == ReasonHello })
	wantSilence(t, conn)
}

// A name that covers the address shows nothing of what has been sent before.
func TestUncheckedFlowIsNotTakenOver(t *testing.T) {
	for name, next := range map[string][]byte{
		"no hello": []byte("anything"),
		"a hello":  realHello(t, "api.good.test", false),
	} {
		t.Run(name, func(t *testing.T) {
			n := newNamed(t, "192.0.2.2:443", func(r *maps.Task) { r.Grants = true })
			deadline := Now() + uint64(time.Second)
			n.grant(deadline, n.addr)
			conn := n.connect()
			n.want("ok", "send s - - allowed")
			wantRead(t, conn, []byte("allowed"))
			for Now() < deadline {
				time.Sleep(time.Millisecond)
			}
			n.want("ok", "hex s - %x", next)
			n.f.event("the next payload", func(e Event) bool { return e.Reason == ReasonNotTLS })
			wantSilence(t, conn)
		})
	}
}

// A socket that is taken from its peer and connects again has shown nothing.
func TestReconnectShowsAgain(t *testing.T) {
	n := newNamed(t, "192.0.2.2:443", nil)
	hello := realHello(t, "api.good.test", false)
	conn := n.connect()
	n.want("ok", "hex s - %x", hello)
	wantRead(t, conn, hello)
	n.want("ok", "send s - - anything")
	wantRead(t, conn, []byte("anything"))
	n.want("ok", "disconnect s")
	n.want("ok", "connect s %s", n.addr)
	conn = n.accept()
	n.want("ok", "send s - - anything")
	n.f.event("the second flow", func(e Event) bool { return e.Reason == ReasonNotTLS })
	wantSilence(t, conn)
	n.want("ok", "disconnect s")
	n.want("ok", "connect s %s", n.addr)
	conn = n.accept()
	n.want("ok", "hex s - %x", hello)
	wantRead(t, conn, hello)
}

// An incomplete hello waits, and not for ever.
func TestIncompleteHello(t *testing.T) {
	n := newNamed(t, "192.0.2.2:443", nil)
	hello := realHello(t, "api.good.test", false)
	conn := n.connect()
	n.want("ok", "hex s - %x", hello[:20])
	wantSilence(t, conn)
	if err := n.greeting("s", func(g *bpf.GuardGreeting) {
		if g.Held == 0 || g.Refused != 0 || g.Shown != 0 {
			t.Errorf("held: %+v", g)
		}
		g.Held -= uint64(11 * time.Second)
	}); err != nil {
		t.Fatal(err)
	}
	n.want("ok", "hex s - %x", hello[20:21])
	n.f.event("time-out", func(e Event) bool { return e.Reason == ReasonHello && e.Verdict == Deny })
	n.want("ok", "hex s - %x", hello[21:])
	wantSilence(t, conn)
	if cut := n.f.sweepNow(); cut.Destroyed != 1 {
		t.Errorf("the sweep destroyed %d sockets: %+v", cut.Destroyed, cut)
	}
}

// greeting changes what the kernel remembers of one of the agent's sockets.
func (n *named) greeting(name string, change func(*bpf.GuardGreeting)) error {
	var number int32
	if _, err := fmt.Sscanf(n.do("descriptor %s", name), "ok %d", &number); err != nil {
		return err
	}
	process, err := unix.PidfdOpen(n.cmd.Process.Pid, 0)
	if err != nil {
		return err
	}
	defer unix.Close(process)
	fd, err := unix.PidfdGetfd(process, int(number), 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var g bpf.GuardGreeting
	if err := n.f.objs.Greetings.Lookup(int32(fd), &g); err != nil {
		return err
	}
	change(&g)
	return n.f.objs.Greetings.Put(int32(fd), g)
}

func TestAddressesOfNamesGetOld(t *testing.T) {
	n := newNamed(t, "192.0.2.2:443", nil)
	f := n.f
	hello := realHello(t, "api.good.test", false)
	conn := n.connect()
	n.want("ok", "hex s - %x", hello)
	wantRead(t, conn, hello)
	n.want("ok", "connect-new quiet %s", n.addr)
	quiet := n.accept()
	key := n.learn(n.addr, tlsPermit, Now())
	n.want(eperm, "dial late tcp %s", n.addr)
	stale := f.event("stale", func(e Event) bool { return e.Reason == ReasonStale })
	if stale.Hook != HookConnect || stale.Verdict != Deny {
		t.Errorf("%+v", stale)
	}
	n.want("ok", "send s - - anything")
	wantRead(t, conn, []byte("anything"))
	if f.permit(key).Used == 0 {
		t.Error("a flow in progress does not keep its address")
	}
	if cut := f.sweepNow(); cut.Destroyed != 0 {
		t.Errorf("the sweep destroyed %+v", cut)
	}
	// The name goes, the address stays, as it does if another name has it.
	f.objs.Names.Delete(nameKey(n.record.Policy, "api.good.test"))
	if cut := f.sweepNow(); cut.Destroyed != 1 {
		t.Errorf("without its name the sweep destroyed %d: %+v", cut.Destroyed, cut)
	}
	wantReset(t, conn, "")
	if err := f.objs.Hosts.Delete(key); err != nil {
		t.Fatal(err)
	}
	if cut := f.sweepNow(); cut.Destroyed != 1 {
		t.Errorf("without its address the sweep destroyed %d: %+v", cut.Destroyed, cut)
	}
	wantReset(t, quiet, "")
}

// Datagrams that are under way go on; a new destination is refused.
func TestStaleDatagrams(t *testing.T) {
	f := newFixture(t)
	f.watch()
	far := newVeth(t, f.ns)
	sink, other := f.receiver(far, "192.0.2.2:123", ""), f.receiver(far, "192.0.2.2:124", "")
	a := f.begin(withNames)
	key := a.learn("192.0.2.2:123", 0, never())
	put := func(port uint16, expires uint64) {
		k := key
		k.Flow.Proto, k.Flow.Port = unix.IPPROTO_UDP, port
		p := bpf.GuardPermit{Rule: maps.RuleFirst, Flags: uint32(bpf.GuardPermitFlagPERMIT_LEARNED), Expires: expires}
		if err := f.objs.Hosts.Put(k, p); err != nil {
			t.Fatal(err)
		}
	}
	put(123, never())
	a.want("ok", "open u 2 2 0")
	a.want("ok", "open c 2 2 0")
	a.want("ok", "send u 192.0.2.2:123 - one")
	a.want("ok", "connect c 192.0.2.2:123")
	put(123, Now())
	put(124, Now())
	a.want("ok", "send u 192.0.2.2:123 - two")
	a.want("ok", "send c - - three")
	a.want(eperm, "send u 192.0.2.2:124 - four")
	a.want("ok", "open n 2 2 0")
	a.want(eperm, "send n 192.0.2.2:123 - five")
	a.want(eperm, "connect n 192.0.2.2:123")
	buf := make([]byte, 100)
	for _, want := range []string{"one", "two", "three"} {
		sink.SetReadDeadline(time.Now().Add(5 * time.Second))
		if n, err := sink.Read(buf); err != nil || string(buf[:n]) != want {
			t.Errorf("%q, %v, want %s", buf[:n], err, want)
		}
	}
	wantNothing(t, other, "stale")
	wantNothing(t, sink, "stale")
}

func nameKey(owner uint32, name string) bpf.GuardName {
	key := bpf.GuardName{Owner: owner, Bits: uint32(32 + 8*(len(name)+1))}
	for i, c := range []byte(name) {
		key.Text[len(name)-1-i] = int8(c)
	}
	return key
}

func TestGrantedAndWideNames(t *testing.T) {
	n := newNamed(t, "192.0.2.2:443", func(r *maps.Task) { r.Grants, r.WideNames = true, true })
	f := n.f
	wide, accept := f.peer(n.far, "tcp4", "192.0.2.2:9443")
	// A grant, by its own number.
	host := n.learn("192.0.2.2:9443", tlsPermit, never())
	if err := f.objs.Hosts.Delete(host); err != nil {
		t.Fatal(err)
	}
	n.want(eperm, "dial w tcp %s", wide)
	host.Flow.Port = 0
	host.Owner = n.record.Number
	p := bpf.GuardPermit{
		Rule: maps.RuleFirst + 1, Flags: uint32(bpf.GuardPermitFlagPERMIT_LEARNED | tlsPermit),
		Expires: never(), Low: 9000, High: 9999,
	}
	known := bpf.GuardLearnedAddr{Owner: n.record.Number, Number: 7, Addr: host.Flow.Addr}
	if err := errors.Join(f.objs.Hosts.Put(host, p), f.objs.Learned.Put(known, p.Expires)); err != nil {
		t.Fatal(err)
	}
	f.claim(n.record.Number, "granted.test", 7, 9000, 9999)
	n.want(eperm, "dial w tcp 192.0.2.2:8999")
	n.want(eperm, "dial w tcp 192.0.2.2:10000")
	hello := madeHello(serverName("granted.test"))
	n.want("ok", "open s 2 1 0")
	n.want("ok", "connect s %s", wide)
	conn := accept()
	n.want("ok", "hex s - %x", hello)
	wantRead(t, conn, hello)
	n.want("ok", "connect-new t %s", wide)
	accept()
	n.want("ok", "hex t - %x", madeHello(serverName("api.good.test")))
	f.event("the policy's name on the grant's port", func(e Event) bool { return e.Reason == ReasonSNI && e.Name == "api.good.test" })
}

// An address rule beside the name's asks for nothing.
func TestAddressRuleBesideAName(t *testing.T) {
	n := newNamed(t, "192.0.2.2:443", nil, "192.0.2.0/24:443")
	conn := n.connect()
	n.want("ok", "send s - - anything")
	wantRead(t, conn, []byte("anything"))
	if cut := n.f.sweepNow(); cut.Destroyed != 0 {
		t.Errorf("the sweep destroyed %+v", cut)
	}
	// It goes, and with it what never showed a name.
	n.allow()
	n.learn(n.addr, tlsPermit, never())
	n.put()
	cut, err := n.f.Sweep(context.Background(), []*netns.Handle{n.f.ns})
	if err != nil || cut.Destroyed != 1 {
		t.Errorf("the sweep destroyed %d, %v: %+v", cut.Destroyed, err, cut)
	}
}

func TestNamesInAuditMode(t *testing.T) {
	n := newNamed(t, "192.0.2.2:443", func(r *maps.Task) { r.Mode = policy.Audit })
	conn := n.connect()
	hello := realHello(t, "www.evil.test", true)
	n.want("ok", "hex s - %x", hello)
	wantRead(t, conn, hello)
	n.want("ok", "send s - - anything")
	wantRead(t, conn, []byte("anything"))
	n.f.event("would-deny", func(e Event) bool {
		return e.Verdict == WouldDeny && e.Reason == ReasonSNI && e.Name == "www.evil.test"
	})
	if cut := n.f.sweepNow(); cut.Destroyed != 0 {
		t.Errorf("the sweep destroyed %+v", cut)
	}
}

func TestQUICToAName(t *testing.T) {
	n := newNamed(t, "192.0.2.2:443", nil)
	n.want("ok", "open u 2 2 0")
	n.want(eperm, "connect u %s", n.addr)
	n.want(eperm, "send u %s - initial", n.addr)
	for _, hook := range []Hook{HookConnect, HookSendmsg} {
		n.f.event("QUIC", func(e Event) bool { return e.Reason == ReasonQUIC && e.Hook == hook })
	}
	n.want(eperm, "send u 192.0.2.3:443 - initial")
	n.f.event("UDP", func(e Event) bool { return e.Reason == ReasonNoRule && e.Port == 443 })
}

func TestPlainHTTPIsRelayed(t *testing.T) {
	n := newNamed(t, "192.0.2.2:80", nil)
	f := n.f
	key := n.learn(n.addr, bpf.GuardPermitFlagPERMIT_HTTP, never())
	n.want("ok", "open s 2 1 0")
	n.want("connection refused", "connect s %s", n.addr)
	f.event("no relay", func(e Event) bool { return e.Reason == ReasonHTTP && e.Hook == HookConnect })
	f.station()
	n.want("ok", "open s 2 1 0")
	n.want("ok", "connect s %s", n.addr)
	n.want("ok "+n.addr, "peer s")
	n.want("ok", "send s - - request")
	n.want(n.asks(n.addr), "fetch s")
	if allowed := f.event("allowed", func(e Event) bool { return e.Verdict == Allow && e.Port == 80 }); allowed.Rule != maps.RuleFirst {
		t.Errorf("%+v", allowed)
	}
	if cut := f.sweepNow(); cut.Destroyed != 0 {
		t.Errorf("the sweep destroyed %+v", cut)
	}
	if err := f.objs.Hosts.Delete(key); err != nil {
		t.Fatal(err)
	}
	n.want("ok", "send s - - another")
	n.want("resource temporarily unavailable", "fetch s")
	if cut := f.sweepNow(); cut.Destroyed != 1 {
		t.Errorf("the sweep destroyed %d: %+v", cut.Destroyed, cut)
	}
	n.want("software caused connection abort", "fetch s")
}

// A connection from before the name's rule is beside the relay.
func TestPlainHTTPBesideTheRelay(t *testing.T) {
	n := newNamed(t, "192.0.2.2:80", nil)
	f := n.f
	n.learn(n.addr, 0, never())
	conn := n.connect()
	n.learn(n.addr, bpf.GuardPermitFlagPERMIT_HTTP, never())
	n.want("ok", "send s - - request")
	denied := f.event("beside the relay", func(e Event) bool { return e.Reason == ReasonHTTP })
	if denied.Hook != HookEgress {
		t.Errorf("%+v", denied)
	}
	wantSilence(t, conn)
}
