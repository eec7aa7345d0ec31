// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// replaced is one link that upgrade has given a new program.
type replaced struct {
	name string
	link link.Link
	old  *ebpf.Program
}

// upgrade puts the programs just loaded under the links of every pinned guard.
// Each replacement is atomic; a packet meets the old program or the new one. If
// one fails, those before it get their old programs back.
func (k *Kernel) upgrade() error {
	found, err := k.pinnedGuards()
	k.guards = found
	if err != nil {
		return err
	}
	var done []replaced
	defer func() {
		for _, r := range done {
			r.old.Close()
		}
	}()
	for _, g := range found {
		for _, h := range hooks(&k.objs.GuardPrograms) {
			r, err := replace(g, h)
			if err != nil {
				return errors.Join(fmt.Errorf("upgrade %s of guard %d: %w: the programs from before go on working", h.name, g.Cgroup, err), undo(done))
			}
			done = append(done, r)
		}
	}
	return nil
}

func replace(g *Guard, h hook) (replaced, error) {
	l := g.links[h.name]
	if l == nil {
		return replaced{}, fmt.Errorf("its pinned link is missing; end the guard's tasks and run `agentguard unload`")
	}
	info, err := l.Info()
	if err != nil {
		return replaced{}, err
	}
	old, err := ebpf.NewProgramFromID(info.Program)
	if err != nil {
		return replaced{}, fmt.Errorf("keep the old program: %w", err)
	}
	if err := l.Update(h.program); err != nil {
		old.Close()
		return replaced{}, err
	}
	return replaced{h.name, l, old}, nil
}

func undo(done []replaced) error {
	var errs []error
	for _, r := range done {
		if err := r.link.Update(r.old); err != nil {
			errs = append(errs, fmt.Errorf("put back %s: %w", r.name, err))
		}
	}
	return errors.Join(errs...)
}
