// SPDX-License-Identifier: Apache-2.0

// Package metrics shows the engine to Prometheus. It keeps nothing: every
// scrape reads the kernel's counters and the engine as they are.
package metrics

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"agentguard.dev/agentguard/client"
	"agentguard.dev/agentguard/internal/task"
)

// Source is what is shown. *task.Engine is one.
type Source interface {
	Status() client.Status
	List(filter client.TaskFilter) []client.Task
	Totals() ([]task.Total, error)
}

// NewRegistry returns a registry of its own with source, this process and the
// Go runtime.
func NewRegistry(source Source) *prometheus.Registry {
	registry := prometheus.NewRegistry()
	registry.MustRegister(
		&collector{source},
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	return registry
}

type collector struct{ source Source }

// descriptions is a constant that Go cannot express as one.
var descriptions = struct {
	ready, build, tasks, policies, entries, limit, lost, decisions, packets, bytes *prometheus.Desc
	stations, learned, queries, requests                                           *prometheus.Desc
}{
	ready:     describe("ready", "Whether the guard is attached and enforcing."),
	build:     describe("build_info", "The version of the running daemon, as a label.", "version"),
	tasks:     describe("tasks", "Tasks that the daemon knows, by agent and state.", "agent", "state"),
	policies:  describe("policies", "Policies applied."),
	entries:   describe("map_entries", "Entries in a kernel map.", "map"),
	limit:     describe("map_max_entries", "Entries that a kernel map can hold; beyond it begins and grants fail.", "map"),
	lost:      describe("events_lost_total", "Audit events that the kernel dropped because nobody read them fast enough."),
	decisions: describe("decisions_total", "Connections and first datagrams decided, by agent, rule and verdict.", "agent", "rule", "verdict"),
	packets:   describe("packets_total", "Packets that left tasks, by agent and rule.", "agent", "rule"),
	bytes:     describe("bytes_total", "Bytes that left tasks, by agent and rule; network headers included.", "agent", "rule"),
	stations:  describe("dns_stations", "Network namespaces in which DNS of tasks is answered."),
	learned:   describe("learned_addresses", "Addresses that are known for names of rules and grants."),
	queries:   describe("dns_queries_total", "DNS questions of tasks, by verdict.", "verdict"),
	requests:  describe("http_requests_total", "Plain HTTP requests of tasks through the relay, by verdict.", "verdict"),
}

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("agentguard_"+name, help, labels, nil)
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(out chan<- *prometheus.Desc) {
	d := descriptions
	for _, desc := range []*prometheus.Desc{d.ready, d.build, d.tasks, d.policies, d.entries, d.limit, d.lost, d.decisions, d.packets, d.bytes,
		d.stations, d.learned, d.queries, d.requests} {
		out <- desc
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	c.collectStatus(out)
	c.collectTasks(out)
	c.collectTotals(out)
}

func (c *collector) collectStatus(out chan<- prometheus.Metric) {
	status := c.source.Status()
	ready := 0.0
	if status.Ready {
		ready = 1
	}
	out <- gauge(descriptions.ready, ready)
	out <- gauge(descriptions.build, 1, status.Version)
	out <- gauge(descriptions.policies, float64(status.Policies))
	out <- counter(descriptions.lost, status.Lost)
	out <- gauge(descriptions.stations, float64(status.Names.Stations))
	out <- gauge(descriptions.learned, float64(status.Names.Learned))
	for verdict, n := range status.Names.Queries {
		out <- counter(descriptions.queries, n, verdict)
	}
	for verdict, n := range status.Names.Requests {
		out <- counter(descriptions.requests, n, verdict)
	}
	for _, m := range status.Maps {
		out <- gauge(descriptions.entries, float64(m.Entries), m.Name)
		out <- gauge(descriptions.limit, float64(m.Max), m.Name)
	}
}

func (c *collector) collectTasks(out chan<- prometheus.Metric) {
	type kind struct {
		agent string
		state client.TaskState
	}
	tasks := map[kind]int{}
	for _, task := range c.source.List(client.TaskFilter{}) {
		tasks[kind{task.Agent, task.State}]++
	}
	for kind, n := range tasks {
		out <- gauge(descriptions.tasks, float64(n), kind.agent, string(kind.state))
	}
}

func (c *collector) collectTotals(out chan<- prometheus.Metric) {
	totals, err := c.source.Totals()
	if err != nil {
		out <- prometheus.NewInvalidMetric(descriptions.decisions, err)
		return
	}
	for _, total := range totals {
		out <- counter(descriptions.decisions, total.Allowed, total.Agent, total.Rule, "allow")
		out <- counter(descriptions.decisions, total.Denied, total.Agent, total.Rule, "deny")
		out <- counter(descriptions.packets, total.Packets, total.Agent, total.Rule)
		out <- counter(descriptions.bytes, total.Bytes, total.Agent, total.Rule)
	}
}

func gauge(desc *prometheus.Desc, value float64, labels ...string) prometheus.Metric {
	return prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, labels...)
}

func counter(desc *prometheus.Desc, value uint64, labels ...string) prometheus.Metric {
	return prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(value), labels...)
}
