// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Procs returns the ids of all processes in the cgroup and below it, in
// ascending order. A process of another pid namespace has no id here and is
// left out; Populated and Kill know it.
func (d *Dir) Procs() ([]int, error) {
	found := map[int]bool{}
	if err := procs(d.FD(), found); err != nil {
		return nil, failure("list processes of", d.path, err)
	}
	pids := make([]int, 0, len(found))
	for pid := range found {
		pids = append(pids, pid)
	}
	slices.Sort(pids)
	return pids, nil
}

func procs(fd int, found map[int]bool) error {
	if err := ownProcs(fd, found); err != nil {
		return err
	}
	return eachChild(fd, func(_ string, child int) error { return procs(child, found) })
}

// ownProcs adds the processes of one cgroup, without those below it.
func ownProcs(fd int, found map[int]bool) error {
	content, err := readAt(fd, "cgroup.procs")
	threads := errors.Is(err, unix.EOPNOTSUPP)
	if threads { // a threaded cgroup lists threads only
		content, err = readAt(fd, "cgroup.threads")
	}
	if err != nil {
		return err
	}
	for field := range strings.FieldsSeq(string(content)) {
		pid, err := strconv.Atoi(field)
		if err != nil {
			return fmt.Errorf("process id %q: %w", field, err)
		}
		if threads {
			pid = processOf(pid)
		}
		if pid > 0 {
			found[pid] = true
		}
	}
	return nil
}

// processOf returns the process that a thread belongs to, 0 when it is gone.
func processOf(tid int) int {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, "Tgid:"); ok {
			pid, _ := strconv.Atoi(strings.TrimSpace(value))
			return pid
		}
	}
	return 0
}

// eachChild calls fn with the name and an open descriptor of every direct child
// that still exists, and passes over those that vanish meanwhile.
func eachChild(fd int, fn func(name string, child int) error) error {
	self, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(self), "cgroup")
	entries, err := f.ReadDir(-1)
	f.Close()
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if !entry.IsDir() {
			continue
		}
		child, err := unix.Openat(fd, entry.Name(), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if gone(err) {
			continue
		}
		if err != nil {
			return err
		}
		err = fn(entry.Name(), child)
		unix.Close(child)
		if err != nil && !gone(err) {
			return err
		}
	}
	return nil
}

// OfProcess returns the absolute path of the cgroup2 directory of a process. The
// error matches fs.ErrNotExist when the process or its cgroup is gone.
func OfProcess(pid int) (string, error) {
	if pid <= 0 {
		return "", fmt.Errorf("cgroup of process %d: not a process id", pid)
	}
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if gone(err) || errors.Is(err, unix.ESRCH) {
		return "", fmt.Errorf("cgroup of process %d: no such process: %w", pid, fs.ErrNotExist)
	}
	if err != nil {
		return "", fmt.Errorf("cgroup of process %d: %w", pid, err)
	}
	below, err := unifiedPath(string(content))
	if err != nil {
		return "", fmt.Errorf("cgroup of process %d: %w", pid, err)
	}
	point, err := Mount()
	if err != nil {
		return "", fmt.Errorf("cgroup of process %d: %w", pid, err)
	}
	return filepath.Join(point, below), nil
}

// unifiedPath finds the cgroup2 line of /proc/PID/cgroup.
func unifiedPath(content string) (string, error) {
	for line := range strings.Lines(content) {
		path, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::")
		if !ok {
			continue
		}
		if removed, ok := strings.CutSuffix(path, " (deleted)"); ok {
			return "", fmt.Errorf("%s: %w", removed, fs.ErrNotExist)
		}
		if path == "/.." || strings.HasPrefix(path, "/../") {
			return "", fmt.Errorf("%s is outside this cgroup namespace: run in the host's", path)
		}
		return path, nil
	}
	return "", errors.New("it has none in the cgroup2 hierarchy")
}
