package signedplayback

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/signed-playback/caddy-signed-playback/internal/playbackpath"
	"github.com/signed-playback/caddy-signed-playback/internal/state"
	"github.com/signed-playback/caddy-signed-playback/internal/store"
	"github.com/signed-playback/caddy-signed-playback/token"
)

func newMint(t *testing.T, app *App, m *Mint) (*Mint, error) {
	t.Helper()
	ready, loaded, err := withHandlers(t, app, m)
	if err != nil {
		return nil, err
	}
	useState(t, ready, signingState(t))
	return loaded[0].(*Mint), nil
}

// signingState is a state whose store has a signing key already, because making one is slow.
func signingState(t *testing.T) *state.State {
	t.Helper()
	m := newMemStore()
	m.plant(store.Keys, "own", liveKey("own"))
	m.plant(store.Signing, "current", fmt.Sprintf(`{"id":"own","pem":%q,"created":%q}`, testKey().PEM(), testTime.Format(time.RFC3339)))
	return stateOf(t, m)
}

// redirected is what becomes of a request for a link.
func (m *Mint) redirected(t *testing.T, r *http.Request) (status int, location string, header http.Header) {
	t.Helper()
	w := httptest.NewRecorder()
	err := m.ServeHTTP(w, r, caddyhttp.HandlerFunc(func(http.ResponseWriter, *http.Request) error {
		t.Error("the next handler is asked")
		return nil
	}))
	status = w.Code
	if failed, ok := errors.AsType[caddyhttp.HandlerError](err); ok {
		status = failed.StatusCode
	}
	return status, w.Header().Get("Location"), w.Header()
}

func loggedIn(as string) func(*http.Request) { return with("Remote-User", as) }

// fetchedBy is what a browser says of a user's request: where the page is from that makes it, and
// what it becomes.
func fetchedBy(site, destination string) func(*http.Request) {
	return func(r *http.Request) {
		loggedIn("{http.request.host}")(r)
		r.Header.Set("Sec-Fetch-Site", site)
		r.Header.Set("Sec-Fetch-Dest", destination)
	}
}

// A user who is logged in is led to a URL with a token of their own, which the gate accepts.
func TestMint(t *testing.T) {
	t.Parallel()
	const rules = `[{"type":"ip.src","ip":["203.0.113.0/24"],"action":"allow"},{"type":"any","action":"block"}]`
	m, err := newMint(t, &App{PublicURL: "https://media.example.com/videos/", Audience: []string{"gate"}, ViewerClaim: "account"}, &Mint{
		Video: "{http.request.uri.path.file}", UID: "id:{http.request.header.Remote-User}", Exp: caddy.Duration(time.Minute), To: "manifest", Climit: 2, Rules: []byte(rules),
	})
	if err != nil {
		t.Fatal(err)
	}
	status, location, header := m.redirected(t, requestFor(t, "/watch/demo?x=1", loggedIn("ann@example.com")))
	compact, isPlayback := strings.CutSuffix(strings.TrimPrefix(location, "https://media.example.com/videos/"), "/manifest/video.m3u8")
	if status != http.StatusSeeOther || !isPlayback || header.Get("Cache-Control") != "no-store" || header.Get("Referrer-Policy") != "no-referrer" {
		t.Fatalf("%d to %q, headers %v", status, location, header)
	}
	parsed, err := m.app.policy.Parse(compact)
	if err != nil {
		t.Fatal(err)
	}
	claims := parsed.Unverified()
	if claims.VideoID != "demo" || claims.Viewer != "id:ann@example.com" || claims.SessionLimit != 2 || string(claims.AccessRules) != rules ||
		!claims.ExpiresAt.Equal(testTime.Add(time.Minute)) || !claims.IssuedAt.Equal(testTime) || claims.ID == "" || claims.Audience[0] != "gate" {
		t.Errorf("the claims are %+v", claims)
	}
	if key := m.app.keys.Lookup(claims.KeyID); key == nil {
		t.Errorf("the gate does not know the key %q", claims.KeyID)
	} else if _, err := parsed.Verify(key); err != nil {
		t.Errorf("Verify = %v", err)
	}
	_, again, _ := m.redirected(t, requestFor(t, "/watch/demo", loggedIn("ann@example.com")))
	if again == location {
		t.Error("two links have one token")
	}
}

// Without an option, the link is a path to the player page for an hour.
func TestMintDefaults(t *testing.T) {
	t.Parallel()
	m, err := newMint(t, new(App), &Mint{Video: "demo", UID: "{http.auth.user.id}"})
	if err != nil {
		t.Fatal(err)
	}
	r := requestFor(t, "/", func(r *http.Request) {
		r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer).Set("http.auth.user.id", "ann")
	})
	status, location, _ := m.redirected(t, r)
	compact, isPage := strings.CutSuffix(strings.TrimPrefix(location, "/"), "/iframe")
	parsed, err := token.Parse(compact)
	if status != http.StatusSeeOther || !isPage || err != nil || !parsed.Unverified().ExpiresAt.Equal(testTime.Add(time.Hour)) {
		t.Errorf("%d to %q, %v", status, location, err)
	}
}

// The attack: a request without a user, or for something that is no video, gets a link. A part of
// a name that is empty would give all such users one name. No value leads the redirect
// elsewhere, and none is read as a placeholder.
func TestMintRefuses(t *testing.T) {
	t.Parallel()
	m, err := newMint(t, new(App), &Mint{Video: "{http.request.uri.query.v}", UID: "user-{http.request.header.Remote-User}"})
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name, target string
		change       func(*http.Request)
		want         int
	}{
		{"no user", "/?v=demo", nil, 403},
		{"an empty user", "/?v=demo", loggedIn(""), 403},
		{"a user that is not UTF-8", "/?v=demo", loggedIn("\xff"), 403},
		{"a user that is too long", "/?v=demo", loggedIn(strings.Repeat("a", 300)), 403},
		{"no video", "/", loggedIn("ann"), 404},
		{"an empty video", "/?v=", loggedIn("ann"), 404},
		{"a path", "/?v=../demo", loggedIn("ann"), 404},
		{"another host", "/?v=//evil.com", loggedIn("ann"), 404},
		{"a header", "/?v=demo%0d%0aX:1", loggedIn("ann"), 404},
		{"a placeholder", "/?v={http.request.host}", loggedIn("ann"), 404},
		{"POST", "/?v=demo", func(r *http.Request) { loggedIn("ann")(r); r.Method = "POST" }, 405},
		{"a picture in a page of another site", "/?v=demo", fetchedBy("cross-site", "image"), 403},
		{"a frame in a page of another site", "/?v=demo", fetchedBy("cross-site", "iframe"), 403},
		{"an object in a page of another site", "/?v=demo", fetchedBy("cross-site", "object"), 403},
		{"a script of another site", "/?v=demo", fetchedBy("cross-site", "empty"), 403},
		{"another site without a destination", "/?v=demo", fetchedBy("cross-site", ""), 403},
		{"a site that no browser names", "/?v=demo", fetchedBy("same-origin, cross-site", "iframe"), 403},
		{"two destinations", "/?v=demo", func(r *http.Request) {
			fetchedBy("cross-site", "document")(r)
			r.Header.Add("Sec-Fetch-Dest", "image")
		}, 403},
		{"a link on another site", "/?v=demo", fetchedBy("cross-site", "document"), 303},
		{"a typed address", "/?v=demo", fetchedBy("none", "document"), 303},
		{"a frame in a page of the same site", "/?v=demo", fetchedBy("same-site", "iframe"), 303},
		{"a player in the page", "/?v=demo", fetchedBy("same-origin", "empty"), 303},
		{"HEAD", "/?v=demo", func(r *http.Request) { loggedIn("{http.request.host}")(r); r.Method = "HEAD" }, 303},
		{"a user with a placeholder", "/?v=demo", loggedIn("{http.request.host}"), 303},
	} {
		status, location, header := m.redirected(t, requestFor(t, tc.target, tc.change))
		if status != tc.want || (location != "") != (tc.want == 303) || header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %d to %q, want %d", tc.name, status, location, tc.want)
		}
		if tc.want == 303 {
			if claims := must(token.Parse(strings.Split(location, "/")[1])).Unverified(); claims.Viewer != "user-{http.request.host}" {
				t.Errorf("%s: the viewer is %q", tc.name, claims.Viewer)
			}
		}
	}
}

// The link leads to the manifest of the gates, in whichever order they and the handler are
// provisioned. Gates with several manifests are an error only if a link leads there.
func TestMintLeadsToTheManifestOfTheGates(t *testing.T) {
	t.Parallel()
	gate := func(manifest string) *Gate { return &Gate{Manifest: manifest} }
	mint := func(to string) *Mint { return &Mint{Video: "demo", UID: "{http.request.header.Remote-User}", To: to} }
	for _, tc := range []struct {
		handlers []caddy.Module
		want     string // "" for an error
	}{
		{[]caddy.Module{mint(toManifest)}, playbackpath.DefaultManifest},
		{[]caddy.Module{gate(""), mint(toManifest)}, playbackpath.DefaultManifest},
		{[]caddy.Module{gate("a%20b.m3u8"), mint(toManifest), gate("a%20b.m3u8")}, "a%20b.m3u8"},
		{[]caddy.Module{mint(toManifest), gate("stream.mpd")}, "stream.mpd"},
		{[]caddy.Module{gate("stream.mpd"), mint(toIframe), gate("")}, "iframe"},
		{[]caddy.Module{gate("stream.mpd"), gate(""), mint(toManifest)}, ""},
		{[]caddy.Module{gate("stream.mpd"), mint(toManifest), gate("")}, ""},
		{[]caddy.Module{mint(toManifest), gate("a.m3u8"), gate("stream.mpd")}, ""},
	} {
		app, loaded, err := withHandlers(t, new(App), tc.handlers...)
		if (err != nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), `"stream.mpd"`) {
			t.Errorf("%+v: %v", tc, err)
		}
		for _, handler := range loaded {
			if m, ok := handler.(*Mint); ok {
				useState(t, app, signingState(t))
				if _, location, _ := m.redirected(t, requestFor(t, "/", loggedIn("ann"))); !strings.HasSuffix(location, "/"+tc.want) {
					t.Errorf("%+v: the link is %q", tc, location)
				}
			}
		}
	}
}
