// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ownServers are servers of the task that its own processes use.
func ownServers() []control {
	addr := netip.MustParseAddr
	places := map[string]netip.Addr{
		"lo4": addr("127.0.0.1"), "lo4-other": addr("127.0.0.53"), "lo6": addr("::1"), "host4": host4, "host6": host6,
	}
	var all []control
	for _, name := range []string{"lo4", "lo4-other", "lo6", "host4", "host6"} {
		address := places[name]
		all = append(all,
			control{name: "own-tcp-" + name, what: "an own TCP server at " + address.String(), try: ownTCP(address, address)},
			control{name: "own-udp-" + name, what: "an own UDP server at " + address.String(), try: ownUDP(address, address)},
		)
	}
	return append(all, []control{
		{name: "own-tcp-any4", what: "an own TCP server on 0.0.0.0, asked at 127.0.0.1, 0.0.0.0 and the host's address", try: ownTCP(netip.IPv4Unspecified(), addr("127.0.0.1"), netip.IPv4Unspecified(), host4)},
		{name: "own-tcp-any6", what: "an own TCP server on [::], asked over both families", try: ownTCP(netip.IPv6Unspecified(), addr("::1"), netip.IPv6Unspecified(), addr("127.0.0.1"), host4, host6)},
		{name: "own-udp-any6", what: "an own UDP server on [::], asked over both families", try: ownUDP(netip.IPv6Unspecified(), addr("::1"), addr("127.0.0.1"))},
		{name: "own-reuseport", what: "own servers that share a port (SO_REUSEPORT)", try: ownShared},
		{name: "own-http", what: "Go's HTTP server and client", try: ownHTTP},
		{name: "own-unix", what: "Unix sockets of the task, with a name and without", try: ownUnix},
		{name: "own-child", what: "a child of the task asks its server", try: func(a *attempt) error {
			return withServer(addr("127.0.0.1"), func(port uint16) error {
				cmd := exec.Command("/proc/self/exe")
				cmd.Env = append(os.Environ(), attemptName+"=inner-ask", fmt.Sprintf("%s=%d", attemptPort, port))
				cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
				if err := cmd.Run(); err != nil {
					return err
				}
				return errSpoken
			})
		}},
		{name: "own-subcgroup", what: "a process in a cgroup below the task's asks a server of the task, and an allowed destination", class: root, try: func(a *attempt) error {
			return withServer(addr("127.0.0.1"), func(port uint16) error {
				if err := moveBelowOwn(); err != nil {
					return err
				}
				if err := exchange("tcp", at(allowed4, allowedPort).String(), 1, 100)(a); err != nil {
					return err
				}
				return exchange("tcp", at(addr("127.0.0.1"), port).String(), 1, 100)(a)
			})
		}},
		{name: "own-thread", what: "threads of their own ask and are asked", try: func(a *attempt) error {
			failed := make(chan error)
			go func() {
				runtime.LockOSThread()
				failed <- ownTCP(addr("127.0.0.1"), addr("127.0.0.1"))(a)
			}()
			return <-failed
		}},
		{name: "own-refused", what: "a closed port of 127.0.0.1 refuses, as it does without the guard", try: func(a *attempt) error {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				return err
			}
			closed := ln.Addr().String()
			ln.Close()
			conn, err := net.Dial("tcp", closed)
			if err == nil {
				conn.Close()
			}
			if !errors.Is(err, syscall.ECONNREFUSED) {
				return fmt.Errorf("connect to a closed port: %w, want ECONNREFUSED", err)
			}
			return nil
		}},
	}...)
}

// attemptPort tells an inner attempt where to go.
const attemptPort = "AGENTGUARD_BYPASS_PORT"

func innerAsk(a *attempt) error {
	return exchange("tcp", "127.0.0.1:"+os.Getenv(attemptPort), 3, 100)(a)
}

func withServer(address netip.Addr, fn func(port uint16) error) error {
	ln, err := net.Listen("tcp", at(address, 0).String())
	if err != nil {
		return err
	}
	defer ln.Close()
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				io.Copy(conn, conn)
			}()
		}
	}()
	return fn(uint16(ln.Addr().(*net.TCPAddr).Port))
}

// ownTCP serves at one address and asks at others.
func ownTCP(serve netip.Addr, ask ...netip.Addr) func(*attempt) error {
	return func(a *attempt) error {
		return withServer(serve, func(port uint16) error {
			for _, to := range ask {
				if err := exchange("tcp", at(to, port).String(), 3, 10000)(a); err != nil {
					return fmt.Errorf("at %s: %w", to, err)
				}
			}
			return nil
		})
	}
}

func ownUDP(serve netip.Addr, ask ...netip.Addr) func(*attempt) error {
	return func(a *attempt) error {
		pc, err := net.ListenPacket("udp", at(serve, 0).String())
		if err != nil {
			return err
		}
		defer pc.Close()
		go func() {
			buffer := make([]byte, 65536)
			for {
				n, peer, err := pc.ReadFrom(buffer)
				if err != nil {
					return
				}
				pc.WriteTo(buffer[:n], peer)
			}
		}()
		port := uint16(pc.LocalAddr().(*net.UDPAddr).Port)
		for _, to := range ask {
			if err := exchange("udp", at(to, port).String(), 3, 1000)(a); err != nil {
				return fmt.Errorf("at %s: %w", to, err)
			}
		}
		return nil
	}
}

// ownShared asks often enough that every server answers.
func ownShared(a *attempt) error {
	share := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		return errors.Join(raw.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
		}), err)
	}}
	address := "127.0.0.1:0"
	for range 3 {
		ln, err := share.Listen(context.Background(), "tcp", address)
		if err != nil {
			return err
		}
		defer ln.Close()
		address = ln.Addr().String()
		go func() {
			for {
				conn, err := ln.Accept()
				if err != nil {
					return
				}
				go func() {
					defer conn.Close()
					io.Copy(conn, conn)
				}()
			}
		}()
	}
	for range 24 {
		if err := exchange("tcp", address, 1, 100)(a); err != nil {
			return err
		}
	}
	return nil
}

func ownHTTP(a *attempt) error {
	ln, err := net.Listen("tcp", "localhost:0")
	if err != nil {
		return err
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write(a.payload()) })}
	served := make(chan error, 1)
	go func() { served <- server.Serve(ln) }()
	defer func() { server.Close(); <-served }()
	return get("http://"+ln.Addr().String()+"/", a.payload())
}

func get(url string, want []byte) error {
	return getWith(&http.Client{Timeout: 10 * time.Second}, url, want)
}

func getWith(client *http.Client, url string, want []byte) error {
	for range 5 { // on one connection
		answer, err := client.Get(url)
		if err != nil {
			return err
		}
		body, err := io.ReadAll(answer.Body)
		answer.Body.Close()
		if err != nil {
			return err
		}
		if string(body) != string(want) {
			return fmt.Errorf("GET %s: %s %q", url, answer.Status, body)
		}
	}
	return nil
}

func ownUnix(a *attempt) error {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	if err := sock(pair[0]).write(a.payload()); err != nil {
		return err
	}
	if err := sock(pair[1]).readBack(a.payload()); err != nil {
		return err
	}
	ln, err := net.Listen("unix", "@"+a.token)
	if err != nil {
		return err
	}
	defer ln.Close()
	go func() {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		io.Copy(conn, conn)
	}()
	conn, err := net.Dial("unix", "@"+a.token)
	if err != nil {
		return err
	}
	defer conn.Close()
	return echo(conn, a.payload())
}

// visited are servers of the task that others may ask.
func visited() []control {
	addr := netip.MustParseAddr
	return []control{
		{name: "visited-lo4", what: "a process of the host asks the task's server at 127.0.0.1", try: waitForVisitor(netip.IPv4Unspecified()), assist: fromHost(addr("127.0.0.1"))},
		{name: "visited-lo6", what: "the same at ::1", try: waitForVisitor(netip.IPv6Unspecified()), assist: fromHost(addr("::1"))},
		{name: "visited-host4", what: "the same at the host's own address", try: waitForVisitor(netip.IPv4Unspecified()), assist: fromHost(host4)},
		{name: "visited-ingress", what: "a peer outside that ingress allows asks the task's server", policy: []string{`ingress: [{from: ["198.51.100.66:*"]}]`}, try: waitForVisitor(netip.IPv4Unspecified()), assist: fromOutside(denied4, host4)},
		{name: "visited-ingress6", what: "the same over IPv6", policy: []string{`ingress: [{from: ["[2001:db8:d::/48]:1024-65535"]}]`}, try: waitForVisitor(netip.IPv6Unspecified()), assist: fromOutside(denied6, host6)},
		{name: "visited-ingress-udp", what: "a peer outside that ingress allows asks the task's UDP server", policy: []string{`ingress: [{from: ["udp://198.51.100.66:*"]}]`}, try: answer(func(a *attempt, s sock, peer unix.Sockaddr) error {
			return step("sendto", unix.Sendto(int(s), a.payload(), 0, peer))
		}), assist: askUDP},
	}
}

// waitForVisitor serves until the test has been served.
func waitForVisitor(address netip.Addr) func(*attempt) error {
	return func(a *attempt) error {
		return withServer(address, func(port uint16) error {
			a.say(fmt.Sprintf("listening %d", port))
			_, err := a.hear()
			return err
		})
	}
}

func fromHost(to netip.Addr) func(*trial) error {
	return func(t *trial) error {
		port, err := t.listening()
		if err != nil {
			return err
		}
		var conn net.Conn
		if err := t.lab.host.Do(func() (err error) {
			conn, err = net.DialTimeout("tcp", at(to, port).String(), 3*time.Second)
			return err
		}); err != nil {
			return err
		}
		return t.served(conn)
	}
}

func fromOutside(from, to netip.Addr) func(*trial) error {
	return func(t *trial) error {
		port, err := t.listening()
		if err != nil {
			return err
		}
		conn, err := t.lab.fromSink("tcp", from.String(), at(to, port).String())
		if err != nil {
			return err
		}
		return t.served(conn)
	}
}

func (t *trial) served(conn net.Conn) error {
	defer conn.Close()
	for range 3 {
		if err := echo(conn, []byte(t.token)); err != nil {
			return err
		}
	}
	return t.process.tell("served")
}

func askUDP(t *trial) error {
	port, err := t.listening()
	if err != nil {
		return err
	}
	return t.lab.sink.Do(func() error {
		s, err := open(unix.AF_INET, unix.SOCK_DGRAM, 0)
		if err != nil {
			return err
		}
		defer s.close()
		if err := s.bind(at(denied4, 0)); err != nil {
			return err
		}
		if err := s.sendTo([]byte("hello"), 0, at(host4, port)); err != nil {
			return err
		}
		_, err = unix.Read(int(s), make([]byte, 256))
		return step("read the answer", err)
	})
}
