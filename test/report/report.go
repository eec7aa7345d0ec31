// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
)

type report struct {
	out    io.Writer
	tests  map[key]*strings.Builder // running: what they have written
	parent map[key]bool             // tests that consist of others are not counted
	failed []string
	skips  []string
	passes int
}

// slow groups of tests are shown as they end, so that whoever waits sees something move.
const slow = 5 // seconds

type key struct{ pkg, test string }

func newReport(out io.Writer) *report {
	return &report{out: out, tests: map[key]*strings.Builder{}, parent: map[key]bool{}}
}

func (r *report) read(in io.Reader) error { return decode(in, r.event) }

func (r *report) event(e event) {
	k := key{e.Package, e.Test}
	switch e.Action {
	case "note", "build-output":
		fmt.Fprint(r.out, e.Output)
	case "start", "run":
		r.tests[k] = new(strings.Builder)
		if i := strings.LastIndexByte(e.Test, '/'); i > 0 {
			r.parent[key{e.Package, e.Test[:i]}] = true
		}
	case "output":
		if b := r.tests[k]; b != nil {
			b.WriteString(e.Output)
		}
	case "pass", "fail", "skip":
		r.end(k, e)
		delete(r.tests, k)
	}
}

func (r *report) end(k key, e event) {
	text := ""
	if b := r.tests[k]; b != nil {
		text = own(b.String())
	}
	if k.test == "" {
		r.endPackage(k, e, text)
		return
	}
	switch e.Action {
	case "fail":
		if text != "" || !r.parent[k] {
			fmt.Fprintf(r.out, "FAIL %s %s (%.2fs)\n%s\n", k.pkg, k.test, e.Elapsed, indent(text))
		}
		if !r.parent[k] || text != "" {
			r.failed = append(r.failed, k.pkg+" "+k.test)
		}
	case "skip":
		r.skips = append(r.skips, k.pkg+" "+k.test+": "+reason(text))
	case "pass":
		if !r.parent[k] {
			r.passes++
		} else if e.Elapsed >= slow {
			fmt.Fprintf(r.out, "     %s (%.1fs)\n", k.test, e.Elapsed)
		}
	}
}

func (r *report) endPackage(k key, e event, text string) {
	switch e.Action {
	case "skip":
		return // no test files
	case "fail":
		if !slices.ContainsFunc(r.failed, func(s string) bool { return strings.HasPrefix(s, k.pkg+" ") }) {
			r.failed = append(r.failed, k.pkg)
		}
		fmt.Fprintf(r.out, "FAIL %s (%.1fs)\n%s\n", k.pkg, e.Elapsed, indent(text))
	default:
		fmt.Fprintf(r.out, "ok   %s (%.1fs)\n", k.pkg, e.Elapsed)
	}
}

// finish prints the summary and says whether all is well.
func (r *report) finish() bool {
	for k := range r.tests {
		if k.test == "" {
			r.failed = append(r.failed, k.pkg+": never ended")
		}
	}
	section(r.out, "skipped", r.skips)
	section(r.out, "failed", r.failed)
	fmt.Fprintf(r.out, "%d passed, %d failed, %d skipped\n", r.passes, len(r.failed), len(r.skips))
	return len(r.failed) == 0 && r.passes > 0
}

func section(out io.Writer, title string, lines []string) {
	if len(lines) == 0 {
		return
	}
	fmt.Fprintf(out, "\n%s:\n", title)
	for _, l := range lines {
		fmt.Fprintf(out, "  %s\n", l)
	}
}

// own is what a test itself wrote, without go test's frame around it.
func own(text string) string {
	frame := regexp.MustCompile(`(?m)^\s*(=== (RUN|PAUSE|CONT|NAME) |--- (PASS|FAIL|SKIP): |PASS$|FAIL$|FAIL\t|ok  \t).*\n?`)
	return strings.TrimRight(frame.ReplaceAllString(text, ""), "\n")
}

// reason is the last line of a skipped test, without the place in the source.
func reason(text string) string {
	text = strings.TrimSpace(text)
	return regexp.MustCompile(`(?s)^.*?\S+\.go:\d+: `).ReplaceAllString(text, "")
}

func indent(text string) string {
	if text == "" {
		return ""
	}
	return "    " + strings.ReplaceAll(text, "\n", "\n    ")
}
