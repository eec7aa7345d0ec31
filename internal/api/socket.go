// SPDX-License-Identifier: Apache-2.0

package api

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// SocketName is the admin socket's name in the run directory.
const SocketName = "admin.sock"

const lockName = "daemon.lock"

// Socket is the admin socket of the one daemon of a run directory.
type Socket struct {
	net.Listener
	path string
}

// Listen listens on the admin socket in the run directory that lock holds,
// open to root and, unless group is negative, to group. The caller closes the
// Socket after whoever served it is done.
func Listen(lock *Lock, group int) (*Socket, error) {
	path := filepath.Join(lock.dir, SocketName)
	listener, err := listen(lock.dir, path, group)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return &Socket{Listener: listener, path: path}, nil
}

// Path is where clients find the socket.
func (s *Socket) Path() string { return s.path }

// Remove stops listening and removes the socket.
func (s *Socket) Remove() error {
	closed := s.Listener.Close()
	if errors.Is(closed, net.ErrClosed) {
		closed = nil
	}
	return errors.Join(closed, removeIfThere(s.path))
}

func removeIfThere(path string) error {
	if err := os.Remove(path); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// Lock makes this process the only daemon of a run directory. The kernel lets
// go of it when the process dies, however it dies.
type Lock struct {
	dir  string
	file *os.File
}

// LockRunDir makes runDir where it does not exist and locks it. A daemon that
// is there already is an error that names its process.
func LockRunDir(runDir string) (*Lock, error) {
	if err := makeRunDir(runDir); err != nil {
		return nil, fmt.Errorf("make the run directory: %w", err)
	}
	file, err := os.OpenFile(filepath.Join(runDir, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the run directory: %w", err)
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		holder, _ := io.ReadAll(io.LimitReader(file, 32))
		file.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("a daemon is running already for %s, with process id %s: stop it first, or choose another --run-dir, --state-dir, --pin-dir and --cgroup",
				runDir, strings.TrimSpace(string(holder)))
		}
		return nil, fmt.Errorf("lock %s: %w", file.Name(), err)
	}
	if err := errors.Join(file.Truncate(0), writeAt(file, fmt.Sprintf("%d\n", os.Getpid()))); err != nil {
		file.Close()
		return nil, fmt.Errorf("lock the run directory: %w", err)
	}
	return &Lock{dir: runDir, file: file}, nil
}

// makeRunDir lets members of the group come to the socket whatever the umask
// is. The mode of a directory that is there already is its maker's affair.
func makeRunDir(dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	err := os.Mkdir(dir, 0o755)
	switch {
	case errors.Is(err, os.ErrExist):
		return nil
	case err != nil:
		return err
	}
	return os.Chmod(dir, 0o755)
}

// Close lets another daemon start.
func (l *Lock) Close() error { return l.file.Close() }

// Remove removes what a daemon left in the run directory, and the directory
// when nothing else is in it; then it lets go of the lock.
func (l *Lock) Remove() error {
	err := errors.Join(removeIfThere(filepath.Join(l.dir, SocketName)), removeIfThere(l.file.Name()))
	os.Remove(l.dir) // not empty: something else uses it
	return errors.Join(err, l.Close())
}

func writeAt(file *os.File, text string) error {
	_, err := file.WriteAt([]byte(text), 0)
	return err
}

// listen binds in a directory that only root can enter and moves the socket to
// its place when owner and mode are right: at no moment can others connect.
func listen(runDir, path string, group int) (net.Listener, error) {
	private, err := os.MkdirTemp(runDir, ".new-") // 0700
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(private)
	fresh := filepath.Join(private, "s")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: fresh, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("%w (a socket's path has at most 107 bytes; choose a shorter --run-dir)", err)
	}
	listener.SetUnlinkOnClose(false)
	owner := max(group, 0)
	err = os.Chown(fresh, 0, owner)
	if err == nil {
		err = os.Chmod(fresh, 0o660)
	}
	if err == nil {
		err = os.Rename(fresh, path)
	}
	if err != nil {
		listener.Close()
		return nil, err
	}
	return listener, nil
}
