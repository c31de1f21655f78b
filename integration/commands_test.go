package integration

import (
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
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

// The scripts in testdata/script hold what the commands print. Here a gate
// accepts it, through the pipes of a shell.
func TestSignCommand(t *testing.T) {
	dir := t.TempDir()
	key, output := keygen(t)
	writeFile(t, dir+"/key.json", []byte(output))
	writeFile(t, dir+"/public.json", key.JWKS)
	o := startOrigin(t, exampleMedia())
	g := start(t, o, config{keys: dir + "/public.json"})
	t.Setenv("GATE", "http://"+g.addr)
	for _, tc := range []struct {
		name, script string // prints a playback URL
		want         verdict
	}{
		{"a URL", `caddy signed-playback sign --key key.json --sub demo --url "$GATE"`, plays},
		{"a token alone", `echo "$GATE/$(caddy signed-playback sign --key key.json --sub demo)/manifest/video.mpd"`, plays},
		{"a download", `caddy signed-playback sign --key - --sub demo --downloadable --url "$GATE" <key.json | sed 's|manifest/video.m3u8|downloads/default.mp4|'`, plays},
		{"another key", `caddy signed-playback keygen | caddy signed-playback sign --key - --sub demo --url "$GATE"`, keyUnknown},
		{"rules", `caddy signed-playback sign --key key.json --sub demo --rules '[{"type":"ip.src","ip":["127.0.0.0/8","::1"],"action":"block"}]' --url "$GATE"`, verdict{http.StatusForbidden, "rule_blocked"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			signed := shell(t, dir, tc.script)
			path, ok := strings.CutPrefix(strings.TrimSpace(signed.stdout), "http://"+g.addr)
			if signed.code != 0 || signed.stderr != "" || !ok {
				t.Fatalf("exit status %d, %q: %s", signed.code, signed.stdout, signed.stderr)
			}
			if got := g.get(t, path).verdict(); got != tc.want {
				t.Errorf("%v, want %v", got, tc.want)
			}
		})
	}
}

// goodPayloadOf is goodPayload without a kid.
func goodPayloadOf(video string) string {
	return fmt.Sprintf(`{"sub":%q,"exp":%d}`, video, time.Now().Add(time.Hour).Unix())
}

// serveKeys publishes a key set.
func serveKeys(t testing.TB, keys ...*token.SigningKey) (address string) {
	t.Helper()
	document := publicJWKS(t, keys...)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(document) }))
	t.Cleanup(server.Close)
	return server.URL
}

// The attack: somebody with a token for another program of the identity provider
// plays the video that its sub names. Without audience, which permits that,
// `caddy validate` warns.
func TestIdentityProvider(t *testing.T) {
	t.Parallel()
	provider, err := token.GenerateSigningKey("provider")
	if err != nil {
		t.Fatal(err)
	}
	issuer := serveKeys(t, provider)
	app := "jwks_url " + issuer + "\n"
	g := start(t, startOrigin(t, exampleMedia()), config{app: app + "audience live media\nissuer " + issuer, api: withAPI})
	wrong := refusedFor("audience_not_allowed")
	for _, tc := range []struct {
		audience []string
		issuer   string
		want     verdict
	}{
		{[]string{"media"}, issuer, plays},
		{[]string{"shop", "live"}, issuer, plays},
		{[]string{"shop"}, issuer, wrong},
		{nil, issuer, wrong},
		{[]string{"media"}, issuer + "/", wrong},
	} {
		compact, err := token.Sign(token.Claims{
			VideoID: "demo", ExpiresAt: time.Now().Add(time.Hour), Audience: tc.audience, Issuer: tc.issuer,
		}, provider)
		if err != nil {
			t.Fatal(err)
		}
		known := func() bool {
			return g.get(t, "/"+compact+"/manifest/video.m3u8").verdict() != refusedFor("state_unavailable")
		}
		eventually(t, "the key set is read", known)
		if got := g.get(t, "/"+compact+"/manifest/video.m3u8").verdict(); got != tc.want {
			t.Errorf("aud %q, iss %q: %v, want %v", tc.audience, tc.issuer, got, tc.want)
		}
	}
	if got := g.get(t, "/"+g.mintToken(t, "demo", "")+"/manifest/video.m3u8").verdict(); got != plays {
		t.Errorf("a token of the control API: %v", got)
	}
	for more, warns := range map[string]bool{"": true, "issuer a": true, "audience a": false} {
		dir := t.TempDir()
		writeFile(t, filepath.Join(dir, "Caddyfile"), []byte("{\nsigned_playback {\n"+app+more+"\n}\n}\n"))
		if got := execute(t, dir, "", binary(t), "validate"); got.code != 0 || strings.Contains(got.stderr, "jwks_url without audience") != warns {
			t.Errorf("caddy validate with %q: exit status %d: %s", more, got.code, got.stderr)
		}
	}
}

// The attack: an operator runs a command as root beside the server, which then
// cannot read what the command has written. No command but `run` and `start` writes
// into the store, and explain says that there is no key rather than making one.
func TestCommandsWriteNothing(t *testing.T) {
	redis := startRedis(t)
	key, keys := keygen(t)
	compact := mint(t, "demo", nil)
	for _, store := range []string{"", redis.option()} {
		for _, filled := range []bool{false, true} {
			t.Run(fmt.Sprintf("%q, filled %t", store, filled), func(t *testing.T) {
				c := config{app: store, api: withAPI, dir: t.TempDir(), addr: freeAddr(t), apiAddr: freeAddr(t)}
				if filled {
					g := start(t, startOrigin(t, nil), c)
					g.edit(t, "open", `{"requireSignedURLs":false}`)
					g.mustCall(t, http.MethodPost, "stream/demo/token", "", nil)
					g.stop(t)
				}
				stateHome(t, c.dir)
				writeFile(t, filepath.Join(c.dir, "key.json"), []byte(keys))
				writeFile(t, filepath.Join(c.dir, "Caddyfile"), []byte("{\nadmin off\nsigned_playback {\n"+store+"\n}\n}\n"+
					"http://:"+port(c.addr)+" {\nsigned_playback\nrespond ok\n}\n"+
					"http://:"+port(c.apiAddr)+" {\nsigned_playback_api {\nbearer_token 0123456789abcdef0123456789abcdef\n}\n}\n"))
				before := everythingIn(t, c.dir)
				changes := redis.changes(t)
				for _, command := range []string{
					"validate", "adapt", "adapt --validate", "list-modules",
					"signed-playback explain --url http://media.example.com:" + port(c.addr) + segment(compact),
					"signed-playback explain --url http://media.example.com:" + port(c.addr) + segment("open"),
					"signed-playback explain --url http://media.example.com:" + port(c.addr) + segment("unknown"),
					"signed-playback inspect " + compact,
					"signed-playback sign --key key.json --sub demo --kid " + key.ID,
					"signed-playback keygen",
				} {
					got := execute(t, c.dir, "", binary(t), strings.Fields(command)...)
					isExplain := strings.Contains(command, "explain")
					if got.code != 0 && !isExplain {
						t.Errorf("%s: exit status %d: %s", command, got.code, got.stderr)
					}
					if noted := strings.Contains(got.stdout, "no verification keys yet"); noted != (isExplain && !filled) {
						t.Errorf("%s says that there is no key: %t\n%s%s", command, noted, got.stdout, got.stderr)
					}
					if diff := cmp.Diff(before, everythingIn(t, c.dir)); diff != "" {
						t.Fatalf("%s writes (-before +after):\n%s", command, diff)
					}
					if got := redis.changes(t); got != changes {
						t.Fatalf("%s changes Redis", command)
					}
				}
			})
		}
	}
}

// everythingIn returns what is in a folder: the mode, time and size of each file and
// folder, by path.
func everythingIn(t testing.TB, dir string) map[string]string {
	t.Helper()
	found := make(map[string]string)
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		found[path] = fmt.Sprint(info.Mode(), info.ModTime(), info.Size())
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// changes returns how many changes Redis has made to its data, and how many keys it
// has.
func (r *redisServer) changes(t testing.TB) string {
	t.Helper()
	const field = "rdb_changes_since_last_save:"
	for line := range strings.Lines(r.do(t, "INFO", "persistence")) {
		if strings.HasPrefix(line, field) {
			return line + r.do(t, "DBSIZE")
		}
	}
	t.Fatalf("Redis does not say %s", field)
	return ""
}
