// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// OfThreads finds the namespaces in which the threads of a process stand, each
// with a path to open it by. A thread that ends meanwhile is left out.
func OfThreads(pid int) map[ID]string {
	found := make(map[ID]string)
	dir := fmt.Sprintf("/proc/%d/task", pid)
	threads, err := os.ReadDir(dir)
	if err != nil {
		return found
	}
	for _, thread := range threads {
		path := dir + "/" + thread.Name() + "/ns/net"
		if id, err := Stat(path); err == nil {
			found[id] = path
		}
	}
	return found
}

// Stat identifies the namespace behind a path without opening it.
func Stat(path string) (ID, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return ID{}, fmt.Errorf("identify network namespace %s: %w", path, err)
	}
	return ID{Dev: uint64(st.Dev), Inode: st.Ino}, nil
}
