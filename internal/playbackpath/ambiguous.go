package playbackpath

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/signed-playback/caddy-signed-playback/internal/mediatype"
	"github.com/signed-playback/caddy-signed-playback/internal/percent"
)

// Rules are the options of a gate about suffixes.
type Rules struct {
	Downloads      Globs
	AllowAmbiguous bool
	Sessions       bool
}

// ParseSuffix parses a suffix that all servers read alike, or, where the rules allow it,
// one that servers read in different ways of which none matters.
// credential is the first segment of the path.
func (p Rules) ParseSuffix(escaped, credential string) (Suffix, error) {
	s, err := parseSuffix(escaped)
	if err != nil && p.AllowAmbiguous {
		return p.parseAmbiguous(escaped, credential)
	}
	if err == nil && isTokenIn(credential, s.Decoded) {
		return Suffix{}, errToken
	}
	return s, err
}

// isTokenIn reports whether a text contains the credential, if that has the form of a
// token.
func isTokenIn(credential, text string) bool {
	return strings.Count(credential, ".") == 2 && strings.Contains(text, credential)
}

// RefusedNames finds the URIs of a manifest that the gate refuses.
type RefusedNames struct {
	Rules     Rules
	Why       error // about the first one that no option lets pass, else about the first one
	Allowable bool  // ambiguous_paths allow would let all of them pass
}

// Refuse reports whether the gate refuses a name of a manifest.
func (n *RefusedNames) Refuse(name []byte) bool {
	if isOrdinary(name) {
		return false
	}
	escaped := asRequested(name)
	_, err := n.Rules.ParseSuffix(escaped, "")
	if err == nil {
		return false
	}
	_, allowedErr := Rules{Downloads: n.Rules.Downloads, AllowAmbiguous: true}.ParseSuffix(escaped, "")
	if n.Why == nil || n.Allowable && allowedErr != nil {
		n.Why, n.Allowable = err, allowedErr == nil
	}
	return true
}

// isOrdinary reports whether a name of a manifest needs no look. Manifests have
// thousands.
func isOrdinary(name []byte) bool {
	dots := 0
	for i, c := range name {
		switch {
		case c == '/' && (i == 0 || name[i-1] == '/' || name[i-1] == '.') || !plain[c] || c == ':' || c == '~':
			return false
		case c == '.':
			dots++
		}
	}
	return dots < 2 && (len(name) == 0 || name[len(name)-1] != '.')
}

// dashWidth is the width of a number in a template of DASH (ISO/IEC 23009-1 section
// 5.3.9.4.4), which looks like a percent-encoding.
var dashWidth = regexp.MustCompile(`\$(\w+)%0\d+\w\$`)

// asRequested returns a name of a manifest as players request it: they encode what no URL
// has.
func asRequested(name []byte) string {
	escaped := make([]byte, 0, len(name))
	for _, c := range dashWidth.ReplaceAll(name, []byte("$1")) {
		if c <= ' ' || c > '~' || strings.IndexByte("\"<>`{}|^", c) >= 0 {
			escaped = fmt.Appendf(escaped, "%%%02X", c)
		} else {
			escaped = append(escaped, c)
		}
	}
	return string(escaped)
}

// Resource describes the file that a suffix names.
type Resource struct {
	Kind     Kind
	Manifest bool // by its name; a download can be a manifest too
	Media    bool // audio, video, captions or a key by its name
	WebVTT   bool // by its name
	Download bool // needs the claim `downloadable`; the iframe can too
	Own      bool // the iframe, the script of the player page, or the number of viewers
}

// Resource classifies a decoded suffix. Some origins ignore a trailing slash, so with
// one the name is guarded as without.
func (p Rules) Resource(decoded string) Resource {
	name := strings.TrimRight(decoded, "/")
	r := Resource{Kind: kindOf(name)}
	r.Manifest = r.Kind == KindManifest
	r.Media, r.WebVTT = r.Kind == KindSegment, mediatype.Ending(name) == "vtt"
	r.Own = r.Kind == KindIframe || name == HLSJSSuffix || p.Sessions && decoded == ViewsSuffix
	r.Download = p.Downloads.match(name) || len(name) != len(decoded) && p.Downloads.match(decoded)
	if r.Download && r.Kind != KindIframe {
		r.Kind = kindDownload
	}
	return r
}

var errReadings = errors.New("servers can read the path in different ways, of which not all are the same kind of file")

// parseAmbiguous parses a suffix with `;`, empty segments or encoded delimiters. What
// servers make of it must be the same to the gate in every way in which they read it.
func (p Rules) parseAmbiguous(escaped, credential string) (Suffix, error) {
	for i := range len(escaped) {
		switch c := escaped[i]; {
		case c == '%':
			if octet, ok := percent.Octet(escaped[i:]); !ok || octet == '.' || octet == '\\' {
				return Suffix{}, errEscape
			}
		case c == ':':
			return Suffix{}, errName
		case c != '/' && c != ';' && c != '[' && c != ']' && !pchar[c]:
			return Suffix{}, errByte
		}
	}
	escaped = brackets.Replace(escaped)
	s := Suffix{Escaped: escaped, Decoded: decodeOnce(escaped, true)}
	meant := p.Resource(s.Decoded)
	list, ok := readingsOf(escaped)
	if !ok {
		return Suffix{}, errReadings
	}
	for _, r := range list {
		if r.decodings == 0 {
			continue // a server decodes before it looks for a file
		}
		if containsToken(r.text) || isTokenIn(credential, r.text) {
			return Suffix{}, errToken
		}
		if err := r.check(); err != nil {
			return Suffix{}, err
		}
		if !r.means(p.Resource(r.name()), meant) {
			return Suffix{}, errReadings
		}
	}
	return s, nil
}

// reading is a suffix after some steps of a server that maps it to a file.
type reading struct {
	text      string
	decodings int
	cut       bool // a decoded ? or # has ended it
}

const (
	maxReadings   = 128     // a suffix with more is refused
	maxAmbiguous  = 2 << 10 // bytes of such a suffix: each of its readings takes time
	mostDecodings = 2       // by a proxy and the server behind it, or by one server twice
)

// readingsOf returns all readings of an escaped suffix: servers decode it once or twice,
// all of it or all but slashes, merge slashes, and cut path parameters off (RFC 3986
// section 3.3) at each segment, at the last one, or with all that follows; in any order.
func readingsOf(escaped string) (list []reading, ok bool) {
	if len(escaped) > maxAmbiguous {
		return nil, false
	}
	list = []reading{{text: escaped}}
	for i := 0; i < len(list); i++ {
		for _, next := range list[i].next() {
			if slices.Contains(list, next) {
				continue
			}
			if len(list) == maxReadings {
				return nil, false
			}
			list = append(list, next)
		}
	}
	return list, true
}

// next returns the readings that one more step leads to.
func (r reading) next() (list []reading) {
	step := func(text string) { list = append(list, reading{text, r.decodings, r.cut}) }
	step(mergeSlashes(r.text))
	if strings.Contains(r.text, ";") {
		whole, _, _ := strings.Cut(r.text, ";")
		step(whole)
		last := strings.LastIndexByte(r.text, '/') + 1
		name, _, _ := strings.Cut(r.text[last:], ";")
		step(r.text[:last] + name)
		segments := strings.Split(r.text, "/")
		for i := range segments {
			segments[i], _, _ = strings.Cut(segments[i], ";")
		}
		step(strings.Join(segments, "/"))
	}
	if end := strings.IndexAny(r.text, "?#"); end >= 0 {
		list = append(list, reading{r.text[:end], r.decodings, true})
	}
	if r.decodings < mostDecodings && strings.Contains(r.text, "%") || r.decodings == 0 {
		list = append(list,
			reading{decodeOnce(r.text, true), r.decodings + 1, r.cut},
			reading{decodeOnce(r.text, false), r.decodings + 1, r.cut})
	}
	return list
}

// decodeOnce decodes percent-encoding, and that of slashes if it shall. What is no
// percent-encoding stays.
func decodeOnce(text string, slashes bool) string {
	decoded := make([]byte, 0, len(text))
	for i := 0; i < len(text); i++ {
		c := text[i]
		if octet, ok := percent.Octet(text[i:]); ok && (slashes || octet != '/') {
			c, i = octet, i+2
		}
		decoded = append(decoded, c)
	}
	return string(decoded)
}

// mergeSlashes also removes slashes at the start, because there is one before a suffix.
func mergeSlashes(text string) string {
	text = strings.TrimLeft(text, "/")
	for strings.Contains(text, "//") {
		text = strings.ReplaceAll(text, "//", "/")
	}
	return text
}

// name returns the name of the file. Windows drops spaces and dots at its end, and after
// a cut there may be some.
func (r reading) name() string {
	if r.cut {
		return strings.TrimRight(r.text, " .")
	}
	return r.text
}

// check checks that a reading names a file in the folder, and by its only name. A name
// that is cut off may be empty: that of the folder.
func (r reading) check() error {
	name := mergeSlashes(r.name())
	last := strings.TrimRight(r.text[strings.LastIndexByte(r.text, '/')+1:], " ")
	switch {
	case !utf8.ValidString(r.text) || strings.ContainsFunc(r.text, unicode.IsControl) || strings.Contains(r.text, `\`):
		return errEscape
	case name == "" && !r.cut || last == "." || last == "..":
		return errSegment
	}
	if err := checkSegments(name); err != nil {
		return err
	}
	return checkNames(name)
}

// means reports whether a reading is to the gate what the suffix is meant to be. A
// server that cuts a name off may have another file, but none that is guarded.
func (r reading) means(got, meant Resource) bool {
	if r.cut {
		return (!got.Manifest || meant.Manifest) && (!got.Download || meant.Download) && (!got.Own || meant.Own)
	}
	return got.Manifest == meant.Manifest && got.Download == meant.Download && got.Own == meant.Own
}
