package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/signed-playback/caddy-signed-playback/token"
)

// reporting is a gateway with checks that only report, with metrics and an access
// log. It enforces all checks for the video "strict".
type reporting struct {
	*gateway
	admin string // host:port of the admin API
}

func startReporting(t *testing.T, o *origin, gate string) *reporting {
	t.Helper()
	admin := freeAddr(t)
	return &reporting{start(t, o, config{
		global: "admin " + admin,
		app:    withCountries(t) + "\nvideo strict {\nenforce on\n}\nvideo site {\nallowed_origins example.com\n}",
		gate:   gate,
		site:   accessLog(t, "access.log") + "reverse_proxy " + o.addr(),
	}), admin}
}

// counted returns how many requests for segments have been counted by result and reason.
func (r *reporting) counted(t testing.TB, result, reason string) float64 {
	t.Helper()
	return r.metric(t, r.admin, fmt.Sprintf(`requests_total{kind="%s",reason=%q,result=%q}`,
		either(reason == "download_not_allowed", "download", "segment"), reason, result))
}

// wantLogged waits for a last line of the access log with these fields.
func (r *reporting) wantLogged(t testing.TB, fields map[string]string) {
	t.Helper()
	eventually(t, fmt.Sprintf("a line of the access log with %v", fields), func() bool {
		content, err := os.ReadFile(filepath.Join(r.dir, "access.log"))
		if err != nil {
			return false
		}
		lines := strings.Split(strings.TrimSpace(string(content)), "\n")
		var entry map[string]any
		if err := json.Unmarshal([]byte(lines[len(lines)-1]), &entry); err != nil {
			return false
		}
		for name, want := range fields {
			if got, _ := entry["signed_playback_"+name].(string); got != want {
				return false
			}
		}
		return true
	})
}

// A gate that you put in front of an audience that has no tokens yet: a request that
// it would refuse plays, and is counted and logged. A request that names no video, or
// one of a video that is enforced, is refused. The unit tests have every reason.
func TestReportOnly(t *testing.T) {
	t.Parallel()
	o := startOrigin(t, nil)
	g := startReporting(t, o, "enforce off")
	expired := func(c *token.Claims) { c.ExpiresAt = time.Now().Add(-time.Second) }
	for _, tc := range []struct{ name, path, origin, video, reason string }{
		{"no token", "/demo/video/1.ts", "", "demo", "token_required"},
		{"forged", forgedSegment(), "", "demo", "signature_invalid"},
		{"invalid rules", "/" + mint(t, "demo", withRules(`[{}]`)) + "/video/1.ts", "", "demo", "rules_invalid"},
		{"another site", "/" + mint(t, "site", nil) + "/video/1.ts", "https://evil.example", "site", "origin_not_allowed"},
		{"download", "/" + mint(t, "demo", nil) + "/downloads/1.mp4", "", "demo", "download_not_allowed"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := g.counted(t, "would_refuse", tc.reason)
			res := g.raw(t, rawGet(tc.path, "Origin: "+tc.origin))
			o.wantPassed(t, res, "/"+tc.video+tc.path[strings.IndexByte(tc.path[1:], '/')+1:])
			if got := res.Header.Get("Access-Control-Allow-Origin"); got != "*" {
				t.Errorf("Access-Control-Allow-Origin is %q, so a browser would refuse what the gate does not", got)
			}
			if n := g.counted(t, "would_refuse", tc.reason) - before; n != 1 {
				t.Errorf("counted %v times as would_refuse %s, want once", n, tc.reason)
			}
			g.wantLogged(t, map[string]string{"video": tc.video, "result": "would_refuse", "reason": tc.reason})
		})
	}
	for _, tc := range []struct{ name, path, reason string }{
		{"garbage", "/a.b.c/video/1.ts", "token_malformed"},
		{"no path", "/" + mint(t, "demo", nil) + "/../x", "path_invalid"},
		{"expired, of a video that is enforced", "/" + mint(t, "strict", expired) + "/video/1.ts", "token_expired"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			o.wantRefused(t, g.raw(t, rawGet(tc.path)), reasonStatus[tc.reason], tc.reason)
			g.wantLogged(t, map[string]string{"result": "refused", "reason": tc.reason})
		})
	}
	t.Run("good", func(t *testing.T) {
		o.wantPassed(t, g.get(t, "/"+mint(t, "demo", nil)+"/video/1.ts"), "/demo/video/1.ts")
		g.wantLogged(t, map[string]string{"video": "demo", "result": "allowed", "reason": ""})
	})
}

// forgedSegment is a segment's path with a forged token.
func forgedSegment() string {
	return segment(b64(goodHeader()) + "." + b64(goodPayload("demo")) + "." + b64(strings.Repeat("x", 256)))
}
