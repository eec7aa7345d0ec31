// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"agentguard.dev/agentguard/client"
)

func (p *program) statusCommand() *cli.Command {
	return &cli.Command{
		Name:      "status",
		Usage:     "say whether the daemon is ready and enforcing",
		ArgsUsage: " ",
		Description: `agentguard status
agentguard status --wait 10s && start-my-orchestrator

The exit code is 0 when it is, 1 when it is not or does not become so in time.`,
		Flags:  []cli.Flag{&cli.DurationFlag{Name: "wait", DefaultText: "none", Usage: "wait up to `TIME` for the daemon to become ready"}},
		Action: p.status,
	}
}

func (p *program) status(ctx *cli.Context) error {
	if _, err := exactly(ctx); err != nil {
		return err
	}
	status, err := p.waitReady(ctx.Context, ctx.Duration("wait"))
	if err != nil {
		return err
	}
	if err := p.print(status, func(w io.Writer) { writeStatus(w, status) }); err != nil {
		return err
	}
	if !status.Ready {
		return &client.Error{Code: "unavailable", Message: "not ready: " + strings.Join(status.Problems, "; ")}
	}
	return nil
}

// waitReady asks until the daemon is ready or wait is over, and returns what
// it heard last. It asks once at least.
func (p *program) waitReady(ctx context.Context, wait time.Duration) (client.Status, error) {
	const pause, patience = 50 * time.Millisecond, 5 * time.Second
	daemon := p.client()
	defer daemon.Close()
	end := time.Now().Add(wait)
	for {
		asking, cancel := context.WithTimeoutCause(ctx, max(time.Until(end), patience),
			fmt.Errorf("the daemon on %s does not answer", daemon.Socket()))
		status, err := daemon.Status(asking)
		cancel()
		if err == nil && status.Ready || time.Until(end) < pause {
			return status, err
		}
		select {
		case <-ctx.Done():
			return status, context.Cause(ctx)
		case <-time.After(pause):
		}
	}
}

func writeStatus(w io.Writer, s client.Status) {
	enforcing := "yes"
	if !s.Ready {
		enforcing = "NO"
	}
	fields(w,
		"enforcing", enforcing,
		"problems", strings.Join(s.Problems, "; "),
		"version", s.Version,
		"process", fmt.Sprint(s.PID),
		"started", stamp(s.Started),
		"kernel", s.Kernel,
		"cgroup", s.Cgroup,
		"guards", strings.Join(s.Guards, " "),
		"tasks", fmt.Sprint(s.Tasks),
		"policies", fmt.Sprint(s.Policies),
		"names", namesLine(s.Names),
		"lost events", fmt.Sprint(s.Lost),
	)
	if len(s.Maps) == 0 {
		return
	}
	fmt.Fprintln(w)
	rows := make([][]string, len(s.Maps))
	for i, m := range s.Maps {
		rows[i] = []string{m.Name, fmt.Sprint(m.Entries), fmt.Sprint(m.Max)}
	}
	table(w, []string{"MAP", "ENTRIES", "MAX"}, rows)
}

// namesLine is empty where no task's rules have names.
func namesLine(n client.NamesStatus) string {
	if n.Stations == 0 && n.Learned == 0 {
		return ""
	}
	return fmt.Sprintf("%s known, DNS answered in %s", count(n.Learned, "address"), count(n.Stations, "network namespace"))
}
