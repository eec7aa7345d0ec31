// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"errors"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"agentguard.dev/agentguard/client"
	"agentguard.dev/agentguard/internal/task"
)

// fixed is an engine at one moment.
type fixed struct {
	status client.Status
	tasks  []client.Task
	totals []task.Total
	err    error
}

func (f fixed) Status() client.Status                { return f.status }
func (f fixed) List(client.TaskFilter) []client.Task { return f.tasks }
func (f fixed) Totals() ([]task.Total, error)        { return f.totals, f.err }

func example() fixed {
	return fixed{
		status: client.Status{Ready: true, Version: "v1", Policies: 2, Lost: 3,
			Names: client.NamesStatus{Stations: 1, Learned: 12,
				Queries:  map[string]uint64{"allow": 5, "deny": 2},
				Requests: map[string]uint64{"allow": 1}},
			Maps: []client.MapUsage{{Name: "hosts", Entries: 5, Max: 100}}},
		tasks: []client.Task{
			{Agent: "coder", State: client.TaskLive}, {Agent: "coder", State: client.TaskLive}, {State: client.TaskEnded},
		},
		totals: []task.Total{{Agent: "coder", Rule: "192.0.2.1:443", Allowed: 7, Denied: 1, Packets: 70, Bytes: 7000}},
	}
}

func TestValues(t *testing.T) {
	want := `
# HELP agentguard_bytes_total Bytes that left tasks, by agent and rule; network headers included.
# TYPE agentguard_bytes_total counter
agentguard_bytes_total{agent="coder",rule="192.0.2.1:443"} 7000
# HELP agentguard_decisions_total Connections and first datagrams decided, by agent, rule and verdict.
# TYPE agentguard_decisions_total counter
agentguard_decisions_total{agent="coder",rule="192.0.2.1:443",verdict="allow"} 7
agentguard_decisions_total{agent="coder",rule="192.0.2.1:443",verdict="deny"} 1
# HELP agentguard_dns_queries_total DNS questions of tasks, by verdict.
# TYPE agentguard_dns_queries_total counter
agentguard_dns_queries_total{verdict="allow"} 5
agentguard_dns_queries_total{verdict="deny"} 2
# HELP agentguard_dns_stations Network namespaces in which DNS of tasks is answered.
# TYPE agentguard_dns_stations gauge
agentguard_dns_stations 1
# HELP agentguard_events_lost_total Audit events that the kernel dropped because nobody read them fast enough.
# TYPE agentguard_events_lost_total counter
agentguard_events_lost_total 3
# HELP agentguard_http_requests_total Plain HTTP requests of tasks through the relay, by verdict.
# TYPE agentguard_http_requests_total counter
agentguard_http_requests_total{verdict="allow"} 1
# HELP agentguard_learned_addresses Addresses that are known for names of rules and grants.
# TYPE agentguard_learned_addresses gauge
agentguard_learned_addresses 12
# HELP agentguard_map_entries Entries in a kernel map.
# TYPE agentguard_map_entries gauge
agentguard_map_entries{map="hosts"} 5
# HELP agentguard_ready Whether the guard is attached and enforcing.
# TYPE agentguard_ready gauge
agentguard_ready 1
# HELP agentguard_tasks Tasks that the daemon knows, by agent and state.
# TYPE agentguard_tasks gauge
agentguard_tasks{agent="",state="ended"} 1
agentguard_tasks{agent="coder",state="live"} 2
`
	err := testutil.GatherAndCompare(NewRegistry(example()), strings.NewReader(want),
		"agentguard_bytes_total", "agentguard_decisions_total", "agentguard_events_lost_total",
		"agentguard_map_entries", "agentguard_ready", "agentguard_tasks",
		"agentguard_dns_queries_total", "agentguard_dns_stations", "agentguard_http_requests_total", "agentguard_learned_addresses")
	if err != nil {
		t.Error(err)
	}
}

func TestLint(t *testing.T) {
	problems, err := testutil.GatherAndLint(NewRegistry(example()))
	if err != nil {
		t.Fatal(err)
	}
	for _, problem := range problems {
		t.Errorf("%s: %s", problem.Metric, problem.Text)
	}
	// The linter must have had something to look at.
	if _, err := promlint.New(strings.NewReader("bad_count 1\n")).Lint(); err != nil {
		t.Fatal(err)
	}
	if n, _ := testutil.GatherAndCount(NewRegistry(example())); n < 10 {
		t.Errorf("only %d metrics were linted", n)
	}
}

func TestDescribesWhatItCollects(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(&collector{example()})
	if _, err := registry.Gather(); err != nil {
		t.Error(err)
	}
}

func TestUnreadableCountersAreAnError(t *testing.T) {
	broken := example()
	broken.err = errors.New("read counters: bad descriptor")
	if _, err := NewRegistry(broken).Gather(); err == nil || !strings.Contains(err.Error(), "bad descriptor") {
		t.Errorf("Gather: %v; want the cause", err)
	}
}
