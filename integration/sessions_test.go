package integration

import (
	"fmt"
	"net/http"
	"net/url"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/signed-playback/caddy-signed-playback/token"
)

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
		wantVerdict(t, g, folder+session+name, plays)
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
	const ahead = 10 * time.Second // how long the test may be held up
	played, extended := 0, 0
	var late, beyond bool
	for time.Since(begin) < 180*minute {
		g.mustCall(t, http.MethodPost, "stream/sessions/"+list[0].ID, fmt.Sprintf(`{"until":%d}`, time.Now().Add(ahead).Unix()), nil)
		extended++
		for _, name := range []string{"manifest/video.m3u8", "audio/001.m4s"} {
			if res := g.get(t, folder+session+name); res.StatusCode != http.StatusOK {
				t.Fatalf("%s after %s: %d %s", name, time.Since(begin), res.StatusCode, res.reason())
			}
			played++
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
	last := time.Now()
	eventually(t, "the session ends", func() bool { return g.get(t, folder+session+"audio/001.m4s").StatusCode == http.StatusUnauthorized })
	t.Logf("%d files played, the session was extended %d times and ended %s after the last time", played, extended, time.Since(last).Round(time.Second))
}

var (
	sessionEnded   = refusedFor("session_ended")
	sessionLimited = refusedFor("session_limit")

	sessionInManifest = regexp.MustCompile(`~[A-Za-z0-9_-]{32}/`)
)

// serveStream answers as an origin with a multivariant playlist and media.
func serveStream(w http.ResponseWriter, r *http.Request) {
	if strings.HasSuffix(r.URL.Path, ".m3u8") {
		_, _ = w.Write([]byte("#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\nv/1.m3u8\n"))
		return
	}
	w.Header().Set("Content-Type", "video/mp2t")
	_, _ = w.Write(make([]byte, 1000))
}

// streamSite is for the field site of a config: a proxy to such an origin.
func streamSite(t testing.TB) string {
	t.Helper()
	return "reverse_proxy " + startOrigin(t, http.HandlerFunc(serveStream)).addr()
}

// beginSession asks for a manifest and returns the path of a segment below its session, or
// "" and the refusal.
func (g *gateway) beginSession(t testing.TB, compact string) (segment string, got verdict) {
	t.Helper()
	res := g.get(t, "/"+compact+"/master.m3u8")
	if res.StatusCode != http.StatusOK {
		return "", res.verdict()
	}
	session := sessionInManifest.FindString(string(res.body))
	if session == "" {
		t.Fatalf("there is no session in %s", res.body)
	}
	return "/" + compact + "/" + session + "v/1.ts", res.verdict()
}

type sessionView struct {
	ID, UID, Video, Started, LastSeen, Country, Network, UserAgent string
}

func (g *gateway) sessionsOf(t testing.TB, uid string) (list []sessionView) {
	t.Helper()
	g.mustCall(t, http.MethodGet, "stream/sessions?uid="+uid, "", &list)
	return list
}

// Three nodes on one Redis are one gate to a viewer: limits, ends, lists and counts hold over
// all of them, over a kill of a node, and as far as possible without the Redis.
func TestSessionsOfAFleet(t *testing.T) {
	t.Parallel()
	redis := startRedis(t)
	f := startFleet(t, config{app: "sessions on\n" + redis.option(), site: streamSite(t)})
	compact := f.nodes[0].mintToken(t, "demo", `{"uid":"anna","climit":1}`)
	first, _ := f.nodes[0].beginSession(t, compact)
	f.wantEverywhere(t, "a session that moves between nodes", first, plays)
	second, _ := f.nodes[1].beginSession(t, compact)
	f.await(t, "the session that a newer one has replaced", first, sessionEnded)
	f.wantEverywhere(t, "the newer session", second, plays)
	for i, g := range f.nodes {
		eventually(t, fmt.Sprintf("node %d lists the newer session", i+1), func() bool { // a start that redis answers late is told within seconds
			list := g.sessionsOf(t, "anna")
			return len(list) == 1 && list[0].Video == "demo" && list[0].Network == "127.0.0.0/24"
		})
		eventually(t, "one viewer is counted", func() bool { return string(g.get(t, "/"+compact+"/views").body) == `{"liveViewers":1}` })
	}
	f.restart(t, 2)
	f.wantEverywhere(t, "after the kill of a node", second, plays)
	f.wantEverywhere(t, "an ended session after the kill of a node", first, sessionEnded)

	redis.kill()
	f.wantEverywhere(t, "without the redis", second, plays)
	f.wantEverywhere(t, "an ended session without the redis", first, sessionEnded)
	f.awaitLog(t, storeAway) // a node that has not noticed does not say that it is back
	redis.start(t)
	f.awaitLog(t, storeBack)

	other := f.nodes[1].mintToken(t, "demo", `{"uid":"berta"}`)
	third, _ := f.nodes[1].beginSession(t, other)
	var known []sessionView
	eventually(t, "a session that begins as the redis is back is known", func() bool { // node 2 may yet decide alone
		known = f.nodes[0].sessionsOf(t, "berta")
		return len(known) > 0
	})
	f.nodes[0].mustCall(t, http.MethodDelete, "stream/sessions/"+known[0].ID, "", nil)
	f.await(t, "a session that the API has ended", third, sessionEnded)
	f.restart(t, 1)
	f.wantEverywhere(t, "a session that the API has ended, after a restart", third, sessionEnded)

	carla := f.nodes[0].mintToken(t, "demo", `{"uid":"carla","climit":1}`)
	before, _ := f.nodes[0].beginSession(t, carla)
	redis.do(t, "FLUSHALL")
	after, got := f.nodes[2].beginSession(t, carla)
	if got != plays {
		t.Errorf("a session after FLUSHALL: %v", got)
	}
	f.await(t, "the session of another node that it has replaced", before, sessionEnded)
	f.wantEverywhere(t, "the session after FLUSHALL", after, plays)
	f.wantEverywhere(t, "an ended session after FLUSHALL", first, sessionEnded) // node 1 has told it before `before`
}

// A session that is revoked on one node makes room at once, wherever it plays: the viewer need not
// wait for session_timeout. Its player is refused.
func TestRevokedSessionMakesRoom(t *testing.T) {
	t.Parallel()
	f := startFleet(t, config{
		app:  "sessions on\non_session_limit refuse_new\nsession_timeout 1h\n" + startRedis(t).option(),
		site: streamSite(t),
	})
	compact := f.nodes[0].mintToken(t, "demo", `{"uid":"anna","climit":1}`)
	first, _ := f.nodes[0].beginSession(t, compact)
	if _, got := f.nodes[0].beginSession(t, compact); got != sessionLimited {
		t.Fatalf("a second session: %v", got)
	}
	f.nodes[1].revoke(t, fmt.Sprintf(`"session":%q`, f.nodes[0].sessionsOf(t, "anna")[0].ID))
	second := ""
	eventually(t, "another session may begin", func() bool {
		path, got := f.nodes[0].beginSession(t, compact)
		second = path
		return got == plays
	})
	f.await(t, "the revoked session", first, sessionEnded)
	wantVerdict(t, f.nodes[0], second, plays)
}

// The attack: two networks share one link, as long as nobody notices. With on_sharing revoke, the gate refuses both on all
// nodes, also where each node alone sees one network; another viewer plays on.
func TestSharedTokenIsRevoked(t *testing.T) {
	t.Parallel()
	f := startFleet(t, config{global: trusting("127.0.0.1"), app: "sessions on\non_sharing revoke\n" + startRedis(t).option(), site: streamSite(t)})
	path := func(uid string) string { return "/" + f.nodes[0].mintToken(t, "demo", `{"uid":"`+uid+`"}`) + "/v/1.ts" }
	shared, other := path("anna"), path("berta")
	networks := []string{"198.51.100.7", "203.0.113.7"}
	for player := range 6 {
		wantVerdict(t, f.nodes[player%2], shared, plays, "X-Forwarded-For: "+networks[player%2], fmt.Sprint("X-Playback-Session-Id: ", player))
	}
	for _, network := range networks {
		f.await(t, "the shared token", shared, refusedFor("token_revoked"), "X-Forwarded-For: "+network)
		f.wantEverywhere(t, "another viewer", other, plays, "X-Forwarded-For: "+network)
	}
}

// The end of the server tells of each session: in its log, and to the receiver of events. A
// reload, of which the sessions notice nothing, tells of none.
func TestEndsOfSessionsAreTold(t *testing.T) {
	t.Parallel()
	events := make(chan string, 10)
	receiver := serve(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body := make([]byte, r.ContentLength)
		_, _ = r.Body.Read(body)
		events <- r.Header.Get("Webhook-Signature") + " " + string(body)
	}))
	g := start(t, startOrigin(t, nil), config{
		api: withAPI, app: "sessions on\nsession_secret 0123456789abcdef\nsession_events " + receiver.URL, site: streamSite(t),
	})
	compact := g.mintToken(t, "demo", `{"uid":"anna"}`)
	path, _ := g.beginSession(t, compact)
	wantVerdict(t, g, path, plays)
	noError(t, g.load(readText(t, filepath.Join(g.dir, "Caddyfile"))))
	wantVerdict(t, g, path, plays)
	if strings.Contains(g.log.String(), "session ended") {
		t.Error("a reload ends sessions")
	}
	g.stop(t)
	for _, want := range []string{`"msg":"session ended"`, `"uid":"anna"`, `"reason":"stopped"`} {
		if !strings.Contains(g.log.String(), want) {
			t.Errorf("the log lacks %s", want)
		}
	}
	select {
	case event := <-events:
		if !strings.HasPrefix(event, "time=") || strings.Contains(event, `"bytes":0`) || !strings.Contains(event, `"video":"demo"`) {
			t.Errorf("event %s", event)
		}
	case <-time.After(startTimeout):
		t.Error("no event comes")
	}
}
