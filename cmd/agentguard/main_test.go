// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"agentguard.dev/agentguard/internal/launch"
)

// TestMain makes the test binary the command agentguard as well, so that the
// scripts run this very code.
func TestMain(m *testing.M) {
	launch.Child()
	testscript.Main(m, map[string]func(){
		"agentguard": main,
		"peer":       peerMain,
	})
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
