// SPDX-License-Identifier: Apache-2.0

package task

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"agentguard.dev/agentguard/client"
	"agentguard.dev/agentguard/internal/cgroup"
	"agentguard.dev/agentguard/internal/loader"
)

// CollectPrivate removes what engines with Config.Private have left behind
// whose process is gone and whose command has ended; with all set also those
// whose command still runs, which it ends. An engine whose process lives is left
// alone.
func CollectPrivate(ctx context.Context, cfg Config, all bool) error {
	cfg, err := cfg.resolve()
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range privateNames(cfg) {
		one := cfg
		one.Private = name
		if err := collect(ctx, one, all); err != nil && !errors.Is(err, errLocked) {
			errs = append(errs, fmt.Errorf("collect run %s: %w", name, err))
		}
	}
	cfg.removeParents()
	return errors.Join(errs...)
}

// privateNames are the names of all private engines that have left a trace.
func privateNames(cfg Config) []string {
	var names []string
	for _, dir := range []string{filepath.Join(cfg.StateDir, runDir), filepath.Join(cfg.PinDir, runDir), runRoot(cfg.Cgroup)} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue // no trace of that kind
		}
		for _, entry := range entries {
			if entry.IsDir() {
				names = append(names, entry.Name())
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func collect(ctx context.Context, cfg Config, all bool) error {
	stateDir, pinDir, root := cfg.own()
	lock, err := lockState(stateDir)
	if err != nil {
		return err
	}
	defer lock.Close()
	dir, err := cgroup.Open(filepath.Join(root, cfg.Private))
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	default:
		defer dir.Close()
		populated, err := dir.Populated()
		if err != nil {
			return err
		}
		if populated && !all {
			return nil
		}
		if populated {
			return endAbandoned(ctx, cfg, lock)
		}
		ctx, cancel := context.WithTimeout(ctx, removePatience)
		defer cancel()
		if err := dir.Remove(ctx); err != nil {
			return err
		}
	}
	if err := loader.RemovePins(pinDir); err != nil {
		return err
	}
	if err := recordAbandoned(cfg); err != nil {
		return err
	}
	return removeState(stateDir, true)
}

// endAbandoned ends a task whose command still runs, as its engine would have.
func endAbandoned(ctx context.Context, cfg Config, lock *os.File) error {
	if err := lock.Close(); err != nil {
		return err
	}
	e, err := Open(ctx, cfg)
	if err != nil {
		return err
	}
	return e.Unload(ctx)
}

// recordAbandoned writes the end of a task that nobody was there to see.
func recordAbandoned(cfg Config) error {
	stateDir, _, _ := cfg.own()
	if _, err := os.Stat(filepath.Join(stateDir, tasksFile)); err != nil {
		return nil
	}
	s, err := openStore(stateDir, true)
	if err != nil {
		return err
	}
	defer s.Close()
	live, err := s.live()
	if err != nil || len(live) == 0 {
		return err
	}
	records, err := openRecorder(AuditDir(cfg.StateDir), "run", cfg.Log)
	if err != nil {
		return err
	}
	for _, r := range live {
		records.add(client.Record{
			Time: time.Now(), Kind: "task", Action: "end", Task: r.ID, Agent: r.Agent, Purpose: r.Request.Purpose,
			Detail: "its run was killed and the command has ended",
		})
	}
	return records.close()
}
