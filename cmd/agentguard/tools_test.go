// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
)

// asMain runs a command as somebody else: `as UID:GID[,GROUP...] CMD...`.
func asMain() {
	if err := become(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "as:", err)
		os.Exit(99)
	}
}

func become(args []string) error {
	if len(args) < 2 {
		return fmt.Errorf("usage: as UID:GID[,GROUP...] CMD")
	}
	user, list, _ := strings.Cut(args[0], ":")
	uid, err := strconv.Atoi(user)
	if err != nil {
		return err
	}
	var groups []int
	for text := range strings.SplitSeq(list, ",") {
		gid, err := strconv.Atoi(text)
		if err != nil {
			return err
		}
		groups = append(groups, gid)
	}
	path, err := exec.LookPath(args[1])
	if err != nil {
		return err
	}
	program, err := os.Open(path) // it lies where others cannot go
	if err != nil {
		return err
	}
	if err := syscall.Setgroups(groups[1:]); err != nil {
		return err
	}
	if err := syscall.Setgid(groups[0]); err != nil {
		return err
	}
	if err := syscall.Setuid(uid); err != nil {
		return err
	}
	return syscall.Exec(fmt.Sprintf("/proc/self/fd/%d", program.Fd()), args[1:], os.Environ())
}

// getMain prints what is at a URL: `get URL [SOCKET]`.
func getMain() {
	if err := get(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "get:", err)
		os.Exit(1)
	}
}

func get(args []string) error {
	transport := &http.Transport{}
	if len(args) == 2 {
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", args[1])
		}
	}
	response, err := (&http.Client{Transport: transport, Timeout: patience}).Get(args[0])
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if _, err := io.Copy(os.Stdout, response.Body); err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s", response.Status)
	}
	return nil
}
