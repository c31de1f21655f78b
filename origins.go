package signedplayback

import (
	"errors"
	"net/http"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"golang.org/x/net/http/httpguts"

	"github.com/signed-playback/caddy-signed-playback/internal/headerpolicy"
	"github.com/signed-playback/caddy-signed-playback/internal/playbackpath"
	"github.com/signed-playback/caddy-signed-playback/internal/weborigin"
)

// originPolicy says from which sites a video may be requested.
type originPolicy struct {
	allowed      *weborigin.List // nil: any site
	allowMissing bool            // a request may have neither Origin nor Referer
}

// check decides on a request for a resource of the given kind. credential is the
// token or video id in its path.
func (p originPolicy) check(r *http.Request, k playbackpath.Kind, credential string) error {
	if p.allowed == nil {
		return nil
	}
	o, err := weborigin.FromHeader(r.Header)
	switch {
	case errors.Is(err, weborigin.ErrMissing):
		if p.allowMissing || k == playbackpath.KindIframe && isFramed(r) || k != playbackpath.KindIframe && isSameOriginFetch(r) {
			return nil
		}
		return refuse(reasonOriginRequired, errOriginMissing)
	case err != nil:
		return refuse(reasonOriginNotAllowed, err)
	case p.allowed.Allows(o):
		return nil
	case k == playbackpath.KindIframe || !isOwnOrigin(r, o):
		return refuse(reasonOriginNotAllowed, errOriginNotListed)
	case !isOwnPage(r, o, credential):
		return refuse(reasonOriginNotAllowed, errOtherPage)
	}
	return nil
}

var (
	errOriginNotListed = errors.New("the video's allowed origins do not cover the site that asks")
	errOriginMissing   = errors.New("the request has neither Origin nor Referer, and the video has allowed origins")
	errOtherPage       = errors.New("the request comes from the gate's own host, but not from a page under the same token or video id")
)

// isOwnOrigin reports whether an origin is the gate's own, as the request
// addresses it. The player page runs there. It does not compare the scheme:
// behind a proxy that terminates TLS, only the client knows it.
func isOwnOrigin(r *http.Request, o weborigin.Origin) bool {
	own, err := weborigin.ParseAuthority(r.Host, o.HTTPS)
	return err == nil && own == o
}

// isOwnPage reports whether a request from the gate's own origin comes from a page
// under the same token or video id: because its Referer is the address of such a
// page, or because the browser says that the origin is the same and the Referer
// names no page. A page or a stylesheet of another video is on that origin, too.
func isOwnPage(r *http.Request, own weborigin.Origin, credential string) bool {
	path := ""
	if referer := r.Header["Referer"]; len(referer) > 0 {
		if o, err := weborigin.ParseReferer(referer[0]); err != nil || o != own {
			return false
		}
		path = pathOf(referer[0])
	}
	if path == "" || path == "/" {
		return isSameOriginFetch(r)
	}
	if len(r.Header["Sec-Fetch-Site"]) > 0 && !isSameOrigin(r) {
		return false
	}
	path, isMounted := strings.CutPrefix(path, mountPath(r)+"/")
	rest, isBelow := strings.CutPrefix(path, credential)
	return isMounted && isBelow && (rest == "" || rest[0] == '/')
}

// pathOf returns the path of the URL in a Referer header, "" for an origin.
func pathOf(referer string) string {
	_, path, _ := strings.Cut(referer, "://")
	if end := strings.IndexAny(path, "?#"); end >= 0 {
		path = path[:end]
	}
	if start := strings.IndexByte(path, '/'); start >= 0 {
		return path[start:]
	}
	return ""
}

// mountPath returns the prefix that earlier handlers have removed from the path of a
// request, as handle_path does.
func mountPath(r *http.Request) string {
	original, ok := r.Context().Value(caddyhttp.OriginalRequestCtxKey).(http.Request)
	if !ok {
		return ""
	}
	prefix, ok := strings.CutSuffix(original.URL.EscapedPath(), r.URL.EscapedPath())
	if !ok {
		return ""
	}
	return prefix
}

// isSameOrigin reports whether a browser says that a request comes from a page of the
// same origin. It says so over https and on localhost only.
func isSameOrigin(r *http.Request) bool {
	site := r.Header["Sec-Fetch-Site"]
	return len(site) == 1 && site[0] == "same-origin"
}

// isSameOriginFetch reports the same for what a page loads into itself. A link leads
// to the gate from anywhere.
func isSameOriginFetch(r *http.Request) bool {
	return isSameOrigin(r) && !slices.Contains(r.Header["Sec-Fetch-Mode"], "navigate")
}

// isFramed reports whether a browser says that it loads a document into an
// iframe. A page can hide its address from the request, but not from
// frame-ancestors, which then decides.
func isFramed(r *http.Request) bool {
	dest := r.Header["Sec-Fetch-Dest"]
	return len(dest) == 1 && dest[0] == "iframe"
}

// setFrameAncestors makes the browser check the page that embeds an iframe
// against the allowed origins. Every iframe response needs it, because check
// relies on it.
func (p originPolicy) setFrameAncestors(h http.Header) {
	if p.allowed != nil {
		// A browser enforces this policy and the page's own.
		h.Add("Content-Security-Policy", "frame-ancestors "+p.allowed.FrameAncestors())
	}
}

// exposedHeaders lists the headers that a page on another origin may read.
const exposedHeaders = "Content-Length, Content-Range, Accept-Ranges, Date, " + reasonHeader

// setCORS lets the requesting site, which check has accepted, read a response
// without CORS headers. Without allowed origins, any site may read it.
func (p originPolicy) setCORS(h http.Header, own *ownHeaders, requestOrigin string) {
	if p.allowed == nil {
		requestOrigin = "*"
	} else {
		h.Add("Vary", "Origin")
	}
	if requestOrigin != "" {
		own.set(h, "Access-Control-Allow-Origin", requestOrigin)
		own.set(h, "Access-Control-Expose-Headers", exposedHeaders)
	}
}

// setRefusalCORS lets a player on any site read the reason of a refusal. A
// refusal contains no secret.
func setRefusalCORS(h http.Header) {
	headerpolicy.DropCORS(h)
	h.Set("Access-Control-Allow-Origin", "*")
	h.Set("Access-Control-Expose-Headers", exposedHeaders)
	h.Add("Vary", "Origin")
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

// answerPreflight answers OPTIONS without the origin server. It allows requests
// that read, from any site. Whether the site may read the response depends on
// the request that follows, so a preflight needs neither token nor settings.
func answerPreflight(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Allow", allowedMethods)
	headerpolicy.SetSandbox(h)
	if r.Header.Get("Access-Control-Request-Method") != "" {
		h.Set("Access-Control-Allow-Origin", "*")
		h.Set("Access-Control-Allow-Methods", "GET, HEAD")
		if names := requestedHeaders(r.Header); names != "" {
			h.Set("Access-Control-Allow-Headers", names)
		}
		h.Set("Access-Control-Max-Age", "86400")
	}
	w.WriteHeader(http.StatusNoContent)
}
