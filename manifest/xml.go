package manifest

import (
	"bytes"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// span is a range of bytes of the source.
type span struct{ from, to int }

type tokenKind int

const (
	tokenEnd      tokenKind = iota // of the document
	tokenStart                     // a start tag
	tokenEmpty                     // an empty-element tag
	tokenClose                     // an end tag
	tokenText                      // character data; its references are valid
	tokenVerbatim                  // the content of a CDATA section
	tokenOther                     // a comment or a processing instruction
)

type xmlToken struct {
	kind tokenKind
	span        // of the text or the content of the CDATA section; from the start of a tag
	name []byte // of a tag, with its prefix
}

type xmlAttribute struct {
	from  int    // offset of the name
	name  []byte // with its prefix
	value span   // without the quotes; its references are valid
}

// scanner splits an XML document into tokens with their offsets. encoding/xml has
// no offsets of attributes. The scanner accepts XML 1.0 in UTF-8 without a document
// type, as manifests use it. So there are no entities except the five predefined
// ones, and nothing to fetch or to expand.
type scanner struct {
	src        []byte
	pos        int
	attributes []xmlAttribute // of the last start tag
}

func newScanner(src []byte) (*scanner, error) {
	s := &scanner{src: src, pos: len(src) - len(bytes.TrimPrefix(src, byteOrderMark))}
	if utf8.Valid(src) {
		return s, nil
	}
	if bytes.HasPrefix(src[s.pos:], []byte("<?xml")) {
		if _, err := s.instruction(); err != nil { // it names the encoding
			return nil, err
		}
	}
	return nil, invalid("not UTF-8")
}

// instruction reads a processing instruction or the XML declaration. It accepts only
// a name and attributes: players read any other as a tag whose end is elsewhere.
func (s *scanner) instruction() (xmlToken, error) {
	// Scripts write blank lines before it, and players ignore them.
	isFirst := len(bytes.Trim(bytes.TrimPrefix(s.src[:s.pos], byteOrderMark), " \t\r\n")) == 0
	t, err := s.between("<?", "?>", tokenOther)
	if err != nil {
		return t, err
	}
	inner := &scanner{src: s.src[:t.to], pos: t.from, attributes: s.attributes}
	name := string(inner.name())
	if err := inner.readAttributes(); err != nil {
		return t, err
	}
	if name == "" || inner.pos != t.to || bytes.IndexByte(s.src[t.from:t.to], '>') >= 0 {
		return t, s.invalid("a malformed processing instruction")
	}
	if !strings.EqualFold(name, "xml") {
		return t, nil
	}
	if !isFirst || name != "xml" {
		return t, s.invalid("an XML declaration is not at the start")
	}
	for _, a := range inner.attributes {
		if string(a.name) == "encoding" {
			return t, s.checkEncoding(s.src[a.value.from:a.value.to])
		}
	}
	return t, nil
}

var (
	encodingName = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9._-]{0,39}$`) // XML 1.0 section 4.3.3

	// extendsASCII are encodings in which the bytes of ASCII are ASCII.
	extendsASCII = regexp.MustCompile(`(?i)^((us-)?ascii|ansi_x3\.4-1968|latin-?1|iso[-_]?8859[-_][0-9]{1,2}|(windows-?|cp-?)125[0-8])$`)
)

// checkEncoding refuses an encoding in which players that use it would read other URIs.
func (s *scanner) checkEncoding(name []byte) error {
	isASCII := !bytes.ContainsFunc(s.src, func(r rune) bool { return r >= utf8.RuneSelf })
	switch lower := string(bytes.ToLower(name)); {
	case lower == "utf-8" || lower == "utf8" || isASCII && extendsASCII.Match(name):
		return nil
	case !encodingName.Match(name):
		return s.invalid("the name of the encoding is malformed")
	}
	return s.invalid("the encoding is %q, want UTF-8", name)
}

// next returns the next token.
func (s *scanner) next() (xmlToken, error) {
	rest := s.src[s.pos:]
	switch {
	case len(rest) == 0:
		return xmlToken{}, nil
	case rest[0] != '<':
		return s.text()
	case len(rest) > 1 && rest[1] == '/':
		return s.endTag()
	case len(rest) > 1 && rest[1] == '?':
		return s.instruction()
	case len(rest) > 1 && rest[1] == '!':
		return s.markup(rest)
	}
	return s.startTag()
}

func (s *scanner) text() (xmlToken, error) {
	text := span{s.pos, len(s.src)}
	if length := bytes.IndexByte(s.src[s.pos:], '<'); length >= 0 {
		text.to = s.pos + length
	}
	s.pos = text.to
	return xmlToken{kind: tokenText, span: text}, s.checkReferences(text)
}

func (s *scanner) endTag() (xmlToken, error) {
	from := s.pos
	s.pos += len("</")
	name := s.name()
	s.space()
	if len(name) == 0 || !s.skip('>') {
		return xmlToken{}, s.invalid("a malformed end tag")
	}
	return xmlToken{kind: tokenClose, span: span{from: from}, name: name}, nil
}

// markup reads a comment or a CDATA section.
func (s *scanner) markup(rest []byte) (xmlToken, error) {
	switch {
	case bytes.HasPrefix(rest, []byte("<!-->")), bytes.HasPrefix(rest, []byte("<!--->")):
		return xmlToken{}, s.invalid("a comment that ends at its start for some players")
	case bytes.HasPrefix(rest, []byte("<!--")):
		return s.between("<!--", "-->", tokenOther)
	case bytes.HasPrefix(rest, []byte("<![CDATA[")):
		return s.between("<![CDATA[", "]]>", tokenVerbatim)
	}
	return xmlToken{}, s.invalid("a document type or another declaration")
}

// between reads a token that begins with one mark and ends with the next occurrence
// of the other.
func (s *scanner) between(begin, end string, kind tokenKind) (xmlToken, error) {
	s.pos += len(begin)
	length := bytes.Index(s.src[s.pos:], []byte(end))
	if length < 0 {
		return xmlToken{}, s.invalid("a %s is missing", end)
	}
	content := span{s.pos, s.pos + length}
	s.pos = content.to + len(end)
	return xmlToken{kind: kind, span: content}, nil
}

func (s *scanner) startTag() (xmlToken, error) {
	t := xmlToken{kind: tokenStart, span: span{from: s.pos}}
	s.pos++
	t.name = s.name()
	if len(t.name) == 0 {
		return xmlToken{}, s.invalid("a tag has no valid name")
	}
	if err := s.readAttributes(); err != nil {
		return xmlToken{}, err
	}
	if s.skip('/') {
		t.kind = tokenEmpty
	}
	if !s.skip('>') {
		return xmlToken{}, s.invalid("a malformed start tag")
	}
	return t, nil
}

func (s *scanner) readAttributes() error {
	s.attributes = s.attributes[:0]
	for {
		a, err := s.attribute()
		if err != nil || len(a.name) == 0 {
			return err
		}
		s.attributes = append(s.attributes, a)
	}
}

// attribute reads an attribute and the white space before it. It returns the zero
// xmlAttribute if there is no attribute.
func (s *scanner) attribute() (a xmlAttribute, err error) {
	separated := s.space()
	a.from = s.pos
	if a.name = s.name(); len(a.name) == 0 {
		return a, nil
	}
	s.space()
	// Some players find attributes only at letters, in values as well.
	if first := a.name[0] | 0x20; !separated || first < 'a' || first > 'z' || !s.skip('=') {
		return a, s.invalid("a malformed attribute")
	}
	s.space()
	quote := s.pos
	if !s.skip('"') && !s.skip('\'') {
		return a, s.invalid("an attribute is not quoted")
	}
	length := bytes.IndexByte(s.src[s.pos:], s.src[quote])
	if length < 0 {
		return a, s.invalid("the quotes of an attribute are not balanced")
	}
	a.value = span{s.pos, s.pos + length}
	if bytes.IndexByte(s.src[a.value.from:a.value.to], '<') >= 0 {
		return a, s.invalid("a < in an attribute")
	}
	if err := s.checkReferences(a.value); err != nil {
		return a, err
	}
	s.pos = a.value.to + 1
	return a, nil
}

// name reads a name. It returns nil if there is none.
func (s *scanner) name() []byte {
	rest := s.src[s.pos:]
	length := nameByte.prefixLength(rest)
	if length == 0 || rest[0] < 'A' && rest[0] != ':' { // a digit, a hyphen or a dot
		return nil
	}
	s.pos += length
	return rest[:length]
}

func (s *scanner) space() bool {
	length := xmlSpace.prefixLength(s.src[s.pos:])
	s.pos += length
	return length > 0
}

func (s *scanner) skip(c byte) bool {
	if s.pos < len(s.src) && s.src[s.pos] == c {
		s.pos++
		return true
	}
	return false
}

// checkReferences refuses references to entities other than the predefined ones.
func (s *scanner) checkReferences(in span) error {
	for rest := s.src[in.from:in.to]; ; {
		i := bytes.IndexByte(rest, '&')
		if i < 0 {
			return nil
		}
		_, size := dereference(rest[i:])
		if size == 0 {
			return s.invalid("a malformed reference or an unknown entity")
		}
		rest = rest[i+size:]
	}
}

func (s *scanner) invalid(format string, args ...any) error {
	return invalid("offset %d: "+format, append([]any{s.pos}, args...)...)
}

// entities are the names of the predefined entities (XML 1.0 section 4.6).
var entities = [...]string{'&': "amp", '<': "lt", '>': "gt", '"': "quot", '\'': "apos"}

// dereference reads the character or entity reference at the start of b. size is 0
// if it is invalid.
func dereference(b []byte) (r rune, size int) {
	const longest = len("&#x0010ffff;")
	end := bytes.IndexByte(b[:min(len(b), longest)], ';')
	if end < 0 {
		return 0, 0
	}
	name := string(b[1:end])
	if c := slices.Index(entities[:], name); c > 0 {
		return rune(c), end + 1
	}
	digits, ok := strings.CutPrefix(name, "#")
	base := 10
	if hex, isHex := strings.CutPrefix(digits, "x"); isHex {
		digits, base = hex, 16
	}
	n, err := strconv.ParseUint(digits, base, 32)
	if !ok || err != nil || n == 0 || n > utf8.MaxRune || !utf8.ValidRune(rune(n)) {
		return 0, 0
	}
	return rune(n), end + 1
}

// nameByte are the bytes of names: some of ASCII, and all others.
var nameByte = func() *byteSet {
	set := newByteSet(alphanumeric + "-._:")
	for c := utf8.RuneSelf; c < len(set); c++ {
		set[c] = true
	}
	return set
}()

var xmlSpace = newByteSet(" \t\r\n")

// local returns a name without its prefix.
func local(name []byte) []byte {
	return name[bytes.LastIndexByte(name, ':')+1:]
}

// decodeReference decodes a URI in an XML value up to its query or fragment. suffix
// is the rest, undecoded, because it is written as it was.
func decodeReference(dst, value []byte, kind valueKind) (ref, suffix []byte) {
	for i := 0; i < len(value); {
		c := value[i]
		r, size := rune(c), 1
		switch {
		case kind != verbatimValue && c == '&':
			r, size = dereference(value[i:])
		case kind == attributeValue && xmlSpace[c]:
			r = ' ' // XML 1.0 section 3.3.3
		case c >= utf8.RuneSelf:
			dst = append(dst, c)
			i++
			continue
		}
		if r == '?' || r == '#' {
			return dst, value[i:]
		}
		dst = utf8.AppendRune(dst, r)
		i += size
	}
	return dst, nil
}

// valueKind is how a value is written in XML.
type valueKind uint8

const (
	textValue valueKind = iota
	attributeValue
	verbatimValue // in a CDATA section
)

// appendEscaped appends a value with the escapes that text and quotes need.
func appendEscaped(dst, value []byte) []byte {
	for _, c := range value {
		if int(c) < len(entities) && entities[c] != "" {
			dst = append(append(append(dst, '&'), entities[c]...), ';')
		} else {
			dst = append(dst, c)
		}
	}
	return dst
}
