// SPDX-License-Identifier: Apache-2.0

package task

import (
	"crypto/sha256"
	"fmt"
	"maps"

	kernel "agentguard.dev/agentguard/internal/maps"
	"agentguard.dev/agentguard/internal/policy"
)

// version is one policy as the kernel's maps hold it. It does not change.
type version struct {
	policy    policy.Policy
	numbering numbering
	compiled  policy.Compiled
}

// noPolicy is what a task has that was begun with grants alone.
func noPolicy() *version { return &version{policy: policy.Default("")} }

// newVersion compiles p for an owner. Rules whose text is in earlier keep their
// numbers, so that their counters go on; the others get new ones.
func newVersion(p policy.Policy, owner uint32, earlier map[string]uint32, rules *sequence) (*version, error) {
	v := &version{policy: p, numbering: numbering{Owner: owner, Document: p.Document, Rules: maps.Clone(earlier)}}
	if v.numbering.Rules == nil {
		v.numbering.Rules = make(map[string]uint32, len(p.Rules))
	}
	inputs := make([]policy.Input, 0, len(p.Rules))
	for _, rule := range p.Rules {
		text := ruleName(rule)
		number := v.numbering.Rules[text]
		if number == 0 {
			var err error
			if number, err = rules.next(); err != nil {
				return nil, err
			}
			v.numbering.Rules[text] = number
		}
		inputs = append(inputs, policy.Input{Rule: rule, ID: number})
	}
	var err error
	v.compiled, err = policy.Compile(inputs)
	return v, err
}

// maxRuleName is the length in bytes up to which a rule's text is its name.
const maxRuleName = 256

// ruleName is what a rule is known by across versions of its policy and shown
// as: its text, or for a long one its beginning and a digest.
func ruleName(rule policy.Rule) string {
	text := rule.String()
	if len(text) <= maxRuleName {
		return text
	}
	return fmt.Sprintf("%s #%.6x", rule.Short(), sha256.Sum256([]byte(text)))
}

// kernelRecord is what the kernel has to know of a live task under v.
func (v *version) kernelRecord(r *record, grants policy.Compiled) kernel.Task {
	t := kernel.Task{
		Number:         r.Number,
		Policy:         v.numbering.Owner,
		Deadline:       r.Deadline,
		State:          kernel.StateLive,
		Mode:           v.policy.Mode,
		Loopback:       v.policy.Loopback,
		MPTCP:          v.policy.MPTCP,
		Raw:            v.policy.Raw,
		Multicast:      v.policy.Multicast,
		PolicyPrefixes: len(v.compiled.Prefixes) > 0,
		Grants:         len(grants.Hosts) > 0,
		GrantPrefixes:  len(grants.Prefixes) > 0,
		Names:          len(v.compiled.Named)+len(grants.Named) > 0,
		WideNames:      v.compiled.WideNames || grants.WideNames,
	}
	// What is learned for a grant's name stands in `hosts` as well.
	t.Grants = t.Grants || len(grants.Named) > 0
	rules := v.policy.Rules
	for _, g := range r.Grants {
		if !g.Revoked {
			rules = append(rules[:len(rules):len(rules)], g.asRule())
		}
	}
	for _, proto := range policy.Protos(rules) {
		switch proto {
		case policy.UDPLite:
			t.UDPLite = true
		case policy.SCTP:
			t.SCTP = true
		case policy.DCCP:
			t.DCCP = true
		}
	}
	return t
}

// asRule is the grant as a rule. Its destination was parsed when it was given.
func (g grant) asRule() policy.Rule {
	d, err := policy.ParseDestination(g.Destination)
	if err != nil {
		return policy.Rule{} // allows nothing
	}
	rule := policy.Rule{To: []policy.Destination{d}}
	if g.TLS == tlsOff {
		rule.TLS = policy.Off
	}
	return rule
}

// tlsOff is what a grant says of connections that need not be TLS.
const tlsOff = "off"

// text is how the grant is shown among rules.
func (g grant) text() string {
	if g.TLS == "" {
		return g.Destination
	}
	return g.Destination + " tls: " + g.TLS
}

// compileGrants compiles those that are in force.
func compileGrants(grants []grant) (policy.Compiled, error) {
	var inputs []policy.Input
	for _, g := range grants {
		if !g.Revoked {
			inputs = append(inputs, policy.Input{Rule: g.asRule(), ID: g.Rule, Deadline: g.Deadline})
		}
	}
	return policy.Compile(inputs)
}
