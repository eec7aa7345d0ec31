// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// Audit yields the records that match query, oldest first. With query.Follow
// it goes on until ctx ends, which is no error, or the daemon stops, which is
// io.ErrUnexpectedEOF. After an error it yields nothing more.
func (c *Client) Audit(ctx context.Context, query AuditQuery) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		response, err := c.send(ctx, http.MethodGet, "/v1/audit", query.values(), nil)
		if err != nil {
			yield(Record{}, err)
			return
		}
		defer response.Body.Close()
		decoder := json.NewDecoder(response.Body)
		for {
			var record Record
			err := decoder.Decode(&record)
			switch {
			case err == nil:
				if !yield(record, nil) {
					return
				}
				continue
			case query.Follow && ctx.Err() != nil:
			case errors.Is(err, io.EOF) && query.Follow:
				yield(Record{}, fmt.Errorf("follow the audit log: the daemon stopped: %w", io.ErrUnexpectedEOF))
			case !errors.Is(err, io.EOF):
				yield(Record{}, fmt.Errorf("read the audit log: %w", err))
			}
			return
		}
	}
}

// ParseSince reads a time in the form of RFC 3339, or an age such as "10m"
// before now. Empty is the zero time.
func ParseSince(text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if age, err := time.ParseDuration(text); err == nil && age >= 0 {
		return now.Add(-age), nil
	}
	if t, err := time.Parse(time.RFC3339Nano, text); err == nil {
		return t, nil
	}
	return time.Time{}, fmt.Errorf("since %q: want a time such as 2026-01-02T15:04:05Z or an age such as 10m", text)
}

func (q AuditQuery) values() url.Values {
	values := url.Values{}
	if !q.Since.IsZero() {
		values.Set("since", q.Since.UTC().Format(time.RFC3339Nano))
	}
	set(values, "task", q.Task)
	set(values, "agent", q.Agent)
	set(values, "verdict", q.Verdict)
	set(values, "kind", q.Kind)
	if q.Limit != 0 {
		values.Set("limit", strconv.Itoa(q.Limit))
	}
	if q.Follow {
		values.Set("follow", "1")
	}
	return values
}
