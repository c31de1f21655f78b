package verification

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/zap"
	"golang.org/x/sync/semaphore"

	"github.com/signed-playback/caddy-signed-playback/internal/accessrules"
	"github.com/signed-playback/caddy-signed-playback/internal/metrics"
	"github.com/signed-playback/caddy-signed-playback/internal/queue"
	"github.com/signed-playback/caddy-signed-playback/internal/refusal"
	"github.com/signed-playback/caddy-signed-playback/internal/state"
	"github.com/signed-playback/caddy-signed-playback/internal/store/storetest"
	"github.com/signed-playback/caddy-signed-playback/internal/worklimit"
	"github.com/signed-playback/caddy-signed-playback/token"
)

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

var (
	testKey   = sync.OnceValue(func() *token.SigningKey { return must(token.GenerateSigningKey("k1")) })
	testToken = sync.OnceValue(func() string {
		return must(token.Sign(token.Claims{VideoID: "demo", ExpiresAt: time.Unix(1_800_000_000, 0)}, testKey()))
	})
)

const cacheSize = 1 << 20

// Attack: a token that differs in one byte from a known one finds its entry, and
// so plays without a signature check.
func TestCacheKnowsWholeTokensOnly(t *testing.T) {
	t.Parallel()
	cache := NewCache(cacheSize)
	compact := testToken()
	cache.put(compact, &Token{Key: testKey().Public()})
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

func TestTokenCacheIsBounded(t *testing.T) {
	t.Parallel()
	cache := NewCache(cacheSize)
	key := testKey().Public()
	rules := must(accessrules.CompileClaim([]byte(`[{"type":"ip.geoip.country","country":["GB","US"],"action":"allow"},{"type":"any","action":"block"}]`)))
	for i := range 20_000 {
		cache.put(fmt.Sprintf("%0700d", i), &Token{Key: key, Rules: rules})
	}
	cache.entries.CleanUp()
	if size := cache.Bytes(); size > cacheSize || size < cacheSize/2 {
		t.Errorf("the cache has %d bytes, want up to %d", size, cacheSize)
	}
}

// heldVerifier returns a verifier whose signature checks wait until proceed is called.
func heldVerifier(t *testing.T) (v *Verifier, proceed func()) {
	t.Helper()
	turns := semaphore.NewWeighted(1)
	if !turns.TryAcquire(1) {
		t.Fatal("no turn")
	}
	s := state.New(state.Config{Store: storetest.NewFleet().Join(), Logger: zap.NewNop, CountError: func(string) {}})
	t.Cleanup(s.Close)
	v = New(Config{
		Cache: NewCache(cacheSize), Keys: &Keyring{Fixed: must(token.NewKeySet(testKey().Public())), State: s}, CatchUp: s.CatchUp,
		Address: func(*http.Request) (netip.Addr, bool) { return netip.MustParseAddr("203.0.113.7"), true }, Metrics: metrics.New(),
	})
	v.Limit.trusted = queue.New(turns, maxTrustedWaiting, time.Hour)
	return v, func() { turns.Release(1) }
}

func request(ctx context.Context) *http.Request {
	return httptest.NewRequestWithContext(ctx, http.MethodGet, "/x", nil)
}

// Attack: a reload or a popular video makes thousands of viewers send the same
// new token at once, each of which costs a signature check.
func TestRequestsWithTheSameTokenShareOneCheck(t *testing.T) {
	t.Parallel()
	compact := testToken()
	synctest.Test(t, func(t *testing.T) {
		v, proceed := heldVerifier(t)
		results := make(chan *Token)
		const viewers = 50
		for range viewers {
			go func() { results <- must(v.Verify(request(t.Context()), compact)) }()
		}
		synctest.Wait()
		proceed()
		for range viewers {
			if (<-results).Video != "demo" {
				t.Error("a viewer got another token")
			}
		}
		if n := testutil.ToFloat64(v.Metrics.Verified[""]); n != 1 {
			t.Errorf("%v checks for %d viewers, want 1", n, viewers)
		}
	})
}

// Attack: an attacker sends a viewer's token and cancels the request, so that
// the viewer who waits for the same check is refused too.
func TestCancelledChecksAreNotShared(t *testing.T) {
	t.Parallel()
	compact := testToken()
	synctest.Test(t, func(t *testing.T) {
		v, proceed := heldVerifier(t)
		cancelled, cancel := context.WithCancel(t.Context())
		attacker, viewer := make(chan error), make(chan error)
		send := func(ctx context.Context, result chan error) {
			_, err := v.Verify(request(ctx), compact)
			result <- err
		}
		go send(cancelled, attacker)
		synctest.Wait()
		go send(t.Context(), viewer)
		synctest.Wait()
		cancel()
		if why, ok := errors.AsType[*refusal.Error](<-attacker); !ok || why.Reason != refusal.VerificationLimited {
			t.Errorf("the cancelled request got %v", why)
		}
		proceed()
		if err := <-viewer; err != nil {
			t.Errorf("the viewer is refused: %v", err)
		}
	})
}

// Attack: a key is revoked while one of its tokens is being verified.
func TestKeyRevokedDuringItsCheck(t *testing.T) {
	t.Parallel()
	compact := testToken()
	synctest.Test(t, func(t *testing.T) {
		v, proceed := heldVerifier(t)
		result := make(chan error)
		go func() {
			_, err := v.Verify(request(t.Context()), compact)
			result <- err
		}()
		synctest.Wait()
		v.Keys.Fixed = must(token.NewKeySet())
		proceed()
		if why, ok := errors.AsType[*refusal.Error](<-result); !ok || why.Reason != refusal.KeyUnknown {
			t.Errorf("the token of the revoked key got %v, want key_unknown", why)
		}
	})
}

// Attack: networks that have sent forged tokens fill the queue of new viewers.
// A network whose signatures fail is limited. Then it waits in a queue of its own until
// failedMemory is over: one player with an old key must not slow down a company for good. S9: the times are the same, however the clock is set meanwhile.
func TestNetworksWithFailures(t *testing.T) {
	t.Parallel()
	failing, other := worklimit.ClientNetworks{Own: netip.MustParsePrefix("198.51.100.0/24")}, worklimit.ClientNetworks{Own: netip.MustParsePrefix("203.0.113.0/24")}
	const year = 365 * 24 * time.Hour
	for _, jump := range []time.Duration{0, time.Hour, -time.Hour, 10 * year, -10 * year} {
		l := newLimit()
		start := time.Now()
		now := start
		l.Failures.Now = func() time.Time { return now }
		full := semaphore.NewWeighted(1)
		_ = full.TryAcquire(1)
		l.failed = queue.New(full, 0, 0) // nobody gets a turn in it, and nobody may wait
		for range FailedBurst {
			l.Failures.Spend(failing)
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

// afterJump is what time.Now returns at a time, after somebody has set the clock: the date
// changes, and the monotonic time does not.
func afterJump(now time.Time, by time.Duration) time.Time {
	const nanosecondBits = 30
	jumped := now
	*(*uint64)(unsafe.Pointer(&jumped)) += uint64(int64(by/time.Second)) << nanosecondBits // no other way leads to such a time
	if jumped.Sub(now) != 0 || jumped.Round(0).Sub(now.Round(0)) != by {
		panic("the clock has not been set")
	}
	return jumped
}
