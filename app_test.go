package signedplayback

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/signed-playback/caddy-signed-playback/internal/geo"
	"github.com/signed-playback/caddy-signed-playback/internal/playbackpath"
)

// validate is `caddy validate` of a config with an app and a gate.
func validate(app, gate string) error {
	if gate == "" {
		gate = `{}`
	}
	handler := strings.Replace(gate, "{", `{"handler":"signed_playback",`, 1)
	handler = strings.Replace(handler, ",}", "}", 1)
	return validateConfig(&caddy.Config{
		Admin: &caddy.AdminConfig{Disabled: true},
		AppsRaw: caddy.ModuleMap{
			appID: json.RawMessage(app),
			"http": json.RawMessage(`{"servers":{"playback":{
				"automatic_https":{"disable":true},"routes":[{"handle":[` + handler + `]}]}}}`),
		},
	})
}

// A mistake in a config is an error when it is loaded, which leaves the old one
// in force, and says what is wrong.
func TestConfigsThatAreRefused(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "none.json")
	noKey := writeFile(t, "key.json", "no key")
	t.Setenv("TEST_BAD_FOLDER", "/a/../b")
	t.Setenv("TEST_EMPTY", "")
	for _, tc := range []struct {
		name, app, gate string
		want            []string
	}{
		{"key file missing", `{"key_file":["` + missing + `"]}`, "", []string{missing, "signed-playback keygen"}},
		{"key file without a key", `{"key_file":["` + noKey + `"]}`, "", []string{noKey}},
		{"key file behind a good one", `{"key_file":["examples/public.jwks.json","` + noKey + `"]}`, "", []string{noKey}},
		{"key file of an unset variable", `{"key_file":["{env.TEST_UNSET}"]}`, "", []string{"key_file", "{env.TEST_UNSET}"}},
		{"key file of an empty variable", `{"key_file":["{env.TEST_EMPTY}/key.json"]}`, "", []string{"key_file", "{env.TEST_EMPTY}"}},
		{"key file of a placeholder that is none", `{"key_file":["{http.request.host}"]}`, "", []string{"key_file", "{http.request.host}"}},
		{"key file named by a file that is missing", `{"key_file":["{file.` + missing + `}"]}`, "", []string{"key_file", missing}},
		{"database missing", `{"geoip_database":"` + missing + `"}`, "", []string{"geoip_database", missing}},
		{"database broken", `{"geoip_database":"` + noKey + `"}`, "", []string{"geoip_database", noKey}},
		{"database of the wrong kind", `{"geoip_database":"testdata/asn.mmdb"}`, "", []string{"testdata/asn.mmdb", "GeoLite2-ASN"}},
		{"asn_database of the wrong kind", `{"asn_database":"testdata/country.mmdb"}`, "", []string{"asn_database", "testdata/country.mmdb", "GeoLite2-Country"}},
		{"asn_database missing", `{"asn_database":"` + missing + `"}`, "", []string{"asn_database", missing}},
		{"anonymous_database of the wrong kind", `{"anonymous_database":"testdata/asn.mmdb"}`, "", []string{"anonymous_database", "testdata/asn.mmdb", "GeoLite2-ASN"}},
		{"anonymous_database of an unset variable", `{"anonymous_database":"{env.TEST_UNSET}"}`, "", []string{"anonymous_database", "{env.TEST_UNSET}"}},
		{"database of an unset variable", `{"geoip_database":"{env.TEST_UNSET}"}`, "", []string{"geoip_database", "{env.TEST_UNSET}"}},
		{"access_rules that are no list", `{"access_rules":{}}`, "", []string{"access_rules", "{}"}},
		{"access_rules that are null", `{"access_rules":null}`, "", []string{"access_rules", "null"}},
		{"access_rules of another type", `{"access_rules":[{"type":"any","action":"allow"},{"type":"ip.of.tomorrow","action":"block"}]}`, "", []string{"access_rules", "rule 2", "ip.of.tomorrow"}},
		{"access_rules of a video", `{"video":{"demo":{"access_rules":[{"type":"ip.src","ip":["x"],"action":"block"}]}}}`, "", []string{`video "demo"`, "access_rules", `"x"`}},
		{"access_rules by country without a database", `{"access_rules":` + needsCountry + `}`, "", []string{"access_rules", "ip.geoip.country", "geoip_database"}},
		{"access_rules by network without a database", `{"geoip_database":"testdata/country.mmdb","access_rules":` + blocksASN + `}`, "", []string{"access_rules", "ip.geoip.asnum", "asn_database"}},
		{"access_rules of a video by anonymous network without a database", `{"video":{"demo":{"access_rules":` + blocksVPN + `}}}`, "", []string{`video "demo"`, "ip.anonymous", "anonymous_database"}},
		{"available_from for all videos", `{"available_from":"2030-01-31T20:00:00Z"}`, "", []string{"available_from", "video block"}},
		{"available_from that is no time", `{"video":{"demo":{"available_from":"tomorrow"}}}`, "", []string{`video "demo"`, "available_from", `"tomorrow"`}},
		{"available_until without an offset", `{"video":{"demo":{"available_until":"2030-01-31T20:00:00"}}}`, "", []string{"available_until", `"2030-01-31T20:00:00"`}},
		{"available_until before available_from", `{"video":{"demo":{"available_from":"2030-01-31T20:00:00Z","available_until":"2030-01-31T20:00:00+01:00"}}}`, "", []string{"available_from", "not before", "+01:00"}},
		{"jwks_url relative", `{"jwks_url":"keys.json"}`, "", []string{"jwks_url", "keys.json"}},
		{"jwks_url of a file", `{"jwks_url":"file:///keys.json"}`, "", []string{"jwks_url", "http or https"}},
		{"jwks_url of an unset variable", `{"jwks_url":"https://{env.TEST_UNSET}/keys"}`, "", []string{"jwks_url", "{env.TEST_UNSET}"}},
		{"jwks_interval too short", `{"jwks_url":"http://127.0.0.1:1/","jwks_interval":"10ms"}`, "", []string{"10ms"}},
		{"jwks_interval negative", `{"jwks_url":"http://127.0.0.1:1/","jwks_interval":"-1h"}`, "", []string{"-1h"}},
		{"leeway negative", `{"leeway":"-1s"}`, "", []string{"leeway", "-1s"}},
		{"max_token_lifetime negative", `{"max_token_lifetime":"-1s"}`, "", []string{"max_token_lifetime", "-1s"}},
		{"audience empty", `{"audience":["a",""]}`, "", []string{"audience", "value 2"}},
		{"audience of an empty variable", `{"audience":["{env.TEST_EMPTY}"]}`, "", []string{"audience", "{env.TEST_EMPTY}"}},
		{"issuer empty", `{"issuer":[""]}`, "", []string{"issuer"}},
		{"missing_origin", `{"missing_origin":"Deny"}`, "", []string{"missing_origin", `"Deny"`}},
		{"allowed_origins", `{"allowed_origins":["example.com","https://example.org"]}`, "", []string{"must not specify protocol", "https://example.org"}},
		{"allowed_origins with an empty one", `{"allowed_origins":[""]}`, "", []string{`allowed origin ""`}},
		{"video id", `{"video":{"a/b":{}}}`, "", []string{`video "a/b"`}},
		{"video id empty", `{"video":{"":{}}}`, "", []string{`video ""`}},
		{"video's allowed_origins", `{"video":{"demo":{"allowed_origins":["example.com/"]}}}`, "", []string{`video "demo"`, `"example.com/"`}},
		{"video's missing_origin", `{"video":{"demo":{"missing_origin":"x"}}}`, "", []string{`video "demo"`, `"x"`}},
		{"unknown field", `{"keyfile":["a"]}`, "", []string{"keyfile"}},
		{"unknown field of a video", `{"video":{"demo":{"leeway":"1s"}}}`, "", []string{"leeway"}},
		{"unknown field of the gate", `{}`, `{"origin":"x"}`, []string{"origin"}},
		{"origin_path without the video", `{}`, `{"origin_path":"/media"}`, []string{"origin_path", "{video}"}},
		{"origin_path of an unset variable", `{}`, `{"origin_path":"/{env.TEST_UNSET}/{video}"}`, []string{"origin_path", "{env.TEST_UNSET}"}},
		{"origin_path of a variable with dot segments", `{}`, `{"origin_path":"{env.TEST_BAD_FOLDER}/{video}"}`, []string{"origin_path", "dot segment"}},
		{"origin_path with a misspelt placeholder", `{}`, `{"origin_path":"/{vidoe}"}`, []string{"origin_path", "{vidoe}"}},
		{"origin_path of the request", `{}`, `{"origin_path":"/{http.request.host}/{video}"}`, []string{"origin_path", "{http.request.host}"}},
		{"manifest_features unknown", `{}`, `{"manifest_features":["steering","all"]}`, []string{`manifest feature "all"`, "reporting"}},
		{"manifest_features repeated", `{}`, `{"manifest_features":["steering","steering"]}`, []string{`manifest_features: "steering" is repeated`}},
		{"ambiguous_paths of another word", `{}`, `{"ambiguous_paths":"yes"}`, []string{`ambiguous_paths "yes"`, "allow"}},
		{"manifest in another folder", `{}`, `{"manifest":"../b/index.m3u8"}`, []string{`manifest "../b/index.m3u8"`, "dot segment"}},
		{"manifest with an encoded slash", `{}`, `{"manifest":"a%2Findex.m3u8"}`, []string{`manifest "a%2Findex.m3u8"`}},
		{"manifest with half a percent-encoding", `{}`, `{"manifest":"50% off.m3u8"}`, []string{`manifest "50% off.m3u8"`, "%25"}},
		{"manifest that is the page itself", `{}`, `{"manifest":"/iframe"}`, []string{`manifest "/iframe"`}},
		{"manifest that is a folder", `{}`, `{"manifest":"hls/"}`, []string{`manifest "hls/"`}},
		{"manifest that the page cannot play", `{}`, `{"player":{},"manifest":"video.MPD"}`, []string{`manifest "video.MPD"`, "HLS"}},
		{"manifest that is the page's script", `{}`, `{"player":{},"manifest":"iframe/hls.js"}`, []string{`manifest "iframe/hls.js"`, "HLS"}},
		{"downloads", `{}`, `{"downloads":["ok","a%20b"]}`, []string{"downloads", "a%20b"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := validate(tc.app, tc.gate)
			if err == nil {
				t.Fatal("the config is accepted")
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("the error is %v, want %s in it", err, want)
				}
			}
		})
	}
}

func TestConfigsThatAreAccepted(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ name, app, gate string }{
		{"nothing", `{}`, `{}`},
		{"all", `{
			"key_file": ["examples/public.jwks.json"], "jwks_url": "http://127.0.0.1:1/keys", "jwks_interval": "1s",
			"geoip_database": "testdata/flat.mmdb", "asn_database": "testdata/flat_asn.mmdb", "anonymous_database": "testdata/anonymous_plus.mmdb", "require_signed_urls": false, "allowed_origins": ["*.example.com", "*"],
			"missing_origin": "allow", "leeway": "0s", "max_token_lifetime": "24h", "audience": ["a", "b"], "issuer": ["c"],
			"video": {"demo": {"require_signed_urls": true, "allowed_origins": ["localhost:3000"], "missing_origin": "deny", "available_from": "2030-01-31T20:00:00Z", "available_until": "2030-01-31T20:00:00.5Z", "access_rules": ` + blocksVPN + `}},
			"access_rules": ` + needsCountry + `
		}`, `{"origin_path": "/media/{video}", "downloads": ["*.mp4"], "manifest": "/a folder/épisode 1.m3u8"}`},
		{"manifest of DASH, without a page", `{}`, `{"manifest": "video.mpd"}`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if err := validate(tc.app, tc.gate); err != nil {
				t.Errorf("the config is refused: %v", err)
			}
		})
	}
}

func TestDefaults(t *testing.T) {
	t.Parallel()
	app, gate, err := provisioned(t, new(App), new(Gate))
	if err != nil {
		t.Fatal(err)
	}
	if app.policy.Leeway != 5*time.Second || app.policy.MaxLifetime != 0 {
		t.Errorf("the dates' policy is %+v, want a leeway of 5s and no more", app.policy)
	}
	if s, err := app.settings(requestFor(t, "/x", func(*http.Request) {}), "any", false); err != nil || !s.requireSignedURLs || s.origins != (originPolicy{}) {
		t.Errorf("the settings of a video are %+v (%v), want signed URLs from anywhere", s, err)
	}
	if got := gate.originPath.Folder("demo"); got != "/demo" {
		t.Errorf("a video lives at %q, want /demo", got)
	}
	if diff := cmp.Diff(playbackpath.Globs{"downloads/*"}, gate.paths.Downloads); diff != "" {
		t.Errorf("downloads (-want +got):\n%s", diff)
	}
	if app.geo.Has(geo.Country) || app.keys.remote != nil || len(app.keys.fixed.IDs()) != 0 {
		t.Error("a gate without a config has a database or keys")
	}
}

// A gate without the app in the config gets one that lets nobody in.
func TestGateWithoutTheApp(t *testing.T) {
	t.Parallel()
	ctx, err := provisionContext(new(caddy.Config))
	if err != nil {
		t.Fatal(err)
	}
	handler, err := ctx.LoadModuleByID("http.handlers.signed_playback", nil)
	if err != nil {
		t.Fatal(err)
	}
	for target, want := range map[string]string{"/demo/x.ts": "token_required", "/" + plainToken() + "/x.ts": "key_unknown"} {
		r := requestFor(t, target, nil)
		wantRefusal(t, r, ask(t, handler.(*Gate), r), want)
	}
}

// What stands in the environment or in a file is filled in once, at start.
func TestPlaceholdersInTheConfig(t *testing.T) {
	folder := t.TempDir()
	key := writeFile(t, "key.json", publicJWK(testKey()))
	t.Setenv("TEST_FOLDER", filepath.Dir(key))
	t.Setenv("TEST_KEY_SERVER", "127.0.0.1:1")
	t.Setenv("TEST_MEDIA", "media/hls")
	name := filepath.Join(folder, "name")
	if err := os.WriteFile(name, []byte("country.mmdb"), 0o600); err != nil {
		t.Fatal(err)
	}
	app, gate, err := provisioned(t, &App{
		KeyFiles:      []string{"{env.TEST_FOLDER}/key.json"},
		JWKSURL:       "http://{env.TEST_KEY_SERVER}/keys",
		GeoIPDatabase: "testdata/{file." + name + "}",
	}, &Gate{OriginPath: "/{env.TEST_MEDIA}/{video}/{env.TEST_MEDIA}/{video}"})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"k1"}, app.keys.fixed.IDs()); diff != "" {
		t.Errorf("keys (-want +got):\n%s", diff)
	}
	if want := "http://127.0.0.1:1/keys 5m0s"; app.keys.remote.poolKey != want {
		t.Errorf("the key set is %q, want %q", app.keys.remote.poolKey, want)
	}
	if got := app.geo.Lookup(netip.MustParseAddr("203.0.113.7")).Country; got.String() != "GB" {
		t.Errorf("Country = %q, want GB", got)
	}
	if got, want := gate.originPath.Folder("demo"), "/media/hls/demo/media/hls/demo"; got != want {
		t.Errorf("a video lives at %q, want %q", got, want)
	}
	if gate.OriginPath != "/{env.TEST_MEDIA}/{video}/{env.TEST_MEDIA}/{video}" {
		t.Error("the config, which the admin API shows, has the value of the variable")
	}
}

// `caddy validate`, and a reload that fails, must not ask anybody for keys.
func TestValidatingFetchesNothing(t *testing.T) {
	t.Parallel()
	server := newKeyServer(t)
	if err := validate(`{"jwks_url":"`+server.URL+`"}`, ""); err != nil {
		t.Fatal(err)
	}
	if got := server.requests.Load(); got != 0 {
		t.Errorf("%d requests to the key server, want none", got)
	}
	if n, known := remoteKeysPool.References(server.URL + " 5m0s"); known {
		t.Errorf("%d references to the key set remain", n)
	}
}

// An app without keys refuses every token, which its operator should hear of.
func TestStartAndStop(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name string
		app  App
		want int // warnings
	}{
		{"no keys", App{}, 1},
		{"a key", App{KeyFiles: []string{"examples/public.jwks.json"}}, 0},
		{"a key set", App{JWKSURL: "http://127.0.0.1:1/"}, 0},
		{"a database", App{KeyFiles: []string{"examples/public.jwks.json"}, GeoIPDatabase: "testdata/country.mmdb"}, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			app, _, err := provisioned(t, &tc.app, nil)
			if err != nil {
				t.Fatal(err)
			}
			log, logs := observedLog()
			app.logger = log
			if err := errors.Join(app.Start(), app.Stop()); err != nil {
				t.Errorf("Start and Stop = %v", err)
			}
			logs = logs.Filter(func(e observer.LoggedEntry) bool { return e.Level >= zap.WarnLevel })
			if logs.Len() != tc.want {
				t.Errorf("%d warnings, want %d", logs.Len(), tc.want)
			}
		})
	}
}
