package manifest

import (
	"bytes"
	"slices"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/idna"

	"github.com/signed-playback/caddy-signed-playback/internal/percent"
)

// baseURI is a base URI (RFC 3986 section 5.1): references are resolved against
// it. It has two sides, one for the origin and one for the viewer.
type baseURI struct {
	foreign bool   // on another host; path is unknown and view is empty
	path    string // on the origin: an escaped absolute path without dot segments

	// view is the path against which the viewer resolves the same references. It
	// is written as the path of the same file on the origin, so it equals path if
	// path is in the folder and no BaseURL was adopted. It is empty if the viewer
	// has no such file.
	view string

	// above is set if the viewer's side is not below Location.Session, to which all references lead.
	above    bool
	inserted bool // it is that of the BaseURL that is inserted for a session

	// For the base URI of a BaseURL:
	entry  int      // index of the BaseURL
	parent *baseURI // against which the BaseURL was resolved
}

// outcome is the result of resolving a reference.
type outcome int

const (
	foreignURI  outcome = iota // on another host or of another scheme: unchanged
	outside                    // on the origin, but not in the folder: unchanged
	unchanged                  // in the folder, and the viewer finds it there
	rewritten                  // in the folder; mapper.out replaces the reference
	unreachable                // in the folder, but no reference leads there from the viewer's base URI
	misleading                 // outside the folder, but the viewer would look for it in the folder
)

// mapper maps references. It reuses its memory, so that 100,000 references cost no
// more allocations than one.
type mapper struct {
	at     Location
	folder []byte
	out    []byte // the replacement of the last rewritten reference

	// fromFolder writes references by way of the folder itself, which is the same
	// spelling for all base URIs of one depth.
	fromFolder bool

	path  []byte // to which the last reference leads
	clean []byte
}

func newMapper(at Location) *mapper {
	return &mapper{at: at, folder: []byte(at.Folder)}
}

// document returns the base URI of the manifest itself.
func (m *mapper) document() *baseURI {
	return &baseURI{path: m.at.Path, view: m.at.Path, above: m.at.Session != ""}
}

// follow resolves a reference without its query and fragment against a base URI.
func (m *mapper) follow(base *baseURI, ref []byte) outcome {
	form, rest := m.parse(base, ref)
	if form == foreign {
		return foreignURI
	}
	path := base.path
	if base.inserted {
		path = m.at.Path // what the reference is relative to on the origin
	}
	climbs := m.resolve(path, form, rest)
	name, inside := m.nameInFolder(m.path)
	switch {
	case !inside && form != absolute && base.view != base.path && base.view != "":
		return misleading
	case !inside:
		return outside
	case base.view == "":
		return unreachable
	case form == relative && len(rest) == 0 && base.inserted:
		// The MPD itself with another query. Against the BaseURL it would be its folder.
	case form == relative && !climbs && base.view == base.path && !base.above:
		return unchanged
	}
	m.writeRelative(base, m.path[name:])
	return rewritten
}

// leadsInside reports whether text that may be a URI or not is one that leads into the folder from the
// root or from outside, and has to be rewritten. If so, m.out replaces its reference.
func (m *mapper) leadsInside(base *baseURI, text []byte) bool {
	text = trim(text)
	if len(text) == 0 || bytes.IndexByte([]byte(`/\.hH`), text[0]) < 0 {
		return false
	}
	ref, _ := cutSuffix(text)
	return m.follow(base, ref) == rewritten
}

// hasBlank reports whether text has white space that is not at its ends.
func hasBlank(text []byte) bool { return bytes.ContainsFunc(trim(text), isBlank) }

// countRefused counts the last reference if it leads to a file that the viewer cannot load.
func (m *mapper) countRefused(stats *Stats) {
	if m.at.Refuses == nil {
		return
	}
	if name, inside := m.nameInFolder(m.path); inside && m.at.Refuses(m.path[name:]) {
		stats.Refused++
	}
}

// followBase returns the base URI to which a BaseURL leads.
func (m *mapper) followBase(base *baseURI, ref []byte) *baseURI {
	form, rest := m.parse(base, ref)
	if form == foreign {
		return &baseURI{foreign: true}
	}
	m.resolve(base.path, form, rest)
	if name, inside := m.nameInFolder(m.path); inside {
		path := m.at.Folder + string(m.path[name:])
		return &baseURI{path: path, view: path}
	}
	return &baseURI{path: string(m.path)}
}

// trim removes the white space that browsers remove at the ends of a URL.
func trim(uri []byte) []byte { return bytes.TrimFunc(uri, isControl) }

func trimStart(uri []byte) []byte { return bytes.TrimLeftFunc(uri, isControl) }

func isControl(r rune) bool { return r <= ' ' }

// trimReference trims a reference that was decoded or expanded. wasCut reports
// whether a query or fragment followed it: then white space at its end is not at
// the end of the URI.
func trimReference(ref []byte, wasCut bool) []byte {
	if wasCut {
		return trimStart(ref)
	}
	return trim(ref)
}

// beginsBlank reports whether a reference begins with white space that browsers
// keep, but that players in JavaScript remove first.
func beginsBlank(ref []byte) bool {
	first, _ := utf8.DecodeRune(ref)
	return first > ' ' && isBlank(first)
}

const whyBlank = "a URI begins with Unicode white space, which only some players remove"

// cutSuffix cuts off query and fragment. They do not change where a URI leads, and
// they are copied as they are.
func cutSuffix(uri []byte) (ref, suffix []byte) {
	for i, c := range uri {
		if c == '?' || c == '#' {
			return uri[:i], uri[i:]
		}
	}
	return uri, nil
}

// removeTabs removes the tabs and line breaks that browsers remove anywhere in a
// URL.
func (m *mapper) removeTabs(ref []byte) []byte {
	if bytes.IndexByte(ref, '\t') < 0 && bytes.IndexByte(ref, '\n') < 0 && bytes.IndexByte(ref, '\r') < 0 {
		return ref
	}
	m.clean = slices.DeleteFunc(append(m.clean[:0], ref...), func(c byte) bool {
		return c == '\t' || c == '\n' || c == '\r'
	})
	return m.clean
}

// form is the form of a reference.
type form int

const (
	foreign  form = iota // to another host or scheme, or players disagree
	absolute             // with the host of the origin
	rooted               // a path from the root
	relative
)

// parse finds the form of a reference. rest is its path without the leading
// slash.
func (m *mapper) parse(base *baseURI, ref []byte) (f form, rest []byte) {
	scheme, rest, ok := cutScheme(m.removeTabs(ref))
	if ok && !strings.EqualFold(string(scheme), "http") && !strings.EqualFold(string(scheme), "https") {
		return foreign, nil
	}
	path, isRooted := cutLeadingSlash(rest)
	authority, hasHost := cutLeadingSlash(path)
	switch {
	case isRooted && hasHost:
		host, path, _ := cutSegment(authority)
		if !m.isOrigin(string(scheme), string(host)) {
			return foreign, nil
		}
		return absolute, path
	case ok, base.foreign:
		// "https:x" is relative to some browsers and absolute to others.
		return foreign, nil
	case isRooted:
		return rooted, path
	}
	return relative, rest
}

func cutLeadingSlash(path []byte) (rest []byte, ok bool) {
	if len(path) > 0 && isSlash(path[0]) {
		return path[1:], true
	}
	return path, false
}

// cutSegment cuts a path at its first slash, like bytes.Cut.
func cutSegment(path []byte) (segment, rest []byte, found bool) {
	for i, c := range path {
		if isSlash(c) {
			return path[:i], path[i+1:], true
		}
	}
	return path, nil, false
}

func isSlash(c byte) bool { return c == '/' || c == '\\' }

// cutScheme cuts off a scheme (RFC 3986 section 3.1).
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

// isOrigin reports whether an authority is the origin. It ignores case and a
// default port, and nothing else: an authority with userinfo, percent-encoding or
// a trailing dot is foreign, so its URIs stay as they are.
func (m *mapper) isOrigin(scheme, authority string) bool {
	authority = strings.ToLower(authority)
	if strings.ContainsFunc(authority, func(r rune) bool { return r >= utf8.RuneSelf }) {
		authority = toASCII(authority)
	}
	authority = strings.TrimSuffix(authority, ":")
	for _, own := range m.at.Hosts {
		// Without a scheme, the viewer's own scheme decides. Both are possible.
		if !strings.EqualFold(scheme, "http") && trimPort(authority, ":443") == trimPort(own, ":443") ||
			!strings.EqualFold(scheme, "https") && trimPort(authority, ":80") == trimPort(own, ":80") {
			return authority != ""
		}
	}
	return false
}

// toASCII writes an authority with an internationalized host as DNS has it (RFC 5891).
func toASCII(authority string) string {
	host, port, hasPort := strings.Cut(authority, ":")
	ascii, err := idna.Lookup.ToASCII(strings.Clone(host))
	switch {
	case err != nil:
		return authority
	case hasPort:
		return ascii + ":" + port
	}
	return ascii
}

// trimPort removes a port, but not the end of an IPv6 address.
func trimPort(authority, port string) string {
	host, ok := strings.CutSuffix(authority, port)
	if ok && (!strings.Contains(host, ":") || strings.HasSuffix(host, "]")) {
		return host
	}
	return authority
}

// resolve sets m.path to the path to which a reference leads from a base path (RFC
// 3986 section 5.2.4, with the dot segments and slashes of browsers). climbs
// reports whether the reference leaves the folder on its way. Nothing is known
// about the viewer's side outside the folder.
//
// Each byte of the reference is appended and removed at most once, so chains of
// dot segments take linear time.
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
		var segment []byte
		segment, rest, more = cutSegment(rest)
		switch countDots(segment) {
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

// countDots returns 1 if browsers read a segment as ".", 2 if they read it as
// "..", and otherwise 0.
func countDots(segment []byte) int {
	n := 0
	for len(segment) > 0 {
		size := 1
		if segment[0] != '.' {
			if c, ok := percent.Octet(segment); !ok || c != '.' {
				return 0
			}
			size = 3
		}
		segment = segment[size:]
		if n++; n > 2 {
			return 0
		}
	}
	return n
}

// nameInFolder reports whether a path is in the folder, and at which offset its
// name in the folder begins. Paths are compared as RFC 3986 section 6.2.2 defines
// equivalence. Bytes that browsers percent-encode equal their encoding.
func (m *mapper) nameInFolder(path []byte) (name int, inside bool) {
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

// pathDelimiters are the bytes whose meaning changes with percent-encoding at some
// server.
const pathDelimiters = "/%;?#\\"

// octet reads an octet of a path. The encoding of a delimiter differs from the
// delimiter itself.
func octet(path []byte) (value, size int) {
	c, encoded := percent.Octet(path)
	switch {
	case !encoded:
		return int(path[0]), 1
	case strings.IndexByte(pathDelimiters, c) >= 0:
		return int(c) + 256, 3
	}
	return int(c), 3
}

// writeAbsolute sets m.out to the absolute URI of the path to which the last reference leads. Interstitials
// need it (RFC 8216bis appendix D.2): hls.js resolves references against the page, and Media3 against nothing.
func (m *mapper) writeAbsolute() {
	name, _ := m.nameInFolder(m.path)
	m.out = append(append(append(m.out[:0], m.at.Base...), m.at.Session...), m.path[name:]...)
}

// writeRelative sets m.out to the reference from a base URI in the folder to a name in
// the folder. The reference never begins like a scheme, a host or a path from the
// root, nor with a byte that a player removes.
func (m *mapper) writeRelative(from *baseURI, name []byte) {
	dir := from.view[len(m.folder) : strings.LastIndexByte(from.view, '/')+1]
	common := 0
	for i := 0; i < len(dir) && i < len(name) && dir[i] == name[i] && !m.fromFolder && !from.above; i++ {
		if dir[i] == '/' {
			common = i + 1
		}
	}
	m.out = m.out[:0]
	for range strings.Count(dir[common:], "/") {
		m.out = append(m.out, "../"...)
	}
	name = name[common:]
	if from.above {
		m.out = append(m.out, m.at.Session...)
	} else if len(m.out) == 0 {
		segment, _, _ := bytes.Cut(name, []byte{'/'})
		if len(segment) == 0 || segment[0] <= ' ' || bytes.IndexByte(segment, ':') >= 0 {
			m.out = append(m.out, "./"...)
		}
	}
	m.out = append(m.out, name...)
}
