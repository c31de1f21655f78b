// Package manifest rewrites the URIs in HLS, Low-Latency HLS and DASH manifests, in the
// asset lists of HLS interstitials and in storyboards, so that a viewer who got a manifest from below a signed path requests all other
// files of the video below that path too.
//
// # Rewriting
//
// On the origin, the files of a video are in a folder. The viewer sees the folder
// as /<token>/, below a path that this package does not know. Within the folder,
// both sides have the same files under the same names. So a URI that leads into
// the folder becomes a reference relative to the manifest:
//
//	in <folder>manifest/video.m3u8              becomes
//	https://origin.example<folder>video/1.mp4   ../video/1.mp4
//	<folder>video/1.mp4                         ../video/1.mp4
//	../../<name of the folder>/video/1.mp4      ../video/1.mp4
//	../video/1.mp4                              ../video/1.mp4, unchanged
//
// Other URIs stay as they are: those of other hosts and schemes, and those that
// lead to the origin outside the folder. So does every byte that is not part of a
// URI. The package edits manifests and does not parse and print them, because a
// parser drops what it does not know. The query and the fragment of a URI stay
// byte by byte.
//
// # Security
//
// This package does not know the token, and it writes only references without a
// scheme and without a host. Only for interstitials (X-ASSET-URI, X-ASSET-LIST and
// asset lists) it writes absolute URIs, which begin with Location.Base. Features that have a player report URLs, or build them
// by rules from elsewhere, are taken out unless the caller allows them (see
// Features). So no manifest, however hostile, makes a player send the token to
// another host.
//
// Players parse manifests loosely, with patterns and with XML parsers that check
// little. So text that only such a parser takes for a tag or an element is taken out
// too, or the manifest is refused.
//
// Players disagree about malformed URIs. This package reads URIs as the URL
// standard makes browsers read http URLs: it ignores white space at the ends and
// tabs and line breaks anywhere, a backslash is a slash, and %2e is a dot. That is
// the reading in which a URI can lead furthest from where it seems to lead. A
// host is the origin only if all readings agree: without userinfo, backslashes and
// percent-encoding. An internationalized host is compared as DNS has it. A rewritten URI is written as browsers read the original. A
// player that read it differently now requests a path that the gate refuses, or a
// host that the manifest names, without a token.
package manifest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

const (
	// MaxGrowth is how many times its size a manifest may have when it is rewritten, apart
	// from a few kilobytes, and MaxSessionGrowth if all URIs lead below a session.
	MaxGrowth        = 2
	MaxSessionGrowth = 4
)

// MaxSize is the maximum size in bytes of a manifest that Rewrite accepts.
const MaxSize = 8 << 20

// ErrInvalid is wrapped by the errors about a manifest that is malformed, or that
// cannot be rewritten so that all players request the same files as before. The
// errors contain a line or an offset, and never a URI.
var ErrInvalid = errors.New("manifest: invalid")

var errLocation = errors.New("manifest: invalid location: want an escaped absolute path in a folder that ends with a slash")

// Format is the format of a manifest. The zero Format is not a manifest.
type Format int

// The formats that Rewrite accepts.
const (
	HLS  Format = iota + 1 // master and media playlists, RFC 8216bis
	DASH                   // media presentation descriptions and patches to them, ISO/IEC 23009-1

	// These are never invalid, and no player reports URLs because of them.
	WebVTT    // captions and storyboards, W3C WebVTT
	AssetList // JSON of HLS interstitials, RFC 8216bis appendix D.2
)

// Location is where a manifest is on the origin.
type Location struct {
	Path    string // escaped absolute path of the manifest, without dot segments
	Folder  string // escaped absolute path of the video's folder, with a trailing slash; a prefix of Path
	Base    string // for interstitials: the absolute URL that the folder has for the viewer, with a trailing slash
	Session string // where the viewer has the folder below itself for one session, as `~id/`; see Stats.Rooted

	// Playing says that the client plays this playlist of a rendition already, without a session. Then it
	// stays so: a live playlist that ends must not move its player to a session.
	Playing bool
	Hosts   []string // host[:port] of the origin in lower case, in all forms that absolute URIs may have

	// Refuses reports whether the viewer cannot load a file of the folder by this name,
	// which is written as in the manifest. nil refuses none. It must not keep the name.
	Refuses func(name []byte) bool
}

// Features are features of manifests that Rewrite takes out, with everything that
// they contain, unless they are allowed. The zero Features allows none of them.
type Features uint8

const (
	// Steering lets a server choose from which hosts a player loads the video:
	// content steering, and in DASH an xlink:href to another host, and a Location,
	// PatchLocation or ImportedMPD that does not lead to an .mpd or .mpp of the folder.
	// The player would then follow markup that this package never sees.
	Steering Features = 1 << iota

	// Reporting has a player tell a server what it loads: in DASH, Metrics,
	// ClientDataReporting, and every element that the MPD schema does not have, except
	// where the schema leaves the content to other parties.
	Reporting
)

// ParseFeature returns the feature of a name: `steering` or `reporting`.
func ParseFeature(name string) (Features, error) {
	switch name {
	case "steering":
		return Steering, nil
	case "reporting":
		return Reporting, nil
	}
	return 0, fmt.Errorf("manifest feature %q is unknown; known are steering and reporting", name)
}

// Stats counts the URIs of a manifest. Each is counted once.
type Stats struct {
	Rewritten int
	Left      int // unchanged: relative and in the folder, on another host, or of another scheme
	Outside   int // unchanged: on the origin, but not in the folder
	Removed   int // not URIs: tags and elements that were taken out
	Refused   int // rewritten or left in HLS or DASH, and refused by Location.Refuses

	// Rooted says that all URIs of the folder lead below Location.Session, and an MPD has a Location
	// there. That is so for a manifest with which a player begins: a multivariant playlist, the
	// playlist of a whole video, or an MPD. A player asks for all others again and again, at the same
	// URL.
	Rooted bool
}

// Rewrite appends the rewritten manifest src to dst and returns the result. query
// is the undecoded query of the viewer's request, from which HLS variables can take
// their values. dst and src must not overlap.
//
// allowed are the features that stay.
//
// If the manifest is invalid, the error wraps ErrInvalid. With any error, Rewrite
// returns dst as it was.
func Rewrite(dst, src []byte, f Format, at Location, query string, allowed Features) ([]byte, Stats, error) {
	if !at.valid() {
		return dst, Stats{}, errLocation
	}
	if len(src) > MaxSize {
		return dst, Stats{}, invalid("more than %d bytes", MaxSize)
	}
	rooted := at.Session != "" && begins(src, f, !at.Playing)
	if !rooted {
		at.Session = ""
	}
	if bytes.IndexByte(src, 0) >= 0 && (f == HLS || f == DASH) {
		return dst, Stats{}, invalid("a NUL byte")
	}
	var out []byte
	var stats Stats
	var err error
	switch f {
	case HLS:
		out, stats, err = rewriteHLS(dst, src, at, query, allowed)
	case DASH:
		out, stats, err = rewriteDASH(dst, src, at, allowed)
	case WebVTT:
		out, stats, err = rewriteWebVTT(dst, src, at)
	case AssetList:
		out, stats, err = rewriteAssetList(dst, src, at)
	default:
		err = fmt.Errorf("manifest: unknown format %d", f)
	}
	if err != nil {
		return dst, Stats{}, err
	}
	stats.Rooted = rooted
	return out, stats, nil
}

// begins reports whether a player begins with a manifest. whole says that it may be the playlist of
// a whole rendition.
func begins(src []byte, f Format, whole bool) bool {
	if f == DASH {
		return isMPD(src)
	}
	for line := range bytes.SplitSeq(src, []byte{'\n'}) {
		if f != HLS || len(line) == 0 || line[0] != '#' {
			continue
		}
		tag, value, _ := bytes.Cut(bytes.TrimRightFunc(line, isBlank), []byte{':'})
		switch string(tag) {
		case "#EXT-X-STREAM-INF", "#EXT-X-I-FRAME-STREAM-INF", "#EXT-X-MEDIA":
			return true
		case "#EXT-X-ENDLIST":
			if whole {
				return true
			}
		case "#EXT-X-PLAYLIST-TYPE":
			if whole && string(value) == "VOD" {
				return true
			}
		}
	}
	return false
}

// Map rewrites a single URI of a response from this location, for example that of
// a redirect, as Rewrite would. inside reports whether the URI leads into the
// folder. If it does not, mapped is the URI as it was.
func (at Location) Map(uri string) (mapped string, inside bool) {
	if !at.valid() {
		return uri, false
	}
	ref, suffix := cutSuffix(trim([]byte(uri)))
	m := newMapper(at)
	switch m.follow(m.document(), ref) {
	case unchanged:
		return uri, true
	case rewritten:
		return string(m.out) + string(suffix), true
	case foreignURI, outside, unreachable, misleading:
	}
	return uri, false
}

// valid checks what the mapper relies on.
func (at Location) valid() bool {
	return strings.HasPrefix(at.Folder, "/") && strings.HasSuffix(at.Folder, "/") &&
		strings.HasPrefix(at.Path, at.Folder) && !strings.ContainsAny(at.Path, `\?#`) &&
		!slices.ContainsFunc(strings.Split(at.Path, "/"), func(s string) bool { return countDots([]byte(s)) > 0 })
}

var byteOrderMark = []byte("\ufeff")

// Sniff recognizes a manifest by its first bytes, whatever its name and content type
// are. body may be a prefix that extends to the end of the name of the root element, or to
// the member ASSETS of an asset list. f is 0 for anything else. undecided reports whether
// body may be the beginning of an XML document whose root element is still to come, or of a
// JSON object, so that Sniff needs more of it. Rewrite refuses some manifests that Sniff
// recognizes, for example in UTF-16 or with a document type declaration.
func Sniff(body []byte) (f Format, undecided bool) {
	body = decodeUTF16(body)
	switch text := bytes.TrimPrefix(body, byteOrderMark); {
	case bytes.HasPrefix(text, []byte("#EXTM3U")):
		return HLS, false
	case isWebVTT(text):
		return WebVTT, false
	case bytes.HasPrefix(bytes.TrimLeft(text, " \t\r\n"), []byte("{")):
		if found, undecided := sniffAssetList(text); !found {
			return 0, undecided
		}
		return AssetList, false
	}
	for {
		body = bytes.TrimLeftFunc(body, func(r rune) bool { return r != 0 && r != escape && isBlank(r) })
		var length int
		switch {
		case !utf8.FullRune(body): // or empty
			return 0, true
		case body[0] == escape:
			length = min(len(body), escapeLength)
			body = body[length:]
			continue
		case body[0] != '<':
			return 0, false
		case bytes.HasPrefix(body, []byte("<?")):
			length = lengthTo(body, "?>")
		case bytes.HasPrefix(body, []byte("<!--")):
			length = lengthTo(body, "-->")
		case bytes.HasPrefix(body, []byte("<!")):
			length = declarationLength(body)
			if length == 0 && hasRootTag(body) {
				return DASH, false
			}
		default:
			length = 1 + nameByte.prefixLength(body[1:])
			undecided = length == len(body)
			if isRoot(body[1:length]) || !undecided && body[length] == escape {
				return DASH, undecided
			}
			return 0, undecided
		}
		switch {
		case length == 0:
			return 0, true
		case bytes.IndexByte(body[:length], escape) >= 0:
			// The prolog can end elsewhere for browsers that decode ISO-2022-JP.
			return DASH, false
		}
		body = body[length:]
	}
}

// Browsers decode ISO-2022-JP if the content type says so. They drop its escape
// sequences, which can be anywhere.
const (
	escape       = '\x1b'
	escapeLength = len("\x1b(B")
)

// isRoot reports whether a document with this root element is an MPD, a patch or a
// remote element.
func isRoot(name []byte) bool { return kindOf(local(name))&(root|remote) != 0 }

// lengthTo returns the length of body up to and with end, or 0.
func lengthTo(body []byte, end string) int {
	if i := bytes.Index(body, []byte(end)); i >= 0 {
		return i + len(end)
	}
	return 0
}

// declarationLength returns the length of a document type declaration. It is 0 if the
// end is missing or declarations are inside, among which the end is hard to find.
func declarationLength(body []byte) int {
	var quote byte
	for i, c := range body {
		switch {
		case c == quote:
			quote = 0
		case quote != 0:
		case c == '"' || c == '\'':
			quote = c
		case c == '[':
			return 0
		case c == '>':
			return i + 1
		}
	}
	return 0
}

// hasRootTag reports whether the start tag of a root element is anywhere in body.
func hasRootTag(body []byte) bool {
	for {
		_, after, found := bytes.Cut(body, []byte("<"))
		if !found {
			return false
		}
		if isRoot(after[:nameByte.prefixLength(after)]) {
			return true
		}
		body = after
	}
}

// decodeUTF16 returns in UTF-8 what may be an XML document in UTF-16, with or without
// a byte order mark, and anything else as it is.
func decodeUTF16(body []byte) []byte {
	begins := func(first, second byte) bool {
		return len(body) > 1 && body[0] == first && body[1] == second
	}
	mayBegin := func(c byte) bool { return c == '<' || xmlSpace[c] }
	var order binary.ByteOrder
	switch {
	case begins(0xfe, 0xff), len(body) > 1 && body[0] == 0 && mayBegin(body[1]):
		order = binary.BigEndian
	case begins(0xff, 0xfe), len(body) > 1 && body[1] == 0 && mayBegin(body[0]):
		order = binary.LittleEndian
	default:
		return body
	}
	decoded := make([]byte, 0, len(body))
	for ; len(body) > 1; body = body[2:] {
		decoded = utf8.AppendRune(decoded, rune(order.Uint16(body)))
	}
	return decoded
}

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrInvalid}, args...)...)
}

// editor copies src to dst and replaces parts of it, in order.
type editor struct {
	src    []byte
	dst    []byte
	copied int // how many bytes of src are copied or replaced
	limit  int // the maximum length of dst
}

// growthSlack is how many bytes a small manifest may grow.
const growthSlack = 4 << 10

// newEditor lets the manifest grow to twice its size. A reference becomes longer
// if it starts deep below the folder or if its variables are replaced, so a hostile
// manifest could grow without limit. A session is longer than most names.
func newEditor(dst, src []byte, at Location) editor {
	times := MaxGrowth
	if at.Session != "" {
		times = MaxSessionGrowth
	}
	return editor{src: src, dst: slices.Grow(dst, len(src)), limit: len(dst) + times*len(src) + growthSlack}
}

// replace replaces src[from:to] by the given parts.
func (e *editor) replace(from, to int, parts ...[]byte) error {
	e.dst = append(e.dst, e.src[e.copied:from]...)
	for _, part := range parts {
		e.dst = append(e.dst, part...)
	}
	e.copied = to
	if len(e.dst)+len(e.src)-to > e.limit {
		return invalid("too large when rewritten")
	}
	return nil
}

// finish copies the rest of src.
func (e *editor) finish() []byte { return append(e.dst, e.src[e.copied:]...) }
