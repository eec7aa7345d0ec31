// SPDX-License-Identifier: Apache-2.0

package soak

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"agentguard.dev/agentguard/internal/cgroup"
)

// patience bounds every wait for something that is about to happen.
const patience = 20 * time.Second

// process is a probe inside a task.
type process struct {
	command *exec.Cmd
	orders  *os.File
	answers *os.File
	lines   *bufio.Reader
}

// start starts a probe that is born in the cgroup, in a network namespace of
// its own if so wished.
func start(program, path string, number uint32, apart bool) (*process, error) {
	dir, err := cgroup.Open(path)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	theirOrders, orders, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer theirOrders.Close()
	answers, theirAnswers, err := os.Pipe()
	if err != nil {
		orders.Close()
		return nil, err
	}
	defer theirAnswers.Close()
	p := &process{orders: orders, answers: answers, lines: bufio.NewReader(answers)}
	p.command = exec.Command(program, strconv.FormatUint(uint64(number), 10))
	p.command.Stdin, p.command.Stdout, p.command.Stderr = theirOrders, theirAnswers, os.Stderr
	p.command.Env = []string{"GOMAXPROCS=1"}
	p.command.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: dir.FD()}
	if apart {
		p.command.SysProcAttr.Cloneflags = syscall.CLONE_NEWNET
	}
	if err := p.command.Start(); err != nil {
		orders.Close()
		answers.Close()
		return nil, err
	}
	return p, nil
}

// order has the probe do something and returns its answer.
func (p *process) order(format string, args ...any) (string, error) {
	order := fmt.Sprintf(format, args...)
	if err := p.answers.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	if _, err := fmt.Fprintln(p.orders, order); err != nil {
		return "", fmt.Errorf("order %q: %w", order, err)
	}
	line, err := p.lines.ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("answer to %q: %w", order, err)
	}
	return strings.TrimSuffix(line, "\n"), nil
}

// finish lets the probe end by itself.
func (p *process) finish() error {
	p.orders.Close()
	return p.command.Wait()
}

// dismiss makes sure that nothing is left of it.
func (p *process) dismiss() {
	p.orders.Close()
	if p.command.ProcessState == nil {
		p.command.Process.Kill()
		p.command.Wait()
	}
	p.answers.Close()
}
