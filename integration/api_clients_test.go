package integration

import (
	"bytes"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cloudflare/cloudflare-go/v7"
	"github.com/cloudflare/cloudflare-go/v7/option"
	sdk "github.com/cloudflare/cloudflare-go/v7/stream"

	"github.com/signed-playback/caddy-signed-playback/token"
)

const (
	apiEmail = "owner@example.com"
	apiKeyOf = "a-key-of-the-owner" // goes with apiEmail
)

// withBothCredentials is for the field api of a config.
const withBothCredentials = withAPI + "\n\t\tauth_key " + apiEmail + " {env.API_KEY}\n\t\taccount " + account

// startForClients starts a gateway for an official client, with a key in its API.
func startForClients(t *testing.T) (g *gateway, key apiKey) {
	t.Helper()
	g = start(t, startOrigin(t, exampleMedia()), config{
		api: withBothCredentials, app: withCountries(t) + "\nvideo configured {\n\t\t\trequire_signed_urls on\n\t\t}",
	})
	return g, g.createKey(t)
}

// With the address, the account and a credential, Cloudflare's TypeScript SDK manages
// keys, mints tokens that play, and changes, reads, lists and deletes the settings of
// videos. The script checks the answers. Package controlapi has what each parameter means.
func TestOfficialTypeScriptClient(t *testing.T) {
	t.Parallel()
	g, key := startForClients(t)
	options := mustMarshal(t, map[string]any{
		"baseURL": "http://" + g.api + "/client/v4", "account_id": account, "token": apiSecret, "email": apiEmail, "key": apiKeyOf,
		"signing": map[string]string{"id": key.ID, "pem": key.PEM},
	})
	ran := execute(t, "", "", tool(t, "node"), "testdata/cloudflare-client.js", string(options))
	var minted map[string]string
	if err := json.Unmarshal([]byte(ran.stdout), &minted); err != nil || ran.code != 0 {
		t.Fatalf("exit status %d: %v: %s", ran.code, err, ran.stderr)
	}
	noDownload, early := refusedFor("download_not_allowed"), refusedFor("token_not_yet_valid")
	want := map[string][2]verdict{ // for a manifest in the US, and for a download in GB
		"nothing": {plays, noDownload}, "early": {early, early}, "zeros": {plays, noDownload},
		"original": {plays, noDownload},
		"ruled":    {refusedFor("rule_blocked"), plays}, "signed": {plays, noDownload},
	}
	got := make(map[string][2]verdict)
	for name, compact := range minted {
		got[name] = [2]verdict{
			g.getFrom(t, "127.0.0.1", "/"+compact+"/manifest/video.m3u8").verdict(),
			g.getFrom(t, "127.0.0.2", "/"+compact+"/downloads/default.mp4").verdict(),
		}
	}
	wantEqual(t, want, got, "a manifest in the US, and a download in GB")
	if id := keyIDOf(t, minted["signed"]); id != key.ID {
		t.Errorf("the token is of the key %q, want the caller's %q", id, key.ID)
	}
}

// Cloudflare's Go SDK works, too: it decodes the answers into its own types. The
// TypeScript SDK makes the calls with all parameters.
func TestOfficialGoClient(t *testing.T) {
	t.Parallel()
	g, other := startForClients(t)
	// As cloudflare.NewClient does for this service. To compile that function with its
	// hundred others takes longer than these tests.
	connect := func(credential string) *sdk.StreamService {
		return sdk.NewStreamService(append(cloudflare.DefaultClientOptions(),
			option.WithBaseURL("http://"+g.api+"/client/v4"), option.WithAPIToken(credential))...)
	}
	c, id := connect(apiSecret), cloudflare.F(account)
	made := must(c.Keys.New(t.Context(), sdk.KeyNewParams{AccountID: id}))(t)
	if _, err := token.ParseSigningKey([]byte(made.Pem), made.ID); err != nil {
		t.Errorf("pem: %v", err)
	}
	var listed []string
	pages := c.Keys.GetAutoPaging(t.Context(), sdk.KeyGetParams{AccountID: id})
	for pages.Next() {
		listed = append(listed, pages.Current().ID)
	}
	if want := []string{made.ID, other.ID}; pages.Err() != nil || !slices.Equal(listed, want) {
		t.Errorf("the keys are %q, want %q: %v", listed, want, pages.Err())
	}
	if revoked := must(c.Keys.Delete(t.Context(), made.ID, sdk.KeyDeleteParams{AccountID: id}))(t); *revoked != "Revoked" {
		t.Errorf("revoking a key: %q", *revoked)
	}
	minted := must(c.Token.New(t.Context(), "demo", sdk.TokenNewParams{
		AccountID: id, ID: cloudflare.F(other.ID), Pem: cloudflare.F(other.PEM), Exp: cloudflare.F(time.Now().Unix() + 3600),
		Flags: cloudflare.F(sdk.TokenNewParamsFlags{Original: cloudflare.F(true)}),
		AccessRules: cloudflare.F([]sdk.TokenNewParamsAccessRule{{
			Type:   cloudflare.F(sdk.TokenNewParamsAccessRulesTypeIPSrc),
			IP:     cloudflare.F([]string{"127.0.0.1", "2400:cb00::/32"}),
			Action: cloudflare.F(sdk.TokenNewParamsAccessRulesActionBlock),
		}}),
	}))(t).Token
	wantVerdict(t, g, "/"+minted+"/manifest/video.m3u8", refusedFor("rule_blocked"))

	title, deletion := "Metropolis", time.Date(2031, 2, 3, 4, 5, 6, 0, time.UTC)
	edited := must(c.Edit(t.Context(), "vid", sdk.StreamEditParams{
		AccountID: id, AllowedOrigins: cloudflare.F([]string{"example.com"}), RequireSignedURLs: cloudflare.F(false), UID: cloudflare.F("vid"),
		PublicDetails:     cloudflare.F(sdk.StreamEditParamsPublicDetails{Title: cloudflare.F(title)}),
		ScheduledDeletion: cloudflare.F(deletion), MaxDurationSeconds: cloudflare.F[int64](9180),
	}))(t)
	if edited.RequireSignedURLs || edited.AllowedOrigins[0] != "example.com" || edited.PublicDetails.Title != title ||
		!edited.ScheduledDeletion.Equal(deletion) || edited.MaxDurationSeconds != 9180 {
		t.Errorf("the edited video is %+v", edited)
	}
	var videos []string
	list := c.ListAutoPaging(t.Context(), sdk.StreamListParams{AccountID: id, After: cloudflare.F(time.Now().Add(-time.Hour))})
	for list.Next() {
		videos = append(videos, list.Current().UID)
	}
	if list.Err() != nil || !slices.Equal(videos, []string{"vid"}) {
		t.Errorf("the videos of the last hour are %q: %v", videos, list.Err())
	}
	_, err := connect("another-secret").Keys.Delete(t.Context(), other.ID, sdk.KeyDeleteParams{AccountID: id})
	if refused, ok := errors.AsType[*cloudflare.Error](err); !ok || refused.StatusCode != http.StatusUnauthorized || refused.Errors[0].Code != codeCredential {
		t.Errorf("with another credential: %v", err)
	}
}

func mustMarshal(t testing.TB, value any) json.RawMessage {
	t.Helper()
	return must(json.Marshal(value))(t)
}

// A viewer whose key has been revoked does not get the next segment on the
// connection that played the one before, whatever the version of HTTP.
// Viewers with other keys do.
func TestRevokedKeyInMidPlay(t *testing.T) {
	t.Parallel()
	o := startOrigin(t, exampleMedia())
	g := startTLS(t, o, config{api: withAPI})
	key, other := g.createKey(t), mint(t, "demo", nil)
	signed := []string{signWith(t, key, "demo"), signWith(t, apiKey{ID: key.ID, PEM: key.JWK}, "demo")}
	viewers := make([]*http.Client, len(protocols))
	dials := make([]*atomic.Int32, len(protocols))
	each := func(check func(viewer *http.Client, compact string)) {
		for i := range protocols {
			for _, compact := range signed {
				check(viewers[i], compact)
			}
		}
	}
	for i, protocol := range protocols {
		viewers[i], dials[i] = protocol.connect(t, g)
	}
	const first, second = "/video/180p/001.m4s", "/video/180p/002.m4s"
	each(func(viewer *http.Client, compact string) {
		o.wantPassed(t, g.ask(t, viewer, http.MethodGet, "/"+compact+first), "/demo"+first)
	})
	g.mustCall(t, http.MethodDelete, "stream/keys/"+key.ID, "", nil)
	each(func(viewer *http.Client, compact string) {
		o.wantRefused(t, g.ask(t, viewer, http.MethodGet, "/"+compact+second), "key_unknown")
		o.wantPassed(t, g.ask(t, viewer, http.MethodGet, "/"+other+second), "/demo"+second)
	})
	for i, protocol := range protocols {
		if n := dials[i].Load(); n != 1 {
			t.Errorf("%s: %d connections, want one for all requests", protocol.name, n)
		}
	}
}

// filledScript returns a script of the document with its placeholders, each of
// which it contains once, replaced.
func filledScript(t testing.TB, name string, values map[string]string) string {
	t.Helper()
	data := must(os.ReadFile("testdata/" + name))(t)
	script := string(data)
	for placeholder, value := range values {
		if strings.Count(script, placeholder) != 1 {
			t.Fatalf("%s does not contain %s once", name, placeholder)
		}
		script = strings.ReplaceAll(script, placeholder, value)
	}
	return script
}

// runScript runs a script with Node and returns what it prints.
func runScript(t testing.TB, script string) string {
	t.Helper()
	ran := execute(t, "", script, tool(t, "node"), "-")
	if ran.code != 0 {
		t.Fatalf("node: exit status %d: %s", ran.code, ran.stderr)
	}
	return strings.TrimSpace(ran.stdout)
}

// workerRuntime is what the document's Workers need of theirs, and Node does not
// have: it hands a script one request and prints the response.
const workerRuntime = `
const addEventListener = (type, listener) => listener({
  respondWith: async response => console.log(await (await response).text())
})
`

const cloudflareHost = "https://api.cloudflare.com"

// The document's two Workers that ask for tokens run against this API with only
// the host, the account and the video replaced, and their tokens do what the
// document says.
func TestDocumentWorkers(t *testing.T) {
	t.Parallel()
	o := startOrigin(t, exampleMedia())
	g := start(t, o, config{api: withBothCredentials, app: withCountries(t)})
	blocked, noDownload := refusedFor("rule_blocked"), refusedFor("download_not_allowed")
	for script, want := range map[string][]verdict{ // a manifest and a download in the US, and both in GB
		"secure-your-stream-worker.js":       {plays, noDownload, plays, noDownload},
		"secure-your-stream-worker-rules.js": {blocked, blocked, plays, plays},
	} {
		t.Run(script, func(t *testing.T) {
			before := time.Now()
			printed := runScript(t, workerRuntime+filledScript(t, script, map[string]string{
				cloudflareHost:    "http://" + g.api,
				"{ACCOUNT_EMAIL}": apiEmail,
				"{ACCOUNT_KEY}":   apiKeyOf,
				"{ACCOUNT_ID}":    account,
				"{VIDEO_ID}":      "demo",
			}))
			var answer struct {
				Result   sdk.TokenNewResponse `json:"result"`
				Success  bool                 `json:"success"`
				Messages []apiMessage         `json:"messages"`
			}
			if err := json.Unmarshal([]byte(printed), &answer); err != nil || !answer.Success || len(answer.Messages) != 0 {
				t.Fatalf("the script printed %s: %v", printed, err)
			}
			compact := answer.Result.Token
			parsed := must(token.Parse(compact))(t)
			const hours = 12 * time.Hour
			if ahead := parsed.Unverified().ExpiresAt.Sub(before); ahead < hours-time.Second || ahead > hours+2*startTimeout {
				t.Errorf("exp is %s ahead, want %s", ahead, hours)
			}
			var got []verdict
			for _, viewer := range []string{"127.0.0.1", "127.0.0.2"} {
				for _, suffix := range []string{"/manifest/video.m3u8", "/downloads/default.mp4"} {
					got = append(got, g.getFrom(t, viewer, "/"+compact+suffix).verdict())
				}
			}
			wantEqual(t, want, got, "a manifest and a download, in the US and in GB")
		})
	}
}

// The curl commands of the document work with only the host, the account and the
// credential replaced, also the one that sends JSON and says that it is a form.
func TestDocumentCurl(t *testing.T) {
	t.Parallel()
	o := startOrigin(t, nil)
	g := start(t, o, config{api: withAPI})
	tool(t, "curl")
	const video, manifest, base = "vid", "/vid/manifest/video.m3u8", "https://api.cloudflare.com/client/v4/accounts/$ACCOUNT/stream"
	variables := "ACCOUNT=" + account + " VIDEOID=" + video + " TOKEN=" + apiSecret + "; "
	run := func(command string, result any) {
		t.Helper()
		command = strings.NewReplacer(cloudflareHost, "http://"+g.api, "\n", " ").Replace(command)
		ran := execute(t, "", "", "sh", "-c", variables+`curl -H "Authorization: Bearer $TOKEN" `+command)
		var answer apiResponse
		if err := json.Unmarshal([]byte(ran.stdout), &answer); err != nil || ran.code != 0 || !answer.Success || json.Unmarshal(answer.Result, result) != nil {
			t.Fatalf("%s: exit status %d: %v\n%s%s", command, ran.code, err, ran.stdout, ran.stderr)
		}
	}
	var got sdk.Video
	g.edit(t, video, `{"requireSignedURLs":false}`)
	run(`-X POST "`+base+`/$VIDEOID"
-H "Content-Type: application/json"
-d "{\"uid\": \"$VIDEOID\", \"requireSignedURLs\": true }"`, &got)
	o.wantRefused(t, g.get(t, manifest), "token_required")

	var minted sdk.TokenNewResponse
	run(`-X POST "`+base+`/$VIDEOID/token"`, &minted)
	path := "/" + minted.Token + "/manifest/video.m3u8"
	run(`-X POST -d "{\"uid\": \"$VIDEOID\", \"allowedOrigins\": [\"example.com\"]}"  `+base+`/$VIDEOID`, &got)
	if !slices.Equal(got.AllowedOrigins, []string{"example.com"}) || !got.RequireSignedURLs || got.UID != video {
		t.Errorf("the video is %+v", got)
	}
	o.wantPassed(t, g.get(t, path, "Origin: https://example.com"), manifest)
	wantVerdict(t, g, path, refusedFor("origin_not_allowed"), "Origin: https://example.net")

	var key sdk.Keys
	run(`-X POST "`+base+`/keys"`, &key)
	signed := segment(signWith(t, apiKey{ID: key.ID, PEM: key.Pem}, "demo"))
	o.wantPassed(t, g.get(t, signed), "/demo/video/1.ts")
	variables = "KEYID=" + key.ID + " " + variables
	var result string
	if run(`-X DELETE "`+base+`/keys/$KEYID"`, &result); result != "Revoked" {
		t.Errorf("the result of a revocation is %q", result)
	}
	o.wantRefused(t, g.get(t, signed), "key_unknown")
}

// decodedPEM decodes the pem of the keys API and checks its form.
func decodedPEM(t testing.TB, encoded string) (text string, key *rsa.PrivateKey) {
	t.Helper()
	decoded, err := base64.StdEncoding.Strict().DecodeString(encoded)
	if err != nil {
		t.Fatalf("pem is not padded standard base64: %v", err)
	}
	block, rest := pem.Decode(decoded)
	if block == nil || len(rest) != 0 {
		t.Fatalf("pem holds no PEM, or more: %q", rest)
	}
	if block.Type != "RSA PRIVATE KEY" || !bytes.Equal(decoded, pem.EncodeToMemory(block)) || decoded[len(decoded)-1] != '\n' {
		t.Error("pem is not as -----BEGIN RSA PRIVATE KEY----- with a newline at the end")
	}
	if key, err = x509.ParsePKCS1PrivateKey(block.Bytes); err != nil {
		t.Fatal(err)
	}
	return string(decoded), key
}

// secretsOf returns the private half of a key in every spelling in which it may
// lie about.
func secretsOf(t testing.TB, key apiKey) map[string]string {
	t.Helper()
	text, pair := decodedPEM(t, key.PEM)
	secrets := map[string]string{"pem": key.PEM, "jwk": key.JWK, "the PEM in it": text}
	for i, line := range strings.Split(strings.TrimSpace(text), "\n") {
		const public = 6 // up to there, lines hold n and e
		if i > public && !strings.HasPrefix(line, "-----") {
			secrets[fmt.Sprintf("line %d of the PEM", i)] = line
		}
	}
	for name, number := range map[string][]byte{
		"d": pair.D.Bytes(), "p": pair.Primes[0].Bytes(), "q": pair.Primes[1].Bytes(),
		"dp": pair.Precomputed.Dp.Bytes(), "dq": pair.Precomputed.Dq.Bytes(), "qi": pair.Precomputed.Qinv.Bytes(),
	} {
		secrets[name] = string(number)
		secrets[name+" in base64url"] = base64.RawURLEncoding.EncodeToString(number)
		secrets[name+" in base64"] = base64.RawStdEncoding.EncodeToString(number)
		secrets[name+" in hexadecimal"] = hex.EncodeToString(number)
		secrets[name+" in decimal"] = new(big.Int).SetBytes(number).String()
	}
	return secrets
}

// generatedKey is what the keygen command prints.
type generatedKey struct {
	ID   string          `json:"id"`
	PEM  string          `json:"pem"`
	JWK  string          `json:"jwk"`
	JWKS json.RawMessage `json:"jwks"`
}

// keygen makes a key with the command, and returns its whole output as well.
func keygen(t testing.TB, args ...string) (key generatedKey, output string) {
	t.Helper()
	got := execute(t, "", "", binary(t), append([]string{"signed-playback", "keygen"}, args...)...)
	if got.code != 0 {
		t.Fatalf("keygen: exit status %d: %s", got.code, got.stderr)
	}
	if err := json.Unmarshal([]byte(got.stdout), &key); err != nil {
		t.Fatalf("keygen printed %q: %v", got.stdout, err)
	}
	return key, got.stdout
}

// withCountries is for the global block: 127.0.0.1 is in the US, 127.0.0.2 in
// GB and 127.0.0.3 in DE.
func withCountries(t testing.TB) string {
	t.Helper()
	return "geoip_database " + testdata(t, "country.mmdb")
}

// getFrom is get for a client with another address than 127.0.0.1.
func (g *gateway) getFrom(t testing.TB, client, path string) *response {
	t.Helper()
	return g.rawFrom(t, client, rawGet(path))
}

// verdict is the gate's answer in short.
type verdict struct {
	Status int    `json:"status"`
	Reason string `json:"reason"`
}

var plays = verdict{Status: http.StatusOK}

func (r *response) verdict() verdict { return verdict{r.StatusCode, r.reason()} }

// The gate accepts tokens that the script of Cloudflare's guide signs, and applies
// the rules in it: viewers in GB may watch, and no others.
func TestDocumentScript(t *testing.T) {
	t.Parallel()
	key, output := keygen(t)
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "key.json"), []byte(output))
	signedToken := runScript(t, filledScript(t, "secure-your-stream.js", map[string]string{
		"{PRIVATE-KEY-IN-JWK-FORMAT}": key.JWK, "$KEYID": key.ID, "$VIDEOID": "demo",
	})+"\nstreamSignedUrl().then(token => console.log(token))\n")
	o := startOrigin(t, exampleMedia())
	g := start(t, o, config{keys: filepath.Join(dir, "key.json"), app: withCountries(t)})
	for _, tc := range []struct {
		name, viewer string
		want         verdict
	}{
		{"in GB", "127.0.0.2", plays},
		{"in the US", "127.0.0.1", refusedFor("rule_blocked")},
		{"in DE", "127.0.0.3", refusedFor("rule_blocked")},
		{"nowhere", "127.0.0.9", refusedFor("rule_blocked")},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, suffix := range []string{"manifest/video.m3u8", "manifest/video.mpd", "video/180p/001.m4s"} {
				res := g.getFrom(t, tc.viewer, "/"+signedToken+"/"+suffix)
				if tc.want != plays {
					o.wantRefused(t, res, tc.want.Reason)
					continue
				}
				o.wantPassed(t, res, "/demo/"+suffix)
			}
		})
	}
	t.Run("a download", func(t *testing.T) {
		res := g.getFrom(t, "127.0.0.2", "/"+signedToken+"/downloads/default.mp4")
		o.wantRefused(t, res, "download_not_allowed")
	})
}
