// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"agentguard.dev/agentguard/client"
)

// TestMain lets the test binary be the client of another user.
func TestMain(m *testing.M) {
	if path := os.Getenv("AGENTGUARD_TEST_SOCKET"); path != "" {
		_, err := client.New(path).Status(context.Background())
		fmt.Print(err)
		return
	}
	os.Exit(m.Run())
}

func TestOnlyOperators(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("becoming other users needs root")
	}
	const group, other, user = 4242, 4343, 65534
	manyGroups := []uint32{group}
	for i := range uint32(200) {
		manyGroups = append(manyGroups, 5000+i)
	}
	tests := []struct {
		name     string
		group    int // of the daemon's configuration
		identity syscall.Credential
		want     string // in the error; none when empty
	}{
		{"root", -1, syscall.Credential{}, ""},
		{"nobody", group, syscall.Credential{Uid: user, Gid: user}, "join group 4242"},
		{"nobody, no group configured", -1, syscall.Credential{Uid: user, Gid: group}, "set a group"},
		{"primary group", group, syscall.Credential{Uid: user, Gid: group}, ""},
		{"supplementary group", group, syscall.Credential{Uid: user, Gid: user, Groups: []uint32{other, group}}, ""},
		{"one of many groups", group, syscall.Credential{Uid: user, Gid: user, Groups: manyGroups}, ""},
		{"another group", group, syscall.Credential{Uid: user, Gid: user, Groups: []uint32{other}}, "join group 4242"},
		{"root's group is not root", group, syscall.Credential{Uid: user, Gid: 0, Groups: []uint32{0}}, "join group 4242"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			server := newServer(t, new(echo))
			server.Group = test.group
			path := serve(t, server)
			// Widened on purpose: the credentials must hold by themselves.
			openUp(t, path)
			child := exec.Command(readableCopy(t))
			child.Env = []string{"AGENTGUARD_TEST_SOCKET=" + path}
			child.Dir = "/"
			child.SysProcAttr = &syscall.SysProcAttr{Credential: &test.identity}
			out, err := child.CombinedOutput()
			if err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			got := string(out)
			if test.want == "" && got != "<nil>" || test.want != "" && !strings.Contains(got, test.want) {
				t.Errorf("answer %q; want %q", got, test.want)
			}
		})
	}
}

// openUp lets everyone connect to the socket at path.
func openUp(t *testing.T, path string) {
	t.Helper()
	for dir := filepath.Dir(path); dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
}

// readableCopy is the test binary where every user can run it.
func readableCopy(t *testing.T) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(t.TempDir(), "client")
	if err := os.WriteFile(copied, program, 0o755); err != nil {
		t.Fatal(err)
	}
	openUp(t, copied)
	if err := os.Chmod(copied, 0o755); err != nil {
		t.Fatal(err)
	}
	return copied
}

func TestSocketModeAndOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("giving a file to another group needs root")
	}
	server := newServer(t, new(echo))
	server.Group = 4242
	path := serve(t, server)
	stat, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	owner := stat.Sys().(*syscall.Stat_t)
	if stat.Mode().Perm() != 0o660 || owner.Uid != 0 || owner.Gid != 4242 {
		t.Errorf("mode %v, owner %d:%d; want 0660, 0:4242", stat.Mode().Perm(), owner.Uid, owner.Gid)
	}
	rest, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(rest) != 2 {
		t.Errorf("the run directory holds %v, %v; want the socket and the lock only", rest, err)
	}
}

func TestSecondDaemonNamesTheFirst(t *testing.T) {
	dir := t.TempDir()
	first, err := LockRunDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	_, err = LockRunDir(dir)
	if want := fmt.Sprintf("process id %d:", os.Getpid()); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("second lock: %v; want it to contain %q", err, want)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	second, err := LockRunDir(dir)
	if err != nil {
		t.Fatalf("after the first has gone: %v", err)
	}
	if err := second.Remove(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after Remove the run directory is still there: %v", err)
	}
}

func TestStaleSocketIsReplaced(t *testing.T) {
	dir := t.TempDir()
	for range 2 { // the second finds what the first, killed, left
		lock, err := LockRunDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		socket, err := Listen(lock, -1)
		if err != nil {
			t.Fatal(err)
		}
		socket.Listener.Close()
		lock.Close()
	}
}

func TestLongRunDir(t *testing.T) {
	lock, err := LockRunDir(filepath.Join(t.TempDir(), strings.Repeat("x", 120)))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if _, err := Listen(lock, -1); err == nil || !strings.Contains(err.Error(), "shorter --run-dir") {
		t.Errorf("%v; want the way out", err)
	}
}
