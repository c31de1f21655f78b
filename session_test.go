package signedplayback

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/signed-playback/caddy-signed-playback/internal/mediatype"
	"github.com/signed-playback/caddy-signed-playback/internal/sessions"
	"github.com/signed-playback/caddy-signed-playback/token"
)

const testSecret = "a secret of the tests of sessions"

// sessionApp has sessions on. The clock of the tests is in its tokens only: sessions have the
// real one.
func sessionApp(change func(*App)) *App {
	app := &App{
		SessionOptions: SessionOptions{Sessions: new(true), SessionSecret: testSecret},
		Videos:         map[string]VideoSettings{"open": {RequireSignedURLs: new(false)}},
	}
	if change != nil {
		change(app)
	}
	return app
}

// files is the origin of a gate: bodies by the end of the path.
type files map[string]string

const (
	multivariant = "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\nv/1.m3u8\n"
	livePlaylist = "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXT-X-MEDIA-SEQUENCE:7\n#EXTINF:2,\n7.ts\n"
	wholeVideo   = livePlaylist + "#EXT-X-ENDLIST\n"
	simpleMPD    = `<MPD type="dynamic"><Period><SegmentTemplate media="$Number$.m4s"/></Period></MPD>`
)

var testFiles = files{
	"master.m3u8": multivariant, "1.m3u8": livePlaylist, "live.m3u8": livePlaylist, "vod.m3u8": wholeVideo, "stream.mpd": simpleMPD, "stream": multivariant,
	"7.ts": "G\x00\x00\x10", "1.m4s": "\x00\x00\x00\x18moof", "poster.jpg": "\xff\xd8\xff", "subs.vtt": "WEBVTT\n", "data": "\x00\x01",
}

// get sends a request through a gate before these files.
func (f files) get(t testing.TB, g *Gate, r *http.Request) answer {
	t.Helper()
	return exchange(t, g, r, func(w http.ResponseWriter, r *http.Request) error {
		name := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
		if ending := mediatype.Ending(name); ending == "m3u8" || ending == "mpd" {
			w.Header().Set("Cache-Control", "public, max-age=60")
			w.Header().Set("Etag", `"1"`)
		}
		_, err := io.WriteString(w, f[name])
		return err
	})
}

var sessionInURI = regexp.MustCompile(`~([A-Za-z0-9_-]{32})/`)

// begin asks for a manifest and returns the session in it.
func begin(t testing.TB, g *Gate, link string) (session string) {
	t.Helper()
	a := testFiles.get(t, g, requestFor(t, link, nil))
	found := sessionInURI.FindStringSubmatch(a.body)
	if found == nil {
		t.Fatalf("%d %s: no session in %q", a.status, a.text, a.body)
	}
	return found[1]
}

func sessionToken(change func(*token.Claims)) string {
	return signed(func(c *token.Claims) {
		c.Viewer = "viewer"
		if change != nil {
			change(c)
		}
	})
}

// runningSessions returns how many sessions a gate counts.
func runningSessions(g *Gate) int { return g.app.state.tracker.Count() }

// The manifests with which players begin lead below a session of their own, and no cache keeps
// them. All others stay as they are.
func TestManifestsBeginSessions(t *testing.T) {
	t.Parallel()
	g := newGate(t, sessionApp(nil), new(Gate))
	for _, first := range []string{plainToken(), "open"} {
		for name, want := range map[string]string{
			"master.m3u8": "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n~S/v/1.m3u8\n",
			"a/vod.m3u8":  strings.ReplaceAll(wholeVideo, "7.ts", "../~S/a/7.ts"),
			"stream":      "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n~S/v/1.m3u8\n",
			"stream.mpd": `<MPD type="dynamic"><BaseURL>~S/</BaseURL>` + "\n<Location>~S/stream.mpd</Location>\n" +
				`<Period><SegmentTemplate media="$Number$.m4s"/></Period></MPD>`,
			"live.m3u8": livePlaylist,
		} {
			link := "/" + first + "/" + name
			a := testFiles.get(t, g, requestFor(t, link, nil))
			session := "S"
			if found := sessionInURI.FindStringSubmatch(a.body); found != nil {
				session = found[1]
			}
			if got := strings.ReplaceAll(a.body, session, "S"); got != want {
				t.Errorf("%s: %q, want %q", name, got, want)
			}
			if session == "S" {
				continue
			}
			if caching := a.header["Cache-Control"]; len(caching) != 1 || caching[0] != "no-store" || a.header["Etag"] != nil {
				t.Errorf("%s of one viewer is cached for others: %q", name, a.header)
			}
			if again := begin(t, g, link); again == session {
				t.Errorf("%s: two viewers have one session", name)
			}
			// Below the session, everything is as without it.
			below := testFiles.get(t, g, requestFor(t, "/"+first+"/~"+session+"/"+name, nil))
			if below.body != testFiles[name[strings.LastIndexByte(name, '/')+1:]] || len(below.origin) != 1 || below.origin[0].URL.Path != a.origin[0].URL.Path {
				t.Errorf("%s below the session: %d %q", name, below.status, below.body)
			}
			head := testFiles.get(t, g, requestFor(t, link, method(http.MethodHead)))
			if got := head.header.Get("Content-Length"); name != "stream" && got != fmt.Sprint(len(a.body)) {
				t.Errorf("%s: HEAD says %s bytes, want %d", name, got, len(a.body))
			}
		}
	}
}

// TestSessionsInPaths has one row for each way to misuse a session, and for the spellings that
// some server could take for one. Package sessions tests all forged ones.
func TestSessionsInPaths(t *testing.T) {
	t.Parallel()
	g := newGate(t, sessionApp(nil), new(Gate))
	other := sessionToken(func(c *token.Claims) { c.ID = "j2" })
	mine, theirs, open := begin(t, g, "/"+plainToken()+"/master.m3u8"), begin(t, g, "/"+other+"/master.m3u8"), begin(t, g, "/open/master.m3u8")
	again := begin(t, g, "/"+plainToken()+"/master.m3u8")
	for _, tc := range []struct{ attack, target, want string }{
		{"", "/T/~" + mine + "/v/7.ts", "/demo/v/7.ts"},
		{"", "/T/~" + mine + "/~" + mine + "/7.ts", "/demo/7.ts"}, // see cutSession
		{"", "/T/~" + mine + "/~short/7.ts", "/demo/~short/7.ts"},
		{"", "/T/~alice/7.ts", "/demo/~alice/7.ts"},
		{"", "/T/a/~" + mine + "/7.ts", "/demo/a/~" + mine + "/7.ts"},
		{"", "/open/~" + open + "/7.ts", "/open/7.ts"},
		{"replayed with another token", "/T/~" + theirs + "/7.ts", "session_invalid"},
		{"exchanged between a token and an open video", "/T/~" + open + "/7.ts", "session_invalid"},
		{"exchanged between an open video and a token", "/open/~" + mine + "/7.ts", "session_invalid"},
		{"of one playback and then another", "/T/~" + mine + "/~" + again + "/7.ts", "session_invalid"},
		{"of another token below one's own", "/T/~" + mine + "/~" + theirs + "/7.ts", "session_invalid"},
		{"forged", "/T/~" + strings.Repeat("A", 32) + "/7.ts", "session_invalid"},
		{"with an escaped tilde", "/T/%7E" + mine + "/7.ts", "session_invalid"},
		{"with an escaped letter", fmt.Sprintf("/T/~%%%02X%s/7.ts", mine[0], mine[1:]), "session_invalid"},
		{"a file of such a name", "/T/~" + strings.Repeat("A", 32), "session_invalid"},
		{"a token in its place", "/T/~" + plainToken() + "/7.ts", "session_invalid"},
		{"dots behind it", "/T/~" + mine + "/../7.ts", "path_invalid"},
	} {
		a := testFiles.get(t, g, requestFor(t, strings.Replace(tc.target, "/T/", "/"+plainToken()+"/", 1), nil))
		got := a.reason
		if len(a.origin) == 1 {
			got = a.origin[0].URL.Path
		}
		if got != tc.want {
			t.Errorf("%s %s = %q %s, want %q", tc.attack, withoutToken(tc.target), got, a.text, tc.want)
		}
		if strings.Contains(a.text, mine) {
			t.Errorf("%s: the error contains the session: %s", tc.attack, a.text)
		}
	}
	off := newGate(t, &App{}, new(Gate))
	if a := testFiles.get(t, off, requestFor(t, "/"+plainToken()+"/~"+mine+"/7.ts", nil)); len(a.origin) != 1 || a.origin[0].URL.Path != "/demo/~"+mine+"/7.ts" {
		t.Errorf("with sessions off, a folder of such a name is refused: %d %s", a.status, a.text)
	}
}

// A path is one session whatever is asked for and however often, and a request without a path of
// a session is told apart by what its player says, else by its network and user agent.
func TestSessionsAreCountedOnce(t *testing.T) {
	t.Parallel()
	type request struct {
		target string // below the token
		change func(*http.Request)
	}
	manifest := request{"master.m3u8", nil}
	segment := func(change func(*http.Request)) request { return request{"7.ts", change} }
	cmcd := func(text string) request { return segment(with("Cmcd-Session", text)) }
	agent := func(text string) request { return segment(with("User-Agent", text)) }
	for name, tc := range map[string]struct {
		requests []request
		want     int
	}{
		"a player below its session":              {[]request{manifest, {"~S/v/1.m3u8", nil}, {"~S/7.ts", nil}, {"~S/7.ts", from("2001:db8::1")}}, 1},
		"two manifests are two players":           {[]request{manifest, {"~S/7.ts", nil}, manifest}, 2},
		"a live playlist that is asked for alone": {[]request{{"live.m3u8", nil}, {"live.m3u8", nil}, segment(nil), segment(nil)}, 1},
		"a film after a live playlist":            {[]request{{"live.m3u8", nil}, {"vod.m3u8", nil}}, 2},
		"a HEAD and a preflight begin nothing":    {[]request{{"master.m3u8", method("HEAD")}, {"7.ts", method("HEAD")}, {"master.m3u8", method("OPTIONS")}}, 0},
		"pictures begin nothing":                  {[]request{{"thumbnails/poster.jpg", nil}}, 0},
		"a file of which only the content tells":  {[]request{{"data", nil}, segment(nil)}, 1},
		"what a player calls its session":         {[]request{segment(with("X-Playback-Session-Id", "a")), segment(with("X-Playback-Session-Id", "a")), segment(with("X-Playback-Session-Id", "b"))}, 2},
		"CMCD in headers":                         {[]request{cmcd(`sid="a"`), cmcd(`cid="x",sid="a",v=1`), cmcd(`sid="b"`)}, 2},
		"CMCD in the query":                       {[]request{{`7.ts?CMCD=sid%3D%22a%22`, nil}, {`7.ts?x=1&CMCD=br%3D100%2Csid%3D%22a%22`, nil}, cmcd(`sid="a"`)}, 1},
		"one network and one user agent":          {[]request{agent("a"), segment(func(r *http.Request) { with("User-Agent", "a")(r); from("203.0.113.200")(r) })}, 1},
		"two user agents":                         {[]request{agent("a"), agent("b"), agent("a")}, 2},
		"a user agent like another's session":     {[]request{agent("a"), segment(with("X-Playback-Session-Id", "a")), agent("a")}, 2},
		"two networks":                            {[]request{segment(from("192.0.2.1")), segment(from("198.51.100.1")), segment(from("2001:db8:1::1")), segment(from("2001:db8:1:ff::1"))}, 3},
	} {
		for _, first := range []string{sessionToken(nil), "open"} {
			g, session := newGate(t, sessionApp(nil), new(Gate)), ""
			for _, r := range tc.requests {
				a := testFiles.get(t, g, requestFor(t, "/"+first+"/"+strings.ReplaceAll(r.target, "~S", "~"+session), r.change))
				if a.reason != "" {
					t.Errorf("%s: %s is refused: %s", name, r.target, a.text)
				}
				if found := sessionInURI.FindStringSubmatch(a.body); found != nil {
					session = found[1]
				}
			}
			if got := runningSessions(g); got != tc.want {
				t.Errorf("%s with %.4s…: %d sessions, want %d", name, first, got, tc.want)
			}
		}
	}
}

// The players of a live playlist stay in their session when the stream ends, although limits and startBy
// would refuse another one. Other clients get a session.
func TestLivePlaylistEnds(t *testing.T) {
	t.Parallel()
	g, files := newGate(t, sessionApp(func(a *App) { a.OnSessionLimit = "refuse_new" }), new(Gate)), maps.Clone(testFiles)
	target := "/" + sessionToken(func(c *token.Claims) { c.SessionLimit = 2 }) + "/live.m3u8"
	for _, playlist := range []string{livePlaylist, livePlaylist, wholeVideo, wholeVideo} {
		files["live.m3u8"] = playlist
		if a := files.get(t, g, requestFor(t, target, nil)); a.body != playlist {
			t.Errorf("%q %s, want %q", a.body, a.text, playlist)
		}
	}
	if got := runningSessions(g); got != 1 {
		t.Errorf("%d sessions run", got)
	}
	if a := files.get(t, g, requestFor(t, target, with("User-Agent", "another"))); !sessionInURI.MatchString(a.body) {
		t.Errorf("another client gets %q", a.body)
	}
}

// A limit holds for all sessions of a viewer, the smaller one of two.
func TestSessionLimits(t *testing.T) {
	t.Parallel()
	claim := func(limit int) string { return sessionToken(func(c *token.Claims) { c.SessionLimit = limit }) }
	for name, tc := range map[string]struct {
		limit, max int
		refuseNew  bool
		begun      int // how many sessions begin
		want       int
	}{
		"no limit":                {0, 0, false, 3, 3},
		"of the token":            {2, 0, true, 2, 2},
		"of the config":           {0, 1, true, 1, 1},
		"the token's is smaller":  {1, 2, true, 1, 1},
		"the config's is smaller": {2, 1, true, 1, 1},
		"the oldest ends":         {1, 0, false, 3, 1},
	} {
		g := newGate(t, sessionApp(func(a *App) {
			a.MaxSessions = tc.max
			if tc.refuseNew {
				a.OnSessionLimit = "refuse_new"
			}
		}), new(Gate))
		link, begun, first := "/"+claim(tc.limit)+"/", 0, ""
		for range 3 {
			a := testFiles.get(t, g, requestFor(t, link+"master.m3u8", nil))
			if a.reason == "" {
				begun++
			} else if wantRefusal(t, requestFor(t, link+"master.m3u8", nil), ask(t, g, requestFor(t, link+"master.m3u8", nil)), "session_limit"); a.reason != "session_limit" {
				t.Errorf("%s: %s", name, a.text)
			}
			if found := sessionInURI.FindStringSubmatch(a.body); found != nil && first == "" {
				first = found[1]
			}
		}
		if begun != tc.begun || runningSessions(g) != tc.want {
			t.Errorf("%s: %d sessions began and %d run, want %d and %d", name, begun, runningSessions(g), tc.begun, tc.want)
		}
		want := ""
		if tc.want < begun {
			want = "session_ended"
		}
		for _, target := range []string{"~" + first + "/7.ts", "~" + first + "/v/live.m3u8"} {
			if a := testFiles.get(t, g, requestFor(t, link+target, nil)); a.reason != want {
				t.Errorf("%s: the first session gets %q, want %q", name, a.reason, want)
			}
		}
	}
}

// In report-only mode, what begins too late plays, also if only the response tells that it begins.
func TestStartByOnlyReports(t *testing.T) {
	t.Parallel()
	link := "/" + sessionToken(func(c *token.Claims) { c.StartBy = testTime }) + "/"
	for _, app := range []*App{sessionApp(nil), new(App)} {
		app.ReportOnly = []string{"sessions"}
		g := newGate(t, app, new(Gate))
		for _, name := range []string{"master.m3u8", "vod.m3u8", "live.m3u8", "stream", "7.ts"} {
			if a := testFiles.get(t, g, requestFor(t, link+name, nil)); a.reason != "" || len(a.origin) != 1 || a.body == "" {
				t.Errorf("%s: %d %s %q", name, a.status, a.text, a.body)
			}
		}
	}
}

// startBy ends the beginning of sessions and not those that run; with sessions off, it ends
// manifests.
func TestStartBy(t *testing.T) {
	t.Parallel()
	on, off := newGate(t, sessionApp(nil), new(Gate)), newGate(t, new(App), new(Gate))
	for i, tc := range []struct {
		g          *Gate
		target     string
		at         time.Duration
		want       string
		runsBefore bool // a request without a session in its path has begun one
	}{
		{on, "master.m3u8", time.Minute - time.Second, "", false},
		{on, "master.m3u8", time.Minute, "start_by_passed", false},
		{on, "live.m3u8", time.Minute, "start_by_passed", false},
		{on, "stream", time.Minute, "start_by_passed", false},
		{on, "7.ts", time.Minute, "start_by_passed", false},
		{on, "~S/master.m3u8", time.Hour - time.Second, "", false},
		{on, "~S/7.ts", time.Hour - time.Second, "", false},
		{on, "~S/7.ts", time.Hour, "token_expired", false},
		{on, "live.m3u8", time.Minute, "", true},
		{on, "7.ts", time.Minute, "", true},
		{on, "master.m3u8", time.Minute, "start_by_passed", true},
		{on, "thumbnails/poster.jpg", time.Minute, "", false},
		{off, "master.m3u8", time.Minute - time.Second, "", false},
		{off, "master.m3u8", time.Minute, "start_by_passed", false},
		{off, "live.m3u8", time.Minute, "start_by_passed", false},
		{off, "stream", time.Minute, "start_by_passed", false},
		{off, "7.ts", time.Minute, "", false},
	} {
		g, now := tc.g, testTime
		g.app.now = func() time.Time { return now }
		token := sessionToken(func(c *token.Claims) { c.StartBy, c.ID = testTime.Add(time.Minute), fmt.Sprint(i) })
		target := tc.target
		if strings.Contains(target, "~S") {
			target = strings.ReplaceAll(target, "~S", "~"+begin(t, g, "/"+token+"/master.m3u8"))
		}
		if tc.runsBefore {
			testFiles.get(t, g, requestFor(t, "/"+token+"/7.ts", nil))
		}
		now = now.Add(tc.at)
		a := testFiles.get(t, g, requestFor(t, "/"+token+"/"+target, nil))
		if a.reason != tc.want {
			t.Errorf("%s after %s: %q %s, want %q", tc.target, tc.at, a.reason, a.text, tc.want)
		}
		if tc.want != "" && len(a.origin) > 0 && tc.target != "stream" && !tc.runsBefore {
			t.Errorf("%s after %s is refused, and the origin was asked", tc.target, tc.at)
		}
	}
}

// An extended session plays beyond exp, playlists included, and nothing else does.
func TestExtendedSession(t *testing.T) {
	t.Parallel()
	g, now := newGate(t, sessionApp(func(a *App) { a.MaxSession = caddy.Duration(time.Hour) }), new(Gate)), testTime
	g.app.now = func() time.Time { return now }
	link := "/" + sessionToken(nil) + "/"
	extended, other := begin(t, g, link+"master.m3u8"), begin(t, g, link+"master.m3u8")
	key, _ := sessions.KeyIn(extended)
	g.app.state.Start()
	tooLong := begin(t, g, link+"master.m3u8")
	keyTooLong, _ := sessions.KeyIn(tooLong)
	for key, until := range map[sessions.Key]time.Duration{key: 2 * time.Hour, keyTooLong: 9 * time.Hour} {
		if err := g.app.state.Extend(t.Context(), key.ID().String(), testTime.Add(until)); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct {
		target string
		at     time.Duration
		want   string
	}{
		{"~E/7.ts", time.Hour - time.Second, ""},
		{"~E/7.ts", time.Hour, ""},
		{"~E/v/live.m3u8", 2*time.Hour - time.Second, ""},
		{"~E/stream.mpd", 2*time.Hour - time.Second, ""},
		{"~E/7.ts", 2 * time.Hour, "token_expired"},
		{"~O/7.ts", time.Hour, "token_expired"},
		{"~L/7.ts", 2*time.Hour - time.Second, ""},
		{"~L/7.ts", 2 * time.Hour, "token_expired"}, // an extension longer than max_session, as a renewed token or an earlier config made it
		{"7.ts", time.Hour, "token_expired"},
		{"master.m3u8", time.Hour, "token_expired"},
		{"~" + strings.Repeat("A", 32) + "/7.ts", time.Hour, "token_expired"},
	} {
		now = testTime.Add(tc.at)
		a := testFiles.get(t, g, requestFor(t, link+strings.NewReplacer("~E", "~"+extended, "~O", "~"+other, "~L", "~"+tooLong).Replace(tc.target), nil))
		if a.reason != tc.want {
			t.Errorf("%s after %s: %q %s, want %q", tc.target, tc.at, a.reason, a.text, tc.want)
		}
		if tc.want == "" && !strings.HasPrefix(a.header.Get("Cache-Control"), "private") {
			t.Errorf("%s after %s: Cache-Control %q", tc.target, tc.at, a.header.Get("Cache-Control"))
		}
	}
}

// A new token of the same video and viewer takes a session over, which is counted once, and lets
// the old URLs play on within max_session.
func TestSessionIsTakenOver(t *testing.T) {
	t.Parallel()
	long := func(c *token.Claims) { c.ExpiresAt, c.ID = testTime.Add(5*time.Hour), "j2" }
	for name, tc := range map[string]struct {
		maxSession time.Duration
		next       string
		method     string
		reason     string
		until      time.Duration // of the old URLs
	}{
		"without max_session":             {0, sessionToken(long), "GET", "", time.Hour},
		"within max_session":              {8 * time.Hour, sessionToken(long), "GET", "", 5 * time.Hour},
		"beyond max_session":              {2 * time.Hour, sessionToken(long), "GET", "", 3 * time.Hour},
		"of another viewer":               {8 * time.Hour, sessionToken(func(c *token.Claims) { long(c); c.Viewer = "other" }), "GET", "session_invalid", time.Hour},
		"of no viewer":                    {8 * time.Hour, sessionToken(func(c *token.Claims) { long(c); c.Viewer = "" }), "GET", "session_invalid", time.Hour},
		"of another video":                {8 * time.Hour, sessionToken(func(c *token.Claims) { long(c); c.VideoID = "other" }), "GET", "session_invalid", time.Hour},
		"of a token that has expired":     {8 * time.Hour, sessionToken(func(c *token.Claims) { long(c); c.ExpiresAt = testTime }), "GET", "token_expired", time.Hour},
		"by a token with a bad signature": {8 * time.Hour, sessionToken(long) + "A", "GET", "signature_invalid", time.Hour},
		"by an open video":                {8 * time.Hour, "open", "GET", "session_invalid", time.Hour},
		"by a preflight":                  {8 * time.Hour, sessionToken(long), "OPTIONS", "", time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g, now := newGate(t, sessionApp(func(a *App) { a.MaxSession = caddy.Duration(tc.maxSession) }), new(Gate)), testTime
			g.app.now = func() time.Time { return now }
			g.app.state.Start()
			old := "/" + sessionToken(nil)
			session := begin(t, g, old+"/master.m3u8")
			testFiles.get(t, g, requestFor(t, old+"/~"+session+"/7.ts", nil))
			a := testFiles.get(t, g, requestFor(t, "/"+tc.next+"/~"+session+"/renew", method(tc.method)))
			if a.reason != tc.reason || len(a.origin) > 0 {
				t.Fatalf("%d %q %s, want %q", a.status, a.reason, a.text, tc.reason)
			}
			if tc.reason == "" && tc.method == "GET" {
				var answer sessionRenewal
				if err := json.Unmarshal([]byte(a.body), &answer); err != nil || answer.Until != testTime.Add(tc.until).Unix() {
					t.Errorf("%s: until %d, want %d", a.body, answer.Until, testTime.Add(tc.until).Unix())
				}
				if a.header.Get("Cache-Control") != "no-store" || a.header.Get("Access-Control-Allow-Origin") != "*" || answer.Session == "~"+session {
					t.Errorf("%q %q", a.header, a.body)
				}
				if below := testFiles.get(t, g, requestFor(t, "/"+tc.next+"/"+answer.Session+"/7.ts", nil)); below.reason != "" {
					t.Errorf("below the new token: %s", below.text)
				}
			}
			if got := runningSessions(g); got != 1 {
				t.Errorf("%d sessions are counted", got)
			}
			for at, want := range map[time.Duration]string{tc.until - time.Second: "", tc.until: "token_expired"} {
				now = testTime.Add(at)
				if a := testFiles.get(t, g, requestFor(t, old+"/~"+session+"/7.ts", nil)); a.reason != want {
					t.Errorf("the old URL after %s: %q, want %q", at, a.reason, want)
				}
			}
		})
	}
}

// The attack: a viewer begins session after session and renews each with its own token, which
// writes to the store each time.
func TestRenewalByTheSameTokenWritesNothing(t *testing.T) {
	t.Parallel()
	g := newGate(t, sessionApp(func(a *App) { a.MaxSession = caddy.Duration(8 * time.Hour) }), new(Gate))
	g.app.now = func() time.Time { return testTime }
	g.app.state.Start()
	link := "/" + sessionToken(nil) + "/"
	session := begin(t, g, link+"master.m3u8")
	a := testFiles.get(t, g, requestFor(t, link+"~"+session+"/renew", nil))
	if want := fmt.Sprintf(`{"session":"~%s","until":%d}`, session, testTime.Add(time.Hour).Unix()); a.body != want {
		t.Errorf("%d %s, want %s", a.status, a.body, want)
	}
	key, _ := sessions.KeyIn(session)
	if got := g.app.state.ExtendedUntil(t.Context(), key.ID().String()); !got.IsZero() {
		t.Errorf("the store has an extension until %s", got)
	}
}

// The player page plays in one session, which its manifest begins.
func TestPlayerPageHasOneSession(t *testing.T) {
	t.Parallel()
	g := newGate(t, sessionApp(nil), &Gate{Player: new(PlayerConfig), Manifest: "master.m3u8"})
	page := testFiles.get(t, g, requestFor(t, withToken("/T/iframe"), nil))
	found := regexp.MustCompile(`<html[^>]* data-session="(~[\w-]{32})"`).FindStringSubmatch(page.body)
	if found == nil || page.header.Get("Cache-Control") != "no-store" || runningSessions(g) != 0 {
		t.Fatalf("%q %.100s, with %d sessions", page.header, page.body, runningSessions(g))
	}
	for _, target := range []string{"/master.m3u8", "/v/1.m3u8", "/7.ts", "/master.m3u8"} {
		if a := testFiles.get(t, g, requestFor(t, "/"+plainToken()+"/"+found[1]+target, nil)); a.reason != "" {
			t.Errorf("%s: %s", target, a.text)
		}
	}
	testFiles.get(t, g, requestFor(t, withToken("/T/iframe/hls.js"), nil))
	if got := runningSessions(g); got != 1 {
		t.Errorf("one page has %d sessions", got)
	}
}

// The origin gets no session: not in the path, the query or a header.
func TestOriginGetsNoSession(t *testing.T) {
	t.Parallel()
	g := newGate(t, sessionApp(nil), &Gate{PassRequestHeaders: []string{"*"}})
	session := begin(t, g, "/open/master.m3u8")
	r := requestFor(t, "/open/~"+session+"/7.ts?a=1&b=%7E"+session+"&c="+session, func(r *http.Request) {
		for _, name := range []string{"Referer", "X-Note", "Accept-Language", "X-Request-Id"} {
			r.Header.Set(name, "https://media.example.net/open/~"+session+"/")
		}
		r.Header.Set("X-Other", "kept")
	})
	a := testFiles.get(t, g, r)
	if len(a.origin) != 1 {
		t.Fatal(a.text)
	}
	var seen bytes.Buffer
	_ = a.origin[0].Write(&seen)
	if text := seen.String() + a.origin[0].RequestURI; strings.Contains(text, session) || !strings.Contains(text, "a=1") || !strings.Contains(text, "kept") {
		t.Errorf("the origin gets\n%s", text)
	}
}

// Without a secret of the config, all gates of a store have the store's, and until it is known,
// nothing plays.
func TestSecretOfTheStore(t *testing.T) {
	t.Parallel()
	g := newGate(t, sessionApp(func(a *App) { a.SessionSecret = "" }), new(Gate))
	if a := testFiles.get(t, g, requestFor(t, withToken("/T/7.ts"), nil)); a.reason != "state_unavailable" {
		t.Errorf("without a secret: %q", a.reason)
	}
	g.app.state.Start()
	g.app.startSessions()
	session := begin(t, g, withToken("/T/master.m3u8"))
	if a := testFiles.get(t, g, requestFor(t, "/"+plainToken()+"/~"+session+"/7.ts", nil)); a.reason != "" {
		t.Errorf("with the secret of the store: %q", a.reason)
	}
}

// FuzzSession checks that no path but those with a session of the token reach a session, and that
// a session never reaches the origin's path.
func FuzzSession(f *testing.F) {
	g := newGate(f, sessionApp(nil), &Gate{AmbiguousPaths: "allow"})
	session := begin(f, g, withToken("/T/master.m3u8"))
	for _, rest := range []string{"~S/7.ts", "~S/~S/7.ts", "%7ES/7.ts", "/~S/7.ts", "~S;x/7.ts", "a/~S/7.ts", "~S", "~S%2F7.ts", "./~S/x", "~SA/x", "~S=/x"} {
		f.Add(rest)
	}
	f.Fuzz(func(t *testing.T, rest string) {
		rest = strings.ReplaceAll(rest, "S", session)
		u := requestFor(t, withToken("/T/x"), nil).URL
		u.Path, u.RawPath = "/"+plainToken()+"/"+rest, ""
		parsed, err := g.paths.Parse(u)
		if err != nil {
			return
		}
		if parsed.Session == session && !strings.HasPrefix(rest, "~"+session) {
			t.Errorf("%q has the session", rest)
		}
		if first, _, _ := strings.Cut(strings.TrimLeft(parsed.Suffix.Decoded, "/"), "/"); parsed.Session == session && sessions.HasForm(first) {
			t.Errorf("%q leaves a session to the origin: %q", rest, parsed.Suffix.Decoded)
		}
	})
}

// TestCountingError is the table of docs/sessions.md: how many sessions are counted in situations
// in which it is hard to tell. What plays below a session is told apart exactly; the others are
// players that are given the URL of a live rendition, or ask for files alone.
func TestCountingError(t *testing.T) {
	t.Parallel()
	// A step is the address and the user agent of a client, and the player below whose session its
	// requests are. ! says that it opens the manifest first, - that it has no session in the path. In
	// a pause of ten minutes, every session has been silent for too long.
	fifty, alone := "", ""
	for i := range 50 {
		fifty += fmt.Sprintf("10.%d.0.1 phone 0%s, ", i, map[bool]string{true: "!"}[i == 0])
		alone += fmt.Sprintf("10.%d.0.1 phone -, ", i)
	}
	for _, tc := range []struct {
		situation, steps string
		truth, counts    int
	}{
		{"two devices behind one address", "192.0.2.7 phone 0!, 192.0.2.7 phone 1!", 2, 2},
		{"two devices behind one address, without a session", "192.0.2.7 phone -, 192.0.2.7 phone -", 2, 1},
		{"two kinds of devices there, without a session", "192.0.2.7 phone -, 192.0.2.7 desktop -", 2, 2},
		{"Wi-Fi to mobile", "192.0.2.7 phone 0!, 198.51.100.9 phone 0", 1, 1},
		{"Wi-Fi to mobile, without a session", "192.0.2.7 phone -, 198.51.100.9 phone -", 1, 2},
		{"dual stack", "192.0.2.7 phone 0!, 2001:db8::7 phone 0, 192.0.2.7 phone 0", 1, 1},
		{"dual stack, without a session", "192.0.2.7 phone -, 2001:db8::7 phone -", 1, 2},
		{"10 minutes' pause", "192.0.2.7 phone 0!, pause, 192.0.2.7 phone 0", 1, 1},
		{"10 minutes' pause, without a session", "192.0.2.7 phone -, pause, 192.0.2.7 phone -", 1, 1},
		{"a tab that is restored", "192.0.2.7 desktop 0!, 192.0.2.7 desktop 1!", 1, 2},
		{"one URL of a session on 50 addresses", fifty, 50, 1},
		{"one URL of a live rendition on 50 addresses", alone, 50, 50},
		{"a downloader that asks for the files without a session", strings.Repeat("192.0.2.7 desktop -, ", 3), 1, 1},
	} {
		g, players := newGate(t, sessionApp(nil), new(Gate)), map[string]string{"-": ""}
		folder := "/" + sessionToken(nil) + "/"
		for step := range strings.SplitSeq(strings.TrimSuffix(tc.steps, ", "), ", ") {
			if step == "pause" {
				g.app.state.tracker.Use(sessions.Policy{Timeout: time.Nanosecond})
				continue
			}
			words := strings.Fields(step)
			client := func(r *http.Request) { from(words[0])(r); with("User-Agent", words[1])(r) }
			player, opens := strings.CutSuffix(words[2], "!")
			if opens {
				players[player] = sessionInURI.FindString(testFiles.get(t, g, requestFor(t, folder+"master.m3u8", client)).body)
			}
			if a := testFiles.get(t, g, requestFor(t, folder+players[player]+"7.ts", client)); a.reason != "" {
				t.Errorf("%s: %s", tc.situation, a.text)
			}
			g.app.state.tracker.Use(sessions.Policy{Timeout: time.Minute})
		}
		if got := runningSessions(g); got != tc.counts {
			t.Errorf("%s: %d sessions, want %d", tc.situation, got, tc.counts)
		}
		row := fmt.Sprintf("| %s | %d | %d |", tc.situation, tc.truth, tc.counts)
		if !strings.Contains(page(t, "docs/sessions.md"), row) {
			t.Errorf("docs/sessions.md has no row %s", row)
		}
	}
}
