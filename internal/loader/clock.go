// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// membarrierGlobal is MEMBARRIER_CMD_GLOBAL of linux/membarrier.h: the kernel
// implements it as synchronize_rcu, and programs run inside RCU read sections.
const membarrierGlobal = 1

// Barrier returns when no program still runs with a map value that was
// replaced before the call. It takes one RCU grace period, some milliseconds.
func Barrier() error {
	if _, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, membarrierGlobal, 0, 0); errno != 0 {
		return fmt.Errorf("wait for running programs: membarrier: %w", errno)
	}
	return nil
}

// Now is CLOCK_BOOTTIME in nanoseconds, the clock of all deadlines.
func Now() uint64 {
	var t unix.Timespec
	// Fails only for an unknown clock; Linux has had this one since 2.6.39.
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &t)
	return uint64(t.Nano())
}
