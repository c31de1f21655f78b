package state

import (
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/signed-playback/caddy-signed-playback/internal/store"
)

// plantSigningKey makes a key the gateway's own, as another node would do at that time.
func (f *fleet) plantSigningKey(id string, created time.Time, retired ...retiredKey) {
	doc := signingDocument{ID: id, PEM: keyOf(id).PEM(), Created: created, Retired: retired}
	f.Write(signingName, string(must(json.Marshal(doc))))
	f.Write(keyNamed(id), keyDoc(id, func(doc *keyDocument) { doc.Created, doc.Own = created, true }))
}

// signingFleet is fleetWith and the signing key "own", at testTime.
func signingFleet(t *testing.T) (*fleet, *node, *testState) {
	t.Helper()
	f := newFleet()
	f.plantSigningKey("own", testTime)
	n := f.Join()
	s := newTestState(t, n)
	s.setTime()
	return f, n, s
}

func storedSigningKey(t *testing.T, f *fleet) signingDocument {
	t.Helper()
	var doc signingDocument
	if err := json.Unmarshal([]byte(f.Data(signingName)), &doc); err != nil {
		t.Fatalf("the signing key is %q: %v", f.Data(signingName), err)
	}
	return doc
}

// signingKey returns the id of the key that signs, and checks that it verifies here.
func signingKey(t *testing.T, s *testState) string {
	t.Helper()
	key, err := s.SigningKey(t.Context())
	if err != nil {
		t.Fatalf("SigningKey = %v", err)
	}
	if public, _ := s.Key(key.ID()); public.Public == nil || !public.Public.Equal(key.Public()) || !public.Own {
		t.Errorf("the key %s that signs does not verify here: %+v", key.ID(), public)
	}
	return key.ID()
}

func wantSigningKey(t *testing.T, s *testState, want string) {
	t.Helper()
	if got := signingKey(t, s); got != want {
		t.Errorf("the key %s signs, want %s", got, want)
	}
}

// The gateway's own key is made on first need, once for any number of calls. Every node
// signs with it, also a node that starts later.
func TestSigningKeyIsMadeOnFirstNeed(t *testing.T) {
	t.Parallel()
	f, n, s := fleetWith(t)
	clock := s.setTime()
	if n.Count("update") != 0 {
		t.Error("a key is made before a call needs one")
	}
	var wg sync.WaitGroup
	ids := make(chan string, 4)
	for range cap(ids) {
		wg.Go(func() { ids <- signingKey(t, s) })
	}
	wg.Wait()
	close(ids)
	first := storedSigningKey(t, f).ID
	for id := range ids {
		if id != first {
			t.Errorf("a call is signed with %s, want %s", id, first)
		}
	}
	*clock = clock.Add(time.Hour)
	gets := n.Count("get")
	wantSigningKey(t, s, first)
	if got := n.Count("get") - gets; got != 0 {
		t.Errorf("%d reads of a key that is known", got)
	}
	later := newTestState(t, f.Join())
	later.setTime()
	wantSigningKey(t, later, first)
	if doc := storedSigningKey(t, f); !doc.Created.Equal(testTime) || len(doc.Retired) != 0 || len(f.Backup()) != 2 {
		t.Errorf("the store has %d objects and a key of %v, retired %v", len(f.Backup()), doc.Created, doc.Retired)
	}
	if strings.Contains(f.Data(keyNamed(first)), `"d":`) {
		t.Error("the collection of keys contains the private half")
	}
}

// A node signs with the key that another node has just made, although it has not polled the
// store since: a fleet has one key, not one for each node.
func TestSigningKeyIsSharedBeforeItIsHeardOf(t *testing.T) {
	t.Parallel()
	f, _, s := fleetWith(t)
	s.setTime()
	f.plantSigningKey("own", testTime)
	wantSigningKey(t, s, "own")
	if doc := storedSigningKey(t, f); doc.ID != "own" || len(doc.Retired) != 0 {
		t.Errorf("the store has the key %s now, and %v are retired", doc.ID, doc.Retired)
	}
}

// If two nodes make the first key at the same time, the slower one signs with the other's
// key and revokes its own.
func TestTwoNodesMakeTheSigningKeyAtOnce(t *testing.T) {
	t.Parallel()
	f := newFleet()
	a, b := f.Join(), f.Join()
	first, second := newTestState(t, a), newTestState(t, b)
	var winner string
	a.Intercept(on("update", signingName.ID(), func(context.Context, string, store.Name) error {
		a.Intercept(nil, nil)
		winner = signingKey(t, second)
		return nil
	}), nil)
	key, err := first.SigningKey(t.Context())
	if err != nil || key.ID() != winner {
		t.Fatalf("SigningKey = %v, %v, want the other node's key %s", key, err, winner)
	}
	first.Sync(t.Context())
	wantSigningKey(t, first, winner)
	if doc := storedSigningKey(t, f); doc.ID != winner || len(doc.Retired) != 0 {
		t.Errorf("the store has the key %s, retired %v, want %s", doc.ID, doc.Retired, winner)
	}
	if live := first.LiveKeys(); len(live) != 1 || len(f.Backup()) != 3 {
		t.Errorf("%d keys are live, and there are %d objects; want 1 and 3", len(live), len(f.Backup()))
	}
}

// One node of several replaces a key that has reached its maximum age. The old key still
// verifies.
func TestSigningKeyIsReplacedByAge(t *testing.T) {
	t.Parallel()
	f, _, s := signingFleet(t)
	other := newTestState(t, f.Join())
	now := testTime.Add(maxSigningAge - 1)
	s.clock, other.clock = &now, &now
	wantSigningKey(t, s, "own")
	now = testTime.Add(maxSigningAge)
	next := signingKey(t, s)
	if next == "own" {
		t.Error("the old key still signs")
	}
	wantKeys(t, s, "own live")
	doc := storedSigningKey(t, f)
	if diff := cmp.Diff([]retiredKey{{"own", now}}, doc.Retired); doc.ID != next || diff != "" {
		t.Errorf("the store has the key %s, retired (-want +got):\n%s", doc.ID, diff)
	}
	other.Sync(t.Context())
	wantSigningKey(t, other, next)
	if key, _ := s.Key(next); !key.Created.Equal(now) {
		t.Errorf("the new key is of %v", key.Created)
	}
}

// A retired key verifies as long as a token of it can be valid. The next replacement after
// that revokes it.
func TestRetiredKeysAreRevoked(t *testing.T) {
	t.Parallel()
	f := newFleet()
	now := testTime.Add(maxSigningAge)
	for _, id := range []string{"longer", "long", "recent"} {
		f.plantSigningKey(id, testTime)
	}
	f.plantSigningKey("own", testTime,
		retiredKey{"longer", now.Add(-10 * retirement)}, retiredKey{"long", now.Add(-retirement)}, retiredKey{"recent", now.Add(-retirement + 1)})
	s := newTestState(t, f.Join())
	*s.setTime() = now
	signingKey(t, s)
	wantKeys(t, s, "longer revoked", "long revoked", "recent live", "own live")
	want := []retiredKey{{"recent", now.Add(-retirement + 1)}, {"own", now}}
	if diff := cmp.Diff(want, storedSigningKey(t, f).Retired); diff != "" {
		t.Errorf("retired keys that verify (-want +got):\n%s", diff)
	}
}

// A signing key that was revoked or removed, here or elsewhere, no longer signs: its tokens
// would not play.
func TestSigningKeyThatIsGoneIsReplaced(t *testing.T) {
	t.Parallel()
	for what, change := range map[string]func(*fleet, *testState){
		"revoked here":       func(_ *fleet, s *testState) { _ = s.Revoke(context.Background(), "own") },
		"revoked elsewhere":  func(f *fleet, s *testState) { f.writeAll("own revoked") },
		"removed by hand":    func(f *fleet, s *testState) { f.Write(signingName, "") },
		"replaced elsewhere": func(f *fleet, s *testState) { f.plantSigningKey("next", testTime, retiredKey{"own", testTime}) },
	} {
		f, _, s := signingFleet(t)
		wantSigningKey(t, s, "own")
		change(f, s)
		s.Sync(t.Context())
		id := signingKey(t, s)
		if id == "own" || storedSigningKey(t, f).ID != id || (id == "next") != (what == "replaced elsewhere") {
			t.Errorf("%s: the key %s signs, and the store has %s", what, id, storedSigningKey(t, f).ID)
		}
		if strings.HasPrefix(what, "revoked") {
			wantKeys(t, s, "own revoked")
		}
	}
}

// S4: a damaged signing key is an error, each time. The gateway makes no other key by
// itself: otherwise somebody who damages the object could make it generate keys.
// RotateSigningKey replaces the damaged key.
func TestDamagedSigningKey(t *testing.T) {
	t.Parallel()
	good := string(must(json.Marshal(signingDocument{ID: "own", PEM: keyOf("own").PEM(), Created: testTime})))
	withPEM := func(text string) string {
		return string(must(json.Marshal(signingDocument{ID: "own", PEM: text, Created: testTime, Retired: []retiredKey{{"old", testTime}}})))
	}
	block, _ := pem.Decode(must(base64.StdEncoding.DecodeString(keyOf("own").PEM())))
	private := must(x509.ParsePKCS1PrivateKey(block.Bytes))
	publicPEM := pem.EncodeToMemory(&pem.Block{Type: "RSA PUBLIC KEY", Bytes: x509.MarshalPKCS1PublicKey(&private.PublicKey)})
	for what, data := range map[string]string{
		"damaged":      damaged,
		"null":         "null",
		"no object":    "[]",
		"empty":        "{}",
		"cut off":      withPEM(keyOf("own").PEM()[:400]),
		"no pem":       withPEM(""),
		"no base64":    withPEM("-----BEGIN"),
		"a public key": withPEM(base64.StdEncoding.EncodeToString(publicPEM)),
		"no id":        strings.Replace(good, `"id":"own"`, `"id":""`, 1),
		"no date":      strings.Replace(good, `"created":"2`, `"created":"x`, 1),
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			f, n, s := signingFleet(t)
			if len(what)%2 == 0 { // a node that knows the key, or one that does not
				wantSigningKey(t, s, "own")
			}
			f.Write(signingName, data)
			s.Sync(t.Context())
			for range 2 {
				if key, err := s.SigningKey(t.Context()); !errors.Is(err, ErrDamaged) || key != nil || strings.Contains(err.Error(), "BEGIN") {
					t.Fatalf("SigningKey = %v, %v, want ErrDamaged", key, err)
				}
			}
			if s.errors("decode") == 0 || n.Count("update") != 0 {
				t.Errorf("%d errors are counted, and %d objects written", s.errors("decode"), n.Count("update"))
			}
			rotated, err := s.RotateSigningKey(t.Context())
			if err != nil || rotated.ID == "own" {
				t.Fatalf("RotateSigningKey = %+v, %v", rotated, err)
			}
			wantSigningKey(t, s, rotated.ID)
		})
	}
}

// Rotation on demand replaces the key at once, also one that this node signs with and whose object is
// damaged since. It needs the store.
func TestRotation(t *testing.T) {
	t.Parallel()
	f, n, s := signingFleet(t)
	wantSigningKey(t, s, "own")
	next, err := s.RotateSigningKey(t.Context())
	if err != nil || next.ID == "own" || !next.Created.Equal(testTime) || !next.Own {
		t.Fatalf("RotateSigningKey = %+v, %v", next, err)
	}
	wantSigningKey(t, s, next.ID)
	wantKeys(t, s, "own live")
	f.Write(signingName, damaged)
	healed, err := s.RotateSigningKey(t.Context())
	if err != nil || healed.ID == next.ID {
		t.Fatalf("RotateSigningKey of a damaged key = %+v, %v", healed, err)
	}
	wantSigningKey(t, newTestState(t, f.Join()), healed.ID)
	n.Intercept(on("get", "", down), nil)
	if _, err := s.RotateSigningKey(t.Context()); !errors.Is(err, ErrUnavailable) {
		t.Errorf("RotateSigningKey = %v, want ErrUnavailable", err)
	}
}

// Without the store the gateway makes no key, and the known key still signs.
func TestSigningWithoutTheStore(t *testing.T) {
	t.Parallel()
	f, n, s := signingFleet(t)
	noSigningKey := on("get", signingName.ID(), down)
	n.Intercept(noSigningKey, nil)
	if key, err := s.SigningKey(t.Context()); !errors.Is(err, ErrUnavailable) || key != nil {
		t.Errorf("SigningKey = %v, %v, want ErrUnavailable", key, err)
	}
	n.Intercept(nil, nil)
	wantSigningKey(t, s, "own")
	f.plantSigningKey("next", testTime)
	for _, fails := range []step{noSigningKey, down} {
		n.Intercept(fails, nil)
		s.Sync(t.Context())
		wantSigningKey(t, s, "own")
		wantSigningKey(t, s, "own")
	}
	n.Intercept(nil, nil)
	wantSigningKey(t, s, "next")
	if got := storedSigningKey(t, f).ID; got != "next" {
		t.Errorf("the store has the key %s", got)
	}
}

// A key must not sign if its public half, or the pair for other nodes, could not be stored.
func TestSigningKeyThatCannotBeStored(t *testing.T) {
	t.Parallel()
	for what, collection := range map[string]store.Collection{"its public half": store.Keys, "the pair": store.Signing} {
		f, n, s := fleetWith(t)
		n.Intercept(on("update", "", func(ctx context.Context, operation string, name store.Name) error {
			if name.Collection() == collection {
				return down(ctx, operation, name)
			}
			return nil
		}), nil)
		if key, err := s.SigningKey(t.Context()); !errors.Is(err, ErrUnavailable) || key != nil || s.signer.own.Load() != nil {
			t.Errorf("%s cannot be stored: SigningKey = %v, %v, want ErrUnavailable", what, key, err)
		}
		if f.Data(signingName) != "" {
			t.Errorf("%s cannot be stored, and the store has the signing key", what)
		}
	}
}
