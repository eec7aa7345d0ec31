// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// rotate puts the current file aside and deletes the oldest ones beyond the
// total. Writers of a shared log take turns by a lock on the directory, never
// waiting for it: whoever does not get it, or fails in any other way, goes on in
// the old file and tries again with the next record.
func (l *Log) rotate(st unix.Stat_t) {
	lock, err := os.Open(l.dir)
	if err != nil {
		return
	}
	defer lock.Close() // and with it the lock
	if unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		return
	}
	var there unix.Stat_t
	err = unix.Lstat(l.path(), &there)
	same := err == nil && there.Ino == st.Ino && there.Dev == st.Dev
	if same && !l.putAside() {
		return
	}
	// Otherwise another writer has put it aside before.
	l.f.Close()
	l.f = nil
	l.prune()
}

// putAside renames the current file to a stamp later than every other one, also
// when the clock was set back.
func (l *Log) putAside() bool {
	stamp := l.opt.Now().UTC()
	files, err := listFiles(l.dir)
	if err != nil {
		return false
	}
	for _, f := range files {
		if f.name != l.name || f.stamp == "" {
			continue
		}
		if last, err := time.Parse(stampForm, f.stamp); err == nil && !stamp.After(last) {
			stamp = last.Add(time.Nanosecond)
		}
	}
	to := stampedPath(l.dir, l.name, stamp)
	return unix.Renameat2(unix.AT_FDCWD, l.path(), unix.AT_FDCWD, to, unix.RENAME_NOREPLACE) == nil
}

// prune deletes the oldest files of this log until a full current file fits into
// the total.
func (l *Log) prune() {
	files, err := listFiles(l.dir)
	if err != nil {
		return
	}
	room := l.opt.MaxTotal - l.opt.MaxFile
	for i := len(files) - 1; i >= 0; i-- {
		if files[i].name != l.name || files[i].stamp == "" {
			continue
		}
		st, err := os.Lstat(files[i].path)
		if err != nil {
			continue
		}
		if room -= st.Size(); room < 0 {
			os.Remove(files[i].path)
		}
	}
}
