// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/urfave/cli/v2"

	"agentguard.dev/agentguard/client"
	"agentguard.dev/agentguard/internal/task"
)

func (p *program) doctorCommand() *cli.Command {
	return &cli.Command{
		Name:      "doctor",
		Usage:     "say which protections this kernel has and what stays open without the others",
		ArgsUsage: " ",
		Description: `sudo agentguard doctor

Needs no daemon. The exit code is 1 if something required is missing.`,
		Action: p.doctor,
	}
}

func (p *program) doctor(ctx *cli.Context) error {
	if _, err := exactly(ctx); err != nil {
		return err
	}
	checks, err := p.checks(ctx)
	if err != nil {
		return err
	}
	if err := p.print(checks, func(w io.Writer) { writeChecks(w, checks) }); err != nil {
		return err
	}
	for _, check := range checks {
		if check.Required && !check.OK {
			return fmt.Errorf("%s is required and missing: %s", check.Name, check.Remedy)
		}
	}
	return nil
}

// checks probes the kernel itself where it may, else asks the daemon.
func (p *program) checks(ctx *cli.Context) ([]client.Check, error) {
	if os.Geteuid() == 0 {
		return task.Probe(nil), nil
	}
	daemon := p.client()
	defer daemon.Close()
	checks, err := daemon.Doctor(ctx.Context)
	if errors.Is(err, client.ErrNoDaemon) {
		return nil, errors.New("doctor needs root where no daemon runs: sudo agentguard doctor")
	}
	return checks, err
}

func writeChecks(w io.Writer, checks []client.Check) {
	rows := make([][]string, len(checks))
	for i, check := range checks {
		rows[i] = []string{verdictOf(check), check.Name, check.Detail}
	}
	table(w, []string{"", "CHECK", "FOUND"}, rows)
	for _, check := range checks {
		if check.OK {
			continue
		}
		fmt.Fprintf(w, "\n%s\n", printable(check.Name))
		fields(w, "  open without it", check.Open, "  the way out", check.Remedy)
	}
}

func verdictOf(check client.Check) string {
	switch {
	case check.OK:
		return "ok"
	case check.Required:
		return "MISSING"
	}
	return "absent"
}
