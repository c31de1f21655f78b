package manifest

import (
	"bytes"
	"cmp"
	"slices"
	"strings"
)

const (
	// maxAlternatives bounds the places that BaseURLs offer: those of an
	// element multiply with those of the elements around it.
	maxAlternatives = 16

	// maxBase bounds the path that a BaseURL leads to, for each reference
	// below it is resolved by walking there.
	maxBase = 2 << 10
)

// baseURLs are all BaseURLs of a manifest, by the elements that they apply to.
//
// A BaseURL moves the place of everything below its element, on the origin and
// for the viewer alike if it leads into the folder. One that leads to another
// host moves both there. But one that leads to the origin outside the folder,
// like
//
//	<BaseURL>https://origin.example/</BaseURL>
//
// and by the references below it back into the folder, leaves the viewer with a
// place that no relative reference leads back from. Such a BaseURL is adopted:
// rewritten to lead to the manifest's own folder, and what is below it is
// rewritten to lead from there to where it led. That is right only if all of it
// leads back into the folder; a manifest with other references below it is
// refused.
type baseURLs struct {
	list []base
	next int // the first whose element has not begun yet

	adopting bool // some were adopted in this pass, so that another is needed
	settled  bool // no more are adopted
}

// base is a BaseURL. It is kept small, for a hostile manifest has many.
type base struct {
	owner    int32 // where the element begins
	from, to int32 // of the text; both are 0 if it is empty
	verbatim bool
	adopted  bool
}

func (b base) text() span { return span{int(b.from), int(b.to)} }

func (b base) kind() valueKind {
	if b.verbatim {
		return verbatimValue
	}
	return textValue
}

// add takes note of a BaseURL. Offsets are below MaxSize.
func (b *baseURLs) add(owner int, text span, verbatim bool) {
	b.list = append(b.list, base{owner: int32(owner), from: int32(text.from), to: int32(text.to), verbatim: verbatim})
}

// sort puts the BaseURLs in the order in which their elements begin.
func (b *baseURLs) sort() {
	slices.SortStableFunc(b.list, func(x, y base) int { return cmp.Compare(x.owner, y.owner) })
}

// adopt marks the BaseURLs that led to a place. It reports whether that helps.
func (b *baseURLs) adopt(p *place) bool {
	if b.settled || p.foreign {
		return false
	}
	for ; p != nil && p.view == ""; p = p.parent {
		if p.foreign {
			return false
		}
		b.list[p.entry].adopted = true
	}
	b.adopting = true
	return true
}

// enter returns the first of the BaseURLs of the element that begins at start,
// and the places that they lead to.
func (d *mpd) enter(start int, outer []*place) (first int, inner []*place, err error) {
	first = d.bases.next
	for ; d.bases.next < len(d.bases.list); d.bases.next++ {
		b := d.bases.list[d.bases.next]
		if int(b.owner) != start {
			break
		}
		_, ref, _ := d.decode(b.text(), b.kind())
		for _, from := range outer {
			p := from
			if b.to > 0 {
				p = d.lead(from, ref)
				p.entry, p.parent = d.bases.next, from
			}
			if len(p.path) > maxBase {
				return 0, nil, d.invalid("a BaseURL that is too long")
			}
			if !p.foreign && b.adopted { // for all alternatives alike
				p.view = d.folderOf()
			}
			if !slices.ContainsFunc(inner, func(q *place) bool { return alike(p, q) }) {
				inner = append(inner, p)
			}
			if len(inner) > maxAlternatives {
				return 0, nil, d.invalid("more than %d alternative BaseURLs", maxAlternatives)
			}
		}
	}
	if inner == nil {
		inner = outer
	}
	return first, inner, nil
}

// folderOf returns the folder that the manifest itself is in, which is where
// adopted BaseURLs lead.
func (d *mpd) folderOf() string {
	return d.at.Path[:strings.LastIndexByte(d.at.Path, '/')+1]
}

// alike reports whether references fare alike at two places.
func alike(p, q *place) bool {
	return p.foreign == q.foreign && p.path == q.path && p.view == q.view && (p.foreign || p.view != "" || p.entry == q.entry)
}

// rewriteBase rewrites a BaseURL.
func (d *mpd) rewriteBase(index int, at []*place) error {
	b := d.bases.list[index]
	if !b.adopted {
		return d.rewrite(b.text(), b.kind(), at)
	}
	in, _, suffix := d.decode(b.text(), b.kind())
	d.other = d.other[:0]
	for i, p := range at {
		if p.view == "" {
			return d.invalid("a BaseURL that leads into the folder below one that leads elsewhere")
		}
		d.relate(p.view, []byte(d.folderOf()[len(d.folder):]))
		if i > 0 && !bytes.Equal(d.out, d.other) {
			return d.invalid("alternative BaseURLs that a URI cannot be rewritten for alike")
		}
		d.other = append(d.other[:0], d.out...)
	}
	d.stats.Rewritten++
	return d.write(in, b.kind(), suffix)
}
