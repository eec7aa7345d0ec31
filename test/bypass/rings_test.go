// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// rings act through io_uring, where a kernel thread may do what the process
// asked for.
func rings() []technique {
	denied := at(denied4, deniedPort)
	basic := ringWith("connect and send", ringSend)
	return []technique{
		{
			name: "uring-connect", what: "io_uring connects and sends, linked", needs: []feature{basic},
			errno: unix.EPERM, stop: "connect",
			try: ringTCP(denied, 0, 0),
		}, {
			name: "uring-connect6", what: "the same over IPv6", needs: []feature{basic},
			errno: unix.EPERM, stop: "connect",
			try: ringTCP(at(denied6, deniedPort), 0, 0),
		}, {
			name: "uring-async", what: "the same by io_uring's worker threads (IOSQE_ASYNC)", needs: []feature{basic},
			errno: unix.EPERM, stop: "connect",
			try: ringTCP(denied, 0, ringAsync),
		}, {
			name: "uring-sqpoll", what: "the same by io_uring's polling thread (SQPOLL)", needs: []feature{basic},
			errno: unix.EPERM, stop: "connect",
			try: ringTCP(denied, ringPoll, 0),
		}, {
			name: "uring-socket", what: "io_uring makes the socket as well", needs: []feature{ringWith("socket", ringSocket)},
			errno: unix.EPERM, stop: "connect",
			try: func(a *attempt) error {
				r, err := newRing(ringPoll)
				if err != nil {
					return err
				}
				defer r.close()
				r.queue(entry{op: ringSocket, fd: unix.AF_INET, offset: unix.SOCK_STREAM, data: ringSocket})
				results, err := r.run()
				if err != nil {
					return err
				}
				defer sock(results[0]).close()
				return ringConnectAndSend(a, r, sock(results[0]), denied, 0)
			},
		}, {
			name: "uring-socket-raw", what: "io_uring makes a raw socket", class: netRaw, needs: []feature{ringWith("socket", ringSocket)},
			proof: onWire, errno: unix.EPERM, stop: "sock_create",
			try: func(a *attempt) error {
				r, err := newRing(0)
				if err != nil {
					return err
				}
				defer r.close()
				r.queue(entry{op: ringSocket, fd: unix.AF_INET, offset: unix.SOCK_RAW, length: experimental, data: ringSocket})
				results, err := r.run()
				if err != nil {
					return err
				}
				defer sock(results[0]).close()
				return sock(results[0]).sendTo(a.payload(), 0, at(denied4, 0))
			},
		}, {
			name: "uring-sendmsg", what: "io_uring sends a datagram with an address", needs: []feature{ringWith("sendmsg", ringSendmsg)},
			errno: unix.EPERM, stop: "sendmsg",
			try: ringUDP(ringSendmsg, 0, denied),
		}, {
			name: "uring-sendmsg-async", what: "the same by io_uring's worker threads", needs: []feature{ringWith("sendmsg", ringSendmsg)},
			errno: unix.EPERM, stop: "sendmsg",
			try: ringUDP(ringSendmsg, ringAsync, denied),
		}, {
			name: "uring-send-zc", what: "io_uring sends a datagram with an address, without copying", needs: []feature{ringWith("zero-copy send", ringSendZC)},
			errno: unix.EPERM, stop: "sendmsg",
			try: ringUDP(ringSendZC, 0, denied),
		},
	}
}

func ringTCP(to netip.AddrPort, setup uint32, flags uint8) func(*attempt) error {
	return tcpSocket(to.Addr(), func(a *attempt, s sock) error {
		r, err := newRing(setup)
		if err != nil {
			return err
		}
		defer r.close()
		return ringConnectAndSend(a, r, s, to, flags)
	})
}

func ringConnectAndSend(a *attempt, r *ring, s sock, to netip.AddrPort, flags uint8) error {
	name := rawSockaddr(to)
	data := a.payload()
	r.queue(entry{op: ringConnect, flags: flags | ringLink, fd: int32(s), addr: r.keep(name), offset: uint64(len(name)), data: ringConnect})
	r.queue(entry{op: ringSend, flags: flags, fd: int32(s), addr: r.keep(data), length: uint32(len(data)), data: ringSend})
	_, err := r.run()
	return err
}

func ringUDP(op, flags uint8, to netip.AddrPort) func(*attempt) error {
	return udpSocket(to.Addr(), func(a *attempt, s sock) error {
		r, err := newRing(0)
		if err != nil {
			return err
		}
		defer r.close()
		r.datagram(op, flags, s, a.payload(), to)
		_, err = r.run()
		return err
	})
}

// datagram queues one with an address of its own.
func (r *ring) datagram(op, flags uint8, s sock, data []byte, to netip.AddrPort) {
	name := rawSockaddr(to)
	e := entry{op: op, flags: flags, fd: int32(s), data: uint64(op)}
	if op == ringSendmsg {
		// struct iovec, then struct msghdr around it.
		iov := r.keep(native64(native64(nil, r.keep(data)), uint64(len(data))))
		header := native64(nil, r.keep(name))
		header = native64(header, uint64(len(name))) // with padding
		header = native64(native64(header, iov), 1)
		header = append(header, make([]byte, unsafe.Sizeof(unix.Msghdr{})-uintptr(len(header)))...)
		e.addr, e.length = r.keep(header), 1
	} else {
		e.addr, e.length = r.keep(data), uint32(len(data))
		e.offset, e.addrLength = r.keep(name), uint16(len(name))
	}
	r.queue(e)
}
