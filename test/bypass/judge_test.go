// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"slices"
	"testing"
)

// TestJudgeSeesEscapes shows that the judges can say no: what a task may do is
// tried as if it may not.
func TestJudgeSeesEscapes(t *testing.T) {
	l := newLab(t)
	g := newGuard(t, l)
	open := []string{"0.0.0.0/0:*", "[::/0]:*", "udp://0.0.0.0/0:*", "udp://[::/0]:*", "icmp://0.0.0.0/0"}
	for name, wire := range map[string]bool{
		"tcp4": true, "udp6-sendto": true, "udp-empty": true, "ping-sendto": true, "uring-connect": true,
		"dns-name": true, "tls-neighbour": true, "http-host": true,
		"lo-tcp4": false, "lo-udp6": false, "lo-other-task-udp": false,
	} {
		t.Run(name, func(t *testing.T) {
			all := techniques()
			technique := all[slices.IndexFunc(all, func(x technique) bool { return x.name == name })]
			technique.allow = open
			technique.policy = []string{"loopback: host"}
			res, err := l.try(technique, g)
			if err != nil {
				t.Fatal(err)
			}
			if res.reached == "" {
				t.Errorf("it reached its target and was not seen: %+v", res.outcome)
			}
			if wire && len(res.leaked) == 0 {
				t.Error("its packets were not seen")
			}
		})
	}
	t.Run("flow", func(t *testing.T) {
		all := flows()
		f := all[slices.IndexFunc(all, func(x flow) bool { return x.name == "revoke-udp" })]
		f.cut = func(guardedTask) error { return nil }
		res, err := l.tryFlow(f, g)
		if err != nil {
			t.Fatal(err)
		}
		if len(res.after) == 0 || res.told != "" {
			t.Errorf("a flow that nothing cut: %d packets seen, the process was told %q", len(res.after), res.told)
		}
	})
}
