package integration

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/signed-playback/caddy-signed-playback/token"
)

// reporting is a gateway that refuses nothing but for one video, with metrics
// and an access log.
type reporting struct {
	*gateway
	metrics string // address of the page
}

func startReporting(t *testing.T, o *origin, gate string) *reporting {
	t.Helper()
	metrics := freeAddr(t)
	return &reporting{start(t, o, config{
		global: "metrics",
		app:    withCountries(t) + "\nvideo strict {\nenforce on\n}\nvideo site {\nallowed_origins example.com\n}",
		gate:   gate,
		site:   accessLog(t, "access.log") + "reverse_proxy " + o.addr(),
		sites:  "http://" + metrics + " {\nmetrics /metrics\n}",
	}), "http://" + metrics + "/metrics"}
}

// counted returns how many requests have been counted by result and reason.
func (r *reporting) counted(t testing.TB, result, reason string) (count float64) {
	t.Helper()
	res, err := client.Get(r.metrics)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(readResponse(t, res).body)) {
		series, value, _ := strings.Cut(strings.TrimSpace(line), "} ")
		if !strings.HasPrefix(series, "caddy_signed_playback_requests_total{") ||
			!strings.Contains(series, fmt.Sprintf(`result=%q`, result)) || !strings.Contains(series, fmt.Sprintf(`reason=%q`, reason)) {
			continue
		}
		n, err := strconv.ParseFloat(value, 64)
		if err != nil {
			t.Fatalf("the metric is %q: %v", line, err)
		}
		count += n
	}
	return count
}

// logged returns the last line of the access log that is about a token or a
// path.
func (r *reporting) logged(t testing.TB, fields map[string]string) {
	t.Helper()
	var got map[string]string
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
		got = make(map[string]string)
		for name := range fields {
			got[name], _ = entry["signed_playback_"+name].(string)
		}
		return cmp.Equal(fields, got)
	})
}

// A gate that is introduced where viewers already are: what it would refuse
// plays, is counted, logged and pointed out, and what names no video, or a video
// that is enforced, is refused as ever.
func TestReportOnly(t *testing.T) {
	o := startOrigin(t, nil)
	g := startReporting(t, o, "enforce off")
	if !g.log.await("NOTHING IS REFUSED: enforce is off", startTimeout) {
		t.Errorf("nothing is said of it at start:\n%s", g.log)
	}
	expired := func(c *token.Claims) { c.ExpiresAt = time.Now().Add(-time.Second) }
	for _, tc := range []struct{ name, path, origin, video, reason string }{
		{"no token", "/demo/video/1.ts", "", "demo", "token_required"},
		{"expired", "/" + mint(t, "demo", expired) + "/video/1.ts", "", "demo", "token_expired"},
		{"forged", "/" + b64(goodHeader()) + "." + b64(goodPayload("demo")) + "." + b64(strings.Repeat("x", 256)) + "/video/1.ts", "", "demo", "signature_invalid"},
		{"unknown key", stranger(), "", "demo", "key_unknown"},
		{"invalid rules", "/" + mint(t, "demo", withRules(`[{}]`)) + "/video/1.ts", "", "demo", "rules_invalid"},
		{"blocked", "/" + mint(t, "demo", withRules(`[{"type":"ip.geoip.country","country":["US"],"action":"block"}]`)) + "/video/1.ts", "", "demo", "rule_blocked"},
		{"another site", "/" + mint(t, "site", nil) + "/video/1.ts", "https://evil.example", "site", "origin_not_allowed"},
		{"no site", "/" + mint(t, "site", nil) + "/video/1.ts", "", "site", "origin_required"},
		{"download", "/" + mint(t, "demo", nil) + "/downloads/1.mp4", "", "demo", "download_not_allowed"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			o.take()
			before := g.counted(t, "would_refuse", tc.reason)
			var header []string
			if tc.origin != "" {
				header = []string{"Origin: " + tc.origin}
			}
			res := g.get(t, tc.path, header...)
			o.wantPassed(t, res, "/"+tc.video+tc.path[strings.IndexByte(tc.path[1:], '/')+1:])
			if got := res.Header.Get("Access-Control-Allow-Origin"); got != "*" {
				t.Errorf("Access-Control-Allow-Origin is %q, so a browser would refuse what the gate does not", got)
			}
			if n := g.counted(t, "would_refuse", tc.reason) - before; n != 1 {
				t.Errorf("counted %v times as would_refuse %s, want once", n, tc.reason)
			}
			g.logged(t, map[string]string{"video": tc.video, "result": "would_refuse", "reason": tc.reason})
			if !g.log.await("would refuse: "+tc.reason, startTimeout) {
				t.Errorf("%s is not pointed out", tc.reason)
			}
		})
	}
	for _, tc := range []struct {
		name, path string
		status     int
		reason     string
	}{
		{"garbage", "/a.b.c/video/1.ts", http.StatusUnauthorized, "token_malformed"},
		{"no path", "/" + mint(t, "demo", nil) + "/../x", http.StatusBadRequest, "path_invalid"},
		{"expired, of a video that is enforced", "/" + mint(t, "strict", expired) + "/video/1.ts", http.StatusUnauthorized, "token_expired"},
		{"no token, of a video that is enforced", "/strict/video/1.ts", http.StatusUnauthorized, "token_required"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			o.take()
			o.wantRefused(t, g.raw(t, rawGet(tc.path)), tc.status, tc.reason)
			g.logged(t, map[string]string{"result": "refused", "reason": tc.reason})
		})
	}
	t.Run("good", func(t *testing.T) {
		o.take()
		o.wantPassed(t, g.get(t, "/"+mint(t, "demo", nil)+"/video/1.ts"), "/demo/video/1.ts")
		g.logged(t, map[string]string{"video": "demo", "result": "allowed", "reason": ""})
	})
}

// A page of another site may embed a video whose origins are only reported, and
// no other check is loosened by that.
func TestReportOnlyOrigins(t *testing.T) {
	o := startOrigin(t, nil)
	g := startReporting(t, o, "player\nreport_only origins")
	if !g.log.await("NOT EVERYTHING IS REFUSED: some checks only report", startTimeout) {
		t.Errorf("nothing is said of it at start:\n%s", g.log)
	}
	res := g.get(t, "/"+mint(t, "site", nil)+"/iframe", "Referer: https://evil.example/page", "Sec-Fetch-Dest: iframe")
	if policy := res.Header.Get("Content-Security-Policy"); res.StatusCode != http.StatusOK || strings.Contains(policy, "frame-ancestors") {
		t.Errorf("the player page: %d with Content-Security-Policy %q", res.StatusCode, policy)
	}
	o.take()
	o.wantRefused(t, g.get(t, "/site/video/1.ts", "Origin: https://evil.example"), http.StatusUnauthorized, "token_required")
	blocked := mint(t, "site", withRules(`[{"type":"any","action":"block"}]`))
	o.wantRefused(t, g.get(t, "/"+blocked+"/video/1.ts", "Origin: https://evil.example"), http.StatusForbidden, "rule_blocked")
}

// The attack: forged tokens as fast as they come, at a gate that refuses none. It
// verifies no more of them than one that does. When it begins to refuse, by a
// reload, it refuses them with the next request.
func TestReportOnlyUnderFlood(t *testing.T) {
	o := startOrigin(t, nil)
	g := startReporting(t, o, "enforce off")
	forged := "/" + b64(goodHeader()) + "." + b64(goodPayload("demo")) + "." + b64(strings.Repeat("x", 256)) + "/video/1.ts"
	for sent := 0; g.counted(t, "would_refuse", "verification_limited") == 0; sent += 100 {
		if sent > 5000 {
			t.Fatal("5000 forged tokens of one network were verified")
		}
		for range 100 {
			if got := g.get(t, forged).verdict(); got != plays {
				t.Fatalf("got %v, want nothing refused", got)
			}
		}
	}
	path := filepath.Join(g.dir, "Caddyfile")
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, path, []byte(strings.Replace(string(before), "enforce off", "enforce on", 1)))
	if err := g.cmd.Process.Signal(syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the gate refuses", func() bool { return g.get(t, segment("demo")).verdict() == tokenNeeded })
	o.take()
	if got := g.get(t, forged); got.StatusCode/100 != 4 {
		t.Errorf("got %v for a forged token", got.verdict())
	}
	o.wantUntouched(t)
}
