// SPDX-License-Identifier: Apache-2.0

package main

import (
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// arrange puts a command line into the order that the cli package wants:
// global flags, command, its flags, "--", arguments. People write flags where
// they come to mind: after the command, after its arguments. Where a command
// has a flag of the same name as a global one, the place decides: before the
// command the global one is meant, after it the command's. "help X" is "X --help".
func arrange(app *cli.App, argv []string) []string {
	a := arrangement{app: app}
	words := argv[1:]
	for len(words) > 0 {
		word := words[0]
		switch {
		case word == "--":
			return a.line(argv[0], words[1:], true)
		case len(word) > 1 && word[0] == '-':
			words = a.flag(words)
		case word == "help" && len(a.arguments) == 0 && !a.atLeaf():
			a.flags = append(a.flags, "--help")
			words = words[1:]
		case a.descend(word):
			words = words[1:]
		case a.command != nil && len(a.arguments) == ownArguments(a.command):
			return a.line(argv[0], words, true)
		default:
			a.arguments = append(a.arguments, word)
			words = words[1:]
		}
	}
	return a.line(argv[0], nil, false)
}

// ownArguments is the number of arguments after which the rest of the line is
// a command of the user's, whose flags are not ours; -1 if there is none.
func ownArguments(command *cli.Command) int {
	switch command.Name {
	case "run":
		return 0
	case "exec":
		return 1
	}
	return -1
}

type arrangement struct {
	app       *cli.App
	command   *cli.Command // nil before the first
	globals   []string
	path      []string
	flags     []string
	arguments []string
}

func (a *arrangement) line(program string, rest []string, terminated bool) []string {
	line := slices.Concat([]string{program}, a.globals, a.path, a.flags)
	if terminated || len(a.arguments) > 0 {
		line = append(line, "--")
	}
	return slices.Concat(line, a.arguments, rest)
}

// atLeaf says whether a command was named that has none below it.
func (a *arrangement) atLeaf() bool {
	return a.command != nil && len(a.command.Subcommands) == 0
}

// descend moves to the subcommand called name, if there is one.
func (a *arrangement) descend(name string) bool {
	below := a.app.Commands
	if a.command != nil {
		below = a.command.Subcommands
	}
	if len(a.arguments) > 0 {
		return false
	}
	for _, command := range below {
		if command.HasName(name) {
			a.command = command
			a.path = append(a.path, name)
			return true
		}
	}
	return false
}

// flag takes the flag at the start of words, with its value, and returns the
// words after it.
func (a *arrangement) flag(words []string) []string {
	name, _, hasValue := strings.Cut(strings.TrimLeft(words[0], "-"), "=")
	var own []cli.Flag
	if a.command != nil {
		own = a.command.Flags
	}
	found, global := findFlag(own, name), false
	if found == nil {
		found = findFlag(a.app.Flags, name)
		global = found != nil
	}
	n := 1
	if found != nil && !hasValue && takesValue(found) {
		n = min(2, len(words))
	}
	if global {
		a.globals = append(a.globals, words[:n]...)
	} else {
		a.flags = append(a.flags, words[:n]...)
	}
	return words[n:]
}

func findFlag(flags []cli.Flag, name string) cli.Flag {
	for _, flag := range flags {
		if slices.Contains(flag.Names(), name) {
			return flag
		}
	}
	return nil
}

func takesValue(flag cli.Flag) bool {
	documented, ok := flag.(cli.DocGenerationFlag)
	return ok && documented.TakesValue()
}
