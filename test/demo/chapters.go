// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

const policy = `apiVersion: agentguard.dev/v1alpha1
kind: AgentPolicy
metadata: {name: coder}
spec:
  maxTTL: 1h
  egress:
    - to: ["192.0.2.10:443"]
`

func (s *story) tell() error {
	s.chapter("agentguard decides in the kernel what an AI agent may reach",
		"Two network namespaces stand for your machine and the world. In the world there are three servers:",
		"  192.0.2.10    the API that your agent needs",
		"  198.51.100.7  a package index that it needs now and then",
		"  203.0.113.66  a stranger",
		"`fetch` and `upload` play the agent: programs that know nothing of agentguard.")
	for _, chapter := range []func() error{s.run, s.withDaemon} {
		if err := chapter(); err != nil {
			return err
		}
	}
	return nil
}

func (s *story) run() error {
	s.chapter("1. What you allow works", "One command, nothing installed, no daemon:")
	if err := s.show("agentguard run --allow 192.0.2.10:443 -- fetch 192.0.2.10:443", true); err != nil {
		return err
	}
	pause()
	s.chapter("2. Everything else is denied at once, with the reason and the way to allow it")
	if err := s.show("agentguard run --allow 192.0.2.10:443 -- fetch 203.0.113.66:443", false); err != nil {
		return err
	}
	pause()
	return nil
}

func (s *story) withDaemon() error {
	s.chapter("3. Many agents: a daemon, a policy for each agent, a task for each piece of work")
	if err := os.WriteFile(filepath.Join(s.dir, "coder.yaml"), []byte(policy), 0o644); err != nil {
		return err
	}
	daemon := s.command("agentguard daemon")
	daemon.Stdout, daemon.Stderr = nil, nil
	daemon.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	fmt.Printf("\n  $ agentguard daemon &\n")
	if err := daemon.Start(); err != nil {
		return err
	}
	defer func() {
		daemon.Process.Signal(syscall.SIGTERM)
		daemon.Wait()
	}()
	if out, err := s.quiet("agentguard status --wait 10s"); err != nil {
		return fmt.Errorf("the daemon does not become ready: %w\n%s", err, out)
	}
	for _, line := range []string{
		"cat coder.yaml",
		"agentguard policy apply coder.yaml",
		`agentguard task begin --agent coder --id build-7 --purpose "fix #12" --ttl 10m`,
		"agentguard task exec build-7 -- fetch 192.0.2.10:443",
	} {
		if err := s.show(line, true); err != nil {
			return err
		}
	}
	pause()
	for _, chapter := range []func() error{s.grant, s.cut, s.log} {
		if err := chapter(); err != nil {
			return err
		}
	}
	return nil
}

func (s *story) grant() error {
	const fetchPackages = "agentguard task exec build-7 -- fetch 198.51.100.7:443"
	s.chapter("4. A grant that expires by itself", "The policy does not know the package index. You grant it for three seconds:")
	err := errors.Join(
		s.show(fetchPackages, false),
		s.show("agentguard task grant build-7 198.51.100.7:443 --ttl 3s", true),
		s.show(fetchPackages, true))
	if err != nil {
		return err
	}
	fmt.Printf("\n  (three seconds later; the kernel's clock decides, no program has to run)\n")
	time.Sleep(3200 * time.Millisecond)
	return s.show(fetchPackages, false)
}

func (s *story) cut() error {
	s.chapter("5. A task ended in the middle of a transfer", "The agent is sending when you end its task:")
	transfer, err := s.background("agentguard task exec build-7 -- upload 192.0.2.10:443")
	if err != nil {
		return err
	}
	time.Sleep(1800 * time.Millisecond)
	if err := s.show(`agentguard task end build-7 --reason "seen enough"`, true); err != nil {
		return err
	}
	if err := transfer.Wait(); err == nil {
		return errors.New("the transfer should not have ended well")
	}
	return s.show("agentguard task exec build-7 -- fetch 192.0.2.10:443", false)
}

func (s *story) log() error {
	s.chapter("6. All of that is in the audit log", "(-o json for machines)")
	if err := s.show("agentguard audit query", true); err != nil {
		return err
	}
	s.chapter("That is all. `agentguard unload` takes everything out of the kernel again; the demo does it now.")
	return nil
}
