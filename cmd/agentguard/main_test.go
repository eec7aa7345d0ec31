// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"agentguard.dev/agentguard/internal/launch"
)

// TestMain makes the test binary the command agentguard as well, so that the
// scripts run this very code. The tests run in network namespaces of their own.
func TestMain(m *testing.M) {
	launch.Child()
	commands := map[string]func(){"agentguard": main, "peer": peerMain, "as": asMain, "get": getMain, "fetch": fetchMain}
	if _, isCommand := commands[filepath.Base(os.Args[0])]; !isCommand && os.Geteuid() == 0 {
		if err := enterLab(); err != nil {
			fmt.Fprintln(os.Stderr, "make network namespaces:", err)
			os.Exit(1)
		}
	}
	testscript.Main(m, commands)
}

func TestScripts(t *testing.T) {
	needPrivileges(t)
	testscript.Run(t, testscript.Params{
		Dir:                 "../../testdata/script",
		Setup:               setupInstance,
		Cmds:                scriptCommands(),
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		ContinueOnError:     false,
	})
}

func needPrivileges(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("attaching programs to cgroups needs root")
	}
}
