package controlapi

import (
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"

	"github.com/signed-playback/caddy-signed-playback/internal/state"
	"github.com/signed-playback/caddy-signed-playback/internal/store"
	"github.com/signed-playback/caddy-signed-playback/internal/store/storetest"
	"github.com/signed-playback/caddy-signed-playback/token"
)

// createKey makes a key and returns it as the client gets it.
func (c controlled) createKey(t *testing.T, change ...func(*http.Request)) createdKey {
	t.Helper()
	return resultOf[createdKey](t, "POST keys", c.call(t, "POST", "keys", "{}", change...))
}

func (c controlled) isRevoked(keyID string) bool { key, _ := c.State.Key(keyID); return key.Revoked }

// The answer contains one key pair in two forms. The store has its public half. The
// list has it before older keys, and has neither revoked keys nor the gateway's own.
func TestKeys(t *testing.T) {
	t.Parallel()
	c := control(t, nil)
	*c.clock = c.clock.Add(time.Microsecond)
	key := c.createKey(t)
	signing := must(token.ParseSigningKey([]byte(key.PEM), key.ID))
	block, _ := pem.Decode(must(base64.StdEncoding.DecodeString(key.PEM)))
	if _, err := x509.ParsePKCS1PrivateKey(block.Bytes); err != nil || block.Type != "RSA PRIVATE KEY" {
		t.Errorf("pem is a %s: %v", block.Type, err)
	}
	if other := must(token.ParseSigningKey([]byte(key.JWK), "")); other.ID() != key.ID || !other.Public().Equal(signing.Public()) {
		t.Errorf("pem and jwk are two keys: %s %s", key.ID, other.ID())
	}
	if stored, _ := c.State.Key(key.ID); !stored.Public.Equal(signing.Public()) || stored.Own || formatTime(stored.Created) != key.Created {
		t.Errorf("the store has %+v", stored)
	}
	if data := c.store.data(store.Keys, key.ID); strings.Contains(data, `"d"`) || strings.Contains(data, "PRIVATE") {
		t.Errorf("the store has the private half: %s", data)
	}
	list := resultOf[[]listedKey](t, "GET keys", c.call(t, "GET", "keys", ""))
	want := []listedKey{{key.ID, key.ID, key.Created}, {"k1", "k1", formatTime(testTime)}}
	if diff := cmp.Diff(want, list); diff != "" {
		t.Errorf("the list (-want +got):\n%s", diff)
	}
	for _, body := range []string{`{"id":"k2"}`, `{"exp":1}`} {
		wantReply(t, "POST keys "+body, c.call(t, "POST", "keys", body), 400, codeBadRequest)
		wantReply(t, "POST rotate "+body, c.call(t, "POST", "keys/rotate", body), 400, codeBadRequest)
	}
}

// A call revokes a key of any origin, more than once if it is repeated, and no unknown
// key. It finds a key that another node has just made.
func TestRevocation(t *testing.T) {
	t.Parallel()
	c := control(t, nil)
	for range 2 {
		for _, id := range []string{"k1", "gone"} {
			a := c.call(t, "DELETE", "keys/"+id, "")
			if wantReply(t, "DELETE "+id, a, 200, 0); string(a.result) != `"Revoked"` || !c.isRevoked(id) {
				t.Errorf("DELETE %s = %s, revoked: %t", id, a.raw, c.isRevoked(id))
			}
		}
	}
	wantReply(t, "DELETE of an unknown key", c.call(t, "DELETE", "keys/unknown", ""), 404, codeNotFound)
	if c.store.data(store.Keys, "unknown") != "" {
		t.Error("an unknown key is stored as revoked")
	}
	c.Revocable = func(keyID string) bool { return keyID == "of-a-key-file" }
	wantReply(t, "DELETE of a key of a key file", c.call(t, "DELETE", "keys/of-a-key-file", ""), 200, 0)
	if !c.isRevoked("of-a-key-file") {
		t.Error("a key of a key file is not revoked")
	}
	synctest.Test(t, func(t *testing.T) {
		c := control(t, nil)
		c.State.Start()
		c.store.plant(store.Keys, "new", strings.ReplaceAll(c.store.data(store.Keys, "k1"), `"k1"`, `"new"`))
		wantReply(t, "DELETE of a new key", c.call(t, "DELETE", "keys/new", ""), 200, 0)
		if !c.isRevoked("new") {
			t.Error("a new key of another node is not revoked")
		}
		c.State.Close()
	})
}

// A12: a client that repeats its call with an Idempotency-Key gets a new key, and the
// key before it is revoked, because nobody has its private half. The key of a client
// that cancels before the answer is revoked, too.
func TestRepeatedAndAbandonedCreations(t *testing.T) {
	t.Parallel()
	c := control(t, nil)
	first := c.createKey(t, with("Idempotency-Key", "one-secret")).ID
	other := c.createKey(t, with("Idempotency-Key", "two")).ID
	second := c.createKey(t, with("Idempotency-Key", "one-secret")).ID
	gone := c.createKey(t, func(r *http.Request) {
		ctx, cancel := context.WithCancel(r.Context())
		*r = *r.WithContext(ctx)
		c.store.Intercept(storetest.On("update", "", func(context.Context, string, store.Name) error { cancel(); return nil }), nil)
	}).ID
	for id, want := range map[string]bool{first: true, other: false, second: false, gone: true} {
		if c.isRevoked(id) != want {
			t.Errorf("%s is revoked: %t, want %t", id, !want, want)
		}
	}
	if data := fmt.Sprint(c.store.data(store.Keys, second), c.store.data(store.Keys, first)); strings.Contains(data, "one-secret") {
		t.Errorf("the store contains the Idempotency-Key itself: %s", data)
	}
}

// Rotation answers with the new key, which signs from then on.
func TestRotation(t *testing.T) {
	t.Parallel()
	c := control(t, nil)
	a := c.call(t, "POST", "keys/rotate", "")
	wantReply(t, "rotate", a, 200, 0)
	own := must(c.State.SigningKey(t.Context()))
	want := string(must(json.Marshal(listedKey{own.ID(), own.ID(), formatTime(testTime)})))
	if string(a.result) != want || own.ID() == "own" {
		t.Errorf("rotate = %s, want %s", a.raw, want)
	}
	if entry := c.logs.TakeAll()[0].ContextMap(); entry["id"] != own.ID() {
		t.Errorf("the log says %v", entry)
	}
}

// Until the keys have been read, a list is an error rather than empty, and no key is
// made or revoked.
func TestKeysThatAreNotKnown(t *testing.T) {
	t.Parallel()
	c := control(t, nil)
	m := newMemStore()
	m.Intercept(storetest.Down, nil)
	c.Revocable = func(string) bool { return false }
	c.State = state.New(state.Config{Store: m.Node, Logger: zap.NewNop, CountError: func(string) {}})
	for _, tc := range []struct{ method, path string }{{"GET", "keys"}, {"POST", "keys"}, {"DELETE", "keys/k1"}} {
		wantReply(t, tc.method, c.call(t, tc.method, tc.path, ""), 503, codeUnavailable)
	}
	if m.Count("update") != 0 {
		t.Error("the call has written to the store")
	}
}
