// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"testing"

	"agentguard.dev/agentguard/client"
)

func TestText(t *testing.T) {
	for _, tt := range []struct {
		r    client.Record
		want string
	}{
		{
			client.Record{Kind: "decision", Verdict: "deny", Agent: "coder", Task: "t-7f3k", Process: "curl", PID: 1234, Hook: "connect",
				Dest: "tcp://192.0.2.1:443", Reason: "no rule", Purpose: "fix it", Hint: "agentguard task grant t-7f3k 192.0.2.1:443"},
			`deny  coder/t-7f3k  curl[1234] connect tcp 192.0.2.1:443: no rule  (allow it: agentguard task grant t-7f3k 192.0.2.1:443)`,
		},
		{
			client.Record{Kind: "decision", Verdict: "deny", Task: "t1", Hook: "egress", Dest: "udp://[2001:db8::1]:53", Reason: "no rule", Count: 7},
			`deny  t1  egress udp [2001:db8::1]:53: no rule (7 times)`,
		},
		{
			client.Record{Kind: "decision", Verdict: "allow", Task: "t1", Process: "x", PID: 1, Hook: "connect", Dest: "tcp://192.0.2.1:443", Rule: "192.0.2.0/24:443"},
			`allow  t1  x[1] connect tcp 192.0.2.1:443 by 192.0.2.0/24:443`,
		},
		{
			client.Record{Kind: "task", Action: "begin", Agent: "coder", Task: "t1", Purpose: "fix it"},
			`task begin  coder/t1  fix it`,
		},
		{
			client.Record{Kind: "lost", Count: 12, Reason: "ring buffer full"},
			`lost  12 records: ring buffer full`,
		},
		{
			client.Record{Kind: "decision", Verdict: "deny", Task: "t1\n", Process: "e\x1b[2J[1] ok", PID: 2, Hook: "connect", Reason: "a\rb\u202e"},
			`deny  t1\n  "e\x1b[2J[1] ok"[2] connect: a\rb\u202e`,
		},
		{
			client.Record{Kind: "decision", Verdict: "deny", Task: "t1", Process: "curl", PID: 7, Hook: "egress", Dest: "tcp://93.184.216.34:443",
				Reason: "no rule allows this server name at this address", Name: "www.evil.test", Expected: []string{"api.good.test", "*.cdn.test"}},
			`deny  t1  curl[7] → 93.184.216.34:443 (sni www.evil.test; address allowed for api.good.test, *.cdn.test)`,
		},
		{
			client.Record{Kind: "decision", Verdict: "deny", Task: "t1", Hook: "egress", Dest: "tcp://[2001:db8::1]:443",
				Reason: "the flow does not begin with TLS", Expected: []string{"api.good.test"}},
			`deny  t1  → [2001:db8::1]:443 (the flow does not begin with TLS; address allowed for api.good.test)`,
		},
		{
			client.Record{Kind: "dns", Verdict: "deny", Task: "t1", Process: "curl", PID: 7, Name: "evil.test", Type: "A", Reason: "not in the policy"},
			`deny  t1  curl[7] dns evil.test A: not in the policy`,
		},
		{
			client.Record{Kind: "dns", Verdict: "allow", Task: "t1", Process: "curl", PID: 7, Name: "api.good.test", Type: "A",
				Detail: "answered by 192.0.2.53:53", Addresses: []string{"192.0.2.1", "192.0.2.2"}},
			`allow  t1  curl[7] dns api.good.test A: answered by 192.0.2.53:53: 192.0.2.1 192.0.2.2`,
		},
		{
			client.Record{Kind: "http", Verdict: "deny", Task: "t1", Process: "curl", PID: 7, Name: "evil.test", Type: "GET", Dest: "tcp://192.0.2.1:80", Reason: "x"},
			`deny  t1  curl[7] http GET evil.test tcp 192.0.2.1:80: x`,
		},
		{client.Record{Kind: "daemon", Action: "start"}, `daemon start`},
		{client.Record{}, ``},
	} {
		if got := Text(tt.r); got != tt.want {
			t.Errorf("got  %s\nwant %s", got, tt.want)
		}
	}
}
