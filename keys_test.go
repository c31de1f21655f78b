package signedplayback

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/google/go-cmp/cmp"

	"github.com/signed-playback/caddy-signed-playback/token"
)

func pemText(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

// publicPEM is a key in a form that has no `kid`.
func publicPEM(t *testing.T, key *token.SigningKey) string {
	t.Helper()
	private := must(x509.ParsePKCS1PrivateKey(privatePEM(t, key).Bytes))
	return pemText("PUBLIC KEY", must(x509.MarshalPKIXPublicKey(&private.PublicKey)))
}

func privatePEM(t testing.TB, key *token.SigningKey) *pem.Block {
	t.Helper()
	block, _ := pem.Decode(must(base64.StdEncoding.DecodeString(key.PEM())))
	return block
}

func keySetOf(keys ...*token.SigningKey) string {
	set := jwks{Keys: []json.RawMessage{}}
	for _, key := range keys {
		set.Keys = append(set.Keys, must(key.Public().JWK()))
	}
	return string(must(json.Marshal(set)))
}

// otherKey is a key of the id "k2".
var otherKey = sync.OnceValue(func() *token.SigningKey { return must(token.GenerateSigningKey("k2")) })

func TestKeyFiles(t *testing.T) {
	private := privatePEM(t, testKey())
	for _, tc := range []struct {
		name, file, content string
		want                []string
	}{
		{"JWK", "a.json", publicJWK(testKey()), []string{"k1"}},
		{"JWKS", "a.json", keySetOf(testKey(), otherKey()), []string{"k1", "k2"}},
		{"base64 of a private JWK", "a.txt", must(testKey().JWK()) + "\n", []string{"k1"}},
		{"base64 of a private PEM", "from-api.b64", testKey().PEM(), []string{"from-api"}},
		{"PEM takes the file's name", "site.pem", publicPEM(t, testKey()), []string{"site"}},
		{"PEM takes the file's name without the last ending", "site.2026.pem", publicPEM(t, testKey()), []string{"site.2026"}},
		{"PEM in a file without an ending", "site", publicPEM(t, testKey()), []string{"site"}},
		{"private PEM", "site.pem", string(pem.EncodeToMemory(private)), []string{"site"}},
		{"JWK without kid takes the file's name", "site.json", strings.Replace(publicJWK(testKey()), `"kid":"k1"`, `"x":"y"`, 1), []string{"site"}},
		{"white space around", "a.json", "\n " + publicJWK(testKey()) + " \r\n", []string{"k1"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			set, err := loadKeyFiles([]string{writeFile(t, tc.file, tc.content)})
			if err != nil {
				t.Fatalf("loadKeyFiles = %v", err)
			}
			if diff := cmp.Diff(tc.want, set.IDs()); diff != "" {
				t.Errorf("key ids (-want +got):\n%s", diff)
			}
			if key := set.Lookup(tc.want[0]); key == nil || !strings.Contains(string(must(key.JWK())), modulus(t)) {
				t.Errorf("the key %q is not the one of the file", tc.want[0])
			}
		})
	}
	t.Run("no files", func(t *testing.T) {
		set, err := loadKeyFiles(nil)
		if err != nil || len(set.IDs()) != 0 {
			t.Errorf("loadKeyFiles(nil) = %v, %v, want an empty set", set.IDs(), err)
		}
	})
	t.Run("the same key in two files", func(t *testing.T) {
		set, err := loadKeyFiles([]string{writeFile(t, "a.json", publicJWK(testKey())), writeFile(t, "k1.pem", publicPEM(t, testKey()))})
		if err != nil || len(set.IDs()) != 1 {
			t.Errorf("loadKeyFiles = %v, %v, want one key", set.IDs(), err)
		}
	})
}

// modulus returns that of testKey as a JWK has it.
func modulus(t *testing.T) string {
	t.Helper()
	var key struct{ N string }
	if err := json.Unmarshal([]byte(publicJWK(testKey())), &key); err != nil {
		t.Fatal(err)
	}
	return key.N
}

func TestKeyFilesThatAreRefused(t *testing.T) {
	elliptic256 := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	weak := must(rsa.GenerateKey(rand.Reader, 1024))
	for _, tc := range []struct{ name, content, want string }{
		{"empty", "", "empty"},
		{"text", "no key at all!", "neither JSON, nor PEM"},
		{"JSON of something else", `{"a":1}`, "without a key"},
		{"empty JWKS", `{"keys":[]}`, "without a key"},
		{"broken JSON", `{"kty":`, "unexpected end"},
		{"broken PEM", "-----BEGIN PUBLIC KEY-----\nAAAA\n", "broken PEM"},
		{"PEM of something else", pemText("CERTIFICATE REQUEST", []byte("x")), "CERTIFICATE REQUEST"},
		{"encrypted PEM", pemText("ENCRYPTED PRIVATE KEY", []byte("x")), "encrypted"},
		{"A8 elliptic curve", pemText("PUBLIC KEY", must(x509.MarshalPKIXPublicKey(&elliptic256.PublicKey))), "want RSA"},
		{"A8 symmetric", `{"kty":"oct","kid":"k","k":"c2VjcmV0"}`, "want RSA"},
		{"A8 for encryption", strings.Replace(publicJWK(testKey()), `"use":"sig"`, `"use":"enc"`, 1), `"enc"`},
		{"J5 for another algorithm", strings.Replace(publicJWK(testKey()), `"alg":"RS256"`, `"alg":"PS256"`, 1), `"PS256"`},
		{"J31 1024 bits", pemText("RSA PUBLIC KEY", x509.MarshalPKCS1PublicKey(&weak.PublicKey)), "1024 bits"},
		{"J31 exponent 3", strings.Replace(publicJWK(testKey()), `"e":"AQAB"`, `"e":"Aw"`, 1), "exponent 3"},
		{"two keys without kid", publicPEM(t, testKey()) + publicPEM(t, otherKey()), "two different keys"},
		{"kid with a space", strings.Replace(publicJWK(testKey()), `"kid":"k1"`, `"kid":"k 1"`, 1), `"k 1"`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := writeFile(t, "key.file", tc.content)
			set, err := loadKeyFiles([]string{path})
			if err == nil {
				t.Fatalf("loadKeyFiles = %v, want an error", set.IDs())
			}
			for _, want := range []string{tc.want, fmt.Sprintf("key_file %q", path)} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("loadKeyFiles = %v, want %q in it", err, want)
				}
			}
		})
	}
	t.Run("missing", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "none.json")
		_, err := loadKeyFiles([]string{path})
		if err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "signed-playback keygen") {
			t.Errorf("loadKeyFiles = %v, want the path and how to make a key", err)
		}
	})
	// Of two keys with one id only one could ever verify, and it would depend
	// on the files' order which.
	t.Run("A8 two keys of one id in two files", func(t *testing.T) {
		_, err := loadKeyFiles([]string{writeFile(t, "a.json", publicJWK(testKey())), writeFile(t, "b.json", publicJWK(strangerKey()))})
		if err == nil || !strings.Contains(err.Error(), `"k1"`) {
			t.Errorf("loadKeyFiles = %v, want an error that names the id", err)
		}
	})
}

// keyServer publishes what its body says.
type keyServer struct {
	*httptest.Server
	status   int
	body     string
	requests atomic.Int32
}

func newKeyServer(t *testing.T) *keyServer {
	t.Helper()
	s := &keyServer{status: http.StatusOK}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		s.requests.Add(1)
		w.WriteHeader(s.status)
		_, _ = io.WriteString(w, s.body)
	}))
	t.Cleanup(s.Close)
	return s
}

// acquired returns the key set of an address, which has not been loaded yet and
// is not refreshed.
func acquired(t *testing.T, address string) *remoteKeys {
	t.Helper()
	keys, err := acquireRemoteKeys(address, time.Hour)
	if err != nil {
		t.Fatalf("acquireRemoteKeys = %v", err)
	}
	t.Cleanup(func() {
		if err := releaseRemoteKeys(keys); err != nil {
			t.Errorf("releaseRemoteKeys = %v", err)
		}
	})
	return keys
}

// A key server that is away, that answers with an error page or with something
// that it should not, leaves the last good set in force: playback goes on, and
// nothing that was not published verifies.
func TestRemoteKeysKeepTheLastGoodSet(t *testing.T) {
	server := newKeyServer(t)
	keys := acquired(t, server.URL)
	enc := strings.Replace(publicJWK(strangerKey()), `"use":"sig"`, `"use":"enc"`, 1)
	for i, step := range []struct {
		name   string
		status int
		body   string
		err    string
		want   []string
	}{
		{"not there at first", 503, "", "status 503", nil},
		{"garbage at first", 200, "<html>", "not a JWK Set", nil},
		{"one key", 200, keySetOf(testKey()), "", []string{"k1"}},
		{"error", 500, keySetOf(otherKey()), "status 500", []string{"k1"}},
		{"not found", 404, keySetOf(otherKey()), "status 404", []string{"k1"}},
		{"another kind of success", 204, "", "status 204", []string{"k1"}},
		{"part of it", 206, keySetOf(otherKey()), "status 206", []string{"k1"}},
		{"empty", 200, "", "not a JWK Set", []string{"k1"}},
		{"HTML", 200, "<html></html>", "not a JWK Set", []string{"k1"}},
		{"null", 200, "null", "no member `keys`", []string{"k1"}},
		{"a list", 200, "[]", "not a JWK Set", []string{"k1"}},
		{"no keys", 200, "{}", "no member `keys`", []string{"k1"}},
		{"keys null", 200, `{"keys":null}`, "no member `keys`", []string{"k1"}},
		{"keys are an object", 200, `{"keys":{}}`, "not a JWK Set", []string{"k1"}},
		{"cut off", 200, keySetOf(testKey(), otherKey())[:600], "not a JWK Set", []string{"k1"}},
		{"two keys of one id", 200, keySetOf(testKey(), strangerKey()), "two different keys", []string{"k1"}},
		{"too large", 200, `{"keys":[],"x":"` + strings.Repeat("x", maxJWKSBytes) + `"}`, "more than 1048576 bytes", []string{"k1"}},
		{"just not too large", 200, keySetOf(testKey()) + strings.Repeat(" ", maxJWKSBytes-len(keySetOf(testKey()))), "", []string{"k1"}},
		{"rotated", 200, keySetOf(otherKey()), "", []string{"k2"}},
		{"keys that are not for this", 200, `{"keys":[` + enc + `,{"kty":"EC"},null,7,{},` + publicJWK(testKey()) + `]}`, "", []string{"k1"}},
		{"nothing but keys that are not for this", 200, `{"keys":[` + enc + `]}`, "", nil},
		{"back", 200, keySetOf(testKey(), otherKey()), "", []string{"k1", "k2"}},
		{"all revoked", 200, `{"keys":[]}`, "", nil},
	} {
		server.status, server.body = step.status, step.body
		err := keys.load()
		if (err == nil) != (step.err == "") || err != nil && !strings.Contains(err.Error(), step.err) {
			t.Errorf("step %d, %s: load = %v, want %q", i, step.name, err, step.err)
		}
		if diff := cmp.Diff(step.want, keys.set.Load().IDs()); diff != "" {
			t.Errorf("step %d, %s: keys in force (-want +got):\n%s", i, step.name, diff)
		}
	}
}

// Until the set has been loaded once, a key that is not found may be one of it:
// the viewer is told to try again, not that the token is no good.
func TestUnknownKeyBeforeAndAfterTheFirstLoad(t *testing.T) {
	server := newKeyServer(t)
	g := newGate(t, &App{JWKSURL: server.URL}, new(Gate))
	compact := must(token.Sign(token.Claims{VideoID: "demo", ExpiresAt: testTime.Add(time.Hour)}, otherKey()))
	request := func() answer { return ask(t, g, requestFor(t, "/"+compact+"/x.ts", nil)) }
	for i, step := range []struct{ name, body, want string }{
		{"before the first load", "", "state_unavailable"},
		{"after a failure", "garbage", "state_unavailable"},
		{"without the key", keySetOf(strangerKey()), "key_unknown"},
		{"after another failure", "garbage", "key_unknown"},
		{"with the key", keySetOf(otherKey()), ""},
		{"after a third failure", "garbage", ""},
		{"revoked", `{"keys":[]}`, "key_unknown"},
	} {
		if step.body != "" {
			server.body = step.body
			_ = g.app.keys.remote.load() // TestRemoteKeysKeepTheLastGoodSet has its errors
		}
		if a := request(); a.reason != step.want || a.allowed() != (step.want == "") {
			t.Errorf("step %d, %s: %d %q, want %q", i, step.name, a.status, a.reason, step.want)
		}
		// A key of the config wins over one of the same id in the set.
		if a := ask(t, g, requestFor(t, "/"+plainToken()+"/x.ts", nil)); !a.allowed() {
			t.Errorf("step %d, %s: a token of a key of the config: %d %q, want it allowed", i, step.name, a.status, a.reason)
		}
	}
}

// The attack: whoever sits in front of a plain http server chooses the keys,
// so a redirect from https must not lead there.
func TestRedirectsOfTheKeySet(t *testing.T) {
	plain := newKeyServer(t)
	plain.body = keySetOf(testKey())
	var target string
	redirecting := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/keys" {
			_, _ = io.WriteString(w, plain.body)
			return
		}
		http.Redirect(w, r, target, http.StatusFound)
	})
	secure, insecure := httptest.NewTLSServer(redirecting), httptest.NewServer(redirecting)
	t.Cleanup(secure.Close)
	t.Cleanup(insecure.Close)
	for _, tc := range []struct{ name, from, to, err string }{
		{"https to http", secure.URL, plain.URL, "redirect from https to http"},
		{"https to https", secure.URL, secure.URL + "/keys", ""},
		{"http to http", insecure.URL, plain.URL, ""},
		{"http to https", insecure.URL, secure.URL + "/keys", ""},
		{"in a circle", insecure.URL, insecure.URL, "more than 5 redirects"},
		{"https to a file", secure.URL, "file:///etc/passwd", "redirect from https to file"},
		{"http to a file", insecure.URL, "file:///etc/passwd", "unsupported protocol scheme"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			keys := acquired(t, tc.from)
			keys.client.Transport = secure.Client().Transport
			target = tc.to
			before := plain.requests.Load()
			err := keys.load()
			if (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) {
				t.Errorf("load = %v, want %q", err, tc.err)
			}
			if err != nil && (keys.set.Load() != nil || plain.requests.Load() != before) {
				t.Errorf("the keys behind the redirect were fetched all the same")
			}
		})
	}
}

// A URL of a key set may hold a password or a secret query. No error has it.
func TestErrorsOfTheKeySetHaveNoURL(t *testing.T) {
	server := newKeyServer(t)
	server.Close()
	keys := acquired(t, strings.Replace(server.URL, "://", "://user:hunter2@", 1)+"/keys?secret=hunter3")
	err := keys.load()
	if err == nil || strings.Contains(err.Error(), "hunter") {
		t.Errorf("load = %v, want an error without the URL", err)
	}
}

func TestKeySetURLsThatAreRefused(t *testing.T) {
	for _, address := range []string{"", "keys.json", "/keys.json", "file:///keys.json", "ftp://example.com/keys", "https://", "https:/keys", "https:keys", "://x", "http://[::1"} {
		if keys, err := acquireRemoteKeys(address, time.Hour); err == nil {
			t.Errorf("acquireRemoteKeys(%q) = %v, want an error", address, keys)
		}
	}
}

// endOfBody is a transport that says when the body of a response has been read.
type endOfBody struct{ done func() }

func (e endOfBody) RoundTrip(r *http.Request) (*http.Response, error) {
	res, err := http.DefaultTransport.RoundTrip(r)
	if err == nil {
		res.Body = closing{res.Body, e.done}
	}
	return res, err
}

type closing struct {
	io.ReadCloser
	done func()
}

func (c closing) Close() error { c.done(); return c.ReadCloser.Close() }

// The background work loads the set at once and ends when nobody wants it any
// more.
func TestRefreshLoadsAndEnds(t *testing.T) {
	server := newKeyServer(t)
	server.body = keySetOf(testKey())
	keys := acquired(t, server.URL)
	keys.client.Transport = endOfBody{func() { _ = keys.Destruct() }}
	keys.refresh() // which returns, for it is told to while it handles the response
	if diff := cmp.Diff([]string{"k1"}, keys.set.Load().IDs()); diff != "" {
		t.Errorf("keys after the first load (-want +got):\n%s", diff)
	}
	if got := server.requests.Load(); got != 1 {
		t.Errorf("%d requests, want 1", got)
	}
	if err := keys.load(); err == nil {
		t.Error("load after the end succeeded")
	}
}

// roundTrips is a transport that needs no network.
type roundTrips func() *http.Response

func (f roundTrips) RoundTrip(*http.Request) (*http.Response, error) { return f(), nil }

// A key server that is away is asked again soon, then less and less often, and
// as often as it is configured once it is back. The clock is that of the test.
func TestRefreshBacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys, err := acquireRemoteKeys("http://keys.example/"+t.Name(), 5*time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		const m, s = time.Minute, time.Second
		steps := []struct {
			status int
			wait   time.Duration // until the next request
		}{
			{200, 5 * m},
			{503, s},
			{503, 2 * s},
			{503, 4 * s},
			{503, 8 * s},
			{503, 16 * s},
			{503, 32 * s},
			{503, 64 * s},
			{503, 128 * s},
			{503, 256 * s},
			{503, 5 * m},
			{503, 5 * m},
			{200, 5 * m},
			{200, 5 * m},
			{503, s},
			{503, 2 * s},
			{200, 0},
		}
		var requests int
		var last time.Time
		keys.client.Transport = roundTrips(func() *http.Response {
			if got := time.Since(last); requests > 0 && got != steps[requests-1].wait {
				t.Errorf("request %d came %s after the one before, want %s", requests, got, steps[requests-1].wait)
			}
			last = time.Now()
			res := &http.Response{StatusCode: steps[requests].status, Body: io.NopCloser(strings.NewReader(keySetOf(testKey())))}
			if requests++; requests == len(steps) {
				if err := releaseRemoteKeys(keys); err != nil {
					t.Errorf("releaseRemoteKeys = %v", err)
				}
			}
			return res
		})
		keys.start()
		keys.start() // of another config
		<-keys.ctx.Done()
		synctest.Wait()
		if requests != len(steps) {
			t.Errorf("%d requests, want %d", requests, len(steps))
		}
	})
}

// A key server that is away for a day must not be asked without a pause in the
// end, because the doubling of the pause has overflowed.
func TestRefreshStaysSlowInALongOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys, err := acquireRemoteKeys("http://keys.example/"+t.Name(), 5*time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		start, requests := time.Now(), 0
		keys.client.Transport = roundTrips(func() *http.Response {
			requests++
			if requests == 1000 || time.Since(start) > 24*time.Hour {
				if err := releaseRemoteKeys(keys); err != nil {
					t.Errorf("releaseRemoteKeys = %v", err)
				}
			}
			return &http.Response{StatusCode: http.StatusServiceUnavailable, Body: http.NoBody}
		})
		keys.refresh()
		if most := 24*12 + 10; requests > most {
			t.Errorf("%d requests in %s, want at most %d in a day", requests, time.Since(start), most)
		}
	})
}

// The set outlives a config: a reload while the key server is away must not
// forget the keys, and the last config that goes takes it along.
func TestRemoteKeysAreSharedOverReloads(t *testing.T) {
	server := newKeyServer(t)
	server.body = keySetOf(testKey())
	load := func(interval caddy.Duration) *App {
		ctx, err := caddy.ProvisionContext(new(caddy.Config))
		if err != nil {
			t.Fatal(err)
		}
		app := &App{JWKSURL: server.URL, JWKSInterval: interval}
		if err := app.Provision(ctx); err != nil {
			t.Fatalf("Provision = %v", err)
		}
		return app
	}
	references := func(k *remoteKeys) int { n, _ := remoteKeysPool.References(k.poolKey); return n }
	unload := func(app *App) {
		if err := app.Cleanup(); err != nil {
			t.Errorf("Cleanup = %v", err)
		}
	}

	old := load(0)
	keys := old.keys.remote
	if err := keys.load(); err != nil {
		t.Fatal(err)
	}
	server.Close()
	next := load(caddy.Duration(5 * time.Minute)) // the default, written out
	if next.keys.remote != keys || references(keys) != 2 {
		t.Fatalf("%d references to the set of the old config, want 2", references(keys))
	}
	unload(old)
	if keys.ctx.Err() != nil || references(keys) != 1 {
		t.Errorf("the old config's end ended the set (%d references, want 1)", references(keys))
	}
	if next.keys.Lookup("k1") == nil || !next.keys.certain("k") {
		t.Error("the new config does not know the key that the old one had loaded")
	}
	other := load(caddy.Duration(time.Minute))
	if other.keys.remote == keys {
		t.Error("a config with another interval shares the set")
	}
	unload(other)
	unload(next)
	if keys.ctx.Err() == nil || references(keys) != 0 {
		t.Errorf("the set outlives its last config (%d references, want 0)", references(keys))
	}
}

// A config that fails after it has acquired the set gives it up, once.
func TestFailedConfigReleasesTheRemoteKeys(t *testing.T) {
	address := "http://127.0.0.1:1/" + t.Name()
	_, _, err := provisioned(t, &App{JWKSURL: address, GeoIPDatabase: writeFile(t, "broken.mmdb", "broken")}, nil)
	if err == nil {
		t.Fatal("provisioning succeeded, want an error about the database")
	}
	if n, known := remoteKeysPool.References(address + " 5m0s"); known {
		t.Errorf("%d references to the key set of a config that failed", n)
	}
}

// A key server that is down for hours must not be asked more and more often:
// doubling a wait for ever ends in one of no time at all.
func TestBackoffStaysBounded(t *testing.T) {
	k := &remoteKeys{interval: 5 * time.Minute}
	for failures, seconds := range []int{1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300} {
		want := time.Duration(seconds) * time.Second
		if got := k.backoff(failures); got != want {
			t.Errorf("backoff(%d) = %s, want %s", failures, got, want)
		}
	}
	for failures := range 10_000 {
		if got := k.backoff(failures); got < firstRetryWait || got > k.interval {
			t.Fatalf("backoff(%d) = %s", failures, got)
		}
	}
}

// A reload that changes the interval while the key server is away must not
// forget the keys.
func TestAnotherIntervalKeepsTheKeys(t *testing.T) {
	const address = "http://keys.example.com/jwks.json"
	first := must(acquireRemoteKeys(address, time.Hour))
	set := must(token.NewKeySet(testKey().Public()))
	first.set.Store(set)
	second := must(acquireRemoteKeys(address, 2*time.Hour))
	if second == first || second.set.Load() != set {
		t.Error("the keys are forgotten")
	}
	for _, keys := range []*remoteKeys{first, second} {
		if err := releaseRemoteKeys(keys); err != nil {
			t.Error(err)
		}
	}
}
