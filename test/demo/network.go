// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"syscall"

	"github.com/vishvananda/netlink"
)

// Addresses from the ranges for documentation. They exist only in the demo's
// namespaces.
const (
	homeAddr     = "192.0.2.1/24"
	gateway      = "192.0.2.10"
	apiServer    = "192.0.2.10:443"
	packages     = "198.51.100.7:443"
	stranger     = "203.0.113.66:443"
	welcome      = "welcome\n"
	homeLink     = "home"
	worldLink    = "world"
	goAhead      = "go\n"
	serversReady = "ready\n"
)

// raiseWorld starts the servers in a namespace that a cable joins to ours. The
// caller calls stop.
func raiseWorld() (stop func(), err error) {
	if err := up("lo"); err != nil {
		return nil, err
	}
	servers := again("world")
	servers.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	orders, err := servers.StdinPipe()
	if err != nil {
		return nil, err
	}
	servers.Stdout = nil
	answers, err := servers.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := servers.Start(); err != nil {
		return nil, err
	}
	stop = func() {
		orders.Close() // the servers' sign to go
		servers.Wait()
	}
	if err := wire(servers.Process.Pid); err != nil {
		stop()
		return nil, err
	}
	if _, err = io.WriteString(orders, goAhead); err == nil {
		_, err = io.ReadFull(answers, make([]byte, len(serversReady)))
	}
	if err != nil {
		stop()
		return nil, fmt.Errorf("start the servers: %w", err)
	}
	return stop, nil
}

// wire lays the cable from here to the namespace of pid.
func wire(pid int) error {
	cable := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: homeLink}, PeerName: worldLink}
	if err := netlink.LinkAdd(cable); err != nil {
		return fmt.Errorf("make a veth pair: %w", err)
	}
	peer, err := netlink.LinkByName(worldLink)
	if err != nil {
		return fmt.Errorf("find the veth peer: %w", err)
	}
	if err := netlink.LinkSetNsPid(peer, pid); err != nil {
		return fmt.Errorf("move the veth peer: %w", err)
	}
	if err := address(homeLink, homeAddr); err != nil {
		return err
	}
	if err := up(homeLink); err != nil {
		return err
	}
	return netlink.RouteAdd(&netlink.Route{LinkIndex: cable.Attrs().Index, Gw: net.ParseIP(gateway)})
}

func address(link, cidr string) error {
	at, err := netlink.LinkByName(link)
	if err != nil {
		return fmt.Errorf("find link %s: %w", link, err)
	}
	addr, err := netlink.ParseAddr(cidr)
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(at, addr); err != nil {
		return fmt.Errorf("add %s to %s: %w", cidr, link, err)
	}
	return nil
}

func up(link string) error {
	at, err := netlink.LinkByName(link)
	if err != nil {
		return fmt.Errorf("find link %s: %w", link, err)
	}
	if err := netlink.LinkSetUp(at); err != nil {
		return fmt.Errorf("set %s up: %w", link, err)
	}
	return nil
}

// world is the other end: it serves until its standard input ends.
func world() error {
	if _, err := io.ReadFull(os.Stdin, make([]byte, len(goAhead))); err != nil {
		return err
	}
	for _, step := range []func() error{
		func() error { return address(worldLink, gateway+"/24") },
		func() error { return address("lo", "198.51.100.7/32") },
		func() error { return address("lo", "203.0.113.66/32") },
		func() error { return up("lo") },
		func() error { return up(worldLink) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	for _, where := range []string{apiServer, packages, stranger} {
		listener, err := net.Listen("tcp", where)
		if err != nil {
			return err
		}
		go serve(listener)
	}
	io.WriteString(os.Stdout, serversReady)
	io.Copy(io.Discard, os.Stdin)
	return nil
}

// serve greets whoever connects and swallows what they send.
func serve(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			io.WriteString(conn, welcome)
			io.Copy(io.Discard, conn)
		}()
	}
}
