package integration

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
)

// A gate that you put in front of an audience that has no tokens yet: a request that
// it would refuse plays, and is counted and logged. A request that names no video, or
// one of a video that is enforced, is refused. TestEachReasonUnderReportOnly has every reason.
func TestReportOnly(t *testing.T) {
	t.Parallel()
	o := startOrigin(t, nil)
	g := start(t, o, config{
		app:  "video strict {\nenforce on\n}\nvideo site {\nallowed_origins example.com\n}",
		gate: "enforce off",
		site: accessLog(t, "access.log") + "reverse_proxy " + o.addr(),
	})
	for _, tc := range []struct{ name, path, uri, result, reason string }{
		{"no token", segment("demo"), segment("demo"), "would_refuse", "token_required"},
		{"another site", segment(mint(t, "site", nil)), segment("site"), "would_refuse", "origin_not_allowed"},
		{"garbage", segment("a.b.c"), "", "refused", "token_malformed"},
		{"no path", "/" + mint(t, "demo", nil) + "/../x", "", "refused", "path_invalid"},
		{"no token for a video that is enforced", segment("strict"), "", "refused", "token_required"},
		{"good", segment(mint(t, "demo", nil)), segment("demo"), "allowed", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			res := g.raw(t, rawGet(tc.path, "Origin: https://evil.example"))
			if tc.uri == "" {
				o.wantRefused(t, res, tc.reason)
			} else {
				o.wantPassed(t, res, tc.uri)
			}
			if got := res.Header.Get("Access-Control-Allow-Origin"); got != "*" {
				t.Errorf("Access-Control-Allow-Origin is %q, so a browser would refuse what the gate does not", got)
			}
			if tc.result == "would_refuse" {
				if n := g.metric(t, fmt.Sprintf(`requests_total{kind="segment",reason=%q,result="would_refuse"}`, tc.reason)); n != 1 {
					t.Errorf("counted %v times as would_refuse %s, want once", n, tc.reason)
				}
			}
			eventually(t, "the last line of the access log has the outcome", func() bool {
				lines := strings.Split(strings.TrimSpace(readText(t, filepath.Join(g.dir, "access.log"))), "\n")
				last := lines[len(lines)-1]
				return strings.Contains(last, `"signed_playback_result":"`+tc.result+`"`) && strings.Contains(last, tc.reason)
			})
		})
	}
}
