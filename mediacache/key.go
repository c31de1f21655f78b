package mediacache

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
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
