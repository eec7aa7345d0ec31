// SPDX-License-Identifier: Apache-2.0

package clients

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"agentguard.dev/agentguard/internal/cgroup"
	"agentguard.dev/agentguard/internal/netns"
)

// shortAddr is that of short.good.test, whose records are good for three seconds.
const shortAddr = "198.18.0.12"

// An address expires. Whoever asks again never notices, and what flows goes on.
func (p *product) expiry(t *testing.T) {
	flow := p.command("agentguard", "task", "exec", "--drain", "0s", "t", "--", "visit", "https://short.good.test/stream")
	flowing, err := flow.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := flow.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		flow.Process.Signal(syscall.SIGTERM) // passed on
		flow.Wait()
	})
	lines := bufio.NewScanner(flowing)
	if !lines.Scan() {
		t.Fatal("no flow")
	}
	r := p.want(t, "this is short.good.test", "visit", "-for", "8s", "https://short.good.test/")
	if n := strings.Count(r.out, "this is"); n < 3 {
		t.Errorf("only %d visits: %s", n, r)
	}
	// Whoever does not ask finds the address expired.
	deadline := time.Now().Add(patience)
	for {
		r := p.guarded("visit", "-at", shortAddr+":443", "https://short.good.test/")
		if r.code != 0 {
			if !strings.Contains(r.err, "operation not permitted") {
				t.Errorf("want an expired address: %s", r)
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the address never expires")
		}
	}
	seen := make(chan bool, 1)
	go func() {
		more := true
		// More than any buffers hold since then.
		for end := time.Now().Add(2 * time.Second); more && time.Now().Before(end); {
			more = lines.Scan()
		}
		seen <- more
	}()
	select {
	case more := <-seen:
		if !more {
			t.Error("the flow has ended")
		}
	case <-time.After(patience):
		t.Error("nothing flows")
	}
	p.want(t, "this is short.good.test", "visit", "https://short.good.test/")
}

// Two namespaces have resolvers of their own, which say different things.
func (p *product) namespaces(t *testing.T) {
	box := newNamespace(t)
	if err := box.Do(func() error { return raise("lo") }); err != nil {
		t.Fatal(err)
	}
	p.world.must(t, p.wire(box, "box", "192.0.2.5/30", "192.0.2.6/30", "2001:db8:0:2::1/64", "2001:db8:0:2::2/64"))
	inside := p.container(t, box)
	p.succeed(t, p.agentguard("task", "begin", "--id", "box", "--allow", "*.good.test:443", "--cgroup", p.guard+".box"))
	t.Cleanup(func() { p.agentguard("task", "end", "box") })
	for range 3 {
		if got := inside("visit https://api.good.test/"); !strings.Contains(got, "this is api.good.test") || !strings.Contains(got, "at "+otherSiteAddr) {
			t.Errorf("in the container: %s", got)
		}
		p.want(t, "at "+siteAddr, "visit", "https://api.good.test/")
		// Each task knows what it was told itself.
		if got := inside("visit -at " + siteAddr + ":443 https://api.good.test/"); !strings.Contains(got, "operation not permitted") {
			t.Errorf("at the address that the other task knows: %s", got)
		}
		if got := inside("visit https://six.good.test/"); !strings.Contains(got, "no such host") {
			t.Errorf("a name that the other resolver has: %s", got)
		}
	}
	if r := p.guarded("visit", "-at", otherSiteAddr+":443", "https://api.good.test/"); !strings.Contains(r.err, "operation not permitted") {
		t.Errorf("at the address that the container knows: %s", r)
	}
}

// container starts a shell in a cgroup, a network and a mount namespace of its own, and
// returns what runs a command there.
func (p *product) container(t *testing.T, ns *netns.Handle) func(command string) string {
	t.Helper()
	dir, err := cgroup.Create(p.guard + ".box")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		dir.Kill(ctx)
		if err := dir.Remove(ctx); err != nil {
			t.Error(err)
		}
		dir.Close()
	})
	conf := p.file(t, "box.conf", "nameserver "+dnsmasqAddr+"\n")
	shell := exec.Command("sh", "-c", fmt.Sprintf(`mount -o bind %s /etc/resolv.conf && while read -r line; do $line 2>&1; echo "that was it"; done`, conf))
	shell.Env = p.env()
	shell.Stderr = os.Stderr
	shell.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: dir.FD(), Unshareflags: syscall.CLONE_NEWNS}
	in, err := shell.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := shell.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := ns.Do(shell.Start); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		shell.Process.Kill()
		shell.Wait()
	})
	lines := bufio.NewScanner(out)
	inside := func(command string) string {
		stop := time.AfterFunc(patience, func() { shell.Process.Kill() })
		defer stop.Stop()
		io.WriteString(in, command+"\n")
		var said []string
		for lines.Scan() && lines.Text() != "that was it" {
			said = append(said, lines.Text())
		}
		return strings.Join(said, "\n")
	}
	inside("true") // its resolv.conf is in place, and can be read by who looks in
	return inside
}
