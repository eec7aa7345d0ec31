// SPDX-License-Identifier: Apache-2.0

package names

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"agentguard.dev/agentguard/internal/netns"
	"agentguard.dev/agentguard/internal/policy"
)

// patience is how long a test waits for what must happen.
const patience = 20 * time.Second

// namespace makes a network namespace with lo up, or down.
func namespace(t testing.TB, up bool) *netns.Handle {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("making a network namespace needs root")
	}
	own, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	var made *netns.Handle
	if err := own.Do(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		if up {
			lo, err := netlink.LinkByName("lo")
			if err != nil {
				return err
			}
			if err := netlink.LinkSetUp(lo); err != nil {
				return err
			}
		}
		made, err = netns.Current()
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { made.Close() })
	return made
}

// start runs a program in the namespace until the test ends, once it has written a line
// with ready in it.
func start(t testing.TB, ns *netns.Handle, ready, program string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(program, args...)
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	cmd.Stdout, cmd.Stderr = in, in
	if err := ns.Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		out.Close()
	})
	_ = out.SetReadDeadline(time.Now().Add(patience))
	lines := bufio.NewScanner(out)
	var said []string
	for lines.Scan() {
		said = append(said, lines.Text())
		if strings.Contains(lines.Text(), ready) {
			_ = out.SetReadDeadline(time.Time{})
			go func() { _, _ = io.Copy(io.Discard, out) }()
			return cmd
		}
	}
	t.Fatalf("%s never said %q:\n%s", program, ready, strings.Join(said, "\n"))
	return nil
}

// dnsmasq runs one at 127.0.0.53 or another address of the namespace, with these records.
func dnsmasq(t testing.TB, ns *netns.Handle, at netip.AddrPort, records ...string) {
	t.Helper()
	args := []string{
		"--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--bind-interfaces", "--user=root", "--pid-file",
		"--log-facility=-", "--listen-address=" + at.Addr().String(), "--except-interface=nosuch", "--port=53", "--local=/#/", "--local-ttl=60",
		"--cache-size=1000",
	}
	start(t, ns, "started", "dnsmasq", append(args, records...)...)
}

// unbound runs one, with these lines of configuration in its server section.
func unbound(t testing.TB, ns *netns.Handle, at netip.AddrPort, lines ...string) {
	t.Helper()
	dir := t.TempDir()
	conf := "server:\n" + strings.Join(append([]string{
		"verbosity: 1", "do-daemonize: no", "use-syslog: no", `chroot: ""`, `username: ""`, `pidfile: ""`, `directory: "` + dir + `"`,
		"interface: " + at.Addr().String() + "@53", "access-control: 0.0.0.0/0 allow", "access-control: ::/0 allow",
		`module-config: "iterator"`, "num-threads: 1", "minimal-responses: no",
	}, lines...), "\n") + "\nremote-control:\ncontrol-enable: no\n"
	file := dir + "/unbound.conf"
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	start(t, ns, "start of service", "unbound", "-d", "-c", file)
}

// town is an authority whose rules are a table.
type town struct {
	mu        sync.Mutex
	task      uint32
	to        netip.AddrPort
	audit     bool
	stranger  bool
	names     []string // "*.x" for wildcards
	prefixes  []netip.Prefix
	own       []netip.Addr
	reach     []netip.Addr
	untrusted []netip.AddrPort
	impostor  func(netip.AddrPort) bool
	full      error
	learned   []lesson
	records   chan Record
}

type lesson struct {
	task  uint32
	host  string
	addrs []netip.Addr
	ttl   time.Duration
}

func newTown(names ...string) *town {
	return &town{task: 7, names: names, to: upstream, records: make(chan Record, 1<<16)}
}

func (w *town) Asker(_ uint64, _ policy.Proto, _ netip.AddrPort) (Asker, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return Asker{Task: w.task, PID: 1, Process: "test", To: w.to, Audit: w.audit, Rules: w}, !w.stranger
}

func (w *town) Genuine(_ uint64, _ policy.Proto, r netip.AddrPort) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.impostor == nil || !w.impostor(r)
}

func (w *town) Learn(a Asker, host string, addrs []netip.Addr, ttl time.Duration) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.full != nil {
		return w.full
	}
	w.learned = append(w.learned, lesson{a.Task, host, slices.Clone(addrs), ttl})
	return nil
}

func (w *town) Query(r Record) { w.records <- r }

func (w *town) Allows(host string) bool {
	return slices.ContainsFunc(w.names, func(n string) bool {
		if rest, ok := strings.CutPrefix(n, "*"); ok {
			return strings.HasSuffix(host, rest) && len(host) > len(rest)
		}
		return n == host
	})
}

func (w *town) AllowsAddr(_ string, addr netip.Addr) bool { return within(addr, w.prefixes) }
func (w *town) MayReach(addr netip.Addr) bool             { return slices.Contains(w.reach, addr) }
func (w *town) Local(addr netip.Addr) bool                { return slices.Contains(w.own, addr) }
func (w *town) Trusts(resolver netip.AddrPort) bool       { return !slices.Contains(w.untrusted, resolver) }

// set changes something of w under its lock.
func (w *town) set(fn func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	fn()
}

// lessons returns what was learned since it was last called.
func (w *town) lessons() []lesson {
	w.mu.Lock()
	defer w.mu.Unlock()
	l := w.learned
	w.learned = nil
	return l
}

// record waits for the next record.
func (w *town) record(t testing.TB) Record {
	t.Helper()
	select {
	case r := <-w.records:
		return r
	case <-time.After(patience):
		t.Fatal("no record of the question")
		return Record{}
	}
}

var upstream = netip.MustParseAddrPort("127.0.0.53:53")

// lab is a namespace with a resolver of its own and a station.
type lab struct {
	*town
	ns     *netns.Handle
	server *Server
	port   uint16
}

// newLab opens a station whose trusted resolver is upstream, which the test runs.
func newLab(t testing.TB, w *town, c Config) *lab {
	t.Helper()
	return labIn(t, namespace(t, true), w, c)
}

func labIn(t testing.TB, ns *netns.Handle, w *town, c Config) *lab {
	t.Helper()
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	s, err := New(c, w)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	port, err := s.Listen(ns, Upstream{ns, []netip.AddrPort{upstream}})
	if err != nil {
		t.Fatal(err)
	}
	return &lab{town: w, ns: ns, server: s, port: port}
}

// dial opens a socket in the namespace.
func dial(t testing.TB, ns *netns.Handle, network string, to netip.AddrPort) net.Conn {
	t.Helper()
	var conn net.Conn
	if err := ns.Do(func() (err error) {
		conn, err = net.DialTimeout(network, to.String(), patience)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(patience))
	return conn
}

func (l *lab) at() netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), l.port)
}

// ask puts a question to the station, by UDP with EDNS unless edit changes that.
func (l *lab) ask(t testing.TB, name string, qtype uint16, edit ...func(*dns.Msg)) *dns.Msg {
	t.Helper()
	return l.askBy(t, "udp", name, qtype, edit...)
}

func (l *lab) askBy(t testing.TB, network, name string, qtype uint16, edit ...func(*dns.Msg)) *dns.Msg {
	t.Helper()
	m := new(dns.Msg).SetQuestion(dns.Fqdn(name), qtype)
	m.SetEdns0(1232, false)
	for _, e := range edit {
		e(m)
	}
	co := dns.Conn{Conn: dial(t, l.ns, network, l.at()), UDPSize: maxSize}
	defer co.Close()
	if err := co.WriteMsg(m); err != nil {
		t.Fatal(err)
	}
	r, err := co.ReadMsg()
	if err != nil {
		t.Fatalf("%s %s: %v", name, dns.TypeToString[qtype], err)
	}
	if r.Id != m.Id || !r.Response || !r.RecursionAvailable || r.RecursionDesired != m.RecursionDesired {
		t.Errorf("%s %s: header %+v of an answer to %+v", name, dns.TypeToString[qtype], r.MsgHdr, m.MsgHdr)
	}
	return r
}

// noEdns takes the OPT record off a query.
func noEdns(m *dns.Msg) { m.Extra = nil }

// ede returns the Extended DNS Error of an answer.
func ede(m *dns.Msg) (code uint16, text string) {
	if opt := m.IsEdns0(); opt != nil {
		for _, o := range opt.Option {
			if e, ok := o.(*dns.EDNS0_EDE); ok {
				return e.InfoCode, e.ExtraText
			}
		}
	}
	return 0, ""
}

// show writes the answers of a message without their TTLs.
func show(rrs []dns.RR) string {
	var lines []string
	for _, rr := range rrs {
		rr = dns.Copy(rr)
		rr.Header().Ttl = 0
		lines = append(lines, strings.Join(strings.Fields(rr.String()), " "))
	}
	return strings.ReplaceAll(strings.Join(lines, "; "), " 0 IN ", " ")
}

// run runs a client program in the namespace, and returns its output.
func run(t testing.TB, ns *netns.Handle, program string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath(program); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var out []byte
	err := ns.Do(func() (err error) {
		out, err = exec.CommandContext(ctx, program, args...).CombinedOutput()
		return err
	})
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return string(out)
}

// impolite answers questions in the namespace as a test wants, by UDP and TCP.
func impolite(t testing.TB, ns *netns.Handle, at netip.AddrPort, handle dns.HandlerFunc) {
	t.Helper()
	for _, network := range []string{"udp", "tcp"} {
		s := &dns.Server{Net: network, Handler: handle, UDPSize: maxSize, MsgAcceptFunc: func(dns.Header) dns.MsgAcceptAction { return dns.MsgAccept }}
		ready := make(chan struct{})
		s.NotifyStartedFunc = func() { close(ready) }
		if err := ns.Do(func() (err error) {
			if network == "udp" {
				s.PacketConn, err = net.ListenPacket("udp", at.String())
			} else {
				s.Listener, err = net.Listen("tcp", at.String())
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- s.ActivateAndServe() }()
		<-ready
		t.Cleanup(func() {
			_ = s.Shutdown()
			<-ended
		})
	}
}

// offline makes a station without sockets, and the question that it is asked.
func offline(t testing.TB, w *town, c Config) (*station, question) {
	t.Helper()
	c.Log = slog.New(slog.DiscardHandler)
	s, err := New(c, w)
	if err != nil {
		t.Fatal(err)
	}
	ns, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	st := &station{server: s, ns: ns}
	st.ctx, st.cancel = context.WithCancel(t.Context())
	t.Cleanup(st.cancel)
	st.upstream.Store(&Upstream{ns, []netip.AddrPort{upstream}})
	return st, question{"api.good.test", dns.TypeA}
}
