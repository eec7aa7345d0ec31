// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"
)

func TestReport(t *testing.T) {
	for _, c := range []struct {
		name, in string
		want     []string // lines
		ok       bool
	}{
		{"passing", `
{"Action":"start","Package":"p"}
{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"run","Package":"p","Test":"TestA/one"}
{"Action":"pass","Package":"p","Test":"TestA/one"}
{"Action":"pass","Package":"p","Test":"TestA","Elapsed":7}
{"Action":"pass","Package":"p","Elapsed":7.26}
`, []string{"     TestA (7.0s)", "ok   p (7.3s)", "1 passed, 0 failed, 0 skipped"}, true},
		{"failing and skipping", `
{"Action":"start","Package":"p"}
{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Test":"TestA","Output":"=== RUN   TestA\n"}
{"Action":"output","Package":"p","Test":"TestA","Output":"    a_test.go:1: wrong\n"}
{"Action":"fail","Package":"p","Test":"TestA"}
{"Action":"run","Package":"p","Test":"TestB"}
{"Action":"output","Package":"p","Test":"TestB","Output":"    a_test.go:2: kernel 6.1 lacks that\n"}
{"Action":"skip","Package":"p","Test":"TestB"}
{"Action":"fail","Package":"p"}
`, []string{
			"FAIL p TestA (0.00s)", "        a_test.go:1: wrong", "  p TestB: kernel 6.1 lacks that", "  p TestA",
			"0 passed, 1 failed, 1 skipped",
		}, false},
		{"not building", `
{"ImportPath":"p","Action":"build-output","Output":"p/a.go:1: undefined: x\n"}
{"ImportPath":"p","Action":"build-fail"}
{"Action":"start","Package":"p"}
{"Action":"fail","Package":"p","FailedBuild":"p"}
`, []string{"p/a.go:1: undefined: x", "0 passed, 1 failed, 0 skipped"}, false},
		{"killed", `
{"Action":"start","Package":"p"}
{"Action":"run","Package":"p","Test":"TestA"}
`, []string{"  p: never ended", "0 passed, 1 failed, 0 skipped"}, false},
		{"empty", "", []string{"0 passed, 0 failed, 0 skipped"}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out strings.Builder
			r := newReport(&out)
			if err := r.read(strings.NewReader(strings.TrimPrefix(c.in, "\n"))); err != nil {
				t.Fatal(err)
			}
			if ok := r.finish(); ok != c.ok {
				t.Errorf("ok = %v, want %v", ok, c.ok)
			}
			for _, line := range c.want {
				if !strings.Contains("\n"+out.String(), "\n"+line+"\n") {
					t.Errorf("no line %q in:\n%s", line, out.String())
				}
			}
		})
	}
}
