// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"

	"github.com/u-root/u-root/pkg/cpio"
	"github.com/u-root/u-root/pkg/ldd"

	"agentguard.dev/agentguard/test/vm/guest"
)

// tree is the guest's root file system while it is put together. The first error sticks.
type tree struct {
	records []cpio.Record
	at      map[string]bool
	open    []*os.File
	err     error
}

func newTree() *tree {
	t := &tree{at: map[string]bool{}}
	for _, dir := range []string{"proc", "sys", "dev", "tmp", "run", "root", "var/lib", "usr/bin", "usr/sbin"} {
		t.add(cpio.Directory(dir, 0o755))
	}
	t.text("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/sh\n")
	t.text("etc/group", "root:x:0:\nnogroup:x:65534:\n")
	t.text("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n")
	t.text("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n")
	t.text("etc/resolv.conf", "") // for tests to mount theirs on
	return t
}

func (t *tree) add(r cpio.Record) {
	r.Name = cpio.Normalize(r.Name)
	if t.at[r.Name] {
		return
	}
	if dir := path.Dir(r.Name); dir != "." {
		t.add(cpio.Directory(dir, 0o755))
	}
	t.at[r.Name] = true
	t.records = append(t.records, r)
}

func (t *tree) text(name, content string) { t.add(cpio.StaticFile(name, content, 0o644)) }

func (t *tree) json(name string, v any) {
	text, err := json.Marshal(v)
	t.fail(err)
	t.text(name, string(text))
}

func (t *tree) fail(err error) {
	if t.err == nil {
		t.err = err
	}
}

// file puts the host's file at name, symbolic links followed.
func (t *tree) file(name, host string) {
	f, err := os.Open(host)
	if err != nil {
		t.fail(err)
		return
	}
	t.open = append(t.open, f)
	info, err := f.Stat()
	if err != nil {
		t.fail(err)
		return
	}
	t.add(cpio.Record{ReaderAt: f, Info: cpio.Info{
		Name: name, Mode: cpio.S_IFREG | uint64(info.Mode().Perm()), FileSize: uint64(info.Size()), NLink: 1,
	}})
}

// files puts a file or a whole directory of the host at name.
func (t *tree) files(name, host string) {
	t.fail(filepath.WalkDir(host, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		at := path.Join(name, strings.TrimPrefix(p, host))
		if d.IsDir() {
			t.add(cpio.Directory(at, 0o755))
		} else {
			t.file(at, p)
		}
		return nil
	}))
}

// tool puts a program of the host and its libraries where they are on the host.
func (t *tree) tool(name string) string {
	found, err := findTool(name)
	if err != nil {
		t.fail(err)
		return ""
	}
	t.file(found, found)
	libraries, err := ldd.FList(found)
	if err != nil {
		t.fail(fmt.Errorf("find libraries of %s: %w", found, err))
	}
	for _, l := range libraries {
		t.file(l, l)
	}
	return found
}

func findTool(name string) (string, error) {
	for _, dir := range []string{"/usr/sbin", "/usr/bin", "/sbin", "/bin"} {
		if found, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return found, nil
		}
	}
	return "", fmt.Errorf("find %s for the guest: not in the usual directories: install it with `make test-deps`", name)
}

// busybox puts it and its commands, beneath those that are there already.
func (t *tree) busybox() {
	at := t.tool("busybox")
	if at == "" {
		return
	}
	names, err := exec.Command(at, "--list").Output()
	if err != nil {
		t.fail(fmt.Errorf("list the commands of %s: %w", at, err))
	}
	for _, name := range strings.Fields(string(names)) {
		t.add(cpio.Symlink(path.Join("bin", name), at))
	}
}

// modules puts module files and returns their paths in the guest.
func (t *tree) modules(files []string) []string {
	var at []string
	for _, f := range files {
		name := path.Join("/lib/modules", filepath.Base(f))
		t.file(name, f)
		at = append(at, name)
	}
	return at
}

// write closes the tree: an uncompressed archive, which the kernel unpacks fastest.
func (t *tree) write(file string, plan guest.Plan) (err error) {
	defer func() {
		for _, f := range t.open {
			f.Close()
		}
	}()
	t.json(guest.PlanFile, plan)
	if t.err != nil {
		return t.err
	}
	out, err := os.Create(file)
	if err != nil {
		return err
	}
	defer out.Close()
	buf := bufio.NewWriterSize(out, 1<<20)
	archive := cpio.Newc.Writer(buf)
	if err := cpio.WriteRecords(archive, t.records); err != nil {
		return err
	}
	if err := cpio.WriteTrailer(archive); err != nil {
		return err
	}
	if err := buf.Flush(); err != nil {
		return err
	}
	return out.Close()
}
