// SPDX-License-Identifier: Apache-2.0

// Package cgroup works on directories of the cgroup2 hierarchy: their kernel
// ids, the processes below them, their end.
package cgroup

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Dir is an open cgroup directory. Its methods reach the cgroup through the
// descriptor, so they never touch another one that took over its name. They may
// be called concurrently. Once the cgroup has been removed, errors match
// fs.ErrNotExist.
type Dir struct {
	f     *os.File
	path  string
	id    uint64
	level int
}

// Open opens an existing cgroup2 directory. The caller closes it.
func Open(path string) (*Dir, error) {
	f, err := os.OpenFile(path, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, failure("open", path, err)
	}
	d, err := newDir(f, path)
	if err != nil {
		f.Close()
		return nil, err
	}
	return d, nil
}

// Create makes the last element of path, whose parent must be a cgroup2
// directory, and opens it. It is not an error if it exists already.
func Create(path string) (*Dir, error) {
	parent, leaf := filepath.Split(filepath.Clean(path))
	if leaf == "" || leaf == "." || leaf == ".." {
		return nil, failure("create", path, errors.New("its last element is no name"))
	}
	if parent == "" {
		parent = "."
	}
	up, err := os.OpenFile(parent, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, failure("create", path, err)
	}
	defer up.Close()
	if !isCgroup2(int(up.Fd())) {
		return nil, failure("create", path, notCgroup2(parent))
	}
	// 0755 whatever the umask: a group that may write in here could move
	// processes about.
	if err := unix.Mkdirat(int(up.Fd()), leaf, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, failure("create", path, err)
	}
	fd, err := unix.Openat(int(up.Fd()), leaf, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, failure("create", path, err)
	}
	f := os.NewFile(uintptr(fd), path)
	d, err := newDir(f, path)
	if err != nil {
		f.Close()
		return nil, err
	}
	return d, nil
}

func newDir(f *os.File, path string) (*Dir, error) {
	fd := int(f.Fd())
	if !isCgroup2(fd) {
		return nil, failure("open", path, notCgroup2(path))
	}
	id, err := idOf(fd)
	if err != nil {
		return nil, failure("open", path, err)
	}
	level, err := levelOf(fd, id)
	if err != nil {
		return nil, failure("open", path, err)
	}
	if real, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd)); err == nil {
		path = real
	} else if path, err = filepath.Abs(path); err != nil {
		return nil, failure("open", path, err)
	}
	return &Dir{f: f, path: path, id: id, level: level}, nil
}

// Path returns the absolute path at which the directory was opened, symbolic
// links resolved.
func (d *Dir) Path() string { return d.path }

// FD returns the descriptor, which is the Dir's own: it is valid until Close.
func (d *Dir) FD() int { return int(d.f.Fd()) }

// ID returns the kernel's id of the cgroup, as bpf_get_current_cgroup_id does.
func (d *Dir) ID() uint64 { return d.id }

// Level returns the depth below the root of the hierarchy, which has level 0.
func (d *Dir) Level() int { return d.level }

// Close closes the descriptor. The cgroup stays.
func (d *Dir) Close() error { return d.f.Close() }

func isCgroup2(fd int) bool {
	var st unix.Statfs_t
	return unix.Fstatfs(fd, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC
}

// idOf returns the kernfs id, which the file handle holds in full everywhere;
// the inode number holds it in full where ino_t has 64 bits.
func idOf(fd int) (uint64, error) {
	handle, _, err := unix.NameToHandleAt(fd, "", unix.AT_EMPTY_PATH)
	if err == nil && handle.Size() == 8 {
		return binary.NativeEndian.Uint64(handle.Bytes()), nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, err
	}
	return st.Ino, nil
}

// levelOf walks up to the root, which tells the level whatever the mount shows.
func levelOf(fd int, id uint64) (int, error) {
	up := fd
	defer func() {
		if up != fd {
			unix.Close(up)
		}
	}()
	for level := 0; ; level++ {
		if id == rootID {
			return level, nil
		}
		next, err := unix.Openat(up, "..", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return 0, err
		}
		if up != fd {
			unix.Close(up)
		}
		up = next
		if !isCgroup2(up) {
			return 0, errors.New("its mount shows only a part of the hierarchy: use the host's cgroup2 mount")
		}
		if id, err = idOf(up); err != nil {
			return 0, err
		}
	}
}

func notCgroup2(path string) error {
	if point, err := Mount(); err == nil {
		return fmt.Errorf("%s is not a cgroup2 directory: name one below %s", path, point)
	}
	return fmt.Errorf("%s is not a cgroup2 directory", path)
}

// failure names the cgroup in an error. A removed cgroup answers ENODEV to reads
// and writes of files opened before; callers see fs.ErrNotExist for both.
func failure(step, path string, err error) error {
	var pathErr *fs.PathError
	if errors.As(err, &pathErr) {
		err = pathErr.Err
	}
	if errors.Is(err, unix.ENODEV) {
		err = fs.ErrNotExist
	}
	return fmt.Errorf("%s cgroup %s: %w", step, path, err)
}

// gone says that the cgroup has been removed.
func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV)
}

// readAt returns the content of a file below the directory fd.
func readAt(fd int, name string) ([]byte, error) {
	file, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(file)
	return readAll(file)
}

func readAll(file int) ([]byte, error) {
	var content bytes.Buffer
	chunk := make([]byte, 4096)
	for {
		n, err := unix.Read(file, chunk)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if n == 0 {
			return content.Bytes(), nil
		}
		content.Write(chunk[:n])
	}
}

// Populated says whether a process lives in the cgroup or below it.
func (d *Dir) Populated() (bool, error) {
	content, err := readAt(d.FD(), "cgroup.events")
	if err != nil {
		return false, failure("read", d.path, err)
	}
	return populated(content), nil
}

// populated reads cgroup.events; what it does not understand counts as populated.
func populated(events []byte) bool {
	for line := range strings.Lines(string(events)) {
		if strings.TrimSpace(line) == "populated 0" {
			return false
		}
	}
	return true
}
