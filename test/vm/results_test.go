// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"strings"
	"testing"
)

func TestParseResults(t *testing.T) {
	output := strings.ReplaceAll(`^=== RUN   TestA
^=== RUN   TestA/one
    a_test.go:3: wrong
^--- FAIL: TestA/one (0.00s)
^=== NAME  TestA
^--- FAIL: TestA (0.01s)
^=== RUN   TestB
    a_test.go:9: kernel 6.1 lacks this
^--- SKIP: TestB (0.00s)
^=== RUN   TestC
panic: oh
`, "^", "\x16")
	root, err := parse("p", []byte(output))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []struct{ test, action, text string }{
		{"TestA", "fail", ""},
		{"TestA/one", "fail", "a_test.go:3: wrong"},
		{"TestB", "skip", "a_test.go:9: kernel 6.1 lacks this"},
		{"TestC", "", "panic: oh"},
	} {
		got := root.find(want.test)
		if got.action != want.action || got.text() != want.text {
			t.Errorf("%s = %q, %q, want %q, %q", want.test, got.action, got.text(), want.action, want.text)
		}
	}
	if len(root.sub) != 3 {
		t.Errorf("%d tests, want 3", len(root.sub))
	}
}

func TestNamedSkip(t *testing.T) {
	for text, want := range map[string]bool{
		"x_test.go:1: kernel 6.1.0-56-cloud-amd64 lacks bpf_sock_destroy: not supported": true,
		"x_test.go:1: starting\n    x_test.go:2: not in a VM: no Go here":                true,
		"x_test.go:1: load failed: invalid argument":                                     false,
		"kernel lacks": false,
		"":             false,
	} {
		if got := namedSkip().MatchString(text); got != want {
			t.Errorf("%q: %v, want %v", text, got, want)
		}
	}
}

func TestConsoleComplaints(t *testing.T) {
	for line, want := range map[string]bool{
		"[    1.2] WARNING: CPU: 0 PID: 1 at kernel/bpf/core.c:1 x+0x1/0x2": true,
		"[    1.2] BUG: kernel NULL pointer dereference, address: 0":        true,
		"[    1.2] Oops: 0000 [#1] PREEMPT SMP NOPTI":                       true,
		"[    1.2] Kernel panic - not syncing: Fatal exception":             true,
		"[    1.2] rcu: INFO: rcu_preempt self-detected stall on CPU":       true,
		"init: mount bpf on /sys/fs/bpf: invalid argument":                  true,
		"[    4.8] reboot: Power down":                                      false,
		"[    0.7] mtrr: your CPUs had inconsistent fixed MTRR settings":    false,
	} {
		var c console
		c.line("[    1.0] before")
		c.line(line + "\r")
		c.line("[    1.3] after")
		got := c.complaints()
		if (got != "") != want {
			t.Errorf("%q: complaints %q, want any: %v", line, got, want)
		}
		if want && got != line+"\n[    1.3] after" {
			t.Errorf("%q: complaints %q lack what follows", line, got)
		}
	}
}

// A package was unpacked, not installed, so the order comes from the modules alone.
func TestModulesComeAfterTheirDependencies(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: needs the kernels")
	}
	root, err := moduleRoot()
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range Kernels() {
		image, err := k.Cached(root + "/.cache/kernels")
		if err != nil {
			t.Fatal(err)
		}
		paths, err := image.modulePaths(modules())
		if err != nil {
			t.Fatal(err)
		}
		at := map[string]int{}
		for i, p := range paths {
			at[moduleName(p)] = i + 1
		}
		if at["nf_tables"] == 0 || at["nf_tables"] > at["nft_chain_nat"] || at["nf_nat"] > at["nft_chain_nat"] {
			t.Errorf("kernel %s: nft_chain_nat loads before its dependencies: %v", k.Name, paths)
		}
	}
}
