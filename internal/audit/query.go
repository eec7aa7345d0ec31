// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"time"

	"agentguard.dev/agentguard/client"
)

// Query selects records. Empty fields select everything.
type Query struct {
	Since, Until  time.Time // Since <= time < Until
	Task, Agent   string
	Verdict, Kind string
	// Limit is how many records to deliver at most: the newest that match,
	// still from old to new. For Follow it counts those that were there at its
	// start. 0 is no limit.
	Limit int
	// Damaged is told how many lines of a file could not be read and were
	// skipped. It may be nil.
	Damaged func(file string, lines int)
}

func (q Query) match(r client.Record) bool {
	return (q.Task == "" || q.Task == r.Task) &&
		(q.Agent == "" || q.Agent == r.Agent) &&
		(q.Verdict == "" || q.Verdict == r.Verdict) &&
		(q.Kind == "" || q.Kind == r.Kind) &&
		(q.Since.IsZero() || !r.Time.Before(q.Since)) &&
		(q.Until.IsZero() || r.Time.Before(q.Until))
}
