// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"agentguard.dev/agentguard/bpf"
)

// What stands below the pin directory:
//
//	maps/NAME                one pin per map
//	guards/CGROUP-ID/PROGRAM one pinned link per hook of the guard
const (
	mapsDir   = "maps"
	guardsDir = "guards"
	// building is the suffix of a directory that is not complete yet. (bpffs
	// allows no dots in names.)
	building = "-new"

	bpffsMount = "/sys/fs/bpf"
)

// pins is the directory that keeps a kernel half alive without a process.
type pins struct{ dir string }

func openPins(dir string) (pins, error) {
	if err := ensureBPFFS(dir); err != nil {
		return pins{}, err
	}
	if err := os.MkdirAll(filepath.Join(dir, guardsDir), 0o700); err != nil {
		return pins{}, fmt.Errorf("create pin directory: %w", err)
	}
	return pins{dir}, nil
}

// removeEmpty takes the directories back if nothing was pinned in them.
func (p pins) removeEmpty() {
	if os.Remove(filepath.Join(p.dir, guardsDir)) == nil {
		os.Remove(p.dir)
	}
}

// ensureBPFFS makes sure that dir will be on a BPF file system.
func ensureBPFFS(dir string) error {
	on, err := onBPFFS(dir)
	if err != nil || on {
		return err
	}
	if dir != bpffsMount && !strings.HasPrefix(dir, bpffsMount+"/") {
		return fmt.Errorf("pin directory %s: not on a BPF file system: mount one (mount -t bpf bpf PATH) and give a directory below it", dir)
	}
	if err := unix.Mount("bpf", bpffsMount, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700"); err != nil {
		return fmt.Errorf("mount bpf at %s: %w", bpffsMount, err)
	}
	return nil
}

// onBPFFS looks at the closest ancestor that exists.
func onBPFFS(dir string) (bool, error) {
	if !filepath.IsAbs(dir) {
		return false, fmt.Errorf("pin directory %q: must be absolute", dir)
	}
	for {
		var fs unix.Statfs_t
		err := unix.Statfs(dir, &fs)
		if err == nil {
			return fs.Type == unix.BPF_FS_MAGIC, nil
		}
		if !errors.Is(err, unix.ENOENT) {
			return false, fmt.Errorf("pin directory %s: %w", dir, err)
		}
		dir = filepath.Dir(dir)
	}
}

// persistent says which maps are pinned: all but those that belong to one load
// of the programs, of global variables and of clock readings.
func persistent(name string) bool { return !strings.HasPrefix(name, ".") && name != "moments" }

// maps opens the pinned maps and makes spec agree with their sizes. None
// pinned is an empty result.
func (p pins) maps(spec *ebpf.CollectionSpec) (map[string]*ebpf.Map, error) {
	found := make(map[string]*ebpf.Map)
	fail := func(err error) (map[string]*ebpf.Map, error) {
		for _, m := range found {
			m.Close()
		}
		return nil, err
	}
	for name, want := range spec.Maps {
		if !persistent(name) {
			continue
		}
		path := filepath.Join(p.dir, mapsDir, name)
		m, err := ebpf.LoadPinnedMap(path, nil)
		if errors.Is(err, fs.ErrNotExist) {
			continue // made by a version that did not have it, or nothing is pinned
		}
		if err != nil {
			return fail(fmt.Errorf("open pinned map %s: %w", path, err))
		}
		found[name] = m
		want.MaxEntries = m.MaxEntries()
		if err := want.Compatible(m); err != nil {
			return fail(fmt.Errorf("pinned map %s was made by an incompatible version: %w: what is enforced stays; end all tasks and run `agentguard unload` before this version", path, err))
		}
	}
	return found, nil
}

// pinMaps pins what is not yet pinned. A first load appears at once, by a
// rename.
func (p pins) pinMaps(spec *ebpf.CollectionSpec, objs *bpf.GuardObjects, pinned map[string]*ebpf.Map) error {
	dir := filepath.Join(p.dir, mapsDir)
	target := dir
	if len(pinned) == 0 {
		target = dir + building
		if err := removeTree(target); err != nil {
			return err
		}
		if err := os.Mkdir(target, 0o700); err != nil {
			return fmt.Errorf("create pin directory: %w", err)
		}
	}
	for name, m := range byName(&objs.GuardMaps) {
		if pinned[name] != nil || spec.Maps[name] == nil {
			continue
		}
		if err := m.Pin(filepath.Join(target, name)); err != nil {
			return fmt.Errorf("pin map %s: %w", name, err)
		}
	}
	if target != dir {
		if err := os.Rename(target, dir); err != nil {
			return fmt.Errorf("publish pins: %w", err)
		}
	}
	return nil
}

func byName(m *bpf.GuardMaps) map[string]*ebpf.Map {
	return map[string]*ebpf.Map{
		"askers":      m.Askers,
		"counters":    m.Counters,
		"epochs":      m.Epochs,
		"events":      m.Events,
		"greetings":   m.Greetings,
		"guards":      m.Guards,
		"hosts":       m.Hosts,
		"learned":     m.Learned,
		"local_addrs": m.LocalAddrs,
		"memos":       m.Memos,
		"names":       m.Names,
		"namespaces":  m.Namespaces,
		"prefixes":    m.Prefixes,
		"recents":     m.Recents,
		"stations":    m.Stations,
		"stats":       m.Stats,
		"tasks":       m.Tasks,
	}
}

// removeTree unpins everything below dir, and dir.
func removeTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove pins: %w", err)
	}
	for _, entry := range entries {
		path := filepath.Join(dir, entry.Name())
		if entry.IsDir() {
			err = removeTree(path)
		} else {
			err = os.Remove(path)
		}
		if err != nil {
			return fmt.Errorf("remove pins: %w", err)
		}
	}
	if err := os.Remove(dir); err != nil {
		return fmt.Errorf("remove pins: %w", err)
	}
	return nil
}

func isNotEmpty(err error) bool { return errors.Is(err, unix.ENOTEMPTY) }
