package signedplayback

import (
	"errors"
	"net/http"
	"strings"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/signed-playback/caddy-signed-playback/internal/headerpolicy"
	"github.com/signed-playback/caddy-signed-playback/internal/playbackpath"
	"github.com/signed-playback/caddy-signed-playback/internal/refusal"
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
		if p.allowMissing || k == playbackpath.KindIframe && weborigin.IsFramed(r.Header) || k != playbackpath.KindIframe && weborigin.IsSameOriginFetch(r.Header) {
			return nil
		}
		return refusal.OriginRequired.Because(errOriginMissing)
	case err != nil:
		return refusal.OriginNotAllowed.Because(err)
	case p.allowed.Allows(o):
		return nil
	case k == playbackpath.KindIframe || !o.IsOf(r.Host):
		return refusal.OriginNotAllowed.Because(errOriginNotListed)
	case !isOwnPage(r, o, credential):
		return refusal.OriginNotAllowed.Because(errOtherPage)
	}
	return nil
}

var (
	errOriginNotListed = errors.New("the video's allowed origins do not cover the site that asks")
	errOriginMissing   = errors.New("the request has neither Origin nor Referer, and the video has allowed origins")
	errOtherPage       = errors.New("the request comes from the gate's own host, but not from a page under the same token or video id")
)

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
		path = weborigin.PathOfReferer(referer[0])
	}
	if path == "" || path == "/" {
		return weborigin.IsSameOriginFetch(r.Header)
	}
	if len(r.Header["Sec-Fetch-Site"]) > 0 && !weborigin.IsSameOrigin(r.Header) {
		return false
	}
	path, isMounted := strings.CutPrefix(path, mountPath(r)+"/")
	rest, isBelow := strings.CutPrefix(path, credential)
	return isMounted && isBelow && (rest == "" || rest[0] == '/')
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

// setFrameAncestors makes the browser check the page that embeds an iframe
// against the allowed origins. Every iframe response needs it, because check
// relies on it.
func (p originPolicy) setFrameAncestors(h http.Header) {
	if p.allowed != nil {
		// A browser enforces this policy and the page's own.
		h.Add("Content-Security-Policy", "frame-ancestors "+p.allowed.FrameAncestors())
	}
}

// setCORS lets the requesting site, which check has accepted, read a response
// without CORS headers. Without allowed origins, any site may read it.
func (p originPolicy) setCORS(h http.Header, own *headerpolicy.Own, requestOrigin string) {
	if p.allowed == nil {
		requestOrigin = "*"
	} else {
		h.Add("Vary", "Origin")
	}
	if requestOrigin != "" {
		own.Set(h, "Access-Control-Allow-Origin", requestOrigin)
		own.Set(h, "Access-Control-Expose-Headers", headerpolicy.ExposedHeaders)
	}
}

// answerPreflight answers OPTIONS without the origin server. It allows requests
// that read, from any site. Whether the site may read the response depends on
// the request that follows, so a preflight needs neither token nor settings.
func answerPreflight(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Allow", refusal.AllowedMethods)
	headerpolicy.SetSandbox(h)
	headerpolicy.AllowPreflight(h, r.Header)
	w.WriteHeader(http.StatusNoContent)
}
