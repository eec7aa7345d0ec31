// SPDX-License-Identifier: Apache-2.0

// Command fetch downloads the kernels that the tests run on and unpacks them into the directory that it is given.
// Nothing is installed, and what is there already is left alone.
package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"agentguard.dev/agentguard/test/vm"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: fetch DIR")
		os.Exit(2)
	}
	if err := fetchAll(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func fetchAll(cache string) error {
	cache, err := filepath.Abs(cache)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return err
	}
	for _, k := range vm.Kernels() {
		err := fetch(k, cache)
		if err != nil { // apt's lists may be missing, or older than the archive
			if err := run(cache, "apt-get", "-q", "update"); err != nil {
				return err
			}
			err = fetch(k, cache)
		}
		if err != nil {
			return fmt.Errorf("fetch kernel %s: %w", k.Name, err)
		}
	}
	return nil
}

func fetch(k vm.Kernel, cache string) error {
	if _, err := k.Cached(cache); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	name, err := newest(k)
	if err != nil {
		return err
	}
	fmt.Println("fetching", name)
	work, err := os.MkdirTemp(cache, k.Name+".")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	if err := unpack(name, work); err != nil {
		return err
	}
	return os.Rename(filepath.Join(work, "image"), filepath.Join(cache, k.Name))
}

// newest asks apt for the newest package of k.
func newest(k vm.Kernel) (string, error) {
	out, err := exec.Command("apt-cache", "pkgnames", "linux-image-").Output()
	if err != nil {
		return "", fmt.Errorf("list packages: %w", err)
	}
	pattern := regexp.MustCompile(k.Pattern)
	best := ""
	for name := range strings.FieldsSeq(string(out)) {
		if !pattern.MatchString(name) {
			continue
		}
		// A package can be known by name only; one that can be fetched has a record.
		if exec.Command("apt-cache", "show", "--no-all-versions", name).Run() != nil {
			continue
		}
		if best == "" || exec.Command("dpkg", "--compare-versions", name, "gt", best).Run() == nil {
			best = name
		}
	}
	if best == "" {
		return "", fmt.Errorf("apt knows no package %s: add Debian %s to its sources", k.Pattern, k.Debian)
	}
	return best, nil
}

// unpack leaves in work/image what the tests use of a package.
func unpack(name, work string) error {
	for _, dir := range []string{"root", "image"} {
		if err := os.Mkdir(filepath.Join(work, dir), 0o755); err != nil {
			return err
		}
	}
	if err := run(work, "apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", name); err != nil {
		return err
	}
	archive, err := only(filepath.Join(work, "*.deb"))
	if err != nil {
		return err
	}
	root, image := filepath.Join(work, "root"), filepath.Join(work, "image")
	if err := run(work, "dpkg-deb", "--extract", archive, root); err != nil {
		return err
	}
	for pattern, to := range map[string]string{
		"boot/vmlinuz-*":                "vmlinuz",
		"boot/config-*":                 "config",
		"lib/modules/*/kernel":          "modules",
		"lib/modules/*/modules.builtin": "modules.builtin",
	} {
		from, err := only(filepath.Join(root, pattern), filepath.Join(root, "usr", pattern))
		if err != nil {
			return err
		}
		if err := os.Rename(from, filepath.Join(image, to)); err != nil {
			return err
		}
	}
	return run(image, "find", "modules", "-name", "*.ko.xz", "-exec", "xz", "--decompress", "{}", "+")
}

// only returns the one file that matches any of the patterns.
func only(patterns ...string) (string, error) {
	var found []string
	for _, p := range patterns {
		names, err := filepath.Glob(p)
		if err != nil {
			return "", err
		}
		found = append(found, names...)
	}
	if len(found) != 1 {
		return "", fmt.Errorf("%d files match %s, not one", len(found), patterns[0])
	}
	return found[0], nil
}

func run(dir, name string, args ...string) error {
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", name, err, bytes.TrimSpace(out))
	}
	return nil
}
