package signedplayback

import (
	"net/http"
	"strconv"

	"github.com/signed-playback/caddy-signed-playback/internal/headerpolicy"
	"github.com/signed-playback/caddy-signed-playback/internal/playbackpath"
)

// serveViews answers a request for the number of viewers after the pipeline has let it pass, in
// the shape of Cloudflare Stream. It reports whether it has answered.
func (g *Gate) serveViews(w http.ResponseWriter, d *decision) bool {
	if d.target.Suffix.Decoded != playbackpath.ViewsSuffix || !d.app.countsSessions() {
		return false
	}
	body := []byte(`{"liveViewers":` + strconv.FormatInt(d.app.state.tracker.CountVideo(d.request.Context(), d.video), 10) + "}")
	h := w.Header()
	d.own = newOwnHeaders()
	headerpolicy.DropCORS(h)
	d.setAccessHeaders(h)
	headerpolicy.SetSandbox(h)
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	h.Set("Cache-Control", "no-store")
	if d.request.Method != http.MethodHead {
		_, _ = w.Write(body)
	}
	return true
}
