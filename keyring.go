package signedplayback

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/signed-playback/caddy-signed-playback/internal/jwks"
	"github.com/signed-playback/caddy-signed-playback/internal/state"
	"github.com/signed-playback/caddy-signed-playback/token"
)

// keyring finds verification keys: first in the config, then in the store of the
// control API, then in the remote set. It finds no revoked key. It implements
// token.Keys.
type keyring struct {
	fixed  *token.KeySet
	state  *state.State
	remote *remoteKeys // nil without jwks_url
}

// Lookup implements token.Keys.
func (k *keyring) Lookup(keyID string) *token.PublicKey {
	stored, ok := k.state.Key(keyID)
	if !ok || stored.Revoked || stored.Damage != nil {
		return nil
	}
	if key := k.fixed.Lookup(keyID); key != nil {
		return key
	}
	if stored.Public != nil || k.remote == nil {
		return stored.Public
	}
	return k.remote.Lookup(keyID)
}

// lookupAuthoritative reports whether a failed lookup is final: the key does not
// exist or must not be used. Otherwise it may be in a part of the keyring that
// cannot be read now.
func (k *keyring) lookupAuthoritative(keyID string) bool {
	stored, ok := k.state.Key(keyID)
	switch {
	case !ok || stored.Damage != nil:
		return false
	case stored.Revoked:
		return true
	case k.state.Unavailable():
		return false
	}
	return k.remote == nil || k.remote.Loaded()
}

// mayAppear reports whether another node may just have made a key that is not
// found.
func (k *keyring) mayAppear(keyID string) bool {
	stored, known := k.state.Key(keyID)
	return known && !stored.Revoked && stored.Damage == nil && state.ValidKeyID(keyID)
}

// revocable reports whether there is a key to revoke. It may already be revoked,
// or its object damaged.
func (k *keyring) revocable(keyID string) bool {
	stored, _ := k.state.Key(keyID)
	return stored.Revoked || stored.Damage != nil || k.Lookup(keyID) != nil
}

// count returns the number of keys that verify.
func (k *keyring) count() int {
	ids := k.fixed.IDs()
	for _, key := range k.state.LiveKeys() {
		ids = append(ids, key.ID)
	}
	if k.remote != nil {
		ids = append(ids, k.remote.IDs()...)
	}
	slices.Sort(ids)
	return len(slices.DeleteFunc(slices.Compact(ids), func(keyID string) bool { return k.Lookup(keyID) == nil }))
}

// loadKeyFiles reads the keys of all files into one set.
func loadKeyFiles(paths []string) (*token.KeySet, error) {
	var keys []*token.PublicKey
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("key_file %q: %w%s", path, err, fileHint(path, err))
		}
		fromFile, err := token.ParsePublicKeys(data, keyIDOfFile(path))
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

// keyIDOfFile returns the id of a key without a `kid`: the name of its file
// without the ending.
func keyIDOfFile(path string) string {
	name := filepath.Base(path)
	return strings.TrimSuffix(name, filepath.Ext(name))
}

// remoteKeysPool keeps remote key sets over config reloads, so that a reload
// while the key server is unavailable does not lose the keys.
var remoteKeysPool = caddy.NewUsagePool()

// remoteKeys is a remote key set in remoteKeysPool.
type remoteKeys struct {
	*jwks.Set
	poolKey string
}

// acquireRemoteKeys returns the key set of an address, shared with other
// configs that use it. Each call must be matched by a call of release.
func acquireRemoteKeys(address string, interval time.Duration) (*remoteKeys, error) {
	poolKey := address + " " + interval.String()
	value, loaded, err := remoteKeysPool.LoadOrNew(poolKey, func() (caddy.Destructor, error) {
		set, err := jwks.New(address, interval, func() *zap.Logger { return caddy.Log().Named(appID) })
		return &remoteKeys{set, poolKey}, err
	})
	if err != nil {
		return nil, err
	}
	keys := value.(*remoteKeys)
	if !loaded {
		remoteKeysPool.Range(func(_, other any) bool {
			keys.Inherit(other.(*remoteKeys).Set)
			return true
		})
	}
	return keys, nil
}

func (k *remoteKeys) release() error {
	_, err := remoteKeysPool.Delete(k.poolKey)
	return err
}

// Destruct implements caddy.Destructor.
func (k *remoteKeys) Destruct() error {
	k.Stop()
	return nil
}
