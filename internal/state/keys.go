package state

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

	"go.uber.org/zap"

	"github.com/signed-playback/caddy-signed-playback/internal/queue"
	"github.com/signed-playback/caddy-signed-playback/internal/store"
	"github.com/signed-playback/caddy-signed-playback/token"
)

const (
	// MaxKeys is how many keys may verify at a time, besides the gateway's own.
	MaxKeys = 1000

	// Keys are made one at a time: each takes a processor for a moment, which
	// playback needs too. So many calls may wait, each for so long.
	maxWaitingForKey = 32
	maxWaitForKey    = time.Minute
)

var (
	// ErrTooManyKeys is the error of calls that make a key while many others do.
	ErrTooManyKeys = errors.New("too many keys are being made at once; try again in a moment")

	// ErrKeyLimit is the error of CreateKey when there are MaxKeys keys.
	ErrKeyLimit = fmt.Errorf("there are %d keys already, which is the limit; revoke one first", MaxKeys)

	errKeyExists    = errors.New("there is a key with this id already")
	errOtherContent = errors.New("it contains another key or none")
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
	s.keys.beginReading()
	found, complete := make(map[string]Key), true
	for object, err := range store.All(ctx, s.store, store.Keys) {
		switch {
		case err == nil:
			setKey(found, s.decodeKey(object))
		case object.Name == store.Name{}:
			failure, complete = s.failed("list", err), false
		default:
			failure = s.failed("get", err)
			setKey(found, Key{ID: object.Name.ID(), Damage: err})
		}
	}
	missing := s.keys.commit(found, complete)
	s.missingRevocations = append(s.missingRevocations, missing...)
	return failure
}

// readKey reads one key.
func (s *State) readKey(ctx context.Context, keyID string) error {
	name, err := store.NewName(store.Keys, keyID)
	if err != nil {
		return err
	}
	object, err := s.get(ctx, name, store.Server)
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

	mu        sync.Mutex // held while the snapshot is replaced
	revoked   map[string]struct{}
	published map[string]Key // since the reading under way began, if any
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
	if k.published != nil {
		k.published[key.ID] = key
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

func (k *keys) beginReading() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.published = make(map[string]Key)
}

// commit replaces the snapshot by the keys that were found. If the reading has failed, so
// that they are not complete, it takes over their revocations only. It returns the revoked
// keys that are not revoked in the store.
func (k *keys) commit(found map[string]Key, complete bool) (missingRevocations []string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	published, next := k.published, found
	k.published = nil
	for _, key := range found {
		k.remember(key)
	}
	if !complete {
		present := k.snapshot.Load()
		if present == nil {
			return nil
		}
		next = maps.Clone(*present)
	}
	for _, key := range published {
		setKey(next, key)
	}
	for keyID := range k.revoked {
		if next[keyID].Revoked {
			continue
		}
		next[keyID] = Key{ID: keyID, Revoked: true}
		if complete {
			missingRevocations = append(missingRevocations, keyID)
		}
	}
	k.snapshot.Store(&next)
	return missingRevocations
}

// ValidKeyID reports whether the store can have a key with this id: 1 to
// MaxKeyID of A-Z a-z 0-9 _ - . ~, and neither "." nor "..".
func ValidKeyID(keyID string) bool { return store.ValidID(keyID) }

// MaxKeyID is the maximum length of a key id, in bytes.
const MaxKeyID = store.MaxID

// CreateKey makes a signing key and stores its public half. The private half is
// in the result alone. A call with the request of an earlier call replaces the
// key of that call, whose answer was lost; request is a digest of the
// Idempotency-Key, or "".
func (s *State) CreateKey(ctx context.Context, request string) (key *token.SigningKey, created time.Time, err error) {
	// Making a key takes a while, so first see whether it could be stored.
	if _, err := s.get(ctx, signingName, store.Server); err != nil {
		return nil, time.Time{}, err
	}
	leave, err := s.enterMaking(ctx)
	if err != nil {
		return nil, time.Time{}, err
	}
	defer leave()
	if err := s.mayCreate(request); err != nil {
		return nil, time.Time{}, err
	}
	if key, err = s.newKey(); err != nil {
		return nil, time.Time{}, err
	}
	if created, err = s.storeKey(ctx, key.Public(), false, request); err != nil {
		return nil, time.Time{}, err
	}
	if err := s.revokeRepeated(ctx, request, key.ID()); err != nil {
		s.Discard(ctx, key.ID()) // nobody gets its private half
		return nil, time.Time{}, err
	}
	return key, created, nil
}

// enterMaking waits for the caller's turn to make a key. The caller must call
// leave when the key is stored, unless there is an error. When the store turns
// out to be unavailable, all waiting calls end with that error, rather than each
// in its turn.
func (s *State) enterMaking(ctx context.Context) (leave func(), err error) {
	failed := s.makingFailed.Load()
	switch err := s.making.Enter(ctx, 1); {
	case errors.Is(err, queue.ErrFull), errors.Is(err, queue.ErrTimeout):
		return nil, ErrTooManyKeys
	case err != nil:
		return nil, err
	}
	if s.makingFailed.Load() != failed {
		s.making.Leave(1)
		return nil, errNoAnswer
	}
	return func() { s.making.Leave(1) }, nil
}

// mayCreate reports whether there is room for one more key.
func (s *State) mayCreate(request string) error {
	if s.Unavailable() || !s.KeysKnown() {
		return errNoAnswer
	}
	count := 0
	for _, key := range s.LiveKeys() {
		if !key.Own && (request == "" || key.Request != request) {
			count++
		}
	}
	if count >= MaxKeys {
		return ErrKeyLimit
	}
	return nil
}

// revokeRepeated revokes the keys that earlier attempts of a call have made.
func (s *State) revokeRepeated(ctx context.Context, request, except string) error {
	for _, key := range s.LiveKeys() {
		if request == "" || key.Request != request || key.ID == except {
			continue
		}
		if err := s.Revoke(ctx, key.ID); err != nil {
			return err
		}
	}
	return nil
}

// storeKey stores the public half of a key.
func (s *State) storeKey(ctx context.Context, key *token.PublicKey, own bool, request string) (created time.Time, err error) {
	jwk, err := key.JWK()
	if err != nil {
		return time.Time{}, err
	}
	doc := keyDocument{ID: key.ID(), Created: s.date(), JWK: jwk, Own: own, Request: request}
	err = s.writeKey(ctx, doc, func(present store.Object, data []byte) ([]byte, error) {
		if present.Exists() {
			return nil, errKeyExists
		}
		return data, nil
	})
	if err != nil {
		s.makingFailed.Add(1)
		return time.Time{}, err
	}
	s.keys.publish(Key{ID: doc.ID, Public: key, Created: doc.Created, Own: own, Request: request})
	return doc.Created, nil
}

// date returns the time as it is stored: in microseconds, like in Cloudflare's
// lists.
func (s *State) date() time.Time { return s.now().UTC().Truncate(time.Microsecond) }

// Revoke revokes a key of any origin, and then it is in force on this node. The
// id need not be that of a known key.
func (s *State) Revoke(ctx context.Context, keyID string) error {
	doc := keyDocument{ID: keyID, Revoked: s.date()}
	if key, _ := s.Key(keyID); key.Public != nil {
		doc.Created = key.Created
	}
	err := s.writeKey(ctx, doc, func(present store.Object, data []byte) ([]byte, error) {
		var known keyDocument
		if present.Damage == nil && json.Unmarshal(present.Data, &known) == nil && !known.Revoked.IsZero() {
			return present.Data, nil
		}
		return data, nil
	})
	if err != nil {
		return err
	}
	s.keys.publish(Key{ID: keyID, Revoked: true})
	return nil
}

// Discard revokes a key that nobody will sign with. If that fails, the key is
// left over.
func (s *State) Discard(ctx context.Context, keyID string) {
	if err := s.Revoke(ctx, keyID); err != nil {
		s.logger().Warn("could not revoke a key that nobody will sign with", zap.String("key_id", keyID), zap.Error(err))
	}
}

// writeKey changes the object of a key. data is that of the document.
func (s *State) writeKey(ctx context.Context, doc keyDocument, change func(present store.Object, data []byte) ([]byte, error)) error {
	name, err := store.NewName(store.Keys, doc.ID)
	if err != nil {
		return err
	}
	data, err := json.Marshal(doc)
	if err != nil {
		return fmt.Errorf("encoding key %q: %w", doc.ID, err)
	}
	return s.update(ctx, name, func(present store.Object) ([]byte, error) { return change(present, data) })
}
