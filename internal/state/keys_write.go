package state

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
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

	errKeyExists = errors.New("there is a key with this id already")
)

// CreateKey makes a signing key and stores its public half. The private half is
// in the result alone. A call with the request of an earlier call replaces the
// key of that call, whose answer was lost; request is a digest of the
// Idempotency-Key, or "".
func (s *State) CreateKey(ctx context.Context, request string) (key *token.SigningKey, created time.Time, err error) {
	// Making a key takes a while, so first see whether it could be stored.
	if _, err := s.get(ctx, signingName); err != nil {
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
	err = s.writeKey(ctx, doc, func(present store.Object) (bool, error) {
		if present.Exists() {
			return false, errKeyExists
		}
		return true, nil
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
	err := s.writeKey(ctx, doc, func(present store.Object) (bool, error) {
		var known keyDocument
		isRevoked := present.Damage == nil && json.Unmarshal(present.Data, &known) == nil && !known.Revoked.IsZero()
		return !isRevoked, nil
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

// writeKey stores a key if wanted agrees with the present object.
func (s *State) writeKey(ctx context.Context, doc keyDocument, wanted func(present store.Object) (bool, error)) error {
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
