package signedplayback

import (
	"crypto/tls"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/google/go-cmp/cmp"

	"github.com/signed-playback/caddy-signed-playback/internal/manifestbody"
	"github.com/signed-playback/caddy-signed-playback/manifest"
)

const (
	storyboard = "WEBVTT\n\n00:00.000 --> 00:05.000\n/demo/y/s.jpg#xywh=0,0,160,90\n"
	captions   = "WEBVTT\n\n00:00.000 --> 00:05.000\nSee /demo/y/s.jpg\n"
	assets     = `{"ASSETS":[{"URI":"https://origin.example.com/demo/x/1.m3u8","DURATION":15}]}`
	otherJSON  = `{"duration":15,"poster":"/demo/x/p.jpg"}`
)

// F14: storyboards and asset lists are rewritten, under any name and type, compressed or not. Captions and
// other JSON stay as they are, with all that the origin says of them, and have ranges.
func TestStoryboardsAndAssetLists(t *testing.T) {
	t.Parallel()
	g, tok := rangeGate(t)
	own := "http://media.example.net/" + tok + "/"
	for _, tc := range []struct{ name, body, want, wantType string }{
		{"storyboard", storyboard, strings.ReplaceAll(storyboard, "/demo/", "../"), "text/vtt"},
		{"storyboard in a text of captions", captions + "\n" + storyboard[8:], captions + "\n" + strings.ReplaceAll(storyboard[8:], "/demo/", "../"), "text/vtt"},
		{"asset list", assets, strings.ReplaceAll(assets, "https://origin.example.com/demo/", own), "application/json"},
		{"asset list after other members", `{"X":"` + strings.Repeat("a", 2*manifestbody.MaxPrologLength) + `",` + assets[1:], `{"X":"` + strings.Repeat("a", 2*manifestbody.MaxPrologLength) + `",` + strings.ReplaceAll(assets[1:], "https://origin.example.com/demo/", own), "application/json"},
		{"captions", captions, captions, ""},
		{"JSON", otherJSON, otherJSON, ""},
		{"long JSON", `{"a":"` + strings.Repeat("a", 2*manifestbody.MaxPrologLength) + `"}`, `{"a":"` + strings.Repeat("a", 2*manifestbody.MaxPrologLength) + `"}`, ""},
	} {
		for suffix, contentType := range map[string]string{"x/a.vtt": "text/vtt", "x/a.json": "application/json", "x/a": "text/plain", "thumbnails/a.jpg": "image/jpeg"} {
			for _, coding := range []string{"", "gzip"} {
				for _, value := range []string{"", "bytes=0-", "bytes=3-9"} {
					body, wanted, status := tc.body, tc.want, 200
					header := http.Header{"Content-Type": {tc.wantType}}
					if tc.wantType == "" {
						header = http.Header{"Content-Type": {contentType}, "Etag": {`"origin"`}}
					}
					switch {
					case coding != "" && (value != "" || tc.name == "long JSON"):
						continue
					case coding != "":
						if body = zipped(body); tc.wantType == "" {
							wanted = body
						}
					case value == "bytes=3-9" && tc.wantType == "":
						wanted, status = wanted[3:10], 206
					case value != "" && tc.wantType == "":
						status = 206
					}
					var asked []string
					e := exchangeThrough(t, g, requestFor(t, "/"+tok+"/"+suffix, withRange(value)), func(w http.ResponseWriter, r *http.Request) error {
						if coding != "" {
							w.Header().Set("Content-Encoding", coding)
						}
						return serveContent(body, contentType, &asked)(w, r)
					})
					got := http.Header{"Content-Type": e.header["Content-Type"]}
					if etag := e.header["Etag"]; etag != nil {
						got["Etag"] = etag
					}
					if diff := cmp.Diff(header, got); diff != "" || e.status != status || e.body != wanted {
						t.Errorf("%s as %s %s, range %q: %d %q\n%.200q, want %d\n%.200q %s", tc.name, suffix, coding, value, e.status, e.reason, e.body, status, wanted, diff)
					}
				}
			}
		}
	}
}

// What is larger than a manifest may be passes: no player reports anything because of it.
func TestLargeCaptionsPass(t *testing.T) {
	t.Parallel()
	g, tok := rangeGate(t)
	for _, start := range []string{storyboard, `{"a":"`} {
		body := start + strings.Repeat("a", manifest.MaxSize) + `"}`
		for _, origin := range []func(http.ResponseWriter, *http.Request) error{
			func(w http.ResponseWriter, _ *http.Request) error {
				for rest := body; rest != ""; rest = rest[min(len(rest), 1<<20):] {
					if _, err := io.WriteString(w, rest[:min(len(rest), 1<<20)]); err != nil {
						return err
					}
				}
				return nil
			},
			serveContent(body, "x/y", new([]string)),
		} {
			e := exchangeThrough(t, g, requestFor(t, "/"+tok+"/a", nil), origin)
			if e.status != 200 || e.body != body {
				t.Errorf("%.6q: %d with %d bytes, want %d", start, e.status, len(e.body), len(body))
			}
			// A cache answers ranges, whether the origin does or not.
			e = exchange(t, g, requestFor(t, "/"+tok+"/a", withRange("bytes=1-9")), origin)
			if e.status != 200 && (e.status != 206 || e.body != body[1:10]) {
				t.Errorf("%.6q: a range is %d with %d bytes", start, e.status, len(e.body))
			}
		}
	}
}

// An asset list has absolute URIs, because players resolve no others alike. They lead to where the
// viewer's own request went.
func TestAssetListsNameTheViewersAddress(t *testing.T) {
	t.Parallel()
	tok := plainToken()
	trusted := func(r *http.Request) {
		caddyhttp.SetVar(r.Context(), caddyhttp.TrustedProxyVarKey, true)
		r.Header.Set("X-Forwarded-Proto", "https")
	}
	below := func(prefix string) func(*http.Request) {
		return func(r *http.Request) { r.URL.Path, r.URL.RawPath = strings.TrimPrefix(r.URL.Path, prefix), "" }
	}
	for _, tc := range []struct {
		name, publicURL, target string
		change                  func(*http.Request)
		want                    string
	}{
		{"plain", "", "/" + tok + "/ads/a.json?b=/c", nil, "http://media.example.net/" + tok + "/x/1.m3u8"},
		{"TLS", "https://other.example", "/" + tok + "/ads/a.json", func(r *http.Request) { r.TLS = &tls.ConnectionState{HandshakeComplete: true} }, "https://media.example.net/" + tok + "/x/1.m3u8"},
		{"below a prefix", "", "/live/" + tok + "/ads/a.json", below("/live"), "http://media.example.net/live/" + tok + "/x/1.m3u8"},
		{"below a prefix of the same name", "", "/ads/a.json/" + tok + "/ads/a.json", below("/ads/a.json"), "http://media.example.net/ads/a.json/" + tok + "/x/1.m3u8"},
		{"the attack: a link whose prefix ends the attribute", "", "/a\",URI=\"/" + tok + "/ads/a.json", below("/a\",URI=\""), "http://media.example.net/" + tok + "/x/1.m3u8"},
		{"behind a proxy with TLS that is trusted", "", "/" + tok + "/a.json", trusted, "https://media.example.net/" + tok + "/x/1.m3u8"},
		{"behind a proxy that anybody can be", "", "/" + tok + "/a.json", func(r *http.Request) { r.Header.Set("X-Forwarded-Proto", "https") }, "http://media.example.net/" + tok + "/x/1.m3u8"},
		{"behind a proxy, with a public URL", "https://play.example/v/", "/" + tok + "/a.json", nil, "https://play.example/v/" + tok + "/x/1.m3u8"},
	} {
		g := newGate(t, &App{PublicURL: tc.publicURL}, &Gate{ManifestHosts: []string{"origin.example.com"}})
		playlist := exchangeThrough(t, g, requestFor(t, tc.target, tc.change), reply(200, "#EXTM3U\n#EXT-X-DATERANGE:ID=\"a\",X-ASSET-URI=\"/demo/x/1.m3u8\"\n"))
		if !strings.HasSuffix(playlist.body, `X-ASSET-URI="`+tc.want+"\"\n") {
			t.Errorf("%s: %d %s, want %s", tc.name, playlist.status, playlist.body, tc.want)
		}
		e := exchangeThrough(t, g, requestFor(t, tc.target, tc.change), reply(200, assets))
		if want := strings.Replace(assets, "https://origin.example.com/demo/x/1.m3u8", tc.want, 1); e.body != want {
			t.Errorf("%s: %d %s, want %s", tc.name, e.status, e.body, want)
		}
	}
}
