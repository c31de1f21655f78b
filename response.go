package signedplayback

import (
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// responseHeaders is a response writer that puts the gate's headers in the
// place of the origin's in the moment in which they are sent. The body passes
// untouched, by sendfile where the server beneath can.
type responseHeaders struct {
	*caddyhttp.ResponseWriterWrapper
	apply func(http.Header)
	sent  bool
}

// WriteHeader implements http.ResponseWriter. Informational responses have
// headers of their own.
func (w *responseHeaders) WriteHeader(status int) {
	if status >= http.StatusOK || status == http.StatusSwitchingProtocols {
		w.send()
	}
	w.ResponseWriterWrapper.WriteHeader(status)
}

func (w *responseHeaders) Write(p []byte) (int, error) {
	w.send()
	return w.ResponseWriterWrapper.Write(p)
}

// ReadFrom implements io.ReaderFrom.
func (w *responseHeaders) ReadFrom(r io.Reader) (int64, error) {
	w.send()
	return w.ResponseWriterWrapper.ReadFrom(r)
}

// FlushError implements what http.ResponseController looks for: a flush sends
// the headers, so they must be right before it.
func (w *responseHeaders) FlushError() error {
	w.send()
	return http.NewResponseController(w.ResponseWriter).Flush()
}

func (w *responseHeaders) send() {
	if !w.sent {
		w.sent = true
		w.apply(w.Header())
	}
}

// setResponseHeaders overrules what the origin says about who may read and keep
// the response.
func (d *decision) setResponseHeaders(h http.Header) {
	d.settings.origins.setCORS(h, d.requestOrigin)
	switch {
	case d.verified != nil:
		setPrivateCaching(h, d.verified.claims.ExpiresAt.Sub(d.app.now()))
	case d.settings.origins.allowed != nil:
		setPrivateCaching(h, time.Duration(1<<63-1))
	}
	if d.kind == kindIframe {
		d.settings.origins.setFrameAncestors(h)
	}
}

// sharedCacheHeaders are those by which origins direct shared caches past
// Cache-Control.
var sharedCacheHeaders = []string{"Cdn-Cache-Control", "Cloudflare-Cdn-Cache-Control", "Surrogate-Control", "Expires", "Pragma"}

// setPrivateCaching keeps shared caches from handing the response to another
// viewer, and every cache from holding it fresh for longer than the token
// lasts. What the origin allows beyond that is kept; where it says nothing, the
// response is revalidated each time, for a cache that guesses might guess too
// long.
func setPrivateCaching(h http.Header, lifetime time.Duration) {
	h.Set("Cache-Control", privateCacheControl(h["Cache-Control"], lifetime))
	for _, name := range sharedCacheHeaders {
		delete(h, name)
	}
}

func privateCacheControl(origin []string, lifetime time.Duration) string {
	kept := []string{"private"}
	var fresh bool
	for directive := range strings.SplitSeq(strings.ToLower(strings.Join(origin, ",")), ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(directive), "=")
		switch name {
		case "no-store":
			return "no-store"
		case "no-cache", "no-transform", "must-revalidate":
			kept = append(kept, name)
		case "max-age":
			seconds, err := strconv.ParseInt(strings.Trim(value, `"`), 10, 64)
			if err != nil || seconds < 0 || fresh {
				continue
			}
			fresh = true
			seconds = min(seconds, max(0, int64(lifetime/time.Second)))
			kept = append(kept, "max-age="+strconv.FormatInt(seconds, 10))
		}
	}
	if !fresh {
		kept = append(kept, "max-age=0")
	}
	return strings.Join(kept, ", ")
}

// Interface guards
var (
	_ http.ResponseWriter = (*responseHeaders)(nil)
	_ io.ReaderFrom       = (*responseHeaders)(nil)
)
