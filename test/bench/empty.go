// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

	"agentguard.dev/agentguard/internal/cgroup"
)

// emptyHooks are a guard's hooks, by the names of its programs.
var emptyHooks = []struct {
	name   string
	kind   ebpf.ProgramType
	attach ebpf.AttachType
}{
	{"ag_sock_create", ebpf.CGroupSock, ebpf.AttachCGroupInetSockCreate},
	{"ag_sock_ops", ebpf.SockOps, ebpf.AttachCGroupSockOps},
	{"ag_setsockopt", ebpf.CGroupSockopt, ebpf.AttachCGroupSetsockopt},
	{"ag_egress", ebpf.CGroupSKB, ebpf.AttachCGroupInetEgress},
	{"ag_recvmsg4", ebpf.CGroupSockAddr, ebpf.AttachCGroupUDP4Recvmsg},
	{"ag_recvmsg6", ebpf.CGroupSockAddr, ebpf.AttachCGroupUDP6Recvmsg},
	{"ag_sendmsg4", ebpf.CGroupSockAddr, ebpf.AttachCGroupUDP4Sendmsg},
	{"ag_sendmsg6", ebpf.CGroupSockAddr, ebpf.AttachCGroupUDP6Sendmsg},
	{"ag_connect4", ebpf.CGroupSockAddr, ebpf.AttachCGroupInet4Connect},
	{"ag_connect6", ebpf.CGroupSockAddr, ebpf.AttachCGroupInet6Connect},
}

// attachEmpty puts programs that return 1 on every hook of a guard: what a
// guard costs that decides nothing.
func (l *lab) attachEmpty(dir *cgroup.Dir) (map[string]*ebpf.Program, error) {
	programs := make(map[string]*ebpf.Program)
	for _, h := range emptyHooks {
		program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
			Name: "empty", Type: h.kind, AttachType: h.attach, License: "Dual BSD/GPL",
			Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()},
		})
		if err != nil {
			return nil, fmt.Errorf("load empty %s: %w", h.name, err)
		}
		l.closers = append(l.closers, func() { program.Close() })
		programs[h.name] = program
		attached, err := link.AttachRawLink(link.RawLinkOptions{Target: dir.FD(), Program: program, Attach: h.attach})
		if err != nil {
			return nil, fmt.Errorf("attach empty %s to %s: %w", h.name, dir.Path(), err)
		}
		l.closers = append(l.closers, func() { attached.Close() })
	}
	return programs, nil
}
