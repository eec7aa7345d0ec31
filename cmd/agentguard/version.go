// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"runtime"
	"runtime/debug"

	"github.com/urfave/cli/v2"
)

func (p *program) versionCommand() *cli.Command {
	return &cli.Command{
		Name:        "version",
		Usage:       "print the version of this program",
		ArgsUsage:   " ",
		Description: `agentguard version -o json`,
		Action: func(ctx *cli.Context) error {
			if _, err := exactly(ctx); err != nil {
				return err
			}
			return p.print(map[string]string{"version": version(), "go": runtime.Version()}, func(w io.Writer) {
				fmt.Fprintf(w, "agentguard %s (%s)\n", version(), runtime.Version())
			})
		},
	}
}

// version is what the Go command recorded from the module or from git.
func version() string {
	if build, ok := debug.ReadBuildInfo(); ok && build.Main.Version != "" {
		return build.Main.Version
	}
	return "(devel)"
}
