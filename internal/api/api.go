// SPDX-License-Identifier: Apache-2.0

// Package api serves the engine over HTTP+JSON on a Unix socket. docs/api.md
// describes it; the bodies are the types of package client.
package api

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"

	"agentguard.dev/agentguard/client"
)

// Engine is what the API serves. *task.Engine is one.
type Engine interface {
	Begin(ctx context.Context, request client.BeginRequest) (client.Task, error)
	End(ctx context.Context, id string, request client.EndRequest) (client.EndResult, error)
	Drain(ctx context.Context, id string, request client.DrainRequest) (client.DrainResult, error)
	Get(id string) (client.Task, error)
	Enter(ctx context.Context, id string) (client.Task, error)
	List(filter client.TaskFilter) []client.Task
	Grant(ctx context.Context, id string, grant client.Grant) (client.Grant, error)
	Revoke(ctx context.Context, id, destination string) (client.RevokeResult, error)
	ApplyPolicies(ctx context.Context, file string, yaml []byte) (client.ApplyResult, error)
	Policies() []client.Policy
	Policy(name string) (client.Policy, error)
	DeletePolicy(ctx context.Context, name string) error
	Status() client.Status
	Doctor() []client.Check
	AuditDir() string
}

// Config is what New needs.
type Config struct {
	Engine  Engine
	Metrics http.Handler // answers /metrics
	Group   int          // group that may use the socket besides root; none when negative
	Log     *slog.Logger
}

// Server answers the API.
type Server struct {
	Config
	probes      *http.ServeMux // what may be asked without being an operator
	routes      *http.ServeMux
	bodyTimeout time.Duration
}

// The limits that keep a slow or hostile client from holding the daemon.
const (
	headerTimeout = 5 * time.Second
	bodyTimeout   = 10 * time.Second
	answerTimeout = 30 * time.Second
	idleTimeout   = 2 * time.Minute
	maxHeader     = 64 << 10
	maxBody       = 1 << 20
)

// New returns a Server that answers nothing until Serve.
func New(config Config) *Server {
	s := &Server{Config: config, probes: http.NewServeMux(), routes: http.NewServeMux(), bodyTimeout: bodyTimeout}
	s.probes.HandleFunc("GET /healthz", s.healthz)
	s.probes.HandleFunc("GET /readyz", s.readyz)
	s.probes.Handle("GET /metrics", config.Metrics)
	s.probes.HandleFunc("/", noRoute)

	for pattern, answer := range map[string]http.HandlerFunc{
		"GET /v1/status":               s.status,
		"GET /v1/doctor":               s.doctor,
		"GET /v1/audit":                s.audit,
		"POST /v1/tasks":               s.begin,
		"GET /v1/tasks":                s.tasks,
		"GET /v1/tasks/{id}":           s.task,
		"POST /v1/tasks/{id}/enter":    s.enter,
		"POST /v1/tasks/{id}/end":      s.end,
		"POST /v1/tasks/{id}/drain":    s.drain,
		"POST /v1/tasks/{id}/grants":   s.grant,
		"DELETE /v1/tasks/{id}/grants": s.revoke,
		"POST /v1/policies":            s.applyPolicies,
		"POST /v1/policies/validate":   s.validatePolicies,
		"GET /v1/policies":             s.policies,
		"GET /v1/policies/{name}":      s.policy,
		"DELETE /v1/policies/{name}":   s.deletePolicy,
		"GET /healthz":                 s.healthz,
		"GET /readyz":                  s.readyz,
		"GET /metrics":                 config.Metrics.ServeHTTP,
		"/":                            noRoute,
	} {
		s.routes.HandleFunc(pattern, answer)
	}
	return s
}

// Serve answers operators on listener, a Unix socket, until ctx ends; then it
// lets requests in progress finish for a moment. It closes listener.
func (s *Server) Serve(ctx context.Context, listener net.Listener) error {
	operators := s.onlyOperators(s.bounded(cleanPaths(s.routes)))
	return s.serve(ctx, listener, operators, withPeer)
}

// ServeProbes answers /metrics, /healthz and /readyz to whoever connects, for
// scrapers that speak TCP only. It closes listener.
func (s *Server) ServeProbes(ctx context.Context, listener net.Listener) error {
	return s.serve(ctx, listener, s.bounded(cleanPaths(s.probes)), nil)
}

func (s *Server) serve(ctx context.Context, listener net.Listener, answer http.Handler,
	connected func(context.Context, net.Conn) context.Context) error {
	// Requests that follow the audit log have no end of their own.
	requests, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	server := &http.Server{
		Handler:           answer,
		ReadHeaderTimeout: headerTimeout,
		WriteTimeout:      answerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(s.Log.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return requests },
		ConnContext:       connected,
	}
	server.RegisterOnShutdown(stop)
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), bodyTimeout)
	defer cancel()
	err := server.Shutdown(grace)
	if errors.Is(err, context.DeadlineExceeded) {
		err = server.Close()
	}
	<-failed
	return err
}
