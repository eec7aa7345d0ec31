// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"regexp"
	"strings"
	"testing"
)

// result is the outcome of one test and of the tests in it; the root is the whole binary.
type result struct {
	name   string
	action string // "pass", "fail", "skip", or "" if it never ended
	output strings.Builder
	sub    []*result
}

// parse turns the output of a binary run with -test.v=test2json into its results.
func parse(name string, output []byte) (*result, error) {
	convert := exec.Command("go", "tool", "test2json", "-p", name)
	convert.Stdin = bytes.NewReader(output)
	text, err := convert.Output()
	if err != nil {
		return nil, fmt.Errorf("convert output of %s: %w", name, err)
	}
	root := &result{}
	decoder := json.NewDecoder(bytes.NewReader(text))
	for {
		var e struct {
			Action, Test, Output string
		}
		switch err := decoder.Decode(&e); {
		case errors.Is(err, io.EOF):
			return root, nil
		case err != nil:
			return nil, fmt.Errorf("decode output of %s: %w", name, err)
		}
		r := root.find(e.Test)
		switch e.Action {
		case "output":
			r.output.WriteString(e.Output)
		case "pass", "fail", "skip":
			r.action = e.Action
		}
	}
}

func (r *result) find(test string) *result {
	if test == "" {
		return r
	}
	for part := range strings.SplitSeq(test, "/") {
		r = r.child(part)
	}
	return r
}

func (r *result) child(name string) *result {
	for _, s := range r.sub {
		if s.name == name {
			return s
		}
	}
	s := &result{name: name}
	r.sub = append(r.sub, s)
	return s
}

// replay gives t the results as subtests of its own. In a guest every skip must say what is missing.
func (r *result) replay(t *testing.T) {
	for _, s := range r.sub {
		t.Run(s.name, s.replay)
	}
	text := r.text()
	switch r.action {
	case "pass":
	case "fail":
		t.Error(text)
	case "skip":
		if !namedSkip().MatchString(text) {
			t.Errorf("a skip must begin with the feature that the kernel lacks, or with \"not in a VM: \":\n%s", text)
		}
		t.Skip(text)
	default:
		t.Errorf("never ended:\n%s", text)
	}
}

// text returns what the test itself has written.
func (r *result) text() string {
	frame := regexp.MustCompile(`(?m)^\s*(=== (RUN|PAUSE|CONT|NAME) |--- (PASS|FAIL|SKIP): ).*\n?`)
	return strings.TrimSpace(frame.ReplaceAllString(r.output.String(), ""))
}

func namedSkip() *regexp.Regexp {
	return regexp.MustCompile(`(?m)^\s*\S+\.go:\d+: (kernel \S+ lacks |not in a VM: )`)
}
