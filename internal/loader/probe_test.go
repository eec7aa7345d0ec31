// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"os"
	"testing"
)

func TestProbe(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: loads programs into the kernel")
	}
	seen := make(map[string]bool)
	for _, c := range Probe() {
		if c.Required && !c.OK {
			t.Errorf("%s: %s", c.Name, c.Detail)
		}
		if !c.OK && c.Remedy == "" && c.Open == "" && c.Detail == "" {
			t.Errorf("%s is missing and nothing says what follows", c.Name)
		}
		seen[c.Name] = true
	}
	for _, name := range []string{"ag_connect4", "ag_connect6", "ag_sendmsg4", "ag_sendmsg6", "ag_egress",
		"ag_sock_create", "ag_setsockopt", "ag_sock_ops", "ag_iter_tcp", "ag_iter_udp", "cgroup2", "kernel"} {
		if !seen[name] {
			t.Errorf("%s is not checked", name)
		}
	}
}
