// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"fmt"
	"strconv"
	"strings"

	"agentguard.dev/agentguard/client"
)

// Text returns the record as one line for people, without its time and without a
// newline, such as
//
//	deny  coder/t-7f3k  curl[1234] connect tcp 192.0.2.1:443: no rule  (allow it: agentguard task grant t-7f3k 192.0.2.1:443)
//	deny  coder/t-7f3k  curl[1234] → 192.0.2.1:443 (sni www.evil.test; address allowed for api.example.com)
//	deny  coder/t-7f3k  curl[1234] dns evil.test A: not in the policy
//
// What a task could choose is quoted where it could drive a terminal or pass for
// something else.
func Text(r client.Record) string {
	parts := []string{label(r)}
	if who := who(r); who != "" {
		parts = append(parts, who)
	}
	parts = append(parts, what(r))
	if r.Hint != "" {
		parts = append(parts, "(allow it: "+printable(r.Hint)+")")
	}
	return strings.TrimRight(strings.Join(parts, "  "), " ")
}

func label(r client.Record) string {
	if isDecision(r) {
		return printable(r.Verdict)
	}
	return strings.TrimSpace(printable(r.Kind) + " " + printable(r.Action))
}

func who(r client.Record) string {
	if r.Agent == "" || r.Task == "" {
		return printable(r.Agent + r.Task)
	}
	return printable(r.Agent) + "/" + printable(r.Task)
}

// isDecision says whether r is about something that was allowed or denied.
func isDecision(r client.Record) bool {
	return r.Kind == "decision" || r.Kind == "dns" || r.Kind == "http"
}

func what(r client.Record) string {
	if r.Kind == "decision" && len(r.Expected) > 0 {
		return shown(r)
	}
	var words []string
	if r.Kind == "lost" {
		words = append(words, fmt.Sprintf("%d records", r.Count))
	}
	if r.Process != "" || r.PID != 0 {
		words = append(words, fmt.Sprintf("%s[%d]", plain(r.Process), r.PID))
	}
	if r.Hook != "" {
		words = append(words, printable(r.Hook))
	}
	if r.Kind == "dns" || r.Kind == "http" {
		words = append(words, r.Kind)
	}
	words = append(words, asked(r)...)
	if r.Dest != "" {
		words = append(words, printable(dest(r.Dest)))
	}
	text := strings.Join(words, " ")
	said := []string{r.Reason, r.Detail}
	if len(r.Addresses) > 0 {
		said = append(said, strings.Join(r.Addresses, " "))
	}
	if !isDecision(r) {
		said = append(said, r.Purpose)
	}
	for _, s := range said {
		if s == "" {
			continue
		}
		if text != "" {
			text += ": "
		}
		text += printable(s)
	}
	if r.Kind == "decision" && r.Verdict == "allow" && r.Rule != "" {
		text += " by " + printable(r.Rule)
	}
	return text + times(r)
}

func times(r client.Record) string {
	if r.Count > 0 && r.Kind != "lost" {
		return fmt.Sprintf(" (%d times)", r.Count)
	}
	return ""
}

// asked are the name and the type of a question, or the method and the host of a
// request.
func asked(r client.Record) []string {
	words := []string{r.Name, r.Type}
	if r.Kind == "http" {
		words = []string{r.Type, r.Name}
	}
	var said []string
	for _, w := range words {
		if w != "" {
			said = append(said, plain(w))
		}
	}
	return said
}

// shown is a flow that did not show a name that its address is allowed for:
//
//	curl[1234] → 192.0.2.1:443 (sni www.evil.test; address allowed for api.example.com)
func shown(r client.Record) string {
	who := ""
	if r.Process != "" || r.PID != 0 {
		who = fmt.Sprintf("%s[%d] ", plain(r.Process), r.PID)
	}
	_, address, ok := strings.Cut(r.Dest, "://")
	if !ok {
		address = r.Dest
	}
	why := printable(r.Reason)
	if r.Name != "" {
		why = "sni " + plain(r.Name)
	}
	allowed := make([]string, len(r.Expected))
	for i, name := range r.Expected {
		allowed[i] = plain(name)
	}
	return fmt.Sprintf("%s→ %s (%s; address allowed for %s)", who, printable(address), why, strings.Join(allowed, ", ")) + times(r)
}

// dest writes tcp://192.0.2.1:443 as tcp 192.0.2.1:443.
func dest(d string) string {
	if scheme, rest, ok := strings.Cut(d, "://"); ok {
		return scheme + " " + rest
	}
	return d
}

// plain is for names: whatever is more than a word is quoted.
func plain(s string) string {
	for _, c := range s {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune("._/+-:@#%~*", c) {
			return strconv.Quote(s)
		}
	}
	return s
}

// printable escapes what is not printable, so that the text stays one line and
// leaves the terminal alone.
func printable(s string) string {
	var b strings.Builder
	for _, c := range s {
		switch {
		case strconv.IsPrint(c):
			b.WriteRune(c)
		default:
			q := strconv.QuoteRune(c)
			b.WriteString(q[1 : len(q)-1])
		}
	}
	return b.String()
}
