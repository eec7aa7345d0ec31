// SPDX-License-Identifier: Apache-2.0

// Package vm runs the project's test binaries on every kernel that agentguard supports, each in a virtual
// machine of its own. `make test-vm KERNEL=6.1 PKG=./internal/loader RUN=TestX` runs one test on one of them.
package vm

import (
	"fmt"
	"os"
	"path/filepath"
)

// Kernel is one supported kernel, as Debian packages it.
type Kernel struct {
	Name    string // "6.1": the version, and the directory in the cache
	Pattern string // regular expression for the name of its Debian package
	Debian  string // a Debian release that has it
}

// Kernels returns the kernels that the tests run on, oldest first. What they lack stands in package feature.
func Kernels() []Kernel {
	return []Kernel{
		{Name: "6.1", Pattern: `^linux-image-6\.1\.[0-9]+-[0-9]+-cloud-amd64$`, Debian: "bookworm"},
		{Name: "6.12", Pattern: `^linux-image-6\.12\.[^-]+(-[0-9]+)?-cloud-amd64$`, Debian: "bookworm"},
	}
}

// modules are loaded before the first test, dependencies first. Tests must not rely on the kernel to load
// others: the guest has no modprobe.
func modules() []string {
	return []string{
		"virtio_pci", "virtio_console", // the channel to the host
		"veth", "dummy", "bridge", "macvlan", "tun",
		"tcp_diag", "udp_diag", "raw_diag", "mptcp_diag", "unix_diag", "af_packet_diag",
		"nf_tables", "nfnetlink_log", "nft_chain_nat", "nft_ct", "nft_nat", "nft_masq", "nft_redir", "nft_limit",
		"nft_log", "nft_reject_inet", "nft_socket", "nft_fib_inet", "nft_tproxy",
		"sch_netem", "sch_fq", "sch_ingress", "cls_bpf", "act_mirred",
		"sctp", "sctp_diag", "dccp_ipv4", "dccp_ipv6", "dccp_diag",
		"tls", "l2tp_ip", "l2tp_ip6", "vsock_loopback", "tipc", "rds_tcp", "smc", "kcm",
	}
}

// Image is an unpacked kernel in the cache: a boot image and a tree of uncompressed modules.
type Image struct{ Dir string }

// Cached returns k as `make test-deps` left it in cache.
func (k Kernel) Cached(cache string) (Image, error) {
	dir := filepath.Join(cache, k.Name)
	if _, err := os.Stat(filepath.Join(dir, "vmlinuz")); err != nil {
		return Image{}, fmt.Errorf("find kernel %s: %w: fetch it with `make test-deps`", k.Name, err)
	}
	return Image{Dir: dir}, nil
}

// Boot is the path of the boot image.
func (i Image) Boot() string { return filepath.Join(i.Dir, "vmlinuz") }
