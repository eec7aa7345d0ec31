// SPDX-License-Identifier: Apache-2.0

// Command agentguard decides in the kernel what AI agents may reach.
package main

import (
	"os"

	"agentguard.dev/agentguard/internal/launch"
)

func main() {
	launch.Child() // does not return in a process that becomes a task's command
	os.Exit(perform(os.Args, os.Stdout, os.Stderr))
}
