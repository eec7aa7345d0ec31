// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/goccy/go-yaml/token"
)

// maxErrors bounds how many errors of one file Parse reports.
const maxErrors = 100

// Error is one thing that is wrong with a policy file. Parse joins those of a
// file; errors.As finds the first.
type Error struct {
	File   string
	Line   int    // from 1
	Column int    // from 1; 0 when the whole line is meant
	Field  string // such as spec.egress[0].to[1]; empty outside any field
	Cause  error
}

// Error returns "FILE:LINE:COLUMN: FIELD: CAUSE".
func (e *Error) Error() string {
	at := fmt.Sprintf("%s:%d", e.File, e.Line)
	if e.Column > 0 {
		at = fmt.Sprintf("%s:%d", at, e.Column)
	}
	if e.Field != "" {
		at += ": " + e.Field
	}
	return fmt.Sprintf("%s: %v", at, e.Cause)
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Cause }

// report gathers the errors of one file.
type report struct {
	file string
	errs []*Error
	more int
}

func (r *report) add(at *token.Position, field, format string, args ...any) {
	if len(r.errs) == maxErrors {
		r.more++
		return
	}
	e := &Error{File: r.file, Line: 1, Field: field, Cause: fmt.Errorf(format, args...)}
	if at != nil {
		e.Line, e.Column = max(at.Line, 1), at.Column
	}
	r.errs = append(r.errs, e)
}

// err joins what was gathered, in the order of the file.
func (r *report) err() error {
	slices.SortStableFunc(r.errs, func(a, b *Error) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	errs := make([]error, 0, len(r.errs)+1)
	for _, e := range r.errs {
		errs = append(errs, e)
	}
	if r.more > 0 {
		errs = append(errs, fmt.Errorf("%s: and %d more errors", r.file, r.more))
	}
	return errors.Join(errs...)
}
