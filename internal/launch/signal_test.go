// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"agentguard.dev/agentguard/internal/cgroup"
	"golang.org/x/sys/unix"
)

// launched is a launcher whose command is a shell script that has said "ready".
type launched struct {
	*exec.Cmd
	lines *bufio.Reader
}

// launch starts the script; attach connects the launcher, or does nothing.
func launch(t *testing.T, d *cgroup.Dir, script string, attach func(*exec.Cmd)) *launched {
	t.Helper()
	cmd := newLauncher(d, "sh", "-c", script)
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout = in
	if attach != nil {
		attach(cmd)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	in.Close()
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		out.Close()
	})
	l := &launched{Cmd: cmd, lines: bufio.NewReader(out)}
	if err := out.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	l.expect(t, "ready")
	return l
}

func (l *launched) expect(t *testing.T, want string) {
	t.Helper()
	got, err := l.lines.ReadString('\n')
	if err != nil && err != io.EOF {
		t.Fatalf("waiting for %q: %v", want, err)
	}
	if got = strings.TrimSpace(got); got != want {
		t.Fatalf("the command says %q, want %q", got, want)
	}
}

func (l *launched) signal(t *testing.T, s syscall.Signal) {
	t.Helper()
	if err := l.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

// rest waits on, whatever wakes the shell; its sleeper ignores the terminal.
const rest = `echo ready; while :; do sleep 1000 & wait; done`

func TestSignalsArePassedOn(t *testing.T) {
	d := scratch(t)
	for _, s := range []syscall.Signal{
		unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2, unix.SIGWINCH, unix.SIGCONT,
	} {
		t.Run(unix.SignalName(s), func(t *testing.T) {
			l := launch(t, d, fmt.Sprintf(`trap 'echo caught; exit 7' %d; `, s)+rest, nil)
			l.signal(t, s)
			l.expect(t, "caught")
			l.Wait()
			if code := l.ProcessState.ExitCode(); code != 7 {
				t.Errorf("exit code %d, want 7", code)
			}
		})
	}
}

func TestSignalKills(t *testing.T) {
	d := scratch(t)
	l := launch(t, d, rest, nil)
	l.signal(t, unix.SIGTERM)
	l.Wait()
	if code := l.ProcessState.ExitCode(); code != 143 {
		t.Errorf("exit code %d, want 143", code)
	}
}

func TestStopAndContinue(t *testing.T) {
	d := scratch(t)
	l := launch(t, d, `trap 'echo stopping' TSTP; trap 'echo going' CONT; `+rest, nil)
	l.signal(t, unix.SIGTSTP)
	l.expect(t, "stopping")
	until(t, "the launcher has stopped as well", func() bool { return state(t, l.Process.Pid) == "T" })
	l.signal(t, unix.SIGCONT)
	l.expect(t, "going")
}

// state returns the letter of a process's state.
func state(t *testing.T, pid int) string {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(stat), ") ")
	return after[:1]
}

// The terminal signals the whole foreground group, so the command must get an
// interrupt from the keyboard once, not twice.
func TestTerminalSignalsOnce(t *testing.T) {
	d := scratch(t)
	keyboard, tty := pty(t)
	l := launch(t, d, `n=0; trap 'n=$((n+1)); echo int' INT; trap 'echo cont' CONT; trap 'echo $n' USR1; `+rest, func(cmd *exec.Cmd) {
		cmd.Stdin = tty
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	})
	// Stopped, the launcher acts on ^C only after the command has dealt with its
	// own: two at once would merge into one.
	l.signal(t, unix.SIGSTOP)
	until(t, "the launcher has stopped", func() bool { return state(t, l.Process.Pid) == "T" })
	if _, err := keyboard.Write([]byte{3}); err != nil { // ^C
		t.Fatal(err)
	}
	l.expect(t, "int")
	l.signal(t, unix.SIGCONT)
	l.expect(t, "cont")
	l.signal(t, unix.SIGUSR1)
	l.expect(t, "1")
	// SIGTERM no terminal sends, so it is passed on here too.
	l.signal(t, unix.SIGTERM)
	l.Wait()
	if code := l.ProcessState.ExitCode(); code != 143 {
		t.Errorf("exit code %d, want 143", code)
	}
}

func pty(t *testing.T) (keyboard, tty *os.File) {
	t.Helper()
	keyboard, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no pseudo terminals: %v", err)
	}
	t.Cleanup(func() { keyboard.Close() })
	if err := unix.IoctlSetPointerInt(int(keyboard.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(keyboard.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tty.Close() })
	return keyboard, tty
}
