package signedplayback

import (
	"net/http"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/signed-playback/caddy-signed-playback/internal/sessions"
	"github.com/signed-playback/caddy-signed-playback/internal/state"
	"github.com/signed-playback/caddy-signed-playback/token"
)

// The number of viewers needs what playback needs, begins no session, and does not reach the
// origin; with sessions off, it is a file like others.
func TestViews(t *testing.T) {
	t.Parallel()
	g := newGate(t, sessionApp(nil), new(Gate))
	link := "/" + sessionToken(nil) + "/"
	begin(t, g, link+"master.m3u8")
	session := begin(t, g, link+"master.m3u8")
	begin(t, g, "/open/master.m3u8")
	for target, want := range map[string]string{
		link + "views": `{"liveViewers":2}`, link + "views?x=1": `{"liveViewers":2}`, link + "~" + session + "/views": `{"liveViewers":2}`, "/open/views": `{"liveViewers":1}`,
	} {
		a := testFiles.get(t, g, requestFor(t, target, nil))
		if a.body != want || a.status != 200 || len(a.origin) != 0 || a.header.Get("Cache-Control") != "no-store" || a.header.Get("Content-Type") != "application/json" ||
			a.header.Get("Access-Control-Allow-Origin") != "*" {
			t.Errorf("%s = %d %s, %v", redactPath(target), a.status, a.body, a.header)
		}
	}
	expired := "/" + sessionToken(func(c *token.Claims) { c.ExpiresAt = testTime.Add(-time.Second) }) + "/"
	for target, reason := range map[string]string{expired + "views": "token_expired", "/closed/views": "token_required", link + "%76iews/": "", link + "a/views": ""} {
		a := testFiles.get(t, g, requestFor(t, target, nil))
		if a.reason != reason || (len(a.origin) == 1) != (reason == "") {
			t.Errorf("%s = %q, %d requests to the origin", redactPath(target), a.reason, len(a.origin))
		}
	}
	head := requestFor(t, link+"views", func(r *http.Request) { r.Method = http.MethodHead })
	if a := testFiles.get(t, g, head); a.body != "" || a.header.Get("Content-Length") != "17" {
		t.Errorf("HEAD = %q, %v", a.body, a.header)
	}
	off := newGate(t, new(App), new(Gate))
	if a := testFiles.get(t, off, requestFor(t, "/"+plainToken()+"/views", nil)); len(a.origin) != 1 {
		t.Errorf("with sessions off: %d %s", a.status, a.body)
	}
}

// redactPath keeps tokens out of the messages of tests.
func redactPath(target string) string { return target[len(target)-min(len(target), 20):] }

// on_sharing revokes all tokens of a viewer that has a name, and else the one that is shared.
func TestSharedTokens(t *testing.T) {
	t.Parallel()
	config := &App{now: func() time.Time { return testTime }, SessionOptions: SessionOptions{MaxSession: caddy.Duration(2 * time.Hour)}}
	digest := state.DigestOfToken("a token")
	for viewer, want := range map[string][]state.Selector{
		"anna": {state.SelectViewer}, sessions.Unnamed + "jti-1": {state.SelectJTI}, sessions.Unnamed + digest: {state.SelectJTI, state.SelectToken},
	} {
		list := sharedTokens(sessions.Sharing{Info: sessions.Info{Viewer: viewer, Expires: testTime.Add(time.Hour)}}, config)
		if len(list) != len(want) {
			t.Fatalf("%q: %d revocations, want %v", viewer, len(list), want)
		}
		for i, r := range list {
			if r.Selector != want[i] || sessions.Unnamed+r.Value != viewer && r.Value != viewer || r.Expires != testTime.Add(26*time.Hour).Unix() {
				t.Errorf("%q: %+v, want %v", viewer, r, want)
			}
			if dated := r.IssuedBefore != 0; dated != (r.Selector == state.SelectViewer) {
				t.Errorf("%q: issued before %d", viewer, r.IssuedBefore)
			}
		}
	}
}
