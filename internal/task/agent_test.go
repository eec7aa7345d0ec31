// SPDX-License-Identifier: Apache-2.0

package task

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"agentguard.dev/agentguard/internal/cgroup"
)

// processMode turns the test binary into a process of a task, which does on the
// network what its standard input says.
const processMode = "AGENTGUARD_TEST_PROCESS"

func TestMain(m *testing.M) {
	if os.Getenv(processMode) != "" {
		obey(os.Stdin, os.Stdout)
		return
	}
	os.Exit(m.Run())
}

// process is the test's end of one.
type process struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

// startProcess starts one in the cgroup at path, in the fixture's namespace.
func (f *fixture) startProcess(path string) *process {
	f.t.Helper()
	var p *process
	var err error
	f.in(f.near, func() { p, err = f.spawn(path) })
	if err != nil {
		f.t.Fatal(err)
	}
	return p
}

// startOutcast starts one in user and network namespaces of its own, in which it is root.
func (f *fixture) startOutcast(path string) *process {
	f.t.Helper()
	p, err := f.spawn(path, func(attr *syscall.SysProcAttr) {
		attr.Cloneflags = syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET
		attr.UidMappings = []syscall.SysProcIDMap{{Size: 1}}
		attr.GidMappings = attr.UidMappings
	})
	must(f.t, err)
	return p
}

// spawn starts one where the calling thread stands.
func (f *fixture) spawn(path string, edit ...func(*syscall.SysProcAttr)) (*process, error) {
	dir, err := cgroup.Open(path)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), processMode+"=1")
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: dir.FD()}
	for _, e := range edit {
		e(cmd.SysProcAttr)
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start a process in %s: %w", path, err)
	}
	f.t.Cleanup(func() {
		in.Close()
		cmd.Process.Kill()
		cmd.Wait()
	})
	return &process{f.t, cmd, in, bufio.NewReader(out)}, nil
}

// do says what to do and returns "ok" with the answer, or the error.
func (p *process) do(format string, args ...any) string {
	p.t.Helper()
	if _, err := fmt.Fprintf(p.in, format+"\n", args...); err != nil {
		return "gone"
	}
	answer, err := p.out.ReadString('\n')
	if err != nil {
		return "gone"
	}
	return strings.TrimSpace(answer)
}

func (p *process) want(answer, format string, args ...any) {
	p.t.Helper()
	if got := p.do(format, args...); !strings.HasPrefix(got, answer) {
		p.t.Errorf("%s: got %q, want %q", fmt.Sprintf(format, args...), got, answer)
	}
}

const (
	denied  = "operation not permitted"
	aborted = "software caused connection abort"
)

// obey knows: dial NAME ADDR, write NAME DATA, read NAME, flood NAME,
// close NAME, hello NAME SNI (a TLS handshake), lookup HOST (at a SERVER, if there is
// another word), answer ADDR (as a DNS server), impersonate ADDR (whoever is asked),
// unshare N (threads, into a network namespace each), udp ADDR (connect, but send
// nothing), send ADDR (a datagram, without a connect).
func obey(in io.Reader, out io.Writer) {
	conns := make(map[string]net.Conn)
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		answer, err := obeyOne(strings.Fields(lines.Text()), conns)
		if err != nil {
			for inner := err; inner != nil; {
				err = inner
				unwrapper, ok := inner.(interface{ Unwrap() error })
				if !ok {
					break
				}
				inner = unwrapper.Unwrap()
			}
			fmt.Fprintln(out, err)
			continue
		}
		fmt.Fprintln(out, "ok", answer)
	}
}

func obeyOne(words []string, conns map[string]net.Conn) (string, error) {
	const patience = 3 * time.Second
	switch words[0] {
	case "dial":
		conn, err := net.DialTimeout("tcp", words[2], patience)
		if err != nil {
			return "", err
		}
		conns[words[1]] = conn
		return "", nil
	case "write":
		conns[words[1]].SetWriteDeadline(time.Now().Add(patience))
		_, err := io.WriteString(conns[words[1]], words[2])
		return "", err
	case "flood": // until the socket takes no more
		conns[words[1]].SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
		chunk := make([]byte, 64<<10)
		for {
			if _, err := conns[words[1]].Write(chunk); err != nil {
				return "", nil
			}
		}
	case "read":
		conns[words[1]].SetReadDeadline(time.Now().Add(patience))
		buf := make([]byte, 4096)
		n, err := conns[words[1]].Read(buf)
		return string(buf[:n]), err
	case "close":
		return "", conns[words[1]].Close()
	case "hello":
		conns[words[1]].SetDeadline(time.Now().Add(patience))
		return "", tls.Client(conns[words[1]], &tls.Config{InsecureSkipVerify: true, ServerName: words[2]}).Handshake()
	case "lookup":
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		resolver := &net.Resolver{PreferGo: true}
		if len(words) > 2 {
			resolver.Dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, network, words[2])
			}
		}
		addrs, err := resolver.LookupNetIP(ctx, "ip4", words[1]+".")
		return fmt.Sprint(addrs), err
	case "impersonate":
		return "", impersonate(words[1])
	case "udp":
		conn, err := net.Dial("udp", words[1])
		if err != nil {
			return "", err
		}
		return "", conn.Close()
	case "send":
		conn, err := net.ListenUDP("udp4", nil)
		if err != nil {
			return "", err
		}
		defer conn.Close()
		_, err = conn.WriteToUDPAddrPort([]byte("x"), netip.MustParseAddrPort(words[1]))
		return "", err
	case "unshare":
		n, err := strconv.Atoi(words[1])
		for range n {
			if err == nil {
				err = stray()
			}
		}
		return "", err
	case "answer":
		return "", answerDNS("127.0.0.1:53", map[string]string{"api.good.test.": words[1]})
	}
	return "", fmt.Errorf("unknown order %q", words)
}
