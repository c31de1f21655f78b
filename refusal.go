package signedplayback

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"net/url"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/signed-playback/caddy-signed-playback/internal/headerpolicy"
	"github.com/signed-playback/caddy-signed-playback/internal/playbackpath"
	"github.com/signed-playback/caddy-signed-playback/internal/refusal"
)

// deny turns a refusal into response headers and the Caddy error that logs and
// handle_errors see.
func deny(w http.ResponseWriter, err error) error {
	why, ok := errors.AsType[*refusal.Error](err)
	if !ok {
		return caddyhttp.Error(http.StatusInternalServerError, err)
	}
	why.SetHeaders(w.Header())
	return caddyhttp.Error(why.Reason.Status(), why)
}

// errorPath is the path of the request that error routes (handle_errors) get after
// a refusal, and after an error of a handler after the gate. No origin has it,
// because it is in the folder of no video.
const errorPath = "/.signed-playback-error"

// hideRequest turns the viewer's request into the one that error routes get. Caddy
// restores the client's URL for them. There, a proxy or a file server would answer
// the refused request, and would get the token.
func (g *Gate) hideRequest(r *http.Request, d *decision) {
	g.requestHeaders.Clean(r.Header, d.target)
	*r.URL, r.RequestURI = url.URL{Path: errorPath}, errorPath
	hideOriginalURL(r)
	ctx := r.Context()
	original, ok := ctx.Value(caddyhttp.OriginalRequestCtxKey).(http.Request)
	if !ok {
		return
	}
	original.RequestURI = errorPath
	if repl, ok := ctx.Value(caddy.ReplacerCtxKey).(*caddy.Replacer); ok {
		repl.Set("http.request.orig_uri", errorPath)
	}
	// Error routes get this request, unless an earlier handler has made a copy
	// for the gate.
	*r = *r.WithContext(context.WithValue(ctx, caddyhttp.OriginalRequestCtxKey, original))
}

// hideOriginalURL makes the URL that Caddy remembers as the client's the one that
// the request has now. Error routes get it, and FastCGI origins.
func hideOriginalURL(r *http.Request) {
	if original, ok := r.Context().Value(caddyhttp.OriginalRequestCtxKey).(http.Request); ok && original.URL != nil {
		*original.URL = *r.URL
	}
}

// guardErrorRoutes limits what error routes can answer, because they write to the
// server's own response writer. It finds that writer inside the one for idle timeouts,
// which a server has unless write_idle is negative.
func (g *Gate) guardErrorRoutes(w http.ResponseWriter, d *decision, err error) {
	why, refused := errors.AsType[*refusal.Error](err)
	if refused {
		headerpolicy.DropEntity(w.Header())
	}
	guard := &refusal.Writer{Passing: g.passResponse, Earlier: maps.Clone(w.Header()), Refusal: why}
	if g.player != nil && d.Kind == playbackpath.KindIframe {
		guard.Page = func(w http.ResponseWriter, why *refusal.Error) {
			g.player.ServeRefusal(w, string(why.Reason), why.Reason.Status())
		}
	}
	for {
		if idle, ok := w.(*caddyhttp.IdleTimeoutWriter); ok {
			guard.ResponseWriter = idle.ResponseWriter
			idle.ResponseWriter = guard
			return
		}
		wrapper, ok := w.(interface{ Unwrap() http.ResponseWriter })
		if !ok {
			return
		}
		w = wrapper.Unwrap()
	}
}
