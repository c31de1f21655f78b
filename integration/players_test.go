package integration

import (
	"context"
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
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
	other := must(token.GenerateSigningKey(keyID))(t)
	onlyGB := withRules(`[{"type":"ip.geoip.country","country":["GB"],"action":"allow"},{"type":"any","action":"block"}]`)
	return map[string]badToken{
		"expired": {mint(t, "demo", func(c *token.Claims) { c.ExpiresAt = time.Now().Add(-time.Second) }), refusedFor("token_expired")},
		"foreign": {tokenOf(t, other, "demo"), refusedFor("signature_invalid")},
		"blocked": {mint(t, "demo", onlyGB), refusedFor("rule_blocked")},
	}
}

type badToken struct {
	token string
	want  verdict
}

// Every player plays through the gate from the page of another site, HLS and DASH, to the end,
// however the origin writes its URIs, below one session. It asks for nothing outside of the
// viewer's own path, and the origin is asked for nothing but the video. If the token
// does not open the video, nothing plays, and the page can read why.
func TestPlayers(t *testing.T) {
	t.Parallel()
	o := startWrittenMedia(t)
	g := start(t, o.origin, config{app: "sessions on\n" + withCountries(t), gate: "manifest_hosts " + o.host, api: withAPI})
	page := startPlayersPage(t)
	for i, tc := range []struct{ how, way, suffix, segments string }{
		{"native", "absolute", "manifest/video.m3u8", "audio/%03d.m4s"},
		{"native", "relative", "downloads/default.mp4", ""},
		{"hls.js", "rooted", "manifest/video.m3u8", "audio/%03d.m4s"},
		{"hls.js", "absolute", "manifest/ts.m3u8", "ts/%03d.ts"},
		{"shaka", "absolute", "manifest/video.m3u8", "audio/%03d.m4s"},
		{"shaka", "rooted", "manifest/video.mpd", "audio/%03d.m4s"},
		{"shaka", basedWay, "manifest/video.mpd", "audio/%03d.m4s"},
		{"dash.js", basedWay, "manifest/video.mpd", "audio/%03d.m4s"},
		{"dash.js", "relative", "manifest/video.mpd", "audio/%03d.m4s"},
		{"ffmpeg", "rooted", "manifest/ts.m3u8", "ts/%03d.ts"},
		{"ffmpeg", "relative", "manifest/video.mpd", "audio/%03d.m4s"},
		{"ffmpeg", basedWay, "manifest/video.mpd", "audio/%03d.m4s"},
		{"vlc", "rooted", "manifest/ts.m3u8", "ts/%03d.ts"},
		{"vlc", "absolute", "manifest/video.m3u8", "audio/%03d.m4s"},
		{"vlc", "relative", "manifest/video.mpd", "audio/%03d.m4s"},
	} {
		t.Run(tc.how+", "+tc.way+", "+tc.suffix, func(t *testing.T) {
			o.take()
			viewer := fmt.Sprint("viewer-", i)
			good := "/" + mint(t, tc.way, func(c *token.Claims) { c.Viewer, c.SessionLimit, c.Downloadable = viewer, 1, true }) + "/"
			switch tc.how {
			case "ffmpeg":
				wantDecoded(t, g.url(good+tc.suffix), clipSeconds)
			case "vlc":
				vlc(t, g.url(good+tc.suffix))
			default:
				p := openPage(t, page)
				got := play(t, p, tc.how, g.url(good+tc.suffix), 8, 0, "{}")
				if got.End != "ended" || math.Abs(got.Position-clipSeconds) > 0.5 || len(got.Errors) > 0 {
					t.Errorf("it did not play to the end: %+v", got)
				}
				p.wantRequestsIn(t, g, good, page, nil)
			}
			o.wantSegments(t, "/"+tc.way+"/", tc.segments)
			for _, uri := range o.urisBelow("/" + tc.way + "/") {
				if sessionInManifest.MatchString(uri) {
					t.Errorf("the origin gets a session: %s", uri)
				}
			}
			if counted := g.sessionsOf(t, viewer); len(counted) != 1 {
				t.Errorf("it is counted as %d sessions: %v", len(counted), counted)
			}
		})
	}
	if log := g.log.String(); sessionInManifest.MatchString(log) {
		t.Errorf("the log contains a session: %.200s", sessionInManifest.FindString(log))
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
			p := openPage(t, page)
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
					p := openPage(t, page)
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
	t.Logf("played %.1f seconds, %s", got.Seconds, got.End)
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

// vlc plays what is at an address to its end, as another user than root.
func vlc(t *testing.T, address string) {
	t.Helper()
	home := t.TempDir()
	noError(t, os.Chmod(home, 0o777))
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, tool(t, "cvlc"), "-I", "dummy", "-q", "--vout=dummy", "--aout=dummy", "--rate=4", "--play-and-exit", address)
	cmd.Dir, cmd.Env = "/", append(os.Environ(), "HOME="+home, "XDG_RUNTIME_DIR="+home)
	if os.Getuid() == 0 {
		const nobody = 65534
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("vlc: %v: %s", err, out)
	}
}

// wantDecoded checks that ffmpeg decodes so many seconds.
func wantDecoded(t *testing.T, address string, seconds int, options ...string) {
	t.Helper()
	got := ffmpeg(t, address, options...)
	var decoded float64
	for _, match := range regexp.MustCompile(`(?m)^out_time_us=(\d+)$`).FindAllStringSubmatch(got.stdout, -1) {
		decoded, _ = strconv.ParseFloat(match[1], 64)
	}
	t.Logf("decoded %.1f seconds", decoded/1e6)
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
	site := serve(t, http.FileServer(http.Dir(playersPage(t))))
	return site.URL + "/player/"
}

// playersPage makes a folder with the page and the players below /player/.
func playersPage(t testing.TB) (root string) {
	t.Helper()
	root = t.TempDir()
	noError(t, os.Mkdir(filepath.Join(root, "player"), 0o700))
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

// inheritedMPDs are MPDs of the clip whose Representations inherit URIs and resolve them at
// their own BaseURLs. ROOT is the folder of the video on the origin.
var inheritedMPDs = []struct{ name, video string }{
	{"one spelling", `<SegmentTemplate initialization="ROOT/video/$RepresentationID$/init.mp4" media="ROOT/video/$RepresentationID$/$Number%03d$.m4s"/>` +
		`<Representation id="180p" bandwidth="150766"><BaseURL>low/</BaseURL></Representation><Representation id="90p" bandwidth="50697"><BaseURL>other/</BaseURL></Representation>`},
	{"moved down", `<SegmentTemplate initialization="ROOT/video/$RepresentationID$/init.mp4" media="ROOT/video/$RepresentationID$/$Number%03d$.m4s"/>` +
		`<Representation id="180p" bandwidth="150766"><BaseURL>a/b/c/</BaseURL></Representation><Representation id="90p" bandwidth="50697"/>`},
	{"moved into elements", `<SegmentTemplate initialization="ROOT/video/90p/init.mp4" media="ROOT/video/90p/$Number%03d$.m4s"/>` +
		`<Representation id="180p" bandwidth="150766"><BaseURL>ROOT/video/</BaseURL><SegmentTemplate media="180p/$Number%03d$.m4s" initialization="180p/init.mp4"/></Representation>` +
		`<Representation id="90p" bandwidth="50697"><SegmentTemplate startNumber="1"/></Representation><Representation id="same" bandwidth="50000"><BaseURL>a/b/</BaseURL></Representation>`},
	{"lists moved down", `<SegmentList timescale="12800" duration="25600"><Initialization sourceURL="ROOT/video/180p/init.mp4"/>SEGMENTS</SegmentList>` +
		`<Representation id="180p" bandwidth="150766"><BaseURL>a/</BaseURL></Representation><Representation id="90p" bandwidth="50697"/>`},
	{"BaseURL of the root", `<BaseURL>/</BaseURL><SegmentTemplate initialization="init.mp4" media="$Number%03d$.m4s"/>` +
		`<Representation id="180p" bandwidth="150766"><BaseURL>NAME/video/180p/</BaseURL></Representation><Representation id="90p" bandwidth="50697"><BaseURL>NAME/video/90p/</BaseURL></Representation>`},
	{"folders below", `<SegmentTemplate initialization="init.mp4" media="$Number%03d$.m4s"/>` +
		`<Representation id="180p" bandwidth="150766"><BaseURL>HOST/NAME/video/180p/</BaseURL></Representation><Representation id="90p" bandwidth="50697"><BaseURL>../video/90p/</BaseURL></Representation>`},
	{"moved down, remote", `<SegmentTemplate initialization="ROOT/video/$RepresentationID$/init.mp4" media="ROOT/video/$RepresentationID$/$Number%03d$.m4s"/>` +
		`<Representation id="180p" bandwidth="150766"><BaseURL>a/b/c/</BaseURL></Representation><Representation id="90p" bandwidth="50697"/>`},
	{"BaseURL of the root and a Location elsewhere", `<BaseURL>/NAME/</BaseURL><SegmentTemplate initialization="/NAME/video/90p/init.mp4" media="video/90p/$Number%03d$.m4s"/>` +
		`<Representation id="90p" bandwidth="50697"/>LOCATION`},
}

// serveInherited serves the clip below /inherited0/, /inherited1/ and so on, each with
// one of the MPDs.
func serveInherited(w http.ResponseWriter, r *http.Request) {
	name, file, _ := strings.Cut(r.URL.Path[1:], "/")
	if file != "manifest/video.mpd" && file != "manifest/remote.php" {
		r.URL.Path = "/demo/" + file
		exampleMedia().ServeHTTP(w, r)
		return
	}
	var number int
	_, _ = fmt.Sscanf(name, "inherited%d", &number)
	const timing = ` timescale="12800" duration="25600" startNumber="1" initialization`
	video, segments := inheritedMPDs[number].video, ""
	for i := range 6 {
		segments += fmt.Sprintf(`<SegmentURL media="ROOT/video/180p/%03d.m4s"/>`, i+1)
	}
	video = strings.NewReplacer("SEGMENTS", segments, "<SegmentTemplate initialization", "<SegmentTemplate"+timing).Replace(video)
	video = strings.ReplaceAll(video, "<Representation ", `<Representation mimeType="video/mp4" codecs="avc1.4d401e" `)
	period := `<Period id="0"><AdaptationSet contentType="video">` + video + `</AdaptationSet><AdaptationSet contentType="audio"><SegmentTemplate timescale="48000" duration="96000" initialization="ROOT/audio/init.mp4" media="ROOT/audio/$Number%03d$.m4s"/>` +
		`<Representation id="audio" mimeType="audio/mp4" codecs="mp4a.40.2" bandwidth="52140"><BaseURL>x/y/</BaseURL></Representation></AdaptationSet></Period>`
	mpd := `<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" xmlns:xlink="http://www.w3.org/1999/xlink" profiles="urn:mpeg:dash:profile:isoff-live:2011" type="static" mediaPresentationDuration="PT12S" minBufferTime="PT4S">PERIOD</MPD>`
	switch {
	case file == "manifest/remote.php":
		mpd = "<?xml version='1.0' encoding='us-ascii'?><!-- remote -->" + period
	case strings.HasSuffix(inheritedMPDs[number].name, "remote"):
		mpd = strings.Replace(mpd, "PERIOD", `<Period xlink:href="ROOT/manifest/remote.php" xlink:actuate="onLoad"/>`, 1)
	default:
		mpd = strings.Replace(mpd, "PERIOD", period, 1)
	}
	if strings.Contains(mpd, "LOCATION") { // of the MPD
		mpd = strings.Replace(strings.Replace(mpd, "LOCATION", "", 1), "<Period", "<Location>ROOT/video.mpd</Location><Period", 1)
	}
	_, _ = io.WriteString(w, strings.NewReplacer("ROOT", "/"+name, "NAME", name, "HOST", "http://origin.invalid").Replace(mpd))
}

// Representations inherit URIs and resolve them at their own base URLs. Players read the
// rewritten MPD as the standard says, and ask only for files of the video.
func TestInheritedURIs(t *testing.T) {
	t.Parallel()
	o := startOrigin(t, http.HandlerFunc(serveInherited))
	g := start(t, o, config{gate: "manifest_hosts origin.invalid"})
	page := startPlayersPage(t)
	for i, mpd := range inheritedMPDs {
		players := []string{"dash.js", "shaka", "ffmpeg"}
		if strings.HasSuffix(mpd.name, "remote") {
			players = players[1:2] // dash.js has no relative remote elements, ffmpeg none
		}
		for _, how := range players {
			t.Run(mpd.name+", "+how, func(t *testing.T) {
				video := fmt.Sprint("inherited", i)
				space := "/" + mint(t, video, nil) + "/"
				address := g.url(space + "manifest/video.mpd")
				if how == "ffmpeg" {
					wantDecoded(t, address, clipSeconds)
				} else {
					p := openPage(t, page)
					got := play(t, p, how, address, 8, 0, "{}")
					if got.End != "ended" || math.Abs(got.Position-clipSeconds) > 0.5 || len(got.Errors) > 0 {
						t.Errorf("it did not play to the end: %+v\n%s", got, g.get(t, space+"manifest/video.mpd").body)
					}
					p.wantRequestsIn(t, g, space, page, nil)
				}
				if !slices.Contains(o.uris(), "/"+video+"/audio/006.m4s") {
					t.Errorf("the origin was asked for %v", o.urisBelow("/"+video+"/"))
				}
			})
		}
	}
}
