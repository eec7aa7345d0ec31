// SPDX-License-Identifier: Apache-2.0

package feature

import "testing"

func TestMayLack(t *testing.T) {
	for _, c := range []struct {
		feature Feature
		running version
		guest   bool
		want    bool
	}{
		{BPFSockDestroy, version{6, 1}, true, true},
		{BPFSockDestroy, version{6, 5}, true, false},
		{BPFSockDestroy, version{6, 18}, false, false},
		{BPFSockDestroy, version{5, 15}, false, true},
		{UnixSockHooks, version{7, 0}, false, false},
		{BPFLSM, version{6, 18}, false, true},
		{BPFLSM, version{6, 1}, true, false},
		{DCCP, version{6, 12}, true, false},
		{DCCP, version{6, 16}, true, true},
	} {
		if got := c.feature.mayLack(c.running, c.guest); got != c.want {
			t.Errorf("%v on %v (guest: %v): may lack = %v, want %v", c.feature, c.running, c.guest, got, c.want)
		}
	}
}

func TestParseRelease(t *testing.T) {
	if got, want := parse(t, "6.12.117+deb12-cloud-amd64"), (version{6, 12}); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
}
