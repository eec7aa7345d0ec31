// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"agentguard.dev/agentguard/internal/netns"
)

// The tests' own network: agentguard and its tasks on one side of a cable,
// the servers that they want to reach on the other.
const (
	homeAddr  = "198.18.0.1/24"
	worldAddr = "198.18.0.2"
	inLab     = "AGENTGUARD_TEST_LAB"
)

// world is the servers' namespace. TestMain sets it, before any test.
var world *netns.Handle

// enterLab runs this process again in a network namespace of its own, with its
// exit code, and there makes the world. The namespaces go with the process.
func enterLab() error {
	if os.Getenv(inLab) != "" {
		return makeWorld()
	}
	again := exec.Command("/proc/self/exe", os.Args[1:]...)
	again.Args[0] = os.Args[0]
	again.Env = append(os.Environ(), inLab+"=1")
	again.Stdin, again.Stdout, again.Stderr = os.Stdin, os.Stdout, os.Stderr
	again.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // Pdeathsig is about the thread
	var failed *exec.ExitError
	if err := again.Run(); errors.As(err, &failed) {
		os.Exit(failed.ExitCode())
	} else if err != nil {
		return err
	}
	os.Exit(0)
	return nil
}

func makeWorld() (err error) {
	if world, err = newNamespace(); err != nil {
		return err
	}
	cable := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "home"}, PeerName: "world"}
	if err := netlink.LinkAdd(cable); err != nil {
		return err
	}
	peer, err := netlink.LinkByName("world")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetNsFd(peer, world.FD()); err != nil {
		return err
	}
	if err := errors.Join(raise("lo", ""), raise("home", homeAddr)); err != nil {
		return err
	}
	return world.Do(func() error {
		errs := []error{raise("lo", ""), raise("world", worldAddr+"/24")}
		for _, addr := range worldAddrs() {
			errs = append(errs, raise("world", addr.String()+"/24"))
		}
		return errors.Join(append(errs, serveNames())...)
	})
}

// newNamespace makes a namespace without entering it for good.
func newNamespace() (made *netns.Handle, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err = unix.Unshare(unix.CLONE_NEWNET); err == nil {
			made, err = netns.Current()
		}
	}()
	<-done
	return made, err
}

func raise(link, cidr string) error {
	at, err := netlink.LinkByName(link)
	if err != nil {
		return err
	}
	if cidr != "" {
		addr, err := netlink.ParseAddr(cidr)
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(at, addr); err != nil {
			return err
		}
	}
	return netlink.LinkSetUp(at)
}

// listenInWorld listens on a free port of the servers' address.
func listenInWorld() (listener net.Listener, err error) {
	err = world.Do(func() (err error) {
		listener, err = net.Listen("tcp", worldAddr+":0")
		return err
	})
	return listener, err
}
