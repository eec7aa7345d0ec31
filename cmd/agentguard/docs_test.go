// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"agentguard.dev/agentguard/client"
)

// TestDocumentedExamples runs docs/api.md from its beginning to its end
// against a daemon. Where JSON follows an example it is the answer's shape.
func TestDocumentedExamples(t *testing.T) {
	if os.Getenv("AGENTGUARD_VM") != "" {
		t.Skip("not in a VM: the guests have neither curl nor Python; the machine that starts them runs the examples")
	}
	needPrivileges(t)
	dir := t.TempDir()
	guard, err := newInstance(dir)
	if err != nil {
		t.Fatal(err)
	}
	guard.start(t)
	text, err := os.ReadFile("../../docs/api.md")
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(guard.runDir, "admin.sock")
	document := strings.ReplaceAll(string(text), client.DefaultSocket, socket)

	var answer []byte
	ran := map[string]int{}
	for _, block := range regexp.MustCompile("(?ms)^```(\\w+)\n(.*?)^```$").FindAllStringSubmatch(document, -1) {
		language, code := block[1], block[2]
		ran[language]++
		switch language {
		case "sh":
			answer = output(t, code, exec.Command("bash", "-euo", "pipefail", "-c", code))
		case "json":
			checkShape(t, code, answer)
		case "python":
			answer = output(t, code, exec.Command("python3", "-c", code))
			checkLastWord(t, answer)
		case "go":
			answer = output(t, code, goRun(t, dir, code))
			checkLastWord(t, answer)
		default:
			t.Errorf("a block of %s is not run", language)
		}
	}
	if ran["sh"] < 8 || ran["json"] != ran["sh"] || ran["python"] != 1 || ran["go"] != 1 {
		t.Errorf("ran %v; the document has lost examples, or this test its eyes", ran)
	}
}

func output(t *testing.T, code string, command *exec.Cmd) []byte {
	t.Helper()
	var complaint strings.Builder
	command.Stderr = &complaint
	out, err := command.Output()
	if err != nil {
		t.Fatalf("%s\n%v\n%s%s", code, err, out, &complaint)
	}
	return out
}

// checkLastWord looks for the end of the task in what an example has printed.
func checkLastWord(t *testing.T, printed []byte) {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(string(printed)), "\n")
	if len(lines) != 2 || !strings.Contains(lines[0], " begin ") || !strings.Contains(lines[1], " end ") {
		t.Errorf("printed %q; want a record of the beginning and one of the end", printed)
	}
}

// checkShape says whether every key of the documented answer is in the real
// one with a value of the same type.
func checkShape(t *testing.T, documented string, answer []byte) {
	t.Helper()
	var want, got any
	if err := json.Unmarshal([]byte(documented), &want); err != nil {
		t.Errorf("documented answer %s: %v", documented, err)
		return
	}
	if err := json.Unmarshal(answer, &got); err != nil {
		t.Errorf("answer %s: %v", answer, err)
		return
	}
	if problem := differ("", want, got); problem != "" {
		t.Errorf("%s\ndocumented: %s\nanswered: %s", problem, documented, answer)
	}
}

func differ(path string, want, got any) string {
	switch want := want.(type) {
	case map[string]any:
		object, ok := got.(map[string]any)
		if !ok {
			return fmt.Sprintf("%s is no object", path)
		}
		for key, value := range want {
			there, ok := object[key]
			if !ok {
				return fmt.Sprintf("%s.%s is documented and absent", path, key)
			}
			if problem := differ(path+"."+key, value, there); problem != "" {
				return problem
			}
		}
	case []any:
		list, ok := got.([]any)
		if !ok || len(list) < len(want) {
			return fmt.Sprintf("%s has fewer entries than documented", path)
		}
		for i := range want {
			if problem := differ(fmt.Sprintf("%s[%d]", path, i), want[i], list[i]); problem != "" {
				return problem
			}
		}
	default:
		if fmt.Sprintf("%T", want) != fmt.Sprintf("%T", got) {
			return fmt.Sprintf("%s is documented as %T and is %T", path, want, got)
		}
	}
	return ""
}

// goRun compiles code as if it stood in this module.
func goRun(t *testing.T, dir, code string) *exec.Cmd {
	t.Helper()
	module, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "main.go")
	overlay := filepath.Join(dir, "overlay.json")
	replace, err := json.Marshal(map[string]any{
		"Replace": map[string]string{filepath.Join(module, "docs", "example", "main.go"): program},
	})
	if err != nil {
		t.Fatal(err)
	}
	for path, data := range map[string][]byte{program: []byte(code), overlay: replace} {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	command := exec.Command("go", "run", "-overlay", overlay, "./docs/example")
	command.Dir = module
	return command
}
