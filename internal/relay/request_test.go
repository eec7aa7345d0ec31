// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"bufio"
	"io"
	"net/http"
	"reflect"
	"strings"
	"testing"
)

// TestBytes sends bytes, and compares all that the server gets.
func TestBytes(t *testing.T) {
	ns := namespace(t)
	get := "GET / HTTP/1.1\r\nHost: good.test\r\n"
	end := get + "Connection: close\r\n\r\n"
	out := get + "\r\n" // either of them, written anew
	evil := "GET /evil HTTP/1.1\r\nHost: evil.test\r\n\r\n"
	post := "POST / HTTP/1.1\r\nHost: good.test\r\n"
	chunked := post + "Transfer-Encoding: chunked\r\n"

	unreadable := []string{"allow POST good.test", "deny"}

	for name, test := range map[string]struct {
		in      string
		out     string
		answers []int
		records []string
	}{
		"a request":  {end, out, []int{200}, []string{"allow GET good.test"}},
		"two":        {get + "\r\n" + end, out + out, []int{200, 200}, []string{"allow GET good.test", "allow GET good.test"}},
		"another":    {evil, "", []int{403}, []string{"deny GET evil.test"}},
		"then evil":  {get + "\r\n" + evil + end, out, []int{200, 403}, []string{"allow GET good.test", "deny GET evil.test"}},
		"HTTP/1.0":   {"GET / HTTP/1.0\r\nhost: good.test\r\n\r\n", out, []int{200}, []string{"allow GET good.test"}},
		"blank line": {"\r\n" + end, "", []int{400}, []string{"deny"}},

		"case and dot":    {"GET / HTTP/1.1\r\nHOST: Good.TEST.\r\nConnection: close\r\n\r\n", out, []int{200}, []string{"allow GET good.test"}},
		"port":            {"GET / HTTP/1.1\r\nHost: good.test:80\r\nConnection: close\r\n\r\n", out, []int{200}, []string{"allow GET good.test"}},
		"another port":    {"GET / HTTP/1.1\r\nHost: good.test:8080\r\n\r\n", "", []int{403}, []string{"deny GET good.test"}},
		"port with zeros": {"GET / HTTP/1.1\r\nHost: good.test:0080\r\n\r\n", "", []int{403}, []string{"deny GET good.test"}},
		"no port":         {"GET / HTTP/1.1\r\nHost: good.test:\r\n\r\n", "", []int{403}, []string{"deny GET good.test"}},
		"below":           {"GET / HTTP/1.1\r\nHost: a.good.test\r\n\r\n", "", []int{403}, []string{"deny GET a.good.test"}},
		"address":         {"GET / HTTP/1.1\r\nHost: 192.0.2.1\r\n\r\n", "", []int{403}, []string{"deny GET 192.0.2.1"}},
		"IPv6":            {"GET / HTTP/1.1\r\nHost: [::1]\r\n\r\n", "", []int{400}, []string{"deny GET [::1]"}},
		"no name":         {"GET / HTTP/1.1\r\nHost: good.test/evil.test\r\n\r\n", "", []int{400}, []string{"deny"}},
		"user":            {"GET / HTTP/1.1\r\nHost: good.test@evil.test\r\n\r\n", "", []int{400}, []string{"deny"}},
		"list":            {"GET / HTTP/1.1\r\nHost: good.test, evil.test\r\n\r\n", "", []int{400}, []string{"deny"}},
		"no host":         {"GET / HTTP/1.1\r\n\r\n", "", []int{400}, []string{"deny"}},
		"empty host":      {"GET / HTTP/1.1\r\nHost:\r\n\r\n", "", []int{400}, []string{"deny GET"}},
		"1.0 no host":     {"GET / HTTP/1.0\r\n\r\n", "", []int{400}, []string{"deny GET"}},
		"two hosts":       {get + "Host: evil.test\r\n\r\n", "", []int{400}, []string{"deny"}},
		"same twice":      {get + "host: good.test\r\n\r\n", "", []int{400}, []string{"deny"}},
		"host and space":  {get + "Host : evil.test\r\n\r\n", "", []int{400}, []string{"deny"}},
		"space and host":  {"GET / HTTP/1.1\r\n Host: evil.test\r\nHost: good.test\r\n\r\n", "", []int{400}, []string{"deny"}},
		"folded host":     {"GET / HTTP/1.1\r\nHost: good.test\r\n .evil.test\r\n\r\n", "", []int{400}, []string{"deny"}},
		"folded in full":  {"GET / HTTP/1.1\r\nHost:\r\n good.test\r\nConnection: close\r\n\r\n", out, []int{200}, []string{"allow GET good.test"}},
		"no ASCII":        {"GET / HTTP/1.1\r\nHost: good.te\u017ft\r\n\r\n", "", []int{400}, []string{"deny"}},
		"zero byte":       {"GET / HTTP/1.1\r\nHost: good.test\x00.evil.test\r\n\r\n", "", []int{400}, []string{"deny"}},
		"dropped host":    {get + "Connection: close, host\r\n\r\n", out, []int{200}, []string{"allow GET good.test"}},

		"absolute":        {"GET http://good.test/a?b HTTP/1.1\r\nHost: good.test\r\nConnection: close\r\n\r\n", "GET /a?b HTTP/1.1\r\nHost: good.test\r\n\r\n", []int{200}, []string{"allow GET good.test"}},
		"absolute evil":   {"GET http://evil.test/ HTTP/1.1\r\nHost: good.test\r\n\r\n", "", []int{403}, []string{"deny GET evil.test"}},
		"absolute good":   {"GET http://good.test/ HTTP/1.1\r\nHost: evil.test\r\nConnection: close\r\n\r\n", out, []int{200}, []string{"allow GET good.test"}},
		"absolute user":   {"GET http://good.test@evil.test/ HTTP/1.1\r\nHost: good.test\r\n\r\n", "", []int{400}, []string{"deny GET evil.test"}},
		"absolute escape": {"GET http://good.test%2eevil.test/ HTTP/1.1\r\nHost: good.test\r\n\r\n", "", []int{400}, []string{"deny"}},
		"https":           {"GET https://good.test/ HTTP/1.1\r\nHost: good.test\r\n\r\n", "", []int{400}, []string{"deny GET good.test"}},
		"opaque":          {"GET http:good.test HTTP/1.1\r\nHost: good.test\r\n\r\n", "", []int{400}, []string{"deny GET good.test"}},
		"two slashes":     {"GET //evil.test/x HTTP/1.1\r\nHost: good.test\r\nConnection: close\r\n\r\n", "GET //evil.test/x HTTP/1.1\r\nHost: good.test\r\n\r\n", []int{200}, []string{"allow GET good.test"}},
		"odd path":        {"GET /a%2Fb/../%7e?x=%zz;y HTTP/1.1\r\nHost: good.test\r\nConnection: close\r\n\r\n", "GET /a%2Fb/../%7e?x=%zz;y HTTP/1.1\r\nHost: good.test\r\n\r\n", []int{200}, []string{"allow GET good.test"}},
		"space in path":   {"GET / HTTP/1.1 HTTP/1.1\r\nHost: good.test\r\n\r\n", "", []int{400}, []string{"deny"}},
		"asterisk":        {"OPTIONS * HTTP/1.1\r\nHost: good.test\r\nConnection: close\r\n\r\n", "OPTIONS * HTTP/1.1\r\nHost: good.test\r\n\r\n", []int{200}, []string{"allow OPTIONS good.test"}},

		"header as sent": {
			get + "x-forwarded-for: 1.2.3.4\r\nForwarded: for=a\r\nx-a: 1\r\nX-A:  2 \r\naccept-encoding: br\r\nConnection: close, x-hop\r\nX-Hop: 1\r\n\r\n",
			get + "Accept-Encoding: br\r\nForwarded: for=a\r\nX-A: 1\r\nX-A: 2\r\nX-Forwarded-For: 1.2.3.4\r\n\r\n", []int{200}, []string{"allow GET good.test"},
		},
		"bare LF":      {strings.ReplaceAll(end+evil, "\r\n", "\n"), out, []int{200}, []string{"allow GET good.test"}},
		"bare LF next": {"GET / HTTP/1.1\nHost: good.test\n\n" + evil, out, []int{200, 403}, []string{"allow GET good.test", "deny GET evil.test"}},
		"bare CR":      {get + "X: a\rHost: evil.test\r\n\r\n", "", []int{400}, []string{"deny"}},
		"folded":       {get + "X: a\r\n\tHost: evil.test\r\nConnection: close\r\n\r\n", get + "X: a Host: evil.test\r\n\r\n", []int{200}, []string{"allow GET good.test"}},
		"no colon":     {get + "evil\r\n\r\n", "", []int{400}, []string{"deny"}},
		"no header":    {get + ": evil\r\n\r\n", "", []int{400}, []string{"deny"}},
		"large":        {get + "X: " + strings.Repeat("a", 1<<20) + "\r\n\r\n", "", []int{431}, []string{"deny"}},

		"body": {post + "Content-Length: 2\r\nConnection: close\r\n\r\nab", post + "Content-Length: 2\r\n\r\nab", []int{200}, []string{"allow POST good.test"}},
		"body as request": {
			post + "Content-Length: 39\r\n\r\n" + evil + end,
			post + "Content-Length: 39\r\n\r\n" + evil + out, []int{200, 200}, []string{"allow POST good.test", "allow GET good.test"},
		},
		"body of a GET": {
			get + "Content-Length: 39\r\n\r\n" + evil + end,
			get + "Content-Length: 39\r\n\r\n" + evil + out, []int{200, 200}, []string{"allow GET good.test", "allow GET good.test"},
		},
		"TE and CL": {
			chunked + "Content-Length: 47\r\n\r\n0\r\n\r\n" + evil,
			chunked + "\r\n0\r\n\r\n", []int{200, 403}, []string{"allow POST good.test", "deny GET evil.test"},
		},
		"CL and TE": {
			post + "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n27\r\n" + evil + "\r\n0\r\n\r\n" + end,
			chunked + "\r\n27\r\n" + evil + "\r\n0\r\n\r\n" + out, []int{200, 200}, []string{"allow POST good.test", "allow GET good.test"},
		},
		"TE odd":       {post + "Content-Length: 2\r\nTransfer-Encoding: xchunked\r\n\r\nab", "", []int{501}, []string{"deny"}},
		"TE list":      {post + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "", []int{501}, []string{"deny"}},
		"TE twice":     {chunked + "Transfer-Encoding: identity\r\n\r\n0\r\n\r\n", "", []int{501}, []string{"deny"}},
		"TE space":     {post + "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n", "", []int{400}, []string{"deny"}},
		"TE folded":    {post + "Transfer-Encoding:\r\n chunked\r\nConnection: close\r\n\r\n2;x=\"\r\nab\r\n0\r\n\r\n", chunked + "\r\n2\r\nab\r\n0\r\n\r\n", []int{200}, []string{"allow POST good.test"}},
		"TE vertical":  {post + "Transfer-Encoding: \vchunked\r\n\r\n0\r\n\r\n", "", []int{400}, []string{"deny"}},
		"TE in 1.0":    {"POST / HTTP/1.0\r\nHost: good.test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + evil, post + "Content-Length: 0\r\n\r\n", []int{200}, []string{"allow POST good.test"}},
		"CL twice":     {post + "Content-Length: 2\r\nContent-Length: 3\r\n\r\nab", "", []int{400}, []string{"deny"}},
		"CL list":      {post + "Content-Length: 2, 2\r\n\r\nab", "", []int{400}, []string{"deny"}},
		"CL sign":      {post + "Content-Length: +2\r\n\r\nab", "", []int{400}, []string{"deny"}},
		"CL hex":       {post + "Content-Length: 0x2\r\n\r\nab", "", []int{400}, []string{"deny"}},
		"CL hop":       {post + "Connection: close, content-length\r\nContent-Length: 2\r\n\r\nab", post + "Content-Length: 2\r\n\r\nab", []int{200}, []string{"allow POST good.test"}},
		"extension":    {chunked + "Connection: close\r\n\r\n2;evil=\"x\"\r\nab\r\n0;y\r\n\r\n", chunked + "\r\n2\r\nab\r\n0\r\n\r\n", []int{200}, []string{"allow POST good.test"}},
		"chunk odd":    {chunked + "\r\n0x2\r\nab\r\n0\r\n\r\n", chunked + "\r\n", []int{400}, unreadable},
		"chunk sign":   {chunked + "\r\n+2\r\nab\r\n0\r\n\r\n", chunked + "\r\n", []int{400}, unreadable},
		"chunk end":    {chunked + "\r\n2\r\nabGET / HTTP/1.1\r\n\r\n", chunked + "\r\n2\r\nab\r\n", []int{400}, unreadable},
		"chunk LF":     {chunked + "\r\n2;a\nb\r\nab\r\n0\r\n\r\n", chunked + "\r\n", []int{400}, unreadable},
		"chunk large":  {chunked + "\r\nfffffffffffffffff\r\nab\r\n0\r\n\r\n", chunked + "\r\n", []int{400}, unreadable},
		"trailer":      {chunked + "Trailer: X-T\r\nConnection: close\r\n\r\n0\r\nX-T: 1\r\nX-U: 2\r\nHost: evil.test\r\n\r\n", chunked + "Trailer: X-T\r\n\r\n0\r\nX-T: 1\r\n\r\n", []int{200}, []string{"allow POST good.test"}},
		"trailer host": {chunked + "Trailer: Content-Length\r\n\r\n0\r\nContent-Length: 1\r\n\r\n", "", []int{400}, []string{"deny"}},
		"trailer evil": {chunked + "Connection: close\r\n\r\n0\r\nHost: evil.test\r\n\r\n", chunked + "\r\n0\r\n\r\n", []int{200}, []string{"allow POST good.test"}},
		"expect":       {get + "Expect: miracles\r\n\r\n", "", []int{417}, []string{"deny"}},

		"CONNECT":        {"CONNECT evil.test:443 HTTP/1.1\r\nHost: good.test\r\n\r\n", "", []int{405}, []string{"deny CONNECT evil.test:443"}},
		"CONNECT good":   {"CONNECT good.test:80 HTTP/1.1\r\nHost: good.test:80\r\n\r\n" + evil, "", []int{405}, []string{"deny CONNECT good.test:80"}},
		"HTTP/2":         {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00", "", []int{505}, []string{"deny PRI"}},
		"HTTP/2 later":   {get + "\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", out, []int{200, 505}, []string{"allow GET good.test", "deny PRI"}},
		"HTTP/2 in name": {"GET / HTTP/2.0\r\nHost: good.test\r\n\r\n", "", []int{505}, []string{"deny"}},
		"h2c":            {get + "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", out, []int{200, 505}, []string{"allow GET good.test", "deny PRI"}},
		"upgrades":       {get + "Connection: close, Upgrade\r\nUpgrade: websocket, h2c\r\n\r\n", out, []int{200}, []string{"allow GET good.test"}},
		"websocket refused": {
			get + "Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n" + evil,
			get + "Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n", []int{200, 403}, []string{"allow GET good.test", "deny GET evil.test"},
		},
		"ICY":   {"ICY 200 OK\r\n\r\n", "", []int{400}, []string{"deny"}},
		"0.9":   {"GET /\r\n", "", []int{400}, []string{"deny"}},
		"TLS":   {"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n", "", []int{400}, []string{"deny"}},
		"SSH":   {"SSH-2.0-OpenSSH_9.2\r\n", "", []int{400}, []string{"deny"}},
		"noise": {"\x00\xff\r\n\r\n" + end, "", []int{400}, []string{"deny"}},
	} {
		t.Run(name, func(t *testing.T) {
			server := newRecorder(t, ns, "192.0.2.1:80")
			f := start(t, ns, Config{}, addrOf(server))
			if answers := exchange(f, test.in); !reflect.DeepEqual(answers, test.answers) {
				t.Errorf("answers %v, want %v", answers, test.answers)
			}
			// How far a body gets that cannot be read is a matter of time.
			brokenOff := reflect.DeepEqual(test.records, unreadable)
			if out := server.all(f); out != test.out && !(brokenOff && strings.HasPrefix(test.out, out)) {
				t.Errorf("the server got\n%q, want\n%q", out, test.out)
			}
			if records := f.recorded(); !reflect.DeepEqual(records, test.records) {
				t.Errorf("records %q, want %q", records, test.records)
			}
		})
	}
}

// exchange sends all of in, and returns the status of every answer until the relay
// closes the connection.
func exchange(f *fixture, in string) (answers []int) {
	f.Helper()
	conn := f.dial()
	go func() { _, _ = io.WriteString(conn, in) }()
	buffered := bufio.NewReader(conn)
	for {
		response, err := http.ReadResponse(buffered, nil)
		if err != nil {
			if err != io.ErrUnexpectedEOF {
				f.Errorf("after answers %v: %v", answers, err)
			}
			return answers
		}
		answers = append(answers, response.StatusCode)
		if _, err := io.Copy(io.Discard, response.Body); err != nil {
			f.Errorf("answer %d: %v", response.StatusCode, err)
		}
	}
}

// TestRefusal is what a task and the log are told.
func TestRefusal(t *testing.T) {
	ns := namespace(t)
	for _, test := range []struct{ in, text, reason string }{
		{
			"GET /x HTTP/1.1\r\nHost: Evil.test\r\n\r\n",
			"agentguard: denied: task t-7, host \"evil.test\" at 192.0.2.1:80: no rule allows this host at this address\nallow it: agentguard task grant t-7 evil.test:80\n",
			"no rule allows this host at this address",
		},
		{
			"CONNECT evil.test:443 HTTP/1.1\r\nHost: evil.test:443\r\n\r\n",
			"agentguard: denied: task t-7, host \"evil.test:443\" at 192.0.2.1:80: tunnels (CONNECT) are not relayed\n",
			"tunnels (CONNECT) are not relayed",
		},
		{
			"SSH-2.0-x\r\n", "400 Bad Request",
			`no request that can be relayed (400 Bad Request): it began with "SSH-2.0-x\r\n"`,
		},
		{
			"GET / HTTP/1.1\r\n\r\n", "400 Bad Request: missing required Host header",
			`no request that can be relayed (400 Bad Request: missing required Host header): it began with "GET / HTTP/1.1\r\n\r\n"`,
		},
		{
			"POST / HTTP/1.1\r\nHost: good.test\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n", "agentguard: the body of the request cannot be read\n",
			"the body of a request for good.test cannot be read: invalid byte in chunk length",
		},
	} {
		server := newRecorder(t, ns, "192.0.2.1:80")
		f := start(t, ns, Config{}, addrOf(server))
		conn := f.dial()
		_, _ = io.WriteString(conn, test.in)
		response, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(response.Body)
		if err != nil || string(text) != test.text || !response.Close {
			t.Errorf("%q: %v, closing %v, text\n%s", test.in, err, response.Close, text)
		}
		if r := f.await(func(r Record) bool { return r.Verdict == Deny }); r.Reason != test.reason {
			t.Errorf("%q: reason %q", test.in, r.Reason)
		}
		server.all(f)
	}
}
