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

	// locations are Locations in other folders. dash.js resolves URIs against the address
	// of the MPD, Shaka against the Locations. If that needs different spellings, these
	// Locations are taken out.
	locations  []*baseURI
	relocating bool // this pass has found that it does, so another pass is needed
	relocated  bool // they are taken out

	below        bool // of a session: what leads there has been written into this MPD
	hasLocation  bool // one that stays, in the directory of the MPD
	hasLocations bool // one that stays unless Locations are taken out

	allowed Features
	open    []element
	root    elementKind // zero until the root element has begun
	stats   Stats
	stage   stage

	levels    []levelInfo // from 1 on; none if no URI is inherited to another base URI
	level     int         // index of the last level that has begun
	inherits  bool        // a level within inherits segment information
	splitting bool        // units were split
	moved     bool        // they were copied to the levels that use them

	inherited, levelBases, movedBytes int // amounts of work and memory

	decoded, other, written, shared []byte // reused memory
}

// stage is what a pass does.
type stage uint8

const (
	collecting stage = iota // finds BaseURLs and levels, which apply to what is before and after them
	resolving               // finds the base URIs of levels
	moving                  // copies what levels need in different spellings
	writing
)

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

	level int   // index of a level
	owner int   // index of the level whose segment information it is, or belongs to
	unit  units // of a child of an element with segment information

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
	d := &mpd{mapper: m, src: src, document: []*baseURI{m.document()}, allowed: allowed, levels: make([]levelInfo, 1)}
	dst = slices.Grow(dst, len(src)) // once for all passes
	if !bytes.Contains(src, []byte("BaseURL")) && !bytes.Contains(src, []byte("Location")) {
		d.stage, d.levels = writing, nil
	}
	for {
		if err := d.pass(dst, src); err != nil {
			return nil, Stats{}, err
		}
		if d.stage == writing && !d.bases.adopting && !d.relocating && (!d.splitting || d.moved) {
			return d.finish(), d.stats, nil
		}
		d.nextStage()
	}
}

// nextStage chooses what the next pass does.
func (d *mpd) nextStage() {
	switch {
	case d.stage == collecting:
		d.bases.sort()
		if !d.inherits || !d.bases.ofLevels {
			d.levels = nil
		}
		d.stage = resolving
	case d.bases.adopting, d.relocating:
		// This pass has found the BaseURLs to adopt, or Locations to take out.
		d.bases.settle(d.relocating)
		d.relocating, d.splitting = false, false
		for i := range d.levels {
			d.levels[i].split = 0
		}
		d.stage = resolving
	case d.splitting && !d.moved:
		d.stage, d.moved = moving, true
	default:
		d.stage = writing
	}
	if d.stage == resolving && d.levels == nil {
		d.stage = writing
	}
}

// pass reads the document once.
func (d *mpd) pass(dst, src []byte) (err error) {
	if d.scanner, err = newScanner(src); err != nil {
		return err
	}
	d.editor = newEditor(dst, src, d.at)
	d.stats, d.root = Stats{}, 0
	d.open, d.bases.next = d.open[:0], 0
	d.level, d.inherited, d.levelBases, d.below = 0, 0, 0, false
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
				err = d.end(t)
			}
		case tokenClose:
			err = d.end(t)
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
		d.root, e.outer = kind, append(slices.Clip(d.document), d.locations...)
	}
	if err := d.checkAttributes(); err != nil {
		return err
	}
	if err := d.leadBelow(e, depth); err != nil {
		return err
	}
	e.inner = e.outer
	if e.removed || e.opaque && kind&event == 0 {
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
	return d.process(e)
}

// process does with a start tag what this pass is for.
func (d *mpd) process(e *element) error {
	parent := &element{}
	if depth := len(d.open) - 1; depth > 0 {
		parent = &d.open[depth-1]
	}
	if err := d.placeInLevels(e, parent); err != nil || d.stage == collecting {
		return err
	}
	if err := d.enterLevel(e); err != nil || d.stage == resolving {
		return err
	}
	if d.stage == moving {
		return d.move(e)
	}
	if e.owner != 0 && e.kind&information != 0 {
		return d.writeInformation(e)
	}
	return d.rewriteAttributes(e)
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
func (d *mpd) rewriteAttributes(e *element) error {
	for _, a := range d.attributes {
		var err error
		switch {
		case isXLink(a.name) && d.leadsAbroad(a.value, attributeValue, e.outer):
			d.stats.Removed++
			err = d.replace(a.from, a.value.to+len(`"`))
		case isXLink(a.name):
			err = d.rewrite(a.value, attributeValue, e.outer)
		case string(a.name) == "value" && e.kind&(timing|descriptor) != 0 && hasURIs(d.value("schemeIdUri")):
			err = d.rewriteList(a.value, e.outer)
		case string(a.name) == "initializationPrincipal":
			err = d.rewrite(a.value, attributeValue, e.inner)
		case !isURI(e.kind, a.name):
			err = d.checkUnknownAttribute(e, a)
		case e.unitOf(a.name) != 0:
			err = d.rewriteInherited(a.value, e.owner, e.unitOf(a.name))
		default:
			err = d.rewrite(a.value, attributeValue, e.outer)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// hasURIs reports whether the value of a descriptor of this scheme consists of URIs: of
// servers that tell the time (ISO/IEC 23009-1 section 5.8.4.11), or of the MPDs that
// players play next (5.11.2) or instead of this one (5.11.3).
func hasURIs(scheme string) bool {
	switch scheme {
	case "urn:mpeg:dash:chaining:2016", "urn:mpeg:dash:mpd-chaining:2016", "urn:mpeg:dash:fallback:2016":
		return true
	}
	return strings.HasPrefix(scheme, "urn:mpeg:dash:utc:http-")
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
	case "sourceURL", "moreInformationURL", "contactURL", "proxyServerURL", "keyUriTemplate", "ivUriTemplate", "authUrlTemplate":
		return true
	case "media", "index":
		return kind&(template|segment) != 0
	case "initialization":
		return kind&(template|initialization) != 0
	case "bitstreamSwitching":
		return kind&template != 0
	case "uri", "url":
		return kind&event != 0
	}
	// ETSI TS 103 285 sections 7.2.1 and 10.12.3
	name, isPrefixed := local(name), len(local(name)) < len(name)
	return isPrefixed && (string(name) == "url" && kind&descriptor != 0 || string(name) == "reportingUrl" && kind&reporting != 0)
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
	switch {
	case text.from == text.to:
		return nil
	case e.content == markup:
		return d.checkUnknownText(e, text)
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
func (d *mpd) end(t xmlToken) error {
	depth := len(d.open) - 1
	if depth < 0 || !bytes.Equal(d.open[depth].name, t.name) {
		return d.invalid("an end tag without its start tag")
	}
	e, parent := &d.open[depth], &d.open[max(depth-1, 0)]
	d.open = d.open[:depth]
	switch {
	case e.removed && !parent.removed:
		return d.remove(e)
	case d.stage == collecting && e.level > 0:
		d.leaveLevel(e)
	case d.stage == collecting && e.content == baseText:
		d.bases.add(parent, e)
	case d.stage == collecting && e.content == documentURI:
		d.addLocation(e)
	case d.stage != writing:
	case e.level > 0:
		return d.writeMovedElements(e, t.from)
	case e.content == baseText:
		if parent.base++; e.text.to > 0 {
			return d.rewriteBase(parent.base-1, parent.outer)
		}
	case e.text.to == 0:
	case e.content == xlinkURI && d.leadsAbroad(e.text, e.value, e.outer):
		return d.remove(e)
	case e.content == elementURI, e.content == xlinkURI:
		return d.rewrite(e.text, e.value, e.outer)
	case e.content == documentURI:
		// BaseURLs do not apply: players resolve it against the URL of the
		// manifest.
		if d.allowed&Steering == 0 && !d.leadsToMPD(e) || d.relocated && d.leadsToOtherFolder(e) != nil {
			return d.remove(e)
		}
		return d.rewrite(e.text, e.value, d.document)
	}
	return nil
}

// relocate takes out Locations in other folders, if there are any. Another pass follows.
func (d *mpd) relocate() bool {
	if d.locations != nil {
		d.locations, d.relocating, d.relocated = nil, true, true
	}
	return d.relocating
}

// addLocation records a Location that Shaka uses as a base URI.
func (d *mpd) addLocation(e *element) {
	if string(local(e.name)) != "Location" || e.text.to == 0 || d.allowed&Steering == 0 && !d.leadsToMPD(e) {
		return
	}
	base := d.leadsToOtherFolder(e)
	d.hasLocation, d.hasLocations = d.hasLocation || base == nil, true
	if base != nil && len(d.locations) < maxAlternatives {
		d.locations = append(d.locations, base)
	}
}

// leadsToOtherFolder returns the base URI of a Location that leads into the video's folder,
// but to another directory than that of the MPD. Otherwise it returns nil.
func (d *mpd) leadsToOtherFolder(e *element) *baseURI {
	if string(local(e.name)) != "Location" || e.text.to == 0 {
		return nil
	}
	_, ref, _ := d.decode(e.text, e.value)
	base := d.followBase(d.document[0], ref)
	base.above = d.document[0].above // so that one spelling suits both, where the same session is twice in a path
	if base.foreign || base.view == "" || base.path[:strings.LastIndexByte(base.path, '/')+1] == d.ownFolder() {
		return nil
	}
	return base
}

// isMPD reports whether the root element of a document is that of an MPD.
func isMPD(src []byte) bool {
	s, err := newScanner(src)
	for err == nil {
		var t xmlToken
		if t, err = s.next(); t.kind == tokenStart {
			return string(local(t.name)) == "MPD"
		} else if t.kind == tokenEnd {
			return false
		}
	}
	return false
}

// leadBelow writes into an MPD what leads players below the session, in front of the first
// child of the root that may come after it: a BaseURL, if the MPD has none of its own to be
// rewritten, and a Location.
func (d *mpd) leadBelow(e *element, depth int) error {
	name := string(local(e.name))
	if d.at.Session == "" || d.stage != writing || d.below || depth != 1 || name == "ProgramInformation" || name == "BaseURL" {
		return nil
	}
	d.below = true
	root := d.open[0].name
	prefix := root[:len(root)-len("MPD")]
	write := func(name, path string) error {
		d.writeRelative(d.document[0], []byte(path[len(d.folder):]))
		text, err := d.encode(textValue, nil)
		if err != nil {
			return err
		}
		return d.replace(e.start, e.start, []byte("<"), prefix, []byte(name), []byte(">"), text, []byte("</"), prefix, []byte(name), []byte(">\n"))
	}
	if len(e.outer) == 1 && e.outer[0].inserted {
		if err := write("BaseURL", d.ownFolder()); err != nil {
			return err
		}
	}
	if d.hasLocation || d.hasLocations && !d.relocated {
		return nil
	}
	return write("Location", d.at.Path)
}

// rewrite rewrites a URI, for all base URIs against which it may be resolved.
func (d *mpd) rewrite(in span, kind valueKind, bases []*baseURI) error {
	in = d.trimSpace(in)
	text, result, err := d.spell(in, kind, bases)
	if err != nil {
		return err
	}
	if result == unchanged || result == rewritten {
		d.countRefused(&d.stats)
	}
	return d.put(in, text, result)
}

// put replaces and counts a URI.
func (d *mpd) put(in span, text []byte, result outcome) error {
	switch result {
	case rewritten:
		d.stats.Rewritten++
		return d.replace(in.from, in.to, text)
	case outside:
		d.stats.Outside++
	default:
		d.stats.Left++
	}
	return nil
}

// spell returns the spelling of a URI that all these base URIs need, and for the URI
// itself what it is: rewritten, outside, or left as it is.
func (d *mpd) spell(in span, kind valueKind, bases []*baseURI) (text []byte, result outcome, err error) {
	in, ref, suffix := d.decode(in, kind)
	if beginsBlank(ref) {
		return nil, 0, d.invalid(whyBlank)
	}
	all := unchanged
	fromFolder := d.fromFolder
	d.fromFolder = fromFolder || len(bases) > 1
	defer func() { d.fromFolder = fromFolder }()
	for i, base := range bases {
		result := d.follow(base, ref)
		switch result {
		case unreachable:
			if !d.bases.adopt(base) {
				return nil, 0, d.invalid("a URI that leads into the folder is below a BaseURL that leads out of it")
			}
			continue
		case misleading:
			return nil, 0, d.invalid("some URIs below the same BaseURL lead into the folder, others out of it")
		case foreignURI, outside, unchanged, rewritten:
		}
		same := (all == rewritten) == (result == rewritten) && (result != rewritten || bytes.Equal(d.out, d.other))
		switch {
		case i == 0 || same || d.bases.adopting || d.relocate():
		case slices.ContainsFunc(bases, func(base *baseURI) bool { return !d.bases.adopt(base) }):
			return nil, 0, d.invalid(whyAlternatives)
		}
		if result == rewritten && len(bases) > 1 {
			d.other = append(d.other[:0], d.out...)
		}
		if i == 0 || result == rewritten || result == outside {
			all = result
		}
	}
	if all != rewritten {
		return d.src[in.from:in.to], all, nil
	}
	text, err = d.encode(kind, suffix)
	return text, all, err
}

// decode decodes the reference of a URI, without the white space around it. suffix
// is the undecoded query and fragment.
func (d *mpd) decode(in span, kind valueKind) (trimmed span, ref, suffix []byte) {
	in = d.trimSpace(in)
	d.decoded, suffix = decodeReference(d.decoded[:0], d.src[in.from:in.to], kind)
	return in, trimReference(d.decoded, len(suffix) > 0), suffix
}

// encode returns the output of the mapper as it is written into the document.
func (d *mpd) encode(kind valueKind, suffix []byte) ([]byte, error) {
	if kind != verbatimValue {
		d.written = append(appendEscaped(d.written[:0], d.out), suffix...)
		return d.written, nil
	}
	d.written = append(append(d.written[:0], d.out...), suffix...)
	if bytes.Contains(d.written, []byte("]]>")) {
		return nil, d.invalid("a rewritten URI would end its CDATA section")
	}
	return d.written, nil
}
