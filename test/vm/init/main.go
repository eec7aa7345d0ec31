// SPDX-License-Identifier: Apache-2.0

// Command init is the first process of a guest: it sets the machine up, runs the test binaries of the plan, and
// powers off. What it has to say about itself goes to the console.
package main

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

func main() {
	if os.Getpid() != 1 {
		if err := runPlan(); err != nil {
			fmt.Println("init:", err)
			os.Exit(1)
		}
		return
	}
	if err := boot(); err != nil {
		fmt.Println("init:", err)
	}
	unix.Sync()
	fmt.Println("init: power off:", unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF))
}

// boot prepares the machine and leaves the plan to a child, because whoever is the first process must collect every
// orphan, and os/exec must not lose its own children to that.
func boot() error {
	if err := mountAll(); err != nil {
		return err
	}
	plan, err := readPlan()
	if err != nil {
		return err
	}
	if err := loadModules(plan.Modules); err != nil {
		return err
	}
	if err := loopbackUp(); err != nil {
		return err
	}
	child, err := os.StartProcess("/init", []string{"plan"}, &os.ProcAttr{
		Dir: "/", Env: append(os.Environ(), plan.Env...), Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
	})
	if err != nil {
		return fmt.Errorf("start plan: %w", err)
	}
	for {
		pid, err := unix.Wait4(-1, nil, 0, nil)
		if pid == child.Pid {
			return nil
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for plan: %w", err)
		}
	}
}
