package verification

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/signed-playback/caddy-signed-playback/internal/jwks"
	"github.com/signed-playback/caddy-signed-playback/internal/state"
	"github.com/signed-playback/caddy-signed-playback/token"
)

// Keyring finds verification keys: first in the config, then in the store of the
// control API, then in the remote set. It finds no revoked key. It implements
// token.Keys.
type Keyring struct {
	Fixed  *token.KeySet // of the config
	State  *state.State
	Remote *jwks.Set // nil without jwks_url
}

// Lookup implements token.Keys.
func (k *Keyring) Lookup(keyID string) *token.PublicKey {
	stored, ok := k.State.Key(keyID)
	if !ok || stored.Revoked || stored.Damage != nil {
		return nil
	}
	if key := k.Fixed.Lookup(keyID); key != nil {
		return key
	}
	if stored.Public != nil || k.Remote == nil {
		return stored.Public
	}
	return k.Remote.Lookup(keyID)
}

// Authoritative reports whether a failed lookup is final: the key does not
// exist or must not be used. Otherwise it may be in a part of the Keyring that
// cannot be read now.
func (k *Keyring) Authoritative(keyID string) bool {
	stored, ok := k.State.Key(keyID)
	switch {
	case !ok || stored.Damage != nil:
		return false
	case stored.Revoked:
		return true
	case k.State.Unavailable():
		return false
	}
	return k.Remote == nil || k.Remote.Loaded()
}

// MayAppear reports whether another node may just have made a key that is not
// found.
func (k *Keyring) MayAppear(keyID string) bool {
	stored, known := k.State.Key(keyID)
	return known && !stored.Revoked && stored.Damage == nil && state.ValidKeyID(keyID)
}

// Revocable reports whether there is a key to revoke. It may already be revoked,
// or its object damaged.
func (k *Keyring) Revocable(keyID string) bool {
	stored, _ := k.State.Key(keyID)
	return stored.Revoked || stored.Damage != nil || k.Lookup(keyID) != nil
}

// Count returns the number of keys that verify.
func (k *Keyring) Count() int {
	ids := k.Fixed.IDs()
	for _, key := range k.State.LiveKeys() {
		ids = append(ids, key.ID)
	}
	if k.Remote != nil {
		ids = append(ids, k.Remote.IDs()...)
	}
	slices.Sort(ids)
	return len(slices.DeleteFunc(slices.Compact(ids), func(keyID string) bool { return k.Lookup(keyID) == nil }))
}

// LoadKeyFiles reads the keys of all files into one set.
func LoadKeyFiles(paths []string) (*token.KeySet, error) {
	var keys []*token.PublicKey
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("key_file %q: %w%s", path, err, fileHint(path, err))
		}
		fromFile, err := token.ParsePublicKeys(data, KeyIDOfFile(path))
		if err != nil {
			return nil, fmt.Errorf("key_file %q: %w", path, err)
		}
		keys = append(keys, fromFile...)
	}
	set, err := token.NewKeySet(keys...)
	if err != nil {
		return nil, fmt.Errorf("key_file %q: %w", paths, err)
	}
	return set, nil
}

// fileHint says what to do about a file that cannot be read.
func fileHint(path string, err error) string {
	switch {
	case strings.Contains(path, "://"):
		return "; this option names a file, and jwks_url a URL"
	case errors.Is(err, fs.ErrPermission):
		return "; let the user that the server runs as read it"
	case errors.Is(err, fs.ErrNotExist) && !filepath.IsAbs(path):
		return "; the path is relative to the folder in which the server starts"
	case errors.Is(err, fs.ErrNotExist):
		return "; `caddy signed-playback keygen --public <file>` makes a public key"
	}
	return ""
}

// KeyIDOfFile returns the id of a key without a `kid`: the name of its file
// without the ending.
func KeyIDOfFile(path string) string {
	name := filepath.Base(path)
	return strings.TrimSuffix(name, filepath.Ext(name))
}
