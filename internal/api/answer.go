// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"agentguard.dev/agentguard/client"
)

// answer writes what call returned: value as JSON, or err.
func (s *Server) answer(w http.ResponseWriter, r *http.Request, value any, err error) {
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.write(w, r, http.StatusOK, value)
}

func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	var known *client.Error
	if !errors.As(err, &known) {
		known = &client.Error{Status: http.StatusInternalServerError, Code: "internal", Message: err.Error()}
		if r.Context().Err() == nil && !errors.Is(err, context.Canceled) {
			s.Log.Error("answer a request", "method", r.Method, "path", r.URL.Path, "err", err)
		}
	}
	whole := *known
	whole.Message = err.Error()
	if whole.Status == 0 {
		whole.Status = statusOf(whole.Code)
	}
	s.write(w, r, whole.Status, &whole)
}

func statusOf(code string) int {
	switch code {
	case "invalid":
		return http.StatusBadRequest
	case "forbidden":
		return http.StatusForbidden
	case "not_found":
		return http.StatusNotFound
	case "conflict":
		return http.StatusConflict
	case "full":
		return http.StatusInsufficientStorage
	case "unavailable":
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

func (s *Server) write(w http.ResponseWriter, r *http.Request, status int, value any) {
	data, err := json.Marshal(value)
	if err != nil {
		s.Log.Error("write an answer", "path", r.URL.Path, "err", err)
		status, data = http.StatusInternalServerError, []byte(`{"status":500,"code":"internal","message":"write the answer"}`)
	}
	// What the call itself took (a drain, for example) is not the client's fault.
	http.NewResponseController(w).SetWriteDeadline(time.Now().Add(answerTimeout))
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(append(data, '\n'))
}

func noRoute(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusNotFound)
	json.NewEncoder(w).Encode(&client.Error{Status: http.StatusNotFound, Code: "not_found",
		Message: fmt.Sprintf("the API has no %s %s", r.Method, r.URL.Path)})
}
