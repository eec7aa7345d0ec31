// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// control is something ordinary that must go on working in a task.
type control struct {
	name   string
	what   string
	class  class
	needs  []feature
	tools  []string
	allow  []string // replaces the usual rules
	policy []string

	// try returns nil if it works. assist runs beside it in the test, stage
	// before it.
	try           func(*attempt) error
	stage, assist func(*trial) error
}

// TestControls shows what goes on working, without and with the guard.
func TestControls(t *testing.T) {
	l := newLab(t)
	g := newGuard(t, l)
	rows := newTable(t, "control", len(controls()))
	for _, c := range controls() {
		t.Run(c.name, func(t *testing.T) {
			row := rows.begin(c.name, c.what, c.class, "")
			if missing := l.missing(c.needs); missing != "" {
				row.skip(missing)
				skipForKernel(t, missing)
			}
			if missing := missingTool(t, c.tools); missing != "" {
				row.skip("no " + missing)
				skipForTool(t, missing)
			}
			if row.unguarded = l.works(t, c, nil); row.unguarded == "works" {
				row.guarded = l.works(t, c, g)
			}
			row.held = row.guarded == "works"
		})
	}
}

func (l *lab) works(t *testing.T, c control, g guard) string {
	t.Helper()
	how := "unguarded"
	if g != nil {
		how = "guarded"
	}
	r := &trial{lab: l, guard: g, guarded: g != nil, token: newToken(), technique: technique{
		name: c.name, class: c.class, allow: c.allow, policy: c.policy, assist: c.assist,
	}}
	out, err := r.runControl(c)
	err = errors.Join(err, r.clean())
	if err != nil || out.Error != "" {
		t.Errorf("%s, it does not work: %v %s", how, err, out.Error)
		return "fails"
	}
	return "works"
}

func (r *trial) runControl(c control) (out outcome, err error) {
	if c.stage != nil {
		if err := c.stage(r); err != nil {
			return out, err
		}
	}
	dir, err := r.birthplace()
	if err != nil {
		return out, err
	}
	if r.process, err = r.start(dir, c.class, "control-"+c.name); err != nil {
		return out, err
	}
	if c.assist != nil {
		err = c.assist(r)
	}
	out, waitErr := r.process.wait()
	return out, errors.Join(err, waitErr)
}

func controls() []control {
	var all []control
	for _, group := range [][]control{transfers(), ownServers(), visited(), families(), toolControls(), translated(), permissions(), byNames()} {
		all = append(all, group...)
	}
	return all
}

// transfers are traffic with allowed destinations.
func transfers() []control {
	four, six := at(allowed4, allowedPort), at(allowed6, allowedPort)
	return []control{
		{name: "tcp4-echo", what: "TCP, both ways", try: exchange("tcp", four.String(), 1, 100)},
		{name: "tcp6-echo", what: "TCP over IPv6", try: exchange("tcp", six.String(), 1, 100)},
		{name: "tcp-mapped", what: "TCP to an IPv4-mapped address", try: tcpSocket(allowed6, func(a *attempt, s sock) error {
			if err := a.connectAndSend(s, at(mapped(allowed4), allowedPort)); err != nil {
				return err
			}
			return s.readBack(a.payload())
		})},
		{name: "tcp-keepalive", what: "many exchanges on one connection", try: exchange("tcp", four.String(), 200, 100)},
		{name: "tcp-many", what: "many connections at once", try: many(four.String(), 50)},
		{name: "tcp-bulk", what: "8 MiB there and back", try: exchange("tcp", four.String(), 1, 8<<20)},
		{name: "tcp6-bulk", what: "8 MiB there and back over IPv6", try: exchange("tcp", six.String(), 1, 8<<20)},
		{name: "tcp-half-close", what: "the peer still sends after the task has said everything", try: halfClose},
		{name: "tcp-nonblocking", what: "non-blocking connect and poll", try: nonblocking(four)},
		{name: "tcp-reconnect", what: "a socket disconnected and connected to another allowed destination", try: tcpSocket(allowed6, func(a *attempt, s sock) error {
			if err := s.connect(six); err != nil {
				return err
			}
			if err := s.disconnect(); err != nil {
				return err
			}
			if err := a.connectAndSend(s, at(allowed6b, allowedPort)); err != nil {
				return err
			}
			return s.readBack(a.payload())
		})},
		{name: "tcp-refused", what: "a closed port of an allowed address refuses, as it does without the guard", allow: []string{"198.51.100.10:81"}, try: func(a *attempt) error {
			err := tcp(at(allowed4, 81))(a)
			if !errors.Is(err, unix.ECONNREFUSED) {
				return fmt.Errorf("connect to a closed port: %w, want ECONNREFUSED", err)
			}
			return nil
		}},
		{name: "tcp-splice", what: "splice", try: through(spliceTo)},
		{name: "tcp-sendfile", what: "sendfile", try: through(sendfileTo)},
		{name: "tcp-zerocopy", what: "MSG_ZEROCOPY", try: through(zerocopyTo)},
		{name: "tcp-urgent", what: "urgent data", try: tcpSocket(allowed4, func(a *attempt, s sock) error {
			if err := s.connect(four); err != nil {
				return err
			}
			return s.send(a.payload(), unix.MSG_OOB)
		})},
		{name: "tfo-sendto", what: "Fast Open by sendto", try: fastOpenSend(four)},
		{name: "tfo-connect", what: "Fast Open by TCP_FASTOPEN_CONNECT", try: fastOpenConnect(four)},
		{name: "mptcp-fallback", what: "Go asks for MPTCP and falls back to TCP by itself", try: func(a *attempt) error {
			var d net.Dialer
			d.SetMultipathTCP(true)
			conn, err := d.Dial("tcp", four.String())
			if err != nil {
				return err
			}
			defer conn.Close()
			return echo(conn, a.payload())
		}},
		{name: "udp4-echo", what: "UDP request and response, connected", try: exchange("udp", four.String(), 20, 100)},
		{name: "udp6-echo", what: "the same over IPv6", try: exchange("udp", six.String(), 20, 100)},
		{name: "udp4-fragments", what: "a datagram of 5,000 octets there and back, in fragments", try: exchange("udp", four.String(), 1, 5000)},
		{name: "udp6-fragments", what: "the same over IPv6", try: exchange("udp", six.String(), 1, 5000)},
		{name: "udp-unconnected", what: "UDP by sendto to two destinations from one socket", try: udpSocket(allowed6, func(a *attempt, s sock) error {
			for _, to := range []netip.AddrPort{six, at(allowed6b, allowedPort), at(mapped(allowed4), allowedPort), six} {
				if err := s.sendTo(a.payload(), 0, to); err != nil {
					return err
				}
				if err := s.readBack(a.payload()); err != nil {
					return fmt.Errorf("%s: %w", to, err)
				}
			}
			return nil
		})},
		{name: "udp-sendmmsg", what: "sendmmsg to two destinations", try: udpSocket(allowed6, func(a *attempt, s sock) error {
			if err := s.sendMany(a.payload(), six, at(allowed6b, allowedPort)); err != nil {
				return err
			}
			return errors.Join(s.readBack(a.payload()), s.readBack(a.payload()))
		})},
		{name: "udp-gso", what: "UDP_SEGMENT", try: udpSocket(allowed4, func(a *attempt, s sock) error {
			if err := s.set(unix.IPPROTO_UDP, unix.UDP_SEGMENT, len(a.payload())); err != nil {
				return err
			}
			if err := s.sendTo(append(a.payload(), a.payload()...), 0, four); err != nil {
				return err
			}
			return errors.Join(s.readBack(a.payload()), s.readBack(a.payload()))
		})},
		{name: "udp-ancillary", what: "ancillary data that only says how: TTL and type of service", try: udpSocket(allowed4, func(a *attempt, s sock) error {
			control := append(ancillary(unix.IPPROTO_IP, unix.IP_TTL, native32(nil, 9)), ancillary(unix.IPPROTO_IP, unix.IP_TOS, native32(nil, 8))...)
			if err := s.sendMsg(a.payload(), control, 0, four); err != nil {
				return err
			}
			return s.readBack(a.payload())
		})},
		{name: "udp-reconnect", what: "a UDP socket connected to one allowed destination, then another", try: udpSocket(allowed6, func(a *attempt, s sock) error {
			for _, to := range []netip.AddrPort{six, at(allowed6b, allowedPort)} {
				if err := a.connectAndSend(s, to); err != nil {
					return err
				}
				if err := s.readBack(a.payload()); err != nil {
					return err
				}
			}
			return nil
		})},
		{name: "ping4", what: "a ping and its answer", try: ping(allowed4, unix.IPPROTO_ICMP)},
		{name: "ping6", what: "a ping and its answer over IPv6", try: ping(allowed6, unix.IPPROTO_ICMPV6)},
		{name: "uring-tcp", what: "io_uring connects and sends", needs: []feature{ringWith("connect and send", ringSend)}, try: ringTCP(four, 0, 0)},
		{name: "uring-sqpoll", what: "the same by its polling thread", needs: []feature{ringWith("connect and send", ringSend)}, try: ringTCP(four, ringPoll, 0)},
		{name: "uring-udp", what: "io_uring sends a datagram", needs: []feature{ringWith("sendmsg", ringSendmsg)}, try: ringUDP(ringSendmsg, 0, four)},
	}
}

// exchange sends size octets and wants them back, rounds times on one
// connection.
func exchange(network, address string, rounds, size int) func(*attempt) error {
	return func(a *attempt) error {
		conn, err := net.Dial(network, address)
		if err != nil {
			return err
		}
		defer conn.Close()
		data := bytes.Repeat(a.payload(), size/len(a.payload())+1)[:size]
		for range rounds {
			if err := echo(conn, data); err != nil {
				return err
			}
		}
		return nil
	}
}

// echo wants back what it sends.
func echo(conn net.Conn, data []byte) error {
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	sent := make(chan error, 1)
	go func() {
		_, err := conn.Write(data)
		sent <- err
	}()
	back := make([]byte, len(data))
	if _, err := io.ReadFull(conn, back); err != nil {
		return step("read back", err)
	}
	if !bytes.Equal(back, data) {
		return errors.New("what came back is not what was sent")
	}
	return <-sent
}

func (s sock) readBack(want []byte) error {
	back := make([]byte, 65536)
	n, err := unix.Read(int(s), back)
	if err != nil {
		return step("read back", err)
	}
	if !bytes.Equal(back[:n], want) {
		return fmt.Errorf("%q came back, not %q", back[:n], want)
	}
	return nil
}

func many(address string, n int) func(*attempt) error {
	return func(a *attempt) error {
		failed := make(chan error, n)
		for range n {
			go func() { failed <- exchange("tcp", address, 1, 100)(a) }()
		}
		var err error
		for range n {
			err = errors.Join(err, <-failed)
		}
		return err
	}
}

// through sends by other means than write, several times.
func through(send func(sock, []byte) error) func(*attempt) error {
	return tcpSocket(allowed4, func(a *attempt, s sock) error {
		if err := s.connect(at(allowed4, allowedPort)); err != nil {
			return err
		}
		for range 20 {
			if err := send(s, a.payload()); err != nil {
				return err
			}
			if err := s.readBack(a.payload()); err != nil {
				return err
			}
		}
		return nil
	})
}

func halfClose(a *attempt) error {
	conn, err := net.Dial("tcp", at(allowed4, allowedPort).String())
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	if _, err := conn.Write(a.payload()); err != nil {
		return err
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		return err
	}
	back, err := io.ReadAll(conn)
	if err != nil {
		return err
	}
	if !bytes.Equal(back, a.payload()) {
		return fmt.Errorf("%q came back", back)
	}
	return nil
}

func ping(to netip.Addr, proto int) func(*attempt) error {
	return func(a *attempt) error {
		s, err := openFor(to, unix.SOCK_DGRAM, proto)
		if err != nil {
			return err
		}
		defer s.close()
		for _, connected := range []bool{false, true} {
			request := echoRequest(to.Is6(), a.payload())
			if connected {
				if err := s.connect(at(to, 0)); err != nil {
					return err
				}
				err = s.write(request)
			} else {
				err = s.sendTo(request, 0, at(to, 0))
			}
			if err != nil {
				return err
			}
			answer := make([]byte, 1500)
			n, err := unix.Read(int(s), answer)
			if err != nil {
				return step("read the answer", err)
			}
			if !bytes.Contains(answer[:n], a.payload()) {
				return errors.New("the answer is not the request's")
			}
		}
		return nil
	}
}
