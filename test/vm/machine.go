// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/hugelgupf/vmtest/qemu"
	"github.com/hugelgupf/vmtest/qemu/qevent"

	"agentguard.dev/agentguard/test/vm/guest"
)

// Machine is a running guest.
type Machine struct {
	Events chan guest.Event // closed when the guest has said everything or is gone

	vm      *qemu.VM
	console *console
	once    sync.Once
	ended   chan struct{}
	err     error
}

// machineOptions say what boots.
type machineOptions struct {
	boot, initramfs string
	limit           time.Duration
	live            io.Writer // gets the console as it is written; may be nil
}

// start boots a guest. The caller drains Events, then calls Wait.
func start(opts machineOptions) (*Machine, error) {
	m := &Machine{
		Events:  make(chan guest.Event, 64),
		console: &console{live: opts.live},
		ended:   make(chan struct{}),
	}
	vm, err := qemu.Start(qemu.ArchAMD64,
		withQEMU,
		qemu.WithKernel(opts.boot),
		qemu.WithInitramfs(opts.initramfs),
		qemu.WithAppendKernel(
			"console=ttyS0", "loglevel=5", "mitigations=off",
			"lsm=lockdown,yama,bpf",
			// Emulated processors share the host's with everything else: a lock-up is long here.
			"watchdog_thresh=60", "rcupdate.rcu_cpu_stall_timeout=120",
		),
		qemu.HaltOnKernelPanic(),
		qemu.WithAppendKernel("oops=panic"),
		qemu.WithVMTimeout(opts.limit),
		qemu.LogSerialByLine(m.console.line),
		qevent.EventChannel(guest.Channel, m.Events),
	)
	if err != nil {
		return nil, fmt.Errorf("start guest: %w", err)
	}
	m.vm = vm
	go func() {
		defer close(m.ended)
		m.err = vm.Wait()
	}()
	return m, nil
}

// withQEMU emulates the processors: KVM is missing, or broken, in too many of the places where tests run. The
// environment variable VMTEST_QEMU replaces the command. One thread for both processors: with two, a processor of
// QEMU 7.2 can run into the breakpoint of code that the other is just patching, and every attached program patches
// the kernel's code.
func withQEMU(_ *qemu.IDAllocator, o *qemu.Options) error {
	if o.QEMUCommand == "" {
		o.QEMUCommand = "qemu-system-x86_64 -accel tcg,thread=single -cpu max -smp 2 -m 2G"
	}
	o.AppendQEMU("-nic", "none")
	return nil
}

// Wait waits for the power-off and returns what was wrong with the machine itself: it died, took too long,
// or its kernel complained.
func (m *Machine) Wait() error {
	<-m.ended
	complaints := m.console.complaints()
	switch {
	case complaints != "":
		return errors.Join(m.err, fmt.Errorf("guest kernel complained:\n%s", complaints))
	case m.err != nil:
		return fmt.Errorf("guest ended early: %w\nend of its console:\n%s", m.err, m.console.tail(60))
	}
	return nil
}

// Kill ends the guest at once; Wait still has to be called.
func (m *Machine) Kill() { m.once.Do(func() { _ = m.vm.Kill() }) }

// console keeps what the guest's kernel and init print.
type console struct {
	live io.Writer

	mu    sync.Mutex
	lines []string
}

func (c *console) line(s string) {
	s = strings.TrimRight(s, "~\r") // vmtest shows control characters as ~
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lines = append(c.lines, s)
	if c.live != nil {
		fmt.Fprintln(c.live, s)
	}
}

func (c *console) tail(n int) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.Join(c.lines[max(0, len(c.lines)-n):], "\n")
}

// complaints returns every kernel warning, bug and stall with the lines that follow it.
func (c *console) complaints() string {
	const follow = 30
	complaint := regexp.MustCompile(`WARNING: |BUG: |Oops: |Kernel panic|general protection fault|INFO: (rcu|task)|` +
		`unregister_netdevice: waiting|UBSAN: |refcount_t: |^init: `)
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []string
	until := -1
	for i, s := range c.lines {
		if strings.HasPrefix(s, "init: power off") {
			continue
		}
		if complaint.MatchString(s) {
			until = i + follow
		}
		if i <= until {
			out = append(out, s)
		}
	}
	return strings.Join(out, "\n")
}
