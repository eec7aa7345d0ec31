// SPDX-License-Identifier: Apache-2.0

package vm

// Package is a Go package whose tests run in the guests, and what they need there besides busybox.
type Package struct {
	Path     string   // relative to the module, "./internal/loader"
	Tools    []string // programs of the host, with their libraries: "nft", "ip"
	Commands []string // programs of this module, put in the guest's PATH: "./cmd/agentguard"
	Files    []string // further files and directories of this module, at the same relative place in the guest
}

// Packages returns what runs in every guest, in this order. A package's testdata comes along by itself, and its
// tests run in the package's directory, as under go test.
func Packages() []Package {
	return []Package{
		{Path: "./test/vm/smoke"},
		{Path: "./internal/cgroup"},
		{Path: "./internal/netns"},
		{Path: "./internal/localaddr"},
		{Path: "./internal/launch"},
		{Path: "./internal/maps"},
		{Path: "./internal/names", Tools: []string{"unbound", "dnsmasq", "dig", "getent", "nft"}},
		{Path: "./test/hello"},
		{Path: "./internal/loader", Tools: []string{"nft"}},
		{Path: "./internal/task"},
		{Path: "./test/bypass", Tools: []string{"nft", "unbound", "dnsmasq"}},
		{
			Path: "./test/clients", Tools: []string{"unbound", "dnsmasq", "dig", "getent", "curl", "openssl"},
			Commands: []string{"./cmd/agentguard", "./test/clients/visit"},
		},
		{Path: "./cmd/agentguard", Files: []string{"testdata/script", "packaging"}},
	}
}
