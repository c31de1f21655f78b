package signedplayback

import (
	"errors"
	"net/http"
	"strings"

	"github.com/signed-playback/caddy-signed-playback/internal/weborigin"
)

// originPolicy says from which sites a video may be requested.
type originPolicy struct {
	allowed      *weborigin.List // nil: any site
	allowMissing bool            // a request may have neither Origin nor Referer
}

// check decides on a request for a resource of the given kind.
func (p originPolicy) check(r *http.Request, k kind) error {
	if p.allowed == nil {
		return nil
	}
	o, err := weborigin.FromHeader(r.Header)
	switch {
	case errors.Is(err, weborigin.ErrMissing):
		if p.allowMissing || k == kindIframe && isFramed(r) {
			return nil
		}
		return refuse(reasonOriginRequired, errOriginMissing)
	case err != nil:
		return refuse(reasonOriginNotAllowed, err)
	case p.allowed.Allows(o), k != kindIframe && isOwnOrigin(r, o):
		return nil
	}
	return refuse(reasonOriginNotAllowed, errOriginNotListed)
}

var (
	errOriginNotListed = errors.New("the video's allowed origins do not cover the site that asks")
	errOriginMissing   = errors.New("the request has neither Origin nor Referer, and the video has allowed origins")
)

// isOwnOrigin reports whether an origin is the gate's own, as the request
// addresses it. The player page runs there. It does not compare the scheme:
// behind a proxy that terminates TLS, only the client knows it.
func isOwnOrigin(r *http.Request, o weborigin.Origin) bool {
	own, err := weborigin.ParseAuthority(r.Host, o.HTTPS)
	return err == nil && own == o
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

// setCORS lets the requesting site, which check has accepted, read the response.
// Without allowed origins, any site may read it. The origin server cannot change
// that.
func (p originPolicy) setCORS(h http.Header, values *headerValues, requestOrigin string) {
	dropCORS(h)
	if p.allowed == nil {
		requestOrigin = "*"
	} else {
		h.Add("Vary", "Origin")
	}
	if requestOrigin != "" {
		values.set(h, "Access-Control-Allow-Origin", requestOrigin)
		values.set(h, "Access-Control-Expose-Headers", exposedHeaders)
	}
}

// dropCORS removes the CORS headers of the origin server.
func dropCORS(h http.Header) {
	for name := range h {
		if strings.HasPrefix(name, "Access-Control-") {
			delete(h, name)
		}
	}
}

// setRefusalCORS lets a player on any site read the reason of a refusal. A
// refusal contains no secret.
func setRefusalCORS(h http.Header) {
	dropCORS(h)
	h.Set("Access-Control-Allow-Origin", "*")
	h.Set("Access-Control-Expose-Headers", exposedHeaders)
	h.Add("Vary", "Origin")
}

// answerPreflight answers OPTIONS without the origin server. It allows requests
// that read, from any site. Whether the site may read the response depends on
// the request that follows, so a preflight needs neither token nor settings.
func answerPreflight(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Allow", allowedMethods)
	setSandbox(h)
	if r.Header.Get("Access-Control-Request-Method") != "" {
		h.Set("Access-Control-Allow-Origin", "*")
		h.Set("Access-Control-Allow-Methods", "GET, HEAD")
		h.Set("Access-Control-Allow-Headers", "Range, If-Range, If-None-Match, If-Modified-Since, Cache-Control")
		h.Set("Access-Control-Max-Age", "86400")
	}
	w.WriteHeader(http.StatusNoContent)
}
