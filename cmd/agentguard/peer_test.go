// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// sink is a TCP server of the world that answers each line with itself and counts.
type sink struct {
	listener net.Listener
	received atomic.Int64
	serving  sync.WaitGroup
	mu       sync.Mutex
	conns    []net.Conn
}

func newSink() (*sink, error) {
	listener, err := listenInWorld()
	if err != nil {
		return nil, err
	}
	s := &sink{listener: listener}
	s.serving.Go(s.serve)
	return s, nil
}

func (s *sink) address() string { return s.listener.Addr().String() }

func (s *sink) serve() {
	for {
		conn, err := s.listener.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		s.conns = append(s.conns, conn)
		s.mu.Unlock()
		s.serving.Go(func() { s.echo(conn) })
	}
}

func (s *sink) echo(conn net.Conn) {
	defer conn.Close()
	lines := bufio.NewReader(conn)
	for {
		line, err := lines.ReadString('\n')
		s.received.Add(int64(len(line)))
		if err != nil {
			return
		}
		if _, err := io.WriteString(conn, line); err != nil {
			return
		}
	}
}

func (s *sink) close() {
	s.listener.Close()
	s.mu.Lock()
	for _, conn := range s.conns {
		conn.Close()
	}
	s.mu.Unlock()
	s.serving.Wait()
}

// peerMain is a client for scripts: `peer once ADDRESS` sends a line and wants
// it back; `peer stream ADDRESS` goes on until an error.
func peerMain() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: peer once|stream ADDRESS")
		os.Exit(2)
	}
	if err := converse(os.Args[2], os.Args[1] == "stream"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func converse(address string, forever bool) error {
	conn, err := net.DialTimeout("tcp", address, patience)
	if err != nil {
		return err
	}
	defer conn.Close()
	answers := bufio.NewReader(conn)
	for {
		conn.SetDeadline(time.Now().Add(patience))
		if _, err := fmt.Fprintf(conn, "hello\n"); err != nil {
			return err
		}
		answer, err := answers.ReadString('\n')
		if err != nil {
			return err
		}
		if !forever {
			fmt.Print("answered ", answer)
			return nil
		}
		time.Sleep(time.Millisecond)
	}
}
