package manifest

import (
	"bytes"
	"unicode/utf8"
)

// playlist rewrites an HLS playlist, line by line.
type playlist struct {
	*mapper
	editor
	base, own  *baseURI // of URIs; own is the same without Location.Session
	variables  variables
	absolute   bool // of the URI to be rewritten: it must be absolute
	separators bool // hasSeparator(src), so that most playlists are searched once
	steering   bool // src mentions content steering, and it is not allowed
	line       int
	stats      Stats
}

func rewriteHLS(dst, src []byte, at Location, query string, allowed Features) ([]byte, Stats, error) {
	// Some players end a line at a CR alone. They would see tags where others see
	// part of a title.
	if bytes.Count(src, []byte{'\r'}) != bytes.Count(src, []byte("\r\n")) {
		return nil, Stats{}, invalid("a CR that no LF follows")
	}
	p := &playlist{
		mapper: newMapper(at),
		editor: newEditor(dst, src, at),
		variables: variables{
			query:  query,
			values: make(map[string]variable),
			budget: maxExpansion*len(src) + growthSlack,
		},
		separators: hasSeparator(src),
		steering:   allowed&Steering == 0 && bytes.Contains(src, steeringTag),
	}
	p.base, p.own = p.document(), &baseURI{path: at.Path, view: at.Path}
	for from := 0; from < len(src); {
		p.line++
		end := from + bytes.IndexByte(src[from:], '\n') + 1
		if end == from {
			end = len(src)
		}
		to := end
		for to > from && (src[to-1] == '\n' || src[to-1] == '\r') {
			to--
		}
		var err error
		if p.steering && bytes.Contains(src[from:to], steeringTag) {
			err = p.removeSteering(from, end)
		} else {
			err = p.rewriteLine(from, to)
		}
		if err != nil {
			return nil, Stats{}, err
		}
		from = end
	}
	if p.line == 0 {
		return nil, Stats{}, errNotHLS
	}
	return p.finish(), p.stats, nil
}

var errNotHLS = invalid("the first line is not #EXTM3U")

var steeringTag = []byte("EXT-X-CONTENT-STEERING")

// removeSteering removes a line that is the tag or a comment, in which hls.js finds
// the tag. It refuses the tag elsewhere: hls.js also finds it in titles, values and
// URIs, and Shaka takes any first byte for the number sign.
func (p *playlist) removeSteering(from, to int) error {
	line := bytes.TrimLeftFunc(p.src[from:to], isBlank)
	rest, ok := bytes.CutPrefix(line, []byte{'#'})
	if !ok || p.line == 1 || bytes.HasPrefix(rest, []byte("EXT")) && !bytes.HasPrefix(rest, steeringTag) {
		return p.invalid("EXT-X-CONTENT-STEERING is not at the start of its line")
	}
	p.stats.Removed++
	return p.replace(from, to)
}

func (p *playlist) rewriteLine(from, to int) error {
	line := p.src[from:to]
	if p.line == 1 {
		rest, ok := bytes.CutPrefix(bytes.TrimPrefix(line, byteOrderMark), []byte("#EXTM3U"))
		if !ok || len(rest) > 0 && rest[0] != ' ' && rest[0] != '\t' {
			return errNotHLS
		}
		return p.rewriteComment(to-len(rest), to)
	}
	// Some players remove white space before a tag. The others see a URI that
	// consists of a fragment, so it leads to the playlist itself.
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
		return p.invalid("a Unicode line separator in a tag or a comment: JavaScript ends the line there")
	case len(text) < 4 || string(text[:4]) != "#EXT":
		return p.rewriteComment(to-len(text), to)
	case len(text) < len(line) && bytes.HasPrefix(text, []byte("#EXT-X-DEFINE")):
		return p.invalid("white space before EXT-X-DEFINE: only some players read it as a tag")
	}
	return p.rewriteTag(to-len(text), to)
}

// hasSeparator reports whether text contains a Unicode line or paragraph
// separator.
func hasSeparator(text []byte) bool {
	return bytes.Contains(text, []byte("\u2028")) || bytes.Contains(text, []byte("\u2029"))
}

// rewriteComment rewrites the attributes of a tag within a comment or a title:
// hls.js finds the tags of multivariant playlists anywhere in a line.
func (p *playlist) rewriteComment(from, to int) error {
	start := bytes.Index(p.src[from:to], []byte("#EXT-X-"))
	if start < 0 {
		return nil
	}
	if colon := bytes.IndexByte(p.src[from+start:to], ':'); colon >= 0 {
		return p.rewriteAttributes(from+start+colon+1, to, standardTag)
	}
	return nil
}

// rewriteTag rewrites the attributes of a tag.
func (p *playlist) rewriteTag(from, to int) error {
	line := p.src[from:to]
	end := 1 + attributeNameByte.prefixLength(line[1:])
	if end == len(line) {
		return nil
	}
	if line[end] != ':' {
		// Some players compare only the beginning of a line with the names of tags.
		return p.rewriteQuotedURIs(from, to)
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
		return p.rewriteAttributes(value, to, standardTag)
	}
	if done, err := p.rewriteIfInside(value, to); done || err != nil {
		return err
	}
	return p.rewriteAttributes(value, to, otherTag)
}

// checkDuration refuses an EXTINF without a comma whose duration is followed by
// text that would have to be rewritten as a URI: hls.js reads it as the URI.
func (p *playlist) checkDuration(value []byte) error {
	text := value
	for len(text) > 0 && (text[0] <= ' ' || text[0] == '.' || '0' <= text[0] && text[0] <= '9') {
		text = text[1:]
	}
	if len(text) == 0 || text[0] == ',' {
		return nil
	}
	text = trim(text)
	if ref, _ := cutSuffix(text); bytes.Contains(ref, variableStart) || p.follow(p.own, ref) == rewritten {
		return p.invalid("EXTINF has a URI after its duration: want a comma")
	}
	return nil
}

// tagKind tells whose names the attributes of a tag have.
type tagKind bool

const (
	standardTag tagKind = false // those of RFC 8216bis, and those of clients, which begin with X-
	otherTag    tagKind = true
)

// rewriteAttributes rewrites the URIs of an attribute list. Where the list is not as RFC
// 8216bis section 4.2 defines it, players read it differently. Then only what some player
// takes for the attribute of a URI counts.
func (p *playlist) rewriteAttributes(from, to int, kind tagKind) error {
	var seen [len(uriAttributes)]bool
	for list := (attributes{src: p.src[:to], next: from}); ; {
		start := list.next
		a, more, err := list.read()
		if err != nil {
			return p.rewriteQuotedURIs(start, to)
		}
		if !more {
			return nil
		}
		which := uriAttribute(a.name)
		switch {
		case which >= 0 && seen[which]:
			return p.invalid("a URI attribute occurs twice")
		case which >= 0 && !a.quoted:
			err = p.checkUnquoted(p.src[a.from:a.to])
		case which >= 0:
			seen[which] = true
			p.absolute = p.at.Base != "" && bytes.HasPrefix(a.name, []byte("X-ASSET-"))
			err = p.rewriteURI(a.from, a.to)
			p.absolute = false
		case a.quoted && endsInURI(a.name):
			err = p.rewriteURI(a.from, a.to)
		case a.quoted && (kind == otherTag || bytes.HasPrefix(a.name, []byte("X-"))):
			_, err = p.rewriteIfInside(a.from, a.to)
		}
		if err != nil {
			return err
		}
	}
}

// rewriteQuotedURIs rewrites the URIs in text in which players can find attributes, but not
// the same ones: some search for a name, others skip what they do not understand. All that
// find a URI read it up to the next quote. Text without such a name stays.
func (p *playlist) rewriteQuotedURIs(from, to int) error {
	for next := from; ; {
		before, _, found := bytes.Cut(p.src[next:to], []byte{'='})
		if !found {
			return nil
		}
		next += len(before) + 1
		name := bytes.TrimRightFunc(before, isBlank)
		start := len(name) - attributeNameByte.suffixLength(name)
		isURI := uriAttribute(name[start:]) >= 0 && (start == 0 || mayEndAttribute(name[start-1]))
		if !isURI && !endsInURI(name) {
			continue
		}
		list := attributes{src: p.src[:to], next: next}
		if list.skipSpace(); !isURI && (list.next == to || p.src[list.next] != '"') {
			continue
		}
		a, err := list.readValue()
		switch {
		case err == nil && !a.quoted:
			err = p.checkUnquoted(p.src[a.from:a.to])
		case err != nil && (isURI || a.to == 0):
			return p.invalid(err.Error())
		default:
			err = p.rewriteURI(a.from, a.to)
		}
		if err != nil {
			return err
		}
		next = a.to
	}
}

// checkUnquoted refuses a URI without quotes that would have to be rewritten: some players read it,
// and disagree about its end. ffmpeg finds the next attribute in the value after a space.
func (p *playlist) checkUnquoted(value []byte) error {
	uri := trim(value)
	ref, _ := cutSuffix(uri)
	if hasBlank(uri) || bytes.IndexByte(ref, '=') >= 0 || bytes.Contains(ref, variableStart) || p.follow(p.own, ref) == rewritten {
		return p.invalid("a URI attribute is not quoted")
	}
	p.stats.Left++
	return nil
}

// mayEndAttribute reports whether some player reads a new name after this byte.
func mayEndAttribute(c byte) bool { return c <= ' ' || c == ',' || c == '"' || c >= utf8.RuneSelf }

// rewriteIfInside rewrites text that players take for a URI or not, as they like, if all of it is
// one that leads into the folder from the root. Other text stays byte by byte.
func (p *playlist) rewriteIfInside(from, to int) (done bool, err error) {
	if text := p.src[from:to]; bytes.ContainsAny(text, `"{`) || hasBlank(text) || !p.leadsInside(p.own, text) {
		return false, nil
	}
	return true, p.rewriteURI(from, to)
}

// rewriteURI rewrites the URI at src[from:to], with white space around it.
func (p *playlist) rewriteURI(from, to int) error {
	from = to - len(trimStart(p.src[from:to]))
	uri := trim(p.src[from:to])
	to = from + len(uri)
	if beginsBlank(uri) {
		return p.invalid(whyBlank)
	}

	ref, suffix := cutSuffix(uri)
	expanded := ref
	var extra []byte
	// After the `?` a variable cannot change where a URI leads.
	if bytes.Contains(ref, variableStart) {
		text, err := p.variables.expand(ref)
		if err != nil {
			return p.invalid(err.Error())
		}
		expanded, extra = cutSuffix(trimReference(text, len(suffix) > 0))
	}
	result := p.follow(p.base, expanded)
	if result == unchanged || result == rewritten {
		p.countRefused(&p.stats)
	}
	switch result {
	case foreignURI, unchanged:
		p.stats.Left++
	case outside:
		p.stats.Outside++
	case rewritten:
		if bytes.Contains(p.out, variableStart) || bytes.Contains(extra, variableStart) {
			return p.invalid("the values of variables form another variable")
		}
		p.stats.Rewritten++
		if p.absolute {
			p.writeAbsolute()
		}
		return p.replace(from, to, p.out, extra, suffix)
	case unreachable, misleading:
		// Not possible: the base URI of a playlist is in the folder.
	}
	return nil
}

func (p *playlist) invalid(why string) error {
	return invalid("line %d: %s", p.line, why)
}
