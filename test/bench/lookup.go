// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"time"
	"unsafe"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"agentguard.dev/agentguard/internal/netns"
)

// Clients ask either of two dnsmasqs: one in their own namespace, which caches,
// or the one behind it, one hop away, which knows an address for every name.
var (
	nearResolver = netip.MustParseAddrPort("127.0.0.1:53")
	farResolver  = netip.MustParseAddrPort("198.18.0.53:53")
)

// dnsmasq starts both, on the clients' processor.
func (l *lab) dnsmasq() error {
	for _, own := range []struct {
		ns   *netns.Handle
		args []string
	}{
		{l.far, []string{"--listen-address=" + farResolver.Addr().String(), "--address=/good.test/" + destination4.String(), "--local-ttl=3600"}},
		{l.near, []string{"--listen-address=" + nearResolver.Addr().String(), "--server=" + farResolver.Addr().String(), "--cache-size=10000"}},
	} {
		cmd := exec.Command("dnsmasq", append(own.args, "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts",
			"--bind-interfaces", "--except-interface=nosuch", "--user=root", "--pid-file", "--log-facility=-")...)
		out, in, err := os.Pipe()
		if err != nil {
			return err
		}
		cmd.Stdout, cmd.Stderr = in, in
		err = own.ns.Do(func() error { return privileged(l.cpu, cmd.Start) })
		in.Close()
		if err != nil {
			out.Close()
			return err
		}
		l.closers = append(l.closers, func() {
			cmd.Process.Kill()
			cmd.Wait()
			out.Close()
		})
		if err := awaitLine(out, "started"); err != nil {
			return fmt.Errorf("dnsmasq: %w", err)
		}
	}
	return nil
}

// awaitLine reads until a line that has text in it; what follows is read too.
func awaitLine(out *os.File, text string) error {
	if err := out.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	var said []string
	for lines := bufio.NewScanner(out); lines.Scan(); {
		said = append(said, lines.Text())
		if strings.Contains(lines.Text(), text) {
			go io.Copy(io.Discard, out)
			return out.SetReadDeadline(time.Time{})
		}
	}
	return fmt.Errorf("never said %q:\n%s", text, strings.Join(said, "\n"))
}

// asking is what look-ups need.
type asking struct {
	query []byte
	fresh bool // each for a name of its own
	asked uint32
}

// freshAt is where eight digits of a fresh name are in its query.
const freshAt = 13

func newAsking(fresh bool) (*asking, error) {
	name := benchHost + "."
	if fresh {
		name = fmt.Sprintf("00000000p%d.good.test.", os.Getpid())
	}
	m := new(dns.Msg).SetQuestion(name, dns.TypeA)
	m.SetEdns0(1232, false)
	query, err := m.Pack()
	return &asking{query: query, fresh: fresh}, err
}

// resolverSocket is a new socket for l.to[0], on which nobody waits for ever.
func (l *load) resolverSocket() uintptr {
	fd := l.socket(unix.SOCK_DGRAM)
	limit := unix.Timeval{Sec: 5}
	if _, _, errno := unix.RawSyscall6(unix.SYS_SETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO,
		uintptr(unsafe.Pointer(&limit)), unsafe.Sizeof(limit), 0); errno != 0 {
		l.fail("set SO_RCVTIMEO", errno)
	}
	l.connectTo(fd, &l.to[0], 0)
	return fd
}

func (l *load) ask(fd uintptr) {
	if l.fresh {
		l.asked++
		copy(l.query[freshAt:], fmt.Sprintf("%08x", l.asked))
	}
	if _, err := rawConn(fd).Write(l.query); err != nil {
		l.fail("ask", err)
	}
}

// hear reads an answer, which has to have records.
func (l *load) hear(fd uintptr) {
	n, err := rawConn(fd).Read(l.buffer)
	if err != nil {
		l.fail("hear", err)
	} else if n < 12 || l.buffer[3]&0xf != 0 || l.buffer[7] == 0 {
		l.fail("hear", fmt.Errorf("answer without an address: % x", l.buffer[:min(n, 12)]))
	}
}

// lookUp is what a C library does for a name.
func (l *load) lookUp() {
	fd := l.resolverSocket()
	l.ask(fd)
	l.hear(fd)
	unix.RawSyscall(unix.SYS_CLOSE, fd, 0, 0)
}
