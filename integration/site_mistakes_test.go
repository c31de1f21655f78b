package integration

import (
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/signed-playback/caddy-signed-playback/internal/player"
)

// The attack: a viewer without a token asks for a path that the gate's matcher does not
// match. The server has warned of it at its start, with the site and the line. Where
// nothing is behind a gate, a viewer with a token gets 502 instead of an empty video.
func TestSiteMistakes(t *testing.T) {
	t.Parallel()
	o := startOrigin(t, nil)
	past := freeAddr(t)
	g := start(t, o, config{
		site:  "header X-Own b",
		sites: "http://" + past + " {\n@media path *.m3u8 *.ts\nsigned_playback @media\nreverse_proxy " + o.addr() + "\n}",
	})
	for _, want := range []string{"requests get past the gate to reverse_proxy " + o.addr(), "nothing is behind the gate", `"gate":"Caddyfile:`} {
		if !strings.Contains(g.log.String(), want) {
			t.Errorf("the server does not say %q at its start", want)
		}
	}
	(&gateway{addr: past}).get(t, "/demo/k.key")
	if seen := o.take(); len(seen) != 1 || seen[0].uri != "/demo/k.key" {
		t.Errorf("the origin gets %+v: the warning was for nothing", seen)
	}
	if res := g.get(t, "/"+mint(t, "demo", nil)+"/x.ts"); res.StatusCode != http.StatusBadGateway {
		t.Errorf("nothing behind the gate: status %d, want 502", res.StatusCode)
	}
	g.log.await(t, "no handler after the gate answers the request")
}

// Of all files in the npm package hls.js, the gate takes the builds that play everything in a
// page. TestNewRefuses has other files.
func TestFilesOfHLSJS(t *testing.T) {
	t.Parallel()
	files := must(filepath.Glob(filepath.Join(filepath.Dir(hlsJS(t)), "*")))(t)
	if len(files) < 15 {
		t.Fatalf("the package has only the files %q", files)
	}
	for _, file := range files {
		_, err := player.New([]byte(readText(t, file)), "manifest/video.m3u8")
		if want := slices.Contains([]string{"hls.js", "hls.min.js"}, filepath.Base(file)); (err == nil) != want {
			t.Errorf("%s: %v, want it accepted: %t", filepath.Base(file), err, want)
		}
	}
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "Caddyfile"), []byte(":80 {\nsigned_playback {\nplayer nowhere.js\n}\nrespond ok\n}\n"))
	if got := execute(t, dir, "", binary(t), "validate", "--config", "Caddyfile"); got.code == 0 || !strings.Contains(got.stderr, "nowhere.js") || !strings.Contains(got.stderr, "npm pack hls.js") {
		t.Errorf("a file that does not exist: exit status %d: %s", got.code, got.stderr)
	}
}
