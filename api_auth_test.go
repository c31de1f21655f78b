package signedplayback

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// credentialed is an API with two secrets and two pairs.
func credentialed() *API {
	return &API{
		BearerTokens: []string{"first-secret", "second-secret"},
		AuthKeys:     []AuthKey{{"a@example.com", "key-a"}, {"b@example.com", "key-b"}},
	}
}

func credentialsOf(api *API) credentials {
	api.logger = zap.NewNop()
	return must(api.provisionCredentials())
}

// A1: what authorizes, and what merely looks like it.
func TestCredentials(t *testing.T) {
	known := credentialsOf(credentialed())
	digest := sha256.Sum256([]byte("first-secret"))
	pair := pairDigest("a@example.com", "key-a")
	for _, tc := range []struct {
		name   string
		header http.Header
		want   bool
	}{
		{"first", http.Header{"Authorization": {"Bearer first-secret"}}, true},
		{"second", http.Header{"Authorization": {"Bearer second-secret"}}, true},
		{"first pair", http.Header{"X-Auth-Email": {"a@example.com"}, "X-Auth-Key": {"key-a"}}, true},
		{"second pair", http.Header{"X-Auth-Email": {"b@example.com"}, "X-Auth-Key": {"key-b"}}, true},
		{"both, as SDKs send them", http.Header{"Authorization": {"Bearer first-secret"}, "X-Auth-Email": {"a@example.com"}, "X-Auth-Key": {"key-a"}}, true},
		{"secret beside a wrong pair", http.Header{"Authorization": {"Bearer first-secret"}, "X-Auth-Email": {"a@example.com"}, "X-Auth-Key": {"x"}}, true},
		{"pair beside a wrong secret", http.Header{"Authorization": {"Bearer x"}, "X-Auth-Email": {"a@example.com"}, "X-Auth-Key": {"key-a"}}, true},

		{"nothing", http.Header{}, false},
		{"empty", http.Header{"Authorization": {""}}, false},
		{"scheme alone", http.Header{"Authorization": {"Bearer"}}, false},
		{"no secret", http.Header{"Authorization": {"Bearer "}}, false},
		{"wrong", http.Header{"Authorization": {"Bearer third-secret"}}, false},
		{"a part of the right one", http.Header{"Authorization": {"Bearer first-secre"}}, false},
		{"first character", http.Header{"Authorization": {"Bearer f"}}, false},
		{"more than the right one", http.Header{"Authorization": {"Bearer first-secrets"}}, false},
		{"space behind", http.Header{"Authorization": {"Bearer first-secret "}}, false},
		{"NUL behind", http.Header{"Authorization": {"Bearer first-secret\x00"}}, false},
		{"two spaces", http.Header{"Authorization": {"Bearer  first-secret"}}, false},
		{"tab", http.Header{"Authorization": {"Bearer\tfirst-secret"}}, false},
		{"no space", http.Header{"Authorization": {"Bearerfirst-secret"}}, false},
		{"in capitals", http.Header{"Authorization": {"Bearer FIRST-SECRET"}}, false},
		{"bearer", http.Header{"Authorization": {"bearer first-secret"}}, false},
		{"Basic", http.Header{"Authorization": {"Basic first-secret"}}, false},
		{"BEARER", http.Header{"Authorization": {"BEARER first-secret"}}, false},
		{"Token", http.Header{"Authorization": {"Token first-secret"}}, false},
		{"no-break space behind", http.Header{"Authorization": {"Bearer first-secret\u00a0"}}, false},
		{"percent-encoded", http.Header{"Authorization": {"Bearer %66irst-secret"}}, false},
		{"in quotes", http.Header{"Authorization": {`Bearer "first-secret"`}}, false},
		{"a list", http.Header{"Authorization": {"Bearer first-secret, Bearer x"}}, false},
		{"both with a space", http.Header{"Authorization": {"Bearer first-secret second-secret"}}, false},
		{"no scheme", http.Header{"Authorization": {"first-secret"}}, false},
		{"both at once", http.Header{"Authorization": {"Bearer first-secret,second-secret"}}, false},
		{"two lines, the right one first", http.Header{"Authorization": {"Bearer first-secret", "Bearer x"}}, false},
		{"two lines, the right one last", http.Header{"Authorization": {"Bearer x", "Bearer first-secret"}}, false},
		{"two lines, both right", http.Header{"Authorization": {"Bearer first-secret", "Bearer first-secret"}}, false},
		{"its digest", http.Header{"Authorization": {"Bearer " + hex.EncodeToString(digest[:])}}, false},
		{"the bytes of its digest", http.Header{"Authorization": {"Bearer " + string(digest[:])}}, false},
		{"the bytes of a pair's digest", http.Header{"Authorization": {"Bearer " + string(pair[:])}}, false},
		{"a pair as a secret", http.Header{"Authorization": {"Bearer a@example.com\x00key-a"}}, false},
		{"a key as a secret", http.Header{"Authorization": {"Bearer key-a"}}, false},
		{"in a cookie", http.Header{"Cookie": {"Authorization=Bearer first-secret; token=first-secret"}}, false},
		{"in another header", http.Header{"X-Auth-User-Service-Key": {"first-secret"}, "Proxy-Authorization": {"Bearer first-secret"}}, false},

		{"key alone", http.Header{"X-Auth-Key": {"key-a"}}, false},
		{"address alone", http.Header{"X-Auth-Email": {"a@example.com"}}, false},
		{"key of another address", http.Header{"X-Auth-Email": {"a@example.com"}, "X-Auth-Key": {"key-b"}}, false},
		{"address in capitals", http.Header{"X-Auth-Email": {"A@example.com"}, "X-Auth-Key": {"key-a"}}, false},
		{"two addresses", http.Header{"X-Auth-Email": {"a@example.com", "a@example.com"}, "X-Auth-Key": {"key-a"}}, false},
		{"no key", http.Header{"X-Auth-Email": {"a@example.com"}, "X-Auth-Key": {""}}, false},
		{"a part of the key", http.Header{"X-Auth-Email": {"a@example.com"}, "X-Auth-Key": {"key-"}}, false},
		{"another address", http.Header{"X-Auth-Email": {"c@example.com"}, "X-Auth-Key": {"key-a"}}, false},
		{"address and key swapped", http.Header{"X-Auth-Email": {"key-a"}, "X-Auth-Key": {"a@example.com"}}, false},
		{"two addresses of two pairs", http.Header{"X-Auth-Email": {"a@example.com", "b@example.com"}, "X-Auth-Key": {"key-a"}}, false},
		{"two keys, the right one last", http.Header{"X-Auth-Email": {"a@example.com"}, "X-Auth-Key": {"x", "key-a"}}, false},
		{"key as a secret beside its address", http.Header{"X-Auth-Email": {"a@example.com"}, "Authorization": {"Bearer key-a"}}, false},
		{"two keys", http.Header{"X-Auth-Email": {"a@example.com"}, "X-Auth-Key": {"key-a", "x"}}, false},
		{"a secret as a key", http.Header{"X-Auth-Email": {"a@example.com"}, "X-Auth-Key": {"first-secret"}}, false},
		{"a pair cut elsewhere", http.Header{"X-Auth-Email": {"a@example.comk"}, "X-Auth-Key": {"ey-a"}}, false},
		{"a pair in one header", http.Header{"X-Auth-Email": {"a@example.com\x00key-a"}, "X-Auth-Key": {""}}, false},
		{"both empty", http.Header{"X-Auth-Email": {""}, "X-Auth-Key": {""}}, false},
	} {
		if got := known.allow(tc.header); got != tc.want {
			t.Errorf("%s: allow = %t, want %t", tc.name, got, tc.want)
		}
	}
	for name, none := range map[string]credentials{"no credentials": {}, "a pair alone": {pairs: known.pairs}} {
		for _, secret := range []string{"", "Bearer ", "Bearer first-secret", "Bearer " + strings.Repeat("\x00", sha256.Size)} {
			if none.allow(http.Header{"Authorization": {secret}}) {
				t.Errorf("%s: %q is allowed", name, secret)
			}
		}
	}
}

// A1: whoever is refused learns nothing of why, be it from the body, a header
// or the address that was asked for.
func TestRefusedCallsLookTheSame(t *testing.T) {
	c := control(t, new(App), credentialed())
	var want apiReply
	for i, header := range []http.Header{
		{},
		{"Authorization": {"Bearer x"}},
		{"Authorization": {"Bearer first-secre"}},
		{"Authorization": {"Basic x"}},
		{"X-Auth-Email": {"a@example.com"}, "X-Auth-Key": {"x"}},
		{"X-Auth-Email": {"nobody"}, "X-Auth-Key": {"x"}},
	} {
		for _, path := range []string{"keys", "keys?token=first-secret&api_token=first-secret&X-Auth-Email=a@example.com&X-Auth-Key=key-a", "nothing/there", "../..", "/client/v4/x"} {
			a := c.call(t, "POST", path, "{", func(r *http.Request) {
				r.Header = header.Clone()
				from(fmt.Sprintf("192.0.2.%d", i))(r)
			})
			if want.status == 0 {
				want = a
			}
			wantReply(t, path, a, 401, codeCredentials)
			if a.raw != want.raw || fmt.Sprint(a.header) != fmt.Sprint(want.header) {
				t.Errorf("%s with %v = %s %v, want %s %v", path, header, a.raw, a.header, want.raw, want.header)
			}
		}
	}
	a := c.call(t, "GET", "keys", "", func(r *http.Request) {
		r.Header.Del("Authorization")
		r.Header["X-Auth-Email"], r.Header["X-Auth-Key"] = []string{"b@example.com"}, []string{"key-b"}
	})
	wantReply(t, "a call with a pair", a, 200, 0)
}

// A config whose secret is none is refused, and no error shows one.
func TestCredentialsInTheConfig(t *testing.T) {
	t.Setenv("TEST_SECRET", "from-the-environment")
	t.Setenv("TEST_EMPTY", "")
	file := writeFile(t, "secret", "from-a-file\r\n")
	for _, tc := range []struct {
		name string
		api  API
		send string // what authorizes then; "" for a config that is refused
		want string // in the error
	}{
		{"as it is", API{BearerTokens: []string{"hunter2-secret"}}, "hunter2-secret", ""},
		{"of the environment", API{BearerTokens: []string{"{env.TEST_SECRET}"}}, "from-the-environment", ""},
		{"of a file, without its line feed", API{BearerTokens: []string{"{file." + file + "}"}}, "from-a-file", ""},
		{"none", API{}, "", "no credential"},
		{"empty", API{BearerTokens: []string{""}}, "", "bearer_token 1"},
		{"empty behind a good one", API{BearerTokens: []string{"hunter2-secret", ""}}, "", "bearer_token 2"},
		{"empty variable", API{BearerTokens: []string{"{env.TEST_EMPTY}"}}, "", "bearer_token 1"},
		{"unset variable", API{BearerTokens: []string{"{env.TEST_UNSET}"}}, "", "bearer_token 1: the placeholder {env.TEST_UNSET}"},
		{"braces within a secret", API{BearerTokens: []string{"{env.hunter2}-"}}, "", "bearer_token 1"},
		{"braces that are a secret", API{BearerTokens: []string{"{hunter2}"}}, "", "bearer_token 1"},
		{"nothing but a line feed", API{BearerTokens: []string{"\n"}}, "", "bearer_token 1"},
		{"space within", API{BearerTokens: []string{"hunter2 secret"}}, "", "bearer_token 1"},
		{"space in front", API{BearerTokens: []string{" hunter2"}}, "", "bearer_token 1"},
		{"space behind", API{BearerTokens: []string{"hunter2 "}}, "", "bearer_token 1"},
		{"line feed within", API{BearerTokens: []string{"hunter2\nsecret"}}, "", "bearer_token 1"},
		{"control character", API{BearerTokens: []string{"hunter2\x7f"}}, "", "bearer_token 1"},
		{"letter beyond ASCII", API{BearerTokens: []string{"hunter2-é"}}, "", "bearer_token 1"},
		{"key without an address", API{AuthKeys: []AuthKey{{"", "hunter2"}}}, "", "auth_key 1, email"},
		{"address without a key", API{AuthKeys: []AuthKey{{"a@example.com", ""}}}, "", "auth_key 1, key"},
		{"bad key behind a good secret", API{BearerTokens: []string{"x"}, AuthKeys: []AuthKey{{"a@example.com", "hunter2\n2"}}}, "", "auth_key 1, key"},
	} {
		tc.api.logger = zap.NewNop()
		known, err := tc.api.provisionCredentials()
		if tc.send != "" {
			if err != nil || !known.allow(http.Header{"Authorization": {"Bearer " + tc.send}}) || known.allow(http.Header{"Authorization": {"Bearer x" + tc.send}}) {
				t.Errorf("%s: %v, or %q does not authorize", tc.name, err, tc.send)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: the error is %v, want %q in it and no secret", tc.name, err, tc.want)
		}
		if len(known.bearer)+len(known.pairs) != 0 {
			t.Errorf("%s: there are credentials beside the error", tc.name)
		}
	}
}

// A2: the time of a comparison tells nothing of how much of a secret was right,
// nor which of many it was. The measurement is that of dudect: two classes of
// inputs in random order, and Welch's t of their times, which beyond 4.5 says
// that they differ. That it would notice is shown with comparisons that leak.
func TestComparisonTakesTheSameTime(t *testing.T) {
	const length, many = 4096, 24
	random := rand.New(rand.NewPCG(1, 2))
	text := func(n int) string {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte('a' + random.IntN(26))
		}
		return string(b)
	}
	secret := text(length)
	headers := func(make func(i int) string) []http.Header {
		list := []http.Header{}
		for i := range 32 {
			list = append(list, http.Header{"Authorization": {"Bearer " + make(i)}})
		}
		return list
	}
	provision := func(secrets ...string) credentials {
		return credentialsOf(&API{BearerTokens: secrets})
	}
	one := provision(secret)
	others := make([]string, many)
	for i := range others {
		others[i] = text(32)
	}
	several := provision(others...)
	for _, tc := range []struct {
		name          string
		first, second []http.Header
		compare       func(http.Header) bool
		leaks         func(http.Header) bool
	}{
		{
			"correct prefix or none",
			headers(func(int) string { return secret[:length-1] + "~" }),
			headers(func(int) string { return text(length) }),
			one.allow,
			func(h http.Header) bool { got, _ := bearer(h); return got == secret },
		},
		{
			"first of many or last of many",
			headers(func(int) string { return others[0] }),
			headers(func(int) string { return others[many-1] }),
			several.allow,
			func(h http.Header) bool {
				return slices.Contains(others, strings.TrimPrefix(h["Authorization"][0], "Bearer "))
			},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			const limit, attempts = 4.5, 5
			least := math.Inf(1)
			for range attempts {
				if least = min(least, welch(random, tc.first, tc.second, tc.compare)); least < limit {
					break
				}
			}
			if least >= limit {
				t.Errorf("the times differ: t is %.1f at the least in %d runs, want less than %.1f", least, attempts, limit)
			}
			leak := 0.0
			for range attempts {
				if leak = max(leak, welch(random, tc.first, tc.second, tc.leaks)); leak >= limit {
					break
				}
			}
			if leak < limit {
				t.Errorf("a comparison that leaks goes unnoticed: t is %.1f", leak)
			}
		})
	}
}

// welch measures a comparison with two classes of inputs and returns Welch's t.
func welch(random *rand.Rand, first, second []http.Header, compare func(http.Header) bool) float64 {
	const samples, repetitions = 6000, 8
	var times [2][]float64
	for range samples {
		class := random.IntN(2)
		input := first[random.IntN(len(first))]
		if class == 1 {
			input = second[random.IntN(len(second))]
		}
		compare(input) // into the caches
		start := time.Now()
		for range repetitions {
			compare(input)
		}
		times[class] = append(times[class], float64(time.Since(start)))
	}
	// What took long was interrupted.
	pooled := slices.Sorted(slices.Values(slices.Concat(times[0], times[1])))
	crop := pooled[len(pooled)*7/10]
	var means, errors [2]float64
	for class, all := range times {
		kept := slices.DeleteFunc(all, func(t float64) bool { return t > crop })
		n := float64(len(kept))
		if n < samples/100 {
			return math.Inf(1) // one class is the slow one
		}
		for _, t := range kept {
			means[class] += t / n
		}
		for _, t := range kept {
			errors[class] += (t - means[class]) * (t - means[class]) / (n - 1) / n
		}
	}
	return math.Abs(means[0]-means[1]) / math.Sqrt(errors[0]+errors[1])
}

// A3: an address that guesses wrong is told so a bounded number of times, and
// the log once; nobody else is concerned.
func TestFailuresAreLimitedByAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFailureLimit()
		guessing, neighbour := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
		wantFailures := func(what string, within int) {
			t.Helper()
			for i := range within {
				if got := f.note(guessing); got != failedOnce {
					t.Fatalf("%s, failure %d is %d, want %d of them within the limit", what, i+1, got, within)
				}
			}
			if f.note(guessing) == failedOnce {
				t.Errorf("%s, more than %d failures are within the limit", what, within)
			}
		}
		for range failureBurst {
			if got := f.note(guessing); got != failedOnce {
				t.Fatalf("a failure is %d", got)
			}
		}
		for i, want := range []failed{failedTooOften, failedStill, failedStill} {
			if got := f.note(guessing); got != want {
				t.Errorf("failure %d beyond the limit is %d, want %d", i+1, got, want)
			}
		}
		if got := f.note(neighbour); got != failedOnce {
			t.Errorf("the first failure of its neighbour is %d", got)
		}
		for range 5 {
			<-time.After(time.Second)
			wantFailures("after a second", 1)
		}
		<-time.After(2 * failureBurst * time.Second)
		wantFailures("after a long silence", failureBurst)
	})
}

// A caller has one IPv4 address and as many IPv6 addresses as he likes, within
// a /64.
func TestNetworkOfACaller(t *testing.T) {
	for _, tc := range []struct {
		a, b string
		same bool
	}{
		{"192.0.2.1", "192.0.2.1", true},
		{"192.0.2.1", "192.0.2.0", false},
		{"2001:db8::1", "2001:db8::ffff:ffff:ffff:ffff", true},
		{"2001:db8::1", "2001:db8:0:1::1", false},
		{"::1", "127.0.0.1", false},
	} {
		a, b := network(netip.MustParseAddr(tc.a)), network(netip.MustParseAddr(tc.b))
		if (a == b) != tc.same {
			t.Errorf("%s and %s are one caller: %t, want %t", tc.a, tc.b, a == b, tc.same)
		}
	}
	if network(netip.Addr{}) != (netip.Prefix{}) {
		t.Error("an unknown address has a network")
	}
	// As requests come in, mapped addresses are IPv4, and zones do not count.
	for text, want := range map[string]string{"::ffff:192.0.2.1": "192.0.2.1/32", "fe80::1%eth0": "fe80::/64", "": "invalid Prefix"} {
		address, _ := clientAddress(requestFor(t, "/x", from(text)))
		if got := network(address).String(); got != want {
			t.Errorf("a caller from %q is %s, want %s", text, got, want)
		}
	}
}

// Failures that come in at the same time are all counted, and one of them is
// the one that the log has.
func TestFailuresAtTheSameTime(t *testing.T) {
	for range 20 {
		f := newFailureLimit()
		address := netip.MustParseAddr("2001:db8::1")
		var counts [3]atomic.Int64
		var wg sync.WaitGroup
		for range 2 * failureBurst {
			wg.Go(func() { counts[f.note(address)].Add(1) })
		}
		wg.Wait()
		if once, told := counts[failedOnce].Load(), counts[failedTooOften].Load(); once < failureBurst || once > failureBurst+5 || told != 1 {
			t.Fatalf("of %d failures at the same time, %d are within the limit and %d are told, want %d and 1", 2*failureBurst, once, told, failureBurst)
		}
	}
}

// A3: wrong calls become refusals that cost little, and the right credential is
// heard all the same: whoever shares an address with an attacker must still be
// able to revoke a key.
func TestWrongCallsFromOneAddress(t *testing.T) {
	c := control(t, new(App), new(API))
	at := func(address, secret string) apiReply {
		return c.call(t, "GET", "keys", "", func(r *http.Request) {
			from(address)(r)
			r.Header.Set("Authorization", "Bearer "+secret)
		})
	}
	limited := 0
	for range 2 * failureBurst {
		a := at("198.51.100.1", "guess")
		if a.status != http.StatusTooManyRequests {
			wantReply(t, "a wrong call", a, 401, codeCredentials)
			continue
		}
		limited++
		if a.header.Get("Retry-After") == "" || a.header.Get("Www-Authenticate") != "" || a.errors[0].Code != codeLimited {
			t.Errorf("a call too many is answered %s %v", a.raw, a.header)
		}
	}
	if limited < failureBurst/2 || limited > failureBurst {
		t.Errorf("%d of %d wrong calls are too many, want about %d", limited, 2*failureBurst, failureBurst)
	}
	wantReply(t, "a wrong call from elsewhere", at("198.51.100.2", "guess"), 401, codeCredentials)
	for range 3 * failureBurst {
		wantReply(t, "a right call", at("198.51.100.1", apiSecret), 200, 0)
	}
	wantReply(t, "a right call from nowhere", at("@", apiSecret), 200, 0)
	if warnings := c.logs.FilterLevelExact(zap.WarnLevel).All(); len(warnings) != 1 || warnings[0].ContextMap()["client_ip"] != "198.51.100.1" {
		t.Errorf("the log has %d warnings, want one of the address: %v", len(warnings), warnings)
	}
}

// A secret that can be guessed is taken, with a warning that does not show it.
func TestShortSecretsAreWarnedOf(t *testing.T) {
	for _, tc := range []struct {
		api  API
		want int
	}{
		{API{BearerTokens: []string{"fifteen-letters"}}, 1},
		{API{BearerTokens: []string{"sixteen-letters-"}}, 0},
		{API{AuthKeys: []AuthKey{{"a-long-address@example.com", "short"}}}, 1},
		{API{AuthKeys: []AuthKey{{"a@b.c", "a-key-that-is-long-enough"}}}, 0},
		{API{BearerTokens: []string{"short", "fifteen-letters"}, AuthKeys: []AuthKey{{"a@b.c", "short"}}}, 3},
	} {
		var logs *observer.ObservedLogs
		tc.api.logger, logs = observedLog()
		if _, err := tc.api.provisionCredentials(); err != nil {
			t.Errorf("%v: %v", tc.api.BearerTokens, err)
		}
		if text := fmt.Sprint(logs.All()); logs.Len() != tc.want || strings.Contains(text, "fifteen-letters") {
			t.Errorf("%v: %d warnings, want %d and no secret: %s", tc.api.BearerTokens, logs.Len(), tc.want, text)
		}
	}
}
