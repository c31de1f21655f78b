package manifest

import (
	"bytes"
	"errors"
	"slices"
	"unicode"
)

// attribute is an attribute of an HLS tag. Its value without the quotes is
// src[from:to].
type attribute struct {
	name     []byte
	from, to int
	quoted   bool
}

// attributes reads an attribute list (RFC 8216bis section 4.2). It accepts white
// space around names and values and a comma at the end, which are common and which
// all players read alike.
type attributes struct {
	src  []byte // up to the end of the list
	next int
}

var (
	errAttributeName  = errors.New("an attribute has no valid name")
	errAttributeQuote = errors.New("the quotes of an attribute are not balanced")
)

// read reads the next attribute. more is false after the last one.
func (l *attributes) read() (a attribute, more bool, err error) {
	l.skipSpace()
	if l.next == len(l.src) {
		return attribute{}, false, nil
	}
	length := attributeNameByte.prefixLength(l.src[l.next:])
	a.name = l.src[l.next : l.next+length]
	l.next += length
	l.skipSpace()
	if len(a.name) == 0 || l.next == len(l.src) || l.src[l.next] != '=' {
		return attribute{}, false, errAttributeName
	}
	l.next++
	value, err := l.readValue()
	value.name = a.name
	return value, err == nil, err
}

// readValue reads the value of an attribute, and the comma after it.
func (l *attributes) readValue() (a attribute, err error) {
	l.skipSpace()
	if a.quoted = l.next < len(l.src) && l.src[l.next] == '"'; a.quoted {
		l.next++
		length := bytes.IndexByte(l.src[l.next:], '"')
		if length < 0 {
			return a, errAttributeQuote
		}
		a.from, a.to = l.next, l.next+length
		l.next = a.to + 1
		l.skipSpace()
	} else {
		a.from = l.next
		for l.next < len(l.src) && l.src[l.next] != ',' && l.src[l.next] != '"' {
			l.next++
		}
		a.to = l.next
	}
	if l.next < len(l.src) {
		if l.src[l.next] != ',' {
			return a, errAttributeQuote
		}
		l.next++
	}
	return a, nil
}

func (l *attributes) skipSpace() { l.next += attributeSpace.prefixLength(l.src[l.next:]) }

var (
	// attributeNameByte are the bytes of attribute names. The RFC allows upper case
	// only, but vendors use more.
	attributeNameByte = newByteSet(alphanumeric + "-_.")
	attributeSpace    = newByteSet(" \t")
)

const alphanumeric = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

type byteSet [256]bool

func newByteSet(bytes string) *byteSet {
	var set byteSet
	for i := range len(bytes) {
		set[bytes[i]] = true
	}
	return &set
}

// prefixLength returns the length of the longest prefix of b that has only bytes of
// the set.
func (set *byteSet) prefixLength(b []byte) int {
	for i, c := range b {
		if !set[c] {
			return i
		}
	}
	return len(b)
}

// suffixLength returns the length of the longest suffix of b that has only bytes of the
// set.
func (set *byteSet) suffixLength(b []byte) int {
	for i := len(b); i > 0; i-- {
		if !set[b[i-1]] {
			return len(b) - i
		}
	}
	return len(b)
}

// uriAttributes are the attributes that contain a URI in any tag. X-URI is from
// com.apple.hls.preload.
var uriAttributes = [...]string{"URI", "SERVER-URI", "X-ASSET-URI", "X-ASSET-LIST", "X-URI"}

func uriAttribute(name []byte) int {
	return slices.Index(uriAttributes[:], string(name))
}

// endsInURI reports whether an attribute may contain a URI because of its name.
// ExoPlayer looks only at the end of the name.
func endsInURI(name []byte) bool { return bytes.HasSuffix(name, []byte("URI")) }

// isBlank reports whether a player may remove r at the ends of a name. Players in
// JavaScript remove all Unicode white space and the byte order mark, which is more
// than the RFC allows.
func isBlank(r rune) bool { return r <= ' ' || unicode.IsSpace(r) || r == '\uFEFF' }
