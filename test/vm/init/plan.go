// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"

	vmtest "github.com/hugelgupf/vmtest/guest"

	"agentguard.dev/agentguard/test/vm/guest"
)

func readPlan() (guest.Plan, error) {
	var plan guest.Plan
	text, err := os.ReadFile(guest.PlanFile)
	if err != nil {
		return plan, fmt.Errorf("read plan: %w", err)
	}
	if err := json.Unmarshal(text, &plan); err != nil {
		return plan, fmt.Errorf("read plan: %w", err)
	}
	return plan, nil
}

func runPlan() error {
	plan, err := readPlan()
	if err != nil {
		return err
	}
	host, err := openChannel()
	if err != nil {
		return err
	}
	for _, run := range plan.Runs {
		before, err := inventory()
		if err != nil {
			return err
		}
		done := guest.Event{Package: run.Package, Done: true}
		if err := runOne(run, host); err != nil {
			done.Error = err.Error()
		}
		if done.Left, err = leftovers(before); err != nil {
			return err
		}
		if err := host.Emit(done); err != nil {
			return fmt.Errorf("report end of %s: %w", run.Package, err)
		}
	}
	return host.Close()
}

type channel = vmtest.Emitter[guest.Event]

// openChannel waits for the port: the device appears some time after its module is loaded.
func openChannel() (*channel, error) {
	deadline := time.Now().Add(30 * time.Second)
	for {
		host, err := vmtest.SerialEventChannel[guest.Event](guest.Channel)
		if err == nil {
			return host, nil
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("open channel to the host: %w", err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func runOne(run guest.Run, host *channel) error {
	ctx, cancel := context.WithTimeout(context.Background(), run.Limit)
	defer cancel()
	output, input, err := os.Pipe()
	if err != nil {
		return err
	}
	defer output.Close()
	cmd := exec.CommandContext(ctx, run.Argv[0], run.Argv[1:]...)
	cmd.Dir = run.Dir
	cmd.Stdout, cmd.Stderr = input, input
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	err = cmd.Start()
	input.Close()
	if err != nil {
		return err
	}
	relayed := make(chan error, 1)
	go func() { relayed <- relay(run.Package, output, host) }()
	err = cmd.Wait()
	// A process that the tests left behind may hold the pipe: do not wait for it for ever.
	output.SetReadDeadline(time.Now().Add(5 * time.Second))
	if ctx.Err() != nil {
		err = fmt.Errorf("killed after %s", run.Limit)
	}
	return errors.Join(err, <-relayed)
}

// relay sends output in pieces that fit the line buffer of the host's reader.
func relay(name string, output io.Reader, host *channel) error {
	buf := make([]byte, 16<<10)
	for {
		n, err := output.Read(buf)
		if n > 0 {
			if err := host.Emit(guest.Event{Package: name, Output: buf[:n]}); err != nil {
				return fmt.Errorf("send output: %w", err)
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case errors.Is(err, os.ErrDeadlineExceeded):
			return errors.New("a process that the tests started still holds their output")
		case err != nil:
			return fmt.Errorf("read output: %w", err)
		}
	}
}
