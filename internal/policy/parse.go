// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/token"
)

const (
	apiVersion = "agentguard.dev/v1alpha1"
	kind       = "AgentPolicy"

	expectedName  = "a name of at most 63 lower-case letters, digits and hyphens that starts and ends with a letter or digit"
	expectedList  = `a list of destinations in quotes, such as ["api.example.com:443"]`
	expectedPeers = `a list of peers with the task's own port in quotes, such as ["192.0.2.0/24:443"]`
)

// Parse reads a file of one or more AgentPolicy documents. It is all or nothing:
// with an error there are no policies. The error joins an *Error for each thing
// that is wrong in the file; file is only the name that they carry.
//
// Each policy that Parse returns also compiles.
func Parse(file string, data []byte) ([]Policy, error) {
	errs := &report{file: file}
	d := decoder{report: errs}
	var policies []Policy
	named := make(map[string]int)
	docs := parseYAML(data, errs)
	for _, doc := range docs {
		p, at := d.policy(doc.body)
		p.Document = doc.text
		if line, ok := named[p.Name]; ok && p.Name != "" {
			d.add(at, "metadata.name", "%q is also the name of the policy on line %d; names are unique", p.Name, line)
		} else if at != nil {
			named[p.Name] = at.Line
		}
		policies = append(policies, p)
	}
	if len(docs) == 0 && len(errs.errs) == 0 {
		d.add(nil, "", "no policy; expected a document with apiVersion: %s and kind: %s", apiVersion, kind)
	}
	if err := errs.err(); err != nil {
		return nil, err
	}
	return policies, nil
}

// policy decodes one document, and returns where its name stands.
func (d *decoder) policy(body ast.Node) (p Policy, name *token.Position) {
	p = Default("")
	errors := len(d.errs) + d.more
	var rules *token.Position
	d.object(body, "", fields{
		"apiVersion": {need: apiVersion, decode: func(n ast.Node, path string) { d.constant(n, path, apiVersion) }},
		"kind":       {need: kind, decode: func(n ast.Node, path string) { d.constant(n, path, kind) }},
		"metadata": {need: "an object with name", decode: func(n ast.Node, path string) {
			d.object(n, path, fields{
				"name": {need: expectedName, decode: func(n ast.Node, path string) {
					p.Name, name = d.name(n, path), start(n)
				}},
			})
		}},
		"spec": {need: "an object; {} allows nothing", decode: func(n ast.Node, path string) {
			rules = start(n)
			d.spec(n, path, &p)
		}},
	})
	if len(d.errs)+d.more > errors {
		return p, name
	}
	p.Rules = distinct(p.Rules)
	p.Notes = notes(p.Rules)
	in := make([]Input, len(p.Rules))
	for i, r := range p.Rules {
		in[i] = Input{Rule: r, ID: uint32(i)}
	}
	if _, err := Compile(in); err != nil {
		d.add(rules, "spec", "%w", err)
	}
	return p, name
}

func (d *decoder) spec(n ast.Node, path string, p *Policy) {
	var egress, ingress func() []Rule // once it is known what holds for all rules
	tls := Unset
	d.object(n, path, fields{
		"mode": {decode: func(n ast.Node, path string) { p.Mode = choice(d, n, path, Enforce, Audit) }},
		"loopback": {decode: func(n ast.Node, path string) {
			p.Loopback = choice(d, n, path, LoopbackTask, LoopbackHost, LoopbackNone)
		}},
		"mptcp":     {decode: func(n ast.Node, path string) { p.MPTCP = d.allowed(n, path) }},
		"raw":       {decode: func(n ast.Node, path string) { p.Raw = d.allowed(n, path) }},
		"multicast": {decode: func(n ast.Node, path string) { p.Multicast = d.allowed(n, path) }},
		"maxTTL":    {decode: func(n ast.Node, path string) { p.MaxTTL = d.duration(n, path) }},
		"onEnd":     {decode: func(n ast.Node, path string) { p.OnEnd = choice(d, n, path, Kill, Leave) }},
		"tls":       {decode: func(n ast.Node, path string) { tls = choice(d, n, path, Required, Off) }},
		"egress": {decode: func(n ast.Node, path string) {
			egress = func() []Rule { return d.egress(n, path, tls) }
		}},
		"ingress": {decode: func(n ast.Node, path string) {
			ingress = func() []Rule { return d.ingress(n, path) }
		}},
	})
	for _, rules := range []func() []Rule{egress, ingress} {
		if rules != nil {
			p.Rules = append(p.Rules, rules()...)
		}
	}
}

// egress decodes spec.egress; tls holds for the rules that do not say.
func (d *decoder) egress(n ast.Node, path string, tls Setting) []Rule {
	var rules []Rule
	items, _ := d.list(n, path, "a list of rules, each with to")
	for i, item := range items {
		var (
			rule  Rule
			to    func() // once the rule's settings are known
			check settings
		)
		d.object(item, index(path, i), fields{
			"to":   {need: expectedList, decode: func(n ast.Node, path string) { to = func() { d.destinations(n, path, &rule) } }},
			"tls":  {decode: check.decode(d, &rule.TLS)},
			"http": {decode: check.decode(d, &rule.HTTP)},
		})
		rule.TLS = cmp.Or(rule.TLS, tls)
		if to != nil {
			to()
		}
		check.end(d, &rule)
		rules = append(rules, rule)
	}
	return rules
}

// settings are those of one rule, and where they stand.
type settings []setting

type setting struct {
	at   *token.Position
	path string
}

func (s *settings) decode(d *decoder, to *Setting) func(ast.Node, string) {
	return func(n ast.Node, path string) {
		errors := len(d.errs) + d.more
		*to = choice(d, n, path, Required, Off)
		if len(d.errs)+d.more == errors {
			*s = append(*s, setting{start(n), path})
		}
	}
}

// end reports settings that could not do what they promise, and takes those
// away that do not concern the rule.
func (s settings) end(d *decoder, rule *Rule) {
	named := slices.ContainsFunc(rule.To, func(to Destination) bool { return to.Name != "" })
	for _, set := range s {
		if !named && len(rule.To) > 0 {
			d.add(set.at, set.path, "nothing to check: none of the rule's destinations is a name; leave it out")
		}
	}
	if named && len(s) == 2 && rule.TLS == Required && rule.HTTP == Required {
		d.add(s[1].at, s[1].path, "tls and http cannot both be required: no connection is both; keep one, or make it two rules")
	}
	if !named {
		rule.TLS, rule.HTTP = Unset, Unset
	}
}

// ingress decodes spec.ingress.
func (d *decoder) ingress(n ast.Node, path string) []Rule {
	var rules []Rule
	items, _ := d.list(n, path, "a list of rules, each with from")
	for i, item := range items {
		rule := Rule{Direction: Ingress}
		d.object(item, index(path, i), fields{
			"from": {need: expectedPeers, decode: func(n ast.Node, path string) { d.destinations(n, path, &rule) }},
		})
		rules = append(rules, rule)
	}
	return rules
}

// destinations adds those of the list n to the rule.
func (d *decoder) destinations(n ast.Node, path string, rule *Rule) {
	list, one := expectedList, "api.example.com:443"
	if rule.Direction == Ingress {
		list, one = expectedPeers, "192.0.2.1:443"
	}
	items, ok := d.list(n, path, list)
	if ok && len(items) == 0 {
		d.add(start(n), path, "empty list; expected at least one destination, such as %q", one)
	}
	for i, item := range items {
		text, ok := d.text(item, index(path, i), fmt.Sprintf(`a destination in quotes, such as %q or "[2001:db8::/32]:443"`, one))
		if !ok {
			continue
		}
		dest, err := ParseDestination(text)
		if err == nil {
			err = rule.problem(dest)
		}
		if err != nil {
			d.add(start(item), index(path, i), "%w", err)
			continue
		}
		rule.To = append(rule.To, dest)
	}
}

// name decodes metadata.name: a DNS label, so that it can name files, cgroups
// and metrics without quoting.
func (d *decoder) name(n ast.Node, path string) string {
	text, ok := d.text(n, path, expectedName)
	if ok && !ValidName(text) {
		d.add(start(n), path, "%s; expected %s", quoteIfOdd(text), expectedName)
		return ""
	}
	return text
}

// ValidName reports whether s can name a policy, and so an agent: 1 to 63
// lower-case letters, digits and hyphens, with no hyphen at either end.
func ValidName(s string) bool {
	if s == "" || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	return strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

func (d *decoder) duration(n ast.Node, path string) time.Duration {
	const expected = `a duration such as "90s", "30m" or "1h"`
	text, ok := d.text(n, path, expected)
	if !ok {
		return 0
	}
	v, err := time.ParseDuration(text)
	if err != nil || v <= 0 {
		d.add(start(n), path, "%s; expected %s", quoteIfOdd(text), expected)
		return 0
	}
	return v
}

// distinct returns rules without those that an earlier one equals.
func distinct(rules []Rule) []Rule {
	seen := make(map[string]bool, len(rules))
	var out []Rule
	for _, r := range rules {
		if text := r.String(); !seen[text] {
			seen[text] = true
			out = append(out, r)
		}
	}
	return out
}
