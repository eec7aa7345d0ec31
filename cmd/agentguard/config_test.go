// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestReadConfig(t *testing.T) {
	tests := []struct{ name, text, want string }{
		{"all", "group: \"4242\"\ndrain: 90s\nlogLevel: debug\nmetrics: 127.0.0.1:0\nsizes: {tasks: 10}\ntrustedNamespaces: [/run/netns/a]\n", ""},
		{"empty", "", ""},
		{"unknown", "group: root\ngruop: x\n", "[2:1] unknown field \"gruop\""},
		{"unknown size", "sizes: {host: 1}\n", "unknown field \"host\""},
		{"twice", "drain: 1s\ndrain: 2s\n", "[2:1]"},
		{"bare number", "drain: 5\n", `"5": want a positive time`},
		{"no time", "drain: soon\n", `"soon": want a positive time`},
		{"negative", "drain: -5s\n", `"-5s": want a positive time`},
		{"comments", "# nothing\n", ""},
		{"dns", "dns: {resolvers: [192.0.2.53, \"[2001:db8::53]:5353\"], minTTL: 10s, maxTTL: 5m, types: [A, AAAA], rate: 20}\n", ""},
		{"resolver by name", "dns: {resolvers: [dns.example]}\n", `resolver "dns.example": want an address`},
		{"unknown in dns", "dns: {resolver: 192.0.2.53}\n", `unknown field "resolver"`},
		{"level", "logLevel: loud\n", "loud"},
		{"group", "group: no-such-group\n", "groupadd --system no-such-group"},
		{"not YAML", "{", "config.yaml"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "config.yaml")
			if err := os.WriteFile(file, []byte(test.text), 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := readConfig(file)
			switch {
			case test.want != "":
				if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), file) {
					t.Errorf("%v; want it to contain %q and the file", err, test.want)
				}
			case err != nil:
				t.Error(err)
			case test.name == "all":
				if got.gid != 4242 || got.Drain != positiveTime(90*time.Second) || got.Sizes.Tasks != 10 || len(got.Trusted) != 1 {
					t.Errorf("%+v", got)
				}
			case got.gid != -1:
				t.Errorf("without a group gid is %d; want -1", got.gid)
			}
		})
	}
}
