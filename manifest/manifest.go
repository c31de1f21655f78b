// Package manifest edits HLS, Low-Latency HLS and DASH manifests, so that a
// viewer who got a manifest from below a signed path asks for everything else
// below that path too.
//
// # What is written
//
// On the origin, a video lives in a folder. A viewer sees the folder as
// /<token>/, below a mount point that only the viewer knows. The places of files
// within the folder are the same on both sides. So a URI that leads into the
// folder is written relative to the manifest's own place in it:
//
//	in <folder>manifest/video.m3u8              becomes
//	https://origin.example<folder>video/1.mp4   ../video/1.mp4
//	<folder>video/1.mp4                         ../video/1.mp4
//	../../<name of the folder>/video/1.mp4      ../video/1.mp4
//	../video/1.mp4                              ../video/1.mp4, untouched
//
// This package is never told the token, and only ever writes references without
// a scheme and without a host. By construction, then, no manifest, however
// hostile, makes a player give the token to another host.
//
// A URI of another host or another scheme, or one that leads out of the folder,
// is left as it is. So is every byte that is not part of a URI: manifests are
// edited, not parsed and printed, because what a parser does not know it drops.
// The query and the fragment of a URI are kept byte for byte.
//
// # How URIs are read
//
// Players disagree about malformed URIs. They are read as the URL standard has
// browsers read http URLs, which is the reading that takes a URI furthest from
// what its bytes suggest: white space at the ends and tabs and line breaks
// anywhere are ignored, a backslash is a slash, and %2e is a dot. A host counts
// as the origin's only if every reading agrees: no userinfo, no backslash, no
// percent-encoding. A URI that is within the folder by this reading is left
// untouched if it is relative and does not climb above the folder. One that is
// rewritten is written the way browsers read it. Wherever a player reads it
// differently, it asks for a path that the gate refuses, or for one on a host
// that the manifest itself names, without a token.
package manifest

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// MaxSize is the size up to which Rewrite accepts a manifest.
const MaxSize = 8 << 20

// ErrInvalid says that a manifest is malformed, or that it cannot be rewritten
// such that all players follow it to the same places as before. Errors name the
// line or the offset, never a URI.
var ErrInvalid = errors.New("manifest: invalid")

var errLocation = errors.New("manifest: a location is an escaped absolute path within a folder that ends in a slash")

// Format is a manifest format. The zero value is none.
type Format int

// The formats that Rewrite knows.
const (
	HLS  Format = iota + 1 // master and media playlists, RFC 8216bis
	DASH                   // media presentation descriptions and patches to them, ISO/IEC 23009-1
)

// Location says where a manifest stands on the origin.
type Location struct {
	Path   string   // escaped absolute path of the manifest, without dot segments
	Folder string   // escaped absolute path of the video's folder, with a trailing slash; a prefix of Path
	Hosts  []string // host[:port] of the origin in lower case, as absolute URIs may name it
}

// Stats counts URIs. Each is counted once.
type Stats struct {
	Rewritten int
	Left      int // within the folder already, on another host, or of another scheme
	Outside   int // on the origin, but not in the folder; left as they are
}

// Rewrite appends the manifest src, rewritten, to dst. The query is that of the
// viewer's request, undecoded: HLS has variables that take their value from it.
// On error, dst is returned as it was. dst and src must not overlap.
func Rewrite(dst, src []byte, f Format, at Location, query string) ([]byte, Stats, error) {
	if !at.valid() {
		return dst, Stats{}, errLocation
	}
	if len(src) > MaxSize {
		return dst, Stats{}, invalid("more than %d bytes", MaxSize)
	}
	if bytes.IndexByte(src, 0) >= 0 {
		return dst, Stats{}, invalid("a NUL byte")
	}
	var out []byte
	var stats Stats
	var err error
	switch f {
	case HLS:
		out, stats, err = rewriteHLS(dst, src, at, query)
	case DASH:
		out, stats, err = rewriteDASH(dst, src, at)
	default:
		err = fmt.Errorf("manifest: unknown format %d", f)
	}
	if err != nil {
		return dst, Stats{}, err
	}
	return out, stats, nil
}

// Map maps a single URI that a response at this location refers to, like that
// of a redirect, as Rewrite does. inside reports whether it leads into the
// folder; if not, mapped is the URI as it was.
func (at Location) Map(uri string) (mapped string, inside bool) {
	if !at.valid() {
		return uri, false
	}
	ref, suffix := cutSuffix(trim([]byte(uri)))
	m := newMapper(at)
	switch m.follow(m.document(), ref) {
	case kept:
		return uri, true
	case written:
		return string(m.out) + string(suffix), true
	case elsewhere, outside, stranded, diverted:
	}
	return uri, false
}

// valid holds a location against what the mapping relies on.
func (at Location) valid() bool {
	if !strings.HasPrefix(at.Folder, "/") || !strings.HasSuffix(at.Folder, "/") || !strings.HasPrefix(at.Path, at.Folder) {
		return false
	}
	if strings.ContainsAny(at.Path, `\?#`) {
		return false
	}
	for segment := range strings.SplitSeq(at.Path, "/") {
		if dots([]byte(segment)) > 0 {
			return false
		}
	}
	return true
}

var byteOrderMark = []byte("\ufeff")

// Sniff tells a manifest by how it begins, whatever type it is served as. It
// also recognizes manifests that Rewrite refuses. A prefix of the body does, if
// it reaches to the root element.
func Sniff(body []byte) Format {
	body = bytes.TrimPrefix(body, byteOrderMark)
	if bytes.HasPrefix(body, []byte("#EXTM3U")) {
		return HLS
	}
	for {
		body = bytes.TrimLeft(body, " \t\r\n")
		end := -1
		switch {
		case bytes.HasPrefix(body, []byte("<?")):
			end = after(body, "?>")
		case bytes.HasPrefix(body, []byte("<!--")):
			end = after(body, "-->")
		case bytes.HasPrefix(body, []byte("<!")):
			end = doctypeEnd(body)
		case bytes.HasPrefix(body, []byte("<")):
			name := body[1:]
			for i, c := range name {
				if !nameByte[c] {
					name = name[:i]
					break
				}
			}
			if isManifestRoot(local(name)) {
				return DASH
			}
		}
		if end < 0 {
			return 0
		}
		body = body[end:]
	}
}

// after returns the offset behind the first occurrence of mark, or -1.
func after(b []byte, mark string) int {
	if i := bytes.Index(b, []byte(mark)); i >= 0 {
		return i + len(mark)
	}
	return -1
}

// doctypeEnd returns the offset behind a document type declaration, or -1.
func doctypeEnd(b []byte) int {
	depth, quote := 0, byte(0)
	for i, c := range b {
		switch {
		case quote != 0:
			if c == quote {
				quote = 0
			}
		case c == '"' || c == '\'':
			quote = c
		case c == '[' || c == '<':
			depth++
		case c == ']':
			depth--
		case c == '>':
			if depth--; depth == 0 {
				return i + 1
			}
		}
	}
	return -1
}

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrInvalid}, args...)...)
}

// editor copies src to dst but for what is replaced, in order.
type editor struct {
	src    []byte
	dst    []byte
	copied int // how much of src is in dst, or replaced
	limit  int // the length up to which dst may grow
}

// slack is by how much a small manifest may grow.
const slack = 4 << 10

// newEditor allows the manifest to double. A reference becomes longer if it is
// written from deep below the folder, or has its variables replaced, so a
// hostile manifest could otherwise grow without bounds.
func newEditor(dst, src []byte) editor {
	return editor{src: src, dst: slices.Grow(dst, len(src)), limit: len(dst) + 2*len(src) + slack}
}

// replace replaces src[from:to] by the given parts.
func (e *editor) replace(from, to int, parts ...[]byte) error {
	e.dst = append(e.dst, e.src[e.copied:from]...)
	for _, part := range parts {
		e.dst = append(e.dst, part...)
	}
	e.copied = to
	if len(e.dst)+len(e.src)-to > e.limit {
		return invalid("more than twice the size when rewritten")
	}
	return nil
}

// finish copies what is left.
func (e *editor) finish() []byte {
	e.dst = append(e.dst, e.src[e.copied:]...)
	e.copied = len(e.src)
	return e.dst
}
