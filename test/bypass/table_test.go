// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"fmt"
	"os"
	"path/filepath"
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
	skipped                 string
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
	}
	return "ESCAPE"
}

// table collects the results of a run.
type table struct {
	kernel string
	first  string // what a row is about
	mu     sync.Mutex
	rows   []*row
}

// newTable prints the table when the test ends, and writes it to the
// documentation if the environment says so.
func newTable(t *testing.T, first string) *table {
	t.Helper()
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		t.Fatal(err)
	}
	tab := &table{first: first, kernel: unix.ByteSliceToString(name.Release[:])}
	t.Cleanup(func() { t.Log("\n" + tab.text()) })
	return tab
}

func (tab *table) begin(name, what string, class class, stop string) *row {
	tab.mu.Lock()
	defer tab.mu.Unlock()
	r := &row{name: name, what: what, class: class.String(), stop: stop, control: tab.first == "control"}
	tab.rows = append(tab.rows, r)
	return r
}

func (tab *table) text() string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, tab.first+"\tkernel\tprivilege\tunguarded\tguarded\tverdict")
	for _, r := range tab.rows {
		told := r.guarded
		if r.skipped != "" {
			told = r.skipped
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", r.name, tab.kernel, r.class, r.unguarded, told, r.verdict())
	}
	w.Flush()
	return b.String()
}

// document writes docs/bypass.md.
func document(tables map[string]*table) error {
	return os.WriteFile(filepath.Join("..", "..", "docs", "bypass.md"), nil, 0o644)
}
