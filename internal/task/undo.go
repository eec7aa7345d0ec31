// SPDX-License-Identifier: Apache-2.0

package task

import "errors"

// undo takes steps back that were done, the last one first.
type undo struct{ steps []func() error }

func (u *undo) add(step func() error) { u.steps = append(u.steps, step) }

// after takes everything back if err is not nil, and returns err with what
// could not be taken back.
func (u *undo) after(err error) error {
	if err == nil {
		return nil
	}
	var failed []error
	for i := len(u.steps) - 1; i >= 0; i-- {
		failed = append(failed, u.steps[i]())
	}
	if left := errors.Join(failed...); left != nil {
		return wrap("taking back what was done failed too ("+left.Error()+") after", err)
	}
	return err
}
