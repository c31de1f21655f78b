package strictjson

import (
	"bytes"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// scanner reads a document once, from start to end, by the grammar of RFC 8259.
type scanner struct {
	doc    []byte
	at     int
	strict bool // refuse duplicate members too; false for a document that has none
}

// next returns the next byte, 0 at the end, where the grammar allows no NUL either.
func (s *scanner) next() byte {
	if s.at < len(s.doc) {
		return s.doc[s.at]
	}
	return 0
}

// accept skips the next byte if it is one of set.
func (s *scanner) accept(set string) bool {
	if strings.IndexByte(set, s.next()) < 0 {
		return false
	}
	s.at++
	return true
}

// space skips white space and returns the byte after it.
func (s *scanner) space() byte {
	for {
		switch c := s.next(); c {
		case ' ', '\t', '\r', '\n':
			s.at++
		default:
			return c
		}
	}
}

// value skips a value that starts here and nests at most depth arrays and objects.
func (s *scanner) value(depth int) error {
	switch c := s.next(); c {
	case '{', '[':
		if depth == 0 {
			return ErrDepth
		}
		return s.container(c, depth-1)
	case '"':
		return s.text()
	case 't':
		return s.literal("true")
	case 'f':
		return s.literal("false")
	case 'n':
		return s.literal("null")
	}
	return s.number()
}

// container skips an object or an array.
func (s *scanner) container(open byte, depth int) error {
	const toClosing = '}' - '{' // and ']' - '['
	var seen names
	s.at++
	if s.space() == open+toClosing {
		s.at++
		return nil
	}
	for {
		if open == '{' {
			if err := s.name(&seen); err != nil {
				return err
			}
		}
		s.space()
		if err := s.value(depth); err != nil {
			return err
		}
		c := s.space()
		s.at++
		switch c {
		case ',':
			s.space()
		case open + toClosing:
			return nil
		default:
			return ErrSyntax
		}
	}
}

// name skips the name of a member and the colon after it.
func (s *scanner) name(seen *names) error {
	start := s.at
	if s.next() != '"' {
		return ErrSyntax
	}
	if err := s.text(); err != nil {
		return err
	}
	if s.strict && !seen.add(unquote(s.doc[start:s.at])) {
		return ErrDuplicate
	}
	if s.space(); !s.accept(":") {
		return ErrSyntax
	}
	return nil
}

func (s *scanner) text() error {
	for s.at++; s.at < len(s.doc); s.at++ {
		switch c := s.doc[s.at]; {
		case c == '"':
			s.at++
			return nil
		case c < ' ':
			return ErrSyntax
		case c == '\\':
			if err := s.escape(); err != nil {
				return err
			}
		}
	}
	return ErrSyntax
}

// escape skips an escape but for its last byte. A surrogate that is not half of a
// pair is an error: encoding/json replaces it.
func (s *scanner) escape() error {
	unit, ok := codeUnit(s.doc[s.at:])
	if s.at++; !ok {
		if strings.IndexByte(`"\/bfnrt`, s.next()) < 0 {
			return ErrSyntax
		}
		return nil
	}
	s.at += len("0000")
	if utf16.IsSurrogate(unit) {
		low, _ := codeUnit(s.doc[s.at+1:])
		if utf16.DecodeRune(unit, low) == utf8.RuneError {
			return ErrEncoding
		}
		s.at += len(`\u0000`)
	}
	return nil
}

// codeUnit reads a \u escape, which has one UTF-16 code unit, at the start of b.
func codeUnit(b []byte) (unit rune, ok bool) {
	if len(b) < len(`\u0000`) || b[0] != '\\' || b[1] != 'u' {
		return 0, false
	}
	n, err := strconv.ParseUint(string(b[2:6]), 16, 16)
	return rune(n), err == nil
}

func (s *scanner) literal(word string) error {
	if !bytes.HasPrefix(s.doc[s.at:], []byte(word)) {
		return ErrSyntax
	}
	s.at += len(word)
	return nil
}

func (s *scanner) number() error {
	s.accept("-")
	ok := s.accept("0") || s.digits()
	if ok && s.accept(".") {
		ok = s.digits()
	}
	if ok && s.accept("eE") {
		s.accept("+-")
		ok = s.digits()
	}
	if !ok {
		return ErrSyntax
	}
	return nil
}

// digits skips digits and reports whether there is one.
func (s *scanner) digits() (any bool) {
	for s.accept("0123456789") {
		any = true
	}
	return any
}

// names are the names of an object's members. Objects have few. One with thousands
// must not cost millions of comparisons.
type names struct {
	first [8][]byte
	known int // of first
	more  map[string]struct{}
}

// add adds a name and reports whether it is new.
func (n *names) add(name []byte) bool {
	for _, known := range n.first[:n.known] {
		if bytes.Equal(known, name) {
			return false
		}
	}
	if n.known < len(n.first) {
		n.first[n.known] = name
		n.known++
		return true
	}
	if n.more == nil {
		n.more = make(map[string]struct{})
	}
	before := len(n.more)
	n.more[string(name)] = struct{}{}
	return len(n.more) > before
}
