// SPDX-License-Identifier: Apache-2.0

// Command demo shows agentguard at work on addresses of its own: it makes two
// network namespaces, one for the agents and one for the servers that they
// want to reach, and leaves nothing of them behind. `make demo` runs it.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
)

func main() {
	if err := play(filepath.Base(os.Args[0]), os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// play is what this program is under each of its names.
func play(name string, args []string) error {
	switch {
	case name == "fetch" && len(args) == 1:
		return fetch(args[0])
	case name == "upload" && len(args) == 1:
		return upload(args[0])
	case name == "world":
		return world()
	case name == "home" && len(args) == 1:
		return home(args[0])
	case len(args) == 1:
		return raiseHome(args[0])
	}
	return errors.New("usage: demo PATH-OF-AGENTGUARD")
}

// raiseHome starts this program again in a network namespace of its own.
func raiseHome(agentguard string) error {
	if os.Geteuid() != 0 {
		return errors.New("the demo loads programs into the kernel and needs root: sudo make demo")
	}
	agentguard, err := filepath.Abs(agentguard)
	if err != nil {
		return err
	}
	home := again("home", agentguard)
	home.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	home.Stdin = nil
	if err := home.Run(); err != nil {
		return fmt.Errorf("the demo did not come to its end: %w", err)
	}
	return nil
}

// again is this program under another name.
func again(name string, args ...string) *exec.Cmd {
	command := exec.Command("/proc/self/exe", args...)
	command.Args[0] = name
	command.Stdout, command.Stderr = os.Stdout, os.Stderr
	return command
}
