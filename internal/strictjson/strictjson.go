// Package strictjson reads JSON so that two readers cannot disagree about it. It
// accepts RFC 8259 with these restrictions: the text is valid UTF-8 without lone
// surrogates, an object has no member twice, a document has exactly one value,
// and nesting has a limit.
//
// encoding/json keeps the last of several members with the same name, matches
// names in any case and replaces invalid bytes. Each of these lets a signer and
// a verifier read different things from the same signed bytes.
package strictjson

import (
	"bytes"
	"encoding/json"
	"errors"
	"iter"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// Errors of Parse.
var (
	ErrSyntax    = errors.New("json: invalid syntax")
	ErrEncoding  = errors.New("json: invalid UTF-8 or lone surrogate")
	ErrDuplicate = errors.New("json: duplicate member")
	ErrDepth     = errors.New("json: nested too deeply")
)

// Value is one JSON value of a document that Parse has checked. It refers to the
// bytes of the document, which must not change. The zero Value is no JSON value.
// A Value is safe for concurrent use.
type Value struct {
	raw []byte
}

// Parse checks that doc consists of one JSON value and white space around it, and
// that the value nests at most maxDepth arrays and objects. Its errors are
// ErrSyntax, ErrEncoding, ErrDuplicate and ErrDepth.
func Parse(doc []byte, maxDepth int) (Value, error) {
	if !utf8.Valid(doc) {
		return Value{}, ErrEncoding
	}
	s := scanner{doc: doc, depth: maxDepth}
	s.space()
	start := s.pos
	if err := s.value(); err != nil {
		return Value{}, err
	}
	end := s.pos
	s.space()
	if s.pos != len(doc) {
		return Value{}, ErrSyntax
	}
	return Value{doc[start:end]}, nil
}

// Raw returns the bytes of the value, without the white space around it.
func (v Value) Raw() []byte { return v.raw }

// Present reports whether v is a JSON value; the zero Value is not.
func (v Value) Present() bool { return len(v.raw) > 0 }

// IsObject reports whether v is an object.
func (v Value) IsObject() bool { return v.startsWith('{') }

// IsArray reports whether v is an array.
func (v Value) IsArray() bool { return v.startsWith('[') }

// IsString reports whether v is a string.
func (v Value) IsString() bool { return v.startsWith('"') }

// IsNumber reports whether v is a number.
func (v Value) IsNumber() bool {
	return v.Present() && (v.raw[0] == '-' || isDigit(v.raw[0]))
}

func (v Value) startsWith(c byte) bool { return v.Present() && v.raw[0] == c }

// Bool returns the value of a boolean. ok is false for any other value.
func (v Value) Bool() (value, ok bool) {
	switch string(v.raw) {
	case "true":
		return true, true
	case "false":
		return false, true
	}
	return false, false
}

// Plain returns the bytes between the quotes of a string without escapes. ok is
// false for any other value. A caller that compares them compares the signed
// bytes themselves.
func (v Value) Plain() (text []byte, ok bool) {
	if !v.IsString() {
		return nil, false
	}
	text = v.raw[1 : len(v.raw)-1]
	return text, bytes.IndexByte(text, '\\') < 0
}

// Text returns a string with its escapes decoded. ok is false for any other
// value.
func (v Value) Text() (text string, ok bool) {
	if !v.IsString() {
		return "", false
	}
	return string(unquote(v.raw)), true
}

// Members yields the members of an object in order, with the escapes of their
// names decoded. It yields nothing for any other value.
func (v Value) Members() iter.Seq2[[]byte, Value] {
	return func(yield func([]byte, Value) bool) {
		if !v.IsObject() {
			return
		}
		s := scanner{doc: v.raw, pos: 1, checked: true}
		for s.space(); s.peek() != '}'; s.space() {
			name := s.skip()
			s.space()
			s.pos++ // the colon
			s.space()
			if !yield(unquote(name), Value{s.skip()}) {
				return
			}
			s.skipComma()
		}
	}
}

// Elements yields the elements of an array in order. It yields nothing for any
// other value.
func (v Value) Elements() iter.Seq[Value] {
	return func(yield func(Value) bool) {
		if !v.IsArray() {
			return
		}
		s := scanner{doc: v.raw, pos: 1, checked: true}
		for s.space(); s.peek() != ']'; s.space() {
			if !yield(Value{s.skip()}) {
				return
			}
			s.skipComma()
		}
	}
}

// scanner reads a document from front to back. If checked is set, Parse has
// accepted the document, so the scanner looks at neither depth nor duplicates.
type scanner struct {
	doc     []byte
	pos     int
	depth   int
	checked bool
}

func (s *scanner) space() {
	for s.pos < len(s.doc) {
		switch s.doc[s.pos] {
		case ' ', '\t', '\r', '\n':
			s.pos++
		default:
			return
		}
	}
}

// peek returns the next byte, or 0 at the end. No JSON token contains a 0.
func (s *scanner) peek() byte {
	if s.pos < len(s.doc) {
		return s.doc[s.pos]
	}
	return 0
}

// skip returns the bytes of the next value of a checked document.
func (s *scanner) skip() []byte {
	start := s.pos
	s.depth = len(s.doc)
	_ = s.value()
	return s.doc[start:s.pos]
}

// skipComma moves past the comma after a value of a checked document, if there
// is one.
func (s *scanner) skipComma() {
	s.space()
	if s.peek() == ',' {
		s.pos++
	}
}

func (s *scanner) value() error {
	switch c := s.peek(); c {
	case '{':
		return s.nested((*scanner).object)
	case '[':
		return s.nested((*scanner).array)
	case '"':
		return s.str()
	case 't':
		return s.literal("true")
	case 'f':
		return s.literal("false")
	case 'n':
		return s.literal("null")
	default:
		return s.number()
	}
}

func (s *scanner) nested(read func(*scanner) error) error {
	if s.depth == 0 {
		return ErrDepth
	}
	s.depth--
	s.pos++
	err := read(s)
	s.depth++
	return err
}

func (s *scanner) object() error {
	// An object with thousands of members must not cost millions of comparisons.
	var seen map[string]struct{}
	if !s.checked {
		seen = make(map[string]struct{})
	}
	s.space()
	if s.peek() == '}' {
		s.pos++
		return nil
	}
	for {
		s.space()
		start := s.pos
		if err := s.str(); err != nil {
			return err
		}
		if !s.checked {
			name := string(unquote(s.doc[start:s.pos]))
			if _, duplicate := seen[name]; duplicate {
				return ErrDuplicate
			}
			seen[name] = struct{}{}
		}
		s.space()
		if s.peek() != ':' {
			return ErrSyntax
		}
		s.pos++
		if done, err := s.element('}'); done || err != nil {
			return err
		}
	}
}

func (s *scanner) array() error {
	s.space()
	if s.peek() == ']' {
		s.pos++
		return nil
	}
	for {
		if done, err := s.element(']'); done || err != nil {
			return err
		}
	}
}

// element reads a value and the byte after it. done is true if that byte is the
// closing bracket of the array or object, and false if it is a comma.
func (s *scanner) element(closing byte) (done bool, err error) {
	s.space()
	if err := s.value(); err != nil {
		return false, err
	}
	s.space()
	c := s.peek()
	if c != closing && c != ',' {
		return false, ErrSyntax
	}
	s.pos++
	return c == closing, nil
}

func (s *scanner) literal(word string) error {
	if !bytes.HasPrefix(s.doc[s.pos:], []byte(word)) {
		return ErrSyntax
	}
	s.pos += len(word)
	return nil
}

// number reads a number as RFC 8259 section 6 defines it. The caller checks what
// follows.
func (s *scanner) number() error {
	if s.peek() == '-' {
		s.pos++
	}
	if s.peek() == '0' {
		s.pos++
	} else if s.digits() == 0 {
		return ErrSyntax
	}
	if s.peek() == '.' {
		s.pos++
		if s.digits() == 0 {
			return ErrSyntax
		}
	}
	if c := s.peek(); c == 'e' || c == 'E' {
		s.pos++
		if c := s.peek(); c == '+' || c == '-' {
			s.pos++
		}
		if s.digits() == 0 {
			return ErrSyntax
		}
	}
	return nil
}

func (s *scanner) digits() (n int) {
	for isDigit(s.peek()) {
		s.pos++
		n++
	}
	return n
}

// str reads a string.
func (s *scanner) str() error {
	if s.peek() != '"' {
		return ErrSyntax
	}
	s.pos++
	for s.pos < len(s.doc) {
		switch c := s.doc[s.pos]; {
		case c == '"':
			s.pos++
			return nil
		case c < 0x20:
			return ErrSyntax
		case c == '\\':
			if err := s.escape(); err != nil {
				return err
			}
		default:
			s.pos++
		}
	}
	return ErrSyntax
}

func (s *scanner) escape() error {
	if s.pos+1 >= len(s.doc) {
		return ErrSyntax
	}
	switch s.doc[s.pos+1] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		s.pos += 2
		return nil
	}
	unit, ok := codeUnit(s.doc[s.pos:])
	if !ok {
		return ErrSyntax
	}
	s.pos += 6
	if !utf16.IsSurrogate(unit) {
		return nil
	}
	low, ok := codeUnit(s.doc[s.pos:])
	if !ok || utf16.DecodeRune(unit, low) == utf8.RuneError {
		return ErrEncoding
	}
	s.pos += 6
	return nil
}

// codeUnit reads a \u escape, which has one UTF-16 code unit, at the start of b.
func codeUnit(b []byte) (unit rune, ok bool) {
	if len(b) < 6 || b[0] != '\\' || b[1] != 'u' {
		return 0, false
	}
	n, err := strconv.ParseUint(string(b[2:6]), 16, 16)
	return rune(n), err == nil
}

// unquote decodes a string that the scanner has accepted. The result is a part
// of quoted if the string has no escapes.
func unquote(quoted []byte) []byte {
	content := quoted[1 : len(quoted)-1]
	if bytes.IndexByte(content, '\\') < 0 {
		return content
	}
	var text string
	_ = json.Unmarshal(quoted, &text)
	return []byte(text)
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }
