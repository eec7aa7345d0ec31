// SPDX-License-Identifier: Apache-2.0

package hello

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

const site = "api.example.com"

// recording is the first payload that a real client sent.
type recording struct {
	client  string
	payload []byte
	want    answer
}

// recordings are those in testdata, one of each client.
func recordings(t testing.TB) []recording {
	t.Helper()
	var all []recording
	for _, c := range clients {
		payload, err := os.ReadFile(filepath.Join("testdata", c.name+".hello"))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, recording{c.name, payload, c.want})
	}
	return all
}

// Real clients' hellos are read whole, and not before they are whole.
func TestClients(t *testing.T) {
	if *update {
		for _, c := range clients {
			if err := c.record(); err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
		}
	}
	p := newParser(t)
	for _, r := range recordings(t) {
		t.Run(r.client, func(t *testing.T) {
			if got := p.read(t, r.payload); got != r.want {
				t.Errorf("%v, want %v", got, r.want)
			}
			if got := p.read(t, slices.Concat(r.payload, []byte("and early data"))); got != r.want {
				t.Errorf("with more behind it: %v, want %v", got, r.want)
			}
			check(t, p, r.payload)
			checkPrefixes(t, p, r.payload)
		})
	}
}

// client is a way to say hello. Its last connection counts, so that it can resume a session.
type client struct {
	name    string
	command []string // "{port}" is the server's
	run     func(address string) error
	want    answer
}

var clients = []client{
	{name: "go", run: dial(&tls.Config{ServerName: site}, 1)},
	{name: "go-classic", run: dial(&tls.Config{ServerName: site, CurvePreferences: []tls.CurveID{tls.X25519}}, 1)},
	{name: "go-alpn", run: dial(&tls.Config{ServerName: site, NextProtos: []string{"h2", "http/1.1"}}, 1)},
	{name: "go-resumed", run: dial(&tls.Config{ServerName: site, ClientSessionCache: tls.NewLRUClientSessionCache(1)}, 2)},
	{name: "go-tls12", run: dial(&tls.Config{ServerName: site, MaxVersion: tls.VersionTLS12}, 1)},
	{name: "go-tls12-resumed", run: dial(&tls.Config{ServerName: site, MaxVersion: tls.VersionTLS12, ClientSessionCache: tls.NewLRUClientSessionCache(1)}, 2)},
	{name: "go-nameless", run: dial(&tls.Config{}, 1), want: answer{verdict: noName}},
	{name: "go-ech", run: dial(&tls.Config{ServerName: "secret.example.com", MinVersion: tls.VersionTLS13, EncryptedClientHelloConfigList: echConfigs()}, 1), want: answer{verdict: encrypted}},

	{name: "openssl", command: openssl("-servername", site)},
	{name: "openssl-upper-dot", command: openssl("-servername", "API.Example.COM.")},
	{name: "openssl-alpn", command: openssl("-servername", site, "-alpn", "h2,http/1.1", "-status")},
	{name: "openssl-tls12", command: openssl("-servername", site, "-tls1_2")},
	{name: "openssl-tls12-resumed", command: openssl("-servername", site, "-tls1_2", "-reconnect")},
	{name: "openssl-nameless", command: openssl("-noservername"), want: answer{verdict: noName}},

	{name: "curl", command: curl()},
	{name: "curl-http1", command: curl("--http1.1")},
	{name: "curl-tls12", command: curl("--tls-max", "1.2")},

	{name: "python", command: python(1, "ssl.PROTOCOL_TLS_CLIENT")},
	{name: "python-resumed", command: python(2, "ssl.PROTOCOL_TLS_CLIENT")},
	{name: "python-tls12", command: python(1, "ssl.PROTOCOL_TLSv1_2")},

	{name: "node", command: node("")},
	{name: "node-alpn", command: node("ALPNProtocols: ['h2', 'http/1.1'],")},
	{name: "node-tls12", command: node("maxVersion: 'TLSv1.2',")},
}

func init() {
	for i := range clients {
		if clients[i].want == (answer{}) {
			clients[i].want = answer{named, site}
		}
	}
}

func openssl(arguments ...string) []string {
	return append([]string{"openssl", "s_client", "-connect", "127.0.0.1:{port}"}, arguments...)
}

func curl(arguments ...string) []string {
	return append([]string{"curl", "--silent", "--insecure", "--noproxy", "*", "--resolve", site + ":{port}:127.0.0.1",
		"https://" + site + ":{port}/"}, arguments...)
}

func python(connections int, protocol string) []string {
	return []string{"python3", "-W", "ignore", "-c", fmt.Sprintf(`
import socket, ssl
context = ssl.SSLContext(%s)
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
session = None
for _ in range(%d):
    s = context.wrap_socket(socket.create_connection(("127.0.0.1", {port})), server_hostname=%q, session=session)
    s.recv(1)
    session = s.session
    s.close()
`, protocol, connections, site)}
}

func node(options string) []string {
	return []string{"node", "-e", fmt.Sprintf(`
require('tls').connect({host: '127.0.0.1', port: {port}, servername: '%s', rejectUnauthorized: false, %s},
	function () { this.end() })`, site, options)}
}

// dial says hello that many times, the last time with what it has learned.
func dial(config *tls.Config, times int) func(string) error {
	config.InsecureSkipVerify = config.EncryptedClientHelloConfigList == nil
	return func(address string) error {
		for range times {
			c, err := tls.Dial("tcp", address, config)
			if config.EncryptedClientHelloConfigList != nil && err != nil {
				return nil // the server cannot decrypt it
			}
			if err != nil {
				return err
			}
			_, err = io.ReadFull(c, make([]byte, 1)) // session tickets come with the first data
			c.Close()
			if err != nil {
				return err
			}
		}
		return nil
	}
}

// echConfigs is what a site publishes so that clients can encrypt their hellos for it (RFC 9849).
func echConfigs() []byte {
	key, err := ecdh.X25519().NewPrivateKey(bytes.Repeat([]byte{7}, 32))
	if err != nil {
		panic(err)
	}
	const x25519, sha256, aes128 = 0x0020, 1, 1
	var suite []byte
	for _, n := range []uint16{sha256, aes128} {
		suite = binary.BigEndian.AppendUint16(suite, n)
	}
	config := slices.Concat(
		[]byte{1, 0, x25519}, vector(2, key.PublicKey().Bytes()), vector(2, suite),
		[]byte{64}, vector(1, []byte(site)), vector(2))
	return vector(2, extension(0xfe0d, config))
}

// record has the client talk to a server here, and keeps what it says first.
func (c client) record() error {
	heard, err := listen()
	if err != nil {
		return err
	}
	defer heard.Close()
	address := heard.Addr().String()
	if c.run != nil {
		err = c.run(address)
	} else {
		_, port, _ := net.SplitHostPort(address)
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		var command []string
		for _, argument := range c.command {
			command = append(command, strings.ReplaceAll(argument, "{port}", port))
		}
		cmd := exec.CommandContext(ctx, command[0], command[1:]...)
		var output []byte
		if output, err = cmd.CombinedOutput(); err != nil && heard.last() == nil {
			err = fmt.Errorf("%w: %s", err, output)
		} else {
			err = nil // not everybody likes what the server says
		}
	}
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join("testdata", c.name+".hello"), heard.last(), 0o644)
}

// listener is a TLS server that greets with one byte, and keeps the first record of its last connection.
type listener struct {
	net.Listener
	served sync.WaitGroup
	mu     sync.Mutex
	hello  []byte
}

func listen() (*listener, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{site}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	config := &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	l := &listener{Listener: tcp}
	l.served.Go(func() {
		for {
			c, err := tcp.Accept()
			if err != nil {
				return
			}
			l.served.Go(func() { l.serve(c, config) })
		}
	})
	return l, nil
}

func (l *listener) serve(c net.Conn, config *tls.Config) {
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	hello := make([]byte, 5)
	if _, err := io.ReadFull(c, hello); err != nil {
		return
	}
	hello = append(hello, make([]byte, binary.BigEndian.Uint16(hello[3:]))...)
	if _, err := io.ReadFull(c, hello[5:]); err != nil {
		return
	}
	l.mu.Lock()
	l.hello = hello
	l.mu.Unlock()
	server := tls.Server(&replay{c, io.MultiReader(bytes.NewReader(hello), c)}, config)
	if _, err := server.Write([]byte("!")); err == nil {
		io.Copy(io.Discard, server)
	}
}

func (l *listener) last() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.hello
}

func (l *listener) Close() error {
	err := l.Listener.Close()
	l.served.Wait()
	return err
}

// replay is a connection of which something has been read already.
type replay struct {
	net.Conn
	in io.Reader
}

func (r *replay) Read(b []byte) (int, error) { return r.in.Read(b) }
