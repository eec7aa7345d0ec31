// SPDX-License-Identifier: Apache-2.0

package task

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"agentguard.dev/agentguard/internal/names"
	"agentguard.dev/agentguard/internal/netns"
)

const (
	resolvConf    = "etc/resolv.conf"
	maxResolvConf = 64 << 10
	dnsPort       = 53
)

// upstreamOf says who answers questions that are asked in ns: where the host has
// arranged it, the resolvers that the file system of a process there names. Who
// administers a namespace can answer in place of any resolver that is asked from
// it. So all that comes from elsewhere, such as the configuration, is asked from
// the engine's own, whose resolvers serve where a task could have arranged things.
func (e *Engine) upstreamOf(t *task, ns *netns.Handle) names.Upstream {
	if ns != e.spaces.home && len(e.cfg.Resolvers) == 0 {
		for _, proc := range e.processesIn(t, ns.ID()) {
			if !arrangedByHost(ns, proc) {
				continue
			}
			found, err := readResolvers(proc + "/root")
			// Once more: it may have made a file system of its own just before.
			if err == nil && arrangedByHost(ns, proc) {
				return names.Upstream{From: ns, Resolvers: found}
			}
		}
	}
	found := e.cfg.Resolvers
	if len(found) == 0 {
		var err error
		if found, err = readResolvers("/"); err != nil {
			e.log.Warn("names cannot be looked up", "err", err)
		}
	}
	return names.Upstream{From: e.spaces.home, Resolvers: found}
}

// processesIn are directories in /proc of processes that have to do with t and
// may stand in the namespace: the one through which it was found, and t's own.
func (e *Engine) processesIn(t *task, id netns.ID) []string {
	procs := []string{e.spaces.origin(id)}
	dir, err := t.open()
	if err != nil {
		return procs
	}
	defer dir.Close()
	pids, err := dir.Procs()
	if err != nil {
		return procs
	}
	for _, pid := range pids {
		procs = append(procs, fmt.Sprintf("/proc/%d", pid))
	}
	return procs
}

// arrangedByHost says whether process and namespace belong to the user namespace
// that this engine is in: who made another one rules it, and can make up a
// resolver in it, or a file system around the process.
func arrangedByHost(ns *netns.Handle, proc string) bool {
	if id, err := netns.Stat(proc + "/ns/net"); err != nil || id != ns.ID() {
		return false
	}
	var own, of unix.Stat_t
	if unix.Stat("/proc/self/ns/user", &own) != nil || unix.Stat(proc+"/ns/user", &of) != nil || own.Ino != of.Ino {
		return false
	}
	owner, err := unix.IoctlRetInt(ns.FD(), unix.NS_GET_USERNS)
	if err != nil {
		return false
	}
	defer unix.Close(owner)
	return unix.Fstat(owner, &of) == nil && own.Ino == of.Ino
}

// readResolvers reads the name servers of the resolv.conf below root, in order.
// A file without one means the local machine, as resolv.conf(5) has it.
func readResolvers(root string) ([]netip.AddrPort, error) {
	content, err := readBelow(root, resolvConf)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", resolvConf, err)
	}
	config, err := dns.ClientConfigFromReader(bytes.NewReader(content))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", resolvConf, err)
	}
	var found []netip.AddrPort
	for _, server := range config.Servers {
		if addr, err := netip.ParseAddr(strings.TrimSpace(server)); err == nil {
			found = append(found, netip.AddrPortFrom(addr.Unmap(), dnsPort))
		}
	}
	if len(found) == 0 {
		found = append(found, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), dnsPort))
	}
	return found, nil
}

// readBelow reads a file as a process with that root directory sees it: links
// lead nowhere above the root.
func readBelow(root, path string) ([]byte, error) {
	dir, err := os.Open(root)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	fd, err := unix.Openat2(int(dir.Fd()), path, &unix.OpenHow{
		Flags: unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), path)
	defer file.Close()
	if info, err := file.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, fmt.Errorf("not a plain file: %w", unix.EINVAL)
	}
	return io.ReadAll(io.LimitReader(file, maxResolvConf))
}

// fileidKernfs is how file handles of kernfs, such as cgroup ids, are marked.
const fileidKernfs = 0xfe

// belongsToTask says whether a cgroup is that of a task, lies below one, or
// cannot be told.
func (e *Engine) belongsToTask(cgroupID uint64) bool {
	path, err := cgroupPath(e.mount, cgroupID)
	if err != nil {
		return true
	}
	if e.guard != nil && within(path, e.guard.Path()) || within(path, runRoot(e.cfg.Cgroup)) {
		return true
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for own := range e.places {
		if within(path, own) {
			return true
		}
	}
	return false
}

// cgroupPath finds the directory of a cgroup by its id.
func cgroupPath(mount string, id uint64) (string, error) {
	root, err := os.Open(mount)
	if err != nil {
		return "", err
	}
	defer root.Close()
	handle := unix.NewFileHandle(fileidKernfs, binary.NativeEndian.AppendUint64(nil, id))
	fd, err := unix.OpenByHandleAt(int(root.Fd()), handle, unix.O_PATH|unix.O_CLOEXEC)
	if err != nil {
		return "", fmt.Errorf("find cgroup %d: %w", id, err)
	}
	defer unix.Close(fd)
	return os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
}
