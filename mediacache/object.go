package mediacache

import (
	"encoding/binary"
	"maps"
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
	fields     fields // as the origin sent them, without those of setHeader's list
	length     int64  // of the body; -1 if it was not announced
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
	o := &object{status: status, length: -1, body: b, etag: strings.Clone(header.Get("ETag"))}
	kept := http.Header{}
	setHeader(kept, header)
	o.fields = encodeFields(kept)
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
	return o.status == http.StatusOK && o.fields.get("Accept-Ranges") == "bytes" && o.hasValidator()
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

// objectOverhead is about what an object takes besides its fields and body: itself, its entry,
// and its places in the map and in a queue. In a map that has just grown, it takes 800 bytes.
const objectOverhead = 896

// size is what an object takes of the budget.
func (o *object) size() int64 { return o.body.state().reserved }

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
func setHeader(to, from http.Header) {
	for name, values := range from {
		switch name {
		case "Content-Length", "Age", "Set-Cookie", "Connection", "Keep-Alive", "Transfer-Encoding", "Trailer", "Upgrade", "Content-Range":
		default:
			to[name] = values
		}
	}
}

// refreshed returns the object with the headers of a 304 (RFC 9111 section 3.2). Headers
// that describe the body keep their values.
func (o *object) refreshed(header http.Header, made time.Time) *object {
	fresh := *o
	kept, update := o.fields.header(), maps.Clone(header)
	for _, name := range []string{"Content-Encoding", "Content-Type", "Etag", "Last-Modified"} {
		delete(update, name)
	}
	setHeader(kept, update)
	fresh.fields, fresh.made = encodeFields(kept), made
	return &fresh
}

// fields are the header fields of an object in one string, so that the garbage collector has
// nothing to follow in a hundred thousand objects: their number, and then names and values in
// turn, each with its length before it as a varint.
type fields string

// encodeFields is the reverse of header.
func encodeFields(h http.Header) fields {
	var count uint64
	for _, values := range h {
		count += uint64(len(values))
	}
	encoded := binary.AppendUvarint(nil, count)
	for name, values := range h {
		for _, value := range values {
			for _, text := range []string{name, value} {
				encoded = append(binary.AppendUvarint(encoded, uint64(len(text))), text...)
			}
		}
	}
	return fields(encoded)
}

// cutNumber cuts a varint off, which is complete.
func (f fields) cutNumber() (n int, rest fields) {
	for i, shift := 0, 0; ; i, shift = i+1, shift+7 {
		n |= int(f[i]&0x7f) << shift
		if f[i] < 0x80 {
			return n, f[i+1:]
		}
	}
}

func (f fields) cutText() (text string, rest fields) {
	n, f := f.cutNumber()
	return string(f[:n]), f[n:]
}

// each yields names and values. All values of a name come one after the other.
func (f fields) each(yield func(name, value string) bool) {
	for _, f = f.cutNumber(); f != ""; {
		var name, value string
		name, f = f.cutText()
		value, f = f.cutText()
		if !yield(name, value) {
			return
		}
	}
}

// get returns the first value of a field by its canonical name; "" without one.
func (f fields) get(name string) string {
	for n, value := range f.each {
		if n == name {
			return value
		}
	}
	return ""
}

// header returns a copy of the fields, so that a header in use does not keep an object's string in
// memory.
func (f fields) header() http.Header {
	h := http.Header{}
	fields(strings.Clone(string(f))).addTo(h)
	return h
}

// addTo replaces fields of a header by these. The header gets slices of its own, which handlers
// before the cache may change in place, as Caddy's `header` does.
func (f fields) addTo(h http.Header) {
	count, _ := f.cutNumber()
	all, first, last := make([]string, 0, count), 0, ""
	for name, value := range f.each {
		if name != last {
			first, last = len(all), name
		}
		all = append(all, value)
		h[name] = all[first:len(all):len(all)]
	}
}
