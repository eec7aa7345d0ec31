// SPDX-License-Identifier: Apache-2.0

package clients

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"agentguard.dev/agentguard/internal/netns"
)

// world is a network namespace in which every address of two large prefixes is
// local, with resolvers and servers on all of them.
type world struct {
	ns  *netns.Handle
	dir string // of certificates and zones
}

// The resolvers, and what all of the world's sites have in common.
const (
	unboundAddr  = "198.18.0.53"
	unboundAddr6 = "2001:db8:0:53::53"
	dnsmasqAddr  = "198.18.0.54"
	localAddr    = "127.0.0.53" // a dnsmasq at home, in front of unbound
	nobodyAddr   = "198.18.0.99"

	siteAddr      = "198.18.0.10"
	otherSiteAddr = "198.18.0.20" // as dnsmasq has it
)

// zone has what rules name, a name that none does, and a neighbour of
// api.good.test at its address.
func zone() string {
	z := `$ORIGIN test.
$TTL 300
@ SOA ns.test. nobody.test. 1 60 60 60 60
@ NS ns.test.
ns A 198.18.0.53
api.good A 198.18.0.10
six.good AAAA 2001:db8:ffff::10
both.good A 198.18.0.10
both.good AAAA 2001:db8:ffff::10
alias.good CNAME a.cdn
a.cdn CNAME b.cdn
b.cdn A 198.18.0.11
short.good 3 A 198.18.0.12
https.good HTTPS 1 . alpn="h2" ipv4hint=198.18.0.13
https.good A 198.18.0.13
www.evil A 198.18.0.10
www.neighbour A 198.18.0.10
`
	for i := range 60 {
		z += fmt.Sprintf("turn.good A 198.18.7.%d\n", i+1)
	}
	for i := range 400 {
		z += fmt.Sprintf("many.good A 198.18.%d.%d\n", 8+i/200, i%200+1)
	}
	return z
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{ns: newNamespace(t), dir: t.TempDir()}
	w.must(t, raise("lo"))
	w.inside(t, func() error {
		return errors.Join(raise("lo", unboundAddr6+"/128"), makeLocal("198.18.0.0/15"), makeLocal("2001:db8:ffff::/48"))
	})
	w.must(t, w.wire(nil, "home", "192.0.2.1/30", "192.0.2.2/30", "2001:db8::1/64", "2001:db8::2/64"))
	w.certify(t)
	w.serve(t)
	w.resolve(t)
	return w
}

func (w *world) must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal("set up the network: ", err)
	}
}

func (w *world) inside(t *testing.T, fn func() error) {
	t.Helper()
	w.must(t, w.ns.Do(fn))
}

func newNamespace(t *testing.T) (made *netns.Handle) {
	t.Helper()
	own, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	// Do brings the thread back, whatever namespace it is left in.
	err = own.Do(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		made, err = netns.Current()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { made.Close() })
	return made
}

// wire lays a cable from ns, or from this namespace if that is nil, and sends
// all that the world has through it. addrs are those of both ends.
func (w *world) wire(ns *netns.Handle, name string, near4, far4, near6, far6 string) error {
	do := func(fn func() error) error { return fn() }
	if ns != nil {
		do = ns.Do
	}
	err := do(func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: name, PeerNamespace: netlink.NsFd(w.ns.FD())})
	})
	if err != nil {
		return err
	}
	if err := w.ns.Do(func() error { return raise(name, far4, far6) }); err != nil {
		return err
	}
	return do(func() error {
		return errors.Join(raise(name, near4, near6), route("198.18.0.0/15", far4), route("2001:db8:ffff::/48", far6), route("2001:db8:0:53::/64", far6))
	})
}

func raise(link string, addresses ...string) error {
	at, err := netlink.LinkByName(link)
	if err != nil {
		return err
	}
	for _, address := range addresses {
		addr, err := netlink.ParseAddr(address)
		if err != nil {
			return err
		}
		if addr.IP.To4() == nil {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(at, addr); err != nil {
			return fmt.Errorf("give %s to %s: %w", address, link, err)
		}
	}
	return netlink.LinkSetUp(at)
}

// makeLocal lets this namespace answer for every address of a prefix.
func makeLocal(prefix string) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	_, to, err := net.ParseCIDR(prefix)
	if err != nil {
		return err
	}
	return netlink.RouteAdd(&netlink.Route{
		LinkIndex: lo.Attrs().Index, Dst: to, Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST, Table: unix.RT_TABLE_LOCAL,
	})
}

func route(prefix, through string) error {
	_, to, err := net.ParseCIDR(prefix)
	if err != nil {
		return err
	}
	gateway, _, err := net.ParseCIDR(through)
	if err != nil {
		return err
	}
	return netlink.RouteAdd(&netlink.Route{Dst: to, Gw: gateway})
}

// certify makes one certificate for all sites, which is its own authority.
func (w *world) certify(t *testing.T) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "good.test"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{"*.good.test", "www.evil.test", "www.neighbour.test"},
		IsCA:     true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{w.certificate(): {Type: "CERTIFICATE", Bytes: der}, w.key(): {Type: "PRIVATE KEY", Bytes: secret}} {
		if err := os.WriteFile(name, pem.EncodeToMemory(block), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func (w *world) certificate() string { return filepath.Join(w.dir, "cert.pem") }
func (w *world) key() string         { return filepath.Join(w.dir, "key.pem") }

// serve answers on every address: HTTPS on 443, with TLS 1.2 at most on 1443 and
// by OpenSSL on 8443; HTTP on 80; on 22 something that speaks first.
func (w *world) serve(t *testing.T) {
	t.Helper()
	certificate, err := tls.LoadX509KeyPair(w.certificate(), w.key())
	if err != nil {
		t.Fatal(err)
	}
	for port, config := range map[int]*tls.Config{80: nil, 443: {}, 1443: {MaxVersion: tls.VersionTLS12}} {
		server := &http.Server{Handler: http.HandlerFunc(say), ErrorLog: log.New(io.Discard, "", 0)} // clients that are cut
		listener := w.listen(t, port)
		if config == nil {
			go server.Serve(listener)
		} else {
			config.Certificates = []tls.Certificate{certificate}
			server.TLSConfig = config
			go server.ServeTLS(listener, "", "")
		}
		t.Cleanup(func() { server.Close() })
	}
	greeter := w.listen(t, 22)
	t.Cleanup(func() { greeter.Close() })
	go func() {
		for {
			conn, err := greeter.Accept()
			if err != nil {
				return
			}
			io.WriteString(conn, "greetings\n")
			conn.Close()
		}
	}()
	if _, err := exec.LookPath("openssl"); err == nil {
		w.start(t, w.ns, "ACCEPT", "openssl", "s_server", "-accept", "8443", "-cert", w.certificate(), "-key", w.key(), "-www")
	}
}

func (w *world) listen(t *testing.T, port int) (listener net.Listener) {
	t.Helper()
	w.inside(t, func() (err error) {
		listener, err = net.Listen("tcp", fmt.Sprintf(":%d", port))
		return err
	})
	return listener
}

// say tells a visitor where they are. At /stream it goes on for as long as they listen.
func say(out http.ResponseWriter, r *http.Request) {
	for r.URL.Path == "/stream" && r.Context().Err() == nil {
		io.WriteString(out, "flowing\n")
		out.(http.Flusher).Flush()
		time.Sleep(50 * time.Millisecond)
	}
	host, _, _ := strings.Cut(r.Host, ":")
	fmt.Fprintf(out, "this is %s by %s", host, r.Proto)
	if r.TLS != nil {
		fmt.Fprintf(out, ", %s, %s, resumed %t", tls.VersionName(r.TLS.Version), r.TLS.CurveID, r.TLS.DidResume)
	}
	at, _, _ := net.SplitHostPort(r.Context().Value(http.LocalAddrContextKey).(net.Addr).String())
	fmt.Fprintf(out, ", at %s\n", at)
}

// resolve starts the resolvers.
func (w *world) resolve(t *testing.T) {
	t.Helper()
	zonefile, conf := filepath.Join(w.dir, "test.zone"), filepath.Join(w.dir, "unbound.conf")
	for name, content := range map[string]string{zonefile: zone(), conf: fmt.Sprintf(`server:
	verbosity: 1
	do-daemonize: no
	use-syslog: no
	chroot: ""
	username: ""
	pidfile: ""
	directory: %[1]q
	interface: %[2]s
	interface: %[3]s
	access-control: 0.0.0.0/0 allow
	access-control: ::/0 allow
	module-config: "iterator"
	num-threads: 1
	local-zone: "test." nodefault
	rrset-roundrobin: yes
remote-control:
	control-enable: no
auth-zone:
	name: "test."
	zonefile: %[4]q
	for-upstream: yes
	for-downstream: no
`, w.dir, unboundAddr, unboundAddr6, zonefile)} {
		if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	w.start(t, w.ns, "start of service", "unbound", "-d", "-c", conf)
	dnsmasq := []string{
		"--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--bind-interfaces", "--user=root", "--pid-file",
		"--log-facility=-", "--except-interface=nosuch", "--cache-size=1000",
	}
	w.start(t, w.ns, "started", "dnsmasq", append(dnsmasq,
		"--listen-address="+dnsmasqAddr, "--host-record=api.good.test,"+otherSiteAddr, "--local=/#/", "--local-ttl=300")...)
	w.start(t, nil, "started", "dnsmasq", append(dnsmasq, "--listen-address="+localAddr, "--server="+unboundAddr)...)
}

// start runs a server until the test ends, once it has written a line with ready in it.
func (w *world) start(t *testing.T, ns *netns.Handle, ready, program string, args ...string) {
	t.Helper()
	cmd := exec.Command(program, args...)
	in, err := cmd.StdinPipe() // s_server ends with it
	if err != nil {
		t.Fatal(err)
	}
	out, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = write, write
	if ns == nil {
		err = cmd.Start()
	} else {
		err = ns.Do(cmd.Start)
	}
	write.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		in.Close()
		out.Close()
	})
	out.SetReadDeadline(time.Now().Add(patience))
	var said []string
	for lines := bufio.NewScanner(out); lines.Scan(); {
		said = append(said, lines.Text())
		if strings.Contains(lines.Text(), ready) {
			out.SetReadDeadline(time.Time{})
			go io.Copy(io.Discard, out)
			return
		}
	}
	t.Fatalf("%s never said %q:\n%s", program, ready, strings.Join(said, "\n"))
}
