package signedplayback

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/google/go-cmp/cmp"

	"github.com/signed-playback/caddy-signed-playback/internal/command"
	"github.com/signed-playback/caddy-signed-playback/internal/controlapi"
	"github.com/signed-playback/caddy-signed-playback/internal/playbackpath"
	"github.com/signed-playback/caddy-signed-playback/token"
)

// newRunningAPI provisions a Caddyfile as a server does, with a control API beside its sites.
func newRunningAPI(t *testing.T, file string) *API {
	t.Helper()
	ctx := contextOf(t, adaptedWithoutLog(file))
	return must(ctx.LoadModuleByID("http.handlers.signed_playback_api", caddyconfig.JSON(&API{BearerTokens: []string{"secret-of-the-tests"}}, nil))).(*API)
}

// explainCall calls the API and returns its whole answer.
func explainCall(t *testing.T, a *API, body map[string]string) (status int, answer string) {
	t.Helper()
	r := requestFor(t, "/client/v4/accounts/acc/stream/explain", func(r *http.Request) {
		r.Method, r.Body = http.MethodPost, io.NopCloser(strings.NewReader(string(must(json.Marshal(body)))))
		r.Header.Set("Authorization", "Bearer secret-of-the-tests")
	})
	w := httptest.NewRecorder()
	if err := a.ServeHTTP(w, r, caddyhttp.HandlerFunc(func(http.ResponseWriter, *http.Request) error { return nil })); err != nil {
		t.Fatal(err)
	}
	return w.Code, w.Body.String()
}

// The call explains a request in the running config, by the site that its host names. It counts
// nothing and takes from no network's budget, and no answer has a part of the token, whatever
// member of the body a hasty operator pastes the URL into.
func TestExplainCall(t *testing.T) {
	t.Parallel()
	api := newRunningAPI(t, siteFile(t))
	good, expired := plainToken(), signed(func(c *token.Claims) { c.ExpiresAt = testTime.Add(-time.Minute) })
	forged := good[:len(good)-20] + "AAAAAAAAAAAAAAAAAAAA"
	const http, https = "http://media.example.net/", "https://media.example.net/"
	for _, tc := range []struct {
		body   map[string]string
		status int
		want   string
	}{
		{map[string]string{"url": http + good + "/x.ts"}, 200, `"allowed":true,"result":"allowed","video":"demo"`},
		{map[string]string{"url": http + good + "/x.ts", "ip": "198.51.100.1"}, 200, `"client_ip":"198.51.100.1","country":"DE"`},
		{map[string]string{"url": http + expired + "/x.ts"}, 200, `"reason":"token_expired","status":401`},
		{map[string]string{"url": http + expired + "/x.ts", "at": "2027-01-15T07:58:00Z"}, 200, `"allowed":true`},
		{map[string]string{"url": http + forged + "/x.ts"}, 200, `"reason":"signature_invalid"`},
		{map[string]string{"url": http + signedFor("site") + "/x.ts", "origin": "https://evil.com"}, 200, `"reason":"origin_not_allowed"`},
		{map[string]string{"url": http + signedFor("site") + "/x.ts", "referer": "https://example.com/" + good}, 200, `"allowed":true`},
		{map[string]string{"url": https + "demo/x.ts"}, 200, `"reason":"token_required"`}, // another server
		{map[string]string{"url": http + "health"}, 400, "static_response answers"},
		{map[string]string{"url": "https://nowhere.example/" + good}, 400, "no site with signed_playback"},
		{map[string]string{"url": "https://" + good + "/x.ts"}, 400, "no site with signed_playback"},
		{map[string]string{"url": good}, 400, "want the whole URL"},
		{map[string]string{"url": "https://media.example.net:" + good}, 400, `listens on port \"`}, // the log omits what is quoted
		{map[string]string{"url": http + good, "ip": http + good}, 400, "want an IP address"},
		{map[string]string{"url": http + good, "origin": http + good}, 400, "want an origin"},
		{map[string]string{"url": http + good, "referer": good}, 400, "want a URL"},
		{map[string]string{"url": http + good, "at": good}, 400, "want a date"},
		{map[string]string{"url": http + good + "/x.ts", "at": "9999-12-31T23:59:59Z"}, 200, `"reason":"token_expired"`},
		{map[string]string{"url": http + good + "/x.ts", "at": "9999-12-31T23:59:59-00:01"}, 400, "want a date"},
		{map[string]string{"url": http + good + "/x.ts", "at": "0000-01-01T00:00:00+00:01"}, 400, "want a date"},
		{map[string]string{"url": http + good, good: "x"}, 400, "unknown member"},
	} {
		for range 2 {
			status, answer := explainCall(t, api, tc.body)
			if status != tc.status || !strings.Contains(answer, tc.want) {
				t.Errorf("%v = %d %s, want %d and %s", tc.body, status, answer, tc.status, tc.want)
			}
			for _, secret := range []string{good, expired, forged} {
				for _, part := range strings.Split(secret, ".")[1:] {
					if strings.Contains(answer, part[:20]) {
						t.Errorf("%v = %s, which has a part of the token", tc.body, answer)
					}
				}
			}
		}
	}
	for name, counters := range map[string]map[[3]string]float64{
		"requests": countersOf(t, api.app.metrics, "requests_total"), "verifications": countersOf(t, api.app.metrics, "token_verifications_total"),
		"misses": countersOf(t, api.app.metrics, "token_cache_misses_total"), "hits": countersOf(t, api.app.metrics, "token_cache_hits_total"),
	} {
		if rise := risen(nil, counters); len(rise) > 0 {
			t.Errorf("%s: %v", name, rise)
		}
	}
}

// A page learns where the gates of the running config are and what they have.
func TestGatewayCall(t *testing.T) {
	t.Parallel()
	sites := `
http://one.example.com {
	signed_playback {
		player
		manifest "hls/a b.m3u8"
	}
}
https://two.example.com:8443 {
	handle_path /vod/* {
		signed_playback
	}
}
http://three.example.com, http://*.example.com {
	signed_playback
}
:8080 {
	signed_playback
}
`
	options := `{
	signed_playback {
		geoip_database testdata/country.mmdb
		max_token_lifetime 2h
		allowed_origins example.com
		access_rules {
			block ip.src 192.0.2.1
		}
		PUBLIC
	}
}
`
	one := controlapi.Gate{Playback: "http://one.example.com", Hosts: []string{"one.example.com"}, Manifest: "hls/a%20b.m3u8", Player: true}
	two := controlapi.Gate{Playback: "https://two.example.com:8443", Hosts: []string{"two.example.com"}, Manifest: playbackpath.DefaultManifest}
	three := controlapi.Gate{Hosts: []string{"three.example.com", "*.example.com"}, Manifest: playbackpath.DefaultManifest}
	any := controlapi.Gate{Hosts: []string{}, Manifest: playbackpath.DefaultManifest}
	public := func(gate controlapi.Gate) controlapi.Gate { gate.Playback = "https://two.example.com/x"; return gate }
	for option, want := range map[string][]controlapi.Gate{
		"": {one, three, any, two}, "public_url https://two.example.com/x": {one, three, public(any), public(two)},
	} {
		api := newRunningAPI(t, writeFile(t, "Caddyfile", strings.Replace(options, "PUBLIC", option, 1)+sites))
		var got controlapi.Gateway
		r := requestFor(t, "/client/v4/accounts/acc/stream/gateway", with("Authorization", "Bearer secret-of-the-tests"))
		if status, _ := callAPI(t, api, r, &got); status != http.StatusOK {
			t.Fatalf("gateway = %d", status)
		}
		if diff := cmp.Diff(want, got.Gates); diff != "" {
			t.Errorf("%q (-want +got):\n%s", option, diff)
		}
		got.Gates = nil
		full := controlapi.Gateway{
			Version: command.Version(), PublicURL: strings.TrimPrefix(option, "public_url "), MaxTokenLifetime: 7200,
			Databases: map[string]bool{"country": true, "asn": false, "anonymous": false},
			Defaults:  controlapi.Defaults{RequireSignedURLs: true, AllowedOrigins: []string{"example.com"}, AccessRules: json.RawMessage(`[{"action":"block","ip":["192.0.2.1"],"type":"ip.src"}]`)},
		}
		if diff := cmp.Diff(full, got); diff != "" {
			t.Errorf("%q (-want +got):\n%s", option, diff)
		}
	}
}
