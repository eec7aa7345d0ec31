// SPDX-License-Identifier: Apache-2.0

package api

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"agentguard.dev/agentguard/client"
	"agentguard.dev/agentguard/internal/audit"
)

// audit streams records as JSON Lines, flushed one by one when following.
func (s *Server) audit(w http.ResponseWriter, r *http.Request) {
	query, follow, err := auditQuery(r, time.Now())
	if err != nil {
		s.fail(w, r, err)
		return
	}
	control := http.NewResponseController(w)
	w.Header().Set("Content-Type", "application/x-ndjson")
	query.Damaged = func(file string, lines int) { s.Log.Warn("read the audit log", "file", file, "damaged lines", lines) }
	lines := json.NewEncoder(w)
	begun := false
	write := func(record client.Record) error {
		begun = true
		control.SetWriteDeadline(time.Now().Add(answerTimeout))
		if err := lines.Encode(record); err != nil || !follow {
			return err
		}
		return control.Flush()
	}
	if follow {
		w.WriteHeader(http.StatusOK)
		begun = true
		if control.Flush() != nil {
			return
		}
		err = audit.Follow(r.Context(), s.Engine.AuditDir(), query, write)
	} else {
		err = audit.Read(s.Engine.AuditDir(), query, write)
	}
	switch {
	case err == nil || r.Context().Err() != nil:
	case begun:
		// Too late for a status. A cut connection is not taken for the end.
		s.Log.Error("stream the audit log", "err", err)
		panic(http.ErrAbortHandler)
	default:
		s.fail(w, r, err)
	}
}

func auditQuery(r *http.Request, now time.Time) (query audit.Query, follow bool, err error) {
	values, err := knownParameters(r, "since", "task", "agent", "verdict", "kind", "limit", "follow")
	if err != nil {
		return query, false, err
	}
	query = audit.Query{
		Task: values.Get("task"), Agent: values.Get("agent"),
		Verdict: values.Get("verdict"), Kind: values.Get("kind"),
	}
	if query.Since, err = client.ParseSince(values.Get("since"), now); err == nil {
		query.Limit, err = limit(values.Get("limit"))
	}
	if err == nil {
		follow, err = flag(values, "follow")
	}
	if err == nil {
		err = errors.Join(
			oneOf("verdict", query.Verdict, "allow", "deny", "would-deny"),
			oneOf("kind", query.Kind, "decision", "dns", "http", "task", "grant", "policy", "daemon", "lost"))
	}
	if err != nil {
		return query, false, invalid("%v", err)
	}
	return query, follow, nil
}

func limit(text string) (int, error) {
	if text == "" {
		return 0, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		return 0, invalid("limit %q: want a positive number", text)
	}
	return n, nil
}

func flag(values url.Values, name string) (bool, error) {
	switch values.Get(name) {
	case "", "0", "false":
		return false, nil
	case "1", "true":
		return true, nil
	}
	return false, invalid("%s %q: want 1 or 0", name, values.Get(name))
}

func oneOf(name, value string, known ...string) error {
	if value == "" || slices.Contains(known, value) {
		return nil
	}
	return invalid("%s %q: want one of %s", name, value, strings.Join(known, ", "))
}
