package integration

import (
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/signed-playback/caddy-signed-playback/token"
)

// clipSeconds is the duration of the clip in examples/media.
const clipSeconds = 12

// urisBelow returns the request targets below a folder: an earlier tab may still ask for
// another video.
func (o *origin) urisBelow(folder string) []string {
	return slices.DeleteFunc(o.uris(), func(uri string) bool { return !strings.HasPrefix(uri, folder) })
}

// wantSegments checks that the origin has been asked for all segments of the clip.
func (o *origin) wantSegments(t testing.TB, folder, pattern string) {
	t.Helper()
	const count = 6
	for i := range count {
		if uri := folder + fmt.Sprintf(pattern, i+1); pattern != "" && !slices.Contains(o.urisBelow(folder), uri) {
			t.Errorf("the origin was not asked for %s", uri)
		}
	}
}

// writtenMedia is an origin of the clip in examples/media. It has the clip under the
// name of each way, with manifests that are written so.
type writtenMedia struct {
	manifestWriter
	*origin
}

func startWrittenMedia(t testing.TB) *writtenMedia {
	t.Helper()
	m := new(writtenMedia)
	m.origin = startOrigin(t, m)
	m.host = m.invalidHost()
	return m
}

// ServeHTTP implements http.Handler.
func (m *writtenMedia) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	way, name, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	file := filepath.Join("../examples/media/demo", filepath.FromSlash(name))
	data, err := os.ReadFile(file)
	switch ending, dir := path.Ext(name), path.Dir(r.URL.Path)+"/"; {
	case err != nil:
		http.NotFound(w, r)
	case ending == ".m3u8":
		_, _ = w.Write(m.writeHLS(data, way, dir))
	case ending == ".mpd":
		_, _ = w.Write(m.writeDASH(data, way, dir))
	default:
		http.ServeFile(w, r, file)
	}
}

// badTokens are tokens for the clip that do not open it to a viewer in the US.
func badTokens(t testing.TB) map[string]badToken {
	t.Helper()
	other, err := token.GenerateSigningKey(keyID)
	if err != nil {
		t.Fatal(err)
	}
	onlyGB := withRules(`[{"type":"ip.geoip.country","country":["GB"],"action":"allow"},{"type":"any","action":"block"}]`)
	return map[string]badToken{
		"expired": {mint(t, "demo", func(c *token.Claims) { c.ExpiresAt = time.Now().Add(-time.Second) }), verdict{http.StatusUnauthorized, "token_expired"}},
		"foreign": {tokenOf(t, other, "demo"), verdict{http.StatusUnauthorized, "signature_invalid"}},
		"blocked": {mint(t, "demo", onlyGB), verdict{http.StatusForbidden, "rule_blocked"}},
	}
}

type badToken struct {
	token string
	want  verdict
}

// Every player plays through the gate from the page of another site, HLS and DASH,
// to the end, however the origin writes its URIs. It asks for nothing outside of the
// viewer's own path, and the origin is asked for nothing but the video. If the token
// does not open the video, nothing plays, and the page can read why.
func TestPlayers(t *testing.T) {
	t.Parallel()
	o := startWrittenMedia(t)
	g := start(t, o.origin, config{app: withCountries(t), gate: "manifest_hosts " + o.host})
	page := startPlayersPage(t)
	for _, tc := range []struct{ how, way, suffix, segments string }{
		{"native", "absolute", "manifest/video.m3u8", "audio/%03d.m4s"},
		{"native", "relative", "downloads/default.mp4", ""},
		{"hls.js", "rooted", "manifest/video.m3u8", "audio/%03d.m4s"},
		{"hls.js", "absolute", "manifest/ts.m3u8", "ts/%03d.ts"},
		{"shaka", "absolute", "manifest/video.m3u8", "audio/%03d.m4s"},
		{"shaka", "rooted", "manifest/video.mpd", "audio/%03d.m4s"},
		{"dash.js", basedWay, "manifest/video.mpd", "audio/%03d.m4s"},
		{"ffmpeg", "rooted", "manifest/ts.m3u8", "ts/%03d.ts"},
		{"ffmpeg", basedWay, "manifest/video.mpd", "audio/%03d.m4s"},
	} {
		t.Run(tc.how+", "+tc.suffix, func(t *testing.T) {
			o.take()
			good := "/" + mint(t, tc.way, func(c *token.Claims) { c.Downloadable = true }) + "/"
			if tc.how == "ffmpeg" {
				wantDecoded(t, g.url(good+tc.suffix), clipSeconds)
				o.wantSegments(t, "/"+tc.way+"/", tc.segments)
				return
			}
			p := openTab(t)
			p.open(t, page)
			got := play(t, p, tc.how, g.url(good+tc.suffix), 8, 0, "{}")
			if got.End != "ended" || math.Abs(got.Position-clipSeconds) > 0.5 || len(got.Errors) > 0 {
				t.Errorf("it did not play to the end: %+v", got)
			}
			p.wantRequestsIn(t, g, good, page, o.urisBelow("/"+tc.way+"/"))
			o.wantSegments(t, "/"+tc.way+"/", tc.segments)
		})
	}

	bad := badTokens(t)
	if got := ffmpeg(t, g.url("/"+bad["expired"].token+"/manifest/video.mpd")); got.code == 0 || !strings.Contains(got.stderr, "401") {
		t.Errorf("ffmpeg with an expired token: %+v; want a failure with 401", got)
	}
	for _, tc := range []struct{ how, token, suffix string }{
		{"native", "blocked", "manifest/video.m3u8"},
		{"hls.js", "expired", "manifest/video.m3u8"},
		{"shaka", "foreign", "manifest/video.mpd"},
		{"dash.js", "blocked", "manifest/video.mpd"},
	} {
		t.Run(tc.how+", "+tc.token, func(t *testing.T) {
			o.take()
			p := openTab(t)
			p.open(t, page)
			want := bad[tc.token].want
			address := g.url("/" + bad[tc.token].token + "/" + tc.suffix)
			got := play(t, p, tc.how, address, 1, 0, "{}")
			named := tc.how == "native" || tc.how == "dash.js" || slices.ContainsFunc(got.Errors, func(text string) bool {
				return strings.Contains(text, strconv.Itoa(want.Status))
			})
			if got.End != "error" || got.Position != 0 || !named {
				t.Errorf("it ended with %+v, want an error because of %d", got, want.Status)
			}
			if seen := evaluate[verdict](t, p, fmt.Sprintf("ask(%q)", address)); seen != want {
				t.Errorf("the page sees %v, want %v", seen, want)
			}
			if asked := o.urisBelow("/demo/"); len(asked) > 0 {
				t.Errorf("the origin was asked for %q", asked)
			}
		})
	}
}

// Every player plays every clip that it can, in the way in which an origin writes
// it, from the page of another site.
func TestLongPlayers(t *testing.T) {
	t.Parallel()
	m := startMediaOrigin(t)
	g := start(t, m.origin, config{gate: m.gate()})
	page := startPlayersPage(t)
	hls, dash := []string{"ts", "fmp4", "aes", "subtitles", "audio", "byterange", "ll"}, []string{"template", "timeline", "list", "file", "dynamic"}
	for how, playable := range map[string][]string{
		"native": {"fmp4", "audio"}, // the HLS that Chromium plays by itself
		"hls.js": hls, "shaka": slices.Concat(hls, dash), "dash.js": dash, "ffmpeg": slices.Concat(dash, hls),
	} {
		for i, name := range playable {
			c := clips[slices.IndexFunc(clips, func(c clip) bool { return c.name == name })]
			way := c.ways()[i%len(c.ways())]
			t.Run(fmt.Sprintf("%s, %s, %s", how, name, way), func(t *testing.T) {
				label := name + "." + strings.ReplaceAll(how, ".", "")
				if name == "ll" {
					m.stream(way, label).tick(time.Second / 2)
				}
				m.take()
				good := mint(t, "vidA", nil)
				address := g.url("/" + good + "/" + way + "/" + label + "/" + c.entry)
				if how == "ffmpeg" {
					wantDecoded(t, address, liveSeconds, "-t", strconv.Itoa(liveSeconds))
				} else {
					p := openTab(t)
					p.open(t, page)
					p.wantPlayed(t, how, address, c)
					p.wantRequestsIn(t, g, "/"+good+"/", page, m.uris())
					if name == "ll" {
						m.wantLowLatency(t)
					}
					p.open(t, "about:blank")
				}
				m.wantNoToken(t, good)
			})
		}
	}
}

// liveSeconds is how long a stream without end is played.
const liveSeconds = 4

// wantPlayed plays a clip, to its end if it has one.
func (p *tab) wantPlayed(t *testing.T, how, address string, c clip) {
	t.Helper()
	rate, seconds, want, options := 4, 0, "ended", "{}"
	if c.live {
		rate, seconds, want = 1, liveSeconds, "played"
	}
	if c.name == "ll" {
		options = map[string]string{"hls.js": "{lowLatencyMode: true}", "shaka": "{streaming: {lowLatencyMode: true}}"}[how]
	}
	got := play(t, p, how, address, rate, seconds, options)
	if got.End != want || len(got.Errors) > 0 || !c.live && got.Seconds < clipLength-0.5 {
		t.Errorf("it did not play to the end: %+v", got)
	}
}

// ffmpeg decodes what is at an address, and tells how far it has come.
func ffmpeg(t *testing.T, address string, options ...string) outcome {
	t.Helper()
	args := slices.Concat([]string{"-v", "error", "-nostdin", "-progress", "pipe:1", "-i", address}, options, []string{"-f", "null", "-"})
	return execute(t, "", "", tool(t, "ffmpeg"), args...)
}

// wantDecoded checks that ffmpeg decodes so many seconds.
func wantDecoded(t *testing.T, address string, seconds int, options ...string) {
	t.Helper()
	got := ffmpeg(t, address, options...)
	var decoded float64
	for _, match := range regexp.MustCompile(`(?m)^out_time_us=(\d+)$`).FindAllStringSubmatch(got.stdout, -1) {
		decoded, _ = strconv.ParseFloat(match[1], 64)
	}
	if got.code != 0 || decoded < float64(seconds)*1e6-5e5 {
		t.Errorf("ffmpeg has decoded %.1f seconds, want %d: exit status %d: %s", decoded/1e6, seconds, got.code, got.stderr)
	}
}

// wantLowLatency checks that a player played a low-latency stream as one.
func (m *mediaOrigin) wantLowLatency(t testing.TB) {
	t.Helper()
	var reloads, parts int
	for _, uri := range m.uris() {
		if strings.Contains(uri, "_HLS_msn=") {
			reloads++
		}
		if strings.Contains(uri, "/part") {
			parts++
		}
	}
	if reloads < 4 || parts < 4 {
		t.Errorf("%d blocking reloads and %d parts: %v", reloads, parts, m.uris())
	}
}

// wantNoToken checks that the origin was only asked for the video, and never
// got a token.
func (m *mediaOrigin) wantNoToken(t testing.TB, tokens ...string) {
	t.Helper()
	for _, r := range m.take() {
		if !strings.HasPrefix(r.uri, videoFolder) {
			t.Errorf("the origin was asked for %s", r.uri)
		}
		for _, viewer := range tokens {
			if strings.Contains(fmt.Sprint(r), viewer) {
				t.Errorf("the origin got a token: %v", r)
			}
		}
	}
}

// startPlayersPage serves the page with the players as another site.
func startPlayersPage(t testing.TB) (address string) {
	t.Helper()
	site := httptest.NewServer(http.FileServer(http.Dir(playersPage(t))))
	t.Cleanup(site.Close)
	return site.URL + "/player/"
}

// playersPage makes a folder with the page and the players below /player/.
func playersPage(t testing.TB) (root string) {
	t.Helper()
	root = t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "player"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, from := range []string{
		"testdata/players/index.html",
		"node_modules/hls.js/dist/hls.min.js",
		"node_modules/shaka-player/dist/shaka-player.compiled.js",
		"node_modules/dashjs/dist/modern/umd/dash.all.min.js",
	} {
		data, err := os.ReadFile(from)
		if err != nil {
			t.Fatalf("%v; integration/install-tools.sh installs the players", err)
		}
		writeFile(t, filepath.Join(root, "player", filepath.Base(from)), data)
	}
	return root
}

// played is the outcome of playing.
type played struct {
	End      string   `json:"end"`
	Errors   []string `json:"errors"`
	Seconds  float64  `json:"seconds"`  // played since the first frame
	Position float64  `json:"position"` // in the clip
}

// play plays an address at a speed, for some seconds or, if they are 0, to the end.
// The options are the player's own, in JavaScript.
func play(t *testing.T, p *tab, how, address string, rate, seconds int, options string) played {
	t.Helper()
	return evaluate[played](t, p, fmt.Sprintf("play(%q, %q, %d, %d, %s)", how, address, rate, seconds, options))
}

// wantRequestsIn checks that every address that the browser has asked for, except
// for the page, is below the viewer's own path, and that the browser's record has
// everything that the origin was asked for.
func (p *tab) wantRequestsIn(t *testing.T, g *gateway, space, page string, uris []string) {
	t.Helper()
	requests := p.asked()
	for _, address := range requests {
		isPage := strings.HasPrefix(address, page) || strings.HasPrefix(address, "blob:") || strings.HasPrefix(address, "data:")
		if !isPage && !strings.HasPrefix(address, g.url(space)) {
			t.Errorf("the player asked for %s, outside of %s", address, space)
		}
	}
	for _, uri := range uris {
		_, suffix, _ := strings.Cut(uri[1:], "/") // without the video's folder
		if !slices.Contains(requests, g.url(space+suffix)) {
			t.Errorf("%s is missing in the record of the browser's requests: %v", suffix, requests)
		}
	}
}
