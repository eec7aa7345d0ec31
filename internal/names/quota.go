// SPDX-License-Identifier: Apache-2.0

package names

import (
	"sync/atomic"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/time/rate"
)

// What one task, and all of them together, may have in hand at a time.
const (
	maxTasks     = 1 << 14 // whose quotas are kept; the one idle longest gets a new one
	maxWaits     = 1024    // questions that wait for upstream
	maxTaskWaits = 128
	maxConns     = 1024 // TCP connections
	maxTaskConns = 32
	defaultRate  = 200
	defaultBurst = 400
)

// quota is what a task has in hand.
type quota struct {
	rate  *rate.Limiter
	waits atomic.Int32
	conns atomic.Int32
}

// quotas are those of all tasks.
type quotas struct {
	limit rate.Limit
	burst int
	tasks *lru.Cache[uint32, *quota]
	total quota // of all tasks together, without a rate
}

func newQuotas(limit float64, burst int) *quotas {
	// Only a size that is not positive is an error.
	tasks, _ := lru.New[uint32, *quota](maxTasks)
	return &quotas{limit: rate.Limit(limit), burst: burst, tasks: tasks}
}

func (q *quotas) of(task uint32) *quota {
	if t, ok := q.tasks.Get(task); ok {
		return t
	}
	made := &quota{rate: rate.NewLimiter(q.limit, q.burst)}
	if earlier, ok, _ := q.tasks.PeekOrAdd(task, made); ok {
		return earlier
	}
	return made
}

// take counts one more, unless that were more than most.
func take(n *atomic.Int32, most int32) bool {
	if n.Add(1) > most {
		n.Add(-1)
		return false
	}
	return true
}

// takeWait lets a question of the task wait for upstream until done is called. False
// if too many do.
func (q *quotas) takeWait(of *quota) (done func(), ok bool) {
	return q.takeBoth(&of.waits, maxTaskWaits, &q.total.waits, maxWaits)
}

// takeConn is takeWait for a TCP connection.
func (q *quotas) takeConn(of *quota) (done func(), ok bool) {
	return q.takeBoth(&of.conns, maxTaskConns, &q.total.conns, maxConns)
}

func (q *quotas) takeBoth(one *atomic.Int32, mostOne int32, all *atomic.Int32, mostAll int32) (func(), bool) {
	if !take(one, mostOne) {
		return nil, false
	}
	if !take(all, mostAll) {
		one.Add(-1)
		return nil, false
	}
	return func() { one.Add(-1); all.Add(-1) }, true
}
