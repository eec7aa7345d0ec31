// SPDX-License-Identifier: Apache-2.0

package clients

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"agentguard.dev/agentguard/internal/cgroup"
)

// product is an agentguard of the test's own, with a daemon and the world that
// its tasks want to reach.
type product struct {
	*world
	dir, name, bin string
	guard          string
}

// config has times that a test can wait for.
const config = "dns: {minTTL: 1s, rate: 10000}\n"

// document is the policy of all tasks: sites below good.test, in every way.
const document = `apiVersion: agentguard.dev/v1alpha1
kind: AgentPolicy
metadata: {name: client}
spec:
  egress:
    - to: ["*.good.test:443", "*.good.test:1443", "*.good.test:8443", "*.good.test:80"]
    - to: ["*.good.test:22"]
      tls: off
`

// newProduct starts everything, and begins a task called t.
func newProduct(t *testing.T) *product {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("attaching programs to cgroups needs root")
	}
	mount, err := cgroup.Mount()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "cl") // short, because the path of a socket has to be
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	place(t, fmt.Sprintf("nameserver %s\nnameserver %s\nnameserver %s\nsearch nosuch.test good.test\n", unboundAddr, localAddr, unboundAddr6), "/etc/resolv.conf")
	place(t, "127.0.0.1 localhost\n"+siteAddr+" www.neighbour.test\n", "/etc/hosts")
	p := &product{world: newWorld(t), dir: dir, name: fmt.Sprintf("agclients-%d", os.Getpid()), bin: filepath.Join(dir, "bin")}
	p.guard = filepath.Join(mount, p.name)
	p.build(t)
	p.daemon(t)
	policy := p.file(t, "policy.yaml", document)
	p.succeed(t, p.agentguard("policy", "apply", policy))
	p.succeed(t, p.agentguard("task", "begin", "--id", "t", "--agent", "client"))
	return p
}

func (p *product) succeed(t *testing.T, r result) result {
	t.Helper()
	if r.code != 0 {
		t.Fatal(r)
	}
	return r
}

func (p *product) file(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(p.dir, name)
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// build makes the programs, which guests have already.
func (p *product) build(t *testing.T) {
	t.Helper()
	if os.Getenv("AGENTGUARD_VM") != "" {
		return
	}
	for _, b := range []struct{ cgo, output, source string }{
		{"0", "agentguard", "cmd/agentguard"},
		{"0", "visit", "test/clients/visit"},
		{"1", "visit-cgo", "test/clients/visit"},
	} {
		build := exec.Command("go", "build", "-o", filepath.Join(p.bin, b.output), "agentguard.dev/agentguard/"+b.source)
		build.Env = append(os.Environ(), "CGO_ENABLED="+b.cgo)
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("build %s: %v\n%s", b.output, err, out)
		}
	}
	compile := exec.Command("musl-gcc", "-static", "-Wall", "-Werror", "-o", filepath.Join(p.bin, "greet"), "testdata/greet.c")
	if out, err := compile.CombinedOutput(); err != nil {
		t.Fatalf("musl-gcc: %v\n%s", err, out)
	}
}

// env is what all programs get: authorities are this world's.
func (p *product) env() []string {
	return []string{
		"PATH=" + p.bin + ":/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C",
		"SSL_CERT_FILE=" + p.certificate(), "CURL_CA_BUNDLE=" + p.certificate(), "NODE_EXTRA_CA_CERTS=" + p.certificate(),
		"AGENTGUARD_STATE_DIR=" + filepath.Join(p.dir, "state"), "AGENTGUARD_RUN_DIR=" + filepath.Join(p.dir, "run"),
		"AGENTGUARD_PIN_DIR=/sys/fs/bpf/" + p.name, "AGENTGUARD_CGROUP=" + p.guard,
	}
}

// daemon starts one. When the test is over it has to stop and unload, and may
// have nothing to complain of.
func (p *product) daemon(t *testing.T) {
	t.Helper()
	process := p.command("agentguard", "daemon", "--config", p.file(t, "daemon.yaml", config))
	var log bytes.Buffer
	process.Stderr = &log
	if err := process.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(process.Process.Signal(syscall.SIGTERM), process.Wait()); err != nil {
			t.Errorf("stop the daemon: %v", err)
		}
		for line := range strings.Lines(log.String()) {
			if !strings.Contains(line, "level=INFO") {
				t.Errorf("the daemon said: %s", line)
			}
		}
		if r := p.agentguard("unload"); r.code != 0 {
			t.Error(r)
		}
		for _, left := range []string{"/sys/fs/bpf/" + p.name, p.guard, filepath.Join(p.dir, "run")} {
			if _, err := os.Lstat(left); !os.IsNotExist(err) {
				t.Errorf("unload left %s behind (%v)", left, err)
			}
		}
	})
	p.succeed(t, p.agentguard("status", "--wait", patience.String()))
}

// result is what became of a program.
type result struct {
	argv     []string
	out, err string
	code     int
	took     time.Duration
}

func (r result) String() string {
	return fmt.Sprintf("%q: exit code %d after %v\n%s%s", r.argv, r.code, r.took, r.out, r.err)
}

// command is a program with the environment of all.
func (p *product) command(program string, args ...string) *exec.Cmd {
	if own := filepath.Join(p.bin, program); exists(own) {
		program = own
	}
	cmd := exec.Command(program, args...)
	cmd.Env = p.env()
	return cmd
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}

// run runs a program to its end.
func (p *product) run(program string, args ...string) result {
	cmd := p.command(program, args...)
	var out, err bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &err
	r := result{argv: append([]string{program}, args...)}
	begun := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	failure := cmd.Start()
	if failure == nil {
		stop := context.AfterFunc(ctx, func() { cmd.Process.Kill() })
		failure = cmd.Wait()
		stop()
	}
	r.took = time.Since(begun)
	r.out, r.err, r.code = out.String(), err.String(), cmd.ProcessState.ExitCode()
	var exit *exec.ExitError
	if failure != nil && !errors.As(failure, &exit) {
		r.code, r.err = -1, failure.Error()
	}
	return r
}

func (p *product) agentguard(args ...string) result { return p.run("agentguard", args...) }

// guarded runs a client in the task.
func (p *product) guarded(argv ...string) result {
	return p.agentguard(append([]string{"task", "exec", "--drain", "0s", "t", "--"}, argv...)...)
}
