package integration

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"os"
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

// The pages of apps made with Capacitor, Tauri and others have origins of their own schemes.
func TestOriginsOfApps(t *testing.T) {
	t.Parallel()
	o := startOrigin(t, nil)
	g := start(t, o, config{gate: "player", app: "video listed {\nallowed_origins capacitor://localhost android-app://com.example\n}\nvideo any {\nallowed_origins *\n}"})
	for _, tc := range []struct{ video, header, reason string }{
		{"listed", "Origin: capacitor://localhost", ""},
		{"listed", "Referer: android-app://com.example/", ""},
		{"listed", "Origin: tauri://localhost", "origin_not_allowed"},
		{"listed", "Origin: http://localhost", "origin_not_allowed"},
		{"any", "Origin: tauri://localhost", ""},
		{"any", "Referer: android-app://com.example.other/", ""},
		{"any", "Origin: null", "origin_not_allowed"},
		{"any", "Origin: file://", "origin_not_allowed"},
	} {
		res := g.raw(t, rawGet("/"+mint(t, tc.video, nil)+"/iframe", tc.header))
		if res.reason() != tc.reason {
			t.Errorf("%s for %q: %d %q, want %q", tc.header, tc.video, res.StatusCode, res.reason(), tc.reason)
		}
		name, origin, _ := strings.Cut(tc.header, ": ")
		if got := res.Header.Get("Access-Control-Allow-Origin"); name == "Origin" && tc.reason == "" && got != origin {
			t.Errorf("%s for %q: Access-Control-Allow-Origin %q", tc.header, tc.video, got)
		}
		if csp := res.Header.Get("Content-Security-Policy"); tc.reason == "" && !strings.Contains(csp, " capacitor:") {
			t.Errorf("%s for %q: the policy is %q", tc.header, tc.video, csp)
		}
	}
}

// ambiguousFolder is a folder with a playlist whose segments have names that packagers write
// and servers read in different ways.
func ambiguousFolder(t *testing.T) (root string, names []string) {
	t.Helper()
	root = t.TempDir()
	folder := filepath.Join(root, "my vidéos", "demo")
	playlist := "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:2\n"
	files := []string{"media/0-1.ts", "a/b.ts", "episode #9/s0.ts", "s;p=0.ts", "100%.ts", "what?.ts"}
	names = []string{"media%2F0-1.ts", "a//b.ts", "episode%20%239/s0.ts", "s;p=0.ts", "100%25.ts", "what%3F.ts"}
	for i, name := range names {
		content := must(os.ReadFile(fmt.Sprintf("../examples/media/demo/ts/%03d.ts", i+1)))(t)
		file := filepath.Join(folder, files[i])
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		writeFile(t, file, content)
		playlist += "#EXTINF:2,\n/my%20vid%C3%A9os/demo/" + name + "\n"
	}
	writeFile(t, filepath.Join(folder, "index.m3u8"), []byte(playlist+"#EXT-X-ENDLIST\n"))
	return root, names
}

// Segments with ambiguous names, in a folder with a blank and an accent, play from servers
// that merge slashes and from those that do not.
func TestAmbiguousPathsAtServers(t *testing.T) {
	t.Parallel()
	root, names := ambiguousFolder(t)
	const gate = "origin_path \"/my vidéos/{video}\"\nambiguous_paths allow"
	nginx := func(merge string) string {
		s := &mediaServer{dir: t.TempDir(), addr: freeAddr(t)}
		writeFile(t, filepath.Join(s.dir, "nginx.conf"), []byte(fmt.Sprintf(
			"daemon off;\nmaster_process off;\npid nginx.pid;\nuser root;\nerror_log stderr;\nevents {}\nhttp {\naccess_log off;\nserver {\nlisten %s;\nroot \"%s\";\nmerge_slashes %s;\n}\n}\n", s.addr, root, merge)))
		s.run(t, tool(t, "nginx"), "-p", ".", "-e", "stderr", "-c", "nginx.conf")
		eventually(t, "nginx listens", func() bool { return listens(s.addr) })
		return "reverse_proxy " + s.addr
	}
	for name, site := range map[string]string{
		"nginx": nginx("on"), "nginx without merge_slashes": nginx("off"), "file_server": "root \"" + root + "\"\nfile_server",
	} {
		g := start(t, startOrigin(t, nil), config{gate: gate, site: site})
		token := mint(t, "demo", nil)
		for i, segment := range names {
			want := must(os.ReadFile(fmt.Sprintf("../examples/media/demo/ts/%03d.ts", i+1)))(t)
			if res := g.get(t, "/"+token+"/"+segment); res.StatusCode != http.StatusOK || len(res.body) != len(want) {
				t.Errorf("%s: %s: %d %q, %d bytes, want %d", name, segment, res.StatusCode, res.reason(), len(res.body), len(want))
			}
		}
		if res := g.get(t, "/"+token+"/..;/demo/index.m3u8"); res.reason() != "path_invalid" {
			t.Errorf("%s: another folder: %d %q", name, res.StatusCode, res.reason())
		}
		wantDecoded(t, g.url("/"+token+"/index.m3u8"), 2*len(names))
	}
	g := start(t, startOrigin(t, nil), config{gate: "origin_path \"/my vidéos/{video}\"", site: "root \"" + root + "\"\nfile_server"})
	if res := g.get(t, "/"+mint(t, "demo", nil)+"/index.m3u8"); res.StatusCode != http.StatusOK {
		t.Errorf("the manifest: %d %q", res.StatusCode, res.reason())
	}
	eventually(t, "the log names the option", func() bool { return strings.Contains(g.log.String(), "ambiguous_paths allow") })
}

// The player page and the manifest's path of an origin that has another one.
func TestPlayerPageOfAnotherManifest(t *testing.T) {
	t.Parallel()
	w := startWeb(t, anyVideo(), config{gate: "manifest manifest/ts.m3u8\nplayer " + hlsJS(t)})
	p := openTab(t)
	p.open(t, w.media("/"+mint(t, "demo", nil)+"/iframe?autoplay=true&muted=true"))
	eventually(t, "the page asks for a segment of that manifest", func() bool {
		_, ok := w.tap.first(http.MethodGet, "/ts/001.ts")
		return ok
	})
}
