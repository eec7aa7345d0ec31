// SPDX-License-Identifier: Apache-2.0

package bypass

import "testing"

type flow struct{ name string }

func (flow) keepSending(*attempt) error                          { return nil }
func flows() []flow                                              { return nil }
func (l *lab) cutFlow(t *testing.T, f flow, g guard, tab *table) {}

type control struct {
	name string
	try  func(*attempt) error
}

func controls() []control { return nil }
