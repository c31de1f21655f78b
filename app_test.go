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

// validate is `caddy validate` of a config with an app and, unless it is "", a handler: a gate, if it
// has no name.
func validate(app, handler string) error {
	apps := caddy.ModuleMap{appID: json.RawMessage(app)}
	if handler != "" {
		if !strings.Contains(handler, `"handler":`) {
			handler = strings.Replace(strings.Replace(handler, "{", `{"handler":"signed_playback",`, 1), ",}", "}", 1)
		}
		apps["http"] = json.RawMessage(`{"servers":{"playback":{"automatic_https":{"disable":true},"routes":[{"handle":[` + handler + `]}]}}}`)
	}
	return validateConfig(&caddy.Config{Admin: &caddy.AdminConfig{Disabled: true}, AppsRaw: apps})
}

// A mistake in a config is an error when it is loaded, which leaves the old one
// in force, and says what is wrong. It repeats no secret, which here contains hunter2.
func TestConfigsThatAreRefused(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "none.json")
	noKey := writeFile(t, "key.json", "no key")
	t.Setenv("TEST_BAD_FOLDER", "/a/../b")
	t.Setenv("TEST_EMPTY", "")
	const (
		sessions = `{"sessions":true,"session_secret":"hunter2hunter2hunter2"`
		mint     = `{"handler":"signed_playback_mint"`
		api      = `{"handler":"signed_playback_api"`
		lifetime = `{"max_token_lifetime":"90m"}`
	)
	for _, tc := range []struct {
		name, app, handler string
		want               []string
	}{
		{"key file missing", `{"key_file":["` + missing + `"]}`, "", is(missing, "signed-playback keygen")},
		{"key file without a key", `{"key_file":["` + noKey + `"]}`, "", is(noKey)},
		{"key file behind a good one", `{"key_file":["examples/public.jwks.json","` + noKey + `"]}`, "", is(noKey)},
		{"key file of an unset variable", `{"key_file":["{env.TEST_UNSET}"]}`, "", is("key_file", "{env.TEST_UNSET}")},
		{"key file of an empty variable", `{"key_file":["{env.TEST_EMPTY}/key.json"]}`, "", is("key_file", "{env.TEST_EMPTY}")},
		{"key file of a placeholder that is none", `{"key_file":["{http.request.host}"]}`, "", is("key_file", "{http.request.host}")},
		{"key file named by a file that is missing", `{"key_file":["{file.` + missing + `}"]}`, "", is("key_file", missing)},
		{"database missing", `{"geoip_database":"` + missing + `"}`, "", is("geoip_database", missing)},
		{"database broken", `{"geoip_database":"` + noKey + `"}`, "", is("geoip_database", noKey)},
		{"database of the wrong kind", `{"geoip_database":"testdata/asn.mmdb"}`, "", is("testdata/asn.mmdb", "GeoLite2-ASN")},
		{"asn_database of the wrong kind", `{"asn_database":"testdata/country.mmdb"}`, "", is("asn_database", "testdata/country.mmdb", "GeoLite2-Country")},
		{"asn_database missing", `{"asn_database":"` + missing + `"}`, "", is("asn_database", missing)},
		{"anonymous_database of the wrong kind", `{"anonymous_database":"testdata/asn.mmdb"}`, "", is("anonymous_database", "testdata/asn.mmdb", "GeoLite2-ASN")},
		{"anonymous_database of an unset variable", `{"anonymous_database":"{env.TEST_UNSET}"}`, "", is("anonymous_database", "{env.TEST_UNSET}")},
		{"database of an unset variable", `{"geoip_database":"{env.TEST_UNSET}"}`, "", is("geoip_database", "{env.TEST_UNSET}")},
		{"access_rules that are no list", `{"access_rules":{}}`, "", is("access_rules", "{}")},
		{"access_rules that are null", `{"access_rules":null}`, "", is("access_rules", "null")},
		{"access_rules of another type", `{"access_rules":[{"type":"any","action":"allow"},{"type":"ip.of.tomorrow","action":"block"}]}`, "", is("access_rules", "rule 2", "ip.of.tomorrow")},
		{"access_rules of a video", `{"video":{"demo":{"access_rules":[{"type":"ip.src","ip":["x"],"action":"block"}]}}}`, "", is(`video "demo"`, "access_rules", `"x"`)},
		{"access_rules by country without a database", `{"access_rules":` + needsCountry + `}`, "", is("access_rules", "ip.geoip.country", "geoip_database")},
		{"access_rules by network without a database", `{"geoip_database":"testdata/country.mmdb","access_rules":` + blocksASN + `}`, "", is("access_rules", "ip.geoip.asnum", "asn_database")},
		{"access_rules of a video by anonymous network without a database", `{"video":{"demo":{"access_rules":` + blocksVPN + `}}}`, "", is(`video "demo"`, "ip.anonymous", "anonymous_database")},
		{"available_from for all videos", `{"available_from":"2030-01-31T20:00:00Z"}`, "", is("available_from", "video block")},
		{"available_from that is no time", `{"video":{"demo":{"available_from":"tomorrow"}}}`, "", is(`video "demo"`, "available_from", `"tomorrow"`)},
		{"available_until without an offset", `{"video":{"demo":{"available_until":"2030-01-31T20:00:00"}}}`, "", is("available_until", `"2030-01-31T20:00:00"`)},
		{"available_until before available_from", `{"video":{"demo":{"available_from":"2030-01-31T20:00:00Z","available_until":"2030-01-31T20:00:00+01:00"}}}`, "", is("available_from", "not before", "+01:00")},
		{"jwks_url relative", `{"jwks_url":"keys.json"}`, "", is("jwks_url", "keys.json")},
		{"jwks_url of a file", `{"jwks_url":"file:///keys.json"}`, "", is("jwks_url", "http or https")},
		{"jwks_url of an unset variable", `{"jwks_url":"https://{env.TEST_UNSET}/keys"}`, "", is("jwks_url", "{env.TEST_UNSET}")},
		{"jwks_interval too short", `{"jwks_url":"http://127.0.0.1:1/","jwks_interval":"10ms"}`, "", is("10ms")},
		{"jwks_interval negative", `{"jwks_url":"http://127.0.0.1:1/","jwks_interval":"-1h"}`, "", is("-1h")},
		{"leeway negative", `{"leeway":"-1s"}`, "", is("leeway", "-1s")},
		{"max_token_lifetime negative", `{"max_token_lifetime":"-1s"}`, "", is("max_token_lifetime", "-1s")},
		{"audience empty", `{"audience":["a",""]}`, "", is("audience", "value 2")},
		{"audience of an empty variable", `{"audience":["{env.TEST_EMPTY}"]}`, "", is("audience", "{env.TEST_EMPTY}")},
		{"issuer empty", `{"issuer":[""]}`, "", is("issuer")},
		{"missing_origin", `{"missing_origin":"Deny"}`, "", is("missing_origin", `"Deny"`)},
		{"allowed_origins", `{"allowed_origins":["example.com","https://example.org"]}`, "", is("must not specify protocol", "https://example.org")},
		{"allowed_origins with an empty one", `{"allowed_origins":[""]}`, "", is(`allowed origin ""`)},
		{"video id", `{"video":{"a/b":{}}}`, "", is(`video "a/b"`)},
		{"video id empty", `{"video":{"":{}}}`, "", is(`video ""`)},
		{"video's allowed_origins", `{"video":{"demo":{"allowed_origins":["example.com/"]}}}`, "", is(`video "demo"`, `"example.com/"`)},
		{"video's missing_origin", `{"video":{"demo":{"missing_origin":"x"}}}`, "", is(`video "demo"`, `"x"`)},
		{"unknown field", `{"keyfile":["a"]}`, "", is("keyfile")},
		{"unknown field of a video", `{"video":{"demo":{"leeway":"1s"}}}`, "", is("leeway")},
		{"unknown field of the gate", `{}`, `{"origin":"x"}`, is("origin")},
		{"origin_path without the video", `{}`, `{"origin_path":"/media"}`, is("origin_path", "{video}")},
		{"origin_path of an unset variable", `{}`, `{"origin_path":"/{env.TEST_UNSET}/{video}"}`, is("origin_path", "{env.TEST_UNSET}")},
		{"origin_path of a variable with dot segments", `{}`, `{"origin_path":"{env.TEST_BAD_FOLDER}/{video}"}`, is("origin_path", "dot segment")},
		{"origin_path with a misspelt placeholder", `{}`, `{"origin_path":"/{vidoe}"}`, is("origin_path", "{vidoe}")},
		{"origin_path of the request", `{}`, `{"origin_path":"/{http.request.host}/{video}"}`, is("origin_path", "{http.request.host}")},
		{"manifest_features unknown", `{}`, `{"manifest_features":["steering","all"]}`, is(`manifest feature "all"`, "reporting")},
		{"manifest_features repeated", `{}`, `{"manifest_features":["steering","steering"]}`, is(`manifest_features: "steering" is repeated`)},
		{"ambiguous_paths of another word", `{}`, `{"ambiguous_paths":"yes"}`, is(`ambiguous_paths "yes"`, "allow")},
		{"manifest in another folder", `{}`, `{"manifest":"../b/index.m3u8"}`, is(`manifest "../b/index.m3u8"`, "dot segment")},
		{"manifest with an encoded slash", `{}`, `{"manifest":"a%2Findex.m3u8"}`, is(`manifest "a%2Findex.m3u8"`)},
		{"manifest with half a percent-encoding", `{}`, `{"manifest":"50% off.m3u8"}`, is(`manifest "50% off.m3u8"`, "%25")},
		{"manifest that is the page itself", `{}`, `{"manifest":"/iframe"}`, is(`manifest "/iframe"`)},
		{"manifest that is a folder", `{}`, `{"manifest":"hls/"}`, is(`manifest "hls/"`)},
		{"manifest that the page cannot play", `{}`, `{"player":{},"manifest":"video.MPD"}`, is(`manifest "video.MPD"`, "HLS")},
		{"manifest that is the page's script", `{}`, `{"player":{},"manifest":"iframe/hls.js"}`, is(`manifest "iframe/hls.js"`, "HLS")},
		{"downloads", `{}`, `{"downloads":["ok","a%20b"]}`, is("downloads", "a%20b")},
		{"session_secret short", `{"sessions":true,"session_secret":"hunter2"}`, "", is("session_secret", "at least 16")},
		{"session_secret of an unset variable", `{"sessions":true,"session_secret":"{env.TEST_UNSET}"}`, "", is("session_secret", "{env.TEST_UNSET}")},
		{"session_secret without sessions", `{"session_secret":"hunter2hunter2hunter2"}`, "", is("session_secret", "`sessions on`")},
		{"session_timeout short", sessions + `,"session_timeout":"1s"}`, "", is("session_timeout 1s")},
		{"session_timeout without sessions", `{"session_timeout":"1m"}`, "", is("session_timeout: it needs")},
		{"on_session_limit of another word", sessions + `,"on_session_limit":"kick"}`, "", is(`on_session_limit "kick"`)},
		{"on_session_limit without sessions", `{"on_session_limit":"end_oldest"}`, "", is("on_session_limit: it needs")},
		{"max_session negative", sessions + `,"max_session":"-1ns"}`, "", is("max_session -1ns")},
		{"max_session without sessions", `{"max_session":"1h"}`, "", is("max_session: it needs")},
		{"max_sessions with sessions off", `{"sessions":false,"max_sessions":1}`, "", is("max_sessions: it needs")},
		{"max_sessions of a video without sessions", `{"video":{"film":{"max_sessions":1}}}`, "", is("max_sessions: it needs")},
		{"session_events in cleartext", sessions + `,"session_events":"http://192.0.2.1/hunter2"}`, "", is("session_events: http to")},
		{"session_events without sessions", `{"session_events":"https://h/hunter2"}`, "", is("session_events: it needs")},
		{"on_sharing of another word", sessions + `,"on_sharing":"ban"}`, "", is(`on_sharing "ban"`)},
		{"on_sharing without sessions", `{"on_sharing":"report"}`, "", is("on_sharing: it needs")},
		{"admission of another scheme", sessions + `,"admission":"ftp://10.0.0.1/hunter2"}`, "", is("admission: want")},
		{"admission without a scheme", sessions + `,"admission":"app.example.com/hunter2"}`, "", is("admission: want")},
		{"admission of an unset variable", sessions + `,"admission":"https://h/{env.TEST_UNSET}"}`, "", is("admission: a placeholder")},
		{"admission without sessions", `{"admission":"https://h/hunter2"}`, "", is("admission: it needs `sessions on`")},
		{"on_error of another word", sessions + `,"admission":"https://h/hunter2","admission_on_error":"maybe"}`, "", is(`on_error "maybe"`)},
		{"on_error without admission", sessions + `,"admission_on_error":"deny"}`, "", is("needs admission")},
		{"store_secret short", `{"store_secret":"hunter2"}`, "", is("7 characters: want at least 16")},
		{"store_secret plain", `{"store_secret":"plain"}`, "", is("5 characters")},
		{"store_secret of an unset variable", `{"store_secret":"{env.TEST_UNSET}"}`, "", is("{env.TEST_UNSET} is empty or unknown")},
		{"earlier_store_secrets short", `{"store_secret":"hunter2hunter2hunter2","earlier_store_secrets":["hunter2"]}`, "", is("secret 2 has 7 characters")},
		{"earlier_store_secrets of an unset variable", `{"store_secret":"hunter2hunter2hunter2","earlier_store_secrets":["{env.TEST_UNSET}"]}`, "", is("secret 2")},
		{"earlier_store_secrets repeated", `{"store_secret":"hunter2hunter2hunter2","earlier_store_secrets":["hunter2hunter2hunter2"]}`, "", is("repeated")},
		{"earlier_store_secrets alone", `{"earlier_store_secrets":["hunter2hunter2hunter2"]}`, "", is("earlier_store_secrets")},
		{"two pages at /iframe", `{}`, `{"trust_origin_iframe":true,"player":{}}`, is(errTwoPages.Error())},
		{"link without a video", `{}`, mint + `,"uid":"{http.auth.user.id}"}`, is("video is missing")},
		{"link to what is no video", `{}`, mint + `,"video":"a b","uid":"{http.auth.user.id}"}`, is(`video "a b"`)},
		{"link without a user", `{}`, mint + `,"video":"demo"}`, is("uid is missing")},
		{"link for one user", `{}`, mint + `,"video":"demo","uid":"ann"}`, is(`uid "ann"`)},
		{"link that lasts too long", `{}`, mint + `,"video":"demo","uid":"{x}","exp":"25h"}`, is("exp 25h")},
		{"link that lasts too short", `{}`, mint + `,"video":"demo","uid":"{x}","exp":"1ms"}`, is("exp 1ms")},
		{"link that lasts longer than the gate permits", lifetime, mint + `,"video":"demo","uid":"{x}","exp":"2h"}`, is("exp 2h")},
		{"link to another place", `{}`, mint + `,"video":"demo","uid":"{x}","to":"player"}`, is(`to "player"`)},
		{"link with a negative limit", `{}`, mint + `,"video":"demo","uid":"{x}","climit":-1}`, is("climit -1")},
		{"link with rules that nobody understands", `{}`, mint + `,"video":"demo","uid":"{x}","rules":[{"type":"any"}]}`, is("rules: ")},
		{"link with a placeholder in its rules", `{}`, mint + `,"video":"demo","uid":"{x}","rules":[{"type":"ip.src","ip":["{http.request.remote.host}"],"action":"allow"}]}`, is(`"{http.request`)},
		{"API without a credential", `{}`, api + `}`, is("no credential")},
		{"API with an empty variable", `{}`, api + `,"bearer_token":["{env.TEST_EMPTY}"]}`, is("bearer_token 1")},
		{"API with an unset variable", `{}`, api + `,"bearer_token":["{env.TEST_UNSET}"]}`, is("bearer_token 1: the placeholder {env.TEST_UNSET}")},
		{"API with an unset address", `{}`, api + `,"auth_key":[{"email":"{env.TEST_UNSET}","key":"hunter2"}]}`, is("auth_key 1, email: the placeholder {env.TEST_UNSET}")},
		{"API with an unset key", `{}`, api + `,"auth_key":[{"email":"a@b.c","key":"{env.TEST_UNSET}"}]}`, is("auth_key 1, key: the placeholder {env.TEST_UNSET}")},
		{"API with braces within a secret", `{}`, api + `,"bearer_token":["{env.hunter2}-"]}`, is("bearer_token 1")},
		{"API with braces that are a secret", `{}`, api + `,"bearer_token":["{hunter2}"]}`, is("bearer_token 1")},
		{"API with an account that is none", `{}`, api + `,"bearer_token":["hunter2-secret"],"account":"{env.TEST_BAD_FOLDER}"}`, is(`account "/a/../b"`)},
		{"API with an unset account", `{}`, api + `,"bearer_token":["hunter2-secret"],"account":"{env.TEST_UNSET}"}`, is("account")},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := validate(tc.app, tc.handler)
			if err == nil || strings.Contains(err.Error(), "hunter2") {
				t.Fatalf("the error is %v, want one without a secret", err)
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
		{"admission", `{"sessions":true,"admission":"https://app.example.com/admission"}`, ""},
		{"admission in cleartext, which warns", `{"sessions":true,"admission":"http://10.0.0.1/admission","admission_on_error":"allow"}`, ""},
		{"an earlier secret of the store", `{"store_secret":"hunter2hunter2hunter2","earlier_store_secrets":["hunter3hunter3hunter3","plain"]}`, ""},
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
	if app.geo.Has(geo.Country) || app.keys.Remote != nil || len(app.keys.Fixed.IDs()) != 0 {
		t.Error("a gate without a config has a database or keys")
	}
}

// A gate without the app in the config gets one that lets nobody in.
func TestGateWithoutTheApp(t *testing.T) {
	t.Parallel()
	ctx := must(provisionContext(new(caddy.Config)))
	g := must(ctx.LoadModuleByID("http.handlers.signed_playback", nil)).(*Gate)
	for target, want := range map[string]string{"/demo/x.ts": "token_required", "/" + plainToken() + "/x.ts": "key_unknown"} {
		wantOutcome(t, g, requestFor(t, target, nil), want)
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
	if diff := cmp.Diff([]string{"k1"}, app.keys.Fixed.IDs()); diff != "" {
		t.Errorf("keys (-want +got):\n%s", diff)
	}
	if want := "http://127.0.0.1:1/keys 5m0s"; app.remoteKeys.poolKey != want {
		t.Errorf("the key set is %q, want %q", app.remoteKeys.poolKey, want)
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
	if err := validate(`{"jwks_url":"`+server.URL+`"}`, "{}"); err != nil {
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
