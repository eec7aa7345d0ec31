// SPDX-License-Identifier: Apache-2.0

package main

import (
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestPackagedConfiguration keeps the file that is installed in step with what
// the daemon knows.
func TestPackagedConfiguration(t *testing.T) {
	got, err := readConfig("../../packaging/daemon.yaml")
	if err != nil {
		t.Fatal(err)
	}
	want := config{Drain: positiveTime(5 * time.Second), LogLevel: slog.LevelInfo, gid: -1, Trusted: []string{}, DNS: dnsConfig{
		Resolvers: []resolver{}, MinTTL: positiveTime(30 * time.Second), MaxTTL: positiveTime(time.Hour),
		Types: []string{"A", "AAAA", "CNAME", "HTTPS", "SVCB", "SRV", "PTR"}, Rate: 200,
	}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(config{}), cmp.Comparer(func(a, b resolver) bool { return a == b })); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	text, err := os.ReadFile("../../packaging/daemon.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(configHelp) {
		setting, _, found := strings.Cut(strings.TrimSpace(line), ":")
		if found && !strings.ContainsAny(setting, " {") && !strings.Contains(string(text), "\n"+setting+":") && !strings.Contains(string(text), "\n  "+setting+":") {
			t.Errorf("packaging/daemon.yaml does not say %s, which the help text has", setting)
		}
	}
}

func TestUnit(t *testing.T) {
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skip("not in a VM: systemd-analyze is not installed")
	}
	unit, err := os.ReadFile("../../packaging/agentguard.service")
	if err != nil {
		t.Fatal(err)
	}
	const program = "/usr/local/bin/agentguard"
	if !strings.Contains(string(unit), "ExecStart="+program+" daemon") {
		t.Fatalf("the unit does not start %s", program)
	}
	copied := filepath.Join(t.TempDir(), "agentguard.service")
	here := strings.ReplaceAll(string(unit), program, "/bin/true")
	if err := os.WriteFile(copied, []byte(here), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("systemd-analyze", "verify", "--man=no", copied).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}
