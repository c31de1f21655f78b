package headerpolicy

import (
	"fmt"
	"net/http"
	"net/textproto"
	"slices"
	"strings"

	"golang.org/x/net/http/httpguts"

	"github.com/signed-playback/caddy-signed-playback/internal/cmcd"
	"github.com/signed-playback/caddy-signed-playback/internal/playbackpath"
	"github.com/signed-playback/caddy-signed-playback/mediacache"
)

// Request has the canonical names of headers of viewers that the origin gets besides the
// usual ones. Headers pass by a list, because proxies and login services invent headers that
// contain the URL, and so the token, and headers that differ between viewers defeat the
// caches in front of an origin. It is immutable.
type Request map[string]bool

// anyHeader is the name in pass_request_headers that means all headers that name no path or
// method.
const anyHeader = "*"

// ParseRequest compiles the option pass_request_headers.
func ParseRequest(names []string) (Request, error) {
	return parseHeaderNames("pass_request_headers", names, ParseRequestName)
}

// ParseRequestName returns the canonical form of a name in pass_request_headers.
func ParseRequestName(name string) (string, error) {
	if !httpguts.ValidHeaderFieldName(name) {
		return "", fmt.Errorf("pass_request_headers %q: want the name of a header", name)
	}
	canonical := textproto.CanonicalMIMEHeaderKey(name)
	if slices.Contains(neverPassed, canonical) {
		return "", fmt.Errorf("pass_request_headers %q: this header is for the gate or about the connection, and never passes", name)
	}
	return canonical, nil
}

// neverPassed are headers that no option lets pass. Some contain the viewer's URL by
// definition. Some belong to a connection: an upgraded one would outlive the token. Some
// describe a body, which no playback request has. With the header of the media cache, a
// viewer could ask for purged objects.
var neverPassed = append([]string{
	"Origin", "Referer", "Host", "Expect", "Http2-Settings", "Proxy-Authenticate", "Proxy-Authorization", "Content-Length",
	mediacache.GenerationHeader,
}, connectionHeaders...)

// connectionHeaders belong to one connection (RFC 9110 section 7.6.1).
var connectionHeaders = []string{"Connection", "Keep-Alive", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade"}

// isUsual reports whether a header reaches every origin, if its value may.
func isUsual(name string) bool {
	switch name {
	case "Accept", "Cache-Control", "Dnt", "Priority", "Range", "Save-Data", "Sec-Gpc", "Traceparent", "Tracestate", "User-Agent", "Via",
		"X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Playback-Session-Id", "X-Request-Id":
		return true
	}
	return strings.HasPrefix(name, "Accept-") || strings.HasPrefix(name, "If-") || strings.HasPrefix(name, "Cmcd-")
}

// passes reports whether a header that is not usual reaches the origin.
func (h Request) passes(name string, values []string) bool {
	return h[name] || h[anyHeader] && !slices.Contains(neverPassed, name) && !namesTarget(name, values)
}

// namesTarget reports whether some origin may take a header for the path or the
// method of the request.
func namesTarget(name string, values []string) bool {
	name = strings.ToLower(name)
	for _, word := range targetWords {
		if strings.Contains(name, word) {
			return true
		}
	}
	return slices.ContainsFunc(values, func(value string) bool {
		return strings.HasPrefix(value, "/") || strings.Contains(value, "://") || slices.Contains(methods, strings.ToUpper(value))
	})
}

// targetWords are the words in the names of headers that name a target.
var targetWords = []string{
	"destination", "location", "method", "original", "path", "prefix", "redirect", "refer", "replaced", "rewrit", "route", "script", "target", "uri", "url",
}

var methods = []string{
	http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete,
	http.MethodConnect, http.MethodOptions, http.MethodTrace,
}

// Clean removes the headers of a viewer's request that may not pass. more reports whether the origin gets
// headers that are not usual, and so may answer this viewer otherwise than others.
func (h Request) Clean(header http.Header, t playbackpath.Target) (more bool) {
	for name, values := range header {
		usual := isUsual(name)
		switch {
		case !usual && !h.passes(name, values), slices.ContainsFunc(values, func(value string) bool { return t.IsIn(value) }):
			delete(header, name)
		case !usual:
			more = true
		}
	}
	return more
}

// CleanQuery returns the query of a viewer's request without CMCD (CTA-5004), which
// differs with each request and so defeats caches, and without parameters that
// contain the token or the session. The rest stays byte for byte.
func CleanQuery(query string, t playbackpath.Target) string {
	dropped := func(parameter string) bool { return cmcd.IsParameter(parameter) || t.IsIn(parameter) }
	for parameter := range strings.SplitSeq(query, "&") {
		if dropped(parameter) {
			return strings.Join(slices.DeleteFunc(strings.Split(query, "&"), dropped), "&")
		}
	}
	return query
}

// maxRanges is how many byte ranges one request may ask for. Players ask for
// one.
const maxRanges = 8

// LimitRanges drops a Range header that asks for many ranges, which would let a
// short request make the origin send a file many times over. The answer is then
// the whole file (RFC 9110 section 14.2).
func LimitRanges(h http.Header) {
	ranges := h["Range"]
	if len(ranges) > 1 || len(ranges) == 1 && strings.Count(ranges[0], ",") >= maxRanges {
		DropRange(h)
	}
}

// DropRange asks for the whole resource.
func DropRange(h http.Header) {
	delete(h, "Range")
	delete(h, "If-Range")
}

// AskForWhole asks the origin for the whole resource, uncompressed.
func AskForWhole(h http.Header) {
	DropRange(h)
	AskForIdentity(h)
}

// AskForIdentity asks the origin for an uncompressed resource.
func AskForIdentity(h http.Header) { h["Accept-Encoding"] = identityCoding }

// DropConditions asks for the resource whether it has changed or not.
func DropConditions(h http.Header) {
	for _, name := range []string{"If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since"} {
		delete(h, name)
	}
}

var identityCoding, gzipCoding = []string{"identity"}, []string{"gzip"}

// LimitCoding lets the origin compress by gzip only. In any other coding, the gate
// could not tell a manifest by its first bytes.
func LimitCoding(h http.Header) {
	switch coding := strings.Join(h["Accept-Encoding"], ","); {
	case coding == "":
	case strings.Contains(coding, "gzip") && !strings.Contains(coding, "q=0"):
		h["Accept-Encoding"] = gzipCoding
	default:
		h["Accept-Encoding"] = identityCoding
	}
}
