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

// response is the response writer that the handlers after the gate see. It
// replaces headers of the origin by those of the gate, buffers manifests until
// they are rewritten, and passes everything else through untouched, with sendfile
// where the server can.
type response struct {
	caddyhttp.ResponseWriterWrapper
	d        *decision
	headers  headerPolicy
	state    responseState
	status   int
	sniffed  []byte // the first bytes of a body that may be a manifest
	manifest manifestBuffer
	err      error // why the response is denied
}

type responseState int

const (
	waiting  responseState = iota // until the status is known
	sniffing                      // until the first bytes show whether this is a manifest
	holding                       // until the manifest is complete
	passing
	denied
)

// start prepares the writer for a request that the gate lets pass.
func (w *response) start(to http.ResponseWriter, d *decision) *response {
	w.ResponseWriter, w.d = to, d
	w.headers.remember(to.Header())
	return w
}

// setHeaders puts the gate's headers in the place of the origin's.
func (w *response) setHeaders() {
	w.headers.dropOriginHeaders(w.Header())
	w.d.setResponseHeaders(w.Header())
}

// serve has the next handler answer. Its error is a refusal if no viewer may get
// the answer.
func (w *response) serve(next caddyhttp.Handler, r *http.Request) (err error) {
	defer func() {
		w.manifest.release()
		// reverse_proxy panics with this value when it cannot read or write a
		// body to its end.
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

// abandon prepares for an error, whose response does not go through w. Players
// must be able to read its status, and the origin's headers about a body must not
// reach them.
func (w *response) abandon() {
	if w.state == passing {
		return
	}
	if w.state != waiting {
		dropEntityHeaders(w.Header())
	}
	w.setHeaders()
}

// WriteHeader implements http.ResponseWriter. It drops informational responses,
// which would carry the origin's headers, any number of times.
func (w *response) WriteHeader(status int) {
	if w.state != waiting || status < http.StatusOK && status != http.StatusSwitchingProtocols {
		return
	}
	w.status = status
	// Players accept a manifest with any of these statuses.
	ok := status >= 200 && status < 300 && status != http.StatusNoContent && status != http.StatusResetContent
	switch {
	case len(w.Header()["Location"]) > 0 && status >= 300 && status < 400:
		w.redirect()
	case ok && (w.d.manifest || isManifestType(w.Header().Get("Content-Type"))):
		w.holdManifest()
	case ok:
		w.state = sniffing
	default:
		w.pass()
	}
}

// pass sends the headers. From now on, writes go to the viewer.
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
	w.manifest.release()
	dropEntityHeaders(w.Header())
	w.headers.dropOriginHeaders(w.Header())
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
		return w.hold(p)
	default:
		return 0, w.err
	}
}

// sniff waits for enough bytes of the body to recognize a manifest.
func (w *response) sniff(p []byte) (int, error) {
	start := p
	if len(w.sniffed) > 0 || len(p) < sniffLength {
		w.sniffed = append(w.sniffed, p...)
		start = w.sniffed
	}
	switch {
	case beginsLikeHLS(start):
		w.holdManifest()
	case len(start) < sniffLength:
		return len(p), nil
	default:
		w.pass()
	}
	w.sniffed = nil
	if _, err := w.Write(start); err != nil {
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

// FlushError implements the method that http.ResponseController looks for. It
// does not flush buffered bytes.
func (w *response) FlushError() error {
	if w.state != passing {
		return nil
	}
	return http.NewResponseController(w.ResponseWriter).Flush()
}

// finish sends buffered bytes when the next handler is done.
func (w *response) finish() error {
	switch w.state {
	case waiting:
		w.setHeaders()
	case sniffing:
		w.pass()
		_, err := w.ResponseWriterWrapper.Write(w.sniffed)
		return err
	case holding:
		return w.sendManifest()
	case denied:
		return w.err
	case passing:
	}
	return nil
}

// headerPolicy removes headers with which an origin would tell the viewer's
// browser more than the response: where else to find the site, what to load, show
// or remember. Media need none of them.
type headerPolicy struct {
	before [len(originHeaders)]uint8 // how many values Caddy and earlier handlers had set
}

var originHeaders = [...]string{
	"Alt-Svc", "Clear-Site-Data", "Link", "Refresh", "Set-Cookie", "X-Frame-Options", "X-Powered-By",
}

// remember counts the values that are not the origin's.
func (p *headerPolicy) remember(h http.Header) {
	for i, name := range originHeaders {
		p.before[i] = uint8(min(len(h[name]), math.MaxUint8))
	}
}

func (p *headerPolicy) dropOriginHeaders(h http.Header) {
	for i, name := range originHeaders {
		switch values, before := h[name], int(p.before[i]); {
		case len(values) <= before:
		case before == 0:
			delete(h, name)
		default:
			h[name] = values[:before]
		}
	}
}

// setResponseHeaders overrides what the origin says about who may read, cache
// and embed the response.
func (d *decision) setResponseHeaders(h http.Header) {
	d.setAccessHeaders(h)
	if d.kind == kindIframe {
		d.settings.origins.setFrameAncestors(h)
	}
}

// setAccessHeaders says who may read and cache a response.
func (d *decision) setAccessHeaders(h http.Header) {
	d.settings.origins.setCORS(h, d.requestOrigin)
	switch {
	case d.verified != nil:
		setPrivateCaching(h, d.verified.expiresAt().Sub(d.app.now()))
	case d.settings.origins.allowed != nil:
		setPrivateCaching(h, time.Duration(1<<63-1))
	}
}

// setFilename has the browser save a download under the name in the query
// parameter `filename`: up to 120 of A-Z a-z 0-9 _ -, plus the extension of the
// file. It ignores any other name.
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

// sharedCacheHeaders are the headers that direct shared caches in spite of
// Cache-Control.
var sharedCacheHeaders = []string{"Cdn-Cache-Control", "Cloudflare-Cdn-Cache-Control", "Surrogate-Control", "Expires", "Pragma"}

// setPrivateCaching keeps shared caches from serving the response to another
// viewer, and every cache from treating it as fresh after the token has expired.
// Otherwise the origin's directives stay. Without any, caches revalidate each
// time, because a heuristic lifetime could be too long.
func setPrivateCaching(h http.Header, lifetime time.Duration) {
	h.Set("Cache-Control", privateCacheControl(h["Cache-Control"], lifetime))
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
