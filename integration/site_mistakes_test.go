package integration

import (
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
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
	if !g.log.await("no handler after the gate answers the request", startTimeout) {
		t.Error("nothing in the log says why")
	}
}

// Of all files in the npm package hls.js, the gate takes the builds that play everything in a
// page. The error of another one names the file, and the command that fetches the right one.
func TestFilesOfHLSJS(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob(filepath.Join(filepath.Dir(hlsJS(t)), "*"))
	if err != nil || len(files) < 15 {
		t.Fatalf("the package has %d files: %v", len(files), err)
	}
	dir := t.TempDir()
	for _, file := range append(files, dir, filepath.Join(dir, "nowhere.js"), filepath.Join(filepath.Dir(hlsJS(t)), "../package.json")) {
		writeFile(t, filepath.Join(dir, "Caddyfile"), []byte(":80 {\nsigned_playback {\nplayer "+file+"\n}\nrespond ok\n}\n"))
		got := execute(t, dir, "", binary(t), "validate", "--config", "Caddyfile")
		want := slices.Contains([]string{"hls.js", "hls.min.js"}, filepath.Base(file))
		if (got.code == 0) != want || !want && (!strings.Contains(got.stderr, filepath.Base(file)) || !strings.Contains(got.stderr, "npm pack hls.js")) {
			t.Errorf("%s: exit status %d, want success: %t\n%s", filepath.Base(file), got.code, want, got.stderr)
		}
	}
}
