// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "rewrite the golden files")

const samples = "../../testdata/policies"

func TestParseFull(t *testing.T) {
	data := readSample(t, "full.yaml")
	got, err := Parse("full.yaml", data)
	if err != nil {
		t.Fatal(err)
	}
	first, second, _ := strings.Cut(string(data), "---\n")
	want := []Policy{
		{
			Name: "builder", Loopback: LoopbackHost, MPTCP: true, MaxTTL: 90 * time.Minute, OnEnd: Leave,
			Rules: []Rule{
				rule(t, Egress, "192.0.2.0/24:80,443,8000-8100", "[2001:db8::/32]:443"),
				rule(t, Egress, "udp://192.0.2.53:53"),
				rule(t, Egress, "icmp://0.0.0.0/0", "icmp://[::/0]"),
				rule(t, Egress, "sctp://198.51.100.7:5000"),
				with(rule(t, Egress, "api.example.com:80,443", "*.example.com:443"), Required, Unset),
				with(rule(t, Egress, "github.com:22"), Off, Unset),
				with(rule(t, Egress, "legacy.example.org:8080"), Required, Required),
				with(rule(t, Egress, "udp://ntp.example.org:123", "icmp://gateway.example.org"), Required, Unset),
				rule(t, Ingress, "10.0.0.0/8:8080"),
			},
			Notes: []string{
				"*.example.com does not match example.com itself: add it if you mean it",
				"github.com:22: tls: off: not checked which name is asked for, so any other name on its addresses is reached as well",
			},
			Document: first,
		},
		{Name: "tester", Mode: Audit, Loopback: LoopbackTask, Document: second},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %#v\nwant %#v", got, want)
	}
}

func with(r Rule, tls, http Setting) Rule {
	r.TLS, r.HTTP = tls, http
	return r
}

func TestParseSettings(t *testing.T) {
	const rules = `
    - to: ["a.test:443"]
    - to: ["b.test:443"]
      tls: required
    - to: ["192.0.2.1:443", "c.test:80"]
      http: off
    - to: ["192.0.2.1:443"]
  ingress:
    - from: ["192.0.2.1:443"]`
	for spec, want := range map[string]string{
		"\n  egress:" + rules:                  "[a.test:443 b.test:443 192.0.2.1:443 c.test:80 http: off 192.0.2.1:443 ingress 192.0.2.1:443]",
		"\n  tls: off\n  egress:" + rules:      "[a.test:443 tls: off b.test:443 192.0.2.1:443 c.test:80 tls: off http: off 192.0.2.1:443 ingress 192.0.2.1:443]",
		"\n  egress:" + rules + "\n  tls: off": "[a.test:443 tls: off b.test:443 192.0.2.1:443 c.test:80 tls: off http: off 192.0.2.1:443 ingress 192.0.2.1:443]",
	} {
		policies, err := Parse("p.yaml", []byte(minimal("a", spec)))
		if err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(policies[0].Rules); got != want {
			t.Errorf("%s:\ngot  %s\nwant %s", spec, got, want)
		}
	}
}

func TestParseNotes(t *testing.T) {
	const relaxed = "not checked which name is asked for, so any other name on its addresses is reached as well"
	for _, tt := range []struct {
		spec string
		want []string
	}{
		{`{egress: [{to: ["192.0.2.1:443", "api.example.com:80,443", "udp://a.test:123"]}]}`, nil},
		{`{egress: [{to: ["*.example.com:443"]}, {to: ["*.example.com:80"]}]}`, []string{"*.example.com does not match example.com itself: add it if you mean it"}},
		{`{egress: [{to: ["*.example.com:443"]}, {to: ["example.com:443"]}]}`, nil},
		{`{egress: [{to: ["*.internal:443", "*.corp.internal:443", "internal:1", "corp.internal:1"]}]}`, nil},
		{`{egress: [{to: ["*.co.uk:443", "*.com:443"]}]}`, []string{
			"*.co.uk covers names of many owners: anybody can have one below co.uk",
			"*.com covers names of many owners: anybody can have one below com",
		}},
		{`{egress: [{to: ["*.github.io:443"]}]}`, []string{"*.github.io covers names of many owners: anybody can have one below github.io"}},
		{`{egress: [{to: ["localhost:8080"]}]}`, []string{"localhost is this host, which a name never reaches: write 127.0.0.1 and [::1], or set loopback"}},
		{`{egress: [{to: ["udp://ns.example.com:53"]}]}`, []string{"udp://ns.example.com:53: port 53 goes to agentguard's resolver whatever the rules say: leave it out"}},
		{`{egress: [{to: ["github.com:22", "192.0.2.1:22", "udp://github.com:443"], tls: off}]}`, []string{"github.com:22: tls: off: " + relaxed}},
		{`{tls: off, egress: [{to: ["a.test:443"]}, {to: ["b.test:443"], tls: required}, {to: ["c.test:80"]}]}`, []string{"a.test:443: tls: off: " + relaxed}},
		{`{egress: [{to: ["a.test:80,443"], tls: off, http: off}, {to: ["b.test:80"], http: off}]}`, []string{"a.test:80,443: http: off and tls: off: " + relaxed}},
	} {
		policies, err := Parse("p.yaml", []byte(minimal("a", tt.spec)))
		if err != nil {
			t.Fatal(err)
		}
		if got := policies[0].Notes; !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s:\ngot  %q\nwant %q", tt.spec, got, tt.want)
		}
	}
}

func TestParseDefaults(t *testing.T) {
	got, err := Parse("p.yaml", []byte(minimal("a", "{}")))
	if err != nil {
		t.Fatal(err)
	}
	want := Default("a")
	want.Document = minimal("a", "{}")
	if !reflect.DeepEqual(got, []Policy{want}) {
		t.Errorf("got %#v, want %#v", got, want)
	}
}

func TestParseSamples(t *testing.T) {
	files, err := filepath.Glob(samples + "/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no samples: %v", err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		policies, err := Parse(filepath.Base(file), data)
		if err != nil {
			t.Error(err)
		}
		checkDocuments(t, policies)
	}
}

// The golden files hold the errors in full: they are what people see.
func TestParseErrors(t *testing.T) {
	files, err := filepath.Glob(samples + "/invalid/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no samples: %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			policies, err := Parse(filepath.Base(file), data)
			if err == nil || policies != nil {
				t.Fatalf("read as %v, %v", policies, err)
			}
			golden := strings.TrimSuffix(file, ".yaml") + ".golden"
			got := err.Error() + "\n"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("got:\n%s\nwant:\n%s", got, want)
			}
		})
	}
}

func TestParseErrorLine(t *testing.T) {
	for _, tt := range []struct {
		name, in string
		line     int
		want     string
	}{
		{"empty", "", 1, "no policy; expected a document with apiVersion: agentguard.dev/v1alpha1 and kind: AgentPolicy"},
		{"scalar", "x", 1, "found x; expected an object with"},
		{"list", "- x", 1, "found a list; expected an object with"},
		{"control character", "a: 1\nb: \x01", 2, "control character U+0001"},
		{"invalid UTF-8", "a: 1\n\n  b: \xff", 3, `invalid UTF-8 "\xff"`},
		{"lone carriage return", "a: 1\rb: 2", 1, "control character U+000D"},
		{"alias", "a: 1\nb: [*:443]", 2, "a value that starts with * needs quotes"},
		{"tag", "a: !!str 1", 1, "tags"},
		{"merge key", "a:\n  <<: 1", 2, "merge keys"},
		{"complex key", "? [a]\n: b", 1, "complex keys"},
		{"directive", "%YAML 1.2\n---\na: 1", 1, "directives"},
		{"tab", "a:\n\t- b", 2, "not valid YAML"},
		{"open list", "a: [", 1, "not valid YAML"},
		{"open quote", "a: 1\nb: \"x", 2, "not valid YAML"},
		{"flow nesting", "a: " + strings.Repeat("[", 1<<20), 1, "nested too deeply"},
		{"block nesting", strings.Repeat("- ", 1<<20), 1, "nested too deeply"},
		{"key nesting", nestedKeys(2000), 201, "nested too deeply"},
		{"too many fields", strings.Repeat("a: b\n", 1<<20), 1001, "more than 1000 fields"},
		{"too many fields with lists", strings.Repeat("a:\n- b\n", 1<<18), 2001, "more than 1000 fields"},
		{"too many fields with objects", strings.Repeat("a:\n  b: c\n", 1<<18), 2001, "more than 1000 fields"},
		{"too many fields in a list", "a:\n" + strings.Repeat("- a\n", 10) + "- " + strings.Repeat("b: c\n  ", 1<<18), 1012, "more than 1000 fields"},
		{"too many flow fields", "a: [{" + strings.Repeat("b: {c: d}, ", 1<<18) + "}]", 1, "more than 1000 fields"},
		{"too many empty entries", "a:\n" + strings.Repeat("- \n", 1<<19), 1003, "list entries with nothing in them"},
		{"too many fields without values", "a: {\n" + strings.Repeat("b\n,\n", 1<<19), 4003, "more than 1000 fields"},
		{"number as key", "1: a", 1, "1: unknown field"},
		{"null as key", "~: a", 1, "~: unknown field"},
		{"odd key", "\"a\\nb\": 1", 1, `"a\nb": unknown field`},
		{"duplicate at the top", minimal("a", "{}") + "spec: {}\n", 5, "spec: given twice, first on line 4; keep one"},
		{"duplicate in a rule", minimal("a", `{egress: [{to: ["192.0.2.1:1"], to: ["192.0.2.1:2"]}]}`), 4, "spec.egress[0].to: given twice"},
		{"duplicate name", minimal("a", "{}") + "---\n" + minimal("a", "{}"), 8, `metadata.name: "a" is also the name of the policy on line 3`},
		{"error after an empty document", "---\n---\n" + minimal("a", "1"), 6, "spec: found the integer 1; expected an object"},
		{"syntax errors in two documents", minimal("a", "[") + "---\n" + minimal("b", "}"), 4, "\ndir/p.yaml:9:"},
		{"tag at the very end", minimal("a", "{}!")[:len(minimal("a", "{}!"))-1], 4, "tags"},
		{"text after the end", minimal("a", "{}") + "... b\n", 5, "not valid YAML"},
		{"no maxTTL", minimal("a", "{maxTTL: 0s}"), 4, `spec.maxTTL: 0s; expected a duration such as "90s"`},
		{"negative maxTTL", minimal("a", "{maxTTL: -1h}"), 4, "expected a duration"},
		{"endless maxTTL", minimal("a", "{maxTTL: 9999999999h}"), 4, "expected a duration"},
		{"upper case mode", minimal("a", "{mode: Audit}"), 4, "spec.mode: Audit; expected enforce or audit"},
		{"empty mode", minimal("a", `{mode: ""}`), 4, `spec.mode: ""; expected enforce or audit`},
		{"long name", minimal(strings.Repeat("a", 64), "{}"), 3, "at most 63"},
		{"name that is a path", minimal("../a", "{}"), 3, "metadata.name: ../a; expected a name"},
		{"name that is a number", minimal("7", "{}"), 3, "metadata.name: found the integer 7; expected a name"},
		{"name with a hyphen at the end", minimal("a-", "{}"), 3, "expected a name"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			policies, err := Parse("dir/p.yaml", []byte(tt.in))
			if err == nil {
				t.Fatalf("read as %v", policies)
			}
			var first *Error
			if !errors.As(err, &first) {
				t.Fatalf("%T has no *Error: %v", err, err)
			}
			at := fmt.Sprintf("dir/p.yaml:%d:", tt.line)
			if !strings.HasPrefix(err.Error(), at) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %.300q, want it to start with %q and contain %q", err.Error(), at, tt.want)
			}
		})
	}
}

func TestParseAccepts(t *testing.T) {
	for name, in := range map[string]string{
		"CRLF":              strings.ReplaceAll(minimal("a", "{}"), "\n", "\r\n"),
		"header and footer": "---\n" + minimal("a", "{}") + "...\n",
		"empty documents":   "---\n---\n" + minimal("a", "{}") + "---\n# end\n",
		"comment on header": "--- # first\n" + minimal("a", "{}") + "--- # second\n",
		"flow on header":    `--- {apiVersion: agentguard.dev/v1alpha1, kind: AgentPolicy, metadata: {name: a}, spec: {}}`,
		"comments":          "# a\n" + strings.ReplaceAll(minimal("a", "{} # no rules"), "\nkind", "\n\n# kind\nkind"),
		"quoted number":     minimal(`"7"`, "{}"),
		"no rules":          minimal("a", "{egress: [], ingress: []}"),
		"folded text":       minimal("a", "\n  egress:\n    - to:\n        - >-\n          192.0.2.1:443"),
		"unquoted":          minimal("a", "\n  egress:\n    - to:\n      - 192.0.2.1:443\n      - udp://10.0.0.0/8:*"),
	} {
		t.Run(name, func(t *testing.T) {
			policies, err := Parse("p.yaml", []byte(in))
			if err != nil {
				t.Fatal(err)
			}
			if len(policies) != 1 {
				t.Errorf("%d policies", len(policies))
			}
			checkDocuments(t, policies)
		})
	}
}

func TestParseKeepsEqualRulesOnce(t *testing.T) {
	policies, err := Parse("p.yaml", []byte(minimal("a", `
  egress:
    - to: ["192.0.2.1:80", "192.0.2.2:80"]
    - to: ["192.0.2.2:80", "192.0.2.1:80"]
    - to: ["192.0.2.2:80"]
  ingress:
    - from: ["192.0.2.2:80"]`)))
	if err != nil {
		t.Fatal(err)
	}
	want := "[192.0.2.1:80 192.0.2.2:80 192.0.2.2:80 ingress 192.0.2.2:80]"
	if got := fmt.Sprint(policies[0].Rules); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestParseBoundsErrors(t *testing.T) {
	_, err := Parse("p.yaml", []byte(minimal("a", "\n  egress:\n"+strings.Repeat("    - x: 1\n", 5000))))
	if err == nil {
		t.Fatal("no error")
	}
	lines := strings.Split(err.Error(), "\n")
	if len(lines) != maxErrors+1 || lines[maxErrors] != fmt.Sprintf("p.yaml: and %d more errors", 10000-maxErrors) {
		t.Errorf("%d lines, the last is %q", len(lines), lines[len(lines)-1])
	}
}

func FuzzParse(f *testing.F) {
	for _, pattern := range []string{"/*.yaml", "/invalid/*.yaml"} {
		files, err := filepath.Glob(samples + pattern)
		if err != nil || len(files) == 0 {
			f.Fatalf("no samples: %v", err)
		}
		for _, file := range files {
			data, err := os.ReadFile(file)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(data)
		}
	}
	for _, s := range []string{
		"", "---", "...", "- ", "? a", "a: |\n  b", "a: >+\n\n", "\"\\x", "{a: [}", "a: b: c", "!!map {}", "&a *a", "%TAG ! x\n--- a",
		minimal("a", "{egress: [{to: [192.0.2.1:443]}]}"), minimal("a", "{tls: off, egress: [{to: [\"*.x:*\", a.b:80], tls: required, http: off}]}"), minimal("a", "{maxTTL: 1h, onEnd: leave}") + "---\n" + minimal("b", "{}"),
		strings.ReplaceAll(minimal("a", "{}"), "\n", "\r\n"), "\ufeff" + minimal("a", "{}"),
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		before := bytes.Clone(data)
		policies, err := Parse("fuzz.yaml", data)
		if !bytes.Equal(before, data) {
			t.Fatal("Parse changed its input")
		}
		if err != nil {
			if policies != nil {
				t.Fatal("policies beside an error")
			}
			for line := range strings.SplitSeq(err.Error(), "\n") {
				if !strings.HasPrefix(line, "fuzz.yaml:") {
					t.Fatalf("error line %q does not name the file", line)
				}
			}
			return
		}
		if len(policies) == 0 {
			t.Fatal("neither policies nor an error")
		}
		checkDocuments(t, policies)
	})
}

func BenchmarkParse(b *testing.B) {
	var s strings.Builder
	s.WriteString(minimal("a", "\n  egress:\n"))
	for i := range 100_000 {
		fmt.Fprintf(&s, "    - to: [\"10.%d.%d.%d:443\"]\n", i>>16, i>>8&255, i&255)
	}
	for b.Loop() {
		if _, err := Parse("p.yaml", []byte(s.String())); err != nil {
			b.Fatal(err)
		}
	}
}

// checkDocuments requires that each policy is what its own document says.
func checkDocuments(t *testing.T, policies []Policy) {
	t.Helper()
	for _, p := range policies {
		again, err := Parse("again.yaml", []byte(p.Document))
		if err != nil || !reflect.DeepEqual(again, []Policy{p}) {
			t.Errorf("%#v\nread again from its document: %#v, %v", p, again, err)
		}
	}
}

func minimal(name, spec string) string {
	return "apiVersion: agentguard.dev/v1alpha1\nkind: AgentPolicy\nmetadata: {name: " + name + "}\nspec: " + spec + "\n"
}

func nestedKeys(n int) string {
	var s strings.Builder
	for i := range n {
		fmt.Fprintf(&s, "%*sa:\n", i, "")
	}
	return s.String()
}

func readSample(t *testing.T, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(samples, name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}
