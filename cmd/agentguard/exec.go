// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"time"

	"github.com/urfave/cli/v2"

	"agentguard.dev/agentguard/client"
)

func (p *program) execCommand() *cli.Command {
	return &cli.Command{
		Name:      "exec",
		Usage:     "run a command in a live task",
		ArgsUsage: "ID -- CMD [ARG...]",
		Description: `sudo agentguard task exec build-7 -- make
sudo agentguard task exec build-7 --user nobody -- ./tool

The task goes on after the command's end. The exit code is the command's.`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "user", Usage: "run as `USER`, a name, UID or UID:GID, instead of the user who called sudo"},
			drainFlag(),
		},
		Action: p.exec,
	}
}

func (p *program) exec(ctx *cli.Context) error {
	if ctx.NArg() < 2 || ctx.Args().First() == "" {
		return usageError{"task exec needs a task and a command: agentguard task exec ID -- CMD"}
	}
	id, argv := ctx.Args().First(), ctx.Args().Tail()
	if err := needRoot(ctx, id+" -- CMD"); err != nil {
		return guardError{err}
	}
	daemon := daemonHost{p.client(), p}
	defer daemon.Close()
	task, err := daemon.Enter(ctx.Context, id)
	if err != nil {
		return guardError{err}
	}
	code, spawnErr := spawn(ctx, task, argv)
	return p.outcome(p.settle(ctx, daemon, task), code, spawnErr)
}

// settle drains the task and returns it as it is afterwards. The command's
// exit code stands whatever happens here.
func (p *program) settle(ctx *cli.Context, daemon daemonHost, task client.Task) client.Task {
	if drain := ctx.Duration("drain"); drain > 0 {
		result, err := daemon.Drain(ctx.Context, task.ID, client.DrainRequest{Drain: client.Duration(drain)})
		switch {
		case err != nil:
			p.say("drain task %s: %v", task.ID, err)
		case !result.Drained:
			p.say("after %s, %s of task %s still held unsent data", drain, count(result.Left, "connection"), task.ID)
		}
	}
	return afterwards(ctx.Context, daemon, task)
}

// afterwards returns the task as it is now, or as it will be in a moment if it
// is just ending.
func afterwards(ctx context.Context, daemon daemonHost, task client.Task) client.Task {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	for {
		now, err := daemon.Task(ctx, task.ID)
		if err != nil {
			return task
		}
		if now.State != client.TaskEnding {
			return now
		}
		task = now
		select {
		case <-ctx.Done():
			return task
		case <-time.After(20 * time.Millisecond):
		}
	}
}
