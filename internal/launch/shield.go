// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"errors"
	"fmt"

	"agentguard.dev/agentguard/internal/cgroup"
	"golang.org/x/sys/unix"
)

// kernelTypes are file systems through which root, by owning the files alone,
// could change the kernel: move itself between cgroups, unpin the guard, set a
// probe.
var kernelTypes = []string{
	"bpf", "cgroup", "cgroup2", "configfs", "debugfs", "efivarfs", "fusectl", "pstore", "securityfs", "sysfs", "tracefs",
}

// shield makes those file systems and the kernel's settings read-only in the
// view of this thread and of what it executes. It cannot be undone without
// CAP_SYS_ADMIN, which root loses next. Below the task's own cgroup one can still
// make cgroups.
//
// It closes the direct ways only: root that reaches the view of a process outside
// (/proc/PID/root), or asks one (cron, a service manager, a container engine), is
// not held. A command that is not trusted that far belongs to another user.
func shield(ownCgroup string) error {
	points, err := cgroup.MountPoints(kernelTypes...)
	if err != nil {
		return fmt.Errorf("find what to make read-only: %w", err)
	}
	for _, path := range []string{"/proc/sys", "/proc/sysrq-trigger"} {
		if err := bind(path); errors.Is(err, unix.ENOENT) {
			continue // not in this kernel
		} else if err != nil {
			return err
		}
		points = append(points, path)
	}
	if err := bind(ownCgroup); err != nil {
		return err
	}
	for _, point := range points {
		if err := readOnly(point); err != nil {
			return err
		}
	}
	return nil
}

func bind(path string) error {
	if err := unix.Mount(path, path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s: %w", path, err)
	}
	return nil
}

func readOnly(path string) error {
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	err := unix.MountSetattr(unix.AT_FDCWD, path, 0, &attr)
	// No mount of that path: another one hides it, from the command too.
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("make %s read-only: %w", path, err)
	}
	return nil
}
