// SPDX-License-Identifier: Apache-2.0

// Package launch runs a command inside a cgroup from its first instruction on,
// with nothing in hand that could undo the guard.
//
// The parent starts its own executable once more as a hidden stage, which is
// born in the cgroup (CLONE_INTO_CGROUP), gives up descriptors, capabilities and
// identity, and then becomes the command. No process of the command ever exists
// outside the cgroup, and the stage has no power that its caller lacks: whoever
// starts it by hand can only lose privileges.
package launch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"syscall"

	"agentguard.dev/agentguard/internal/cgroup"
	"golang.org/x/sys/unix"
)

// Exit codes that are not the command's own, as env(1) and docker have them. A
// command killed by signal n exits with 128+n.
const (
	ExitFailure       = 125 // the command was not started, for a reason of ours
	ExitNotExecutable = 126
	ExitNotFound      = 127
)

// Command is a program to run.
type Command struct {
	Argv   []string    // Argv[0] is looked up in PATH of Env, as the user it runs as
	Cgroup *cgroup.Dir // where it is born; stays the caller's
	// User is a name, a uid, uid:gid or name:group. Empty means the user who
	// called sudo, else the current one.
	User string
	// Descriptors that the command gets as they are; nil means /dev/null.
	Stdin, Stdout, Stderr *os.File
	Env                   []string // the current environment when nil; HOME, USER and LOGNAME follow the user
	Dir                   string   // the current directory when empty
}

// Run runs the command and waits for its main process; processes that it left
// behind go on. Signals to this process are passed on (see forward).
//
// The exit code is the command's. With an error it is ExitFailure,
// ExitNotExecutable or ExitNotFound, and the command did not run; or ctx ended,
// upon which the main process was killed with SIGKILL. A ctx that ends by one of
// the forwarded signals would keep the command from acting on it.
func Run(ctx context.Context, cmd Command) (exitCode int, err error) {
	if len(cmd.Argv) == 0 || cmd.Argv[0] == "" {
		return ExitFailure, errors.New("run: no command given")
	}
	if cmd.Cgroup == nil {
		return ExitFailure, fmt.Errorf("run %s: no cgroup given", cmd.Argv[0])
	}
	if ctx.Err() != nil {
		return ExitFailure, fmt.Errorf("run %s: %w", cmd.Argv[0], context.Cause(ctx))
	}
	account, err := resolve(cmd.User)
	if err != nil {
		return ExitFailure, fmt.Errorf("run %s: %w", cmd.Argv[0], err)
	}
	stage, err := start(cmd)
	if err != nil {
		return ExitFailure, fmt.Errorf("run %s: %w", cmd.Argv[0], err)
	}
	return stage.wait(ctx, newOrder(cmd, account))
}

// running is a stage, and later the command that it became.
type running struct {
	name    string
	process *os.Process
	order   *os.File // the stage reads what to become
	report  *os.File // closed by exec; before that the stage says here why it failed
	signals *forwarder
}

func start(cmd Command) (*running, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	orderOut, orderIn, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer orderOut.Close()
	reportOut, reportIn, err := os.Pipe()
	if err != nil {
		orderIn.Close()
		return nil, err
	}
	defer reportIn.Close()

	files := []*os.File{cmd.Stdin, cmd.Stdout, cmd.Stderr, orderOut, reportIn}
	for i := range files {
		if files[i] == nil {
			files[i] = null
		}
	}
	signals := newForwarder()
	process, err := os.StartProcess("/proc/self/exe", []string{stageName}, &os.ProcAttr{
		Files: files,
		Env:   []string{}, // nothing of the command's may reach the stage's runtime
		Sys:   &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: cmd.Cgroup.FD()},
	})
	runtime.KeepAlive(cmd.Cgroup)
	if err != nil {
		signals.stop()
		orderIn.Close()
		reportOut.Close()
		return nil, startFailure(cmd.Cgroup, err)
	}
	return &running{cmd.Argv[0], process, orderIn, reportOut, signals}, nil
}

func startFailure(dir *cgroup.Dir, err error) error {
	var why string
	switch {
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENOENT):
		why = ": it has been removed"
	case errors.Is(err, unix.EBUSY):
		why = ": it has controllers enabled for cgroups below it, so it takes no processes itself: name a cgroup below it"
	case errors.Is(err, unix.EOPNOTSUPP):
		why = ": it is threaded and takes no whole processes: name another"
	}
	return fmt.Errorf("start a process in cgroup %s%s: %w", dir.Path(), why, err)
}

func (r *running) wait(ctx context.Context, o order) (int, error) {
	defer r.report.Close()
	defer r.signals.stop()
	alive := context.AfterFunc(ctx, func() { r.process.Kill() })
	r.signals.start(r.process)
	handed := json.NewEncoder(r.order).Encode(o)
	r.order.Close()
	state, err := r.process.Wait()
	killed := !alive()
	if err != nil {
		return ExitFailure, fmt.Errorf("wait for %s: %w", r.name, err)
	}
	if failure, ok := readFailure(r.report); ok {
		return failure.Code, fmt.Errorf("run %s: %s", r.name, failure.Message)
	}
	code := exitCode(state.Sys().(syscall.WaitStatus))
	switch {
	case killed && code == 128+int(syscall.SIGKILL):
		return code, fmt.Errorf("run %s: killed: %w", r.name, context.Cause(ctx))
	case handed != nil: // killed before it could read its order
		return code, fmt.Errorf("run %s: hand over the command: %w", r.name, handed)
	}
	return code, nil
}

func exitCode(status syscall.WaitStatus) int {
	if status.Signaled() {
		return 128 + int(status.Signal())
	}
	return status.ExitStatus()
}

// readFailure reads what a stage that could not become the command left. The
// process is gone, so it never waits.
func readFailure(report io.Reader) (stageFailure, bool) {
	content, err := io.ReadAll(report)
	if err != nil {
		return stageFailure{ExitFailure, fmt.Sprintf("read the stage's report: %v", err)}, true
	}
	if len(content) == 0 {
		return stageFailure{}, false
	}
	var failure stageFailure
	if err := json.Unmarshal(content, &failure); err != nil {
		return stageFailure{ExitFailure, fmt.Sprintf("the stage's report %q: %v", content, err)}, true
	}
	return failure, true
}
