// Package headerpolicy says which headers pass between viewers and the origin, and what a
// response may do as a document of the gate's host.
package headerpolicy

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
)

// Response has the canonical names of headers of the origin that reach the viewer besides the
// usual ones. It is immutable.
type Response map[string]bool

// Passes reports whether a header of the origin reaches the viewer. A name has its canonical
// form.
func (r Response) Passes(name string) bool { return isUsualInResponse(name) || r[name] }

// isUsualInResponse says what may pass by a list, because the token is in the URL, and there are
// always more headers by which a response has a browser report, store or send URLs.
func isUsualInResponse(name string) bool {
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

// ParseResponseName returns the canonical form of a name for
// pass_response_headers. It refuses headers that the gate sets itself, that belong
// to a connection, or that have a browser report, store or send URLs with tokens.
func ParseResponseName(name string) (string, error) {
	if !httpguts.ValidHeaderFieldName(name) || strings.Contains(name, "*") {
		return "", fmt.Errorf("pass_response_headers %q: want the full name of a header", name)
	}
	canonical := textproto.CanonicalMIMEHeaderKey(name)
	if slices.Contains(connectionHeaders, canonical) {
		return "", fmt.Errorf("pass_response_headers %q: the header is about one connection and cannot pass", name)
	}
	switch canonical {
	case CSP, CSP + "-Report-Only", Nosniff:
		return "", fmt.Errorf("pass_response_headers %q: the gate sets this header itself; "+
			"trust_origin_iframe passes the policy of the origin's page at /iframe", name)
	case "Set-Cookie", "Set-Cookie2", "Clear-Site-Data", "Service-Worker-Allowed", "Nel", "Report-To", "Reporting-Endpoints",
		"Refresh", "Referrer-Policy", "Www-Authenticate", "Proxy-Authenticate":
		return "", fmt.Errorf("pass_response_headers %q: a file of one video would have browsers store or report something about the whole host; "+
			"if the host needs this header, set it with the directive `header` before the gate", name)
	}
	if IsCORS(canonical) || strings.HasPrefix(canonical, "Signed-Playback-") {
		return "", fmt.Errorf("pass_response_headers %q: the gate sets this header itself", name)
	}
	return canonical, nil
}

// ParseResponse compiles the option pass_response_headers.
func ParseResponse(names []string) (Response, error) {
	return parseHeaderNames("pass_response_headers", names, ParseResponseName)
}

// parseHeaderNames compiles an option. parse returns the canonical form of a name.
func parseHeaderNames(option string, names []string, parse func(string) (string, error)) (map[string]bool, error) {
	set := make(map[string]bool, len(names))
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

// Names of headers, and the Content-Type of a body without a usable one.
const (
	CSP     = "Content-Security-Policy"
	Nosniff = "X-Content-Type-Options"

	DefaultType = "application/octet-stream"
)

// Nothing that somebody has uploaded may run, load or read anything as a document
// of the gate's origin, where the URLs of other videos are.
//
// A browser that opens a media file in a tab makes a page for it, whose player asks
// for the file again. That page contains nothing of the uploader's, so it may
// have the gate's origin. As a page of an opaque origin, it would fail the check of
// allowed origins.
const (
	Sandbox      = "sandbox; default-src 'none'"
	mediaSandbox = "sandbox allow-same-origin; default-src 'none'; media-src 'self'"
)

// SetSandbox makes a response without media a document that can do nothing.
func SetSandbox(h http.Header) {
	h.Set(Nosniff, "nosniff")
	h.Add(CSP, Sandbox)
}

// SandboxOf returns the policy for a response with a Content-Type, "" for none.
func SandboxOf(contentType string) string {
	if isPlayable(contentType) {
		return mediaSandbox
	}
	return Sandbox
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

// IsMediaType reports whether a Content-Type means the same to all browsers
// (RFC 9110 section 8.3.1). They take the last of a list.
func IsMediaType(contentType string) bool {
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

// SetFilename has the browser save a download under the name in the query
// parameter `filename`: up to 120 of A-Z a-z 0-9 _ -, plus the extension of the
// file. It ignores any other name.
func SetFilename(h http.Header, query, decoded string) {
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

// DropSharedCaching leaves what shared caches may do to Cache-Control.
func DropSharedCaching(h http.Header) {
	for _, name := range sharedCacheHeaders {
		delete(h, name)
	}
}

// privateCacheControl returns the Cache-Control of a response that is for one viewer, and fresh for
// a lifetime at most. Otherwise the directives of the origin stay.
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

// DropCORS removes the CORS headers of earlier handlers.
func DropCORS(h http.Header) {
	for name := range h {
		if IsCORS(name) {
			delete(h, name)
		}
	}
}

// IsCORS reports whether a header, by its canonical name, is one that the gate sets itself.
func IsCORS(name string) bool { return strings.HasPrefix(name, "Access-Control-") }

// ReasonHeader has the reason of a refusal.
const ReasonHeader = "Signed-Playback-Reason"

// ExposedHeaders lists the headers that a page on another origin may read.
const ExposedHeaders = "Content-Length, Content-Range, Accept-Ranges, Date, " + ReasonHeader

// SetRefusalCORS lets a player on any site read the reason of a refusal. A
// refusal contains no secret.
func SetRefusalCORS(h http.Header) {
	DropCORS(h)
	h.Set("Access-Control-Allow-Origin", "*")
	h.Set("Access-Control-Expose-Headers", ExposedHeaders)
	h.Add("Vary", "Origin")
}

// AllowPreflight lets any site read, with the headers for which its preflight asks.
func AllowPreflight(h, request http.Header) {
	if request.Get("Access-Control-Request-Method") == "" {
		return
	}
	h.Set("Access-Control-Allow-Origin", "*")
	h.Set("Access-Control-Allow-Methods", "GET, HEAD")
	if names := requestedHeaders(request); names != "" {
		h.Set("Access-Control-Allow-Headers", names)
	}
	h.Set("Access-Control-Max-Age", "86400")
}

// maxRequestedHeaders bounds the list of header names that a preflight repeats.
const maxRequestedHeaders = 4 << 10

// requestedHeaders returns the headers that a preflight asks to send, "" unless they are
// a list of names. Players, tracing and CMCD add headers of their own. The gate reads no
// credentials, and the origin gets headers by a list.
func requestedHeaders(h http.Header) string {
	names := strings.Join(h["Access-Control-Request-Headers"], ",")
	if len(names) > maxRequestedHeaders {
		return ""
	}
	for name := range strings.SplitSeq(names, ",") {
		if !httpguts.ValidHeaderFieldName(strings.Trim(name, " \t")) {
			return ""
		}
	}
	return names
}

// DropEntity removes the headers that describe a body that the viewer does
// not get.
func DropEntity(h http.Header) {
	DropBody(h)
	DropValidators(h)
	delete(h, "Age")
}

// DropBody removes the headers that describe the bytes of a body.
func DropBody(h http.Header) {
	for _, name := range []string{
		"Content-Type", "Content-Length", "Content-Encoding", "Content-Range", "Content-Location",
		"Content-Disposition", "Content-Md5", "Content-Digest", "Repr-Digest", "Digest",
		"Accept-Ranges", "Location", "Trailer",
	} {
		delete(h, name)
	}
}

// DropValidators removes the headers by which a client would revalidate a body.
func DropValidators(h http.Header) {
	delete(h, "Etag")
	delete(h, "Last-Modified")
}
