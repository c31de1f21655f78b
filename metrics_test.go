package signedplayback

import (
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/signed-playback/caddy-signed-playback/internal/metrics"
	"github.com/signed-playback/caddy-signed-playback/internal/playbackpath"
	"github.com/signed-playback/caddy-signed-playback/internal/refusal"
	"github.com/signed-playback/caddy-signed-playback/internal/store"
	"github.com/signed-playback/caddy-signed-playback/internal/verification"
	"github.com/signed-playback/caddy-signed-playback/internal/worklimit"
	"github.com/signed-playback/caddy-signed-playback/manifest"
	"github.com/signed-playback/caddy-signed-playback/token"
)

// requestLabels are the labels of requests_total.
type requestLabels struct{ Result, Reason, Kind string }

// countedRequests returns the requests that were counted so far.
func countedRequests(t *testing.T, m *metrics.Metrics) map[requestLabels]float64 {
	t.Helper()
	counted := make(map[requestLabels]float64)
	for labels, value := range countersOf(t, m, "requests_total") {
		counted[requestLabels{Kind: labels[0], Reason: labels[1], Result: labels[2]}] = value
	}
	return counted
}

// countersOf returns the counters and histograms of a family by the values of
// their labels, in the order of the labels' names.
func countersOf(t *testing.T, m *metrics.Metrics, name string) map[[3]string]float64 {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	for range 2 { // two gates of one config
		if err := m.Register(registry); err != nil {
			t.Fatal(err)
		}
	}
	return countersIn(registry, name)
}

func countersIn(registry *prometheus.Registry, name string) map[[3]string]float64 {
	counters := make(map[[3]string]float64)
	for _, family := range must(registry.Gather()) {
		if family.GetName() != "caddy_signed_playback_"+name {
			continue
		}
		for _, metric := range family.GetMetric() {
			var values [3]string
			for i, label := range metric.GetLabel() {
				values[i] = label.GetValue()
			}
			counters[values] = metric.GetCounter().GetValue() + float64(metric.GetHistogram().GetSampleCount())
		}
	}
	return counters
}

// risen returns by how much counters have risen, without those that have not.
func risen[L comparable](before, after map[L]float64) map[L]float64 {
	rise := make(map[L]float64)
	for labels, value := range after {
		if value != before[labels] {
			rise[labels] = value - before[labels]
		}
	}
	return rise
}

// Each request is counted once, by what became of it at the end: an operator who
// adds the results up gets the requests, and a check that only reports is never
// taken for one that refuses.
func TestRequestsAreCountedOnce(t *testing.T) {
	t.Parallel()
	app := testApp()
	app.Videos["reported"] = VideoSettings{AllowedOrigins: []string{"example.com"}, Enforcement: Enforcement{ReportOnly: []string{"origins"}}}
	g := newGate(t, app, new(Gate))
	playlist := reply(200, originAnswer)
	page := reply(200, "<html>", "Content-Type: text/html")
	downloadable := signed(func(c *token.Claims) { c.Downloadable = true })
	expired := signed(func(c *token.Claims) { c.ExpiresAt = testTime })
	elsewhere := with("Origin", "https://evil.com")
	for _, tc := range []struct {
		name   string
		target string
		change func(*http.Request)
		origin func(http.ResponseWriter, *http.Request) error
		want   requestLabels
	}{
		{"manifest", "/" + plainToken() + "/manifest/video.m3u8", nil, playlist, requestLabels{"allowed", "", "manifest"}},
		{"segment", "/" + plainToken() + "/video/1.ts", nil, page, requestLabels{"allowed", "", "segment"}},
		{"iframe", "/" + plainToken(), nil, page, requestLabels{"allowed", "", "iframe"}},
		{"download", "/" + downloadable + "/downloads/default.mp4", nil, page, requestLabels{"allowed", "", "download"}},
		{"an error of the origin", "/" + plainToken() + "/video/1.ts", nil, reply(500, ""), requestLabels{"allowed", "", "segment"}},
		{"an origin that is away", "/" + plainToken() + "/video/1.ts", nil, func(http.ResponseWriter, *http.Request) error {
			return caddyhttp.Error(http.StatusBadGateway, errors.New("connection refused"))
		}, requestLabels{"allowed", "", "segment"}},
		{"preflight", "/" + plainToken() + "/manifest/video.m3u8", method("OPTIONS"), nil, requestLabels{"preflight", "", "manifest"}},
		{"preflight of a token that has expired", "/" + expired + "/video/1.ts", method("OPTIONS"), nil, requestLabels{"preflight", "", "segment"}},
		{"refused", "/" + expired + "/video/1.ts", nil, nil, requestLabels{"refused", "token_expired", "segment"}},
		{"refused before the path is looked at", "/" + plainToken() + "/video/1.ts", method("POST"), nil, requestLabels{"refused", "method_not_allowed", "other"}},
		{"reported", "/" + signedFor("reported") + "/video/1.ts", elsewhere, page, requestLabels{"would_refuse", "origin_not_allowed", "segment"}},
		{"refused by what the origin says", "/" + plainToken() + "/manifest/video.m3u8", nil, page, requestLabels{"refused", "manifest_invalid", "manifest"}},
		{"reported, then refused", "/" + signedFor("reported") + "/manifest/video.m3u8", elsewhere, page, requestLabels{"refused", "manifest_invalid", "manifest"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := countedRequests(t, g.app.metrics)
			_ = g.ServeHTTP(httptest.NewRecorder(), requestFor(t, tc.target, tc.change), caddyhttp.HandlerFunc(tc.origin))
			if diff := cmp.Diff(map[requestLabels]float64{tc.want: 1}, risen(before, countedRequests(t, g.app.metrics))); diff != "" {
				t.Errorf("counted (-want +got):\n%s", diff)
			}
		})
	}
}

// A client chooses methods, paths, tokens and headers. If one of them became a
// label, a flood of new ones would fill the memory of the gate and of the scraper.
// So no request adds a series to those that exist from the start, except for
// preflights.
func TestLabelsAreClosed(t *testing.T) {
	t.Parallel()
	app := testApp()
	app.Videos["public"] = VideoSettings{RequireSignedURLs: new(false), Enforcement: Enforcement{Enforce: new(false)}}
	g := newGate(t, app, new(Gate))
	known := map[string]map[[3]string]float64{"requests_total": nil, "token_verifications_total": nil}
	for family := range known {
		known[family] = countersOf(t, g.app.metrics, family)
	}
	for _, tc := range refused {
		ask(t, g, requestFor(t, tc.target(), tc.change))
	}
	next := randomPlaybacks()
	for range 500 {
		ask(t, g, next().request(t))
	}
	for family, atStart := range known {
		for labels := range countersOf(t, g.app.metrics, family) {
			if _, ok := atStart[labels]; !ok && (labels[1] != "" || labels[2] != "preflight" || !slices.Contains(playbackpath.Kinds[:], playbackpath.Kind(labels[0]))) {
				t.Errorf("%s has the series %q", family, labels)
			}
		}
	}
}

// Each config has a registry of its own. Collectors that were registered only
// with the first one would vanish with a reload, and new ones would start at 0.
func TestMetricsSurviveReloads(t *testing.T) {
	t.Parallel()
	for config := range 2 {
		ctx := must(provisionContext(&caddy.Config{AppsRaw: caddy.ModuleMap{appID: caddyconfig.JSON(new(App), nil)}}))
		app := must(ctx.App(appID)).(*App)
		t.Cleanup(func() { _ = app.Cleanup() })
		app.metrics.CountURIs(manifest.Stats{Outside: 1})
		if n := countersIn(ctx.GetMetricsRegistry(), "manifest_uris_total")[[3]string{"outside"}]; n < float64(config+1) {
			t.Errorf("config %d: %v URIs outside are counted, want those of all configs", config, n)
		}
		app.metrics.CountRequest(refusal.Refused, refusal.TooEarly, playbackpath.KindOther)
		refused := uint64(0)
		for _, hour := range app.metrics.Refusals.Last(time.Now()).Hours {
			refused += hour.Refused[string(refusal.TooEarly)]
		}
		if refused < uint64(config+1) {
			t.Errorf("config %d: the history has %d refusals, want those of all configs", config, refused)
		}
	}
}

// A refusal that is only reported must be seen when it comes for the first time:
// the alert for it looks at what a series has risen by, and a series that begins
// with that request has not risen. What cannot be has no series.
func TestRequestsBeginAtZero(t *testing.T) {
	t.Parallel()
	want := make(map[requestLabels]float64)
	for _, k := range playbackpath.Kinds {
		want[requestLabels{"allowed", "", string(k)}] = 0
		for _, why := range reasonConstants(t) {
			want[requestLabels{"refused", why, string(k)}] = 0
			if passesReported(why) && why != "manifest_invalid" {
				want[requestLabels{"would_refuse", why, string(k)}] = 0
			}
		}
	}
	if diff := cmp.Diff(want, countedRequests(t, metrics.New())); diff != "" {
		t.Errorf("the series of a server that nobody has asked yet (-want +got):\n%s", diff)
	}
}

// What tokens cost must be told apart: a token that is remembered, one that is
// verified, and garbage, which nobody verifies. Else a flood of garbage looks
// like a cache that is too small.
func TestVerificationsAreCounted(t *testing.T) {
	t.Parallel()
	g := newGate(t, new(App), new(Gate))
	const hit, miss = "token_cache_hits_total", "token_cache_misses_total"
	limited := from("192.0.2.1")
	g.app.verifier.Limit.Failures.Now = g.app.now // which stands still, so that no budget comes back
	for range verification.FailedBurst {
		g.app.verifier.Limit.Failures.Spend(worklimit.ClientNetworks{Own: netip.MustParsePrefix("192.0.2.0/24")})
	}
	// No other test has this one: the cache is shared.
	fresh := signed(func(c *token.Claims) { c.ExpiresAt = testTime.Add(47 * time.Minute) })
	forged := must(token.Sign(token.Claims{VideoID: "demo", ExpiresAt: testTime.Add(time.Hour)}, strangerKey()))
	for _, tc := range []struct {
		name   string
		token  string
		change func(*http.Request)
		want   []string // what rises by 1
	}{
		{"a token for the first time", fresh, nil, []string{miss, "ok", "verification_seconds"}},
		{"for the second time", fresh, nil, []string{hit}},
		{"for the third time, from a network that is limited", fresh, limited, []string{hit}},
		{"a forged token", forged, nil, []string{miss, "signature_invalid", "verification_seconds"}},
		{"a token with rules that nobody understands", signedWithRules("null"), nil, []string{miss, "rules_invalid", "verification_seconds"}},
		{"from a network that is limited", forged, limited, []string{miss, "verification_limited"}},
		{"an unknown key", encoded(`{"alg":"RS256","kid":"k2"}`, `{}`), nil, []string{miss}},
		{"garbage", "a.b.c", nil, []string{miss}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			count := func() map[string]float64 {
				counted := make(map[string]float64)
				for _, name := range []string{hit, miss, "verification_seconds", "token_verifications_total"} {
					for labels, value := range countersOf(t, g.app.metrics, name) {
						if labels[0] != "" {
							counted[labels[0]] = value // only the verifications have a label
						} else {
							counted[name] = value
						}
					}
				}
				return counted
			}
			want := make(map[string]float64)
			for _, name := range tc.want {
				want[name] = 1
			}
			before := count()
			ask(t, g, requestFor(t, "/"+tc.token+"/video/1.ts", tc.change))
			if diff := cmp.Diff(want, risen(before, count())); diff != "" {
				t.Errorf("counted (-want +got):\n%s", diff)
			}
		})
	}
}

// gaugesOf returns the gauges of an app by their names, less the prefix.
func gaugesOf(t *testing.T, app *App) map[string]float64 {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	if err := registerGauges(registry, app); err != nil {
		t.Fatal(err)
	}
	gauges := make(map[string]float64)
	for _, family := range must(registry.Gather()) {
		gauges[family.GetName()[len("caddy_signed_playback_"):]] = family.GetMetric()[0].GetGauge().GetValue()
	}
	return gauges
}

// A gate has the gauges of what its config has, and no others: an alert about a
// geo database or a key set must not fire where there is none.
func TestGaugesFollowTheConfig(t *testing.T) {
	t.Parallel()
	always := []string{"keys", "manifest_memory_bytes", "revocations", "store_up", "token_cache_bytes", "token_cache_entries"}
	for _, tc := range []struct {
		name string
		app  *App
		want []string
	}{
		{"nothing", new(App), nil},
		{"geo database", &App{GeoIPDatabase: "testdata/country.mmdb"}, []string{"geoip_build_timestamp_seconds", "geoip_last_reload_successful"}},
		{"ASN database", &App{ASNDatabase: "testdata/asn.mmdb"}, []string{"asn_build_timestamp_seconds", "asn_last_reload_successful"}},
		{"anonymous database", &App{AnonymousDatabase: "testdata/anonymous.mmdb"}, []string{"anonymous_build_timestamp_seconds", "anonymous_last_reload_successful"}},
		{"remote key set", &App{JWKSURL: "http://127.0.0.1:1/" + t.Name()}, []string{"jwks_last_success_timestamp_seconds"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			app, _, err := provisioned(t, tc.app, nil)
			if err != nil {
				t.Fatal(err)
			}
			got := slices.Sorted(maps.Keys(gaugesOf(t, app)))
			if diff := cmp.Diff(slices.Sorted(slices.Values(slices.Concat(always, tc.want))), got); diff != "" {
				t.Errorf("gauges (-want +got):\n%s", diff)
			}
		})
	}
}

// The gauges are about the database in force, which is not always that of the
// file: an updater that writes a damaged file must raise an alert. The app
// watches the file from Start to Stop.
func TestGaugesOfTheGeoDatabase(t *testing.T) {
	t.Parallel()
	old, updated := must(os.ReadFile("testdata/country.mmdb")), must(os.ReadFile("testdata/updated.mmdb"))
	path := writeFile(t, "geo.mmdb", string(old))
	app, _, err := provisioned(t, &App{GeoIPDatabase: path}, nil)
	if err != nil {
		t.Fatal(err)
	}
	app.state.Start() // outside of the bubble, because it does not end with the app
	const oldEpoch, updatedEpoch = 1767225600, 1767312000
	synctest.Test(t, func(t *testing.T) {
		if err := app.Start(); err != nil {
			t.Fatal(err)
		}
		for _, step := range []struct {
			name   string
			change func()
			built  float64
			good   float64
		}{
			{"at start", func() {}, oldEpoch, 1},
			{"cut off", replacing(t, path, updated[:len(updated)/2]), oldEpoch, 0},
			{"updated", replacing(t, path, updated), updatedEpoch, 1},
			{"empty", replacing(t, path, nil), updatedEpoch, 0},
			{"back", replacing(t, path, old), oldEpoch, 1},
			{"updated after Stop", func() {
				if err := app.Stop(); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				replacing(t, path, updated)()
			}, oldEpoch, 1},
		} {
			step.change()
			<-time.After(2 * time.Second)
			synctest.Wait()
			got := gaugesOf(t, app)
			if got["geoip_build_timestamp_seconds"] != step.built || got["geoip_last_reload_successful"] != step.good {
				t.Errorf("%s: built at %v, reload successful %v, want %v and %v", step.name,
					got["geoip_build_timestamp_seconds"], got["geoip_last_reload_successful"], step.built, step.good)
			}
		}
	})
}

// replacing returns a function that replaces a file as updaters do.
func replacing(t *testing.T, path string, data []byte) func() {
	return func() {
		t.Helper()
		if err := os.WriteFile(path+".new", data, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
}

// A key server that is away must not look like one that has just answered.
func TestGaugesOfTheRemoteKeySet(t *testing.T) {
	t.Parallel()
	server := newKeyServer(t)
	server.body = keySetOf(testKey())
	app, _, err := provisioned(t, &App{JWKSURL: server.URL}, nil)
	if err != nil {
		t.Fatal(err)
	}
	load := func(status int) (keys, loadedAt float64) {
		t.Helper()
		server.status = status
		if err := app.keys.Remote.Load(); (err == nil) != (status == http.StatusOK) {
			t.Fatalf("loading keys from a server with status %d = %v", status, err)
		}
		gauges := gaugesOf(t, app)
		return gauges["keys"], gauges["jwks_last_success_timestamp_seconds"]
	}
	if keys, at := load(http.StatusServiceUnavailable); keys != 0 || at != 0 {
		t.Errorf("never loaded: %v keys, loaded at %v, want none and 0", keys, at)
	}
	before := time.Now().Unix()
	keys, loadedAt := load(http.StatusOK)
	if keys != 1 || loadedAt < float64(before) || loadedAt > float64(time.Now().Unix()) {
		t.Errorf("loaded: %v keys, loaded at %v, want 1 and the present", keys, loadedAt)
	}
	if keys, at := load(http.StatusServiceUnavailable); keys != 1 || at != loadedAt {
		t.Errorf("unavailable: %v keys, loaded at %v, want 1 and %v", keys, at, loadedAt)
	}
}

// The gauge of the store follows the store, so that its alert ends with the
// outage; that of the keys does not count revoked ones.
func TestGaugesOfTheStore(t *testing.T) {
	t.Parallel()
	m := newMemStore()
	s := stateOf(t, m)
	app, _, err := provisioned(t, &App{KeyFiles: []string{writeFile(t, "key.json", publicJWK(testKey()))}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	useState(t, app, s)
	check := func(what string, up, keys float64) {
		t.Helper()
		got := gaugesOf(t, app)
		if got["store_up"] != up || got["keys"] != keys {
			t.Errorf("%s: store_up %v and %v keys, want %v and %v", what, got["store_up"], got["keys"], up, keys)
		}
	}
	s.Sync(t.Context())
	check("at start", 1, 1)
	m.plant(store.Keys, "made", liveKey("made"))
	s.Sync(t.Context())
	check("a key is made", 1, 2)
	m.setDown(true)
	s.Sync(t.Context())
	check("the store goes away", 0, 2)
	m.setDown(false)
	m.plant(store.Keys, "made", revokedKey("made"))
	s.Sync(t.Context())
	check("it comes back with a revocation", 1, 1)
}

// The history counts each refusal by its reason. It counts neither allowed requests nor preflights.
func TestRefusalsAreCountedByReason(t *testing.T) {
	t.Parallel()
	g := newGate(t, new(App), new(Gate))
	g.app.metrics = metrics.New()
	for path, times := range map[string]int{"/demo/x.ts": 3, "/a//b": 2, "/" + plainToken() + "/x.ts": 5} {
		for range times {
			ask(t, g, requestFor(t, path, nil))
		}
	}
	ask(t, g, requestFor(t, "/demo/x.ts", method("OPTIONS")))
	hours := g.app.metrics.Refusals.Last(time.Now()).Hours
	refused := make(map[string]uint64)
	for _, hour := range hours {
		for why, n := range hour.Refused {
			refused[why] += n
		}
	}
	if diff := cmp.Diff(map[string]uint64{"token_required": 3, "path_invalid": 2}, refused); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// The description of the API knows every reason, and no other.
func TestOpenAPIHasEveryReason(t *testing.T) {
	t.Parallel()
	var file struct {
		Components struct {
			Schemas struct {
				Reason struct{ Enum []refusal.Reason }
			}
		}
	}
	if err := json.Unmarshal(must(os.ReadFile("internal/controlapi/openapi.json")), &file); err != nil {
		t.Fatal(err)
	}
	sorted := cmpopts.SortSlices(func(a, b refusal.Reason) bool { return a < b })
	if diff := cmp.Diff(refusal.Reasons(), file.Components.Schemas.Reason.Enum, sorted); diff != "" {
		t.Errorf("(-gate +file):\n%s", diff)
	}
}
