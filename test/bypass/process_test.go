// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"agentguard.dev/agentguard/internal/cgroup"
	"agentguard.dev/agentguard/internal/netns"
)

// process is a running attempt.
type process struct {
	cmd   *exec.Cmd
	stdin io.WriteCloser
	lines chan string
	ended chan struct{} // closed when every holder of its output has gone
	watch *time.Timer
	heard outcome
	said  bool
}

// start runs the named attempt in ns, born in the cgroup at dir.
func start(ns *netns.Handle, dir *cgroup.Dir, c class, name, token string) (*process, error) {
	// The magic link needs no way to the file, which nobody may not have.
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{
		attemptName + "=" + name, attemptToken + "=" + token,
		// A signal of the runtime's would interrupt a connect.
		"GODEBUG=asyncpreemptoff=1", "GOMAXPROCS=2", "PATH=" + os.Getenv("PATH"),
	}
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: dir.FD()}
	if c != root {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: nobody, Gid: nobody}
	}
	switch c {
	case netRaw:
		cmd.SysProcAttr.AmbientCaps = []uintptr{unix.CAP_NET_RAW}
	case netAdmin:
		cmd.SysProcAttr.AmbientCaps = []uintptr{unix.CAP_NET_ADMIN}
	}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	// Not StdoutPipe, which Wait would close: what the process leaves behind
	// goes on writing to it.
	stdout, writer, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd.Stdout = writer
	err = ns.Do(func() error { return pinned(cmd.Start) })
	writer.Close()
	if err != nil {
		stdout.Close()
		return nil, fmt.Errorf("start attempt %s: %w", name, err)
	}
	p := &process{cmd: cmd, stdin: stdin, lines: make(chan string, 4096), ended: make(chan struct{})}
	p.watch = time.AfterFunc(20*time.Second, p.kill)
	go p.read(stdout)
	return p, nil
}

func (p *process) read(stdout *os.File) {
	defer close(p.ended)
	defer close(p.lines)
	defer stdout.Close()
	for scanner := bufio.NewScanner(stdout); scanner.Scan(); {
		text, isOutcome := strings.CutPrefix(scanner.Text(), outcomePrefix)
		if !isOutcome {
			p.lines <- scanner.Text()
			continue
		}
		p.said = json.Unmarshal([]byte(text), &p.heard) == nil
	}
}

func (p *process) kill() { p.cmd.Process.Kill() }

// expect waits for a line that begins with prefix and returns the rest of it.
func (p *process) expect(prefix string) (string, error) {
	limit := time.After(10 * time.Second)
	for {
		select {
		case line, ok := <-p.lines:
			if !ok {
				return "", fmt.Errorf("the attempt ended (%+v) before it said %q", p.heard, prefix)
			}
			if rest, ok := strings.CutPrefix(line, prefix); ok {
				return strings.TrimSpace(rest), nil
			}
		case <-limit:
			return "", fmt.Errorf("the attempt did not say %q within 10s", prefix)
		}
	}
}

// forget drops the lines that have been said and not heard.
func (p *process) forget() {
	for {
		select {
		case _, ok := <-p.lines:
			if !ok {
				return
			}
		default:
			return
		}
	}
}

func (p *process) tell(line string) error {
	_, err := io.WriteString(p.stdin, line+"\n")
	return err
}

// wait collects the process and returns what it said at its end.
func (p *process) wait() (outcome, error) {
	p.stdin.Close()
	for range p.lines {
		// Lines that nobody asked for.
	}
	<-p.ended
	err := p.cmd.Wait()
	p.watch.Stop()
	if !p.said {
		return outcome{}, fmt.Errorf("the attempt said nothing of its outcome: %v", err)
	}
	return p.heard, nil
}
