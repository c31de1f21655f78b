package signedplayback

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"

	"github.com/signed-playback/caddy-signed-playback/internal/jwks"
	"github.com/signed-playback/caddy-signed-playback/internal/store"
	"github.com/signed-playback/caddy-signed-playback/token"
)

// What a key is made of is what another node reads, and its private half is
// nowhere in it.
func TestKeysAreStored(t *testing.T) {
	f := newFleet()
	s, other := newTestState(t, f.node()), newTestState(t, f.node())
	setTime(s)
	key := keyOf("a")
	created, err := s.createKey(t.Context(), key.Public(), true, "request")
	if want := testTime.UTC(); err != nil || !created.Equal(want) || created.Location() != time.UTC {
		t.Fatalf("createKey = %v, %v, want %v", created, err, want)
	}
	wantKey(t, s, "a", "live")
	other.sync(t.Context())
	wantKey(t, other, "a", "live")
	for _, s := range []*state{s, other} {
		got, _ := s.keys.get("a")
		if !got.public.Equal(key.Public()) || !got.created.Equal(created) || !got.own || got.request != "request" || got.id != "a" {
			t.Errorf("the key is %+v", got)
		}
	}
	text := f.data(keyNamed("a"))
	for _, member := range []string{`"d"`, `"p"`, `"q"`, `"dp"`, `"dq"`, `"qi"`, "PRIVATE"} {
		if strings.Contains(text, member) {
			t.Errorf("the store has %s of the private half: %s", member, text)
		}
	}
}

// Dates are stored in microseconds, as lists have them, so that a list before
// and after a restart is the same.
func TestDatesOfKeysAreMicroseconds(t *testing.T) {
	f := newFleet()
	s := newTestState(t, f.node())
	*setTime(s) = testTime.Add(123456789 * time.Nanosecond)
	created, err := s.createKey(t.Context(), keyOf("a").Public(), false, "")
	if err != nil || created.Nanosecond() != 123456000 {
		t.Errorf("createKey = %v, %v", created, err)
	}
	again := newTestState(t, f.node())
	if key, _ := again.keys.get("a"); !key.created.Equal(created) {
		t.Errorf("read again, the key was made at %v, and not at %v", key.created, created)
	}
}

// A9: an id is given once. Whatever is under it, live, revoked or damaged, is
// not written over.
func TestKeyIDIsTakenForGood(t *testing.T) {
	for what, prepare := range map[string]func(*fleet, store.Name){
		"live":    func(f *fleet, name store.Name) { f.plant(name, liveKey("a")) },
		"revoked": func(f *fleet, name store.Name) { f.plant(name, revokedKey("a")) },
		"damaged": (*fleet).damage,
		"empty":   func(f *fleet, name store.Name) { f.plant(name, "{}") },
	} {
		f := newFleet()
		s := newTestState(t, f.node())
		prepare(f, keyNamed("a")) // by another node, a moment ago
		before := f.backup()[keyNamed("a")]
		if _, err := s.createKey(t.Context(), keyOf("a").Public(), false, ""); !errors.Is(err, errKeyID) {
			t.Errorf("%s: createKey = %v, want errKeyID", what, err)
		}
		after := f.backup()[keyNamed("a")]
		if string(after.Data) != string(before.Data) || (after.Damage == nil) != (before.Damage == nil) {
			t.Errorf("%s: the object is %q now", what, after.Data)
		}
		wantKey(t, s, "a", "none")
	}
}

// A key whose storing has failed is no key, though it may turn out to be
// stored.
func TestKeyThatIsNotStored(t *testing.T) {
	f := newFleet()
	n := f.node()
	s := newTestState(t, n)
	n.intercept(on("update", "", down), nil)
	if _, err := s.createKey(t.Context(), keyOf("a").Public(), false, ""); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("createKey = %v, want ErrUnavailable", err)
	}
	wantKey(t, s, "a", "none")
	f.plant(keyNamed("b"), liveKey("b"))
	f.tell(keyNamed("b"))
	s.sync(t.Context())
	if err := s.revoke(t.Context(), "b"); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("revoke = %v, want ErrUnavailable", err)
	}
	wantKey(t, s, "b", "live") // or a caller would believe what the next restart takes back
}

// A revocation replaces whatever is under the id, once.
func TestRevocationIsStored(t *testing.T) {
	for what, tc := range map[string]struct {
		prepare func(*fleet, store.Name)
		writes  int
	}{
		"a live key":     {func(f *fleet, name store.Name) { f.plant(name, liveKey("a")) }, 1},
		"a damaged key":  {(*fleet).damage, 1},
		"nonsense":       {func(f *fleet, name store.Name) { f.plant(name, `"x"`) }, 1},
		"nothing":        {func(*fleet, store.Name) {}, 1},
		"a revoked key":  {func(f *fleet, name store.Name) { f.plant(name, revokedKey("a")) }, 0},
		"a revoked one,": {func(f *fleet, name store.Name) { f.plant(name, `{"id":"a","revoked":"2020-01-01T00:00:00Z"}`) }, 0},
	} {
		f := newFleet()
		tc.prepare(f, keyNamed("a"))
		n := f.node()
		s := newTestState(t, n)
		*setTime(s) = testTime.Add(time.Hour)
		before := f.data(keyNamed("a"))
		for range 2 {
			if err := s.revoke(t.Context(), "a"); err != nil {
				t.Errorf("%s: revoke = %v", what, err)
			}
			wantKey(t, s, "a", "revoked")
		}
		changed := f.data(keyNamed("a")) != before || f.backup()[keyNamed("a")].Damage != nil
		if changed != (tc.writes == 1) {
			t.Errorf("%s: the object is %s", what, f.data(keyNamed("a")))
		}
		s = newTestState(t, f.node())
		wantKey(t, s, "a", "revoked")
	}
	// When the key was made is kept, and its public half is not needed any more.
	f := newFleet()
	f.plant(keyNamed("a"), liveKey("a"))
	s := newTestState(t, f.node())
	*setTime(s) = testTime.Add(time.Hour)
	if err := s.revoke(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	var doc keyDocument
	if err := json.Unmarshal([]byte(f.data(keyNamed("a"))), &doc); err != nil {
		t.Fatal(err)
	}
	want := keyDocument{ID: "a", Created: testTime.UTC(), Revoked: testTime.Add(time.Hour).UTC()}
	if diff := cmp.Diff(want, doc); diff != "" {
		t.Errorf("the revocation (-want +got):\n%s", diff)
	}
}

// A4: no id that is a path reaches the store.
func TestKeyIDsThatAreNoNames(t *testing.T) {
	n := newFleet().node()
	s := newTestState(t, n)
	for _, id := range []string{"", ".", "..", "../a", "a/b", "a%2fb", strings.Repeat("a", 65)} {
		if err := s.revoke(t.Context(), id); !errors.Is(err, store.ErrName) {
			t.Errorf("revoke(%q) = %v, want ErrName", id, err)
		}
	}
	if got := n.count("update") + n.count("get"); got != 0 {
		t.Errorf("%d calls of the store, want none", got)
	}
}

// The list is newest first, and always in the same order.
func TestLiveKeysAreInOrder(t *testing.T) {
	f := newFleet()
	var want []string
	for i := range 5 {
		for _, id := range []string{"x", "y"} {
			id := fmt.Sprintf("%s%d", id, 4-i)
			doc := keyDocument{ID: id, Created: testTime.Add(-time.Duration(i) * time.Second), JWK: must(keyOf(id).Public().JWK())}
			f.plant(keyNamed(id), string(must(json.Marshal(doc))))
			want = append(want, id)
		}
	}
	f.plant(keyNamed("gone"), revokedKey("gone"))
	f.damage(keyNamed("broken"))
	s := newTestState(t, f.node())
	for range 3 {
		var got []string
		for _, key := range s.keys.live() {
			got = append(got, key.id)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("live keys (-want +got):\n%s", diff)
		}
	}
	s.keys.forget()
	if keys := s.keys.live(); keys != nil {
		t.Errorf("%d keys are listed though none is known", len(keys))
	}
}

// What is published while everything is being read is newer than what is read.
func TestKeysThatChangeDuringAReload(t *testing.T) {
	f := newFleet()
	for _, id := range []string{"a", "b", "c"} {
		f.plant(keyNamed(id), liveKey(id))
	}
	n := f.node()
	s := newTestState(t, n)
	f.restore(f.backup())
	n.intercept(nil, on("list", "c", func(ctx context.Context, _ string, _ store.Name) error {
		n.intercept(nil, nil)
		if _, err := s.createKey(ctx, keyOf("aa").Public(), false, ""); err != nil {
			t.Errorf("createKey = %v", err)
		}
		s.keys.publish(storedKey{id: "b", damage: errors.New("it has changed")})
		s.keys.publish(storedKey{id: "a"}) // it does not exist any more
		return s.revoke(ctx, "c")
	}))
	s.sync(t.Context())
	for id, want := range map[string]string{"a": "none", "b": "damaged", "c": "revoked", "aa": "live"} {
		wantKey(t, s, id, want)
	}
}

// Before the keys have been read, nothing is known of any: one that is published
// then must not look like the only one there is.
func TestKeysPublishedBeforeTheFirstReading(t *testing.T) {
	var k storedKeys
	k.publish(storedKey{id: "a", public: keyOf("a").Public()})
	k.publish(storedKey{id: "b", revoked: true})
	if k.known() {
		t.Fatal("the keys count as read")
	}
	update := k.beginReload()
	update.add(storedKey{id: "b", public: keyOf("b").Public()})
	update.add(storedKey{id: "c", public: keyOf("c").Public()})
	if k.known() {
		t.Fatal("the keys count as read before they are")
	}
	if lost := update.commit(); !slices.Equal(lost, []string{"b"}) {
		t.Errorf("commit = %q, want b: the store does not say that it is revoked", lost)
	}
	if key, _ := k.get("b"); !key.revoked {
		t.Error("what was revoked before the first reading is not")
	}
	if keys := k.live(); len(keys) != 1 || keys[0].id != "c" {
		t.Errorf("%d keys are live, want c alone", len(keys))
	}
}

// Requests read snapshots while everything changes: none of them is changed
// under its readers, and a revocation that a reader has seen stays seen.
func TestKeysUnderConcurrentChanges(t *testing.T) {
	f := newFleet()
	for i := range 4 {
		f.plant(keyNamed(fmt.Sprint("k", i)), liveKey(fmt.Sprint("k", i)))
	}
	s := newTestState(t, f.node())
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			seen := make(map[string]bool)
			for ctx.Err() == nil {
				for i := range 4 {
					id := fmt.Sprint("k", i)
					key, known := s.keys.get(id)
					if !known || seen[id] && !key.revoked {
						t.Errorf("the key %s came back", id)
						return
					}
					seen[id] = key.revoked
				}
				s.keys.live()
			}
		})
	}
	for i := range 4 {
		id := fmt.Sprint("k", i)
		stale, _ := s.keys.get(id)
		var change sync.WaitGroup
		change.Go(func() {
			if err := s.revoke(ctx, id); err != nil {
				t.Errorf("revoke = %v", err)
			}
		})
		change.Go(func() { s.keys.publish(stale) })
		for range 20 {
			update := s.keys.beginReload()
			update.add(stale)
			update.commit()
		}
		change.Wait()
		s.keys.publish(stale)
		wantKey(t, s, id, "revoked")
	}
	stop()
	wg.Wait()
}

// A keyring searches the config, then the store of the control API, then the
// remote set. It finds no key that is revoked, damaged or unknown.
func TestKeyring(t *testing.T) {
	t.Parallel()
	stranger := must(token.ParseSigningKey([]byte(otherKey().PEM()), "fixed")).Public()
	newKeys := func(unknown bool) *storedKeys {
		k := new(storedKeys)
		if unknown {
			return k
		}
		update := k.beginReload()
		update.add(storedKey{id: "stored", public: keyOf("stored").Public()})
		update.add(storedKey{id: "fixed", public: stranger})
		update.add(storedKey{id: "fixed-revoked", revoked: true})
		update.add(storedKey{id: "remote-revoked", revoked: true})
		update.add(storedKey{id: "fixed-damaged", damage: store.ErrDamaged})
		update.commit()
		return k
	}
	fixed := must(token.NewKeySet(keyOf("fixed").Public(), keyOf("fixed-revoked").Public(), keyOf("fixed-damaged").Public(), keyOf("fixed-only").Public()))
	server := newKeyServer(t)
	server.body = keySetOf(keyOf("remote"), keyOf("remote-revoked"), keyOf("fixed-damaged"), keyOf("stored"))
	newRemote := func() *remoteKeys {
		return &remoteKeys{Set: must(jwks.New(server.URL, time.Hour, zap.NewNop))}
	}
	loaded, unloaded := newRemote(), newRemote()
	if err := loaded.Load(); err != nil {
		t.Fatal(err)
	}
	type verdict struct{ Found, Certain, MayAppear, Revocable bool }
	unknownStore := verdict{}
	for _, tc := range []struct {
		name, id string
		remote   *remoteKeys
		unknown  bool
		want     verdict // and while the store is away, nothing is certain but a revocation
	}{
		{"of the config", "fixed-only", nil, false, verdict{true, true, true, true}},
		{"of the config and the store", "fixed", nil, false, verdict{true, true, true, true}},
		{"of the config, revoked", "fixed-revoked", nil, false, verdict{false, true, false, true}},
		{"of the config, its object damaged", "fixed-damaged", nil, false, verdict{false, false, false, true}},
		{"of the config and the remote set, its object damaged", "fixed-damaged", loaded, false, verdict{false, false, false, true}},
		{"of the store", "stored", nil, false, verdict{true, true, true, true}},
		{"of the remote set", "remote", loaded, false, verdict{true, true, true, true}},
		{"of the remote set, revoked", "remote-revoked", loaded, false, verdict{false, true, false, true}},
		{"of the remote set, not loaded", "remote", unloaded, false, verdict{false, false, true, false}},
		{"revoked, the remote set not loaded", "remote-revoked", unloaded, false, verdict{false, true, false, true}},
		{"of nobody", "x", nil, false, verdict{false, true, true, false}},
		{"of nobody, with a remote set", "x", loaded, false, verdict{false, true, true, false}},
		{"of nobody, and no name of the store", "a/b", nil, false, verdict{false, true, false, false}},
		{"of the config, the store unknown", "fixed-only", nil, true, unknownStore},
		{"of the remote set, the store unknown", "remote", loaded, true, unknownStore},
		{"of nobody, the store unknown", "x", nil, true, unknownStore},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var away atomic.Bool
			k := &keyring{fixed: fixed, stored: newKeys(tc.unknown), away: &away, remote: tc.remote}
			for range 2 {
				got := verdict{k.Lookup(tc.id) != nil, k.lookupAuthoritative(tc.id), k.mayAppear(tc.id), k.revocable(tc.id)}
				if diff := cmp.Diff(tc.want, got); diff != "" {
					t.Errorf("%s, away: %t (-want +got):\n%s", tc.id, away.Load(), diff)
				}
				away.Store(true)
				tc.want.Certain = tc.want.Revocable && !tc.want.Found && !strings.HasSuffix(tc.id, "-damaged")
			}
		})
	}
	k := &keyring{fixed: fixed, stored: newKeys(false), away: new(atomic.Bool), remote: loaded}
	if !k.Lookup("fixed").Equal(keyOf("fixed").Public()) {
		t.Error("the key of the config does not win over that of the store")
	}
	if got := k.count(); got != 4 { // fixed, fixed-only, stored, remote
		t.Errorf("%d keys verify, want 4", got)
	}
	k.stored = newKeys(true)
	if got := k.count(); got != 0 {
		t.Errorf("%d keys verify while the store is unknown, want none", got)
	}
}

// What the gate makes of it: a revoked key is one that nobody knows, and where
// nothing is certain the viewer may try again.
func TestTokensOfKeysInTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet()
		f.plant(keyNamed("live"), liveKey("live"))
		f.plant(keyNamed("gone"), revokedKey("gone"))
		f.damage(keyNamed("broken"))
		f.plant(videoNamed("demo"), `{"uid":"demo"}`)
		n := f.node()
		s := newTestState(t, n)
		app := &App{
			now: func() time.Time { return testTime }, metrics: s.metrics, state: s, defaults: settings{requireSignedURLs: true},
		}
		app.keys = ringOf(s)
		app.verifier = &verifier{
			cache: newTokenCache(minTokenCacheSize), keys: app.keys, catchUp: s.catchUp, limit: newVerificationLimit(), metrics: s.metrics,
		}
		refusalOf := func(keyID string) reason {
			t.Helper()
			compact := must(token.Sign(token.Claims{VideoID: "demo", ExpiresAt: testTime.Add(time.Hour)}, keyOf(keyID)))
			_, err := app.verifier.verify(requestFor(t, "/x", nil), compact)
			return reasonOf(t, err)
		}
		s.start()
		for keyID, want := range map[string]reason{
			"live": "", "k1": "", "gone": reasonKeyUnknown, "broken": reasonStateUnavailable, "none": reasonKeyUnknown,
		} {
			if got := refusalOf(keyID); got != want {
				t.Errorf("a token of the key %q is refused with %q, want %q", keyID, got, want)
			}
		}
		// Made by another node since the last poll.
		f.write(keyNamed("new"), liveKey("new"))
		if got := refusalOf("new"); got != "" {
			t.Errorf("a token of a key that was just made is refused with %q", got)
		}
		// The key of the config is revoked by the API.
		if err := s.revoke(t.Context(), "k1"); err != nil {
			t.Fatal(err)
		}
		if got := refusalOf("k1"); got != reasonKeyUnknown {
			t.Errorf("a token of a key of the config that is revoked is refused with %q", got)
		}
		synctest.Wait() // nobody follows the store at the moment
		s.forget()
		if got := refusalOf("live"); got != reasonStateUnavailable {
			t.Errorf("a token is refused with %q while nothing is known, want %q", got, reasonStateUnavailable)
		}
	})
}
