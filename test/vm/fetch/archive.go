// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// archive is a Debian archive as apt sees it.
type archive struct {
	work    string // a directory of its own
	options []string
}

// machineArchive is whatever this machine installs from, as of its last apt-get update.
func machineArchive(work string) archive {
	return archive{work: work, options: []string{"-q", "-o", "APT::Sandbox::User=root"}}
}

// releaseArchive is one release of Debian, whatever this machine runs. Its lists are fetched into work.
func releaseArchive(work, release string) (archive, error) {
	a := machineArchive(work)
	dir := filepath.Join(work, "apt")
	sources := filepath.Join(dir, "sources.list")
	text, err := sourcesOf(release)
	if err != nil {
		return a, err
	}
	if err := os.MkdirAll(filepath.Join(dir, "lists/partial"), 0o755); err != nil {
		return a, err
	}
	if err := os.WriteFile(sources, []byte(text), 0o644); err != nil {
		return a, err
	}
	a.options = append(a.options,
		"-o", "Dir::Etc::SourceList="+sources,
		"-o", "Dir::Etc::SourceParts=/dev/null",
		"-o", "Dir::State::Lists="+filepath.Join(dir, "lists"),
		"-o", "Dir::Cache="+dir,
		"-o", "Acquire::Languages=none",
	)
	return a, run(work, "apt-get", append(a.options, "update")...)
}

// sourcesOf is a sources.list of the release, from the servers that this machine's apt is set up for.
func sourcesOf(release string) (string, error) {
	out, err := exec.Command("apt-get", "indextargets", "--format", "$(REPO_URI)").Output()
	if err != nil {
		return "", fmt.Errorf("list the archives that apt is set up for: %w", err)
	}
	var text strings.Builder
	for uri := range strings.FieldsSeq(string(out)) {
		suite := release
		if strings.Contains(uri, "security") {
			suite += "-security"
		}
		if line := fmt.Sprintf("deb %s %s main\n", uri, suite); !strings.Contains(text.String(), line) {
			text.WriteString(line)
		}
	}
	if text.Len() == 0 {
		return "", fmt.Errorf("apt is set up for no archive: add Debian's to /etc/apt/sources.list and run apt-get update")
	}
	return text.String(), nil
}

// newest returns the newest package whose name matches pattern.
func (a archive) newest(pattern string) (string, error) {
	out, err := exec.Command("apt-cache", append(a.options, "pkgnames", "linux-image-")...).Output()
	if err != nil {
		return "", fmt.Errorf("list packages: %w", err)
	}
	matching := regexp.MustCompile(pattern)
	best := ""
	for name := range strings.FieldsSeq(string(out)) {
		if !matching.MatchString(name) || !a.has(name) {
			continue
		}
		if best == "" || exec.Command("dpkg", "--compare-versions", name, "gt", best).Run() == nil {
			best = name
		}
	}
	if best == "" {
		return "", fmt.Errorf("apt knows no package %s", pattern)
	}
	return best, nil
}

// has tells packages that can be fetched from those that others only mention.
func (a archive) has(name string) bool {
	out, err := exec.Command("apt-cache", append(a.options, "show", "--no-all-versions", name)...).Output()
	return err == nil && strings.Contains(string(out), "\nFilename:")
}

// download returns the package's file.
func (a archive) download(name string) (string, error) {
	if err := os.MkdirAll(a.work, 0o755); err != nil {
		return "", err
	}
	if err := run(a.work, "apt-get", append(a.options, "download", name)...); err != nil {
		return "", err
	}
	return only(filepath.Join(a.work, "*.deb"))
}
