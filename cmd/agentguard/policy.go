// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"os"

	"github.com/urfave/cli/v2"

	"agentguard.dev/agentguard/client"
	"agentguard.dev/agentguard/internal/task"
)

func (p *program) policyCommand() *cli.Command {
	return &cli.Command{
		Name:  "policy",
		Usage: "apply, show and delete the policies of agents",
		Subcommands: []*cli.Command{
			{
				Name:      "apply",
				Usage:     "create or update the policies in files; live tasks see the change at once",
				ArgsUsage: "FILE...",
				Description: `agentguard policy apply coder.yaml
cat *.yaml | agentguard policy apply -

All policies of a file are applied or none. Every file is checked before the first is applied.`,
				Action: p.applyPolicies,
			},
			{
				Name:        "validate",
				Usage:       "check policy files; needs no daemon and no privileges, and changes nothing",
				ArgsUsage:   "FILE...",
				Description: `agentguard policy validate coder.yaml`,
				Action:      p.validatePolicies,
			},
			{
				Name:        "list",
				Usage:       "list the policies",
				ArgsUsage:   " ",
				Description: `agentguard policy list -o json`,
				Action:      p.listPolicies,
			},
			{
				Name:        "show",
				Usage:       "print one policy as it was applied",
				ArgsUsage:   "NAME",
				Description: `agentguard policy show coder > coder.yaml`,
				Action:      p.showPolicy,
			},
			{
				Name:        "delete",
				Usage:       "delete a policy that no live task uses",
				ArgsUsage:   "NAME",
				Description: `agentguard policy delete coder`,
				Action:      p.deletePolicy,
			},
		},
	}
}

type policyFile struct {
	name string
	data []byte
}

// policyFiles reads and checks the files of a command. "-" is standard input.
func policyFiles(ctx *cli.Context) (files []policyFile, valid []client.Policy, err error) {
	if !ctx.Args().Present() {
		return nil, nil, usageError{fmt.Sprintf("%s needs FILE; see: agentguard %[1]s --help", commandName(ctx))}
	}
	valid = []client.Policy{}
	for _, name := range ctx.Args().Slice() {
		file := policyFile{name: name}
		if name == "-" {
			file.name = "stdin"
			file.data, err = io.ReadAll(os.Stdin)
		} else {
			file.data, err = os.ReadFile(name)
		}
		if err != nil {
			return nil, nil, fmt.Errorf("read the policy: %w", err)
		}
		found, err := task.ValidatePolicies(file.name, file.data)
		if err != nil {
			return nil, nil, err
		}
		files, valid = append(files, file), append(valid, found...)
	}
	return files, valid, nil
}

func (p *program) applyPolicies(ctx *cli.Context) error {
	files, _, err := policyFiles(ctx)
	if err != nil {
		return err
	}
	daemon := p.client()
	defer daemon.Close()
	all := client.ApplyResult{Policies: []client.AppliedPolicy{}}
	for _, file := range files {
		result, err := daemon.ApplyPolicies(ctx.Context, file.name, file.data)
		if err != nil {
			return err
		}
		all.Policies = append(all.Policies, result.Policies...)
	}
	return p.print(all, func(w io.Writer) {
		for _, applied := range all.Policies {
			fmt.Fprintf(w, "%s %s", printable(applied.Name), applied.Action)
			if applied.Tasks > 0 && applied.Action != "unchanged" {
				fmt.Fprintf(w, ": %s see it, %s cut", count(applied.Tasks, "live task"), count(applied.Destroyed, "connection"))
			}
			fmt.Fprintln(w)
		}
	})
}

func (p *program) validatePolicies(ctx *cli.Context) error {
	_, valid, err := policyFiles(ctx)
	if err != nil {
		return err
	}
	return p.print(valid, func(w io.Writer) {
		for _, policy := range valid {
			fmt.Fprintf(w, "%s valid: %s, mode %s\n", printable(policy.Name), count(policy.Rules, "rule"), policy.Mode)
			for _, note := range policy.Notes {
				fmt.Fprintf(w, "  note: %s\n", printable(note))
			}
		}
	})
}

func (p *program) listPolicies(ctx *cli.Context) error {
	if _, err := exactly(ctx); err != nil {
		return err
	}
	daemon := p.client()
	defer daemon.Close()
	policies, err := daemon.Policies(ctx.Context)
	if err != nil {
		return err
	}
	return p.print(policies, func(w io.Writer) {
		rows := make([][]string, len(policies))
		for i, policy := range policies {
			rows[i] = []string{policy.Name, policy.Mode, fmt.Sprint(policy.Rules), fmt.Sprint(policy.Tasks), stamp(policy.Applied)}
		}
		table(w, []string{"NAME", "MODE", "RULES", "TASKS", "APPLIED"}, rows)
	})
}

func (p *program) showPolicy(ctx *cli.Context) error {
	args, err := exactly(ctx, "NAME")
	if err != nil {
		return err
	}
	daemon := p.client()
	defer daemon.Close()
	policy, err := daemon.Policy(ctx.Context, args[0])
	if err != nil {
		return err
	}
	return p.print(policy, func(w io.Writer) { io.WriteString(w, policy.Document) })
}

func (p *program) deletePolicy(ctx *cli.Context) error {
	args, err := exactly(ctx, "NAME")
	if err != nil {
		return err
	}
	daemon := p.client()
	defer daemon.Close()
	if err := daemon.DeletePolicy(ctx.Context, args[0]); err != nil {
		return err
	}
	return p.print(map[string]string{"name": args[0], "action": "deleted"}, func(w io.Writer) {
		fmt.Fprintf(w, "%s deleted\n", args[0])
	})
}
