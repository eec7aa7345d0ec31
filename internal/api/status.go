// SPDX-License-Identifier: Apache-2.0

package api

import (
	"io"
	"net/http"
	"strings"

	"agentguard.dev/agentguard/client"
)

func (s *Server) status(w http.ResponseWriter, r *http.Request) {
	s.answer(w, r, s.Engine.Status(), nil)
}

func (s *Server) doctor(w http.ResponseWriter, r *http.Request) {
	s.answer(w, r, orEmpty(s.Engine.Doctor()), nil)
}

// healthz says that the process answers, and nothing about enforcement.
func (s *Server) healthz(w http.ResponseWriter, _ *http.Request) {
	io.WriteString(w, "ok\n")
}

// readyz says whether the guard is attached and enforcing.
func (s *Server) readyz(w http.ResponseWriter, r *http.Request) {
	if status := s.Engine.Status(); !status.Ready {
		s.fail(w, r, &client.Error{Code: "unavailable", Message: "not ready: " + strings.Join(status.Problems, "; ")})
		return
	}
	io.WriteString(w, "ok\n")
}
