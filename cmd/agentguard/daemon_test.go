// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net"
	"path/filepath"
	"testing"
	"time"
)

func TestNotify(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	for _, address := range []string{path, "@agentguard-test-" + filepath.Base(filepath.Dir(filepath.Dir(path)))} {
		manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: address, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		defer manager.Close()
		t.Setenv("NOTIFY_SOCKET", address)
		if err := notify("READY=1"); err != nil {
			t.Errorf("%s: %v", address, err)
			continue
		}
		manager.SetReadDeadline(time.Now().Add(patience))
		got := make([]byte, 64)
		n, err := manager.Read(got)
		if err != nil || string(got[:n]) != "READY=1" {
			t.Errorf("%s: the manager got %q, %v", address, got[:n], err)
		}
	}
	t.Setenv("NOTIFY_SOCKET", "")
	if err := notify("READY=1"); err != nil {
		t.Errorf("without a manager: %v", err)
	}
	t.Setenv("NOTIFY_SOCKET", path+".gone")
	if err := notify("READY=1"); err == nil {
		t.Error("a manager that is not there is no error")
	}
}
