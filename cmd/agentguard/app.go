// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"

	"github.com/urfave/cli/v2"
)

// program is one invocation: where it writes and what the global flags say.
type program struct {
	settings
	stdout, stderr io.Writer
}

// perform runs one command line and returns the exit code.
func perform(argv []string, stdout, stderr io.Writer) int {
	p := &program{stdout: stdout, stderr: stderr}
	app := p.app()
	return p.exitCode(app.Run(arrange(app, argv)))
}

func (p *program) app() *cli.App {
	app := &cli.App{
		Name:  "agentguard",
		Usage: "decides in the kernel what AI agents may reach",
		Description: `Run one command that reaches nothing but what you allow:

   sudo agentguard run --allow 192.0.2.10:443 -- ./my-agent

Or run the daemon, give each agent a policy, and begin a task for each piece of work:

   agentguard policy apply coder.yaml
   agentguard task begin --agent coder --ttl 10m

Exit codes: 0 done, 1 failed, 2 wrong usage. ` + "`run` and `task exec`" + ` exit with their command's code;
124 when the task's time was over, 125 when agentguard itself failed, 126 when the command
cannot be executed, 127 when it is not found, 128+N when signal N killed it.`,
		Flags: p.settings.flags(),
		Commands: []*cli.Command{
			p.runCommand(),
			p.taskCommand(),
			p.policyCommand(),
			p.auditCommand(),
			p.statusCommand(),
			p.doctorCommand(),
			p.daemonCommand(),
			p.unloadCommand(),
			p.completionCommand(),
			p.completeCommand(),
			p.versionCommand(),
		},
		Writer:                    p.stdout,
		ErrWriter:                 p.stderr,
		HideVersion:               true,
		HideHelpCommand:           true, // arrange knows it
		Before:                    func(*cli.Context) error { return p.settings.resolve() },
		Action:                    showHelp,
		OnUsageError:              misused,
		ExitErrHandler:            func(*cli.Context, error) {}, // perform has the one exit point
		DisableSliceFlagSeparator: true,                         // ports contain commas
	}
	for _, command := range app.Commands {
		finish(command)
	}
	return app
}

// finish gives a command and those below it what all have in common.
func finish(command *cli.Command) {
	command.OnUsageError = misused
	command.HideHelpCommand = true
	if len(command.Subcommands) == 0 {
		command.CustomHelpTemplate = cli.CommandHelpTemplate + globalHelp
		return
	}
	command.Action = showHelp
	for _, sub := range command.Subcommands {
		finish(sub)
	}
}

const globalHelp = `
GLOBAL OPTIONS, before or after the command:
   --state-dir, --run-dir, --pin-dir, --cgroup, --output; see: agentguard --help
`

// showHelp is the action of the program and of groups of commands, which do
// nothing by themselves.
func showHelp(ctx *cli.Context) error {
	if ctx.Args().Present() {
		return usageError{fmt.Sprintf("there is no command %q; see: %s --help", ctx.Args().First(), ctx.Command.HelpName)}
	}
	if ctx.Command.Name == ctx.App.Name {
		return cli.ShowAppHelp(ctx)
	}
	return cli.ShowSubcommandHelp(ctx)
}

func misused(ctx *cli.Context, err error, _ bool) error {
	return usageError{fmt.Sprintf("%v; see: %s --help", err, ctx.Command.HelpName)}
}
