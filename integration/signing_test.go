package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/signed-playback/caddy-signed-playback/token"
)

// signingExample is a folder of examples/signing and the script that runs it. Scripts run
// in a folder with the files of the example, key.json, the sites in testdata/signing and
// npm's packages. Those of frameworks print two lines: "visitor: …", then "user: …" with
// a URL for the user 7.
type signingExample struct {
	viewer  string
	visitor string // what somebody who is not logged in gets; "" for an example without a login
	script  string
}

var signingExamples = map[string]signingExample{
	"go":                {"ann", "", `go build -C "$ROOT" -o "$PWD/sign" ./examples/signing/go && ./sign demo ann`},
	"node":              {"ann", "", "node sign.mjs demo ann"},
	"node-jsonwebtoken": {"ann", "", "node sign.js demo ann"},
	"php":               {"ann", "", "php sign.php demo ann"},
	"python":            {"ann", "", "/usr/bin/python3 sign.py demo ann"},
	"ruby":              {"ann", "", "ruby sign.rb demo ann"},
	"django":            {"7", "302", "/usr/bin/python3 site.py"},
	"laravel":           {"7", "401", "php site.php"},
}

// longSigningExamples first fetch a whole framework.
var longSigningExamples = map[string]signingExample{
	"wordpress": {
		"7", `<p><a href="/wp-login.php">Log in to watch this video.</a></p>`,
		"(apt-get download wordpress || { apt-get update && apt-get download wordpress; }) >&2 && dpkg -x wordpress_*.deb . && mv usr/share/wordpress . && php wordpress.php",
	},
	"nextjs": {"7", "401", "sh nextjs.sh"},
}

// Each example of signing gives one viewer a URL that plays, and those of frameworks give
// none to a visitor who has not logged in.
func TestSigningExamples(t *testing.T) {
	t.Parallel()
	var have, run []string
	for _, entry := range must(os.ReadDir("../examples/signing"))(t) {
		if entry.IsDir() {
			have = append(have, entry.Name())
		}
	}
	for _, examples := range []map[string]signingExample{signingExamples, longSigningExamples} {
		for name := range examples {
			run = append(run, name)
		}
	}
	slices.Sort(run)
	if diff := cmp.Diff(have, run); diff != "" {
		t.Errorf("the folders of examples/signing (-there +run):\n%s", diff)
	}
	runSigningExamples(t, signingExamples)
}

// The program in the guide is the example for Node, so it need not run a second time.
func TestGuideSigns(t *testing.T) {
	t.Parallel()
	shown := slices.DeleteFunc(guide(t), func(s snippet) bool { return s.task != "Sign in your back end" || isShell(s) })
	if want := readText(t, "../examples/signing/node/sign.mjs"); len(shown) != 1 || shown[0].text != want {
		t.Errorf("the guide shows %q, want %q", shown, want)
	}
}

// The same with WordPress and Next.js themselves.
func TestLongSigningExamples(t *testing.T) {
	t.Parallel()
	runSigningExamples(t, longSigningExamples)
}

func runSigningExamples(t *testing.T, examples map[string]signingExample) {
	key, output := keygen(t)
	keyFile := filepath.Join(t.TempDir(), "key.json")
	writeFile(t, keyFile, []byte(output))
	o := startOrigin(t, exampleMedia())
	g := start(t, o, config{keys: keyFile, gate: "player"})
	for name, example := range examples {
		t.Run(name, func(t *testing.T) {
			path := example.sign(t, name, output)
			compact, rest, _ := strings.Cut(path, "/")
			t.Logf("a token of %d bytes for %s", len(compact), rest)
			example.wantSigned(t, compact, key)
			o.take()
			if rest == "iframe" {
				if res := g.get(t, "/"+path); res.verdict() != plays {
					t.Errorf("the player page answers with %v", res.verdict())
				}
				rest = "manifest/video.m3u8"
			}
			o.wantPassed(t, g.get(t, "/"+compact+"/"+rest), "/demo/manifest/video.m3u8")
		})
	}
}

var playbackURL = regexp.MustCompile(`https://media\.example\.com/([\w.-]+/[\w./]+)`)

// sign runs the example and returns the path of its URL, without the first slash.
func (e signingExample) sign(t *testing.T, name, key string) string {
	t.Helper()
	dir := t.TempDir()
	for _, folder := range []string{"../examples/signing/" + name, "testdata/signing"} {
		noError(t, os.CopyFS(dir, os.DirFS(folder)))
	}
	writeFile(t, filepath.Join(dir, "key.json"), []byte(key))
	root := must(filepath.Abs(".."))(t)
	if strings.HasPrefix(name, "node") {
		noError(t, os.Symlink(filepath.Join(root, "integration/node_modules"), filepath.Join(dir, "node_modules")))
	}
	cmd := exec.CommandContext(t.Context(), tool(t, "bash"), "-c", e.script)
	cmd.Dir, cmd.Env, cmd.Stderr = dir, append(os.Environ(), "ROOT="+root, "PORT="+port(freeAddr(t))), new(logBuffer)
	cmd.WaitDelay = startTimeout // a server that outlives the script
	stdout, err := cmd.Output()
	urls := playbackURL.FindAllStringSubmatch(string(stdout), -1)
	if err != nil || len(urls) != 1 {
		t.Fatalf("it ends with %v and prints %q: %s", err, stdout, cmd.Stderr)
	}
	if e.visitor != "" && !strings.HasPrefix(string(stdout), "visitor: "+e.visitor+"\nuser: ") {
		t.Errorf("it prints %q, want that a visitor gets %s", stdout, e.visitor)
	}
	if answer := string(stdout); e.visitor != "" && !strings.Contains(answer, "no-store") && !strings.Contains(answer, " not cached") {
		t.Errorf("a cache may give the user's URL to others: %s", answer)
	}
	return urls[0][1]
}

// wantSigned checks the token with the gate's own verifier.
func (e signingExample) wantSigned(t *testing.T, compact string, key generatedKey) {
	t.Helper()
	keys := must(token.ParsePublicKeys(key.JWKS, ""))(t)
	claims := must(token.Verify(compact, must(token.NewKeySet(keys...))(t), time.Now(), token.Policy{}))(t)
	if left := time.Until(claims.ExpiresAt); claims.VideoID != "demo" || claims.Viewer != e.viewer || claims.IssuedAt.IsZero() || left > 12*time.Hour || left < 11*time.Hour {
		t.Errorf("the token is for the viewer %q and the video %q, issued at %v, and lasts %v", claims.Viewer, claims.VideoID, claims.IssuedAt, left)
	}
}
