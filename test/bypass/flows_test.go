// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// flow is something that was allowed once and then is no more: the way out is
// to go on with it.
type flow struct {
	name   string
	what   string
	class  class
	needs  []feature
	allow  []string // destinations in the policy
	grants []string // destinations as grants
	policy []string
	ttl    time.Duration // of the task
	// alone says that no engine may help the kernel.
	alone bool
	// cut takes the permission back. When it returns nothing may leave.
	cut func(guardedTask) error
	// told says that the process must be given an error.
	told bool
	// patience is how long the flow needs to show that it goes on.
	patience time.Duration
	// seen picks the packets that count; without it those with the token.
	seen func(packet) bool

	// open begins the flow in the process and returns what sends once more.
	open func(*attempt) (func(i int) error, error)
	// stage prepares the sink, meet joins in while the process opens the flow,
	// and wake follows the cut.
	stage, meet, wake func(*trial) error
}

const (
	rule4    = "198.51.100.10:443"
	rule6    = "[2001:db8:a::10]:443"
	udpRule4 = "udp://198.51.100.10:443"
	udpRule6 = "udp://[2001:db8:a::10]:443"
	pingRule = "icmp://198.51.100.10"
)

func ended(task guardedTask) error { return task.end() }

func revoked(destination string) func(guardedTask) error {
	return func(task guardedTask) error { return task.revoke(destination) }
}

// expired lets the kernel's clock do it, with nobody to destroy the socket.
func expired(destination string) func(guardedTask) error {
	return func(task guardedTask) error {
		const life = 100 * time.Millisecond
		if err := task.grant(destination, life); err != nil {
			return err
		}
		time.Sleep(life)
		return nil
	}
}

// outlived waits for the end of the task's own time.
func outlived(task guardedTask) error {
	time.Sleep(time.Until(task.deadline()))
	return nil
}

// withdrawn replaces the policy by one that allows nothing.
func withdrawn(lines ...string) func(guardedTask) error {
	return func(task guardedTask) error { return task.apply(spec{policy: lines}) }
}

func flows() []flow {
	allowed := at(allowed4, allowedPort)
	tcp4, tcp6 := tcpFlow(allowed, nil), tcpFlow(at(allowed6, allowedPort), nil)
	udp4, udp6 := udpFlow(allowed), udpFlow(at(allowed6, allowedPort))
	multipathLines := []string{"mptcp: allow"}
	ingress := []string{`ingress: [{from: ["198.51.100.66:*"]}]`}
	return append([]flow{
		{name: "end-tcp4", what: "a TCP connection goes on after the end of the task", grants: []string{rule4}, cut: ended, told: true, open: tcp4},
		{name: "end-tcp6", what: "the same over IPv6", grants: []string{rule6}, cut: ended, told: true, open: tcp6},
		{name: "end-tcp-policy", what: "the same with the destination in the policy", allow: []string{rule4}, cut: ended, told: true, open: tcp4},
		{name: "end-udp4", what: "a connected UDP socket goes on after the end of the task", grants: []string{udpRule4}, cut: ended, told: true, open: udp4},
		{name: "end-udp6", what: "the same over IPv6", grants: []string{udpRule6}, cut: ended, told: true, open: udp6},
		{name: "end-udp-sendto", what: "an unconnected UDP socket goes on after the end of the task", grants: []string{udpRule4}, cut: ended, told: true, open: sendtoFlow(allowed)},
		{name: "end-ping", what: "a ping socket goes on after the end of the task", grants: []string{pingRule}, cut: ended, told: true, open: pingFlow},
		{name: "end-splice", what: "splice from a pipe goes on after the end of the task", grants: []string{rule4}, cut: ended, told: true, open: tcpFlow(allowed, spliceTo)},
		{name: "end-sendfile", what: "sendfile goes on after the end of the task", grants: []string{rule4}, cut: ended, told: true, open: tcpFlow(allowed, sendfileTo)},
		{name: "end-zerocopy", what: "MSG_ZEROCOPY goes on after the end of the task", grants: []string{rule4}, cut: ended, told: true, open: tcpFlow(allowed, zerocopyTo)},
		{name: "end-urgent", what: "urgent data (MSG_OOB) after the end of the task", grants: []string{rule4}, cut: ended, told: true, open: tcpFlow(allowed, urgentTo)},
		{name: "end-uring", what: "io_uring goes on sending after the end of the task", grants: []string{rule4}, needs: []feature{ringWith("send", ringSend)}, cut: ended, told: true, open: tcpFlow(allowed, ringTo)},
		{name: "end-uring-later", what: "a send that io_uring was told beforehand to make later", grants: []string{rule4}, needs: []feature{ringWith("send", ringSend)}, cut: ended, patience: 600 * time.Millisecond, open: ringLaterFlow(allowed)},
		{name: "end-mptcp", what: "an MPTCP connection goes on after the end of the task", grants: []string{rule4}, policy: multipathLines, needs: []feature{multipath()}, cut: ended, open: multipathFlow(allowed)},
		{name: "end-udplite", what: "UDP-Lite goes on after the end of the task", allow: []string{"udplite://198.51.100.10:443"}, needs: []feature{udplite()}, cut: ended, told: true, open: datagramFlow(allowed, unix.IPPROTO_UDPLITE)},
		{name: "end-sctp", what: "SCTP goes on after the end of the task", allow: []string{"sctp://198.51.100.66:8443"}, needs: []feature{sctp()}, cut: ended, open: associationFlow(at(denied4, deniedPort))},
		{name: "end-raw", what: "a raw socket, allowed by the policy, goes on after the end of the task", class: netRaw, policy: []string{"raw: allow"}, grants: []string{pingRule}, cut: ended, told: true, open: rawFlow},
		{name: "end-gso", what: "UDP_SEGMENT goes on after the end of the task", grants: []string{udpRule4}, cut: ended, told: true, open: segmentFlow(allowed)},
		{name: "end-subcgroup", what: "a socket of a cgroup below the task's goes on after the end of the task", class: root, grants: []string{rule4}, cut: ended, told: true, open: subcgroupFlow(allowed)},
		{name: "end-queued", what: "data that waits in the send buffer for the peer's window at the end of the task", grants: []string{"198.51.100.10:8080"}, cut: ended, open: queuedFlow(at(allowed4, 8080)), stage: slowPeer(at(allowed4, 8080)), wake: func(t *trial) error { return t.drain() }},
		{name: "end-keepalive", what: "the kernel's keep-alive of an idle connection after the end of the task", grants: []string{rule4}, cut: ended, patience: 1500 * time.Millisecond, seen: keepalive, open: keepaliveFlow(allowed)},
		{name: "end-inbound", what: "a connection that an allowed peer began goes on after the end of the task", policy: ingress, cut: ended, told: true, open: inboundFlow, meet: staying},
		{name: "end-connect", what: "new connections after the end of the task", grants: []string{rule4}, cut: ended, told: true, open: connectFlow(allowed)},
		{name: "end-fastopen", what: "new connections with Fast Open after the end of the task", grants: []string{rule4}, cut: ended, told: true, open: fastOpenFlow(allowed)},
		{name: "end-new-udp", what: "new UDP sockets after the end of the task", grants: []string{udpRule4}, cut: ended, told: true, open: newUDPFlow(allowed)},
		{name: "end-delayed", what: "a datagram with a time of its own (SO_TXTIME) waits in the link's queue, behind every hook, at the end of the task", grants: []string{udpRule4}, needs: []feature{fairQueue()}, cut: ended, patience: 2 * delay, stage: queued, open: delayedFlow(allowed)},
		{name: "end-paced", what: "datagrams wait in the link's queue for a rate of their own (SO_MAX_PACING_RATE) at the end of the task", grants: []string{udpRule4}, needs: []feature{fairQueue()}, cut: ended, patience: 2 * delay, stage: queued, open: pacedFlow(allowed)},
		{name: "revoke-tcp", what: "a TCP connection goes on after its grant is taken back", grants: []string{rule4}, cut: revoked(rule4), told: true, open: tcp4},
		{name: "revoke-udp", what: "a connected UDP socket goes on after its grant is taken back", grants: []string{udpRule4}, cut: revoked(udpRule4), told: true, open: udp4},
		{name: "revoke-udp-sendto", what: "an unconnected UDP socket goes on after its grant is taken back", grants: []string{udpRule4}, cut: revoked(udpRule4), told: true, open: sendtoFlow(allowed)},
		{name: "revoke-ping", what: "a ping socket goes on after its grant is taken back", grants: []string{pingRule}, cut: revoked(pingRule), told: true, open: pingFlow},
		{name: "revoke-cork", what: "datagrams begun (MSG_MORE) before the grant is taken back and finished after", grants: []string{udpRule4}, cut: revoked(udpRule4), told: true, open: corkFlow(allowed)},
		{name: "revoke-mptcp", what: "an MPTCP connection goes on after its grant is taken back", grants: []string{rule4}, policy: multipathLines, needs: []feature{multipath()}, cut: revoked(rule4), open: multipathFlow(allowed)},
		{name: "expire-tcp", what: "a TCP connection goes on after its grant's deadline, with no daemon", grants: []string{rule4}, alone: true, cut: expired(rule4), open: tcp4},
		{name: "expire-udp", what: "a UDP socket goes on after its grant's deadline, with no daemon", grants: []string{udpRule4}, alone: true, cut: expired(udpRule4), told: true, open: udp4},
		{name: "expire-task-tcp", what: "a TCP connection goes on after the task's deadline, with no daemon", grants: []string{rule4}, ttl: 1500 * time.Millisecond, alone: true, cut: outlived, open: tcp4},
		{name: "expire-task-udp", what: "a UDP socket goes on after the task's deadline, with no daemon", grants: []string{udpRule4}, ttl: 1500 * time.Millisecond, alone: true, cut: outlived, told: true, open: udp4},
		{name: "expire-tcp-told", what: "the same with the daemon, which destroys the socket", grants: []string{rule4}, cut: expired(rule4), told: true, open: tcp4},
		{name: "expire-task-told", what: "a TCP connection goes on after the task's deadline, with the daemon", grants: []string{rule4}, ttl: 1500 * time.Millisecond, cut: outlived, told: true, open: tcp4},
		{name: "policy-tcp", what: "a TCP connection goes on after the policy has changed", allow: []string{rule4}, cut: withdrawn(), told: true, open: tcp4},
		{name: "policy-udp", what: "a UDP socket goes on after the policy has changed", allow: []string{udpRule4}, cut: withdrawn(), told: true, open: udp4},
		{name: "policy-prefix", what: "the same where the policy named a prefix", allow: []string{"198.51.100.0/24:1-1000"}, cut: withdrawn(), told: true, open: tcp4},
		{name: "policy-mptcp", what: "an MPTCP connection goes on after the policy has changed", allow: []string{rule4}, policy: multipathLines, needs: []feature{multipath()}, cut: withdrawn(), open: multipathFlow(allowed)},
		{name: "policy-inbound", what: "a connection that a peer began goes on after the policy no longer allows ingress", policy: ingress, cut: withdrawn(), open: inboundFlow, meet: staying},
	}, namedFlows()...)
}

// keepSending is the process's side of a flow: it opens it, and sends every few
// milliseconds until the test has seen enough, whatever becomes of it.
func (f flow) keepSending(a *attempt) error {
	send, err := f.open(a)
	if err != nil {
		return err
	}
	stop := make(chan struct{})
	go func() {
		defer close(stop)
		a.hear()
	}()
	for i := 0; ; i++ {
		told := "ok"
		if err := send(i); err != nil && !errors.Is(err, unix.EAGAIN) {
			told = err.Error()
		}
		a.say(fmt.Sprintf("sent %d %s", i, told))
		select {
		case <-stop:
			return nil
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func tcpFlow(to netip.AddrPort, with func(s sock, data []byte) error) func(*attempt) (func(int) error, error) {
	if with == nil {
		with = func(s sock, data []byte) error { return s.send(data, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL) }
	}
	return func(a *attempt) (func(int) error, error) {
		s, err := openFor(to.Addr(), unix.SOCK_STREAM, unix.IPPROTO_TCP)
		if err != nil {
			return nil, err
		}
		if err := s.set(unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
			return nil, err
		}
		if err := s.connect(to); err != nil {
			return nil, err
		}
		return func(i int) error { return with(s, a.numbered(i)) }, nil
	}
}

func multipathFlow(to netip.AddrPort) func(*attempt) (func(int) error, error) {
	return func(a *attempt) (func(int) error, error) {
		s, err := openFor(to.Addr(), unix.SOCK_STREAM, unix.IPPROTO_MPTCP)
		if err != nil {
			return nil, err
		}
		if err := s.connect(to); err != nil {
			return nil, err
		}
		return func(i int) error { return s.send(a.numbered(i), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL) }, nil
	}
}

func associationFlow(to netip.AddrPort) func(*attempt) (func(int) error, error) {
	return func(a *attempt) (func(int) error, error) {
		s, err := open(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_SCTP)
		if err != nil {
			return nil, err
		}
		if err := s.connect(to); err != nil {
			return nil, err
		}
		return func(i int) error { return s.send(a.numbered(i), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL) }, nil
	}
}

func datagramFlow(to netip.AddrPort, proto int) func(*attempt) (func(int) error, error) {
	return func(a *attempt) (func(int) error, error) {
		s, err := openFor(to.Addr(), unix.SOCK_DGRAM, proto)
		if err != nil {
			return nil, err
		}
		if err := s.connect(to); err != nil {
			return nil, err
		}
		return func(i int) error { return s.send(a.numbered(i), 0) }, nil
	}
}

func udpFlow(to netip.AddrPort) func(*attempt) (func(int) error, error) {
	return datagramFlow(to, unix.IPPROTO_UDP)
}

func sendtoFlow(to netip.AddrPort) func(*attempt) (func(int) error, error) {
	return func(a *attempt) (func(int) error, error) {
		s, err := openFor(to.Addr(), unix.SOCK_DGRAM, unix.IPPROTO_UDP)
		if err != nil {
			return nil, err
		}
		return func(i int) error { return s.sendTo(a.numbered(i), 0, to) }, nil
	}
}

func segmentFlow(to netip.AddrPort) func(*attempt) (func(int) error, error) {
	return func(a *attempt) (func(int) error, error) {
		s, err := openFor(to.Addr(), unix.SOCK_DGRAM, unix.IPPROTO_UDP)
		if err != nil {
			return nil, err
		}
		if err := s.set(unix.IPPROTO_UDP, unix.UDP_SEGMENT, len(a.payload())); err != nil {
			return nil, err
		}
		if err := s.connect(to); err != nil {
			return nil, err
		}
		return func(int) error { return s.send(append(a.payload(), a.payload()...), 0) }, nil
	}
}

// corkFlow finishes a datagram that it began the time before.
func corkFlow(to netip.AddrPort) func(*attempt) (func(int) error, error) {
	return func(a *attempt) (func(int) error, error) {
		s, err := openFor(to.Addr(), unix.SOCK_DGRAM, unix.IPPROTO_UDP)
		if err != nil {
			return nil, err
		}
		return func(i int) error {
			if i > 0 {
				if err := s.sendTo([]byte("end"), 0, to); err != nil {
					return err
				}
			}
			return s.sendTo(a.numbered(i), unix.MSG_MORE, to)
		}, nil
	}
}

func pingFlow(a *attempt) (func(int) error, error) {
	s, err := open(unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP)
	if err != nil {
		return nil, err
	}
	return func(i int) error { return s.sendTo(echoRequest(false, a.numbered(i)), 0, at(allowed4, 0)) }, nil
}

func rawFlow(a *attempt) (func(int) error, error) {
	s, err := open(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP)
	if err != nil {
		return nil, err
	}
	return func(i int) error { return s.sendTo(echoRequest(false, a.numbered(i)), 0, at(allowed4, 0)) }, nil
}

func subcgroupFlow(to netip.AddrPort) func(*attempt) (func(int) error, error) {
	return func(a *attempt) (func(int) error, error) {
		if err := moveBelowOwn(); err != nil {
			return nil, err
		}
		return tcpFlow(to, nil)(a)
	}
}

// connectFlow makes a connection each time.
func connectFlow(to netip.AddrPort) func(*attempt) (func(int) error, error) {
	return func(a *attempt) (func(int) error, error) {
		return func(int) error { return tcp(to)(a) }, nil
	}
}

func fastOpenFlow(to netip.AddrPort) func(*attempt) (func(int) error, error) {
	return func(a *attempt) (func(int) error, error) {
		return func(int) error { return fastOpenSend(to)(a) }, nil
	}
}

func newUDPFlow(to netip.AddrPort) func(*attempt) (func(int) error, error) {
	return func(a *attempt) (func(int) error, error) {
		return func(int) error { return udpTo(to)(a) }, nil
	}
}

func spliceTo(s sock, data []byte) error {
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		return err
	}
	defer unix.Close(pipe[0])
	defer unix.Close(pipe[1])
	if _, err := unix.Write(pipe[1], data); err != nil {
		return err
	}
	_, err := unix.Splice(pipe[0], nil, int(s), nil, len(data), unix.SPLICE_F_NONBLOCK)
	return step("splice", err)
}

func sendfileTo(s sock, data []byte) error {
	fd, err := unix.MemfdCreate("bypass", unix.MFD_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, data); err != nil {
		return err
	}
	var offset int64
	_, err = unix.Sendfile(int(s), fd, &offset, len(data))
	return step("sendfile", err)
}

func zerocopyTo(s sock, data []byte) error {
	if err := s.set(unix.SOL_SOCKET, unix.SO_ZEROCOPY, 1); err != nil {
		return err
	}
	return s.send(data, unix.MSG_ZEROCOPY|unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
}

func urgentTo(s sock, data []byte) error {
	return s.send(data, unix.MSG_OOB|unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
}

func ringTo(s sock, data []byte) error {
	r, err := newRing(0)
	if err != nil {
		return err
	}
	defer r.close()
	r.queue(entry{op: ringSend, fd: int32(s), addr: r.keep(data), length: uint32(len(data)), opFlags: unix.MSG_NOSIGNAL, data: ringSend})
	_, err = r.run()
	return err
}

// ringLaterFlow leaves it to the kernel to send after a while.
func ringLaterFlow(to netip.AddrPort) func(*attempt) (func(int) error, error) {
	return func(a *attempt) (func(int) error, error) {
		s, err := openFor(to.Addr(), unix.SOCK_STREAM, unix.IPPROTO_TCP)
		if err != nil {
			return nil, err
		}
		if err := s.connect(to); err != nil {
			return nil, err
		}
		r, err := newRing(0)
		if err != nil {
			return nil, err
		}
		return func(i int) error {
			if i > 0 {
				return nil
			}
			data := a.numbered(i)
			if err := s.write(data); err != nil {
				return err
			}
			wait := r.keep(native64(native64(nil, 0), uint64(500*time.Millisecond)))
			r.queue(entry{op: ringTimeout, flags: ringHardLink, fd: -1, addr: wait, length: 1})
			r.queue(entry{op: ringSend, fd: int32(s), addr: r.keep(data), length: uint32(len(data))})
			return r.submit()
		}, nil
	}
}

// queuedFlow fills the send buffer once.
func queuedFlow(to netip.AddrPort) func(*attempt) (func(int) error, error) {
	return func(a *attempt) (func(int) error, error) {
		s, err := openFor(to.Addr(), unix.SOCK_STREAM, unix.IPPROTO_TCP)
		if err != nil {
			return nil, err
		}
		if err := s.connect(to); err != nil {
			return nil, err
		}
		return func(i int) error {
			for i == 0 {
				if err := s.send(a.numbered(i), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL); err != nil {
					return err // EAGAIN when it is full
				}
			}
			return nil
		}, nil
	}
}

// slowPeer listens in the sink and does not read.
func slowPeer(address netip.AddrPort) func(*trial) error {
	return func(t *trial) error {
		return t.lab.sink.Do(func() error {
			ln, err := net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(address))
			if err != nil {
				return err
			}
			raw, err := ln.SyscallConn()
			if err != nil {
				return err
			}
			if err := raw.Control(func(fd uintptr) {
				err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 4096)
			}); err != nil {
				return err
			}
			t.peer = ln
			t.cleanup = append(t.cleanup, ln.Close)
			return err
		})
	}
}

// drain makes the slow peer read.
func (t *trial) drain() error {
	conn, err := t.peer.Accept()
	if err != nil {
		return err
	}
	t.cleanup = append(t.cleanup, conn.Close)
	if err := conn.SetReadDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
		return err
	}
	buffer := make([]byte, 1<<16)
	for {
		if _, err := conn.Read(buffer); err != nil {
			return nil // the deadline, or the reset
		}
	}
}

func keepaliveFlow(to netip.AddrPort) func(*attempt) (func(int) error, error) {
	return func(a *attempt) (func(int) error, error) {
		s, err := openFor(to.Addr(), unix.SOCK_STREAM, unix.IPPROTO_TCP)
		if err != nil {
			return nil, err
		}
		for _, o := range [][3]int{
			{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1}, {unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 1}, {unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 1},
		} {
			if err := s.set(o[0], o[1], o[2]); err != nil {
				return nil, err
			}
		}
		if err := s.connect(to); err != nil {
			return nil, err
		}
		return func(i int) error {
			if i > 0 {
				return nil
			}
			return s.write(a.numbered(i))
		}, nil
	}
}

func keepalive(p packet) bool {
	return p.dst == allowed4 && p.proto == unix.IPPROTO_TCP && p.payload == 0 && p.flags == tcpACK
}

// inboundFlow waits for a peer and goes on sending to it.
func inboundFlow(a *attempt) (func(int) error, error) {
	ln, err := listener(netip.IPv4Unspecified(), 0)
	if err != nil {
		return nil, err
	}
	port, err := ln.port()
	if err != nil {
		return nil, err
	}
	a.say("listening " + strconv.Itoa(int(port)))
	fd, _, err := unix.Accept(int(ln))
	if err != nil {
		return nil, step("accept", err)
	}
	return func(i int) error { return sock(fd).send(a.numbered(i), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL) }, nil
}

// staying connects from the sink and reads until the trial ends.
func staying(t *trial) error {
	port, err := t.listening()
	if err != nil {
		return err
	}
	conn, err := t.lab.fromSink("tcp", denied4.String(), at(host4, port).String())
	if err != nil {
		return err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buffer := make([]byte, 4096)
		for {
			if _, err := conn.Read(buffer); err != nil {
				return
			}
		}
	}()
	t.cleanup = append(t.cleanup, func() error {
		err := conn.Close()
		<-done
		return err
	})
	return nil
}
