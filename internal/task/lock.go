// SPDX-License-Identifier: Apache-2.0

package task

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const lockFile = "lock"

// errLocked says that another process has the state directory.
var errLocked = errors.New("in use")

// lockState makes dir and takes it for this process until the file is closed.
func lockState(dir string) (*os.File, error) {
	path := filepath.Join(dir, lockFile)
	var lock *os.File
	err := withParents(func() (err error) {
		if err = os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("create state directory: %w", err)
		}
		if lock, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600); err != nil {
			return fmt.Errorf("lock state directory: %w", err)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		holder, _ := os.ReadFile(path)
		lock.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("state directory %s: %w by process %s: stop it, or give another --state-dir",
				dir, errLocked, strings.TrimSpace(string(holder)))
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	// The number is a courtesy to whoever finds the lock taken; a full disk must
	// not keep an engine from opening.
	if lock.Truncate(0) == nil {
		_, _ = lock.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	return lock, nil
}

// withParents repeats make, which makes something and the directories above it:
// another private engine that closes may remove these, empty as they are, in
// between.
func withParents(make func() error) error {
	const enough = 10
	err := make()
	for range enough {
		if !errors.Is(err, os.ErrNotExist) {
			return err
		}
		err = make()
	}
	return err
}
