// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"net/netip"
	"slices"

	"agentguard.dev/agentguard/internal/policy"
)

// Known returns the addresses at which owner's names may be reached by flows that
// begin at now.
func (r *Rules) Known(owner uint32, now uint64) map[policy.Name][]netip.Addr {
	r.mu.Lock()
	defer r.mu.Unlock()
	o := r.owners[owner]
	if o == nil {
		return nil
	}
	names := make(map[policy.Name][]netip.Addr)
	for addr, known := range o.addrs {
		for _, a := range known {
			n, ok := o.named[a.number]
			if ok && a.expires > now && !slices.Contains(names[n.Name], addr.Unmap()) {
				names[n.Name] = append(names[n.Name], addr.Unmap())
			}
		}
	}
	return names
}

// CountLearned returns how many addresses the names of all owners have.
func (r *Rules) CountLearned() int {
	_, _, _, learned := r.entries()
	return learned
}
