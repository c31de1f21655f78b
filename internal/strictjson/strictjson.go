// Package strictjson reads JSON the one way that two readers cannot disagree
// about: RFC 8259 to the letter, valid UTF-8, no lone surrogates, no member
// twice in an object, one value in a document and a bound on nesting.
//
// encoding/json takes the last of several members of a name, matches names in
// any case and replaces invalid bytes. Each of these lets a signer and a
// verifier read two different things from the same signed bytes.
package strictjson

import (
	"bytes"
	"errors"
	"iter"
	"unicode/utf16"
	"unicode/utf8"
)

// Errors that Parse returns.
var (
	ErrSyntax    = errors.New("json: invalid syntax")
	ErrEncoding  = errors.New("json: invalid UTF-8 or lone surrogate")
	ErrDuplicate = errors.New("json: duplicate member")
	ErrDepth     = errors.New("json: nested too deeply")
)

// Value is one JSON value that Parse has checked, in the bytes of its
// document. The zero Value is no value at all. A Value is only read, so it may
// be used from several goroutines as long as nobody writes to the document.
type Value struct {
	raw []byte
}

// Parse checks that doc is exactly one JSON value nested at most maxDepth
// arrays and objects deep, with white space around it at the most.
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

// Present reports whether v is a value at all; the zero Value is not.
func (v Value) Present() bool { return len(v.raw) > 0 }

// IsObject, IsArray, IsString and IsNumber report what kind of value v is.
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

// Bool returns the value of true and false; ok is false for anything else.
func (v Value) Bool() (value, ok bool) {
	switch string(v.raw) {
	case "true":
		return true, true
	case "false":
		return false, true
	}
	return false, false
}

// Plain returns the bytes between the quotes of a string that is written
// without escapes, so that what is compared is what was signed; ok is false
// for anything else.
func (v Value) Plain() (text []byte, ok bool) {
	if !v.IsString() {
		return nil, false
	}
	text = v.raw[1 : len(v.raw)-1]
	return text, bytes.IndexByte(text, '\\') < 0
}

// Text returns a string with its escapes resolved; ok is false for anything
// else.
func (v Value) Text() (text string, ok bool) {
	if !v.IsString() {
		return "", false
	}
	return string(unescape(v.raw[1 : len(v.raw)-1])), true
}

// Members yields the members of an object in their order, names with their
// escapes resolved. It yields nothing for any other value.
func (v Value) Members() iter.Seq2[[]byte, Value] {
	return func(yield func([]byte, Value) bool) {
		if !v.IsObject() {
			return
		}
		s := scanner{doc: v.raw, pos: 1, checked: true}
		for s.space(); s.peek() != '}'; s.space() {
			name := s.skim()
			s.space()
			s.pos++ // the colon
			s.space()
			if !yield(unescape(name[1:len(name)-1]), Value{s.skim()}) {
				return
			}
			s.comma()
		}
	}
}

// Elements yields the elements of an array in their order. It yields nothing
// for any other value.
func (v Value) Elements() iter.Seq[Value] {
	return func(yield func(Value) bool) {
		if !v.IsArray() {
			return
		}
		s := scanner{doc: v.raw, pos: 1, checked: true}
		for s.space(); s.peek() != ']'; s.space() {
			if !yield(Value{s.skim()}) {
				return
			}
			s.comma()
		}
	}
}

// scanner walks over a document. With checked set, the document has been
// through Parse, so that depth and duplicates need no second look.
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

// peek returns the next byte, or 0 at the end, which no JSON token contains.
func (s *scanner) peek() byte {
	if s.pos < len(s.doc) {
		return s.doc[s.pos]
	}
	return 0
}

// skim passes over one value of a checked document and returns its bytes.
func (s *scanner) skim() []byte {
	start := s.pos
	s.depth = len(s.doc)
	_ = s.value()
	return s.doc[start:s.pos]
}

// comma passes over the separator behind a value of a checked document.
func (s *scanner) comma() {
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
		_, err := s.str()
		return err
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
	var seen names
	s.space()
	if s.peek() == '}' {
		s.pos++
		return nil
	}
	for {
		s.space()
		name, err := s.str()
		if err != nil {
			return err
		}
		if !s.checked && !seen.add(unescape(name)) {
			return ErrDuplicate
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

// element reads a value and what stands behind it: a comma, or the closing
// bracket, which ends the array or object.
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

// number reads the grammar of RFC 8259 section 6. What may follow a number is
// the caller's affair.
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

// str reads a string and returns what stands between its quotes.
func (s *scanner) str() ([]byte, error) {
	if s.peek() != '"' {
		return nil, ErrSyntax
	}
	s.pos++
	start := s.pos
	for s.pos < len(s.doc) {
		switch c := s.doc[s.pos]; {
		case c == '"':
			text := s.doc[start:s.pos]
			s.pos++
			return text, nil
		case c < 0x20:
			return nil, ErrSyntax
		case c == '\\':
			if err := s.escape(); err != nil {
				return nil, err
			}
		default:
			s.pos++
		}
	}
	return nil, ErrSyntax
}

func (s *scanner) escape() error {
	if s.pos+1 >= len(s.doc) {
		return ErrSyntax
	}
	switch s.doc[s.pos+1] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		s.pos += 2
		return nil
	case 'u':
	default:
		return ErrSyntax
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

// codeUnit reads a \u escape, of one code unit of UTF-16, at the start of b.
func codeUnit(b []byte) (rune, bool) {
	if len(b) < 6 || b[0] != '\\' || b[1] != 'u' {
		return 0, false
	}
	var unit rune
	for _, c := range b[2:6] {
		switch {
		case isDigit(c):
			unit = unit<<4 | rune(c-'0')
		case 'a' <= c && c <= 'f':
			unit = unit<<4 | rune(c-'a'+10)
		case 'A' <= c && c <= 'F':
			unit = unit<<4 | rune(c-'A'+10)
		default:
			return 0, false
		}
	}
	return unit, true
}

// unescape resolves the escapes of a checked string. Without escapes it
// returns text itself.
func unescape(text []byte) []byte {
	if bytes.IndexByte(text, '\\') < 0 {
		return text
	}
	out := make([]byte, 0, len(text))
	for i := 0; i < len(text); i++ {
		if text[i] != '\\' {
			out = append(out, text[i])
			continue
		}
		i++
		switch text[i] {
		case 'b':
			out = append(out, '\b')
		case 'f':
			out = append(out, '\f')
		case 'n':
			out = append(out, '\n')
		case 'r':
			out = append(out, '\r')
		case 't':
			out = append(out, '\t')
		case 'u':
			unit, _ := codeUnit(text[i-1:])
			i += 4
			if utf16.IsSurrogate(unit) {
				low, _ := codeUnit(text[i+1:])
				unit = utf16.DecodeRune(unit, low)
				i += 6
			}
			out = utf8.AppendRune(out, unit)
		default:
			out = append(out, text[i])
		}
	}
	return out
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// names remembers the member names of one object. The objects of a token have
// a handful; a hostile one with a thousand must not cost a million comparisons.
type names struct {
	few  [16][]byte
	n    int
	many map[string]struct{}
}

// add remembers name and reports whether it is new.
func (s *names) add(name []byte) bool {
	if s.many != nil {
		if _, dup := s.many[string(name)]; dup {
			return false
		}
		s.many[string(name)] = struct{}{}
		return true
	}
	for _, seen := range s.few[:s.n] {
		if bytes.Equal(seen, name) {
			return false
		}
	}
	if s.n < len(s.few) {
		s.few[s.n] = name
		s.n++
		return true
	}
	s.many = make(map[string]struct{}, 4*len(s.few))
	for _, seen := range s.few {
		s.many[string(seen)] = struct{}{}
	}
	s.many[string(name)] = struct{}{}
	return true
}
