// SPDX-License-Identifier: Apache-2.0

package api

import (
	"io"
	"net/http"

	"agentguard.dev/agentguard/internal/task"
)

func (s *Server) applyPolicies(w http.ResponseWriter, r *http.Request) {
	file, data, err := policyFile(r)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	result, err := s.Engine.ApplyPolicies(r.Context(), file, data)
	s.answer(w, r, result, err)
}

func (s *Server) validatePolicies(w http.ResponseWriter, r *http.Request) {
	file, data, err := policyFile(r)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	policies, err := task.ValidatePolicies(file, data)
	s.answer(w, r, orEmpty(policies), err)
}

func (s *Server) policies(w http.ResponseWriter, r *http.Request) {
	s.answer(w, r, orEmpty(s.Engine.Policies()), nil)
}

func (s *Server) policy(w http.ResponseWriter, r *http.Request) {
	policy, err := s.Engine.Policy(r.PathValue("name"))
	s.answer(w, r, policy, err)
}

func (s *Server) deletePolicy(w http.ResponseWriter, r *http.Request) {
	if err := s.Engine.DeletePolicy(r.Context(), r.PathValue("name")); err != nil {
		s.fail(w, r, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func policyFile(r *http.Request) (file string, data []byte, err error) {
	query, err := knownParameters(r, "file")
	if err != nil {
		return "", nil, err
	}
	if file = query.Get("file"); file == "" {
		file = "body"
	}
	data, err = io.ReadAll(r.Body)
	return file, data, err
}
