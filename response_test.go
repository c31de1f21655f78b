package signedplayback

import (
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/google/go-cmp/cmp"
)

// Who may read a response is the gate's to say, once, whatever the origin says
// (C4), and a cache must know when the answer depends on the site (C3, R13).
func TestResponseHeaders(t *testing.T) {
	t.Parallel()
	caching := http.Header{
		"Cache-Control": {"public, max-age=86400"}, "Cdn-Cache-Control": {"max-age=86400"},
		"Surrogate-Control": {"max-age=86400"}, "Expires": {"Thu, 31 Dec 2099 00:00:00 GMT"},
	}
	talkative := http.Header{
		"Access-Control-Allow-Origin": {"https://origin.example", "*"}, "Access-Control-Allow-Credentials": {"true"},
		"Access-Control-Expose-Headers": {"X-Secret"}, "Vary": {"Accept-Encoding"},
	}
	const csp, sandbox = "default-src 'self'", "sandbox; default-src 'none'"
	plain := http.Header{"Content-Type": {"image/jpeg"}, "Content-Security-Policy": {sandbox}, "X-Content-Type-Options": {"nosniff"}}
	maps.Copy(talkative, caching)
	maps.Copy(talkative, http.Header{"Content-Type": {"image/jpeg"}, "Content-Security-Policy": {csp}})
	restricted, open := VideoSettings{AllowedOrigins: []string{"*.example.com"}}, VideoSettings{RequireSignedURLs: new(false)}
	openOnSites := VideoSettings{RequireSignedURLs: new(false), AllowedOrigins: []string{"example.com"}}
	hour := http.Header{"Cache-Control": {"private, max-age=3600"}}
	cors := func(origin string) http.Header {
		return http.Header{"Access-Control-Allow-Origin": {origin}, "Access-Control-Expose-Headers": {"Content-Length, Content-Range, Accept-Ranges, Date, Signed-Playback-Reason"}}
	}
	anySite, bySite := http.Header{"Vary": {"Accept-Encoding"}}, http.Header{"Vary": {"Accept-Encoding", "Origin"}}
	ending := map[string]VideoSettings{"ends": {AvailableUntil: "2027-01-15T08:01:00Z"}, "long": {AvailableUntil: "2028-01-15T08:01:00Z"}}
	for _, tc := range []struct {
		name     string
		settings VideoSettings
		target   string
		request  func(*http.Request)
		want     []http.Header
	}{
		{"a token and any site", VideoSettings{}, "/" + plainToken() + "/a.jpg", with("Origin", "https://player.example"), []http.Header{cors("*"), hour, anySite}},
		{"a token and an allowed site", restricted, "/" + plainToken() + "/a.jpg", with("Origin", "https://www.example.com"), []http.Header{cors("https://www.example.com"), hour, bySite}},
		{"an allowed site without CORS", restricted, "/" + plainToken() + "/a.jpg", with("Referer", "https://www.example.com/page"), []http.Header{hour, bySite}},
		{"the iframe on an allowed site", restricted, "/" + plainToken() + "/iframe", with("Referer", "https://www.example.com/page"), []http.Header{
			hour, bySite, {"Content-Security-Policy": {sandbox, "frame-ancestors http://example.com http://*.example.com"}},
		}},
		{"the iframe on any site", VideoSettings{}, "/" + plainToken(), nil, []http.Header{cors("*"), hour, anySite}},
		{"an open video", open, "/vid1/a.jpg", nil, []http.Header{cors("*"), caching, anySite}},
		{"an open video whose time ends", VideoSettings{RequireSignedURLs: new(false)}, "/ends/a.jpg", nil, []http.Header{cors("*"), {"Cache-Control": {"private, max-age=60"}}, anySite}},
		{"a token for a video whose time ends before it", VideoSettings{}, "/" + signedFor("ends") + "/a.jpg", nil, []http.Header{cors("*"), {"Cache-Control": {"private, max-age=60"}}, anySite}},
		{"a token that ends before the time of its video", VideoSettings{}, "/" + signedFor("long") + "/a.jpg", nil, []http.Header{cors("*"), hour, anySite}},
		{"an open video with rules of the operator", VideoSettings{RequireSignedURLs: new(false), AccessRules: json.RawMessage(allowsAll)}, "/vid1/a.jpg", nil, []http.Header{cors("*"), {"Cache-Control": {"private, max-age=86400"}}, anySite}},
		{"an open video with allowed origins", openOnSites, "/vid1/a.jpg", with("Origin", "https://example.com"), []http.Header{
			cors("https://example.com"), {"Cache-Control": {"private, max-age=86400"}}, bySite,
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			g, w, want := newGate(t, &App{VideoSettings: tc.settings, Videos: ending}, new(Gate)), httptest.NewRecorder(), plain.Clone()
			for _, header := range tc.want {
				maps.Copy(want, header)
			}
			err := g.ServeHTTP(w, requestFor(t, tc.target, tc.request), caddyhttp.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) error {
				maps.Copy(w.Header(), talkative.Clone())
				w.WriteHeader(http.StatusOK)
				return nil
			}))
			if diff := cmp.Diff(want, w.Result().Header); err != nil || diff != "" {
				t.Errorf("%v, response headers (-want +got):\n%s", err, diff)
			}
		})
	}
}

// The headers are applied once, however the handler behind the gate begins its
// response, and not to an informational response that precedes it.
func TestResponseHeadersAreSentOnce(t *testing.T) {
	t.Parallel()
	g := newGate(t, &App{VideoSettings: VideoSettings{AllowedOrigins: []string{"example.com"}}}, new(Gate))
	for _, tc := range []struct {
		name  string
		write func(w http.ResponseWriter) error
	}{
		{"WriteHeader", func(w http.ResponseWriter) error { w.WriteHeader(http.StatusOK); return nil }},
		{"Write", func(w http.ResponseWriter) error { _, err := io.WriteString(w, "x"); return err }},
		{"ReadFrom", func(w http.ResponseWriter) error {
			_, err := w.(io.ReaderFrom).ReadFrom(strings.NewReader("x"))
			return err
		}},
		{"Flush", func(w http.ResponseWriter) error { return http.NewResponseController(w).Flush() }},
		{"an error", func(http.ResponseWriter) error { return caddyhttp.Error(http.StatusBadGateway, io.ErrUnexpectedEOF) }},
		{"early hints", func(w http.ResponseWriter) error {
			w.WriteHeader(http.StatusEarlyHints)
			if w.Header().Get("Cache-Control") != "" {
				t.Error("the headers were applied to the early hints")
			}
			w.WriteHeader(http.StatusOK)
			return nil
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := requestFor(t, "/"+plainToken()+"/a.mp4", with("Origin", "https://example.com"))
			w := httptest.NewRecorder()
			_ = g.ServeHTTP(w, r, caddyhttp.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) error {
				err := tc.write(w)
				_, _ = io.WriteString(w, "more")
				return err
			}))
			for name, want := range map[string]string{
				"Access-Control-Allow-Origin": "https://example.com",
				"Cache-Control":               "private, max-age=0",
				"Vary":                        "Origin",
			} {
				if got := w.Header().Values(name); len(got) != 1 || got[0] != want {
					t.Errorf("%s is %q, want one %q", name, got, want)
				}
			}
		})
	}
}
