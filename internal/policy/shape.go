// SPDX-License-Identifier: Apache-2.0

package policy

import "github.com/goccy/go-yaml/token"

const (
	maxDepth  = 16   // of nested flow collections
	maxColumn = 200  // of a block entry, which bounds the nesting of blocks
	maxFields = 1000 // of one object: the parser's work grows with their square
	maxEmpty  = 1000 // list entries with nothing in them, for the same reason
)

const (
	tooDeep = "nested too deeply; no policy needs that"
	tooMany = "more than 1000 fields in one object; no policy needs that"
	tooBare = "more than 1000 list entries with nothing in them"
)

// shape follows the tokens of a file and finds what policy files do not need and
// the YAML parser does not bear.
type shape struct {
	flow  []collection       // the open flow collections
	block [maxColumn + 1]int // fields so far of the open block object at each column
	empty int                // list entries with nothing in them
	prev  *token.Token
}

type collection struct {
	object bool
	parts  int // colons, and the commas of an object
}

// plainTokens reports whether the file keeps to the part of YAML that policy
// files use.
func plainTokens(tokens token.Tokens, errs *report) bool {
	var s shape
	for _, t := range tokens {
		problem := unsupported(t.Type)
		if problem == "" {
			problem = s.follow(t)
		}
		if problem != "" {
			errs.add(position(t), "", "%s", problem)
			return false
		}
		s.prev = t
	}
	return true
}

func unsupported(t token.Type) string {
	switch t {
	case token.AliasType:
		return "policy files have no aliases (*name); a value that starts with * needs quotes"
	case token.AnchorType:
		return "policy files have no anchors (&name); a value that starts with & needs quotes"
	case token.TagType:
		return "policy files have no tags (!name); a value that starts with ! needs quotes"
	case token.MergeKeyType:
		return "policy files have no merge keys (<<)"
	case token.MappingKeyType:
		return "policy files have no complex keys (?)"
	case token.DirectiveType:
		return "policy files have no directives (%NAME)"
	}
	return ""
}

// follow takes the next token and returns what is wrong with it, or "".
func (s *shape) follow(t *token.Token) string {
	switch t.Type {
	case token.SequenceStartType, token.MappingStartType:
		if len(s.flow) == maxDepth {
			return tooDeep
		}
		s.flow = append(s.flow, collection{object: t.Type == token.MappingStartType})
	case token.SequenceEndType, token.MappingEndType:
		s.flow = s.flow[:max(len(s.flow)-1, 0)]
	case token.DocumentHeaderType, token.DocumentEndType:
		s.leave(0)
	case token.SequenceEntryType:
		if len(s.flow) > 0 {
			break
		}
		if t.Position.Column > maxColumn {
			return tooDeep
		}
		s.leave(t.Position.Column)
		if s.prev != nil && s.prev.Type == token.SequenceEntryType && s.prev.Position.Line < t.Position.Line {
			s.empty++
		}
		if s.empty > maxEmpty {
			return tooBare
		}
	case token.CollectEntryType, token.MappingValueType:
		return s.followField(t)
	}
	return ""
}

// followField counts the fields of the object that the colon or comma t is in.
func (s *shape) followField(t *token.Token) string {
	if n := len(s.flow); n > 0 {
		in := &s.flow[n-1]
		if in.object || t.Type == token.MappingValueType {
			in.parts++
		}
		if in.parts > 2*maxFields {
			return tooMany
		}
		return ""
	}
	column := s.column(t)
	if column > maxColumn {
		return tooDeep
	}
	s.leave(column)
	s.block[column]++
	if s.block[column] > maxFields {
		return tooMany
	}
	return ""
}

// column returns where the key in front of the colon t begins.
func (s *shape) column(t *token.Token) int {
	if s.prev != nil && s.prev.Position.Line == t.Position.Line && s.prev.Type != token.SequenceEntryType {
		return s.prev.Position.Column
	}
	return t.Position.Column
}

// leave ends the block objects right of column.
func (s *shape) leave(column int) {
	clear(s.block[column+1:])
}
