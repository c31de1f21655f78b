package signedplayback

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/signed-playback/caddy-signed-playback/internal/replay"
	"github.com/signed-playback/caddy-signed-playback/internal/store"
	"github.com/signed-playback/caddy-signed-playback/mediacache"
	"github.com/signed-playback/caddy-signed-playback/token"
)

// viewers returns tokens that differ, for one video.
func viewers() []string {
	return []string{plainToken(), signed(func(c *token.Claims) { c.Downloadable = true })}
}

// What the cache keeps of a manifest is the rewritten one, unless it differs between viewers.
func TestManifestsInTheCache(t *testing.T) {
	t.Parallel()
	const etag, fresh = `Etag: "origin"`, "Cache-Control: max-age=60"
	for name, tc := range map[string]struct {
		suffix, query string // of which the cache keeps no parameter
		origin        func(http.ResponseWriter, *http.Request) error
		want          []string // for the two viewers
		asked, wrote  int
	}{
		"playlist":                         {"a.m3u8", "", reply(200, "#EXTM3U\n/demo/1.ts\n", etag, fresh), []string{"#EXTM3U\n1.ts\n", "#EXTM3U\n1.ts\n"}, 1, 1},
		"playlist under another name":      {"a", "", reply(200, "#EXTM3U\n/demo/1.ts\n", etag, fresh), []string{"#EXTM3U\n1.ts\n", "#EXTM3U\n1.ts\n"}, 1, 1},
		"storyboard":                       {"a.vtt", "", reply(200, "WEBVTT\n\n0:00.000 --> 0:01.000\n/demo/1.jpg\n", etag, fresh), []string{"WEBVTT\n\n0:00.000 --> 0:01.000\n1.jpg\n", "WEBVTT\n\n0:00.000 --> 0:01.000\n1.jpg\n"}, 1, 1},
		"captions":                         {"a.vtt", "", reply(200, "WEBVTT\n\n0:00.000 --> 0:01.000\nHello\n", fresh), []string{"WEBVTT\n\n0:00.000 --> 0:01.000\nHello\n", "WEBVTT\n\n0:00.000 --> 0:01.000\nHello\n"}, 1, 0},
		"an origin that says it is done":   {"a.m3u8", "", reply(200, "#EXTM3U\n/demo/1.ts\n", fresh, checkedHeader+": "+rewrittenMark[0]), []string{"#EXTM3U\n1.ts\n", "#EXTM3U\n1.ts\n"}, 1, 1},
		"the same where nothing is kept":   {"a.m3u8", "", reply(200, "#EXTM3U\n/demo/1.ts\n", "Cache-Control: no-store", checkedHeader+": "+rewrittenMark[0]), []string{"#EXTM3U\n1.ts\n", "#EXTM3U\n1.ts\n"}, 2, 2},
		"a variable of the viewer's query": {"a.m3u8", "f=VIEWER", reply(200, "#EXTM3U\n#EXT-X-DEFINE:QUERYPARAM=\"f\"\n/demo/{$f}/1.ts\n", fresh), []string{"#EXTM3U\n#EXT-X-DEFINE:QUERYPARAM=\"f\"\n0/1.ts\n", "#EXTM3U\n#EXT-X-DEFINE:QUERYPARAM=\"f\"\n1/1.ts\n"}, 1, 2},
		"interstitials":                    {"a.m3u8", "", reply(200, "#EXTM3U\n#EXT-X-DATERANGE:ID=\"a\",X-ASSET-URI=\"/demo/1.m3u8\"\n", fresh), []string{"#EXTM3U\n#EXT-X-DATERANGE:ID=\"a\",X-ASSET-URI=\"http://media.example.net/VIEWER/1.m3u8\"\n", "#EXTM3U\n#EXT-X-DATERANGE:ID=\"a\",X-ASSET-URI=\"http://media.example.net/VIEWER/1.m3u8\"\n"}, 1, 2},
		"asset list":                       {"a.json", "", reply(200, `{"ASSETS":[{"URI":"/demo/1.m3u8"}]}`, fresh, "Content-Type: image/x"), []string{`{"ASSETS":[{"URI":"http://media.example.net/VIEWER/1.m3u8"}]}`, `{"ASSETS":[{"URI":"http://media.example.net/VIEWER/1.m3u8"}]}`}, 1, 2},
		"refused":                          {"a.m3u8", "", reply(200, "no playlist", fresh), []string{"", ""}, 2, 0},
	} {
		t.Run(name, func(t *testing.T) {
			g, asked := newGate(t, new(App), new(Gate)), 0
			c := newCache(t, g, &Cache{Query: []string{"v"}})
			for i, viewer := range viewers() {
				r := requestFor(t, "/"+viewer+"/"+tc.suffix+"?"+strings.ReplaceAll(tc.query, "VIEWER", string(rune('0'+i))), nil)
				e := exchange(t, g, r, c.through(func(w http.ResponseWriter, r *http.Request) error {
					asked++
					return tc.origin(w, r)
				}))
				if want := strings.ReplaceAll(tc.want[i], "VIEWER", viewer); e.body != want || e.header.Get("Etag") != "" || e.header.Get(checkedHeader) != "" {
					t.Errorf("viewer %d: %d %s %v\n%s\nwant:\n%s", i, e.status, e.reason, e.header, e.body, want)
				}
			}
			if wrote := int(testutil.ToFloat64(g.app.metrics.URIs.WithLabelValues("rewritten"))); asked != tc.asked || wrote != tc.wrote {
				t.Errorf("asked for %d times and rewritten %d times, want %d and %d", asked, wrote, tc.asked, tc.wrote)
			}
		})
	}
}

// A manifest that the origin confirms is not rewritten again, and viewers see nothing of the
// origin's validators, also where their name does not tell the gate that it is a manifest.
func TestConfirmedManifests(t *testing.T) {
	t.Parallel()
	for _, suffix := range []string{"a.m3u8", "a"} {
		g := newGate(t, new(App), new(Gate))
		c := newCache(t, g, new(Cache))
		var conditions []string
		for _, viewer := range append(viewers(), viewers()...) {
			e := exchange(t, g, requestFor(t, "/"+viewer+"/"+suffix, withRange("bytes=1-2")), c.through(func(w http.ResponseWriter, r *http.Request) error {
				conditions = append(conditions, r.Header.Get("If-None-Match"))
				h := w.Header()
				h["Etag"], h["Cache-Control"] = is(`"1"`), is("no-cache")
				if r.Header.Get("If-None-Match") != "" {
					w.WriteHeader(http.StatusNotModified)
					return nil
				}
				_, err := io.WriteString(w, "#EXTM3U\n/demo/1.ts\n")
				return err
			}))
			if e.status != 200 || e.body != "#EXTM3U\n1.ts\n" || len(e.header["Etag"]) > 0 || len(e.header["Content-Range"]) > 0 {
				t.Errorf("%s: %d %q %v", suffix, e.status, e.body, e.header)
			}
		}
		if n := int(testutil.ToFloat64(g.app.metrics.URIs.WithLabelValues("rewritten"))); n != 1 || conditions[0] != "" || conditions[len(conditions)-1] != `"1"` {
			t.Errorf("rewritten %d times, conditions %q", n, conditions)
		}
	}
}

// Gates that make different manifests of the same share none, and neither do requests that
// another handler sends to one file.
func TestManifestsOfSeveralGatesBeforeOneCache(t *testing.T) {
	t.Parallel()
	origin := reply(200, "#EXTM3U\nhttps://cdn.example/demo/1.ts\nhttps://cdn.example/other/1.ts\n", "Cache-Control: max-age=60")
	g := newGate(t, new(App), &Gate{ManifestHosts: []string{"cdn.example"}})
	second := *g
	second.manifestHosts = nil
	second.rewritingID = second.identifyRewriting()
	c := newCache(t, g, new(Cache))
	moved := func(w http.ResponseWriter, r *http.Request) error {
		r.URL.Path, r.URL.RawPath = "/demo/a.m3u8", ""
		return c.ServeHTTP(w, r, caddyhttp.HandlerFunc(origin))
	}
	other := signed(func(c *token.Claims) { c.VideoID = "other" })
	const first, untouched, ofOther = "#EXTM3U\n1.ts\nhttps://cdn.example/other/1.ts\n", "#EXTM3U\nhttps://cdn.example/demo/1.ts\nhttps://cdn.example/other/1.ts\n", "#EXTM3U\nhttps://cdn.example/demo/1.ts\n1.ts\n"
	var got []string
	for range 2 {
		got = append(got,
			exchange(t, g, requestFor(t, "/"+plainToken()+"/a.m3u8", nil), c.through(origin)).body,
			exchange(t, &second, requestFor(t, "/"+plainToken()+"/a.m3u8", nil), c.through(origin)).body,
			exchange(t, g, requestFor(t, "/"+other+"/a.m3u8", nil), moved).body)
	}
	if diff := cmp.Diff([]string{first, untouched, ofOther, first, untouched, ofOther}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// What explain says about the cache: the parts of the key, never a token, and why a request goes
// past it. The cache asks nobody.
func TestExplainedCache(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, target string
		header       string // that pass_request_headers names
		want         []string
	}{
		{"segment", "/TOKEN/ts/1.ts?v=1&CMCD=x&t=TOKEN", "", []string{
			`one object for all viewers: host "media.example.net", path "/demo/ts/1.ts", query "v=1"`,
			"fresh for 1h0m0s if the origin does not say; 404 and 410 for 500ms",
		}},
		{"manifest", "/TOKEN/a.m3u8", "", []string{
			`one object for all viewers: host "media.example.net", path "/demo/a.m3u8", no query`,
			"fresh for 1s if the origin does not say; 404 and 410 for 500ms",
		}},
		{"another file", "/TOKEN/a", "", []string{
			`one object for all viewers: host "media.example.net", path "/demo/a", no query`,
			"fresh for 1h0m0s if the origin does not say, and only if its type is one of media; 404 and 410 for 500ms",
		}},
		{"a header that passes", "/TOKEN/a", "Authorization", []string{
			"goes past the cache: it has a header of pass_request_headers, or nobody knows when the video was last purged",
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			gate := new(Gate)
			if tc.header != "" {
				gate.PassRequestHeaders = is(tc.header)
			}
			g := newGate(t, new(App), gate)
			c := newCache(t, g, &Cache{Query: []string{"v"}})
			r := requestFor(t, strings.ReplaceAll(tc.target, "TOKEN", plainToken()), func(r *http.Request) { r.Header.Set("Authorization", "Basic eDp5") })
			found := &trace{at: testTime}
			r = r.WithContext(context.WithValue(r.Context(), traceKey{}, found))
			exchange(t, g, r, c.through(func(http.ResponseWriter, *http.Request) error { return nil }))
			last := found.checks[len(found.checks)-1]
			if diff := cmp.Diff(replay.Check{Check: "cache", Outcome: replay.Pass, Details: tc.want}, last); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if objects, _ := c.cache.Usage(); objects > 0 {
				t.Error("the cache has asked the origin")
			}
		})
	}
}

// What was purged is not served, whatever the store does: a request goes past this cache, and
// past one in the next tier, while nobody knows the date of the purge. Once the date is known,
// it stays in force while the store is away. A viewer who sends a date changes nothing.
func TestPurgedWhileTheStoreIsAway(t *testing.T) {
	t.Parallel()
	const purged = "1800000000000"
	for video, unknown := range map[string]string{"demo": "200, [unknown]", "other": "503, no request"} { // demo is a video of the config
		g := newGate(t, &App{Videos: map[string]VideoSettings{"demo": {}}}, &Gate{PassRequestHeaders: is("*")})
		m := newMemStore()
		m.plant(store.Videos, video, `{"uid":"`+video+`","purged":`+purged+`}`)
		c := newCache(t, g, new(Cache))
		viewer := signed(func(c *token.Claims) { c.VideoID = video })
		var got []string
		ask := func(what string, header http.Header) {
			told := "no request"
			e := exchange(t, g, requestFor(t, "/"+viewer+"/1.ts", func(r *http.Request) { maps.Copy(r.Header, header) }),
				c.through(func(w http.ResponseWriter, r *http.Request) error {
					told = fmt.Sprint(r.Header[mediacache.GenerationHeader])
					w.Header().Set("Content-Type", "video/mp2t")
					_, err := io.WriteString(w, "1")
					return err
				}))
			got = append(got, fmt.Sprintf("%s: %d, %s", what, e.status, told))
		}
		forged := http.Header{mediacache.GenerationHeader: is("0")}
		useState(t, g.app, stateOf(t, m))
		m.setDown(true)
		ask("unknown", nil)
		ask("unknown, forged", forged)
		m.setDown(false)
		ask("known", forged)
		m.setDown(true)
		ask("away", forged)
		ask("away, a header that passes", http.Header{"X-A": is("1")})
		want := []string{
			"unknown: " + unknown, "unknown, forged: " + unknown, "known: 200, [" + purged + "]", "away: 200, no request",
			"away, a header that passes: 200, [unknown]",
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", video, diff)
		}
	}
}
