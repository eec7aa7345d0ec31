// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/textproto"
	"os"
	"os/exec"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"agentguard.dev/agentguard/internal/netns"
)

// origin is a server of Go's in the namespace, which counts its connections.
type origin struct {
	http.Server
	net.Listener
	mu    sync.Mutex
	conns []net.Conn
}

func newOrigin(t testing.TB, ns *netns.Handle, handler http.HandlerFunc) *origin {
	t.Helper()
	o := &origin{Listener: listen(t, ns, "192.0.2.1:80")}
	o.Handler = handler
	o.ConnState = func(c net.Conn, state http.ConnState) {
		if state == http.StateNew {
			o.mu.Lock()
			o.conns = append(o.conns, c)
			o.mu.Unlock()
		}
	}
	go o.Serve(o.Listener)
	t.Cleanup(func() { o.Server.Close() })
	return o
}

func (o *origin) accepted() []net.Conn {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.conns)
}

func body(t testing.TB, response *http.Response, err error) string {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	b, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestKeepAlive(t *testing.T) {
	ns := namespace(t)
	o := newOrigin(t, ns, func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprintf(w, "%s %s %v", r.Method, r.RequestURI, r.Header)
	})
	f := start(t, ns, Config{}, addrOf(o.Listener))
	client := f.client()
	for range 3 {
		response, err := client.Get("http://good.test/x")
		if got := body(t, response, err); got != "GET /x map[User-Agent:[Go-http-client/1.1]]" {
			t.Error(got)
		}
	}
	if n := len(o.accepted()); n != 1 {
		t.Errorf("%d connections to the server, want 1", n)
	}
	response, err := f.client().Get("http://good.test/x")
	body(t, response, err)
	if n := len(o.accepted()); n != 2 {
		t.Errorf("%d connections to the server of two, want 2", n)
	}

	// The server may hang up between requests; the task does not notice.
	for _, c := range o.accepted() {
		c.Close()
	}
	response, err = client.Get("http://good.test/x")
	body(t, response, err)
	if got := f.recorded(); !reflect.DeepEqual(got, slices.Repeat([]string{"allow GET good.test"}, 5)) {
		t.Errorf("records %q", got)
	}
}

// TestAnswers are those that a relay might spoil.
func TestAnswers(t *testing.T) {
	ns := namespace(t)
	for _, test := range []struct{ method, answer, want string }{
		{"GET", "HTTP/1.1 200 Fine\r\nContent-Length: 6\r\n\r\n<html>", "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>"},
		{"GET", "HTTP/1.1 200 OK\r\nX-B: 1\r\nX-B: 2\r\nDate: x\r\n\r\nto the end", "HTTP/1.1 200 OK\r\nDate: x\r\nX-B: 1\r\nX-B: 2\r\nTransfer-Encoding: chunked\r\n\r\na\r\nto the end\r\n0\r\n\r\n"},
		{"GET", "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc", "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc"},
		{"HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 600\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 600\r\n\r\n"},
		{"GET", "HTTP/1.1 304 Not Modified\r\nEtag: \"x\"\r\n\r\n", "HTTP/1.1 304 Not Modified\r\nEtag: \"x\"\r\n\r\n"},
		{"GET", "HTTP/1.1 204 No Content\r\n\r\n", "HTTP/1.1 204 No Content\r\n\r\n"},
		{"GET", "HTTP/1.1 302 Found\r\nLocation: http://evil.test/\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: http://evil.test/\r\n\r\n"},
		{
			"GET", "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>",
			"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>",
		},
		{
			"GET", "HTTP/1.1 200 OK\r\nTrailer: X-T\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\nX-T: 1\r\n\r\n",
			"HTTP/1.1 200 OK\r\nTrailer: X-T\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\nX-T: 1\r\n\r\n",
		},
		{
			"GET", "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
			"HTTP/1.1 502 Bad Gateway\r\n",
		},
		{"GET", "SSH-2.0-OpenSSH\r\n", "HTTP/1.1 502 Bad Gateway\r\n"},
	} {
		l := listen(t, ns, "192.0.2.1:80")
		var wg sync.WaitGroup
		wg.Go(func() {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			if _, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
				_, _ = io.WriteString(conn, test.answer)
			}
		})
		f := start(t, ns, Config{}, addrOf(l))
		conn := f.dial()
		_, _ = io.WriteString(conn, test.method+" / HTTP/1.1\r\nHost: good.test\r\n\r\n")
		got := make([]byte, len(test.want))
		if n, err := io.ReadFull(conn, got); string(got[:n]) != test.want {
			t.Errorf("%q: %v, got\n%q, want\n%q", test.answer, err, got[:n], test.want)
		}
		conn.Close()
		f.relay.Close()
		wg.Wait()
		l.Close()
	}
}

// TestStreaming has both sides take turns within one request.
func TestStreaming(t *testing.T) {
	ns := namespace(t)
	o := newOrigin(t, ns, func(w http.ResponseWriter, r *http.Request) {
		control := http.NewResponseController(w)
		_ = control.EnableFullDuplex()
		w.Header().Set("Trailer", "X-Sum")
		lines := bufio.NewScanner(r.Body)
		for lines.Scan() {
			_, _ = fmt.Fprintf(w, "%s!\n", lines.Text())
			_ = control.Flush()
		}
		w.Header().Set("X-Sum", r.Trailer.Get("X-Sum"))
	})
	f := start(t, ns, Config{}, addrOf(o.Listener))
	read, write := io.Pipe()
	request, _ := http.NewRequest("POST", "http://good.test/", read)
	request.Trailer = http.Header{"X-Sum": {"1+1"}}
	go func() { _, _ = io.WriteString(write, "0\n") }()
	response, err := f.client().Do(request)
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(response.Body)
	for i := range 10 {
		if !lines.Scan() || lines.Text() != fmt.Sprintf("%d!", i) {
			t.Fatalf("line %q, %v", lines.Text(), lines.Err())
		}
		_, _ = fmt.Fprintln(write, i+1)
	}
	write.Close()
	for lines.Scan() {
	}
	if got := response.Trailer.Get("X-Sum"); got != "1+1" {
		t.Errorf("trailer %q, sent there and back", got)
	}
}

func TestExpectContinue(t *testing.T) {
	ns := namespace(t)
	o := newOrigin(t, ns, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Expect") == "" {
			t.Error("the server does not know that it is to say so")
		}
		if r.URL.Path == "/no" {
			w.WriteHeader(http.StatusExpectationFailed)
			return
		}
		_, _ = io.Copy(w, r.Body)
	})
	f := start(t, ns, Config{}, addrOf(o.Listener))
	for path, want := range map[string]int{"no": 417, "yes": 200} {
		read := &noted{Reader: strings.NewReader("content")}
		request, _ := http.NewRequest("POST", "http://good.test/"+path, read)
		request.Header.Set("Expect", "100-continue")
		var continues int
		request = request.WithContext(httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
			Got100Continue: func() { continues++ },
			Got1xxResponse: func(int, textproto.MIMEHeader) error { continues++; return nil },
		}))
		response, err := f.client().Do(request)
		body(t, response, err)
		if response.StatusCode != want || read.yes != (want == 200) || continues != 0 && want != 200 {
			t.Errorf("%s: status %d, content sent %v, %d times 100", path, response.StatusCode, read.yes, continues)
		}
	}
}

// noted notes that it was read.
type noted struct {
	io.Reader
	yes bool
}

func (n *noted) Read(p []byte) (int, error) {
	n.yes = true
	return n.Reader.Read(p)
}

func TestLargeBodies(t *testing.T) {
	ns := namespace(t)
	o := newOrigin(t, ns, func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).EnableFullDuplex()
		_, _ = io.Copy(w, r.Body)
	})
	f := start(t, ns, Config{}, addrOf(o.Listener))
	const size = 64 << 20
	sent, got := sha256.New(), sha256.New()
	content := io.TeeReader(io.LimitReader(rand.NewChaCha8([32]byte{}), size), sent)
	response, err := f.client().Post("http://good.test/", "", content)
	if err != nil {
		t.Fatal(err)
	}
	n, err := io.Copy(got, response.Body)
	if err != nil || n != size || !bytes.Equal(sent.Sum(nil), got.Sum(nil)) {
		t.Errorf("%d bytes came back, %v", n, err)
	}
}

// TestRefused shows what a task sees of a server that is not there.
func TestRefused(t *testing.T) {
	ns := namespace(t)
	f := start(t, ns, Config{}, netip.MustParseAddrPort("192.0.2.1:80"))
	client := f.client()
	for range 2 { // the connection is kept
		response, err := client.Get("http://good.test/")
		got := body(t, response, err)
		if want := "agentguard: allowed, but good.test at 192.0.2.1:80 does not answer: connect: connection refused\n"; response.StatusCode != 502 || got != want {
			t.Errorf("%s, %q", response.Status, got)
		}
	}
	if n := len(links(f)); n != 1 {
		t.Errorf("%d links", n)
	}
}

func links(f *fixture) (all []*link) {
	f.relay.mu.Lock()
	defer f.relay.mu.Unlock()
	for l := range f.relay.links {
		all = append(all, l)
	}
	return all
}

// await asks until something is so, for what nothing tells of.
func await(t testing.TB, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

// TestPort holds the host's port to another one than 80, on the station's other
// address.
func TestPort(t *testing.T) {
	ns := namespace(t)
	server := newRecorder(t, ns, "[::1]:8080")
	f := start(t, ns, Config{}, addrOf(server))
	for host, status := range map[string]string{"good.test": "403", "good.test:80": "403", "good.test:8080": "200"} {
		conn := dialIn(t, ns, fmt.Sprintf("[::1]:%d", f.port))
		_, _ = fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", host)
		got, err := io.ReadAll(conn)
		if err != nil || !strings.HasPrefix(string(got), "HTTP/1.1 "+status) {
			t.Errorf("%s: %v, %q", host, err, got)
		}
	}
	if got := server.all(f); got != "GET / HTTP/1.1\r\nHost: good.test:8080\r\n\r\n" {
		t.Errorf("%q", got)
	}
}

func TestWebSocket(t *testing.T) {
	ns := namespace(t)
	l := listen(t, ns, "192.0.2.1:80")
	f := start(t, ns, Config{}, addrOf(l))
	served := make(chan error, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			served <- err
			return
		}
		defer conn.Close()
		buffered := bufio.NewReader(conn)
		r, err := http.ReadRequest(buffered)
		if err != nil || r.Header.Get("Upgrade") != "websocket" || r.Header.Get("Sec-WebSocket-Key") != "abc" {
			served <- fmt.Errorf("%v, %v", err, r)
			return
		}
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello ")
		_, err = io.Copy(conn, buffered)
		served <- err
	}()
	conn := f.dial()
	_, _ = io.WriteString(conn, "GET /ws HTTP/1.1\r\nHost: good.test\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: abc\r\n\r\n")
	buffered := bufio.NewReader(conn)
	if response, err := http.ReadResponse(buffered, nil); err != nil || response.StatusCode != 101 {
		t.Fatalf("%v, %v", response, err)
	}
	_, _ = io.WriteString(conn, "\x00binary\n")
	if got, err := buffered.ReadString('\n'); got != "hello \x00binary\n" {
		t.Fatalf("%q, %v", got, err)
	}
	if n := f.relay.Recheck(7); n != 0 {
		t.Errorf("%d connections cut that are allowed", n)
	}
	_ = conn.CloseWrite()
	if rest, err := io.ReadAll(buffered); err != nil || len(rest) > 0 {
		t.Errorf("after the end: %q, %v", rest, err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
	await(t, "the link ends", func() bool { return len(links(f)) == 0 })
}

// TestClients has real ones ask for an allowed host, twice, and for another.
func TestClients(t *testing.T) {
	ns := namespace(t)
	o := newOrigin(t, ns, func(w http.ResponseWriter, r *http.Request) {
		content, _ := io.ReadAll(r.Body)
		_ = json.NewEncoder(w).Encode([]string{r.Method, r.Host, r.URL.Path, string(content)})
	})
	for name, command := range map[string][]string{
		"curl": {"curl", "-sS", "--max-time", "10", "--connect-to", "::STATION", "http://good.test/a", "-d", "content", "--next",
			"-sS", "--http2", "--connect-to", "::STATION", "http://GOOD.test/b", "--next",
			"-sS", "--connect-to", "::STATION", "-o", "/dev/null", "-w", "%{http_code}\n", "http://evil.test/"},
		"python3": {"python3", "-c", `
import http.client
for method, host, path, body in [("POST", "good.test", "/a", "content"), ("GET", "GOOD.test", "/b", None)]:
    c = http.client.HTTPConnection("STATION", timeout=10)
    c.request(method, path, body, {"Host": host})
    print(c.getresponse().read().decode(), end="")
c.request("GET", "/", headers={"Host": "evil.test"})
print(c.getresponse().status)`},
		"node": {"node", "-e", `
const http = require("http"), [host, port] = "STATION".split(":"), agent = new http.Agent({keepAlive: true, maxSockets: 1})
const ask = (method, name, path, body) => new Promise(done => {
  const r = http.request({host, port, method, path, agent, headers: {Host: name}}, answer => {
    let text = ""
    answer.on("data", d => text += d).on("end", () => done([answer.statusCode, text]))
  })
  r.end(body)
})
;(async () => {
  process.stdout.write((await ask("POST", "good.test", "/a", "content"))[1])
  process.stdout.write((await ask("GET", "GOOD.test", "/b"))[1])
  console.log((await ask("GET", "evil.test", "/"))[0])
  agent.destroy()
})()`},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := exec.LookPath(command[0]); err != nil {
				t.Skipf("%s is not installed", name)
			}
			f := start(t, ns, Config{}, addrOf(o.Listener))
			var args []string
			for _, arg := range command[1:] {
				args = append(args, strings.ReplaceAll(arg, "STATION", f.station()))
			}
			var out []byte
			in(t, ns, func() (err error) {
				cmd := exec.CommandContext(t.Context(), command[0], args...)
				cmd.Stderr = os.Stderr
				out, err = cmd.Output()
				return err
			})
			want := `["POST","good.test","/a","content"]` + "\n" + `["GET","good.test","/b",""]` + "\n403\n"
			if string(out) != want {
				t.Errorf("%s, want %s", out, want)
			}
			if got := f.recorded(); !reflect.DeepEqual(got, []string{"allow POST good.test", "allow GET good.test", "deny GET evil.test"}) {
				t.Errorf("records %q", got)
			}
		})
	}
}

// TestPythonServer has one that speaks HTTP/1.0 and closes after each answer.
func TestPythonServer(t *testing.T) {
	if _, err := exec.LookPath("python3"); err != nil {
		t.Skip("python3 is not installed")
	}
	ns := namespace(t)
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/file", bytes.Repeat([]byte("x"), 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	server := exec.CommandContext(t.Context(), "python3", "-u", "-m", "http.server", "--bind", "192.0.2.1", "--directory", dir, "80")
	out, err := server.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	in(t, ns, server.Start)
	defer func() {
		_ = server.Process.Kill()
		_ = server.Wait()
	}()
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(line, err)
	}
	f := start(t, ns, Config{}, netip.MustParseAddrPort("192.0.2.1:80"))
	client := f.client()
	for range 3 {
		response, err := client.Get("http://good.test/file")
		if got := body(t, response, err); len(got) != 1<<20 {
			t.Errorf("%d bytes", len(got))
		}
	}
	response, err := client.Head("http://good.test/none")
	body(t, response, err)
	if response.StatusCode != 404 {
		t.Error(response.Status)
	}
}
