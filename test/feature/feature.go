// SPDX-License-Identifier: Apache-2.0

// Package feature says which kernel features tests may miss, and since which kernel they must not.
package feature

import (
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// Feature is something that not every supported kernel has.
type Feature uint8

const (
	BPFSockDestroy Feature = iota // bpf_sock_destroy in socket iterators
	UnixSockHooks                 // cgroup hooks on connect and sendmsg of Unix sockets
	BPFLSM                        // BPF programs on LSM hooks, per cgroup too
	DCCP                          // the protocol, removed in 6.16
	SCTP
	UDPLite // the protocol
)

// traits are what is known of a feature.
type traits struct {
	name         string
	since, until version // zero: always
	optional     bool    // kernels other than the test guests' may be built or booted without it
}

func (f Feature) traits() traits {
	switch f {
	case BPFSockDestroy:
		return traits{name: "bpf_sock_destroy", since: version{6, 5}}
	case UnixSockHooks:
		return traits{name: "cgroup hooks on Unix sockets", since: version{6, 7}}
	case BPFLSM:
		return traits{name: "BPF LSM", optional: true}
	case DCCP:
		return traits{name: "DCCP", until: version{6, 16}, optional: true}
	case SCTP:
		return traits{name: "SCTP", optional: true}
	case UDPLite:
		return traits{name: "UDP-Lite", optional: true}
	}
	return traits{name: fmt.Sprintf("Feature(%d)", uint8(f))}
}

func (f Feature) String() string { return f.traits().name }

// Require ends the test if err is not nil, which says that f did not work: it is skipped where the running kernel may
// lack f, and fails everywhere else.
func Require(t testing.TB, f Feature, err error) {
	t.Helper()
	if err == nil {
		return
	}
	release, guest := kernel(t), os.Getenv("AGENTGUARD_VM") != ""
	if f.mayLack(parse(t, release), guest) {
		t.Skipf("kernel %s lacks %s: %v", release, f, err)
	}
	t.Fatalf("kernel %s should have %s: %v", release, f, err)
}

func (f Feature) mayLack(running version, guest bool) bool {
	known := f.traits()
	switch {
	case running.less(known.since):
		return true
	case known.until != version{} && !running.less(known.until):
		return true
	default:
		return known.optional && !guest
	}
}

// version is a kernel's, as in 6.12.
type version struct{ major, minor int }

func (v version) less(o version) bool {
	return v.major < o.major || v.major == o.major && v.minor < o.minor
}

func kernel(t testing.TB) string {
	t.Helper()
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		t.Fatal(err)
	}
	return unix.ByteSliceToString(name.Release[:])
}

func parse(t testing.TB, release string) version {
	t.Helper()
	var v version
	if _, err := fmt.Sscanf(release, "%d.%d", &v.major, &v.minor); err != nil {
		t.Fatalf("read kernel release %q: %v", release, err)
	}
	return v
}
