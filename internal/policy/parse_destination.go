// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"unicode"
)

// ParseDestination reads [SCHEME://]HOST[:PORTS].
//
// SCHEME is tcp (the default), udp, icmp, sctp, dccp or udplite. HOST is a name
// or *.name, an IPv4 address or prefix, or an IPv6 address or prefix in
// brackets. PORTS is a comma-separated list of ports and ranges, or * for all;
// every protocol needs it but ICMP, which has none. The error names s and what to write instead.
func ParseDestination(s string) (Destination, error) {
	d, err := parseDestination(s)
	if err != nil {
		return Destination{}, fmt.Errorf("%s: %w", quoteIfOdd(s), err)
	}
	return d, nil
}

// maxText bounds a destination's text, and so its errors. The longest canonical
// one has 641 bytes.
const maxText = 2048

func parseDestination(s string) (Destination, error) {
	if s == "" {
		return Destination{}, errors.New("empty destination; write for example api.example.com:443 or 192.0.2.1:443")
	}
	if strings.ContainsFunc(s, func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsPrint(r) }) {
		return Destination{}, errors.New("white space or an unprintable character in a destination; write for example 192.0.2.1:80,443")
	}
	if len(s) > maxText {
		return Destination{}, fmt.Errorf("%d bytes, more than the %d of the longest destination; join ports into ranges", len(s), maxText)
	}
	proto, rest, err := cutScheme(s)
	if err != nil {
		return Destination{}, err
	}
	host, ports, hasPorts, err := cutHost(rest)
	if err != nil {
		return Destination{}, err
	}
	prefix, name, err := parseHost(host)
	if err != nil {
		return Destination{}, err
	}
	d := Destination{Proto: proto, Prefix: prefix, Name: name}
	switch {
	case !proto.HasPorts() && hasPorts:
		return Destination{}, fmt.Errorf("%s has no ports; write %s", proto, d)
	case !proto.HasPorts():
		return d, nil
	case !hasPorts:
		return Destination{}, fmt.Errorf("no port; write %s:443, %[1]s:80,443, %[1]s:8000-8100 or %[1]s:* for all ports", d)
	}
	d.Ports, err = parsePorts(ports)
	return d, err
}

// cutScheme splits SCHEME:// off s.
func cutScheme(s string) (Proto, string, error) {
	name, rest, found := strings.Cut(s, "://")
	if !found {
		return TCP, s, nil
	}
	for _, scheme := range schemes {
		if strings.EqualFold(scheme.name, name) {
			return scheme.proto, rest, nil
		}
	}
	hint := ""
	switch strings.ToLower(name) {
	case "http", "ws":
		hint = "; for a web address write HOST:80"
	case "https", "wss":
		hint = "; for a web address write HOST:443"
	case "icmp6", "icmpv6", "ping":
		hint = "; icmp covers ICMPv6"
	}
	return 0, "", fmt.Errorf("unknown protocol %q; expected tcp, udp, icmp, sctp, dccp or udplite%s", name, hint)
}

// cutHost splits HOST[:PORTS]. The brackets stay on an IPv6 host.
func cutHost(s string) (host, ports string, hasPorts bool, err error) {
	if strings.Contains(s, "%") {
		return "", "", false, errors.New("a zone (%) is not allowed, a rule holds on every interface; leave it out")
	}
	if strings.HasPrefix(s, "[") {
		end := strings.IndexByte(s, ']')
		if end < 0 {
			return "", "", false, errors.New("missing ]; write for example [2001:db8::/32]:443")
		}
		host, rest := s[:end+1], s[end+1:]
		if rest == "" {
			return host, "", false, nil
		}
		if length, _, _ := strings.Cut(rest, ":"); strings.HasPrefix(length, "/") {
			return "", "", false, fmt.Errorf("the prefix length goes inside the brackets; write [%s%s]%s", s[1:end], length, rest[len(length):])
		}
		if rest[0] != ':' {
			return "", "", false, fmt.Errorf("unexpected %q after ]; write for example %s:443", rest, host)
		}
		return host, rest[1:], true, nil
	}
	if strings.Count(s, ":") > 1 {
		return "", "", false, unbracketed(s)
	}
	host, ports, hasPorts = strings.Cut(s, ":")
	return host, ports, hasPorts, nil
}

// unbracketed explains a host with several colons and no brackets.
func unbracketed(s string) error {
	i := strings.LastIndexByte(s, ':')
	head, tail := s[:i], s[i+1:]
	if _, err := parsePorts(tail); err == nil && isIPv6(head) {
		return fmt.Errorf("an IPv6 host needs brackets; write [%s]:%s", head, tail)
	}
	if isIPv6(s) {
		return fmt.Errorf("an IPv6 host needs brackets; write [%s]:PORT", s)
	}
	return errors.New("too many colons; write HOST:PORTS, and an IPv6 host in brackets: [2001:db8::1]:443")
}

func isIPv6(s string) bool {
	addr, _, _ := strings.Cut(s, "/")
	a, err := netip.ParseAddr(addr)
	return err == nil && a.Is6()
}

// parseHost reads a name, an address or a prefix; IPv6 stands in brackets.
func parseHost(host string) (netip.Prefix, Name, error) {
	text, bracketed := host, strings.HasPrefix(host, "[")
	if bracketed {
		text = host[1 : len(host)-1]
	}
	switch {
	case text == "":
		return netip.Prefix{}, "", errors.New("no host; write for example api.example.com:443 or 192.0.2.1:443")
	case text == "*":
		return netip.Prefix{}, "", errors.New("* is no host; for every name below one write *.example.com, for every address 0.0.0.0/0 (IPv4) and [::/0] (IPv6)")
	}
	addr, length, isPrefix := strings.Cut(text, "/")
	a, err := netip.ParseAddr(addr)
	switch {
	case err != nil && !bracketed && looksLikeName(addr):
		name, err := parseHostName(addr, isPrefix)
		return netip.Prefix{}, name, err
	case err != nil:
		return netip.Prefix{}, "", notAnAddress(addr, bracketed)
	case bracketed && a.Is4():
		return netip.Prefix{}, "", fmt.Errorf("brackets are for IPv6; write %s", text)
	}
	if !isPrefix {
		length = strconv.Itoa(a.BitLen())
	}
	p, err := parsePrefix(a, length)
	return p, "", err
}

func parseHostName(s string, isPrefix bool) (Name, error) {
	if looksNumeric(s) {
		return "", fmt.Errorf("%q is not an IPv4 address; write four decimal numbers without leading zeros, such as 192.0.2.1", s)
	}
	name, err := ParseName(s)
	if err == nil && isPrefix {
		return "", fmt.Errorf("a name has no path and no prefix length; write %s:443", name)
	}
	return name, err
}

func parsePrefix(a netip.Addr, length string) (netip.Prefix, error) {
	bits, err := parseLength(length, a.BitLen())
	if err != nil {
		return netip.Prefix{}, err
	}
	written := netip.PrefixFrom(a, bits)
	if masked := written.Masked(); masked != written {
		return netip.Prefix{}, fmt.Errorf("%s has bits set beyond /%d; write %s for the prefix or %s for the one address",
			written, bits, bracketIPv6(masked.String(), a), bracketIPv6(a.String(), a))
	}
	p := unmap(written)
	if p.IsSingleIP() && p.Addr().IsUnspecified() {
		return netip.Prefix{}, unspecified(p.Addr())
	}
	return p, nil
}

// unmap turns a prefix of IPv4-mapped addresses into the IPv4 prefix.
func unmap(p netip.Prefix) netip.Prefix {
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		return netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p
}

func bracketIPv6(text string, a netip.Addr) string {
	if a.Is6() {
		return "[" + text + "]"
	}
	return text
}

func unspecified(a netip.Addr) error {
	loopback, all := "127.0.0.1", "0.0.0.0/0"
	if a.Is6() {
		loopback, all = "[::1]", "[::/0]"
	}
	return fmt.Errorf("%s reaches this host's loopback on Linux; write %s for loopback or %s for every address", a, loopback, all)
}

func notAnAddress(addr string, bracketed bool) error {
	if bracketed {
		return fmt.Errorf("%q is not an IPv6 address; write for example [2001:db8::1]:443", addr)
	}
	return fmt.Errorf("%q is not a name or an address; write for example api.example.com, 192.0.2.1, 10.0.0.0/8 or [2001:db8::/32]", addr)
}

// looksNumeric reports whether the last label of s is a number, which no name
// has: inet_aton would read 0x7f.1, 10.1 or 2130706433 as an address.
func looksNumeric(s string) bool {
	last := s[strings.LastIndexByte(s, '.')+1:]
	if last == "" {
		return strings.Trim(s, "0123456789.") == ""
	}
	if hex, ok := strings.CutPrefix(strings.ToLower(last), "0x"); ok {
		return strings.Trim(hex, "0123456789abcdef") == ""
	}
	return strings.Trim(last, "0123456789") == ""
}

func looksLikeName(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return r != '.' && r != '-' && r != '_' && r != '*' && !unicode.IsLetter(r) && !unicode.IsDigit(r) && !unicode.IsMark(r)
	})
}

func parseLength(s string, most int) (int, error) {
	n, ok := parseDecimal(s, most)
	if !ok {
		return 0, fmt.Errorf("prefix length %q is not a number from 0 to %d", s, most)
	}
	return n, nil
}

// parsePorts reads the part after the host's colon.
func parsePorts(s string) ([]Ports, error) {
	if s == "" {
		return nil, errors.New("empty ports; write a port such as 443, or * for all")
	}
	if s == "*" {
		return []Ports{allPorts}, nil
	}
	var ports []Ports
	for item := range strings.SplitSeq(s, ",") {
		p, err := parsePortRange(item)
		if err != nil {
			return nil, err
		}
		ports = append(ports, p)
	}
	ports = mergePorts(ports)
	if len(ports) > MaxRanges {
		return nil, fmt.Errorf("%d separate port ranges, at most %d fit in one destination; join them or write *", len(ports), MaxRanges)
	}
	return ports, nil
}

func parsePortRange(s string) (Ports, error) {
	if s == "" {
		return Ports{}, errors.New("empty port in the list; write for example 80,443")
	}
	if s == "*" {
		return Ports{}, errors.New("* stands alone; leave the other ports out")
	}
	first, last, isRange := strings.Cut(s, "-")
	lo, err := parsePort(first)
	if err != nil {
		return Ports{}, err
	}
	hi := lo
	if isRange {
		if hi, err = parsePort(last); err != nil {
			return Ports{}, err
		}
	}
	if lo > hi {
		return Ports{}, fmt.Errorf("port range %s runs backwards; write %d-%d", s, hi, lo)
	}
	return Ports{lo, hi}, nil
}

func parsePort(s string) (uint16, error) {
	n, ok := parseDecimal(s, 65535)
	if !ok || n == 0 {
		return 0, fmt.Errorf("port %q is not a number from 1 to 65535", s)
	}
	return uint16(n), nil
}

// parseDecimal reads a plain decimal number up to most: digits only, no sign,
// no leading zeros.
func parseDecimal(s string, most int) (int, bool) {
	if s == "" || len(s) > 1 && s[0] == '0' || strings.Trim(s, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.Atoi(s)
	return n, err == nil && n <= most
}

// quoteIfOdd returns s as it is when it can stand in a sentence, and quoted and
// shortened otherwise.
func quoteIfOdd(s string) string {
	const most = 200
	if len(s) > most {
		return strconv.Quote(s[:most]) + "..."
	}
	if s == "" || strings.ContainsFunc(s, func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsPrint(r) }) {
		return strconv.Quote(s)
	}
	return s
}
