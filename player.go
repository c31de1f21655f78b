package signedplayback

import (
	"errors"
	"fmt"
	"net/http"
	"os"

	"github.com/signed-playback/caddy-signed-playback/internal/headerpolicy"
	"github.com/signed-playback/caddy-signed-playback/internal/playbackpath"
	"github.com/signed-playback/caddy-signed-playback/internal/player"
	"github.com/signed-playback/caddy-signed-playback/internal/sessions"
)

// PlayerConfig has the gate serve a player page at /<token>/iframe.
type PlayerConfig struct {
	// The file with hls.js (hls.min.js of its npm package), with which browsers
	// play that have Media Source Extensions. Placeholders are resolved. Default:
	// none, so only browsers with native HLS can play.
	HLSJS string `json:"hls_js,omitempty"`
}

// getHLSJS is the command that leaves the file in the current folder.
const getHLSJS = "npm pack hls.js && tar -xzf hls.js-*.tgz --strip-components=2 package/dist/hls.min.js"

var errTwoPages = errors.New("trust_origin_iframe: `player` serves a page of its own at /iframe; remove one of the two")

var errManifestOfPage = errors.New("the player page plays HLS; give the path of a playlist, like master.m3u8")

// provision loads hls.js and prepares the page. manifestPath is the escaped path of the
// manifest that the page plays, relative to the video.
func (c *PlayerConfig) provision(manifestPath string) (*player.Page, error) {
	if c.HLSJS == "" {
		return player.New(nil, manifestPath)
	}
	path, err := resolve(c.HLSJS)
	if err != nil {
		return nil, err
	}
	var page *player.Page
	script, err := os.ReadFile(path)
	if err == nil {
		page, err = player.New(script, manifestPath)
	}
	if err != nil {
		return nil, fmt.Errorf("%q: %w; want dist/hls.min.js of the npm package hls.js; this gets the file: %s", path, err, getHLSJS)
	}
	return page, nil
}

// servePlayer answers a request for the player page or its script after the
// pipeline has let it pass. It reports whether it has answered.
func (g *Gate) servePlayer(w http.ResponseWriter, d *decision) bool {
	h := w.Header()
	d.own = newOwnHeaders()
	switch d.target.Suffix.Decoded {
	case playbackpath.IframeSuffix:
		// The page plays in one session, whatever it loads and however often. A second viewer of
		// a cached page would have the session of the first.
		session := ""
		if d.mayLeadBelow() {
			session, d.rooted = sessions.Prefix+g.app.authority.get().New(d.owner(), g.app.now()), true
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
		d.result = resultPreflight
		answerPreflight(w, r)
		return true
	}
	headerpolicy.SetSandbox(w.Header())
	player.ServeSDK(w, r)
	return true
}
