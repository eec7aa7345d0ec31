// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"errors"
	"fmt"
	"math/bits"

	"golang.org/x/sys/unix"
)

// A command of another user than root keeps no capability at all. Root keeps
// those listed in harmless; why not the others:
//
//	SYS_ADMIN, BPF, PERFMON         detach programs, write maps, mount, enter namespaces, read kernel memory
//	NET_ADMIN, NET_RAW              rewrite addresses behind the hooks, packet and raw sockets, spoofed sources
//	SYS_PTRACE, CHECKPOINT_RESTORE  take over a process, or a socket, of the outside
//	SYS_MODULE, SYS_RAWIO, SYS_BOOT code in the kernel, kernel memory, another kernel
//	MKNOD, DAC_READ_SEARCH          disks and memory as devices, files by handle from outside any root
//	SETPCAP, SETFCAP                capabilities for others to pick up, securebits
//	SYS_RESOURCE                    limits, also those that keep the host alive
//	SYS_TIME, WAKE_ALARM            the time in the audit log
//	AUDIT_CONTROL, AUDIT_READ, AUDIT_WRITE, SYSLOG, LINUX_IMMUTABLE  what the host records about it
//	MAC_ADMIN, MAC_OVERRIDE         the host's other guards
//	IPC_OWNER, IPC_LOCK, LEASE, SYS_NICE, SYS_PACCT, SYS_TTY_CONFIG, BLOCK_SUSPEND, NET_BROADCAST
//	                                reach other processes or devices; nothing that a command needs
//
// DAC_OVERRIDE stays: CHOWN and FOWNER give the same by one step more, every
// file that could undo the guard belongs to root anyway, and without it root
// cannot work in a user's private directory.
var harmless = capSet(
	unix.CAP_CHOWN,
	unix.CAP_DAC_OVERRIDE,
	unix.CAP_FOWNER,
	unix.CAP_FSETID,
	unix.CAP_KILL,
	unix.CAP_SETGID,
	unix.CAP_SETUID,
	unix.CAP_NET_BIND_SERVICE,
	unix.CAP_SYS_CHROOT,
)

// capabilities is a set of them, bit n for capability n.
type capabilities uint64

func capSet(caps ...int) capabilities {
	var set capabilities
	for _, c := range caps {
		set |= 1 << c
	}
	return set
}

func (s capabilities) has(c int) bool { return s>>c&1 == 1 }

// limitCapabilities bounds what this thread and what it executes can ever get.
func limitCapabilities(keep capabilities) error {
	for c := range bits.UintSize {
		held, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(c), 0, 0, 0)
		if errors.Is(err, unix.EINVAL) {
			break // the kernel has no more
		}
		if err != nil {
			return fmt.Errorf("read bounding capability %d: %w", c, err)
		}
		if held == 0 || keep.has(c) {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0); err != nil {
			return fmt.Errorf("drop bounding capability %d: %w", c, err)
		}
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("clear ambient capabilities: %w", err)
	}
	return nil
}

// setCapabilities reduces this thread's own sets to keep.
func setCapabilities(keep capabilities) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	for i := range data {
		data[i].Permitted &= uint32(keep >> (32 * i))
		data[i].Effective = data[i].Permitted
		data[i].Inheritable = 0
	}
	if err := unix.Capset(&header, &data[0]); err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	return nil
}
