package signedplayback

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/zap"
	"golang.org/x/sync/semaphore"

	"github.com/signed-playback/caddy-signed-playback/internal/queue"
	"github.com/signed-playback/caddy-signed-playback/internal/worklimit"
	"github.com/signed-playback/caddy-signed-playback/token"
)

// The decision about a known token allocates nothing. ARCHITECTURE.md promises that.
func TestWarmDecisionsAllocateNothing(t *testing.T) {
	for _, c := range warmCases {
		t.Run(c.name, func(t *testing.T) {
			app := *c.app
			g := newGate(t, &app, new(Gate))
			r, reset := c.request(t)
			reset()
			d := newDecision(g, r, silentObserver{})
			fresh := *d
			allocations := math.Inf(1)
			for range 100 { // the race detector empties pools now and then
				allocations = min(allocations, testing.AllocsPerRun(1, func() {
					*d = fresh
					if err := d.decide(); err != nil {
						t.Fatal(err)
					}
				}))
			}
			if allocations != 0 {
				t.Errorf("the decision makes %v allocations, want none", allocations)
			}
		})
	}
}

// Attack: a token that differs in one byte from a known one finds its entry, and
// so plays without a signature check.
func TestCacheKnowsWholeTokensOnly(t *testing.T) {
	t.Parallel()
	cache := newTokenCache(minTokenCacheSize)
	compact := plainToken()
	cache.put(compact, &verifiedToken{key: testKey().Public()})
	if cache.get(compact) == nil {
		t.Fatal("the token has no entry")
	}
	for i := range len(compact) {
		other := []byte(compact)
		if other[i]++; cache.get(string(other)) != nil {
			t.Fatalf("a token that differs in byte %d finds the entry", i)
		}
	}
	for _, other := range []string{compact[:len(compact)-1], compact + "A", compact + "=", "", compact + compact} {
		if cache.get(other) != nil {
			t.Errorf("%d bytes that are not the token find its entry", len(other))
		}
	}
}

// Attack: a token goes on playing from the cache after its key has been revoked
// or replaced. TestTokensFollowTheDate has the dates.
func TestKnownTokensAreCheckedAgain(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name   string
		change func(t *testing.T, app *App)
		reason string
	}{
		{"key revoked", func(t *testing.T, app *App) {
			app.state.Start()
			if err := app.state.Revoke(t.Context(), "k1"); err != nil {
				t.Fatal(err)
			}
		}, "key_unknown"},
		{"another key with the same id", func(_ *testing.T, app *App) {
			app.keys.fixed = must(token.NewKeySet(strangerKey().Public()))
		}, "signature_invalid"},
		{"key removed", func(_ *testing.T, app *App) {
			app.keys.fixed = must(token.NewKeySet())
		}, "key_unknown"},
		{"state given up", func(t *testing.T, app *App) { app.keys.state = stateOf(t, downStore()) }, "state_unavailable"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			g := newGate(t, new(App), new(Gate))
			path := "/" + signed(func(c *token.Claims) { c.NotBefore = testTime.Add(-time.Minute) }) + "/x.ts"
			wantOutcome(t, g, requestFor(t, path, nil), "")
			tc.change(t, g.app)
			wantOutcome(t, g, requestFor(t, path, nil), tc.reason)
		})
	}
}

// heldVerifier returns a verifier whose signature checks wait until proceed is
// called, and a token for it.
func heldVerifier(t *testing.T) (v *verifier, proceed func()) {
	t.Helper()
	turns := semaphore.NewWeighted(1)
	if !turns.TryAcquire(1) {
		t.Fatal("no turn")
	}
	limit := newVerificationLimit()
	limit.trusted = queue.New(turns, maxTrustedWaiting, time.Hour)
	keys := newGate(t, new(App), new(Gate)).app.keys
	return &verifier{cache: newTokenCache(minTokenCacheSize), keys: keys, limit: limit, metrics: newMetrics()},
		func() { turns.Release(1) }
}

// Attack: a reload or a popular video makes thousands of viewers send the same
// new token at once, each of which costs a signature check.
func TestRequestsWithTheSameTokenShareOneCheck(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		v, proceed := heldVerifier(t)
		results := make(chan *verifiedToken)
		const viewers = 50
		for range viewers {
			go func() { results <- must(v.verify(requestFor(t, "/x", nil), plainToken())) }()
		}
		synctest.Wait()
		proceed()
		for range viewers {
			if (<-results).video != "demo" {
				t.Error("a viewer got another token")
			}
		}
		if n := testutil.ToFloat64(v.metrics.verified[""]); n != 1 {
			t.Errorf("%v checks for %d viewers, want 1", n, viewers)
		}
	})
}

// Attack: an attacker sends a viewer's token and cancels the request, so that
// the viewer who waits for the same check is refused too.
func TestCancelledChecksAreNotShared(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		v, proceed := heldVerifier(t)
		cancelled, cancel := context.WithCancel(t.Context())
		attacker, viewer := make(chan error), make(chan error)
		go func() {
			_, err := v.verify(requestFor(t, "/x", nil).WithContext(cancelled), plainToken())
			attacker <- err
		}()
		synctest.Wait()
		go func() {
			_, err := v.verify(requestFor(t, "/x", nil), plainToken())
			viewer <- err
		}()
		synctest.Wait()
		cancel()
		if why, ok := errors.AsType[*refusal](<-attacker); !ok || why.reason != reasonVerificationLimited {
			t.Errorf("the cancelled request got %v", why)
		}
		proceed()
		if err := <-viewer; err != nil {
			t.Errorf("the viewer is refused: %v", err)
		}
	})
}

// Attack: a token for another program of the same identity provider plays,
// because a config before, or another check, has already verified it.
func TestAudienceIsCheckedOnEachRequest(t *testing.T) {
	t.Parallel()
	target := "/" + signed(func(c *token.Claims) { c.Audience, c.Issuer = []string{"shop", "media"}, "https://id.example" }) + "/x.ts"
	for _, tc := range []struct {
		audience, issuer []string
		reason           string
	}{
		{nil, nil, ""},
		{[]string{"other"}, nil, "audience_not_allowed"},
		{[]string{"other", "media"}, nil, ""},
		{nil, []string{"https://other.example"}, "audience_not_allowed"},
		{[]string{"media"}, []string{"https://other.example", "https://id.example"}, ""},
		{[]string{"other"}, []string{"https://id.example"}, "audience_not_allowed"},
	} {
		g := newGate(t, &App{Audience: tc.audience, Issuer: tc.issuer}, new(Gate))
		for range 2 {
			wantOutcome(t, g, requestFor(t, target, nil), tc.reason)
		}
	}
}

// With jwks_url alone, each token of an identity provider opens a video.
func TestWarningOfAKeySetWithoutAudience(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		app  App
		want int
	}{
		{App{JWKSURL: "https://id.example/keys"}, 1},
		{App{JWKSURL: "https://id.example/keys", Issuer: []string{"https://id.example"}}, 1},
		{App{JWKSURL: "https://id.example/keys", Audience: []string{"media"}}, 0},
		{App{}, 0},
	} {
		log, logs := observedLog()
		tc.app.logger = log
		if err := tc.app.provisionPolicy(); err != nil || logs.FilterLevelExact(zap.WarnLevel).Len() != tc.want {
			t.Errorf("jwks_url %q, audience %q: %v, %v; want %d warnings", tc.app.JWKSURL, tc.app.Audience, err, logs.All(), tc.want)
		}
	}
}

// Attack: a key is revoked while one of its tokens is being verified.
func TestKeyRevokedDuringItsCheck(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		v, proceed := heldVerifier(t)
		result := make(chan error)
		go func() {
			_, err := v.verify(requestFor(t, "/x", nil), plainToken())
			result <- err
		}()
		synctest.Wait()
		v.keys.fixed = must(token.NewKeySet())
		proceed()
		if why, ok := errors.AsType[*refusal](<-result); !ok || why.reason != reasonKeyUnknown {
			t.Errorf("the token of the revoked key got %v, want key_unknown", why)
		}
	})
}

func TestTokenCacheIsBounded(t *testing.T) {
	t.Parallel()
	cache := newTokenCache(minTokenCacheSize)
	key := testKey().Public()
	rules := must(compileRules([]byte(restrictedRules)))
	for i := range 20_000 {
		cache.put(fmt.Sprintf("%0700d", i), &verifiedToken{key: key, rules: rules})
	}
	cache.entries.CleanUp()
	if size := cache.entries.WeightedSize(); size > minTokenCacheSize || size < minTokenCacheSize/2 {
		t.Errorf("the cache has %d bytes, want up to %d", size, minTokenCacheSize)
	}
}

// A reload reads the same keys again and keeps the cache.
func TestTokenCacheOutlivesReloads(t *testing.T) {
	t.Parallel()
	old := newGate(t, &App{TokenCacheSize: 3 << 20}, new(Gate)) // of this test alone
	wantOutcome(t, old, requestFor(t, "/"+plainToken()+"/x.ts", nil), "")
	next := newGate(t, &App{TokenCacheSize: 3 << 20}, new(Gate))
	wantOutcome(t, next, requestFor(t, "/"+plainToken()+"/x.ts", nil), "")
	if got := testutil.ToFloat64(next.app.verifier.metrics.cacheHits); got != 1 {
		t.Errorf("%v hits after the reload, want 1", got)
	}
}

// Attack: a flood of forged tokens takes the processor and the cache from
// viewers. Its network is limited soon, and other networks notice nothing.
func TestForgedTokensAreLimitedByNetwork(t *testing.T) {
	t.Parallel()
	g := newGate(t, &App{TokenCacheSize: 2 << 20}, new(Gate)) // of this test alone
	now := testTime
	g.app.verifier.limit.failures.Now = func() time.Time { return now }
	forged := must(token.Sign(token.Claims{VideoID: "demo", ExpiresAt: testTime.Add(time.Hour)}, strangerKey()))
	limited := false
	for range failedBurst + 1 {
		r := requestFor(t, "/"+forged+"/x.ts", from("198.51.100.7"))
		if a := ask(t, g, r); a.reason == "verification_limited" {
			limited = true
			wantRefusal(t, r, a, "verification_limited")
			if a.header.Get("Retry-After") == "" {
				t.Error("the refusal has no Retry-After")
			}
			break
		}
	}
	if !limited {
		t.Fatalf("%d forged tokens of one network were verified", failedBurst+1)
	}
	if n := g.app.verifier.cache.entries.EstimatedSize(); n != 0 {
		t.Errorf("the cache has %d forged tokens", n)
	}
	fresh := func(i int) string {
		return "/" + signed(func(c *token.Claims) { c.NotBefore = testTime.Add(-time.Duration(i) * time.Second) }) + "/x.ts"
	}
	wantOutcome(t, g, requestFor(t, fresh(1), from("198.51.100.8")), "verification_limited")
	for i, other := range []string{"198.51.101.7", "2001:db8::1"} {
		wantOutcome(t, g, requestFor(t, fresh(2+i), from(other)), "")
	}
	wantOutcome(t, g, requestFor(t, fresh(2), from("198.51.100.8")), "") // a known token
	now = now.Add(time.Second / failedRate * 2)
	wantOutcome(t, g, requestFor(t, fresh(1), from("198.51.100.8")), "") // the budget has recovered
}

// Attack: networks that have sent forged tokens fill the queue of new viewers.
// Such a network is limited, then it waits in a queue of its own until failedMemory
// is over, because a company's one player with an old key must not set it back for
// good. S9: the times are the same, however the clock is set meanwhile.
func TestNetworksWithFailures(t *testing.T) {
	t.Parallel()
	failing, other := worklimit.ClientNetworks{Own: netip.MustParsePrefix("198.51.100.0/24")}, worklimit.ClientNetworks{Own: netip.MustParsePrefix("203.0.113.0/24")}
	for _, jump := range []time.Duration{0, time.Hour, -time.Hour, 10 * year, -10 * year} {
		l := newVerificationLimit()
		start := time.Now()
		now := start
		l.failures.Now = func() time.Time { return now }
		full := semaphore.NewWeighted(1)
		_ = full.TryAcquire(1)
		l.failed = queue.New(full, 0, 0) // nobody gets a turn in it, and nobody may wait
		for range failedBurst {
			l.failures.Spend(failing)
		}
		for _, tc := range []struct {
			network worklimit.ClientNetworks
			after   time.Duration
			want    error
		}{
			{failing, time.Millisecond, errNetworkLimited},
			{other, time.Millisecond, nil},
			{failing, time.Second, errQueueLimited},
			{failing, failedMemory - 1, errQueueLimited},
			{other, failedMemory - 1, nil},
			{failing, failedMemory, nil},
		} {
			now = afterJump(start.Add(tc.after), jump)
			leave, err := l.enter(t.Context(), tc.network)
			if err == nil {
				leave()
			}
			if !errors.Is(err, tc.want) {
				t.Errorf("%s later, the clock set by %s: the network %s gets %v, want %v", tc.after, jump, tc.network.Own, err, tc.want)
			}
		}
	}
}

// S11: a token cache larger than the memory limit would exhaust a small machine.
func TestMemoryWithin(t *testing.T) {
	t.Parallel()
	const mib = 1 << 20
	for limit, want := range map[int64]uint64{
		1<<63 - 1:  128 * mib, // no limit
		1024 * mib: 128 * mib,
		256 * mib:  64 * mib,
		mib:        minTokenCacheSize,
		0:          minTokenCacheSize,
	} {
		if got := memoryWithin(limit, minTokenCacheSize, defaultTokenCacheSize); got != want {
			t.Errorf("memory limit %d: %d bytes, want %d", limit, got, want)
		}
	}
}
