// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"

	"github.com/urfave/cli/v2"

	"agentguard.dev/agentguard/client"
)

// taskFlags describe a task wherever one is begun.
func taskFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "agent", Usage: "`AGENT` whose policy applies"},
		&cli.StringFlag{Name: "policy", Usage: "`FILE` with a policy for this task alone"},
		&cli.StringSliceFlag{Name: "allow", Usage: "`DEST` that the task may reach; can be repeated"},
		tlsFlag(),
		&cli.StringFlag{Name: "purpose", Usage: "`TEXT` for people and the audit log"},
		&cli.DurationFlag{Name: "ttl", DefaultText: "none", Usage: "`TIME` after which the kernel denies everything and the task is ended"},
		&cli.StringSliceFlag{Name: "label", Usage: "`KEY=VALUE` for people and filters; can be repeated"},
	}
}

func tlsFlag() cli.Flag {
	return &cli.StringFlag{Name: "tls", Usage: "`off`: connections to names need not be TLS that shows the name (SSH, databases)"}
}

// beginRequest reads taskFlags.
func beginRequest(ctx *cli.Context) (client.BeginRequest, error) {
	request := client.BeginRequest{
		Agent:   ctx.String("agent"),
		Allow:   ctx.StringSlice("allow"),
		TLS:     ctx.String("tls"),
		Purpose: ctx.String("purpose"),
		TTL:     client.Duration(ctx.Duration("ttl")),
	}
	var err error
	if request.Labels, err = labels(ctx.StringSlice("label")); err != nil {
		return client.BeginRequest{}, err
	}
	if file := ctx.String("policy"); file != "" {
		document, err := os.ReadFile(file)
		if err != nil {
			return client.BeginRequest{}, fmt.Errorf("read the policy: %w", err)
		}
		request.Policy = string(document)
	}
	return request, nil
}
