package manifest

import (
	"bytes"
	"regexp"
	"slices"
	"strings"
)

const (
	maxDepth      = 64 // nesting of elements; an MPD needs about ten
	maxAttributes = 64 // of an element
)

// mpd rewrites an MPD, a patch to an MPD, or remote elements.
type mpd struct {
	*mapper
	editor
	*scanner
	src      []byte
	bases    baseURLs
	document []*baseURI // the base URI of the manifest itself
	allowed  Features
	open     []element
	root     elementKind // zero until the root element has begun
	stats    Stats

	// collecting is set in the first pass, which only finds the BaseURLs: they
	// apply to their siblings before and after them.
	collecting bool

	decoded []byte // reused memory
	other   []byte // reused memory
}

// element is an open element.
type element struct {
	name       []byte
	kind       elementKind
	start, end int // offsets of its start tag and after it

	// References in the attributes and BaseURLs of the element are resolved
	// against outer, those in its other children against inner. There are several
	// base URIs if BaseURLs are alternatives.
	outer, inner []*baseURI
	base         int // index of the next BaseURL of the element

	content content
	text    span // of a URI; zero if there is none
	value   valueKind

	// Also true of the elements within:
	opaque  bool // data of other parties: its URIs stay as they are
	open    bool // may contain elements of other parties
	removed bool
}

// content is what the text of an element is.
type content uint8

const (
	markup      content = iota // not a URI
	baseText                   // a BaseURL
	elementURI                 // relative to the base URI of the element
	xlinkURI                   // the same, of a remote element
	documentURI                // relative to the manifest itself
)

// rewriteDASH rewrites an MPD, a patch, or the remote elements to which an xlink:href
// leads (ISO/IEC 23009-1 section 5.5). References that a patch or a remote element adds
// to an MPD are resolved as if the MPD were in the same folder and had no BaseURLs except
// those of the patch or element, because the MPD is not available.
func rewriteDASH(dst, src []byte, at Location, allowed Features) ([]byte, Stats, error) {
	m := newMapper(at)
	d := &mpd{mapper: m, src: src, document: []*baseURI{m.document()}, allowed: allowed}
	dst = slices.Grow(dst, len(src)) // once for all passes
	d.collecting = bytes.Contains(src, []byte("BaseURL"))
	for {
		if err := d.pass(dst, src); err != nil {
			return nil, Stats{}, err
		}
		switch {
		case d.collecting:
			d.collecting = false
			d.bases.sort()
		case d.bases.adopting:
			// This pass has found the BaseURLs to adopt.
			d.bases.adopting, d.bases.settled = false, true
		default:
			return d.finish(), d.stats, nil
		}
	}
}

// pass reads the document once.
func (d *mpd) pass(dst, src []byte) (err error) {
	if d.scanner, err = newScanner(src); err != nil {
		return err
	}
	d.editor = newEditor(dst, src)
	d.stats, d.root = Stats{}, 0
	d.open, d.bases.next = d.open[:0], 0
	for {
		t, err := d.scanner.next()
		if err != nil {
			return err
		}
		switch t.kind {
		case tokenEnd:
			if len(d.open) > 0 || d.root == 0 {
				return d.invalid("the document ends early")
			}
			return nil
		case tokenStart, tokenEmpty:
			if err = d.begin(t); err == nil && t.kind == tokenEmpty {
				err = d.end(t.name)
			}
		case tokenClose:
			err = d.end(t.name)
		case tokenText, tokenVerbatim:
			err = d.text(t)
		case tokenOther:
		}
		if err != nil {
			return err
		}
	}
}

// begin opens an element.
func (d *mpd) begin(t xmlToken) error {
	depth := len(d.open)
	if depth == maxDepth {
		return d.invalid("elements are nested more than %d deep", maxDepth)
	}
	kind := kindOf(local(t.name))
	d.open = append(d.open, element{name: t.name, kind: kind, start: t.from, end: d.pos, outer: d.document})
	e := &d.open[depth]
	switch {
	case depth > 0:
		parent := &d.open[depth-1]
		if parent.content != markup {
			return d.invalid("an element in the place of a URI")
		}
		e.outer = parent.inner
		e.opaque = parent.opaque || parent.kind&opaque != 0
		e.open = parent.open || parent.kind&open != 0
		e.removed = parent.removed || !d.passes(kind, e.open)
	case d.root != 0 && (d.root|kind)&root != 0:
		return d.invalid("a second root element")
	case kind&(root|remote) == 0:
		return d.invalid("the root element is not that of an MPD, a patch or a remote element")
	default:
		d.root = kind
	}
	if err := d.checkAttributes(); err != nil {
		return err
	}
	e.inner = e.outer
	if e.opaque || e.removed {
		return nil
	}
	switch {
	case kind&operation != 0:
		e.content = patched(d.value("sel"), d.value("type"))
	case kind&base != 0:
		e.content = baseText
	case kind&location != 0:
		e.content = documentURI
	case kind&steering != 0:
		e.content = elementURI
	}
	if d.collecting {
		return nil
	}
	var err error
	if e.base, e.inner, err = d.enter(e.end, e.outer); err != nil {
		return err
	}
	return d.rewriteAttributes(kind, e.outer)
}

// predicate is a predicate of a step in a selector.
var predicate = regexp.MustCompile(`\[[^\]]*\]`)

// patched returns what the text of a patch operation is (RFC 5261 section 4): the
// value of what it selects, or of the attribute that it adds.
func patched(selector, attribute string) content {
	path := predicate.ReplaceAllString(selector, "")
	if attribute != "" {
		path += "/" + attribute
	}
	path, isText := strings.CutSuffix(path, "/text()")
	step := path[strings.LastIndexByte(path, '/')+1:]
	name, isAttribute := strings.CutPrefix(step, "@")
	local := local([]byte(name))
	switch kind := kindOf(local); {
	case isAttribute && string(local) == "href":
		return xlinkURI
	case isAttribute && isURI(template, local), !isAttribute && isText && kind&(base|steering) != 0:
		return elementURI
	case !isAttribute && isText && kind&location != 0:
		return documentURI
	}
	return markup
}

// value returns the undecoded value of an attribute of the last start tag.
func (d *mpd) value(name string) string {
	for _, a := range d.attributes {
		if string(a.name) == name {
			return string(d.src[a.value.from:a.value.to])
		}
	}
	return ""
}

// checkAttributes refuses an attribute that occurs twice: some parsers use the
// first, others the last.
func (d *mpd) checkAttributes() error {
	if len(d.attributes) > maxAttributes {
		return d.invalid("more than %d attributes", maxAttributes)
	}
	for i, a := range d.attributes {
		if slices.ContainsFunc(d.attributes[:i], func(b xmlAttribute) bool { return bytes.Equal(a.name, b.name) }) {
			return d.invalid("an attribute occurs twice")
		}
		// dash.js keeps attributes and its own properties of an element together.
		if name := string(a.name); name == "nodeName" || name == "tagName" {
			return d.invalid("an attribute that some players take for the name of its element")
		}
	}
	return nil
}

// rewriteAttributes rewrites the URIs in the attributes of the last start tag.
func (d *mpd) rewriteAttributes(kind elementKind, bases []*baseURI) error {
	for _, a := range d.attributes {
		var err error
		switch {
		case kind&timing != 0 && string(a.name) == "value":
			if strings.HasPrefix(d.value("schemeIdUri"), "urn:mpeg:dash:utc:http-") {
				err = d.rewriteList(a.value, bases)
			}
		case isXLink(a.name) && d.leadsAbroad(a.value, attributeValue, bases):
			d.stats.Removed++
			err = d.replace(a.from, a.value.to+len(`"`))
		case isXLink(a.name) || isURI(kind, a.name):
			err = d.rewrite(a.value, attributeValue, bases)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// isXLink reports whether an attribute is the href of a remote element. Any prefix
// counts: players ignore namespaces.
func isXLink(name []byte) bool {
	colon := len(name) - len(":href")
	return colon > 0 && string(name[colon:]) == ":href"
}

// isURI reports whether an attribute contains a URI or a template of URIs. In
// templates, identifiers such as $Number%05d$ stay as they are. The values of
// $RepresentationID$ are not checked: one that leads out of the folder leads to a
// path without a token.
func isURI(kind elementKind, name []byte) bool {
	switch string(name) {
	case "sourceURL":
		return true
	case "media", "index":
		return kind&(template|segment) != 0
	case "initialization":
		return kind&(template|initialization) != 0
	case "bitstreamSwitching":
		return kind&template != 0
	}
	return false
}

// rewriteList rewrites a list of URIs that white space separates.
func (d *mpd) rewriteList(list span, bases []*baseURI) error {
	src := d.src
	for from := list.from; from < list.to; {
		to := from
		for to < list.to && !xmlSpace[src[to]] {
			to++
		}
		if to > from {
			if err := d.rewrite(span{from, to}, attributeValue, bases); err != nil {
				return err
			}
		}
		from = to + 1
	}
	return nil
}

// text records the text of an element, if it is a URI.
func (d *mpd) text(t xmlToken) error {
	text := d.trimSpace(t.span)
	if len(d.open) == 0 {
		if text.from < text.to || t.kind == tokenVerbatim {
			return d.invalid("text outside the root element")
		}
		return nil
	}
	e := &d.open[len(d.open)-1]
	if e.content == markup || text.from == text.to {
		return nil
	}
	if e.text.to > 0 {
		return d.invalid("a URI consists of several pieces of text")
	}
	e.text = text
	if t.kind == tokenVerbatim {
		e.value = verbatimValue
	}
	return nil
}

func (d *mpd) trimSpace(text span) span {
	text.from += xmlSpace.prefixLength(d.src[text.from:text.to])
	for text.from < text.to && xmlSpace[d.src[text.to-1]] {
		text.to--
	}
	return text
}

// end closes the innermost element.
func (d *mpd) end(name []byte) error {
	depth := len(d.open) - 1
	if depth < 0 || !bytes.Equal(d.open[depth].name, name) {
		return d.invalid("an end tag without its start tag")
	}
	e, parent := &d.open[depth], &d.open[max(depth-1, 0)]
	d.open = d.open[:depth]
	switch {
	case e.removed && !parent.removed:
		return d.remove(e)
	case e.content == baseText:
		if d.collecting {
			d.bases.add(parent.end, e.text, e.value)
			return nil
		}
		parent.base++
		if e.text.to == 0 {
			return nil
		}
		return d.rewriteBase(parent.base-1, parent.outer)
	case d.collecting || e.text.to == 0:
		return nil
	case e.content == xlinkURI && d.leadsAbroad(e.text, e.value, e.outer):
		return d.remove(e)
	case e.content == elementURI, e.content == xlinkURI:
		return d.rewrite(e.text, e.value, e.outer)
	case e.content == documentURI:
		// BaseURLs do not apply: players resolve it against the URL of the
		// manifest.
		if d.allowed&Steering == 0 && !d.leadsToMPD(e) {
			return d.remove(e)
		}
		return d.rewrite(e.text, e.value, d.document)
	}
	return nil
}

// rewrite rewrites a URI, for all base URIs against which it may be resolved.
func (d *mpd) rewrite(in span, kind valueKind, bases []*baseURI) error {
	in, ref, suffix := d.decode(in, kind)
	if beginsBlank(ref) {
		return d.invalid(whyBlank)
	}
	replaced, anyOutside := false, false
	for i, base := range bases {
		result := d.follow(base, ref)
		switch result {
		case unreachable:
			if !d.bases.adopt(base) {
				return d.invalid("a URI that leads into the folder is below a BaseURL that leads out of it")
			}
			continue
		case misleading:
			return d.invalid("some URIs below the same BaseURL lead into the folder, others out of it")
		case foreignURI, outside, unchanged, rewritten:
		}
		if i > 0 && !d.bases.adopting && (replaced != (result == rewritten) || replaced && !bytes.Equal(d.out, d.other)) {
			return d.invalid(whyAlternatives)
		}
		if replaced = result == rewritten; replaced && len(bases) > 1 {
			d.other = append(d.other[:0], d.out...)
		}
		anyOutside = anyOutside || result == outside
	}
	switch {
	case replaced:
		d.stats.Rewritten++
		return d.write(in, kind, suffix)
	case anyOutside:
		d.stats.Outside++
	default:
		d.stats.Left++
	}
	return nil
}

// decode decodes the reference of a URI, without the white space around it. suffix
// is the undecoded query and fragment.
func (d *mpd) decode(in span, kind valueKind) (trimmed span, ref, suffix []byte) {
	in = d.trimSpace(in)
	d.decoded, suffix = decodeReference(d.decoded[:0], d.src[in.from:in.to], kind)
	return in, trimReference(d.decoded, len(suffix) > 0), suffix
}

// write replaces a URI by the output of the mapper.
func (d *mpd) write(in span, kind valueKind, suffix []byte) error {
	if kind != verbatimValue {
		d.other = appendEscaped(d.other[:0], d.out)
		return d.replace(in.from, in.to, d.other, suffix)
	}
	d.other = append(append(d.other[:0], d.out...), suffix...)
	if bytes.Contains(d.other, []byte("]]>")) {
		return d.invalid("a rewritten URI would end its CDATA section")
	}
	return d.replace(in.from, in.to, d.other)
}
