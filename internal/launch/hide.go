// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// nameServices are directories whose Unix sockets look names up for whoever
// asks: nscd, systemd-resolved, Avahi. What they answer is of no use to a task,
// because the guard has not seen the addresses, and the question would leave
// unseen. Without the sockets the C library asks by DNS. A socket is made anew
// when its service restarts, so the whole directory is covered.
var nameServices = []string{"/run/nscd", "/var/run/nscd", "/run/systemd/resolve", "/run/avahi-daemon"}

// sssdSockets answer for users and groups too, so they are covered only where the
// C library asks them for hosts.
const sssdSockets = "/var/lib/sss/pipes"

// maxNameFile bounds the files that stay visible beside the sockets.
const maxNameFile = 64 << 10

// enterView gives this thread, and what it executes, mounts of its own. What the
// host mounts later appears in them, nothing of theirs in the host's.
func enterView() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("enter a mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("detach from the host's mounts: %w", err)
	}
	return nil
}

// presentNameServices are the directories to be covered on this machine.
func presentNameServices() ([]string, error) {
	wanted := nameServices
	if asksSSSD("/etc/nsswitch.conf") {
		wanted = append(slices.Clone(wanted), sssdSockets)
	}
	var found []string
	for _, path := range wanted {
		dir, err := filepath.EvalSymlinks(path)
		if errors.Is(err, fs.ErrNotExist) || slices.Contains(found, dir) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("hide name services: %w", err)
		}
		found = append(found, dir)
	}
	return found, nil
}

// asksSSSD says whether the C library asks sssd for hosts.
func asksSSSD(config string) bool {
	file, err := os.Open(config)
	if err != nil {
		return false
	}
	defer file.Close()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		line, _, _ := strings.Cut(lines.Text(), "#")
		if services, ok := strings.CutPrefix(strings.TrimSpace(line), "hosts:"); ok {
			return slices.Contains(strings.Fields(services), "sss")
		}
	}
	return false
}

// hide covers a directory with one that has its plain files, such as the
// resolv.conf that /etc/resolv.conf points to, and nothing else.
func hide(dir string) error {
	files, err := plainFiles(dir)
	if err != nil {
		return fmt.Errorf("hide %s: %w", dir, err)
	}
	if err := unix.Mount("none", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0755,size=1m"); err != nil {
		return fmt.Errorf("hide %s: %w", dir, err)
	}
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o644); err != nil {
			return fmt.Errorf("hide %s: %w", dir, err)
		}
		if err := os.Chmod(path, 0o644); err != nil { // whatever the umask
			return fmt.Errorf("hide %s: %w", dir, err)
		}
	}
	return readOnly(dir)
}

// plainFiles reads the files of a directory that everybody may read.
func plainFiles(dir string) (map[string][]byte, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	files := make(map[string][]byte)
	for _, entry := range entries {
		info, err := entry.Info()
		if err != nil || !info.Mode().IsRegular() || info.Mode().Perm()&0o004 == 0 || info.Size() > maxNameFile {
			continue
		}
		if content, err := os.ReadFile(filepath.Join(dir, entry.Name())); err == nil {
			files[entry.Name()] = content
		}
	}
	return files, nil
}
