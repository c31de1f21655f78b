package manifest

import (
	"bytes"
	"errors"
	"unicode"
)

// attribute is an attribute of an HLS tag. Its value is src[from:to], without
// the quotes.
type attribute struct {
	name     []byte
	from, to int
	quoted   bool
}

// attributes reads an attribute list by RFC 8216bis section 4.2. It tolerates
// white space around names and values and a comma at the end, which are common
// and which all players read alike.
type attributes struct {
	src  []byte // up to the end of the list
	next int
}

var (
	errAttributeName  = errors.New("an attribute has no proper name")
	errAttributeQuote = errors.New("the quotes of an attribute are not balanced")
)

// read reads the next attribute. more is false behind the last one.
func (l *attributes) read() (a attribute, more bool, err error) {
	l.skipSpace()
	if l.next == len(l.src) {
		return attribute{}, false, nil
	}
	start := l.next
	for l.next < len(l.src) && attributeNameByte[l.src[l.next]] {
		l.next++
	}
	a.name = l.src[start:l.next]
	l.skipSpace()
	if len(a.name) == 0 || l.next == len(l.src) || l.src[l.next] != '=' {
		return attribute{}, false, errAttributeName
	}
	l.next++
	l.skipSpace()
	if a.quoted = l.next < len(l.src) && l.src[l.next] == '"'; a.quoted {
		l.next++
		length := bytes.IndexByte(l.src[l.next:], '"')
		if length < 0 {
			return attribute{}, false, errAttributeQuote
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
			return attribute{}, false, errAttributeQuote
		}
		l.next++
	}
	return a, true, nil
}

func (l *attributes) skipSpace() {
	for l.next < len(l.src) && (l.src[l.next] == ' ' || l.src[l.next] == '\t') {
		l.next++
	}
}

// attributeNameByte are the bytes of attribute names. The RFC has upper case
// only, vendors have their own.
var attributeNameByte = func() (set [256]bool) {
	for c := range byte(128) {
		set[c] = '0' <= c && c <= '9' || 'a' <= c|0x20 && c|0x20 <= 'z' || c == '-' || c == '_' || c == '.'
	}
	return set
}()

// uriAttributes are the attributes that hold a URI, whatever the tag. X-URI is
// that of com.apple.hls.preload.
var uriAttributes = [...]string{"URI", "SERVER-URI", "X-ASSET-URI", "X-ASSET-LIST", "X-URI"}

func uriAttribute(name []byte) int {
	for i, s := range uriAttributes {
		if string(name) == s {
			return i
		}
	}
	return -1
}

// endsInURI reports whether an attribute of a vendor is to be taken for one that
// holds a URI. ExoPlayer does so with any whose name ends like that.
func endsInURI(name []byte) bool { return bytes.HasSuffix(name, []byte("URI")) }

// mentionsURI reports whether the value of an unknown tag has something at the
// place of an attribute that a player could take for a URI attribute.
func mentionsURI(value []byte) bool {
	if !bytes.Contains(value, []byte("URI")) && !bytes.Contains(value, []byte("X-ASSET-LIST")) {
		return false
	}
	for rest := value; ; {
		before, after, found := bytes.Cut(rest, []byte{'='})
		if !found {
			return false
		}
		name := bytes.TrimFunc(before[bytes.LastIndexByte(before, ',')+1:], isBlank)
		if uriAttribute(name) >= 0 || endsInURI(name) && bytes.HasPrefix(bytes.TrimLeftFunc(after, isBlank), []byte{'"'}) {
			return true
		}
		rest = after
	}
}

// isBlank reports whether a player may drop r from the ends of a name. Those in
// JavaScript drop more than the RFC knows: all white space of Unicode and the
// byte order mark.
func isBlank(r rune) bool { return r <= ' ' || unicode.IsSpace(r) || r == '\uFEFF' }
