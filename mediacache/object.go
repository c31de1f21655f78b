package mediacache

import (
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/signed-playback/caddy-signed-playback/internal/mediatype"
)

// object is a response of the origin. It is immutable, except its body, which may
// still arrive.
type object struct {
	status     int
	header     http.Header // as the origin sent it, without Content-Length and Age
	length     int64       // of the body; -1 if it was not announced
	body       *body
	made       time.Time // when its age was zero
	freshness  freshness
	keep       bool // for later requests
	isManifest bool
	isMedia    bool      // other than a manifest
	etag       string    // with its quotes; empty without one
	modified   time.Time // Last-Modified; zero without one
	sliced     bool      // the body is empty, and other objects have its slices
}

// newObject returns the object of a response.
func newObject(status int, header http.Header, path string, b *body) *object {
	o := &object{status: status, header: http.Header{}, length: -1, body: b, etag: header.Get("ETag")}
	o.setHeader(header)
	if n, err := strconv.ParseInt(header.Get("Content-Length"), 10, 64); err == nil && n >= 0 {
		o.length = n
	}
	if at, err := http.ParseTime(header.Get("Last-Modified")); err == nil {
		o.modified = at
	}
	o.isManifest, o.isMedia = classify(header.Get("Content-Type"), path)
	return o
}

// canBeSliced reports whether parts of the object can be asked for, and be told from
// those of another one.
func (o *object) canBeSliced() bool {
	return o.status == http.StatusOK && o.header.Get("Accept-Ranges") == "bytes" && o.hasValidator()
}

// hasValidator reports whether the object can be told from another version of it.
func (o *object) hasValidator() bool { return o.etag != "" && !isWeak(o.etag) || !o.modified.IsZero() }

// isOf reports whether a slice is of this version of a large object.
func (o *object) isOf(large *object) bool {
	return o.etag == large.etag && o.modified.Equal(large.modified)
}

func isWeak(etag string) bool { return strings.HasPrefix(etag, "W/") }

// classify tells by type and name what an object is.
func classify(contentType, path string) (isManifest, isMedia bool) {
	mediaType, _, _ := strings.Cut(strings.ToLower(contentType), ";")
	mediaType = strings.TrimSpace(mediaType)
	ending := mediatype.Ending(path)
	if mediatype.Manifest(contentType) != "" || mediatype.IsManifest(ending) {
		return true, false
	}
	kind, _, _ := strings.Cut(mediaType, "/")
	return false, mediaType == "" || slices.Contains(mediaKinds, kind) || slices.Contains(mediaTypes, mediaType) ||
		mediatype.IsSegment(ending) && ending != "key" || slices.Contains(mediaEndings, ending)
}

// What the TTLs of the configuration are for.
var (
	mediaKinds   = []string{"audio", "video", "image", "font"}
	mediaTypes   = []string{"application/mp4", "application/ttml+xml", "text/vtt", "application/x-subrip"}
	mediaEndings = []string{"ttml", "jpg", "jpeg", "png", "webp", "avif"} // besides segments
)

// objectOverhead is about what an object takes besides its header and body: itself,
// its entry, the place in the map and in a queue, and the small parts of a header.
const objectOverhead = 1280

// size is what an object takes of the budget.
func (o *object) size() int64 { return o.body.taken() }

func headerSize(h http.Header) (n int64) {
	for name, values := range h {
		n += int64(len(name)) + 64
		for _, value := range values {
			n += int64(len(value)) + 16
		}
	}
	return n
}

func (o *object) age(now time.Time) time.Duration { return max(now.Sub(o.made), 0) }

func (o *object) isFresh(now time.Time) bool { return o.age(now) < o.freshness.lifetime }

// canBeStale reports whether the object may be used for a while after it was fresh.
func (o *object) canBeStale(now time.Time, after time.Duration) bool {
	return o.age(now) < o.freshness.lifetime+after
}

// outlasts reports whether the object could be used at a time when its refreshed form, for
// which the origin may have been stricter, cannot.
func (o *object) outlasts(refreshed *object) bool {
	end, f, r := refreshed.made.Sub(o.made), o.freshness, refreshed.freshness
	return f.lifetime+f.staleWhileRevalidate > end+r.lifetime+r.staleWhileRevalidate || f.lifetime+f.staleIfError > end+r.lifetime+r.staleIfError
}

// setHeader sets fields, but not those about a connection, a single viewer or a single
// transfer.
func (o *object) setHeader(header http.Header) {
	for name, values := range header {
		switch name {
		case "Content-Length", "Age", "Set-Cookie", "Connection", "Keep-Alive", "Transfer-Encoding", "Trailer", "Upgrade", "Content-Range":
		default:
			o.header[name] = slices.Clone(values)
		}
	}
}

// copyHeader copies fields with values of their own, which handlers before the cache may
// change in place, as Caddy's `header` does.
func copyHeader(to, from http.Header) {
	count := 0
	for _, values := range from {
		count += len(values)
	}
	all := make([]string, 0, count)
	for name, values := range from {
		start := len(all)
		all = append(all, values...)
		to[name] = slices.Clip(all[start:])
	}
}

// refreshed returns the object with the headers of a 304 (RFC 9111 section 3.2). Headers
// that describe the body keep their values.
func (o *object) refreshed(header http.Header, made time.Time) *object {
	fresh := *o
	fresh.header, fresh.made = o.header.Clone(), made
	fresh.setHeader(header)
	for _, name := range []string{"Content-Encoding", "Content-Type", "Etag", "Last-Modified"} {
		delete(fresh.header, name)
		if values, ok := o.header[name]; ok {
			fresh.header[name] = values
		}
	}
	return &fresh
}
