// SPDX-License-Identifier: Apache-2.0

// Package smoke tests the ground that the other packages' tests stand on: a kernel that loads and runs
// cgroup programs, and the features that package feature promises.
package smoke

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"agentguard.dev/agentguard/test/feature"
)

const sendTo = "AGENTGUARD_SMOKE_SEND_TO" // makes this binary send one datagram instead of testing

func TestMain(m *testing.M) {
	if addr := os.Getenv(sendTo); addr != "" {
		if err := send(addr); err != nil {
			fmt.Print(err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func send(addr string) error {
	c, err := net.Dial("udp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Write([]byte("hello"))
	return err
}

func TestKernelHasBTF(t *testing.T) {
	spec, err := btf.LoadKernelSpec()
	if err != nil {
		t.Fatal(err)
	}
	var sock *btf.Struct
	if err := spec.TypeByName("sock", &sock); err != nil {
		t.Fatal(err)
	}
}

func TestEgressProgramDecides(t *testing.T) {
	dir := childCgroup(t)
	sink, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	for _, c := range []struct {
		verdict int32
		want    string
	}{{1, ""}, {0, unix.EPERM.Error()}} {
		detach := attachEgress(t, dir, c.verdict)
		out := sendFrom(t, dir, sink.LocalAddr().String())
		if (c.want == "") != (out == "") || !strings.Contains(out, c.want) {
			t.Errorf("program returns %d: send says %q, want %q", c.verdict, out, c.want)
		}
		detach()
	}
}

// sendFrom sends from a process that is born in the cgroup and returns what it says if it cannot.
func sendFrom(t *testing.T, dir, addr string) string {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), sendTo+"="+addr)
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: fd}
	out, err := cmd.CombinedOutput()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return string(out)
}

func attachEgress(t *testing.T, dir string, verdict int32) (detach func()) {
	t.Helper()
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type:         ebpf.CGroupSKB,
		AttachType:   ebpf.AttachCGroupInetEgress,
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, verdict), asm.Return()},
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
	return func() { l.Close() }
}

func childCgroup(t *testing.T) string {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if !strings.Contains(line, " - cgroup2 ") {
			continue
		}
		dir, err := os.MkdirTemp(strings.Fields(line)[4], "agentguard-smoke-")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := os.Remove(dir); err != nil {
				t.Error(err)
			}
		})
		return filepath.Clean(dir)
	}
	t.Fatal("no cgroup2 mount")
	return ""
}

func TestFeatures(t *testing.T) {
	for f, probe := range map[feature.Feature]func() error{
		feature.SCTP:    canOpen(unix.SOCK_STREAM, unix.IPPROTO_SCTP),
		feature.DCCP:    canOpen(unix.SOCK_DCCP, unix.IPPROTO_DCCP),
		feature.UDPLite: canOpen(unix.SOCK_DGRAM, unix.IPPROTO_UDPLITE),
		feature.BPFLSM:  lsmActive,
	} {
		t.Run(f.String(), func(t *testing.T) { feature.Require(t, f, probe()) })
	}
}

func canOpen(kind, proto int) func() error {
	return func() error {
		fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, proto)
		if err != nil {
			return err
		}
		return unix.Close(fd)
	}
}

func lsmActive() error {
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type:         ebpf.LSM,
		AttachType:   ebpf.AttachLSMMac,
		AttachTo:     "socket_create",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
		License:      "GPL",
	})
	if err != nil {
		return err
	}
	defer prog.Close()
	l, err := link.AttachLSM(link.LSMOptions{Program: prog})
	if err != nil {
		return err
	}
	return l.Close()
}
