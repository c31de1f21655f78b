package integration

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

var (
	sessionEnded   = refusedFor("session_ended")
	sessionLimited = refusedFor("session_limit")

	sessionInManifest = regexp.MustCompile(`~[A-Za-z0-9_-]{32}/`)
)

// sessionOrigin serves a multivariant playlist and media.
func sessionOrigin(t testing.TB) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, ".m3u8") {
			_, _ = w.Write([]byte("#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\nv/1.m3u8\n"))
			return
		}
		w.Header().Set("Content-Type", "video/mp2t")
		_, _ = w.Write(make([]byte, 1000))
	}))
	t.Cleanup(s.Close)
	return s
}

// startSessions starts a fleet with sessions on.
func startSessions(t testing.TB, app string) *fleet {
	t.Helper()
	return startFleet(t, config{app: "sessions on\n" + app, site: "reverse_proxy " + strings.TrimPrefix(sessionOrigin(t).URL, "http://")})
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
	f := startSessions(t, redis.option())
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
	for name, store := range map[string]func() config{
		"redis": func() config { return config{app: startRedis(t).option()} },
		"files": func() config { return config{global: sharedFolder(t.TempDir())} },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := store()
			c.app, c.site = c.app+"\nsessions on\non_session_limit refuse_new\nsession_timeout 1h", "reverse_proxy "+strings.TrimPrefix(sessionOrigin(t).URL, "http://")
			f := startFleet(t, c)
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
			if got := f.nodes[0].get(t, second).verdict(); got != plays {
				t.Errorf("the session after it: %v", got)
			}
		})
	}
}

// The attack: two networks share one link, as long as nobody notices. With on_sharing revoke, the gate refuses both on all
// nodes, also where each node alone sees one network; another viewer plays on.
func TestSharedTokenIsRevoked(t *testing.T) {
	t.Parallel()
	c := config{
		global: trusting("127.0.0.1"), api: withAPI, app: "sessions on\non_sharing revoke",
		site: "reverse_proxy " + strings.TrimPrefix(sessionOrigin(t).URL, "http://"),
	}
	inFleet := c
	inFleet.app += "\n" + startRedis(t).option()
	for name, f := range map[string]*fleet{"one node": {nodes: []*gateway{start(t, startOrigin(t, nil), c)}}, "fleet": startFleet(t, inFleet)} {
		path := func(uid string) string { return "/" + f.nodes[0].mintToken(t, "demo", `{"uid":"`+uid+`"}`) + "/v/1.ts" }
		shared, other := path("anna"), path("berta")
		networks := []string{"198.51.100.7", "203.0.113.7"}
		for player := range 6 {
			g := f.nodes[player%min(len(networks), len(f.nodes))]
			headers := []string{"X-Forwarded-For: " + networks[player%2], fmt.Sprint("X-Playback-Session-Id: ", player)}
			if got := g.get(t, shared, headers...).verdict(); got != plays {
				t.Errorf("%s: %v", name, got)
			}
		}
		for _, network := range networks {
			f.await(t, name+": the shared token", shared, refusedFor("token_revoked"), "X-Forwarded-For: "+network)
			f.wantEverywhere(t, name+": another viewer", other, plays, "X-Forwarded-For: "+network)
		}
	}
}

// The end of a session whose node was killed is in the log of one of the others.
func TestEndOfASessionOfAKilledNode(t *testing.T) {
	t.Parallel()
	f := startSessions(t, "session_timeout 15s\n"+startRedis(t).option())
	path, _ := f.nodes[0].beginSession(t, f.nodes[0].mintToken(t, "demo", `{"uid":"anna"}`))
	if got := f.nodes[0].get(t, path).verdict(); got != plays {
		t.Fatalf("%v", got)
	}
	f.nodes[0].kill(t)
	told := func() (times int) {
		for _, g := range f.nodes {
			times += strings.Count(g.log.String(), `"msg":"session ended"`)
		}
		return times
	}
	eventually(t, "the end is told", func() bool { return told() > 0 })
	if log := f.nodes[1].log.String() + f.nodes[2].log.String(); told() != 1 || !strings.Contains(log, `"uid":"anna"`) || !strings.Contains(log, `"reason":"timeout"`) {
		t.Errorf("the end is told %d times", told())
	}
}

// Viewers who race for the last place on all nodes get it once.
func TestRaceForTheLastSession(t *testing.T) {
	t.Parallel()
	f := startSessions(t, "on_session_limit refuse_new\n"+startRedis(t).option())
	const limit = 2
	compact := f.nodes[0].mintToken(t, "demo", fmt.Sprintf(`{"uid":"anna","climit":%d}`, limit))
	began := make(chan verdict)
	const starts = 30
	for n := range starts {
		go func() {
			_, got := f.nodes[n%len(f.nodes)].beginSession(t, compact)
			began <- got
		}()
	}
	outcomes := make(map[verdict]int)
	for range starts {
		outcomes[<-began]++
	}
	if outcomes[plays] != limit || outcomes[sessionLimited] != starts-limit {
		t.Errorf("%v, want %d sessions", outcomes, limit)
	}
	if list := f.nodes[1].sessionsOf(t, "anna"); len(list) != limit {
		t.Errorf("%d sessions are listed", len(list))
	}
}

// The end of the server tells of each session: in its log, and to the receiver of events. A
// reload, of which the sessions notice nothing, tells of none.
func TestEndsOfSessionsAreTold(t *testing.T) {
	t.Parallel()
	events := make(chan string, 10)
	receiver := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body := make([]byte, r.ContentLength)
		_, _ = r.Body.Read(body)
		events <- r.Header.Get("Webhook-Signature") + " " + string(body)
	}))
	defer receiver.Close()
	origin, admin := startOrigin(t, nil), freeAddr(t)
	g := start(t, origin, config{
		global: "admin " + admin,
		api:    withAPI, app: "sessions on\nsession_secret 0123456789abcdef\nsession_events " + receiver.URL, site: "reverse_proxy " + strings.TrimPrefix(sessionOrigin(t).URL, "http://"),
	})
	compact := g.mintToken(t, "demo", `{"uid":"anna"}`)
	path, _ := g.beginSession(t, compact)
	if got := g.get(t, path).verdict(); got != plays {
		t.Fatalf("%v", got)
	}
	caddyfile, err := os.ReadFile(filepath.Join(g.dir, "Caddyfile"))
	if err == nil {
		err = g.load(admin, string(caddyfile))
	}
	if got := g.get(t, path).verdict(); err != nil || got != plays || strings.Contains(g.log.String(), "session ended") {
		t.Errorf("after a reload: %v, %v", got, err)
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
