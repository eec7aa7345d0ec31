// SPDX-License-Identifier: Apache-2.0

package task

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	vnetns "github.com/vishvananda/netns"

	"agentguard.dev/agentguard/client"
	"agentguard.dev/agentguard/internal/cgroup"
	"agentguard.dev/agentguard/internal/netns"
)

// fixture is an engine with everything of its own, and two network namespaces
// that a veth pair joins: tasks run in near (192.0.2.1), servers in far
// (192.0.2.2).
type fixture struct {
	t         *testing.T
	cfg       Config
	engine    *Engine
	near, far *netns.Handle
	home      *netns.Handle // in which the engine opens; nil is the test's own
}

func newFixture(t *testing.T, change ...func(*Config)) *fixture {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: loads programs into the kernel")
	}
	name := fmt.Sprintf("agentguard-test-%d-%d", os.Getpid(), time.Now().UnixNano())
	f := &fixture{t: t, cfg: Config{
		StateDir: filepath.Join(t.TempDir(), "state"),
		PinDir:   filepath.Join("/sys/fs/bpf", name),
		Cgroup:   name,
		Log:      slog.New(slog.NewTextHandler(testWriter{t}, nil)),
	}}
	for _, c := range change {
		c(&f.cfg)
	}
	f.near, f.far = newNamespace(t), newNamespace(t)
	f.join()
	if len(f.cfg.Resolvers) > 0 {
		f.home = f.far // from where they can be asked
	}
	t.Cleanup(f.unload)
	return f
}

// testWriter shows what the engine logs with the test's own output.
type testWriter struct{ t *testing.T }

func (w testWriter) Write(line []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(line)))
	return len(line), nil
}

func (f *fixture) open() *Engine {
	f.t.Helper()
	open := func() (err error) {
		f.engine, err = Open(f.t.Context(), f.cfg)
		return err
	}
	err := error(nil)
	if f.home != nil {
		err = f.home.Do(open)
	} else {
		err = open()
	}
	if err != nil {
		f.t.Fatal(err)
	}
	return f.engine
}

// reopen is a restart of the engine.
func (f *fixture) reopen() *Engine {
	f.t.Helper()
	if err := f.engine.Close(); err != nil {
		f.t.Fatal(err)
	}
	return f.open()
}

// unload removes everything and checks that nothing is left.
func (f *fixture) unload() {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if f.engine != nil {
		if err := f.engine.Close(); err != nil {
			f.t.Error(err)
		}
		e, err := Open(ctx, f.cfg)
		if err != nil {
			f.t.Error(err)
			return
		}
		if err := e.Unload(ctx); err != nil {
			f.t.Error(err)
		}
	}
	resolved, err := f.cfg.resolve()
	if err != nil {
		f.t.Error(err)
	}
	for _, path := range []string{f.cfg.PinDir, resolved.Cgroup, runRoot(resolved.Cgroup)} {
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			f.t.Errorf("%s is left behind", path)
		}
	}
}

// newNamespace makes a network namespace, gone with its last handle.
func newNamespace(t *testing.T) *netns.Handle {
	t.Helper()
	own, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	var made *netns.Handle
	if err := own.Do(func() error {
		if _, err := vnetns.New(); err != nil {
			return err
		}
		made, err = netns.Current()
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { made.Close() })
	return made
}

func (f *fixture) join() {
	f.t.Helper()
	f.in(f.near, func() {
		link := &netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "eth0",
			PeerNamespace: netlink.NsFd(f.far.FD()),
		}
		if err := netlink.LinkAdd(link); err != nil {
			f.t.Fatal(err)
		}
	})
	for ns, addr := range map[*netns.Handle]string{f.near: "192.0.2.1/24", f.far: "192.0.2.2/24"} {
		f.in(ns, func() {
			for name, addr := range map[string]string{"eth0": addr, "lo": ""} {
				link, err := netlink.LinkByName(name)
				if err != nil {
					f.t.Fatal(err)
				}
				if addr != "" {
					parsed, _ := netlink.ParseAddr(addr)
					if err := netlink.AddrAdd(link, parsed); err != nil {
						f.t.Fatal(err)
					}
				}
				if err := netlink.LinkSetUp(link); err != nil {
					f.t.Fatal(err)
				}
			}
		})
	}
}

func (f *fixture) in(ns *netns.Handle, fn func()) {
	f.t.Helper()
	if err := ns.Do(func() error { fn(); return nil }); err != nil {
		f.t.Fatal(err)
	}
}

// server is one in far; it echoes, or reads nothing.
type server struct {
	addr  string
	mu    sync.Mutex
	conns []net.Conn
	ended []error // how connections ended, for an echoing one
}

func (f *fixture) serve(echo bool) *server {
	f.t.Helper()
	s := &server{}
	var l net.Listener
	f.in(f.far, func() {
		var err error
		if l, err = net.Listen("tcp", "192.0.2.2:0"); err != nil {
			f.t.Fatal(err)
		}
	})
	s.addr = l.Addr().String()
	f.t.Cleanup(func() {
		l.Close()
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, c := range s.conns {
			c.Close()
		}
	})
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.conns = append(s.conns, c)
			s.mu.Unlock()
			if echo {
				go func() {
					_, err := io.Copy(c, c)
					s.mu.Lock()
					s.ended = append(s.ended, err)
					s.mu.Unlock()
				}()
			}
		}
	}()
	return s
}

// resets counts the connections that ended by a reset.
func (s *server) resets() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, err := range s.ended {
		if err != nil && strings.Contains(err.Error(), "reset") {
			n++
		}
	}
	return n
}

func (f *fixture) begin(req client.BeginRequest) client.Task {
	f.t.Helper()
	task, err := f.engine.Begin(f.t.Context(), req)
	if err != nil {
		f.t.Fatal(err)
	}
	return task
}

func (f *fixture) end(id string) client.EndResult {
	f.t.Helper()
	result, err := f.engine.End(f.t.Context(), id, client.EndRequest{})
	if err != nil {
		f.t.Fatal(err)
	}
	return result
}

func (f *fixture) apply(doc string) client.ApplyResult {
	f.t.Helper()
	result, err := f.engine.ApplyPolicies(f.t.Context(), "test.yaml", []byte(doc))
	if err != nil {
		f.t.Fatal(err)
	}
	return result
}

// document is a policy with lines of its spec.
func document(name string, spec ...string) string {
	doc := "apiVersion: agentguard.dev/v1alpha1\nkind: AgentPolicy\nmetadata: {name: " + name + "}\nspec:\n"
	for _, line := range spec {
		doc += "  " + line + "\n"
	}
	return doc
}

func egress(destinations ...string) string {
	return `egress: [{to: ["` + strings.Join(destinations, `"]}, {to: ["`) + `"]}]`
}

// newCgroup makes one outside the guard, removed with what runs in it.
func newCgroup(t *testing.T) *cgroup.Dir {
	t.Helper()
	mount, err := cgroup.Mount()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := cgroup.Create(filepath.Join(mount, fmt.Sprintf("agentguard-adopted-%d-%d", os.Getpid(), time.Now().UnixNano())))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		dir.Kill(ctx)
		if err := dir.Remove(ctx); err != nil {
			t.Error(err)
		}
		dir.Close()
	})
	return dir
}

// eventually waits for what happens by itself.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("after 10 s still not: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func wantCode(t *testing.T, err error, code string, parts ...string) {
	t.Helper()
	var coded *client.Error
	if !errors.As(err, &coded) {
		_, file, line, _ := runtime.Caller(1)
		t.Fatalf("%s:%d: error %v, want one with code %s", filepath.Base(file), line, err, code)
	}
	if coded.Code != code {
		t.Errorf("code %s (%s), want %s", coded.Code, coded.Message, code)
	}
	for _, part := range parts {
		if !strings.Contains(coded.Message, part) {
			t.Errorf("message %q does not say %q", coded.Message, part)
		}
	}
}
