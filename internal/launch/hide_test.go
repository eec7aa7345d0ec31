// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// inView runs fn on a thread that has a /run of its own, as have the commands
// that it starts.
func inView(t *testing.T, fn func()) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := enterView()
		if err == nil {
			err = unix.Mount("none", "/run", "tmpfs", 0, "mode=0755")
		}
		if err == nil {
			fn()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// listener counts what other processes than this one connect to a Unix socket,
// and answers nobody.
type listener struct {
	net.Listener
	calls atomic.Int32
}

func listen(t *testing.T, path string) *listener {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Error(err)
	}
	socket, err := net.Listen("unix", path)
	if err != nil {
		t.Error(err)
		return nil
	}
	if err := os.Chmod(path, 0o777); err != nil {
		t.Error(err)
	}
	l := &listener{Listener: socket}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			if peerOf(conn) != os.Getpid() {
				l.calls.Add(1)
			}
			conn.Close()
		}
	}()
	return l
}

func peerOf(conn net.Conn) (pid int) {
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0
	}
	raw.Control(func(fd uintptr) {
		if peer, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = int(peer.Pid)
		}
	})
	return pid
}

// getaddrinfo asks nscd first where its socket is, and without it reads
// /etc/hosts and asks by DNS.
func TestNameServicesAreHidden(t *testing.T) {
	d := scratch(t)
	lookup := []string{"getent", "ahosts", "localhost"}
	if _, err := exec.LookPath(lookup[0]); err != nil {
		t.Skip("not in a VM: there is no getent")
	}
	inView(t, func() {
		nscd := listen(t, "/var/run/nscd/socket")
		resolved := listen(t, "/run/systemd/resolve/io.systemd.Resolve")
		if nscd == nil || resolved == nil {
			return
		}
		defer nscd.Close()
		defer resolved.Close()
		for name, mode := range map[string]os.FileMode{"stub-resolv.conf": 0o644, "secret": 0o600} {
			if err := os.WriteFile("/run/systemd/resolve/"+name, []byte("nameserver 192.0.2.53\n"), mode); err != nil {
				t.Error(err)
			}
		}
		if out, err := exec.Command(lookup[0], lookup[1:]...).Output(); err != nil || len(out) == 0 {
			t.Errorf("without the stage: %v, %q", err, out)
		}
		before := nscd.calls.Load()
		if before == 0 {
			t.Error("the C library does not ask nscd here: this test shows nothing")
		}
		for _, user := range []string{"0:0", "65534"} {
			r := run(t, Command{Argv: lookup, Cgroup: d, User: user})
			if r.code != 0 || !strings.Contains(r.out, "STREAM") {
				t.Errorf("user %s: the look-up without nscd: %+v", user, r)
			}
			r = run(t, Command{Argv: []string{"find", "/var/run/nscd/", "/run/systemd/resolve", "-type", "f", "-o", "-type", "s"}, Cgroup: d, User: user})
			if want := "/run/systemd/resolve/stub-resolv.conf"; r.out != want {
				t.Errorf("user %s sees %q, want %q alone", user, r.out, want)
			}
			if r = run(t, Command{Argv: []string{"cat", "/run/systemd/resolve/stub-resolv.conf"}, Cgroup: d, User: user}); r.out != "nameserver 192.0.2.53" {
				t.Errorf("user %s reads %+v", user, r)
			}
		}
		if after := nscd.calls.Load(); after != before {
			t.Errorf("commands asked nscd %d times", after-before)
		}
	})
}

// A service that restarts makes its socket anew; the command goes on without.
func TestNameServiceRestarts(t *testing.T) {
	d := scratch(t)
	inView(t, func() {
		const path = "/run/systemd/resolve/io.systemd.Resolve"
		socket := listen(t, path)
		if socket == nil {
			return
		}
		defer socket.Close()
		up, running, err := os.Pipe()
		if err != nil {
			t.Error(err)
			return
		}
		again, restarted, err := os.Pipe()
		if err != nil {
			t.Error(err)
			return
		}
		service := exec.Command("sh", "-c", "read up; rm "+path+" && touch "+path+" && test -e "+path+" && echo again")
		service.Stdin, service.Stdout = up, restarted
		if err := service.Start(); err != nil {
			t.Error(err)
			return
		}
		up.Close()
		restarted.Close()
		r := run(t, Command{
			Argv:   []string{"sh", "-c", "echo up; read line; test $line = again && test ! -e " + path},
			Cgroup: d, User: "65534", Stdin: again, Stdout: running,
		})
		running.Close()
		again.Close()
		if err := service.Wait(); err != nil || r.code != 0 {
			t.Errorf("after a restart: %+v, %v", r, err)
		}
	})
}

func TestHostsOfSSSD(t *testing.T) {
	for content, want := range map[string]bool{
		"passwd: files sss\nhosts: files dns\n":      false,
		"passwd: files\nhosts:\tfiles sss dns # x\n": true,
		"# hosts: sss\n": false,
		"":               false,
	} {
		path := filepath.Join(t.TempDir(), "nsswitch.conf")
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := asksSSSD(path); got != want {
			t.Errorf("%q: %v, want %v", content, got, want)
		}
	}
	if asksSSSD(filepath.Join(t.TempDir(), "none")) {
		t.Error("without a file")
	}
	if _, err := presentNameServices(); err != nil && !errors.Is(err, os.ErrPermission) {
		t.Error(err)
	}
}
