package signedplayback

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/signed-playback/caddy-signed-playback/internal/store"
	"github.com/signed-playback/caddy-signed-playback/token"
)

const (
	// maxSigningAge is how old the gateway's own key becomes before a new one
	// takes its place.
	maxSigningAge = 30 * 24 * time.Hour

	// retirement is how long a key goes on verifying after that: the longest
	// life of a token that it may have signed, and some for clocks.
	retirement = maxMintedLifetime + time.Hour

	signingID = "current"
)

// signingDocument is the gateway's own signing key in the store. Its public
// half is a key like others, marked as own, so that every node verifies with it.
type signingDocument struct {
	ID      string       `json:"id"`
	PEM     string       `json:"pem"` // standard base64 of a PKCS#1 PEM
	Created time.Time    `json:"created"`
	Retired []retiredKey `json:"retired,omitempty"`
}

// retiredKey is a key that signs no more, and is revoked when its last token
// has expired.
type retiredKey struct {
	ID   string    `json:"id"`
	When time.Time `json:"when"`
}

// signer is the gateway's own signing key as this node knows it.
type signer struct {
	state *state
	own   atomic.Pointer[ownKey] // nil until it is needed
	stale atomic.Bool            // it may have been replaced
}

type ownKey struct {
	key     *token.SigningKey
	created time.Time
}

// suspect has the key read from the store when it is next needed. If that fails,
// the one that is known goes on signing.
func (s *signer) suspect() { s.stale.Store(true) }

// forget gives up the key.
func (s *signer) forget() { s.own.Store(nil) }

// get returns the key that signs, and makes one if there is none.
func (s *signer) get(ctx context.Context) (*token.SigningKey, error) {
	own := s.own.Load()
	if stale := s.stale.Swap(false); stale || own == nil {
		read, err := s.read(ctx)
		switch {
		case err == nil:
			own = read
			s.own.Store(own)
		case isDamaged(err):
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

// usable reports whether a key still verifies and is not too old. One that
// another node has just made may not have been heard of here.
func (s *signer) usable(ctx context.Context, own *ownKey) (bool, error) {
	keyID := own.key.ID()
	key, _ := s.state.keys.get(keyID)
	if key.public == nil && !key.revoked {
		name, err := store.NewName(store.Keys, keyID)
		if err != nil {
			return false, err
		}
		if err := s.state.readKey(ctx, name); err != nil {
			return false, err
		}
		key, _ = s.state.keys.get(keyID)
	}
	return key.public != nil && s.state.now().Sub(own.created) < maxSigningAge, nil
}

// read returns the key of the store, nil if there is none.
func (s *signer) read(ctx context.Context) (*ownKey, error) {
	object, err := s.state.get(ctx, signingName())
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
		object.Damage = fmt.Errorf("%w: %s: it does not hold a key", store.ErrDamaged, object.Name)
		return nil, s.state.decode(object, nil)
	}
	return &ownKey{key, doc.Created}, nil
}

func (s *signer) document(object store.Object) (*signingDocument, error) {
	if object.Data == nil && object.Damage == nil {
		return nil, nil
	}
	doc := new(signingDocument)
	return doc, s.state.decode(object, doc)
}

// rotate makes a new key that signs from now on. The one before it goes on
// verifying until its tokens have expired. If another node has been faster, its
// key is taken. old is the key to replace; nil stands for none.
func (s *signer) rotate(ctx context.Context, old *ownKey) (*token.SigningKey, error) {
	leave, err := s.state.generator.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	if own := s.own.Load(); own != nil && (old == nil || own.key.ID() != old.key.ID()) {
		return own.key, nil // made while this call was waiting
	}
	key, err := token.GenerateSigningKey("")
	if err != nil {
		return nil, err
	}
	// The public half first: what signs must be known to verify.
	created, err := s.state.createKey(ctx, key.Public(), true, "")
	if err != nil {
		return nil, err
	}
	doc := signingDocument{ID: key.ID(), PEM: key.PEM(), Created: created}
	var expired []retiredKey
	err = s.state.update(ctx, signingName(), func(present store.Object) ([]byte, error) {
		if present.Data == nil && present.Damage == nil {
			expired = nil
			return json.Marshal(doc)
		}
		before, err := s.document(present)
		if err != nil {
			before = new(signingDocument)
		}
		// What is damaged is replaced, whoever has made it.
		if _, err := s.decode(present); err == nil && (old == nil || before.ID != old.key.ID()) {
			return nil, errOvertaken
		}
		next := doc
		next.Retired, expired = s.retire(before)
		return json.Marshal(next)
	})
	if errors.Is(err, errOvertaken) {
		s.state.discard(ctx, key.ID())
		return s.taken(ctx)
	}
	if err != nil {
		return nil, err
	}
	s.own.Store(&ownKey{key, created})
	for _, retired := range expired {
		s.state.discard(ctx, retired.ID)
	}
	return key, nil
}

var errOvertaken = errors.New("another node has made a signing key")

// taken returns the key that another node has made.
func (s *signer) taken(ctx context.Context) (*token.SigningKey, error) {
	own, err := s.read(ctx)
	if err != nil {
		return nil, err
	}
	if own == nil {
		return nil, fmt.Errorf("%w: %w", store.ErrUnavailable, errOvertaken)
	}
	s.own.Store(own)
	return own.key, nil
}

// retire returns the retired keys that still verify, with the one that has
// signed until now, and those whose time is over.
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

// discard revokes a key that is of no use any more. If that fails, a key is left
// that nobody signs with.
func (s *state) discard(ctx context.Context, keyID string) {
	if err := s.revoke(ctx, keyID); err != nil {
		stateLogger().Warn("could not revoke a key that is of no use any more", zap.String("key_id", keyID), zap.Error(err))
	}
}

func signingName() store.Name {
	name, err := store.NewName(store.Signing, signingID)
	if err != nil {
		panic(err) // the id is ours
	}
	return name
}

// maxWaitingForKey is how many calls may wait for a key at a time.
const maxWaitingForKey = 32

// keyGenerator makes keys one at a time: each takes a core for a moment, which
// playback needs too.
type keyGenerator struct {
	waiting  chan struct{}
	turn     chan struct{}
	failures atomic.Uint64 // keys that could not be stored
}

func newKeyGenerator() *keyGenerator {
	return &keyGenerator{waiting: make(chan struct{}, maxWaitingForKey), turn: make(chan struct{}, 1)}
}

var errTooManyKeys = errors.New("too many keys are being made at once; try again in a moment")

// enter waits for the caller's turn to make a key. It must call leave when the
// key is stored, unless there is an error. When the store turns out to be away,
// all who are waiting are told so, rather than each in its turn.
func (g *keyGenerator) enter(ctx context.Context) (leave func(), err error) {
	select {
	case g.waiting <- struct{}{}:
		defer func() { <-g.waiting }()
	default:
		return nil, errTooManyKeys
	}
	failures := g.failures.Load()
	select {
	case g.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if g.failures.Load() != failures {
		<-g.turn
		return nil, errStoreAway
	}
	return func() { <-g.turn }, nil
}
