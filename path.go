package signedplayback

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/signed-playback/caddy-signed-playback/token"
)

// target is what the path of a playback request names: a token or a video id,
// and what is asked for below it.
type target struct {
	token   string // "" if the path carries a video id
	videoID string // "" if the path carries a token
	suffix  suffix
}

// suffix is the part of a playback path below the video, without a leading
// slash. It is validated, never repaired.
type suffix struct {
	escaped string // as the viewer wrote it
	decoded string // escaped, percent-decoded once
}

// iframeSuffix is what a token or a video id alone stands for.
const iframeSuffix = "iframe"

var (
	errPathForm    = errors.New("the path is not /<token or video id>/<suffix>")
	errPathID      = errors.New("the first segment is neither a token nor a video id")
	errPathByte    = errors.New("the path contains a byte that has no business in a playback URL")
	errPathEscape  = errors.New("the path contains a percent-encoding that is not of harmless UTF-8")
	errPathToken   = errors.New("the path contains its token twice, and the origin must not see it")
	errPathSegment = errors.New("the path contains an empty segment or a dot segment")
)

// parsePath takes a playback path apart. It reads the bytes that the viewer
// sent, for a decoded or cleaned path would let `..`, `%2f` or `//` mean one
// thing here and another at the origin.
func parsePath(u *url.URL) (target, error) {
	path := u.Path
	if u.RawPath != "" || !isPlain(path) {
		path = u.EscapedPath()
	}
	if u.RawPath != "" && path != u.RawPath {
		// The path holds bytes that are never sent raw, or a handler in front
		// has changed one of the two forms only.
		return target{}, errPathByte
	}
	path, ok := strings.CutPrefix(path, "/")
	if !ok {
		return target{}, errPathForm
	}
	first, rest, _ := strings.Cut(path, "/")
	var t target
	var err error
	if t.suffix, err = parseSuffix(rest); err != nil {
		return target{}, err
	}
	switch {
	case first == "..":
		return target{}, errPathSegment
	case strings.Count(first, ".") == 2:
		t.token = first
		if strings.Contains(t.suffix.decoded, first) {
			return target{}, errPathToken
		}
	case token.ValidVideoID(first):
		t.videoID = first
	default:
		return target{}, errPathID
	}
	return t, nil
}

// isPlain reports whether what follows the first segment of a path is written
// as it is. The first segment need not be looked at: in a token or a video id,
// nothing is ever encoded, so what had to be is none.
func isPlain(path string) bool {
	if len(path) == 0 {
		return false
	}
	end := strings.IndexByte(path[1:], '/') + 1
	if end == 0 {
		return true
	}
	for i := end; i < len(path); i++ {
		if !plain[path[i]] {
			return false
		}
	}
	return true
}

// plain are the bytes that net/url never encodes in a path.
var plain = func() (set [256]bool) {
	for c := range set {
		set[c] = pchar[c] && !strings.ContainsRune("!'()*", rune(c))
	}
	set['/'] = true
	return set
}()

func parseSuffix(escaped string) (suffix, error) {
	if escaped == "" {
		return suffix{iframeSuffix, iframeSuffix}, nil
	}
	hasEscapes, err := checkSuffixBytes(escaped)
	if err != nil {
		return suffix{}, err
	}
	decoded := escaped
	if hasEscapes {
		if decoded, err = decodeSuffix(escaped); err != nil {
			return suffix{}, err
		}
	}
	if err := checkSegments(escaped); err != nil {
		return suffix{}, err
	}
	return suffix{escaped, decoded}, nil
}

// checkSuffixBytes holds a suffix against pchar of RFC 3986 section 3.3, less
// `;`, behind which some origins see path parameters and others a file name.
func checkSuffixBytes(s string) (hasEscapes bool, err error) {
	for i := range len(s) {
		switch c := s[i]; {
		case c == '%':
			hasEscapes = true
		case c != '/' && !pchar[c]:
			return false, errPathByte
		}
	}
	return hasEscapes, nil
}

// checkSegments refuses dot segments, and empty segments but for the last,
// which is a trailing slash. Escapes never decode to a dot or a slash, so the
// escaped form tells.
func checkSegments(s string) error {
	for {
		segment, rest, more := strings.Cut(s, "/")
		if segment == "." || segment == ".." || segment == "" && more {
			return errPathSegment
		}
		if !more {
			return nil
		}
		s = rest
	}
}

// decodeSuffix resolves percent-encoding once and refuses what must not come
// out of it: the characters that have a meaning in paths, and a `%` that a
// second decoding at the origin would resolve again.
func decodeSuffix(escaped string) (string, error) {
	decoded, err := url.PathUnescape(escaped)
	if err != nil || !utf8.ValidString(decoded) {
		return "", errPathEscape
	}
	for i := 0; i < len(escaped); i++ {
		if escaped[i] == '%' {
			if strings.IndexByte(`/\.;%?#`, unhex(escaped[i+1])<<4|unhex(escaped[i+2])) >= 0 {
				return "", errPathEscape
			}
			i += 2
		}
	}
	if strings.ContainsFunc(decoded, unicode.IsControl) {
		return "", errPathEscape
	}
	return decoded, nil
}

// unhex returns the value of a hexadecimal digit that url.PathUnescape has let
// through.
func unhex(c byte) byte {
	switch {
	case c <= '9':
		return c - '0'
	case c <= 'F':
		return c - 'A' + 10
	default:
		return c - 'a' + 10
	}
}

// pchar is pchar of RFC 3986 without percent-encoding and without `;`.
var pchar = func() (set [256]bool) {
	const unreserved = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"
	for _, c := range unreserved + "!$&'()*+,=:@" {
		set[c] = true
	}
	return set
}()

// videoPlaceholder stands for the video id in an origin_path template.
const videoPlaceholder = "{video}"

// originPath builds the paths that the origin is asked for.
type originPath struct {
	// literals are what stands before, between and behind the video ids.
	literals []string
}

// parseOriginPath compiles an origin_path template. A template without the
// video id would let the token of one video open every other.
func parseOriginPath(template string) (originPath, error) {
	p := originPath{strings.Split(strings.TrimSuffix(template, "/"), videoPlaceholder)}
	if len(p.literals) < 2 {
		return originPath{}, fmt.Errorf("origin_path %q does not contain %s", template, videoPlaceholder)
	}
	example, ok := strings.CutPrefix(strings.Join(p.literals, "v"), "/")
	if !ok {
		return originPath{}, fmt.Errorf("origin_path %q does not start with a slash", template)
	}
	if strings.Contains(example, "%") {
		return originPath{}, fmt.Errorf("origin_path %q contains a percent sign; write the folder's name as it is", template)
	}
	if strings.HasSuffix(example, "/") {
		return originPath{}, fmt.Errorf("origin_path %q: %w", template, errPathSegment)
	}
	if _, err := parseSuffix(example); err != nil {
		return originPath{}, fmt.Errorf("origin_path %q: %w", template, err)
	}
	return p, nil
}

// folder returns the path of a video on the origin, without a trailing slash.
func (p originPath) folder(videoID string) string { return strings.Join(p.literals, videoID) }

// file returns the path of what a suffix names in the folder of a video.
func (p originPath) file(videoID, suffix string) string {
	if len(p.literals) == 2 { // in one allocation
		return p.literals[0] + videoID + p.literals[1] + "/" + suffix
	}
	return p.folder(videoID) + "/" + suffix
}

// kind says what sort of resource a suffix names. It is one of a closed set,
// so it can be a metric's label.
type kind string

const (
	kindManifest  kind = "manifest"
	kindSegment   kind = "segment"
	kindIframe    kind = "iframe"
	kindThumbnail kind = "thumbnail"
	kindDownload  kind = "download"
	kindOther     kind = "other"
)

var kinds = [...]kind{kindManifest, kindSegment, kindIframe, kindThumbnail, kindDownload, kindOther}

// kindOf tells the kind of a suffix by its name. Downloads are the gate's to
// tell, for they are configured.
func kindOf(decoded string) kind {
	if decoded == iframeSuffix {
		return kindIframe
	}
	ending := extension(decoded)
	switch {
	case ending == "m3u8" || ending == "mpd":
		return kindManifest
	case strings.HasPrefix(decoded, "thumbnails/"):
		return kindThumbnail
	}
	switch ending {
	case "ts", "m2ts", "mp4", "m4s", "m4v", "m4a", "m4f", "cmfv", "cmfa", "cmft", "aac", "mp3", "ac3", "ec3", "ac4",
		"webm", "mkv", "mov", "ogg", "oga", "ogv", "opus", "flac", "wav", "vtt", "srt", "key":
		return kindSegment
	}
	return kindOther
}

// extension returns what follows the last dot of the last segment, in lower
// case: origins on file systems that fold case serve video.M3U8 too.
func extension(decoded string) string {
	name := decoded[strings.LastIndexByte(decoded, '/')+1:]
	dot := strings.LastIndexByte(name, '.')
	if dot < 0 {
		return ""
	}
	return strings.ToLower(name[dot+1:])
}

// pathGlobs are the patterns of the downloads option. In them `*` stands for
// any run of bytes, slashes included, and letters match in both cases: a
// pattern that guards something must rather match too much.
type pathGlobs []string

// parsePathGlob checks one pattern and returns it in lower case.
func parsePathGlob(pattern string) (string, error) {
	text := pattern
	pattern, _ = strings.CutPrefix(pattern, "/")
	if pattern == "" {
		return "", fmt.Errorf("downloads: path glob %q is empty; write for example downloads/*", text)
	}
	if strings.Contains(pattern, "%") {
		return "", fmt.Errorf("downloads: path glob %q contains a percent sign; write the name as it is", pattern)
	}
	// No suffix contains these, so the pattern would guard nothing.
	if !utf8.ValidString(pattern) || strings.ContainsAny(pattern, `\;?#`) || strings.ContainsFunc(pattern, unicode.IsControl) {
		return "", fmt.Errorf("downloads: path glob %q contains a character that no path of a playback URL can: \\ ; ? # or a control character", pattern)
	}
	for segment := range strings.SplitSeq(strings.TrimSuffix(pattern, "/"), "/") {
		if segment == "" || segment == "." || segment == ".." {
			return "", fmt.Errorf("downloads: path glob %q: %w", pattern, errPathSegment)
		}
	}
	return strings.ToLower(pattern), nil
}

func (g pathGlobs) match(decoded string) bool {
	decoded = strings.ToLower(decoded)
	for _, pattern := range g {
		if globMatch(pattern, decoded) {
			return true
		}
	}
	return false
}

// globMatch matches in time linear in len(pattern)*len(s), with no backtracking
// beyond the last star.
func globMatch(pattern, s string) bool {
	var p, i int
	star, mark := -1, 0
	for i < len(s) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, mark = p, i
			p++
		case p < len(pattern) && pattern[p] == s[i]:
			p++
			i++
		case star >= 0:
			mark++
			p, i = star+1, mark
		default:
			return false
		}
	}
	return strings.Trim(pattern[p:], "*") == ""
}
