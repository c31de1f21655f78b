package signedplayback

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"slices"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/google/go-cmp/cmp"

	"github.com/signed-playback/caddy-signed-playback/internal/headerpolicy"
)

// usualHeaders are the headers of an origin that viewers get.
var usualHeaders = []string{
	"Content-Language", "Content-Disposition", "Accept-Ranges", "Age", "Cache-Control", "Expires", "Pragma", "Vary",
	"Etag", "Last-Modified", "Content-Digest", "Repr-Digest", "Digest", "Content-Md5", "Date", "Retry-After",
	"Server-Timing", "Timing-Allow-Origin", "Cmsd-Static", "Cmsd-Dynamic", "Cache-Status", "Via",
}

// plantedHeaders are headers by which an origin would have browsers and servers do
// more than show the response, and headers that nobody has invented yet.
func plantedHeaders() []string {
	names := []string{
		"Nel", "Report-To", "Reporting-Endpoints", "Content-Security-Policy", "Content-Security-Policy-Report-Only",
		"Service-Worker-Allowed", "Referrer-Policy", "Strict-Transport-Security", "Signed-Playback-Reason", "Www-Authenticate",
		"X-Accel-Redirect", "X-Sendfile", "Speculation-Rules", "Use-As-Dictionary", "Available-Dictionary", "Cross-Origin-Resource-Policy",
		"Cross-Origin-Embedder-Policy", "Cross-Origin-Opener-Policy", "Set-Cookie", "Clear-Site-Data", "Alt-Svc", "Link", "Refresh",
		"X-Frame-Options", "Access-Control-Allow-Credentials", "Content-Location", "Sourcemap", "Accept-Ch", "Critical-Ch",
		"Permissions-Policy", "Document-Policy", "Integrity-Policy", "Origin-Agent-Cluster", "No-Vary-Search", "Server", "Expect-Ct",
		"Proxy-Authenticate", "X-Content-Type-Options", "Supports-Loading-Mode", "Set-Login", "Activate-Storage-Access", "Incremental",
	}
	for range 8 {
		names = append(names, textproto.CanonicalMIMEHeaderKey(rand.Text()), textproto.CanonicalMIMEHeaderKey("x-"+rand.Text()+"-"+rand.Text()))
	}
	return names
}

const ofOrigin, ofSite = "the origin's", "the site's"

// transportOf speaks HTTP/1.1 or HTTP/2, without TLS.
func transportOf(http2 bool) *http.Transport {
	t := &http.Transport{Protocols: new(http.Protocols)}
	t.Protocols.SetHTTP1(!http2)
	t.Protocols.SetUnencryptedHTTP2(http2)
	return t
}

// served has a gate answer a request over a connection. An earlier handler has set
// headers. The response has neither trailers nor any informational one before it.
func served(t *testing.T, g *Gate, http2 bool, method, target string, earlier []string, origin caddyhttp.HandlerFunc) *http.Response {
	t.Helper()
	var failed error
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for _, name := range earlier {
			w.Header().Set(name, ofSite)
		}
		failed = g.ServeHTTP(w, requestFor(t, r.RequestURI, func(at *http.Request) { at.Method, at.Header = r.Method, r.Header }), origin)
		if failure, ok := errors.AsType[caddyhttp.HandlerError](failed); ok {
			w.WriteHeader(failure.StatusCode)
		}
	}))
	transport := transportOf(http2)
	server.Config.Protocols = transport.Protocols
	server.Start()
	defer server.Close()
	defer transport.CloseIdleConnections()
	informational := func(status int, h textproto.MIMEHeader) error {
		t.Errorf("an informational response %d passes: %v", status, h)
		return nil
	}
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: informational})
	res := must(transport.RoundTrip(must(http.NewRequestWithContext(ctx, method, server.URL+target, nil))))
	defer res.Body.Close()
	_ = must(io.ReadAll(res.Body))
	if len(res.Trailer) > 0 {
		t.Errorf("trailers pass: %v", res.Trailer)
	}
	return res
}

// The attack: an origin, or the CDN before it, has the browser report the URL, store
// something for the host, or do what else a header can say, today or next year.
func TestOriginHeadersPassByAList(t *testing.T) {
	t.Parallel()
	g := newGate(t, new(App), &Gate{PassResponseHeaders: []string{"x-CACHE", "Content-Location"}})
	planted := append(plantedHeaders(), usualHeaders...)
	earlier := []string{"Server", "Strict-Transport-Security", "Alt-Svc", "X-Frame-Options", "Referrer-Policy", "X-" + rand.Text()}
	origin := func(status int, h http.Header, body string) caddyhttp.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) error {
			for _, name := range append(planted, "X-Cache") {
				w.Header().Add(name, ofOrigin)
			}
			w.Header().Set("Trailer", "X-Announced, Server-Timing")
			w.WriteHeader(http.StatusEarlyHints)
			w.WriteHeader(http.StatusProcessing)
			maps.Copy(w.Header(), h)
			if status == 0 {
				return caddyhttp.Error(http.StatusBadGateway, io.ErrUnexpectedEOF)
			}
			w.WriteHeader(status)
			_, _ = io.WriteString(w, body)
			_ = http.NewResponseController(w).Flush()
			w.Header().Set("X-Announced", ofOrigin)
			w.Header().Set(http.TrailerPrefix+"X-Sudden", ofOrigin)
			w.Header().Set(http.TrailerPrefix+"Nel", ofOrigin)
			return nil
		}
	}
	segment, text, none := http.Header{"Content-Type": {"video/mp4"}}, http.Header{"Content-Type": {"text/plain"}}, http.Header(nil)
	for _, tc := range []struct {
		name, suffix string
		origin       caddyhttp.HandlerFunc
		status       int
		usual        bool // whether all usual headers pass
	}{
		{"media", "a.mp4", origin(200, segment, "media of some length"), 200, true},
		{"media of known length", "a.mp4", origin(200, http.Header{"Content-Type": {"video/mp4"}, "Content-Length": {"20"}}, "media of some length"), 200, true},
		{"a part of media", "a.mp4", origin(206, segment, "media of some length"), 206, true},
		{"an image", "poster.jpg", origin(200, none, "an image of some length"), 200, true},
		{"a page", "iframe", origin(200, text, "a page of some length"), 200, true},
		{"a manifest", "a.m3u8", origin(200, none, absolutePlaylist), 200, false},
		{"a manifest by its bytes", "a", origin(200, text, absolutePlaylist), 200, false},
		{"a manifest that is none", "a.mpd", origin(200, text, "<html>"), 502, false},
		{"a redirect", "a.mp4", origin(302, http.Header{"Location": {"/demo/b.mp4"}}, ""), 302, true},
		{"a redirect abroad", "a.mp4", origin(307, http.Header{"Location": {"https://evil.test/"}}, ""), 502, false},
		{"not modified", "a.mp4", origin(304, none, ""), 304, true},
		{"not found", "a.mp4", origin(404, text, "nothing"), 404, true},
		{"a manifest that is not found", "a.m3u8", origin(404, none, "<html>"), 404, true},
		{"an origin that asks for a password", "a.mp4", origin(401, text, ""), 401, true},
		{"an origin that fails", "a.mp4", origin(503, text, ""), 503, true},
		{"a status that nobody has defined", "a.mp4", origin(299, text, "x"), 299, true},
		{"an error of the handler", "a.mp4", origin(0, none, ""), 502, false},
		{"another protocol", "a.mp4", origin(101, http.Header{"Upgrade": {"x"}, "Connection": {"Upgrade"}}, ""), 502, false},
	} {
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			for _, http2 := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%s/HTTP2 %t", tc.name, method, http2), func(t *testing.T) {
					res := served(t, g, http2, method, "/"+plainToken()+"/"+tc.suffix, earlier, tc.origin)
					if res.StatusCode != tc.status {
						t.Errorf("status %d, want %d", res.StatusCode, tc.status)
					}
					for name, values := range res.Header {
						got := strings.Join(values, "|")
						allowed := slices.Contains(usualHeaders, name) || name == "X-Cache" || name == "Content-Location"
						if strings.Contains(got, ofOrigin) && !allowed || got != ofSite && slices.Contains(earlier, name) {
							t.Errorf("%s is %q", name, got)
						}
					}
					for _, name := range earlier {
						if res.Header.Get(name) != ofSite {
							t.Errorf("%s of the site is gone", name)
						}
					}
					for _, name := range append(usualHeaders, "X-Cache", "Content-Location") {
						if tc.usual && name != "Cache-Control" && name != "Expires" && name != "Pragma" && res.Header.Get(name) != ofOrigin {
							t.Errorf("%s of the origin does not pass", name)
						}
					}
				})
			}
		}
	}
}

// The attack: an uploaded file becomes a page of the gate's origin, because the
// origin or the server says or guesses that it is one.
func TestUploadsAreNoDocuments(t *testing.T) {
	t.Parallel()
	const bare, media = "sandbox; default-src 'none'", "sandbox allow-same-origin; default-src 'none'; media-src 'self'"
	const page, neutral = "<!doctype html><script>alert(1)</script>", "application/octet-stream"
	g := newGate(t, new(App), new(Gate))
	for _, tc := range []struct {
		name, suffix string
		status       int
		types        []string // nil: the origin sends none
		body         string
		want, policy string
	}{
		{"no type", "poster.jpg", 200, nil, page, neutral, bare},
		{"an empty type", "poster.jpg", 200, []string{""}, page, neutral, bare},
		{"white space", "poster.jpg", 200, []string{" "}, page, neutral, bare},
		{"no subtype", "poster.jpg", 200, []string{"image"}, page, neutral, bare},
		{"an empty subtype", "poster.jpg", 200, []string{"image/"}, page, neutral, bare},
		{"an unknown wildcard", "poster.jpg", 200, []string{"*/*; q"}, page, neutral, bare},
		{"two types", "poster.jpg", 200, []string{"image/jpeg", "text/html"}, page, neutral, bare},
		{"two types in one line", "poster.jpg", 200, []string{"image/jpeg, text/html"}, page, neutral, bare},
		{"two types after a parameter", "poster.jpg", 200, []string{"video/mp4; a=b, text/html"}, page, neutral, bare},
		{"HTML", "poster.jpg", 200, []string{"text/html; charset=utf-8"}, page, "text/html; charset=utf-8", bare},
		{"SVG", "poster.svg", 200, []string{"image/svg+xml"}, page, "image/svg+xml", bare},
		{"XML as captions", "a.vtt", 200, []string{"text/xml"}, page, "text/xml", bare},
		{"XML that is called video", "a.mp4", 200, []string{"video/x+xml"}, page, "video/x+xml", bare},
		{"an HTML error", "a.ts", 404, []string{"text/html"}, page, "text/html", bare},
		{"an error without a type", "a.ts", 500, nil, page, neutral, bare},
		{"the origin's page", "iframe", 200, []string{"text/html"}, page, "text/html", bare},
		{"a redirect with a page", "a.ts", 302, nil, page, neutral, bare},
		{"video", "a.mp4", 200, []string{`video/mp4; codecs="avc1.4d401f,mp4a.40.2"`}, page, `video/mp4; codecs="avc1.4d401f,mp4a.40.2"`, media},
		{"video in capitals", "a.mp4", 200, []string{"Video/MP4"}, page, "Video/MP4", media},
		{"audio", "a.mp3", 206, []string{"audio/mpeg"}, page, "audio/mpeg", media},
		{"a playlist as HTML", "a.m3u8", 200, []string{"text/html"}, absolutePlaylist, "application/vnd.apple.mpegurl", media},
		{"a playlist without a type", "a", 200, nil, absolutePlaylist, "application/vnd.apple.mpegurl", media},
		{"an MPD as HTML", "a.mpd", 200, []string{"text/html"}, "<MPD></MPD>", "application/dash+xml", bare},
		{"a playlist as an MPD", "a.mpd", 200, []string{"application/dash+xml"}, absolutePlaylist, "application/vnd.apple.mpegurl", media},
		{"a patch", "patch", 200, []string{"application/dash-patch+xml"}, "<Patch></Patch>", "application/dash-patch+xml", bare},
		{"not modified without a type", "a.mp4", 304, nil, "", "", bare},
		{"not modified and HTML as well", "a.mp4", 304, []string{"video/mp4", "text/html"}, "", "", bare},
	} {
		t.Run(tc.name, func(t *testing.T) {
			res := served(t, g, false, http.MethodGet, "/"+plainToken()+"/"+tc.suffix, nil, func(w http.ResponseWriter, _ *http.Request) error {
				if tc.types != nil {
					w.Header()["Content-Type"] = tc.types
				}
				if tc.status == 302 {
					w.Header().Set("Location", "b.ts")
				}
				w.WriteHeader(tc.status)
				_, _ = io.WriteString(w, tc.body)
				return nil
			})
			if got := strings.Join(res.Header["Content-Type"], "|"); got != tc.want {
				t.Errorf("Content-Type is %q, want %q", got, tc.want)
			}
			if got := strings.Join(res.Header["Content-Security-Policy"], "|"); got != tc.policy {
				t.Errorf("Content-Security-Policy is %q, want %q", got, tc.policy)
			}
			if got := strings.Join(res.Header["X-Content-Type-Options"], "|"); got != "nosniff" {
				t.Errorf("X-Content-Type-Options is %q", got)
			}
		})
	}
}

// An origin's own page that the operator trusts runs by its own policy, in frames of
// allowed origins. Cookies and reports do not pass, and no other file is trusted.
func TestTrustedPage(t *testing.T) {
	t.Parallel()
	g := newGate(t, &App{VideoSettings: VideoSettings{AllowedOrigins: []string{"example.com"}}}, &Gate{TrustOriginIframe: true})
	const ancestors = "frame-ancestors http://example.com"
	for suffix, want := range map[string][]string{
		"": {ofOrigin, ancestors}, "iframe": {ofOrigin, ancestors}, "iframe/": {headerpolicy.Sandbox, ancestors}, "iframe.html": {headerpolicy.Sandbox}, "a/iframe": {headerpolicy.Sandbox},
	} {
		w := httptest.NewRecorder()
		err := g.ServeHTTP(w, requestFor(t, "/"+plainToken()+"/"+suffix, with("Referer", "https://example.com/")), caddyhttp.HandlerFunc(
			func(w http.ResponseWriter, _ *http.Request) error {
				for _, name := range []string{"Content-Security-Policy", "Content-Security-Policy-Report-Only", "Set-Cookie", "Nel"} {
					w.Header().Set(name, ofOrigin)
				}
				w.Header().Set("Content-Type", "text/html")
				_, err := io.WriteString(w, "<!doctype html><script>play()</script>")
				return err
			}))
		got := w.Result().Header
		if diff := cmp.Diff(want, got["Content-Security-Policy"]); err != nil || diff != "" {
			t.Errorf("/%s: %v, Content-Security-Policy (-want +got):\n%s", suffix, err, diff)
		}
		for _, name := range []string{"Content-Security-Policy-Report-Only", "Set-Cookie", "Nel"} {
			if got[name] != nil {
				t.Errorf("/%s: %s of the origin passes", suffix, name)
			}
		}
	}
}
