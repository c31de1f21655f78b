package integration

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/signed-playback/caddy-signed-playback/token"
)

var (
	admissionDenied      = refusedFor("admission_denied")
	admissionUnavailable = refusedFor("admission_unavailable")
)

// The answer of the back end holds for a session on all nodes, over a kill of a node, until its
// time has come. Whoever is denied gets nothing, and the origin is not asked.
func TestAdmissionOfAFleet(t *testing.T) {
	t.Parallel()
	var asked atomic.Int64
	var answer atomic.Value
	answer.Store(`{"allow":false}`)
	backEnd := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		asked.Add(1)
		if strings.Contains(string(body), "eyJ") || r.Header.Get("Webhook-Signature") == "" {
			t.Errorf("the question has a token or no signature: %s", body)
		}
		_, _ = io.WriteString(w, answer.Load().(string))
	}))
	o := startOrigin(t, http.HandlerFunc(serveStream))
	f := startFleet(t, config{
		app:  "sessions on\nsession_secret 0123456789abcdef\nadmission " + backEnd.URL + "/secret\n" + startRedis(t).option(),
		site: "reverse_proxy " + o.addr(),
	})
	wantAsked := func(what string, want int64) {
		t.Helper()
		if n := asked.Swap(0); n != want {
			t.Errorf("%s: %d questions, want %d", what, n, want)
		}
	}
	compact := f.nodes[0].mintToken(t, "demo", `{"uid":"anna"}`)
	for _, path := range []string{"/master.m3u8", "/v/1.ts"} {
		wantVerdict(t, f.nodes[0], "/"+compact+path, admissionDenied)
	}
	wantAsked("two sessions that are denied", 2)
	o.wantUntouched(t)

	until := time.Now().Add(25 * time.Second) // a node starts again meanwhile
	answer.Store(fmt.Sprintf(`{"allow":true,"climit":1,"until":%d}`, until.Unix()))
	first, _ := f.nodes[0].beginSession(t, compact)
	f.wantEverywhere(t, "a session that moves between nodes", first, plays)
	f.restart(t, 1)
	f.wantEverywhere(t, "after the kill of a node", first, plays)
	wantAsked("one session on all nodes", 1)
	f.await(t, "the time of the answer", first, sessionEnded)
	if time.Now().Before(until.Truncate(time.Second)) {
		t.Error("the session has ended too early")
	}
	wantAsked("a session whose time has come", 0)

	answer.Store(`{"allow":true,"climit":1}`)
	first, _ = f.nodes[0].beginSession(t, compact)
	second, _ := f.nodes[1].beginSession(t, compact)
	f.await(t, "the session beyond the limit of the answer", first, sessionEnded)
	f.wantEverywhere(t, "the newer session", second, plays)
	wantAsked("two sessions", 2)
	backEnd.Close()
	f.wantEverywhere(t, "a session that plays, without the back end", second, plays)
	if _, got := f.nodes[0].beginSession(t, compact); got != admissionUnavailable {
		t.Errorf("a session that begins without the back end: %+v", got)
	}
}

// Players play a whole clip through a gate that asks a back end, with sessions and the media cache.
// The back end is asked once for each. When it denies, a new session plays nothing and gets nothing of
// the origin, and the player says so, while the session before it plays on.
func TestPlayersWithAdmission(t *testing.T) {
	t.Parallel()
	var asked, denies atomic.Int64
	backEnd := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		_, _ = fmt.Fprintf(w, `{"allow": %t, "climit": 2}`, denies.Load() == 0)
	}))
	o := startWrittenMedia(t)
	g := start(t, o.origin, config{
		app:  "sessions on\nsession_secret 0123456789abcdef\nadmission " + backEnd.URL,
		gate: "manifest_hosts " + o.host, site: cachedSite + "reverse_proxy " + o.addr(),
	})
	page := startPlayersPage(t)
	link := func(suffix string) string {
		return "/" + mint(t, "rooted", func(c *token.Claims) { c.Viewer = suffix }) + "/manifest/" + suffix
	}
	hls, ts := link("video.m3u8"), link("ts.m3u8")
	p := openPage(t, page)
	if got := play(t, p, "hls.js", g.url(hls), 8, 0, "{}"); got.End != "ended" || len(got.Errors) > 0 {
		t.Errorf("hls.js did not play to the end: %+v", got)
	}
	o.wantSegments(t, "/rooted/", "audio/%03d.m4s")
	if n := asked.Load(); n != 1 {
		t.Errorf("%d questions about the session of hls.js, want 1", n)
	}
	wantDecoded(t, g.url(ts), clipSeconds)
	o.wantSegments(t, "/rooted/", "ts/%03d.ts")
	if n := asked.Load(); n != 2 {
		t.Errorf("%d questions about two sessions", n)
	}

	denies.Store(1)
	playing := slices.IndexFunc(p.asked(), func(address string) bool { return strings.Contains(address, "/~") })
	if got := g.get(t, strings.TrimPrefix(p.asked()[playing], "http://"+g.addr)).verdict(); got.Reason != "" {
		t.Errorf("a session that the back end has allowed: %v", got)
	}
	o.take()
	p.open(t, page)
	if got := play(t, p, "hls.js", g.url(hls), 8, 0, "{}"); got.End != "error" || got.Position != 0 || !strings.Contains(strings.Join(got.Errors, " "), "403") {
		t.Errorf("a new session in hls.js: %+v, want the error 403", got)
	}
	if seen := evaluate[verdict](t, p, fmt.Sprintf("ask(%q)", g.url(hls))); seen != admissionDenied {
		t.Errorf("the page sees %v, want %v", seen, admissionDenied)
	}
	if got := ffmpeg(t, g.url(ts)); got.code == 0 || !strings.Contains(got.stderr, "403") {
		t.Errorf("a new session in ffmpeg: %+v, want the error 403", got)
	}
	if uris := o.urisBelow("/rooted/"); len(uris) > 0 {
		t.Errorf("the origin was asked for %q", uris)
	}
}

// The back end that the docs show runs as it is.
func TestExampleOfABackEnd(t *testing.T) {
	t.Parallel()
	text := must(os.ReadFile("../docs/sessions.md"))(t)
	program := regexp.MustCompile("(?s)```python\n(.*?)```").FindSubmatch(text)
	file := filepath.Join(t.TempDir(), "admission.py")
	if program == nil || os.WriteFile(file, program[1], 0o600) != nil {
		t.Fatal("docs/sessions.md has no example")
	}
	const secret = "0123456789abcdef"
	address := freeAddr(t)
	runBeside(t, "", []string{"SESSION_SECRET=" + secret, "PORT=" + port(address)}, tool(t, "python3"), file)
	eventually(t, "the back end listens", func() bool { return listens(address) })
	for _, tc := range []struct {
		secret, uid string
		want        []verdict
	}{
		{secret, "anna", []verdict{plays, plays}},
		{secret, "eve", []verdict{admissionDenied}},
		{"another secret of the gate", "anna", []verdict{admissionUnavailable}},
	} {
		g := start(t, nil, config{
			api: withAPI, app: fmt.Sprintf("sessions on\non_session_limit refuse_new\nsession_secret %q\nadmission http://%s/admission", tc.secret, address),
			site: streamSite(t),
		})
		body, _ := json.Marshal(map[string]string{"uid": tc.uid})
		compact := g.mintToken(t, "demo", string(body))
		for i, want := range append(tc.want, map[bool][]verdict{true: {sessionLimited}}[tc.want[0] == plays]...) {
			if _, got := g.beginSession(t, compact); got != want {
				t.Errorf("session %d of %s: %+v, want %+v", i, tc.uid, got, want)
			}
		}
	}
}
