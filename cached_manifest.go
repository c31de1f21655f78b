package signedplayback

import (
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/signed-playback/caddy-signed-playback/internal/headerpolicy"
	"github.com/signed-playback/caddy-signed-playback/internal/playbackpath"
)

// decisionKey is the context key under which a gate hands its decision to the media cache.
type decisionKey struct{}

// decisionOf returns the decision of the gate before a cache, nil without a gate.
func decisionOf(r *http.Request) *decision {
	d, _ := r.Context().Value(decisionKey{}).(*decision)
	return d
}

// findPurge finds out when the video was last purged. A video of the config needs the store
// for that only. While nobody knows, requests go past the cache, because what is there may
// have been purged.
func (d *decision) findPurge() {
	d.purged = d.settings.purged
	d.pastCache = d.pastCache || d.settingsUnknown
	if _, configured := d.app.videos[d.video]; !configured {
		return
	}
	switch video, err := d.app.state.Video(d.request.Context(), d.video); {
	case err != nil:
		d.pastCache = true
	case video != nil:
		d.purged = video.Purged
	}
}

// manifestWorkKey is the context key of the decision of a fill, see decision.forAll.
type manifestWorkKey struct{}

// The gate checks and rewrites manifests in the cache's request to the origin, once for all
// viewers. This header tells the gate so when the response comes out of the cache. The
// values are secrets of the process, because an origin could otherwise keep its manifests
// from being rewritten.
const checkedHeader = "Signed-Playback-Checked"

var (
	rewrittenMark = []string{"rewritten " + rand.Text()}
	unchangedMark = []string{"unchanged " + rand.Text()} // captions without a URI to rewrite
)

// errForEach is about manifests that contain the viewer's URL or depend on its query, so the
// gate rewrites them for each viewer.
var errForEach = errors.New("the manifest is different for each viewer")

// identifyRewriting returns a text that is different for gates that rewrite manifests
// differently: it depends on each option that the rewriting depends on.
func (g *Gate) identifyRewriting() string {
	decides := fmt.Sprintf("%q %q %v %q %v", g.originPath.String(), g.paths.Downloads, g.paths.AllowAmbiguous, g.manifestHosts, g.features)
	return fmt.Sprintf("\x00%x", sha256.Sum256([]byte(decides)))
}

// rewritesInCache reports whether the gate does its work on manifests in the cache's
// request to the origin. It does not for segments, which the cache passes on at once, nor
// if a handler between gate and cache has changed what a manifest is relative to.
func (d *decision) rewritesInCache(r *http.Request) bool {
	return (!d.Media || d.WebVTT) && r.Host == d.request.Host && r.URL.EscapedPath() == d.originPath
}

// forAll returns a decision with no more than the work on manifests needs. It contains
// nothing of the viewer and may outlive the request.
func (d *decision) forAll() *decision {
	return &decision{
		gate: d.gate, app: d.app, observer: silentObserver{}, Resource: d.Resource, video: strings.Clone(d.video),
		target: playbackpath.Target{Suffix: playbackpath.Suffix{Escaped: strings.Clone(d.target.Suffix.Escaped), Decoded: strings.Clone(d.target.Suffix.Decoded)}},
	}
}

// fill asks the next handler for the cache, and checks and rewrites the manifest that it
// answers with. The error is a refusal if no viewer may get the manifest.
func (d *decision) fill(to http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	d.request, d.query = r, r.URL.RawQuery
	w := &d.response
	w.ResponseWriter, w.d, w.media, w.forAll, w.extent = to, d, d.Media && !d.WebVTT, true, whole
	return w.attempt(next, r)
}

// passForAll passes a response to the cache, with the origin's headers.
func (w *response) passForAll(mark []string) {
	w.state = passing
	if mark != nil {
		w.Header()[checkedHeader] = mark
	}
	w.ResponseWriterWrapper.WriteHeader(w.status)
}

// takeMark removes the cache's header from a response, and reports what it says. The
// validators of a rewritten manifest are for the cache.
func (w *response) takeMark() (rewritten, unchanged bool) {
	h := w.Header()
	mark := h[checkedHeader]
	if mark == nil {
		return false, false
	}
	delete(h, checkedHeader)
	if len(mark) != 1 || w.forAll {
		return false, false
	}
	if rewritten = mark[0] == rewrittenMark[0]; rewritten {
		headerpolicy.DropValidators(h)
	}
	return rewritten, mark[0] == unchangedMark[0]
}
