// SPDX-License-Identifier: Apache-2.0

package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"syscall"
)

// DefaultSocket is where the daemon listens unless it was told otherwise.
const DefaultSocket = "/run/agentguard/admin.sock"

// ErrNoDaemon says that nobody listens on the admin socket.
var ErrNoDaemon = errors.New("no agentguard daemon")

// Client calls the daemon behind one admin socket. Its methods may be called
// from several goroutines. Errors that the daemon answered are *Error.
type Client struct {
	socket string
	http   *http.Client
}

// New returns a Client for the admin socket at path; empty means DefaultSocket.
// It does not connect: the first call does.
func New(path string) *Client {
	if path == "" {
		path = DefaultSocket
	}
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		},
		DisableCompression:  true,
		MaxIdleConnsPerHost: 16,
	}
	noRedirect := func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &Client{socket: path, http: &http.Client{Transport: transport, CheckRedirect: noRedirect}}
}

// Socket is the path of the admin socket.
func (c *Client) Socket() string { return c.socket }

// Close closes idle connections. The Client can be used again afterwards.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// call sends in as JSON (a []byte as it is, nil as no body) and decodes the
// answer into out unless that is nil.
func (c *Client) call(ctx context.Context, method, path string, query url.Values, in, out any) error {
	response, err := c.send(ctx, method, path, query, in)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if out == nil {
		_, err := io.Copy(io.Discard, response.Body)
		return err
	}
	if err := json.NewDecoder(response.Body).Decode(out); err != nil {
		return fmt.Errorf("%s %s: read the answer: %w", method, path, err)
	}
	return nil
}

// send returns a 2xx response, whose body the caller closes, or an error.
func (c *Client) send(ctx context.Context, method, path string, query url.Values, in any) (*http.Response, error) {
	target := "http://agentguard" + path
	if len(query) > 0 {
		target += "?" + query.Encode()
	}
	body, kind, err := encode(in)
	if err != nil {
		return nil, fmt.Errorf("%s %s: write the request: %w", method, path, err)
	}
	request, err := http.NewRequestWithContext(ctx, method, target, body)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	if kind != "" {
		request.Header.Set("Content-Type", kind)
	}
	response, err := c.http.Do(request)
	if err != nil {
		return nil, c.explain(ctx, err)
	}
	if response.StatusCode/100 != 2 {
		defer response.Body.Close()
		return nil, answeredError(response)
	}
	return response, nil
}

func encode(in any) (body io.Reader, kind string, err error) {
	switch in := in.(type) {
	case nil:
		return nil, "", nil
	case []byte:
		return bytes.NewReader(in), "application/yaml", nil
	default:
		data, err := json.Marshal(in)
		return bytes.NewReader(data), "application/json", err
	}
}

func answeredError(response *http.Response) error {
	data, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	if err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	answered := new(Error)
	if json.Unmarshal(data, answered) != nil || answered.Message == "" {
		return &Error{Status: response.StatusCode, Code: "internal",
			Message: fmt.Sprintf("the daemon answered %s: %.200s", response.Status, data)}
	}
	return answered
}

// explain says what a failure to reach the daemon means and what to do.
func (c *Client) explain(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var wrapped *url.Error
	if errors.As(err, &wrapped) {
		err = wrapped.Err
	}
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w listens on %s; start one with: agentguard daemon", ErrNoDaemon, c.socket)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("connect to %s: permission denied; use sudo, or join the group that owns the socket", c.socket)
	case len(c.socket) > maxSocketPath:
		return fmt.Errorf("connect to %s: the path is longer than %d bytes, the limit for a socket", c.socket, maxSocketPath)
	}
	return fmt.Errorf("talk to the daemon on %s: %w", c.socket, err)
}

// maxSocketPath is the length of sockaddr_un's path without its final zero.
const maxSocketPath = 107
