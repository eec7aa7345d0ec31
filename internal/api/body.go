// SPDX-License-Identifier: Apache-2.0

package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"

	"agentguard.dev/agentguard/client"
)

// bounded reads the whole body, of limited size and in limited time, before
// the request is answered: no answer is ever half-way when a client stalls.
func (s *Server) bounded(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength == 0 {
			next.ServeHTTP(w, r)
			return
		}
		control := http.NewResponseController(w)
		control.SetReadDeadline(time.Now().Add(s.bodyTimeout))
		data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
		var tooLarge *http.MaxBytesError
		switch {
		case errors.As(err, &tooLarge):
			s.fail(w, r, invalid("the body is larger than %d bytes", maxBody))
			return
		case err != nil:
			// The deadline stays: net/http reads what is left before it answers.
			w.Header().Set("Connection", "close")
			s.fail(w, r, invalid("read the body: %v", err))
			return
		}
		control.SetReadDeadline(time.Time{})
		r.Body = io.NopCloser(bytes.NewReader(data))
		next.ServeHTTP(w, r)
	})
}

// cleanPaths refuses paths that ServeMux would answer with a redirect, such as
// the ones a task id of ".." makes.
func cleanPaths(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != path.Clean(r.URL.Path) {
			noRoute(w, r)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// decode reads exactly one JSON object of known fields from body into into. An
// empty body leaves into as it is.
func decode(body []byte, into any) error {
	if len(bytes.TrimSpace(body)) == 0 {
		return nil
	}
	decoder := json.NewDecoder(bytes.NewReader(body))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil {
		return decodeError(err, body)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return invalid("the body has something after its JSON object, at byte %d", decoder.InputOffset())
	}
	return nil
}

func decodeError(err error, body []byte) error {
	var (
		syntax   *json.SyntaxError
		mistyped *json.UnmarshalTypeError
	)
	switch {
	case errors.As(err, &syntax):
		return invalid("the body is not JSON: %v at byte %d", err, syntax.Offset)
	case errors.Is(err, io.ErrUnexpectedEOF):
		return invalid("the body is not JSON: it ends too early, at byte %d", len(body))
	case errors.As(err, &mistyped) && mistyped.Field == "":
		return invalid("the body must be a JSON object, not %s", article(mistyped.Value))
	case errors.As(err, &mistyped):
		return invalid("field %q cannot be %s", mistyped.Field, article(mistyped.Value))
	}
	return invalid("the body: %s", strings.TrimPrefix(err.Error(), "json: "))
}

func article(kind string) string {
	if strings.ContainsAny(kind[:1], "aeiou") {
		return "an " + kind
	}
	return "a " + kind
}

// knownParameters parses the query and refuses what is not in known: a
// misspelt filter must not select everything.
func knownParameters(r *http.Request, known ...string) (url.Values, error) {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, invalid("the query: %v", err)
	}
	for name, values := range query {
		if !slices.Contains(known, name) {
			return nil, invalid("unknown parameter %q; known are: %s", name, strings.Join(known, ", "))
		}
		if len(values) > 1 {
			return nil, invalid("parameter %q is given %d times", name, len(values))
		}
	}
	return query, nil
}

func invalid(format string, args ...any) *client.Error {
	return &client.Error{Status: http.StatusBadRequest, Code: "invalid", Message: fmt.Sprintf(format, args...)}
}
