package signedplayback

import (
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/signed-playback/caddy-signed-playback/internal/jwks"
	"github.com/signed-playback/caddy-signed-playback/internal/refusal"
	"github.com/signed-playback/caddy-signed-playback/internal/verification"
)

// checkToken verifies the token, if the request has one, and then its
// audience, issuer and dates. A token counts even where the video requires none.
func checkToken(d *decision) error {
	if d.target.Token == "" {
		return nil
	}
	verify := d.app.verifier.Verify
	if d.explained() != nil {
		verify = d.app.verifier.VerifyUncounted
	}
	verified, err := verify(d.request, d.target.Token)
	if err != nil {
		return err
	}
	if err := verified.Check(d.now(), d.app.policy); err != nil && !d.isExtended(verified, err) {
		d.rejected = verified
		return refusal.OfToken(err)
	}
	d.verified, d.video = verified, verified.Video
	return nil
}

// checkRevocations refuses a revoked token. It looks each token up once for each set of
// revocations.
func checkRevocations(d *decision) error {
	if d.verified == nil {
		return nil
	}
	all := d.app.state.Revocations()
	if all == nil {
		return refusal.StateUnavailable.Because(errRevocationsUnknown)
	}
	if d.verified.Clean.Load() == all {
		return nil
	}
	if all.Match(d.verified.Subject(d.target.Token), d.now()) != nil {
		return refusal.TokenRevoked.Because(errRevoked)
	}
	d.verified.Clean.Store(all)
	return nil
}

var (
	errRevocationsUnknown = errors.New("whether the token is revoked is unknown: the store has not been read, or an object in it is damaged")
	errRevoked            = errors.New("the control API has revoked the token, its viewer or its video")
)

func (a *App) provisionKeys() error {
	files, err := resolveAll("key_file", a.KeyFiles)
	if err != nil {
		return err
	}
	fixed, err := verification.LoadKeyFiles(files)
	if err != nil {
		return err
	}
	a.keys = &verification.Keyring{Fixed: fixed, State: a.state.State}
	if a.JWKSURL == "" {
		return nil
	}
	address, err := resolve(a.JWKSURL)
	if err != nil {
		return fmt.Errorf("jwks_url: %w", err)
	}
	interval := time.Duration(a.JWKSInterval)
	if interval == 0 {
		interval = defaultJWKSInterval
	}
	if interval < minJWKSInterval {
		return fmt.Errorf("jwks_url: interval %s is shorter than %s", interval, minJWKSInterval)
	}
	if a.remoteKeys, err = acquireRemoteKeys(address, interval); err != nil {
		return fmt.Errorf("jwks_url %q: %w", a.JWKSURL, err)
	}
	a.keys.Remote = a.remoteKeys.Set
	return nil
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

// noKeys is the warning for a server without a verification key.
const noKeys = "there are no verification keys yet, so no token plays; set key_file or jwks_url, or have the control API make a key or mint a token"

// missingKeys returns why no token plays, "" if there are keys or may be.
func (a *App) missingKeys() string {
	if a.keys.Remote == nil && a.state.KeysKnown() && a.keys.Count() == 0 {
		return noKeys
	}
	return ""
}

// tokenCacheKey is what tokens in a cache have in common: its size in bytes, and the
// claim that names their viewers.
type tokenCacheKey struct {
	size        uint64
	viewerClaim string
}

func (a *App) tokenCacheKey() tokenCacheKey {
	return tokenCacheKey{a.TokenCacheSize, a.policy.ViewerClaim.Name()}
}

const (
	defaultTokenCacheSize = 128 << 20
	minTokenCacheSize     = 1 << 20
	memoryShare           = 4 // one part in so many of the memory limit of the process
)

// tokenCachePool keeps token caches over config reloads, so that a reload does
// not have the token of every viewer verified again. Its keys are tokenCacheKeys.
var tokenCachePool = caddy.NewUsagePool()

// tokenCache is a cache in tokenCachePool.
type tokenCache struct{ *verification.Cache }

// Destruct implements caddy.Destructor.
func (c tokenCache) Destruct() error {
	c.Clear()
	return nil
}

func (a *App) provisionVerifier() error {
	if a.TokenCacheSize == 0 {
		a.TokenCacheSize = memoryWithin(debug.SetMemoryLimit(-1), minTokenCacheSize, defaultTokenCacheSize)
	}
	if a.TokenCacheSize < minTokenCacheSize {
		return fmt.Errorf("token_cache_size %d: want at least %d bytes", a.TokenCacheSize, minTokenCacheSize)
	}
	cache, _, err := tokenCachePool.LoadOrNew(a.tokenCacheKey(), func() (caddy.Destructor, error) {
		return tokenCache{verification.NewCache(a.TokenCacheSize)}, nil
	})
	if err != nil {
		return err
	}
	a.verifier = verification.New(verification.Config{
		Cache: cache.(tokenCache).Cache, ViewerClaim: a.policy.ViewerClaim, Keys: a.keys, CatchUp: a.state.CatchUp,
		Address: clientAddress, Metrics: a.metrics,
	})
	return nil
}

// memoryWithin returns the share of a cache in the memory limit of the process,
// raised to least or lowered to most, all in bytes.
func memoryWithin(limit int64, least, most uint64) uint64 {
	return min(most, max(least, uint64(limit)/memoryShare))
}
