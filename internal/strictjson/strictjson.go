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
	"strings"
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
	s := scanner{doc: doc, strict: true}
	s.space()
	start := s.at
	if err := s.value(maxDepth); err != nil {
		return Value{}, err
	}
	v := Value{doc[start:s.at]}
	if s.space(); s.at < len(doc) {
		return Value{}, ErrSyntax
	}
	return v, nil
}

// Raw returns the bytes of the value, without the white space around it.
func (v Value) Raw() []byte { return v.raw }

// Present reports whether v is a JSON value; the zero Value is not.
func (v Value) Present() bool { return len(v.raw) > 0 }

// IsObject reports whether v is an object.
func (v Value) IsObject() bool { return bytes.HasPrefix(v.raw, []byte(`{`)) }

// IsArray reports whether v is an array.
func (v Value) IsArray() bool { return bytes.HasPrefix(v.raw, []byte(`[`)) }

// IsString reports whether v is a string.
func (v Value) IsString() bool { return bytes.HasPrefix(v.raw, []byte(`"`)) }

// IsNumber reports whether v is a number.
func (v Value) IsNumber() bool { return v.Present() && strings.IndexByte("-0123456789", v.raw[0]) >= 0 }

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

// Plain returns the bytes between the quotes of a string, nil for any other value.
// A caller that compares them compares the signed bytes themselves. ok is true if
// they have no escapes, so that they are the text.
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
		var name Value
		for child := range v.children() {
			if !name.Present() {
				name = child
				continue
			}
			if !yield(unquote(name.raw), child) {
				return
			}
			name = Value{}
		}
	}
}

// Elements yields the elements of an array in order. It yields nothing for any
// other value.
func (v Value) Elements() iter.Seq[Value] {
	if !v.IsArray() {
		return func(func(Value) bool) {}
	}
	return v.children()
}

// Count returns the number of elements of an array, 0 for any other value.
func (v Value) Count() (n int) {
	for range v.Elements() {
		n++
	}
	return n
}

// children yields the elements of an array, or the names and the values of an
// object in turn.
func (v Value) children() iter.Seq[Value] {
	return func(yield func(Value) bool) {
		for s := (scanner{doc: v.raw, at: 1}); ; s.at++ {
			if c := s.space(); c == '}' || c == ']' {
				return
			}
			start := s.at
			_ = s.value(len(v.raw)) // Parse has checked it
			if !yield(Value{v.raw[start:s.at]}) {
				return
			}
			if c := s.space(); c != ',' && c != ':' {
				return
			}
		}
	}
}

// unquote decodes a string. The result is a part of quoted if the string has no
// escapes.
func unquote(quoted []byte) []byte {
	content := quoted[1 : len(quoted)-1]
	if bytes.IndexByte(content, '\\') < 0 {
		return content
	}
	var text string
	_ = json.Unmarshal(quoted, &text)
	return []byte(text)
}
