package signedplayback

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/modules/filestorage"
	"github.com/caddyserver/certmagic"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"

	"github.com/signed-playback/caddy-signed-playback/internal/accessrules"
	"github.com/signed-playback/caddy-signed-playback/internal/jwks"
	"github.com/signed-playback/caddy-signed-playback/internal/metrics"
	"github.com/signed-playback/caddy-signed-playback/internal/sessions"
	"github.com/signed-playback/caddy-signed-playback/internal/state"
	"github.com/signed-playback/caddy-signed-playback/internal/store"
	"github.com/signed-playback/caddy-signed-playback/internal/store/storetest"
	"github.com/signed-playback/caddy-signed-playback/internal/verification"
	"github.com/signed-playback/caddy-signed-playback/internal/weborigin"
	"github.com/signed-playback/caddy-signed-playback/token"
)

// memStore is a store in memory with one node.
type memStore struct {
	fleet *storetest.Fleet
	*storetest.Node
}

func newMemStore() *memStore {
	fleet := storetest.NewFleet()
	return &memStore{fleet, fleet.Join()}
}

// downStore returns a store that does not answer.
func downStore() *memStore {
	m := newMemStore()
	m.setDown(true)
	return m
}

// plant is a change by another node.
func (m *memStore) plant(collection store.Collection, id, data string) {
	m.fleet.Write(must(store.NewName(collection, id)), data)
}

func (m *memStore) damage(collection store.Collection, id string) {
	m.plant(collection, id, storetest.Damaged)
}

func (m *memStore) setDown(down bool) {
	m.Intercept(map[bool]storetest.Step{true: storetest.Down}[down], nil)
}

// liveKey is the stored document of a key that verifies: testKey under another
// id, because making keys is slow.
func liveKey(id string) string {
	return fmt.Sprintf(`{"id":%q,"created":"2026-01-02T03:04:05Z","jwk":%s}`, id, must(keyOf(id).Public().JWK()))
}

// revokedKey is the stored document of a revocation.
func revokedKey(id string) string {
	return fmt.Sprintf(`{"id":%q,"revoked":"2026-01-02T03:04:05Z"}`, id)
}

func keyOf(id string) *token.SigningKey {
	return must(token.ParseSigningKey([]byte(testKey().PEM()), id))
}

// stateOf returns a State that has read a store and does not follow it.
func stateOf(t testing.TB, m *memStore) *state.State {
	t.Helper()
	m.fleet.Restore(m.fleet.Backup()) // another state may have heard of it
	s := state.New(state.Config{
		Store: m.Node, Logger: zap.NewNop, CountError: metrics.Process().CountStoreError,
		Now: func() time.Time { return testTime },
	})
	t.Cleanup(s.Close)
	return s
}

// useState gives an app another state for the length of a test.
func useState(t testing.TB, app *App, s *state.State) {
	t.Helper()
	before := app.state
	use := func(s *sharedState) {
		app.state, app.keys.State, app.verifier.CatchUp = s, s.State, s.CatchUp
	}
	use(&sharedState{State: s})
	t.Cleanup(func() { use(before) })
}

// A keyring finds keys of the config, then of the control API, then of the remote
// set, and never a key that is revoked, damaged, or unknown. Where a key may be
// that cannot be read now, the lookup is not final.
func TestKeyring(t *testing.T) {
	t.Parallel()
	m := newMemStore()
	stranger := must(token.ParseSigningKey([]byte(otherKey().PEM()), "fixed"))
	m.plant(store.Keys, "stored", liveKey("stored"))
	m.plant(store.Keys, "fixed", fmt.Sprintf(`{"id":"fixed","jwk":%s}`, must(stranger.Public().JWK())))
	m.plant(store.Keys, "fixed-revoked", revokedKey("fixed-revoked"))
	m.plant(store.Keys, "remote-revoked", revokedKey("remote-revoked"))
	m.damage(store.Keys, "fixed-damaged")
	fixed := must(token.NewKeySet(keyOf("fixed").Public(), keyOf("fixed-revoked").Public(), keyOf("fixed-damaged").Public(), keyOf("fixed-only").Public()))
	keys := newKeyServer(t)
	keys.body = keySetOf(keyOf("remote"), keyOf("remote-revoked"), keyOf("fixed-damaged"), keyOf("stored"))
	loaded, notLoaded := remoteSet(t, keys.URL), remoteSet(t, keys.URL)
	if err := loaded.Load(); err != nil {
		t.Fatal(err)
	}
	type verdict struct{ Found, Authoritative, MayAppear, Revocable bool }
	for _, tc := range []struct {
		name, id string
		remote   *jwks.Set
		unknown  bool    // the keys of the store have not been read
		want     verdict // while the store is unavailable, only a revocation is final
	}{
		{"of the config", "fixed-only", nil, false, verdict{true, true, true, true}},
		{"of the config and the store", "fixed", nil, false, verdict{true, true, true, true}},
		{"of the config, revoked", "fixed-revoked", nil, false, verdict{false, true, false, true}},
		{"of the config, its object damaged", "fixed-damaged", nil, false, verdict{false, false, false, true}},
		{"of the config and the remote set, its object damaged", "fixed-damaged", loaded, false, verdict{false, false, false, true}},
		{"of the store", "stored", nil, false, verdict{true, true, true, true}},
		{"of the remote set", "remote", loaded, false, verdict{true, true, true, true}},
		{"of the remote set, revoked", "remote-revoked", loaded, false, verdict{false, true, false, true}},
		{"of the remote set, not loaded", "remote", notLoaded, false, verdict{false, false, true, false}},
		{"revoked, the remote set not loaded", "remote-revoked", notLoaded, false, verdict{false, true, false, true}},
		{"of nobody", "x", nil, false, verdict{false, true, true, false}},
		{"of nobody, with a remote set", "x", loaded, false, verdict{false, true, true, false}},
		{"of nobody, and no name of the store", "a/b", nil, false, verdict{false, true, false, false}},
		{"of the config, the store unknown", "fixed-only", nil, true, verdict{}},
		{"of the remote set, the store unknown", "remote", loaded, true, verdict{}},
		{"of nobody, the store unknown", "x", nil, true, verdict{}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m.setDown(tc.unknown)
			k := &verification.Keyring{Fixed: fixed, State: stateOf(t, m), Remote: tc.remote}
			for range 2 {
				got := verdict{k.Lookup(tc.id) != nil, k.Authoritative(tc.id), k.MayAppear(tc.id), k.Revocable(tc.id)}
				if diff := cmp.Diff(tc.want, got); diff != "" {
					t.Errorf("%s, unavailable: %t (-want +got):\n%s", tc.id, k.State.Unavailable(), diff)
				}
				m.setDown(true)
				k.State.Sync(t.Context())
				tc.want.Authoritative = tc.want.Revocable && !tc.want.Found && !strings.HasSuffix(tc.id, "-damaged")
			}
		})
	}
	m.setDown(false)
	k := &verification.Keyring{Fixed: fixed, State: stateOf(t, m), Remote: loaded}
	if !k.Lookup("fixed").Equal(keyOf("fixed").Public()) {
		t.Error("the key of the config does not win over that of the store")
	}
	if got := k.Count(); got != 4 { // fixed, fixed-only, stored, remote
		t.Errorf("%d keys verify, want 4", got)
	}
	m.setDown(true)
	k.State = stateOf(t, m)
	if got := k.Count(); got != 0 {
		t.Errorf("%d keys verify while the store is unknown, want none", got)
	}
}

func remoteSet(t *testing.T, address string) *jwks.Set {
	t.Helper()
	set, err := jwks.New(address, time.Hour, zap.NewNop)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(set.Stop)
	return set
}

// A token of a revoked key is refused, and where nothing is final the viewer may
// try again.
func TestTokensOfKeysInTheStore(t *testing.T) {
	m := newMemStore()
	m.plant(store.Keys, "live", liveKey("live"))
	m.plant(store.Keys, "gone", revokedKey("gone"))
	m.damage(store.Keys, "broken")
	g := newGate(t, new(App), new(Gate))
	s := stateOf(t, m)
	useState(t, g.app, s)
	s.Start()
	reasonFor := func(keyID string) string {
		t.Helper()
		compact := must(token.Sign(token.Claims{VideoID: "demo", ExpiresAt: testTime.Add(time.Hour)}, keyOf(keyID)))
		return ask(t, g, requestFor(t, "/"+compact+"/x.ts", nil)).reason
	}
	want := map[string]string{"live": "", "k1": "", "gone": "key_unknown", "broken": "state_unavailable", "none": "key_unknown"}
	check := func(what string) {
		t.Helper()
		for keyID, want := range want {
			if got := reasonFor(keyID); got != want {
				t.Errorf("%s: a token of the key %q is refused with %q, want %q", what, keyID, got, want)
			}
		}
	}
	check("at first")
	m.plant(store.Keys, "new", liveKey("new")) // by another node, since the last poll
	want["new"] = ""
	check("after another node has made a key")
	if err := s.Revoke(t.Context(), "k1"); err != nil { // the key of the config
		t.Fatal(err)
	}
	want["k1"] = "key_unknown"
	check("after a revocation")
	useState(t, g.app, stateOf(t, downStore()))
	for keyID := range want {
		want[keyID] = "state_unavailable"
	}
	check("while nothing is known")
}

// Settings of the control API replace those for all videos, and settings of the
// config replace both. A damaged video is closed, not one without settings, and
// while the store is unavailable a gate goes by what it knows.
func TestGateReadsSettingsOfTheStore(t *testing.T) {
	t.Parallel()
	m := newMemStore()
	m.plant(store.Videos, "open", `{"uid":"open","requireSignedURLs":false}`)
	m.plant(store.Videos, "site", `{"uid":"site","requireSignedURLs":false,"allowedOrigins":["example.com"]}`)
	m.plant(store.Videos, "anywhere", `{"uid":"anywhere","requireSignedURLs":false,"allowedOrigins":[]}`)
	m.plant(store.Videos, "configured", `{"uid":"configured","requireSignedURLs":false}`)
	m.damage(store.Videos, "damaged")
	m.damage(store.Videos, "damaged-and-configured")
	g := newGate(t, &App{
		VideoSettings: VideoSettings{AllowedOrigins: []string{"default.example"}},
		Videos: map[string]VideoSettings{
			"configured": {RequireSignedURLs: new(true)}, "damaged-and-configured": {RequireSignedURLs: new(false)},
		},
	}, new(Gate))
	s := stateOf(t, m)
	useState(t, g.app, s)
	check := func(target, origin, want string) {
		t.Helper()
		wantOutcome(t, g, requestFor(t, target, with("Origin", origin)), want)
	}
	check("/open/x.ts", "https://default.example", "")
	check("/open/x.ts", "https://example.com", "origin_not_allowed")
	check("/site/x.ts", "https://example.com", "")
	check("/site/x.ts", "https://default.example", "origin_not_allowed")
	check("/anywhere/x.ts", "https://evil.example", "")
	check("/unset/x.ts", "https://default.example", "token_required")
	for range 2 {
		check("/configured/x.ts", "https://default.example", "token_required")
		check("/damaged-and-configured/x.ts", "https://default.example", "")
		check("/damaged/x.ts", "https://default.example", "state_unavailable")
		check("/"+signedFor("damaged")+"/x.ts", "https://default.example", "state_unavailable")
		check("/open/x.ts", "https://default.example", "")
		m.setDown(true)
		s.Sync(t.Context())
	}
	check("/new/x.ts", "https://default.example", "state_unavailable")
	check("/"+signedFor("new2")+"/x.ts", "https://default.example", "state_unavailable")
	check("/configured/x.ts", "https://default.example", "token_required")
	g.app.defaults.requireSignedURLs = false
	check("/damaged/x.ts", "https://default.example", "state_unavailable")
}

func TestMergeInto(t *testing.T) {
	t.Parallel()
	site, other := must(weborigin.Compile([]string{"example.com"})), must(weborigin.Compile([]string{"example.org"}))
	private := settings{requireSignedURLs: true, origins: originPolicy{allowed: site, allowMissing: true}}
	public := settings{}
	rules, otherRules := must(accessrules.CompileClaim([]byte(blocksAll))), must(accessrules.CompileClaim([]byte(needsAddress)))
	for _, tc := range []struct {
		name     string
		video    *state.Video
		defaults settings
		want     settings
	}{
		{"nothing is set", nil, private, private},
		{"nothing is set, public by default", nil, public, public},
		{"nothing that decides is set", &state.Video{}, private, private},
		{"made public", &state.Video{RequireSignedURLs: new(false)}, private, settings{requireSignedURLs: false, origins: private.origins}},
		{"made private", &state.Video{RequireSignedURLs: new(true)}, public, settings{requireSignedURLs: true, origins: originPolicy{}}},
		{"private as it is", &state.Video{RequireSignedURLs: new(true)}, private, private},
		{"other origins", &state.Video{OriginsSet: true, AllowedOrigins: other}, private, settings{requireSignedURLs: true, origins: originPolicy{other, true}}},
		{"any origin", &state.Video{OriginsSet: true}, private, settings{requireSignedURLs: true, origins: originPolicy{nil, true}}},
		{"origins where there were none", &state.Video{OriginsSet: true, AllowedOrigins: other}, public, settings{requireSignedURLs: false, origins: originPolicy{other, false}}},
		{"other rules", &state.Video{AccessRules: otherRules}, settings{rules: rules}, settings{rules: otherRules}},
		{"no rules", &state.Video{AccessRules: accessrules.List{}}, settings{rules: rules}, settings{rules: accessrules.List{}}},
		{"the rules of all videos", &state.Video{}, settings{rules: rules}, settings{rules: rules}},
		{"all of it", &state.Video{RequireSignedURLs: new(false), OriginsSet: true, AllowedOrigins: other}, private, settings{requireSignedURLs: false, origins: originPolicy{other, true}}},
	} {
		if got := mergeInto(tc.defaults, tc.video); !reflect.DeepEqual(got, tc.want) {
			t.Errorf("%s: mergeInto(%+v) = %+v, want %+v", tc.name, tc.defaults, got, tc.want)
		}
	}
}

// A state uses the storage of the config that started last, never that of one
// that has ended, and that of a config which is only being loaded when there is
// no other.
func TestStorageOfTheConfigInForce(t *testing.T) {
	t.Parallel()
	newConfig := func() *App { return &App{storage: &certmagic.FileStorage{}} }
	a, b, c := newConfig(), newConfig(), newConfig()
	s := &sharedState{poolKey: t.Name(), configs: []*App{a}, tracker: new(sessions.Tracker)}
	withdraw := func(config *App) { s.configs = without(s.configs, config) }
	for i, tc := range []struct {
		do   func()
		want *App
	}{
		{func() { s.use(a) }, a},
		{func() { s.offer(b) }, a},  // being loaded
		{func() { withdraw(b) }, a}, // and has failed
		{func() { s.offer(c) }, a},
		{func() { s.use(c) }, c},
		{func() { s.offer(b) }, c},
		{func() { withdraw(a) }, c},
		{func() { s.use(b) }, b},
		{func() { s.use(b) }, b},
		{func() { withdraw(c) }, b},
		{func() { s.offer(a) }, b},
		{func() { withdraw(b) }, a},
	} {
		tc.do()
		if s.storage() != tc.want.storage {
			t.Fatalf("after step %d another storage is in use", i)
		}
	}
	if len(s.configs) != 1 {
		t.Errorf("%d configs are kept, want 1", len(s.configs))
	}
}

// loaded provisions an app on a storage in a folder, as a config does that is
// being loaded.
func loaded(t *testing.T, folder string, app *App) *App {
	t.Helper()
	ctx, err := provisionContext(&caddy.Config{
		StorageRaw: caddyconfig.JSONModuleObject(filestorage.FileStorage{Root: folder}, "module", "file_system", nil),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := app.Provision(ctx); err != nil {
		t.Fatalf("Provision = %v", err)
	}
	return app
}

// A revocation must be in force under configs that a reload has replaced and that still
// serve, so all configs of one storage share one state. It ends with the last of them.
func TestStateIsSharedOverReloads(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	revoked := func(app *App, keyID string) bool { key, _ := app.state.Key(keyID); return key.Revoked }
	old := loaded(t, folder, new(App))
	check(old.Start())
	next, elsewhere := loaded(t, folder, new(App)), loaded(t, t.TempDir(), new(App))
	shared := old.state
	if next.state != shared || next.keys.State != old.keys.State || elsewhere.state == shared || shared.storage() != old.storage {
		t.Error("configs of one storage do not share a state, or others do")
	}
	check(errors.Join(elsewhere.Cleanup(), next.Start(), old.Stop(), next.state.Revoke(t.Context(), "a")))
	if !revoked(old, "a") || shared.storage() != next.storage {
		t.Error("the old config does not know the revocation, or the state uses its storage")
	}
	check(errors.Join(old.Cleanup(), next.state.Revoke(t.Context(), "b"), next.Stop(), next.Cleanup()))
	if n, _ := statePool.References(shared.poolKey); n != 0 {
		t.Errorf("the state outlives its last config (%d references)", n)
	}
	again := loaded(t, folder, new(App))
	if !revoked(again, "a") || !revoked(again, "b") {
		t.Error("a revocation is lost")
	}
	check(again.Cleanup())
}

// A config that fails after it has acquired the state releases it, and a store
// that cannot be opened is kept nowhere.
func TestFailedConfigReleasesTheState(t *testing.T) {
	count := func() (states int) {
		statePool.Range(func(any, any) bool { states++; return true })
		return states
	}
	before := count()
	_, _, err := provisioned(t, &App{KeyFiles: []string{writeFile(t, "key.json", "no key")}}, nil)
	if err == nil {
		t.Fatal("provisioning succeeded, want an error about the key file")
	}
	broken, app := errors.New("broken"), new(App)
	err = app.acquireState(t.Name(), func(func() certmagic.Storage, func() *zap.Logger) (store.Store, error) { return nil, broken })
	if app.state != nil || !errors.Is(err, broken) {
		t.Errorf("acquireState = %v, %v", app.state, err)
	}
	if after := count(); after != before {
		t.Errorf("%d states are kept, there were %d", after, before)
	}
}

// hidden is a storage that no JSON shows.
type hidden certmagic.Storage

// Two storages count as one place if their configs are the same and say where
// that is.
func TestIdentityOfAStorage(t *testing.T) {
	t.Parallel()
	type nameless struct{ hidden }
	type channels struct {
		certmagic.Storage
		C chan int
	}
	a, b := &nameless{}, &nameless{}
	for _, tc := range []struct {
		name       string
		one, other certmagic.Storage
		same       bool
	}{
		{"same folder", &certmagic.FileStorage{Path: "/a"}, &certmagic.FileStorage{Path: "/a"}, true},
		{"another folder", &certmagic.FileStorage{Path: "/a"}, &certmagic.FileStorage{Path: "/b"}, false},
		{"config that is no JSON", &channels{}, &channels{}, false},
		{"another type", &certmagic.FileStorage{Path: "/a"}, &struct {
			certmagic.Storage
			Path string
		}{Path: "/a"}, false},
		{"no config, the same one", a, a, true},
		{"no config", a, b, false},
	} {
		if same := storageIdentity(tc.one) == storageIdentity(tc.other); same != tc.same {
			t.Errorf("%s: the same place: %t, want %t", tc.name, same, tc.same)
		}
	}
}
