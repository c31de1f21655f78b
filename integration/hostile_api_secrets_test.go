package integration

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
)

// callEverything makes calls of every kind, those that succeed and those that
// fail, with everything in them that a caller may rightly send. header is the
// credential.
func callEverything(t testing.TB, g *gateway, key apiKey, header string) {
	t.Helper()
	private := func(id, pem string) string {
		body, _ := json.Marshal(map[string]string{"id": id, "pem": pem})
		return string(body)
	}
	text := key.text(t)
	jwk, _ := base64.StdEncoding.DecodeString(key.JWK)
	unknown := strings.Repeat("0", 32)
	for _, call := range [][3]string{
		{http.MethodGet, "stream/keys"},
		{http.MethodPost, "stream/keys/rotate"},
		{http.MethodDelete, "stream/keys/" + unknown},
		{http.MethodDelete, "stream/keys/.."},
		{http.MethodGet, "stream?status=ready"},
		{http.MethodGet, "stream?nonsense=true"},
		{http.MethodGet, "stream/demo"},
		{http.MethodPost, "stream/demo", `{"allowedOrigins":["https://example.com"]}`},
		{http.MethodPost, "stream/demo", `{"meta":{"name":"x"}}`},
		{http.MethodPut, "stream/demo"},
		{http.MethodPatch, "stream/demo"},
		{http.MethodOptions, "stream/demo"},
		{http.MethodPost, "stream/demo/token"},
		{http.MethodPost, "stream/demo/token", private(key.ID, key.PEM)},
		{http.MethodPost, "stream/demo/token", private(key.ID, text)},
		{http.MethodPost, "stream/demo/token", private(key.ID, key.JWK)},
		{http.MethodPost, "stream/demo/token", private(key.ID, string(jwk))},
		{http.MethodPost, "stream/demo/token", private(key.ID, string(jwk)[:len(jwk)-2])},
		{http.MethodPost, "stream/demo/token", private(key.ID, text[:len(text)-40])},
		{http.MethodPost, "stream/demo/token", private(unknown, key.PEM)},
		{http.MethodPost, "stream/demo/token", private("", key.PEM)},
		{http.MethodPost, "stream/demo/token", `{"key":` + private(key.ID, key.PEM) + `}`},
		{http.MethodPost, "stream/demo/token", private(key.ID, key.PEM)[1:]},
		{http.MethodPost, "stream/demo/token", private(key.ID, key.PEM) + private(key.ID, key.PEM)},
		{http.MethodPost, "stream/demo/token", key.PEM},
		{http.MethodPost, "stream/demo/token", text},
		{http.MethodPost, "stream/demo/token", string(jwk)},
		{http.MethodPost, "stream/demo/token", private(key.ID, strings.Repeat(text, 50))},
		{http.MethodPost, "stream/demo", private(key.ID, key.PEM)},
		{http.MethodPost, "stream/keys", private(key.ID, key.PEM)},
		{http.MethodPost, "stream/../token", private(key.ID, key.PEM)},
		{http.MethodPost, "nowhere", private(key.ID, key.PEM)},
		{http.MethodDelete, "stream/demo"},
	} {
		request := g.apiRequest(call[0], ofAccount(call[1]), call[2], header)
		readAPIResponse(t, g.onAPI().raw(t, request))
	}
}

// No credential and no private key gets into the output of the server, whatever
// goes well or wrong, with an access log and at the most talkative level.
func TestHostileAPISecretsInLog(t *testing.T) {
	o := startOrigin(t, nil)
	bearer, authKey := rand.Text(), rand.Text()
	const email = "owner@example.com"
	api := freeAddr(t)
	g := start(t, o, config{
		apiAddr: api,
		env:     []string{"API_BEARER=" + bearer, "API_KEY=" + authKey},
		sites: "http://" + api + " {\nlog\nsigned_playback_api {\nbearer_token {env.API_BEARER}\n" +
			"auth_key " + email + " {env.API_KEY}\n}\n}\n",
	})
	asBearer, asKey := "Authorization: Bearer "+bearer, "X-Auth-Email: "+email+"\r\nX-Auth-Key: "+authKey
	var key apiKey
	created := readAPIResponse(t, g.onAPI().raw(t, g.apiRequest(http.MethodPost, ofAccount("stream/keys"), "", asBearer)))
	if err := json.Unmarshal(created.Result, &key); err != nil {
		t.Fatalf("%s: %v", created.body, err)
	}
	secrets := key.privateText(t)
	secrets["the bearer"], secrets["the key"] = bearer, authKey
	for _, header := range []string{asBearer, asKey} {
		t.Run("A8 with "+strings.SplitN(header, ":", 2)[0], func(t *testing.T) { callEverything(t, g, key, header) })
	}
	for name, header := range map[string]string{
		"Basic":                      "Authorization: Basic " + bearer,
		"another case":               "authorization: bearer " + bearer,
		"one byte more":              asBearer + "x",
		"two":                        asBearer + "\r\n" + asBearer,
		"the key as a bearer":        "Authorization: Bearer " + authKey,
		"a cookie":                   "Cookie: token=" + bearer,
		"the key alone":              "X-Auth-Key: " + authKey,
		"a wrong email":              "X-Auth-Email: other@example.com\r\nx-auth-key: " + authKey,
		"two keys":                   asKey + "\r\nX-Auth-Key: " + authKey,
		"the bearer as a key":        "X-Auth-Email: " + email + "\r\nX-Auth-Key: " + bearer,
		"a bearer and a key":         asBearer + "\r\n" + asKey,
		"a bearer with NUL":          asBearer + "\x00",
		"a header that is no header": asBearer + "\r\n" + bearer,
	} {
		t.Run("A1 "+name, func(t *testing.T) {
			for _, target := range []string{ofAccount("stream/keys"), "/client/v4/user/tokens/verify"} {
				g.onAPI().raw(t, g.apiRequest(http.MethodGet, target, "", header))
			}
		})
	}
	for range 100 { // and when the address is not listened to any more
		g.onAPI().raw(t, g.apiRequest(http.MethodGet, ofAccount("stream/keys"), "", "X-Auth-Email: "+email, "X-Auth-Key: "+authKey+"x"))
	}
	g.stop(t)
	output := g.log.String()
	for _, expected := range []string{"call of the control API refused", "handled request", `"id":"` + key.ID + `"`} {
		if !strings.Contains(output, expected) {
			t.Errorf("the output does not have %q, so it cannot have a secret with it", expected)
		}
	}
	wantNoPartOf(t, "the output", output, secrets)
	for path, content := range tree(t, g.storage("signed_playback")) {
		wantNoPartOf(t, "the store, in "+filepath.Base(path)+",", content, secrets)
	}
}

// A secret in a path is most likely a mistake in a script. The lines that the
// API itself writes do not make it worse.
func TestHostileAPISecretInPath(t *testing.T) {
	o := startOrigin(t, nil)
	g := start(t, o, config{api: withAPI})
	secret := rand.Text()
	for _, target := range []string{
		"/client/v4/" + secret, "/client/v4/user/tokens/verify/" + secret, "/client/v4/accounts/" + secret + "!/stream/keys",
		ofAccount(secret), ofAccount("stream/demo/" + secret), ofAccount("stream/keys?api_key=" + secret),
		ofAccount("stream?access_token=" + secret), ofAccount("stream/demo?token=" + secret),
	} {
		for _, header := range []string{authorized, "Authorization: Bearer " + secret} {
			readAPIResponse(t, g.onAPI().raw(t, g.apiRequest(http.MethodGet, target, "", header)))
		}
	}
	g.stop(t)
	wantNoPartOf(t, "the log", g.log.String(), map[string]string{"the secret": secret})
}

// A configuration that would let anybody in, or that nobody can get in with, is
// refused with a message that says what is wrong and does not repeat a secret.
func TestHostileAPIConfigs(t *testing.T) {
	const secret = "hunter2-hunter2-hunter2"
	dir := t.TempDir()
	for _, name := range []string{"HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"} {
		t.Setenv(name, dir)
	}
	t.Setenv("API_EMPTY", "")
	t.Setenv("API_SPACE", secret+" "+secret)
	writeFile(t, filepath.Join(dir, "empty"), []byte("\n"))
	for _, row := range []struct{ name, api, message string }{
		{"no options", "signed_playback_api", "no credential: set bearer_token or auth_key"},
		{"no credential", "signed_playback_api {\naccount 0\n}", "no credential: set bearer_token or auth_key"},
		{"no secret", "signed_playback_api {\nbearer_token\n}", "bearer_token takes at least one secret"},
		{"an empty secret", "signed_playback_api {\nbearer_token \"\"\n}", "none of them empty"},
		{"an empty secret behind a good one", "signed_playback_api {\nbearer_token " + secret + " \"\"\n}", "none of them empty"},
		{"an environment variable of the Caddyfile that is not set", "signed_playback_api {\nbearer_token {$API_NOWHERE}\n}", "at least one secret"},
		{"a placeholder that is not set", "signed_playback_api {\nbearer_token " + secret + " {env.API_NOWHERE}\n}", "bearer_token 2: the placeholder {env.API_NOWHERE} stands for nothing"},
		{"a placeholder that is empty", "signed_playback_api {\nbearer_token {env.API_EMPTY}\n}", "bearer_token 1: the placeholder {env.API_EMPTY} stands for nothing"},
		{"a placeholder that is unknown", "signed_playback_api {\nbearer_token " + secret + "{nonsense}\n}", "bearer_token 1: a placeholder in it stands for nothing"},
		{"an empty file", "signed_playback_api {\nbearer_token {file." + filepath.Join(dir, "empty") + "}\n}", "bearer_token 1: the placeholder {file."},
		{"no such file", "signed_playback_api {\nbearer_token {file." + filepath.Join(dir, "nowhere") + "}\n}", "bearer_token 1: the placeholder {file."},
		{"a space within", "signed_playback_api {\nbearer_token {env.API_SPACE}\n}", "bearer_token 1: it is empty or contains a space"},
		{"a space within, quoted", "signed_playback_api {\nbearer_token \"" + secret + " " + secret + "\"\n}", "contains a space"},
		{"an email without a key", "signed_playback_api {\nauth_key owner@example.com\n}", "auth_key takes an email address and a key, not 1 arguments"},
		{"an empty key", "signed_playback_api {\nauth_key owner@example.com \"\"\n}", "auth_key takes an email address and a key"},
		{"a key too many", "signed_playback_api {\nauth_key owner@example.com " + secret + " " + secret + "\n}", "auth_key takes an email address and a key, not 3 arguments"},
		{"a key that is not set", "signed_playback_api {\nauth_key owner@example.com {env.API_NOWHERE}\n}", "auth_key 1, key: the placeholder {env.API_NOWHERE} stands for nothing"},
		{"an email that is not set", "signed_playback_api {\nauth_key {env.API_NOWHERE} " + secret + "\n}", "auth_key 1, email: the placeholder {env.API_NOWHERE} stands for nothing"},
		{"secrets twice", "signed_playback_api {\nbearer_token " + secret + "\nbearer_token " + secret + "\n}", `option "bearer_token" is repeated`},
		{"the secret as an argument", "signed_playback_api " + secret + " {\nbearer_token " + secret + "\n}", "unexpected argument; the options of signed_playback_api stand in a block"},
		{"an unknown option", "signed_playback_api {\nbearer_tokens " + secret + "\n}", `unrecognized option "bearer_tokens"; known are account, auth_key, bearer_token`},
		{"an account that cannot be one", "signed_playback_api {\nbearer_token " + secret + "\naccount ../x\n}", `account "../x": want 1 to 64 of`},
		{"an account that is not set", "signed_playback_api {\nbearer_token " + secret + "\naccount {env.API_NOWHERE}\n}", "API_NOWHERE"},
	} {
		t.Run("A1 "+row.name, func(t *testing.T) {
			writeFile(t, filepath.Join(dir, "Caddyfile"), []byte("{\nadmin off\n}\nhttp://127.0.0.1:1 {\n"+row.api+"\n}\n"))
			wantInvalid(t, row.message, secret, dir, "validate", "--adapter", "caddyfile", "--config", "Caddyfile")
		})
	}
	for _, row := range []struct{ name, handler, message string }{
		{"nothing", `{"handler":"signed_playback_api"}`, "no credential"},
		{"no secrets", `{"handler":"signed_playback_api","bearer_token":[],"auth_key":[]}`, "no credential"},
		{"an empty secret", `{"handler":"signed_playback_api","bearer_token":[""]}`, "bearer_token 1: it is empty"},
		{"an empty key", `{"handler":"signed_playback_api","auth_key":[{"email":"owner@example.com","key":""}]}`, "auth_key 1, key: it is empty"},
		{"no email", `{"handler":"signed_playback_api","auth_key":[{"key":"` + secret + `"}]}`, "auth_key 1, email: it is empty"},
		{"a secret that is no list", `{"handler":"signed_playback_api","bearer_token":"` + secret + `"}`, "bearer_token"},
		{"another name", `{"handler":"signed_playback_api","bearer_tokens":["` + secret + `"]}`, "bearer_tokens"},
	} {
		t.Run("A1 JSON with "+row.name, func(t *testing.T) {
			doc := `{"admin":{"disabled":true},"apps":{"http":{"servers":{"api":{"listen":["127.0.0.1:1"],"routes":[{"handle":[` + row.handler + `]}]}}}}}`
			writeFile(t, filepath.Join(dir, "config.json"), []byte(doc))
			wantInvalid(t, row.message, secret, dir, "validate", "--config", "config.json")
		})
	}
	t.Run("A1 adapt finds what is missing", func(t *testing.T) {
		writeFile(t, filepath.Join(dir, "Caddyfile"), []byte("http://127.0.0.1:1 {\nsigned_playback_api {\naccount 0\n}\n}\n"))
		wantInvalid(t, "no credential", secret, dir, "adapt", "--config", "Caddyfile")
		wantInvalid(t, "Caddyfile:", secret, dir, "adapt", "--config", "Caddyfile")
	})
}

// wantInvalid checks that a command of the binary finds a configuration wrong,
// in a message with a text and without a secret.
func wantInvalid(t testing.TB, message, secret, dir string, args ...string) {
	t.Helper()
	output, ok := caddyIn(t, dir, args...)
	last := strings.ReplaceAll(lastLine(output), `\"`, `"`) // as it stands in the log
	if ok || !strings.Contains(last, message) {
		t.Errorf("accepted: %t, with %s; want a message with %s", ok, last, message)
	}
	wantNoPartOf(t, "the message", output, map[string]string{"the secret": secret})
}

// What the config file says of a video is what the API tells of it, and not what
// the API can change.
func TestHostileAPIConfiguredVideo(t *testing.T) {
	o := startOrigin(t, nil)
	g := start(t, o, config{
		api: withAPI,
		app: "require_signed_urls on\nallowed_origins default.example.com\nmissing_origin allow\npublic_url https://media.example.com/\n" +
			"video open {\nrequire_signed_urls off\n}\nvideo closed {\nallowed_origins *.example.org other.example:8443\n}",
	})
	const open = `{"uid":"open","requireSignedURLs":false,"allowedOrigins":["default.example.com"],"meta":{},"created":null,"modified":null}`
	const closed = `{"uid":"closed","requireSignedURLs":true,"allowedOrigins":["*.example.org","other.example:8443"],"created":null}`
	g.mustCall(t, http.MethodPost, "stream/other", `{"meta":{"name":"x"}}`, nil)
	files := g.storage("signed_playback")
	before := tree(t, files)
	for _, call := range [][3]string{
		{http.MethodPost, "stream/open", `{"requireSignedURLs":true}`},
		{http.MethodPost, "stream/open", `{"meta":{"name":"x"}}`},
		{http.MethodPost, "stream/open", "{}"},
		{http.MethodPost, "stream/open"},
		{http.MethodDelete, "stream/open"},
		{http.MethodPost, "stream/closed", `{"requireSignedURLs":false,"allowedOrigins":[]}`},
		{http.MethodDelete, "stream/closed"},
	} {
		t.Run(fmt.Sprintf("A4 %s %s %s", call[0], call[1], call[2]), func(t *testing.T) {
			wantAPIError(t, g.call(t, call[0], call[1], call[2]), http.StatusForbidden, "config file")
		})
	}
	wantAPIError(t, g.call(t, http.MethodPost, "stream/open", `{"requireSignedUrls":true}`), http.StatusBadRequest, "requireSignedUrls")
	wantSameTree(t, files, before)
	g.wantVideo(t, "open", open)
	g.wantVideo(t, "closed", closed)
	g.wantVideo(t, "other", `{"uid":"other","requireSignedURLs":true,"allowedOrigins":["default.example.com"]}`)
	g.wantVideo(t, "nobody-has-set-it", `{"requireSignedURLs":true,"allowedOrigins":["default.example.com"],"meta":{},"created":null}`)
	g.wantVideo(t, "open", `{"preview":"https://media.example.com/open/iframe"}`)

	g.mustCall(t, http.MethodPost, "stream/other", `{"requireSignedURLs":false}`, nil)
	var list []struct {
		UID               string `json:"uid"`
		RequireSignedURLs bool   `json:"requireSignedURLs"`
	}
	g.mustCall(t, http.MethodGet, "stream", "", &list)
	if got := fmt.Sprint(list); got != "[{other false} {closed true} {open false}]" {
		t.Errorf("the list is %s", got)
	}
	if res := g.get(t, "/open/video/1.ts"); res.StatusCode != http.StatusOK {
		t.Errorf("the video that is open answers %d", res.StatusCode)
	}
	if res := g.get(t, "/closed/video/1.ts"); res.StatusCode != http.StatusUnauthorized {
		t.Errorf("the video that is closed answers %d", res.StatusCode)
	}
	minted := g.mintToken(t, "closed", "")
	if res := g.get(t, segment(minted), "Origin: https://default.example.com"); res.StatusCode != http.StatusForbidden {
		t.Errorf("the video that is closed answers %d to another site", res.StatusCode)
	}
}
