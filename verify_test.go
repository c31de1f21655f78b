package signedplayback

import (
	"math"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/zap"

	"github.com/signed-playback/caddy-signed-playback/internal/verification"
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
			app.keys.Fixed = must(token.NewKeySet(strangerKey().Public()))
		}, "signature_invalid"},
		{"key removed", func(_ *testing.T, app *App) {
			app.keys.Fixed = must(token.NewKeySet())
		}, "key_unknown"},
		{"state given up", func(t *testing.T, app *App) { app.keys.State = stateOf(t, downStore()) }, "state_unavailable"},
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

// A reload reads the same keys again and keeps the cache.
func TestTokenCacheOutlivesReloads(t *testing.T) {
	t.Parallel()
	old := newGate(t, &App{TokenCacheSize: 3 << 20}, new(Gate)) // of this test alone
	wantOutcome(t, old, requestFor(t, "/"+plainToken()+"/x.ts", nil), "")
	next := newGate(t, &App{TokenCacheSize: 3 << 20}, new(Gate))
	wantOutcome(t, next, requestFor(t, "/"+plainToken()+"/x.ts", nil), "")
	if got := testutil.ToFloat64(next.app.verifier.Metrics.CacheHits); got != 1 {
		t.Errorf("%v hits after the reload, want 1", got)
	}
}

// Attack: a flood of forged tokens takes the processor and the cache from
// viewers. Its network is limited soon, and other networks notice nothing.
func TestForgedTokensAreLimitedByNetwork(t *testing.T) {
	t.Parallel()
	g := newGate(t, &App{TokenCacheSize: 2 << 20}, new(Gate)) // of this test alone
	now := testTime
	g.app.verifier.Limit.Failures.Now = func() time.Time { return now }
	forged := must(token.Sign(token.Claims{VideoID: "demo", ExpiresAt: testTime.Add(time.Hour)}, strangerKey()))
	limited := false
	for range verification.FailedBurst + 1 {
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
		t.Fatalf("%d forged tokens of one network were verified", verification.FailedBurst+1)
	}
	if n := g.app.verifier.Cache.Entries(); n != 0 {
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
	now = now.Add(time.Second)
	wantOutcome(t, g, requestFor(t, fresh(1), from("198.51.100.8")), "") // the budget has recovered
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
