package integration

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

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
	path, err := filepath.Abs("../testdata/country.mmdb")
	if err != nil {
		t.Fatal(err)
	}
	return "geoip_database " + path
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
	script, err := os.ReadFile("testdata/secure-your-stream.js")
	if err != nil {
		t.Fatal(err)
	}
	filled := string(script)
	for placeholder, value := range map[string]string{
		"{PRIVATE-KEY-IN-JWK-FORMAT}": key.JWK,
		"$KEYID":                      key.ID,
		"$VIDEOID":                    "demo",
	} {
		if strings.Count(filled, placeholder) != 1 {
			t.Fatalf("the script does not contain %s once", placeholder)
		}
		filled = strings.ReplaceAll(filled, placeholder, value)
	}
	filled += "\nstreamSignedUrl().then(token => console.log(token))\n"
	signed := execute(t, dir, filled, tool(t, "node"), "-")
	if signed.code != 0 {
		t.Fatalf("node: exit status %d: %s", signed.code, signed.stderr)
	}
	signedToken := strings.TrimSpace(signed.stdout)

	o := startOrigin(t, exampleMedia())
	g := start(t, o, config{keys: filepath.Join(dir, "key.json"), app: withCountries(t)})
	for _, tc := range []struct {
		name, viewer string
		want         verdict
	}{
		{"in GB", "127.0.0.2", plays},
		{"in the US", "127.0.0.1", verdict{http.StatusForbidden, "rule_blocked"}},
		{"in DE", "127.0.0.3", verdict{http.StatusForbidden, "rule_blocked"}},
		{"nowhere", "127.0.0.9", verdict{http.StatusForbidden, "rule_blocked"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, suffix := range []string{"manifest/video.m3u8", "manifest/video.mpd", "video/180p/001.m4s"} {
				res := g.getFrom(t, tc.viewer, "/"+signedToken+"/"+suffix)
				if tc.want != plays {
					o.wantRefused(t, res, tc.want.Status, tc.want.Reason)
					continue
				}
				o.wantPassed(t, res, "/demo/"+suffix)
			}
		})
	}
	t.Run("a download", func(t *testing.T) {
		res := g.getFrom(t, "127.0.0.2", "/"+signedToken+"/downloads/default.mp4")
		o.wantRefused(t, res, http.StatusForbidden, "download_not_allowed")
	})
}

// nodeSigner signs claims that are written in JavaScript with a key of the keygen
// command, by Node alone and without a library.
const nodeSigner = `
const { createPrivateKey, sign } = require("crypto")
const generated = JSON.parse(require("fs").readFileSync(0))
const [kid, now] = [generated.id, Math.floor(Date.now() / 1000)]
const key = process.argv[1] === "pem"
	? createPrivateKey(atob(generated.pem))
	: createPrivateKey({ key: JSON.parse(atob(generated.jwk)), format: "jwk" })
const encode = value => Buffer.from(JSON.stringify(value)).toString("base64url")
const signed = encode(eval("(" + process.argv[2] + ")")) + "." + encode(eval("(" + process.argv[3] + ")"))
console.log(signed + "." + sign("sha256", signed, key).toString("base64url"))
`

// Dates and rules in every form in which the guide writes them.
func TestDocumentClaims(t *testing.T) {
	t.Parallel()
	const header = `{ "alg": "RS256", kid }`
	// The two examples of rules in the guide, with their trailing commas.
	const (
		notThere = `"accessRules": [
	{
		"type": "ip.geoip.country",
		"action": "block",
		"country": ["US", "DE", "MX"],
	},
]`
		onlyThere = `"accessRules": [
	{
		"type": "ip.geoip.country",
		"country": ["US", "MX"],
		"action": "allow",
	},
	{
		"type": "ip.src",
		"ip": ["93.184.216.0/24", "2400:cb00::/32"],
		"action": "allow",
	},
	{
		"type": "any",
		"action": "block",
	},
]`
		workerRules = `accessRules:[{"type":"ip.geoip.country","country":["US","MX"],"action":"block"}]`
	)
	blocked := verdict{http.StatusForbidden, "rule_blocked"}

	_, output := keygen(t)
	keyFile := filepath.Join(t.TempDir(), "key.json")
	writeFile(t, keyFile, []byte(output))
	o := startOrigin(t, exampleMedia())
	g := start(t, o, config{keys: keyFile, app: withCountries(t)})
	for _, tc := range []struct {
		name   string
		key    string // jwk or pem
		header string
		claims string
		suffix string
		viewer string
		want   verdict
	}{
		{name: "exp only", claims: `{ sub: "demo", kid, exp: now + 3600 }`, want: plays},
		{name: "with the pem", key: "pem", claims: `{ sub: "demo", kid, exp: now + 3600 }`, want: plays},
		{name: "dates that are strings", claims: `{ sub: "demo", kid, exp: String(now + 3600), nbf: String(now - 3600) }`, want: plays},
		{name: "exp that is a string, passed", claims: `{ sub: "demo", kid, exp: String(now - 1) }`, want: verdict{http.StatusUnauthorized, "token_expired"}},
		{name: "nbf that is a string, to come", claims: `{ sub: "demo", kid, exp: String(now + 7200), nbf: String(now + 3600) }`, want: verdict{http.StatusUnauthorized, "token_not_yet_valid"}},
		{name: "kid in the header only", claims: `{ sub: "demo", exp: now + 3600 }`, want: plays},
		{name: "kid in the payload only", header: `{ "alg": "RS256" }`, claims: `{ sub: "demo", kid, exp: now + 3600 }`, want: plays},
		{name: "with typ", header: `{ "alg": "RS256", "typ": "JWT", kid }`, claims: `{ sub: "demo", exp: now + 3600 }`, want: plays},
		{name: "not downloadable", claims: `{ sub: "demo", exp: now + 3600, downloadable: false }`, suffix: "downloads/default.mp4", want: verdict{http.StatusForbidden, "download_not_allowed"}},
		{name: "downloadable", claims: `{ sub: "demo", exp: now + 3600, downloadable: true }`, suffix: "downloads/default.mp4", want: plays},
		{name: "blocked countries, viewer in one", claims: `{ sub: "demo", exp: now + 3600, ` + notThere + ` }`, viewer: "127.0.0.3", want: blocked},
		{name: "blocked countries, viewer elsewhere", claims: `{ sub: "demo", exp: now + 3600, ` + notThere + ` }`, viewer: "127.0.0.2", want: plays},
		{name: "allowed countries, viewer in one", claims: `{ sub: "demo", exp: now + 3600, ` + onlyThere + ` }`, viewer: "127.0.0.1", want: plays},
		{name: "allowed countries, viewer elsewhere", claims: `{ sub: "demo", exp: now + 3600, ` + onlyThere + ` }`, viewer: "127.0.0.2", want: blocked},
		{name: "the worker's rules, viewer in the US", claims: `{ sub: "demo", exp: now + 3600, downloadable: true, ` + workerRules + ` }`, viewer: "127.0.0.1", want: blocked},
		{name: "the worker's rules, viewer elsewhere", claims: `{ sub: "demo", exp: now + 3600, downloadable: true, ` + workerRules + ` }`, viewer: "127.0.0.2", want: plays},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.header == "" {
				tc.header = header
			}
			if tc.suffix == "" {
				tc.suffix = "manifest/video.m3u8"
			}
			if tc.viewer == "" {
				tc.viewer = "127.0.0.1"
			}
			signed := execute(t, "", output, tool(t, "node"), "-e", nodeSigner, tc.key, tc.header, tc.claims)
			if signed.code != 0 {
				t.Fatalf("node: exit status %d: %s", signed.code, signed.stderr)
			}
			res := g.getFrom(t, tc.viewer, "/"+strings.TrimSpace(signed.stdout)+"/"+tc.suffix)
			if diff := cmp.Diff(tc.want, res.verdict()); diff != "" {
				t.Errorf("for the viewer %s (-want +got):\n%s", tc.viewer, diff)
			}
		})
	}
}
