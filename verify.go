package signedplayback

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"sync/atomic"
	"time"

	"github.com/maypok86/otter/v2"
	"golang.org/x/sync/semaphore"
	"golang.org/x/sync/singleflight"

	"github.com/signed-playback/caddy-signed-playback/internal/accessrules"
	"github.com/signed-playback/caddy-signed-playback/internal/queue"
	"github.com/signed-playback/caddy-signed-playback/internal/sessions"
	"github.com/signed-playback/caddy-signed-playback/internal/state"
	"github.com/signed-playback/caddy-signed-playback/internal/worklimit"
	"github.com/signed-playback/caddy-signed-playback/token"
)

// verifiedToken is all that stays true of a token: its signature is valid and
// its rules can be evaluated. The policy, keys, revocations, settings, address and
// origin are checked on each request. It is immutable, except for what it remembers of a
// session and, in clean, of the last revocations that did not contain it.
type verifiedToken struct {
	clean              atomic.Pointer[state.Revocations]
	video              string
	expires, notBefore int64 // Unix seconds
	downloadable       bool
	audience           []string
	issuer             string
	id, viewer         string // "" if the token has no such claim
	issued, startBy    int64  // Unix seconds, negative if the token has no such claim
	sessionLimit       int    // 0 if the token has no such claim
	sessionViewer      string // whose sessions count together
	rules              accessrules.List
	key                *token.PublicKey  // nil if `explain` assumes that the token is valid
	digest             [sha256.Size]byte // of the token; zero if key is nil

	session atomic.Pointer[verifiedSession] // of the last request that had one in its path
	outside atomic.Pointer[outsideSession]  // of the last request that had none there
}

func newVerifiedToken(claims token.Claims, rules accessrules.List, key *token.PublicKey) *verifiedToken {
	return &verifiedToken{
		video:   claims.VideoID,
		expires: claims.ExpiresAt.Unix(), notBefore: claims.NotBefore.Unix(),
		downloadable: claims.Downloadable,
		audience:     claims.Audience, issuer: claims.Issuer,
		id: claims.ID, viewer: claims.Viewer,
		issued: claims.IssuedAt.Unix(), startBy: claims.StartBy.Unix(),
		sessionLimit: claims.SessionLimit,
		rules:        rules,
		key:          key,
	}
}

// identify takes the digest of a token down, and whose sessions count together.
func (t *verifiedToken) identify(compact string) {
	t.digest = sha256.Sum256([]byte(compact))
	switch {
	case t.viewer != "":
		t.sessionViewer = t.viewer
	case t.id != "":
		t.sessionViewer = sessions.Unnamed + t.id
	default:
		t.sessionViewer = sessions.Unnamed + hex.EncodeToString(t.digest[:])
	}
}

func (t *verifiedToken) expiresAt() time.Time { return time.Unix(t.expires, 0) }

// subject returns what revocations may name.
func (t *verifiedToken) subject(compact string) state.Subject {
	return state.Subject{Token: compact, ID: t.id, Viewer: t.viewer, Video: t.video, IssuedAt: t.issued}
}

func (t *verifiedToken) check(now time.Time, policy token.Policy) error {
	claims := token.Claims{
		ExpiresAt: t.expiresAt(), NotBefore: time.Unix(t.notBefore, 0), Audience: t.audience, Issuer: t.issuer,
	}
	return claims.Check(now, policy)
}

// verifier turns the bytes of a token into a verifiedToken: from the cache, or
// by a signature check that requests with the same token share and that floods
// cannot monopolise. It is safe for concurrent use.
type verifier struct {
	cache   *tokenCache
	viewer  token.ViewerClaim
	keys    *keyring
	catchUp func(context.Context) // waits until keys that other nodes have made are read
	limit   *verificationLimit
	metrics *metrics
	flights singleflight.Group // by token
}

// verify returns the verified token of a request. Its errors are refusals.
func (v *verifier) verify(r *http.Request, compact string) (*verifiedToken, error) {
	if t := v.cache.get(compact); t != nil && v.inForce(t.key) {
		v.metrics.cacheHits.Inc()
		return t, nil
	}
	v.metrics.cacheMisses.Inc()
	parsed, key, err := v.parse(r.Context(), compact)
	if err != nil {
		return nil, err
	}
	leader := false
	result, err, _ := v.flights.Do(compact, func() (any, error) {
		leader = true
		if t := v.cache.get(compact); t != nil && v.inForce(t.key) {
			return t, nil // verified since this request looked
		}
		return v.check(r, compact, parsed, key)
	})
	if why, ok := errors.AsType[*refusal](err); ok && !leader && why.reason == reasonVerificationLimited {
		// The limit of the leader's network, or its cancelled request, says
		// nothing about this one.
		return v.check(r, compact, parsed, key)
	}
	if err != nil {
		return nil, err
	}
	t := result.(*verifiedToken)
	if !v.inForce(t.key) {
		return nil, refuse(reasonKeyUnknown, token.ErrKeyUnknown)
	}
	return t, nil
}

// verifyUncounted is verify for a request that `explain` replays: it takes nothing from the
// budget of a network, and neither metrics nor the cache learn of it.
func (v *verifier) verifyUncounted(r *http.Request, compact string) (*verifiedToken, error) {
	parsed, key, err := v.parse(r.Context(), compact)
	if err != nil {
		return nil, err
	}
	t, err := verifySignature(parsed, key)
	if err == nil {
		t.identify(compact)
	}
	return t, err
}

// parse checks the form of a token and finds its key. Anybody can send tokens of
// unknown keys, so it looks up the `kid` of the header before it decodes the
// payload.
func (v *verifier) parse(ctx context.Context, compact string) (parsed token.Parsed, key *token.PublicKey, err error) {
	header, err := token.ParseHeader(compact)
	if err == nil && header.KeyID() != "" {
		key, err = v.findKey(ctx, header.KeyID())
	}
	if err == nil {
		parsed, err = header.ParsePayload(v.viewer)
	}
	if err == nil && key == nil {
		key, err = v.findKey(ctx, parsed.Unverified().KeyID)
	}
	if _, isRefusal := err.(*refusal); err != nil && !isRefusal { //nolint:errorlint // find does not wrap refusals
		err = refuse(tokenReason(err), err)
	}
	return parsed, key, err
}

// findKey finds a key. An unknown one may have been made on another node a
// moment ago. Its errors are refusals or wrap those of package token.
func (v *verifier) findKey(ctx context.Context, keyID string) (*token.PublicKey, error) {
	if keyID == "" {
		return nil, token.ErrKeyUnknown
	}
	key := v.keys.Lookup(keyID)
	if key == nil && v.keys.mayAppear(keyID) {
		v.catchUp(ctx)
		key = v.keys.Lookup(keyID)
	}
	switch {
	case key != nil:
		return key, nil
	case !v.keys.lookupAuthoritative(keyID):
		return nil, refuse(reasonStateUnavailable, errKeysUnknown)
	}
	return nil, token.ErrKeyUnknown
}

var errKeysUnknown = errors.New("the key cannot be looked up: the store or the remote key set has not been read, or the key's object is damaged")

// inForce reports whether a key still verifies tokens. A config reload reads the
// same keys again, so it compares their values.
func (v *verifier) inForce(key *token.PublicKey) bool {
	present := v.keys.Lookup(key.ID())
	return key == present || present != nil && key.Equal(present)
}

// check verifies the signature when the client's turn comes, and remembers the
// token. It does not remember tokens that fail: an attacker sends a different
// one each time, and would push out those of viewers.
func (v *verifier) check(r *http.Request, compact string, parsed token.Parsed, key *token.PublicKey) (t *verifiedToken, err error) {
	defer func() { v.metrics.countVerification(err) }()
	client := worklimit.NetworksOf(clientAddress(r))
	leave, err := v.limit.enter(r.Context(), client)
	if err != nil {
		return nil, refuse(reasonVerificationLimited, err)
	}
	defer leave()
	start := time.Now()
	t, err = verifySignature(parsed, key)
	v.metrics.verifySeconds.Observe(time.Since(start).Seconds())
	switch {
	case errors.Is(err, token.ErrSignature):
		v.limit.failures.Spend(client)
	case err == nil:
		t.identify(compact)
		v.cache.put(compact, t)
	}
	return t, err
}

// compileRules compiles the claim `accessRules`.
func compileRules(raw []byte) (accessrules.List, error) {
	rules, err := accessrules.Compile(raw)
	if err != nil {
		return nil, fmt.Errorf("accessRules: %w", err)
	}
	return rules, nil
}

// verifySignature is a pure function of a token and its key.
func verifySignature(parsed token.Parsed, key *token.PublicKey) (*verifiedToken, error) {
	claims, err := parsed.Verify(key)
	if err != nil {
		return nil, refuse(tokenReason(err), err)
	}
	rules, err := compileRules(claims.AccessRules)
	if err != nil {
		return nil, refuse(reasonRulesInvalid, err)
	}
	return newVerifiedToken(claims, rules, key), nil
}

const (
	// The budget of a network for failed signatures: this many at once, then this many a
	// second. They take 25 ms of a processor, and 2.5 ms in each second. A viewer has none,
	// but a company with one address may have players with old keys.
	failedBurst = 500
	failedRate  = 50

	// failedMemory is how long a network waits in the queue of failed ones after
	// a failure.
	failedMemory = time.Minute

	// These bounds keep networks with failures from filling the queue of the
	// others.
	maxTrustedWaiting = 1024
	maxFailedWaiting  = 32

	maxVerificationWait = time.Second
)

var (
	errNetworkLimited = errors.New("too many tokens with invalid signatures from this network; try again later")
	errQueueLimited   = errors.New("too many tokens are waiting to be verified; try again in a moment")
)

// verificationLimit rations signature checks, the only expensive thing that
// strangers can ask for, so that viewers keep the processor. It is safe for
// concurrent use.
type verificationLimit struct {
	trusted, failed *queue.Queue // share half of the processors
	failures        *worklimit.Networks
}

func newVerificationLimit() *verificationLimit {
	turns := semaphore.NewWeighted(int64(max(1, runtime.GOMAXPROCS(0)/2)))
	return &verificationLimit{
		trusted:  queue.New(turns, maxTrustedWaiting, maxVerificationWait),
		failed:   queue.New(turns, maxFailedWaiting, maxVerificationWait),
		failures: worklimit.NewNetworks(failedRate, failedBurst),
	}
}

// enter waits for the client's turn. Call leave unless there is an error.
func (l *verificationLimit) enter(ctx context.Context, client worklimit.ClientNetworks) (leave func(), err error) {
	if l.failures.Exhausted(client) {
		return nil, errNetworkLimited
	}
	q := l.trusted
	if l.failures.SpentWithin(client, failedMemory) {
		q = l.failed
	}
	err = q.Enter(ctx, 1)
	if errors.Is(err, queue.ErrFull) || errors.Is(err, queue.ErrTimeout) {
		err = errQueueLimited
	}
	return func() { q.Leave(1) }, err
}

// tokenCache remembers verified tokens by all of their bytes, so no other string
// finds an entry. An entry is a function of those bytes and the key; dates,
// settings, addresses and origins are not in it. It is safe for concurrent use.
type tokenCache struct {
	entries *otter.Cache[string, *verifiedToken]
}

func newTokenCache(size uint64) *tokenCache {
	return &tokenCache{otter.Must(&otter.Options[string, *verifiedToken]{
		MaximumWeight: size,
		// Waking a goroutine for each new token would cost more than its work.
		Executor: func(work func()) { work() },
		Weigher:  weighToken,
	})}
}

// get returns the entry of a token, nil if there is none.
func (c *tokenCache) get(compact string) *verifiedToken {
	t, _ := c.entries.GetIfPresent(compact)
	return t
}

func (c *tokenCache) put(compact string, t *verifiedToken) {
	// A clone, because compact is a part of the path, which must not be kept.
	c.entries.Set(strings.Clone(compact), t)
}

// weighToken estimates the memory that a token takes in the cache, in bytes.
func weighToken(compact string, t *verifiedToken) uint32 {
	const entry, text = 544, 16
	weight := entry + len(compact) + len(t.issuer) + len(t.id) + len(t.viewer) + len(t.sessionViewer) + t.rules.Weight()
	for _, audience := range t.audience {
		weight += text + len(audience)
	}
	return uint32(weight)
}
