// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"agentguard.dev/agentguard/client"
	"agentguard.dev/agentguard/internal/api"
)

// settings are the global flags: which instance is meant, and how to print.
type settings struct {
	stateDir string
	runDir   string
	pinDir   string
	cgroup   string
	output   string
}

func (s *settings) flags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "state-dir", EnvVars: []string{"AGENTGUARD_STATE_DIR"}, Value: defaults.stateDir, Destination: &s.stateDir,
			Usage: "`DIR` of policies, tasks and the audit log"},
		&cli.StringFlag{Name: "run-dir", EnvVars: []string{"AGENTGUARD_RUN_DIR"}, Value: defaults.runDir, Destination: &s.runDir,
			Usage: "`DIR` of the admin socket"},
		&cli.StringFlag{Name: "pin-dir", EnvVars: []string{"AGENTGUARD_PIN_DIR"}, Value: defaults.pinDir, Destination: &s.pinDir,
			Usage: "`DIR` on a bpf file system where programs and maps are pinned"},
		&cli.StringFlag{Name: "cgroup", EnvVars: []string{"AGENTGUARD_CGROUP"}, Value: defaults.cgroup, Destination: &s.cgroup,
			Usage: "the guard's cgroup: `PATH` below the cgroup2 mount, or absolute"},
		&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Value: defaults.output, Destination: &s.output,
			Usage: "`FORMAT` of the answer: text or json"},
	}
}

// defaults is a constant that Go cannot express as one.
var defaults = settings{
	stateDir: "/var/lib/agentguard",
	runDir:   filepath.Dir(client.DefaultSocket),
	pinDir:   "/sys/fs/bpf/agentguard",
	cgroup:   "agentguard",
	output:   "text",
}

// resolve checks the settings and makes the directories absolute. An empty
// value, as from an empty environment variable, is the default.
func (s *settings) resolve() error {
	if s.output != "text" && s.output != "json" {
		wrong := s.output
		s.output = defaults.output
		return usageError{fmt.Sprintf("output %q: want text or json", wrong)}
	}
	if s.cgroup == "" {
		s.cgroup = defaults.cgroup
	}
	for dir, fallback := range map[*string]string{
		&s.stateDir: defaults.stateDir,
		&s.runDir:   defaults.runDir,
		&s.pinDir:   defaults.pinDir,
	} {
		if *dir == "" {
			*dir = fallback
		}
		absolute, err := filepath.Abs(*dir)
		if err != nil {
			return fmt.Errorf("find %s: %w", *dir, err)
		}
		*dir = absolute
	}
	return nil
}

func (s *settings) json() bool { return s.output == "json" }

// client returns a client for the daemon of this instance. The caller closes it.
func (s *settings) client() *client.Client {
	return client.New(filepath.Join(s.runDir, api.SocketName))
}
