package signedplayback

import (
	"os/exec"
	"strings"
	"testing"
)

// A back end that signs tokens imports package token and must not get a web
// server with it. No other package imports the root package or Caddy either, and
// only those that use a store get the interface of Caddy's storage.
func TestOnlyTheRootPackageKnowsCaddy(t *testing.T) {
	t.Parallel()
	const module = "github.com/signed-playback/caddy-signed-playback"
	out, err := exec.Command("go", "list", "-f", `{{.ImportPath}} {{join .Deps " "}}`, "./token", "./manifest", "./mediacache", "./internal/...").CombinedOutput()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, out)
	}
	listed := 0
	for line := range strings.Lines(string(out)) {
		pkg, deps, _ := strings.Cut(strings.TrimSpace(line), " ")
		usesStore := strings.Contains(line, module+"/internal/store")
		for dep := range strings.FieldsSeq(deps) {
			if dep == module || strings.HasPrefix(dep, "github.com/caddyserver/caddy/") ||
				strings.HasPrefix(dep, "github.com/caddyserver/") && !usesStore {
				t.Errorf("%s imports %s", strings.TrimPrefix(pkg, module+"/"), dep)
			}
		}
		listed++
	}
	if listed < 2 {
		t.Errorf("go list has %d packages:\n%s", listed, out)
	}
}
