// SPDX-License-Identifier: Apache-2.0

package task

import (
	"errors"
	"net/netip"
	"slices"
	"time"

	"agentguard.dev/agentguard/client"
	"agentguard.dev/agentguard/internal/loader"
	"agentguard.dev/agentguard/internal/maps"
	"agentguard.dev/agentguard/internal/names"
	"agentguard.dev/agentguard/internal/policy"
)

// resolverSide is the engine as the resolver sees it.
type resolverSide struct{ *Engine }

// Asker implements names.Authority.
func (r resolverSide) Asker(netns uint64, proto policy.Proto, src netip.AddrPort) (names.Asker, bool) {
	asker, t, ok := r.asker(netns, proto, src)
	if !ok {
		return names.Asker{}, false
	}
	now := t.rules(r.Engine, netns)
	return names.Asker{
		Task: t.number, PID: asker.PID, UID: asker.UID, Process: asker.Process, To: asker.To,
		Audit: now.mode == policy.Audit, Rules: now,
	}, true
}

// asker finds the live task whose packet from src the kernel has seen.
func (e *Engine) asker(netns uint64, proto policy.Proto, src netip.AddrPort) (maps.Asker, *task, bool) {
	asker, ok, err := e.maps.Askers.Find(netns, proto, src)
	if err != nil {
		e.log.Error("look for the task that asks", "err", err)
	}
	if err != nil || !ok {
		return asker, nil, false
	}
	e.mu.Lock()
	t := e.byNumber[asker.Task]
	e.mu.Unlock()
	if t == nil {
		return asker, nil, false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return asker, t, t.state == client.TaskLive && !passed(t.record.Deadline)
}

// Genuine implements names.Authority.
func (r resolverSide) Genuine(netns uint64, proto policy.Proto, resolver netip.AddrPort) bool {
	addr := resolver.Addr()
	if !addr.IsLoopback() && !r.maps.LocalAddrs.Contains(netns, addr) {
		return true
	}
	ns, ok := r.spaces.withCookie(netns)
	if !ok {
		return false
	}
	defer r.spaces.release(ns.ID())
	cgroup, found, err := loader.Receiver(ns, proto, resolver)
	if err != nil {
		r.log.Error("look whether a resolver is genuine", "err", err)
		return false
	}
	// Where nobody listens, nobody answers, unless NAT of the namespace leads
	// elsewhere.
	return !found || !r.belongsToTask(cgroup)
}

// Learn implements names.Authority. The locks keep the numbers of named
// destinations what they are: a new policy takes over what was learned before
// it, and a grant that goes takes with it what it had learned.
func (r resolverSide) Learn(a names.Asker, host string, addrs []netip.Addr, ttl time.Duration) error {
	r.mu.Lock()
	t := r.byNumber[a.Task]
	r.mu.Unlock()
	if t == nil {
		return errNotLive
	}
	r.learning.RLock()
	defer r.learning.RUnlock()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.state != client.TaskLive {
		return errNotLive
	}
	now := a.Rules.(*rules)
	// In whole seconds: the same cached answer again is then nothing new.
	expires := (loader.Now()+uint64(ttl))/uint64(time.Second)*uint64(time.Second) + uint64(time.Second)
	for owner, compiled := range map[uint32]*policy.Compiled{
		t.version.numbering.Owner: &t.version.compiled, t.number: &t.granted,
	} {
		var learned []maps.Learned
		for _, named := range compiled.Matching(host) {
			if passed(named.Deadline) {
				continue
			}
			for _, addr := range addrs {
				if now.inner(addr) && !now.exempts(named, addr) {
					continue
				}
				learned = append(learned, maps.Learned{Number: named.Number, Addr: addr, Expires: expires})
			}
		}
		if len(learned) == 0 {
			continue
		}
		if err := r.maps.Rules.Learn(owner, learned...); err != nil {
			return err
		}
	}
	return nil
}

// Query implements names.Authority.
func (r resolverSide) Query(q names.Record) {
	r.totals.queries.add(q.Verdict)
	record := client.Record{
		Kind: "dns", Verdict: q.Verdict, Reason: q.Reason, Name: q.Host, Type: q.Type,
		Addresses: addressTexts(q.Addrs), PID: q.PID, Process: q.Process,
	}
	if q.PID != 0 {
		record.UID = &q.UID
	}
	if q.Upstream.IsValid() {
		record.Detail = "answered by " + q.Upstream.String()
	}
	r.mu.Lock()
	t := r.byNumber[q.Task]
	r.mu.Unlock()
	if t != nil {
		r.attributeName(&record, t, q.Verdict != names.Allow && !q.Rules.Allows(q.Host), httpsPort)
	}
	r.records.add(record)
}

// httpsPort is what a name that was asked for is most likely wanted for.
const httpsPort = 443

// attributeName says whose question or request a record is about, and, if its
// name is unknown to the rules, what would allow it.
func (e *Engine) attributeName(record *client.Record, t *task, unknown bool, port uint16) {
	t.mu.Lock()
	defer t.mu.Unlock()
	record.Task, record.Agent, record.Purpose = t.id, t.Agent, t.Request.Purpose
	if unknown && t.state == client.TaskLive {
		record.Hint = e.nameHint(t, record.Name, port, "")
	}
}

var errNotLive = errors.New("the task has ended")

// maxAddresses bounds the addresses of one record, and of one name.
const maxAddresses = 16

func addressTexts(addrs []netip.Addr) []string {
	var texts []string
	for _, addr := range addrs[:min(len(addrs), maxAddresses)] {
		texts = append(texts, addr.String())
	}
	return texts
}

// rules are what the policy and the grants of a task say at one moment about
// names and addresses.
type rules struct {
	engine *Engine
	netns  uint64 // cookie
	owners [2]uint32
	mode   policy.Mode
	static []policy.Rule // of the policy
	grants []grantRule
	named  [2]*policy.Compiled
}

// grantRule is a grant as a rule; it is over from the deadline on.
type grantRule struct {
	policy.Rule
	deadline uint64
}

// grantRules are those of grants that were not revoked. They are not changed
// afterwards: a change of the grants makes others.
func grantRules(grants []grant) []grantRule {
	var rules []grantRule
	for _, g := range grants {
		if !g.Revoked {
			rules = append(rules, grantRule{g.asRule(), g.Deadline})
		}
	}
	return rules
}

func (t *task) rules(e *Engine, netns uint64) *rules {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := &rules{engine: e, netns: netns}
	if t.version == nil {
		return now // it has just ended
	}
	granted := t.granted // of which nothing is changed: another takes its place
	now.owners = [2]uint32{t.version.numbering.Owner, t.number}
	now.mode = t.version.policy.Mode
	now.named = [2]*policy.Compiled{&t.version.compiled, &granted}
	now.static, now.grants = t.version.policy.Rules, t.grantRules
	return now
}

// Allows implements names.Rules.
func (r *rules) Allows(host string) bool {
	for _, compiled := range r.named {
		if compiled != nil && slices.ContainsFunc(compiled.Matching(host), func(n policy.Named) bool { return !passed(n.Deadline) }) {
			return true
		}
	}
	return false
}

// AllowsAddr implements names.Rules.
func (r *rules) AllowsAddr(host string, addr netip.Addr) bool {
	for _, compiled := range r.named {
		if compiled == nil {
			continue
		}
		for _, named := range compiled.Matching(host) {
			if !passed(named.Deadline) && r.exempts(named, addr) {
				return true
			}
		}
	}
	return false
}

// exempts says whether a named destination may have an address that is not
// public: a rule for addresses covers it with the protocol and a port of the
// destination. One for half the world does not mean what is said on a link, where
// clouds keep credentials.
func (r *rules) exempts(named policy.Named, addr netip.Addr) bool {
	return r.covers(func(d policy.Destination) bool {
		if d.Proto != named.Proto || names.LinkLocal(addr) && !names.LinkLocal(d.Prefix.Addr()) {
			return false
		}
		return slices.ContainsFunc(named.Ranges, func(n policy.NamedRange) bool {
			if !d.Proto.HasPorts() {
				return d.Matches(d.Proto, addr, 0)
			}
			return slices.ContainsFunc(d.Ports, func(p policy.Ports) bool {
				port := max(p.Lo, n.Lo)
				return port <= min(p.Hi, n.Hi) && d.Matches(d.Proto, addr, port)
			})
		})
	})
}

// inner says whether addr is one that only an exempted destination may have.
func (r *rules) inner(addr netip.Addr) bool { return !names.Public(addr) || r.Local(addr) }

// coversAddr says whether a rule for addresses covers addr, whatever the port.
func (r *rules) coversAddr(addr netip.Addr) bool {
	return r.covers(func(d policy.Destination) bool {
		port := uint16(0)
		if len(d.Ports) > 0 {
			port = d.Ports[0].Lo
		}
		return d.Matches(d.Proto, addr, port)
	})
}

// covers says whether an egress rule for addresses has a destination for which
// match holds.
func (r *rules) covers(match func(policy.Destination) bool) bool {
	covered := func(rule policy.Rule) bool {
		return rule.Direction == policy.Egress && slices.ContainsFunc(rule.To, func(d policy.Destination) bool {
			return d.Prefix.IsValid() && match(d)
		})
	}
	return slices.ContainsFunc(r.static, covered) ||
		slices.ContainsFunc(r.grants, func(g grantRule) bool { return !passed(g.deadline) && covered(g.Rule) })
}

// MayReach implements names.Rules.
func (r *rules) MayReach(addr netip.Addr) bool {
	return r.coversAddr(addr) || len(r.engine.learnedNames(r.owners, addr)) > 0
}

// learnedNames are the names for which owners have learned an address.
func (e *Engine) learnedNames(owners [2]uint32, addr netip.Addr) []policy.Name {
	var found []policy.Name
	for _, owner := range owners {
		for _, name := range e.maps.Rules.LearnedNames(owner, addr) {
			if !slices.Contains(found, name) {
				found = append(found, name)
			}
		}
	}
	return found
}

// Local implements names.Rules.
func (r *rules) Local(addr netip.Addr) bool {
	return r.engine.maps.LocalAddrs.Contains(r.netns, addr)
}

// Trusts implements names.Rules.
func (r *rules) Trusts(resolver netip.AddrPort) bool {
	if r.engine.stations.trusts(r.netns, resolver) {
		return true
	}
	return r.covers(func(d policy.Destination) bool {
		return resolver.Port() == dnsPort &&
			(d.Matches(policy.UDP, resolver.Addr(), dnsPort) || d.Matches(policy.TCP, resolver.Addr(), dnsPort))
	})
}
