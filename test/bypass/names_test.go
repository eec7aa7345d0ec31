// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// namedFlows begin by name.
func namedFlows() []flow {
	const tlsRule, httpRule = "good.test:443", "good.test:80"
	// Another name of the very same address is no reason to go on.
	replaced := func(rule string) func(guardedTask) error {
		return func(task guardedTask) error { return task.apply(spec{allow: []string{rule}}) }
	}
	return []flow{
		{name: "end-name-tls", what: "a TLS session by name goes on after the end of the task", grants: []string{tlsRule}, cut: ended, told: true, open: greetedFlow},
		{name: "end-name-http", what: "the body of a request that is relayed goes on after the end of the task", grants: []string{httpRule}, cut: ended, told: true, open: bodyFlow},
		{name: "revoke-name-tls", what: "a TLS session by name goes on after its grant is taken back", grants: []string{tlsRule}, cut: revoked(tlsRule), told: true, open: greetedFlow},
		{name: "revoke-name-http", what: "the body of a request that is relayed goes on after its grant is taken back", grants: []string{httpRule}, cut: revoked(httpRule), told: true, open: bodyFlow},
		{name: "expire-name-tls", what: "a TLS session by name goes on after its grant's deadline", grants: []string{tlsRule}, cut: expired(tlsRule), told: true, open: greetedFlow},
		{name: "expire-name-http", what: "the body of a request that is relayed goes on after its grant's deadline", grants: []string{httpRule}, cut: expired(httpRule), told: true, open: bodyFlow},
		{name: "policy-name-tls", what: "a TLS session by name goes on after the policy has changed", allow: []string{tlsRule}, cut: withdrawn(), told: true, open: greetedFlow},
		{name: "policy-name-http", what: "the body of a request that is relayed goes on after the policy has changed", allow: []string{httpRule}, cut: withdrawn(), told: true, open: bodyFlow},
		{name: "policy-name-neighbour", what: "a TLS session by name goes on after the policy has another name of that address instead", allow: []string{tlsRule}, cut: replaced("neighbour.test:443"), told: true, open: greetedFlow},
		{name: "policy-name-neighbour-http", what: "the body of a request that is relayed goes on after the policy has another name of that address instead", allow: []string{httpRule}, cut: replaced("neighbour.test:80"), told: true, open: bodyFlow},
	}
}

// begun connects by name, says data, and waits until it is answered if it is.
func (a *attempt) begun(name string, port uint16, data []byte) (sock, error) {
	addr, err := a.lookUp(name)
	if err != nil {
		return -1, err
	}
	s, err := openFor(addr, unix.SOCK_STREAM, unix.IPPROTO_TCP)
	if err != nil {
		return -1, err
	}
	err = s.set(unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	if err == nil {
		err = s.connect(at(addr, port))
	}
	if err == nil {
		err = s.write(data)
	}
	if err == nil {
		err = s.settled(patient)
	}
	return s, err
}

func greetedFlow(a *attempt) (func(int) error, error) {
	s, err := a.begun("good.test.", allowedPort, helloWith("good.test", "h2"))
	return func(i int) error { return s.send(a.numbered(i), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL) }, err
}

func bodyFlow(a *attempt) (func(int) error, error) {
	s, err := a.begun("good.test.", httpPort, []byte("POST / HTTP/1.1\r\nHost: good.test\r\nTransfer-Encoding: chunked\r\n\r\n"))
	return func(i int) error {
		data := a.numbered(i)
		return s.send(fmt.Appendf(nil, "%x\r\n%s\r\n", len(data), data), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	}, err
}

// client goes by name, as the lab resolves it.
func (a *attempt) client() *http.Client {
	return &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			host, port, err := net.SplitHostPort(address)
			if err != nil {
				return nil, err
			}
			addr, err := a.lookUp(dns.Fqdn(host))
			if err != nil {
				return nil, err
			}
			var d net.Dialer
			return d.DialContext(ctx, network, net.JoinHostPort(addr.String(), port))
		},
	}}
}

// byNames are the same ways as those of the techniques, for what is allowed.
func byNames() []control {
	good := []byte("for good.test\n")
	asks := func(name, what string, to netip.Addr, network string, kind uint16) control {
		return control{name: name, what: what, allow: named(), try: func(*attempt) error {
			addr, err := resolve(at(to, dnsPort), network, "good.test.", kind)
			if err == nil && addr != shared4 && addr != shared6 {
				err = fmt.Errorf("the answer is %s", addr)
			}
			return err
		}}
	}
	greets := func(name, what string, try func(a *attempt, to netip.AddrPort) error) control {
		return control{name: name, what: what, allow: named(), try: func(a *attempt) error {
			addr, err := a.lookUp("good.test.")
			if err != nil {
				return err
			}
			return try(a, at(addr, allowedPort))
		}}
	}
	session := func(send func(s sock, data []byte) error, data []byte) func(*attempt, netip.AddrPort) error {
		return func(a *attempt, to netip.AddrPort) error {
			return tcpSocket(to.Addr(), func(a *attempt, s sock) error {
				if err := s.set(unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
					return err
				}
				if err := s.connect(to); err != nil {
					return err
				}
				if err := send(s, data); err != nil {
					return err
				}
				return s.readAllBack(data)
			})(a)
		}
	}
	whole := func(s sock, data []byte) error { return s.write(data) }
	octets := func(s sock, data []byte) error {
		for _, octet := range data {
			if err := s.write([]byte{octet}); err != nil {
				return err
			}
		}
		return nil
	}
	plain := helloWith("good.test", "h2")
	say := func(name, what string, hello []byte) control { return greets(name, what, session(whole, hello)) }
	at4 := at(resolver4, dnsPort)
	return []control{
		asks("dns-udp", "an allowed name, asked by UDP", resolver4, "udp", dns.TypeA),
		asks("dns-udp6", "the same over IPv6", resolver6, "udp", dns.TypeA),
		asks("dns-aaaa", "its IPv6 address", resolver4, "udp", dns.TypeAAAA),
		asks("dns-tcp", "the same by TCP", resolver4, "tcp", dns.TypeA),
		asks("dns-tcp6", "the same by TCP over IPv6", resolver6, "tcp", dns.TypeA),
		asks("dns-mapped", "the same at the resolver's IPv4-mapped address", mapped(resolver4), "udp", dns.TypeA),
		{name: "dns-sendto", what: "the same by sendto; the answer comes from whom was asked", allow: named(), try: udpSocket(resolver4, func(a *attempt, s sock) error {
			if err := s.sendTo(packed(query("good.test.", dns.TypeA)), 0, at4); err != nil {
				return err
			}
			_, from, err := unix.Recvfrom(int(s), make([]byte, 1<<12), 0)
			if err != nil {
				return step("recvfrom", err)
			}
			if from, ok := from.(*unix.SockaddrInet4); !ok || from.Addr != resolver4.As4() || from.Port != dnsPort {
				return fmt.Errorf("the answer is from %v", from)
			}
			return nil
		})},
		{name: "dns-large", what: "a question of 4,000 octets", allow: named(), try: udpSocket(resolver4, func(a *attempt, s sock) error {
			q := query("good.test.", dns.TypeA)
			q.IsEdns0().Option = append(q.IsEdns0().Option, &dns.EDNS0_PADDING{Padding: make([]byte, 4000)})
			if err := s.sendTo(packed(q), 0, at4); err != nil {
				return err
			}
			_, err := unix.Read(int(s), make([]byte, 1<<12))
			return err
		})},
		{name: "dns-dnsmasq", what: "a resolver that only a rule names: dnsmasq", tools: []string{"dnsmasq"}, allow: []string{"real.test:443", "udp://198.51.100.54:53"}, try: askReal,
			stage: realResolver("dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--pid-file", "--user=root",
				"--listen-address=198.51.100.54", "--bind-interfaces", "--address=/real.test/198.51.100.80")},
		{name: "dns-unbound", what: "the same: unbound", tools: []string{"unbound"}, allow: []string{"real.test:443", "udp://198.51.100.54:53"}, try: askReal,
			stage: realResolver("unbound", "-d", "-c", unboundConfig)},
		{name: "name-ping", what: "a ping by name", allow: named("icmp://good.test"), try: func(a *attempt) error {
			addr, err := a.lookUp("good.test.")
			return errors.Join(err, ping(addr, unix.IPPROTO_ICMP)(a))
		}},
		{name: "name-udp", what: "UDP by name", allow: named("udp://good.test:8443"), try: func(a *attempt) error {
			addr, err := a.lookUp("good.test.")
			return errors.Join(err, exchange("udp", at(addr, deniedPort).String(), 5, 100)(a))
		}},
		{name: "name-tls-off", what: "no TLS where a name needs none", allow: named(), policy: []string{"tls: off"}, try: func(a *attempt) error {
			addr, err := a.lookUp("good.test.")
			return errors.Join(err, exchange("tcp", at(addr, allowedPort).String(), 5, 100)(a))
		}},
		{name: "rebind-rule", what: "a name that leads inside, to where a rule for addresses leads as well", allow: []string{"private.rebind.test:443", "10.0.0.0/24:443"}, policy: []string{"tls: off"}, try: func(a *attempt) error {
			addr, err := a.lookUp("private.rebind.test.")
			return errors.Join(err, exchange("tcp", at(addr, allowedPort).String(), 5, 100)(a))
		}},
		say("tls-hello", "a hello with an allowed name", plain),
		say("tls-case", "the name in capitals", helloWith("GOOD.TEST", "h2")),
		{name: "nat-name", what: "a name that leads to a service address that the host translates", tools: []string{"nft"}, allow: named("service.test:443"), stage: translation, try: func(a *attempt) error {
			addr, err := a.lookUp("service.test.")
			return errors.Join(err, session(whole, helloWith("service.test", "h2"))(a, at(addr, allowedPort)))
		}},
		say("tls-two", "the hello and what follows it, at once", append(plain[:len(plain):len(plain)], "more"...)),
		greets("tls-mapped", "the same to the IPv4-mapped address", func(a *attempt, to netip.AddrPort) error {
			return session(whole, plain)(a, at(mapped(to.Addr()), to.Port()))
		}),
		{name: "tls6", what: "the same over IPv6", allow: named(), try: func(a *attempt) error {
			addr, err := resolve(at4, "udp", "good.test.", dns.TypeAAAA)
			return errors.Join(err, session(whole, plain)(a, at(addr, allowedPort)))
		}},
		{name: "tls-wildcard", what: "a name below an allowed wildcard", allow: named(), try: func(a *attempt) error {
			addr, err := a.lookUp("a.b.wild.test.")
			return errors.Join(err, session(whole, helloWith("a.b.wild.test", "h2"))(a, at(addr, allowedPort)))
		}},
		greets("tls-split", "the hello split at every octet", func(a *attempt, to netip.AddrPort) error {
			for i := 1; i < len(plain); i++ {
				if err := session(func(s sock, data []byte) error {
					return errors.Join(s.write(data[:i]), s.write(data[i:]))
				}, plain)(a, to); err != nil {
					return fmt.Errorf("at %d: %w", i, err)
				}
			}
			return nil
		}),
		greets("tls-octets", "the hello octet by octet", session(octets, plain)),
		greets("tls-fastopen", "the hello on the SYN", func(a *attempt, to netip.AddrPort) error {
			return tcpSocket(to.Addr(), func(a *attempt, s sock) error {
				if err := s.sendTo(plain, unix.MSG_FASTOPEN, to); err != nil {
					return err
				}
				return s.readAllBack(plain)
			})(a)
		}),
		greets("tls-reconnect", "two sessions with one socket", func(a *attempt, to netip.AddrPort) error {
			return tcpSocket(to.Addr(), func(a *attempt, s sock) error {
				for range 2 {
					if err := s.connect(to); err != nil {
						return err
					}
					if err := s.write(plain); err != nil {
						return err
					}
					if err := s.readAllBack(plain); err != nil {
						return err
					}
					if err := s.disconnect(); err != nil {
						return err
					}
				}
				return nil
			})(a)
		}),
		greets("tls-then-sendfile", "sendfile after the hello", session(func(s sock, data []byte) error {
			if err := s.write(data); err != nil {
				return err
			}
			if err := s.readAllBack(data); err != nil {
				return err
			}
			return sendfileTo(s, data)
		}, plain)),
		{name: "tls-client", what: "Go's HTTPS client", allow: []string{"good.test:9443"}, stage: tlsServer(at(shared4, 9443), good), try: func(a *attempt) error {
			return getWith(a.client(), "https://good.test:9443/", good)
		}},
		{name: "http-get", what: "Go's HTTP client, five requests on one connection", allow: named(), try: func(a *attempt) error {
			return getWith(a.client(), "http://good.test/", good)
		}},
		{name: "http-post", what: "a body of 1 MiB in chunks", allow: named(), try: func(a *attempt) error {
			answer, err := a.client().Post("http://good.test/", "text/plain", struct{ *strings.Reader }{strings.NewReader(strings.Repeat("x", 1<<20))})
			if err != nil {
				return err
			}
			defer answer.Body.Close()
			if answer.StatusCode != http.StatusOK {
				return errors.New(answer.Status)
			}
			return nil
		}},
		says("http-absolute", "an absolute URI", "GET http://good.test/ HTTP/1.1\r\nHost: good.test\r\n\r\n", 1),
		says("http-pipelined", "two requests at once", strings.Repeat("GET / HTTP/1.1\r\nHost: good.test\r\n\r\n", 2), 2),
	}
}

// says makes requests of the text and wants that many answers.
func says(name, what, text string, answers int) control {
	return control{name: name, what: what, allow: named(), try: func(a *attempt) error {
		addr, err := a.lookUp("good.test.")
		if err != nil {
			return err
		}
		return tcpSocket(addr, func(a *attempt, s sock) error {
			if err := s.connect(at(addr, httpPort)); err != nil {
				return err
			}
			if err := s.write([]byte(text)); err != nil {
				return err
			}
			var all string
			for buffer := make([]byte, 1<<12); strings.Count(all, "\nfor good.test\n") < answers; {
				n, err := unix.Read(int(s), buffer)
				if err != nil || n == 0 {
					return fmt.Errorf("after %q: %w", all, err)
				}
				all += string(buffer[:n])
			}
			return nil
		})(a)
	}}
}

// readAllBack wants data back, in however many pieces.
func (s sock) readAllBack(data []byte) error {
	for buffer := make([]byte, 1<<12); len(data) > 0; {
		n, err := unix.Read(int(s), buffer)
		if err != nil {
			return step("read back", err)
		}
		if n == 0 || !strings.HasPrefix(string(data), string(buffer[:n])) {
			return fmt.Errorf("%q came back, not %q", buffer[:n], data)
		}
		data = data[n:]
	}
	return nil
}

// tlsServer serves one page over TLS in the sink for one trial.
func tlsServer(address netip.AddrPort, page []byte) func(*trial) error {
	return func(t *trial) error {
		server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write(page) }))
		server.Listener.Close()
		if err := t.lab.sink.Do(func() (err error) {
			server.Listener, err = net.Listen("tcp", address.String())
			return err
		}); err != nil {
			return err
		}
		server.StartTLS()
		t.cleanup = append(t.cleanup, func() error { server.Close(); return nil })
		return nil
	}
}

const unboundConfig = `server:
 interface: 198.51.100.54
 access-control: 0.0.0.0/0 allow
 do-daemonize: no
 chroot: ""
 username: ""
 pidfile: ""
 directory: ""
 module-config: "iterator"
 num-threads: 1
 use-syslog: no
 local-zone: "real.test." static
 local-data: "real.test. A 198.51.100.80"
remote-control:
 control-enable: no
`

// realResolver runs a program in the sink for one trial. An argument of several
// lines is the content of a file.
func realResolver(program string, args ...string) func(*trial) error {
	return func(t *trial) error {
		args := append([]string(nil), args...)
		for i, arg := range args {
			if !strings.Contains(arg, "\n") {
				continue
			}
			file, err := os.CreateTemp("", "bypass")
			if err != nil {
				return err
			}
			t.cleanup = append(t.cleanup, func() error { return os.Remove(file.Name()) })
			if _, err := file.WriteString(arg); err != nil {
				return err
			}
			if err := file.Close(); err != nil {
				return err
			}
			args[i] = file.Name()
		}
		cmd := exec.Command(program, args...)
		if err := t.lab.sink.Do(cmd.Start); err != nil {
			return err
		}
		t.cleanup = append(t.cleanup, func() error { cmd.Process.Kill(); cmd.Wait(); return nil })
		for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			err := t.lab.sink.Do(func() error {
				_, err := resolve(at(another4, dnsPort), "udp", "real.test.", dns.TypeA)
				return err
			})
			if err == nil || time.Now().After(deadline) {
				return err
			}
		}
	}
}

func askReal(*attempt) error {
	addr, err := resolve(at(another4, dnsPort), "udp", "real.test.", dns.TypeA)
	if err == nil && addr != shared4 {
		err = fmt.Errorf("the answer is %s", addr)
	}
	return err
}
