package signedplayback

import (
	"fmt"
	"mime"
	"net/http"
	"net/textproto"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"

	"github.com/signed-playback/caddy-signed-playback/internal/mediatype"
	"github.com/signed-playback/caddy-signed-playback/internal/playbackpath"
)

// isOriginHeader reports whether a header of the origin reaches the viewer. The
// list says what may pass, because the token is in the URL, and there are always
// more headers by which a response has a browser report, store or send URLs. A name
// has its canonical form.
func isOriginHeader(name string) bool {
	switch name {
	case "Content-Type", "Content-Length", "Content-Encoding", "Content-Language", "Content-Disposition",
		"Accept-Ranges", "Content-Range",
		"Age", "Cache-Control", "Expires", "Pragma", "Vary",
		"Cdn-Cache-Control", "Cloudflare-Cdn-Cache-Control", "Surrogate-Control",
		"Etag", "Last-Modified",
		"Content-Digest", "Repr-Digest", "Digest", "Content-Md5",
		"Date", "Location", "Retry-After", "Server-Timing", "Timing-Allow-Origin", "Cache-Status", "Via":
		return true
	}
	return strings.HasPrefix(name, "Cmsd-")
}

// headerNames is a set of canonical header names. It is immutable.
type headerNames map[string]bool

// parseResponseHeader returns the canonical form of a name for
// pass_response_headers. It refuses headers that the gate sets itself, that belong
// to a connection, or that have a browser report, store or send URLs with tokens.
func parseResponseHeader(name string) (string, error) {
	if !httpguts.ValidHeaderFieldName(name) || strings.Contains(name, "*") {
		return "", fmt.Errorf("pass_response_headers %q: want the full name of a header", name)
	}
	canonical := textproto.CanonicalMIMEHeaderKey(name)
	if slices.Contains(connectionHeaders, canonical) {
		return "", fmt.Errorf("pass_response_headers %q: the header is about one connection and cannot pass", name)
	}
	switch canonical {
	case cspHeader, cspHeader + "-Report-Only", nosniffHeader:
		return "", fmt.Errorf("pass_response_headers %q: the gate sets this header itself; "+
			"trust_origin_iframe passes the policy of the origin's page at /iframe", name)
	case "Set-Cookie", "Set-Cookie2", "Clear-Site-Data", "Service-Worker-Allowed", "Nel", "Report-To", "Reporting-Endpoints",
		"Refresh", "Referrer-Policy", "Www-Authenticate", "Proxy-Authenticate":
		return "", fmt.Errorf("pass_response_headers %q: a file of one video would have browsers store or report something about the whole host; "+
			"if the host needs this header, set it with the directive `header` before the gate", name)
	}
	if isCORSHeader(canonical) || strings.HasPrefix(canonical, "Signed-Playback-") {
		return "", fmt.Errorf("pass_response_headers %q: the gate sets this header itself", name)
	}
	return canonical, nil
}

// parseResponseHeaders compiles the option pass_response_headers.
func parseResponseHeaders(names []string) (headerNames, error) {
	return parseHeaderNames("pass_response_headers", names, parseResponseHeader)
}

// parseHeaderNames compiles an option. parse returns the canonical form of a name.
func parseHeaderNames(option string, names []string, parse func(string) (string, error)) (headerNames, error) {
	set := make(headerNames, len(names))
	for _, name := range names {
		canonical, err := parse(name)
		if err != nil {
			return nil, err
		}
		if set[canonical] {
			return nil, fmt.Errorf("%s: %q is repeated", option, name)
		}
		set[canonical] = true
	}
	return set, nil
}

// ownHeaders are the headers of one response that are not the origin's. It has room
// for the usual number, so that all cost one allocation.
type ownHeaders struct {
	earlier []header // that Caddy and earlier handlers have set, and an origin may not
	values  []string // that the gate sets

	room struct {
		earlier [2]header
		values  [5]string
	}
}

// header is a header with its values.
type header struct {
	name   string
	values []string
}

func newOwnHeaders() *ownHeaders {
	o := new(ownHeaders)
	o.earlier, o.values = o.room.earlier[:0], o.room.values[:0]
	return o
}

// set replaces the values of a header by one.
func (o *ownHeaders) set(h http.Header, name, value string) {
	o.values = append(o.values, value)
	n := len(o.values)
	h[name] = o.values[n-1 : n : n]
}

// passes reports whether a header of the origin reaches the viewer of this
// response.
func (w *response) passes(name string) bool {
	return isOriginHeader(name) || w.d.gate.passResponse[name] || name == cspHeader && w.d.trustsPage()
}

// rememberHeaders notes the headers of Caddy and earlier handlers that an origin may
// not replace. Only the gate sets CORS headers.
func (w *response) rememberHeaders() {
	own := newOwnHeaders()
	for name, values := range w.Header() {
		if !w.passes(name) && !isCORSHeader(name) {
			own.earlier = append(own.earlier, header{name, values})
		}
	}
	w.d.own = own
}

// dropOriginHeaders drops the origin's headers that may not pass. It restores the
// headers that were there before.
func (w *response) dropOriginHeaders() {
	h := w.Header()
	for name := range h {
		if !w.passes(name) {
			delete(h, name)
		}
	}
	for _, e := range w.d.own.earlier {
		h[e.name] = e.values
	}
}

// dropLateHeaders drops the headers that a handler has set after the response was
// denied, and trailers, which it sets after the headers were sent. No player reads
// any. The server does not know of announced trailers, because the header Trailer does
// not pass.
func (w *response) dropLateHeaders() {
	h := w.Header()
	switch {
	case w.state == denied:
		dropEntityHeaders(h)
		w.dropOriginHeaders()
		return
	case w.sized && len(h["Content-Length"]) > 0 && w.d.request.ProtoMajor == 1:
		return // HTTP/1.1 has trailers after a body of unknown length only
	}
	for name := range h {
		if strings.HasPrefix(name, http.TrailerPrefix) {
			delete(h, name)
		}
	}
}

const (
	cspHeader     = "Content-Security-Policy"
	nosniffHeader = "X-Content-Type-Options"

	defaultType = "application/octet-stream"
)

// Nothing that somebody has uploaded may run, load or read anything as a document
// of the gate's origin, where the URLs of other videos are.
//
// A browser that opens a media file in a tab makes a page for it, whose player asks
// for the file again. That page contains nothing of the uploader's, so it may
// have the gate's origin. As a page of an opaque origin, it would fail the check of
// allowed origins.
const (
	sandboxPolicy      = "sandbox; default-src 'none'"
	mediaSandboxPolicy = "sandbox allow-same-origin; default-src 'none'; media-src 'self'"
)

// setSandbox makes a response without media a document that can do nothing.
func setSandbox(h http.Header) {
	h.Set(nosniffHeader, "nosniff")
	h.Add(cspHeader, sandboxPolicy)
}

// isPlayable reports whether browsers make a player page for a document of this
// Content-Type. A type that ends with +xml is a document with elements, whatever it
// begins with.
func isPlayable(contentType string) bool {
	mediaType, _, _ := strings.Cut(contentType, ";")
	main, sub, _ := strings.Cut(mediaType, "/")
	isMedia := strings.EqualFold(main, "video") || strings.EqualFold(main, "audio")
	return isMedia && !strings.Contains(sub, "+") || mediaType == mediatype.HLS
}

// setDocumentHeaders says what the response may do as a document of the gate's
// origin. A browser enforces each policy, also those that earlier handlers have
// set.
func (d *decision) setDocumentHeaders(h http.Header) {
	d.own.set(h, nosniffHeader, "nosniff")
	if !d.trustsPage() {
		policy, earlier := sandboxPolicy, h[cspHeader]
		if types := h["Content-Type"]; len(types) > 0 && isPlayable(types[0]) {
			policy = mediaSandboxPolicy
		}
		d.own.set(h, cspHeader, policy)
		if len(earlier) > 0 {
			h[cspHeader] = append(h[cspHeader], earlier...)
		}
	}
	if d.Kind == playbackpath.KindIframe {
		d.settings.origins.setFrameAncestors(h)
	}
}

// trustsPage reports whether the request is for the origin's own player page, which
// runs as it is.
func (d *decision) trustsPage() bool {
	return d.gate.TrustOriginIframe && d.target.Suffix.Decoded == playbackpath.IframeSuffix
}

// setDefaultType gives a body without a usable type a neutral one, because servers
// and browsers otherwise guess, and may guess HTML.
func (w *response) setDefaultType() {
	h := w.Header()
	if types := h["Content-Type"]; len(types) == 1 && isMediaType(types[0]) {
		return
	}
	if w.status == http.StatusNotModified || w.status == http.StatusNoContent {
		delete(h, "Content-Type") // it would be that of the cached response
		return
	}
	w.d.own.set(h, "Content-Type", defaultType)
}

// isMediaType reports whether a Content-Type means the same to all browsers
// (RFC 9110 section 8.3.1). They take the last of a list.
func isMediaType(contentType string) bool {
	essence, parameters, _ := strings.Cut(contentType, ";")
	main, sub, _ := strings.Cut(strings.Trim(essence, " \t"), "/")
	if !httpguts.ValidHeaderFieldName(main) || !httpguts.ValidHeaderFieldName(sub) {
		return false
	}
	if parameters == "" {
		return true
	}
	_, _, err := mime.ParseMediaType(contentType)
	return err == nil
}

// setAccessHeaders says who may read and cache a response. It is private where another
// viewer may not get it, or not for as long.
func (d *decision) setAccessHeaders(h http.Header) {
	d.settings.origins.setCORS(h, d.own, d.requestOrigin)
	lifetime, until := time.Duration(1<<63-1), d.settings.availableUntil
	if d.session != nil && !d.session.Ends().IsZero() {
		lifetime = d.session.Ends().Sub(d.app.now())
	}
	if d.verified != nil {
		ends := d.verified.expiresAt()
		if d.until.After(ends) {
			ends = d.until
		}
		lifetime = min(lifetime, ends.Sub(d.now()))
	}
	if !until.IsZero() {
		lifetime = min(lifetime, until.Sub(d.now()))
	}
	switch {
	case d.rooted:
		// Each viewer of it would have the session of the first.
		d.own.set(h, "Cache-Control", "no-store")
		dropSharedCaching(h)
	case d.verified != nil || !until.IsZero() || d.settings.origins.allowed != nil || len(d.settings.rules) > 0 || d.app.admission != nil:
		setPrivateCaching(h, d.own, lifetime)
	}
}

// setFilename has the browser save a download under the name in the query
// parameter `filename`: up to 120 of A-Z a-z 0-9 _ -, plus the extension of the
// file. It ignores any other name.
func setFilename(h http.Header, query, decoded string) {
	const most = 120
	values, _ := url.ParseQuery(query)
	name := values.Get("filename")
	if name == "" || len(name) > most || strings.Trim(name, filenameCharacters) != "" {
		return
	}
	if ending := mediatype.Ending(decoded); ending != "" && strings.Trim(ending, filenameCharacters) == "" {
		name += "." + ending
	}
	h.Set("Content-Disposition", `attachment; filename="`+name+`"`)
}

const filenameCharacters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-"

// sharedCacheHeaders are the headers that direct shared caches in spite of
// Cache-Control.
var sharedCacheHeaders = []string{"Cdn-Cache-Control", "Cloudflare-Cdn-Cache-Control", "Surrogate-Control", "Expires", "Pragma"}

// setPrivateCaching keeps shared caches from serving the response to another
// viewer, and every cache from treating it as fresh after the token has expired.
// Otherwise the origin's directives stay. Without any, caches revalidate each
// time, because a heuristic lifetime could be too long.
func setPrivateCaching(h http.Header, own *ownHeaders, lifetime time.Duration) {
	own.set(h, "Cache-Control", privateCacheControl(h["Cache-Control"], lifetime))
	dropSharedCaching(h)
}

func dropSharedCaching(h http.Header) {
	for _, name := range sharedCacheHeaders {
		delete(h, name)
	}
}

func privateCacheControl(origin []string, lifetime time.Duration) string {
	const private, unset = "private", ", max-age=0"
	if len(origin) == 0 {
		return private + unset
	}
	kept := append(make([]byte, 0, 64), private...)
	var fresh bool
	for _, line := range origin {
		for directive := range strings.SplitSeq(line, ",") {
			name, value, _ := strings.Cut(strings.TrimSpace(directive), "=")
			switch name = strings.ToLower(name); name {
			case "no-store":
				return name
			case "no-cache", "no-transform", "must-revalidate":
				kept = append(append(kept, ", "...), name...)
			case "max-age":
				seconds, err := strconv.ParseInt(strings.Trim(value, `"`), 10, 64)
				if err != nil || seconds < 0 || fresh {
					continue
				}
				fresh = true
				seconds = min(seconds, max(0, int64(lifetime/time.Second)))
				kept = strconv.AppendInt(append(kept, ", max-age="...), seconds, 10)
			}
		}
	}
	if !fresh {
		kept = append(kept, unset...)
	}
	return string(kept)
}
