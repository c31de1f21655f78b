package signedplayback

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/signed-playback/caddy-signed-playback/internal/headerpolicy"
	"github.com/signed-playback/caddy-signed-playback/internal/manifestbody"
	"github.com/signed-playback/caddy-signed-playback/internal/mediatype"
	"github.com/signed-playback/caddy-signed-playback/internal/playbackpath"
	"github.com/signed-playback/caddy-signed-playback/internal/refusal"
)

// response is the response writer that the handlers after the gate see. It
// replaces headers of the origin by those of the gate, buffers manifests until
// they are rewritten, and passes everything else through untouched, with sendfile
// where the server can.
type response struct {
	caddyhttp.ResponseWriterWrapper
	d        *decision
	state    responseState
	status   int
	media    bool                 // nothing to rewrite, by its name or by its beginning
	optional bool                 // may pass as it is
	forAll   bool                 // it is for the cache, which answers all viewers
	sized    bool                 // whether the headers tell the length of the body
	sniffed  []byte               // the first bytes of a body that may be a manifest
	manifest *manifestbody.Buffer // nil unless one is held
	err      error                // why the response is denied

	// Of a request for a range:
	extent   extent // how much the origin is asked for
	attempts int
	skipped  int // bytes of an answer that the viewer does not get
}

type responseState int

const (
	waiting   responseState = iota // until the status is known
	sniffing                       // until the first bytes show whether this is a manifest
	holding                        // until the manifest is complete
	repeating                      // until the handler returns and is asked for something else
	passing
	denied
)

// start prepares the writer for a request that the gate lets pass.
func (w *response) start(to http.ResponseWriter, d *decision) *response {
	w.ResponseWriter, w.d, w.media = to, d, d.Media && !d.WebVTT
	d.own = headerpolicy.NewOwn()
	d.own.Remember(w.Header(), d.passing())
	return w
}

// setHeaders puts the gate's headers in the place of the origin's.
func (w *response) setHeaders() {
	w.d.own.Restore(w.Header(), w.d.passing())
	w.d.setAccessHeaders(w.Header())
	w.d.setDocumentHeaders(w.Header())
}

// attempt has the next handler answer once.
func (w *response) attempt(next caddyhttp.Handler, r *http.Request) (err error) {
	defer func() {
		w.manifest.Release()
		// reverse_proxy panics with this value when it cannot read or write a
		// body to its end.
		if p := recover(); p != nil {
			if p != any(http.ErrAbortHandler) || w.state == waiting || w.state == passing ||
				errors.Is(r.Context().Err(), context.Canceled) {
				panic(p)
			}
			if w.state != denied && w.state != repeating {
				w.refuse(manifestbody.ErrIncomplete)
			}
			err = w.err
		}
	}()
	if err := next.ServeHTTP(w, r); err != nil && w.state != denied && w.state != repeating {
		if _, refused := errors.AsType[*refusal.Error](err); refused { // by the gate's work in the cache
			w.state, w.err = denied, err
		} else {
			w.abandon()
		}
		return err
	}
	return w.finish()
}

// abandon prepares for an error, whose response does not go through w. Players
// must be able to read its status, and the origin's headers about a body must not
// reach them.
func (w *response) abandon() {
	if w.state == passing || w.forAll {
		return
	}
	headerpolicy.DropEntity(w.Header())
	w.setHeaders()
}

// WriteHeader implements http.ResponseWriter. It drops informational responses,
// which would carry the origin's headers, any number of times.
func (w *response) WriteHeader(status int) {
	switch {
	case w.state != waiting:
		return
	case status == http.StatusSwitchingProtocols:
		w.refuse(errUpgrade)
		return
	case status < http.StatusOK:
		return
	}
	w.status = status
	rewritten, unchanged := w.takeMark()
	// Players accept a manifest with any of these statuses.
	ok := status >= 200 && status < 300 && status != http.StatusNoContent && status != http.StatusResetContent
	switch {
	case len(w.Header()["Location"]) > 0 && status >= 300 && status < 400 && !w.forAll:
		w.redirect()
	case !ok:
		w.pass()
	case rewritten && status == http.StatusPartialContent:
		w.repeat(whole)
	case rewritten:
		w.passRewritten()
	case unchanged:
		w.passMedia()
	case w.d.Manifest || w.isHead() && w.isManifest() || !w.isHead() && contentCoding(w.Header()) != "":
		w.holdManifest()
	case !w.media && status == http.StatusPartialContent && !strings.HasPrefix(w.Header().Get("Content-Range"), "bytes 0-"):
		w.repeat(whole)
	default:
		w.state = sniffing
	}
}

// passRewritten passes a manifest that the cache has rewritten, or holds it if a session may
// begin with it.
func (w *response) passRewritten() {
	switch why := w.d.unlessReported(w.d.checkManifestStart()); {
	case why != nil:
		w.refuse(why)
	case w.d.mayLeadBelow():
		w.holdManifest()
	default:
		w.pass()
	}
}

func (w *response) isHead() bool { return w.d.request.Method == http.MethodHead }

// pass sends the headers. From now on, writes go to the viewer.
func (w *response) pass() {
	if w.forAll {
		w.passForAll(nil)
		return
	}
	if w.d.uncounted && w.status < 300 {
		if err := w.d.beginSession(""); err != nil {
			w.refuse(err)
			return
		}
	}
	w.state = passing
	if w.status < 300 || w.status >= 400 {
		delete(w.Header(), "Location")
	}
	w.setDefaultType()
	w.setHeaders()
	w.sized = len(w.Header()["Content-Length"]) > 0
	if w.d.Download && w.status < 300 {
		headerpolicy.SetFilename(w.Header(), w.d.query, w.d.target.Suffix.Decoded)
	}
	w.ResponseWriterWrapper.WriteHeader(w.status)
}

// refuse has serve return a refusal, whatever the next handler still does.
func (w *response) refuse(why error) {
	w.state = denied
	if w.err = why; !refusal.Is(why) {
		w.err = refusal.ManifestInvalid.Because(why)
	}
	w.manifest.Release()
}

func (w *response) Write(p []byte) (int, error) {
	if w.state == waiting {
		w.WriteHeader(http.StatusOK)
	}
	switch w.state {
	case passing:
		if w.isHead() { // a GET for the cache, if it is for a manifest
			return len(p), nil
		}
		n, err := w.ResponseWriterWrapper.Write(p)
		w.countBytes(int64(n))
		return n, err
	case sniffing:
		return w.sniff(p)
	case holding:
		return w.hold(p)
	case repeating:
		return w.skip(p)
	default:
		return 0, w.err
	}
}

// countBytes counts what the viewer has got for the session.
func (w *response) countBytes(n int64) {
	if w.d.session != nil {
		w.d.session.AddBytes(n)
	}
}

// sniff waits for enough bytes of the body to recognize a manifest.
func (w *response) sniff(p []byte) (int, error) {
	start := p
	if len(w.sniffed) > 0 {
		w.sniffed = append(w.sniffed, p...)
		start = w.sniffed
	}
	found, undecided := manifestbody.Begins(start)
	if !found && (len(start) < manifestbody.SniffLength || undecided && len(start) < manifestbody.MaxPrologLength) {
		w.sniffed = append(w.sniffed[:0], start...)
		return len(p), nil
	}
	w.sniffed = nil
	w.decide(start, found || undecided)
	if _, err := w.Write(start); err != nil {
		return 0, err
	}
	return len(p), nil
}

// decide knows the first bytes of a body, and whether it is or may be a manifest.
func (w *response) decide(start []byte, manifest bool) {
	w.optional = manifestbody.IsOptional(start)
	if manifest && (!w.optional || !w.media) || w.isManifest() && !w.optional && manifestbody.MayBeText(start) {
		w.holdManifest()
	} else {
		w.passMedia()
	}
}

// passMedia passes what is no manifest, or has the origin asked for the part of it that
// the viewer wants. A segment or a key that the origin gives the type of a playlist gets
// a neutral one.
func (w *response) passMedia() {
	if w.attempts > 0 && (w.extent == whole || w.extent == beginning && w.status == http.StatusPartialContent) {
		w.media = true
		w.repeat(requested)
		return
	}
	if h := w.Header(); !w.forAll && mediatype.Manifest(h.Get("Content-Type")) != "" {
		delete(h, "Content-Type")
	}
	w.pass()
}

// ReadFrom implements io.ReaderFrom.
func (w *response) ReadFrom(r io.Reader) (n int64, err error) {
	if w.state == waiting {
		w.WriteHeader(http.StatusOK)
	}
	toWrite := struct{ io.Writer }{w}
	if w.state == sniffing {
		n, err = io.CopyN(toWrite, r, int64(manifestbody.SniffLength))
		if errors.Is(err, io.EOF) {
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
	var rest int64
	if w.state == passing && !w.isHead() {
		rest, err = w.ResponseWriterWrapper.ReadFrom(r)
		w.countBytes(rest)
	} else {
		rest, err = io.Copy(toWrite, r)
	}
	return n + rest, err
}

// FlushError implements the method that http.ResponseController looks for. It
// does not flush buffered bytes.
func (w *response) FlushError() error {
	if w.state != passing {
		return nil
	}
	return http.NewResponseController(w.ResponseWriter).Flush()
}

// Hijack implements http.Hijacker. It hands out no connection, because its bytes
// would pass without the gate, and longer than the token lasts.
func (*response) Hijack() (net.Conn, *bufio.ReadWriter, error) { return nil, nil, http.ErrNotSupported }

// Push implements http.Pusher. An origin's Link headers must not have this server
// push other paths.
func (*response) Push(string, *http.PushOptions) error { return http.ErrNotSupported }

// finish sends buffered bytes when the next handler is done.
func (w *response) finish() error {
	switch w.state {
	case waiting:
		w.abandon()
		if w.d.request.Context().Err() == nil {
			return caddyhttp.Error(http.StatusBadGateway, errNothingBehind)
		}
	case sniffing:
		found, undecided := manifestbody.Begins(w.sniffed)
		w.decide(w.sniffed, found || undecided && !w.media && w.status == http.StatusPartialContent)
		if _, err := w.Write(w.sniffed); err != nil || w.state == passing {
			return err
		}
		return w.finish()
	case holding:
		return w.sendManifest()
	case denied:
		return w.err
	case passing, repeating:
	}
	return nil
}

var (
	errUpgrade       = errors.New("the origin switches to another protocol, which a playback request never asks for")
	errNothingBehind = errors.New("no handler after the gate answers the request; add reverse_proxy or file_server after signed_playback")
)

// dropLateHeaders drops the headers that a handler has set after the response was
// denied, and trailers, which it sets after the headers were sent. No player reads
// any. The server does not know of announced trailers, because the header Trailer does
// not pass.
func (w *response) dropLateHeaders() {
	h := w.Header()
	switch {
	case w.state == denied:
		headerpolicy.DropEntity(h)
		w.d.own.Restore(w.Header(), w.d.passing())
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
	d.own.Set(h, headerpolicy.Nosniff, "nosniff")
	if !d.trustsPage() {
		earlier := h[headerpolicy.CSP]
		d.own.Set(h, headerpolicy.CSP, headerpolicy.SandboxOf(h.Get("Content-Type")))
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

// passing are the headers of the origin that reach the viewer of this response.
func (d *decision) passing() headerpolicy.Response {
	if d.trustsPage() {
		return d.gate.passOnPage
	}
	return d.gate.passResponse
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
	w.d.own.Set(h, "Content-Type", headerpolicy.DefaultType)
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
		ends := d.verified.ExpiresAt()
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
		d.own.Set(h, "Cache-Control", "no-store")
		headerpolicy.DropSharedCaching(h)
	case d.verified != nil || !until.IsZero() || d.settings.origins.allowed != nil || len(d.settings.rules) > 0 || d.app.admission != nil:
		d.own.SetPrivateCaching(h, lifetime)
	}
}

// Interface guards
var (
	_ http.ResponseWriter = (*response)(nil)
	_ http.Hijacker       = (*response)(nil)
	_ http.Pusher         = (*response)(nil)
	_ io.ReaderFrom       = (*response)(nil)
)
