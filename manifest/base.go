package manifest

import (
	"bytes"
	"cmp"
	"regexp"
	"slices"
	"strings"
)

const (
	// maxAlternatives limits the base URIs of an element. The alternatives of an
	// element multiply with those of the elements around it.
	maxAlternatives = 16

	// maxBase limits the path of a base URI, because each reference below it is
	// resolved from there.
	maxBase = 2 << 10
)

// baseURLs are all BaseURLs of a manifest, in the order of their elements.
//
// A BaseURL changes the base URI of everything below its element. If it leads into
// the folder or to another host, it does so alike on the origin and for the viewer.
// But one like
//
//	<BaseURL>https://origin.example/</BaseURL>
//
// leads to the origin outside the folder, and references below it may lead back
// into the folder. On the viewer's side no relative reference leads back from
// there. Such a BaseURL is adopted: it is rewritten so that it leads to the folder
// of the manifest, and the references below it are rewritten so that they lead
// from there to the same files as before. That is correct only if all of them lead
// into the folder. A manifest with other references below it is refused. Alternatives
// that need different spellings of a reference are adopted too.
type baseURLs struct {
	list []baseURL
	next int // the first one whose element has not begun yet

	ofLevels bool // some belong to a Period, an AdaptationSet or a Representation

	adopting bool // this pass has adopted some, so another pass is needed
	settled  bool // no more BaseURLs are adopted
}

// baseURL is a BaseURL. It is small, because a hostile manifest can have a million.
type baseURL struct {
	owner    int32 // offset after the start tag of the element that contains it
	from, to int32 // of the text; both are 0 if there is none
	kind     valueKind
	adopted  bool
}

func (b baseURL) text() span { return span{int(b.from), int(b.to)} }

// add records a BaseURL of an element. Offsets are below MaxSize.
func (b *baseURLs) add(owner, e *element) {
	b.list = append(b.list, baseURL{owner: int32(owner.end), from: int32(e.text.from), to: int32(e.text.to), kind: e.value})
	b.ofLevels = b.ofLevels || owner.kind&level != 0
}

// skip skips the BaseURLs of the element whose start tag ends at owner.
func (b *baseURLs) skip(owner int) {
	for b.next < len(b.list) && int(b.list[b.next].owner) == owner {
		b.next++
	}
}

// sort puts the BaseURLs in the order in which their elements begin.
func (b *baseURLs) sort() {
	slices.SortStableFunc(b.list, func(x, y baseURL) int { return cmp.Compare(x.owner, y.owner) })
}

// adopt marks the BaseURLs that led to a base URI. It reports whether that helps.
func (b *baseURLs) adopt(base *baseURI) bool {
	if b.settled || base.parent == nil {
		return false
	}
	for adopted := false; !adopted || base.view == "" && base.parent != nil; base = base.parent {
		if base.foreign {
			return false
		}
		b.list[base.entry].adopted, adopted = true, true
	}
	b.adopting = true
	return true
}

// settle ends a pass that has marked BaseURLs. reset forgets the marks.
func (b *baseURLs) settle(reset bool) {
	for i := range b.list {
		b.list[i].adopted = b.list[i].adopted && !reset
	}
	b.adopting, b.settled = false, !reset
}

// enter returns the index of the first BaseURL of the element whose start tag
// ends at owner, and the base URIs that its BaseURLs lead to from those outside.
func (d *mpd) enter(owner int, outer []*baseURI) (index int, inner []*baseURI, err error) {
	index = d.bases.next
	for ; d.bases.next < len(d.bases.list); d.bases.next++ {
		b := d.bases.list[d.bases.next]
		if int(b.owner) != owner {
			break
		}
		_, ref, _ := d.decode(b.text(), b.kind)
		for _, parent := range outer {
			base := parent
			if b.to > 0 {
				base = d.followBase(parent, ref)
				base.entry, base.parent = d.bases.next, parent
			}
			if len(base.path) > maxBase {
				return 0, nil, d.invalid("a BaseURL is too long")
			}
			if !base.foreign && b.adopted { // for all alternatives alike
				if !strings.HasSuffix(base.path, "/") {
					// It may be the media of a Representation.
					return 0, nil, d.invalid("URIs lead into the folder from a BaseURL that is a file outside of it")
				}
				base.view = d.ownFolder()
			}
			if !slices.ContainsFunc(inner, func(other *baseURI) bool { return alike(base, other) }) {
				inner = append(inner, base)
			}
			if len(inner) > maxAlternatives {
				return 0, nil, d.invalid("more than %d alternative BaseURLs", maxAlternatives)
			}
		}
	}
	if inner == nil && d.at.Session != "" && owner == d.open[0].end {
		inner = []*baseURI{{path: d.ownFolder(), view: d.ownFolder(), inserted: true}} // by leadBelow
	}
	if inner == nil {
		inner = outer
	}
	return index, inner, nil
}

// ownFolder returns the folder that contains the manifest. Adopted BaseURLs lead
// there.
func (d *mpd) ownFolder() string {
	return d.at.Path[:strings.LastIndexByte(d.at.Path, '/')+1]
}

// alike reports whether all references have the same outcome at two base URIs.
func alike(p, q *baseURI) bool {
	return p.foreign == q.foreign && p.path == q.path && p.view == q.view && p.above == q.above && (p.foreign || p.view != "" || p.entry == q.entry)
}

// rewriteBase rewrites a BaseURL.
func (d *mpd) rewriteBase(index int, bases []*baseURI) error {
	b := d.bases.list[index]
	switch {
	case !b.adopted:
		return d.rewrite(b.text(), b.kind, bases)
	case d.bases.adopting:
		return nil // another pass follows
	}
	in, _, suffix := d.decode(b.text(), b.kind)
	for i, base := range bases {
		if base.view == "" {
			return d.invalid("a BaseURL that leads into the folder is below one that leads to another host or out of the folder")
		}
		d.writeRelative(base, []byte(d.ownFolder()[len(d.folder):]))
		if i > 0 && !bytes.Equal(d.out, d.other) && !d.relocate() {
			return d.invalid(whyAlternatives)
		}
		d.other = append(d.other[:0], d.out...)
	}
	text, err := d.encode(b.kind, suffix)
	if err != nil {
		return err
	}
	return d.put(in, text, rewritten)
}

const whyAlternatives = "a URI would need different rewritings for alternative BaseURLs"

// An attribute or an element that this package does not know may contain a relative URI,
// which would lead elsewhere from an adopted BaseURL.
const whyUnknown = "what may be a relative URI is in an unknown place below a BaseURL that has to change"

// areAdopted reports whether relative URIs that this package does not rewrite lead
// elsewhere from one of these base URIs.
func areAdopted(bases []*baseURI) bool {
	return slices.ContainsFunc(bases, func(base *baseURI) bool { return base.view != "" && base.view != base.path })
}

func (d *mpd) checkUnknownAttribute(e *element, a xmlAttribute) error {
	if e.kind&timing != 0 || !areAdopted(e.outer) && !areAdopted(e.inner) || bytes.HasPrefix(a.name, []byte("xmlns")) ||
		slices.Contains(plainAttributes, string(local(a.name))) || !d.mayBeRelative(a.value, attributeValue) {
		return nil
	}
	return d.invalid(whyUnknown)
}

func (d *mpd) checkUnknownText(e *element, text span) error {
	if d.stage == writing && e.kind == 0 && !e.opaque && !e.removed && areAdopted(e.inner) && d.mayBeRelative(text, textValue) {
		return d.invalid(whyUnknown)
	}
	return nil
}

// mayBeRelative reports whether a value looks like a path or the name of a file.
func (d *mpd) mayBeRelative(in span, kind valueKind) bool {
	_, ref, suffix := d.decode(in, kind)
	if _, _, hasScheme := cutScheme(ref); hasScheme {
		return false
	}
	return len(suffix) > 0 || bytes.IndexByte(ref, '/') >= 0 || fileName.Match(ref)
}

// fileName matches a name with an ending, but no number, date or duration.
var fileName = regexp.MustCompile(`(^|[^0-9])\.[0-9A-Za-z]|\.[A-Za-z]`)

// plainAttributes are the attributes of the MPD schema and of extensions whose values are
// no URIs, although they may look like one.
var plainAttributes = strings.Fields(`audioSamplingRate availabilityTimeOffset byteRange codecs supplementalCodecs supplementalProfiles containerProfiles
	default_KID fontFamily frameRate id indexRange label lang maxFrameRate mediaPresentationDuration mediaRange messageData
	mimeType minBufferTime minFrameRate par profiles range ref refId robustness sar schemaLocation schemeIdUri segmentProfiles
	selectionInfo serviceLocation source_description tag type queryTemplate queryString defaultServiceLocation`)
