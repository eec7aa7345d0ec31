// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// defaultPath is searched when the environment has no PATH.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// execute becomes the command and returns only when it cannot.
func execute(argv, env []string) stageFailure {
	path, err := lookPath(argv[0], env)
	if err == nil {
		// syscall.Exec also puts back the limit on open files that the Go
		// runtime raised.
		err = syscall.Exec(path, argv, env)
	}
	switch {
	case errors.Is(err, unix.ENOENT) && path != "" && exists(path):
		return stageFailure{ExitNotFound, fmt.Sprintf("%s: its interpreter or loader does not exist", path)}
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return stageFailure{ExitNotFound, err.Error()}
	case errors.Is(err, unix.ENOEXEC):
		return stageFailure{ExitNotExecutable, fmt.Sprintf("%s: neither a program of this machine nor a script with a #! line", path)}
	case errors.Is(err, unix.E2BIG):
		return stageFailure{ExitNotExecutable, fmt.Sprintf("%s: arguments and environment are too long", path)}
	case path != "":
		return stageFailure{ExitNotExecutable, fmt.Sprintf("%s: %v", path, err)}
	default:
		return stageFailure{ExitNotExecutable, err.Error()}
	}
}

// lookPath finds the file to execute, as the user that this process has become.
func lookPath(name string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	path := defaultPath
	for _, v := range env {
		if value, ok := strings.CutPrefix(v, "PATH="); ok {
			path = value
		}
	}
	var refused error
	for _, dir := range filepath.SplitList(path) {
		if dir == "" {
			dir = "." // POSIX
		}
		file := dir + "/" + name
		switch err := executable(file); {
		case err == nil:
			return file, nil
		case !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR) && exists(file):
			refused = fmt.Errorf("%s: %w", file, err)
		}
	}
	if refused != nil {
		return "", refused
	}
	return "", fmt.Errorf("not found in PATH (%s): %w", path, unix.ENOENT)
}

func executable(file string) error {
	info, err := os.Stat(file)
	if err != nil {
		return err
	}
	if info.IsDir() {
		return unix.EISDIR
	}
	return unix.Faccessat(unix.AT_FDCWD, file, unix.X_OK, unix.AT_EACCESS)
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}
