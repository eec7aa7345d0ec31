// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// pause bounds how long a wait goes without looking at its context.
const pause = 20 * time.Millisecond

// Kill kills every process in the cgroup and below it, those that fork meanwhile
// included, and returns when none is left or ctx ends. It returns how many
// processes were there when it began.
func (d *Dir) Kill(ctx context.Context) (killed int, err error) {
	pids, err := d.Procs()
	if err != nil {
		return 0, err
	}
	if slices.Contains(pids, os.Getpid()) {
		return 0, failure("kill", d.path, errors.New("this very process is in it"))
	}
	err = writeAt(d.FD(), "cgroup.kill", "1")
	byCgroup := err == nil
	// Absent before Linux 5.14 and in the root, refused by threaded cgroups.
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EOPNOTSUPP) {
		return 0, failure("kill", d.path, err)
	}
	err = d.whenEmpty(ctx, func() error {
		if byCgroup {
			return nil
		}
		return d.killEach()
	})
	if gone(err) {
		return len(pids), nil // an empty cgroup, removed by someone else
	}
	if err != nil {
		return len(pids), failure("kill", d.path, err)
	}
	return len(pids), nil
}

// whenEmpty calls step and waits for a change, until no process is left.
func (d *Dir) whenEmpty(ctx context.Context, step func() error) error {
	events, err := unix.Openat(d.FD(), "cgroup.events", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(events)
	for {
		if _, err := unix.Seek(events, 0, 0); err != nil {
			return err
		}
		content, err := readAll(events)
		if err != nil {
			return err
		}
		if !populated(content) {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return d.stillThere(context.Cause(ctx))
		}
		if err := step(); err != nil {
			return err
		}
		changed := []unix.PollFd{{Fd: int32(events), Events: unix.POLLPRI}}
		if _, err := unix.Poll(changed, int(pause/time.Millisecond)); err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func (d *Dir) stillThere(cause error) error {
	pids, err := d.Procs()
	if err != nil {
		return cause
	}
	return fmt.Errorf("%w: %d processes still there: %v", cause, len(pids), pids)
}

// killEach kills the processes one by one; a fork can escape one round, not all.
func (d *Dir) killEach() error {
	pids, err := d.Procs()
	if err != nil {
		return err
	}
	for _, pid := range pids {
		if err := d.killOne(pid); err != nil {
			return fmt.Errorf("process %d: %w", pid, err)
		}
	}
	return nil
}

// killOne holds the process before it looks where it is: the id could have
// passed to a stranger.
func (d *Dir) killOne(pid int) error {
	handle, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(handle)
	path, err := OfProcess(pid)
	if gone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	// A threaded cgroup holds threads of a process whose own cgroup is above.
	if path != d.path && !strings.HasPrefix(path, d.path+"/") && !d.holdsThreadOf(pid) {
		return nil
	}
	if err := unix.PidfdSendSignal(handle, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	return nil
}

func (d *Dir) holdsThreadOf(pid int) bool {
	pids, err := d.Procs()
	return err == nil && slices.Contains(pids, pid)
}

// Remove removes the cgroup and every cgroup below it, all of which must be
// empty of processes; it waits for the last ones to be gone until ctx ends. A
// cgroup that is removed already is no error.
func (d *Dir) Remove(ctx context.Context) error {
	for wait := time.Millisecond; ; wait = min(2*wait, pause) {
		err := d.remove()
		if err == nil || gone(err) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENOTEMPTY) {
			return failure("remove", d.path, err)
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return failure("remove", d.path, d.stillThere(fmt.Errorf("%w (%w)", err, context.Cause(ctx))))
		}
	}
}

func (d *Dir) remove() error {
	if d.level == 0 {
		return errors.New("it is the root of the hierarchy")
	}
	if err := removeBelow(d.FD()); err != nil {
		return err
	}
	up, err := unix.Openat(d.FD(), "..", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(up)
	name := filepath.Base(d.path)
	same, err := d.isAt(up, name)
	if err != nil || !same {
		return err
	}
	return unix.Unlinkat(up, name, unix.AT_REMOVEDIR)
}

// isAt says whether the name in the directory up is still this cgroup.
func (d *Dir) isAt(up int, name string) (bool, error) {
	fd, err := unix.Openat(up, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, err
	}
	defer unix.Close(fd)
	id, err := idOf(fd)
	return id == d.id, err
}

// removeBelow removes what it can and returns the first reason why some stays.
func removeBelow(fd int) error {
	var stays error
	err := eachChild(fd, func(name string, child int) error {
		err := removeBelow(child)
		if err == nil {
			err = unix.Unlinkat(fd, name, unix.AT_REMOVEDIR)
		}
		if err != nil && !gone(err) && stays == nil {
			stays = err
		}
		return nil
	})
	return cmp.Or(err, stays)
}

func writeAt(fd int, name, content string) error {
	file, err := unix.Openat(fd, name, unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(file)
	_, err = unix.Write(file, []byte(content))
	return err
}
