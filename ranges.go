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
)

// extent is how much of a resource the gate asks the origin for.
type extent int

const (
	requested extent = iota // what the viewer asks for
	beginning               // the first bytes, which tell whether this is a manifest
	whole
)

// beginningRange asks for as many bytes as the gate looks at.
var beginningRange = []string{"bytes=0-" + strconv.Itoa(maxPrologLength-1)}

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
		askForWhole(r.Header)
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
	return ok && (end == "" || err == nil && last >= maxPrologLength-1)
}
