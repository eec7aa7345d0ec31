// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// A log named N in directory D is D/N.jsonl; when that is full it becomes
// D/N.STAMP.jsonl. Names hold no dot, so the parts never run together.
const (
	suffix    = ".jsonl"
	stampForm = "20060102T150405,000000000Z"
)

// logFile is one file of one log.
type logFile struct {
	path  string
	name  string
	stamp string // empty: the file being written
}

func currentPath(dir, name string) string { return filepath.Join(dir, name+suffix) }

func stampedPath(dir, name string, t time.Time) string {
	return filepath.Join(dir, name+"."+t.UTC().Format(stampForm)+suffix)
}

// parseFile reads a file name; what is no log file is not ok.
func parseFile(dir, base string) (logFile, bool) {
	stem, ok := strings.CutSuffix(base, suffix)
	if !ok {
		return logFile{}, false
	}
	name, stamp, stamped := strings.Cut(stem, ".")
	if checkName(name) != nil {
		return logFile{}, false
	}
	if stamped {
		if _, err := time.Parse(stampForm, stamp); err != nil {
			return logFile{}, false
		}
	}
	return logFile{path: filepath.Join(dir, base), name: name, stamp: stamp}, true
}

// listFiles returns the log files of a directory by name and, within a name,
// from the oldest to the one being written.
func listFiles(dir string) ([]logFile, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read audit logs: %w", err)
	}
	var files []logFile
	for _, e := range entries {
		if f, ok := parseFile(dir, e.Name()); ok && e.Type().IsRegular() {
			files = append(files, f)
		}
	}
	slices.SortFunc(files, compareFiles)
	return files, nil
}

// compareFiles orders by name, then by age, the file being written last.
func compareFiles(a, b logFile) int {
	if c := cmp.Compare(a.name, b.name); c != 0 {
		return c
	}
	if a.stamp == "" || b.stamp == "" {
		return -cmp.Compare(a.stamp, b.stamp)
	}
	return cmp.Compare(a.stamp, b.stamp)
}

func checkName(name string) error {
	if name == "" || len(name) > 64 {
		return fmt.Errorf("audit log name %q: it has 1 to 64 characters", name)
	}
	for _, c := range name {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' {
			return fmt.Errorf("audit log name %q: it is made of letters, digits, - and _", name)
		}
	}
	return nil
}
