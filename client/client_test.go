// SPDX-License-Identifier: Apache-2.0

package client

import (
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// answerWith serves one fixed answer on a socket.
func answerWith(t *testing.T, status int, body string) *Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		w.Write([]byte(body))
	})}
	go server.Serve(listener)
	c := New(path)
	t.Cleanup(func() {
		c.Close()
		server.Close()
	})
	return c
}

func TestAnswersThatAreNotTheDaemons(t *testing.T) {
	tests := []struct {
		status     int
		body, want string
	}{
		{502, "<html>bad gateway</html>", "502 Bad Gateway: <html>"},
		{301, "", "301 Moved Permanently"},
		{500, `{"code":"internal"}`, "500 Internal Server Error"},
		{200, "<html>", "read the answer"},
		{200, `{"ready":tr`, "read the answer"},
	}
	for _, test := range tests {
		_, err := answerWith(t, test.status, test.body).Status(t.Context())
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%d %q: %v; want it to contain %q", test.status, test.body, err, test.want)
		}
		var answered *Error
		if errors.As(err, &answered) != (test.status != 200) {
			t.Errorf("%d %q: %#v", test.status, test.body, err)
		}
	}
}

func TestDuration(t *testing.T) {
	for text, want := range map[string]time.Duration{`"90s"`: 90 * time.Second, `"1h0m0s"`: time.Hour, `"0s"`: 0} {
		var d Duration
		if err := json.Unmarshal([]byte(text), &d); err != nil || time.Duration(d) != want {
			t.Errorf("%s became %v, %v; want %v", text, time.Duration(d), err, want)
		}
		again, err := json.Marshal(d)
		if err != nil {
			t.Error(err)
		}
		if err := json.Unmarshal(again, &d); err != nil || time.Duration(d) != want {
			t.Errorf("%s, written and read again, became %v, %v", text, time.Duration(d), err)
		}
	}
	for _, text := range []string{`90`, `"90"`, `"soon"`, `{}`, `["1s"]`} {
		if err := json.Unmarshal([]byte(text), new(Duration)); err == nil || !strings.Contains(err.Error(), `"90s"`) {
			t.Errorf("%s: %v; want an error with an example", text, err)
		}
	}
}
