package signedplayback

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/signed-playback/caddy-signed-playback/internal/geo"
	"github.com/signed-playback/caddy-signed-playback/internal/state"
	"github.com/signed-playback/caddy-signed-playback/token"
)

// newAPI provisions a control API and its app.
func newAPI(t *testing.T, app *App, api *API) (*API, error) {
	t.Helper()
	_, loaded, err := withHandlers(t, app, api)
	if err != nil {
		return nil, err
	}
	return loaded[0].(*API), nil
}

// callAPI makes a call and decodes its result.
func callAPI(t *testing.T, a *API, r *http.Request, result any) (status int, handed bool) {
	t.Helper()
	w := httptest.NewRecorder()
	err := a.ServeHTTP(w, r, caddyhttp.HandlerFunc(func(http.ResponseWriter, *http.Request) error {
		handed = true
		return nil
	}))
	if err != nil {
		t.Fatalf("ServeHTTP = %v", err)
	}
	if result != nil {
		if err := json.Unmarshal(w.Body.Bytes(), &struct{ Result any }{result}); err != nil {
			t.Errorf("%s: %v", w.Body, err)
		}
	}
	return w.Code, handed
}

// A credential can come from the environment or from a file. TestConfigsThatAreRefused has
// configs that would let anybody in, or nobody.
func TestCredentialsOfTheAPI(t *testing.T) {
	t.Setenv("TEST_SECRET", "from-the-environment")
	t.Setenv("TEST_ACCOUNT", "acc")
	file := writeFile(t, "secret", "from-a-file\r\n")
	for configured, secret := range map[string]string{
		"hunter2-secret": "hunter2-secret", "{env.TEST_SECRET}": "from-the-environment", "{file." + file + "}": "from-a-file", // without its line feed
	} {
		for _, account := range []string{"", "{env.TEST_ACCOUNT}"} {
			api, err := newAPI(t, new(App), &API{BearerTokens: is(configured), Account: account})
			if err != nil {
				t.Fatalf("%s: %v", configured, err)
			}
			for sent, want := range map[string]int{secret: http.StatusOK, "x" + secret: http.StatusUnauthorized} {
				r := requestFor(t, "/client/v4/accounts/acc/stream/keys", with("Authorization", "Bearer "+sent))
				if status, _ := callAPI(t, api, r, nil); status != want {
					t.Errorf("%s: a call with %q = %d, want %d", configured, sent, status, want)
				}
			}
		}
	}
}

// Requests for other paths go on, untouched and without a credential. Caddy's
// access log has every header but Authorization and Cookie, so it leaves out a
// call with X-Auth-Key.
func TestRequestsOfTheAPI(t *testing.T) {
	t.Parallel()
	api, err := newAPI(t, new(App), &API{AuthKeys: []AuthKey{{"a@example.com", "key"}}})
	if err != nil {
		t.Fatal(err)
	}
	const call = "/client/v4/accounts/acc/stream/keys"
	for _, tc := range []struct {
		path            string
		change          func(*http.Request)
		handed, skipped bool
	}{
		{call, nil, false, false},
		{call, with("X-Auth-Key", "key"), false, true},
		{call, with("X-Auth-Key", "wrong"), false, true},
		{call, with("X-Auth-Key", "a", "b"), false, true},
		{call, with("X-Auth-Key", ""), false, true},
		{"/%63lient/v4/accounts/acc/stream/key", nil, false, false},
		{"/client%2fv4/accounts/acc/stream", nil, false, false},
		{"/client/v4%2faccounts/acc/stream", nil, false, false},
		{"/elsewhere", with("X-Auth-Key", "key"), true, false},
		{"/client/v40", nil, true, false},
	} {
		r := requestFor(t, tc.path, tc.change)
		_, handed := callAPI(t, api, r, nil)
		skipped, _ := caddyhttp.GetVar(r.Context(), caddyhttp.LogSkipVar).(bool)
		if handed != tc.handed || skipped != tc.skipped {
			t.Errorf("%s with %v is handed on: %t, want %t; left out of the log: %t, want %t", tc.path, r.Header, handed, tc.handed, skipped, tc.skipped)
		}
	}
}

// The page of the console comes from the API's site, and what is not one of its files goes on.
func TestConsoleIsServed(t *testing.T) {
	t.Parallel()
	for console, rows := range map[bool]map[string]bool{ // whether a path is handed on
		true: {
			"/console": false, "/console/": false, "/console/console.js": false, "/": true,
			"/console/manifest/video.m3u8": true, // of a video with this name
		},
		false: {"/console/": true},
	} {
		api, err := newAPI(t, new(App), &API{BearerTokens: []string{"secret-of-the-tests"}, Console: console})
		if err != nil {
			t.Fatal(err)
		}
		for path, want := range rows {
			if _, handed := callAPI(t, api, requestFor(t, path, nil), nil); handed != want {
				t.Errorf("console %t: %s is handed on: %t", console, path, handed)
			}
		}
	}
}

// A console that nobody could open is an error of the config.
func TestConsolesThatNobodyReaches(t *testing.T) {
	t.Parallel()
	const page, script = `no request for "/console/" gets`, `no request for "/console/console.js" gets`
	for _, tc := range []struct{ around, matcher, want string }{
		{"route", "/client/*", page},
		{"route", "/console/", script},
		{"route", "/Console*", ""},
		{"handle_path /ops/*", "", ""},
		{"handle_path /ops/*", "/client/*", page},
	} {
		site := fmt.Sprintf("http://:9080 {\n%s {\nsigned_playback_api %s {\nbearer_token secret-of-the-tests\nconsole\n}\n}\n}\n", tc.around, tc.matcher)
		_, err := validateWarnings(t, adapt(t, formatted(site)), filepath.Join(t.TempDir(), "log"))
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s with the matcher %q: %v, want %q", tc.around, tc.matcher, err, tc.want)
		}
	}
}

// The API shows the settings that are in force: a video of the config file has
// its own, and the defaults for what it does not set.
func TestAPIShowsTheConfig(t *testing.T) {
	t.Parallel()
	api, err := newAPI(t, &App{
		VideoSettings: VideoSettings{AllowedOrigins: []string{"default.example"}},
		PublicURL:     "https://media.example.com/v/",
		Videos:        map[string]VideoSettings{"open": {RequireSignedURLs: new(false)}, "site": {AllowedOrigins: []string{"site.example"}}},
	}, &API{BearerTokens: []string{"secret-of-the-tests"}})
	if err != nil {
		t.Fatal(err)
	}
	for id, want := range map[string]string{
		"unset": "true [default.example]", "open": "false [default.example]", "site": "true [site.example]",
	} {
		var video struct {
			Preview           string
			RequireSignedURLs bool
			AllowedOrigins    []string
		}
		r := requestFor(t, "/client/v4/accounts/acc/stream/"+id, with("Authorization", "Bearer secret-of-the-tests"))
		if status, _ := callAPI(t, api, r, &video); status != http.StatusOK {
			t.Errorf("GET %s = %d", id, status)
		}
		if got := fmt.Sprint(video.RequireSignedURLs, video.AllowedOrigins); got != want || video.Preview != "https://media.example.com/v/"+id+"/iframe" {
			t.Errorf("%s is %s at %s, want %s", id, got, video.Preview, want)
		}
	}
}

// A token of the API plays at the gate beside it until its key is revoked, with
// the audience and the issuer that the gate requires.
func TestMintedTokensPlay(t *testing.T) {
	t.Parallel()
	app := &App{Audience: []string{"media", "other"}, Issuer: []string{"gateway", "other"}}
	api, err := newAPI(t, app, &API{BearerTokens: []string{"secret-of-the-tests"}})
	if err != nil {
		t.Fatal(err)
	}
	g := newGate(t, app, new(Gate))
	g.app.keys.State, g.app.verifier.CatchUp = api.app.state.State, api.app.state.CatchUp
	api.app.state.Start()
	stored, _, err := api.app.state.CreateKey(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	call := func(method, path, body string, result any) {
		t.Helper()
		r := requestFor(t, "/client/v4/accounts/acc/stream/"+path, func(r *http.Request) {
			r.Method, r.Body = method, io.NopCloser(strings.NewReader(body))
			r.Header.Set("Authorization", "Bearer secret-of-the-tests")
		})
		if status, _ := callAPI(t, api, r, result); status != http.StatusOK {
			t.Errorf("%s %s %s = %d", method, path, body, status)
		}
	}
	mint := func(body string) string {
		t.Helper()
		var created struct{ Token string }
		call("POST", "demo/token", body, &created)
		return created.Token
	}
	for body, want := range map[string]string{
		"": "", `{"downloadable":true}`: "",
		`{"accessRules":[{"type":"ip.src","action":"allow","ip":["203.0.113.7"]},{"type":"any","action":"block"}]}`: "",
		`{"accessRules":[{"type":"any","action":"block"}]}`:                                                         "rule_blocked",
		fmt.Sprintf(`{"nbf":%d}`, testTime.Unix()+600):                                                              "token_not_yet_valid",
		fmt.Sprintf(`{"id":%q,"pem":%q}`, stored.ID(), stored.PEM()):                                                "",
	} {
		wantOutcome(t, g, requestFor(t, "/"+mint(body)+"/x.ts", nil), want)
	}
	for body, want := range map[string]string{"": "download_not_allowed", `{"downloadable":true}`: ""} {
		wantOutcome(t, g, requestFor(t, "/"+mint(body)+"/downloads/default.mp4", nil), want)
	}
	compact := mint("")
	claims := must(token.Parse(compact)).Unverified()
	call("DELETE", "keys/"+claims.KeyID, "", nil)
	wantOutcome(t, g, requestFor(t, "/"+compact+"/x.ts", nil), "key_unknown")
	if key, _ := api.app.state.Key(claims.KeyID); !key.Revoked || state.MaxTokenLifetime < 24*time.Hour {
		t.Errorf("the key is %+v", key)
	}
}

// checkRules accepts valid rules, with a warning if they probably do something else than the
// client wants, and refuses rules that the gate would refuse.
func TestCheckRules(t *testing.T) {
	t.Parallel()
	const (
		blockAll, allowAll = `{"type":"any","action":"block"}`, `{"type":"any","action":"allow"}`
		allowGB, blockGB   = `{"type":"ip.geoip.country","action":"allow","country":["GB"]}`, `{"type":"ip.geoip.country","action":"block","country":["GB"]}`
		allowV4, blockV4   = `{"type":"ip.src","action":"allow","ip":["192.0.2.1"]}`, `{"type":"ip.src","action":"block","ip":["192.0.2.1"]}`
		allowV6, blockV6   = `{"type":"ip.src","action":"allow","ip":["2001:db8::/32"]}`, `{"type":"ip.src","action":"block","ip":["2001:db8::/32"]}`

		// Words of the warnings.
		open, country, v6, nowhere = "restricts nothing", "geoip_database", "IPv6", "matches nobody"
		asn, anonymous             = "asn_database", "anonymous_database"
	)
	countries := geo.New(zap.NewNop())
	if err := countries.Open(geo.Country, "testdata/country.mmdb"); err != nil {
		t.Fatal(err)
	}
	for want, lists := range map[string][]string{ // the warnings by the rules; that of the country only without a database
		"": {
			``, blockAll, blockV6, blockV4 + `,` + blockV6, `{"type":"ip.src","action":"block","ip":["192.0.2.0/24","2001:db8::/32"]}`,
			`{"type":"any","action":"block","country":["GB"]}`, // ignored in a rule of this type
		},
		country: {allowGB + `,` + blockAll, blockGB, blockGB + `,` + allowAll},
		open:    {allowAll},
		country + "," + nowhere: {
			`{"type":"ip.geoip.country","action":"block","country":["UK"]}`,
			`{"type":"ip.geoip.country","action":"block","country":["GB","ZZ"]}`,
			`{"type":"ip.geoip.country","action":"block","country":["EU","XK"]}`, // XK is Kosovo
		},
		open + "," + country:            {allowGB, allowGB + `,` + allowAll, blockGB + `,` + allowV6},
		asn:                             {`{"type":"ip.geoip.asnum","action":"block","asn":[64500]}`},
		anonymous:                       {`{"type":"ip.anonymous","action":"block"}`},
		v6:                              {allowV4 + `,` + blockAll, blockV4, `{"type":"ip.src","action":"block","ip":["::ffff:192.0.2.1"]}`},
		open + "," + v6 + "," + country: {allowV4 + `,` + allowGB},
	} {
		for _, list := range lists {
			for _, app := range []*App{{geo: geo.New(zap.NewNop())}, {geo: countries}} {
				words := strings.FieldsFunc(want, func(r rune) bool { return r == ',' })
				words = slices.DeleteFunc(words, func(word string) bool { return word == country && app.geo.Has(geo.Country) })
				got, err := app.checkRules(json.RawMessage(`[` + list + `]`))
				for _, word := range words {
					if !slices.ContainsFunc(got, func(warning string) bool { return strings.Contains(warning, word) }) {
						t.Errorf("%s: no warning with %q: %q", list, word, got)
					}
				}
				if err != nil || len(got) != len(words) {
					t.Errorf("%s: %d warnings, %v, want %d: %q", list, len(got), err, len(words), got)
				}
			}
		}
	}
	if got, err := (&App{geo: countries}).checkRules(nil); err != nil || got != nil {
		t.Errorf("without rules: %q, %v", got, err)
	}
	for _, refused := range []string{"{}", "[null]", `[{"type":"ip.src","action":"block"}]`, `[{"type":"ip.geoip.asnum","action":"allow"}]`} {
		if warnings, err := new(App).checkRules(json.RawMessage(refused)); err == nil || warnings != nil {
			t.Errorf("checkRules(%s) = %q, %v, want an error", refused, warnings, err)
		}
	}
}
