package controlapi

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"time"

	"github.com/signed-playback/caddy-signed-playback/internal/state"
	"github.com/signed-playback/caddy-signed-playback/internal/strictjson"
)

// createdKey is a new key as the API returns it, once. The gateway keeps only the
// public half.
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

// formatTime returns RFC 3339 with microseconds, like Cloudflare's lists.
func formatTime(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000000Z07:00") }

// createKey makes a signing key. A repeated call (Idempotency-Key) replaces the key of
// the call before: the gateway does not keep the private half, so it cannot repeat the
// lost answer. For the same reason a key is revoked whose client has cancelled the request.
func (c *call) createKey(body strictjson.Value) (any, error) {
	if err := (members{}).read(body); err != nil {
		return nil, err
	}
	key, created, err := c.State.CreateKey(c.ctx(), c.requestDigest())
	if err != nil {
		return nil, err
	}
	c.subject = key.ID()
	jwk, err := key.JWK()
	if err != nil || c.ctx().Err() != nil {
		c.State.Discard(context.WithoutCancel(c.ctx()), key.ID())
	}
	if err != nil {
		return nil, err
	}
	return createdKey{key.ID(), key.PEM(), jwk, formatTime(created)}, nil
}

// requestDigest returns a digest of the Idempotency-Key, "" if there is none.
func (c *call) requestDigest() string {
	value := c.request.Header.Get("Idempotency-Key")
	if value == "" {
		return ""
	}
	sum := sha256.Sum256([]byte(value))
	return hex.EncodeToString(sum[:])
}

// listKeys lists the keys that the API has made and not revoked.
func (c *call) listKeys(strictjson.Value) (any, error) {
	if !c.State.KeysKnown() {
		return nil, state.ErrUnavailable
	}
	list := []listedKey{}
	for _, key := range c.State.LiveKeys() {
		if !key.Own {
			list = append(list, listedKey{key.ID, key.ID, formatTime(key.Created)})
		}
	}
	return list, nil
}

// deleteKey revokes a key of any origin, also of a key file or of the remote key set.
func (c *call) deleteKey(strictjson.Value) (any, error) {
	keyID := c.subject
	if !state.ValidKeyID(keyID) {
		return nil, badRequest("key id %.80q: want 1 to %d of A-Z a-z 0-9 _ - . ~", keyID, state.MaxKeyID)
	}
	if !c.State.KeysKnown() {
		return nil, state.ErrUnavailable
	}
	if !c.Revocable(keyID) {
		c.State.CatchUp(c.ctx())
	}
	if !c.Revocable(keyID) {
		return nil, refuse(http.StatusNotFound, codeNotFound, "there is no key %q", keyID)
	}
	return "Revoked", c.State.Revoke(c.ctx(), keyID)
}

// rotateKey replaces the gateway's own signing key. Its tokens remain valid.
func (c *call) rotateKey(body strictjson.Value) (any, error) {
	if err := (members{}).read(body); err != nil {
		return nil, err
	}
	key, err := c.State.RotateSigningKey(c.ctx())
	if err != nil {
		return nil, err
	}
	c.subject = key.ID
	return listedKey{key.ID, key.ID, formatTime(key.Created)}, nil
}
