// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"net"
	"time"
)

// fetch is an agent's small tool: connect, read the greeting.
func fetch(address string) error {
	conn, err := net.DialTimeout("tcp", address, 5*time.Second)
	if err != nil {
		return fmt.Errorf("fetch: %w", err)
	}
	defer conn.Close()
	greeting := make([]byte, len(welcome))
	if _, err := io.ReadFull(conn, greeting); err != nil {
		return fmt.Errorf("fetch: %w", err)
	}
	fmt.Printf("fetch: %s says: %s", address, greeting)
	return nil
}

// upload sends data without end.
func upload(address string) error {
	conn, err := net.DialTimeout("tcp", address, 5*time.Second)
	if err != nil {
		return fmt.Errorf("upload: %w", err)
	}
	defer conn.Close()
	const pause, report = 10 * time.Millisecond, 500 * time.Millisecond
	block := make([]byte, 64<<10)
	sent, told := 0, time.Now()
	for {
		n, err := conn.Write(block)
		sent += n
		if err != nil {
			return fmt.Errorf("upload: cut after %d kB: %w", sent>>10, err)
		}
		if time.Since(told) > report {
			told = time.Now()
			fmt.Printf("upload: %d kB sent\n", sent>>10)
		}
		time.Sleep(pause)
	}
}
