package signedplayback

import (
	"cmp"
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/signed-playback/caddy-signed-playback/internal/headerpolicy"
	"github.com/signed-playback/caddy-signed-playback/internal/playbackpath"
)

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
	guard := &errorWriter{gate: g, isPage: g.player != nil && d.Kind == playbackpath.KindIframe}
	if why, ok := errors.AsType[*refusal](err); ok {
		guard.refused, guard.refusal = why.reason.status(), why
		headerpolicy.DropEntity(w.Header())
	}
	for name, values := range w.Header() {
		guard.earlier = append(guard.earlier, header{name, values})
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

// errorWriter is the response writer of error routes. A refusal stays a refusal, even if a
// reverse_proxy there asks a server that has a page under every path. The headers of
// such a server pass by the same list as those of the origin: the browser shows the
// answer under the viewer's URL.
type errorWriter struct {
	http.ResponseWriter
	gate    *Gate
	refused int      // the status of a refusal, 0 after an error behind the gate
	refusal *refusal // nil after an error behind the gate
	isPage  bool     // the request is for the player page
	earlier []header // from before the error route
	sent    bool     // the status
}

// WriteHeader implements http.ResponseWriter. Redirects pass, to a login page for
// example.
func (w *errorWriter) WriteHeader(status int) {
	if w.refused != 0 && (status >= 200 && status < 300 || status == http.StatusNotModified) {
		status = w.refused
	}
	if _, hasBody := w.Header()["Content-Type"]; !hasBody && status == w.refused && !w.sent {
		w.dropHeaders()
		w.sent = true
		w.writeRefusal()
		return
	}
	w.send(status)
}

func (w *errorWriter) send(status int) {
	w.dropHeaders()
	w.sent = w.sent || status >= 200
	w.ResponseWriter.WriteHeader(status)
}

// writeRefusal answers a refusal that no error route has answered: Caddy then sends
// the status alone, and handlers that write a body have set its type before.
func (w *errorWriter) writeRefusal() {
	if w.isPage {
		w.gate.player.ServeRefusal(w.ResponseWriter, string(w.refusal.reason), w.refused)
		return
	}
	body := w.refusal.Error() + "\n"
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.ResponseWriter.WriteHeader(w.refused)
	_, _ = io.WriteString(w.ResponseWriter, body) //nolint:gosec,nolintlint // it is text, which gosec does not see in each run; an error is a client that has cancelled
}

// dropHeaders drops the headers of the error route that may not pass, and restores the
// earlier ones that it has replaced. It may have removed some.
func (w *errorWriter) dropHeaders() {
	h := w.Header()
	for name := range h {
		if w.gate.passResponse.Passes(name) {
			continue
		}
		i := slices.IndexFunc(w.earlier, func(e header) bool { return e.name == name })
		if i < 0 {
			delete(h, name)
			continue
		}
		h[name] = w.earlier[i].values
	}
}

func (w *errorWriter) Write(p []byte) (int, error) {
	if !w.sent {
		w.send(cmp.Or(w.refused, http.StatusOK))
	}
	return w.ResponseWriter.Write(p)
}

// Unwrap lets http.ResponseController find the methods of the server's writer.
func (w *errorWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
