// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"os"
	"os/signal"
	"sync"

	"golang.org/x/sys/unix"
)

// forwarded are the signals passed on to the command. Those that were ignored
// when this process started (nohup, a shell's background job) stay ignored, here
// and in the command.
var forwarded = []os.Signal{
	unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2,
	unix.SIGWINCH, unix.SIGCONT, unix.SIGTSTP,
}

// forwarder passes signals on. It catches from its making on, so that none is
// lost between the start of the command and the first wait.
type forwarder struct {
	caught chan os.Signal
	done   chan struct{}
	wait   sync.WaitGroup
}

func newForwarder() *forwarder {
	f := &forwarder{caught: make(chan os.Signal, 16), done: make(chan struct{})}
	for _, s := range forwarded {
		if !signal.Ignored(s) {
			signal.Notify(f.caught, s)
		}
	}
	return f
}

func (f *forwarder) start(to *os.Process) {
	f.wait.Go(func() {
		for {
			select {
			case s := <-f.caught:
				forward(to, s.(unix.Signal))
			case <-f.done:
				return
			}
		}
	})
}

func (f *forwarder) stop() {
	signal.Stop(f.caught)
	close(f.done)
	f.wait.Wait()
}

// forward passes one signal on, unless the terminal has sent it to the command
// already. A stop request stops this process as well, so that the shell gets its
// prompt back; SIGCONT wakes both.
func forward(to *os.Process, s unix.Signal) {
	if !fromTerminal(s, to.Pid) {
		to.Signal(s) // the command may have ended
	}
	if s == unix.SIGTSTP {
		unix.Kill(unix.Getpid(), unix.SIGSTOP)
	}
}

// fromTerminal guesses whether the terminal driver has sent a signal: Go does
// not tell the sender. It signals the whole foreground group, so when this
// process and the command are both in it, a signal that keys or the window can
// cause has reached the command. Signals sent by hand to this process alone
// while it runs in the foreground are lost by this; SIGTERM and SIGHUP never are.
func fromTerminal(s unix.Signal, command int) bool {
	switch s {
	case unix.SIGINT, unix.SIGQUIT, unix.SIGTSTP, unix.SIGWINCH:
	default:
		return false
	}
	tty, err := unix.Open("/dev/tty", unix.O_RDONLY|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return false // no controlling terminal
	}
	defer unix.Close(tty)
	own := unix.Getpgrp()
	foreground, err := unix.IoctlGetInt(tty, unix.TIOCGPGRP)
	if err != nil || foreground != own {
		return false
	}
	group, err := unix.Getpgid(command)
	return err == nil && group == own
}
