package signedplayback

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/signed-playback/caddy-signed-playback/internal/store"
	"github.com/signed-playback/caddy-signed-playback/token"
)

// keyDocument is a key in the store. It is written when the key is made, and
// once more when it is revoked; a revocation stays for good, so that the id
// never works again.
type keyDocument struct {
	ID      string          `json:"id"`
	Created time.Time       `json:"created,omitzero"`
	JWK     json.RawMessage `json:"jwk,omitempty"` // the public half; none in a revocation

	// The key is one with which the gateway itself signs.
	Own bool `json:"own,omitempty"`

	// A digest of the Idempotency-Key of the call that has made the key.
	Request string `json:"request,omitempty"`

	Revoked time.Time `json:"revoked,omitzero"`
}

// storedKey is a key of the store as it is used: exactly one of public, revoked
// and damage is set, or none if the key does not exist.
type storedKey struct {
	id      string
	public  *token.PublicKey
	created time.Time
	own     bool
	request string
	revoked bool
	damage  error
}

func (s *state) decodeKey(object store.Object) storedKey {
	key := storedKey{id: object.Name.ID()}
	if object.Data == nil && object.Damage == nil {
		return key
	}
	var doc keyDocument
	if key.damage = s.decode(object, &doc); key.damage != nil {
		return key
	}
	if !doc.Revoked.IsZero() {
		key.revoked = true
		return key
	}
	public, err := token.ParsePublicKeys(doc.JWK, "")
	if err != nil || len(public) != 1 || public[0].ID() != key.id || doc.ID != key.id {
		object.Damage = fmt.Errorf("%w: %s: it does not hold that key", store.ErrDamaged, object.Name)
		key.damage = s.decode(object, nil)
		return key
	}
	key.public, key.created, key.own, key.request = public[0], doc.Created, doc.Own, doc.Request
	return key
}

// storedKeys are the keys of the store as this node knows them: an immutable
// snapshot, replaced on each change. A revocation is never forgotten.
type storedKeys struct {
	snapshot atomic.Pointer[map[string]storedKey] // nil until the keys have been read

	mu      sync.Mutex // held while the snapshot is replaced
	revoked map[string]struct{}
	reload  *keyReload // the one under way, if any
}

// known reports whether the keys have been read.
func (k *storedKeys) known() bool { return k.snapshot.Load() != nil }

// get returns what is known of a key; ok is false if nothing can be said,
// because the keys have not been read.
func (k *storedKeys) get(keyID string) (key storedKey, ok bool) {
	snapshot := k.snapshot.Load()
	if snapshot == nil {
		return storedKey{}, false
	}
	return (*snapshot)[keyID], true
}

// live returns the keys that verify, newest first.
func (k *storedKeys) live() []storedKey {
	snapshot := k.snapshot.Load()
	if snapshot == nil {
		return nil
	}
	keys := slices.Collect(maps.Values(*snapshot))
	keys = slices.DeleteFunc(keys, func(key storedKey) bool { return key.public == nil })
	slices.SortFunc(keys, func(a, b storedKey) int {
		if order := b.created.Compare(a.created); order != 0 {
			return order
		}
		return strings.Compare(a.id, b.id)
	})
	return keys
}

// publish puts one key into the snapshot.
func (k *storedKeys) publish(key storedKey) {
	k.mu.Lock()
	defer k.mu.Unlock()
	key = k.remember(key)
	if k.reload != nil {
		k.reload.overtaken[key.id] = key
	}
	present := k.snapshot.Load()
	if present == nil {
		return // the first reading will find it
	}
	next := maps.Clone(*present)
	put(next, key)
	k.snapshot.Store(&next)
}

// remember keeps revocations for good: what has been read of a key before it
// was revoked does not bring it back.
func (k *storedKeys) remember(key storedKey) storedKey {
	if key.revoked {
		if k.revoked == nil {
			k.revoked = make(map[string]struct{})
		}
		k.revoked[key.id] = struct{}{}
	}
	if _, revoked := k.revoked[key.id]; revoked {
		return storedKey{id: key.id, revoked: true}
	}
	return key
}

func put(keys map[string]storedKey, key storedKey) {
	if key.public == nil && !key.revoked && key.damage == nil {
		delete(keys, key.id)
		return
	}
	keys[key.id] = key
}

// forget gives up the snapshot, but no revocation.
func (k *storedKeys) forget() { k.snapshot.Store(nil) }

// keyReload replaces all keys by what the store holds.
type keyReload struct {
	keys      *storedKeys
	found     map[string]storedKey
	overtaken map[string]storedKey // published since the reload began
}

func (k *storedKeys) beginReload() *keyReload {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.reload = &keyReload{keys: k, found: make(map[string]storedKey), overtaken: make(map[string]storedKey)}
	return k.reload
}

func (r *keyReload) add(key storedKey) { put(r.found, key) }

// abandon ends a reload that has failed. The revocations that it has found are in
// force all the same.
func (r *keyReload) abandon() {
	k := r.keys
	k.mu.Lock()
	k.reload = nil
	k.mu.Unlock()
	for _, key := range r.found {
		if known, _ := k.get(key.id); key.revoked && !known.revoked {
			k.publish(key)
		}
	}
}

// commit publishes what was read. It returns the keys that are known to be
// revoked and of which the store does not say so.
func (r *keyReload) commit() (lost []string) {
	k := r.keys
	k.mu.Lock()
	defer k.mu.Unlock()
	k.reload = nil
	for _, key := range r.overtaken {
		put(r.found, key)
	}
	for keyID := range k.revoked {
		if !r.found[keyID].revoked {
			lost = append(lost, keyID)
			r.found[keyID] = storedKey{id: keyID, revoked: true}
		}
	}
	for _, key := range r.found {
		k.remember(key)
	}
	k.snapshot.Store(&r.found)
	return lost
}

// createKey stores the public half of a key.
func (s *state) createKey(ctx context.Context, key *token.PublicKey, own bool, request string) (created time.Time, err error) {
	jwk, err := key.JWK()
	if err != nil {
		return time.Time{}, err
	}
	// Cloudflare's list has microseconds.
	doc := keyDocument{ID: key.ID(), Created: s.now().UTC().Truncate(time.Microsecond), JWK: jwk, Own: own, Request: request}
	err = s.writeKey(ctx, doc, func(present store.Object) (bool, error) {
		if present.Data != nil || present.Damage != nil {
			return false, fmt.Errorf("%w: there is a key %q already", errKeyID, doc.ID)
		}
		return true, nil
	})
	if err != nil {
		s.generator.failures.Add(1)
		return time.Time{}, err
	}
	s.keys.publish(storedKey{id: doc.ID, public: key, created: doc.Created, own: own, request: request})
	return doc.Created, nil
}

var errKeyID = errors.New("key id is taken")

// revoke stores that a key is revoked, whoever has made it, and from then on it
// is.
func (s *state) revoke(ctx context.Context, keyID string) error {
	doc := keyDocument{ID: keyID, Revoked: s.now().UTC().Truncate(time.Microsecond)}
	if key, _ := s.keys.get(keyID); key.public != nil {
		doc.Created = key.created
	}
	err := s.writeKey(ctx, doc, func(present store.Object) (bool, error) {
		var known keyDocument
		isRevoked := present.Damage == nil && json.Unmarshal(present.Data, &known) == nil && !known.Revoked.IsZero()
		return !isRevoked, nil
	})
	if err != nil {
		return err
	}
	s.keys.publish(storedKey{id: keyID, revoked: true})
	return nil
}

// writeKey stores a key if wanted says so of what is there.
func (s *state) writeKey(ctx context.Context, doc keyDocument, wanted func(present store.Object) (bool, error)) error {
	name, err := store.NewName(store.Keys, doc.ID)
	if err != nil {
		return err
	}
	data, err := json.Marshal(doc)
	if err != nil {
		return fmt.Errorf("encoding key %q: %w", doc.ID, err)
	}
	return s.update(ctx, name, func(present store.Object) ([]byte, error) {
		if ok, err := wanted(present); !ok || err != nil {
			return present.Data, err
		}
		return data, nil
	})
}
