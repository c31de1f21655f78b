package integration

import (
	"encoding/base64"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
)

// A key as an environment file has it: quoted, after its name, with \n for line breaks.
func TestKeyOfAnEnvironmentFile(t *testing.T) {
	t.Parallel()
	text := string(must(base64.StdEncoding.DecodeString(signingKey().PEM()))(t))
	file := filepath.Join(t.TempDir(), signingKey().ID()+".env")
	writeFile(t, file, []byte("export STREAM_PEM=\""+strings.ReplaceAll(text, "\n", `\n`)+"\"\n"))
	o := startOrigin(t, http.NotFoundHandler())
	g := start(t, o, config{keys: file})
	if res := g.get(t, "/"+mint(t, "demo", nil)+"/1.ts"); res.reason() != "" {
		t.Errorf("got %d %q, want the origin's answer", res.StatusCode, res.reason())
	}
	o.take()
}

// The pages of apps made with Capacitor, Tauri and others have origins of their own schemes.
func TestOriginsOfApps(t *testing.T) {
	t.Parallel()
	o := startOrigin(t, nil)
	g := start(t, o, config{gate: "player", app: "video listed {\nallowed_origins capacitor://localhost android-app://com.example\n}\nvideo any {\nallowed_origins *\n}"})
	for _, tc := range []struct{ video, header, reason string }{
		{"listed", "Origin: capacitor://localhost", ""},
		{"listed", "Referer: android-app://com.example/", ""},
		{"listed", "Origin: tauri://localhost", "origin_not_allowed"},
		{"listed", "Origin: http://localhost", "origin_not_allowed"},
		{"any", "Origin: tauri://localhost", ""},
		{"any", "Referer: android-app://com.example.other/", ""},
		{"any", "Origin: null", "origin_not_allowed"},
		{"any", "Origin: file://", "origin_not_allowed"},
	} {
		res := g.raw(t, rawGet("/"+mint(t, tc.video, nil)+"/iframe", tc.header))
		if res.reason() != tc.reason {
			t.Errorf("%s for %q: %d %q, want %q", tc.header, tc.video, res.StatusCode, res.reason(), tc.reason)
		}
		name, origin, _ := strings.Cut(tc.header, ": ")
		if got := res.Header.Get("Access-Control-Allow-Origin"); name == "Origin" && tc.reason == "" && got != origin {
			t.Errorf("%s for %q: Access-Control-Allow-Origin %q", tc.header, tc.video, got)
		}
		if csp := res.Header.Get("Content-Security-Policy"); tc.reason == "" && !strings.Contains(csp, " capacitor:") {
			t.Errorf("%s for %q: the policy is %q", tc.header, tc.video, csp)
		}
	}
}
