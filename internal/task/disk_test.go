// SPDX-License-Identifier: Apache-2.0

package task

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"agentguard.dev/agentguard/client"
)

func TestFullDisk(t *testing.T) {
	disk := t.TempDir()
	f := newFixture(t, func(c *Config) { c.StateDir = filepath.Join(disk, "state") })
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=512k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // before the fixture's, which opens an engine once more
		must(t, f.engine.Close())
		f.engine = nil
		e, err := Open(t.Context(), f.cfg)
		must(t, err)
		must(t, e.Unload(t.Context()))
		must(t, unix.Unmount(disk, 0))
	})
	f.open()
	s := f.serve(true)
	f.apply(document("coder", egress(s.addr)))
	was, err := f.engine.Policy("coder")
	must(t, err)
	task := f.begin(client.BeginRequest{ID: "a", Agent: "coder"})
	p := f.startProcess(task.Cgroup)
	p.want("ok", "dial c %s", s.addr)
	full := fill(t, disk)

	// Pages that are there already can take a few more.
	var begun []string
	for err = nil; err == nil && len(begun) < 10000; {
		var more client.Task
		if more, err = f.engine.Begin(t.Context(), client.BeginRequest{Agent: "coder", Purpose: string(bytes.Repeat([]byte("x"), 4096))}); err == nil {
			begun = append(begun, more.ID)
		}
	}
	wantCode(t, err, "internal", "no space left")
	if live := f.engine.live(); len(live) != len(begun)+1 {
		t.Errorf("%d live tasks, want %d", len(live), len(begun)+1)
	}
	_, err = f.engine.ApplyPolicies(t.Context(), "x", []byte(document("coder", egress("192.0.2.9:9"), "# "+string(bytes.Repeat([]byte("y"), 100000)))))
	wantCode(t, err, "internal", "no space left")
	if now, err := f.engine.Policy("coder"); err != nil || now.Version != was.Version {
		t.Errorf("policy %+v %v, want the one before", now, err)
	}
	p.want("ok", "write c hello")
	p.want("ok hello", "read c")
	for _, id := range append(begun, "a") {
		if result := f.end(id); result.Task.State != client.TaskEnded {
			t.Errorf("end on a full disk: %+v", result)
		}
	}
	p.want("gone", "write c hello")
	f.wantEmptyMaps()

	must(t, os.Remove(full))
	f.reopen()
	if live := f.engine.live(); len(live) != 0 {
		t.Errorf("%d tasks are live again after a restart", len(live))
	}
	f.end(f.begin(client.BeginRequest{ID: "b", Agent: "coder"}).ID)
}

// fill leaves no room on the disk.
func fill(t *testing.T, disk string) string {
	t.Helper()
	path := filepath.Join(disk, "fill")
	file, err := os.Create(path)
	must(t, err)
	defer file.Close()
	for {
		if _, err := file.Write(make([]byte, 4096)); errors.Is(err, unix.ENOSPC) {
			return path
		} else if err != nil {
			t.Fatal(err)
		}
	}
}
