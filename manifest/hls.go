package manifest

import (
	"bytes"
)

// playlist rewrites an HLS playlist, line by line.
type playlist struct {
	*mapper
	editor
	here      *place
	variables variables
	line      int
	stats     Stats
}

func rewriteHLS(dst, src []byte, at Location, query string) ([]byte, Stats, error) {
	// A CR is part of a line break or nothing. Some players break lines at a
	// lone one, and would see tags where others see part of a title.
	if bytes.Count(src, []byte{'\r'}) != bytes.Count(src, []byte("\r\n")) {
		return nil, Stats{}, invalid("a CR that no LF follows")
	}
	p := &playlist{
		mapper:    newMapper(at),
		editor:    newEditor(dst, src),
		variables: variables{query: query, budget: expansion*len(src) + slack},
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
	switch {
	case p.line == 1:
		rest, ok := bytes.CutPrefix(bytes.TrimPrefix(line, byteOrderMark), []byte("#EXTM3U"))
		if !ok || len(rest) > 0 && rest[0] != ' ' && rest[0] != '\t' {
			return errNotHLS
		}
		return nil
	case bytes.HasPrefix(line, []byte("#EXT")):
		return p.rewriteTag(from, to)
	case len(line) > 0 && line[0] == '#':
		return nil
	}
	// What begins with white space is a URI, even if a `#` comes next.
	if len(trim(line)) == 0 {
		return nil
	}
	return p.rewriteURI(from, to)
}

// rewriteTag rewrites the attributes of a tag.
func (p *playlist) rewriteTag(from, to int) error {
	line := p.src[from:to]
	colon := bytes.IndexByte(line, ':')
	if colon < 0 {
		return nil
	}
	switch string(line[:colon]) {
	case "#EXTINF", "#EXT-X-PROGRAM-DATE-TIME", "#EXT-X-BYTERANGE", "#EXT-X-MEDIA-SEQUENCE", "#EXT-X-TARGETDURATION":
		// Not attribute lists. A title is free text.
		return nil
	case "#EXT-X-DEFINE":
		return p.define(from+colon+1, to)
	case "#EXT-X-KEY", "#EXT-X-SESSION-KEY", "#EXT-X-MAP", "#EXT-X-MEDIA", "#EXT-X-STREAM-INF",
		"#EXT-X-I-FRAME-STREAM-INF", "#EXT-X-IMAGE-STREAM-INF", "#EXT-X-PART", "#EXT-X-PRELOAD-HINT",
		"#EXT-X-RENDITION-REPORT", "#EXT-X-SESSION-DATA", "#EXT-X-CONTENT-STEERING", "#EXT-X-DATERANGE":
	default:
		// Tags of tomorrow and of vendors. Those that do not have what looks
		// like a URI may have any value.
		if !mentionsURI(line[colon+1:]) {
			return nil
		}
	}
	return p.rewriteAttributes(from+colon+1, to)
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
			continue
		case seen[which]:
			return p.invalid("a URI attribute is repeated")
		case !a.quoted:
			return p.invalid("a URI attribute is not quoted")
		}
		seen[which] = true
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
