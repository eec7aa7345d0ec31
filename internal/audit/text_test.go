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
		{client.Record{Kind: "daemon", Action: "start"}, `daemon start`},
		{client.Record{}, ``},
	} {
		if got := Text(tt.r); got != tt.want {
			t.Errorf("got  %s\nwant %s", got, tt.want)
		}
	}
}
