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
		if err := fetch(k, cache); err != nil {
			return fmt.Errorf("fetch kernel %s: %w", k.Name, err)
		}
	}
	return nil
}

func fetch(k vm.Kernel, cache string) error {
	if _, err := k.Cached(cache); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	work, err := os.MkdirTemp(cache, k.Name+".")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	image, err := fetchFromAny(k, work)
	if err != nil {
		return err
	}
	return os.Rename(image, filepath.Join(cache, k.Name))
}

// fetchFromAny looks where this machine's own packages come from, then in the Debian release that has k for certain. It
// returns the unpacked image.
func fetchFromAny(k vm.Kernel, work string) (string, error) {
	image, err := fetchFrom(machineArchive(filepath.Join(work, "machine")), k)
	if err == nil {
		return image, nil
	}
	debian, releaseErr := releaseArchive(filepath.Join(work, "release"), k.Debian)
	if releaseErr == nil {
		image, releaseErr = fetchFrom(debian, k)
	}
	if releaseErr != nil {
		return "", errors.Join(err, releaseErr)
	}
	return image, nil
}

func fetchFrom(a archive, k vm.Kernel) (string, error) {
	name, err := a.newest(k.Pattern)
	if err != nil {
		return "", err
	}
	fmt.Println("fetching", name)
	deb, err := a.download(name)
	if err != nil {
		return "", err
	}
	return unpack(deb, a.work)
}

// unpack leaves in a directory below work what the tests use of the package.
func unpack(deb, work string) (string, error) {
	root, image := filepath.Join(work, "root"), filepath.Join(work, "image")
	if err := os.Mkdir(image, 0o755); err != nil {
		return "", err
	}
	if err := run(work, "dpkg-deb", "--extract", deb, root); err != nil {
		return "", err
	}
	for pattern, to := range map[string]string{
		"boot/vmlinuz-*":                "vmlinuz",
		"boot/config-*":                 "config",
		"lib/modules/*/kernel":          "modules",
		"lib/modules/*/modules.builtin": "modules.builtin",
	} {
		from, err := only(filepath.Join(root, pattern), filepath.Join(root, "usr", pattern))
		if err != nil {
			return "", err
		}
		if err := os.Rename(from, filepath.Join(image, to)); err != nil {
			return "", err
		}
	}
	return image, run(image, "find", "modules", "-name", "*.ko.xz", "-exec", "xz", "--decompress", "{}", "+")
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
