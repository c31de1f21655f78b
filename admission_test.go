package signedplayback

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/signed-playback/caddy-signed-playback/internal/admission"
	"github.com/signed-playback/caddy-signed-playback/internal/refusal"
	"github.com/signed-playback/caddy-signed-playback/internal/reportonly"
	"github.com/signed-playback/caddy-signed-playback/internal/sessions"
	"github.com/signed-playback/caddy-signed-playback/token"
)

// backEnd is the back end of an operator. Its answer can change.
type backEnd struct {
	*httptest.Server
	status atomic.Int64
	answer atomic.Value

	mu    sync.Mutex
	asked []admission.Question
	raw   string // all that it was sent
}

func newBackEnd(t testing.TB, answer string) *backEnd {
	t.Helper()
	b := new(backEnd)
	b.say(http.StatusOK, answer)
	b.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		var q admission.Question
		if err := json.Unmarshal(body, &q); err != nil {
			t.Error(err)
		}
		b.mu.Lock()
		b.asked = append(b.asked, q)
		b.raw += fmt.Sprint(r.Method, r.URL, r.Header, string(body))
		b.mu.Unlock()
		w.WriteHeader(int(b.status.Load()))
		_, _ = io.WriteString(w, b.answer.Load().(string))
	}))
	t.Cleanup(b.Close)
	return b
}

func (b *backEnd) say(status int, answer string) {
	b.status.Store(int64(status))
	b.answer.Store(answer)
}

// questions returns how often it was asked since the last call.
func (b *backEnd) questions() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := len(b.asked)
	b.asked = nil
	return n
}

// gate returns a gate that asks this back end.
func (b *backEnd) gate(t testing.TB, change func(*App)) *Gate {
	t.Helper()
	return newGate(t, sessionApp(func(a *App) {
		a.Admission = b.URL + "/admission?secret=s3cret"
		if change != nil {
			change(a)
		}
	}), &Gate{Player: new(PlayerConfig)})
}

const admits, denies = `{"allow":true}`, `{"allow":false}`

// TestAdmissionDecides crosses answers and on_error with what begins a session. Without an
// answer that allows it, nothing of the video is sent and the origin is not asked. Package
// admission tests all answers.
func TestAdmissionDecides(t *testing.T) {
	t.Parallel()
	b := newBackEnd(t, admits)
	for _, onError := range []string{"", "deny", "allow"} {
		g := b.gate(t, func(a *App) { a.AdmissionOnError = onError })
		unanswered := map[bool]string{true: "", false: "admission_unavailable"}[onError == "allow"]
		for i, tc := range []struct {
			status       int
			answer, want string
		}{
			{200, admits, ""},
			{200, denies, "admission_denied"},
			{200, `{"allow":true,"until":1}`, "admission_denied"},
			{500, admits, unanswered},
		} {
			b.say(tc.status, tc.answer)
			for _, path := range []string{"master.m3u8", "live.m3u8", "vod.m3u8", "stream.mpd", "7.ts", "data", "PAGE/master.m3u8"} {
				compact := sessionToken(func(c *token.Claims) { c.ID, c.Viewer = fmt.Sprint(i, path), fmt.Sprint(i, path) })
				if below, ok := strings.CutPrefix(path, "PAGE/"); ok {
					page := testFiles.get(t, g, requestFor(t, "/"+compact+"/iframe", nil))
					_, session, _ := strings.Cut(page.body, `data-session="`)
					path = session[:sessions.TextLength+1] + "/" + below
				}
				b.questions()
				r := requestFor(t, "/"+compact+"/"+path, nil)
				a := testFiles.get(t, g, r)
				if a.reason != tc.want {
					t.Errorf("on_error %q, %d %s: %s = %d %s %s, want %q", onError, tc.status, tc.answer, path, a.status, a.reason, a.text, tc.want)
				}
				if tc.want != "" && (len(a.origin) > 0 || a.body != "" || a.header.Get("Cache-Control") != "no-store") {
					t.Errorf("%s was refused, and got %d requests of the origin and %q", path, len(a.origin), a.body)
				}
				// The first viewer of a live playlist may be asked for twice.
				if n := b.questions(); n != 1 && (n != 2 || i > 0 || path != "live.m3u8") {
					t.Errorf("on_error %q, %d %s: %s: %d questions", onError, tc.status, tc.answer, path, n)
				}
				if strings.Contains(a.text, "127.0.0.1") || strings.Contains(a.text, "s3cret") {
					t.Errorf("viewers can read where the back end is: %s", a.text)
				}
			}
		}
	}
}

// What is no playback, and what plays already, is not asked for.
func TestAdmissionAsksOnce(t *testing.T) {
	t.Parallel()
	b := newBackEnd(t, admits)
	g := b.gate(t, func(a *App) { a.MaxSession = 3600e9 })
	compact := sessionToken(nil)
	link := "/" + compact + "/"
	expect := func(what string, want int, target string, change func(*http.Request)) answer {
		t.Helper()
		a := testFiles.get(t, g, requestFor(t, target, change))
		if n := b.questions(); a.reason != "" || n != want {
			t.Errorf("%s: %d questions, want %d; %s", what, n, want, a.text)
		}
		return a
	}
	for _, name := range []string{"master.m3u8", "live.m3u8", "7.ts"} {
		expect("HEAD of "+name, 0, link+name, method(http.MethodHead))
		expect("preflight of "+name, 0, link+name, method(http.MethodOptions))
	}
	expect("player page", 0, link+"iframe", nil)
	expect("views", 0, link+"views", nil)
	expect("thumbnail", 0, link+"thumbnails/thumbnail.jpg", nil)
	a := expect("manifest", 1, link+"master.m3u8", nil)
	session := "~" + sessionInURI.FindStringSubmatch(a.body)[1]
	for range 3 {
		expect("manifest below the session", 0, link+session+"/master.m3u8", nil)
		expect("segment below the session", 0, link+session+"/7.ts", nil)
		expect("HEAD below the session", 0, link+session+"/7.ts", method(http.MethodHead))
	}
	renewed := sessionToken(func(c *token.Claims) { c.ID = "new" })
	expect("new token of the same viewer", 0, "/"+renewed+"/"+session+"/renew", nil)

	expect("live playlist, of which the gate does not know what it is", 2, link+"live.m3u8", nil)
	for range 2 {
		expect("live playlist again", 0, link+"live.m3u8", nil)
		expect("its segment", 0, link+"7.ts", nil)
	}
	mobile := with("User-Agent", "another player")
	expect("live playlist of another player", 1, link+"live.m3u8", mobile)
	expect("segment first", 1, link+"7.ts", with("User-Agent", "a third player"))
	expect("open video", 1, "/open/7.ts", mobile)
	expect("new session of a player that has one", 1, link+"master.m3u8", nil)
}

// The question names the session as the lists of the API do, in whatever way it begins, and says
// nothing with which anybody could play.
func TestAdmissionQuestion(t *testing.T) {
	t.Parallel()
	b := newBackEnd(t, admits)
	g := b.gate(t, func(a *App) { a.GeoIPDatabase = "testdata/country.mmdb" })
	var links []string
	for _, name := range []string{"master.m3u8", "stream.mpd", "live.m3u8", "live.m3u8", "7.ts", "data"} {
		compact := sessionToken(func(c *token.Claims) { c.ID = fmt.Sprint("j", len(links)) })
		userAgent := "VLC "
		if name == "master.m3u8" || name == "7.ts" {
			userAgent += strings.Repeat("x", 100) + " " + compact
		}
		links = append(links, compact)
		a := testFiles.get(t, g, requestFor(t, "/"+compact+"/"+name, with("User-Agent", userAgent)))
		if found := sessionInURI.FindStringSubmatch(a.body); found != nil {
			links = append(links, found[1])
		}
		b.mu.Lock()
		q := b.asked[len(b.asked)-1]
		b.mu.Unlock()
		id, _ := sessions.ParseID(q.ID)
		info, running, err := g.app.state.tracker.Find(t.Context(), id)
		if err != nil || !running || info.Viewer != "viewer" || info.Network.String() != q.Network {
			t.Errorf("%s: no session %q runs: %+v, %v", name, q.ID, info, err)
		}
		if strings.Contains(q.UserAgent+info.UserAgent, "eyJ") {
			t.Errorf("a token in User-Agent gets to the back end, or into lists, events and the store: %q, %q", q.UserAgent, info.UserAgent)
		}
		if q.UID != "viewer" || q.Video != "demo" || !strings.HasPrefix(q.JTI, "j") || q.Country == "" || q.Network != "203.0.113.0/24" || !strings.HasPrefix(q.UserAgent, "VLC ") {
			t.Errorf("%s: %+v", name, q)
		}
	}
	for _, secret := range links {
		for part := range strings.SplitSeq(secret, ".") {
			if strings.Contains(b.raw, part) {
				t.Errorf("the back end was told %q", part)
			}
		}
	}
	if strings.Contains(b.raw, "203.0.113.7") || !strings.Contains(b.raw, "Webhook-Signature") {
		t.Errorf("the back end was told an address, or has no signature: %s", b.raw)
	}
}

// The answer shortens the session and lowers the limit, and never extends anything.
func TestAdmissionTerms(t *testing.T) {
	t.Parallel()
	until := time.Now().Add(time.Hour)
	b := newBackEnd(t, fmt.Sprintf(`{"allow":true,"climit":2,"until":%d}`, until.Unix()))
	g := b.gate(t, func(a *App) { a.OnSessionLimit = "refuse_new" })
	for i, want := range []string{"", "", "session_limit"} {
		compact := sessionToken(func(c *token.Claims) { c.SessionLimit = 3 })
		if a := testFiles.get(t, g, requestFor(t, "/"+compact+"/7.ts", with("X-Playback-Session-Id", fmt.Sprint(i)))); a.reason != want {
			t.Errorf("session %d: %d %s, want %q", i, a.status, a.text, want)
		}
	}
	g = b.gate(t, nil)
	g.app.now = time.Now
	r := requestFor(t, "/open/7.ts", nil)
	sent := *r
	w := httptest.NewRecorder()
	err := g.ServeHTTP(w, &sent, caddyhttp.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) error {
		w.Header().Set("Cache-Control", "public, max-age=86400")
		_, err := io.WriteString(w, "G")
		return err
	}))
	if caching := w.Header().Get("Cache-Control"); err != nil || !strings.HasPrefix(caching, "private, max-age=3") || len(caching) != len("private, max-age=3600") {
		t.Errorf("an open video in a session that ends in an hour: %q, %v", caching, err)
	}
}

// In report-only mode, a session that is denied plays, is asked for once, and is counted as one
// that would be refused, also if only the response shows that it begins.
func TestAdmissionReportOnly(t *testing.T) {
	t.Parallel()
	for _, only := range []string{"admission", "sessions", "origins"} {
		b := newBackEnd(t, denies)
		g := b.gate(t, func(a *App) { a.ReportOnly = []string{only} })
		begun := false
		for range 3 {
			for _, name := range []string{"7.ts", "live.m3u8"} {
				r := requestFor(t, "/"+sessionToken(nil)+"/"+name, nil)
				d := newDecision(g, r, silentObserver{})
				err := d.decide()
				if wants := only != "origins"; (err == nil) != wants || (d.result == refusal.WouldRefuse) != (wants && !begun) || wants && !begun && d.reason != refusal.AdmissionDenied {
					t.Errorf("report_only %s: %s: %v, %s %s", only, name, err, d.result, d.reason)
				}
				begun = true
			}
		}
		if n := b.questions(); only != "origins" && n != 1 {
			t.Errorf("report_only %s: %d questions about one session", only, n)
		}
		if only == "origins" {
			continue
		}
		a := testFiles.get(t, g, requestFor(t, "/"+sessionToken(nil)+"/master.m3u8", nil))
		if n := b.questions(); !strings.Contains(a.body, "~") || n != 1 {
			t.Errorf("report_only %s: a session that begins with the response: %d questions, %d %s", only, n, a.status, a.text)
		}
		// Where admission is enforced, the same sessions need its permission.
		g.enforcement = reportonly.Setting{}
		session := sessions.Prefix + strings.SplitN(strings.SplitN(a.body, sessions.Prefix, 2)[1], "/", 2)[0]
		for _, want := range []string{"admission_denied", ""} {
			for _, name := range []string{"live.m3u8", "7.ts", session + "/7.ts"} {
				a := testFiles.get(t, g, requestFor(t, "/"+sessionToken(nil)+"/"+name, nil))
				if a.reason != want || want != "" && len(a.origin) > 0 {
					t.Errorf("%s, after report_only %s: %d %s, %d requests of the origin", name, only, a.status, a.reason, len(a.origin))
				}
			}
			b.say(http.StatusOK, admits)
		}
		if n := b.questions(); n != 3+3 { // the first viewer of a live playlist is asked for twice
			t.Errorf("after report_only %s: %d questions", only, n)
		}
	}
}

// A flood of starts by one viewer, from one address or from many, leaves the back end alone, and other viewers begin. With an
// answer that takes as long as it may, the viewer never has more than half of the questions that are asked at a time.
func TestAdmissionFlood(t *testing.T) {
	t.Parallel()
	b := newBackEnd(t, denies)
	g := b.gate(t, func(a *App) { a.AdmissionOnError = "allow" })
	now := time.Now()
	g.app.admission.Budgets.Now = func() time.Time { return now }
	flood := func(viewer, address string, starts int) map[string]int {
		var mu sync.Mutex
		var all sync.WaitGroup
		reasons := make(map[string]int)
		compact := sessionToken(func(c *token.Claims) { c.Viewer = viewer })
		for i := range starts {
			all.Go(func() {
				a := testFiles.get(t, g, requestFor(t, "/"+compact+"/7.ts", func(r *http.Request) {
					r.Header.Set("X-Playback-Session-Id", fmt.Sprint(i))
					caddyhttp.SetVar(r.Context(), caddyhttp.ClientIPVarKey, strings.Replace(address, "N", fmt.Sprint(i), 1))
				}))
				mu.Lock()
				defer mu.Unlock()
				reasons[a.reason]++
			})
		}
		all.Wait()
		return reasons
	}
	for viewer, address := range map[string]string{"mallory": "203.0.113.7", "everywhere": "10.N.0.1"} {
		asked := 0
		for _, want := range []int{admission.ViewerBurst, admission.ViewerRate} {
			got := flood(viewer, address, 100)
			asked += b.questions()
			if got["admission_denied"] != want || got["verification_limited"] != 100-want {
				t.Errorf("%s: %v, want %d questions", viewer, got, want)
			}
			now = now.Add(time.Second)
		}
		if asked > 32 {
			t.Errorf("%s: the back end was asked %d times within the second that an answer may take", viewer, asked)
		}
	}
	if got := flood("anna", "203.0.113.7", 1); got["admission_denied"] != 1 {
		t.Errorf("another viewer behind the same address: %v", got)
	}
}

// Concurrent requests of one start ask once, through the whole gate.
func TestAdmissionOfConcurrentRequests(t *testing.T) {
	t.Parallel()
	b := newBackEnd(t, admits)
	g := b.gate(t, nil)
	compact := sessionToken(nil)
	page := testFiles.get(t, g, requestFor(t, "/"+compact+"/iframe", nil))
	_, session, _ := strings.Cut(page.body, `data-session="`)
	var all sync.WaitGroup
	for i := range 40 {
		name := []string{"master.m3u8", "7.ts"}[i%2]
		all.Go(func() {
			if a := testFiles.get(t, g, requestFor(t, "/"+compact+"/"+session[:sessions.TextLength+1]+"/"+name, nil)); a.reason != "" {
				t.Error(a.text)
			}
		})
	}
	all.Wait()
	if n := b.questions(); n != 1 {
		t.Errorf("%d questions", n)
	}
}

func TestExplainDoesNotAsk(t *testing.T) {
	t.Parallel()
	b := newBackEnd(t, denies)
	g := b.gate(t, nil)
	for _, name := range []string{"master.m3u8", "7.ts"} {
		found := &trace{at: testTime}
		d := newDecision(g, requestFor(t, "/"+sessionToken(nil)+"/"+name, nil), found)
		found.decision = d
		if err := d.decide(); err != nil || !strings.Contains(fmt.Sprint(found.checks), "the server asks 127.0.0.1") || strings.Contains(fmt.Sprint(found.checks), "s3cret") {
			t.Errorf("%s: %v, %v", name, err, found.checks)
		}
	}
	if n := b.questions(); n > 0 {
		t.Errorf("explain has asked %d times", n)
	}
}
