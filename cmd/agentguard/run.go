// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"agentguard.dev/agentguard/client"
	"agentguard.dev/agentguard/internal/cgroup"
	"agentguard.dev/agentguard/internal/launch"
)

func (p *program) runCommand() *cli.Command {
	return &cli.Command{
		Name:      "run",
		Usage:     "run one command as a task of its own; needs no daemon",
		ArgsUsage: "-- CMD [ARG...]",
		Description: `sudo agentguard run --allow api.example.com:443 -- ./my-agent
sudo agentguard run --allow 192.0.2.10:443 --allow github.com:22 --tls off -- ./my-agent
sudo agentguard run --allow '[2001:db8::/32]:8000-8100' --ttl 10m -- make test
sudo agentguard run --agent coder --purpose "fix #12" -- ./my-agent

` + destinationHelp + `

What is not allowed is denied: the command gets an error at once, and the reason appears here on
stderr. The command runs as the user who called sudo. When it exits, what it has written is sent,
its connections are cut, and what it started is killed. The exit code is the command's.`,
		Flags: append(taskFlags(),
			&cli.StringFlag{Name: "user", Usage: "run as `USER`, a name, UID or UID:GID, instead of the user who called sudo"},
			resolverFlag(),
			drainFlag(),
		),
		Action: p.run,
	}
}

// nothing is the policy of a `run` without one: a command cut off from all but
// itself.
const nothing = `apiVersion: agentguard.dev/v1alpha1
kind: AgentPolicy
metadata: {name: nothing}
spec: {}
`

func drainFlag() cli.Flag {
	return &cli.DurationFlag{Name: "drain", Value: 5 * time.Second, Usage: "when the command exits, wait up to `TIME` for what it has written to be sent"}
}

func (p *program) run(ctx *cli.Context) error {
	argv := ctx.Args().Slice()
	if len(argv) == 0 {
		return usageError{"run needs a command: agentguard run --allow DEST -- CMD"}
	}
	if err := needRoot(ctx, "--allow DEST -- CMD"); err != nil {
		return guardError{err}
	}
	request, err := beginRequest(ctx)
	if err != nil {
		return guardError{err}
	}
	if request.Agent == "" && request.Policy == "" && len(request.Allow) == 0 {
		request.Policy = nothing
	}
	resolvers, err := givenResolvers(ctx)
	if err != nil {
		return guardError{err}
	}
	host, err := p.host(ctx.Context, resolvers)
	if err != nil {
		return guardError{err}
	}
	task, err := host.Begin(ctx.Context, request)
	if err != nil {
		return guardError{errors.Join(err, host.close())}
	}
	talk := p.narrate(ctx.Context, host, task)
	code, spawnErr := spawn(ctx, task, argv)
	ended, endErr := host.End(ctx.Context, task.ID, client.EndRequest{
		Drain: client.Duration(ctx.Duration("drain")), Reason: "command exited",
	})
	if endErr == nil {
		talk.finish()
	}
	talk.stop()
	if err := errors.Join(endErr, host.close()); err != nil {
		p.say("end the task: %v; what it may reach is still enforced: agentguard task end %s", err, task.ID)
	}
	return p.outcome(ended.Task, code, spawnErr)
}

// spawn runs argv in the task's cgroup and waits for it.
func spawn(ctx *cli.Context, task client.Task, argv []string) (code int, err error) {
	dir, err := cgroup.Open(task.Cgroup)
	if err != nil {
		return launch.ExitFailure, err
	}
	defer dir.Close()
	if dir.ID() != task.CgroupID {
		return launch.ExitFailure, fmt.Errorf("enter %s: the cgroup of task %s was replaced by another", task.Cgroup, task.ID)
	}
	return launch.Run(context.WithoutCancel(ctx.Context), launch.Command{
		Argv: argv, Cgroup: dir, User: ctx.String("user"),
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
	})
}

// outcome turns what became of a command into the result of run or exec. task
// is as it was after the command's end.
func (p *program) outcome(task client.Task, code int, err error) error {
	if err != nil {
		p.complain("failed", err)
		return exitError{code}
	}
	switch {
	case code == exitDone, task.State == "", task.State == client.TaskLive, task.EndReason == "command exited":
	case task.EndReason == "expired":
		p.say("the task's time was over at %s (the command: %s)", stampOf(task.Deadline), fate(code))
		code = exitExpired
	default:
		p.say("task %s was ended while the command ran (the command: %s)", task.ID, fate(code))
	}
	if code == exitDone {
		return nil
	}
	return exitError{code}
}

// fate says in words how a command ended.
func fate(code int) string {
	if signal := syscall.Signal(code - 128); signal > 0 {
		return signal.String()
	}
	return fmt.Sprintf("exit code %d", code)
}
