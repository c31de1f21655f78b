package signedplayback

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"unique"

	"github.com/caddyserver/caddy/v2"
	"github.com/maypok86/otter/v2"

	"github.com/signed-playback/caddy-signed-playback/token"
)

// tokenCachePool keeps the cache over config reloads, so that a reload does not
// have every viewer's token verified at once.
var tokenCachePool = caddy.NewUsagePool()

const (
	tokenCacheKey = "tokens"

	defaultTokenCacheSize = 128 << 20
	tokenCacheShare       = 4 // of the memory of a process that has a limit, unless that is more
	minTokenCacheSize     = 1 << 20
)

// tokenCache remembers tokens whose signature has been verified. An entry is
// found under the bytes of its token, all of them, so no other string can meet
// it. What it says is a function of those bytes and of the key, which is held
// against the present one on each hit; dates, settings, addresses and origins
// are not in it.
//
// Tokens that do not verify are not remembered: an attacker makes a new one for
// each request, and would but push out those of viewers.
type tokenCache struct {
	entries *otter.Cache[string, *verifiedToken]
	metrics *metrics
	reserve heapReserve

	mu       sync.Mutex
	underway map[string]*verification
	wanted   []uint64 // sizes in bytes, one for each living config
}

// verification is the verifying of a token by one request, which others with
// the same token wait for. token and err are set when done is closed.
type verification struct {
	key   *token.PublicKey
	done  chan struct{}
	token *verifiedToken
	err   error
}

// acquireTokenCache returns the cache for a config that wants it to be of size,
// in bytes.
func acquireTokenCache(size uint64) (*tokenCache, error) {
	value, _, err := tokenCachePool.LoadOrNew(tokenCacheKey, func() (caddy.Destructor, error) {
		return newTokenCache(size), nil
	})
	if err != nil {
		return nil, err
	}
	c := value.(*tokenCache)
	c.want(size)
	return c, nil
}

// release gives up what acquireTokenCache was called with.
func (c *tokenCache) release(size uint64) error {
	c.wantNoMore(size)
	_, err := tokenCachePool.Delete(tokenCacheKey)
	return err
}

// want has the cache be as large as the largest that a living config wants. One
// that is being loaded may yet be refused, even after its App.Start, and must
// not have cost the present one's viewers their entries.
func (c *tokenCache) want(size uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wanted = append(c.wanted, size)
	c.entries.SetMaximum(slices.Max(c.wanted))
}

func (c *tokenCache) wantNoMore(size uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.Index(c.wanted, size)
	c.wanted = slices.Delete(c.wanted, i, i+1)
	if len(c.wanted) > 0 {
		c.entries.SetMaximum(slices.Max(c.wanted))
	}
}

func newTokenCache(size uint64) *tokenCache {
	c := &tokenCache{
		entries: otter.Must(&otter.Options[string, *verifiedToken]{
			MaximumWeight: size,
			// Waking a goroutine for each new token would cost more than the
			// work that it is woken for.
			Executor: func(work func()) { work() },
			Weigher:  func(compact string, t *verifiedToken) uint32 { return t.weight(compact) },
		}),
		metrics:  collectMetrics(),
		underway: make(map[string]*verification),
	}
	c.reserve.hold(size / reservedShare)
	return c
}

// reservedShare is how much of the cache's size is reserved from the start: 32
// MiB of 128.
const reservedShare = 4

// heapReserve is memory that is allocated and never touched, so that it takes
// addresses only. The garbage collector runs when the heap has doubled. That of
// Caddy alone has a few megabytes, so under load it is collected dozens of times
// a second, which costs more than all that the gate does. A cache with thirty
// thousand tokens in it changes that by being there; until then, the reserve
// stands in for it.
type heapReserve struct {
	block atomic.Pointer[[]byte]
	left  atomic.Int64 // bytes that have yet to be used by what it stands in for
}

func (r *heapReserve) hold(size uint64) {
	block := make([]byte, size)
	r.block.Store(&block)
	r.left.Store(int64(size))
}

// use gives the reserve up when so many bytes have been put to use as it has.
func (r *heapReserve) use(bytes uint32) {
	if r.block.Load() != nil && r.left.Add(-int64(bytes)) <= 0 {
		r.block.Store(nil)
	}
}

// Destruct implements caddy.Destructor.
func (c *tokenCache) Destruct() error {
	c.entries.InvalidateAll()
	c.reserve.block.Store(nil)
	return nil
}

// get returns a token that has been verified with a key that is still in force,
// else nil.
func (c *tokenCache) get(compact string, keys *keyring) *verifiedToken {
	t, ok := c.entries.GetIfPresent(compact)
	if !ok || !sameKey(t.key, keys.Lookup(t.key.ID())) {
		c.metrics.cacheMisses.Inc()
		return nil
	}
	c.metrics.cacheHits.Inc()
	return t
}

// sameKey compares a key with the one that is in force, nil for none. A reload
// reads the same keys anew.
func sameKey(key, present *token.PublicKey) bool {
	return key == present || present != nil && key.Equal(present)
}

// verify has a token verified once for all requests that come with it
// meanwhile, and remembers it.
func (c *tokenCache) verify(ctx context.Context, compact string, key *token.PublicKey, check func() (*verifiedToken, error)) (*verifiedToken, error) {
	v, first := c.join(compact, key)
	if first {
		defer c.leave(compact, v)
		v.token, v.err = c.remember(compact, check)
		return v.token, v.err
	}
	select {
	case <-v.done:
	case <-ctx.Done():
		return nil, refuse(reasonVerificationLimited, ctx.Err())
	}
	if why, isRefusal := errors.AsType[*refusal](v.err); !sameKey(v.key, key) || isRefusal && why.reason == reasonVerificationLimited {
		return c.remember(compact, check) // what kept the other request from an answer need not keep this one
	}
	return v.token, v.err
}

func (c *tokenCache) remember(compact string, check func() (*verifiedToken, error)) (*verifiedToken, error) {
	t, err := check()
	if err == nil {
		// The path that the token is a part of must not be kept with it.
		c.entries.Set(strings.Clone(compact), t)
		c.reserve.use(t.weight(compact))
	}
	return t, err
}

// join returns the verifying of a token that is under way, or that has ended
// since the caller looked, or begins one.
func (c *tokenCache) join(compact string, key *token.PublicKey) (v *verification, first bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if v := c.underway[compact]; v != nil {
		return v, false
	}
	v = &verification{key: key, done: make(chan struct{}), err: errVerificationDied}
	if t, ok := c.entries.GetIfPresent(compact); ok && sameKey(t.key, key) {
		v.token, v.err = t, nil
		close(v.done)
		return v, false
	}
	c.underway[compact] = v
	return v, true
}

var errVerificationDied = errors.New("the verification was given up")

func (c *tokenCache) leave(compact string, v *verification) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.underway, compact)
	close(v.done)
}

// sharedText is a text that all tokens with the same have once in memory: many
// are of one video, or for one country. The zero value is the empty text.
type sharedText struct{ handle unique.Handle[string] }

func shareText(text string) sharedText {
	if text == "" {
		return sharedText{}
	}
	return sharedText{unique.Make(text)}
}

func (t sharedText) String() string {
	if t == (sharedText{}) {
		return ""
	}
	return t.handle.Value()
}

// weight estimates the memory that a token takes in the cache, in bytes.
// TestWeightOfTokens holds it to what tokens take.
func (t *verifiedToken) weight(compact string) uint32 {
	const ofEntry, ofRule, ofPrefix = 280, 42, 32
	weight := ofEntry + len(compact) + ofRule*len(t.rules) + t.index.weight()
	for _, rule := range t.rules {
		weight += ofPrefix * len(rule.prefixes)
	}
	return uint32(weight)
}
