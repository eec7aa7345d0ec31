// SPDX-License-Identifier: Apache-2.0

package task

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"agentguard.dev/agentguard/client"
	"agentguard.dev/agentguard/internal/audit"
)

// subscriptionBuffer is how many records a subscriber may be behind.
const subscriptionBuffer = 1024

// recorder writes the audit log and tells subscribers.
type recorder struct {
	log  *audit.Log
	talk *slog.Logger

	mu          sync.Mutex
	fold        *audit.Fold
	subscribers map[*Subscription]struct{}
	failing     bool
}

func openRecorder(dir, name string, talk *slog.Logger) (*recorder, error) {
	log, err := audit.OpenLog(dir, name, audit.Options{})
	if err != nil {
		return nil, err
	}
	return &recorder{
		log: log, talk: talk,
		fold:        audit.NewFold(audit.FoldOptions{}),
		subscribers: make(map[*Subscription]struct{}),
	}, nil
}

// add records r, folded with its like if it is a decision.
func (r *recorder) add(record client.Record) {
	if record.Time.IsZero() {
		record.Time = time.Now()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.write(r.fold.Add(time.Now(), record))
}

// write is called with mu held.
func (r *recorder) write(records []client.Record) {
	for _, record := range records {
		err := r.log.Append(record)
		if err != nil && !r.failing {
			r.talk.Error("write audit log", "err", err)
		}
		r.failing = err != nil
		for s := range r.subscribers {
			s.send(record)
		}
	}
}

// run writes the summaries of folded decisions when they are due, until ctx
// ends.
func (r *recorder) run(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			r.mu.Lock()
			r.write(r.fold.Expire(now))
			r.mu.Unlock()
		}
	}
}

// close writes what is folded and ends all subscriptions.
func (r *recorder) close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.write(r.fold.Flush())
	for s := range r.subscribers {
		close(s.out)
	}
	clear(r.subscribers)
	return r.log.Close()
}

// Subscription is a stream of audit records as they are made. A reader that is
// too slow loses records rather than delay anything.
type Subscription struct {
	C <-chan client.Record // closed by Close, and with the engine

	out      chan client.Record
	lost     atomic.Uint64
	recorder *recorder
}

// Subscribe starts a subscription. The caller closes it.
func (e *Engine) Subscribe() *Subscription {
	out := make(chan client.Record, subscriptionBuffer)
	s := &Subscription{C: out, out: out, recorder: e.records}
	s.recorder.mu.Lock()
	defer s.recorder.mu.Unlock()
	s.recorder.subscribers[s] = struct{}{}
	return s
}

func (s *Subscription) send(record client.Record) {
	select {
	case s.out <- record:
	default:
		s.lost.Add(1)
	}
}

// Lost is how many records the subscriber was too slow for.
func (s *Subscription) Lost() uint64 { return s.lost.Load() }

// Close ends the subscription and closes C.
func (s *Subscription) Close() {
	s.recorder.mu.Lock()
	defer s.recorder.mu.Unlock()
	if _, open := s.recorder.subscribers[s]; open {
		delete(s.recorder.subscribers, s)
		close(s.out)
	}
}
