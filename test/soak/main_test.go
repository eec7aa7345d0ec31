// SPDX-License-Identifier: Apache-2.0

package soak

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
)

const inLab = "AGENTGUARD_SOAK_LAB"

// TestMain runs the tests in a network namespace of their own, in which the
// daemon and its tasks are at home; it goes with the process.
func TestMain(m *testing.M) {
	if os.Geteuid() != 0 || os.Getenv(inLab) != "" {
		os.Exit(m.Run())
	}
	code, err := enterLab()
	if err != nil {
		fmt.Fprintln(os.Stderr, "make a network namespace:", err)
		os.Exit(1)
	}
	os.Exit(code)
}

func enterLab() (code int, err error) {
	again := exec.Command("/proc/self/exe", os.Args[1:]...)
	again.Args[0] = os.Args[0]
	again.Env = append(os.Environ(), inLab+"=1")
	again.Stdin, again.Stdout, again.Stderr = os.Stdin, os.Stdout, os.Stderr
	again.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // Pdeathsig is about the thread
	var failed *exec.ExitError
	if err := again.Run(); errors.As(err, &failed) {
		return failed.ExitCode(), nil
	} else if err != nil {
		return 0, err
	}
	return 0, nil
}

// programs are what the test runs, built from this tree.
type programs struct{ agentguard, probe string }

func build(t *testing.T) programs {
	t.Helper()
	dir := t.TempDir()
	args := []string{"build", "-o", dir + "/"}
	if raceDetector {
		args = append(args, "-race")
	}
	compile := exec.Command("go", append(args, "agentguard.dev/agentguard/cmd/agentguard")...)
	if out, err := compile.CombinedOutput(); err != nil {
		t.Fatalf("build agentguard: %v\n%s", err, out)
	}
	compile = exec.Command("go", "build", "-o", dir+"/", "agentguard.dev/agentguard/test/soak/probe")
	compile.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := compile.CombinedOutput(); err != nil {
		t.Fatalf("build the probe: %v\n%s", err, out)
	}
	return programs{filepath.Join(dir, "agentguard"), filepath.Join(dir, "probe")}
}
