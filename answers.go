package signedplayback

import (
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/signed-playback/caddy-signed-playback/internal/headerpolicy"
	"github.com/signed-playback/caddy-signed-playback/internal/playbackpath"
	"github.com/signed-playback/caddy-signed-playback/internal/player"
	"github.com/signed-playback/caddy-signed-playback/internal/refusal"
	"github.com/signed-playback/caddy-signed-playback/internal/sessions"
)

// PlayerConfig has the gate serve a player page at /<token>/iframe.
type PlayerConfig struct {
	// The file with hls.js (hls.min.js of its npm package), with which browsers
	// play that have Media Source Extensions. Placeholders are resolved. Default:
	// none, so only browsers with native HLS can play.
	HLSJS string `json:"hls_js,omitempty"`
}

var errTwoPages = errors.New("trust_origin_iframe: `player` serves a page of its own at /iframe; remove one of the two")

// provision loads hls.js and prepares the page. manifestPath is the escaped path of the
// manifest that the page plays, relative to the video.
func (c *PlayerConfig) provision(manifestPath string) (*player.Page, error) {
	path, err := resolve(c.HLSJS)
	if err != nil {
		return nil, err
	}
	return player.Load(path, manifestPath)
}

// servePlayer answers a request for the player page or its script after the
// pipeline has let it pass. It reports whether it has answered.
func (g *Gate) servePlayer(w http.ResponseWriter, d *decision) bool {
	h := w.Header()
	d.own = headerpolicy.NewOwn()
	switch d.target.Suffix.Decoded {
	case playbackpath.IframeSuffix:
		// The page plays in one session, whatever it loads and however often. A second viewer of
		// a cached page would have the session of the first.
		session := ""
		if d.mayLeadBelow() {
			session, d.rooted = sessions.Prefix+g.app.authority.Authority().New(d.owner(), g.app.now()), true
		}
		headerpolicy.DropCORS(h)
		d.setAccessHeaders(h)
		g.player.ServePage(w, d.request, d.settings.origins.allowed.FrameAncestors(), session)
	case playbackpath.HLSJSSuffix:
		headerpolicy.DropCORS(h)
		d.setAccessHeaders(h)
		headerpolicy.SetSandbox(h)
		g.player.ServeHLSJS(w, d.request)
	default:
		return false
	}
	return true
}

// sdkPath is the path of the player SDK. Its first segment is no token, so the pipeline would
// take it for a video id.
const sdkPath = "/embed/sdk.latest.js"

// serveSDK answers a request for the player SDK, which needs no token. It reports whether it
// has answered. A script for a service worker is left to the pipeline, which refuses it.
func (g *Gate) serveSDK(w http.ResponseWriter, d *decision) bool {
	r := d.request
	if g.player == nil || r.URL.Path != sdkPath || r.URL.RawPath != "" || checkMethod(d) != nil {
		return false
	}
	headerpolicy.DropCORS(w.Header())
	if r.Method == http.MethodOptions {
		d.result = refusal.Preflight
		answerPreflight(w, r)
		return true
	}
	headerpolicy.SetSandbox(w.Header())
	player.ServeSDK(w, r)
	return true
}

// renewalSuffix is the suffix below a session at which a new token of the same video and viewer
// takes the session over: /<new token>/~<session of the old token>/renew.
const renewalSuffix = "renew"

// sessionRenewal is the answer to a renewal.
type sessionRenewal struct {
	// The session as it is written in paths below the new token, with the tilde. It is the
	// same session, so it is counted once.
	Session string `json:"session"`

	// Until when URLs of the old token play, in Unix seconds: its exp, or later if
	// max_session allows that.
	Until int64 `json:"until"`
}

// renewsSession reports whether the request has a session taken over.
func (d *decision) renewsSession() bool {
	return d.target.Suffix.Decoded == renewalSuffix && d.target.Session != ""
}

// checkRenewal finds the session that the token in the path takes over: one that runs, of the
// same video and of the viewer whom both tokens name.
func (d *decision) checkRenewal() error {
	key, ok := sessions.KeyIn(d.target.Session)
	t := d.verified
	if !ok || t == nil {
		return refusal.SessionInvalid.Because(errSessionInvalid)
	}
	if err := d.checkRevokedSession(key); err != nil {
		return err
	}
	info, found, err := d.app.state.tracker.FindKey(d.request.Context(), key)
	switch {
	case err != nil:
		return refusal.StateUnavailable.Because(errSessionsUnknown)
	case !found || info.Video != d.video || info.Viewer != t.SessionViewer:
		return refusal.SessionInvalid.Because(errSessionInvalid)
	}
	d.renewed = &info
	return nil
}

// answerRenewal extends the session, so that a player may keep its old URLs, and returns the
// session as it is in paths below the new token, for players that can change their URLs.
func (g *Gate) answerRenewal(w http.ResponseWriter, d *decision) error {
	key, _ := sessions.KeyIn(d.target.Session)
	until, extended := d.renewed.Expires, d.app.state.tracker.Until(key)
	if latest := until.Add(time.Duration(g.app.MaxSession)); g.app.MaxSession > 0 && !until.IsZero() {
		if until = d.verified.ExpiresAt(); until.After(latest) {
			until = latest
		}
		// A token that does not last longer must not write to the store.
		if until.After(extended) && until.After(d.renewed.Expires) {
			if err := d.app.state.Extend(d.request.Context(), d.renewed.ID.String(), until); err != nil {
				return d.refuse(w, refusal.StateUnavailable.Because(errSessionsUnknown))
			}
			g.app.state.tracker.Extend(d.renewed.ID, until)
		}
	}
	if extended.After(until) {
		until = extended
	}
	d.answerJSON(w, sessionRenewal{sessions.Prefix + g.app.authority.Authority().Text(key, d.owner()), until.Unix()})
	return nil
}

// liveViewers is the answer to a request for the number of viewers, in the shape of Cloudflare Stream.
type liveViewers struct {
	LiveViewers int64 `json:"liveViewers"`
}

// serveViews answers a request for the number of viewers after the pipeline has let it pass. It
// reports whether it has answered.
func (g *Gate) serveViews(w http.ResponseWriter, d *decision) bool {
	if d.target.Suffix.Decoded != playbackpath.ViewsSuffix || !d.app.countsSessions() {
		return false
	}
	d.answerJSON(w, liveViewers{d.app.state.tracker.CountVideo(d.request.Context(), d.video)})
	return true
}

// answerJSON answers with an object for this viewer alone.
func (d *decision) answerJSON(w http.ResponseWriter, answer any) {
	body, _ := json.Marshal(answer) // it has texts and numbers only
	h := w.Header()
	d.own, d.rooted = headerpolicy.NewOwn(), true
	headerpolicy.DropCORS(h)
	d.setAccessHeaders(h)
	headerpolicy.SetSandbox(h)
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	if d.request.Method != http.MethodHead {
		_, _ = w.Write(body) // an error is a client that has cancelled
	}
}
