// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"embed"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"agentguard.dev/agentguard/client"
)

//go:embed completion
var completionScripts embed.FS

func (p *program) completionCommand() *cli.Command {
	return &cli.Command{
		Name:      "completion",
		Usage:     "print a script that completes command lines: bash, zsh or fish",
		ArgsUsage: "SHELL",
		Description: `agentguard completion bash > /etc/bash_completion.d/agentguard
agentguard completion zsh > /usr/local/share/zsh/site-functions/_agentguard
agentguard completion fish > ~/.config/fish/completions/agentguard.fish`,
		Action: func(ctx *cli.Context) error {
			args, err := exactly(ctx, "SHELL")
			if err != nil {
				return err
			}
			script, err := completionScripts.ReadFile("completion/agentguard." + args[0])
			if err != nil {
				return usageError{fmt.Sprintf("shell %q: want bash, zsh or fish", args[0])}
			}
			_, err = p.stdout.Write(script)
			return err
		},
	}
}

// completeCommand answers the completion scripts: the words typed so far are
// its arguments, the last of them the one to complete.
func (p *program) completeCommand() *cli.Command {
	return &cli.Command{
		Name:   "__complete",
		Hidden: true,
		Action: func(ctx *cli.Context) error {
			for _, candidate := range p.candidates(ctx.App, ctx.Args().Slice()) {
				fmt.Fprintln(p.stdout, candidate)
			}
			return nil
		},
	}
}

// candidates are the words that can stand at the end of words, whose last one
// is their common prefix.
func (p *program) candidates(app *cli.App, words []string) []string {
	if len(words) == 0 {
		words = []string{""}
	}
	last := words[len(words)-1]
	before := arrangement{app: app}
	for rest := words[:len(words)-1]; len(rest) > 0; {
		switch word := rest[0]; {
		case word == "--":
			return nil
		case len(word) > 1 && word[0] == '-':
			if len(rest) == 1 && awaitsValue(before, word) {
				return nil
			}
			rest = before.flag(rest)
			continue
		case !before.descend(word):
			before.arguments = append(before.arguments, word)
		}
		rest = rest[1:]
	}
	var all []string
	if strings.HasPrefix(last, "-") {
		all = flagNames(app, before.command)
	} else {
		all = p.wordsAt(app, before)
	}
	all = slices.DeleteFunc(all, func(word string) bool { return !strings.HasPrefix(word, last) })
	slices.Sort(all)
	return all
}

// awaitsValue says whether word, the last before the cursor, is a flag whose
// value comes next.
func awaitsValue(before arrangement, word string) bool {
	name := strings.TrimLeft(word, "-")
	flag := findFlag(before.app.Flags, name)
	if before.command != nil {
		if own := findFlag(before.command.Flags, name); own != nil {
			flag = own
		}
	}
	return flag != nil && takesValue(flag)
}

func flagNames(app *cli.App, command *cli.Command) []string {
	flags := app.Flags
	if command != nil {
		flags = slices.Concat(flags, command.Flags)
	}
	var names []string
	for _, flag := range flags {
		names = append(names, "--"+flag.Names()[0])
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func (p *program) wordsAt(app *cli.App, at arrangement) []string {
	below := app.Commands
	if at.command != nil {
		below = at.command.Subcommands
	}
	var words []string
	for _, command := range below {
		if !command.Hidden {
			words = append(words, command.Name)
		}
	}
	if len(words) > 0 || len(at.arguments) > 0 {
		return words
	}
	switch strings.Join(at.path, " ") {
	case "task exec", "task end", "task grant", "task revoke":
		return p.taskIDs(client.TaskFilter{State: client.TaskLive})
	case "task show":
		return p.taskIDs(client.TaskFilter{})
	case "policy show", "policy delete":
		return p.policyNames()
	case "completion":
		return []string{"bash", "zsh", "fish"}
	}
	return nil
}

// completionTime is how long someone waits for a completion.
const completionTime = time.Second

func (p *program) taskIDs(filter client.TaskFilter) (ids []string) {
	ctx, cancel := context.WithTimeout(context.Background(), completionTime)
	defer cancel()
	daemon := p.client()
	defer daemon.Close()
	tasks, err := daemon.Tasks(ctx, filter)
	if err != nil {
		return nil // a completion has no place to complain
	}
	for _, task := range tasks {
		ids = append(ids, task.ID)
	}
	return ids
}

func (p *program) policyNames() (names []string) {
	ctx, cancel := context.WithTimeout(context.Background(), completionTime)
	defer cancel()
	daemon := p.client()
	defer daemon.Close()
	policies, err := daemon.Policies(ctx)
	if err != nil {
		return nil
	}
	for _, policy := range policies {
		names = append(names, policy.Name)
	}
	return names
}
