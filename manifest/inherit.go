package manifest

import (
	"bytes"
	"iter"
	"slices"
)

// A Representation inherits the segment information of its AdaptationSet and its Period,
// attribute by attribute and, of the children of an element, name by name (ISO/IEC 23009-1
// section 5.3.9.1). It resolves URIs that it inherits against its own base URI (section
// 5.6.4). So this package rewrites such a URI for the Representations that use it. If they
// need different spellings, each of them gets its own:
//
//	<AdaptationSet>                                      becomes
//	  <SegmentTemplate media="/folder/$Number$.m4s"/>    … media="../../$Number$.m4s" …
//	  <Representation><BaseURL>a/</BaseURL>              … <SegmentTemplate media="../../$Number$.m4s"/>
//	  <Representation><BaseURL>a/b/</BaseURL>            … <SegmentTemplate media="../../../$Number$.m4s"/>

const (
	maxLevels = 1 << 16

	// maxInherited limits how often URIs are resolved for Representations that inherit
	// them: many URIs for many Representations would take quadratic time.
	maxInherited = 1 << 20

	// maxLevelBases limits the memory for the base URIs of all levels, in bytes.
	maxLevelBases = MaxSize / 2
)

// levelInfo has the BaseURLs and the units of a Period, an AdaptationSet or a Representation.
type levelInfo struct {
	next  int32 // index of the first level after those within
	base  int32 // index of its first BaseURL
	has   units // of its own segment information
	split units // those that the levels within need in different spellings
	inner []*baseURI
	moved []movedUnits // from the levels around
}

// movedUnits are attributes and children for an element with segment information.
type movedUnits struct {
	name                 []byte // of the element
	attributes, children []byte
	written              bool
}

// units are the parts of segment information that a level inherits or has itself.
type units uint32

// keyUnit is the key of segments (ISO/IEC 23009-4), whose URI is resolved as the segments' own.
const keyUnit units = 1 << 31

// unit returns the unit of an attribute or a child of an element with segment
// information. It is 0 for those without a URI.
func unit(element, name []byte) units {
	names := [...]string{"media", "index", "initialization", "bitstreamSwitching", "Initialization", "RepresentationIndex", "BitstreamSwitching", "SegmentURL"}
	i := slices.Index(names[:], string(name))
	switch {
	case i < 0:
		return 0
	case string(local(element)) == "SegmentList":
		i += len(names)
	case string(local(element)) == "SegmentTemplate":
		i += 2 * len(names)
	}
	return 1 << i
}

// placeInLevels finds out to which level the last element belongs.
func (d *mpd) placeInLevels(e, parent *element) error {
	switch {
	case e.kind&level != 0:
		if d.stage == collecting {
			d.levels = append(d.levels, levelInfo{})
		}
		if d.level++; d.level < len(d.levels) {
			e.level = d.level
		}
		if len(d.levels) > maxLevels {
			return d.invalid("more than %d Periods, AdaptationSets and Representations", maxLevels)
		}
	case e.kind&information != 0:
		e.owner = parent.level
	case parent.owner != 0 && parent.kind&information != 0:
		e.owner, e.unit = parent.owner, unit(parent.name, local(e.name))
	case e.kind&(opaque|remote) == opaque: // ContentProtection
		e.owner = parent.level
	case parent.owner != 0 && parent.kind&(opaque|remote) == opaque:
		e.owner, e.unit = parent.owner, keyUnit
	}
	if d.stage == collecting && e.owner != 0 {
		d.levels[e.owner].has |= e.unit
		for _, a := range d.attributes {
			d.levels[e.owner].has |= e.unitOf(a.name)
		}
	}
	return nil
}

// unitOf returns the unit to which an attribute of an element belongs.
func (e *element) unitOf(attribute []byte) units {
	if e.owner != 0 && e.kind&template != 0 {
		return unit(e.name, attribute)
	}
	return e.unit
}

// leaveLevel is called at the end of each level in the first pass.
func (d *mpd) leaveLevel(e *element) {
	d.levels[e.level].next = int32(len(d.levels))
	d.inherits = d.inherits || e.kind&representation == 0 && d.levels[e.level].has != 0
}

// enterLevel finds the base URIs of an element. Those of levels are found once.
func (d *mpd) enterLevel(e *element) (err error) {
	l := &levelInfo{}
	if e.level > 0 {
		l = &d.levels[e.level]
	}
	if e.level > 0 && d.stage != resolving {
		e.base, e.inner = int(l.base), l.inner
		d.bases.skip(e.end)
		return nil
	}
	if e.base, e.inner, err = d.enter(e.end, e.outer); err != nil || e.level == 0 {
		return err
	}
	l.base, l.inner = int32(e.base), e.inner
	if d.bases.next > e.base {
		for _, base := range e.inner {
			d.levelBases += len(base.path)
		}
	}
	if d.levelBases > maxLevelBases {
		return d.invalid("BaseURLs of more than %d bytes", maxLevelBases)
	}
	return nil
}

// users returns the innermost levels within a level that use a unit of it.
func (d *mpd) users(owner int, u units) iter.Seq[*levelInfo] {
	return func(yield func(*levelInfo) bool) {
		for i := owner; i < int(d.levels[owner].next); {
			l := &d.levels[i]
			d.inherited++
			switch {
			case i > owner && l.has&u != 0:
				i = int(l.next)
				continue
			case int(l.next) == i+1 && !yield(l):
				return
			}
			i++
		}
	}
}

// rewriteInherited rewrites a URI of segment information. It is spelled for the first
// level that uses it. If others need another spelling, the unit is split.
func (d *mpd) rewriteInherited(in span, owner int, u units) error {
	in = d.trimSpace(in)
	d.fromFolder = int(d.levels[owner].next) > owner+1
	defer func() { d.fromFolder = false }()
	first, result := true, unchanged
	var last []*baseURI
	for l := range d.users(owner, u) {
		if !first && &last[0] == &l.inner[0] {
			continue
		}
		text, outcome, err := d.spell(in, attributeValue, l.inner)
		switch {
		case err != nil:
			return err
		case first:
			d.shared, result = append(d.shared[:0], text...), outcome
		case bytes.Equal(text, d.shared):
		case u == keyUnit:
			return d.invalid("Representations need different spellings of the URI of a key")
		default:
			d.levels[owner].split |= u
			d.splitting, result = true, rewritten
		}
		first, last = false, l.inner
	}
	if d.inherited > maxInherited {
		return d.invalid("too many URIs for too many Representations that inherit them")
	}
	return d.put(in, d.shared, result)
}

// move copies units that are split to the levels that use them.
func (d *mpd) move(e *element) error {
	split := d.levels[e.owner].split
	if split&e.unit != 0 {
		return d.moveChild(e)
	}
	for _, a := range d.attributes {
		if split != 0 && e.kind&information != 0 && bytes.HasPrefix(a.name, []byte("xmlns")) {
			return d.invalid("an element that Representations need in different spellings declares a namespace")
		}
		u := e.unitOf(a.name)
		if split&u == 0 {
			continue
		}
		for l := range d.users(e.owner, u) {
			text, _, err := d.spell(a.value, attributeValue, l.inner)
			if err != nil {
				return err
			}
			m := l.movedTo(e.name)
			m.attributes = d.appendMoved(m.attributes, []byte(" "), d.src[a.from:a.value.from], text, d.src[a.value.to:a.value.to+1])
		}
	}
	return d.checkMoved()
}

// moveChild copies a child of an element with segment information.
func (d *mpd) moveChild(e *element) error {
	for l := range d.users(e.owner, e.unit) {
		m := l.movedTo(d.open[len(d.open)-2].name)
		from := e.start
		for _, a := range d.attributes {
			if !isURI(e.kind, a.name) {
				continue
			}
			text, _, err := d.spell(a.value, attributeValue, l.inner)
			if err != nil {
				return err
			}
			m.children = d.appendMoved(m.children, d.src[from:a.value.from], text)
			from = a.value.to
		}
		m.children = d.appendMoved(m.children, d.src[from:e.end])
		if !d.isEmpty(e) {
			m.children = d.appendMoved(m.children, []byte("</"), e.name, []byte(">"))
		}
		if err := d.checkMoved(); err != nil {
			return err
		}
	}
	return nil
}

func (d *mpd) appendMoved(dst []byte, parts ...[]byte) []byte {
	for _, part := range parts {
		dst = append(dst, part...)
		d.movedBytes += len(part)
	}
	return dst
}

func (d *mpd) checkMoved() error {
	if d.movedBytes > len(d.src)+growthSlack {
		return d.invalid("more than twice the size when each Representation has its own URIs")
	}
	return nil
}

// movedTo returns what moves to the element of this name.
func (l *levelInfo) movedTo(name []byte) *movedUnits {
	i := slices.IndexFunc(l.moved, func(m movedUnits) bool { return bytes.Equal(local(m.name), local(name)) })
	if i < 0 {
		i = len(l.moved)
		l.moved = append(l.moved, movedUnits{name: name})
	}
	return &l.moved[i]
}

// isEmpty reports whether an element is an empty-element tag.
func (d *mpd) isEmpty(e *element) bool { return d.src[e.end-2] == '/' }

// writeInformation rewrites the start tag of an element with segment information, and
// adds what has moved there.
func (d *mpd) writeInformation(e *element) error {
	var moved movedUnits
	for i, m := range d.levels[e.owner].moved {
		if bytes.Equal(local(m.name), local(e.name)) {
			d.levels[e.owner].moved[i].written = true
			moved = m
		}
	}
	afterName := e.start + len("<") + len(e.name)
	if err := d.replace(afterName, afterName, moved.attributes); err != nil {
		return err
	}
	if err := d.rewriteAttributes(e); err != nil || moved.children == nil {
		return err
	}
	return d.fill(e, e.end, moved.children)
}

// writeMovedElements writes the elements that a level did not have before its end tag.
func (d *mpd) writeMovedElements(e *element, endTag int) error {
	var text []byte
	for _, m := range d.levels[e.level].moved {
		if !m.written {
			text = slices.Concat(text, []byte("<"), m.name, m.attributes, []byte(">"), m.children, []byte("</"), m.name, []byte(">"))
		}
	}
	if text == nil {
		return nil
	}
	return d.fill(e, endTag, text)
}

// fill writes text into an element. An empty-element tag becomes a start tag and an end tag.
func (d *mpd) fill(e *element, at int, text []byte) error {
	if d.isEmpty(e) {
		return d.replace(e.end-len("/>"), e.end, []byte(">"), text, []byte("</"), e.name, []byte(">"))
	}
	return d.replace(at, at, text)
}
