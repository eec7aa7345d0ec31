// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"

	"golang.org/x/sys/unix"
)

// row is one line of the table.
type row struct {
	name, what, class, stop string
	unguarded, guarded      string
	held                    bool
	skipped                 string // what the kernel lacks
	limit                   bool   // known to be open
	control                 bool
}

func (r *row) skip(why string) { r.skipped = why }

func (r *row) verdict() string {
	switch {
	case r.skipped != "":
		return "skipped"
	case r.guarded == "":
		return "not tried"
	case r.control && r.held:
		return "works"
	case r.control:
		return "BROKEN"
	case r.held:
		return "held"
	case r.limit:
		return "open"
	}
	return "ESCAPE"
}

// table collects the results of a run.
type table struct {
	subject string // what a row is about
	kernel  string // release
	mu      sync.Mutex
	rows    []*row
}

// newTable prints the table when the test ends, and brings the documentation
// up to date if it is asked to and all of size rows are there.
func newTable(t *testing.T, subject string, size int) *table {
	t.Helper()
	tab := &table{subject: subject, kernel: kernelRelease(t)}
	t.Cleanup(func() {
		t.Log("\n" + tab.text())
		if len(tab.rows) == size {
			tab.document(t)
		}
	})
	return tab
}

func kernelRelease(t *testing.T) string {
	t.Helper()
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		t.Fatal(err)
	}
	return unix.ByteSliceToString(name.Release[:])
}

func (tab *table) begin(name, what string, class class, stop string) *row {
	tab.mu.Lock()
	defer tab.mu.Unlock()
	r := &row{name: name, what: what, class: class.String(), stop: stop, control: tab.subject == "control", limit: tab.subject == "limit"}
	tab.rows = append(tab.rows, r)
	return r
}

// text is the table for people, two spaces at least between its columns.
func (tab *table) text() string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "%s\tkernel\tprivilege\tunguarded\tguarded\tverdict\n", tab.subject)
	for _, r := range tab.rows {
		unguarded, guarded := r.unguarded, r.guarded
		if r.skipped != "" {
			unguarded, guarded = "-", r.skipped
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", r.name, tab.kernel, r.class, unguarded, guarded, r.verdict())
	}
	w.Flush()
	return b.String()
}
