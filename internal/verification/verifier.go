// Package verification verifies tokens. It finds their keys, remembers which tokens are valid, and
// keeps floods of forged tokens from taking the processor from viewers.
package verification

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/signed-playback/caddy-signed-playback/internal/metrics"
	"github.com/signed-playback/caddy-signed-playback/internal/refusal"
	"github.com/signed-playback/caddy-signed-playback/internal/worklimit"
	"github.com/signed-playback/caddy-signed-playback/token"
)

// Config says how a Verifier works. All fields are required.
type Config struct {
	Cache       *Cache
	ViewerClaim token.ViewerClaim
	Keys        *Keyring
	CatchUp     func(context.Context)                  // waits until keys that other nodes have made are read
	Address     func(*http.Request) (netip.Addr, bool) // of the client
	Metrics     *metrics.Metrics
}

// Verifier turns the bytes of a token into a Token: from the cache, or by a signature check
// that requests with the same token share and that floods cannot monopolise. It is safe for
// concurrent use.
type Verifier struct {
	Config
	Limit   *Limit
	flights singleflight.Group // by token
}

// New returns a Verifier.
func New(config Config) *Verifier { return &Verifier{Config: config, Limit: newLimit()} }

// Verify returns the verified token of a request. Its errors are refusals.
func (v *Verifier) Verify(r *http.Request, compact string) (*Token, error) {
	if t := v.Cache.get(compact); t != nil && v.inForce(t.Key) {
		v.Metrics.CacheHits.Inc()
		return t, nil
	}
	v.Metrics.CacheMisses.Inc()
	parsed, key, err := v.parse(r.Context(), compact)
	if err != nil {
		return nil, err
	}
	leader := false
	result, err, _ := v.flights.Do(compact, func() (any, error) {
		leader = true
		if t := v.Cache.get(compact); t != nil && v.inForce(t.Key) {
			return t, nil // verified since this request looked
		}
		return v.check(r, compact, parsed, key)
	})
	if why, ok := errors.AsType[*refusal.Error](err); ok && !leader && why.Reason == refusal.VerificationLimited {
		// The limit of the leader's network, or its cancelled request, says
		// nothing about this one.
		return v.check(r, compact, parsed, key)
	}
	if err != nil {
		return nil, err
	}
	t := result.(*Token)
	if !v.inForce(t.Key) {
		return nil, refusal.KeyUnknown.Because(token.ErrKeyUnknown)
	}
	return t, nil
}

// VerifyUncounted is Verify for a request that `explain` replays: it takes nothing from the
// budget of a network, and neither metrics nor the cache learn of it.
func (v *Verifier) VerifyUncounted(r *http.Request, compact string) (*Token, error) {
	parsed, key, err := v.parse(r.Context(), compact)
	if err != nil {
		return nil, err
	}
	return verifySignature(compact, parsed, key)
}

// parse checks the form of a token and finds its key. Anybody can send tokens of
// unknown keys, so it looks up the `kid` of the header before it decodes the
// payload.
func (v *Verifier) parse(ctx context.Context, compact string) (parsed token.Parsed, key *token.PublicKey, err error) {
	header, err := token.ParseHeader(compact)
	if err == nil && header.KeyID() != "" {
		key, err = v.findKey(ctx, header.KeyID())
	}
	if err == nil {
		parsed, err = header.ParsePayload(v.ViewerClaim)
	}
	if err == nil && key == nil {
		key, err = v.findKey(ctx, parsed.Unverified().KeyID)
	}
	if err != nil && !refusal.Is(err) {
		err = refusal.OfToken(err)
	}
	return parsed, key, err
}

// findKey finds a key. An unknown one may have been made on another node a
// moment ago. Its errors are refusals or wrap those of package token.
func (v *Verifier) findKey(ctx context.Context, keyID string) (*token.PublicKey, error) {
	if keyID == "" {
		return nil, token.ErrKeyUnknown
	}
	key := v.Keys.Lookup(keyID)
	if key == nil && v.Keys.MayAppear(keyID) {
		v.CatchUp(ctx)
		key = v.Keys.Lookup(keyID)
	}
	switch {
	case key != nil:
		return key, nil
	case !v.Keys.Authoritative(keyID):
		return nil, refusal.StateUnavailable.Because(errKeysUnknown)
	}
	return nil, token.ErrKeyUnknown
}

var errKeysUnknown = errors.New("the key cannot be looked up: the store or the remote key set has not been read, or the key's object is damaged")

// inForce reports whether a key still verifies tokens. A config reload reads the
// same keys again, so it compares their values.
func (v *Verifier) inForce(key *token.PublicKey) bool {
	present := v.Keys.Lookup(key.ID())
	return key == present || present != nil && key.Equal(present)
}

// check verifies the signature when the client's turn comes, and remembers the
// token. It does not remember tokens that fail: an attacker sends a different
// one each time, and would push out those of viewers.
func (v *Verifier) check(r *http.Request, compact string, parsed token.Parsed, key *token.PublicKey) (t *Token, err error) {
	defer func() { v.Metrics.CountVerification(err) }()
	client := worklimit.NetworksOf(v.Address(r))
	leave, err := v.Limit.enter(r.Context(), client)
	if err != nil {
		return nil, refusal.VerificationLimited.Because(err)
	}
	defer leave()
	start := time.Now()
	t, err = verifySignature(compact, parsed, key)
	v.Metrics.VerifySeconds.Observe(time.Since(start).Seconds())
	switch {
	case errors.Is(err, token.ErrSignature):
		v.Limit.Failures.Spend(client)
	case err == nil:
		v.Cache.put(compact, t)
	}
	return t, err
}

// verifySignature is a pure function of a token and its key. parsed is compact.
func verifySignature(compact string, parsed token.Parsed, key *token.PublicKey) (*Token, error) {
	claims, err := parsed.Verify(key)
	if err != nil {
		return nil, refusal.OfToken(err)
	}
	t, err := NewToken(claims, key)
	if err == nil {
		t.identify(compact)
	}
	return t, err
}
