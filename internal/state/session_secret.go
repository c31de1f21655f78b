package state

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"sync/atomic"

	"go.uber.org/zap"

	"github.com/signed-playback/caddy-signed-playback/internal/store"
)

// SecretLength is the length of the secret of sessions in bytes.
const SecretLength = 32

var secretName = mustName(store.Signing, "sessions")

// sessionSecret is the secret that authenticates session ids in URLs. It is beside the
// signing key in the store, so that all nodes accept the sessions of each.
type sessionSecret struct {
	known  atomic.Pointer[[SecretLength]byte]
	wanted atomic.Bool // sessions are on, and the config has no secret
	stale  atomic.Bool // the next look has to read it
}

type secretDocument struct {
	Secret []byte `json:"secret"`
}

var errSecretLength = errors.New("the secret of sessions has another length")

// SessionSecret returns the secret that authenticates session ids, nil while it is unknown.
// A new secret has a new address.
func (s *State) SessionSecret() *[SecretLength]byte { return s.secret.known.Load() }

// FollowSessionSecret reads the secret, and from Start on makes one if the store has none.
// From then on the State follows the store. If the store does not answer, the next look
// tries again.
func (s *State) FollowSessionSecret(ctx context.Context, make bool) {
	s.secret.wanted.Store(true)
	ctx, cancel := context.WithTimeout(ctx, loadTimeout)
	defer cancel()
	if err := s.readSecret(ctx, make); err != nil {
		s.logger().Error("the secret of sessions cannot be read; until it is, requests with a session are refused", zap.Error(err))
	}
}

// readSecret takes over the secret of the store. If the store has none, because it is
// new or has lost it, the known or a new one is written.
func (s *State) readSecret(ctx context.Context, write bool) (err error) {
	defer func() { s.secret.stale.Store(err != nil && !errors.Is(err, ErrDamaged)) }()
	object, err := s.get(ctx, secretName, store.Server)
	if err == nil && !object.Exists() && write {
		err = s.update(ctx, secretName, func(present store.Object) ([]byte, error) {
			if object = present; present.Exists() {
				return present.Data, present.Damage
			}
			secret := s.secret.known.Load()
			if secret == nil {
				secret = new([SecretLength]byte)
				_, _ = rand.Read(secret[:]) // it never fails
			}
			data, err := json.Marshal(secretDocument{secret[:]}) //nolint:gosec // it is for the store, as the signing key is
			object.Data = data
			return data, err
		})
	}
	if err != nil || !object.Exists() {
		return err
	}
	var doc secretDocument
	if err := s.decode(object, &doc); err != nil {
		return err
	}
	if len(doc.Secret) != SecretLength {
		return s.damaged(secretName, errSecretLength)
	}
	if secret := [SecretLength]byte(doc.Secret); s.secret.known.Load() == nil || *s.secret.known.Load() != secret {
		s.secret.known.Store(&secret)
	}
	return nil
}
