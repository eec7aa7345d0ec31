// SPDX-License-Identifier: Apache-2.0

// Package audit keeps the records of what was decided and done: JSON Lines in
// files of bounded size, one client.Record a line.
//
// Several processes may write to one directory, each to a log of its own name or
// to a shared one. Every record is a single write in append mode, so that records
// of different writers never mix. What could not be written is counted, and the
// count is written as soon as that works again.
package audit

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"time"

	"agentguard.dev/agentguard/client"
	"golang.org/x/sys/unix"
)

// Sizes of a log unless Options says otherwise, in bytes.
const (
	DefaultMaxFile  = 16 << 20
	DefaultMaxTotal = 256 << 20
)

// Options of a log. The zero value is fine.
type Options struct {
	MaxFile  int64            // a file that would grow beyond this is put aside and a new one begun; 0 is DefaultMaxFile
	MaxTotal int64            // all files of one name together; the oldest are deleted; 0 is DefaultMaxTotal
	Now      func() time.Time // time.Now when nil
}

// Log appends records to one log. Its methods may be called concurrently.
type Log struct {
	dir, name string
	opt       Options

	mu     sync.Mutex
	f      *os.File // nil while it cannot be opened
	torn   bool     // the file may end in the middle of a line
	lost   uint64   // records not written since the last success
	why    error    // the last reason for that
	closed bool
}

// OpenLog opens the log of this name in dir, which it makes (mode 0700) when it
// is missing. It goes on after what is there, whatever state that is in.
func OpenLog(dir, name string, opt Options) (*Log, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	if opt.MaxFile <= 0 {
		opt.MaxFile = DefaultMaxFile
	}
	if opt.MaxTotal <= 0 {
		opt.MaxTotal = DefaultMaxTotal
	}
	if opt.MaxTotal < 2*opt.MaxFile {
		return nil, fmt.Errorf("audit log %s: a total of %d bytes is less than two files of %d: raise it or make the files smaller",
			name, opt.MaxTotal, opt.MaxFile)
	}
	if opt.Now == nil {
		opt.Now = time.Now
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("audit log directory: %w", err)
	}
	st, err := os.Stat(dir)
	if err != nil {
		return nil, fmt.Errorf("audit log directory: %w", err)
	}
	if st.Mode().Perm()&0o022 != 0 {
		return nil, fmt.Errorf("audit log directory %s: others may write to it (mode %04o): chmod 0700 %s", dir, st.Mode().Perm(), dir)
	}
	l := &Log{dir: dir, name: name, opt: opt}
	if err := l.open(); err != nil {
		return nil, fmt.Errorf("audit log %s: %w", l.path(), err)
	}
	return l, nil
}

func (l *Log) path() string { return currentPath(l.dir, l.name) }

// Append writes one record; a zero Time becomes now. On an error the record is
// lost and counted: a later Append that succeeds writes a record of kind "lost"
// first.
func (l *Log) Append(r client.Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return fmt.Errorf("audit log %s: %w", l.path(), fs.ErrClosed)
	}
	if r.Time.IsZero() {
		r.Time = l.opt.Now()
	}
	r.Time = r.Time.UTC()
	if err := l.append(r); err != nil {
		l.lost++
		l.why = err
		return fmt.Errorf("audit log %s: %w", l.path(), err)
	}
	l.lost, l.why = 0, nil
	return nil
}

func (l *Log) append(r client.Record) error {
	var buf bytes.Buffer
	if err := l.encodeLost(&buf, r.Time); err != nil {
		return err
	}
	lost := buf.Len()
	if err := encodeLine(&buf, r); err != nil {
		return err
	}
	n, err := l.write(buf.Bytes())
	if err != nil && lost > 0 && n >= lost {
		l.lost = 0 // that much has been said
	}
	return err
}

// encodeLost appends the record of what was lost, if anything was.
func (l *Log) encodeLost(buf *bytes.Buffer, now time.Time) error {
	if l.lost == 0 {
		return nil
	}
	return encodeLine(buf, client.Record{
		Time:   now,
		Kind:   "lost",
		Count:  l.lost,
		Reason: "audit log not writable",
		Detail: l.why.Error(),
	})
}

// write puts whole lines at the end of the file that is to take them. It returns
// how many bytes of them it wrote.
func (l *Log) write(lines []byte) (int, error) {
	if err := l.ready(int64(len(lines))); err != nil {
		return 0, err
	}
	mend := 0
	if l.torn {
		lines = append([]byte{'\n'}, lines...)
		mend = 1
	}
	n, err := unix.Write(int(l.f.Fd()), lines) // once: os.File would go on after a part
	for errors.Is(err, unix.EINTR) {
		n, err = unix.Write(int(l.f.Fd()), lines)
	}
	if err == nil && n == len(lines) {
		l.torn = false
		return n - mend, nil
	}
	if n > 0 {
		l.torn = true
	}
	if err == nil {
		err = unix.ENOSPC // what a short write of a file means
	}
	return max(n-mend, 0), fmt.Errorf("write: %w", err)
}

// ready makes l.f the file that the next size bytes go to.
func (l *Log) ready(size int64) error {
	if l.f != nil {
		st, err := stat(l.f)
		if err != nil {
			return err
		}
		switch {
		case st.Nlink == 0: // deleted by someone
			l.f.Close()
			l.f = nil
		case st.Size > 0 && st.Size+size > l.opt.MaxFile:
			l.rotate(st)
		}
	}
	if l.f != nil {
		return nil
	}
	return l.open()
}

func stat(f *os.File) (unix.Stat_t, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return st, fmt.Errorf("stat: %w", err)
	}
	return st, nil
}

// open opens or makes the current file and finds out how it ends.
func (l *Log) open() error {
	f, err := os.OpenFile(l.path(), os.O_RDWR|os.O_APPEND|os.O_CREATE|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return cause("open", err)
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return cause("stat", err)
	}
	if !st.Mode().IsRegular() {
		f.Close()
		return fmt.Errorf("open: it is no regular file (%v)", st.Mode().Type())
	}
	l.torn = false
	if size := st.Size(); size > 0 {
		last := make([]byte, 1)
		_, err := f.ReadAt(last, size-1)
		l.torn = err != nil || last[0] != '\n'
	}
	l.f = f
	return nil
}

// cause takes the path out of an error that will get it again.
func cause(step string, err error) error {
	var pathErr *fs.PathError
	if errors.As(err, &pathErr) {
		err = pathErr.Err
	}
	return fmt.Errorf("%s: %w", step, err)
}

// Close writes what is left to say and closes the file.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil
	}
	l.closed = true
	var err error
	if l.lost > 0 {
		var buf bytes.Buffer
		if err = l.encodeLost(&buf, l.opt.Now().UTC()); err == nil {
			_, err = l.write(buf.Bytes())
		}
	}
	if l.f != nil {
		err = errors.Join(err, l.f.Sync(), l.f.Close())
	}
	if err != nil {
		return fmt.Errorf("close audit log %s: %w", l.path(), err)
	}
	return nil
}
