// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"time"

	"github.com/urfave/cli/v2"

	"agentguard.dev/agentguard/client"
	"agentguard.dev/agentguard/internal/audit"
	"agentguard.dev/agentguard/internal/task"
)

func (p *program) auditCommand() *cli.Command {
	return &cli.Command{
		Name:  "audit",
		Usage: "read the audit log",
		Subcommands: []*cli.Command{
			{
				Name:      "query",
				Usage:     "print records, oldest first",
				ArgsUsage: " ",
				Description: `agentguard audit query --since 1h --verdict deny
agentguard audit query --task build-7 -o json | jq .destination

With -o json one record a line.`,
				Flags:  append(recordFlags(), &cli.IntFlag{Name: "limit", Aliases: []string{"n"}, Usage: "only the newest `N` records"}),
				Action: func(ctx *cli.Context) error { return p.records(ctx, false) },
			},
			{
				Name:      "tail",
				Usage:     "print the newest records and go on as they are made",
				ArgsUsage: " ",
				Description: `agentguard audit tail
agentguard audit tail --agent coder --verdict deny -o json`,
				Flags:  append(recordFlags(), &cli.IntFlag{Name: "limit", Aliases: []string{"n"}, Value: 10, Usage: "begin with the newest `N` records"}),
				Action: func(ctx *cli.Context) error { return p.records(ctx, true) },
			},
		},
	}
}

func recordFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "since", Usage: "from `TIME` on: 2026-01-02T15:04:05Z, or an age such as 10m"},
		&cli.StringFlag{Name: "task", Usage: "only of the task with `ID`"},
		&cli.StringFlag{Name: "agent", Usage: "only of `AGENT`"},
		&cli.StringFlag{Name: "verdict", Usage: "only decisions with `VERDICT`: allow, deny or would-deny"},
		&cli.StringFlag{Name: "kind", Usage: "only of `KIND`: decision, dns, http, task, grant, policy, daemon or lost"},
	}
}

func (p *program) records(ctx *cli.Context, follow bool) error {
	if _, err := exactly(ctx); err != nil {
		return err
	}
	query := client.AuditQuery{
		Task: ctx.String("task"), Agent: ctx.String("agent"), Verdict: ctx.String("verdict"),
		Kind: ctx.String("kind"), Limit: ctx.Int("limit"), Follow: follow,
	}
	if query.Limit < 0 {
		return usageError{fmt.Sprintf("limit %d: want a positive number", query.Limit)}
	}
	var err error
	if query.Since, err = client.ParseSince(ctx.String("since"), time.Now()); err != nil {
		return usageError{err.Error()}
	}
	daemon := p.client()
	defer daemon.Close()
	err = p.writeRecords(daemon.Audit(ctx.Context, query))
	if errors.Is(err, client.ErrNoDaemon) && os.Geteuid() == 0 {
		stored := p.writeRecords(p.storedRecords(ctx.Context, query))
		if errors.Is(stored, fs.ErrNotExist) {
			return fmt.Errorf("%w; nor is there a log in %s", err, p.stateDir)
		}
		return stored
	}
	return err
}

func (p *program) writeRecords(records iter.Seq2[client.Record, error]) error {
	lines := json.NewEncoder(p.stdout)
	for record, err := range records {
		if err != nil {
			return err
		}
		if p.json() {
			err = lines.Encode(record)
		} else {
			_, err = fmt.Fprintln(p.stdout, stamp(record.Time), audit.Text(record))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// storedRecords reads the log's files, which outlive the daemon and hold what
// `run` without a daemon did.
func (p *program) storedRecords(ctx context.Context, query client.AuditQuery) iter.Seq2[client.Record, error] {
	return func(yield func(client.Record, error) bool) {
		dir := task.AuditDir(p.stateDir)
		stored := audit.Query{
			Since: query.Since, Task: query.Task, Agent: query.Agent,
			Verdict: query.Verdict, Kind: query.Kind, Limit: query.Limit,
			Damaged: func(file string, lines int) { p.say("%s: %s cannot be read", file, count(lines, "line")) },
		}
		stopped := errors.New("stopped")
		each := func(record client.Record) error {
			if !yield(record, nil) {
				return stopped
			}
			return nil
		}
		var err error
		if query.Follow {
			err = audit.Follow(ctx, dir, stored, each)
		} else {
			err = audit.Read(dir, stored, each)
		}
		if err != nil && !errors.Is(err, stopped) {
			yield(client.Record{}, err)
		}
	}
}
