// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"log/slog"

	"github.com/urfave/cli/v2"

	"agentguard.dev/agentguard/internal/api"
	"agentguard.dev/agentguard/internal/task"
)

func (p *program) unloadCommand() *cli.Command {
	return &cli.Command{
		Name:      "unload",
		Usage:     "end every task and take everything out of the kernel",
		ArgsUsage: " ",
		Description: `systemctl stop agentguard && sudo agentguard unload

The daemon must be stopped. Every task is ended, also those of ` + "`run`" + `, and programs, maps, pins
and cgroups are removed. Policies and the audit log stay in the state directory.`,
		Action: p.unload,
	}
}

func (p *program) unload(ctx *cli.Context) error {
	if _, err := exactly(ctx); err != nil {
		return err
	}
	if err := needRoot(ctx); err != nil {
		return err
	}
	lock, err := api.LockRunDir(p.runDir)
	if err != nil {
		return err
	}
	if err := p.unloadAll(ctx); err != nil {
		lock.Close()
		return err
	}
	if err := lock.Remove(); err != nil {
		return err
	}
	return p.print(map[string]string{"unloaded": p.pinDir, "kept": p.stateDir}, func(w io.Writer) {
		fmt.Fprintf(w, "nothing of %s is left in the kernel; policies and the audit log stay in %s\n", p.pinDir, p.stateDir)
	})
}

func (p *program) unloadAll(ctx *cli.Context) error {
	config := p.engineConfig(p.logger(slog.LevelWarn))
	if err := task.CollectPrivate(ctx.Context, config, true); err != nil {
		return err
	}
	engine, err := task.Open(ctx.Context, config)
	if err != nil {
		return err
	}
	return engine.Unload(ctx.Context)
}
