package signedplayback

import (
	"net/http"
	"strings"
	"time"

	"github.com/signed-playback/caddy-signed-playback/internal/headerpolicy"
	"github.com/signed-playback/caddy-signed-playback/internal/playbackpath"
)

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
	return w.d.gate.passResponse.Passes(name) || name == headerpolicy.CSP && w.d.trustsPage()
}

// rememberHeaders notes the headers of Caddy and earlier handlers that an origin may
// not replace. Only the gate sets CORS headers.
func (w *response) rememberHeaders() {
	own := newOwnHeaders()
	for name, values := range w.Header() {
		if !w.passes(name) && !headerpolicy.IsCORS(name) {
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
		headerpolicy.DropEntity(h)
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

// setDocumentHeaders says what the response may do as a document of the gate's
// origin. A browser enforces each policy, also those that earlier handlers have
// set.
func (d *decision) setDocumentHeaders(h http.Header) {
	d.own.set(h, headerpolicy.Nosniff, "nosniff")
	if !d.trustsPage() {
		earlier := h[headerpolicy.CSP]
		d.own.set(h, headerpolicy.CSP, headerpolicy.SandboxOf(h.Get("Content-Type")))
		if len(earlier) > 0 {
			h[headerpolicy.CSP] = append(h[headerpolicy.CSP], earlier...)
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
	if types := h["Content-Type"]; len(types) == 1 && headerpolicy.IsMediaType(types[0]) {
		return
	}
	if w.status == http.StatusNotModified || w.status == http.StatusNoContent {
		delete(h, "Content-Type") // it would be that of the cached response
		return
	}
	w.d.own.set(h, "Content-Type", headerpolicy.DefaultType)
}

// setAccessHeaders says who may read and cache a response. The response is private if
// another viewer may not get it, or may not get it for as long.
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
		headerpolicy.DropSharedCaching(h)
	case d.verified != nil || !until.IsZero() || d.settings.origins.allowed != nil || len(d.settings.rules) > 0 || d.app.admission != nil:
		setPrivateCaching(h, d.own, lifetime)
	}
}

// setPrivateCaching keeps shared caches from serving the response to another
// viewer, and every cache from treating it as fresh after the token has expired.
// Otherwise the origin's directives stay. Without any, caches revalidate each
// time, because a heuristic lifetime could be too long.
func setPrivateCaching(h http.Header, own *ownHeaders, lifetime time.Duration) {
	own.set(h, "Cache-Control", headerpolicy.PrivateCacheControl(h["Cache-Control"], lifetime))
	headerpolicy.DropSharedCaching(h)
}
