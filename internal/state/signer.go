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
	state *State
	own   atomic.Pointer[ownKey] // nil until it is needed
	stale atomic.Bool            // it may have been replaced
}

type ownKey struct {
	key     *token.SigningKey
	created time.Time
}

// markStale has the key read from the store when it is next needed. If that
// fails, the known key goes on signing.
func (s *signer) markStale() { s.stale.Store(true) }

func (s *signer) forget() { s.own.Store(nil) }

// SigningKey returns the gateway's own signing key, and makes one if there is
// none or it is too old. It wraps ErrDamaged if the stored key is damaged:
// RotateSigningKey replaces it.
func (s *State) SigningKey(ctx context.Context) (*token.SigningKey, error) { return s.signer.get(ctx) }

func (s *signer) get(ctx context.Context) (*token.SigningKey, error) {
	own := s.own.Load()
	if stale := s.stale.Swap(false); stale || own == nil {
		stored, err := s.read(ctx)
		switch {
		case err == nil:
			own = stored
			s.own.Store(own)
		case errors.Is(err, ErrDamaged):
			s.own.Store(nil)
			return nil, err
		case own == nil:
			return nil, err
		default:
			s.stale.Store(true)
		}
	}
	if own == nil {
		return s.rotate(ctx, nil)
	}
	usable, err := s.usable(ctx, own)
	if err != nil {
		return nil, err
	}
	if !usable {
		return s.rotate(ctx, own)
	}
	return own.key, nil
}

// usable reports whether a key still verifies and is not too old. This node may
// not have heard yet of a key that another node has just made.
func (s *signer) usable(ctx context.Context, own *ownKey) (bool, error) {
	keyID := own.key.ID()
	key, _ := s.state.Key(keyID)
	if key.Public == nil && !key.Revoked {
		if err := s.state.readKey(ctx, keyID); err != nil {
			return false, err
		}
		key, _ = s.state.Key(keyID)
	}
	return key.Public != nil && s.state.now().Sub(own.created) < maxSigningAge, nil
}

// read returns the key of the store, nil if there is none.
func (s *signer) read(ctx context.Context) (*ownKey, error) {
	object, err := s.state.get(ctx, signingName)
	if err != nil {
		return nil, err
	}
	return s.decode(object)
}

func (s *signer) decode(object store.Object) (*ownKey, error) {
	doc, err := s.document(object)
	if doc == nil || err != nil {
		return nil, err
	}
	key, err := token.ParseSigningKey([]byte(doc.PEM), doc.ID)
	if err != nil {
		return nil, s.state.damaged(object.Name, errOtherContent) // the error may quote the key
	}
	return &ownKey{key, doc.Created}, nil
}

func (s *signer) document(object store.Object) (*signingDocument, error) {
	if !object.Exists() {
		return nil, nil
	}
	doc := new(signingDocument)
	return doc, s.state.decode(object, doc)
}

// RotateSigningKey replaces the gateway's own signing key, damaged or not.
// Tokens of the key before it remain valid.
func (s *State) RotateSigningKey(ctx context.Context) (Key, error) {
	old, err := s.signer.read(ctx)
	if err != nil && !errors.Is(err, ErrDamaged) {
		return Key{}, err
	}
	key, err := s.signer.rotate(ctx, old)
	if err != nil {
		return Key{}, err
	}
	stored, _ := s.Key(key.ID())
	return stored, nil
}

// rotate makes a new key that signs from now on. The key before it, old, goes on
// verifying until its tokens have expired. If another node is faster, its key
// is taken. old is nil if there is none.
func (s *signer) rotate(ctx context.Context, old *ownKey) (*token.SigningKey, error) {
	leave, err := s.state.enterMaking(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	if own := s.own.Load(); own != nil && (old == nil || own.key.ID() != old.key.ID()) {
		return own.key, nil // made while this call was waiting
	}
	key, err := s.state.newKey()
	if err != nil {
		return nil, err
	}
	// The public half first: what signs must be known to verify.
	created, err := s.state.storeKey(ctx, key.Public(), true, "")
	if err != nil {
		return nil, err
	}
	expired, err := s.replace(ctx, old, signingDocument{ID: key.ID(), PEM: key.PEM(), Created: created})
	if errors.Is(err, errOvertaken) {
		s.state.Discard(ctx, key.ID())
		return s.adopt(ctx)
	}
	if err != nil {
		return nil, err
	}
	s.own.Store(&ownKey{key, created})
	for _, retired := range expired {
		s.state.Discard(ctx, retired.ID)
	}
	return key, nil
}

var errOvertaken = errors.New("another node has made a signing key")

// replace stores the document of a new key, unless another node has replaced the
// old key. It returns the retired keys whose tokens have expired.
func (s *signer) replace(ctx context.Context, old *ownKey, doc signingDocument) (expired []retiredKey, err error) {
	err = s.state.update(ctx, signingName, func(present store.Object) ([]byte, error) {
		if !present.Exists() {
			expired = nil
			return json.Marshal(doc)
		}
		before, err := s.document(present)
		if err != nil {
			before = new(signingDocument)
		}
		// A damaged key is replaced, whichever node has made it.
		if _, err := s.decode(present); err == nil && (old == nil || before.ID != old.key.ID()) {
			return nil, errOvertaken
		}
		next := doc
		next.Retired, expired = s.retire(before)
		return json.Marshal(next)
	})
	return expired, err
}

// adopt returns the key that another node has made.
func (s *signer) adopt(ctx context.Context) (*token.SigningKey, error) {
	own, err := s.read(ctx)
	if err != nil {
		return nil, err
	}
	if own == nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, errOvertaken)
	}
	s.own.Store(own)
	return own.key, nil
}

// retire returns the retired keys that still verify, with the key that has
// signed until now, and those whose tokens have expired.
func (s *signer) retire(before *signingDocument) (retired, expired []retiredKey) {
	now := s.state.now().UTC()
	all := before.Retired
	if before.ID != "" {
		all = append(slices.Clone(all), retiredKey{before.ID, now})
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
