package signedplayback

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/signed-playback/caddy-signed-playback/token"
)

// A warm request costs next to nothing: the decision itself takes no memory, and
// the whole gate three pieces, which are what placeholders are read from, what
// looks them up, and the path at the origin.
func TestWarmRequestsAllocateNextToNothing(t *testing.T) {
	for _, c := range warmCases {
		t.Run(c.name, func(t *testing.T) {
			app := *c.app
			g := newGate(t, &app, new(Gate))
			r, reset := c.request(t)
			reset()
			var d decision
			allocations := testing.AllocsPerRun(100, func() {
				d = decision{gate: g, app: g.app, request: r, kind: kindOther, requestOrigin: r.Header.Get("Origin")}
				if err := g.decide(&d); err != nil {
					t.Fatal(err)
				}
			})
			if allocations != 0 {
				t.Errorf("the decision takes %v allocations, want none", allocations)
			}
		})
	}
}

// A flood of garbage must not become work for the garbage collector.
func TestGarbageAllocatesNothing(t *testing.T) {
	g := newGate(t, new(App), new(Gate))
	// An id that the control API cannot have made, so the store is not asked.
	stranger := must(token.GenerateSigningKey(strings.Repeat("u", 31) + "+"))
	for name, compact := range map[string]string{
		"unknown key": must(token.Sign(token.Claims{VideoID: "demo", ExpiresAt: testTime.Add(time.Hour)}, stranger)),
		"header":      "e30." + strings.Repeat("y", 400) + "." + strings.Repeat("z", 342),
		"alphabet":    strings.Replace(plainToken(), "e", "%", 1),
		"segments":    strings.ReplaceAll(plainToken(), ".", "_"),
		"length":      strings.Repeat("a", 9000) + ".b.c",
	} {
		t.Run(name, func(t *testing.T) {
			d := &decision{request: requestFor(t, "/x", nil), target: target{token: compact}}
			allocations := testing.AllocsPerRun(100, func() {
				if _, err := g.app.verify(d); err == nil {
					t.Fatal("it was accepted")
				}
			})
			if allocations != 0 {
				t.Errorf("refusing it takes %v allocations, want none", allocations)
			}
		})
	}
}

// The second request of a token is answered from memory, and a token with one
// changed character never is.
func TestCacheKnowsWholeTokensOnly(t *testing.T) {
	g := newGate(t, new(App), new(Gate))
	compact := plainToken()
	for range 2 {
		r := requestFor(t, "/"+compact+"/x.ts", nil)
		if a := ask(t, g, r); !a.allowed() {
			t.Fatalf("refused: %s", a.text)
		}
	}
	if g.app.tokens.get(compact, g.app.keys) == nil {
		t.Fatal("a token that has played is not remembered")
	}
	for i := range len(compact) {
		other := []byte(compact)
		if other[i]++; g.app.tokens.get(string(other), g.app.keys) != nil {
			t.Fatalf("a token that differs in byte %d meets the entry", i)
		}
	}
	for _, other := range []string{compact[:len(compact)-1], compact + "A", compact + "=", "", compact + compact} {
		if g.app.tokens.get(other, g.app.keys) != nil {
			t.Errorf("%d bytes that are not the token meet its entry", len(other))
		}
	}
}

// What is remembered is held against the present: dates, keys and settings.
func TestRememberedTokensAreCheckedAgain(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(t *testing.T, app *App)
		reason string
	}{
		{"expired meanwhile", func(_ *testing.T, app *App) {
			app.now = func() time.Time { return testTime.Add(time.Hour) }
		}, "token_expired"},
		{"the clock has gone back", func(_ *testing.T, app *App) {
			app.now = func() time.Time { return testTime.Add(-time.Hour) }
		}, "token_not_yet_valid"},
		{"key revoked", func(t *testing.T, app *App) {
			if err := app.state.revoke(t.Context(), "k1"); err != nil {
				t.Fatal(err)
			}
		}, "key_unknown"},
		{"another key of the same id", func(_ *testing.T, app *App) {
			app.keys.fixed = must(token.NewKeySet(strangerKey().Public()))
		}, "signature_invalid"},
		{"key gone", func(_ *testing.T, app *App) {
			app.keys.fixed = must(token.NewKeySet())
		}, "key_unknown"},
		{"the state is forgotten", func(_ *testing.T, app *App) { app.state.forget() }, "state_unavailable"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			g := newGate(t, new(App), new(Gate))
			path := "/" + signed(func(c *token.Claims) { c.NotBefore = testTime.Add(-time.Minute) }) + "/x.ts"
			r := requestFor(t, path, nil)
			if a := ask(t, g, r); !a.allowed() {
				t.Fatalf("refused at first: %s", a.text)
			}
			tc.change(t, g.app)
			r = requestFor(t, path, nil)
			wantRefusal(t, r, ask(t, g, r), tc.reason)
		})
	}
}

// However many viewers come with a token at once, it is verified once.
func TestSimultaneousRequestsShareOneVerification(t *testing.T) {
	g := newGate(t, new(App), new(Gate))
	cache := g.app.tokens
	key := testKey().Public()
	const viewers = 50
	var verifications atomic.Int32
	began, goOn := make(chan struct{}), make(chan struct{})
	check := func() (*verifiedToken, error) {
		if verifications.Add(1) == 1 {
			close(began)
		}
		<-goOn
		return &verifiedToken{key: key}, nil
	}
	var all sync.WaitGroup
	ask := func() {
		if _, err := cache.verify(t.Context(), "compact", key, check); err != nil {
			t.Error(err)
		}
	}
	all.Go(ask)
	<-began
	for range viewers {
		all.Go(ask)
	}
	close(goOn)
	all.Wait()
	if n := verifications.Load(); n != 1 {
		t.Errorf("%d verifications for %d viewers", n, viewers+1)
	}
	if len(cache.underway) != 0 {
		t.Errorf("%d verifications are still under way", len(cache.underway))
	}
}

// A verification that another request was refused for its own sake is no answer
// for this one; one that says something of the token is.
func TestOthersRefusalsAreNotShared(t *testing.T) {
	for _, tc := range []struct {
		name      string
		err       error
		key       *token.PublicKey
		wantCalls int
	}{
		{"limited", refuse(reasonVerificationLimited, errPrefixLimited), testKey().Public(), 2},
		{"bad signature", refuse(reasonSignatureInvalid, token.ErrSignature), testKey().Public(), 1},
		{"bad signature of another config's key", refuse(reasonSignatureInvalid, token.ErrSignature), strangerKey().Public(), 2},
		{"bad signature of another config's same key", refuse(reasonSignatureInvalid, token.ErrSignature), must(token.ParsePublicKeys([]byte(publicJWK(testKey())), "k1"))[0], 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cache := newTokenCache(minTokenCacheSize)
				key := testKey().Public()
				goOn := make(chan struct{})
				calls := 0
				go func() {
					_, _ = cache.verify(t.Context(), "compact", tc.key, func() (*verifiedToken, error) {
						calls++
						<-goOn
						return nil, tc.err
					})
				}()
				synctest.Wait()
				var err error
				go func() {
					_, err = cache.verify(t.Context(), "compact", key, func() (*verifiedToken, error) {
						calls++
						return &verifiedToken{key: key}, nil
					})
				}()
				synctest.Wait() // until the second waits for the first
				close(goOn)
				synctest.Wait()
				if calls != tc.wantCalls || (err == nil) != (calls == 2) {
					t.Errorf("%d calls and the error %v, want %d calls", calls, err, tc.wantCalls)
				}
				if _, remembered := cache.entries.GetIfPresent("compact"); remembered != (err == nil) {
					t.Errorf("remembered: %t, after the error %v", remembered, err)
				}
			})
		})
	}
}

// The cache stays within its size, whatever it is fed with.
func TestCacheIsBounded(t *testing.T) {
	cache := newTokenCache(minTokenCacheSize)
	key := testKey().Public()
	rules := must(compileRules([]byte(restrictedRules)))
	for i := range 20_000 {
		compact := fmt.Sprintf("%0700d", i)
		cache.entries.Set(compact, &verifiedToken{key: key, rules: rules})
	}
	cache.entries.CleanUp()
	if size := cache.entries.WeightedSize(); size > minTokenCacheSize || size < minTokenCacheSize/2 {
		t.Errorf("the cache holds %d bytes, want up to %d", size, minTokenCacheSize)
	}
}

// A config that is refused in the end must not have cost viewers their entries
// meanwhile, nor after.
func TestCacheIsAsLargeAsALivingConfigWants(t *testing.T) {
	const small, usual, large = 1 << 20, 8 << 20, 16 << 20
	cache := newTokenCache(usual)
	for _, step := range []struct {
		what       string
		want, less uint64 // sizes of a config that comes and of one that goes, 0 for none
		size       uint64
	}{
		{"the first config", usual, 0, usual},
		{"a smaller one is loaded", small, 0, usual},
		{"it is refused", 0, small, usual},
		{"a larger one is loaded", large, 0, large},
		{"it is refused", 0, large, usual},
		{"a reload without a change", usual, usual, usual},
		{"a smaller one is loaded again", small, 0, usual},
		{"it takes over", 0, usual, small},
		{"the last one ends", 0, small, small},
	} {
		if step.want != 0 {
			cache.want(step.want)
		}
		if step.less != 0 {
			cache.wantNoMore(step.less)
		}
		if got := cache.entries.GetMaximum(); got != step.size {
			t.Errorf("%s: %d bytes, want %d", step.what, got, step.size)
		}
	}
}

// The bound of the cache is one of memory, so its estimate must be about what
// tokens take.
func TestWeightOfTokens(t *testing.T) {
	addresses := func(rules, each int) string {
		var list []string
		for rule := range rules {
			var ips []string
			for i := range each {
				ips = append(ips, fmt.Sprintf(`"198.51.%d.%d"`, rule, 2*i)) // no two are neighbours
			}
			list = append(list, `{"type":"ip.src","ip":[`+strings.Join(ips, ",")+`],"action":"block"}`)
		}
		return "[" + strings.Join(list, ",") + "]"
	}
	for _, tc := range []struct {
		name, rules string
		length      int
	}{
		{"no rules", "", 600},
		{"some rules", `[{"type":"ip.geoip.country","country":["GB","US","DE"],"action":"allow"},` +
			`{"type":"ip.src","ip":["203.0.113.0/24","2001:db8::/32"],"action":"allow"},{"type":"any","action":"block"}]`, 700},
		{"a rule with many addresses", addresses(1, 17), 900},
		{"rules with an index", addresses(9, 9), 2200},
		{"many rules with many addresses", addresses(10, 17), 3600},
	} {
		t.Run(tc.name, func(t *testing.T) { wantWeight(t, tc.rules, tc.length) })
	}
}

func wantWeight(t *testing.T, rules string, length int) {
	t.Helper()
	const tokens = 2_000
	raw := []byte(rules)
	if rules == "" {
		raw = nil
	}
	cache, key := newTokenCache(1<<30), testKey().Public()
	before := heapInUse()
	for i := range tokens {
		claims := token.Claims{VideoID: strings.Clone("a-video-of-some-length"), ExpiresAt: testTime}
		cache.entries.Set(fmt.Sprintf("%0*d", length, i), newVerifiedToken(claims, must(compileRules(raw)), key))
	}
	cache.entries.CleanUp()
	took, estimated := heapInUse()-before, int64(cache.entries.WeightedSize())
	if took > estimated*115/100 || took < estimated*75/100 {
		t.Errorf("a token takes %d bytes, and is estimated at %d", took/tokens, estimated/tokens)
	}
	t.Logf("a token takes %d bytes, and is estimated at %d", took/tokens, estimated/tokens)
	runtime.KeepAlive(cache)
}

func heapInUse() int64 {
	runtime.GC()
	runtime.GC() // what finalizers have kept
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return int64(stats.HeapAlloc)
}

// S11: a small machine gets a small cache, and not one that eats it up.
func TestCacheFitsTheMemoryLimit(t *testing.T) {
	for limit, want := range map[int64]uint64{
		math.MaxInt64: 128 << 20, // none
		1 << 30:       128 << 20,
		256 << 20:     64 << 20,
		1 << 20:       minTokenCacheSize,
		0:             minTokenCacheSize,
	} {
		if got := tokenCacheSizeWithin(limit); got != want {
			t.Errorf("a memory limit of %d bytes makes a cache of %d, want %d", limit, got, want)
		}
	}
	for limit, want := range map[int64]uint64{
		math.MaxInt64: maxVideoBytes, // none
		512 << 20:     maxVideoBytes,
		256 << 20:     32 << 20,
		1 << 20:       minVideoBytes,
		0:             minVideoBytes,
	} {
		if got := videoBytesWithin(limit); got != want {
			t.Errorf("a memory limit of %d bytes leaves %d for settings of videos, want %d", limit, got, want)
		}
	}
}

// A node with few viewers must not pay for the collection of its garbage with
// what it does not spend on their tokens, and one with many not twice.
func TestReserveStandsInForTokens(t *testing.T) {
	const size = 64 << 20
	before := heapInUse()
	cache := newTokenCache(size)
	if got := heapInUse() - before; got < size/reservedShare*9/10 {
		t.Errorf("an empty cache of %d bytes adds %d bytes to the heap, want about %d", size, got, size/reservedShare)
	}
	remembered := &verifiedToken{video: shareText("demo"), key: testKey().Public()}
	half := size / reservedShare / int(remembered.weight(strings.Repeat("x", 700))) / 2
	fill := func(from, to int) {
		for i := from; i < to; i++ {
			_, _ = cache.remember(fmt.Sprintf("%0700d", i), func() (*verifiedToken, error) { return remembered, nil })
		}
	}
	fill(0, half)
	if cache.reserve.block.Load() == nil {
		t.Error("the reserve is given up before as much is remembered")
	}
	fill(half, 2*half+2)
	if cache.reserve.block.Load() != nil {
		t.Error("the reserve is kept although as much is remembered")
	}
	runtime.KeepAlive(cache)
}

// Tokens that do not verify take no place of those that do.
func TestForgedTokensAreNotRemembered(t *testing.T) {
	g := newGate(t, new(App), new(Gate))
	before := g.app.tokens.entries.EstimatedSize()
	forged := must(token.Sign(token.Claims{VideoID: "demo", ExpiresAt: testTime.Add(time.Hour)}, strangerKey()))
	r := requestFor(t, "/"+forged+"/x.ts", nil)
	wantRefusal(t, r, ask(t, g, r), "signature_invalid")
	if after := g.app.tokens.entries.EstimatedSize(); after != before {
		t.Errorf("%d entries after a forged token, want %d", after, before)
	}
}

// The cache is that of the configs before and after a reload, and goes with the
// last of them.
func TestCacheOutlivesReloads(t *testing.T) {
	old := newGate(t, new(App), new(Gate))
	r := requestFor(t, "/"+plainToken()+"/x.ts", nil)
	if a := ask(t, old, r); !a.allowed() {
		t.Fatalf("refused: %s", a.text)
	}
	next := newGate(t, new(App), new(Gate))
	hits := testutil.ToFloat64(next.app.metrics.cacheHits)
	r = requestFor(t, "/"+plainToken()+"/x.ts", nil)
	if a := ask(t, next, r); !a.allowed() {
		t.Fatalf("refused: %s", a.text)
	}
	if got := testutil.ToFloat64(next.app.metrics.cacheHits) - hits; got != 1 {
		t.Errorf("%v hits after the reload, want 1: it reads the same keys anew", got)
	}
}

// A network that sends forged tokens is not listened to for long, and viewers of
// other networks notice nothing.
func TestForgedTokensAreLimitedByNetwork(t *testing.T) {
	g := newGate(t, new(App), new(Gate))
	now := testTime
	g.app.limit.now = func() time.Time { return now }
	from := func(address string) func(*http.Request) {
		return func(r *http.Request) { caddyhttp.SetVar(r.Context(), caddyhttp.ClientIPVarKey, address) }
	}
	forged := must(token.Sign(token.Claims{VideoID: "demo", ExpiresAt: testTime.Add(time.Hour)}, strangerKey()))
	limited := false
	for range failedBurst + 1 {
		r := requestFor(t, "/"+forged+"/x.ts", from("198.51.100.7"))
		if a := ask(t, g, r); a.reason == "verification_limited" {
			limited = true
			wantRefusal(t, r, a, "verification_limited")
			if a.header.Get("Retry-After") == "" {
				t.Error("the refusal does not say when to try again")
			}
			break
		}
	}
	if !limited {
		t.Fatalf("%d forged tokens of one network were verified", failedBurst+1)
	}
	fresh := func(i int) string {
		return "/" + signed(func(c *token.Claims) { c.NotBefore = testTime.Add(-time.Duration(i) * time.Second) }) + "/x.ts"
	}
	r := requestFor(t, fresh(1), from("198.51.100.8"))
	wantRefusal(t, r, ask(t, g, r), "verification_limited")
	for i, other := range []string{"198.51.101.7", "2001:db8::1"} {
		if a := ask(t, g, requestFor(t, fresh(2+i), from(other))); !a.allowed() {
			t.Errorf("a new viewer from %s: %s", other, a.text)
		}
	}
	// What is remembered is not verified, so it plays from there too.
	if a := ask(t, g, requestFor(t, fresh(2), from("198.51.100.8"))); !a.allowed() {
		t.Errorf("a token that is remembered: %s", a.text)
	}
	now = now.Add(time.Second / failedRate * 2)
	if a := ask(t, g, requestFor(t, fresh(1), from("198.51.100.8"))); !a.allowed() {
		t.Errorf("the network's budget does not recover: %s", a.text)
	}
}

// Those who have failed before cannot fill the queue of those who have not.
func TestVerificationQueues(t *testing.T) {
	l := newVerificationLimit()
	for range cap(l.turns) {
		if err := l.enter(t.Context(), netip.Prefix{}); err != nil {
			t.Fatal(err)
		}
	}
	failed := netip.MustParsePrefix("198.51.100.0/24")
	now := testTime
	l.now = func() time.Time { return now }
	l.note(failed)
	outcomes := make(chan error)
	for range maxFailedWaiting + 1 {
		go func() { outcomes <- l.enter(t.Context(), failed) }()
	}
	var why *refusal
	if err := <-outcomes; !errors.As(err, &why) || why.reason != reasonVerificationLimited {
		t.Fatalf("the last of those in the queue got %v, want a refusal", err)
	}
	clean := make(chan error)
	go func() { clean <- l.enter(t.Context(), netip.MustParsePrefix("203.0.113.0/24")) }()
	for range maxFailedWaiting + 1 {
		l.leave()
		select {
		case err := <-outcomes:
			if err != nil {
				t.Fatal(err)
			}
		case err := <-clean:
			if err != nil {
				t.Fatal(err)
			}
		}
	}
}

// A failure is forgotten, so a company whose one player has an old key is not
// set back for good.
func TestFailuresAreForgotten(t *testing.T) {
	l := newVerificationLimit()
	for range cap(l.turns) {
		if err := l.enter(t.Context(), netip.Prefix{}); err != nil {
			t.Fatal(err)
		}
	}
	failed := netip.MustParsePrefix("198.51.100.0/24")
	now := testTime
	l.now = func() time.Time { return now }
	l.note(failed)
	now = now.Add(failedMemory)
	gone, cancel := context.WithCancel(t.Context())
	outcomes := make(chan error)
	const waiting = maxFailedWaiting + 1
	for range waiting {
		go func() { outcomes <- l.enter(gone, failed) }()
	}
	for l.waiting[0].Load() < waiting {
		runtime.Gosched()
	}
	cancel()
	for range waiting {
		if err := <-outcomes; !errors.Is(err, context.Canceled) {
			t.Errorf("one of those in the queue got %v, want them all to wait", err)
		}
	}
}
