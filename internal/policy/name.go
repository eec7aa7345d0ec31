// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/net/idna"
)

const (
	// MaxName is how many bytes a name may have: with the owner and the byte that
	// ends it, the kernel's trie has no room for more.
	MaxName  = 247
	maxLabel = 63
)

// Name is a DNS name in a rule: lower case, A-labels, no dot at the end. One
// that begins with "*." stands for every name below the rest, one or more labels
// deep, and not for the rest itself.
type Name string

// international maps U-labels to A-labels as browsers do, but for the
// characters that DNS allows and host names do not, such as the underscore.
var international = idna.New(idna.MapForLookup(), idna.BidiRule(), idna.StrictDomainName(false), idna.CheckHyphens(false))

// ParseName reads a name as people write it: U-labels or A-labels, any case, with
// or without a dot at the end. The error says what to write instead.
func ParseName(s string) (Name, error) {
	host, wildcard := strings.CutPrefix(strings.TrimSuffix(s, "."), "*.")
	switch {
	case host == "":
		return "", fmt.Errorf("%q names nothing; write for example api.example.com or *.example.com", s)
	case s[0] == '.':
		return "", fmt.Errorf("a name does not begin with a dot; for every name below it write *%s", s)
	case host[len(host)-1] == '.':
		return "", fmt.Errorf("%s ends in two dots; take one of the dots out", quoteIfOdd(s))
	case strings.Contains(host, "*"):
		return "", misplacedStar(s)
	}
	host, err := toASCII(host)
	switch {
	case err != nil:
		return "", err
	case looksNumeric(host):
		return "", fmt.Errorf("%q ends in a number, as no name does", s)
	}
	if wildcard {
		host = "*." + host
	}
	if len(host) > MaxName {
		return "", fmt.Errorf("%d bytes, more than the %d of the longest name", len(host), MaxName)
	}
	return Name(host), nil
}

func toASCII(s string) (string, error) {
	if strings.IndexFunc(s, func(r rune) bool { return r >= 0x80 }) >= 0 {
		ascii, err := international.ToASCII(s)
		if err != nil {
			return "", fmt.Errorf("not an internationalised name: %w", err)
		}
		s = ascii
	}
	return CanonicalHost(s)
}

func misplacedStar(s string) error {
	rest := strings.TrimLeft(s[strings.LastIndexByte(s, '*')+1:], ".")
	if rest == "" {
		rest = "example.com"
	}
	return fmt.Errorf("* stands alone and first, for one or more whole labels; write *.%s", rest)
}

// CanonicalHost returns a host name from DNS, a ClientHello or a Host header in
// the form that Name.Matches wants: lower case, without the dot at its end. What
// is no name of letters, digits, hyphens and underscores is an error.
func CanonicalHost(s string) (string, error) {
	s = strings.TrimSuffix(s, ".")
	if s == "" {
		return "", errors.New("an empty name")
	}
	if len(s) > MaxName {
		return "", fmt.Errorf("%d bytes, more than the %d of the longest name", len(s), MaxName)
	}
	for label := range strings.SplitSeq(s, ".") {
		switch {
		case label == "":
			return "", fmt.Errorf("%s has an empty label; take one of the dots out", quoteIfOdd(s))
		case len(label) > maxLabel:
			return "", fmt.Errorf("the label %q has %d bytes, more than %d", label, len(label), maxLabel)
		}
		for i := range len(label) {
			if c := label[i]; (c|0x20 < 'a' || c|0x20 > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
				return "", fmt.Errorf("%q in the label %q; a name has letters, digits, hyphens and underscores", c, label)
			}
		}
	}
	return strings.ToLower(s), nil
}

// IsWildcard reports whether n stands for the names below it.
func (n Name) IsWildcard() bool { return strings.HasPrefix(string(n), "*.") }

// bare returns n without the star.
func (n Name) bare() string { return strings.TrimPrefix(string(n), "*.") }

// Matches reports whether n stands for host, which is as CanonicalHost returns it.
func (n Name) Matches(host string) bool {
	below, wildcard := strings.CutPrefix(string(n), "*")
	if !wildcard {
		return string(n) == host
	}
	return len(host) > len(below) && strings.HasSuffix(host, below)
}

// Covers reports whether n stands for every name that o stands for.
func (n Name) Covers(o Name) bool {
	return n == o || n.IsWildcard() && n.Matches(o.bare())
}

// wildcards calls yield with the wildcards that cover n, n itself left out, the
// nearest first.
func (n Name) wildcards(yield func(Name) bool) {
	for rest := n.bare(); ; {
		_, above, found := strings.Cut(rest, ".")
		if !found || !yield(Name("*."+above)) {
			return
		}
		rest = above
	}
}
