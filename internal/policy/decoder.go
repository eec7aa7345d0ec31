// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/token"
)

// decoder walks the nodes of a file and reports each one that is not what the
// policy format expects there. Its methods go on after an error, so that one
// pass finds them all; their results then are of no use.
type decoder struct{ *report }

// field is one that an object may have.
type field struct {
	decode func(n ast.Node, path string)
	need   string // what is expected there, when the field must not be missing
}

type fields map[string]field

// object decodes a mapping with these fields and no others.
func (d *decoder) object(n ast.Node, path string, known fields) {
	var entries []*ast.MappingValueNode
	switch n := n.(type) {
	case *ast.MappingNode:
		entries = n.Values
	case *ast.MappingValueNode:
		entries = []*ast.MappingValueNode{n}
	default:
		d.unexpected(n, path, "an object with "+expectedFields(known))
		return
	}
	lines := make(map[string]int, len(entries))
	for _, e := range entries {
		key, at := keyOf(e)
		path := join(path, key)
		field, ok := known[key]
		switch line, again := lines[key]; {
		case again:
			d.add(at, path, "given twice, first on line %d; keep one", line)
		case !ok && isLater(key):
			d.add(at, path, "not supported in this version; leave it out")
		case !ok:
			d.add(at, path, "unknown field; expected %s", expectedFields(known))
		default:
			field.decode(e.Value, path)
		}
		if _, again := lines[key]; !again {
			lines[key] = at.Line
		}
	}
	for _, key := range slices.Sorted(maps.Keys(known)) {
		if _, ok := lines[key]; !ok && known[key].need != "" {
			d.add(start(n), join(path, key), "missing; expected %s", known[key].need)
		}
	}
}

// list returns the items of a sequence.
func (d *decoder) list(n ast.Node, path, expected string) ([]ast.Node, bool) {
	seq, ok := n.(*ast.SequenceNode)
	if !ok {
		d.unexpected(n, path, expected)
		return nil, false
	}
	return seq.Values, true
}

// text returns a string scalar.
func (d *decoder) text(n ast.Node, path, expected string) (string, bool) {
	switch n := n.(type) {
	case *ast.StringNode:
		return n.Value, true
	case *ast.LiteralNode:
		return n.Value.Value, true
	}
	d.unexpected(n, path, expected)
	return "", false
}

func (d *decoder) constant(n ast.Node, path, want string) {
	if text, ok := d.text(n, path, want); ok && text != want {
		d.add(start(n), path, "%s; expected %s", quoteIfOdd(text), want)
	}
}

func (d *decoder) allowed(n ast.Node, path string) bool {
	text, ok := d.text(n, path, "deny or allow")
	if ok && text != "allow" && text != "deny" {
		d.add(start(n), path, "%s; expected deny or allow", quoteIfOdd(text))
	}
	return text == "allow"
}

// choice returns the option whose String n holds.
func choice[T fmt.Stringer](d *decoder, n ast.Node, path string, options ...T) T {
	names := make([]string, len(options))
	for i, o := range options {
		names[i] = o.String()
	}
	expected := either(names)
	text, ok := d.text(n, path, expected)
	i := slices.Index(names, text)
	if ok && i < 0 {
		d.add(start(n), path, "%s; expected %s", quoteIfOdd(text), expected)
	}
	return options[max(i, 0)]
}

// unexpected reports a node of the wrong type.
func (d *decoder) unexpected(n ast.Node, path, expected string) {
	found := "nothing"
	switch n := n.(type) {
	case nil, *ast.NullNode:
	case *ast.MappingNode, *ast.MappingValueNode:
		found = "an object"
	case *ast.SequenceNode:
		found = "a list"
	case *ast.StringNode:
		found = quoteIfOdd(n.Value)
	default:
		found = fmt.Sprintf("the %s %s", strings.ToLower(n.Type().String()), quoteIfOdd(n.GetToken().Value))
	}
	d.add(start(n), path, "found %s; expected %s", found, expected)
}

// start returns where n begins: for an object, where its first key does.
func start(n ast.Node) *token.Position {
	switch n := n.(type) {
	case nil:
		return nil
	case *ast.MappingNode:
		if !n.IsFlowStyle && len(n.Values) > 0 {
			return start(n.Values[0])
		}
	case *ast.MappingValueNode:
		return start(n.Key)
	}
	return position(n.GetToken())
}

// isLater reports whether key is a field of the policy format that this version
// cannot enforce.
func isLater(key string) bool {
	return slices.Contains([]string{"approval", "when"}, key)
}

func keyOf(e *ast.MappingValueNode) (string, *token.Position) {
	at := start(e.Key)
	if s, ok := e.Key.(*ast.StringNode); ok {
		return s.Value, at
	}
	return e.Key.GetToken().Value, at
}

func expectedFields(known fields) string {
	return either(slices.Sorted(maps.Keys(known)))
}

// either writes "a", "a or b", "a, b or c".
func either(options []string) string {
	n := len(options) - 1
	if n < 1 {
		return strings.Join(options, "")
	}
	return strings.Join(options[:n], ", ") + " or " + options[n]
}

func join(path, key string) string {
	if path == "" {
		return quoteIfOdd(key)
	}
	return path + "." + quoteIfOdd(key)
}

func index(path string, i int) string {
	return fmt.Sprintf("%s[%d]", path, i)
}
