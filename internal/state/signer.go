package state

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/signed-playback/caddy-signed-playback/internal/store"
	"github.com/signed-playback/caddy-signed-playback/token"
)

const (
	// maxSigningAge is the age at which the gateway's own key is replaced.
	maxSigningAge = 30 * 24 * time.Hour

	// retirement is how long a key goes on verifying after its replacement: the
	// longest lifetime of a token that it may have signed, and an hour for
	// clocks that differ.
	retirement = MaxTokenLifetime + time.Hour
)

var signingName = mustName(store.Signing, "current")

// mustName names an object whose id is a constant.
func mustName(collection store.Collection, id string) store.Name {
	name, err := store.NewName(collection, id)
	if err != nil {
		panic(err)
	}
	return name
}

// signingDocument is the gateway's own signing key in the store. Its public
// half is a key like others, marked as own, so that every node verifies with it.
type signingDocument struct {
	ID      string       `json:"id"`
	PEM     string       `json:"pem"` // standard base64 of a PKCS#1 PEM
	Created time.Time    `json:"created"`
	Retired []retiredKey `json:"retired,omitempty"`
}

// retiredKey is a key that signs no more. It is revoked when its last token has
// expired.
type retiredKey struct {
	ID   string    `json:"id"`
	When time.Time `json:"when"`
}

// signer is the gateway's own signing key as this node knows it.
type signer struct {
	own   atomic.Pointer[ownKey] // nil until it is needed
	stale atomic.Bool            // it may have been replaced: it signs until the store answers
}

type ownKey struct {
	signingDocument
	key *token.SigningKey // nil if it is damaged
}

// SigningKey returns the gateway's own signing key, and makes one if there is
// none or it is too old. It wraps ErrDamaged if the stored key is damaged:
// RotateSigningKey replaces it.
func (s *State) SigningKey(ctx context.Context) (*token.SigningKey, error) {
	own := s.signer.own.Load()
	if stale := s.signer.stale.Swap(false); stale || own == nil {
		stored, err := s.readSigningKey(ctx)
		switch {
		case err == nil:
			own = stored
			s.signer.own.Store(own)
		case errors.Is(err, ErrDamaged):
			s.signer.own.Store(nil)
			return nil, err
		case own == nil:
			return nil, err
		default:
			s.signer.stale.Store(true)
		}
	}
	if own == nil {
		return s.replaceSigningKey(ctx, nil)
	}
	usable, err := s.usable(ctx, own)
	if err != nil {
		return nil, err
	}
	if !usable {
		return s.replaceSigningKey(ctx, own)
	}
	return own.key, nil
}

// usable reports whether a key still verifies and is not too old. This node may
// not have heard yet of a key that another node has just made.
func (s *State) usable(ctx context.Context, own *ownKey) (bool, error) {
	key, _ := s.Key(own.ID)
	if key.Public == nil && !key.Revoked {
		if err := s.readKey(ctx, own.ID); err != nil {
			return false, err
		}
		key, _ = s.Key(own.ID)
	}
	return key.Public != nil && s.now().Sub(own.Created) < maxSigningAge, nil
}

// readSigningKey returns the key of the store, nil if there is none.
func (s *State) readSigningKey(ctx context.Context) (*ownKey, error) {
	object, err := s.get(ctx, signingName, store.Server)
	if err != nil || !object.Exists() {
		return nil, err
	}
	own, err := s.decodeSigningKey(object)
	if err != nil {
		return nil, err
	}
	return own, nil
}

// decodeSigningKey returns what is known of a damaged key, too.
func (s *State) decodeSigningKey(object store.Object) (*ownKey, error) {
	var doc signingDocument
	if err := s.decode(object, &doc); err != nil {
		return new(ownKey), err
	}
	key, err := token.ParseSigningKey([]byte(doc.PEM), doc.ID)
	if err != nil {
		err = s.damaged(object.Name, errOtherContent) // the error of the parser may quote the key
	}
	return &ownKey{doc, key}, err
}

// RotateSigningKey replaces the gateway's own signing key, damaged or not.
// Tokens of the key before it remain valid.
func (s *State) RotateSigningKey(ctx context.Context) (Key, error) {
	old, err := s.readSigningKey(ctx)
	switch {
	case errors.Is(err, ErrDamaged):
		s.signer.own.Store(nil) // else the known key would pass for one that is newer
	case err != nil:
		return Key{}, err
	}
	key, err := s.replaceSigningKey(ctx, old)
	if err != nil {
		return Key{}, err
	}
	stored, _ := s.Key(key.ID())
	return stored, nil
}

// replaceSigningKey makes a new key that signs from now on. The key before it, old, goes on
// verifying until its tokens have expired. If another node is faster, its key
// is taken. old is nil if there is none.
func (s *State) replaceSigningKey(ctx context.Context, old *ownKey) (*token.SigningKey, error) {
	leave, err := s.enterMaking(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	if own := s.signer.own.Load(); own != nil && (old == nil || own.ID != old.ID) {
		return own.key, nil // made while this call was waiting
	}
	key, err := s.newKey()
	if err != nil {
		return nil, err
	}
	// The public half first: what signs must be known to verify.
	created, err := s.storeKey(ctx, key.Public(), true, "")
	if err != nil {
		return nil, err
	}
	next := &ownKey{signingDocument{ID: key.ID(), PEM: key.PEM(), Created: created}, key}
	expired, err := s.storeSigningKey(ctx, old, next.signingDocument)
	if errors.Is(err, errOvertaken) {
		s.Discard(ctx, key.ID())
		if next, err = s.readSigningKey(ctx); err == nil && next == nil {
			err = fmt.Errorf("%w: %w", ErrUnavailable, errOvertaken)
		}
	}
	if err != nil {
		return nil, err
	}
	s.signer.own.Store(next)
	for _, retired := range expired {
		s.Discard(ctx, retired.ID)
	}
	return next.key, nil
}

var errOvertaken = errors.New("another node has made a signing key")

// storeSigningKey stores a new key, unless another node has replaced the old one. It
// returns the retired keys whose tokens have expired.
func (s *State) storeSigningKey(ctx context.Context, old *ownKey, doc signingDocument) (expired []retiredKey, err error) {
	err = s.update(ctx, signingName, func(present store.Object) ([]byte, error) {
		next := doc
		if expired = nil; present.Exists() {
			before, err := s.decodeSigningKey(present)
			// A damaged key is replaced, whichever node has made it.
			if err == nil && (old == nil || before.ID != old.ID) {
				return nil, errOvertaken
			}
			next.Retired, expired = before.retire(s.now().UTC())
		}
		return json.Marshal(next)
	})
	return expired, err
}

// retire returns the retired keys that still verify, with the key that has
// signed until now, and those whose tokens have expired.
func (d *signingDocument) retire(now time.Time) (retired, expired []retiredKey) {
	all := d.Retired
	if d.ID != "" {
		all = append(slices.Clone(all), retiredKey{d.ID, now})
	}
	for _, key := range all {
		if now.Sub(key.When) < retirement {
			retired = append(retired, key)
		} else {
			expired = append(expired, key)
		}
	}
	return retired, expired
}
