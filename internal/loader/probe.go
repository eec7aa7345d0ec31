// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"agentguard.dev/agentguard/bpf"
	"agentguard.dev/agentguard/client"
	"agentguard.dev/agentguard/internal/cgroup"
)

// Probe tries everything that the kernel half needs or could use, by loading
// it: what is compiled in can still be refused. It leaves nothing behind.
func Probe() []client.Check {
	checks := []client.Check{probeRoot(), probeBTF(), probeCgroup(), probeBPFFS()}
	checks = append(checks, probePrograms()...)
	return append(checks, probeDestroy(), probeMembarrier(), probeLSM())
}

// required completes a check that must hold.
func required(name string, err error, detail, remedy string) client.Check {
	c := client.Check{Name: name, Required: true, OK: err == nil, Detail: detail}
	if err != nil {
		c.Detail, c.Remedy = err.Error(), remedy
	}
	return c
}

func probeRoot() client.Check {
	var err error
	if uid := os.Geteuid(); uid != 0 {
		err = fmt.Errorf("running as uid %d", uid)
	}
	return required("privileges", err, "running as root", "run it as root: sudo agentguard doctor")
}

// KernelRelease is the running kernel's release, such as 6.1.0-56-cloud-amd64.
func KernelRelease() string {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(name.Release[:])
}

func probeBTF() client.Check {
	_, err := btf.LoadKernelSpec()
	return required("kernel", err, KernelRelease()+", with BTF",
		"use a kernel of version 6.1 or later, built with CONFIG_DEBUG_INFO_BTF=y")
}

func probeCgroup() client.Check {
	mount, err := cgroup.Mount()
	return required("cgroup2", err, "mounted at "+mount,
		"mount it: mount -t cgroup2 cgroup2 /sys/fs/cgroup")
}

func probeBPFFS() client.Check {
	on, err := onBPFFS(bpffsMount)
	detail := "mounted at " + bpffsMount
	if err == nil && !on {
		detail = "not mounted at " + bpffsMount + "; agentguard mounts it when it starts"
	}
	return required("bpffs", err, detail, "mount -t bpf bpf "+bpffsMount)
}

// probePrograms loads each program by itself, with small maps.
func probePrograms() []client.Check {
	spec, err := bpf.LoadGuard()
	if err != nil {
		return []client.Check{required("programs", err, "", "the binary is damaged: install it again")}
	}
	for name, size := range map[string]uint32{"tasks": 16, "hosts": 16, "prefixes": 16, "names": 16, "learned": 16, "askers": 16, "counters": 16, "events": uint32(os.Getpagesize())} {
		spec.Maps[name].MaxEntries = size
	}
	var objs bpf.GuardObjects
	var checks []client.Check
	for _, h := range hooks(&objs.GuardPrograms) {
		checks = append(checks, probeProgram(spec, h.name, "attached as "+h.attach.String()))
	}
	for _, name := range []string{"ag_iter_tcp", "ag_iter_udp"} {
		checks = append(checks, probeProgram(spec, name, "iterates over sockets"))
	}
	return checks
}

func probeProgram(spec *ebpf.CollectionSpec, name, detail string) client.Check {
	alone := spec.Copy()
	for other := range alone.Programs {
		if other != name {
			delete(alone.Programs, other)
		}
	}
	coll, err := ebpf.NewCollection(alone)
	if err == nil {
		coll.Close()
	}
	return required(name, err, "loads; "+detail,
		"a required hook is missing: use a kernel of version 6.1 or later with CONFIG_CGROUP_BPF=y and CONFIG_BPF_JIT=y")
}

// probeDestroy says how sockets are destroyed; netlink is the fallback.
func probeDestroy() client.Check {
	c := client.Check{Name: "bpf_sock_destroy", Detail: "sockets are destroyed by the iterators themselves"}
	var fn *btf.Func
	spec, err := btf.LoadKernelSpec()
	if err == nil {
		err = spec.TypeByName("bpf_sock_destroy", &fn)
	}
	if c.OK = err == nil; !c.OK {
		c.Detail = "not in this kernel (before 6.5): sockets are destroyed over netlink, which needs CONFIG_INET_DIAG_DESTROY=y"
	}
	return c
}

func probeMembarrier() client.Check {
	return required("membarrier", Barrier(), "waits for running programs",
		"boot without nohz_full, which disables MEMBARRIER_CMD_GLOBAL")
}

// probeLSM looks for BPF LSM, which nothing requires.
func probeLSM() client.Check {
	c := client.Check{
		Name:   "bpf lsm",
		Open:   "sockets made outside a task and handed in, address families without a cgroup hook (packet, vsock), relays over Unix sockets",
		Remedy: "boot with bpf in the lsm= list",
	}
	list, err := os.ReadFile("/sys/kernel/security/lsm")
	if errors.Is(err, os.ErrNotExist) {
		err = errors.New("securityfs is not mounted, so the list of security modules is unknown")
	}
	if err != nil {
		c.Detail = err.Error()
		return c
	}
	c.Detail = "active: " + string(list)
	for _, name := range strings.Split(strings.TrimSpace(string(list)), ",") {
		c.OK = c.OK || name == "bpf"
	}
	return c
}
