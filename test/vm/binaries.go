// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"time"

	"agentguard.dev/agentguard/test/vm/guest"
)

// sources is where the guest has what it needs of this module's directory.
const sources = "/src"

// binaries are the compiled tests of some packages, the same for every kernel.
type binaries struct {
	root     string // of the module
	dir      string
	packages []Package
}

// compile builds everything that the guests run, statically, into dir.
func compile(packages []Package, dir string) (*binaries, error) {
	root, err := moduleRoot()
	if err != nil {
		return nil, err
	}
	b := &binaries{root: root, dir: dir, packages: packages}
	if err := b.build("build", "-o", filepath.Join(dir, "init"), "./test/vm/init"); err != nil {
		return nil, err
	}
	for _, p := range packages {
		if err := b.build("test", "-c", "-o", b.test(p), p.Path); err != nil {
			return nil, err
		}
		if _, err := os.Stat(b.test(p)); err != nil {
			return nil, fmt.Errorf("package %s has no tests", p.Path)
		}
		for _, c := range p.Commands {
			if err := b.build("build", "-o", b.command(c), c); err != nil {
				return nil, err
			}
		}
	}
	return b, nil
}

func moduleRoot() (string, error) {
	out, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("find module: %w", err)
	}
	return filepath.Dir(strings.TrimSpace(string(out))), nil
}

func (b *binaries) build(verb string, args ...string) error {
	cmd := exec.Command("go", append([]string{verb, "-ldflags=-s -w"}, args...)...)
	cmd.Dir = b.root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go %s %s: %w\n%s", verb, args[len(args)-1], err, out)
	}
	return nil
}

func (b *binaries) test(p Package) string {
	return filepath.Join(b.dir, strings.ReplaceAll(strings.TrimPrefix(p.Path, "./"), "/", "-")+".test")
}

func (b *binaries) command(c string) string { return filepath.Join(b.dir, path.Base(c)) }

// initramfs writes the root file system of one guest, which runs the tests that match run, and returns its plan.
func (b *binaries) initramfs(k Kernel, image Image, file, run string, limit time.Duration) (guest.Plan, error) {
	plan := guest.Plan{Env: []string{
		"AGENTGUARD_VM=" + k.Name, "HOME=/root", "USER=root", "TMPDIR=/tmp", "PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
	}}
	modules, err := image.modulePaths(modules())
	if err != nil {
		return plan, err
	}
	t := newTree()
	t.file("init", filepath.Join(b.dir, "init"))
	plan.Modules = t.modules(modules)
	for _, p := range b.packages {
		plan.Runs = append(plan.Runs, b.place(t, p, run, limit))
	}
	t.busybox()
	return plan, t.write(file, plan)
}

// place puts a package and what it needs into the tree.
func (b *binaries) place(t *tree, p Package, run string, limit time.Duration) guest.Run {
	dir := path.Join(sources, p.Path)
	binary := path.Join(dir, filepath.Base(b.test(p)))
	t.file(binary, b.test(p))
	if data := filepath.Join(b.root, p.Path, "testdata"); exists(data) {
		t.files(path.Join(dir, "testdata"), data)
	}
	for _, name := range p.Tools {
		t.tool(name)
	}
	for _, c := range p.Commands {
		t.file(path.Join("/usr/local/bin", path.Base(c)), b.command(c))
	}
	for _, f := range p.Files {
		t.files(path.Join(sources, f), filepath.Join(b.root, f))
	}
	return guest.Run{
		Package: strings.TrimPrefix(p.Path, "./"),
		Dir:     dir,
		Argv:    []string{binary, "-test.v=test2json", "-test.timeout=" + limit.String(), "-test.run=" + run},
		Limit:   limit + 20*time.Second, // the binary's own limit prints stacks
	}
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}
