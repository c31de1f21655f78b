package manifest

import (
	"bytes"
	"unicode/utf8"
)

// playlist rewrites an HLS playlist, line by line.
type playlist struct {
	*mapper
	editor
	here       *place
	variables  variables
	separators bool // src has one, by hasSeparator
	line       int
	stats      Stats
}

func rewriteHLS(dst, src []byte, at Location, query string) ([]byte, Stats, error) {
	// A CR is part of a line break or nothing. Some players break lines at a
	// lone one, and would see tags where others see part of a title.
	if bytes.Count(src, []byte{'\r'}) != bytes.Count(src, []byte("\r\n")) {
		return nil, Stats{}, invalid("a CR that no LF follows")
	}
	p := &playlist{
		mapper:     newMapper(at),
		editor:     newEditor(dst, src),
		variables:  variables{query: query, budget: expansion*len(src) + slack},
		separators: hasSeparator(src),
	}
	p.here = p.document()
	for from := 0; from < len(src); {
		p.line++
		to, next := len(src), len(src)
		if i := bytes.IndexByte(src[from:], '\n'); i >= 0 {
			to, next = from+i, from+i+1
			if to > from && src[to-1] == '\r' {
				to--
			}
		}
		if err := p.rewriteLine(from, to); err != nil {
			return nil, Stats{}, err
		}
		from = next
	}
	if p.line == 0 {
		return nil, Stats{}, errNotHLS
	}
	return p.finish(), p.stats, nil
}

var errNotHLS = invalid("the first line is not #EXTM3U")

func (p *playlist) rewriteLine(from, to int) error {
	line := p.src[from:to]
	if p.line == 1 {
		rest, ok := bytes.CutPrefix(bytes.TrimPrefix(line, byteOrderMark), []byte("#EXTM3U"))
		if !ok || len(rest) > 0 && rest[0] != ' ' && rest[0] != '\t' {
			return errNotHLS
		}
		return p.rewriteComment(to-len(rest), to)
	}
	// Some players drop white space before a tag. To the others, what begins so
	// is a URI that leads nowhere but to the playlist, whatever its fragment.
	text := line
	if len(text) > 0 && (text[0] <= ' ' || text[0] >= utf8.RuneSelf) {
		text = bytes.TrimLeftFunc(text, isBlank)
	}
	switch {
	case len(text) == 0:
		return nil
	case text[0] != '#':
		return p.rewriteURI(from, to)
	case p.separators && hasSeparator(text):
		return p.invalid("a line separator of Unicode in a tag or a comment, where JavaScript ends it")
	case !bytes.HasPrefix(text, []byte("#EXT")):
		return p.rewriteComment(to-len(text), to)
	case len(text) < len(line) && bytes.HasPrefix(text, []byte("#EXT-X-DEFINE")):
		return p.invalid("white space before EXT-X-DEFINE, which not all players take for a tag then")
	}
	return p.rewriteTag(to-len(text), to)
}

// hasSeparator reports whether text has a line or paragraph separator of Unicode.
func hasSeparator(text []byte) bool {
	return bytes.Contains(text, []byte("\u2028")) || bytes.Contains(text, []byte("\u2029"))
}

// rewriteComment rewrites the attributes of a tag that a comment has, or a title.
// hls.js finds those of multivariant playlists wherever they are.
func (p *playlist) rewriteComment(from, to int) error {
	start := bytes.Index(p.src[from:to], []byte("#EXT-X-"))
	if start < 0 {
		return nil
	}
	colon := bytes.IndexByte(p.src[from+start:to], ':')
	if value := from + start + colon + 1; colon >= 0 && mentionsURI(p.src[value:to]) {
		return p.rewriteAttributes(value, to)
	}
	return nil
}

// rewriteTag rewrites the attributes of a tag.
func (p *playlist) rewriteTag(from, to int) error {
	line := p.src[from:to]
	end := 1
	for end < len(line) && attributeNameByte[line[end]] {
		end++
	}
	if end == len(line) {
		return nil
	}
	if line[end] != ':' {
		// Some players look at the beginning of a line only.
		if bytes.Contains(line, []byte(`URI="`)) || mentionsURI(line[bytes.IndexByte(line, ':')+1:]) {
			return p.invalid("a tag with a URI whose name no colon follows")
		}
		return nil
	}
	value := from + end + 1
	switch string(line[:end]) {
	case "#EXTINF":
		if err := p.checkDuration(line[end+1:]); err != nil {
			return err
		}
		return p.rewriteComment(value, to)
	case "#EXT-X-DEFINE":
		return p.define(value, to)
	case "#EXT-X-KEY", "#EXT-X-SESSION-KEY", "#EXT-X-MAP", "#EXT-X-MEDIA", "#EXT-X-STREAM-INF",
		"#EXT-X-I-FRAME-STREAM-INF", "#EXT-X-IMAGE-STREAM-INF", "#EXT-X-PART", "#EXT-X-PRELOAD-HINT",
		"#EXT-X-RENDITION-REPORT", "#EXT-X-SESSION-DATA", "#EXT-X-CONTENT-STEERING", "#EXT-X-DATERANGE":
	default:
		// Tags without attributes, those of vendors and of tomorrow. Those that
		// do not have what looks like a URI may have any value.
		if !mentionsURI(line[end+1:]) {
			return nil
		}
	}
	return p.rewriteAttributes(value, to)
}

// checkDuration refuses a segment's duration with something else than a title
// behind it that would have to be rewritten: hls.js takes it for the URI.
func (p *playlist) checkDuration(value []byte) error {
	text := value
	for len(text) > 0 && (text[0] <= ' ' || text[0] == '.' || '0' <= text[0] && text[0] <= '9') {
		text = text[1:]
	}
	if len(text) == 0 || text[0] == ',' {
		return nil
	}
	text = trim(text)
	if ref, _ := cutSuffix(text); bytes.Contains(ref, reference) || p.follow(p.here, ref) == written {
		return p.invalid("a URI behind the duration of EXTINF, where a comma was to be expected")
	}
	return nil
}

// rewriteAttributes rewrites the URIs of an attribute list. A list that is not
// one by RFC 8216bis section 4.2 is refused, for players read such lists in as
// many ways as there are players.
func (p *playlist) rewriteAttributes(from, to int) error {
	var seen [len(uriAttributes)]bool
	for list := (attributes{src: p.src[:to], next: from}); ; {
		a, more, err := list.read()
		if err != nil {
			return p.invalid(err.Error())
		}
		if !more {
			return nil
		}
		which := uriAttribute(a.name)
		switch {
		case which < 0:
			if !a.quoted || !endsInURI(a.name) {
				continue
			}
		case seen[which]:
			return p.invalid("a URI attribute is repeated")
		case !a.quoted:
			return p.invalid("a URI attribute is not quoted")
		default:
			seen[which] = true
		}
		if err := p.rewriteURI(a.from, a.to); err != nil {
			return err
		}
	}
}

// rewriteURI rewrites the URI at src[from:to], which white space may surround.
func (p *playlist) rewriteURI(from, to int) error {
	uri := p.src[from:to]
	for len(uri) > 0 && uri[0] <= ' ' {
		uri = uri[1:]
		from++
	}
	uri = trim(uri)
	to = from + len(uri)
	if beginsBlank(uri) {
		return p.invalid(whyBlank)
	}

	ref, suffix := cutSuffix(uri)
	expanded := ref
	var extra []byte
	// Behind the `?` a variable cannot change where a URI leads.
	if bytes.Contains(ref, reference) {
		text, err := p.variables.expand(ref)
		if err != nil {
			return p.invalid(err.Error())
		}
		expanded, extra = cutSuffix(trimReference(text, len(suffix) > 0))
	}
	switch p.follow(p.here, expanded) {
	case elsewhere, kept:
		p.stats.Left++
	case outside:
		p.stats.Outside++
	case written:
		if bytes.Contains(p.out, reference) || bytes.Contains(extra, reference) {
			return p.invalid("a variable's value makes another variable")
		}
		p.stats.Rewritten++
		return p.replace(from, to, p.out, extra, suffix)
	case stranded, diverted:
		// A playlist has one base, in the folder.
	}
	return nil
}

func (p *playlist) invalid(why string) error {
	return invalid("line %d: %s", p.line, why)
}
