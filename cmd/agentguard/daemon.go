// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"syscall"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/urfave/cli/v2"
	"golang.org/x/sync/errgroup"

	"agentguard.dev/agentguard/internal/api"
	"agentguard.dev/agentguard/internal/metrics"
	"agentguard.dev/agentguard/internal/task"
)

func (p *program) daemonCommand() *cli.Command {
	return &cli.Command{
		Name:      "daemon",
		Usage:     "keep tasks and policies, and serve the admin socket",
		ArgsUsage: " ",
		Description: `sudo agentguard daemon
sudo agentguard daemon --config /etc/agentguard/daemon.yaml

Stopping or killing it stops no enforcement: rules and deadlines are in the kernel. To take
everything out of the kernel, stop it and run ` + "`agentguard unload`" + `. ` + configHelp,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "config", Usage: "YAML `FILE` with the settings below"},
			resolverFlag(),
		},
		Action: p.daemon,
	}
}

func (p *program) daemon(ctx *cli.Context) error {
	if _, err := exactly(ctx); err != nil {
		return err
	}
	if err := needRoot(ctx); err != nil {
		return err
	}
	config, err := readConfig(ctx.String("config"))
	if err != nil {
		return err
	}
	resolvers, err := givenResolvers(ctx)
	if err != nil {
		return err
	}
	stopping, stop := signal.NotifyContext(ctx.Context, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	lock, err := api.LockRunDir(p.runDir)
	if err != nil {
		return err
	}
	defer lock.Close()
	// Before the engine: who connects while it opens waits rather than fails.
	socket, err := api.Listen(lock, config.gid)
	if err != nil {
		return err
	}
	defer socket.Remove()
	log := p.logger(config.LogLevel)
	settings := config.engine(p.engineConfig(log))
	if len(resolvers) > 0 {
		settings.Resolvers = resolvers
	}
	engine, err := task.Open(stopping, settings)
	if err != nil {
		return err
	}
	served := p.serve(stopping, config, engine, socket, log)
	notify("STOPPING=1")
	log.Info("stopped; what was set up is still enforced")
	return errors.Join(served, engine.Close())
}

// serve answers on the admin socket, and on TCP where that is configured,
// until ctx ends.
func (p *program) serve(ctx context.Context, config config, engine *task.Engine, socket *api.Socket, log *slog.Logger) error {
	registry := metrics.NewRegistry(engine)
	server := api.New(api.Config{
		Engine: engine, Group: config.gid, Log: log,
		Metrics: promhttp.HandlerFor(registry, promhttp.HandlerOpts{ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelError)}),
	})
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return server.Serve(ctx, socket.Listener) })
	if config.Metrics != "" {
		probes, err := net.Listen("tcp", config.Metrics)
		if err != nil {
			err = fmt.Errorf("serve metrics: %w", err)
			group.Go(func() error { return err })
			return group.Wait()
		}
		log.Info("serving metrics", "address", probes.Addr().String())
		group.Go(func() error { return server.ServeProbes(ctx, probes) })
	}
	status := engine.Status()
	log.Info("ready", "socket", socket.Path(), "cgroup", status.Cgroup, "tasks", status.Tasks, "policies", status.Policies)
	if err := notify("READY=1"); err != nil {
		log.Warn("tell the service manager", "err", err)
	}
	return group.Wait()
}

func (p *program) logger(level slog.Level) *slog.Logger {
	options := &slog.HandlerOptions{Level: level}
	if p.json() {
		return slog.New(slog.NewJSONHandler(p.stderr, options))
	}
	return slog.New(slog.NewTextHandler(p.stderr, options))
}

// notify tells the service manager, if there is one, as sd_notify(3) does.
func notify(state string) error {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return nil
	}
	conn, err := net.Dial("unixgram", path)
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.Write([]byte(state))
	return err
}
