package integration

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/signed-playback/caddy-signed-playback/token"
)

// A login becomes a link, after a real forward_auth. The attack: a client that is let in
// without a name, or with its own, sends the header by which the login names users.
func TestLoginBecomesALink(t *testing.T) {
	t.Parallel()
	login := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.Header.Get("Cookie") {
		case "session=ann":
			w.Header().Set("Remote-User", "ann")
		case "session=guest": // may come in, without a name
		default:
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	t.Cleanup(login.Close)
	o, site := startOrigin(t, nil), freeAddr(t)
	g := start(t, o, config{log: quiet, sites: `
		http://` + site + ` {
			@watch path_regexp ^/watch/([A-Za-z0-9_-]+)$
			handle @watch {
				forward_auth ` + strings.TrimPrefix(login.URL, "http://") + ` {
					uri /auth
					copy_headers Remote-User
				}
				signed_playback_mint {
					video {re.1}
					uid {header.Remote-User}
					to manifest
					climit 2
				}
			}
			handle {
				error 404
			}
		}`})
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	ask := func(path string, header ...string) (status int, location string, h http.Header) {
		t.Helper()
		r, err := http.NewRequest(http.MethodGet, "http://"+site+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(header); i += 2 {
			r.Header.Add(header[i], header[i+1])
		}
		res, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		return res.StatusCode, res.Header.Get("Location"), res.Header
	}
	for _, tc := range []struct {
		name   string
		path   string
		header []string
		want   int
	}{
		{"nobody", "/watch/vidA", nil, 401},
		{"a forged name alone", "/watch/vidA", []string{"Remote-User", "ann"}, 401},
		{"a guest", "/watch/vidA", []string{"Cookie", "session=guest"}, 403},
		{"a guest with a forged name", "/watch/vidA", []string{"Cookie", "session=guest", "Remote-User", "ann"}, 403},
		{"a guest with a forged name in small letters and an underscore", "/watch/vidA", []string{"Cookie", "session=guest", "remote_user", "ann"}, 403},
		{"no video", "/watch/", []string{"Cookie", "session=ann"}, 404},
		{"a video that is none", "/watch/a%2Fb", []string{"Cookie", "session=ann"}, 404},
		{"a path below a video", "/watch/vidA/x", []string{"Cookie", "session=ann"}, 404},
		{"a video id that is too long", "/watch/" + strings.Repeat("a", 65), []string{"Cookie", "session=ann"}, 404},
		{"another host for a video", "/watch/evil.com", []string{"Cookie", "session=ann"}, 404},
		{"a user", "/watch/vidA", []string{"Cookie", "session=ann"}, 303},
		{"a user with a forged name", "/watch/vidA", []string{"Cookie", "session=ann", "Remote-User", "bob"}, 303},
	} {
		status, location, h := ask(tc.path, tc.header...)
		if status != tc.want || (location != "") != (tc.want == 303) {
			t.Errorf("%s: %d to %q, want %d", tc.name, status, location, tc.want)
			continue
		}
		if tc.want != 303 {
			continue
		}
		if h.Get("Cache-Control") != "no-store" || h.Get("Referrer-Policy") != "no-referrer" {
			t.Errorf("%s: the headers are %v", tc.name, h)
		}
		parsed, err := token.Parse(strings.Split(location, "/")[1])
		if err != nil {
			t.Fatalf("%s: %q: %v", tc.name, location, err)
		}
		if claims := parsed.Unverified(); claims.Viewer != "ann" || claims.VideoID != "vidA" || claims.SessionLimit != 2 {
			t.Errorf("%s: the claims are %+v", tc.name, claims)
		}
		wantVerdict(t, g, location, plays)
	}
}
