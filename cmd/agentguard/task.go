// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/urfave/cli/v2"

	"agentguard.dev/agentguard/client"
)

func (p *program) taskCommand() *cli.Command {
	return &cli.Command{
		Name:  "task",
		Usage: "begin, use, show and end tasks",
		Subcommands: []*cli.Command{
			p.beginCommand(), p.execCommand(), p.endCommand(), p.listTasksCommand(),
			p.showTaskCommand(), p.grantCommand(), p.revokeCommand(),
		},
	}
}

func (p *program) beginCommand() *cli.Command {
	return &cli.Command{
		Name:      "begin",
		Usage:     "begin a task and print its id",
		ArgsUsage: " ",
		Description: `agentguard task begin --agent coder --purpose "fix #12" --ttl 10m
agentguard task begin --id build-7 --policy build.yaml --allow 192.0.2.10:443
agentguard task begin --agent web --cgroup system.slice/web.service

A task with a cgroup of its own is entered by ` + "`agentguard task exec`" + `. With --cgroup
(given after "begin") the processes of a cgroup that exists, a container's or a
systemd unit's, become the task. Beginning a live task again changes nothing.`,
		Flags: append(taskFlags(),
			&cli.StringFlag{Name: "id", Usage: "`ID` of the task; chosen for you when absent"},
			&cli.StringFlag{Name: "cgroup", Usage: "`PATH` of an existing cgroup, absolute or below the cgroup2 mount, that becomes the task"},
		),
		Action: p.begin,
	}
}

func (p *program) begin(ctx *cli.Context) error {
	if _, err := exactly(ctx); err != nil {
		return err
	}
	request, err := beginRequest(ctx)
	if err != nil {
		return err
	}
	request.ID, request.Cgroup = ctx.String("id"), ctx.String("cgroup")
	daemon := p.client()
	defer daemon.Close()
	task, err := daemon.Begin(ctx.Context, request)
	if err != nil {
		return err
	}
	if task.Existing {
		p.say("task %s is live already, since %s", task.ID, stamp(task.Begun))
	}
	return p.print(task, func(w io.Writer) { fmt.Fprintln(w, task.ID) })
}

func (p *program) endCommand() *cli.Command {
	return &cli.Command{
		Name:      "end",
		Usage:     "end a task: cut its connections, and kill its processes unless its policy leaves them",
		ArgsUsage: "ID",
		Description: `agentguard task end build-7
agentguard task end build-7 --drain 5s --reason "build done"

When it returns, nothing leaves any socket of the task. Ending an ended task changes nothing.`,
		Flags: []cli.Flag{
			&cli.DurationFlag{Name: "drain", DefaultText: "none", Usage: "first wait `TIME` for data already written to be sent"},
			&cli.StringFlag{Name: "reason", Usage: "`TEXT` for the audit log"},
		},
		Action: p.end,
	}
}

func (p *program) end(ctx *cli.Context) error {
	args, err := exactly(ctx, "ID")
	if err != nil {
		return err
	}
	daemon := p.client()
	defer daemon.Close()
	request := client.EndRequest{Drain: client.Duration(ctx.Duration("drain")), Reason: ctx.String("reason")}
	result, err := daemon.End(ctx.Context, args[0], request)
	if err != nil {
		return err
	}
	if result.Task.Existing {
		p.say("task %s had ended already, at %s", result.Task.ID, stampOf(result.Task.Ended))
	}
	return p.print(result, func(w io.Writer) {
		if !result.Task.Existing {
			fmt.Fprintf(w, "%s ended: %s cut, %s killed\n", result.Task.ID,
				count(result.Destroyed, "connection"), count(result.Killed, "process"))
		}
	})
}

func (p *program) listTasksCommand() *cli.Command {
	return &cli.Command{
		Name:      "list",
		Usage:     "list tasks, oldest first",
		ArgsUsage: " ",
		Description: `agentguard task list
agentguard task list --agent coder --state live -o json`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "agent", Usage: "only tasks of `AGENT`"},
			&cli.StringFlag{Name: "state", Usage: "only tasks in `STATE`: live, ending or ended"},
		},
		Action: p.listTasks,
	}
}

func (p *program) listTasks(ctx *cli.Context) error {
	if _, err := exactly(ctx); err != nil {
		return err
	}
	daemon := p.client()
	defer daemon.Close()
	filter := client.TaskFilter{Agent: ctx.String("agent"), State: client.TaskState(ctx.String("state"))}
	tasks, err := daemon.Tasks(ctx.Context, filter)
	if err != nil {
		return err
	}
	return p.print(tasks, func(w io.Writer) {
		rows := make([][]string, len(tasks))
		for i, t := range tasks {
			rows[i] = []string{t.ID, orDash(t.Agent), string(t.State), t.Mode, stamp(t.Begun), orDash(stampOf(t.Deadline)), orDash(t.Purpose)}
		}
		table(w, []string{"ID", "AGENT", "STATE", "MODE", "BEGUN", "DEADLINE", "PURPOSE"}, rows)
	})
}

func (p *program) showTaskCommand() *cli.Command {
	return &cli.Command{
		Name:        "show",
		Usage:       "show one task with its grants and counters",
		ArgsUsage:   "ID",
		Description: `agentguard task show build-7`,
		Action:      p.showTask,
	}
}

func (p *program) showTask(ctx *cli.Context) error {
	args, err := exactly(ctx, "ID")
	if err != nil {
		return err
	}
	daemon := p.client()
	defer daemon.Close()
	task, err := daemon.Task(ctx.Context, args[0])
	if err != nil {
		return err
	}
	return p.print(task, func(w io.Writer) { writeTask(w, task) })
}

func writeTask(w io.Writer, t client.Task) {
	fields(w,
		"task", t.ID,
		"agent", t.Agent,
		"purpose", t.Purpose,
		"labels", pairs(t.Labels),
		"state", string(t.State),
		"mode", t.Mode,
		"cgroup", t.Cgroup,
		"begun", stamp(t.Begun),
		"deadline", stampOf(t.Deadline),
		"ended", stampOf(t.Ended),
		"end reason", t.EndReason,
	)
	if len(t.Grants) > 0 {
		fmt.Fprintln(w)
		rows := make([][]string, len(t.Grants))
		for i, g := range t.Grants {
			rows[i] = []string{withTLS(g), orDash(stampOf(g.Deadline))}
		}
		table(w, []string{"GRANT", "DEADLINE"}, rows)
	}
	if len(t.Learned) > 0 {
		fmt.Fprintln(w)
		rows := make([][]string, len(t.Learned))
		for i, n := range t.Learned {
			addresses := strings.Join(n.Addresses, " ")
			if n.More > 0 {
				addresses += fmt.Sprintf(" and %d more", n.More)
			}
			rows[i] = []string{n.Name, addresses}
		}
		table(w, []string{"NAME", "ADDRESSES"}, rows)
	}
	if len(t.Counters) > 0 {
		fmt.Fprintln(w)
		rows := make([][]string, len(t.Counters))
		for i, c := range t.Counters {
			rows[i] = []string{c.Rule, fmt.Sprint(c.Allowed), fmt.Sprint(c.Denied), fmt.Sprint(c.Packets), fmt.Sprint(c.Bytes)}
		}
		table(w, []string{"RULE", "ALLOWED", "DENIED", "PACKETS", "BYTES"}, rows)
	}
}

// withTLS is the grant's destination, with what it says of TLS.
func withTLS(g client.Grant) string {
	if g.TLS == "" {
		return g.Destination
	}
	return g.Destination + " tls: " + g.TLS
}
