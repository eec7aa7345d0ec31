// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"bufio"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// update asks for the documentation to be written: "1" with the results of
// this run alone; else a list of files, separated by commas, that hold the
// output of runs on other kernels.
const update = "AGENTGUARD_UPDATE"

const documentPath = "../../docs/bypass.md"

// verdicts are those of one technique, by kernel in its short form, "6.12".
type verdicts map[string]map[string]string

// document replaces the part of the documentation that the table is about.
// What it says of kernels on which nothing was run now, it goes on saying.
func (tab *table) document(t *testing.T) {
	t.Helper()
	sources := os.Getenv(update)
	if sources == "" {
		return
	}
	text, err := os.ReadFile(documentPath)
	if err != nil {
		t.Error(err)
		return
	}
	begin, end := "<!-- "+tab.subject+"s -->\n", "<!-- end -->\n"
	before, rest, found := strings.Cut(string(text), begin)
	old, after, closed := strings.Cut(rest, end)
	if !found || !closed {
		t.Errorf("%s: no lines %q and %q", documentPath, begin, end)
		return
	}
	known := tab.documented(old)
	for _, path := range strings.Split(sources, ",") {
		if path == "1" {
			continue
		}
		if err := known.read(path, tab.subject); err != nil {
			t.Error(err)
		}
	}
	for _, r := range tab.rows {
		known.set(r.name, tab.kernel, r.verdict())
	}
	if err := os.WriteFile(documentPath, []byte(before+begin+tab.markdown(known)+end+after), 0o644); err != nil {
		t.Error(err)
	}
}

func (v verdicts) set(name, release, verdict string) {
	if v[name] == nil {
		v[name] = make(map[string]string)
	}
	v[name][short(release)] = verdict
}

// short is "6.12" of "6.12.43+deb13-cloud-amd64".
func short(release string) string {
	return regexp.MustCompile(`^\d+\.\d+`).FindString(release)
}

// read takes the verdicts on the subject out of a run's output. Techniques and
// controls share names, so it goes by the head of the table that a row is in.
func (v verdicts) read(path, subject string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	columns := regexp.MustCompile(`\s{2,}`)
	inside := ""
	for lines := bufio.NewScanner(f); lines.Scan(); {
		cells := columns.Split(strings.TrimSpace(lines.Text()), -1)
		if len(cells) == 6 && cells[1] == "kernel" {
			inside = cells[0]
		}
		if len(cells) == 6 && inside == subject && short(cells[1]) != "" {
			v.set(cells[0], cells[1], cells[5])
		}
	}
	return nil
}

// heading names the columns before those of the kernels.
func (tab *table) heading() []string {
	if tab.subject == "control" {
		return []string{"control", "what must work", "privilege"}
	}
	if tab.subject == "limit" {
		return []string{"limit", "what it tries", "privilege", "why it is open"}
	}
	return []string{"technique", "what it tries", "privilege", "stopped at"}
}

func (tab *table) cells(r *row) []string {
	cells := []string{"`" + r.name + "`", r.what, r.class}
	if tab.subject != "control" {
		cells = append(cells, r.stop)
	}
	return cells
}

// documented reads back what markdown wrote.
func (tab *table) documented(markdown string) verdicts {
	known := make(verdicts)
	var kernels []string
	fixed := len(tab.heading())
	for line := range strings.Lines(markdown) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if len(cells) <= fixed {
			continue
		}
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		if kernels == nil {
			kernels = cells[fixed:]
			continue
		}
		for i, verdict := range cells[fixed:] {
			if i < len(kernels) && verdict != "" && short(kernels[i]) != "" {
				known.set(strings.Trim(cells[0], "`"), kernels[i], verdict)
			}
		}
	}
	return known
}

func (tab *table) markdown(known verdicts) string {
	seen := make(map[string]bool)
	for _, r := range tab.rows {
		for kernel := range known[r.name] {
			seen[kernel] = true
		}
	}
	kernels := slices.SortedFunc(maps.Keys(seen), func(a, b string) int { return number(a) - number(b) })
	var b strings.Builder
	line := func(cells []string) { fmt.Fprintf(&b, "| %s |\n", strings.Join(cells, " | ")) }
	head := append(tab.heading(), kernels...)
	line(head)
	line(slices.Repeat([]string{"---"}, len(head)))
	for _, r := range tab.rows {
		cells := tab.cells(r)
		for _, kernel := range kernels {
			cells = append(cells, known[r.name][kernel])
		}
		line(cells)
	}
	return b.String()
}

// number orders kernels.
func number(kernel string) int {
	var major, minor int
	fmt.Sscanf(kernel, "%d.%d", &major, &minor)
	return major*1000 + minor
}
