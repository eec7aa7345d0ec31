// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"testing"
)

// TestBypass tries every way out, without and with the guard.
func TestBypass(t *testing.T) {
	l := newLab(t)
	g, alone := newGuard(t, l), newKernelGuard(t, l)
	l.announce(t, denied4)
	rows := newTable(t, "technique", len(techniques())+len(flows()))
	for _, technique := range techniques() {
		t.Run(technique.name, func(t *testing.T) {
			row := rows.begin(technique.name, technique.what, technique.class, technique.stop)
			if missing := l.missing(technique.needs); missing != "" {
				row.skip(missing)
				skipForKernel(t, missing)
			}
			if missing := missingTool(t, technique.tools); missing != "" {
				row.skip("no " + missing)
				skipForTool(t, missing)
			}
			if !l.unguarded(t, technique, row) {
				return
			}
			if technique.alone {
				l.guarded(t, technique, alone, row)
			} else {
				l.guarded(t, technique, g, row)
			}
		})
	}
	for _, flow := range flows() {
		t.Run(flow.name, func(t *testing.T) {
			row := rows.begin(flow.name, flow.what, flow.class, "cut")
			if missing := l.missing(flow.needs); missing != "" {
				row.skip(missing)
				skipForKernel(t, missing)
			}
			if flow.alone {
				l.cutFlow(t, flow, alone, row)
			} else {
				l.cutFlow(t, flow, g, row)
			}
		})
	}
}

// unguarded shows that the technique works at all.
func (l *lab) unguarded(t *testing.T, technique technique, row *row) bool {
	t.Helper()
	res, err := l.try(technique, nil)
	if err != nil {
		row.unguarded = "failed"
		t.Errorf("unguarded: %v", err)
		return false
	}
	row.unguarded = "reached"
	if res.reached == "" {
		row.unguarded = "did not reach"
		t.Errorf("unguarded, it did not reach its target, so it would show nothing: %s", errnoName(res.outcome))
		for _, p := range res.leaked {
			t.Logf("left: %s", p)
		}
		return false
	}
	return true
}

// guarded shows that it does not work in a task.
func (l *lab) guarded(t *testing.T, technique technique, g guard, row *row) {
	t.Helper()
	res, err := l.try(technique, g)
	if err != nil {
		row.guarded = "failed"
		t.Errorf("guarded: %v", err)
		return
	}
	row.guarded = errnoName(res.outcome)
	row.held = true
	if res.reached != "" {
		row.held = false
		row.guarded = "ESCAPED"
		t.Errorf("guarded, it reached %s", res.reached)
	}
	if len(res.leaked) > 0 {
		row.held = false
		row.guarded = "LEAKED"
		for _, p := range res.leaked {
			t.Errorf("guarded, a packet left: %s", p)
		}
	}
	if technique.errno != 0 && res.outcome.Errno != technique.errno {
		row.held = false
		t.Errorf("guarded, the process was told %s (%s), want %s at once",
			errnoName(res.outcome), res.outcome.Error, errnoName(outcome{Errno: technique.errno}))
	}
}
