package signedplayback

import (
	"os/exec"
	"strings"
	"testing"
)

// A back end that signs tokens imports package token, and must not get a web
// server with it.
func TestPurePackagesStayPure(t *testing.T) {
	const module = "github.com/signed-playback/caddy-signed-playback"
	out, err := exec.Command("go", "list", "-deps", "./token", "./manifest", "./internal/strictjson").CombinedOutput()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, out)
	}
	pure := map[string]bool{module + "/token": true, module + "/manifest": true, module + "/internal/strictjson": true}
	for pkg := range strings.FieldsSeq(string(out)) {
		if strings.HasPrefix(pkg, "github.com/caddyserver/") || strings.HasPrefix(pkg, module) && !pure[pkg] {
			t.Errorf("a pure package imports %s", pkg)
		}
		delete(pure, pkg)
	}
	if len(pure) > 0 {
		t.Errorf("go list did not list %v", pure)
	}
}

// The store is used by the gate and knows nothing of it, nor of HTTP.
func TestStoreKnowsNoServer(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "./internal/store").CombinedOutput()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, out)
	}
	for pkg := range strings.FieldsSeq(string(out)) {
		if strings.HasPrefix(pkg, "github.com/caddyserver/caddy/") {
			t.Errorf("the store imports %s", pkg)
		}
	}
}
