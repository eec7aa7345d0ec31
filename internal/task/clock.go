// SPDX-License-Identifier: Apache-2.0

package task

import (
	"fmt"
	"os"
	"strings"
	"time"

	"agentguard.dev/agentguard/internal/loader"
)

// wallTime is when the clock of deadlines reaches at, as the wall clock stands
// now; nil for 0, which is no deadline.
func wallTime(at uint64) *time.Time {
	if at == 0 {
		return nil
	}
	left := time.Duration(int64(at - loader.Now()))
	wall := time.Now().Add(left).Round(time.Millisecond).UTC()
	return &wall
}

// deadlineIn is the deadline that lies ttl ahead; 0, which is none, for a ttl
// of 0.
func deadlineIn(ttl time.Duration) uint64 {
	if ttl == 0 {
		return 0
	}
	return loader.Now() + uint64(ttl)
}

// earlier is the first of two deadlines of which 0 is none.
func earlier(a, b uint64) uint64 {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}

// bootID names this boot of the machine.
func bootID() (string, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read boot id: %w", err)
	}
	return strings.TrimSpace(string(id)), nil
}
