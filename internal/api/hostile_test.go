// SPDX-License-Identifier: Apache-2.0

package api

import (
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"agentguard.dev/agentguard/client"
)

// ask sends one request past the socket and its lock.
func ask(s *Server, method, target, body string) *httptest.ResponseRecorder {
	recorder := httptest.NewRecorder()
	request := httptest.NewRequest(method, "http://agentguard/", strings.NewReader(body))
	path, query, _ := strings.Cut(target, "?")
	request.URL.Path, request.URL.RawQuery = path, query
	s.bounded(cleanPaths(s.routes)).ServeHTTP(recorder, request)
	return recorder
}

func TestRefusals(t *testing.T) {
	const tasks, end = "/v1/tasks", "/v1/tasks/t/end"
	tests := []struct {
		name, method, target, body string
		status                     int
		message                    string
	}{
		{"unknown field", "POST", tasks, `{"agnet":"a"}`, 400, `"agnet"`},
		{"second value", "POST", tasks, `{"agent":"a"} {"agent":"b"}`, 400, "after its JSON object"},
		{"trailing garbage", "POST", tasks, `{"agent":"a"}]`, 400, "after its JSON object"},
		{"cut short", "POST", tasks, `{"agent":"a"`, 400, "ends too early"},
		{"no JSON", "POST", tasks, `agent=a`, 400, "not JSON"},
		{"an array", "POST", tasks, `[]`, 400, "must be a JSON object, not an array"},
		{"wrong type", "POST", tasks, `{"agent":7}`, 400, `field "agent" cannot be a number`},
		{"nested wrong type", "POST", tasks, `{"labels":{"k":1}}`, 400, `"labels`},
		{"bare duration", "POST", tasks, `{"ttl":60}`, 400, `such as "90s"`},
		{"bad duration", "POST", end, `{"drain":"soon"}`, 400, `"soon"`},
		{"too large", "POST", tasks, `{"purpose":"` + strings.Repeat("x", maxBody) + `"}`, 400, "larger than 1048576 bytes"},
		{"too large, YAML", "POST", "/v1/policies", strings.Repeat("#", maxBody+1), 400, "larger than 1048576 bytes"},
		{"unknown parameter", "GET", tasks + "?agnet=a", "", 400, `unknown parameter "agnet"; known are: agent, state`},
		{"parameter twice", "GET", tasks + "?agent=a&agent=b", "", 400, `"agent" is given 2 times`},
		{"bad state", "GET", tasks + "?state=dead", "", 400, `state "dead": want live, ending or ended`},
		{"bad query", "GET", tasks + "?agent=%zz", "", 400, "the query"},
		{"revoke what", "DELETE", "/v1/tasks/t/grants", "", 400, "destination="},
		{"bad verdict", "GET", "/v1/audit?verdict=maybe", "", 400, `verdict "maybe": want one of allow, deny, would-deny`},
		{"bad kind", "GET", "/v1/audit?kind=x", "", 400, `kind "x"`},
		{"bad since", "GET", "/v1/audit?since=yesterday", "", 400, `since "yesterday"`},
		{"bad limit", "GET", "/v1/audit?limit=0", "", 400, `limit "0": want a positive number`},
		{"bad follow", "GET", "/v1/audit?follow=yes", "", 400, `follow "yes"`},
		{"unknown path", "GET", "/v2/tasks", "", 404, "the API has no GET /v2/tasks"},
		{"wrong method", "PUT", tasks, "", 404, "the API has no PUT /v1/tasks"},
		{"dots", "POST", "/v1/tasks/../end", "", 404, "the API has no POST"},
		{"no id", "GET", "/v1/tasks/", "", 404, "the API has no GET"},
	}
	s := newServer(t, new(echo))
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			response := ask(s, test.method, test.target, test.body)
			var answered client.Error
			if err := json.Unmarshal(response.Body.Bytes(), &answered); err != nil {
				t.Fatalf("answer %q: %v", response.Body, err)
			}
			if response.Code != test.status || answered.Status != test.status {
				t.Errorf("status %d, in the body %d; want %d", response.Code, answered.Status, test.status)
			}
			if !strings.Contains(answered.Message, test.message) {
				t.Errorf("message %q; want it to contain %q", answered.Message, test.message)
			}
		})
	}
}

func TestEmptyBodyIsTheZeroRequest(t *testing.T) {
	if response := ask(newServer(t, new(echo)), "POST", "/v1/tasks/t/end", ""); response.Code != http.StatusOK {
		t.Errorf("end without a body: %d %s", response.Code, response.Body)
	}
}

func TestReadyz(t *testing.T) {
	s := newServer(t, &echo{status: client.Status{Problems: []string{"guard not attached"}}})
	if response := ask(s, "GET", "/readyz", ""); response.Code != 503 || !strings.Contains(response.Body.String(), "guard not attached") {
		t.Errorf("not ready: %d %s", response.Code, response.Body)
	}
	if response := ask(s, "GET", "/healthz", ""); response.Code != 200 {
		t.Errorf("healthz: %d", response.Code)
	}
	s = newServer(t, &echo{status: client.Status{Ready: true}})
	if response := ask(s, "GET", "/readyz", ""); response.Code != 200 {
		t.Errorf("ready: %d %s", response.Code, response.Body)
	}
}

// TestStalledBody holds a connection with a body that never comes. The server
// must answer and go on serving others.
func TestStalledBody(t *testing.T) {
	s := newServer(t, new(echo))
	s.bodyTimeout = 50 * time.Millisecond
	path := serve(t, s)
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	io.WriteString(conn, "POST /v1/tasks HTTP/1.1\r\nHost: agentguard\r\nContent-Length: 100\r\n\r\n{")
	if _, err := dial(t, path).Status(t.Context()); err != nil {
		t.Errorf("another client meanwhile: %v", err)
	}
	answer, err := io.ReadAll(conn)
	if err != nil || !strings.Contains(string(answer), "400 Bad Request") {
		t.Errorf("answer %q, %v; want 400 and the end of the connection", answer, err)
	}
}

func FuzzBeginRequest(f *testing.F) {
	f.Add(`{"id":"t","agent":"a","ttl":"1m","labels":{"k":"v"},"allow":["192.0.2.1:443"]}`)
	f.Add(`{"agent":"a"}{}`)
	f.Add(`{"ttl":1e999}`)
	f.Add("{\"purpose\":\"\xff\\u0000\"}")
	f.Add(`null`)
	s := newServer(f, new(echo))
	f.Fuzz(func(t *testing.T, body string) {
		response := ask(s, "POST", "/v1/tasks", body)
		switch response.Code {
		case http.StatusOK:
			var task client.Task
			if err := json.Unmarshal(response.Body.Bytes(), &task); err != nil {
				t.Errorf("%q was answered with %q: %v", body, response.Body, err)
			}
		case http.StatusBadRequest:
			var answered client.Error
			if err := json.Unmarshal(response.Body.Bytes(), &answered); err != nil || answered.Message == "" {
				t.Errorf("%q was refused with %q: %v", body, response.Body, err)
			}
		default:
			t.Errorf("%q: status %d", body, response.Code)
		}
	})
}

// FuzzDecode checks that what is accepted means one thing: written and read
// again it is the same.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"destination":"192.0.2.1:443","ttl":"90s"}`))
	f.Add([]byte(`{"destination":"a","destination":"b"}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		var grant, again client.Grant
		if err := decode(body, &grant); err != nil {
			var answered *client.Error
			if !errors.As(err, &answered) {
				t.Errorf("%q: %v is no *client.Error", body, err)
			}
			return
		}
		data, err := json.Marshal(grant)
		if err != nil {
			return // a time that JSON cannot write
		}
		if err := decode(data, &again); err != nil {
			t.Errorf("%q became %q: %v", body, data, err)
		}
		if data2, _ := json.Marshal(again); string(data2) != string(data) {
			t.Errorf("%q became %q, then %q", body, data, data2)
		}
	})
}

func FuzzAuditQuery(f *testing.F) {
	f.Add("since=10m&verdict=deny&limit=3&follow=1")
	f.Add("since=2026-01-02T15:04:05Z&task=%00")
	f.Fuzz(func(t *testing.T, raw string) {
		request := httptest.NewRequest("GET", "/v1/audit", nil)
		request.URL.RawQuery = raw
		query, _, err := auditQuery(request, time.Now())
		if err == nil && query.Limit < 0 {
			t.Errorf("%q: limit %d", raw, query.Limit)
		}
	})
}
