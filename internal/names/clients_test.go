// SPDX-License-Identifier: Apache-2.0

package names

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// clients is a lab in which port 53 of one address leads to the station, as it does
// below a guard: the netfilter of the namespace stands in for its programs.
func clients(t *testing.T) *lab {
	t.Helper()
	l := unboundLab(t, Config{Rate: 1e6, Burst: 1e6})
	for _, proto := range []string{"udp", "tcp"} {
		for _, rule := range []string{
			"add table ip guarded",
			"add chain ip guarded output { type nat hook output priority -100 ; }",
			fmt.Sprintf("add rule ip guarded output ip daddr 127.0.0.10 %s dport 53 redirect to :%d", proto, l.port),
		} {
			if out := run(t, l.ns, "nft", rule); out != "" {
				t.Fatalf("nft %s: %s", rule, out)
			}
		}
	}
	return l
}

// inside runs a client whose resolv.conf has these lines.
func (l *lab) inside(t *testing.T, resolvConf string, command ...string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(file, []byte(resolvConf), 0o644); err != nil {
		t.Fatal(err)
	}
	script := `mount -o bind "$0" /etc/resolv.conf && exec "$@"`
	return run(t, l.ns, "unshare", append([]string{"-m", "sh", "-c", script, file}, command...)...)
}

const plainConf = "nameserver 127.0.0.10\n"

// needs fails where a client is missing, or skips in a guest, which has few of them.
func needs(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			if os.Getenv("AGENTGUARD_VM") != "" {
				t.Skipf("not in a VM: there is no %s", p)
			}
			t.Fatal(err)
		}
	}
}

// addresses picks what parses as an address out of a program's output, sorted, each
// once.
func addresses(out string) string {
	var found []string
	for _, word := range strings.FieldsFunc(out, func(r rune) bool { return strings.ContainsRune(" \t\n'\",[]()", r) }) {
		if net.ParseIP(word) != nil {
			found = append(found, word)
		}
	}
	slices.Sort(found)
	return strings.Join(slices.Compact(found), " ")
}

const both = "192.0.2.1 192.0.2.2 2001:db8::1"

func TestDig(t *testing.T) {
	needs(t, "dig")
	l := clients(t)
	for _, tt := range []struct{ args, want string }{
		{"+short A api.good.test", "192.0.2."},
		{"+short +tcp A api.good.test", "192.0.2."},
		{"+short +noedns A api.good.test", "192.0.2."},
		{"+dnssec +cd +nsid +subnet=6.6.6.6/32 +padding=128 A api.good.test", "status: NOERROR"},
		{"A evil.test", "EDE: 15 (Blocked): (agentguard: no rule allows evil.test)"},
		{"A evil.test", "status: NXDOMAIN"},
		{"TXT api.good.test", "EDE: 21 (Not Supported): (agentguard: type TXT is not served)"},
		{"+short HTTPS https.good.test", `1 . alpn="h2,h3" port=8443`},
		{"+short SRV _sip._tcp.good.test", "1 2 443 api.good.test."},
		{"+short -x 192.0.2.1", "api.good.test."},
		{"+opcode=status A api.good.test", "status: NOTIMP"},
		{"CH TXT version.bind", "status: NOTIMP"},
		{"AXFR good.test", "Transfer failed"},
	} {
		args := append([]string{"@127.0.0.10", "+tries=1"}, strings.Fields(tt.args)...)
		if out := run(t, l.ns, "dig", args...); !strings.Contains(out, tt.want) {
			t.Errorf("dig %s: want %q in\n%s", tt.args, tt.want, out)
		}
	}
	// What does not fit comes by TCP, without being asked for.
	if out := run(t, l.ns, "dig", "@127.0.0.10", "+short", "A", "many.good.test"); strings.Count(out, "198.18.") != maxAddrs {
		t.Errorf("dig of many addresses:\n%s", out)
	}
}

func TestGlibc(t *testing.T) {
	needs(t, "getent", "unshare")
	l := clients(t)
	for _, tt := range []struct{ conf, name, want string }{
		{plainConf, "api.good.test", both},
		{plainConf, "API.good.TEST", both},
		{plainConf + "options use-vc\n", "api.good.test", both},
		{plainConf + "options edns0 trust-ad\n", "api.good.test", both},
		{plainConf + "options single-request\n", "api.good.test", both},
		{plainConf + "search evil.test good.test\n", "api", both},
		{plainConf + "search nosuch.test good.test\noptions ndots:5\n", "api.good.test", both},
		{plainConf, "evil.test", ""},
		{plainConf, "nosuch.good.test", ""},
		{plainConf, "inside.good.test", "192.0.2.9"},
	} {
		if got := addresses(l.inside(t, tt.conf, "getent", "ahosts", tt.name)); got != tt.want {
			t.Errorf("getent ahosts %s with %q: %s, want %s", tt.name, tt.conf, got, tt.want)
		}
	}
	if out := l.inside(t, plainConf, "getent", "ahosts", "many.good.test"); strings.Count(out, "STREAM") != maxAddrs {
		t.Errorf("getent of many addresses:\n%s", out)
	}
	if out := l.inside(t, plainConf, "getent", "hosts", "192.0.2.1"); !strings.Contains(out, "api.good.test") {
		t.Errorf("getent hosts 192.0.2.1: %s", out)
	}
}

// A name that is refused is given up: nobody asks again, or another resolver.
func TestRefusedNamesAreGivenUp(t *testing.T) {
	needs(t, "getent", "unshare")
	l := clients(t)
	l.inside(t, plainConf+"nameserver 127.0.0.10\noptions attempts:5\n", "getent", "ahosts", "evil.test")
	for range 2 { // A and AAAA
		l.record(t)
	}
	select {
	case r := <-l.records:
		t.Errorf("asked again: %+v", r)
	default:
	}
}

func TestMusl(t *testing.T) {
	needs(t, "musl-gcc", "unshare")
	l := clients(t)
	program := filepath.Join(t.TempDir(), "lookup")
	source := `
#include <netdb.h>
#include <stdio.h>
#include <arpa/inet.h>
int main(int argc, char **argv) {
	struct addrinfo *list, hints = {.ai_socktype = 1};
	char text[64];
	if (getaddrinfo(argv[1], 0, &hints, &list)) return 1;
	for (; list; list = list->ai_next)
		puts(inet_ntop(list->ai_family, list->ai_family == AF_INET ? (void *)&((struct sockaddr_in *)list->ai_addr)->sin_addr
			: (void *)&((struct sockaddr_in6 *)list->ai_addr)->sin6_addr, text, sizeof text));
}`
	compile := exec.Command("musl-gcc", "-static", "-x", "c", "-o", program, "-")
	compile.Stdin = strings.NewReader(source)
	if out, err := compile.CombinedOutput(); err != nil {
		t.Fatalf("musl-gcc: %v\n%s", err, out)
	}
	for name, want := range map[string]string{"api.good.test": both, "evil.test": "", "inside.good.test": "192.0.2.9"} {
		if got := addresses(l.inside(t, plainConf, program, name)); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}

func TestGo(t *testing.T) {
	l := clients(t)
	r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (conn net.Conn, err error) {
		err = l.ns.Do(func() error {
			var d net.Dialer
			conn, err = d.DialContext(ctx, network, "127.0.0.10:53")
			return err
		})
		return conn, err
	}}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	found, err := r.LookupHost(ctx, "api.good.test.")
	if slices.Sort(found); err != nil || strings.Join(found, " ") != both {
		t.Errorf("found %v, error %v", found, err)
	}
	if found, err := r.LookupHost(ctx, "many.good.test."); err != nil || len(found) != maxAddrs {
		t.Errorf("found %d of %d, error %v", len(found), maxAddrs, err)
	}
	_, err = r.LookupHost(ctx, "evil.test.")
	if dnsErr, ok := err.(*net.DNSError); !ok || !dnsErr.IsNotFound {
		t.Errorf("error %v, want one that the name is not there", err)
	}
	if _, found, err := r.LookupSRV(ctx, "sip", "tcp", "good.test."); err != nil || len(found) != 1 || found[0].Target != "api.good.test." {
		t.Errorf("SRV %v, error %v", found, err)
	}
	if found, err := r.LookupAddr(ctx, "192.0.2.1"); err != nil || !slices.Equal(found, []string{"api.good.test."}) {
		t.Errorf("PTR %v, error %v", found, err)
	}
}

func TestPython(t *testing.T) {
	needs(t, "python3", "unshare")
	l := clients(t)
	for name, want := range map[string]string{"api.good.test": both, "evil.test": "", "bücher.test": "192.0.2.14"} {
		script := "import socket\nfor a in socket.getaddrinfo('" + name + "', 443): print(a[4][0])"
		if got := addresses(l.inside(t, plainConf, "python3", "-c", script)); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}

// Node's dns.resolve is c-ares.
func TestNode(t *testing.T) {
	needs(t, "node", "unshare")
	l := clients(t)
	for _, tt := range []struct{ call, want string }{
		{"resolve4('api.good.test')", `["192.0.2.1","192.0.2.2"]`},
		{"resolve6('api.good.test')", `["2001:db8::1"]`},
		{"resolve4('many.good.test').then(a => a.length)", strconv.Itoa(maxAddrs)},
		{"resolve4('evil.test').catch(e => e.code)", `"ENOTFOUND"`},
		{"resolve6('four.good.test').catch(e => e.code)", `"ENODATA"`},
		{"resolveTxt('api.good.test').catch(e => e.code)", `"ENODATA"`},
		{"resolveSrv('_sip._tcp.good.test').then(a => a.map(r => r.name))", `["api.good.test"]`},
		{"reverse('192.0.2.1')", `["api.good.test"]`},
	} {
		script := "const dns = require('dns').promises; dns.setServers(['127.0.0.10']); dns." + tt.call +
			".then(a => console.log(JSON.stringify(Array.isArray(a) ? a.sort() : a)))"
		if got := strings.TrimSpace(l.inside(t, plainConf, "node", "-e", script)); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.call, got, tt.want)
		}
	}
}
