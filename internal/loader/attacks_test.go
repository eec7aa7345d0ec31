// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"runtime"
	"sort"
	"strconv"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// attacks are what an agent does with bare system calls. The descriptors that
// they open stay open under the names they are given, in held.
var attacks = map[string]func(args []string) (string, error){
	"open":       openSocket,
	"connect":    connectSocket,
	"disconnect": disconnectSocket,
	"crowd":      connectMany,
	"listen":     listenSocket,
	"hex":        sendHex,
	"bind":       bindSocket,
	"accept":     acceptOnce,
	"send":       sendOnSocket,
	"cmsg":       sendWithAncillary,
	"fill":       fillOptionMemory,
	"stall":      stallSend,
	"release":    releaseSend,
	"fetch":      fetch,
	"fetch-from": fetchFrom,
	"peer":       peerOf,
	"v6only":     onlyIPv6,

	"connect-new": connectNew,
	"descriptor":  descriptorOf,
	"drip":        sendInPieces,
	"fastopen":    sendFastOpen,
	"sendfile":    sendFile,
	"urgent":      sendUrgent,
	"zerocopy":    sendZeroCopy,
}

// held are the agent's descriptors by name; it does one thing at a time.
var held = make(map[string]int)

func sockaddr(text string) (unix.Sockaddr, error) {
	ap, err := netip.ParseAddrPort(text)
	if err != nil {
		return nil, err
	}
	if ap.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: ap.Addr().As4(), Port: int(ap.Port())}, nil
	}
	return &unix.SockaddrInet6{Addr: ap.Addr().As16(), Port: int(ap.Port())}, nil
}

// openSocket: NAME FAMILY TYPE PROTO
func openSocket(args []string) (string, error) {
	var numbers [3]int
	for i := range numbers {
		var err error
		if numbers[i], err = strconv.Atoi(args[1+i]); err != nil {
			return "", err
		}
	}
	fd, err := unix.Socket(numbers[0], numbers[1]|unix.SOCK_CLOEXEC, numbers[2])
	if err != nil {
		return "", err
	}
	timeout := unix.Timeval{Sec: 2}
	for _, option := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, option, &timeout); err != nil {
			return "", err
		}
	}
	held[args[0]] = fd
	return "", nil
}

// connectSocket: NAME ADDR
func connectSocket(args []string) (string, error) {
	to, err := sockaddr(args[1])
	if err != nil {
		return "", err
	}
	return "", unix.Connect(held[args[0]], to)
}

// connectMany: NUMBER LOCAL REMOTE PORT; UDP sockets on one local port, each
// connected to the next remote one.
func connectMany(args []string) (string, error) {
	n, err := strconv.Atoi(args[0])
	if err != nil {
		return "", err
	}
	for i := range n {
		name := fmt.Sprintf("crowd-%d", i)
		if _, err := openSocket([]string{name, "2", "2", "0"}); err != nil {
			return "", err
		}
		if _, err := bindSocket([]string{name, args[1]}); err != nil {
			return "", err
		}
		port, err := strconv.Atoi(args[3])
		if err != nil {
			return "", err
		}
		if _, err := connectSocket([]string{name, fmt.Sprintf("%s:%d", args[2], port+i)}); err != nil {
			return "", err
		}
	}
	return "", nil
}

// disconnectSocket: NAME
func disconnectSocket(args []string) (string, error) {
	unspec := unix.RawSockaddr{Family: unix.AF_UNSPEC}
	_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(held[args[0]]), uintptr(unsafe.Pointer(&unspec)), unsafe.Sizeof(unspec))
	if errno != 0 {
		return "", errno
	}
	return "", nil
}

// bindSocket: NAME ADDR; several may share the port.
func bindSocket(args []string) (string, error) {
	at, err := sockaddr(args[1])
	if err != nil {
		return "", err
	}
	if err := unix.SetsockoptInt(held[args[0]], unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return "", err
	}
	return "", unix.Bind(held[args[0]], at)
}

// listenSocket: NAME
func listenSocket(args []string) (string, error) {
	return "", unix.Listen(held[args[0]], 1)
}

// acceptOnce: NAME; from then on NAME is the connection.
func acceptOnce(args []string) (string, error) {
	fd, _, err := unix.Accept(held[args[0]])
	if err != nil {
		return "", err
	}
	unix.Close(held[args[0]])
	held[args[0]] = fd
	return "", nil
}

// sendOnSocket: NAME ADDR|- more|- DATA
func sendOnSocket(args []string) (string, error) {
	flags := 0
	if args[2] == "more" {
		flags = unix.MSG_MORE
	}
	if args[1] == "-" {
		return "", unix.Send(held[args[0]], []byte(args[3]), flags)
	}
	to, err := sockaddr(args[1])
	if err != nil {
		return "", err
	}
	return "", unix.Sendto(held[args[0]], []byte(args[3]), flags, to)
}

// sendHex: NAME ADDR|- HEX
func sendHex(args []string) (string, error) {
	data, err := hex.DecodeString(args[2])
	if err != nil {
		return "", err
	}
	if args[1] == "-" {
		return "", unix.Send(held[args[0]], data, 0)
	}
	to, err := sockaddr(args[1])
	if err != nil {
		return "", err
	}
	return "", unix.Sendto(held[args[0]], data, 0, to)
}

// sendWithAncillary: NAME DATA; on a connected socket, with a TTL beside it.
func sendWithAncillary(args []string) (string, error) {
	oob := make([]byte, unix.CmsgSpace(4))
	header := (*unix.Cmsghdr)(unsafe.Pointer(&oob[0]))
	header.Level, header.Type = unix.SOL_IP, unix.IP_TTL
	header.SetLen(unix.CmsgLen(4))
	oob[unix.CmsgLen(0)] = 64
	return "", unix.Sendmsg(held[args[0]], []byte(args[1]), oob, nil, 0)
}

// fillOptionMemory: NAME; a filter so large that nothing more may hang at the
// socket.
func fillOptionMemory(args []string) (string, error) {
	fits := func(large, small int) bool {
		// Each of the first kind becomes several instructions of the kernel's.
		var program []unix.SockFilter
		for range large {
			program = append(program, unix.SockFilter{Code: unix.BPF_LDX | unix.BPF_B | unix.BPF_MSH})
		}
		for range small {
			program = append(program, unix.SockFilter{Code: unix.BPF_LD | unix.BPF_IMM})
		}
		program = append(program, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: 0xffffffff})
		_ = unix.SetsockoptInt(held[args[0]], unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0)
		filter := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
		return unix.SetsockoptSockFprog(held[args[0]], unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &filter) == nil
	}
	large := sort.Search(unix.BPF_MAXINSNS-64, func(n int) bool { return !fits(n, 0) }) - 1
	small := sort.Search(64, func(n int) bool { return !fits(large, n) }) - 1
	if large < 0 || small < 0 || !fits(large, small) {
		return "", fmt.Errorf("no filter fits")
	}
	return fmt.Sprint(large, small), nil
}

// stalled is a send whose data the kernel waits for.
var stalled struct {
	uffd int
	page []byte
	done sync.WaitGroup
	err  error
}

// stallSend: NAME ADDR|-; the kernel decides about the send and then waits for
// the data until releaseSend.
func stallSend(args []string) (string, error) {
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC, 0, 0)
	if errno != 0 {
		return "", errno
	}
	page, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return "", err
	}
	api := struct{ api, features, ioctls uint64 }{api: 0xaa}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, 0xc018aa3f, uintptr(unsafe.Pointer(&api))); errno != 0 {
		return "", errno
	}
	register := struct{ start, length, mode, ioctls uint64 }{uint64(uintptr(unsafe.Pointer(&page[0]))), 4096, 1, 0}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, 0xc020aa00, uintptr(unsafe.Pointer(&register))); errno != 0 {
		return "", errno
	}
	var to unix.Sockaddr
	if args[1] != "-" {
		if to, err = sockaddr(args[1]); err != nil {
			return "", err
		}
	}
	stalled.uffd, stalled.page = int(fd), page
	stalled.done.Go(func() { stalled.err = unix.Sendto(held[args[0]], page[:5], 0, to) })
	// The fault says that the kernel has got as far as the data.
	event := make([]byte, 32)
	_, err = unix.Read(int(fd), event)
	return "", err
}

// releaseSend: DATA, five octets
func releaseSend(args []string) (string, error) {
	data := make([]byte, 4096)
	copy(data, args[0])
	fill := struct{ dst, src, length, mode, copied uint64 }{
		uint64(uintptr(unsafe.Pointer(&stalled.page[0]))), uint64(uintptr(unsafe.Pointer(&data[0]))), 4096, 0, 0,
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(stalled.uffd), 0xc028aa03, uintptr(unsafe.Pointer(&fill))); errno != 0 {
		return "", errno
	}
	runtime.KeepAlive(data)
	stalled.done.Wait()
	unix.Close(stalled.uffd)
	return "", stalled.err
}

// fetch: NAME; what arrives at the socket.
func fetch(args []string) (string, error) {
	buf := make([]byte, 1000)
	n, err := unix.Read(held[args[0]], buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// fetchFrom: NAME; what arrives at the socket, "from" its source.
func fetchFrom(args []string) (string, error) {
	buf := make([]byte, 1000)
	n, from, err := unix.Recvfrom(held[args[0]], buf, 0)
	if err != nil {
		return "", err
	}
	return string(buf[:n]) + " from " + addrOf(from), nil
}

// peerOf: NAME; whom the kernel says the socket is connected to.
func peerOf(args []string) (string, error) {
	peer, err := unix.Getpeername(held[args[0]])
	if err != nil {
		return "", err
	}
	return addrOf(peer), nil
}

func addrOf(sa unix.Sockaddr) string {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port)).String()
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port)).String()
	default:
		return fmt.Sprintf("%T", sa)
	}
}

// onlyIPv6: NAME
func onlyIPv6(args []string) (string, error) {
	return "", unix.SetsockoptInt(held[args[0]], unix.SOL_IPV6, unix.IPV6_V6ONLY, 1)
}

// connectNew: NAME ADDR; a TCP socket for it first.
func connectNew(args []string) (string, error) {
	if _, err := openSocket([]string{args[0], "2", "1", "0"}); err != nil {
		return "", err
	}
	return connectSocket(args)
}

// descriptorOf: NAME
func descriptorOf(args []string) (string, error) { return fmt.Sprint(held[args[0]]), nil }

// sendInPieces: NAME NUMBER HEX; each at once, in a segment of its own if TCP
// has its way.
func sendInPieces(args []string) (string, error) {
	data, err := hex.DecodeString(args[2])
	if err != nil {
		return "", err
	}
	number, err := strconv.Atoi(args[1])
	if err != nil {
		return "", err
	}
	if err := unix.SetsockoptInt(held[args[0]], unix.SOL_TCP, unix.TCP_NODELAY, 1); err != nil {
		return "", err
	}
	number = min(number, len(data))
	for i := range number {
		piece := data[i*len(data)/number : (i+1)*len(data)/number]
		if err := unix.Send(held[args[0]], piece, 0); err != nil {
			return "", err
		}
	}
	return "", nil
}

// sendFastOpen: NAME ADDR HEX; connects with the first payload on the SYN.
func sendFastOpen(args []string) (string, error) {
	data, err := hex.DecodeString(args[2])
	if err != nil {
		return "", err
	}
	to, err := sockaddr(args[1])
	if err != nil {
		return "", err
	}
	return "", unix.Sendto(held[args[0]], data, unix.MSG_FASTOPEN, to)
}

// sendUrgent: NAME NUMBER HEX; the receiver takes the octet of that number for
// urgent, and out of the stream.
func sendUrgent(args []string) (string, error) {
	data, err := hex.DecodeString(args[2])
	if err != nil {
		return "", err
	}
	number, err := strconv.Atoi(args[1])
	if err != nil {
		return "", err
	}
	if err := unix.SetsockoptInt(held[args[0]], unix.SOL_TCP, unix.TCP_CORK, 1); err != nil {
		return "", err
	}
	if err := unix.Send(held[args[0]], data[:number+1], unix.MSG_OOB); err != nil {
		return "", err
	}
	if err := unix.Send(held[args[0]], data[number+1:], 0); err != nil {
		return "", err
	}
	return "", unix.SetsockoptInt(held[args[0]], unix.SOL_TCP, unix.TCP_CORK, 0)
}

// sendFile: NAME HEX
func sendFile(args []string) (string, error) {
	data, err := hex.DecodeString(args[1])
	if err != nil {
		return "", err
	}
	file, err := unix.MemfdCreate("payload", 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(file)
	if _, err := unix.Write(file, data); err != nil {
		return "", err
	}
	var from int64
	_, err = unix.Sendfile(held[args[0]], file, &from, len(data))
	return "", err
}

// sendZeroCopy: NAME HEX
func sendZeroCopy(args []string) (string, error) {
	data, err := hex.DecodeString(args[1])
	if err != nil {
		return "", err
	}
	if err := unix.SetsockoptInt(held[args[0]], unix.SOL_SOCKET, unix.SO_ZEROCOPY, 1); err != nil {
		return "", err
	}
	return "", unix.Send(held[args[0]], data, unix.MSG_ZEROCOPY)
}
