package signedplayback

import (
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/google/go-cmp/cmp"

	"github.com/signed-playback/caddy-signed-playback/internal/verification"
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
	set := map[string][]json.RawMessage{"keys": {}}
	for _, key := range keys {
		set["keys"] = append(set["keys"], must(key.Public().JWK()))
	}
	return string(must(json.Marshal(set)))
}

// otherKey is a key of the id "k2".
var otherKey = sync.OnceValue(func() *token.SigningKey { return must(token.GenerateSigningKey("k2")) })

// The tests of token have all forms of keys. A key without an id takes the name of
// its file.
func TestKeyFiles(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		file, content string
		want          []string
	}{
		{"a.json", "\n " + publicJWK(testKey()) + " \r\n", []string{"k1"}},
		{"a.json", keySetOf(testKey(), otherKey()), []string{"k1", "k2"}},
		{"from-api.b64", testKey().PEM(), []string{"from-api"}},
		{"site.2026.pem", publicPEM(t, testKey()), []string{"site.2026"}},
		{"site", publicPEM(t, testKey()), []string{"site"}},
	} {
		set, err := verification.LoadKeyFiles([]string{writeFile(t, tc.file, tc.content)})
		if diff := cmp.Diff(tc.want, set.IDs()); err != nil || diff != "" {
			t.Errorf("%s: loadKeyFiles = %v, key ids (-want +got):\n%s", tc.file, err, diff)
		}
		if key := must(token.NewKeySet(testKey().Public())).Lookup("k1"); err == nil && tc.want[0] == "k1" && !set.Lookup("k1").Equal(key) {
			t.Errorf("%s: k1 is another key", tc.file)
		}
	}
	if set, err := verification.LoadKeyFiles(nil); err != nil || len(set.IDs()) != 0 {
		t.Errorf("verification.LoadKeyFiles(nil) = %v, %v, want an empty set", set.IDs(), err)
	}
	set, err := verification.LoadKeyFiles([]string{writeFile(t, "a.json", publicJWK(testKey())), writeFile(t, "k1.pem", publicPEM(t, testKey()))})
	if err != nil || len(set.IDs()) != 1 {
		t.Errorf("loadKeyFiles of the same key in two files = %v, %v, want one key", set.IDs(), err)
	}
}

// Attack A8: two files with different keys of one id. Only one of them could verify,
// and the order of the files would decide which.
func TestKeyFilesThatAreRefused(t *testing.T) {
	t.Parallel()
	good, bad, missing := writeFile(t, "a.json", publicJWK(testKey())), writeFile(t, "key.file", "no key at all!"), filepath.Join(t.TempDir(), "none.json")
	for _, tc := range []struct{ files, want []string }{
		{[]string{good, bad}, []string{fmt.Sprintf("key_file %q", bad)}},
		{[]string{missing}, []string{missing, "signed-playback keygen"}},
		{[]string{good, writeFile(t, "b.json", publicJWK(strangerKey()))}, []string{`"k1"`}},
		{[]string{writeFile(t, "empty.json", "")}, []string{"empty.json"}},
	} {
		set, err := verification.LoadKeyFiles(tc.files)
		if err == nil {
			t.Errorf("loadKeyFiles(%q) = %v, want an error", tc.files, set.IDs())
			continue
		}
		for _, want := range tc.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("loadKeyFiles(%q) = %v, want %q in it", tc.files, err, want)
			}
		}
	}
}

// keyServer answers every request with a status and a body.
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

// Before the set is loaded for the first time, an unknown key may be one of it.
// The answer is to try again, not that the token is invalid.
func TestUnknownKeyBeforeAndAfterTheFirstLoad(t *testing.T) {
	t.Parallel()
	server := newKeyServer(t)
	g := newGate(t, &App{JWKSURL: server.URL}, new(Gate))
	compact := must(token.Sign(token.Claims{VideoID: "demo", ExpiresAt: testTime.Add(time.Hour)}, otherKey()))
	for _, step := range []struct{ name, body, want string }{
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
			_ = g.app.keys.Remote.Load() // the tests of package jwks have its errors
		}
		wantOutcome(t, g, requestFor(t, "/"+compact+"/x.ts", nil), step.want)
		// A key of the config wins over one of the same id in the set.
		wantOutcome(t, g, requestFor(t, "/"+plainToken()+"/x.ts", nil), "")
	}
}

// The set outlives a config: a reload while the key server is unavailable must
// not lose the keys, also if it changes the interval. The last config that uses
// the set ends it.
func TestRemoteKeysAreSharedOverReloads(t *testing.T) {
	t.Parallel()
	server := newKeyServer(t)
	server.body = keySetOf(testKey())
	load := func(interval caddy.Duration) *App {
		return loaded(t, t.TempDir(), &App{JWKSURL: server.URL, JWKSInterval: interval})
	}
	unload := func(app *App) {
		if err := app.Cleanup(); err != nil {
			t.Errorf("Cleanup = %v", err)
		}
	}
	old := load(0)
	keys := old.keys.Remote
	if err := keys.Load(); err != nil {
		t.Fatal(err)
	}
	server.status = http.StatusServiceUnavailable
	check := func(step string, wantReferences int) {
		t.Helper()
		references, _ := remoteKeysPool.References(old.remoteKeys.poolKey)
		ended := errors.Is(keys.Load(), context.Canceled)
		if references != wantReferences || ended != (wantReferences == 0) {
			t.Errorf("%s: %d references, ended %t, want %d", step, references, ended, wantReferences)
		}
	}
	next := load(caddy.Duration(5 * time.Minute)) // the default, written out
	if next.keys.Remote != keys {
		t.Error("a config with the same interval does not share the set")
	}
	check("after a reload", 2)
	unload(old)
	check("after the end of the old config", 1)
	other := load(caddy.Duration(time.Minute))
	if other.keys.Remote == keys {
		t.Error("a config with another interval shares the set")
	}
	for name, app := range map[string]*App{"same interval": next, "another interval": other} {
		if app.keys.Lookup("k1") == nil || !app.keys.Authoritative("k") {
			t.Errorf("%s: the new config lost the key that the old one had loaded", name)
		}
	}
	unload(other)
	unload(next)
	check("after the end of all configs", 0)
}

// A config that fails after it has acquired the set releases it once.
func TestFailedConfigReleasesTheRemoteKeys(t *testing.T) {
	t.Parallel()
	address := "http://127.0.0.1:1/" + t.Name()
	_, _, err := provisioned(t, &App{JWKSURL: address, GeoIPDatabase: writeFile(t, "broken.mmdb", "broken")}, nil)
	if err == nil {
		t.Fatal("provisioning succeeded, want an error about the database")
	}
	if n, known := remoteKeysPool.References(address + " 5m0s"); known {
		t.Errorf("%d references to the key set of a config that failed", n)
	}
}
