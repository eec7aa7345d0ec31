// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// rootID is the id of the root of the cgroup2 hierarchy, fixed by the kernel.
const rootID = 1

// Mount returns the mount point that shows the whole cgroup2 hierarchy. A mount
// that shows only a part of it, as in a cgroup namespace, does not count: the
// level of a cgroup, which the kernel programs need, cannot be told from there.
func Mount() (string, error) {
	points, err := MountPoints("cgroup2")
	if err != nil {
		return "", fmt.Errorf("find the cgroup2 mount: %w", err)
	}
	for _, point := range points {
		if isRoot(point) {
			return point, nil
		}
	}
	if len(points) > 0 {
		return "", fmt.Errorf("find the cgroup2 mount: %s shows only a part of the hierarchy: run in the host's cgroup namespace",
			strings.Join(points, ", "))
	}
	return "", errors.New("find the cgroup2 mount: none: mount -t cgroup2 none /sys/fs/cgroup")
}

func isRoot(path string) bool {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	id, err := idOf(fd)
	return err == nil && id == rootID && isCgroup2(fd)
}

// MountPoints returns where file systems of these types are mounted, in the
// order of mounting; a later mount may hide an earlier one.
func MountPoints(types ...string) ([]string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	points, err := mountPoints(f, types)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", f.Name(), err)
	}
	return points, nil
}

func mountPoints(mountinfo io.Reader, types []string) ([]string, error) {
	var points []string
	lines := bufio.NewScanner(mountinfo)
	for lines.Scan() {
		// Optional fields end at a lone dash; the type stands after it.
		before, after, _ := strings.Cut(lines.Text(), " - ")
		fields := strings.Fields(before)
		kind, _, ok := strings.Cut(after, " ")
		if ok && len(fields) >= 5 && slices.Contains(types, kind) {
			points = append(points, unescape(fields[4]))
		}
	}
	return points, lines.Err()
}

// unescape undoes the kernel's \ooo form of space, tab, newline and backslash.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) && octal(s[i+1:i+4]) {
			b.WriteByte((s[i+1]-'0')<<6 | (s[i+2]-'0')<<3 | (s[i+3] - '0'))
			i += 3
			continue
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func octal(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '7' {
			return false
		}
	}
	return s[0] <= '3'
}
