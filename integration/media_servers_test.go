package integration

import (
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// secretOfTheGate is what the gate and MediaMTX share.
const secretOfTheGate = "MTX_HLSCDNSECRET=a-secret-of-the-gate"

// mediaServer is a real server with the config of its section in docs/origins.md. The
// example clip is published to it as `demo`, again and again.
type mediaServer struct {
	dir, addr string
	gate      config // the gate of the section
}

var (
	configOfThePage = regexp.MustCompile("(?ms)^```[a-z]+ (\\S+)\n(.*?)^```$")
	siteOfThePage   = regexp.MustCompile(`(?s)\tsigned_playback \{\n(\t\tmanifest .*?|\t\torigin_path .*?)\n\t\}\n(.*)\n\}\n$`)
)

// startMediaServer runs a program with a config of the page, and publishes to a path of
// its RTMP server. The edits of the config replace text.
func startMediaServer(t *testing.T, section, publish string, edits map[string]string, program ...string) *mediaServer {
	t.Helper()
	s, rtmp := &mediaServer{dir: t.TempDir(), addr: freeAddr(t)}, freeAddr(t)
	pairs := []string{
		"127.0.0.1:8888", s.addr, "127.0.0.1:8081", s.addr, "rtmpAddress: :1935", "rtmpAddress: " + rtmp, "listen 1935", "listen " + rtmp,
		"/var/lib/hls", s.dir, "/etc/caddy/hls.min.js", hlsJS(t),
	}
	for before, after := range maps.All(edits) {
		pairs = append(pairs, before, after)
	}
	_, text, _ := strings.Cut(readText(t, "../docs/origins.md"), "\n## "+section+"\n")
	text, _, _ = strings.Cut(text, "\n## ")
	for _, m := range configOfThePage.FindAllStringSubmatch(text, -1) {
		content := strings.NewReplacer(pairs...).Replace(m[2])
		if site := siteOfThePage.FindStringSubmatch(content); site != nil {
			s.gate = config{gate: site[1], site: site[2], env: []string{secretOfTheGate}}
		}
		writeFile(t, filepath.Join(s.dir, m[1]), []byte(content))
	}
	if s.gate.site == "" {
		t.Fatalf("docs/origins.md has no gate for %s", section)
	}
	clip := must(filepath.Abs("../examples/media/demo/manifest/ts.m3u8"))(t)
	runBeside(t, s.dir, []string{secretOfTheGate}, program...)
	eventually(t, section+" listens", func() bool { return listens(rtmp) && listens(s.addr) })
	runBeside(t, s.dir, nil, tool(t, "ffmpeg"), "-nostdin", "-v", "error", "-re", "-stream_loop", "-1", "-i", clip, "-c", "copy", "-f", "flv", "rtmp://"+rtmp+publish)
	return s
}

var listenOfNginx = regexp.MustCompile(`listen (\S+);`)

// startNginx starts nginx in a folder with these servers.
func startNginx(t *testing.T, dir, servers string) {
	t.Helper()
	writeFile(t, filepath.Join(dir, "nginx.conf"), []byte("daemon off;\nmaster_process off;\npid nginx.pid;\nuser root;\nerror_log stderr;\nevents {}\nhttp {\naccess_log off;\n"+servers+"}\n"))
	runBeside(t, dir, nil, tool(t, "nginx"), "-p", ".", "-e", "stderr", "-c", "nginx.conf")
	eventually(t, "nginx listens", func() bool { return listens(listenOfNginx.FindStringSubmatch(servers)[1]) })
}

// wantLive checks that the stream plays through a gate, for a token of this stream only,
// and returns the addresses that hls.js asked for.
func wantLive(t *testing.T, g *gateway) (asked []string) {
	t.Helper()
	space := "/" + mint(t, "demo", nil) + "/"
	// MediaMTX redirects to this query before it looks for the stream.
	eventually(t, "the stream is there", func() bool { return g.get(t, space+"index.m3u8?cookieCheck=1").StatusCode == http.StatusOK })
	wantDecoded(t, g.url(space+"index.m3u8"), liveSeconds, "-t", "4")
	p, page := openTab(t, watchPolicy), startPlayersPage(t)
	p.open(t, page)
	if got := play(t, p, "hls.js", g.url(space+"index.m3u8"), 1, liveSeconds, "{lowLatencyMode: true}"); got.End != "played" || len(got.Errors) > 0 {
		t.Errorf("it did not play: %+v", got)
	}
	p.wantRequestsIn(t, g, space, page, nil)
	p.open(t, g.url(space+"iframe?autoplay=true&muted=true"))
	p.await(t, "the player page plays", isPlaying)
	if res := g.get(t, "/"+mint(t, "another", nil)+"/index.m3u8?cookieCheck=1"); res.StatusCode != http.StatusNotFound {
		t.Errorf("the token of another stream gets status %d", res.StatusCode)
	}
	return p.asked()
}

const iPhone = "User-Agent: AppleCoreMedia/1.0.0.22A3354 (iPhone; U; CPU OS 18_0 like Mac OS X; en_us)"

// F19 MediaMTX gives viewers sessions by a cookie, a redirect and a query, and refuses
// players of iOS that send no cookie. With its CDN secret, it does neither, and without the
// secret nobody can read.
func TestMediaMTX(t *testing.T) {
	t.Parallel()
	program := must(filepath.Abs("../bin/mediamtx"))(t)
	const publish = "/demo?user=encoder&pass=a-password-for-encoders"
	index := "/" + mint(t, "demo", nil) + "/index.m3u8"
	t.Run("with the secret", func(t *testing.T) {
		t.Parallel()
		s := startMediaServer(t, "MediaMTX", publish, nil, program, "mediamtx.yml")
		g := start(t, nil, s.gate)
		blocking := slices.ContainsFunc(wantLive(t, g), func(address string) bool { return strings.Contains(address, "_HLS_msn=") })
		if res := g.get(t, index, iPhone); res.StatusCode != http.StatusOK || strings.Contains(string(res.body), "session") || !blocking {
			t.Errorf("an iPhone gets status %d and %s; low latency: %t", res.StatusCode, res.body, blocking)
		}
		direct := &gateway{addr: s.addr}
		if got := direct.get(t, "/demo/index.m3u8?cookieCheck=1").StatusCode; got != http.StatusUnauthorized {
			t.Errorf("status %d past the gate, want 401", got)
		}
	})
	t.Run("without it", func(t *testing.T) {
		t.Parallel()
		readable := map[string]string{"      - action: publish\n": "      - action: publish\n  - user: any\n    permissions:\n      - action: read\n"}
		s := startMediaServer(t, "MediaMTX", publish, readable, program, "mediamtx.yml")
		s.gate.site = "reverse_proxy " + s.addr
		g := start(t, nil, s.gate)
		wantLive(t, g)
		if res := g.get(t, index); res.StatusCode != http.StatusFound || res.Header.Get("Location") != "index.m3u8?cookieCheck=1" || res.Header.Get("Set-Cookie") != "" {
			t.Errorf("status %d and %v, want a redirect and no cookie", res.StatusCode, res.Header)
		}
		if got := g.get(t, index+"?cookieCheck=1", iPhone).StatusCode; got != http.StatusBadRequest {
			t.Errorf("an iPhone gets status %d; the page says 400", got)
		}
	})
}

// F19 nginx-rtmp plays once it has a folder for each stream, and not without.
func TestNginxRTMP(t *testing.T) {
	t.Parallel()
	frame := map[string]string{
		"rtmp {\n": "load_module /usr/lib/nginx/modules/ngx_rtmp_module.so;\ndaemon off;\nmaster_process off;\npid nginx.pid;\nerror_log stderr;\nevents {}\nrtmp {\n",
		"http {\n": "http {\n\taccess_log off;\n\tclient_body_temp_path t;\n\tproxy_temp_path t;\n\tfastcgi_temp_path t;\n\tuwsgi_temp_path t;\n\tscgi_temp_path t;\n",
	}
	nginx := func(t *testing.T) (*mediaServer, *gateway) {
		s := startMediaServer(t, "nginx-rtmp", "/live/demo", frame, tool(t, "nginx"), "-p", ".", "-e", "stderr", "-c", "nginx.conf")
		return s, start(t, nil, s.gate)
	}
	t.Run("nested", func(t *testing.T) {
		_, g := nginx(t)
		wantLive(t, g)
	})
	t.Run("flat", func(t *testing.T) {
		frame["hls_nested on;"] = ""
		s, g := nginx(t)
		eventually(t, "the stream is there", func() bool { return (&gateway{addr: s.addr}).get(t, "/live/demo.m3u8").StatusCode == http.StatusOK })
		for _, name := range []string{"index.m3u8", "demo.m3u8", "demo-0.ts", ".m3u8"} {
			if got := g.get(t, "/"+mint(t, "demo", nil)+"/"+name).StatusCode; got != http.StatusNotFound {
				t.Errorf("%s has status %d, want 404", name, got)
			}
		}
	})
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
		noError(t, os.MkdirAll(filepath.Dir(file), 0o755))
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
		addr := freeAddr(t)
		startNginx(t, t.TempDir(), fmt.Sprintf("server {\nlisten %s;\nroot \"%s\";\nmerge_slashes %s;\n}\n", addr, root, merge))
		return "reverse_proxy " + addr
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
