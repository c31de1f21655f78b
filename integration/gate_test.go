package integration

import (
	"net/http"
	"testing"
	"time"

	"github.com/signed-playback/caddy-signed-playback/token"
)

// A token opens its own video, at the path that the origin has for it, and nothing else.
func TestTokenOpensItsVideo(t *testing.T) {
	o := startOrigin(t, nil)
	g := start(t, o, config{gate: "origin_path /library/{video}/v1"})
	good := mint(t, "vidA", nil)

	o.wantPassed(t, g.get(t, "/"+good+"/manifest/video.m3u8?protocol=llhls"), "/library/vidA/v1/manifest/video.m3u8?protocol=llhls")
	o.wantPassed(t, g.get(t, "/"+good+"/a%20b/seg_1.mp4"), "/library/vidA/v1/a%20b/seg_1.mp4")
	o.wantPassed(t, g.get(t, "/"+good), "/library/vidA/v1/iframe")
	o.wantPassed(t, g.get(t, "/"+good+"/"), "/library/vidA/v1/iframe")

	o.wantRefused(t, g.get(t, "/vidA/manifest/video.m3u8"), http.StatusUnauthorized, "token_required")
	o.wantRefused(t, g.get(t, "/vidB/manifest/video.m3u8"), http.StatusUnauthorized, "token_required")
	expired := mint(t, "vidA", func(c *token.Claims) { c.ExpiresAt = time.Now().Add(-time.Second) })
	o.wantRefused(t, g.get(t, "/"+expired+"/manifest/video.m3u8"), http.StatusUnauthorized, "token_expired")
}
