// SPDX-License-Identifier: Apache-2.0

// Package loader brings the kernel half into the kernel: it loads programs and
// maps, pins them, attaches them to guards, replaces them under their pinned
// links at an upgrade, reads their events, and sweeps sockets.
package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/cilium/ebpf"

	"agentguard.dev/agentguard/bpf"
	"agentguard.dev/agentguard/internal/maps"
)

// Config says where the kernel half is pinned and how large its maps are.
type Config struct {
	PinDir string // on bpffs; made if missing, and bpffs mounted at /sys/fs/bpf if need be
	Sizes  Sizes
}

// Sizes are the capacities of the maps that hold policy and events, for a
// guard that is made anew; one that is pinned keeps its own. Zero is the default.
type Sizes struct {
	Tasks      uint32 `yaml:"tasks"`       // records of live tasks; 65,536
	Hosts      uint32 `yaml:"hosts"`       // exact addresses with a port; 1,048,576
	Prefixes   uint32 `yaml:"prefixes"`    // 262,144
	Names      uint32 `yaml:"names"`       // 262,144
	Learned    uint32 `yaml:"learned"`     // addresses of names; 524,288
	Counters   uint32 `yaml:"counters"`    // pairs of task and rule; 524,288
	LocalAddrs uint32 `yaml:"local_addrs"` // 16,384
	Events     uint32 `yaml:"events"`      // bytes, a power of two; 4 MiB
}

// Kernel is the kernel half, loaded and pinned. Its methods may be called
// concurrently.
type Kernel struct {
	pins pins
	objs bpf.GuardObjects
	maps *maps.Set

	mu      sync.Mutex
	guards  map[uint64]*Guard
	sweep   sync.Mutex // the iterators' settings are global variables
	sweeper sweeper
	flush   flush
	skipped atomic.Uint64 // records of events that could not be read
}

// Open loads the kernel half. Where one is pinned it takes over its maps and
// replaces the programs under its links, one atomic step each; if any step
// fails, what was there goes on working and the error says which. The caller
// has made sure that it is the only one with this PinDir.
func Open(cfg Config) (*Kernel, error) {
	pins, err := openPins(cfg.PinDir)
	if err != nil {
		return nil, err
	}
	spec, err := bpf.LoadGuard()
	if err != nil {
		return nil, fmt.Errorf("read the compiled programs: %w", err)
	}
	cfg.Sizes.apply(spec)
	if err := maps.SizeForCPUs(spec); err != nil {
		return nil, err
	}

	k := &Kernel{pins: pins, guards: make(map[uint64]*Guard)}
	if err := k.load(spec); err != nil {
		pins.removeEmpty()
		return nil, err
	}
	if err := k.open(); err != nil {
		return nil, errors.Join(err, k.Close())
	}
	return k, nil
}

func (s Sizes) apply(spec *ebpf.CollectionSpec) {
	for name, size := range map[string]uint32{
		"tasks": s.Tasks, "hosts": s.Hosts, "prefixes": s.Prefixes,
		"names": s.Names, "learned": s.Learned, "counters": s.Counters, "local_addrs": s.LocalAddrs, "events": s.Events,
	} {
		if size != 0 {
			spec.Maps[name].MaxEntries = size
		}
	}
}

// load fills objs, with the pinned maps where there are any.
func (k *Kernel) load(spec *ebpf.CollectionSpec) error {
	pinned, err := k.pins.maps(spec)
	if err != nil {
		return err
	}
	defer func() {
		for _, m := range pinned {
			m.Close() // objs has its own descriptors
		}
	}()
	err = spec.LoadAndAssign(&k.objs, &ebpf.CollectionOptions{MapReplacements: pinned})
	if err != nil {
		return loadError(err)
	}
	if err := k.pins.pinMaps(spec, &k.objs, pinned); err != nil {
		return errors.Join(err, k.objs.Close())
	}
	return nil
}

func loadError(err error) error {
	var verifier *ebpf.VerifierError
	switch {
	case errors.As(err, &verifier):
		return fmt.Errorf("%w: this kernel refuses a required program; `agentguard doctor` tries each and says what to use instead", err)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("load programs: %w: agentguard needs root (CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON, CAP_SYS_ADMIN)", err)
	default:
		return fmt.Errorf("load programs: %w", err)
	}
}

// open completes a Kernel whose objects are loaded.
func (k *Kernel) open() (err error) {
	if k.maps, err = maps.Open(&k.objs.GuardMaps); err != nil {
		return err
	}
	if err := k.sweeper.open(&k.objs); err != nil {
		return err
	}
	k.maps.Outdate() // a version without epochs can have written to the maps
	if err := k.upgrade(); err != nil {
		return err
	}
	k.maps.Outdate() // what the programs of before have found meanwhile
	return nil
}

// Maps are the kernel half's maps.
func (k *Kernel) Maps() *maps.Set { return k.maps }

// Close lets go of the kernel half, which stays pinned and goes on enforcing.
func (k *Kernel) Close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	errs := []error{k.sweeper.Close()}
	for _, g := range k.guards {
		errs = append(errs, g.close())
	}
	clear(k.guards)
	return errors.Join(append(errs, k.objs.Close())...)
}

// Unload takes the programs off every guard and removes all pins. Nothing is
// guarded afterwards. It also closes.
func (k *Kernel) Unload() error {
	k.mu.Lock()
	ids := make([]uint64, 0, len(k.guards))
	for id := range k.guards {
		ids = append(ids, id)
	}
	k.mu.Unlock()
	var errs []error
	for _, id := range ids {
		errs = append(errs, k.Unguard(id))
	}
	return errors.Join(append(errs, k.Close(), RemovePins(k.pins.dir))...)
}

// RemovePins removes a kernel half by its pins alone, without opening it: its
// programs are taken off, its maps freed. A directory that is not there is no
// error.
func RemovePins(dir string) error {
	for _, part := range []string{guardsDir, mapsDir, mapsDir + building} {
		if err := removeTree(filepath.Join(dir, part)); err != nil {
			return err
		}
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) && !isNotEmpty(err) {
		return fmt.Errorf("remove pins: %w", err)
	}
	return nil
}
