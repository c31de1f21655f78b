package integration

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/signed-playback/caddy-signed-playback/token"
)

// shell runs a script in a folder, with `caddy` for the binary under test.
func shell(t testing.TB, dir, script string) outcome {
	t.Helper()
	prelude := `set -eu -o pipefail; caddy() { "$0" "$@"; }; `
	return execute(t, dir, "", tool(t, "bash"), "-c", prelude+script, binary(t))
}

// keyFolder makes a folder with a key pair, key.json, and its public half,
// public.json, in the way of the help of keygen.
func keyFolder(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	tool(t, "node")
	got := shell(t, dir, `umask 077
		caddy signed-playback keygen >key.json
		node -p 'JSON.stringify(JSON.parse(fs.readFileSync(0)).jwks)' <key.json >public.json`)
	if got.code != 0 {
		t.Fatalf("exit status %d: %s", got.code, got.stderr)
	}
	return dir
}

func TestKeygenCommand(t *testing.T) {
	key, _ := keygen(t, "--kid", "2030-main")
	if key.ID != "2030-main" {
		t.Errorf("the id is %q", key.ID)
	}
	for name, text := range map[string]string{"pem": key.PEM, "jwk": key.JWK} {
		pair, err := token.ParseSigningKey([]byte(text), "2030-main")
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if diff := cmp.Diff(string(publicJWKS(t, pair)), compact(t, key.JWKS)); diff != "" {
			t.Errorf("jwks is not the public half of %s (-want +got):\n%s", name, diff)
		}
	}
	if strings.Contains(string(key.JWKS), `"d"`) {
		t.Error("the public set contains the private exponent")
	}
	first, _ := keygen(t)
	second, _ := keygen(t)
	if len(first.ID) != 32 || first.ID == second.ID || first.JWK == second.JWK {
		t.Errorf("two keys without --kid have the ids %q and %q", first.ID, second.ID)
	}
}

func compact(t testing.TB, doc []byte) string {
	t.Helper()
	var out bytes.Buffer
	if err := json.Compact(&out, doc); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// What sign prints is what the gate takes, however a shell user asks for it.
func TestSignCommand(t *testing.T) {
	dir := keyFolder(t)
	o := startOrigin(t, exampleMedia())
	g := start(t, o, config{keys: filepath.Join(dir, "public.json"), app: withCountries(t)})
	t.Setenv("GATE", "http://"+g.addr)

	unauthorized := func(reason string) verdict { return verdict{http.StatusUnauthorized, reason} }
	blocked := verdict{http.StatusForbidden, "rule_blocked"}
	for _, tc := range []struct {
		name   string
		script string // prints a playback URL
		want   verdict
	}{
		{"a URL", `caddy signed-playback sign --key key.json --sub demo --url "$GATE"`, plays},
		{"a URL with a slash", `caddy signed-playback sign --key key.json --sub demo --url "$GATE/"`, plays},
		{"a token alone", `echo "$GATE/$(caddy signed-playback sign --key key.json --sub demo)/manifest/video.mpd"`, plays},
		{"the key from standard input", `caddy signed-playback sign --key - --sub demo --url "$GATE" <key.json`, plays},
		{"another key through a pipe", `caddy signed-playback keygen | caddy signed-playback sign --key - --sub demo --url "$GATE"`, unauthorized("key_unknown")},
		{"the jwk alone", `node -p 'JSON.parse(fs.readFileSync(0)).jwk' <key.json | caddy signed-playback sign --key - --sub demo --url "$GATE"`, plays},
		{"the pem, with the id", `node -p 'JSON.parse(fs.readFileSync(0)).pem' <key.json >pem
			id=$(node -p 'JSON.parse(fs.readFileSync(0)).id' <key.json)
			caddy signed-playback sign --key pem --kid "$id" --sub demo --url "$GATE"`, plays},
		{"expired", `caddy signed-playback sign --key key.json --sub demo --exp=-1h --url "$GATE"`, unauthorized("token_expired")},
		{"expired, as two words", `caddy signed-playback sign --key key.json --sub demo --exp -1s --url "$GATE"`, unauthorized("token_expired")},
		{"exp in days", `caddy signed-playback sign --key key.json --sub demo --exp 30d --url "$GATE"`, plays},
		{"exp in Unix seconds", `caddy signed-playback sign --key key.json --sub demo --exp "$(date -d '+1 hour' +%s)" --url "$GATE"`, plays},
		{"exp in RFC 3339", `caddy signed-playback sign --key key.json --sub demo --exp "$(date -u -d '+1 hour' +%Y-%m-%dT%H:%M:%SZ)" --url "$GATE"`, plays},
		{"not before long", `caddy signed-playback sign --key key.json --sub demo --nbf=-5m --url "$GATE"`, plays},
		{"not yet", `caddy signed-playback sign --key key.json --sub demo --nbf 30m --url "$GATE"`, unauthorized("token_not_yet_valid")},
		{"rules that allow", `caddy signed-playback sign --key key.json --sub demo --url "$GATE" \
			--rules '[{"type":"ip.geoip.country","country":["US"],"action":"allow"},{"type":"any","action":"block"}]'`, plays},
		{"rules that block", `caddy signed-playback sign --key key.json --sub demo --url "$GATE" \
			--rules '[{"type":"ip.geoip.country","country":["GB"],"action":"allow"},{"type":"any","action":"block"}]'`, blocked},
		{"rules from a file", `echo '[{"type": "ip.src", "ip": ["127.0.0.0/8"], "action": "block"}]' >rules.json
			caddy signed-playback sign --key key.json --sub demo --url "$GATE" --rules @rules.json`, blocked},
		{"a download", `caddy signed-playback sign --key key.json --sub demo --downloadable --url "$GATE" | sed 's|manifest/video.m3u8|downloads/default.mp4|'`, plays},
		{"a download without --downloadable", `caddy signed-playback sign --key key.json --sub demo --url "$GATE" | sed 's|manifest/video.m3u8|downloads/default.mp4|'`, verdict{http.StatusForbidden, "download_not_allowed"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			signed := shell(t, dir, tc.script)
			if signed.code != 0 || signed.stderr != "" {
				t.Fatalf("exit status %d: %s", signed.code, signed.stderr)
			}
			address, isLine := strings.CutSuffix(signed.stdout, "\n")
			playback, err := url.Parse(address)
			if err != nil || !isLine || playback.Host != g.addr {
				t.Fatalf("it printed %q, which is not a line with a URL of the gate: %v", signed.stdout, err)
			}
			o.take()
			res := g.get(t, playback.EscapedPath())
			if diff := cmp.Diff(tc.want, res.verdict()); diff != "" {
				t.Errorf("%s (-want +got):\n%s", address, diff)
			}
			if reached := len(o.take()); reached != 0 && tc.want != plays {
				t.Errorf("%d requests reached the origin", reached)
			}
		})
	}
}

// A command that cannot do what it is asked says why and which option is to
// blame, prints nothing that a pipe would take for a result, and no secret.
func TestCommandErrors(t *testing.T) {
	dir := keyFolder(t)
	writeFile(t, filepath.Join(dir, "broken.json"), []byte(`{"kty":"RSA"`))
	for _, tc := range []struct {
		name, script, stderr string
	}{
		{"sign without a key", `caddy signed-playback sign --sub demo`, "--key"},
		{"sign without a video", `caddy signed-playback sign --key key.json`, "--sub"},
		{"no such key file", `caddy signed-playback sign --key nowhere.json --sub demo`, "nowhere.json"},
		{"a broken key file", `caddy signed-playback sign --key broken.json --sub demo`, "broken.json"},
		{"an empty standard input", `caddy signed-playback sign --key - --sub demo </dev/null`, "empty"},
		{"a key without its private half", `caddy signed-playback sign --key public.json --sub demo`, "no private key"},
		{"another kid than the key's", `caddy signed-playback sign --key key.json --kid other --sub demo`, `--kid "other"`},
		{"not a video id", `caddy signed-playback sign --key key.json --sub ../demo`, `"../demo"`},
		{"not a time", `caddy signed-playback sign --key key.json --sub demo --exp tomorrow`, `--exp "tomorrow"`},
		{"nbf behind exp", `caddy signed-playback sign --key key.json --sub demo --exp 1h --nbf 2h`, "--nbf 2h is not before --exp 1h"},
		{"not rules", `caddy signed-playback sign --key key.json --sub demo --rules '{"type":"any"}'`, "--rules"},
		{"rules without an action", `caddy signed-playback sign --key key.json --sub demo --rules '[{"type":"any"}]'`, "rule 1: action is missing"},
		{"no such file of rules", `caddy signed-playback sign --key key.json --sub demo --rules @nowhere.json`, "nowhere.json"},
		{"not a base address", `caddy signed-playback sign --key key.json --sub demo --url media.example.com`, `--url "media.example.com"`},
		{"an unknown flag", `caddy signed-playback sign --key key.json --sub demo --expires 1h`, "unknown flag: --expires"},
		{"a stray argument", `caddy signed-playback sign --key key.json --sub demo now`, `"now"`},
		{"a stray argument of keygen", `caddy signed-playback keygen key.json`, `"key.json"`},
		{"not a kid", `caddy signed-playback keygen --kid 'a b'`, `"a b"`},
		{"an unknown subcommand", `caddy signed-playback mint`, `"mint"`},
		{"inspect without a token", `caddy signed-playback inspect`, "arg"},
		{"inspect a URL without a token", `caddy signed-playback inspect https://media.example.com/demo/manifest/video.m3u8`, "contains no token"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := shell(t, dir, tc.script)
			if got.code != 1 || got.stdout != "" || !strings.Contains(got.stderr, tc.stderr) {
				t.Errorf("exit status %d, standard output %q, standard error %q; want 1, nothing and a text with %q", got.code, got.stdout, got.stderr, tc.stderr)
			}
			if strings.Contains(got.stderr, "PRIVATE KEY") || strings.Contains(got.stderr, `"d"`) {
				t.Errorf("the private key is in the error: %q", got.stderr)
			}
		})
	}
}

func TestInspectCommand(t *testing.T) {
	dir := keyFolder(t)
	for _, tc := range []struct {
		name, script string
		code         int
		stdout       []string
		stderr       string
	}{
		{
			name:   "a token as an argument",
			script: `caddy signed-playback inspect "$(caddy signed-playback sign --key key.json --sub demo)"`,
			stdout: []string{"video:      demo", " (in ", "rules:      0", "signature:  not checked"},
		},
		{
			name:   "through a pipe",
			script: `caddy signed-playback sign --key key.json --sub demo | caddy signed-playback inspect - --key public.json`,
			stdout: []string{"signature:  valid"},
		},
		{
			name:   "a URL",
			script: `caddy signed-playback inspect "$(caddy signed-playback sign --key key.json --sub demo --url https://media.example.com)?a=b.c.d/e" --key key.json`,
			stdout: []string{"video:      demo", "signature:  valid"},
		},
		{
			name:   "a path",
			script: `caddy signed-playback inspect "/$(caddy signed-playback sign --key key.json --sub demo)/iframe"`,
			stdout: []string{"video:      demo"},
		},
		{
			name: "everything that a token can say",
			script: `caddy signed-playback sign --key key.json --sub demo --exp 2090-01-31T12:00:00Z --nbf 3789300000 --downloadable --rules '[{"type":"any","action":"block"}]' |
				caddy signed-playback inspect -`,
			stdout: []string{`"downloadable":true`, `"accessRules":[{"type":"any","action":"block"}]`, "expires:    2090-01-31T12:00:00Z (in ", "not before: 2090-01-28T15:20:00Z (in ", "rules:      1"},
		},
		{
			name:   "expired, without a key",
			script: `caddy signed-playback sign --key key.json --sub demo --exp=-1h | caddy signed-playback inspect -`,
			stdout: []string{" ago)", "signature:  not checked"},
		},
		{
			name:   "expired, with the key",
			script: `caddy signed-playback sign --key key.json --sub demo --exp=-1h | caddy signed-playback inspect - --key public.json`,
			code:   1, stdout: []string{" ago)", "video:      demo"}, stderr: "expired",
		},
		{
			name:   "not yet valid, with the key",
			script: `caddy signed-playback sign --key key.json --sub demo --nbf 30m | caddy signed-playback inspect - --key public.json`,
			code:   1, stdout: []string{"not before: "}, stderr: "not yet valid",
		},
		{
			name:   "an unknown key",
			script: `caddy signed-playback keygen | caddy signed-playback sign --key - --sub demo | caddy signed-playback inspect - --key public.json`,
			code:   1, stdout: []string{"video:      demo"}, stderr: "unknown key",
		},
		{
			name: "a key of the same name",
			script: `id=$(node -p 'JSON.parse(fs.readFileSync(0)).id' <key.json)
				caddy signed-playback keygen --kid "$id" | caddy signed-playback sign --key - --sub demo | caddy signed-playback inspect - --key public.json`,
			code: 1, stdout: []string{"video:      demo"}, stderr: "invalid signature",
		},
		{
			name:   "no token at all",
			script: `caddy signed-playback inspect garbage`,
			code:   1, stdout: []string{"token id:"}, stderr: "malformed",
		},
		{
			name:   "no such key file",
			script: `caddy signed-playback sign --key key.json --sub demo | caddy signed-playback inspect - --key nowhere.json`,
			code:   1, stderr: "nowhere.json",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := shell(t, dir, tc.script)
			if got.code != tc.code || !strings.Contains(got.stderr, tc.stderr) || tc.code == 0 && got.stderr != "" {
				t.Errorf("exit status %d, standard error %q; want %d and a text with %q", got.code, got.stderr, tc.code, tc.stderr)
			}
			for _, want := range tc.stdout {
				if !strings.Contains(got.stdout, want) {
					t.Errorf("%q is not in the output:\n%s", want, got.stdout)
				}
			}
			if strings.Contains(got.stdout+got.stderr, "eyJ") {
				t.Errorf("the token itself is in the output:\n%s%s", got.stdout, got.stderr)
			}
		})
	}
}

// Every form of a key file opens the gate to the tokens of its key, and every
// form with a private half signs.
func TestKeyFileForms(t *testing.T) {
	wrapped := func(text string) []byte {
		decoded, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			t.Fatal(err)
		}
		return decoded
	}
	inPEM := func(name string, der []byte, err error) []byte {
		if err != nil {
			t.Fatal(err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: name, Bytes: der})
	}
	type pair struct {
		generatedKey
		output string // of keygen
		rsa    *rsa.PrivateKey
	}
	forms := []struct {
		file    string // without its ending it is the kid
		private bool
		content func(p pair) []byte
	}{
		{"keygen.json", true, func(p pair) []byte { return []byte(p.output) }},
		{"keys-api.json", true, func(p pair) []byte {
			return fmt.Appendf(nil, `{"result":{"id":%q,"pem":%q,"jwk":%q,"created":"2030-01-01T00:00:00.000000Z"},"success":true,"errors":[],"messages":[]}`, p.ID, p.PEM, p.JWK)
		}},
		{"jwks.json", false, func(p pair) []byte { return p.JWKS }},
		{"jwk.json", false, func(p pair) []byte { return p.JWKS[len(`{"keys":[`) : len(p.JWKS)-len(`]}`)] }},
		{"jwk-private.json", true, func(p pair) []byte { return wrapped(p.JWK) }},
		{"jwk-base64.txt", true, func(p pair) []byte { return []byte(p.JWK + "\n") }},
		{"pem-base64.txt", true, func(p pair) []byte { return []byte(p.PEM) }},
		{"pkcs1.pem", true, func(p pair) []byte { return wrapped(p.PEM) }},
		{"pkcs1-public.pem", false, func(p pair) []byte {
			return inPEM("RSA PUBLIC KEY", x509.MarshalPKCS1PublicKey(&p.rsa.PublicKey), nil)
		}},
		{"pkix.pem", false, func(p pair) []byte { return publicPEM(t, &p.rsa.PublicKey) }},
		{"pkcs8.key", true, func(p pair) []byte {
			der, err := x509.MarshalPKCS8PrivateKey(p.rsa)
			return inPEM("PRIVATE KEY", der, err)
		}},
		{"certificate.crt", false, func(p pair) []byte {
			template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "signer"}}
			der, err := x509.CreateCertificate(rand.Reader, template, template, &p.rsa.PublicKey, p.rsa)
			return inPEM("CERTIFICATE", der, err)
		}},
	}
	dir := t.TempDir()
	var paths []string
	for _, form := range forms {
		kid := strings.TrimSuffix(form.file, filepath.Ext(form.file))
		key, output := keygen(t, "--kid", kid)
		key.JWKS = json.RawMessage(compact(t, key.JWKS))
		block, _ := pem.Decode(wrapped(key.PEM))
		private, err := x509.ParsePKCS1PrivateKey(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		paths = append(paths, filepath.Join(dir, form.file))
		writeFile(t, filepath.Join(dir, form.file), form.content(pair{key, output, private}))
		writeFile(t, filepath.Join(dir, kid+".signer"), []byte(output))
	}
	o := startOrigin(t, exampleMedia())
	g := start(t, o, config{keys: strings.Join(paths, " ")})
	sign := func(t *testing.T, file string) string {
		got := execute(t, dir, "", binary(t), "signed-playback", "sign", "--key", file, "--sub", "demo")
		if got.code != 0 {
			t.Fatalf("signing with %s: exit status %d: %s", file, got.code, got.stderr)
		}
		return strings.TrimSpace(got.stdout)
	}
	for _, form := range forms {
		t.Run(form.file, func(t *testing.T) {
			o.take()
			kid := strings.TrimSuffix(form.file, filepath.Ext(form.file))
			o.wantPassed(t, g.get(t, "/"+sign(t, kid+".signer")+"/manifest/video.m3u8"), "/demo/manifest/video.m3u8")
			if form.private {
				o.wantPassed(t, g.get(t, "/"+sign(t, form.file)+"/manifest/video.m3u8"), "/demo/manifest/video.m3u8")
			}
			foreign := signRaw(privateKey(), `{"alg":"RS256","kid":"`+kid+`"}`, goodPayloadOf("demo"))
			o.wantRefused(t, g.get(t, "/"+foreign+"/manifest/video.m3u8"), http.StatusUnauthorized, "signature_invalid")
		})
	}
}

// goodPayloadOf is goodPayload without a kid.
func goodPayloadOf(video string) string {
	return fmt.Sprintf(`{"sub":%q,"exp":%d}`, video, time.Now().Add(time.Hour).Unix())
}

// keyServer publishes a key set, or whatever else it is told to answer with.
type keyServer struct {
	*httptest.Server
	mu       sync.Mutex
	status   int
	document []byte
	asked    int // since the answer has changed
}

func startKeyServer(t testing.TB, status int) *keyServer {
	t.Helper()
	s := &keyServer{status: status}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.asked++
		w.WriteHeader(s.status)
		_, _ = w.Write(s.document)
	}))
	t.Cleanup(s.Close)
	return s
}

// answer sets the answer from now on.
func (s *keyServer) answer(status int, document []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status, s.document, s.asked = status, document, 0
}

// awaitTwo waits until the answer has been given twice, so that whatever the
// first brought about has happened.
func (s *keyServer) awaitTwo(t testing.TB) {
	t.Helper()
	eventually(t, "the key server has not been asked twice", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.asked >= 2
	})
}

// A key set that somebody else publishes is followed, and the last good one
// outlives whatever happens to its server.
func TestRemoteKeys(t *testing.T) {
	newKey := func(id string) *token.SigningKey {
		key, err := token.GenerateSigningKey(id)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	old, next := newKey("old"), newKey("next")
	signed := func(key *token.SigningKey) string {
		compact, err := token.Sign(token.Claims{VideoID: "demo", ExpiresAt: time.Now().Add(time.Hour)}, key)
		if err != nil {
			t.Fatal(err)
		}
		return "/" + compact + "/manifest/video.m3u8"
	}
	const target = "/demo/manifest/video.m3u8"

	keys := startKeyServer(t, http.StatusServiceUnavailable)
	o := startOrigin(t, exampleMedia())
	g := start(t, o, config{app: "jwks_url " + keys.URL + "/keys 1s"})
	becomes := func(t *testing.T, path string, want verdict) {
		t.Helper()
		eventually(t, fmt.Sprintf("%v for the token", want), func() bool { return g.get(t, path).verdict() == want })
		o.take()
	}

	t.Run("before the first load", func(t *testing.T) {
		keys.awaitTwo(t)
		o.wantRefused(t, g.get(t, signed(old)), http.StatusServiceUnavailable, "state_unavailable")
		o.wantPassed(t, g.get(t, "/"+mint(t, "demo", nil)+"/manifest/video.m3u8"), target)
	})
	t.Run("loaded", func(t *testing.T) {
		keys.answer(http.StatusOK, publicJWKS(t, old))
		becomes(t, signed(old), plays)
		o.wantRefused(t, g.get(t, signed(next)), http.StatusUnauthorized, "key_unknown")
		o.wantPassed(t, g.get(t, "/"+mint(t, "demo", nil)+"/manifest/video.m3u8"), target)
	})
	t.Run("rotated", func(t *testing.T) {
		keys.answer(http.StatusOK, publicJWKS(t, old, next))
		becomes(t, signed(next), plays)
		o.wantPassed(t, g.get(t, signed(old)), target)
	})
	for _, tc := range []struct {
		name     string
		status   int
		document []byte
	}{
		{"a failing server", http.StatusInternalServerError, publicJWKS(t)},
		{"not JSON", http.StatusOK, []byte("<html>")},
		{"a set that is cut off", http.StatusOK, publicJWKS(t, next)[:100]},
		{"not a set", http.StatusOK, []byte(`{}`)},
		{"two keys of one id", http.StatusOK, publicJWKS(t, newSigningKey("next", privateKey()), next)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			keys.answer(tc.status, tc.document)
			keys.awaitTwo(t)
			o.wantPassed(t, g.get(t, signed(old)), target)
			o.wantPassed(t, g.get(t, signed(next)), target)
		})
	}
	t.Run("removed", func(t *testing.T) {
		keys.answer(http.StatusOK, publicJWKS(t, next))
		becomes(t, signed(old), verdict{http.StatusUnauthorized, "key_unknown"})
		o.wantPassed(t, g.get(t, signed(next)), target)
	})
	t.Run("keys for other purposes in the set", func(t *testing.T) {
		public := strings.TrimPrefix(string(publicJWKS(t, next, old)), `{"keys":[`)
		keys.answer(http.StatusOK, []byte(`{"keys":[{"kty":"oct","kid":"mac","k":"c2VjcmV0"},{"kty":"EC","kid":"ec"},`+public))
		becomes(t, signed(old), plays)
		o.wantPassed(t, g.get(t, signed(next)), target)
	})
	t.Run("the server is gone", func(t *testing.T) {
		keys.Close()
		if !g.log.await("connection refused", startTimeout) {
			t.Fatalf("no failure in the log:\n%s", g.log)
		}
		o.wantPassed(t, g.get(t, signed(old)), target)
		o.wantPassed(t, g.get(t, signed(next)), target)
	})
}
