// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// exactly returns the arguments of a command that takes these and no others.
func exactly(ctx *cli.Context, names ...string) ([]string, error) {
	given := ctx.Args().Slice()
	command := commandName(ctx)
	switch {
	case len(given) < len(names):
		return nil, usageError{fmt.Sprintf("%s needs %s; see: agentguard %[1]s --help", command, strings.Join(names[len(given):], " and "))}
	case len(given) > len(names):
		return nil, usageError{fmt.Sprintf("%s: unexpected argument %q; see: agentguard %[1]s --help", command, given[len(names)])}
	}
	if i := slices.Index(given, ""); i >= 0 {
		return nil, usageError{fmt.Sprintf("%s: %s must not be empty", command, names[i])}
	}
	return given, nil
}

// labels parses k=v pairs.
func labels(pairs []string) (map[string]string, error) {
	if len(pairs) == 0 {
		return nil, nil
	}
	parsed := make(map[string]string, len(pairs))
	for _, pair := range pairs {
		key, value, found := strings.Cut(pair, "=")
		if !found || key == "" {
			return nil, usageError{fmt.Sprintf("label %q: want KEY=VALUE", pair)}
		}
		if _, twice := parsed[key]; twice {
			return nil, usageError{fmt.Sprintf("label %q is given twice", key)}
		}
		parsed[key] = value
	}
	return parsed, nil
}

// needRoot says how to become root for a command that changes the kernel.
func needRoot(ctx *cli.Context, arguments ...string) error {
	if os.Geteuid() == 0 {
		return nil
	}
	line := strings.Join(append([]string{"sudo agentguard", commandName(ctx)}, arguments...), " ")
	return fmt.Errorf("%s needs root: %s", commandName(ctx), line)
}

// commandName is the command without the program: "task begin".
func commandName(ctx *cli.Context) string {
	return strings.TrimPrefix(ctx.Command.HelpName, ctx.App.HelpName+" ")
}
