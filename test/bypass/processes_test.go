// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"agentguard.dev/agentguard/internal/cgroup"
)

// processes try to be somebody else when they connect.
func processes() []technique {
	denied := tcp(at(denied4, deniedPort))
	plain := func(name, what string, class class, try func(*attempt) error) technique {
		return technique{name: name, what: what, class: class, errno: unix.EPERM, stop: "connect", try: try}
	}
	stray := plain("cgroup-stray", "a process in a cgroup below the guard that is no task", user, denied)
	stray.place = inStray
	guard := plain("cgroup-guard", "a process in the guard's own cgroup", user, denied)
	guard.place = inGuard
	strayUDP := plain("cgroup-stray-udp", "the same with UDP", user, udpTo(at(denied4, deniedPort)))
	strayUDP.place, strayUDP.stop = inStray, "sendmsg"
	strayAllowed := plain("cgroup-stray-allowed", "the same to a destination that tasks are allowed", user, tcp(at(allowed4, allowedPort)))
	strayAllowed.place = inStray
	return []technique{
		plain("proc-thread", "another thread", user, func(a *attempt) error {
			failed := make(chan error)
			go func() {
				runtime.LockOSThread()
				failed <- denied(a)
			}()
			return <-failed
		}),
		plain("proc-child", "a child, forked and executed", user, func(a *attempt) error {
			return again(nil)
		}),
		plain("proc-daemon", "a daemon: a session of its own, its parent gone", user, func(a *attempt) error {
			return again(&syscall.SysProcAttr{Setsid: true}, "inner-daemon")
		}),
		plain("proc-userns", "a user namespace of its own, with all capabilities there", user, func(a *attempt) error {
			return again(&syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER, UidMappings: mapping(), GidMappings: mapping()})
		}).needing(userNamespaces()),
		plain("proc-cgroupns", "a cgroup namespace of its own", user, func(a *attempt) error {
			return again(&syscall.SysProcAttr{
				Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWCGROUP, UidMappings: mapping(), GidMappings: mapping(),
			})
		}).needing(userNamespaces()),
		plain("proc-subcgroup", "a cgroup below the task's own", root, func(a *attempt) error {
			if err := moveBelowOwn(); err != nil {
				return err
			}
			return denied(a)
		}),
		plain("proc-subcgroup-born", "a child born in a cgroup below the task's own (CLONE_INTO_CGROUP)", root, func(a *attempt) error {
			dir, err := belowOwn()
			if err != nil {
				return err
			}
			f, err := os.Open(dir)
			if err != nil {
				return err
			}
			defer f.Close()
			return again(&syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(f.Fd())})
		}),
		stray, strayUDP, strayAllowed, guard,
	}
}

func (t technique) needing(f ...feature) technique {
	t.needs = append(t.needs, f...)
	return t
}

// errSpoken says that another process tells the outcome.
var errSpoken = errors.New("another process tells the outcome")

// again runs the inner attempt in another process, which tells the outcome.
func again(attr *syscall.SysProcAttr, role ...string) error {
	name := "inner"
	if len(role) > 0 {
		name = role[0]
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), attemptName+"="+name)
	cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = os.Stdout, os.Stderr, attr
	if err := cmd.Start(); err != nil {
		return step("start a process", err)
	}
	if err := cmd.Wait(); err != nil {
		return step("wait for a process", err)
	}
	return errSpoken
}

// daemon leaves the inner attempt behind.
func daemon(*attempt) error {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), attemptName+"=inner")
	cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = os.Stdout, os.Stderr, &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return step("start a process", err)
	}
	return errSpoken
}

func mapping() []syscall.SysProcIDMap {
	return []syscall.SysProcIDMap{{ContainerID: 0, HostID: nobody, Size: 1}}
}

// moveBelowOwn moves the process into a new cgroup below its own.
func moveBelowOwn() error {
	dir, err := belowOwn()
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0)
}

// belowOwn makes a cgroup below that of the process.
func belowOwn() (string, error) {
	mount, err := cgroup.Mount()
	if err != nil {
		return "", err
	}
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(text)) {
		if own, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			dir := filepath.Join(mount, own, fmt.Sprintf("sub-%d", os.Getpid()))
			return dir, os.Mkdir(dir, 0o755)
		}
	}
	return "", errors.New("/proc/self/cgroup has no cgroup2 line")
}
