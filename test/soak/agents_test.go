// SPDX-License-Identifier: Apache-2.0

package soak

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync/atomic"
)

// Where the servers listen, at every address of the world.
const (
	datagramPort = 7001
	firstPort    = 7002 // of prefix rules
	lastPort     = 7004
	exactPort    = 7000
	neverPort    = 7005 // in no rule
)

const grantables = 16 // addresses of an agent that only grants name

// agent is a workload identity with destinations that no other agent may
// reach. Its policy has two versions, which differ in one destination.
type agent struct {
	index int
	name  string

	// changes counts twice for each change of the policy, at its beginning and
	// at its end.
	changes atomic.Uint64
}

func newAgents(count int) []*agent {
	agents := make([]*agent, count)
	for i := range agents {
		agents[i] = &agent{index: i + 1, name: fmt.Sprintf("soak%d", i+1)}
	}
	return agents
}

// address is one of the agent's own.
func (a *agent) address(host int) netip.Addr {
	return netip.AddrFrom4([4]byte{198, 18, byte(a.index), byte(host)})
}

// address6 is the agent's one IPv6 address.
func (a *agent) address6() netip.Addr {
	return netip.MustParseAddr(fmt.Sprintf("2001:db8:ffff:%d::1", a.index))
}

func (a *agent) exact() netip.AddrPort    { return netip.AddrPortFrom(a.address(1), exactPort) }
func (a *agent) exact6() netip.AddrPort   { return netip.AddrPortFrom(a.address6(), exactPort) }
func (a *agent) datagram() netip.AddrPort { return netip.AddrPortFrom(a.address(1), datagramPort) }
func (a *agent) never() netip.AddrPort    { return netip.AddrPortFrom(a.address(1), neverPort) }

// within is a destination inside the agent's prefix rule.
func (a *agent) within(rng *rand.Rand) netip.AddrPort {
	return netip.AddrPortFrom(a.address(64+rng.IntN(64)), uint16(firstPort+rng.IntN(lastPort-firstPort+1)))
}

func (a *agent) grantable(n int) netip.AddrPort {
	return netip.AddrPortFrom(a.address(16+n%grantables), exactPort)
}

// toggle is the destination that the given version of the policy allows, and
// the other version does not.
func (a *agent) toggle(version uint64) netip.AddrPort {
	return netip.AddrPortFrom(a.address(2+int(version%2)), exactPort)
}

// block is what every rule of the agent's contains and no other's does.
func (a *agent) block() string  { return fmt.Sprintf("198.18.%d.", a.index) }
func (a *agent) block6() string { return fmt.Sprintf("2001:db8:ffff:%d::", a.index) }

// document is the given version of the policy.
func (a *agent) document(version uint64) string {
	return a.policy(a.name, fmt.Sprintf("    - to: [%q]\n", a.toggle(version)))
}

// ownDocument is a policy of one task's own that means the same, without what
// differs between versions.
func (a *agent) ownDocument() string { return a.policy("own", "") }

func (a *agent) policy(name, more string) string {
	return fmt.Sprintf(`---
apiVersion: agentguard.dev/v1alpha1
kind: AgentPolicy
metadata: {name: %s}
spec:
  egress:
    - to: ["%s", "%s"]
    - to: ["%s/26:%d-%d"]
    - to: ["udp://%s"]
%s`, name, a.exact(), a.exact6(), a.address(64), firstPort, lastPort, a.datagram(), more)
}
