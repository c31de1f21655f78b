package signedplayback

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"time"

	"github.com/signed-playback/caddy-signed-playback/internal/store"
	"github.com/signed-playback/caddy-signed-playback/internal/strictjson"
	"github.com/signed-playback/caddy-signed-playback/token"
)

// maxKeys is how many keys may verify at a time, besides the gateway's own.
const maxKeys = 1000

// createdKey is a key as the API returns it, once. The gateway keeps the public
// half only.
type createdKey struct {
	ID      string `json:"id"`
	PEM     string `json:"pem"`
	JWK     string `json:"jwk"`
	Created string `json:"created"`
}

// listedKey is an element of the list of keys.
type listedKey struct {
	ID      string `json:"id"`
	KeyID   string `json:"key_id"`
	Created string `json:"created"`
}

// apiTime is RFC 3339 with microseconds, as Cloudflare's lists have it.
func apiTime(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000000Z07:00") }

// createKey makes a signing key. A call that repeats another (Idempotency-Key)
// replaces the key of that one, whose answer was lost: a private half is not
// kept, so it cannot be told again.
func (c *call) createKey(body strictjson.Value) (any, error) {
	if err := members(body, nil); err != nil {
		return nil, err
	}
	state, ctx := c.api.app.state, c.request.Context()
	// Making a key takes a while, so first see whether it could be stored.
	if _, err := state.get(ctx, signingName()); err != nil {
		return nil, err
	}
	leave, err := state.generator.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	request := c.requestDigest()
	if err := state.mayCreate(request); err != nil {
		return nil, err
	}
	key, err := token.GenerateSigningKey("")
	if err != nil {
		return nil, err
	}
	jwk, err := key.JWK()
	if err != nil {
		return nil, err
	}
	created, err := state.createKey(ctx, key.Public(), false, request)
	if err != nil {
		return nil, err
	}
	if request != "" {
		if err := state.revokeRepeated(ctx, request, key.ID()); err != nil {
			state.discard(ctx, key.ID()) // nobody is told its private half
			return nil, err
		}
	}
	c.subject = key.ID()
	c.finish = func() { state.discard(context.WithoutCancel(ctx), key.ID()) }
	return createdKey{key.ID(), key.PEM(), jwk, apiTime(created)}, nil
}

// requestDigest returns a digest of the Idempotency-Key, "" without one.
func (c *call) requestDigest() string {
	value := c.request.Header.Get("Idempotency-Key")
	if value == "" {
		return ""
	}
	sum := sha256.Sum256([]byte(value))
	return hex.EncodeToString(sum[:])
}

// mayCreate reports whether there is room for one more key.
func (s *state) mayCreate(request string) error {
	if s.away.Load() || !s.keys.known() {
		return errStoreAway
	}
	count := 0
	for _, key := range s.keys.live() {
		if !key.own && (request == "" || key.request != request) {
			count++
		}
	}
	if count >= maxKeys {
		return badRequest("there are %d keys already, which is the limit; revoke one first", count)
	}
	return nil
}

// revokeRepeated revokes the keys that earlier attempts of a call have made.
func (s *state) revokeRepeated(ctx context.Context, request, except string) error {
	for _, key := range s.keys.live() {
		if key.request != request || key.id == except {
			continue
		}
		if err := s.revoke(ctx, key.id); err != nil {
			return err
		}
	}
	return nil
}

// listKeys lists the keys that the API has made and that are not revoked.
func (c *call) listKeys(strictjson.Value) (any, error) {
	state := c.api.app.state
	if !state.keys.known() {
		return nil, errStoreAway
	}
	list := []listedKey{}
	for _, key := range state.keys.live() {
		if !key.own {
			list = append(list, listedKey{key.id, key.id, apiTime(key.created)})
		}
	}
	return list, nil
}

// deleteKey revokes a key, wherever it comes from: one of a key file or of the
// remote key set does not verify from now on either.
func (c *call) deleteKey(strictjson.Value) (any, error) {
	keyID := c.subject
	if _, err := store.NewName(store.Keys, keyID); err != nil {
		return nil, badRequest("key id %.80q: want 1 to %d of A-Z a-z 0-9 _ - . ~", keyID, store.MaxID)
	}
	app := c.api.app
	if !app.state.keys.known() {
		return nil, errStoreAway
	}
	if app.keys.revocable(keyID) {
		return "Revoked", app.state.revoke(c.request.Context(), keyID)
	}
	app.state.catchUp(c.request.Context())
	if app.keys.revocable(keyID) {
		return "Revoked", app.state.revoke(c.request.Context(), keyID)
	}
	return nil, failure(http.StatusNotFound, codeNotFound, "there is no key %q", keyID)
}

// rotateKey replaces the key with which the gateway itself signs. Tokens that
// are out remain good.
func (c *call) rotateKey(body strictjson.Value) (any, error) {
	if err := members(body, nil); err != nil {
		return nil, err
	}
	ctx := c.request.Context()
	signer := &c.api.app.state.signer
	old, err := signer.read(ctx)
	if err != nil && !isDamaged(err) { // what is damaged is replaced
		return nil, err
	}
	key, err := signer.rotate(ctx, old)
	if err != nil {
		return nil, err
	}
	c.subject = key.ID()
	stored, _ := c.api.app.state.keys.get(key.ID())
	return listedKey{key.ID(), key.ID(), apiTime(stored.created)}, nil
}
