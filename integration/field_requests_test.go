package integration

import (
	"encoding/base64"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
)

// A key as an environment file has it: quoted, after its name, with \n for line breaks.
func TestKeyOfAnEnvironmentFile(t *testing.T) {
	t.Parallel()
	text := string(must(base64.StdEncoding.DecodeString(signingKey().PEM()))(t))
	file := filepath.Join(t.TempDir(), signingKey().ID()+".env")
	writeFile(t, file, []byte("export STREAM_PEM=\""+strings.ReplaceAll(text, "\n", `\n`)+"\"\n"))
	o := startOrigin(t, http.NotFoundHandler())
	g := start(t, o, config{keys: file})
	if res := g.get(t, "/"+mint(t, "demo", nil)+"/1.ts"); res.reason() != "" {
		t.Errorf("got %d %q, want the origin's answer", res.StatusCode, res.reason())
	}
	o.take()
}
