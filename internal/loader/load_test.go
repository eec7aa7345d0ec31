// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"os"
	"strings"
	"testing"

	"github.com/cilium/ebpf/asm"

	"agentguard.dev/agentguard/bpf"
)

// A kernel that refuses one of the programs is simulated by a program that any
// kernel refuses.
func TestRefusedProgramIsNamed(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: loads programs into the kernel")
	}
	spec, err := bpf.LoadGuard()
	if err != nil {
		t.Fatal(err)
	}
	spec.Programs["ag_egress"].Instructions = asm.Instructions{asm.Return()} // R0 was never set
	var objs bpf.GuardObjects
	err = spec.LoadAndAssign(&objs, nil)
	if err == nil {
		objs.Close()
		t.Fatal("the kernel took a program without a result")
	}
	got := loadError(err).Error()
	for _, want := range []string{"ag_egress", "agentguard doctor", "R0 !read_ok"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not in: %s", want, got)
		}
	}
	if c := probeProgram(spec, "ag_egress", ""); c.OK || !c.Required || c.Remedy == "" {
		t.Errorf("doctor: %+v", c)
	}
}
