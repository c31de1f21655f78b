// Package playbackpath is the grammar of playback URLs: /<token or video id>/<suffix>. It reads
// the path of a viewer so that no server behind the gate can read it otherwise, classifies the
// file that a suffix names, and builds the path of the file on the origin.
package playbackpath

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/signed-playback/caddy-signed-playback/internal/mediatype"
	"github.com/signed-playback/caddy-signed-playback/internal/percent"
	"github.com/signed-playback/caddy-signed-playback/internal/redact"
	"github.com/signed-playback/caddy-signed-playback/internal/sessions"
	"github.com/signed-playback/caddy-signed-playback/token"
)

// ErrVideoID says what a video id is. The function token.ValidVideoID decides.
var ErrVideoID = errors.New("a video id is 1 to 64 of A-Z a-z 0-9 _ -")

// Target is the parsed path of a playback request: a token or a video id, and a
// suffix.
type Target struct {
	Token   string // "" if the path carries a video id
	VideoID string // "" if the path carries a token
	Session string // what is meant to be a session id; "" if there is none
	Suffix  Suffix
}

// First returns the first segment of the path.
func (t Target) First() string { return cmp.Or(t.Token, t.VideoID) }

// Folder returns the path of the video's folder for the viewer, and for this session.
func (t Target) Folder() string {
	if t.Session == "" {
		return "/" + t.First() + "/"
	}
	return "/" + t.First() + "/" + sessions.Prefix + t.Session + "/"
}

// IsIn reports whether a text contains a secret of the path: the token or the session id.
func (t Target) IsIn(text string) bool {
	return redact.Contains(text, t.Token) || redact.Contains(text, t.Session)
}

// Suffix is the part of a playback path after the first segment, without a
// leading slash. The gate validates it and never repairs it.
type Suffix struct {
	Escaped string // as the viewer wrote it, except for raw brackets
	Decoded string // escaped, percent-decoded once
}

const (
	// IframeSuffix is the suffix of a path that has only a token or a video id.
	IframeSuffix = "iframe"

	// HLSJSSuffix is the suffix at which the player page loads hls.js. Like everything
	// that the page loads, it is below the viewer's own token or id.
	HLSJSSuffix = "iframe/hls.js"

	// ViewsSuffix is the suffix at which the gate tells how many sessions of a video run,
	// with sessions on. The origin's file of that name cannot be reached then.
	ViewsSuffix = "views"
)

var (
	errForm    = errors.New("the path is not /<token or video id>/<suffix>")
	errID      = errors.New("the first segment is neither a token nor a video id")
	errByte    = errors.New("the path contains a byte that is not allowed in a playback URL")
	errEscape  = errors.New("the path contains percent-encoding that is not printable UTF-8, or that encodes a character with a meaning in paths")
	errToken   = errors.New("the path contains a token below its first segment; if the URL has a prefix before the token, remove it with handle_path or uri strip_prefix")
	errSegment = errors.New("the path contains an empty segment or a dot segment")
	errName    = errors.New("the path contains a name that a file system may take for another")
)

// Parse parses a playback path. It reads the bytes that the client sent: in a
// decoded or cleaned path, `..`, `%2f` or `//` could mean one thing here and
// another at the origin.
func (p Rules) Parse(u *url.URL) (Target, error) {
	path := u.Path
	if u.RawPath != "" || !isPlain(path) {
		path = u.EscapedPath()
	}
	if u.RawPath != "" && path != u.RawPath {
		// The path contains bytes that clients never send raw, or an earlier
		// handler has changed only one of the two forms.
		return Target{}, errByte
	}
	path, ok := strings.CutPrefix(path, "/")
	if !ok {
		return Target{}, errForm
	}
	first, rest, _ := strings.Cut(path, "/")
	var t Target
	var err error
	if p.Sessions {
		t.Session, rest = cutSession(rest)
	}
	if t.Suffix, err = p.ParseSuffix(rest, first); err != nil {
		return Target{}, err
	}
	if p.Sessions && beginsLikeSession(t.Suffix.Decoded) {
		t.Session = notSession
	}
	switch {
	case first == "..":
		return Target{}, errSegment
	case strings.Count(first, ".") == 2:
		t.Token = first
	case token.ValidVideoID(first):
		t.VideoID = first
	default:
		return Target{}, errID
	}
	return t, nil
}

// notSession takes the place of a session id that cannot be one.
const notSession = "\x00"

// cutSession cuts the session off the part of a path after its first segment. Everything
// after a session is as without it, so the same session may follow: Shaka resolves the
// URIs of an MPD against its Location, which leads below the session, too.
func cutSession(path string) (session, rest string) {
	for {
		segment, below, _ := strings.Cut(path, "/")
		if !sessions.HasForm(segment) || session != "" && segment[len(sessions.Prefix):] != session {
			return session, path
		}
		session, path = segment[len(sessions.Prefix):], below
	}
}

// beginsLikeSession reports whether some origin could see a session in a decoded suffix: an
// escaped one, one after an empty segment, or a second one.
func beginsLikeSession(decoded string) bool {
	segment, _, _ := strings.Cut(strings.TrimLeft(decoded, "/"), "/")
	return sessions.HasForm(segment)
}

// containsToken reports whether a decoded path contains a token: three parts of
// base64url between dots, of which the first encodes a JSON object. The origin
// would log it.
func containsToken(decoded string) bool {
	if strings.Count(decoded, ".") < 2 {
		return false
	}
	notInToken := func(c rune) bool { return c >= utf8.RuneSelf || c != '.' && !base64url[byte(c)] }
	for run := range strings.FieldsFuncSeq(decoded, notInToken) {
		parts := strings.Split(run, ".")
		if slices.ContainsFunc(parts[:max(0, len(parts)-2)], endsInObject) {
			return true
		}
	}
	return false
}

// endsInObject reports whether a part, or its end, encodes a JSON object. Text may be in
// front of it.
func endsInObject(part string) bool {
	const start = "eyJ" // `{"` in base64
	const most = 32     // no file name has so many, and each costs time
	found := encodesObject(part)
	for range most {
		at := strings.Index(part, start)
		if found || at < 0 {
			return found
		}
		found = encodesObject(part[at:])
		part = part[at+1:]
	}
	return true
}

func encodesObject(part string) bool {
	text, err := base64.RawURLEncoding.DecodeString(part)
	return err == nil && bytes.HasPrefix(bytes.TrimSpace(text), []byte("{")) && json.Valid(text)
}

// base64url is the alphabet of RFC 4648 section 5.
var base64url = func() (set [256]bool) {
	for _, c := range "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_" {
		set[c] = true
	}
	return set
}()

// isPlain reports whether the path after its first segment needs no
// percent-encoding. It skips the first segment, because a token or a video id
// never needs any.
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

// DefaultManifest is where Cloudflare Stream has the HLS manifest of a video.
const DefaultManifest = "manifest/video.m3u8"

// ParseManifestPath reads the path of a manifest, relative to the video, from the
// configuration or a flag.
func ParseManifestPath(text string) (Suffix, error) {
	escaped, err := escapePath(strings.TrimPrefix(text, "/"))
	if err != nil {
		return Suffix{}, err
	}
	parsed, err := parseSuffix(escaped)
	if err == nil && (parsed.Decoded == IframeSuffix || strings.HasSuffix(parsed.Decoded, "/")) {
		err = errManifest
	}
	return parsed, err
}

var errManifest = errors.New("it is not the path of a manifest; give one like master.m3u8")

// escapePath returns the one spelling of a path that an operator has written as the
// files are called, or percent-encoded.
func escapePath(path string) (string, error) {
	escaped := make([]byte, 0, len(path))
	for i := 0; i < len(path); i++ {
		c := path[i]
		if c == '%' {
			octet, ok := percent.Octet(path[i:])
			if !ok || octet == '/' {
				return "", errPercent
			}
			c, i = octet, i+2
		}
		if c == '/' || pchar[c] {
			escaped = append(escaped, c)
		} else {
			escaped = fmt.Appendf(escaped, "%%%02X", c)
		}
	}
	return string(escaped), nil
}

var errPercent = errors.New("it contains a percent sign that does not begin a percent-encoding, or encodes a slash; for a percent sign write %25")

func parseSuffix(escaped string) (Suffix, error) {
	if escaped == "" {
		return Suffix{IframeSuffix, IframeSuffix}, nil
	}
	special, err := checkSuffixBytes(escaped)
	if err != nil {
		return Suffix{}, err
	}
	decoded := escaped
	if special {
		escaped = brackets.Replace(escaped)
		if decoded, err = decodeSuffix(escaped); err != nil {
			return Suffix{}, err
		}
		if err := checkNames(decoded); err != nil {
			return Suffix{}, err
		}
	}
	if err := checkSegments(escaped); err != nil {
		return Suffix{}, err
	}
	if containsToken(decoded) {
		return Suffix{}, errToken
	}
	return Suffix{escaped, decoded}, nil
}

// checkSuffixBytes checks that a suffix consists of pchar (RFC 3986 section 3.3)
// without `;`, after which some origins see path parameters and others a file
// name, and without `:`. Brackets pass, because browsers do not encode them. special
// reports whether it contains a byte that needs a second look.
func checkSuffixBytes(s string) (special bool, err error) {
	for i := range len(s) {
		switch c := s[i]; {
		case c == '%' || c == '~' || c == '[' || c == ']':
			special = true
		case c == ':':
			return false, errName
		case c != '/' && !pchar[c]:
			return false, errByte
		}
	}
	return special, nil
}

// brackets encodes what RFC 3986 section 3.2.2 reserves for IP addresses.
var brackets = strings.NewReplacer("[", "%5B", "]", "%5D")

// checkSegments refuses dot segments, empty segments, except for one trailing
// slash, and segments whose last dot Windows drops. It may read the escaped form,
// because escapes of dots and slashes are refused elsewhere.
func checkSegments(s string) error {
	for {
		segment, rest, more := strings.Cut(s, "/")
		if segment == "." || segment == ".." || segment == "" && more {
			return errSegment
		}
		if strings.HasSuffix(segment, ".") {
			return errName
		}
		if !more {
			return nil
		}
		s = rest
	}
}

// decodeSuffix decodes percent-encoding once. It refuses escapes of characters
// that have a meaning in paths, and of `%`, which an origin that decodes twice
// would decode again.
func decodeSuffix(escaped string) (string, error) {
	for i := range len(escaped) {
		if octet, ok := percent.Octet(escaped[i:]); escaped[i] == '%' && (!ok || strings.IndexByte(`/\.;%?#`, octet) >= 0) {
			return "", errEscape
		}
	}
	text := decodeOnce(escaped, true)
	if !utf8.ValidString(text) || strings.ContainsFunc(text, unicode.IsControl) {
		return "", errEscape
	}
	return text, nil
}

// pchar is pchar of RFC 3986 without percent-encoding and without `;`.
var pchar = func() (set [256]bool) {
	const unreserved = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"
	for _, c := range unreserved + "!$&'()*+,=:@" {
		set[c] = true
	}
	return set
}()

// HasOnlyPchar reports whether a path consists of slashes and of pchar without
// percent-encoding.
func HasOnlyPchar(path string) bool {
	return !strings.ContainsFunc(path, func(c rune) bool { return c >= utf8.RuneSelf || c != '/' && !pchar[c] })
}

// VideoPlaceholder stands for the video id in an origin_path template.
const VideoPlaceholder = "{video}"

// OriginPath builds the paths that the origin is asked for.
type OriginPath struct {
	escaped, decoded folderTemplate
}

// folderTemplate has the texts before, between and after the video ids.
type folderTemplate []string

// folderAdvice is for origins that have the files of all videos in one folder.
// `x-0.ts` may be a segment of x there, or a file of the video `x-0`.
const folderAdvice = "each video needs a folder of its own at the origin, and docs/origins.md says how media servers write one"

// ParseOriginPath compiles an origin_path template. It must contain the video id,
// or the token of one video would open all others.
func ParseOriginPath(template string) (p OriginPath, err error) {
	literals := strings.Split(strings.TrimSuffix(template, "/"), VideoPlaceholder)
	if len(literals) < 2 {
		return OriginPath{}, fmt.Errorf("origin_path %q does not contain %s: %s", template, VideoPlaceholder, folderAdvice)
	}
	if !strings.HasPrefix(template, "/") {
		return OriginPath{}, fmt.Errorf("origin_path %q does not start with a slash", template)
	}
	for _, literal := range literals {
		escaped, err := escapePath(literal)
		if err != nil {
			return OriginPath{}, fmt.Errorf("origin_path %q: %w", template, err)
		}
		p.escaped, p.decoded = append(p.escaped, escaped), append(p.decoded, decodeOnce(escaped, true))
	}
	example := p.decoded.folder("v")[1:]
	if kindOf(example) == KindManifest {
		return OriginPath{}, fmt.Errorf("origin_path %q names a manifest: write the folder of the video, and its manifest in the option manifest; %s", template, folderAdvice)
	}
	switch {
	case strings.ContainsAny(template, "?#;"):
		err = errFolderDelimiter
	case !utf8.ValidString(example) || strings.ContainsFunc(example, unicode.IsControl) || strings.Contains(example, `\`):
		err = errFolderByte
	case strings.HasSuffix(example, "/"):
		err = errSegment
	default:
		// The operator knows the file system, so a colon may be in the template.
		err = cmp.Or(checkSegments(example), checkNames(strings.ReplaceAll(example, ":", "-")))
	}
	if err != nil {
		return OriginPath{}, fmt.Errorf("origin_path %q: %w", template, err)
	}
	return p, nil
}

var (
	errFolderDelimiter = errors.New("it contains ?, # or ;, which end a path; in the name of a folder write %3F, %23 or %3B")
	errFolderByte      = errors.New("it contains a backslash, a control character, or bytes that are not UTF-8")
)

// String returns the template with its literals percent-encoded.
func (p OriginPath) String() string { return p.escaped.folder(VideoPlaceholder) }

// Folder returns the percent-encoded folder of a video, without a trailing slash.
func (p OriginPath) Folder(videoID string) string { return p.escaped.folder(videoID) }

// File returns the path of a file of a video, percent-encoded and decoded. It consists of
// nothing of the viewer's path but the suffix.
func (p OriginPath) File(videoID string, s Suffix) (escaped, decoded string) {
	escaped = p.escaped.file(videoID, s.Escaped)
	if !strings.Contains(escaped, "%") {
		return escaped, escaped
	}
	return escaped, p.decoded.file(videoID, s.Decoded)
}

func (t folderTemplate) folder(videoID string) string { return strings.Join(t, videoID) }

func (t folderTemplate) file(videoID, suffix string) string {
	if len(t) == 2 { // in one allocation
		return t[0] + videoID + t[1] + "/" + suffix
	}
	return t.folder(videoID) + "/" + suffix
}

// Kind classifies the resource that a suffix names. It comes from a closed set,
// so it can be the label of a metric.
type Kind string

const (
	KindManifest  Kind = "manifest"
	KindSegment   Kind = "segment"
	KindIframe    Kind = "iframe"
	KindThumbnail Kind = "thumbnail"
	kindDownload  Kind = "download"
	KindOther     Kind = "other"
)

var Kinds = [...]Kind{KindManifest, KindSegment, KindIframe, KindThumbnail, kindDownload, KindOther}

// kindOf returns the kind of a suffix by its name. Only the gate recognizes
// downloads, because they are configured.
func kindOf(decoded string) Kind {
	if decoded == IframeSuffix {
		return KindIframe
	}
	switch ending := mediatype.Ending(decoded); {
	case mediatype.IsManifest(ending):
		return KindManifest
	case strings.HasPrefix(decoded, "thumbnails/"):
		return KindThumbnail
	case mediatype.IsSegment(ending):
		return KindSegment
	}
	return KindOther
}

// Globs are the patterns of the downloads option. `*` matches any run of
// bytes, including slashes, and letters match as foldName makes them equal,
// because a pattern that guards files should match too much rather than too
// little.
type Globs []string

// ParseGlob checks one pattern and returns its folded form.
func ParseGlob(pattern string) (string, error) {
	text := pattern
	pattern, _ = strings.CutPrefix(pattern, "/")
	if pattern == "" {
		return "", fmt.Errorf("downloads: path glob %q is empty; write for example downloads/*", text)
	}
	if strings.Contains(pattern, "%") {
		return "", fmt.Errorf("downloads: path glob %q contains a percent sign; write the name as it is", pattern)
	}
	// No suffix contains these characters, so the pattern would guard nothing.
	if !utf8.ValidString(pattern) || strings.ContainsAny(pattern, `\;:?#`) || strings.ContainsFunc(pattern, unicode.IsControl) {
		return "", fmt.Errorf("downloads: path glob %q contains a character that no path of a playback URL can: \\ ; : ? # or a control character", pattern)
	}
	if err := checkSegments(pattern); err != nil {
		return "", fmt.Errorf("downloads: path glob %q: %w", pattern, err)
	}
	return foldName(pattern), nil
}

func (g Globs) match(decoded string) bool {
	decoded = foldName(decoded)
	for _, pattern := range g {
		if globMatch(pattern, decoded) {
			return true
		}
	}
	return false
}

// globMatch takes time proportional to at most len(pattern)*len(s), because it
// backtracks only to the last star.
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
