package signedplayback

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/signed-playback/caddy-signed-playback/internal/store"
	"github.com/signed-playback/caddy-signed-playback/token"
)

// keyring finds verification keys: first those of the config, then those that
// the control API has made, then those of the remote set. What is revoked is
// found nowhere. It implements token.Keys.
type keyring struct {
	fixed  *token.KeySet
	stored *storedKeys
	away   *atomic.Bool // whether there may be keys in the store that nobody has heard of
	remote *remoteKeys  // nil without jwks_url
}

// Lookup implements token.Keys.
func (k *keyring) Lookup(keyID string) *token.PublicKey {
	stored, ok := k.stored.get(keyID)
	if !ok || stored.revoked || stored.damage != nil {
		return nil
	}
	if key := k.fixed.Lookup(keyID); key != nil {
		return key
	}
	if stored.public != nil || k.remote == nil {
		return stored.public
	}
	return k.remote.set.Load().Lookup(keyID)
}

// certain reports whether a key that is not found does not exist, or may not be
// used, for sure.
func (k *keyring) certain(keyID string) bool {
	stored, ok := k.stored.get(keyID)
	switch {
	case !ok || stored.damage != nil:
		return false
	case stored.revoked:
		return true
	case k.away.Load():
		return false
	}
	return k.remote == nil || k.remote.set.Load() != nil
}

// mayAppear reports whether a key that is not found could be one that another
// node has just made.
func (k *keyring) mayAppear(keyID string) bool {
	stored, known := k.stored.get(keyID)
	return known && !stored.revoked && stored.damage == nil && store.ValidID(keyID)
}

// revocable reports whether there is something to revoke: a key from anywhere,
// also one that is revoked or whose object is damaged.
func (k *keyring) revocable(keyID string) bool {
	stored, _ := k.stored.get(keyID)
	return stored.revoked || stored.damage != nil || k.Lookup(keyID) != nil
}

// count returns the number of keys that verify.
func (k *keyring) count() int {
	ids := make(map[string]struct{})
	for _, keyID := range k.fixed.IDs() {
		ids[keyID] = struct{}{}
	}
	for _, key := range k.stored.live() {
		ids[key.id] = struct{}{}
	}
	if k.remote != nil {
		for _, keyID := range k.remote.set.Load().IDs() {
			ids[keyID] = struct{}{}
		}
	}
	for keyID := range ids {
		if k.Lookup(keyID) == nil {
			delete(ids, keyID)
		}
	}
	return len(ids)
}

// loadKeyFiles reads the keys of all files into one set.
func loadKeyFiles(paths []string) (*token.KeySet, error) {
	var keys []*token.PublicKey
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("key_file %q: %w; `caddy signed-playback keygen` makes a key", path, err)
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

// keyIDOfFile returns the id of a key without a `kid`: the name of its file
// without the ending.
func keyIDOfFile(path string) string {
	name := filepath.Base(path)
	return strings.TrimSuffix(name, filepath.Ext(name))
}

const (
	maxJWKSBytes   = 1 << 20
	jwksTimeout    = 10 * time.Second
	firstRetryWait = time.Second
)

// remoteKeysPool keeps remote key sets over config reloads, so that a reload
// while the key server is away does not forget the keys.
var remoteKeysPool = caddy.NewUsagePool()

// remoteKeys is a key set that somebody else publishes. Requests read the last
// good set; a goroutine refreshes it.
type remoteKeys struct {
	poolKey  string
	url      string
	interval time.Duration
	client   *http.Client

	set      atomic.Pointer[token.KeySet] // nil until the first success
	started  sync.Once
	loadedAt atomic.Int64 // Unix seconds; 0 for never
	ctx      context.Context
	cancel   context.CancelFunc
}

// errJWKSURL does not name the URL, which may hold a credential from the
// environment.
var errJWKSURL = errors.New("want an absolute http or https URL")

// acquireRemoteKeys returns the key set of an address, shared with other
// configs that use it. Each call must be matched by releaseRemoteKeys.
func acquireRemoteKeys(address string, interval time.Duration) (*remoteKeys, error) {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, errJWKSURL
	}
	poolKey := address + " " + interval.String()
	value, loaded, err := remoteKeysPool.LoadOrNew(poolKey, func() (caddy.Destructor, error) {
		ctx, cancel := context.WithCancel(context.Background())
		return &remoteKeys{
			poolKey:  poolKey,
			url:      address,
			interval: interval,
			client:   &http.Client{Timeout: jwksTimeout, CheckRedirect: refuseDowngrade},
			ctx:      ctx,
			cancel:   cancel,
		}, nil
	})
	if err != nil {
		return nil, err
	}
	keys := value.(*remoteKeys)
	if !loaded {
		keys.inherit()
	}
	return keys, nil
}

// inherit takes over the keys of a config that asks the same address at another
// interval, so that a reload which changes the interval forgets nothing.
func (k *remoteKeys) inherit() {
	remoteKeysPool.Range(func(_, value any) bool {
		other := value.(*remoteKeys)
		if set := other.set.Load(); other.url == k.url && set != nil {
			k.set.CompareAndSwap(nil, set)
			k.loadedAt.Store(other.loadedAt.Load())
		}
		return true
	})
}

func releaseRemoteKeys(k *remoteKeys) error {
	_, err := remoteKeysPool.Delete(k.poolKey)
	return err
}

// Destruct implements caddy.Destructor.
func (k *remoteKeys) Destruct() error {
	k.cancel()
	return nil
}

// refuseDowngrade keeps whoever sits between here and a redirect's target from
// choosing the keys.
func refuseDowngrade(req *http.Request, via []*http.Request) error {
	const most = 5
	if len(via) >= most {
		return fmt.Errorf("more than %d redirects", most)
	}
	if via[0].URL.Scheme == "https" && req.URL.Scheme != "https" {
		return fmt.Errorf("redirect from https to %s", req.URL.Scheme)
	}
	return nil
}

// start begins to load and refresh the set, once however often it is called.
func (k *remoteKeys) start() {
	k.started.Do(func() { go k.refresh() })
}

func (k *remoteKeys) refresh() {
	failures := 0
	for {
		wait := k.interval
		if err := k.load(); err == nil {
			failures = 0
		} else if k.ctx.Err() == nil {
			wait = k.backoff(failures)
			failures++
			consequence := "the last good set stays in force"
			if k.set.Load() == nil {
				consequence = "tokens with its keys are refused until it succeeds"
			}
			k.logger().Error("loading keys failed; "+consequence, zap.Error(err), zap.Duration("retry_in", wait))
		}
		select {
		case <-time.After(wait):
		case <-k.ctx.Done():
			return
		}
	}
}

// backoff returns how long to wait after a number of failures in a row and one
// more: a second at first, twice as long each time, the interval at the most.
func (k *remoteKeys) backoff(failures int) time.Duration {
	const doublings = 30 // beyond any interval, and far from overflowing
	return min(firstRetryWait<<min(failures, doublings), k.interval)
}

// logger is looked up each time, because the set outlives configs and their
// loggers.
func (k *remoteKeys) logger() *zap.Logger {
	u, _ := url.Parse(k.url) // acquireRemoteKeys has parsed it
	return caddy.Log().Named(appID).With(zap.String("jwks_host", u.Host), zap.String("jwks_path", u.Path))
}

// load fetches the set once and publishes it if it is good.
func (k *remoteKeys) load() error {
	data, err := k.fetch()
	if err != nil {
		return err
	}
	set, skipped, err := token.ParseJWKS(data)
	if err != nil {
		return err
	}
	for _, why := range skipped {
		k.logger().Warn("leaving out a key of the set", zap.Error(why))
	}
	k.set.Store(set)
	k.loadedAt.Store(time.Now().Unix())
	return nil
}

func (k *remoteKeys) fetch() ([]byte, error) {
	req, err := http.NewRequestWithContext(k.ctx, http.MethodGet, k.url, nil)
	if err != nil {
		return nil, fmt.Errorf("making the request: %w", err)
	}
	req.Header.Set("Accept", "application/jwk-set+json, application/json")
	res, err := k.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("fetching keys: %w", withoutURL(err))
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("fetching keys: status %d", res.StatusCode)
	}
	data, err := io.ReadAll(io.LimitReader(res.Body, maxJWKSBytes+1))
	if err != nil {
		return nil, fmt.Errorf("reading keys: %w", err)
	}
	if len(data) > maxJWKSBytes {
		return nil, fmt.Errorf("reading keys: more than %d bytes", maxJWKSBytes)
	}
	return data, nil
}

// withoutURL drops the address that net/http puts into its errors, for it may
// hold a credential.
func withoutURL(err error) error {
	if urlErr, ok := errors.AsType[*url.Error](err); ok {
		return urlErr.Err
	}
	return err
}
