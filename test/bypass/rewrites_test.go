// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"errors"
	"fmt"
	"net/netip"
	"os/exec"

	"golang.org/x/sys/unix"
)

// rewrites let the kernel's own NAT change where a packet goes, after the
// connect hook has seen an allowed destination.
func rewrites() []technique {
	allow := []string{"203.0.113.10:443", "udp://203.0.113.10:443"}
	service := at(service4, allowedPort)
	return []technique{
		{
			name: "nat-own-tcp", what: "a NAT rule of the task's own, in a namespace that it administers, on the way to an allowed address",
			class: root, tools: []string{"nft"}, alone: true, allow: allow, stop: "egress",
			try: withNAT(tcpSocket(service4, func(a *attempt, s sock) error {
				if err := unix.SetsockoptTimeval(int(s), unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{Usec: 100000}); err != nil {
					return err
				}
				// The connection has to end before the rule does.
				if err := unix.SetsockoptLinger(int(s), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1, Linger: 2}); err != nil {
					return err
				}
				return a.connectAndSend(s, service)
			})),
		}, {
			name: "nat-own-udp", what: "the same with UDP",
			class: root, tools: []string{"nft"}, alone: true, allow: allow, errno: unix.EPERM, stop: "egress",
			try: withNAT(udpTo(service)),
		}, {
			name: "nat-own-udp-connected", what: "the same with connected UDP",
			class: root, tools: []string{"nft"}, alone: true, allow: allow, errno: unix.EPERM, stop: "egress",
			try: withNAT(udpSocket(service4, func(a *attempt, s sock) error { return a.connectAndSend(s, service) })),
		}, {
			name: "nat-host-other", what: "what the host translates is no licence: another destination from the same socket",
			tools: []string{"nft"}, allow: allow, errno: unix.EPERM, stop: "sendmsg", permit: to(allowed4), assist: translateFirst,
			try: udpSocket(service4, func(a *attempt, s sock) error {
				if _, err := a.hear(); err != nil {
					return err
				}
				if err := s.sendTo([]byte("allowed"), 0, service); err != nil {
					return err
				}
				return s.sendTo(a.payload(), 0, at(denied4, deniedPort))
			}),
		}, {
			name: "nat-host-backend", what: "the backend of an allowed service address is not allowed by itself",
			tools: []string{"nft"}, allow: allow, errno: unix.EPERM, stop: "connect", assist: translateFirst,
			try: func(a *attempt) error {
				if _, err := a.hear(); err != nil {
					return err
				}
				return tcp(at(allowed4, allowedPort))(a)
			},
		},
	}
}

// withNAT puts a rule into the namespace of the process while fn runs.
func withNAT(fn func(*attempt) error) func(*attempt) error {
	return func(a *attempt) (err error) {
		rules := natRules("own", rewrite{service4, allowedPort, at(denied4, deniedPort)})
		if err := nft(rules); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, nft("delete table ip own")) }()
		return fn(a)
	}
}

// translateFirst has the host's rules in place before the process begins.
func translateFirst(t *trial) error {
	if err := translation(t); err != nil {
		return err
	}
	return t.process.tell("translated")
}

// rewrite sends what is for one address and port to another.
type rewrite struct {
	address netip.Addr
	port    uint16
	to      netip.AddrPort
}

func natRules(table string, rewrites ...rewrite) string {
	rules := ""
	for _, r := range rewrites {
		rules += fmt.Sprintf("meta l4proto { tcp, udp } ip daddr %s th dport %d dnat to %s\n", r.address, r.port, r.to)
	}
	return fmt.Sprintf("table ip %s {\nchain output {\ntype nat hook output priority -100;\n%s}\n}", table, rules)
}

// nft carries out commands in the namespace of the calling thread.
func nft(commands string) error {
	out, err := exec.Command("nft", commands).CombinedOutput()
	if err != nil {
		return fmt.Errorf("nft: %w: %s", err, out)
	}
	return nil
}
