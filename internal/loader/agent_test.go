// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"agentguard.dev/agentguard/internal/cgroup"
)

// agentMode turns the test binary into an agent: a process born in a task's
// cgroup that does on the network what it is told over its standard input.
const agentMode = "AGENTGUARD_TEST_AGENT"

func TestMain(m *testing.M) {
	if os.Getenv(agentMode) != "" {
		runAgent(os.Stdin, os.Stdout)
		return
	}
	os.Exit(m.Run())
}

// agent is the test's end of such a process.
type agent struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func startAgent(dir *cgroup.Dir) (*agent, error) {
	cmd := exec.Command("/proc/self/exe")
	// Bare system calls have no use for the runtime's signals.
	cmd.Env = append(os.Environ(), agentMode+"=1", "GODEBUG=asyncpreemptoff=1")
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: dir.FD()}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start agent in %s: %w", dir.Path(), err)
	}
	return &agent{cmd: cmd, in: in, out: bufio.NewReader(out)}, nil
}

func (a *agent) stop() {
	a.in.Close()
	a.cmd.Process.Kill()
	a.cmd.Wait()
}

// do tells the agent to do something and returns its answer: "ok ..." or the
// error.
func (a *agent) do(format string, args ...any) string {
	a.t.Helper()
	if _, err := fmt.Fprintf(a.in, format+"\n", args...); err != nil {
		a.t.Fatalf("tell agent: %v", err)
	}
	answer, err := a.out.ReadString('\n')
	if err != nil {
		a.t.Fatalf("agent died: %v", err)
	}
	return strings.TrimSpace(answer)
}

func (a *agent) want(answer, format string, args ...any) {
	a.t.Helper()
	if got := a.do(format, args...); !strings.HasPrefix(got, answer) {
		a.t.Errorf("%s: got %q, want %q", fmt.Sprintf(format, args...), got, answer)
	}
}

const agentPatience = 3 * time.Second

func runAgent(in io.Reader, out io.Writer) {
	conns := make(map[string]net.Conn)
	packets := make(map[string]net.PacketConn)
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		answer, err := agentStep(strings.Fields(lines.Text()), conns, packets)
		if err != nil {
			answer = strings.ReplaceAll(err.Error(), "\n", " ")
		} else {
			answer = "ok " + answer
		}
		fmt.Fprintln(out, answer)
	}
}

// agentStep knows: dial NAME NETWORK ADDR, listen NAME NETWORK ADDR, accept NAME
// LISTENER, packet NAME NETWORK ADDR, sendto NAME ADDR DATA, burst NAME COUNT ADDR..., write NAME DATA,
// read NAME, socket FAMILY TYPE PROTO, setsockopt LEVEL NAME; and the attacks by
// their names.
func agentStep(words []string, conns map[string]net.Conn, packets map[string]net.PacketConn) (string, error) {
	deadline := time.Now().Add(agentPatience)
	switch words[0] {
	case "dial":
		conn, err := net.DialTimeout(words[2], words[3], agentPatience)
		if err != nil {
			return "", rootCause(err)
		}
		conns[words[1]] = conn
		return conn.LocalAddr().String(), nil
	case "serve": // one TCP listener that echoes for ever
		l, err := net.Listen(words[2], words[3])
		if err != nil {
			return "", rootCause(err)
		}
		go echo(l)
		return l.Addr().String(), nil
	case "packet":
		conn, err := net.ListenPacket(words[2], words[3])
		if err != nil {
			return "", rootCause(err)
		}
		packets[words[1]] = conn
		return conn.LocalAddr().String(), nil
	case "sendto":
		addr, err := net.ResolveUDPAddr("udp", words[2])
		if err != nil {
			return "", err
		}
		_, err = packets[words[1]].WriteTo([]byte(words[3]), addr)
		return "", rootCause(err)
	case "burst": // COUNT datagrams to each address, from one CPU, up to the first refusal
		count, _ := strconv.Atoi(words[2])
		return burst(packets[words[1]], count, words[3:])
	case "receive":
		p := packets[words[1]]
		p.SetReadDeadline(deadline)
		buf := make([]byte, 65536)
		n, _, err := p.ReadFrom(buf)
		return string(buf[:n]), rootCause(err)
	case "write":
		c := conns[words[1]]
		c.SetWriteDeadline(deadline)
		_, err := c.Write([]byte(words[2]))
		return "", rootCause(err)
	case "read":
		c := conns[words[1]]
		c.SetReadDeadline(deadline)
		buf := make([]byte, 65536)
		n, err := c.Read(buf)
		return string(buf[:n]), rootCause(err)
	case "flood": // for ever
		go func() {
			for {
				if conn, err := net.Dial(words[1], words[2]); err == nil {
					conn.Close()
				}
			}
		}()
		return "", nil
	case "socket":
		var family, kind, proto int
		fmt.Sscan(strings.Join(words[1:], " "), &family, &kind, &proto)
		fd, err := syscall.Socket(family, kind, proto)
		if err != nil {
			return "", err
		}
		return "", syscall.Close(fd)
	case "setsockopt":
		var family, level, name, length int
		fmt.Sscan(strings.Join(words[1:], " "), &family, &level, &name, &length)
		fd, err := syscall.Socket(family, syscall.SOCK_DGRAM, 0)
		if err != nil {
			return "", err
		}
		defer syscall.Close(fd)
		return "", syscall.SetsockoptString(fd, level, name, string(make([]byte, length)))
	}
	if attack := attacks[words[0]]; attack != nil {
		return attack(words[1:])
	}
	return "", fmt.Errorf("agent does not know %q", words[0])
}

func echo(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			io.Copy(conn, conn)
		}()
	}
}

func burst(from net.PacketConn, count int, addrs []string) (string, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return "", err
	}
	defer unix.SchedSetaffinity(0, &before)
	one.Set(0)
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return "", err
	}
	sent := 0
	for _, text := range addrs {
		addr, err := net.ResolveUDPAddr("udp", text)
		if err != nil {
			return "", err
		}
		for range count {
			if _, err := from.WriteTo([]byte("data"), addr); errors.Is(err, unix.EPERM) {
				return strconv.Itoa(sent), nil
			} else if err != nil {
				return "", rootCause(err)
			}
			sent++
		}
	}
	return strconv.Itoa(sent), nil
}

// rootCause strips addresses, so that answers can be compared.
func rootCause(err error) error {
	for {
		switch e := err.(type) {
		case *net.OpError:
			err = e.Err
		case *os.SyscallError:
			err = e.Err
		default:
			return err
		}
	}
}
