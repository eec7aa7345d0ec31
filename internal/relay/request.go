// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"strconv"
	"strings"

	"agentguard.dev/agentguard/internal/policy"
)

// linkKey is of the link in the context of a request.
type linkKey struct{}

// refusal is why a request does not pass.
type refusal struct {
	status int
	reason string
}

// serve answers a request in one way or the other.
func serve(w http.ResponseWriter, r *http.Request) {
	l := r.Context().Value(linkKey{}).(*link)
	l.serving.Store(true)
	defer func() {
		if l.taken {
			l.finish()
		}
	}()
	host, no := l.judge(r)
	if verdict := l.record(r, host, no); verdict == Deny {
		l.deny(w, host, no)
		return
	}
	l.forward(w, r, host)
}

// judge holds a request to the rules. The host that it returns is in canonical
// form when the refusal is nil or a 403.
func (l *link) judge(r *http.Request) (host string, no *refusal) {
	switch {
	case r.ProtoMajor != 1:
		return r.Host, &refusal{http.StatusHTTPVersionNotSupported, "HTTP/2 over plain TCP is not relayed; HTTP/1.1 is"}
	case r.Method == http.MethodConnect:
		return r.Host, &refusal{http.StatusMethodNotAllowed, "tunnels (CONNECT) are not relayed"}
	case r.URL.Opaque != "" || r.URL.User != nil || r.URL.Scheme != "" && r.URL.Scheme != "http":
		return r.Host, &refusal{http.StatusBadRequest, "the URI in the request is none that can be relayed"}
	}
	name, port, hasPort := strings.Cut(r.Host, ":")
	host, err := policy.CanonicalHost(name)
	if err != nil {
		return r.Host, &refusal{http.StatusBadRequest, fmt.Sprintf("the host %.100q is no name: %v", r.Host, err)}
	}
	// Before the rules are asked, so that a Recheck after that finds it.
	l.host.Store(&host)
	switch want := strconv.Itoa(int(l.asker.To.Port())); {
	case hasPort && port != want, !hasPort && want != "80":
		return host, &refusal{http.StatusForbidden, fmt.Sprintf("the host %.100q is not at port %s, which the connection is to", r.Host, want)}
	case !l.asker.Rules.Allows(host, l.asker.To):
		return host, &refusal{http.StatusForbidden, "no rule allows this host at this address"}
	}
	return host, nil
}

// record tells of a request that has been judged, and returns the verdict. Mode
// audit lets pass what the relay can, that is another host.
func (l *link) record(r *http.Request, host string, no *refusal) (verdict string) {
	record := Record{Asker: l.asker, Method: fmt.Sprintf("%.32s", r.Method), Host: fmt.Sprintf("%.253s", host), Verdict: Allow}
	if no != nil {
		record.Verdict, record.Reason = Deny, no.reason
		if l.watched || no.status == http.StatusForbidden && l.asker.Rules.Audit() {
			record.Verdict = WouldDeny
		}
	}
	l.server.authority.Record(record)
	return record.Verdict
}

// deny answers a request that does not pass.
func (l *link) deny(w http.ResponseWriter, host string, no *refusal) {
	l.refused.Store(true)
	w.Header().Set("Connection", "close")
	var hint string
	if no.status == http.StatusForbidden {
		if command := l.asker.Rules.Hint(host, l.asker.To); command != "" {
			hint = "\nallow it: " + command
		}
	}
	l.say(w, no.status, fmt.Sprintf("denied: task %s, host %.253q at %v: %s%s", l.asker.ID, host, l.asker.To, no.reason, hint))
}

// say is an answer of the relay's own.
func (l *link) say(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	_, _ = fmt.Fprintf(w, "agentguard: %s\n", text)
}

// forward sends a request on, and its answer back.
func (l *link) forward(w http.ResponseWriter, r *http.Request, host string) {
	_ = http.NewResponseController(w).EnableFullDuplex()
	if !strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
		r.Header.Del("Upgrade")
	}
	content := &content{ReadCloser: r.Body, link: l, in: r}
	r = r.WithContext(r.Context()) // the HTTP server keeps an eye on its own
	r.Body = content
	proxy := httputil.ReverseProxy{
		Transport:     l.transport,
		FlushInterval: -1,
		ErrorLog:      slog.NewLogLogger(l.server.config.Log.Handler(), slog.LevelDebug),
		Rewrite: func(p *httputil.ProxyRequest) {
			content.out = p.Out
			p.Out.URL.Scheme, p.Out.URL.Host = "http", l.asker.To.String()
			p.Out.URL.RawQuery = p.In.URL.RawQuery
			p.Out.Host = host
			if port := l.asker.To.Port(); port != 80 {
				p.Out.Host = net.JoinHostPort(host, strconv.Itoa(int(port)))
			}
			for _, name := range []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"} {
				if values, ok := p.In.Header[name]; ok {
					p.Out.Header[name] = values
				}
			}
		},
		ModifyResponse: func(*http.Response) error {
			// What the server does not say is not made up.
			w.Header()["Date"], w.Header()["Content-Type"] = nil, nil
			return nil
		},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) { l.fail(w, host, err) },
	}
	proxy.ServeHTTP(w, r)
}

// fail answers a request that could not be sent on, or has no answer.
func (l *link) fail(w http.ResponseWriter, host string, err error) {
	if l.refused.Load() {
		w.Header().Set("Connection", "close")
		l.say(w, http.StatusBadRequest, "the body of the request cannot be read")
		return
	}
	var op *net.OpError
	if errors.As(err, &op) {
		err = op.Err
	}
	l.say(w, http.StatusBadGateway, fmt.Sprintf("allowed, but %s at %v does not answer: %v", host, l.asker.To, err))
}

// content is the body of a request.
type content struct {
	io.ReadCloser
	link    *link
	in, out *http.Request
}

func (c *content) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	var broken *net.OpError
	switch {
	case err == nil, errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, http.ErrBodyReadAfterClose), errors.As(err, &broken):
	case err == io.EOF:
		// Those that were announced, and so checked: others could be anything.
		for name := range c.out.Trailer {
			c.out.Trailer[name] = c.in.Trailer[name]
		}
	default:
		c.link.refuse(fmt.Sprintf("the body of a request for %s cannot be read: %v", c.out.Host, err))
	}
	return n, err
}
