// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// feature is something that a kernel may lack. Its name is the reason of the skip.
type feature struct {
	name  string
	probe func() error // runs on the host, unguarded
}

// canOpen is the feature of a kind of socket.
func canOpen(name string, family, kind, proto int) feature {
	return feature{name, func() error {
		fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, proto)
		if err != nil {
			return err
		}
		return unix.Close(fd)
	}}
}

func sctp() feature { return canOpen("SCTP", unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_SCTP) }
func dccp() feature { return canOpen("DCCP", unix.AF_INET, unix.SOCK_DCCP, unix.IPPROTO_DCCP) }
func smc() feature  { return canOpen("SMC", unix.AF_SMC, unix.SOCK_STREAM, 0) }
func udplite() feature {
	return canOpen("UDP-Lite", unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_UDPLITE)
}
func l2tp() feature { return canOpen("L2TP over IP", unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_L2TP) }

func rds() feature { return canOpen("RDS", unix.AF_RDS, unix.SOCK_SEQPACKET, 0) }

func multipath() feature {
	return canOpen("MPTCP", unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP)
}

// multipathFastOpen came with 6.2.
func multipathFastOpen() feature {
	return feature{"MPTCP with Fast Open", func() error {
		s, err := open(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP)
		if err != nil {
			return err
		}
		defer s.close()
		// Nobody listens at the discard port of 127.0.0.1.
		err = s.sendTo([]byte("probe"), unix.MSG_FASTOPEN, at(netip.MustParseAddr("127.0.0.1"), markerPort))
		if errors.Is(err, unix.ECONNREFUSED) {
			return nil
		}
		return err
	}}
}

// mobility is IPv6 routing headers of type 2, CONFIG_IPV6_MIP6.
func mobility() feature {
	return feature{"IPv6 mobility (CONFIG_IPV6_MIP6)", func() error {
		fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.SetsockoptString(fd, unix.IPPROTO_IPV6, unix.IPV6_RTHDR, string(homeAddress(denied6)))
	}}
}

// ringWith is io_uring with the operation op.
func ringWith(name string, op uint8) feature {
	return feature{"io_uring " + name, func() error {
		r, err := newRing(0)
		if err != nil {
			return err
		}
		defer r.close()
		ok, err := r.supports(op)
		if err == nil && !ok {
			err = errors.New("not in this kernel")
		}
		return err
	}}
}

// userNamespaces may be switched off by the distribution.
func userNamespaces() feature {
	return feature{"unprivileged user namespaces", func() error {
		for name, off := range map[string]string{
			"/proc/sys/user/max_user_namespaces":                     "0",
			"/proc/sys/kernel/unprivileged_userns_clone":             "0",
			"/proc/sys/kernel/apparmor_restrict_unprivileged_userns": "1",
		} {
			text, err := os.ReadFile(name)
			if err == nil && strings.TrimSpace(string(text)) == off {
				return fmt.Errorf("%s is %s", name, off)
			}
		}
		_, err := os.Stat("/proc/self/ns/user")
		return err
	}}
}

// skipForKernel names what is missing in the words that the guests' report
// accepts as a reason.
func skipForKernel(t *testing.T, missing string) {
	t.Helper()
	t.Skipf("kernel %s lacks %s", kernelRelease(t), missing)
}

func skipForTool(t *testing.T, program string) {
	t.Helper()
	if os.Getenv("AGENTGUARD_VM") != "" {
		t.Skipf("not in a VM: it has no %s", program)
	}
	t.Skipf("this machine lacks the program %s", program)
}
