// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"agentguard.dev/agentguard/client"
	"golang.org/x/sys/unix"
)

// poll is how often Follow looks by itself, for file systems that do not tell.
const poll = time.Second

// Follow calls fn with the records that the query selects, first those that are
// there as Read does, then each as it is written, until ctx ends, which is no
// error, or fn fails. dir must exist.
func Follow(ctx context.Context, dir string, q Query, fn func(client.Record) error) error {
	changes, err := watch(dir)
	if err != nil {
		return err
	}
	defer changes.Close()
	stop := context.AfterFunc(ctx, func() { changes.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()

	m, err := openMerge(dir)
	if err != nil {
		return err
	}
	defer m.close()
	err = limited(q, fn, m.drain)
	for err == nil && ctx.Err() == nil {
		if err = awaitChange(ctx, changes); err == nil {
			err = m.follow(q, fn)
		}
	}
	return err
}

// follow delivers what was written since the last time.
func (m *merge) follow(q Query, fn func(client.Record) error) error {
	if err := m.refresh(); err != nil {
		return err
	}
	deleted := m.deleted() // before reading: what is written later is not missed
	if err := m.drain(filter(q, fn)); err != nil {
		return err
	}
	for _, s := range m.sources {
		s.report(q)
	}
	for _, id := range deleted {
		s := m.sources[id]
		s.finish(q)
		s.close()
		delete(m.sources, id)
	}
	return nil
}

func watch(dir string) (*os.File, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", dir, err)
	}
	f := os.NewFile(uintptr(fd), "inotify")
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_MODIFY|unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_DELETE); err != nil {
		f.Close()
		return nil, fmt.Errorf("watch %s: %w", dir, err)
	}
	return f, nil
}

// awaitChange returns after a change, after the time of poll, or when ctx ends.
func awaitChange(ctx context.Context, changes *os.File) error {
	changes.SetReadDeadline(time.Now().Add(poll))
	if ctx.Err() != nil { // it may have ended before the deadline was set anew
		return nil
	}
	// What changed does not matter: everything is looked at.
	_, err := changes.Read(make([]byte, 64<<10))
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("watch audit logs: %w", err)
	}
	return nil
}
