package manifest

import (
	"bytes"
	"slices"
	"strings"
)

const (
	maxDepth      = 64 // elements within elements; an MPD needs about ten
	maxAttributes = 64 // of an element
	maxPrefixes   = 128
)

// mpd rewrites an MPD, or a patch to one.
type mpd struct {
	*mapper
	editor
	*scanner
	src      []byte
	bases    baseURLs
	here     []*place // the manifest's own place, alone
	open     []element
	prefixes []prefix
	rooted   bool // the root element has begun
	stats    Stats

	// collecting is on in the first pass, which edits nothing, but finds the
	// BaseURLs: they apply to their siblings, whichever comes first.
	collecting bool

	decoded []byte // scratch memory
	other   []byte
}

// element is an element that is open.
type element struct {
	name  []byte
	start int

	// outer is where references in the attributes and in the BaseURLs of the
	// element are resolved, inner those in its other children. There are
	// several if BaseURLs offer alternatives.
	outer, inner []*place
	base         int // the next BaseURL among those of the element

	content  content
	text     span // of a URI
	verbatim bool // the text is in a CDATA section
	filled   bool // there was text
	opaque   bool // not MPD markup, but somebody else's data
	prefixes int  // how many prefixes there were before the element
}

// content is what the text of an element is.
type content int

const (
	markup    content = iota // not a URI
	baseURL                  // a BaseURL
	uri                      // a URI at the element's place
	nextFetch                // a URI at the manifest's own place
)

// prefix is a namespace prefix, and whether it stands for XLink.
type prefix struct {
	name  []byte
	xlink bool
}

// rewriteDASH rewrites an MPD or a patch. What a patch brings into an MPD is
// resolved as if it stood in an MPD in the patch's own folder without BaseURLs
// other than the patch's, for the MPD itself is not at hand.
func rewriteDASH(dst, src []byte, at Location) ([]byte, Stats, error) {
	m := newMapper(at)
	d := &mpd{mapper: m, src: src, here: []*place{m.document()}}
	dst = slices.Grow(dst, len(src)) // once for all passes
	if bytes.Contains(src, []byte("BaseURL")) {
		d.collecting = true
		if err := d.pass(dst, src); err != nil {
			return nil, Stats{}, err
		}
		d.collecting = false
		d.bases.sort()
	}
	if err := d.pass(dst, src); err != nil {
		return nil, Stats{}, err
	}
	if d.bases.adopting {
		// Only now is it known which BaseURLs outside the folder lead back in.
		d.bases.adopting, d.bases.settled = false, true
		if err := d.pass(dst, src); err != nil {
			return nil, Stats{}, err
		}
	}
	return d.finish(), d.stats, nil
}

// pass walks through the document once.
func (d *mpd) pass(dst, src []byte) (err error) {
	if d.scanner, err = newScanner(src); err != nil {
		return err
	}
	d.editor = newEditor(dst, src)
	d.stats, d.rooted = Stats{}, false
	d.open, d.prefixes = d.open[:0], d.prefixes[:0]
	d.bases.next = 0
	for {
		t, err := d.scanner.next()
		if err != nil {
			return err
		}
		switch t.kind {
		case tokenEnd:
			if len(d.open) > 0 || !d.rooted {
				return d.invalid("the document ends early")
			}
			return nil
		case tokenStart, tokenEmpty:
			if err := d.begin(t); err != nil {
				return err
			}
			if t.kind == tokenEmpty {
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

func isManifestRoot(name []byte) bool {
	return string(name) == "MPD" || string(name) == "Patch"
}

// begin opens an element.
func (d *mpd) begin(t xmlToken) error {
	e := element{name: t.name, start: t.from, outer: d.here, prefixes: len(d.prefixes)}
	name := local(t.name)
	switch {
	case len(d.open) > 0:
		parent := &d.open[len(d.open)-1]
		if parent.content != markup {
			return d.invalid("an element where a URI is expected")
		}
		e.outer = parent.inner
		e.opaque = parent.opaque || opaque(local(parent.name))
	case d.rooted:
		return d.invalid("a second root element")
	case !isManifestRoot(name):
		return d.invalid("the root element is neither MPD nor Patch")
	}
	d.rooted = true
	if len(d.open) == maxDepth {
		return d.invalid("more than %d elements within each other", maxDepth)
	}
	if err := d.checkAttributes(); err != nil {
		return err
	}
	e.inner = e.outer
	if !e.opaque {
		e.content = d.contentOf(name)
		if !d.collecting {
			var err error
			if e.base, e.inner, err = d.enter(e.start, e.outer); err != nil {
				return err
			}
			if err := d.rewriteAttributes(name, e.outer); err != nil {
				return err
			}
		}
	}
	d.open = append(d.open, e)
	return nil
}

// opaque reports whether what is in an element is somebody else's data, whatever
// its names look like.
func opaque(name []byte) bool {
	return string(name) == "ContentProtection" || string(name) == "EventStream"
}

// contentOf tells what the text of the element is whose start tag was scanned.
func (d *mpd) contentOf(name []byte) content {
	switch string(name) {
	case "BaseURL":
		return baseURL
	case "Location", "PatchLocation":
		return nextFetch
	case "ContentSteering":
		return uri
	case "add", "replace":
		return patched(d.value("sel"), d.value("type"))
	}
	return markup
}

// patched tells what the text of a patch operation is, RFC 5261 section 4: what
// it selects, or the attribute that it adds.
func patched(selector, attribute string) content {
	target := attribute
	if target == "" {
		path, step := cutStep(selector)
		if step == "text()" {
			_, step = cutStep(path)
			step, _, _ = strings.Cut(step, "[")
		}
		target = step
	}
	name := string(local([]byte(strings.TrimPrefix(target, "@"))))
	switch {
	case target == "" || target[0] != '@' && !strings.HasSuffix(selector, "text()"):
		return markup
	case target[0] != '@' && (name == "Location" || name == "PatchLocation"):
		return nextFetch
	case target[0] != '@' && (name == "BaseURL" || name == "ContentSteering"):
		return uri
	case target[0] != '@':
		return markup
	case name == "media", name == "initialization", name == "index", name == "bitstreamSwitching", name == "sourceURL", name == "href":
		return uri
	}
	return markup
}

// cutStep cuts off the last step of a path. Predicates have no bearing on it.
func cutStep(selector string) (path, step string) {
	depth := 0
	for i := len(selector) - 1; i >= 0; i-- {
		switch selector[i] {
		case ']':
			depth++
		case '[':
			depth--
		case '/':
			if depth == 0 {
				return selector[:i], selector[i+1:]
			}
		}
	}
	return "", selector
}

// value returns an attribute of the last start tag, undecoded.
func (d *mpd) value(name string) string {
	for _, a := range d.attributes {
		if string(a.name) == name {
			return string(d.src[a.value.from:a.value.to])
		}
	}
	return ""
}

// checkAttributes refuses repeated attributes, of which some parsers take the
// first and others the last, and takes note of namespace prefixes.
func (d *mpd) checkAttributes() error {
	if len(d.attributes) > maxAttributes {
		return d.invalid("more than %d attributes", maxAttributes)
	}
	for i, a := range d.attributes {
		for _, b := range d.attributes[:i] {
			if bytes.Equal(a.name, b.name) {
				return d.invalid("an attribute is repeated")
			}
		}
		if name, ok := bytes.CutPrefix(a.name, []byte("xmlns:")); ok {
			namespace, _ := decodeReference(d.decoded[:0], d.src[a.value.from:a.value.to], attributeValue)
			d.prefixes = append(d.prefixes, prefix{name, string(namespace) == "http://www.w3.org/1999/xlink"})
		}
	}
	if len(d.prefixes) > maxPrefixes {
		return d.invalid("more than %d namespace prefixes", maxPrefixes)
	}
	return nil
}

// isXLink reports whether an attribute is an XLink reference. The usual prefix
// is also taken for it where it is not declared, as players do.
func (d *mpd) isXLink(name []byte) bool {
	before, ok := bytes.CutSuffix(name, []byte(":href"))
	if !ok {
		return false
	}
	for _, p := range slices.Backward(d.prefixes) {
		if bytes.Equal(p.name, before) {
			return p.xlink
		}
	}
	return string(before) == "xlink"
}

// rewriteAttributes rewrites the URIs in the attributes of the last start tag.
func (d *mpd) rewriteAttributes(element []byte, at []*place) error {
	for _, a := range d.attributes {
		switch {
		case string(element) == "UTCTiming" && string(a.name) == "value":
			if strings.HasPrefix(d.value("schemeIdUri"), "urn:mpeg:dash:utc:http-") {
				if err := d.rewriteList(a.value, at); err != nil {
					return err
				}
			}
		case holdsURI(element, a.name) || d.isXLink(a.name):
			if err := d.rewrite(a.value, attributeValue, at); err != nil {
				return err
			}
		}
	}
	return nil
}

// holdsURI reports whether an attribute holds a URI, or a template of URIs.
// Identifiers such as $Number%05d$ stay in templates as they are. What a
// $RepresentationID$ puts there is not looked at: a player that it leads out of
// the folder just leaves it, and takes nothing along.
func holdsURI(element, name []byte) bool {
	switch string(name) {
	case "sourceURL":
		return true
	case "media", "index":
		return string(element) == "SegmentTemplate" || string(element) == "SegmentURL"
	case "initialization":
		return string(element) == "SegmentTemplate" || string(element) == "InitializationSet"
	case "bitstreamSwitching":
		return string(element) == "SegmentTemplate"
	}
	return false
}

// rewriteList rewrites URIs with white space between them.
func (d *mpd) rewriteList(list span, at []*place) error {
	src := d.src
	for from := list.from; from < list.to; {
		to := from
		for to < list.to && !xmlSpace(src[to]) {
			to++
		}
		if to > from {
			if err := d.rewrite(span{from, to}, attributeValue, at); err != nil {
				return err
			}
		}
		from = to + 1
	}
	return nil
}

// text takes in character data.
func (d *mpd) text(t xmlToken) error {
	from, to := t.from, t.to
	for from < to && xmlSpace(d.src[from]) {
		from++
	}
	for from < to && xmlSpace(d.src[to-1]) {
		to--
	}
	if len(d.open) == 0 {
		if from < to || t.kind == tokenVerbatim {
			return d.invalid("text outside of the root element")
		}
		return nil
	}
	e := &d.open[len(d.open)-1]
	if e.content == markup || from == to {
		return nil
	}
	if e.filled {
		return d.invalid("a URI in pieces")
	}
	e.filled, e.verbatim, e.text = true, t.kind == tokenVerbatim, span{from, to}
	return nil
}

// end closes the innermost element.
func (d *mpd) end(name []byte) error {
	if len(d.open) == 0 || !bytes.Equal(d.open[len(d.open)-1].name, name) {
		return d.invalid("an end tag without its start tag")
	}
	e := d.open[len(d.open)-1]
	d.open = d.open[:len(d.open)-1]
	d.prefixes = d.prefixes[:e.prefixes]
	kind := textValue
	if e.verbatim {
		kind = verbatimValue
	}
	switch {
	case e.content == baseURL && len(d.open) > 0:
		parent := &d.open[len(d.open)-1]
		if d.collecting {
			d.bases.add(parent.start, e.text, e.verbatim)
			return nil
		}
		parent.base++
		if !e.filled {
			return nil
		}
		return d.rewriteBase(parent.base-1, parent.outer)
	case d.collecting || !e.filled:
		return nil
	case e.content == uri:
		return d.rewrite(e.text, kind, e.outer)
	case e.content == nextFetch:
		// Not subject to BaseURL: players resolve it against the URL that
		// the manifest came from.
		return d.rewrite(e.text, kind, d.here)
	}
	return nil
}

// rewrite rewrites a URI, for all the places where it may be resolved.
func (d *mpd) rewrite(in span, kind valueKind, at []*place) error {
	in, ref, suffix := d.decode(in, kind)
	if beginsBlank(ref) {
		return d.invalid(whyBlank)
	}
	fates, replaced := 0, false
	for i, p := range at {
		f := d.follow(p, ref)
		switch f {
		case stranded:
			if !d.bases.adopt(p) {
				return d.invalid("a URI in the folder below a BaseURL that leads elsewhere")
			}
			continue
		case diverted:
			return d.invalid("URIs within and outside the folder below the same BaseURL")
		case elsewhere, outside, kept, written:
		}
		if i > 0 && !d.bases.adopting && (replaced != (f == written) || replaced && !bytes.Equal(d.out, d.other)) {
			return d.invalid("alternative BaseURLs that a URI cannot be rewritten for alike")
		}
		if replaced = f == written; replaced && len(at) > 1 {
			d.other = append(d.other[:0], d.out...)
		}
		fates |= 1 << f
	}
	switch {
	case replaced:
		d.stats.Rewritten++
		return d.write(in, kind, suffix)
	case fates&(1<<outside) != 0:
		d.stats.Outside++
	default:
		d.stats.Left++
	}
	return nil
}

// decode takes a value apart into the reference, and the query and the fragment
// as they stand. The white space around it stays.
func (d *mpd) decode(in span, kind valueKind) (trimmed span, ref, suffix []byte) {
	src := d.src
	for in.from < in.to && xmlSpace(src[in.from]) {
		in.from++
	}
	for in.from < in.to && xmlSpace(src[in.to-1]) {
		in.to--
	}
	value := src[in.from:in.to]
	if ref, suffix = cutSuffix(value); plain(ref) && bytes.IndexByte(ref, '&') < 0 {
		return in, ref, suffix
	}
	d.decoded, suffix = decodeReference(d.decoded[:0], value, kind)
	return in, trimReference(d.decoded, len(suffix) > 0), suffix
}

// write replaces a URI by what the mapper made of it.
func (d *mpd) write(in span, kind valueKind, suffix []byte) error {
	if kind != verbatimValue {
		d.other = appendEscaped(d.other[:0], d.out)
		return d.replace(in.from, in.to, d.other, suffix)
	}
	d.other = append(append(d.other[:0], d.out...), suffix...)
	if bytes.Contains(d.other, []byte("]]>")) {
		return d.invalid("a URI that would end its CDATA section")
	}
	return d.replace(in.from, in.to, d.other)
}
