// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// story runs commands for a spectator.
type story struct {
	dir string // holds the instance's state and the agents' tools
	env []string
	out indented
}

// home tells the story in the namespace of the agents.
func home(agentguard string) (err error) {
	stopWorld, err := raiseWorld()
	if err != nil {
		return err
	}
	defer stopWorld()
	dir, err := os.MkdirTemp("", "agentguard-demo-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	s, err := newStory(dir, agentguard)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.unload()) }()
	return s.tell()
}

func newStory(dir, agentguard string) (*story, error) {
	bin := filepath.Join(dir, "bin")
	// The user who called sudo must be able to run the tools.
	if err := errors.Join(os.Chmod(dir, 0o755), os.Mkdir(bin, 0o755)); err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	for name, program := range map[string]string{"agentguard": agentguard, "fetch": self, "upload": self} {
		code, err := os.ReadFile(program)
		if err != nil {
			return nil, err
		}
		if err := os.WriteFile(filepath.Join(bin, name), code, 0o755); err != nil {
			return nil, err
		}
	}
	unique := fmt.Sprintf("agentguard-demo-%d", os.Getpid())
	path := bin + ":" + os.Getenv("PATH")
	os.Setenv("PATH", path) // for exec.Command's own look-up
	return &story{dir: dir, env: append(os.Environ(),
		"AGENTGUARD_STATE_DIR="+filepath.Join(dir, "state"),
		"AGENTGUARD_RUN_DIR="+filepath.Join(dir, "run"),
		"AGENTGUARD_PIN_DIR=/sys/fs/bpf/"+unique,
		"AGENTGUARD_CGROUP="+unique,
	)}, nil
}

func (s *story) chapter(title string, text ...string) {
	fmt.Printf("\n== %s\n", title)
	for _, line := range text {
		fmt.Println(line)
	}
}

// command prepares a command line, as it is shown.
func (s *story) command(line string) *exec.Cmd {
	command := exec.Command("bash", "-c", "exec "+line)
	command.Env, command.Dir = s.env, s.dir
	command.Stdout, command.Stderr = &s.out, &s.out
	return command
}

// show runs a command line and checks that it ends as the story says.
func (s *story) show(line string, wantSuccess bool) error {
	fmt.Printf("\n  $ %s\n", line)
	err := s.command(line).Run()
	var exited *exec.ExitError
	switch {
	case err == nil && wantSuccess:
		return nil
	case errors.As(err, &exited) && !wantSuccess:
		fmt.Printf("    [exit code %d]\n", exited.ExitCode())
		return nil
	case err == nil:
		return fmt.Errorf("this should have failed: %s", line)
	}
	return fmt.Errorf("this should have worked: %s: %w", line, err)
}

// background starts a command line that goes on.
func (s *story) background(line string) (*exec.Cmd, error) {
	fmt.Printf("\n  $ %s &\n", line)
	command := s.command(line)
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	return command, command.Start()
}

func (s *story) unload() error {
	if out, err := s.quiet("agentguard unload"); err != nil {
		return fmt.Errorf("unload: %w\n%s", err, out)
	}
	return nil
}

// quiet runs a command line off stage and returns what it printed.
func (s *story) quiet(line string) ([]byte, error) {
	command := s.command(line)
	command.Stdout, command.Stderr = nil, nil
	return command.CombinedOutput()
}

// indented writes what a command prints, four columns to the right.
type indented struct {
	mu     sync.Mutex
	within bool // a line
}

func (w *indented) Write(data []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out bytes.Buffer
	for line := range strings.Lines(string(data)) {
		if !w.within {
			out.WriteString("    ")
		}
		out.WriteString(line)
		w.within = !strings.HasSuffix(line, "\n")
	}
	if _, err := os.Stdout.Write(out.Bytes()); err != nil {
		return 0, err
	}
	return len(data), nil
}

// pause lets a spectator read.
func pause() { time.Sleep(time.Second) }
