package mediacache

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// key names an object. Two requests with the same key get the same bytes, so it
// contains everything that the origin is told.
type key struct {
	Variant
	overTLS bool   // else origins may redirect to HTTPS
	host    string // lower case
	path    string // escaped, as the origin gets it
	query   string // what counts of it, undecoded
	slice   int64  // 1 + the number of a slice; 0 is the whole object
}

// Variant is the part of an object's key that the URL does not tell.
type Variant struct {
	Text string // what else tells requests of one URL apart, for example the folder that a site serves

	// Group names objects that are dropped together, for example those of a video: by a
	// request with a greater Generation than any before. Later requests with a smaller one
	// count as of that one. Without a group, Generation is that of GenerationHeader.
	Group      string
	Generation int64
}

func (v Variant) size() int64 { return int64(len(v.Text) + len(v.Group)) }

// clone copies the strings of the key. The originals are parts of the request line, which
// contains the token and would stay in memory with them.
func (k key) clone() key {
	k.Text, k.Group, k.host, k.path, k.query = strings.Clone(k.Text), strings.Clone(k.Group), strings.Clone(k.host), strings.Clone(k.path), strings.Clone(k.query)
	return k
}

// url returns the URL that the key names. That of the request may contain more, for
// example an empty query or another host.
func (k key) url() *url.URL {
	path, err := url.PathUnescape(k.path)
	if err != nil { // EscapedPath does not return such a path
		path = k.path
	}
	u := &url.URL{Path: path, RawQuery: k.query}
	if u.EscapedPath() != k.path {
		u.RawPath = k.path
	}
	return u
}

// keyOf returns the key of a request.
func keyOf(r *http.Request, config *Config) key {
	k := key{overTLS: r.TLS != nil, host: strings.ToLower(r.Host), path: r.URL.EscapedPath(), query: filterQuery(r.URL.RawQuery, config.Query)}
	if config.Variant != nil {
		k.Variant = config.Variant(r)
	}
	if k.Group == "" {
		k.Generation, _ = generationOf(r)
	}
	return k
}

// CheckQuery checks the name of a query parameter, which is compared with the
// undecoded query.
func CheckQuery(name string) error {
	if name == "" || !isQueryName(name) {
		return fmt.Errorf("query %q: want the name of a parameter as it is in URLs, without `=` and `&`", name)
	}
	return nil
}

func isQueryName(name string) bool {
	for _, c := range []byte(name) {
		if c <= ' ' || c >= 0x7f || c == '&' || c == '=' || c == '#' {
			return false
		}
	}
	return true
}

// filterQuery keeps the parameters that count, byte for byte and in their order: to
// an origin, another spelling may be another object. named are the parameters that
// count; if there are none, all but CMCD's count.
func filterQuery(query string, named []string) string {
	counts := func(parameter string) bool {
		name, _, _ := strings.Cut(parameter, "=")
		if named == nil {
			return name != "CMCD"
		}
		return slices.Contains(named, name)
	}
	if query == "" {
		return ""
	}
	var kept []string
	for parameter := range strings.SplitSeq(query, "&") {
		if counts(parameter) {
			kept = append(kept, parameter)
		}
	}
	return strings.Join(kept, "&")
}

// Plan is what a cache does with a request, as far as the request tells.
type Plan struct {
	Host, Path, Query string        // of the key
	Bypass            bool          // the request goes past the cache
	TTL               time.Duration // how long a whole answer is fresh if the origin does not say
	Known             bool          // whether the name tells the TTL; else the TTL is that of media, and counts by the type
}

// Plan returns what a cache with this config does with a request.
func (c *Config) Plan(r *http.Request) Plan {
	k := keyOf(r, c)
	isManifest, isMedia := classify("application/octet-stream", k.path)
	return Plan{
		Host: k.host, Path: k.path, Query: k.query, Bypass: !isCacheable(r),
		TTL: c.ttl(http.StatusOK, isManifest, true), Known: isManifest || isMedia,
	}
}

// userAgent is the user agent of requests to the origin. Those of viewers do not reach it.
const userAgent = "signed-playback"

// GenerationHeader tells a cache in the tier after this one the generation of the object, if
// it is not 0. A request with something else than a number goes past that cache. It does not
// name the group, so a stranger who invents it misses objects and drops none.
const GenerationHeader = "Signed-Playback-Purged"

// generationOf returns the generation that a cache in the tier before wants.
func generationOf(r *http.Request) (generation int64, ok bool) {
	header := r.Header[GenerationHeader]
	if len(header) == 0 {
		return 0, true
	}
	n, err := strconv.ParseUint(header[0], 10, 63)
	return int64(n), err == nil && len(header) == 1
}

// originRequest returns the request that a fill sends to the origin. It says nothing
// about the viewer who happens to be the first.
func originRequest(ctx context.Context, r *http.Request, k key, old *object) *http.Request {
	out := r.Clone(ctx)
	out.Method = http.MethodGet
	out.Body, out.ContentLength, out.TransferEncoding, out.Trailer = http.NoBody, 0, nil, nil
	out.RemoteAddr = ""
	out.Host = k.host
	out.URL = k.url()
	out.RequestURI = out.URL.RequestURI()
	out.Proto, out.ProtoMajor, out.ProtoMinor = "HTTP/1.1", 1, 1
	if k.overTLS {
		out.TLS = &tls.ConnectionState{HandshakeComplete: true} // with no certificate of the viewer
	}
	out.Header = http.Header{
		"User-Agent":      {userAgent},
		"Accept-Encoding": {"identity"},
	}
	if k.Generation > 0 {
		out.Header[GenerationHeader] = []string{strconv.FormatInt(k.Generation, 10)}
	}
	switch {
	case k.slice > 0:
		part := sliceOf(k.slice-1, old.length)
		out.Header.Set("Range", rangeOf(part))
		if old.etag != "" && !isWeak(old.etag) {
			out.Header.Set("If-Range", old.etag)
		} else {
			out.Header.Set("If-Range", old.fields.get("Last-Modified"))
		}
	case old != nil && old.etag != "":
		out.Header.Set("If-None-Match", old.etag)
	case old != nil && !old.modified.IsZero():
		out.Header.Set("If-Modified-Since", old.fields.get("Last-Modified"))
	}
	return out
}
