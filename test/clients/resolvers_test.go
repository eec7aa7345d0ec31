// SPDX-License-Identifier: Apache-2.0

package clients

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// A program sees the resolver that it asked, whoever answered.
func (p *product) resolvers(t *testing.T) {
	needs(t, "dig")
	for i, server := range []string{unboundAddr, localAddr, unboundAddr6, nobodyAddr} {
		ways := []string{"", "+tcp"}
		if i == 0 {
			ways = append(ways, "+bufsize=512", "+noedns")
		}
		for _, options := range ways {
			argv := append([]string{"dig", "@" + server, "api.good.test"}, strings.Fields(options)...)
			r := p.want(t, fmt.Sprintf("SERVER: %s#53(%s)", server, server), argv...)
			if !strings.Contains(r.out, "\tA\t"+siteAddr) {
				t.Errorf("no answer: %s", r)
			}
		}
		r := p.want(t, fmt.Sprintf("SERVER: %s#53(%s)", server, server), "dig", "@"+server, unknownHost)
		for _, want := range []string{"status: NXDOMAIN", "EDE: 15 (Blocked): (agentguard: no rule allows www.evil.test)"} {
			if !strings.Contains(r.out, want) {
				t.Errorf("want %q: %s", want, r)
			}
		}
	}
}

// Records of all kinds come through, and of addresses as many as one answer may have.
func (p *product) records(t *testing.T) {
	needs(t, "dig")
	for _, tt := range []struct{ args, want string }{
		{"+short AAAA six.good.test", "2001:db8:ffff::10\n"},
		{"+short alias.good.test", "a.cdn.test.\nb.cdn.test.\n198.18.0.11\n"},
		{"+short HTTPS https.good.test", "1 . alpn=\"h2\"\n"},
		{"+bufsize=512 +ignore many.good.test", "flags: qr tc rd ra"},
		{"+bufsize=512 many.good.test", "(TCP)"},
		{"many.good.test", "ANSWER: 256,"},
	} {
		p.want(t, tt.want, append([]string{"dig"}, strings.Fields(tt.args)...)...)
	}
	t.Run("C library", func(t *testing.T) {
		needs(t, "getent")
		r := p.want(t, "198.18.", "getent", "ahostsv4", "many.good.test")
		if n := strings.Count(r.out, "STREAM"); n != 256 {
			t.Errorf("%d addresses of 256", n)
		}
		for _, host := range []string{"six.good.test", "both.good.test"} {
			p.want(t, "2001:db8:ffff::10", "getent", "ahosts", host)
		}
		if r := p.guarded("getent", "ahosts", unknownHost); r.code != 2 {
			t.Errorf("want exit code 2: %s", r)
		}
	})
	t.Run("Python", func(t *testing.T) {
		needs(t, "python3")
		p.want(t, "256\n", "python3", "-c", "import socket; print(len(set(a[4][0] for a in socket.getaddrinfo('many.good.test', 443))))")
	})
	t.Run("Node", func(t *testing.T) {
		needs(t, "node")
		for _, tt := range []struct{ call, want string }{
			{"resolve4('many.good.test').then(a => a.length)", "256\n"},
			{"resolve6('six.good.test')", `["2001:db8:ffff::10"]`},
			{"lookup('api.good.test').then(a => a.address)", `"` + siteAddr + `"`},
			{"resolve4('www.evil.test').catch(e => e.code)", `"ENOTFOUND"`},
			{"resolveTxt('api.good.test').catch(e => e.code)", `"ENODATA"`},
		} {
			p.want(t, tt.want, "node", "-e", "require('dns').promises."+tt.call+".then(a => console.log(JSON.stringify(a)))")
		}
	})
}

// A short name is looked up below the domains of resolv.conf, those that no rule
// allows included.
func (p *product) search(t *testing.T) {
	for _, argv := range [][]string{
		{"getent", "ahostsv4", "api"},
		{"python3", "-c", "import socket; print(socket.gethostbyname('api'), '')"},
		{"dig", "+search", "+short", "api"},
		{"greet", "api", "22"},
		{"visit", "-at", "api:80", "http://api.good.test/"},
	} {
		t.Run(argv[0], func(t *testing.T) {
			p.needs(t, argv[0])
			r := p.guarded(argv...)
			if want := []string{siteAddr, "greetings"}; r.code != 0 || !slices.ContainsFunc(want, func(w string) bool { return strings.Contains(r.out, w) }) {
				t.Errorf("want one of %q: %s", want, r)
			}
		})
	}
}
