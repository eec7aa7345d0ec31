// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// print writes the answer to stdout: value as JSON with -o json, else what
// text writes.
func (p *program) print(value any, text func(w io.Writer)) error {
	if p.json() {
		encoder := json.NewEncoder(p.stdout)
		encoder.SetIndent("", "  ")
		return encoder.Encode(value)
	}
	text(p.stdout)
	return nil
}

// say writes a remark to stderr.
func (p *program) say(format string, args ...any) {
	fmt.Fprintf(p.stderr, "agentguard: "+format+"\n", args...)
}

// table writes aligned columns. Cells are made safe for a terminal: they can
// hold what an agent chose.
func table(w io.Writer, heads []string, rows [][]string) {
	columns := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for _, row := range slices.Concat([][]string{heads}, rows) {
		for i, cell := range row {
			if i > 0 {
				io.WriteString(columns, "\t")
			}
			io.WriteString(columns, printable(cell))
		}
		io.WriteString(columns, "\n")
	}
	columns.Flush()
}

// fields writes one name and value a line, leaving out empty values.
func fields(w io.Writer, pairs ...string) {
	columns := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for pair := range slices.Chunk(pairs, 2) {
		if pair[1] != "" {
			fmt.Fprintf(columns, "%s\t%s\n", pair[0], printable(pair[1]))
		}
	}
	columns.Flush()
}

// printable shows control and other unprintable characters as escapes.
func printable(s string) string {
	quoted := strconv.Quote(s)
	return strings.ReplaceAll(quoted[1:len(quoted)-1], `\"`, `"`)
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.Local().Format(time.RFC3339)
}

func stampOf(t *time.Time) string {
	if t == nil {
		return ""
	}
	return stamp(*t)
}

func pairs(labels map[string]string) string {
	var list []string
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		list = append(list, key+"="+labels[key])
	}
	return strings.Join(list, " ")
}

func count(n int, one string) string {
	if n == 1 {
		return "1 " + one
	}
	if plural, found := strings.CutSuffix(one, "y"); found {
		return fmt.Sprintf("%d %sies", n, plural)
	}
	if strings.HasSuffix(one, "s") {
		return fmt.Sprintf("%d %ses", n, one)
	}
	return fmt.Sprintf("%d %ss", n, one)
}
