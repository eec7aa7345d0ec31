// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/cilium/ebpf"
)

// memory is what is in use at one moment, in bytes.
type memory struct {
	maps   uint64 // by the kernel's account of each map
	kernel uint64 // Slab and Percpu of the whole machine
	daemon uint64 // resident
}

// footprint is what one idle task takes, in bytes.
type footprint struct {
	Tasks  int     `json:"tasks"`
	Maps   float64 `json:"maps"`   // elements of maps
	Kernel float64 `json:"kernel"` // all of the kernel's, the cgroup included
	Cgroup float64 `json:"cgroup"` // a cgroup that is nobody's task
	Daemon float64 `json:"daemon"` // the process
}

func (d *daemon) memory() (memory, error) {
	var m memory
	if err := settle(); err != nil {
		return m, err
	}
	paths, err := filepath.Glob(d.pins + "/maps/*")
	if err != nil || len(paths) == 0 {
		return m, fmt.Errorf("no maps in %s (%v)", d.pins, err)
	}
	for _, path := range paths {
		size, err := mapMemory(path)
		if err != nil {
			return m, fmt.Errorf("memory of %s: %w", path, err)
		}
		m.maps += size
	}
	if m.kernel, err = kernelMemory(); err != nil {
		return m, err
	}
	m.daemon, err = fields(fmt.Sprintf("/proc/%d/status", d.pid), "VmRSS")
	return m, err
}

func mapMemory(path string) (uint64, error) {
	m, err := ebpf.LoadPinnedMap(path, nil)
	if err != nil {
		return 0, err
	}
	defer m.Close()
	info, err := m.Info()
	if err != nil {
		return 0, err
	}
	size, _ := info.Memlock() // the kernel leaves it out where it is nothing
	return size, nil
}

func kernelMemory() (uint64, error) { return fields("/proc/meminfo", "Slab", "Percpu") }

// fields sums lines of the form "Name: 12 kB".
func fields(path string, names ...string) (sum uint64, err error) {
	file, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		for _, name := range names {
			if rest, ok := strings.CutPrefix(lines.Text(), name+":"); ok {
				var kib uint64
				if _, err := fmt.Sscan(rest, &kib); err != nil {
					return 0, fmt.Errorf("%s: %s: %w", path, name, err)
				}
				sum += kib << 10
			}
		}
	}
	return sum, lines.Err()
}

// settle waits until the kernel has given back what it frees late.
func settle() error {
	last, err := kernelMemory()
	if err != nil {
		return err
	}
	for range 20 {
		time.Sleep(250 * time.Millisecond)
		now, err := kernelMemory()
		if err != nil {
			return err
		}
		if max(now, last)-min(now, last) < 256<<10 {
			return nil
		}
		last = now
	}
	return nil
}

// measureMemory sees what so many tasks have added since before, and what as
// many cgroups add that are no tasks.
func (l *lab) measureMemory(d *daemon, report *report, before memory, tasks int) error {
	after, err := d.memory()
	if err != nil {
		return err
	}
	above := filepath.Join(l.root.Path(), "plain")
	plain, err := l.cgroup(above)
	if err != nil {
		return err
	}
	for i := range tasks {
		path := filepath.Join(plain.Path(), fmt.Sprint(i))
		if err := os.Mkdir(path, 0o755); err != nil {
			return fmt.Errorf("make cgroups: %w", err)
		}
	}
	if err := settle(); err != nil {
		return err
	}
	with, err := kernelMemory()
	if err != nil {
		return err
	}
	each := func(from, to uint64) float64 { return (float64(to) - float64(from)) / float64(tasks) }
	report.memory(footprint{
		Tasks: tasks, Maps: each(before.maps, after.maps), Kernel: each(before.kernel, after.kernel),
		Cgroup: each(after.kernel, with), Daemon: each(before.daemon, after.daemon),
	})
	return nil
}
