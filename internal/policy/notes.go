// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/net/publicsuffix"
)

// notes says what the author of rules may not have meant. Each stands once.
func notes(rules []Rule) []string {
	var out []string
	said := make(map[string]bool)
	add := func(format string, args ...any) {
		if note := fmt.Sprintf(format, args...); !said[note] {
			said[note] = true
			out = append(out, note)
		}
	}
	matched := bareNames(rules)
	for _, r := range rules {
		for _, d := range r.To {
			if d.Name == "" {
				continue
			}
			if bare := d.Name.bare(); d.Name.IsWildcard() {
				if !matched[bare] && !isPublicSuffix(bare) {
					add("%s does not match %s itself: add it if you mean it", d.Name, bare)
				}
				if isPublicSuffix(bare) {
					add("%s covers names of many owners: anybody can have one below %s", d.Name, bare)
				}
			}
			if d.Name == "localhost" || d.Name == "*.localhost" {
				add("%s is this host, which a name never reaches: write 127.0.0.1 and [::1], or set loopback", d.Name)
			}
			if (d.Proto == UDP || d.Proto == TCP) && slices.Contains(d.Ports, Ports{portDNS, portDNS}) {
				add("%s: port 53 goes to agentguard's resolver whatever the rules say: leave it out", d)
			}
			if relaxed := r.relaxed(d); relaxed != "" {
				add("%s: %s: not checked which name is asked for, so any other name on its addresses is reached as well", d, relaxed)
			}
		}
	}
	return out
}

// relaxed returns the settings of r that take a check from d.
func (r Rule) relaxed(d Destination) string {
	strict := Rule{Direction: r.Direction}
	var off []string
	for _, n := range newNamed(Input{Rule: strict}, d).Ranges {
		switch was, is := n.Check, r.Check(d, n.Lo); {
		case is != CheckNone || was == CheckNone:
		case was == CheckHTTP:
			off = append(off, "http: off")
		case was == CheckTLS && !slices.Contains(off, "tls: off"):
			off = append(off, "tls: off")
		}
	}
	return strings.Join(off, " and ")
}

// bareNames returns every name that some rule has as it is.
func bareNames(rules []Rule) map[string]bool {
	names := make(map[string]bool)
	for _, r := range rules {
		for _, d := range r.To {
			if !d.Name.IsWildcard() {
				names[string(d.Name)] = true
			}
		}
	}
	return names
}

// isPublicSuffix reports whether anybody can have a name below this one.
func isPublicSuffix(name string) bool {
	suffix, listed := publicsuffix.PublicSuffix(name)
	return suffix == name && (listed || strings.Contains(name, "."))
}
