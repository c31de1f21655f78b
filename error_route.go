package signedplayback

import (
	"context"
	"net/http"
	"net/url"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// errorPath is the path of the request that error routes (handle_errors) get after
// a refusal, and after an error of a handler behind the gate. No origin has it,
// because it is in the folder of no video.
const errorPath = "/.signed-playback-error"

// hideRequest turns the viewer's request into the one that error routes get. Caddy
// restores the client's URL for them. There, a proxy or a file server would answer
// the refused request, and would get the token.
func (g *Gate) hideRequest(r *http.Request, d *decision) {
	g.requestHeaders.clean(r.Header, d.target.token)
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

// holdStatus keeps error routes from answering a refusal with success, which a
// reverse_proxy does if its upstream has a page under every path. Error routes write
// to the server's own response writer, in which the one for idle timeouts is the
// place for a wrapper. Without that timeout, errorPath alone protects the origin.
func holdStatus(w http.ResponseWriter, status int) {
	for {
		if idle, ok := w.(*caddyhttp.IdleTimeoutWriter); ok {
			idle.ResponseWriter = &refusalWriter{ResponseWriter: idle.ResponseWriter, status: status}
			return
		}
		wrapper, ok := w.(interface{ Unwrap() http.ResponseWriter })
		if !ok {
			return
		}
		w = wrapper.Unwrap()
	}
}

// refusalWriter is the response writer of a refused request.
type refusalWriter struct {
	http.ResponseWriter
	status int
	sent   bool // the status
}

// WriteHeader implements http.ResponseWriter. Redirects pass, to a login page for
// example.
func (w *refusalWriter) WriteHeader(status int) {
	if status >= 200 && status < 300 || status == http.StatusNotModified {
		status = w.status
	}
	w.sent = w.sent || status >= 200
	w.ResponseWriter.WriteHeader(status)
}

func (w *refusalWriter) Write(p []byte) (int, error) {
	if !w.sent {
		w.WriteHeader(w.status)
	}
	return w.ResponseWriter.Write(p)
}

// Unwrap lets http.ResponseController find the methods of the server's writer.
func (w *refusalWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
