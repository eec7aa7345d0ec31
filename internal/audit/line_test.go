// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"agentguard.dev/agentguard/client"
	"github.com/google/go-cmp/cmp"
)

var noon = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

// at returns a record that can be told from others by its reason.
func at(after time.Duration, reason string) client.Record {
	return client.Record{Time: noon.Add(after), Kind: "decision", Reason: reason}
}

func TestLine(t *testing.T) {
	uid := uint32(0)
	want := client.Record{Time: noon, Kind: "decision", Verdict: "deny", Process: "a\n\"<>&\x1b", UID: &uid, Count: 3}
	var buf bytes.Buffer
	if err := encodeLine(&buf, want); err != nil {
		t.Fatal(err)
	}
	line := buf.String()
	if strings.Count(line, "\n") != 1 || !strings.HasSuffix(line, "\n") || !strings.HasPrefix(line, string(lineStart)) {
		t.Errorf("not one line that begins as all do: %q", line)
	}
	if strings.Contains(line, `\u003c`) {
		t.Errorf("escaped for HTML: %s", line)
	}
	got, err := decodeLine(buf.Bytes())
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v\n%s", err, diff)
	}

	if err := encodeLine(&buf, client.Record{Time: noon, Kind: "x", Detail: strings.Repeat("x", MaxLine)}); err == nil {
		t.Error("no error for a record that is too long")
	}
	if buf.String() != line {
		t.Error("the record that is too long left something behind")
	}
}

func TestDecodeRefuses(t *testing.T) {
	for _, line := range []string{
		``, `{}`, `null`, `[]`, `1`, `{"time":"2026-01-02T12:00:00Z"}`, `{"kind":"decision"}`,
		`{"time":"yesterday","kind":"task"}`, `{"time":"2026-01-02T12:00:00Z","kind":"task"`,
		`{"time":"2026-01-02T12:00:00Z","kind":"task"} x`, `{"time":"2026-01-02T12:00:00Z","kind":7}`,
	} {
		if r, err := decodeLine([]byte(line)); err == nil {
			t.Errorf("%s: got %+v", line, r)
		}
	}
	if r, err := decodeLine([]byte(`{"time":"2026-01-02T12:00:00Z","kind":"task","later":{"x":1}}`)); err != nil || r.Kind != "task" {
		t.Errorf("with an unknown field: %+v, %v", r, err)
	}
}

func FuzzLine(f *testing.F) {
	f.Add([]byte(`{"time":"2026-01-02T12:00:00Z","kind":"decision","verdict":"deny","uid":0,"count":2}`))
	f.Add([]byte(`{"time":"2026-{"time":"2026-01-02T12:00:00.000000001Z","kind":"task","detail":"{\"time\":"}`))
	f.Add([]byte(`{"time":"9999-12-31T23:59:59-23:59","kind":"\ud800"}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		r, err := decodeLine(line)
		if err != nil {
			var ok bool
			if r, ok = salvage(line); !ok {
				return
			}
		}
		r.Time = r.Time.UTC()
		if r.Time.Year() > 9999 { // a zone pushed it over what JSON takes
			return
		}
		var buf bytes.Buffer
		if err := encodeLine(&buf, r); err != nil {
			t.Fatalf("decoded, but not encoded: %v", err)
		}
		if bytes.Count(buf.Bytes(), []byte{'\n'}) != 1 || bytes.LastIndex(buf.Bytes(), lineStart) != 0 {
			t.Fatalf("not one line that begins as all do: %q", buf.Bytes())
		}
		again, err := decodeLine(buf.Bytes())
		if diff := cmp.Diff(r, again); diff != "" || err != nil {
			t.Fatalf("%v\n%s", err, diff)
		}
		if text := Text(r); strings.ContainsAny(text, "\n\r\x1b\x00\u009b\u2028") {
			t.Fatalf("text drives the terminal: %q", text)
		}
	})
}
