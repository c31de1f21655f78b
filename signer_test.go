package signedplayback

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/signed-playback/caddy-signed-playback/internal/store"
)

// signingDoc is the signing key under an id, with its public half among the
// keys, as a node has made it at a time.
func (f *fleet) plantSigningKey(id string, created time.Time, retired ...retiredKey) {
	doc := signingDocument{ID: id, PEM: keyOf(id).PEM(), Created: created, Retired: retired}
	f.write(signingName(), string(must(json.Marshal(doc))))
	key := keyDocument{ID: id, Created: created, JWK: must(keyOf(id).Public().JWK()), Own: true}
	f.write(keyNamed(id), string(must(json.Marshal(key))))
}

// storedSigningKey is what the store says.
func storedSigningKey(t *testing.T, f *fleet) signingDocument {
	t.Helper()
	var doc signingDocument
	if err := json.Unmarshal([]byte(f.data(signingName())), &doc); err != nil {
		t.Fatalf("the signing key is %q: %v", f.data(signingName()), err)
	}
	return doc
}

// signingKey has a state sign, and holds that its signature verifies here.
func signingKey(t *testing.T, s *state) string {
	t.Helper()
	key, err := s.signer.get(t.Context())
	if err != nil {
		t.Fatalf("get = %v", err)
	}
	if public, known := s.keys.get(key.ID()); !known || public.public == nil || !public.public.Equal(key.Public()) || !public.own {
		t.Errorf("the key %s that signs does not verify here: %+v", key.ID(), public)
	}
	return key.ID()
}

// The gateway's own key is made on first need, once, and every node signs with
// it, also one that starts later.
func TestSigningKeyIsMadeOnFirstNeed(t *testing.T) {
	f := newFleet()
	n := f.node()
	s := newTestState(t, n)
	clock := setTime(s)
	if n.count("update") != 0 {
		t.Error("a key is made before anybody needs one")
	}
	first := signingKey(t, s)
	*clock = clock.Add(time.Hour)
	gets := n.count("get")
	for range 3 {
		if again := signingKey(t, s); again != first {
			t.Errorf("the key %s signs now", again)
		}
	}
	if got := n.count("get") - gets; got != 0 {
		t.Errorf("%d reads of a key that is known", got)
	}
	later := newTestState(t, f.node())
	setTime(later)
	if id := signingKey(t, later); id != first {
		t.Errorf("a node that starts later signs with %s, want %s", id, first)
	}
	doc := storedSigningKey(t, f)
	if doc.ID != first || !doc.Created.Equal(testTime) || len(doc.Retired) != 0 {
		t.Errorf("the store has the key %s of %v, retired %v", doc.ID, doc.Created, doc.Retired)
	}
	if strings.Contains(f.data(keyNamed(first)), `"d":`) {
		t.Error("the private half is among the keys")
	}
	// It is none of the keys of the API.
	if keys := s.keys.live(); len(keys) != 1 || !keys[0].own {
		t.Errorf("%d keys", len(keys))
	}
}

// A node that has not yet heard of the key which another one made a moment ago
// signs with it all the same: a fleet has one key, not one for each node.
func TestSigningKeyIsSharedBeforeItIsHeardOf(t *testing.T) {
	f := newFleet()
	a, b := newTestState(t, f.node()), newTestState(t, f.node())
	f.plantSigningKey("own", testTime)
	for _, s := range []*state{a, b} {
		setTime(s)
		key, err := s.signer.get(t.Context())
		if err != nil || key.ID() != "own" {
			t.Errorf("get = %v, %v, want the key of the fleet", key, err)
		}
	}
	if doc := storedSigningKey(t, f); doc.ID != "own" || len(doc.Retired) != 0 {
		t.Errorf("the store has the key %s now, and %v are retired", doc.ID, doc.Retired)
	}
}

// Two nodes that need the first key at once end up with one: the one that was
// overtaken signs with the other's, and its own is revoked.
func TestTwoNodesMakeTheSigningKeyAtOnce(t *testing.T) {
	f := newFleet()
	a, b := f.node(), f.node()
	first, second := newTestState(t, a), newTestState(t, b)
	var winner string
	once := true
	a.intercept(on("update", signingID, func(context.Context, string, store.Name) error {
		if once {
			once = false
			winner = signingKey(t, second)
		}
		return nil
	}), nil)
	key, err := first.signer.get(t.Context())
	if err != nil || key.ID() != winner {
		t.Fatalf("get = %v, %v, want the other node's key %s", key, err, winner)
	}
	first.sync(t.Context())
	if id := signingKey(t, first); id != winner {
		t.Errorf("the node signs with %s, want %s", id, winner)
	}
	if doc := storedSigningKey(t, f); doc.ID != winner || len(doc.Retired) != 0 {
		t.Errorf("the store has the key %s, retired %v, want %s", doc.ID, doc.Retired, winner)
	}
	live, revoked := 0, 0
	for name, object := range f.backup() {
		switch {
		case name.Collection() != store.Keys:
		case strings.Contains(string(object.Data), `"revoked"`):
			revoked++
		default:
			live++
		}
	}
	if live != 1 || revoked != 1 {
		t.Errorf("%d keys are live and %d revoked, want one of each", live, revoked)
	}
}

// The first calls of a node, or those at the time of a replacement, come
// together: one of them makes the key, and all sign with it.
func TestSigningKeyIsMadeOnceForManyCalls(t *testing.T) {
	f := newFleet()
	s := newTestState(t, f.node())
	var wg sync.WaitGroup
	ids := make(chan string, 4)
	for range cap(ids) {
		wg.Go(func() { ids <- signingKey(t, s) })
	}
	wg.Wait()
	close(ids)
	for id := range ids {
		if want := storedSigningKey(t, f).ID; id != want {
			t.Errorf("a call is signed with %s, want %s", id, want)
		}
	}
	if objects := f.backup(); len(objects) != 2 {
		t.Errorf("%d keys were made for as many calls, want 1", len(objects)-1)
	}
}

// A key that is as old as keys become is replaced, by one node of many, and
// goes on verifying what it has signed.
func TestSigningKeyIsReplacedByAge(t *testing.T) {
	f := newFleet()
	f.plantSigningKey("own", testTime)
	s, other := newTestState(t, f.node()), newTestState(t, f.node())
	clock, otherClock := setTime(s), setTime(other)
	*clock = testTime.Add(maxSigningAge - 1)
	if id := signingKey(t, s); id != "own" {
		t.Fatalf("the key %s signs too early", id)
	}
	*clock, *otherClock = testTime.Add(maxSigningAge), testTime.Add(maxSigningAge)
	next := signingKey(t, s)
	if next == "own" {
		t.Error("the old key signs on")
	}
	wantKey(t, s, "own", "live")
	doc := storedSigningKey(t, f)
	want := []retiredKey{{"own", clock.UTC()}}
	if diff := cmp.Diff(want, doc.Retired); doc.ID != next || diff != "" {
		t.Errorf("the store has the key %s, retired (-want +got):\n%s", doc.ID, diff)
	}
	other.sync(t.Context())
	if id := signingKey(t, other); id != next {
		t.Errorf("the other node signs with %s, want %s", id, next)
	}
	if key, _ := s.keys.get(next); !key.created.Equal(*clock) {
		t.Errorf("the new key is of %v", key.created)
	}
}

// Retired keys verify as long as a token of theirs can be valid, and are
// revoked with the next replacement after that.
func TestRetiredKeysAreRevoked(t *testing.T) {
	f := newFleet()
	now := testTime.Add(maxSigningAge)
	f.plantSigningKey("longer", testTime)
	f.plantSigningKey("long", testTime)
	f.plantSigningKey("recent", testTime)
	f.plantSigningKey("own", testTime,
		retiredKey{"longer", now.Add(-10 * retirement)}, retiredKey{"long", now.Add(-retirement)}, retiredKey{"recent", now.Add(-retirement + 1)})
	s := newTestState(t, f.node())
	*setTime(s) = now
	signingKey(t, s)
	for id, want := range map[string]string{"longer": "revoked", "long": "revoked", "recent": "live", "own": "live"} {
		wantKey(t, s, id, want)
	}
	var left []string
	for _, key := range storedSigningKey(t, f).Retired {
		left = append(left, key.ID)
	}
	slices.Sort(left)
	if diff := cmp.Diff([]string{"own", "recent"}, left); diff != "" {
		t.Errorf("retired keys that verify (-want +got):\n%s", diff)
	}
	if retirement < maxMintedLifetime+time.Minute {
		t.Errorf("keys are retired for %s, and tokens live for %s", retirement, maxMintedLifetime)
	}
}

// A signing key that is revoked, here or elsewhere, signs no more: its tokens
// would not play.
func TestRevokedSigningKeyIsReplaced(t *testing.T) {
	f := newFleet()
	f.plantSigningKey("own", testTime)
	s := newTestState(t, f.node())
	setTime(s)
	if id := signingKey(t, s); id != "own" {
		t.Fatalf("the key %s signs", id)
	}
	if err := s.revoke(t.Context(), "own"); err != nil {
		t.Fatal(err)
	}
	if id := signingKey(t, s); id == "own" {
		t.Error("a revoked key signs")
	}
	wantKey(t, s, "own", "revoked")
}

// Keys that were replaced elsewhere sign no more here once that is heard of.
func TestSigningKeyThatAnotherNodeReplaced(t *testing.T) {
	f := newFleet()
	f.plantSigningKey("own", testTime)
	s := newTestState(t, f.node())
	setTime(s)
	signingKey(t, s)
	f.plantSigningKey("next", testTime, retiredKey{"own", testTime})
	s.sync(t.Context())
	if id := signingKey(t, s); id != "next" {
		t.Errorf("the key %s signs, want the new one", id)
	}
	f.plantSigningKey("third", testTime)
	f.restore(f.backup()) // which nobody tells
	s.sync(t.Context())
	if id := signingKey(t, s); id != "third" {
		t.Errorf("the key %s signs, want the new one", id)
	}
}

// S4: a damaged signing key is an error that names it, and no reason to make
// another one without being asked: whoever damages the object should not be
// able to have the gateway make keys. Asked for, the replacement works, whatever
// it is that is damaged.
func TestDamagedSigningKey(t *testing.T) {
	good := must(json.Marshal(signingDocument{ID: "own", PEM: keyOf("own").PEM(), Created: testTime}))
	withPEM := func(pem string) string {
		return string(must(json.Marshal(signingDocument{ID: "own", PEM: pem, Created: testTime, Retired: []retiredKey{{"old", testTime}}})))
	}
	for what, data := range map[string]string{
		"damaged":      "",
		"null":         "null",
		"no object":    "[]",
		"empty":        "{}",
		"cut off":      withPEM(keyOf("own").PEM()[:400]),
		"no pem":       withPEM(""),
		"no base64":    withPEM("-----BEGIN"),
		"a public key": withPEM(base64.StdEncoding.EncodeToString([]byte(publicPEM(t, testKey())))),
		"no id":        strings.Replace(string(good), `"id":"own"`, `"id":""`, 1),
		"no date":      strings.Replace(string(good), `"created":"2`, `"created":"x`, 1),
	} {
		t.Run(what, func(t *testing.T) {
			f := newFleet()
			f.plantSigningKey("own", testTime)
			if data == "" {
				f.damage(signingName())
			} else {
				f.write(signingName(), data)
			}
			n := f.node()
			s := newTestState(t, n)
			setTime(s)
			before := storeErrors(t, "decode")
			if key, err := s.signer.get(t.Context()); !isDamaged(err) || key != nil {
				t.Fatalf("get = %v, %v, want ErrDamaged", key, err)
			}
			if storeErrors(t, "decode") == before || n.count("update") != 0 {
				t.Errorf("the damage is not counted, or %d objects are written", n.count("update"))
			}
			app := &App{state: s, now: s.now}
			if _, err := app.mintingKey(t.Context(), new(mintRequest)); !errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), "rotate") {
				t.Errorf("mintingKey = %v, want ErrUnavailable and what to do", err)
			}
			c := &call{api: &API{app: app}, request: requestFor(t, "/x", nil)}
			if _, err := c.rotateKey(noBody); err != nil {
				t.Fatalf("rotateKey = %v", err)
			}
			if id := signingKey(t, s); id == "own" || id != c.subject {
				t.Errorf("the key %s signs, want the new one, %s", id, c.subject)
			}
		})
	}
}

// The same for a node that knows the key which the damaged object has replaced,
// each time that it is asked.
func TestSigningKeyThatIsDamagedLater(t *testing.T) {
	f := newFleet()
	f.plantSigningKey("own", testTime)
	s := newTestState(t, f.node())
	setTime(s)
	signingKey(t, s)
	f.damage(signingName())
	s.sync(t.Context())
	for i := range 3 {
		if key, err := s.signer.get(t.Context()); !isDamaged(err) || key != nil {
			t.Errorf("call %d: get = %v, %v, want ErrDamaged", i+1, key, err)
		}
	}
}

// A key that is removed from the store, by hand, is replaced.
func TestSigningKeyThatIsRemoved(t *testing.T) {
	f := newFleet()
	f.plantSigningKey("own", testTime)
	s := newTestState(t, f.node())
	setTime(s)
	signingKey(t, s)
	f.mu.Lock()
	delete(f.objects, signingName())
	f.mu.Unlock()
	f.tell(signingName())
	s.sync(t.Context())
	if id := signingKey(t, s); id == "own" || storedSigningKey(t, f).ID != id {
		t.Errorf("the key %s signs, and the store has %s", id, storedSigningKey(t, f).ID)
	}
}

// Rotation on demand replaces the key at once, and again each time.
func TestRotation(t *testing.T) {
	f := newFleet()
	f.plantSigningKey("own", testTime)
	s := newTestState(t, f.node())
	setTime(s)
	signingKey(t, s)
	c := &call{api: &API{app: &App{state: s, now: s.now}}, request: requestFor(t, "/x", nil)}
	result, err := c.rotateKey(noBody)
	if err != nil {
		t.Fatal(err)
	}
	next := signingKey(t, s)
	want := listedKey{next, next, apiTime(testTime)}
	if diff := cmp.Diff(want, result); next == "own" || diff != "" {
		t.Errorf("rotateKey (-want +got):\n%s", diff)
	}
	wantKey(t, s, "own", "live")
	if _, err := c.rotateKey(parsed(t, `{"force":true}`)); err == nil {
		t.Error("an unknown member of the body is passed over")
	}
}

// Without the store no key is made, and what is known goes on signing: that is
// what playback of tokens that are minted elsewhere depends on.
func TestSigningWithoutTheStore(t *testing.T) {
	f := newFleet()
	f.plantSigningKey("own", testTime)
	n := f.node()
	s := newTestState(t, n)
	setTime(s)
	n.intercept(on("get", signingID, down), nil)
	if key, err := s.signer.get(t.Context()); !errors.Is(err, store.ErrUnavailable) || key != nil {
		t.Errorf("get = %v, %v, want ErrUnavailable", key, err)
	}
	n.intercept(nil, nil)
	signingKey(t, s)
	f.plantSigningKey("next", testTime)
	n.intercept(on("get", signingID, down), nil)
	s.sync(t.Context())
	for range 2 {
		if id := signingKey(t, s); id != "own" {
			t.Errorf("the key %s signs, want the known one", id)
		}
	}
	n.intercept(down, nil)
	s.sync(t.Context())
	if id := signingKey(t, s); id != "own" {
		t.Errorf("the key %s signs, want the known one", id)
	}
	n.intercept(nil, nil)
	if id := signingKey(t, s); id != "next" {
		t.Errorf("the key %s signs after the store is back, want the new one", id)
	}
	if got := storedSigningKey(t, f).ID; got != "next" {
		t.Errorf("the store has the key %s", got)
	}
}

// A key whose public half could not be stored must not sign.
func TestSigningKeyThatCannotBeStored(t *testing.T) {
	for _, tc := range []struct {
		what string
		fail step
	}{
		{"its public half", func(ctx context.Context, operation string, name store.Name) error {
			if operation == "update" && name.Collection() == store.Keys {
				return down(ctx, operation, name)
			}
			return nil
		}},
		{"the pair", on("update", signingID, down)},
	} {
		f := newFleet()
		n := f.node()
		s := newTestState(t, n)
		n.intercept(tc.fail, nil)
		if key, err := s.signer.get(t.Context()); !errors.Is(err, store.ErrUnavailable) || key != nil || s.signer.own.Load() != nil {
			t.Errorf("%s cannot be stored: get = %v, %v, want ErrUnavailable", tc.what, key, err)
		}
		if f.data(signingName()) != "" {
			t.Errorf("%s cannot be stored, and the signing key is", tc.what)
		}
	}
}

// A7: keys are made one at a time, so that playback keeps a core, and few wait
// for their turn.
func TestKeysAreMadeOneAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newKeyGenerator()
		enter := func(ctx context.Context) func() {
			t.Helper()
			leave, err := g.enter(ctx)
			if err != nil {
				t.Fatalf("enter = %v", err)
			}
			return leave
		}
		leave := enter(t.Context()) // somebody's key is being made
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for range maxWaitingForKey {
			wg.Go(func() {
				if leave, err := g.enter(ctx); !errors.Is(err, context.Canceled) || leave != nil {
					t.Errorf("enter = %v for a caller who has left", err)
				}
			})
		}
		synctest.Wait()
		if leave, err := g.enter(t.Context()); !errors.Is(err, errTooManyKeys) || leave != nil {
			t.Errorf("enter = %v, want errTooManyKeys", err)
		}
		cancel()
		wg.Wait()
		inside, most := 0, 0
		for range maxWaitingForKey {
			wg.Go(func() {
				leave := enter(t.Context())
				inside++ // one at a time, so nobody else is here
				most = max(most, inside)
				<-time.After(time.Second)
				inside--
				leave()
			})
		}
		synctest.Wait()
		leave()
		wg.Wait()
		if most != 1 || len(g.turn) != 0 || len(g.waiting) != 0 {
			t.Errorf("%d keys are made at once, and %d places are not given back", most, len(g.turn)+len(g.waiting))
		}
	})
}
