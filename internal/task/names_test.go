// SPDX-License-Identifier: Apache-2.0

package task

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"agentguard.dev/agentguard/client"
	"agentguard.dev/agentguard/internal/loader"
	"agentguard.dev/agentguard/internal/names"
	"agentguard.dev/agentguard/internal/netns"
)

// answerDNS serves a zone of IPv4 addresses over UDP, with a TTL of a second.
func answerDNS(addr string, zone map[string]string) error {
	socket, err := net.ListenPacket("udp", addr)
	if err != nil {
		return err
	}
	go (&dns.Server{PacketConn: socket, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		r := new(dns.Msg)
		r.SetReply(q)
		header := dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 1}
		switch addr, ok := zone[strings.ToLower(header.Name)]; {
		case !ok:
			r.Rcode = dns.RcodeNameError
		case q.Question[0].Qtype == dns.TypeA:
			r.Answer = append(r.Answer, &dns.A{Hdr: header, A: net.ParseIP(addr)})
		}
		w.WriteMsg(r)
	})}).ActivateAndServe()
	return nil
}

// startWith starts a process in a namespace whose resolv.conf, in a file system
// view of the process's own, names the resolver.
func (f *fixture) startWith(ns *netns.Handle, path, resolver string) *process {
	f.t.Helper()
	conf := filepath.Join(f.t.TempDir(), "resolv.conf")
	must(f.t, os.WriteFile(conf, []byte("nameserver "+resolver+"\noptions timeout:1 attempts:1\n"), 0o644))
	var p *process
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS)
		if err == nil {
			err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
		}
		if err == nil {
			err = unix.Mount(conf, "/etc/resolv.conf", "", unix.MS_BIND, "")
		}
		if err == nil {
			err = unix.Setns(ns.FD(), unix.CLONE_NEWNET)
		}
		if err == nil {
			p, err = f.spawn(path)
		}
		done <- err
	}()
	must(f.t, <-done)
	return p
}

// network makes another pair of joined namespaces, with a DNS server at
// 192.0.2.2 in the far one.
func (f *fixture) network(zone map[string]string) (near *netns.Handle) {
	f.t.Helper()
	other := &fixture{t: f.t, near: newNamespace(f.t), far: newNamespace(f.t)}
	other.join()
	other.in(other.far, func() { must(f.t, answerDNS("192.0.2.2:53", zone)) })
	return other.near
}

// withResolver names a resolver, which serveNames makes answer.
func withResolver(c *Config) {
	c.Resolvers = []netip.AddrPort{netip.MustParseAddrPort("192.0.2.2:53")}
}

// serveNames answers DNS at 192.0.2.2 in the fixture's own far namespace.
func (f *fixture) serveNames(zone map[string]string) {
	f.t.Helper()
	f.in(f.far, func() { must(f.t, answerDNS("192.0.2.2:53", zone)) })
}

func (f *fixture) serveTLS(addr string) {
	f.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(f.t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	must(f.t, err)
	config := &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	var l net.Listener
	f.in(f.far, func() {
		l, err = tls.Listen("tcp", addr, config)
		must(f.t, err)
	})
	f.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				c.(*tls.Conn).Handshake()
				c.Read(make([]byte, 1))
			}()
		}
	}()
}

func TestNamesInTwoNamespaces(t *testing.T) {
	f := newFixture(t)
	e := f.open()
	f.apply(document("coder", egress("api.good.test:443")))
	for i, addr := range []string{"192.0.2.10", "192.0.2.11"} {
		near := f.network(map[string]string{"api.good.test.": addr})
		dir := newCgroup(t)
		p := f.startWith(near, dir.Path(), "192.0.2.2")
		p.want("ok ["+addr, "lookup api.good.test") // without a guard
		f.begin(client.BeginRequest{ID: fmt.Sprint("t", i), Agent: "coder", Cgroup: dir.Path()})
		p.want("ok ["+addr, "lookup api.good.test")
		if got := p.do("lookup www.evil.test"); !strings.HasSuffix(got, "no such host") {
			t.Errorf("a name that no rule has: %s", got)
		}
	}
	if n := e.stations.count(); n != 3 {
		t.Errorf("%d stations, want the engine's own and two", n)
	}
	f.end("t0")
	f.end("t1")
	stations, err := e.maps.Stations.All()
	if err != nil || len(stations) != 1 {
		t.Errorf("stations %v, %v after the end of all tasks; want the engine's own", stations, err)
	}
}

// A task that has not been seen in a namespace before says so by entering.
func TestNamesWhereAProcessEnters(t *testing.T) {
	f := newFixture(t, withResolver)
	e := f.open()
	f.serveNames(map[string]string{"api.good.test.": "192.0.2.2"})
	task := f.begin(client.BeginRequest{ID: "t", Allow: []string{"api.good.test:443"}})
	caller := f.startProcess(newCgroup(t).Path())
	ctx := WithCaller(t.Context(), Caller{PID: uint32(caller.cmd.Process.Pid)})
	if _, err := e.Enter(ctx, "t"); err != nil {
		t.Fatal(err)
	}
	f.startProcess(task.Cgroup).want("ok [192.0.2.2]", "lookup api.good.test")
	f.end("t")
	_, err := e.Enter(ctx, "t")
	wantCode(t, err, "conflict", "ended")
}

// One that was not announced is noticed when its first question is refused.
func TestNamesWhereNobodyWasExpected(t *testing.T) {
	f := newFixture(t, withResolver)
	f.open()
	f.serveNames(map[string]string{"api.good.test.": "192.0.2.2"})
	task := f.begin(client.BeginRequest{ID: "t", Allow: []string{"api.good.test:443"}})
	p := f.startProcess(task.Cgroup)
	eventually(t, "names can be looked up", func() bool { return p.do("lookup api.good.test") == "ok [192.0.2.2]" })
	f.end("t")
}

// What answers on loopback is believed only if it is not a task's.
func TestResolverOfTheTasksOwn(t *testing.T) {
	f := newFixture(t)
	e := f.open()
	dir := newCgroup(t)
	p := f.startWith(f.near, dir.Path(), "127.0.0.1")
	p.want("ok", "answer 198.51.100.66")
	p.want("ok [198.51.100.66]", "lookup api.good.test") // without a guard
	f.begin(client.BeginRequest{ID: "t", Allow: []string{"api.good.test:443"}, Cgroup: dir.Path()})
	if got := p.do("lookup api.good.test"); strings.HasPrefix(got, "ok") {
		t.Errorf("the task's own resolver is believed: %s", got)
	}
	if n := e.maps.Rules.CountLearned(); n != 0 {
		t.Errorf("%d addresses were learned from it", n)
	}
	f.end("t")

	near := newNamespace(t)
	f.in(near, func() {
		lo, err := netlink.LinkByName("lo")
		must(t, err)
		must(t, netlink.LinkSetUp(lo))
		must(t, answerDNS("127.0.0.1:53", map[string]string{"api.good.test.": "198.51.100.7"}))
	})
	other := newCgroup(t)
	q := f.startWith(near, other.Path(), "127.0.0.1")
	f.begin(client.BeginRequest{ID: "u", Allow: []string{"api.good.test:443"}, Cgroup: other.Path()})
	q.want("ok [198.51.100.7]", "lookup api.good.test")
	f.end("u")
}

// impersonate makes a network of the namespace in which every DNS server answers,
// with addr: packets that no socket sends.
func impersonate(addr string) error {
	tun := &netlink.Tuntap{
		LinkAttrs: netlink.LinkAttrs{Name: "tun0"}, Mode: netlink.TUNTAP_MODE_TUN, Flags: netlink.TUNTAP_NO_PI, Queues: 1, NonPersist: true,
	}
	if err := netlink.LinkAdd(tun); err != nil {
		return err
	}
	own, err := netlink.ParseAddr("192.0.2.1/24")
	if err != nil {
		return err
	}
	for _, name := range []string{"lo", "tun0"} {
		link, err := netlink.LinkByName(name)
		if err == nil && name == "tun0" {
			err = netlink.AddrAdd(link, own)
		}
		if err == nil {
			err = netlink.LinkSetUp(link)
		}
		if err != nil {
			return err
		}
	}
	go func() {
		for packet := make([]byte, 4096); ; {
			n, err := tun.Fds[0].Read(packet)
			if err != nil {
				return
			}
			if answer := forge(packet[:n], addr); answer != nil {
				tun.Fds[0].Write(answer)
			}
		}
	}()
	return nil
}

// forge answers a DNS question in an IPv4 packet.
func forge(packet []byte, addr string) []byte {
	const ip, udp = 20, 8
	q := new(dns.Msg)
	if len(packet) < ip+udp || packet[0] != 0x45 || packet[9] != unix.IPPROTO_UDP || q.Unpack(packet[ip+udp:]) != nil {
		return nil
	}
	r := new(dns.Msg).SetReply(q)
	if q.Question[0].Qtype == dns.TypeA {
		header := dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}
		r.Answer = append(r.Answer, &dns.A{Hdr: header, A: net.ParseIP(addr)})
	}
	payload, err := r.Pack()
	if err != nil {
		return nil
	}
	made := append(slices.Clone(packet[:ip+udp]), payload...)
	copy(made[12:], packet[16:20])
	copy(made[16:], packet[12:16])
	copy(made[20:], packet[22:24])
	copy(made[22:], packet[20:22])
	binary.BigEndian.PutUint16(made[2:], uint16(len(made)))
	binary.BigEndian.PutUint16(made[24:], uint16(udp+len(payload)))
	made[10], made[11], made[26], made[27] = 0, 0, 0, 0
	sum := uint32(0)
	for at := 0; at < ip; at += 2 {
		sum += uint32(binary.BigEndian.Uint16(made[at:]))
	}
	sum = sum>>16 + sum&0xffff
	binary.BigEndian.PutUint16(made[10:], ^uint16(sum>>16+sum))
	return made
}

// A task answers in a network of its own whatever is asked there: nothing is.
func TestUpstreamInANamespaceOfTheTasksOwn(t *testing.T) {
	for what, c := range map[string]struct {
		change func(*Config)
		allow  []string
	}{
		"configured":        {withResolver, []string{"api.good.test:443"}},
		"trusted by a rule": {func(*Config) {}, []string{"api.good.test:443", "udp://192.0.2.2:53"}},
		"both":              {withResolver, []string{"api.good.test:443", "192.0.2.2:53", "udp://192.0.2.2:53"}},
	} {
		t.Run(what, func(t *testing.T) {
			f := newFixture(t, c.change)
			f.home = f.far
			e := f.open()
			f.serveNames(map[string]string{"api.good.test.": "198.51.100.7"})
			dir := newCgroup(t)
			p := f.startOutcast(dir.Path())
			p.want("ok", "impersonate 198.51.100.66")
			p.want("ok [198.51.100.66]", "lookup api.good.test 192.0.2.2:53") // without a guard
			f.begin(client.BeginRequest{ID: "t", Allow: c.allow, Cgroup: dir.Path()})
			got := ""
			eventually(t, "there is an answer", func() bool {
				got = p.do("lookup api.good.test 192.0.2.2:53")
				return strings.HasPrefix(got, "ok")
			})
			if got != "ok [198.51.100.7]" {
				t.Errorf("answer %q, want that of the resolver", got)
			}
			for _, owner := range e.maps.Rules.Owners() {
				if names := e.maps.Rules.LearnedNames(owner, netip.MustParseAddr("198.51.100.66")); len(names) > 0 {
					t.Errorf("a forged address was learned for %s", names)
				}
			}
			f.end("t")
		})
	}
}

// stray leaves a thread in a network namespace of its own.
func stray() error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			var lo netlink.Link
			if lo, err = netlink.LinkByName("lo"); err == nil {
				err = netlink.LinkSetUp(lo)
			}
		}
		done <- err
		select {}
	}()
	return <-done
}

// However many namespaces a task makes, the engine holds so many open.
func TestNamespacesOfATaskAreBounded(t *testing.T) {
	f := newFixture(t, withResolver)
	e := f.open()
	f.serveNames(map[string]string{"api.good.test.": "198.51.100.7"})
	dir := newCgroup(t)
	p := f.startProcess(dir.Path())
	f.begin(client.BeginRequest{ID: "t", Allow: []string{"api.good.test:443"}, Cgroup: dir.Path()})
	p.want("ok", "unshare %d", maxNamespaces+10)
	for range 2 {
		e.discoverAll(e.tasks["t"])
		e.spaces.mu.Lock()
		held := len(e.spaces.inUse)
		e.spaces.mu.Unlock()
		if n := e.stations.count(); held != maxNamespaces || n != maxNamespaces+1 {
			t.Errorf("%d namespaces are held and %d stations open, want %d and the engine's own", held, n, maxNamespaces)
		}
	}
	if got := e.problems.list(); len(got) != 1 || !strings.Contains(got[0], "more than 64 network namespaces") {
		t.Errorf("problems %q, want that there are too many", got)
	}
	p.want("ok [198.51.100.7]", "lookup api.good.test 192.0.2.2:53")
	f.end("t")
	if got := e.problems.list(); len(got) > 0 || e.stations.count() != 1 {
		t.Errorf("after the end: %d stations, problems %q", e.stations.count(), got)
	}
}

// A rule for addresses lets a name point inside as far as it allows the same.
func TestInnerAddresses(t *testing.T) {
	f := newFixture(t, withResolver)
	e := f.open()
	f.serveNames(map[string]string{
		"web.good.test.": "10.1.2.3", "ssh.good.test.": "10.1.2.3", "time.good.test.": "10.1.2.3", "both.good.test.": "10.1.2.3", "far.good.test.": "10.9.9.9",
		"meta.good.test.": "169.254.169.254", "link.good.test.": "169.254.1.1",
	})
	dir := newCgroup(t)
	p := f.startProcess(dir.Path())
	f.begin(client.BeginRequest{ID: "t", Cgroup: dir.Path(), Allow: []string{
		"web.good.test:443,8443", "ssh.good.test:22", "udp://time.good.test:450", "both.good.test:443", "udp://both.good.test:123", "far.good.test:443",
		"meta.good.test:443", "meta.good.test:80", "link.good.test:443",
		"10.1.0.0/16:400-500", "0.0.0.0/0:80", "169.254.1.0/24:443",
	}})
	owner := e.tasks["t"].number
	for name, want := range map[string]int{"web": 1, "ssh": 0, "time": 0, "both": 1, "far": 0, "meta": 0, "link": 1} {
		before := e.maps.Rules.Learned(owner)
		got := p.do("lookup %s.good.test 192.0.2.2:53", name)
		learned := e.maps.Rules.Learned(owner) - before
		if strings.HasPrefix(got, "ok") != (want > 0) || learned != want {
			t.Errorf("%s: %s, and %d destinations have it, want %d", name, got, learned, want)
		}
	}
	f.end("t")
}

// A connect that sends nothing is no attempt at QUIC.
func TestHintsForQUIC(t *testing.T) {
	f := newFixture(t, withResolver)
	e := f.open()
	f.serveNames(map[string]string{"api.good.test.": "192.0.2.2"})
	dir := newCgroup(t)
	p := f.startProcess(dir.Path())
	f.begin(client.BeginRequest{ID: "t", Allow: []string{"api.good.test:443"}, Cgroup: dir.Path()})
	p.want("ok", "lookup api.good.test 192.0.2.2:53")
	events := e.Subscribe()
	defer events.Close()
	for _, c := range []struct{ order, hint string }{
		{"udp 192.0.2.2:443", ""}, {"send 192.0.2.2:443", "agentguard task grant t 'udp://api.good.test:443' --tls off --ttl 10m"},
	} {
		p.want(denied, "%s", c.order)
		for r := range events.C {
			if r.Kind != "decision" {
				continue
			}
			if r.Hint != c.hint || r.Reason != loader.ReasonQUIC.String() {
				t.Errorf("%s: %q, hint %q; want %q", c.order, r.Reason, r.Hint, c.hint)
			}
			break
		}
	}
	f.end("t")
}

// Who made a user namespace arranges what is in it.
func TestArrangedByHost(t *testing.T) {
	f := newFixture(t)
	host := f.startProcess(newCgroup(t).Path())
	if proc := fmt.Sprint("/proc/", host.cmd.Process.Pid); !arrangedByHost(f.near, proc) {
		t.Error("a namespace that root made is not")
	}
	own := exec.Command("sleep", "1000")
	own.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 65534, Size: 1}},
	}
	must(t, own.Start())
	t.Cleanup(func() { own.Process.Kill(); own.Wait() })
	proc := fmt.Sprint("/proc/", own.Process.Pid)
	ns, err := netns.Open(proc + "/ns/net")
	must(t, err)
	defer ns.Close()
	if arrangedByHost(ns, proc) {
		t.Error("one of a user namespace is")
	}
	if arrangedByHost(f.near, proc) {
		t.Error("a process elsewhere is")
	}
}

func TestReadResolvers(t *testing.T) {
	root := t.TempDir()
	must(t, os.Mkdir(filepath.Join(root, "etc"), 0o755))
	must(t, os.Mkdir(filepath.Join(root, "run"), 0o755))
	must(t, os.WriteFile(filepath.Join(root, "run/resolv.conf"), []byte("# x\nnameserver 192.0.2.53\nnameserver 2001:db8::53\nsearch a.test\n"), 0o644))
	must(t, os.Symlink("/run/resolv.conf", filepath.Join(root, "etc/resolv.conf"))) // leads nowhere outside
	got, err := readResolvers(root)
	if want := "[192.0.2.53:53 [2001:db8::53]:53]"; err != nil || fmt.Sprint(got) != want {
		t.Errorf("%v, %v; want %s", got, err, want)
	}
	must(t, os.WriteFile(filepath.Join(root, "run/resolv.conf"), []byte("search a.test\n"), 0o644))
	if got, err := readResolvers(root); err != nil || fmt.Sprint(got) != "[127.0.0.1:53]" {
		t.Errorf("without a name server: %v, %v", got, err)
	}
	must(t, os.Remove(filepath.Join(root, "run/resolv.conf")))
	must(t, unix.Mkfifo(filepath.Join(root, "run/resolv.conf"), 0o644))
	if got, err := readResolvers(root); err == nil {
		t.Errorf("from a pipe: %v", got)
	}
}

// A grant without TLS reaches where the policy wants TLS.
func TestGrantWithoutTLS(t *testing.T) {
	f := newFixture(t, withResolver)
	e := f.open()
	s := f.serve(true)
	port := netip.MustParseAddrPort(s.addr).Port()
	dest := fmt.Sprintf("api.good.test:%d", port)
	f.serveNames(map[string]string{"api.good.test.": "192.0.2.2"})
	f.apply(document("coder", egress(dest)))
	dir := newCgroup(t)
	p := f.startProcess(dir.Path())
	f.begin(client.BeginRequest{ID: "t", Agent: "coder", Cgroup: dir.Path()})
	p.want("ok", "lookup api.good.test")
	p.want("ok", "dial a %s", s.addr)
	p.want("ok", "write a hello")
	p.want(aborted, "read a")
	if _, err := e.Grant(t.Context(), "t", client.Grant{Destination: dest, TLS: "off"}); err != nil {
		t.Fatal(err)
	}
	p.want("ok", "lookup api.good.test")
	p.want("ok", "dial b %s", s.addr)
	p.want("ok", "write b hello")
	p.want("ok hello", "read b")
	f.end("t")
}

func TestLearnedAddressesExpire(t *testing.T) {
	f := newFixture(t, func(c *Config) {
		withResolver(c)
		c.DNS = names.Config{MinTTL: time.Second, MaxTTL: time.Second}
	})
	e := f.open()
	f.serveNames(map[string]string{"api.good.test.": "192.0.2.2", "db.good.test.": "192.0.2.77"})
	f.serveTLS("192.0.2.2:443")
	dir := newCgroup(t)
	p := f.startProcess(dir.Path())
	f.begin(client.BeginRequest{ID: "t", Allow: []string{"api.good.test:443", "db.good.test:443"}, Cgroup: dir.Path()})
	p.want("ok", "lookup api.good.test")
	p.want("ok", "lookup db.good.test")
	p.want("ok", "dial a 192.0.2.2:443")
	p.want("ok", "hello a api.good.test")
	if task, err := e.Get("t"); err != nil || len(task.Learned) != 2 {
		t.Errorf("learned %+v, %v; want two names", task.Learned, err)
	}
	owner := f.engine.tasks["t"].number
	eventually(t, "their time is over", func() bool { return len(e.maps.Rules.Known(owner, loader.Now())) == 0 })
	p.want(denied, "dial b 192.0.2.2:443")
	e.expireLearned()
	if n := e.maps.Rules.CountLearned(); n != 1 {
		t.Errorf("%d addresses are left, want the one of the open flow", n)
	}
	p.want("ok", "write a x") // the flow goes on
	p.want("ok", "lookup api.good.test")
	p.want("ok", "dial c 192.0.2.2:443")
	f.end("t")
	if n := e.maps.Rules.CountLearned(); n != 0 {
		t.Errorf("%d addresses are left after the end", n)
	}
}

func TestLearnedAddressesSurviveARestart(t *testing.T) {
	f := newFixture(t, withResolver)
	f.open()
	f.serveNames(map[string]string{"api.good.test.": "192.0.2.2", "www.granted.test.": "192.0.2.2"})
	f.serveTLS("192.0.2.2:443")
	f.apply(document("coder", egress("api.good.test:443")))
	dir := newCgroup(t)
	p := f.startProcess(dir.Path())
	f.begin(client.BeginRequest{ID: "t", Agent: "coder", Allow: []string{"www.granted.test:443"}, Cgroup: dir.Path()})
	p.want("ok", "lookup api.good.test")
	p.want("ok", "lookup www.granted.test")
	for _, name := range []string{"api.good.test", "www.granted.test"} {
		f.reopen()
		p.want("ok", "dial a 192.0.2.2:443")
		p.want("ok", "hello a %s", name)
		p.want("ok", "dial b 192.0.2.2:443")
		p.want(aborted, "hello b www.evil.test")
	}
	p.want("ok", "lookup api.good.test")
	f.end("t")
	f.wantEmptyMaps()
}
