// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"
)

// quiet waits until no TCP connection of the host has anything more to send by
// itself: what an unguarded process has left must not be taken for a task's.
func (l *lab) quiet() error {
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		busy := ""
		if err := l.host.Do(func() error {
			for _, family := range []string{"tcp", "tcp6"} {
				text, err := os.ReadFile("/proc/thread-self/net/" + family)
				if err != nil && !errors.Is(err, os.ErrNotExist) {
					return err
				}
				for line := range strings.Lines(string(text)) {
					if isBusy(line) {
						busy = strings.TrimSpace(line)
					}
				}
			}
			return nil
		}); err != nil {
			return err
		}
		if busy == "" {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("a connection of an unguarded process does not end: %s", busy)
		}
	}
}

// isBusy reads a line of /proc/net/tcp: every state but TIME_WAIT, CLOSE and
// LISTEN can still send, unless both ends are on this machine.
func isBusy(line string) bool {
	fields := strings.Fields(line)
	if len(fields) < 4 || fields[0] == "sl" {
		return false
	}
	switch fields[3] {
	case "06", "07", "0A":
		return false
	}
	address, _, _ := strings.Cut(fields[2], ":") // words in host order
	return !strings.HasSuffix(address, "7F") && address != "00000000000000000000000001000000"
}
