// SPDX-License-Identifier: Apache-2.0

package api

import (
	"io"
	"net/http"

	"agentguard.dev/agentguard/client"
)

func (s *Server) begin(w http.ResponseWriter, r *http.Request) {
	request, err := bodyOf[client.BeginRequest](r)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	task, err := s.Engine.Begin(r.Context(), request)
	s.answer(w, r, task, err)
}

func (s *Server) tasks(w http.ResponseWriter, r *http.Request) {
	query, err := knownParameters(r, "agent", "state")
	if err != nil {
		s.fail(w, r, err)
		return
	}
	filter := client.TaskFilter{Agent: query.Get("agent"), State: client.TaskState(query.Get("state"))}
	switch filter.State {
	case "", client.TaskLive, client.TaskEnding, client.TaskEnded:
	default:
		s.fail(w, r, invalid("state %q: want live, ending or ended", filter.State))
		return
	}
	s.answer(w, r, orEmpty(s.Engine.List(filter)), nil)
}

func (s *Server) task(w http.ResponseWriter, r *http.Request) {
	task, err := s.Engine.Get(r.PathValue("id"))
	s.answer(w, r, task, err)
}

func (s *Server) enter(w http.ResponseWriter, r *http.Request) {
	task, err := s.Engine.Enter(r.Context(), r.PathValue("id"))
	s.answer(w, r, task, err)
}

func (s *Server) end(w http.ResponseWriter, r *http.Request) {
	request, err := bodyOf[client.EndRequest](r)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	result, err := s.Engine.End(r.Context(), r.PathValue("id"), request)
	s.answer(w, r, result, err)
}

func (s *Server) drain(w http.ResponseWriter, r *http.Request) {
	request, err := bodyOf[client.DrainRequest](r)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	result, err := s.Engine.Drain(r.Context(), r.PathValue("id"), request)
	s.answer(w, r, result, err)
}

func (s *Server) grant(w http.ResponseWriter, r *http.Request) {
	request, err := bodyOf[client.Grant](r)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	grant, err := s.Engine.Grant(r.Context(), r.PathValue("id"), request)
	s.answer(w, r, grant, err)
}

func (s *Server) revoke(w http.ResponseWriter, r *http.Request) {
	query, err := knownParameters(r, "destination")
	if err == nil && query.Get("destination") == "" {
		err = invalid("say which grant: ?destination=192.0.2.1:443")
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	result, err := s.Engine.Revoke(r.Context(), r.PathValue("id"), query.Get("destination"))
	s.answer(w, r, result, err)
}

// bodyOf decodes the body of r, of which an empty one is the zero T.
func bodyOf[T any](r *http.Request) (T, error) {
	var value T
	data, err := io.ReadAll(r.Body)
	if err != nil {
		return value, err
	}
	return value, decode(data, &value)
}

// orEmpty makes a list without entries [] in JSON rather than null.
func orEmpty[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}
