// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	yaml "github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// maxBytes bounds a file: 100,000 rules take about 3 MB.
const maxBytes = 16 << 20

// document is one YAML document of a file.
type document struct {
	body ast.Node // its tokens carry the lines of the file
	text string
}

// parseYAML returns the documents of a file that are not empty, and reports what
// it cannot read. What the parser could choke on is refused before it runs: it
// recurses into nesting, and the process would not survive the end of the stack.
//
// The documents are cut apart here because the parser drops all that follows an
// empty one. Every text that the lexer sees ends in a newline because it drops a
// lone ! at the very end.
func parseYAML(data []byte, errs *report) []document {
	if !plainText(data, errs) {
		return nil
	}
	tokens := lexer.Tokenize(string(data) + "\n")
	if !plainTokens(tokens, errs) {
		return nil
	}
	lines := strings.Split(string(data), "\n")
	var docs []document
	first := 0
	for _, t := range tokens {
		next := t.Position.Line - 1
		switch t.Type {
		case token.DocumentHeaderType:
		case token.DocumentEndType:
			next++
		default:
			continue
		}
		docs = appendDocument(docs, lines[first:next], first, errs)
		first = next
	}
	return appendDocument(docs, lines[first:], first, errs)
}

// appendDocument parses lines, before which the file has skipped others.
func appendDocument(docs []document, lines []string, skipped int, errs *report) []document {
	text := strings.Join(lines, "\n") + "\n"
	if rest, ok := strings.CutPrefix(text, "---"); ok {
		text = "   " + rest
	}
	tokens := lexer.Tokenize(text)
	empty := true
	for _, t := range tokens {
		t.Position.Line += skipped
		empty = empty && (t.Type == token.CommentType || t.Type == token.DocumentEndType)
	}
	if empty {
		return docs
	}
	file, err := parser.Parse(tokens, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		addSyntaxError(errs, err)
		return docs
	}
	if len(file.Docs) != 1 || file.Docs[0].Body == nil {
		errs.add(position(tokens[0]), "", "not valid YAML: expected one document between two lines of ---")
		return docs
	}
	return append(docs, document{file.Docs[0].Body, trimDocument(text)})
}

// trimDocument takes blank lines off both ends of a document's text.
func trimDocument(text string) string {
	for {
		line, rest, found := strings.Cut(text, "\n")
		if !found || strings.TrimSpace(line) != "" {
			return strings.TrimRight(text, " \t\r\n") + "\n"
		}
		text = rest
	}
}

func addSyntaxError(errs *report, err error) {
	var syntax yaml.Error
	if !errors.As(err, &syntax) {
		errs.add(nil, "", "not valid YAML: %w", err)
		return
	}
	hint := ""
	if strings.Contains(syntax.GetMessage(), "',' or ']' must be specified") {
		hint = "; an IPv6 destination needs quotes"
	}
	errs.add(position(syntax.GetToken()), "", "not valid YAML: %s%s", syntax.GetMessage(), hint)
}

func plainText(data []byte, errs *report) bool {
	if len(data) > maxBytes {
		errs.add(nil, "", "%d bytes, more than the %d of the largest policy file", len(data), maxBytes)
		return false
	}
	for n, line := range bytes.Split(data, []byte("\n")) {
		line = bytes.TrimSuffix(line, []byte("\r"))
		i := bytes.IndexFunc(line, func(r rune) bool { return r == utf8.RuneError || r < ' ' && r != '\t' || r == 0x7f })
		if i < 0 {
			continue
		}
		r, size := utf8.DecodeRune(line[i:])
		what := fmt.Sprintf("control character %U", r)
		if r == utf8.RuneError {
			what = fmt.Sprintf("invalid UTF-8 %q", line[i:i+size])
		}
		errs.add(&token.Position{Line: n + 1, Column: i + 1}, "", "%s; expected plain text", what)
		return false
	}
	return true
}

func position(t *token.Token) *token.Position {
	if t == nil {
		return nil
	}
	return t.Position
}
