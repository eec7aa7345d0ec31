// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"container/list"
	"fmt"
	"time"

	"agentguard.dev/agentguard/client"
)

// FoldOptions bound a Fold. The zero value is fine.
type FoldOptions struct {
	Window  time.Duration // how long repeats are gathered; 0 is 10 s
	MaxKeys int           // decisions remembered at once; 0 is 4096
	MaxTask int           // decisions of one task told apart at once; 0 is 256
}

// Fold makes few records of many equal decisions. The first passes at once.
// Equal ones (kind, task, verdict, reason, destination, name, hint) that come within the window
// are only counted, and at its end make one record, whose Count is their number
// and whose other fields are the last one's; while they keep coming there is one
// such record a window. So the sum of Count, an absent one taken as 1, is the
// number of decisions.
//
// A task with more than MaxTask different decisions of one kind in a window has
// the rest folded into records without destination and name: a port scan does
// not push the history of others out of the log, nor do made-up names the task's
// own connections.
//
// Times are arguments; whoever owns the Fold calls Expire when Next says so. A
// Fold is for one goroutine.
type Fold struct {
	opt   FoldOptions
	keys  map[foldKey]*list.Element
	order list.List // of *folded, by the end of the window
	tasks map[foldTask]int
}

type foldTask struct{ task, kind string }

type foldKey struct {
	foldTask
	verdict, reason, dest, name, asked, hint string
	rest                                     bool // everything beyond MaxTask
}

type folded struct {
	key     foldKey
	ends    time.Time
	repeats uint64
	last    client.Record
}

// NewFold returns an empty Fold.
func NewFold(opt FoldOptions) *Fold {
	if opt.Window <= 0 {
		opt.Window = 10 * time.Second
	}
	if opt.MaxKeys <= 0 {
		opt.MaxKeys = 4096
	}
	if opt.MaxTask <= 0 {
		opt.MaxTask = 256
	}
	return &Fold{opt: opt, keys: map[foldKey]*list.Element{}, tasks: map[foldTask]int{}}
}

// Add takes a record in and returns those to write now. Records that are no
// decisions pass as they are.
func (f *Fold) Add(now time.Time, r client.Record) []client.Record {
	out := f.Expire(now)
	if !isDecision(r) {
		return append(out, r)
	}
	whose := foldTask{r.Task, r.Kind}
	key := foldKey{foldTask: whose, verdict: r.Verdict, reason: r.Reason, dest: r.Dest, name: r.Name, asked: r.Type, hint: r.Hint}
	if f.count(key, r) {
		return out
	}
	if f.tasks[whose] >= f.opt.MaxTask {
		key = foldKey{foldTask: whose, verdict: r.Verdict, rest: true}
		if f.count(key, r) {
			return out
		}
	}
	if len(f.keys) >= f.opt.MaxKeys {
		out = append(out, f.drop(f.order.Front())...)
	}
	f.keys[key] = f.order.PushBack(&folded{key: key, ends: now.Add(f.opt.Window)})
	f.tasks[whose]++
	return append(out, r)
}

// count adds a repeat of a known decision.
func (f *Fold) count(key foldKey, r client.Record) bool {
	e, ok := f.keys[key]
	if !ok {
		return false
	}
	d := e.Value.(*folded)
	d.repeats += max(r.Count, 1)
	d.last = r
	return true
}

// Expire returns the summaries of the windows that have ended.
func (f *Fold) Expire(now time.Time) []client.Record {
	var out []client.Record
	for e := f.order.Front(); e != nil && !e.Value.(*folded).ends.After(now); e = f.order.Front() {
		d := e.Value.(*folded)
		if d.repeats == 0 {
			f.forget(e)
			continue
		}
		out = append(out, f.summary(d))
		*d = folded{key: d.key, ends: now.Add(f.opt.Window)}
		f.order.MoveToBack(e)
	}
	return out
}

// Next returns when the next window ends; ok is false when there is none.
func (f *Fold) Next() (at time.Time, ok bool) {
	e := f.order.Front()
	if e == nil {
		return time.Time{}, false
	}
	return e.Value.(*folded).ends, true
}

// Flush returns the summaries of all windows and forgets them.
func (f *Fold) Flush() []client.Record {
	var out []client.Record
	for e := f.order.Front(); e != nil; e = f.order.Front() {
		out = append(out, f.drop(e)...)
	}
	return out
}

func (f *Fold) drop(e *list.Element) []client.Record {
	d := e.Value.(*folded)
	f.forget(e)
	if d.repeats == 0 {
		return nil
	}
	return []client.Record{f.summary(d)}
}

func (f *Fold) forget(e *list.Element) {
	d := f.order.Remove(e).(*folded)
	delete(f.keys, d.key)
	if f.tasks[d.key.foldTask]--; f.tasks[d.key.foldTask] == 0 {
		delete(f.tasks, d.key.foldTask)
	}
}

func (f *Fold) summary(d *folded) client.Record {
	r := d.last
	r.Count = d.repeats
	if d.key.rest {
		r.Reason, r.Dest, r.Rule, r.Hint = "", "", "", ""
		r.Name, r.Type, r.Addresses, r.Expected = "", "", nil, nil
		r.Detail = fmt.Sprintf("more than %d different decisions in %v", f.opt.MaxTask, f.opt.Window)
	}
	return r
}
