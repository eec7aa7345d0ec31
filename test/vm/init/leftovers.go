// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// inventory lists what tests can leave behind in a machine: processes, cgroups, pins, network namespaces and
// interfaces, BPF programs and links.
func inventory() ([]string, error) {
	var all []string
	for _, list := range []func() ([]string, error){
		processes,
		func() ([]string, error) { return below("/sys/fs/cgroup", "cgroup", fs.DirEntry.IsDir) },
		func() ([]string, error) { return below("/sys/fs/bpf", "pin", func(fs.DirEntry) bool { return true }) },
		func() ([]string, error) { return children("/run/netns", "network namespace") },
		func() ([]string, error) { return children("/sys/class/net", "interface") },
		programs,
		links,
	} {
		found, err := list()
		if err != nil {
			return nil, fmt.Errorf("take inventory: %w", err)
		}
		all = append(all, found...)
	}
	return all, nil
}

// leftovers returns what is there now and was not before, once the kernel had the time to free it.
func leftovers(before []string) ([]string, error) {
	deadline := time.Now().Add(5 * time.Second)
	for {
		now, err := inventory()
		if err != nil {
			return nil, err
		}
		left := slices.DeleteFunc(now, func(s string) bool { return slices.Contains(before, s) })
		if len(left) == 0 || time.Now().After(deadline) {
			return left, nil
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func processes() ([]string, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var found []string
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err != nil {
			continue
		}
		line, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil || len(line) == 0 { // gone, or a kernel thread
			continue
		}
		found = append(found, fmt.Sprintf("process %s: %s", e.Name(), strings.ReplaceAll(string(line), "\x00", " ")))
	}
	return found, nil
}

func below(root, kind string, want func(fs.DirEntry) bool) ([]string, error) {
	var found []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		case path != root && want(d):
			found = append(found, kind+" "+path)
		}
		return nil
	})
	return found, err
}

func children(dir, kind string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var found []string
	for _, e := range entries {
		found = append(found, kind+" "+e.Name())
	}
	return found, err
}

func programs() ([]string, error) {
	var found []string
	var id ebpf.ProgramID
	for {
		next, err := ebpf.ProgramGetNextID(id)
		if errors.Is(err, os.ErrNotExist) {
			return found, nil
		}
		if err != nil {
			return nil, fmt.Errorf("list BPF programs: %w", err)
		}
		id = next
		found = append(found, fmt.Sprintf("BPF program %d%s", id, programName(id)))
	}
}

func programName(id ebpf.ProgramID) string {
	p, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return ""
	}
	defer p.Close()
	info, err := p.Info()
	if err != nil {
		return ""
	}
	return ": " + info.Name
}

func links() ([]string, error) {
	var found []string
	it := new(link.Iterator)
	defer it.Close()
	for it.Next() {
		found = append(found, fmt.Sprintf("BPF link %d", it.ID))
	}
	return found, it.Err()
}
