// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"agentguard.dev/agentguard/internal/cgroup"
)

// step is one change of an upgrade, and how to take it back.
type step struct {
	undo  func() error
	close func() error
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
	var done []step
	defer func() {
		for _, s := range done {
			s.close()
		}
	}()
	for _, g := range found {
		for _, h := range hooks(&k.objs.GuardPrograms) {
			s, err := k.renew(g, h)
			if err != nil {
				return errors.Join(fmt.Errorf("upgrade %s of guard %d: %w: the programs from before go on working", h.name, g.Cgroup, err), undo(done))
			}
			done = append(done, s)
		}
	}
	return nil
}

func (k *Kernel) renew(g *Guard, h hook) (step, error) {
	if g.links[h.name] == nil {
		return k.attachMissing(g, h)
	}
	return replace(g.links[h.name], h)
}

func replace(l link.Link, h hook) (step, error) {
	info, err := l.Info()
	if err != nil {
		return step{}, err
	}
	old, err := ebpf.NewProgramFromID(info.Program)
	if err != nil {
		return step{}, fmt.Errorf("keep the old program: %w", err)
	}
	if err := l.Update(h.program); err != nil {
		return step{}, errors.Join(err, old.Close())
	}
	return step{undo: func() error { return l.Update(old) }, close: old.Close}, nil
}

// attachMissing adds a hook that the version from before did not have, or whose
// pin somebody removed.
func (k *Kernel) attachMissing(g *Guard, h hook) (step, error) {
	dir, err := openCgroup(g.Cgroup)
	if err != nil {
		return step{}, err
	}
	defer dir.Close()
	l, err := link.AttachRawLink(link.RawLinkOptions{Target: int(dir.Fd()), Program: h.program, Attach: h.attach})
	if err != nil {
		return step{}, err
	}
	if err := l.Pin(filepath.Join(k.pins.guard(g.Cgroup), h.name)); err != nil {
		return step{}, errors.Join(err, l.Close())
	}
	g.links[h.name] = l
	return step{undo: l.Unpin, close: func() error { return nil }}, nil
}

// kernfsHandle is FILEID_KERNFS of linux/exportfs.h: 8 bytes, the cgroup's id.
const kernfsHandle = 0xfe

func openCgroup(id uint64) (*os.File, error) {
	path, err := cgroup.Mount()
	if err != nil {
		return nil, err
	}
	mount, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer mount.Close()
	handle := unix.NewFileHandle(kernfsHandle, binary.NativeEndian.AppendUint64(nil, id))
	fd, err := unix.OpenByHandleAt(int(mount.Fd()), handle, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("open cgroup %d: %w", id, err)
	}
	return os.NewFile(uintptr(fd), fmt.Sprintf("cgroup %d", id)), nil
}

func undo(done []step) error {
	var errs []error
	for _, s := range done {
		if err := s.undo(); err != nil {
			errs = append(errs, fmt.Errorf("put back: %w", err))
		}
	}
	return errors.Join(errs...)
}
