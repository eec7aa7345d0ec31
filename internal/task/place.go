// SPDX-License-Identifier: Apache-2.0

package task

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"agentguard.dev/agentguard/internal/cgroup"
)

var errReplaced = errors.New("another cgroup has taken its place")

// place makes or adopts the cgroup of a task that begins, and writes down
// which it is. The caller closes the directory.
func (e *Engine) place(t *task, u *undo) (*cgroup.Dir, error) {
	t.mu.Lock()
	wanted := t.Request.Cgroup
	t.mu.Unlock()
	var (
		dir *cgroup.Dir
		err error
	)
	if wanted == "" {
		dir, err = e.makeCgroup(t, u)
	} else {
		dir, err = e.adopt(wanted)
	}
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.Cgroup, t.CgroupID, t.Level = dir.Path(), dir.ID(), dir.Level()
	t.OwnGuard = e.hasOwnGuard(dir)
	return dir, nil
}

// hasOwnGuard says whether the programs have to hang at dir itself: a child of
// the guard has them from there.
func (e *Engine) hasOwnGuard(dir *cgroup.Dir) bool {
	return e.guard == nil || filepath.Dir(dir.Path()) != e.guard.Path()
}

// makeCgroup makes a cgroup that belongs to the task alone.
func (e *Engine) makeCgroup(t *task, u *undo) (*cgroup.Dir, error) {
	path := e.ownPath(t.id)
	found, err := os.Lstat(path)
	existed := err == nil
	if existed && !found.IsDir() {
		return nil, invalidf("task id %q: a control file of the cgroup has that name: choose another id", t.id)
	}
	var dir *cgroup.Dir
	err = withParents(func() (err error) {
		if e.cfg.Private != "" {
			if err := makePath(e.root); err != nil {
				return err
			}
		}
		dir, err = cgroup.Create(path)
		return err
	})
	if err != nil {
		return nil, wrap("begin task "+t.id, err)
	}
	if existed {
		if err := e.takeOver(t, dir); err != nil {
			dir.Close()
			return nil, err
		}
		return dir, nil
	}
	id := dir.ID()
	u.add(func() error { return removeCgroup(path, id) })
	return dir, nil
}

// ownPath is the cgroup of a task that adopts none.
func (e *Engine) ownPath(id string) string {
	if e.cfg.Private != "" {
		id = e.cfg.Private
	}
	return filepath.Join(e.root, id)
}

// takeOver refuses an existing cgroup of the task's name that is in use.
func (e *Engine) takeOver(t *task, dir *cgroup.Dir) error {
	e.mu.Lock()
	left, isLeft := e.leftovers[dir.ID()]
	e.mu.Unlock()
	if isLeft {
		return conflictf("begin task %s: in cgroup %s run processes of the ended task %s: choose another id", t.id, dir.Path(), left.Task)
	}
	populated, err := dir.Populated()
	if err != nil {
		return wrap("begin task "+t.id, err)
	}
	if populated {
		return conflictf("begin task %s: cgroup %s exists and has processes: choose another id, or adopt it with --cgroup %[2]s", t.id, dir.Path())
	}
	return nil
}

// adopt opens an existing cgroup after checking that a task may have it. The
// caller holds e.adopting.
func (e *Engine) adopt(path string) (*cgroup.Dir, error) {
	dir, err := cgroup.Open(path)
	if err != nil {
		return nil, invalidf("adopt: %v", err)
	}
	if err := e.mayAdopt(dir); err != nil {
		dir.Close()
		return nil, err
	}
	return dir, nil
}

func (e *Engine) mayAdopt(dir *cgroup.Dir) error {
	path := dir.Path()
	if e.cfg.Private != "" {
		return invalidf("adopt cgroup %s: a task without a daemon has a cgroup of its own: start `agentguard daemon`", path)
	}
	if dir.Level() == 0 {
		return invalidf("adopt cgroup %s: it is the root of all cgroups: name one below it", path)
	}
	if own, err := cgroup.OfProcess(os.Getpid()); err == nil && within(own, path) {
		return invalidf("adopt cgroup %s: agentguard itself runs in it: name one that does not contain it", path)
	}
	if within(e.guard.Path(), path) {
		return invalidf("adopt cgroup %s: it contains the guard %s: name one outside it, or a child of the guard", path, e.guard.Path())
	}
	if runs := runRoot(e.guard.Path()); within(path, runs) || within(runs, path) {
		return invalidf("adopt cgroup %s: the tasks of `agentguard run` have their cgroups in %s", path, runs)
	}
	if within(path, e.guard.Path()) && filepath.Dir(path) != e.guard.Path() {
		return invalidf("adopt cgroup %s: it lies inside a child of the guard %s, which is what a task can be: name that child", path, e.guard.Path())
	}
	return e.overlapsTask(path)
}

// overlapsTask looks at all tasks outside the guard, and for a child of the
// guard at the one that may have it. Ended tasks do not count.
func (e *Engine) overlapsTask(path string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	for cgroup, t := range e.places {
		switch {
		case cgroup == path:
			return conflictf("adopt cgroup %s: it is the cgroup of task %s: end that first (agentguard task end %[2]s)", path, t.id)
		case filepath.Dir(path) == e.guard.Path():
		case within(path, cgroup):
			return conflictf("adopt cgroup %s: it lies inside the cgroup of task %s, and so belongs to that task", path, t.id)
		case within(cgroup, path):
			return conflictf("adopt cgroup %s: it contains the cgroup of task %s: end that first, or name a smaller one", path, t.id)
		}
	}
	for _, left := range e.leftovers {
		if left.Cgroup != path && left.OwnGuard && (within(path, left.Cgroup) || within(left.Cgroup, path)) {
			return conflictf("adopt cgroup %s: processes of the ended task %s run on in %s: wait for their end", path, left.Task, left.Cgroup)
		}
	}
	return nil
}

// within says whether path is dir or lies below it; both are clean.
func within(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, dir+"/")
}

// makePath makes a cgroup and those above it.
func makePath(path string) error {
	mount, err := cgroup.Mount()
	if err != nil {
		return err
	}
	below, err := filepath.Rel(mount, path)
	if err != nil || below == "." || !filepath.IsLocal(below) {
		return invalidf("cgroup %s: want one below the cgroup2 mount %s", path, mount)
	}
	at := mount
	for name := range strings.SplitSeq(below, "/") {
		at = filepath.Join(at, name)
		dir, err := cgroup.Create(at)
		if err != nil {
			return err
		}
		if err := dir.Close(); err != nil {
			return err
		}
	}
	return nil
}

// removeCgroup removes an empty cgroup unless another has taken its place.
func removeCgroup(path string, id uint64) error {
	dir, err := openSame(path, id)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errReplaced) {
		return nil
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	ctx, cancel := context.WithTimeout(context.Background(), removePatience)
	defer cancel()
	return dir.Remove(ctx)
}
