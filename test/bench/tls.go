// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// rawConn is a socket whose system calls are raw: the Go scheduler takes no part.
type rawConn uintptr

func (c rawConn) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	n, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(c), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
	if errno != 0 {
		return 0, errno
	}
	if n == 0 {
		return 0, io.EOF
	}
	return int(n), nil
}

func (c rawConn) Write(b []byte) (int, error) {
	for done := 0; done < len(b); {
		n, _, errno := unix.RawSyscall(unix.SYS_WRITE, uintptr(c), uintptr(unsafe.Pointer(&b[done])), uintptr(len(b)-done))
		if errno != 0 {
			return done, errno
		}
		done += int(n)
	}
	return len(b), nil
}

func (c rawConn) Close() error {
	unix.RawSyscall(unix.SYS_CLOSE, uintptr(c), 0, 0)
	return nil
}

func (rawConn) LocalAddr() net.Addr              { return nil }
func (rawConn) RemoteAddr() net.Addr             { return nil }
func (rawConn) SetDeadline(time.Time) error      { return nil }
func (rawConn) SetReadDeadline(time.Time) error  { return nil }
func (rawConn) SetWriteDeadline(time.Time) error { return nil }

// handshake makes a connection, shakes hands, hears one byte, with which session
// tickets have come, and hangs up.
func (l *load) handshake() {
	fd := l.socket(unix.SOCK_STREAM)
	unix.RawSyscall6(unix.SYS_SETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_LINGER,
		uintptr(unsafe.Pointer(&resetOnClose)), unsafe.Sizeof(resetOnClose), 0)
	l.connect(fd, 0)
	conn := tls.Client(rawConn(fd), l.tls)
	if _, err := conn.Read(l.buffer[:1]); err != nil {
		l.fail("handshake", err)
	}
	rawConn(fd).Close()
}

// clientTLS is of a client that shows benchHost, and resumes sessions if it may.
// It believes every certificate, which would take longer than the guard.
func clientTLS(resume bool) *tls.Config {
	c := &tls.Config{ServerName: benchHost, InsecureSkipVerify: true, MinVersion: tls.VersionTLS13}
	if resume {
		c.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	}
	return c
}

// runTLS is the main of a TLS server: one connection after the other.
func runTLS() {
	runtime.LockOSThread()
	debug.SetGCPercent(-1) // it does not live long
	config, err := serverTLS()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench: TLS server:", err)
		os.Exit(1)
	}
	buffer := make([]byte, 1)
	for {
		fd, _, errno := unix.RawSyscall6(unix.SYS_ACCEPT4, inherited, 0, 0, unix.SOCK_CLOEXEC, 0, 0)
		if errno != 0 {
			return
		}
		conn := tls.Server(rawConn(fd), config)
		if _, err := conn.Write(buffer); err == nil {
			_, _ = rawConn(fd).Read(buffer) // until the client hangs up
		}
		rawConn(fd).Close()
	}
}

func serverTLS() (*tls.Config, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{benchHost}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}, nil
}
