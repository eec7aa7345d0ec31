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

const (
	maxBytes  = 32 << 20 // of a file
	maxDepth  = 16       // of nested flow collections
	maxIndent = 200      // columns in front of a block entry, which bound block nesting
)

// parseYAML returns the documents of a file, or nil after reporting why not.
// What the parser could choke on is refused before it runs: it recurses into
// nesting, and the process would not survive the end of the stack.
func parseYAML(data []byte, errs *report) *ast.File {
	if !plainText(data, errs) {
		return nil
	}
	tokens := lexer.Tokenize(string(data))
	if !plainTokens(tokens, errs) {
		return nil
	}
	file, err := parser.Parse(tokens, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		addSyntaxError(errs, err)
		return nil
	}
	return file
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

// plainTokens reports whether the file keeps to the part of YAML that policy
// files use.
func plainTokens(tokens token.Tokens, errs *report) bool {
	depth := 0
	for _, t := range tokens {
		unsupported := ""
		switch t.Type {
		case token.SequenceStartType, token.MappingStartType:
			depth++
		case token.SequenceEndType, token.MappingEndType:
			depth--
		case token.AliasType:
			unsupported = "aliases (*name); a value that starts with * needs quotes"
		case token.AnchorType:
			unsupported = "anchors (&name); a value that starts with & needs quotes"
		case token.TagType:
			unsupported = "tags (!name); a value that starts with ! needs quotes"
		case token.MergeKeyType:
			unsupported = "merge keys (<<)"
		case token.MappingKeyType:
			unsupported = "complex keys (?)"
		case token.DirectiveType:
			unsupported = "directives (%NAME)"
		}
		if unsupported != "" {
			errs.add(position(t), "", "policy files have no %s", unsupported)
			return false
		}
		block := depth <= 0 && (t.Type == token.SequenceEntryType || t.Type == token.MappingValueType)
		if depth > maxDepth || block && t.Position != nil && t.Position.Column > maxIndent {
			errs.add(position(t), "", "nested too deeply; no policy needs that")
			return false
		}
	}
	return true
}

func position(t *token.Token) *token.Position {
	if t == nil {
		return nil
	}
	return t.Position
}

// documentText cuts the text of the document that begins at line first, and ends
// before line last, out of a file's lines.
func documentText(lines []string, first, last int) string {
	text := strings.Join(lines[first-1:last-1], "\n")
	return strings.TrimSpace(strings.TrimPrefix(text, "---\n")) + "\n"
}
