// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"

	"agentguard.dev/agentguard/bpf"
	"agentguard.dev/agentguard/internal/cgroup"
)

// Guard is one cgroup with the programs attached to it.
type Guard struct {
	Cgroup uint64 // id
	Level  int    // depth at which its tasks stand; the cgroup2 root is 0

	links map[string]link.Link // by program name
}

func (g *Guard) close() error {
	var errs []error
	for _, l := range g.links {
		errs = append(errs, l.Close())
	}
	return errors.Join(errs...)
}

// hook is one program and where it hangs.
type hook struct {
	name    string
	program *ebpf.Program
	attach  ebpf.AttachType
}

// hooks lists the programs of a guard in the order of attaching. The guard's
// record exists from the first one on that asks for it, and says nothing until
// the level is set: ag_sock_create then denies only unusual kinds of sockets.
func hooks(p *bpf.GuardPrograms) []hook {
	all := []hook{
		{"ag_sock_create", p.AgSockCreate, ebpf.AttachCGroupInetSockCreate},
		{"ag_sock_ops", p.AgSockOps, ebpf.AttachCGroupSockOps},
		{"ag_setsockopt", p.AgSetsockopt, ebpf.AttachCGroupSetsockopt},
		{"ag_egress", p.AgEgress, ebpf.AttachCGroupInetEgress},
		{"ag_recvmsg4", p.AgRecvmsg4, ebpf.AttachCGroupUDP4Recvmsg},
		{"ag_recvmsg6", p.AgRecvmsg6, ebpf.AttachCGroupUDP6Recvmsg},
		{"ag_getpeername4", p.AgGetpeername4, ebpf.AttachCgroupInet4GetPeername},
		{"ag_getpeername6", p.AgGetpeername6, ebpf.AttachCgroupInet6GetPeername},
		{"ag_sendmsg4", p.AgSendmsg4, ebpf.AttachCGroupUDP4Sendmsg},
		{"ag_sendmsg6", p.AgSendmsg6, ebpf.AttachCGroupUDP6Sendmsg},
		{"ag_connect4", p.AgConnect4, ebpf.AttachCGroupInet4Connect},
		{"ag_connect6", p.AgConnect6, ebpf.AttachCGroupInet6Connect},
	}
	if egressMissesSynAcks() {
		all = append(all, hook{"ag_ingress", p.AgIngress, ebpf.AttachCGroupInetIngress})
	}
	return all
}

// egressMissesSynAcks says whether IPv6 listeners of this kernel answer behind
// the egress hook's back: 6.1 does, 6.12 does not. Nothing but the version tells.
func egressMissesSynAcks() bool {
	version, err := features.LinuxVersionCode()
	return err != nil || version < 6<<16|12<<8
}

// maxLevel is MAX_LEVEL of the sweeping programs.
const maxLevel = 32

// Guard attaches the programs to dir and pins the links. Tasks stand at depth
// taskLevel: dir's own for a cgroup that is itself a task, one more for a guard
// of many. A guard that is attached already stays as it is.
func (k *Kernel) Guard(dir *cgroup.Dir, taskLevel int) error {
	if taskLevel < 1 || taskLevel >= maxLevel {
		return fmt.Errorf("guard %s: depth %d below the cgroup2 root: must be 1 to %d", dir.Path(), taskLevel, maxLevel-1)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if g := k.guards[dir.ID()]; g != nil {
		if g.Level != taskLevel {
			return fmt.Errorf("guard %s: attached already for tasks at depth %d", dir.Path(), g.Level)
		}
		return k.setLevel(dir, g)
	}
	g := &Guard{Cgroup: dir.ID(), Level: taskLevel, links: make(map[string]link.Link)}
	if err := k.attach(dir, g); err != nil {
		return errors.Join(err, g.close())
	}
	k.guards[g.Cgroup] = g
	return nil
}

func (k *Kernel) attach(dir *cgroup.Dir, g *Guard) error {
	for i, h := range hooks(&k.objs.GuardPrograms) {
		l, err := link.AttachRawLink(link.RawLinkOptions{Target: dir.FD(), Program: h.program, Attach: h.attach})
		if err != nil {
			return fmt.Errorf("attach %s to %s: %w", h.name, dir.Path(), err)
		}
		g.links[h.name] = l
		if i == 0 {
			if err := k.setLevel(dir, g); err != nil {
				return err
			}
		}
	}
	return k.pinGuard(dir, g)
}

// setLevel writes what the programs need to know of the cgroup they hang at.
func (k *Kernel) setLevel(dir *cgroup.Dir, g *Guard) error {
	rewritten, err := hasConnectHooksAbove(dir)
	if err != nil {
		return err
	}
	record := bpf.GuardGuard{Level: uint32(g.Level)}
	if rewritten {
		record.Flags |= uint32(bpf.GuardGuardFlagGUARD_REWRITTEN)
	}
	if err := k.objs.Guards.Update(g.Cgroup, record, ebpf.UpdateExist); err != nil {
		return fmt.Errorf("set level of guard %s: %w", dir.Path(), err)
	}
	return nil
}

// hasConnectHooksAbove finds programs that may rewrite destinations after
// agentguard has judged them: those of ancestors run after those of the guard.
func hasConnectHooksAbove(dir *cgroup.Dir) (bool, error) {
	mount, err := cgroup.Mount()
	if err != nil {
		return false, err
	}
	for path := filepath.Dir(dir.Path()); len(path) >= len(mount); path = filepath.Dir(path) {
		above, err := os.Open(path)
		if err != nil {
			return false, fmt.Errorf("look for programs above the guard: %w", err)
		}
		found, err := hasConnectHooks(above)
		above.Close()
		if found || err != nil {
			return found, err
		}
		if path == mount {
			break
		}
	}
	return false, nil
}

func hasConnectHooks(dir *os.File) (bool, error) {
	for _, attach := range []ebpf.AttachType{
		ebpf.AttachCGroupInet4Connect, ebpf.AttachCGroupInet6Connect,
		ebpf.AttachCGroupUDP4Sendmsg, ebpf.AttachCGroupUDP6Sendmsg,
	} {
		result, err := link.QueryPrograms(link.QueryOptions{Target: int(dir.Fd()), Attach: attach})
		if err != nil {
			return false, fmt.Errorf("look for programs at %s: %w", dir.Name(), err)
		}
		if len(result.Programs) > 0 {
			return true, nil
		}
	}
	return false, nil
}

func (p pins) guard(id uint64) string {
	return filepath.Join(p.dir, guardsDir, strconv.FormatUint(id, 10))
}

// pinGuard makes the links outlive the process, all of them at once.
func (k *Kernel) pinGuard(dir *cgroup.Dir, g *Guard) error {
	target := k.pins.guard(g.Cgroup)
	temporary := target + building
	if err := removeTree(temporary); err != nil {
		return err
	}
	if err := os.Mkdir(temporary, 0o700); err != nil {
		return fmt.Errorf("pin guard %s: %w", dir.Path(), err)
	}
	for name, l := range g.links {
		if err := l.Pin(filepath.Join(temporary, name)); err != nil {
			return errors.Join(fmt.Errorf("pin %s of %s: %w", name, dir.Path(), err), removeTree(temporary))
		}
	}
	if err := os.Rename(temporary, target); err != nil {
		return errors.Join(fmt.Errorf("pin guard %s: %w", dir.Path(), err), removeTree(temporary))
	}
	return nil
}

// Unguard takes the programs off: what is left in the cgroup is free. A cgroup
// that is no guard is no error.
func (k *Kernel) Unguard(cgroupID uint64) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	g := k.guards[cgroupID]
	if g == nil {
		return nil
	}
	delete(k.guards, cgroupID)
	// The pins go first: the descriptors keep the links whole if that fails.
	if err := removeTree(k.pins.guard(cgroupID)); err != nil {
		return err
	}
	return g.close()
}

// Guards returns the guards, in the order of their cgroup ids.
func (k *Kernel) Guards() []Guard {
	k.mu.Lock()
	defer k.mu.Unlock()
	all := make([]Guard, 0, len(k.guards))
	for _, g := range k.guards {
		all = append(all, Guard{Cgroup: g.Cgroup, Level: g.Level})
	}
	slices.SortFunc(all, func(a, b Guard) int { return int(int64(a.Cgroup - b.Cgroup)) })
	return all
}

// pinnedGuards opens the links of every pinned guard.
func (k *Kernel) pinnedGuards() (map[uint64]*Guard, error) {
	root := filepath.Join(k.pins.dir, guardsDir)
	entries, err := os.ReadDir(root)
	if err != nil {
		return nil, fmt.Errorf("read pinned guards: %w", err)
	}
	found := make(map[uint64]*Guard)
	for _, entry := range entries {
		path := filepath.Join(root, entry.Name())
		id, err := strconv.ParseUint(entry.Name(), 10, 64)
		if err != nil { // left by a crash while pinning: not complete, so not in force
			if err := removeTree(path); err != nil {
				return found, err
			}
			continue
		}
		g, err := k.openGuard(id)
		if err != nil {
			return found, err
		}
		if g != nil {
			found[id] = g
		}
	}
	return found, nil
}

// openGuard opens one pinned guard; nil if its cgroup is gone, with its pins.
func (k *Kernel) openGuard(id uint64) (*Guard, error) {
	var record bpf.GuardGuard
	err := k.objs.Guards.Lookup(id, &record)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil, removeTree(k.pins.guard(id))
	}
	if err != nil {
		return nil, fmt.Errorf("read guard %d: %w", id, err)
	}
	g := &Guard{Cgroup: id, Level: int(record.Level), links: make(map[string]link.Link)}
	for _, h := range hooks(&k.objs.GuardPrograms) {
		path := filepath.Join(k.pins.guard(id), h.name)
		l, err := link.LoadPinnedLink(path, nil)
		if errors.Is(err, fs.ErrNotExist) {
			continue // attached by upgrade
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("open pinned link %s: %w", path, err), g.close())
		}
		g.links[h.name] = l
	}
	return g, nil
}
