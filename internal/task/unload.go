// SPDX-License-Identifier: Apache-2.0

package task

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"agentguard.dev/agentguard/internal/cgroup"
)

// Unload ends every task, takes the programs out of the kernel and removes
// all that belongs to the engine but its policies and its audit log, and closes
// it. Processes in cgroups of the engine's own are killed; those in adopted
// cgroups are killed or left as the policy says, and what is left is free.
func (e *Engine) Unload(ctx context.Context) error {
	if !e.shut() {
		return unavailablef("agentguard is stopping")
	}
	return e.unload(ctx)
}

func (e *Engine) unload(ctx context.Context) error {
	if err := e.endAll(ctx); err != nil {
		return errors.Join(err, e.close())
	}
	if err := e.clearGuard(ctx); err != nil {
		return errors.Join(err, e.close())
	}
	if e.cfg.Private == "" {
		e.recordEngine("stop", "unloaded: nothing is enforced any more")
	}
	return e.abandon()
}

// endAll ends every live task, all at once so that they share sweeps.
func (e *Engine) endAll(ctx context.Context) error {
	var (
		all    sync.WaitGroup
		mu     sync.Mutex
		failed []error
	)
	for _, t := range e.live() {
		all.Go(func() {
			if err := t.step.lock(ctx); err != nil {
				return
			}
			defer t.step.unlock()
			if !t.isLive() {
				return
			}
			if _, err := e.end(ctx, t, ending{reason: reasonUnload, kill: true}); err != nil {
				mu.Lock()
				defer mu.Unlock()
				failed = append(failed, err)
			}
		})
	}
	all.Wait()
	return errors.Join(failed...)
}

// clearGuard kills what ended tasks have left in the engine's own cgroups, and
// removes these. The guard goes last, while its programs are attached.
func (e *Engine) clearGuard(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, killPatience)
	defer cancel()
	if e.guard != nil {
		return clearCgroup(ctx, e.guard)
	}
	dir, err := cgroup.Open(e.ownPath(""))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	return clearCgroup(ctx, dir)
}

func clearCgroup(ctx context.Context, dir *cgroup.Dir) error {
	if _, err := dir.Kill(ctx); err != nil {
		return err
	}
	return dir.Remove(ctx)
}

// abandon takes the programs out of the kernel and removes the state of tasks.
func (e *Engine) abandon() error {
	stateDir, _, _ := e.cfg.own()
	errs := e.quiesce()
	if e.kernel != nil {
		errs = append(errs, e.kernel.Unload())
	}
	errs = append(errs, e.letGo()...)
	errs = append(errs, removeState(stateDir, e.cfg.Private != ""))
	if e.cfg.Private != "" {
		e.cfg.removeParents()
	}
	return errors.Join(errs...)
}

// removeState removes what belongs to tasks, and for a private engine the whole
// directory.
func removeState(dir string, private bool) error {
	err := os.Remove(filepath.Join(dir, tasksFile))
	if private {
		err = os.RemoveAll(dir)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove state: %w", err)
	}
	return nil
}
