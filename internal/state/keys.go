package state

import (
	"context"
	"encoding/json"
	"errors"
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
// once more when it is revoked. A revocation stays for good, so that the id
// never works again.
type keyDocument struct {
	ID      string          `json:"id"`
	Created time.Time       `json:"created,omitzero"`
	JWK     json.RawMessage `json:"jwk,omitempty"` // the public half; none in a revocation

	// The gateway itself signs with the key.
	Own bool `json:"own,omitempty"`

	// A digest of the Idempotency-Key of the call that has made the key.
	Request string `json:"request,omitempty"`

	Revoked time.Time `json:"revoked,omitzero"`
}

// Key is what the store says about a key id. At most one of Public, Revoked and
// Damage is set; none if there is no such key.
type Key struct {
	ID      string
	Public  *token.PublicKey
	Created time.Time
	Own     bool   // the gateway itself signs with it
	Request string // a digest of the Idempotency-Key of the call that has made it
	Revoked bool
	Damage  error // the key cannot be read, so it must not be used
}

var errOtherContent = errors.New("it contains another key or none")

func (s *State) decodeKey(object store.Object) Key {
	key := Key{ID: object.Name.ID()}
	if !object.Exists() {
		return key
	}
	var doc keyDocument
	if key.Damage = s.decode(object, &doc); key.Damage != nil {
		return key
	}
	if !doc.Revoked.IsZero() {
		key.Revoked = true
		return key
	}
	public, err := token.ParsePublicKeys(doc.JWK, "")
	if err != nil || len(public) != 1 || public[0].ID() != key.ID || doc.ID != key.ID {
		key.Damage = s.damaged(object.Name, errOtherContent)
		return key
	}
	key.Public, key.Created, key.Own, key.Request = public[0], doc.Created, doc.Own, doc.Request
	return key
}

// readKeys reads all keys. A key that cannot be read, although the store
// answers, is not used until it can be read: it may have been revoked.
func (s *State) readKeys(ctx context.Context) (failure error) {
	reload := s.keys.beginReload()
	for object, err := range s.store.All(ctx, store.Keys) {
		switch {
		case err == nil:
			reload.add(s.decodeKey(object))
		case object.Name == store.Name{}:
			reload.abandon()
			return s.failed("list", err)
		default:
			failure = s.failed("get", err)
			reload.add(Key{ID: object.Name.ID(), Damage: err})
		}
	}
	s.missingRevocations = append(s.missingRevocations, reload.commit()...)
	return failure
}

// readKey reads one key.
func (s *State) readKey(ctx context.Context, keyID string) error {
	name, err := store.NewName(store.Keys, keyID)
	if err != nil {
		return err
	}
	object, err := s.get(ctx, name)
	if err != nil {
		return err
	}
	s.keys.publish(s.decodeKey(object))
	return nil
}

// keys are the keys as this node knows them: an immutable snapshot, replaced on
// each change. A revocation is never forgotten.
type keys struct {
	snapshot atomic.Pointer[map[string]Key] // nil until the keys have been read

	mu      sync.Mutex // held while the snapshot is replaced
	revoked map[string]struct{}
	reload  *keyReload // the one under way, if any
}

// KeysKnown reports whether the keys have been read. Until then, nothing is
// known of any key.
func (k *keys) KeysKnown() bool { return k.snapshot.Load() != nil }

// Key returns what is known of a key. known is false if the keys have not been
// read.
func (k *keys) Key(keyID string) (key Key, known bool) {
	snapshot := k.snapshot.Load()
	if snapshot == nil {
		return Key{}, false
	}
	return (*snapshot)[keyID], true
}

// LiveKeys returns the keys that verify, newest first.
func (k *keys) LiveKeys() []Key {
	snapshot := k.snapshot.Load()
	if snapshot == nil {
		return nil
	}
	live := slices.Collect(maps.Values(*snapshot))
	live = slices.DeleteFunc(live, func(key Key) bool { return key.Public == nil })
	slices.SortFunc(live, func(a, b Key) int {
		if order := b.Created.Compare(a.Created); order != 0 {
			return order
		}
		return strings.Compare(a.ID, b.ID)
	})
	return live
}

// publish puts one key into the snapshot.
func (k *keys) publish(key Key) {
	k.mu.Lock()
	defer k.mu.Unlock()
	key = k.remember(key)
	if k.reload != nil {
		k.reload.overtaken[key.ID] = key
	}
	present := k.snapshot.Load()
	if present == nil {
		return // the first reading will find it
	}
	next := maps.Clone(*present)
	setKey(next, key)
	k.snapshot.Store(&next)
}

// remember keeps revocations for good: a reading of a key from before its
// revocation does not bring it back.
func (k *keys) remember(key Key) Key {
	if key.Revoked {
		if k.revoked == nil {
			k.revoked = make(map[string]struct{})
		}
		k.revoked[key.ID] = struct{}{}
	}
	if _, revoked := k.revoked[key.ID]; revoked {
		return Key{ID: key.ID, Revoked: true}
	}
	return key
}

// setKey puts a key into a map, or removes one that does not exist.
func setKey(all map[string]Key, key Key) {
	if key.Public == nil && !key.Revoked && key.Damage == nil {
		delete(all, key.ID)
		return
	}
	all[key.ID] = key
}

// forget gives up the snapshot, but no revocation.
func (k *keys) forget() { k.snapshot.Store(nil) }

// keyReload replaces all keys by those of the store.
type keyReload struct {
	keys      *keys
	found     map[string]Key
	overtaken map[string]Key // published since the reload began
}

func (k *keys) beginReload() *keyReload {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.reload = &keyReload{keys: k, found: make(map[string]Key), overtaken: make(map[string]Key)}
	return k.reload
}

func (r *keyReload) add(key Key) { setKey(r.found, key) }

// abandon ends a reload that has failed. The revocations that it has found are
// in force all the same.
func (r *keyReload) abandon() {
	k := r.keys
	k.mu.Lock()
	k.reload = nil
	k.mu.Unlock()
	for _, key := range r.found {
		if known, _ := k.Key(key.ID); key.Revoked && !known.Revoked {
			k.publish(key)
		}
	}
}

// commit publishes what was read. It returns the revoked keys that are not
// revoked in the store.
func (r *keyReload) commit() (missingRevocations []string) {
	k := r.keys
	k.mu.Lock()
	defer k.mu.Unlock()
	k.reload = nil
	for _, key := range r.overtaken {
		setKey(r.found, key)
	}
	for keyID := range k.revoked {
		if !r.found[keyID].Revoked {
			missingRevocations = append(missingRevocations, keyID)
			r.found[keyID] = Key{ID: keyID, Revoked: true}
		}
	}
	for _, key := range r.found {
		k.remember(key)
	}
	k.snapshot.Store(&r.found)
	return missingRevocations
}

// ValidKeyID reports whether the store can have a key with this id: 1 to
// MaxKeyID of A-Z a-z 0-9 _ - . ~, and neither "." nor "..".
func ValidKeyID(keyID string) bool { return store.ValidID(keyID) }

// MaxKeyID is the maximum length of a key id, in bytes.
const MaxKeyID = store.MaxID
