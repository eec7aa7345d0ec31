// SPDX-License-Identifier: Apache-2.0

package hello

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"agentguard.dev/agentguard/internal/cgroup"
)

// sayTo turns the test binary into a process that sends its standard input to an address, with one call.
const sayTo = "AGENTGUARD_TEST_SAY_TO"

func TestMain(m *testing.M) {
	if address := os.Getenv(sayTo); address != "" {
		if err := say(address); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func say(address string) error {
	words, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	c, err := net.DialTimeout("tcp", address, 10*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.Write(words); err != nil {
		return err
	}
	return c.(*net.TCPConn).CloseWrite()
}

// Packets of real sockets are larger than a test run's, and in pages.
func TestSockets(t *testing.T) {
	p := newParser(t)
	dir := newCgroup(t)
	attached, err := link.AttachCgroup(link.CgroupOptions{Path: dir.Path(), Attach: ebpf.AttachCGroupInetEgress, Program: p.objs.ReadPayload})
	if err != nil {
		t.Fatal(err)
	}
	defer attached.Close()

	const record = 5 + 1<<14
	largest := record - len(with(hosts("x.test"), extension(21, nil)))
	many := append(slices.Repeat([][]byte{extension(0x1a1a, nil)}, 4000), hosts("last.test"))

	for _, c := range []struct {
		about   string
		payload []byte
		want    answer
	}{
		{"name before the largest extension", with(hosts("x.test"), extension(21, make([]byte, largest))), answer{named, "x.test"}},
		{"name after the largest extension", with(extension(21, make([]byte, largest)), hosts("x.test")), answer{named, "x.test"}},
		{"a byte too large", with(hosts("x.test"), extension(21, make([]byte, largest+1))), answer{verdict: bad}},
		{"4,000 extensions", with(many...), answer{named, "last.test"}},
		{"encrypted hello at the end", with(hosts("x.test"), extension(21, make([]byte, 9000)), extension(0xfe0d, []byte{0})), answer{verdict: encrypted}},
		{"second name at the end", with(hosts("x.test"), extension(21, make([]byte, 9000)), hosts("y.test")), answer{verdict: bad}},
		{"the last byte missing", bytes.TrimSuffix(with(extension(21, make([]byte, largest)), hosts("x.test")), []byte("t")), answer{verdict: incomplete}},
		{"data behind it", append(with(extension(21, make([]byte, 3000)), hosts("x.test")), make([]byte, 20000)...), answer{named, "x.test"}},
	} {
		t.Run(c.about, func(t *testing.T) {
			if got := reference(c.payload); got != c.want {
				t.Errorf("reference: %v, want %v", got, c.want)
			}
			before := p.reading(t).Packets
			send(t, dir, c.payload)
			r := p.reading(t)
			if r.Packets != before+1 || r.Hello.Length != uint32(len(c.payload)) {
				t.Fatalf("%d packets, the last with %d bytes of %d", r.Packets-before, r.Hello.Length, len(c.payload))
			}
			if got := r.answer(t); got != c.want {
				t.Errorf("%v, want %v", got, c.want)
			}
		})
	}
}

// send has a process in the cgroup send the payload to somebody who hears all of it.
func send(t *testing.T, dir *cgroup.Dir, payload []byte) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Env = append(os.Environ(), sayTo+"="+l.Addr().String())
	cmd.Stdin = bytes.NewReader(payload)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: dir.FD()}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	heard := make(chan int, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			heard <- -1
			return
		}
		defer c.Close()
		n, _ := io.Copy(io.Discard, c)
		heard <- int(n)
	}()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if n := <-heard; n != len(payload) {
		t.Fatalf("%d of %d bytes arrived", n, len(payload))
	}
}

// newCgroup makes a cgroup for the processes that the test waits for.
func newCgroup(t *testing.T) *cgroup.Dir {
	t.Helper()
	mount, err := cgroup.Mount()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := cgroup.Create(filepath.Join(mount, fmt.Sprintf("agentguard-test-%d-%d", os.Getpid(), time.Now().UnixNano())))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := dir.Remove(ctx); err != nil {
			t.Error(err)
		}
		dir.Close()
	})
	return dir
}

// What one reading costs: an established connection pays it once.
func BenchmarkRead(b *testing.B) {
	p := newParser(b)
	if info, err := p.objs.ReadPayload.Info(); err == nil {
		if n, ok := info.VerifiedInstructions(); ok {
			b.Logf("%d instructions verified", n)
		}
	}
	for _, r := range recordings(b) {
		b.Run(r.client, func(b *testing.B) {
			_, took, err := p.objs.ReadPayload.Benchmark(frame(r.payload), b.N, b.ResetTimer)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(took.Nanoseconds()), "ns/reading")
		})
	}
}
