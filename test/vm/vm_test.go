// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"bytes"
	"flag"
	"os"
	"path"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"agentguard.dev/agentguard/test/vm/guest"
)

var (
	onlyPackage = flag.String("vm.pkg", "", "run this package alone, listed in packages.go or not")
	guestRun    = flag.String("vm.run", "", "-test.run for the guest")
	live        = flag.Bool("vm.live", false, "show the guest's output as it comes")
	showConsole = flag.Bool("vm.console", false, "show the guest's console as well")
	limit       = flag.Duration("vm.timeout", 12*time.Minute, "time for each package")
)

// TestKernels boots every kernel and runs every package in it; their tests become subtests of this one.
func TestKernels(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: no virtual machines")
	}
	packages := Packages()
	if *onlyPackage != "" {
		packages = []Package{selected(*onlyPackage)}
	}
	b, err := compile(packages, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range Kernels() {
		t.Run(k.Name, func(t *testing.T) {
			t.Parallel()
			testKernel(t, k, b)
		})
	}
}

func selected(name string) Package {
	name = "./" + path.Clean(name)
	all := Packages()
	if i := slices.IndexFunc(all, func(p Package) bool { return p.Path == name }); i >= 0 {
		return all[i]
	}
	return Package{Path: name, Tools: []string{"ip", "nft"}}
}

func testKernel(t *testing.T, k Kernel, b *binaries) {
	image, err := k.Cached(filepath.Join(b.root, ".cache/kernels"))
	if err != nil {
		t.Fatal(err)
	}
	initramfs := filepath.Join(t.TempDir(), "initramfs.cpio")
	plan, err := b.initramfs(k, image, initramfs, *guestRun, *limit)
	if err != nil {
		t.Fatal(err)
	}
	opts := machineOptions{
		boot:      image.Boot(),
		initramfs: initramfs,
		limit:     time.Minute + time.Duration(len(plan.Runs))*(*limit),
	}
	if *showConsole {
		opts.live = os.Stdout
	}
	m, err := start(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		m.Kill()
		for range m.Events {
		}
		if err := m.Wait(); err != nil && !t.Failed() {
			t.Error(err)
		}
	})
	for _, run := range plan.Runs {
		t.Run(run.Package, func(t *testing.T) {
			output, done := collect(m.Events)
			replay(t, run.Package, output, done)
		})
	}
	for range m.Events {
	}
	if err := m.Wait(); err != nil {
		t.Error(err)
	}
}

// collect reads the events of one package, whose end is the zero Event if the guest died in it.
func collect(events <-chan guest.Event) ([]byte, guest.Event) {
	var output []byte
	for e := range events {
		if e.Done {
			return output, e
		}
		output = append(output, e.Output...)
		if *live {
			os.Stdout.Write(bytes.ReplaceAll(e.Output, []byte{0x16}, nil)) // the mark that test2json goes by
		}
	}
	return output, guest.Event{}
}

func replay(t *testing.T, name string, output []byte, done guest.Event) {
	results, err := parse(name, output)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range results.sub {
		t.Run(r.name, r.replay)
	}
	for _, left := range done.Left {
		t.Errorf("left behind: %s", left)
	}
	switch {
	case !done.Done:
		t.Errorf("the guest ended in the middle of this package:\n%s", results.text())
	case done.Error != "" && !t.Failed():
		t.Errorf("the test binary failed: %s\n%s", done.Error, results.text())
	case len(results.sub) == 0:
		t.Error("no test ran")
	}
}
