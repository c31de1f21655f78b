package signedplayback

import (
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/signed-playback/caddy-signed-playback/internal/headerpolicy"
)

// Every site may load the player SDK, without a token. Only its own path leads to it: a file of
// the video with the id embed, and a worker that would see all requests to the host, do not.
func TestPlayerSDKFile(t *testing.T) {
	t.Parallel()
	g := newGate(t, testApp(), &Gate{Player: new(PlayerConfig)})
	served := ask(t, g, requestFor(t, sdkPath, with("Origin", "https://any.example")))
	tag := served.header.Get("Etag")
	for name := range served.header {
		if name == "Content-Length" || name == "Date" {
			served.header.Del(name)
		}
	}
	want := http.Header{
		"Accept-Ranges": {"bytes"}, "Access-Control-Allow-Origin": {"*"}, "Cache-Control": {"public, max-age=300"},
		"Content-Security-Policy": {headerpolicy.Sandbox}, "Content-Type": {"text/javascript; charset=utf-8"},
		"Cross-Origin-Resource-Policy": {"cross-origin"}, "Etag": {tag}, "X-Content-Type-Options": {"nosniff"},
	}
	if diff := cmp.Diff(want, served.header); diff != "" || served.status != 200 || tag == "" || len(served.origin) > 0 {
		t.Errorf("status %d, headers (-want +got):\n%s", served.status, diff)
	}
	for _, tc := range []struct {
		name, method, path, header string
		status                     int
		reason                     string
	}{
		{"HEAD", "HEAD", sdkPath, "", 200, ""},
		{"what a cache has", "GET", sdkPath, "If-None-Match: " + tag, 304, ""},
		{"a query", "GET", sdkPath + "?v=1", "", 200, ""},
		{"a preflight", "OPTIONS", sdkPath, "Access-Control-Request-Method: GET", 204, ""},
		{"POST", "POST", sdkPath, "", 405, "method_not_allowed"},
		{"a service worker", "GET", sdkPath, "Service-Worker: script", 403, "service_worker_not_allowed"},
		{"an encoded path", "GET", "/embed/sdk%2Elatest.js", "", 400, "path_invalid"},
		{"an encoded slash", "GET", "/embed%2Fsdk.latest.js", "", 401, "token_malformed"},
		{"capitals", "GET", "/embed/SDK.latest.js", "", 401, "token_required"},
		{"a path below", "GET", sdkPath + "/x", "", 401, "token_required"},
		{"another file of the video", "GET", "/embed/manifest/video.m3u8", "", 401, "token_required"},
		{"the page of the video", "GET", "/embed", "", 401, "token_required"},
		{"the file under a token", "GET", "/" + plainToken() + sdkPath, "", 200, ""},
	} {
		a := ask(t, g, requestFor(t, tc.path, func(r *http.Request) {
			r.Method = tc.method
			if name, value, ok := strings.Cut(tc.header, ": "); ok {
				r.Header.Set(name, value)
			}
		}))
		if got := a.header.Get("Signed-Playback-Reason"); a.status != tc.status || got != tc.reason {
			t.Errorf("%s: %d %s, want %d %s", tc.name, a.status, got, tc.status, tc.reason)
		}
		isSDK, want := a.header.Get("Etag") == tag, strings.HasPrefix(tc.path, "/embed/") && tc.status < 400 && tc.method != "OPTIONS"
		if isSDK != want || isSDK && len(a.origin) > 0 {
			t.Errorf("%s: the SDK is served: %t", tc.name, isSDK)
		}
	}
	if a := ask(t, newGate(t, testApp(), new(Gate)), requestFor(t, sdkPath, nil)); a.status != 401 {
		t.Errorf("without a player: %d", a.status)
	}
}
