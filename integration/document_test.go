package integration

import (
	"encoding/json"
	"net/http"
	"path/filepath"
	"testing"
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
