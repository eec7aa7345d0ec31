// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"

	"github.com/urfave/cli/v2"

	"agentguard.dev/agentguard/client"
)

// destinationHelp is the same wherever a DEST is taken.
const destinationHelp = `DEST is [tcp://|udp://|icmp://]HOST[:PORTS]. HOST is a name, *.NAME, an address or a prefix, IPv6 in
brackets; PORTS are 443, 80,443, 8000-8100 or *. Without a scheme it is TCP. A connection to a name must
be TLS that shows it, or on port 80 plain HTTP; --tls off takes anything.`

func (p *program) grantCommand() *cli.Command {
	return &cli.Command{
		Name:      "grant",
		Usage:     "let a live task reach a destination for a while",
		ArgsUsage: "ID DEST",
		Description: `agentguard task grant build-7 api.example.com:443 --ttl 10m
agentguard task grant build-7 192.0.2.10:443 --ttl 10m
agentguard task grant build-7 github.com:22 --tls off
agentguard task grant build-7 'udp://[2001:db8::/32]:53'

` + destinationHelp + `
Without --ttl the grant lasts until the task ends. Granting again sets the deadline anew.`,
		Flags: []cli.Flag{
			&cli.DurationFlag{Name: "ttl", DefaultText: "none", Usage: "how long, such as 90s or 1h; the kernel ends it by itself after that `TIME`"},
			tlsFlag(),
		},
		Action: p.grant,
	}
}

func (p *program) grant(ctx *cli.Context) error {
	args, err := exactly(ctx, "ID", "DEST")
	if err != nil {
		return err
	}
	daemon := p.client()
	defer daemon.Close()
	grant, err := daemon.Grant(ctx.Context, args[0], client.Grant{
		Destination: args[1], TLS: ctx.String("tls"), TTL: client.Duration(ctx.Duration("ttl")),
	})
	if err != nil {
		return err
	}
	if grant.Existing {
		p.say("task %s had that grant already; its deadline is set anew", args[0])
	}
	return p.print(grant, func(w io.Writer) {
		until := "until the task ends"
		if grant.Deadline != nil {
			until = "until " + stampOf(grant.Deadline)
		}
		fmt.Fprintf(w, "%s may reach %s %s\n", args[0], grant.Destination, until)
	})
}

func (p *program) revokeCommand() *cli.Command {
	return &cli.Command{
		Name:      "revoke",
		Usage:     "take a grant back and cut the connections that used it",
		ArgsUsage: "ID DEST",
		Description: `agentguard task revoke build-7 192.0.2.10:443

When it returns, nothing more of the task leaves for DEST, unless its policy allows it.`,
		Action: p.revoke,
	}
}

func (p *program) revoke(ctx *cli.Context) error {
	args, err := exactly(ctx, "ID", "DEST")
	if err != nil {
		return err
	}
	daemon := p.client()
	defer daemon.Close()
	result, err := daemon.Revoke(ctx.Context, args[0], args[1])
	if err != nil {
		return err
	}
	if len(result.Revoked) == 0 {
		p.say("task %s has no such grant; nothing changed", args[0])
	}
	if result.Warning != "" {
		p.say("%s", result.Warning)
	}
	return p.print(result, func(w io.Writer) {
		for _, destination := range result.Revoked {
			fmt.Fprintf(w, "%s may no longer reach %s\n", args[0], destination)
		}
		if result.Destroyed > 0 {
			fmt.Fprintf(w, "%s cut\n", count(result.Destroyed, "connection"))
		}
	})
}
