package signedplayback

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/signed-playback/caddy-signed-playback/internal/headerpolicy"
	"github.com/signed-playback/caddy-signed-playback/internal/manifestbody"
	"github.com/signed-playback/caddy-signed-playback/internal/playbackpath"
)

// originRequest turns the viewer's request into the one that the origin gets.
// Call done when the origin has answered.
func (g *Gate) originRequest(r *http.Request, d *decision) (forOrigin *http.Request, done func()) {
	g.setOriginPath(r, d)
	hideOriginalURL(r)
	d.pastCache = g.requestHeaders.Clean(r.Header, d.target)
	if len(g.app.caches) > 0 {
		d.findPurge()
		r = r.WithContext(context.WithValue(r.Context(), decisionKey{}, d))
	}
	headerpolicy.LimitRanges(r.Header)
	headerpolicy.LimitCoding(r.Header)
	if d.Manifest {
		return prepareManifestRequest(r)
	}
	if r.Method == http.MethodHead {
		headerpolicy.DropRange(r.Header) // RFC 9110 section 14.2
	}
	if d.Kind == playbackpath.KindOther || len(r.Header["Range"]) > 0 {
		// It may turn out to be a manifest, or a part of one.
		headerpolicy.AskForIdentity(r.Header)
	}
	return r, func() {}
}

// setOriginPath gives the request the path that the video has at the origin.
func (g *Gate) setOriginPath(r *http.Request, d *decision) {
	path, decoded := g.originPath.File(d.video, d.target.Suffix)
	d.originPath = path
	r.URL.User = nil
	r.URL.Path, r.URL.RawPath = decoded, path
	r.URL.RawQuery = headerpolicy.CleanQuery(d.query, d.target)
	r.RequestURI = path
	if r.URL.RawQuery != "" || r.URL.ForceQuery {
		r.RequestURI = path + "?" + r.URL.RawQuery
	}
}

// prepareManifestRequest asks the origin for the whole manifest, uncompressed and
// without conditions. The gate could not rewrite a part, and an unchanged manifest
// may have been rewritten for another token. A HEAD becomes a GET, because only
// the rewritten manifest tells its length.
func prepareManifestRequest(r *http.Request) (*http.Request, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(r.Context(), manifestbody.Timeout)
	r = r.WithContext(ctx)
	r.Method = http.MethodGet
	headerpolicy.DropConditions(r.Header)
	headerpolicy.AskForWhole(r.Header)
	return r, cancel
}

// dropBody ends a request body here. No playback method has one, and where two
// servers disagree about a body, they see a second request in it (request
// smuggling).
func dropBody(w http.ResponseWriter, r *http.Request) {
	if r.ContentLength == 0 && len(r.TransferEncoding) == 0 {
		return
	}
	r.Body = http.NoBody
	r.ContentLength = 0
	r.TransferEncoding = nil
	r.Trailer = nil
	if r.ProtoMajor == 1 {
		w.Header().Set("Connection", "close")
	}
}

// extent is how much of a resource the gate asks the origin for.
type extent int

const (
	requested extent = iota // what the viewer asks for
	beginning               // the first bytes, which tell whether this is a manifest
	whole
)

// beginningRange asks for as many bytes as the gate looks at.
var beginningRange = []string{"bytes=0-" + strconv.Itoa(manifestbody.MaxPrologLength-1)}

const (
	// maxAttempts is how often the gate asks the origin to answer one request for a
	// range: for the beginning, for the whole, and for the range.
	maxAttempts = 4

	// maxSkipped is how many bytes of an answer that no viewer gets the gate reads, so
	// that the connection to the origin stays open.
	maxSkipped = 64 << 10
)

var errRepeat = errors.New("the gate asks the origin again")

// serve has the next handler answer. Its error is a refusal if no viewer may get the
// answer.
//
// A part of a manifest must not pass, and a part does not show which file it belongs to. If
// the name does not show it either, the gate first sends the same request for the
// beginning. An answer other than a part is the answer to the viewer.
func (w *response) serve(next caddyhttp.Handler, r *http.Request) error {
	defer w.dropLateHeaders()
	ranges := r.Header["Range"]
	if len(ranges) == 0 {
		w.extent = whole
		return w.attempt(next, r)
	}
	if !w.media && r.Method == http.MethodGet && !includesBeginning(ranges[0]) {
		w.extent = beginning
	}
	before := w.Header().Clone()
	for {
		w.attempts++
		err := w.attempt(next, w.extent.request(r))
		if w.state != repeating {
			return err
		}
		clear(w.Header())
		maps.Copy(w.Header(), before)
		before = before.Clone()
		w.state, w.sniffed, w.manifest, w.skipped = waiting, nil, nil, 0
	}
}

// repeat has serve ask the origin again.
func (w *response) repeat(ask extent) {
	if w.extent == ask || w.attempts >= maxAttempts {
		w.refuse(errManifestPartial)
		return
	}
	w.state, w.extent = repeating, ask
}

// skip drops the rest of an answer.
func (w *response) skip(p []byte) (int, error) {
	if w.skipped += len(p); w.skipped > maxSkipped {
		return 0, errRepeat
	}
	return len(p), nil
}

// request returns a copy of the viewer's request that asks for this much.
func (ask extent) request(r *http.Request) *http.Request {
	r = r.Clone(withRouteGroups(r.Context(), r.Context()))
	switch ask {
	case beginning:
		r.Header["Range"] = beginningRange
	case whole:
		headerpolicy.AskForWhole(r.Header)
	case requested:
	}
	return r
}

// withRouteGroups copies to a context which groups of routes have matched so far. A route of
// a group, such as handle, runs once in a request.
func withRouteGroups(to, from context.Context) context.Context {
	const key = caddy.CtxKey("route_group")
	groups, ok := from.Value(key).(map[string]struct{})
	if !ok {
		return to
	}
	return context.WithValue(to, key, maps.Clone(groups))
}

// includesBeginning reports whether a Range header asks for one range that has all
// bytes at which the gate looks.
func includesBeginning(ranges string) bool {
	end, ok := strings.CutPrefix(ranges, "bytes=0-")
	last, err := strconv.ParseUint(end, 10, 63)
	return ok && (end == "" || err == nil && last >= manifestbody.MaxPrologLength-1)
}
