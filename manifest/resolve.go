package manifest

import (
	"bytes"
	"strings"
	"unicode/utf8"

	"github.com/signed-playback/caddy-signed-playback/internal/percent"
)

// place is what references are resolved against.
type place struct {
	foreign bool   // on another host; path is not known and view is empty
	path    string // escaped absolute path on the origin, without dot segments

	// view is where the viewer resolves the same references: the path in the
	// folder whose counterpart has that place. It equals path if that is in the
	// folder and no BaseURL was adopted, and is empty if there is no such
	// counterpart.
	view string

	// For places that a BaseURL leads to:
	entry  int    // which one
	parent *place // what that was resolved against
}

// fate is what becomes of a reference.
type fate int

const (
	elsewhere fate = iota // on another host or of another scheme: left as it is
	outside               // on the origin, but not in the folder: left as it is
	kept                  // in the folder, for the viewer too: left as it is
	written               // in the folder: to be replaced by mapper.out
	stranded              // in the folder, but the viewer resolves it against a place outside
	diverted              // outside, and resolved against a place that the viewer sees inside
)

// mapper maps references. It has scratch memory, so that none is allocated for
// each of 100,000 references.
type mapper struct {
	at     Location
	folder []byte
	out    []byte // what a reference is to be replaced by
	path   []byte
	clean  []byte
}

func newMapper(at Location) *mapper {
	return &mapper{at: at, folder: []byte(at.Folder)}
}

// document returns the place of the manifest itself.
func (m *mapper) document() *place {
	return &place{path: m.at.Path, view: m.at.Path}
}

// follow decides on a reference, less query and fragment, at a place.
func (m *mapper) follow(p *place, ref []byte) fate {
	if p.view != "" && p.view == p.path && plain(ref) {
		return kept
	}
	form, rest := m.parse(m.strip(ref))
	if form == foreign || form != absolute && p.foreign {
		return elsewhere
	}
	climbs := m.resolve(p.path, form, rest)
	name, inside := m.below(m.path)
	switch {
	case !inside && form != absolute && p.view != p.path && p.view != "":
		return diverted
	case !inside:
		return outside
	case p.view == "":
		return stranded
	case form == relative && !climbs && p.view == p.path:
		return kept
	}
	m.relate(p.view, m.path[name:])
	return written
}

// lead returns the place that a BaseURL leads to.
func (m *mapper) lead(p *place, ref []byte) *place {
	form, rest := m.parse(m.strip(ref))
	if form == foreign || form != absolute && p.foreign {
		return &place{foreign: true}
	}
	m.resolve(p.path, form, rest)
	if name, inside := m.below(m.path); inside {
		path := m.at.Folder + string(m.path[name:])
		return &place{path: path, view: path}
	}
	return &place{path: string(m.path)}
}

// special are the bytes, other than dots and slashes, that can make a reference
// more than a path downwards.
var special = func() (set [256]bool) {
	for c := range byte(' ' + 1) {
		set[c] = true
	}
	for _, c := range []byte(`:\%{`) {
		set[c] = true
	}
	return set
}()

// plain reports whether a reference is evidently a path downwards from where it
// stands, as nearly all are.
func plain(ref []byte) bool {
	previous := byte('/')
	for _, c := range ref {
		if special[c] || previous == '/' && (c == '.' || c == '/') {
			return false
		}
		previous = c
	}
	return true
}

// trim drops what browsers drop at the ends of a URL.
func trim(uri []byte) []byte {
	for len(uri) > 0 && uri[0] <= ' ' {
		uri = uri[1:]
	}
	for len(uri) > 0 && uri[len(uri)-1] <= ' ' {
		uri = uri[:len(uri)-1]
	}
	return uri
}

// beginsBlank reports whether a reference begins with white space that browsers
// keep, and that players in JavaScript drop before they hand it to one.
func beginsBlank(ref []byte) bool {
	first, _ := utf8.DecodeRune(ref)
	return first > ' ' && isBlank(first)
}

const whyBlank = "white space of Unicode before a URI, which not all players take for a part of it"

// trimReference trims a reference that was decoded after its query and fragment
// were cut off, if it had any.
func trimReference(ref []byte, cut bool) []byte {
	if !cut {
		return trim(ref)
	}
	for len(ref) > 0 && ref[0] <= ' ' {
		ref = ref[1:]
	}
	return ref
}

// cutSuffix cuts off query and fragment, which neither decide where a URI leads
// nor change on the way.
func cutSuffix(uri []byte) (ref, suffix []byte) {
	for i, c := range uri {
		if c == '?' || c == '#' {
			return uri[:i], uri[i:]
		}
	}
	return uri, nil
}

// strip drops what browsers drop within a URL.
func (m *mapper) strip(ref []byte) []byte {
	if bytes.IndexByte(ref, '\t') < 0 && bytes.IndexByte(ref, '\n') < 0 && bytes.IndexByte(ref, '\r') < 0 {
		return ref
	}
	m.clean = m.clean[:0]
	for _, c := range ref {
		if c != '\t' && c != '\n' && c != '\r' {
			m.clean = append(m.clean, c)
		}
	}
	return m.clean
}

// form is how a reference names what it refers to.
type form int

const (
	foreign  form = iota // another host, another scheme, or readings differ
	absolute             // by the name of the origin
	rooted               // by a path from the root
	relative
)

// parse finds out the form of a reference. rest is the path, without its leading
// slash.
func (m *mapper) parse(ref []byte) (f form, rest []byte) {
	scheme, rest, ok := cutScheme(ref)
	if ok && !strings.EqualFold(string(scheme), "http") && !strings.EqualFold(string(scheme), "https") {
		return foreign, nil
	}
	slashes := 0
	for slashes < len(rest) && slashes < 2 && slash(rest[slashes]) {
		slashes++
	}
	switch {
	case slashes == 2:
		authority := rest[2:]
		end := 0
		for end < len(authority) && !slash(authority[end]) {
			end++
		}
		if !m.owns(string(scheme), string(authority[:end])) {
			return foreign, nil
		}
		return absolute, authority[min(end+1, len(authority)):]
	case ok:
		// "https:x" is relative to some browsers and absolute to others.
		return foreign, nil
	}
	if slashes == 1 {
		return rooted, rest[1:]
	}
	return relative, rest
}

func slash(c byte) bool { return c == '/' || c == '\\' }

// cutScheme cuts off a scheme by RFC 3986 section 3.1.
func cutScheme(ref []byte) (scheme, rest []byte, ok bool) {
	for i, c := range ref {
		switch {
		case 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z':
		case i > 0 && ('0' <= c && c <= '9' || c == '+' || c == '-' || c == '.'):
		case i > 0 && c == ':':
			return ref[:i], ref[i+1:], true
		default:
			return nil, ref, false
		}
	}
	return nil, ref, false
}

// owns reports whether an authority is the origin. It is compared as it stands,
// less a port that is the default: userinfo, percent-encoding and a trailing dot
// make a host that is not known, and so nothing that is rewritten.
func (m *mapper) owns(scheme, authority string) bool {
	authority = strings.TrimSuffix(strings.ToLower(authority), ":")
	for _, own := range m.at.Hosts {
		// Without a scheme, the viewer's own decides. Either will do.
		if !strings.EqualFold(scheme, "http") && trimPort(authority, ":443") == trimPort(own, ":443") ||
			!strings.EqualFold(scheme, "https") && trimPort(authority, ":80") == trimPort(own, ":80") {
			return authority != ""
		}
	}
	return false
}

// trimPort drops a port, but not the end of an IPv6 address.
func trimPort(authority, port string) string {
	host, ok := strings.CutSuffix(authority, port)
	if ok && (!strings.Contains(host, ":") || strings.HasSuffix(host, "]")) {
		return host
	}
	return authority
}

// resolve sets m.path to the path that a reference leads to from a base path, by
// RFC 3986 section 5.2.4 with the dot segments and the slashes of browsers.
// climbs reports whether the reference goes above the folder on its way, which
// on the viewer's side is unknown land.
//
// Each byte of the reference is appended and dropped once at most, so that
// chains of dot segments take linear time.
func (m *mapper) resolve(base string, f form, rest []byte) (climbs bool) {
	if f == relative && len(rest) == 0 {
		m.path = append(m.path[:0], base...)
		return false
	}
	if f == relative {
		m.path = append(m.path[:0], base[:strings.LastIndexByte(base, '/')+1]...)
	} else {
		m.path = append(m.path[:0], '/')
	}
	for more := true; more; {
		end := 0
		for end < len(rest) && !slash(rest[end]) {
			end++
		}
		segment := rest[:end]
		if more = end < len(rest); more {
			rest = rest[end+1:]
		}
		switch dots(segment) {
		case 1:
		case 2:
			climbs = climbs || len(m.path) <= len(m.folder)
			if n := len(m.path); n > 1 {
				m.path = m.path[:bytes.LastIndexByte(m.path[:n-1], '/')+1]
			}
		default:
			m.path = append(m.path, segment...)
			if more {
				m.path = append(m.path, '/')
			}
		}
	}
	return climbs
}

// dots returns 1 for a segment that browsers read as ".", 2 for one that they
// read as "..", and 0 for any other.
func dots(segment []byte) int {
	n := 0
	for len(segment) > 0 {
		switch {
		case segment[0] == '.':
			segment = segment[1:]
		case len(segment) >= 3 && segment[0] == '%' && segment[1] == '2' && segment[2]|0x20 == 'e':
			segment = segment[3:]
		default:
			return 0
		}
		if n++; n > 2 {
			return 0
		}
	}
	return n
}

// below reports whether a path is in the folder, and where its name in the
// folder begins. Paths that RFC 3986 section 6.2.2 holds to be equivalent are,
// and a byte that browsers encode equals its encoding.
func (m *mapper) below(path []byte) (name int, inside bool) {
	if bytes.HasPrefix(path, m.folder) {
		return len(m.folder), true
	}
	for i := 0; i < len(m.folder); {
		if name == len(path) {
			return 0, false
		}
		a, size := octet(m.folder[i:])
		b, sizeInPath := octet(path[name:])
		if a != b {
			return 0, false
		}
		i += size
		name += sizeInPath
	}
	return name, true
}

// delimiters are the bytes that mean another thing percent-encoded than not.
const delimiters = "/%;:@&=+$,!'()*[]?#\\"

// octet reads an octet of a path. The encoding of a delimiter differs from the
// delimiter itself.
func octet(path []byte) (value, size int) {
	c, encoded := percent.Octet(path)
	switch {
	case !encoded:
		return int(path[0]), 1
	case strings.IndexByte(delimiters, c) >= 0:
		return int(c) + 256, 3
	}
	return int(c), 3
}

// relate sets m.out to the reference that leads from a path in the folder to a
// name in it. It never begins like a scheme, a host or a path from the root, nor
// with a byte that a player drops.
func (m *mapper) relate(from string, name []byte) {
	dir := from[len(m.folder) : strings.LastIndexByte(from, '/')+1]
	common := 0
	for i := 0; i < len(dir) && i < len(name) && dir[i] == name[i]; i++ {
		if dir[i] == '/' {
			common = i + 1
		}
	}
	m.out = m.out[:0]
	for range strings.Count(dir[common:], "/") {
		m.out = append(m.out, "../"...)
	}
	name = name[common:]
	if len(m.out) == 0 {
		first, _, _ := bytes.Cut(name, []byte{'/'})
		if len(first) == 0 || first[0] <= ' ' || bytes.IndexByte(first, ':') >= 0 {
			m.out = append(m.out, "./"...)
		}
	}
	m.out = append(m.out, name...)
}
