package integration

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/signed-playback/caddy-signed-playback/token"
)

// vlc plays what is at an address to its end, as another user than root.
func vlc(t *testing.T, address string) outcome {
	t.Helper()
	home := t.TempDir()
	if err := os.Chmod(home, 0o777); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, tool(t, "cvlc"), "-I", "dummy", "-q", "--vout=dummy", "--aout=dummy", "--rate=4", "--play-and-exit", address)
	cmd.Dir, cmd.Env = "/", append(os.Environ(), "HOME="+home, "XDG_RUNTIME_DIR="+home)
	if os.Getuid() == 0 {
		const nobody = 65534
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("vlc: %v: %s", err, out)
	}
	return outcome{stderr: string(out)}
}

// Every player plays to the end below a session, from the page of another site, and is
// counted once.
func TestPlayersHaveOneSession(t *testing.T) {
	t.Parallel()
	o := startWrittenMedia(t)
	g := start(t, o.origin, config{app: "sessions on", gate: "manifest_hosts " + o.host, api: withAPI})
	page := startPlayersPage(t)
	for i, tc := range []struct{ how, way, suffix, segments string }{
		{"native", "absolute", "manifest/video.m3u8", "audio/%03d.m4s"},
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
			address := g.url("/" + mint(t, tc.way, func(c *token.Claims) { c.Viewer, c.SessionLimit = viewer, 1 }) + "/" + tc.suffix)
			switch tc.how {
			case "ffmpeg":
				wantDecoded(t, address, clipSeconds)
			case "vlc":
				vlc(t, address)
			default:
				p := openTab(t)
				p.open(t, page)
				got := play(t, p, tc.how, address, 8, 0, "{}")
				if got.End != "ended" || len(got.Errors) > 0 {
					t.Errorf("it did not play to the end: %+v", got)
				}
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
}

// What AVPlayer and Media3 send, as their requests are recorded, plays through a session and is
// counted once.
func TestScriptedPlayersHaveOneSession(t *testing.T) {
	t.Parallel()
	o := startWrittenMedia(t)
	g := start(t, o.origin, config{app: "sessions on", gate: "manifest_hosts " + o.host, api: withAPI})
	for name, header := range map[string][]string{
		"avplayer": {
			"User-Agent: AppleCoreMedia/1.0.0.21F90 (iPhone; U; CPU OS 17_5_1 like Mac OS X; en_us)", "Accept: */*", "Accept-Encoding: identity",
			"X-Playback-Session-Id: 6B2C1F84-55B5-4B0C-9F5E-6C0C6D6B0F0A", "Accept-Language: en-US,en;q=0.9",
		},
		"media3": {"User-Agent: AndroidXMedia3/1.8.0 (Linux;Android 14) ExoPlayerLib/1.8.0", "Accept-Encoding: identity"},
		"tv":     {"User-Agent: Mozilla/5.0 (Web0S; Linux/SmartTV) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/94.0.4606.128 Safari/537.36"},
	} {
		t.Run(name, func(t *testing.T) {
			folder := "/" + mint(t, "rooted", func(c *token.Claims) { c.Viewer, c.SessionLimit = name, 1 }) + "/manifest/"
			requests, queue := 0, []string{folder + "video.m3u8"}
			for ; len(queue) > 0; requests++ {
				path := queue[0]
				queue = queue[1:]
				res := g.get(t, path, header...)
				if res.StatusCode != http.StatusOK {
					t.Fatalf("%s: %d", path, res.StatusCode)
				}
				if !strings.HasPrefix(string(res.body), "#EXTM3U") {
					continue
				}
				for line := range strings.Lines(string(res.body)) {
					uri := strings.TrimSpace(line)
					if _, quoted, ok := strings.Cut(uri, `URI="`); ok {
						uri, _, _ = strings.Cut(quoted, `"`)
					}
					if uri != "" && uri[0] != '#' {
						base := must(url.Parse(path))(t)
						queue = append(queue, must(base.Parse(uri))(t).RequestURI())
					}
				}
			}
			if counted := g.sessionsOf(t, name); len(counted) != 1 || requests < 5 {
				t.Errorf("%d requests are counted as %d sessions: %v", requests, len(counted), counted)
			}
		})
	}
}

// A viewer pauses a film past the exp of the token and the end of the session, while the server is killed and
// starts again. The film goes on, because the back end has extended the session, and for this player only.
func TestPausePastTheEndOfTheToken(t *testing.T) {
	t.Parallel()
	o := startWrittenMedia(t)
	c := config{app: "sessions on\nsession_timeout 15s\nmax_session 1h", gate: "manifest_hosts " + o.host, api: withAPI}
	g := start(t, o.origin, c)
	exp := time.Now().Add(20 * time.Second)
	folder := "/" + mint(t, "rooted", func(c *token.Claims) { c.Viewer, c.ExpiresAt = "fan", exp }) + "/"
	session := sessionInManifest.FindString(string(g.get(t, folder+"manifest/video.m3u8").body))
	list := g.sessionsOf(t, "fan")
	if session == "" || len(list) != 1 {
		t.Fatalf("the session is %q, and %v are counted", session, list)
	}
	g.mustCall(t, http.MethodPost, "stream/sessions/"+list[0].ID, fmt.Sprintf(`{"until":%d}`, exp.Add(time.Hour).Unix()), nil)
	eventually(t, "the session has ended", func() bool { return len(g.sessionsOf(t, "fan")) == 0 })
	g.kill(t)
	g = startAgain(t, o.origin, g, c)
	eventually(t, "the token expires for others", func() bool {
		return g.get(t, folder+"views").verdict() == refusedFor("token_expired")
	})
	for _, name := range []string{"manifest/video.m3u8", "audio/001.m4s"} {
		if got := g.get(t, folder+session+name).verdict(); got != plays {
			t.Errorf("%s after the pause: %v", name, got)
		}
	}
	if list := g.sessionsOf(t, "fan"); len(list) != 1 {
		t.Errorf("after the pause, %v are counted", list)
	}
}

// A live stream of which nobody may begin to watch after startBy, with short tokens, plays on as long
// as the back end extends its session, and stops when it does not. Three hours are 18 seconds here.
func TestLongLiveStream(t *testing.T) {
	t.Parallel()
	o := startWrittenMedia(t)
	g := start(t, o.origin, config{app: "sessions on\nmax_session 1h", gate: "manifest_hosts " + o.host, api: withAPI})
	const minute = time.Second / 10
	begin := time.Now().Truncate(time.Second).Add(time.Second)
	folder := "/" + mint(t, "rooted", func(c *token.Claims) {
		c.Viewer, c.ExpiresAt, c.StartBy = "fan", begin.Add(60*minute), begin.Add(20*minute)
	}) + "/"
	session := sessionInManifest.FindString(string(g.get(t, folder+"manifest/video.m3u8").body))
	list := g.sessionsOf(t, "fan")
	if session == "" || len(list) != 1 {
		t.Fatalf("the session is %q, and %v are counted", session, list)
	}
	var late, beyond bool
	for time.Since(begin) < 180*minute {
		if until := time.Now().Add(30 * minute); until.After(begin.Add(50 * minute)) {
			g.mustCall(t, http.MethodPost, "stream/sessions/"+list[0].ID, fmt.Sprintf(`{"until":%d}`, until.Unix()), nil)
		}
		for _, name := range []string{"manifest/video.m3u8", "audio/001.m4s"} {
			if res := g.get(t, folder+session+name); res.StatusCode != http.StatusOK {
				t.Fatalf("%s after %s: %d %s", name, time.Since(begin), res.StatusCode, res.reason())
			}
		}
		if time.Since(begin) > 21*minute {
			late = g.get(t, folder+"manifest/video.m3u8").StatusCode == http.StatusUnauthorized
		}
		if time.Since(begin) > 61*minute {
			beyond = g.get(t, folder+"audio/001.m4s").StatusCode == http.StatusUnauthorized
		}
		<-time.After(minute)
	}
	if !late || !beyond {
		t.Errorf("a late start is refused: %t; the token ends for others: %t", late, beyond)
	}
	eventually(t, "the session ends", func() bool { return g.get(t, folder+session+"audio/001.m4s").StatusCode == http.StatusUnauthorized })
}
