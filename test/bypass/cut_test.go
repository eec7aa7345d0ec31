// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// cutResult is what came of one flow.
type cutResult struct {
	after []packet // left after the cut, or where the cut would have been
	told  string   // the first error that the process was given after it
}

// cutFlow shows that a flow goes on by itself, and that in a task it ends when
// its permission does.
func (l *lab) cutFlow(t *testing.T, f flow, g guard, row *row) {
	free, err := l.tryFlow(f, nil)
	if err != nil {
		row.unguarded = "failed"
		t.Fatalf("unguarded: %v", err)
	}
	if len(free.after) == 0 {
		row.unguarded = "did not go on"
		t.Fatalf("unguarded, it did not go on by itself, so it would show nothing; the process was told %q", free.told)
	}
	row.unguarded = "reached"

	cut, err := l.tryFlow(f, g)
	if err != nil {
		row.guarded = "failed"
		t.Fatalf("guarded: %v", err)
	}
	row.held, row.guarded = true, "silence"
	if cut.told != "" {
		row.guarded = cut.told
	}
	for _, p := range cut.after {
		row.held, row.guarded = false, "WENT ON"
		t.Errorf("after the cut a packet left: %s", p)
	}
	if f.told && cut.told == "" {
		row.held = false
		t.Error("after the cut the process was given no error")
	}
}

func (l *lab) tryFlow(f flow, g guard) (cutResult, error) {
	r := &trial{
		lab: l, guard: g, guarded: g != nil, token: newToken(),
		technique: technique{name: f.name, class: f.class, seen: f.seen},
	}
	res, err := r.runFlow(f)
	err = errors.Join(err, r.clean())
	if err == nil && !r.guarded {
		err = l.quiet()
	}
	return res, err
}

func (r *trial) runFlow(f flow) (res cutResult, err error) {
	if err := f.stageIn(r); err != nil {
		return res, err
	}
	dir := r.lab.plain
	var task guardedTask
	if r.guarded {
		task, err = r.guard.begin(spec{allow: f.allow, grants: f.grants, policy: f.policy, ttl: f.ttl})
		if err != nil {
			return res, err
		}
		r.cleanup = append(r.cleanup, task.close)
		dir = task.cgroup()
	}
	if _, err := r.lab.upToNow(); err != nil {
		return res, err
	}
	if r.process, err = r.start(dir, f.class, f.name); err != nil {
		return res, err
	}
	if err := r.flowing(f); err != nil {
		return res, err
	}
	if r.guarded {
		if err := f.cut(task); err != nil {
			return res, fmt.Errorf("cut: %w", err)
		}
	}
	if _, err := r.lab.upToNow(); err != nil {
		return res, err
	}
	if res.told, err = r.goOn(f); err != nil {
		return res, err
	}
	if res.after, err = r.lab.upToNow(); err != nil {
		return res, err
	}
	// What the process leaves when it ends counts as well: its sockets close.
	if err := r.process.tell("enough"); err != nil {
		return res, err
	}
	if out, err := r.process.wait(); err != nil || out.Error != "" {
		return res, fmt.Errorf("%w (outcome: %+v)", err, out)
	}
	last, err := r.lab.upToNow()
	res.after = r.judge(append(res.after, last...))
	return res, err
}

func (f flow) stageIn(r *trial) error {
	if f.stage == nil {
		return nil
	}
	return f.stage(r)
}

// flowing waits until the flow has arrived at the sink.
func (r *trial) flowing(f flow) error {
	if f.meet != nil {
		if err := f.meet(r); err != nil {
			return err
		}
	}
	text, err := r.process.expect("sent 0")
	if err != nil {
		return err
	}
	if text != "ok" {
		return fmt.Errorf("the flow could not begin: %s", text)
	}
	carries := func(p packet) bool { return p.carries(r.token) }
	for deadline := time.Now().Add(5 * time.Second); !r.lab.wire.has(carries); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			return errors.New("the flow did not arrive within 5s")
		}
	}
	return nil
}

// goOn waits until the process has tried often enough since, and returns the
// first error that it was given.
func (r *trial) goOn(f flow) (told string, err error) {
	if f.wake != nil {
		if err := f.wake(r); err != nil {
			return "", err
		}
	}
	begun := time.Now()
	r.process.forget()
	const tries = 10
	for i := 0; i < tries || time.Since(begun) < f.patience; i++ {
		text, err := r.process.expect("sent")
		if err != nil {
			return told, err
		}
		_, text, _ = strings.Cut(text, " ")
		if text != "ok" && told == "" {
			told = text
		}
	}
	return told, nil
}

// judge picks what counts: without the guard what shows that the flow goes on,
// with it everything that nobody permits.
func (r *trial) judge(packets []packet) []packet {
	var counted []packet
	for _, p := range packets {
		if r.guarded && !p.background() && !p.bareReset() && !r.lab.wasJoined(p) || !r.guarded && r.counts(p) {
			counted = append(counted, p)
		}
	}
	return counted
}
