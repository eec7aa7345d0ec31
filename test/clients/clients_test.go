// SPDX-License-Identifier: Apache-2.0

package clients

import (
	"regexp"
	"strings"
	"testing"
	"time"
)

// One product serves all tests: it takes seconds to start.
func TestClients(t *testing.T) {
	p := newProduct(t)
	for _, c := range clients {
		t.Run(c.name, func(t *testing.T) { p.try(t, c) })
	}
	t.Run("sites", p.sites)
	t.Run("TLS", p.tls)
	t.Run("resolvers", p.resolvers)
	t.Run("records", p.records)
	t.Run("search domains", p.search)
	t.Run("expiry", p.expiry)
	t.Run("namespaces", p.namespaces)
}

// client is a program and what it says where it gets nowhere. {host} is the
// server's name.
type client struct {
	name    string
	program string // that has to be there
	argv    []string
	want    string // what it prints of a server; "this is {host}" if empty
	unknown string // a regular expression
	cut     string // likewise, when the name is a neighbour's; empty if nothing checks that
}

var clients = []client{
	{
		name: "curl", program: "curl", argv: []string{"curl", "-sS", "https://{host}/"}, want: "this is {host} by HTTP/2",
		unknown: `curl: \(6\) Could not resolve host`, cut: `curl: \((35|55|56)\)`,
	}, {
		name: "curl, HTTP 1.1", program: "curl", argv: []string{"curl", "-sS", "--http1.1", "https://{host}/"}, want: "this is {host} by HTTP/1.1",
		unknown: `curl: \(6\) Could not resolve host`, cut: `curl: \((35|55|56)\)`,
	}, {
		name: "curl, plain", program: "curl", argv: []string{"curl", "-sSf", "http://{host}/"},
		unknown: `curl: \(6\) Could not resolve host`, cut: `curl: \(22\) .*403`,
	}, {
		name: "openssl", program: "openssl", argv: []string{"sh", "-c",
			`printf 'GET / HTTP/1.0\r\nHost: {host}\r\n\r\n' | openssl s_client -quiet -verify_return_error -connect {host}:443 -servername {host}`},
		unknown: `Name or service not known|BIO_lookup`, cut: `errno=|error:|reset`,
	}, {
		name: "Python", program: "python3", argv: []string{"python3", "-c",
			`import urllib.request; print(urllib.request.urlopen("https://{host}/").read().decode())`},
		unknown: `gaierror: \[Errno -2\] Name or service not known`, cut: `ConnectionAbortedError|ConnectionResetError|SSL`,
	}, {
		name: "Python, plain", program: "python3", argv: []string{"python3", "-c",
			`import urllib.request; print(urllib.request.urlopen("http://{host}/").read().decode())`},
		unknown: `gaierror: \[Errno -2\] Name or service not known`, cut: `HTTPError: HTTP Error 403`,
	}, {
		name: "Node", program: "node", argv: []string{"node", "-e", `require("https").get("https://{host}/", r => r.pipe(process.stdout))`},
		unknown: `getaddrinfo ENOTFOUND`, cut: `ECONNRESET|ECONNABORTED|socket (hang up|disconnected)`,
	}, {
		name: "Node, c-ares", program: "node", argv: []string{"node", "-e",
			`const lookup = (name, options, done) => require("dns").resolve4(name, (error, all) => options.all ? done(error, (all || []).map(address => ({address, family: 4}))) : done(error, all && all[0], 4));
			require("https").get("https://{host}/", {lookup}, r => r.pipe(process.stdout))`},
		unknown: `queryA ENOTFOUND`,
	}, {
		name: "Go", program: "visit", argv: []string{"visit", "https://{host}/"}, want: "this is {host} by HTTP/2.0, TLS 1.3, X25519MLKEM768",
		unknown: `no such host`, cut: `reset|abort`,
	}, {
		name: "Go, plain", program: "visit", argv: []string{"visit", "http://{host}/"},
		unknown: `no such host`, cut: `403 Forbidden`,
	}, {
		name: "Go, cgo", program: "visit-cgo", argv: []string{"env", "GODEBUG=netdns=cgo", "visit-cgo", "https://{host}/"},
		unknown: `no such host`, cut: `reset|abort`,
	}, {
		name: "busybox wget", program: "busybox", argv: []string{"busybox", "wget", "-q", "-O", "-", "http://{host}/"},
		unknown: `bad address`, cut: `403 Forbidden`,
	}, {
		name: "musl", program: "greet", argv: []string{"greet", "{host}", "22"}, want: "greetings",
		unknown: `greet: Name does not resolve`,
	}, {
		name: "getent", program: "getent", argv: []string{"getent", "ahostsv4", "{host}"}, want: siteAddr + " ",
	}, {
		name: "dig", program: "dig", argv: []string{"dig", "+short", "{host}"}, want: siteAddr + "\n",
	},
}

// to is the client's command for a server.
func (c client) to(host string) []string {
	var argv []string
	for _, a := range c.argv {
		argv = append(argv, strings.ReplaceAll(a, "{host}", host))
	}
	return argv
}

// prints is what it prints there.
func (c client) prints(host string) string {
	if c.want == "" {
		return "this is " + host
	}
	return strings.ReplaceAll(c.want, "{host}", host)
}

// The names of three servers at one address: one that the task may reach, one
// that it may not, and one of which it knows the address from elsewhere.
const (
	allowedHost   = "api.good.test"
	unknownHost   = "www.evil.test"
	neighbourHost = "www.neighbour.test"
)

// atOnce is what a client may take to give up. One that waits for an answer waits
// for longer than that.
const atOnce = time.Second

// try holds a client to all that a guard promises of names.
func (p *product) try(t *testing.T, c client) {
	p.needs(t, c.program)
	if r := p.guarded(c.to(allowedHost)...); r.code != 0 || !strings.Contains(r.out, c.prints(allowedHost)) {
		t.Errorf("an allowed name, want %q: %s", c.prints(allowedHost), r)
	}
	p.refuses(t, c, unknownHost, c.unknown)
	if c.cut != "" {
		p.refuses(t, c, neighbourHost, c.cut)
	}
}

// refuses checks that a client fails at once below the guard, with an error of
// its own, and that it does not without.
func (p *product) refuses(t *testing.T, c client, host, want string) {
	t.Helper()
	argv := c.to(host)
	if r := p.run(argv[0], argv[1:]...); r.code != 0 || !strings.Contains(r.out, c.prints(host)) {
		t.Errorf("without a guard: %s", r)
	}
	// The machine may be busy: the fastest of some counts.
	for try := range 5 {
		r := p.guarded(argv...)
		if strings.Contains(r.out, c.prints(host)) || r.code == 0 && c.unknown != "" || !regexp.MustCompile(want).MatchString(r.err) {
			t.Errorf("want %s: %s", want, r)
		}
		if r.took < atOnce {
			return
		}
		if try == 4 {
			t.Errorf("not at once: %s", r)
		}
	}
}

// needs is for programs of the test's own as well.
func (p *product) needs(t *testing.T, program string) {
	t.Helper()
	if !exists(p.bin + "/" + program) {
		needs(t, program)
	}
}

// want checks what a guarded client prints.
func (p *product) want(t *testing.T, want string, argv ...string) result {
	t.Helper()
	r := p.guarded(argv...)
	if r.code != 0 || !strings.Contains(r.out, want) {
		t.Errorf("want %q: %s", want, r)
	}
	return r
}

// Sites of all kinds are reached.
func (p *product) sites(t *testing.T) {
	for _, tt := range []struct{ url, want string }{
		{"https://both.good.test/", "this is both.good.test"},
		{"https://six.good.test/", "at 2001:db8:ffff::10"},
		{"http://six.good.test/", "at 2001:db8:ffff::10"},
		{"https://alias.good.test/", "at 198.18.0.11"},
		{"https://API.Good.TEST/", "at " + siteAddr},
		{"https://many.good.test/", "this is many.good.test"},
	} {
		p.want(t, tt.want, "visit", tt.url)
	}
	// All of sixty addresses, whichever comes first.
	p.want(t, "this is turn.good.test", "visit", "https://turn.good.test/")
	for _, addr := range []string{"198.18.7.1", "198.18.7.30", "198.18.7.60"} {
		p.want(t, "at "+addr, "visit", "-at", addr+":443", "https://turn.good.test/")
	}
	t.Run("curl", func(t *testing.T) {
		needs(t, "curl")
		// The second request needs no connection of its own.
		for _, url := range []string{"https://api.good.test/", "http://api.good.test/"} {
			p.want(t, "connections 0", "curl", "-sS", "-w", "connections %{num_connects}\n", url, url)
		}
		p.want(t, "at 2001:db8:ffff::10", "curl", "-sS", "-6", "https://both.good.test/")
	})
}

// TLS of all kinds is read.
func (p *product) tls(t *testing.T) {
	p.want(t, "TLS 1.3, X25519MLKEM768, resumed true", "visit", "-again", "https://api.good.test/")
	p.want(t, "TLS 1.2", "visit", "https://api.good.test:1443/")
	p.want(t, "resumed true", "visit", "-again", "https://api.good.test:1443/")
	t.Run("openssl", func(t *testing.T) {
		needs(t, "openssl")
		p.want(t, "s_server", "visit", "https://api.good.test:8443/")
		p.want(t, "Reused, TLSv1.2", "sh", "-c", "openssl s_client -reconnect -connect api.good.test:1443 -servername api.good.test < /dev/null")
		p.want(t, "ALPN protocol: h2", "sh", "-c", "openssl s_client -alpn h2,http/1.1 -connect api.good.test:443 -servername api.good.test < /dev/null")
		r := p.guarded("sh", "-c", "openssl s_client -noservername -connect api.good.test:443 < /dev/null")
		if r.code == 0 || strings.Contains(r.out, "BEGIN CERTIFICATE") {
			t.Errorf("without a server name: %s", r)
		}
	})
}
