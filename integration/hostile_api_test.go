package integration

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/signed-playback/caddy-signed-playback/token"
)

// authorized is the header line of the API's owner.
const authorized = "Authorization: Bearer " + apiSecret

// ofAccount is the path of a resource of the API.
func ofAccount(resource string) string { return "/client/v4/accounts/" + account + "/" + resource }

// onAPI is the gateway with the API's site in the place of its own, for raw,
// rawFrom and others.
func (g *gateway) onAPI() *gateway { return &gateway{addr: g.api} }

// apiRequest is a call of the API with nothing but what it is given.
func (g *gateway) apiRequest(method, target, body string, header ...string) string {
	header = append([]string{"Host: " + g.api, fmt.Sprintf("Content-Length: %d", len(body))}, header...)
	return rawRequest(method, target, header...) + body
}

// The codes of the API's errors.
const (
	codeRoute       = 7003
	codeCredential  = 10000
	codeUnavailable = 10001
	codeForbidden   = 10002
	codeBadRequest  = 10005
	codeTooLarge    = 10006
)

// wantAPIError checks that a call is refused with a status and a code.
func wantAPIError(t testing.TB, res *apiResponse, status, code int) {
	t.Helper()
	if res.StatusCode != status || len(res.Errors) != 1 || res.Errors[0].Code != code || string(res.Result) != "null" {
		t.Errorf("got %d: %.300s; want %d, one error with the code %d, and no result", res.StatusCode, res.body, status, code)
	}
}

// tree returns the content of every file below a folder by its path, and every
// folder.
func tree(t testing.TB, root string) map[string]string {
	t.Helper()
	files := make(map[string]string)
	noError(t, filepath.WalkDir(root, func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			files[path] = "a folder"
			return err
		}
		content, err := os.ReadFile(path)
		files[path] = string(content)
		return err
	}))
	return files
}

// wantSameTree checks that no file below a folder has come, gone or changed.
func wantSameTree(t testing.TB, root string, before map[string]string) {
	t.Helper()
	if diff := cmp.Diff(before, tree(t, root)); diff != "" {
		t.Errorf("the files below %s (-before +after):\n%s", filepath.Base(root), diff)
	}
}

// hostileAPI is one server for the attacks on the control API.
type hostileAPI struct {
	*gateway
	*origin
	own   string            // address of a site with the API for one account alone
	both  *gateway          // a site with the API and the gate
	key   apiKey            // a key of the API
	files map[string]string // in the storage, which no attack may change
}

// The credentials of hostileAPI, beside apiSecret.
const (
	apiPairEmail, apiPairKey = "owner@example.com", "c2547eb745079dac9320b638f5e225cf483cc5cfdda41"
	otherSecret              = "another-secret-of-the-tests"
)

func startHostileAPI(t *testing.T) *hostileAPI {
	t.Helper()
	a := &hostileAPI{origin: startOrigin(t, nil), own: freeAddr(t), both: &gateway{addr: freeAddr(t)}}
	api := withAPI + " " + otherSecret + "\nauth_key " + apiPairEmail + " " + apiPairKey
	a.gateway = start(t, a.origin, config{
		global: "servers {\nprotocols h1 h2c\n}",
		app:    "video configured {\nrequire_signed_urls off\n}",
		api:    api,
		sites: site(a.own, "signed_playback_api {\n"+api+"\naccount "+account+"\n}") +
			site(a.both.addr, "signed_playback_api {\n"+api+"\n}\nsigned_playback\nreverse_proxy "+a.origin.addr()),
	})
	a.key = a.createKey(t)
	a.mintToken(t, "demo", "") // which makes the gateway's own key
	a.mustCall(t, http.MethodPost, "stream/demo", `{"requireSignedURLs":true,"meta":{"name":"x"}}`, nil)
	files := a.storage()
	eventually(t, "the server has looked through its storage, as it does at start", func() bool {
		_, cleaned := os.Stat(filepath.Join(files, "last_clean.json"))
		_, cleaning := os.Stat(filepath.Join(files, "locks", "storage_clean.lock"))
		return cleaned == nil && cleaning != nil
	})
	for _, canary := range []string{"canary", "demo.json", "signed_playback/canary"} {
		writeFile(t, filepath.Join(files, filepath.FromSlash(canary)), []byte("not a file of the gateway"))
	}
	a.files = tree(t, files)
	return a
}

// TestHostileAPI has attacks on the control API through sockets, of which none may
// change a file of the storage. The full tables are in the unit tests.
func TestHostileAPI(t *testing.T) {
	t.Parallel()
	a := startHostileAPI(t)
	t.Run("credentials", a.tryCredentials)
	t.Run("guesses", a.guess)
	t.Run("calls", a.tryCalls)
	t.Run("paths of the gate", a.tryGate)
	t.Run("another account", a.tryAccount)
}

// tryCredentials calls with credentials that are nearly right. The answer must be
// the same as without any, so that it tells nothing.
func (a *hostileAPI) tryCredentials(t *testing.T) {
	keys := ofAccount("stream/keys")
	want := a.onAPI().raw(t, a.apiRequest(http.MethodGet, keys, ""))
	wantAPIError(t, readAPIResponse(t, want), http.StatusUnauthorized, codeCredential)
	want.Header.Del("Date")
	wantSame := func(t *testing.T, res *response) {
		t.Helper()
		res.Header.Del("Date")
		if diff := cmp.Diff(want.Header, res.Header); diff != "" || res.StatusCode != want.StatusCode || string(res.body) != string(want.body) {
			t.Errorf("got %d %s; headers (-without a credential +here):\n%s", res.StatusCode, res.body, diff)
		}
	}
	for i, row := range []struct {
		name   string
		header []string
	}{
		{"a part of the secret", []string{authorized[:len(authorized)-1]}},
		{"two lines that are right", []string{authorized, authorized}},
		{"a cookie", []string{"Cookie: Authorization=Bearer " + apiSecret}},
		{"an underscore for a hyphen", []string{"X_Auth_Email: " + apiPairEmail, "X_Auth_Key: " + apiPairKey}},
	} {
		t.Run("A1 "+row.name, func(t *testing.T) {
			from := fmt.Sprintf("127.0.1.%d", i+1) // so that no row makes the next one wait
			for method, target := range map[string]string{
				http.MethodPost: keys, http.MethodDelete: ofAccount("stream/demo"), http.MethodGet: "/client/v4/nowhere?token=" + apiSecret,
			} {
				wantSame(t, a.onAPI().rawFrom(t, from, a.apiRequest(method, target, `{"token":"`+apiSecret+`"}`, row.header...)))
			}
		})
	}
	t.Run("A1 in a trailer", func(t *testing.T) {
		res := a.onAPI().raw(t, rawRequest(http.MethodPost, keys, "Host: "+a.api, "Transfer-Encoding: chunked", "Trailer: Authorization")+"0\r\n"+authorized+"\r\n\r\n")
		if res.StatusCode != want.StatusCode && res.StatusCode != http.StatusBadRequest {
			t.Errorf("got %d: %s", res.StatusCode, res.body)
		}
	})
	header := []string{"authorization: \t Bearer " + otherSecret + " \t", "x-auth-email: " + apiPairEmail, "x-auth-key: " + apiPairKey} // RFC 9110 section 5.5
	if res := a.onAPI().raw(t, a.apiRequest(http.MethodGet, keys, "", header...)); res.StatusCode != http.StatusOK {
		t.Errorf("the other secret, with white space, and a pair: got %d: %s", res.StatusCode, res.body)
	}
	wantSameTree(t, a.storage(), a.files)
}

// guess guesses credentials, with another X-Forwarded-For each time. Few guesses of one
// address are heard, and neither others nor viewers notice. Package controlapi has the
// limits.
func (a *hostileAPI) guess(t *testing.T) {
	const guesser, guesses = "127.0.3.1", 2000
	viewers := seat(t, []*gateway{a.gateway}, map[string]string{"a viewer": segment(mint(t, "demo", nil))})
	keys := ofAccount("stream/keys")
	limited := false
	for i := 0; i < guesses && !limited; i++ {
		header := []string{fmt.Sprintf("Authorization: Bearer guess-%d", i), fmt.Sprintf("X-Forwarded-For: 203.0.113.%d", i%256)}
		res := a.onAPI().rawFrom(t, guesser, a.apiRequest(http.MethodGet, keys, "", header...))
		limited = res.StatusCode == http.StatusTooManyRequests
		if limited != (res.Header.Get("Retry-After") != "") || !limited && res.StatusCode != http.StatusUnauthorized {
			t.Errorf("A3 status %d with Retry-After %q", res.StatusCode, res.Header.Get("Retry-After"))
		}
	}
	if !limited {
		t.Errorf("A3 all of %d guesses were heard", guesses)
	}
	neighbour := a.onAPI().rawFrom(t, "127.0.3.2", a.apiRequest(http.MethodGet, keys, ""))
	wantAPIError(t, readAPIResponse(t, neighbour), http.StatusUnauthorized, codeCredential)
	// The owner may have a key to revoke, although somebody guesses at that address.
	if owner := a.onAPI().rawFrom(t, guesser, a.apiRequest(http.MethodGet, keys, "", authorized)); owner.StatusCode != http.StatusOK {
		t.Errorf("A3 the owner at the guesser's address got %d: %s", owner.StatusCode, owner.body)
	}
	viewers.leave(t)
}

// tryCalls has calls of the owner that are refused, or that must not get as far as
// the storage.
func (a *hostileAPI) tryCalls(t *testing.T) {
	const maxBody = 64 << 10
	video := ofAccount("stream/demo")
	call := func(method, target, body string) string { return a.apiRequest(method, target, body, authorized) }
	for _, row := range []struct {
		name, request string
		status, code  int
	}{
		{"A5 a member twice", call("POST", video, `{"requireSignedURLs":true,"requireSignedURL\u0073":false}`), 400, codeBadRequest},
		{"A5 nested to the end", call("POST", video, strings.Repeat("[", maxBody)), 400, codeBadRequest},
		{"A5 one byte too long, in chunks", rawRequest("POST", video, "Host: "+a.api, authorized, "Transfer-Encoding: chunked") +
			fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", maxBody+1, strings.Repeat(" ", maxBody+1)), 413, codeTooLarge},
		{"A5 100 MB announced", rawRequest("POST", video, "Host: "+a.api, authorized, "Content-Length: 104857600") + strings.Repeat(" ", maxBody+1), 413, codeTooLarge},
		{"A6 a claim of one's own", call("POST", video+"/token", `{"sub":"other"}`), 400, codeBadRequest},
		{"A8 a key that is not the gateway's", call("POST", video+"/token", pemBody(keyID, a.key.PEM)), 400, codeBadRequest},
		{"A4 a video of the config file", call("POST", ofAccount("stream/configured"), `{"requireSignedURLs":true}`), 403, codeForbidden},
		{"A11 a preflight", call("OPTIONS", ofAccount("stream/keys"), ""), 404, codeRoute},
	} {
		t.Run(row.name, func(t *testing.T) {
			res := readAPIResponse(t, a.onAPI().raw(t, strings.Replace(row.request, "\r\n", "\r\nOrigin: https://evil.example\r\n", 1)))
			wantAPIError(t, res, row.status, row.code)
			wantNoPartOf(t, "the answer", string(res.body), a.key.privateText(t))
			for name := range res.Header {
				if strings.HasPrefix(name, "Access-Control-") {
					t.Errorf("A11 the answer has %s", name)
				}
			}
		})
	}
	// Caddy's file storage removes whole trees, so no id may name a folder.
	for _, id := range []string{
		"", "..", "%2e%2e", "%252e%252e", "a%2fb", `a\b`, "../keys", "demo/..", "demo%00", "demo.json", "%c0%ae%c0%ae", strings.Repeat("a", 300),
	} {
		t.Run("A4 "+id, func(t *testing.T) {
			for target, method := range map[string]string{
				ofAccount("stream/keys/" + id): http.MethodDelete, ofAccount("stream/" + id): http.MethodDelete, ofAccount("stream/" + id + "/token"): http.MethodPost,
				"/client/v4/accounts/" + id + "/stream/keys/" + a.key.ID: http.MethodDelete,
			} {
				res := a.onAPI().raw(t, call(method, target, ""))
				if res.StatusCode/100 != 4 {
					t.Errorf("%s %s: got %d: %.300s", method, target, res.StatusCode, res.body)
				}
			}
		})
	}
	wantSameTree(t, a.storage(), a.files)
	t.Run("A11 a name that leads here", func(t *testing.T) {
		for _, host := range []string{"evil.example.com", "localhost:" + port(a.api), "127.0.0.1.evil.example.com:" + port(a.api)} {
			res := a.onAPI().raw(t, rawRequest(http.MethodGet, ofAccount("stream/keys"), "Host: "+host, authorized))
			if strings.Contains(string(res.body), "success") {
				t.Errorf("%s: got %d %s", host, res.StatusCode, res.body)
			}
		}
	})
}

// pemBody is the body of a call that has a token signed with the caller's key.
func pemBody(id, pem string) string {
	body, _ := json.Marshal(map[string]string{"id": id, "pem": pem})
	return string(body)
}

// tryGate asks a site of the gate for the API, and a site with both for what is
// nearly the API's.
func (a *hostileAPI) tryGate(t *testing.T) {
	minted := a.mintToken(t, "demo", "")
	a.take()
	a.wantRefused(t, a.get(t, ofAccount("stream/keys"), authorized), "token_required")
	post := rawRequest(http.MethodPost, ofAccount("stream/keys"), authorized, "Content-Length: 2") + "{}"
	a.wantRefused(t, a.raw(t, post), "method_not_allowed")
	a.wantPassed(t, a.both.get(t, segment(minted)), "/demo/video/1.ts")
	for _, path := range []string{"/demo/video/1.ts", "/client/v40/accounts", "/CLIENT/v4/accounts"} {
		a.wantRefused(t, a.both.get(t, path, authorized), "token_required")
	}
	a.wantRefused(t, a.both.raw(t, rawGet("//client/v4/accounts", authorized)), "path_invalid")
	for _, target := range []string{ofAccount("../keys"), "/client/v4/../" + minted, "/%63lient/v4/accounts/" + account + "/stream/keys", ofAccount("stream//keys")} {
		res := readAPIResponse(t, a.both.raw(t, rawGet(target, authorized)))
		if res.StatusCode != http.StatusNotFound && res.StatusCode != http.StatusBadRequest || res.reason() != "" {
			t.Errorf("A11 %s: got %d %q, want an answer of the API", target, res.StatusCode, res.reason())
		}
	}
	a.wantUntouched(t)
}

// tryAccount calls an API of one account under the names of others.
func (a *hostileAPI) tryAccount(t *testing.T) {
	before := tree(t, a.storage("signed_playback"))
	for _, other := range []string{strings.ToUpper(account), account[:31], account + "%20", account + "/" + account} {
		for resource, method := range map[string]string{"stream/keys": http.MethodPost, "stream/keys/" + a.key.ID: http.MethodDelete, "stream/demo": http.MethodDelete} {
			res := rawTo(t, a.own, rawRequest(method, "/client/v4/accounts/"+other+"/"+resource, authorized, "Content-Length: 0"))
			wantAPIError(t, readAPIResponse(t, res), http.StatusNotFound, codeRoute)
		}
	}
	wantSameTree(t, a.storage("signed_playback"), before)
	if res := rawTo(t, a.own, rawGet(ofAccount("stream/keys"), authorized)); res.StatusCode != http.StatusOK {
		t.Errorf("A11 the account itself got %d: %s", res.StatusCode, res.body)
	}
}

// The attack: tokens of a revoked key, on an open connection, after a restart, and after
// the operator has put another key under the same id, whether the key came from a file
// or from the API.
func TestHostileAPIRevokedForGood(t *testing.T) {
	t.Parallel()
	o := startOrigin(t, nil)
	g := start(t, o, config{api: withAPI})
	made, kept := g.createKey(t), g.createKey(t)
	own, fromFile := g.mintToken(t, "demo", ""), mint(t, "demo", nil)
	revoked := map[string]string{made.ID: segment(signWith(t, made, "demo")), keyID: segment(fromFile), keyIDOf(t, own): segment(own)}
	viewer := &keepAlive{addr: g.addr}
	defer viewer.close()
	ask := func(target string) *response {
		return viewer.exchange(t, "GET "+target+" HTTP/1.1\r\nHost: media.example.com\r\n\r\n")
	}
	for id, target := range revoked {
		o.wantPassed(t, ask(target), "/demo/video/1.ts")
		g.mustCall(t, http.MethodDelete, "stream/keys/"+id, "", nil)
		o.wantRefused(t, ask(target), "key_unknown")
	}
	wantDead := func(t *testing.T, g *gateway) {
		t.Helper()
		for id, target := range revoked {
			g.mustCall(t, http.MethodDelete, "stream/keys/"+id, "", nil) // again, which is no error
			o.wantRefused(t, g.get(t, target), "key_unknown")
		}
		for id, pem := range map[string]string{made.ID: made.PEM, keyID: signingKey().PEM()} {
			wantAPIError(t, g.call(t, http.MethodPost, "stream/demo/token", pemBody(id, pem)), http.StatusBadRequest, codeBadRequest)
		}
		wantEqual(t, []string{kept.ID}, g.keyIDs(t), "keys")
		o.wantPassed(t, g.get(t, segment(g.mintToken(t, "demo", ""))), "/demo/video/1.ts")
		o.wantPassed(t, g.get(t, segment(signWith(t, kept, "demo"))), "/demo/video/1.ts")
	}
	t.Run("A9 at once", func(t *testing.T) { wantDead(t, g) })
	g.kill(t)
	g = startAgain(t, o, g, config{api: withAPI})
	t.Run("A9 after a restart", func(t *testing.T) { wantDead(t, g) })
	g.kill(t)

	// The operator puts another key under the old id, and both halves of that of
	// the API into a file.
	replaced := must(token.GenerateSigningKey(keyID))(t)
	writeFile(t, filepath.Join(g.dir, "replaced.jwks.json"), publicJWKS(t, replaced))
	wrapped, _ := json.Marshal(made)
	writeFile(t, filepath.Join(g.dir, "made.json"), wrapped)
	t.Run("A9 under the same id", func(t *testing.T) {
		g := startAgain(t, o, g, config{api: withAPI, keys: "replaced.jwks.json made.json"})
		o.wantRefused(t, g.get(t, segment(tokenOf(t, replaced, "demo"))), "key_unknown")
		wantDead(t, g)
	})
}

// callEverything makes calls of every kind, those that succeed and those that
// fail, with everything in them that a caller may rightly send. header is the
// credential.
func callEverything(t testing.TB, g *gateway, key apiKey, header string) {
	t.Helper()
	text := key.text(t)
	jwk, _ := base64.StdEncoding.DecodeString(key.JWK)
	unknown := strings.Repeat("0", 32)
	for _, call := range [][3]string{
		{http.MethodGet, "stream/keys"},
		{http.MethodPost, "stream/keys/rotate"},
		{http.MethodDelete, "stream/keys/" + unknown},
		{http.MethodGet, "stream?nonsense=true"},
		{http.MethodPost, "stream/demo", `{"allowedOrigins":["https://example.com"]}`},
		{http.MethodPost, "stream/demo", `{"meta":{"name":"x"}}`},
		{http.MethodPut, "stream/demo"},
		{http.MethodPost, "stream/demo/token", pemBody(key.ID, key.PEM)},
		{http.MethodPost, "stream/demo/token", pemBody(key.ID, text)},
		{http.MethodPost, "stream/demo/token", pemBody(key.ID, string(jwk))},
		{http.MethodPost, "stream/demo/token", pemBody(key.ID, text[:len(text)-40])},
		{http.MethodPost, "stream/demo/token", pemBody(key.PEM, key.PEM)},
		{http.MethodPost, "stream/demo/token", pemBody(key.ID, key.PEM)[1:]},
		{http.MethodPost, "stream/demo/token", text},
		{http.MethodPost, "stream/demo/token", pemBody(key.ID, strings.Repeat(text, 50))},
		{http.MethodPost, "stream/demo", pemBody(key.ID, key.PEM)},
		{http.MethodPost, "stream/keys", pemBody(key.ID, key.PEM)},
		{http.MethodPost, "nowhere", pemBody(key.ID, key.PEM)},
		{http.MethodDelete, "stream/demo"},
	} {
		readAPIResponse(t, g.onAPI().raw(t, g.apiRequest(call[0], ofAccount(call[1]), call[2], header)))
	}
}

// privateText returns the parts of a key of the API that must stay secret, without
// those that any key or its public half has in common with it.
func (k apiKey) privateText(t testing.TB) map[string]string {
	t.Helper()
	secrets := secretsOf(t, k)
	delete(secrets, "the PEM in it")
	secrets["pem"] = k.PEM[len(k.PEM)/2 : len(k.PEM)-80]
	secrets["jwk"] = k.JWK[len(k.JWK)/2:]
	return secrets
}

// text returns the PEM as a key file holds it.
func (k apiKey) text(t testing.TB) string {
	t.Helper()
	text, _ := decodedPEM(t, k.PEM)
	return text
}

// wantNoPartOf checks that a text holds no piece of a secret, even of one that is
// cut off.
func wantNoPartOf(t testing.TB, where, text string, secrets map[string]string) {
	t.Helper()
	const piece = 20
	for name, secret := range secrets {
		for at := 0; at < len(secret); at += piece / 2 {
			part := secret[at:min(at+piece, len(secret))]
			if len(part) >= min(piece, len(secret)) && strings.Contains(text, part) {
				t.Errorf("%s holds a part of %s, at %d", where, name, at)
				return
			}
		}
	}
}
