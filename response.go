package signedplayback

import (
	"context"
	"errors"
	"io"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// response stands between the handler behind the gate and the viewer. It puts
// the gate's headers in the place of the origin's, holds manifests back until
// they are rewritten, and lets everything else pass untouched, by sendfile where
// the server beneath can.
type response struct {
	caddyhttp.ResponseWriterWrapper
	d      *decision
	state  responseState
	status int
	held   []byte                    // what has been written and not been sent
	share  *manifestShare            // of the memory for manifests, nil while none is held
	before [len(originHeaders)]uint8 // how many values each had before the origin's
	err    error                     // why the response is denied
	values headerValues
}

// headerValues has room for the values of the headers that most responses get.
// A slice that responses share would do for constant ones, were it not that
// handlers in front change values in place.
type headerValues struct {
	values [4]string
	used   int
}

// set is h.Set for a canonical name.
func (v *headerValues) set(h http.Header, name, value string) {
	if v.used == len(v.values) {
		h[name] = []string{value}
		return
	}
	i := v.used
	v.used++
	v.values[i] = value
	h[name] = v.values[i : i+1 : i+1]
}

// first returns what http.Header.Get does of a canonical name, which that would
// make canonical once more.
func first(values []string) string {
	if len(values) == 0 {
		return ""
	}
	return values[0]
}

type responseState int

const (
	waiting  responseState = iota // for the status
	sniffing                      // for the first bytes, which may be those of a manifest
	holding                       // a manifest, until it is complete
	passing
	denied
)

// originHeaders are headers by which an origin would talk to the viewer's browser
// about more than the response: where else to find the site, what to load, show
// or remember. Media need none of them.
var originHeaders = [...]string{
	"Alt-Svc", "Clear-Site-Data", "Link", "Refresh", "Set-Cookie", "X-Frame-Options", "X-Powered-By",
}

// start readies the writer for a request that has passed. It remembers what
// Caddy and the handlers in front have set, which is not the origin's.
func (w *response) start(to http.ResponseWriter, d *decision) *response {
	w.ResponseWriter, w.d = to, d
	if h := to.Header(); len(h) > 0 {
		for i, name := range originHeaders {
			w.before[i] = uint8(min(len(h[name]), math.MaxUint8))
		}
	}
	return w
}

// setHeaders puts the gate's headers in the place of the origin's.
func (w *response) setHeaders() {
	w.dropOriginHeaders()
	w.d.setResponseHeaders(w.Header())
}

func (w *response) dropOriginHeaders() {
	h := w.Header()
	for i, name := range originHeaders {
		switch values, before := h[name], int(w.before[i]); {
		case len(values) <= before:
		case before == 0:
			delete(h, name)
		default:
			h[name] = values[:before]
		}
	}
}

// serve has the next handler answer. Its error is a refusal if the answer is
// one that no viewer may get.
func (w *response) serve(next caddyhttp.Handler, r *http.Request) (err error) {
	defer func() {
		w.share.release()
		// This is how reverse_proxy gives up on a body that it cannot read
		// or write to its end.
		if p := recover(); p != nil {
			if p != any(http.ErrAbortHandler) || w.state == waiting || w.state == passing ||
				errors.Is(r.Context().Err(), context.Canceled) {
				panic(p)
			}
			if w.state != denied {
				w.refuse(errManifestIncomplete)
			}
			err = w.err
		}
	}()
	if err := next.ServeHTTP(w, r); err != nil {
		w.abandon()
		return err
	}
	return w.finish()
}

// abandon makes way for an error, which is answered past w. Players are to see
// its status too, and nothing of what the origin said about a body.
func (w *response) abandon() {
	if w.state == passing {
		return
	}
	if w.state != waiting {
		dropEntityHeaders(w.Header())
	}
	w.setHeaders()
}

// WriteHeader implements http.ResponseWriter. Informational responses end here:
// they would carry the origin's headers, as many times as it likes.
func (w *response) WriteHeader(status int) {
	if w.state != waiting || status < http.StatusOK && status != http.StatusSwitchingProtocols {
		return
	}
	w.status = status
	ok := status == http.StatusOK || status == http.StatusNonAuthoritativeInfo || status == http.StatusPartialContent
	switch {
	case len(w.Header()["Location"]) > 0 && status >= 300 && status < 400:
		w.redirect()
	case ok && (w.d.manifest || isManifestType(first(w.Header()["Content-Type"]))):
		w.hold()
	case ok:
		w.state = sniffing
	default:
		w.pass()
	}
}

// pass sends the headers; what is written from now on goes to the viewer.
func (w *response) pass() {
	w.state = passing
	w.setHeaders()
	if w.d.download && w.status < 300 {
		setFilename(w.Header(), w.d.query, w.d.target.suffix.decoded)
	}
	w.ResponseWriterWrapper.WriteHeader(w.status)
}

func (w *response) refuse(why error) {
	w.state = denied
	w.err = refuse(reasonManifestInvalid, why)
	w.held = nil
	w.share.release()
	dropEntityHeaders(w.Header())
	w.dropOriginHeaders()
}

func (w *response) Write(p []byte) (int, error) {
	if w.state == waiting {
		w.WriteHeader(http.StatusOK)
	}
	switch w.state {
	case passing:
		return w.ResponseWriterWrapper.Write(p)
	case sniffing:
		return w.sniff(p)
	case holding:
		return w.keep(p)
	default:
		return 0, w.err
	}
}

// sniff waits for enough of the body to tell a manifest.
func (w *response) sniff(p []byte) (int, error) {
	start := p
	if len(w.held) > 0 || len(p) < sniffLength {
		w.held = append(w.held, p...)
		start = w.held
	}
	switch {
	case beginsLikeHLS(start):
		w.hold()
	case len(start) < sniffLength:
		return len(p), nil
	default:
		w.pass()
	}
	if len(w.held) == 0 {
		return w.Write(p)
	}
	held := w.held
	w.held = nil
	if _, err := w.Write(held); err != nil {
		return 0, err
	}
	return len(p), nil
}

// ReadFrom implements io.ReaderFrom.
func (w *response) ReadFrom(r io.Reader) (n int64, err error) {
	if w.state == waiting {
		w.WriteHeader(http.StatusOK)
	}
	toWrite := struct{ io.Writer }{w}
	if w.state == sniffing {
		n, err = io.CopyN(toWrite, r, int64(sniffLength))
		if errors.Is(err, io.EOF) {
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
	var rest int64
	if w.state == passing {
		rest, err = w.ResponseWriterWrapper.ReadFrom(r)
	} else {
		rest, err = io.Copy(toWrite, r)
	}
	return n + rest, err
}

// FlushError implements what http.ResponseController looks for. What is held
// back stays so.
func (w *response) FlushError() error {
	if w.state != passing {
		return nil
	}
	return http.NewResponseController(w.ResponseWriter).Flush()
}

// finish sends what is held back when the next handler is done.
func (w *response) finish() error {
	switch w.state {
	case waiting:
		w.setHeaders()
	case sniffing:
		w.pass()
		_, err := w.ResponseWriterWrapper.Write(w.held)
		return err
	case holding:
		return w.sendManifest()
	case denied:
		return w.err
	case passing:
	}
	return nil
}

// setResponseHeaders overrules what the origin says about who may read, keep and
// embed the response.
func (d *decision) setResponseHeaders(h http.Header) {
	d.setAccessHeaders(h)
	if d.kind == kindIframe {
		d.settings.origins.setFrameAncestors(h)
	}
}

// setAccessHeaders says who may read and keep a response.
func (d *decision) setAccessHeaders(h http.Header) {
	d.settings.origins.setCORS(h, &d.response.values, d.requestOrigin)
	switch {
	case d.verified != nil:
		d.response.values.setPrivateCaching(h, d.verified.expiresAt().Sub(d.app.now()))
	case d.settings.origins.allowed != nil:
		d.response.values.setPrivateCaching(h, time.Duration(1<<63-1))
	}
}

// setFilename has the browser save a download under the name that the viewer's
// URL asks for: up to 120 of A-Z a-z 0-9 _ -, to which the ending of the file is
// added. Another name is ignored.
func setFilename(h http.Header, query, decoded string) {
	const most = 120
	values, _ := url.ParseQuery(query)
	name := values.Get("filename")
	if name == "" || len(name) > most || strings.Trim(name, filenameCharacters) != "" {
		return
	}
	if ending := extension(decoded); ending != "" && strings.Trim(ending, filenameCharacters) == "" {
		name += "." + ending
	}
	h.Set("Content-Disposition", `attachment; filename="`+name+`"`)
}

const filenameCharacters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-"

// sharedCacheHeaders are those by which origins direct shared caches past
// Cache-Control.
var sharedCacheHeaders = []string{"Cdn-Cache-Control", "Cloudflare-Cdn-Cache-Control", "Surrogate-Control", "Expires", "Pragma"}

// setPrivateCaching keeps shared caches from handing the response to another
// viewer, and every cache from holding it fresh for longer than the token
// lasts. What the origin allows beyond that is kept; where it says nothing, the
// response is revalidated each time, for a cache that guesses might guess too
// long.
func (v *headerValues) setPrivateCaching(h http.Header, lifetime time.Duration) {
	v.set(h, "Cache-Control", privateCacheControl(h["Cache-Control"], lifetime))
	dropSharedCaching(h)
}

func dropSharedCaching(h http.Header) {
	for _, name := range sharedCacheHeaders {
		delete(h, name)
	}
}

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

// Interface guards
var (
	_ http.ResponseWriter = (*response)(nil)
	_ io.ReaderFrom       = (*response)(nil)
)
