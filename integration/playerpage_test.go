package integration

import (
	"bytes"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"github.com/google/go-cmp/cmp"

	"github.com/signed-playback/caddy-signed-playback/token"
)

const (
	// watchPolicy records what the page's own policy has blocked.
	watchPolicy = `window.violations = []
addEventListener("securitypolicyviolation", e => violations.push(e.effectiveDirective + " " + e.blockedURI))`

	// Browsers as others have them.
	noNativeHLS    = `HTMLMediaElement.prototype.canPlayType = () => ""`
	noMediaSource  = `delete window.MediaSource; delete window.ManagedMediaSource; delete window.WebKitMediaSource`
	stallingNative = `{
	const { get, set } = Object.getOwnPropertyDescriptor(HTMLMediaElement.prototype, "src")
	Object.defineProperty(HTMLMediaElement.prototype, "src", {
		get, set(value) { if (!value.includes("m3u8")) set.call(this, value) },
	})
}`
)

// pageView is what a viewer sees and hears of the page.
type pageView struct {
	Title, Heading  string
	Position        float64
	Paused, Playing bool // the latter: it has got somewhere
	Ready           bool
	Muted, Loop     bool
	Controls        bool
	Alert           string // what is read out
	Code, Button    string
	HLSJS           bool
	Violations      []string
}

func (p *tab) view(t *testing.T) pageView {
	t.Helper()
	return evaluate[pageView](t, p, `(() => {
		const video = document.getElementById("video")
		const alert = document.querySelector("[role=alert]")
		const heading = document.getElementById("title")
		const text = selector => alert.querySelector(selector)?.textContent ?? ""
		return {
			Title: document.title, Heading: heading.checkVisibility() ? heading.textContent : "",
			Position: video.currentTime, Paused: video.paused, Playing: video.currentTime > 0.3 && !video.paused,
			Ready: video.readyState > 0, Muted: video.muted, Loop: video.loop, Controls: document.getElementById("controls").checkVisibility(),
			Alert: alert.checkVisibility() ? text("p") : "", Code: text("small"), Button: text("button"),
			HLSJS: "Hls" in window, Violations: violations,
		}
	})()`)
}

// await waits until the page looks as done wants it.
func (p *tab) await(t *testing.T, what string, done func(pageView) bool) pageView {
	t.Helper()
	var last pageView
	defer func() {
		if t.Failed() {
			p.mu.Lock()
			defer p.mu.Unlock()
			t.Logf("the page, while waiting for %s: %+v, console: %v", what, last, p.console)
		}
	}()
	eventually(t, what, func() bool {
		last = p.view(t)
		return done(last)
	})
	return last
}

// wantQuiet checks that the console and the page's policy report no problem.
func (p *tab) wantQuiet(t *testing.T) {
	t.Helper()
	if violations := p.view(t).Violations; len(violations) != 0 {
		t.Errorf("the page's policy has blocked %v", violations)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.console) != 0 || p.dialogs != 0 {
		t.Errorf("%d dialogs, and in the console: %v", p.dialogs, p.console)
	}
}

func isReady(v pageView) bool   { return v.Ready }
func isPlaying(v pageView) bool { return v.Playing }
func isTold(v pageView) bool    { return v.Alert != "" }

func startPlayerWeb(t *testing.T) *web {
	t.Helper()
	return startWeb(t, anyVideo(), config{app: allowedSites, gate: "player " + hlsJS(t)})
}

// page is the address of a player page.
func (w *web) page(t *testing.T, query string) string {
	t.Helper()
	return w.media("/" + mint(t, "demo", nil) + "/iframe" + query)
}

// The page plays at each of its addresses with any means that the browser has, and says
// so if it has none.
func TestPlayerPagePlays(t *testing.T) {
	t.Parallel()
	with := startPlayerWeb(t)
	without := startWeb(t, anyVideo(), config{gate: "player"})
	broken := startPlayerWeb(t)
	broken.tap.diverting(func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, "/hls.js") {
			panic(http.ErrAbortHandler)
		}
		return false
	})
	unsupported := "This browser cannot play this video. Try another one."
	for _, tc := range []struct {
		name    string
		web     *web
		browser []string
		hlsJS   bool
		told    string
		at      string // where the page is below the token
	}{
		{name: "hls.js", web: with, hlsJS: true, at: "/iframe"},
		{name: "hls.js in a browser without native HLS", web: with, browser: []string{noNativeHLS}, hlsJS: true, at: "/?title=x"},
		{name: "hls.js in a browser with native HLS that stalls", web: with, browser: []string{stallingNative}, hlsJS: true, at: "/iframe#x"},
		{name: "native, without hls.js", web: without, at: ""},
		{name: "native, without MediaSource", web: with, browser: []string{noMediaSource}, at: "/iframe"},
		{name: "native, because hls.js does not load", web: broken, at: "/iframe"},
		{name: "neither, without hls.js", web: without, browser: []string{noNativeHLS}, told: unsupported},
		{name: "neither, without MediaSource", web: with, browser: []string{noNativeHLS, noMediaSource}, told: unsupported},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := openTab(t, append(tc.browser, watchPolicy)...)
			const video = "told" // not "demo", which an earlier tab may still be loading
			if tc.told != "" {
				p.open(t, tc.web.media("/"+mint(t, video, nil)+"/iframe"))
				got := p.await(t, "words", isTold)
				if got.Alert != tc.told || got.Code != "unsupported" || got.Button != "" {
					t.Errorf("it says %q, %q and offers %q", got.Alert, got.Code, got.Button)
				}
				p.wantQuiet(t)
				for _, uri := range tc.web.origin.uris() {
					if strings.HasPrefix(uri, "/"+video+"/") {
						t.Errorf("the origin was asked for %s", uri)
					}
				}
				return
			}
			p.open(t, tc.web.media("/"+mint(t, "demo", nil)+tc.at))
			if got := p.await(t, "metadata", isReady); !got.Paused || got.Position != 0 {
				t.Errorf("it plays by itself: %+v", got)
			}
			p.do(t, chromedp.Click(chromedp.CSS("#toggle")))
			if got := p.await(t, "playback", isPlaying); got.HLSJS != tc.hlsJS {
				t.Errorf("hls.js is loaded: %t, want %t", got.HLSJS, tc.hlsJS)
			}
			if tc.web != broken { // its console has the failure
				p.wantQuiet(t)
			}
			tc.web.origin.take()
		})
	}
}

// The options of the query have their effects.
func TestPlayerPageOptions(t *testing.T) {
	t.Parallel()
	w := startPlayerWeb(t)
	tabs := map[string]*tab{"native": openTab(t, watchPolicy, noMediaSource), "hls.js": openTab(t, watchPolicy)}
	plain := pageView{Title: "Video", Paused: true, Ready: true, Controls: true, Violations: []string{}}
	for _, tc := range []struct {
		name, query string
		want        func(*pageView)
		script      string // must be true then
	}{
		{"none", "", func(*pageView) {}, `!video.poster && video.preload === "metadata" && video.getAttribute("aria-label") === "Video"`},
		{
			"title", "?title=%3Cb%3EA+%26+B%3C/b%3E", func(v *pageView) { v.Title, v.Heading = "<b>A & B</b>", "<b>A & B</b>" },
			`video.getAttribute("aria-label") === "<b>A & B</b>"`,
		},
		{"muted", "?muted", func(v *pageView) { v.Muted = true }, ""},
		{"loop", "?loop=true", func(v *pageView) { v.Loop = true }, ""},
		{"controls", "?controls=false", func(v *pageView) { v.Controls = false }, `document.getElementById("toggle").checkVisibility()`},
		{"startTime", "?startTime=5.5", func(v *pageView) { v.Position = 5.5 }, ""},
		{"startTime past the end", "?startTime=1h", func(*pageView) {}, ""},
		{
			"primaryColor", "?primaryColor=%23f4801f", func(*pageView) {},
			`getComputedStyle(document.getElementById("toggle")).backgroundColor === "rgb(244, 128, 31)"`,
		},
		{"letterboxColor", "?letterboxColor=rgb(1,2,3)", func(*pageView) {}, `getComputedStyle(document.body).backgroundColor === "rgb(1, 2, 3)"`},
		{"an invalid color", "?primaryColor=var(--letterbox)&letterboxColor=url(x)", func(*pageView) {}, `!document.documentElement.getAttribute("style")`},
		{"poster", "?poster=thumbnails/thumbnail.jpg", func(*pageView) {}, `video.poster === location.href.replace(/iframe.*/, "thumbnails/thumbnail.jpg")`},
	} {
		for how := range tabs {
			if how == "native" && !strings.HasPrefix(tc.name, "startTime") {
				continue // the player in use has no part in it
			}
			t.Run(tc.name+", "+how, func(t *testing.T) {
				p := tabs[how]
				p.open(t, w.page(t, tc.query))
				want := plain
				tc.want(&want)
				want.HLSJS = how == "hls.js"
				got := p.await(t, "metadata and a seek", func(v pageView) bool { return v.Ready && v.Position == want.Position })
				wantEqual(t, want, got, "the page")
				if tc.script != "" && !evaluate[bool](t, p, `(video => `+tc.script+`)(document.getElementById("video"))`) {
					t.Errorf("this is not so: %s", tc.script)
				}
				p.wantQuiet(t)
			})
		}
	}

	t.Run("a narrow screen", func(t *testing.T) {
		const width = 360
		p := openTab(t, watchPolicy)
		p.do(t, chromedp.EmulateViewport(width, 640))
		p.open(t, w.page(t, "?title=A+rather+long+title+that+does+not+fit+into+one+line"))
		p.await(t, "metadata", isReady)
		if wide := evaluate[int](t, p, `document.documentElement.scrollWidth`); wide > width {
			t.Errorf("the page is %d wide", wide)
		}
	})

	t.Run("autoplay and loop", func(t *testing.T) {
		p := openPage(t, w.page(t, "?autoplay&muted&loop&startTime=11"), watchPolicy)
		p.await(t, "the end", func(v pageView) bool { return v.Position > 11.1 })
		p.await(t, "the start", func(v pageView) bool { return v.Position < 5 && !v.Paused })
		p.wantQuiet(t)
	})

	// The address of the page contains the token, so nobody else may be told.
	t.Run("a poster on another host", func(t *testing.T) {
		p := openPage(t, w.page(t, "?poster="+url.QueryEscape(w.site("evil.test")+"/poster.jpg")), watchPolicy)
		var asked []http.Header
		eventually(t, "a request for the poster", func() bool {
			w.mu.Lock()
			defer w.mu.Unlock()
			asked = slices.Clone(w.posters)
			return len(asked) > 0
		})
		if got := asked[0].Get("Referer"); got != "" {
			t.Errorf("the host of the poster was told %q", got)
		}
		p.wantQuiet(t)
	})
}

// brokenVideos are videos that something is wrong with.
func brokenVideos(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		isManifest := strings.HasSuffix(r.URL.Path, ".m3u8")
		switch video, _, _ := strings.Cut(r.URL.Path[1:], "/"); {
		case video == "missing":
			http.NotFound(w, r)
		case video == "corrupt" && !isManifest:
			_, _ = w.Write(bytes.Repeat([]byte("not a segment "), 1000))
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// withToken has a request use another token.
func withToken(r *http.Request, compact string) {
	r.URL.Path = "/" + compact + r.URL.Path[1+strings.IndexByte(r.URL.Path[1:], '/'):]
}

// A viewer is told why nothing plays, with a code to give to support, and can try
// again where that may help. A player that gets nothing for ten seconds has failed, too. Which words
// belong to which reason is for package player; here, one case of each kind comes from where it
// comes from in earnest.
func TestPlayerPageFailures(t *testing.T) {
	t.Parallel()
	w := startWeb(t, brokenVideos(anyVideo()), config{app: allowedSites, gate: "player " + hlsJS(t)})
	blocked := mint(t, "demo", withRules(`[{"type":"any","action":"block"}]`))
	early := mint(t, "demo", func(c *token.Claims) { c.NotBefore = time.Now().Add(30 * time.Minute) })
	expired := mint(t, "demo", func(c *token.Claims) { c.ExpiresAt = time.Now().Add(-time.Second) })
	// Each happens to requests that end so. From then on, the token has expired.
	type fault struct {
		ending, manifest string // the latter is the token for the manifest, instead of the page's own
		expires          bool
		then             func(r *http.Request)
	}
	hangUp, hang := func(*http.Request) { panic(http.ErrAbortHandler) }, func(r *http.Request) { <-r.Context().Done() }
	for _, tc := range []struct {
		name, browser, video, code string
		again                      bool
		fault                      fault
	}{
		{"a refusal for good", "", "demo", "rule_blocked (403)", false, fault{manifest: blocked}},
		{"a refusal for now", "", "demo", "token_not_yet_valid (401)", true, fault{manifest: early}},
		{"no such video", "", "missing", "http_error (404)", false, fault{}},
		{"broken segments", "", "corrupt", "media_error", true, fault{}},
		{"no connection", "", "demo", "network_error", true, fault{ending: ".m3u8", then: hangUp}},
		{"a token that expires while the video plays", "", "demo", "token_expired (401)", false, fault{ending: "/003.m4s", expires: true}},
		{"nothing comes, hls.js", "", "demo", "media_error", true, fault{ending: "/002.m4s", then: hang}},
		{"nothing comes, native", noMediaSource, "demo", "media_error", true, fault{ending: "/002.m4s", then: hang}},
		{"a browser claims native HLS and stalls", noMediaSource + "\n" + stallingNative, "demo", "media_error", true, fault{}},
		{"nothing comes, and the token has expired meanwhile", "", "demo", "token_expired (401)", false, fault{ending: "/002.m4s", expires: true, then: hang}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel() // the page waits before it gives up
			tap := startTap(t, w.gate)
			var late atomic.Bool
			tap.diverting(func(_ http.ResponseWriter, r *http.Request) bool {
				happens := tc.fault.ending != "" && strings.HasSuffix(r.URL.Path, tc.fault.ending)
				switch late.Store(late.Load() || happens && tc.fault.expires); {
				case happens && tc.fault.then != nil:
					tc.fault.then(r)
					return true
				case late.Load():
					withToken(r, expired)
				case tc.fault.manifest != "" && strings.HasSuffix(r.URL.Path, ".m3u8"):
					withToken(r, tc.fault.manifest)
				}
				return false
			})
			p := openPage(t, "http://"+gateHost+":"+portOf(tap.server)+"/"+mint(t, tc.video, nil)+"/iframe?autoplay&muted&title=A+title", watchPolicy, tc.browser)
			got := p.await(t, "words", isTold)
			if got.Code != tc.code || (got.Button == "Try again") != tc.again || got.Title != "A title" || got.Heading != "" {
				t.Errorf("the page says %q, %q and offers %q", got.Alert, got.Code, got.Button)
			}
			if !evaluate[bool](t, p, `document.getElementById("video").inert && document.getElementById("toggle").hidden`) {
				t.Error("controls that do nothing can be reached")
			}
		})
	}
}

// A slow network is no failure.
func TestPlayerPageOnASlowNetwork(t *testing.T) {
	t.Parallel()
	w := startPlayerWeb(t)
	w.tap.diverting(func(rw http.ResponseWriter, r *http.Request) bool {
		slow := strings.HasSuffix(r.URL.Path, "/002.m4s")
		if slow {
			serveSlowly(rw, r, "../examples/media/demo"+r.URL.Path[1+strings.IndexByte(r.URL.Path[1:], '/'):])
		}
		return slow
	})
	p := openPage(t, w.page(t, "?autoplay&muted"), watchPolicy)
	if got := p.await(t, "playback after the slow segments", func(v pageView) bool { return v.Position > 5 || v.Alert != "" }); got.Alert != "" {
		t.Errorf("the page says %q, %q", got.Alert, got.Code)
	}
}

// The viewer can try again after a temporary failure.
func TestPlayerPageRetry(t *testing.T) {
	t.Parallel()
	for how, browser := range map[string]string{"native": noMediaSource, "hls.js": ""} {
		t.Run(how, func(t *testing.T) {
			t.Parallel() // the player waits before it gives up
			var down atomic.Bool
			next := anyVideo()
			w := startWeb(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if down.Load() {
					w.WriteHeader(http.StatusServiceUnavailable)
					return
				}
				next.ServeHTTP(w, r)
			}), config{gate: "player " + hlsJS(t)})
			down.Store(true)
			p := openPage(t, w.page(t, ""), watchPolicy, browser)
			if told := p.await(t, "words", isTold); told.Code != "http_error (503)" || told.Button != "Try again" {
				t.Errorf("the page says %q, %q and offers %q", told.Alert, told.Code, told.Button)
			}
			p.do(t, chromedp.Click(chromedp.CSS("#failure button")))
			p.await(t, "the same words again", isTold)

			down.Store(false)
			p.do(t, chromedp.Click(chromedp.CSS("#failure button")))
			p.await(t, "metadata", func(v pageView) bool { return v.Ready && v.Alert == "" })
			if !evaluate[bool](t, p, `document.activeElement.id === "toggle"`) {
				t.Error("the focus is not on the play button")
			}
			p.do(t, chromedp.KeyEvent(" "))
			p.await(t, "playback", isPlaying)
		})
	}
}

// serveSlowly serves a file over more than ten seconds.
func serveSlowly(w http.ResponseWriter, r *http.Request, file string) {
	content, err := os.ReadFile(file)
	if err != nil {
		panic(err)
	}
	w.Header().Set("Content-Type", "video/mp4")
	for chunk := range slices.Chunk(content, len(content)/12) {
		_, _ = w.Write(chunk)
		_ = http.NewResponseController(w).Flush()
		select {
		case <-time.After(time.Second):
		case <-r.Context().Done():
			return
		}
	}
}

// The page of a refused video has the status, the reason and the policy of a refusal, asks for
// nothing, and tells viewer and embedding page why.
func TestPlayerPageRefused(t *testing.T) {
	t.Parallel()
	w := startWeb(t, anyVideo(), config{app: allowedSites, gate: "player " + hlsJS(t)})
	expired := mint(t, "demo", func(c *token.Claims) { c.ExpiresAt = time.Now().Add(-time.Second) })
	for _, tc := range []struct {
		name, path, code string
		again            bool
	}{
		{"expired", "/" + expired + "/iframe?title=A+title&autoplay&poster=x.jpg&storyboard=x.vtt", "token_expired (401)", false},
		{"not yet valid", "/" + mint(t, "demo", func(c *token.Claims) { c.NotBefore = time.Now().Add(30 * time.Minute) }) + "/iframe", "token_not_yet_valid (401)", true},
		{"blocked", "/" + mint(t, "demo", withRules(`[{"type":"any","action":"block"}]`)) + "/iframe", "rule_blocked (403)", false},
		{"another site", "/" + mint(t, "sites", nil) + "/iframe", "origin_not_allowed (403)", false},
		{"no token", "/demo/iframe", "token_required (401)", false},
		{"a part of a token", "/" + expired[:strings.LastIndex(expired, ".")+2] + "/iframe", "token_malformed (401)", false}, // no base64url has one character
		{"no path", "/a%2Fb/iframe", "path_invalid (400)", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w.forget(t)
			p := openPage(t, w.site("evil.test")+"/", watchPolicy)
			evaluate[bool](t, p, fmt.Sprintf("embed('iframe', %q, {}).then(() => true)", w.media(tc.path)))
			reason, _, _ := strings.Cut(tc.code, " ")
			eventually(t, "the event error", func() bool { return evaluate[progress](t, p, "seen").Told == reason })
			w.wantNotRun(t, p)
			page, _ := w.tap.first(http.MethodGet, strings.SplitN(tc.path, "?", 2)[0])
			h := page.response
			if page.verdict() != refusedFor(reason) || h.Get("Cache-Control") != "no-store" ||
				!strings.HasPrefix(h.Get("Content-Security-Policy"), "default-src 'none'; script-src 'sha256-") ||
				strings.Contains(h.Get("Content-Security-Policy"), "frame-ancestors") || len(h.Values("Content-Security-Policy")) != 1 {
				t.Errorf("the page: %v %v", page.verdict(), h)
			}

			p.open(t, w.media(tc.path))
			if reason == "origin_not_allowed" {
				tc.code = "origin_required (403)" // nothing embeds it
			}
			got := p.await(t, "words", isTold)
			if got.Code != tc.code || (got.Button == "Try again") != tc.again || got.Controls || len(got.Violations) > 0 {
				t.Errorf("the page says %+v", got)
			}
			if tc.again {
				w.forget(t)
				p.do(t, chromedp.Click(chromedp.CSS("#failure button")))
				eventually(t, "another request for the page", func() bool { return len(w.tap.recorded()) == 1 })
			}
		})
	}
}

// handle_errors has the last word about refused pages. Its own page does not get the policy of
// the gate's.
func TestPlayerPageRefusedWithErrorRoute(t *testing.T) {
	t.Parallel()
	w := startWeb(t, anyVideo(), config{gate: "player", site: "handle_errors 403 {\nrespond \"another page\" 403\n}\nrespond 204"})
	for path, want := range map[string]string{
		"/" + mint(t, "demo", withRules(`[{"type":"any","action":"block"}]`)) + "/iframe": "another page",
		"/demo/iframe": `data-refused="token_required"`,
	} {
		res := rawTo(t, w.gate.addr, rawGet(path, "Sec-Fetch-Dest: iframe"))
		if ours := strings.Contains(string(res.body), "<video"); !strings.Contains(string(res.body), want) || ours != (want != "another page") ||
			ours != strings.Contains(res.Header.Get("Content-Security-Policy"), "script-src") {
			t.Errorf("%d %v %.200q, want %q", res.StatusCode, res.Header, res.body, want)
		}
	}
}

// Nothing in a link becomes markup, code, or an address that the page loads from.
func TestPlayerPageHostileQuery(t *testing.T) {
	t.Parallel()
	w := startPlayerWeb(t)
	names := []string{
		"title", "poster", "storyboard", "autoplay", "muted", "loop", "controls", "preload", "startTime",
		"defaultTextTrack", "primaryColor", "letterboxColor", "src", "hlsJs", "__proto__", "constructor",
	}
	// A bar draws its position by a style.
	const skeleton = `[...document.querySelectorAll("*")].map(e => e.tagName + [...e.attributes].map(a => " " + a.name).
		filter(name => name != " style" || e.tagName != "INPUT").sort().join("")).join("\n")`
	p := openPage(t, w.page(t, ""), watchPolicy)
	p.await(t, "metadata", isReady)
	elements := evaluate[string](t, p, `[...document.querySelectorAll("*")].map(e => e.tagName).join()`)
	style := evaluate[string](t, p, `document.querySelector("style").textContent`)

	for _, value := range []string{
		"</script><script>window.pwned=1</script>",
		"</title></style><img src=x onerror=window.pwned=1>",
		`"><svg onload=window.pwned=1>`,
		"javascript:window.pwned=1",
		"data:text/html,<script>window.pwned=1</script>",
		"\u2028window.pwned=1//\u2029",
		"red;} body{background:url(//evil.test/x)",
		"\x00\r\nContent-Security-Policy: default-src *",
		strings.Repeat("A", 500),
		"1e999", "-1",
	} {
		t.Run(fmt.Sprintf("%.40q", value), func(t *testing.T) {
			p.mu.Lock()
			p.requests, p.console = nil, nil
			p.mu.Unlock()
			query := make(url.Values)
			for _, name := range names {
				query[name] = []string{value, value}
			}
			w.forget(t)
			p.open(t, w.page(t, "?"+query.Encode()+"#"+url.PathEscape(value)))
			got := p.await(t, "metadata", isReady)
			if now := evaluate[string](t, p, `[...document.querySelectorAll("*")].map(e => e.tagName).join()`); now != elements {
				t.Errorf("elements: %s", cmp.Diff(elements, now))
			}
			if now := evaluate[string](t, p, `document.querySelector("style").textContent`); now != style {
				t.Errorf("style: %s", cmp.Diff(style, now))
			}
			attributes := evaluate[string](t, p, skeleton)
			if on := regexp.MustCompile(`(?m) (on\w+|srcdoc|href|style)\b`).FindAllString(strings.ReplaceAll(attributes, "LINK href rel", ""), -1); on != nil {
				t.Errorf("attributes %v in\n%s", on, attributes)
			}
			if evaluate[bool](t, p, `"pwned" in window || "pwned" in Object.prototype`) {
				t.Error("it has run")
			}
			if !got.Paused || got.Muted || got.Loop || !got.Controls || got.Position != 0 {
				t.Errorf("it has taken a value for another one: %+v", got)
			}
			p.mu.Lock()
			// Most of these are the relative address of a poster that is not there.
			p.console = slices.DeleteFunc(p.console, func(line string) bool { return strings.HasPrefix(line, "Failed to load resource") })
			for _, address := range p.requests {
				if address != "data:," && !strings.HasPrefix(strings.TrimPrefix(address, "blob:"), w.media("/")) {
					t.Errorf("the page asked for %.200s", address)
				}
			}
			p.mu.Unlock()
			p.wantQuiet(t)
		})
	}
}

// Everything can be done with the keyboard, and the keys are the same with and without
// controls.
func TestPlayerPageKeyboard(t *testing.T) {
	t.Parallel()
	w := startPlayerWeb(t)
	paused := func(v pageView) bool { return v.Paused }
	near := func(want float64) func(pageView) bool {
		return func(v pageView) bool { return math.Abs(v.Position-want) < 0.01 }
	}
	for query, order := range map[string]string{
		"?controls=0&muted": "toggle",
		"?muted":            "seek play mute volume speed quality picture_in_picture fullscreen",
	} {
		t.Run(query, func(t *testing.T) {
			p := openPage(t, w.page(t, query), watchPolicy)
			p.await(t, "metadata", isReady)
			p.do(t, chromedp.KeyEvent(" "))
			p.await(t, "playback", isPlaying)
			p.do(t, chromedp.KeyEvent(" "))
			p.await(t, "a pause", paused)
			p.do(t, chromedp.KeyEvent("k"))
			p.await(t, "playback", isPlaying)
			p.do(t, chromedp.KeyEvent("K"))
			p.await(t, "a pause", paused)
			before := p.view(t).Position
			p.do(t, chromedp.KeyEvent(kb.ArrowRight))
			p.await(t, "five seconds on", near(before+5))
			p.do(t, chromedp.KeyEvent(kb.ArrowLeft))
			p.await(t, "five seconds back", near(before))
			p.do(t, chromedp.KeyEvent("m"))
			p.await(t, "sound", func(v pageView) bool { return !v.Muted })
			for _, full := range []bool{true, false} {
				p.do(t, chromedp.KeyEvent("f"))
				eventually(t, "full screen, or the end of it", func() bool {
					return evaluate[bool](t, p, `document.fullscreenElement !== null`) == full
				})
			}

			for id := range strings.FieldsSeq(order) {
				p.do(t, chromedp.KeyEvent(kb.Tab))
				if got := evaluate[string](t, p, `document.activeElement.id`); got != id {
					t.Errorf("Tab leads to %q, want %q", got, id)
				}
				if !evaluate[bool](t, p, `(e => e.offsetHeight <= 100 && e.ariaLabel !== "" && getComputedStyle(e).outlineStyle === "solid" &&
					!e.closest(".idle #controls"))(document.activeElement)`) {
					t.Errorf("%s has no name or no visible focus", id)
				}
			}
			button := strings.Fields(order)[min(1, strings.Count(order, " "))]
			for _, key := range []string{" ", kb.Enter} {
				evaluate[bool](t, p, `document.getElementById("`+button+`").focus(), true`)
				p.do(t, chromedp.KeyEvent(key))
				p.await(t, "playback", func(v pageView) bool { return !v.Paused })
				p.until(t, "a visible button to pause", `(e => getComputedStyle(e).opacity === "1" && e.ariaLabel === "Pause")(document.activeElement)`)
				p.do(t, chromedp.KeyEvent(key))
				p.await(t, "a pause", paused)
			}
			p.wantQuiet(t)
		})
	}
}

// withExtras adds subtitles and a storyboard to a video.
func withExtras(next http.Handler) http.Handler {
	const subtitles = `#EXTM3U
#EXT-X-MEDIA:TYPE=SUBTITLES,GROUP-ID="text",NAME="Deutsch",LANGUAGE="de",URI="text.m3u8"
#EXT-X-MEDIA:TYPE=SUBTITLES,GROUP-ID="text",NAME="English",LANGUAGE="en",URI="text.m3u8"`
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		serve := func(contentType, text string) {
			w.Header().Set("Content-Type", contentType)
			_, _ = io.WriteString(w, text)
		}
		switch _, suffix, _ := strings.Cut(r.URL.Path[1:], "/"); suffix {
		case "manifest/video.m3u8":
			master, err := os.ReadFile("../examples/media/demo/" + suffix)
			if err != nil {
				panic(err)
			}
			serve("application/vnd.apple.mpegurl", strings.NewReplacer("#EXTM3U", subtitles, "STREAM-INF:", `STREAM-INF:SUBTITLES="text",`).Replace(string(master)))
		case "manifest/text.m3u8":
			serve("application/vnd.apple.mpegurl", "#EXTM3U\n#EXT-X-TARGETDURATION:12\n#EXTINF:12,\ntext.vtt\n#EXT-X-ENDLIST\n")
		case "manifest/text.vtt":
			serve("text/vtt", "WEBVTT\n\n00:00.000 --> 00:12.000\nGuten Tag\n")
		case "thumbnails/storyboard.vtt":
			serve("text/vtt", "WEBVTT\n\n00:00.000 --> 00:06.000\nthumbnail.jpg?0\n\n00:06.000 --> 00:12.000\nthumbnail.jpg?1#xywh=80,40,80,45\n")
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// pointAt moves the mouse to a part of an element's width.
func (p *tab) pointAt(t *testing.T, id string, part float64) {
	t.Helper()
	at := evaluate[[]float64](t, p, fmt.Sprintf(`(r => [r.x + r.width * %f, r.y + r.height / 2])(document.getElementById(%q).getBoundingClientRect())`, part, id))
	p.do(t, chromedp.MouseEvent("mouseMoved", at[0], at[1]))
}

// The menus are used with keys and with the mouse.
func TestPlayerPageMenus(t *testing.T) {
	t.Parallel()
	w := startWeb(t, withExtras(anyVideo()), config{gate: "player " + hlsJS(t)})
	p := openPage(t, w.page(t, "?muted&preload=auto"), watchPolicy)
	p.await(t, "metadata", isReady)
	opened := func() []string {
		return evaluate[[]string](t, p, `[...document.querySelectorAll(":popover-open > *")].map(e => (e.ariaChecked === "true" ? "*" : "") + e.textContent)`)
	}
	for _, tc := range []struct {
		menu  string
		items []string
		keys  string // to the choice
		then  string // is true afterwards
	}{
		{"speed", []string{"0.5×", "0.75×", "*Normal", "1.25×", "1.5×", "1.75×", "2×"}, kb.ArrowDown, `video.playbackRate === 1.25`},
		{"captions", []string{"*Off", "Deutsch", "English"}, kb.End + kb.ArrowUp, `[...video.textTracks].some(track => track.mode === "showing" &&
			track.language === "de" && track.cues?.[0]?.text === "Guten Tag")`},
		{"quality", nil, kb.End, `true`},
	} {
		t.Run(tc.menu, func(t *testing.T) {
			w.origin.take()
			p.until(t, "the button of the menu", `document.getElementById("`+tc.menu+`").checkVisibility()`)
			p.do(t, chromedp.Click(chromedp.CSS("#"+tc.menu)))
			eventually(t, "an open menu", func() bool { return len(opened()) > 0 })
			if got := opened(); tc.items != nil && !slices.Equal(got, tc.items) {
				t.Errorf("the menu: %q, want %q", got, tc.items)
			}
			p.do(t, chromedp.KeyEvent(kb.Escape))
			eventually(t, "a closed menu", func() bool { return len(opened()) == 0 })

			evaluate[bool](t, p, `document.getElementById("`+tc.menu+`").focus(), true`)
			p.do(t, chromedp.KeyEvent(kb.Enter))
			p.until(t, "a choice with the focus", `document.activeElement.ariaChecked === "true"`)
			for _, key := range tc.keys + kb.Enter {
				p.do(t, chromedp.KeyEvent(string(key)))
			}
			p.until(t, tc.then, `(video => `+tc.then+`)(document.getElementById("video"))`)
			if got := evaluate[string](t, p, `document.activeElement.id`); got != tc.menu {
				t.Errorf("the focus is on %q, want the button of the menu", got)
			}
		})
	}
	p.do(t, chromedp.KeyEvent("k"))
	p.await(t, "playback", isPlaying)
	eventually(t, "a segment of the quality that was chosen", func() bool {
		return slices.ContainsFunc(w.origin.uris(), func(uri string) bool { return strings.Contains(uri, "/90p/") })
	})
	p.wantQuiet(t)
}

// The storyboard is asked for when the viewer points at the seek bar, once, and nobody hears
// of a video without one.
func TestPlayerPagePreview(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, query string
		origin      http.Handler
		picture     string // at three quarters of the video
	}{
		{"a storyboard", "", withExtras(anyVideo()), "thumbnails/thumbnail.jpg?1 -80px -40px 80px 45px"},
		{"another name", "?storyboard=thumbnails/storyboard.vtt%3Fx", withExtras(anyVideo()), "thumbnails/thumbnail.jpg?1 -80px -40px 80px 45px"},
		{"none", "", anyVideo(), ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := startWeb(t, tc.origin, config{gate: "player " + hlsJS(t)})
			p := openPage(t, w.page(t, tc.query), watchPolicy)
			p.await(t, "metadata", isReady)
			asked := func() (n int) {
				for _, address := range p.asked() {
					if strings.Contains(address, "/thumbnails/storyboard.vtt") {
						n++
					}
				}
				return n
			}
			if asked() != 0 {
				t.Error("the storyboard is loaded before anybody needs it")
			}
			for _, part := range []float64{0.2, 0.3, 0.75} {
				p.pointAt(t, "seek", part)
				eventually(t, "a request for the storyboard", func() bool { return asked() == 1 })
			}
			eventually(t, "the picture and its time", func() bool {
				return evaluate[string](t, p, `(p => p.hidden ? "" : p.src.replace(/.*(?=thumbnails)/, "") + " " + p.style.objectPosition +
					" " + p.style.width + " " + p.style.height)(document.getElementById("picture"))`) == tc.picture &&
					evaluate[bool](t, p, `["0:08", "0:09"].includes(document.getElementById("preview-time").textContent)`)
			})
			if v := p.view(t); len(v.Violations) > 0 || v.Alert != "" {
				t.Errorf("the page: %+v", v)
			}
		})
	}
}

// Controls hide while the video plays and nobody uses them.
func TestPlayerPageControls(t *testing.T) {
	t.Parallel()
	w := startWeb(t, withExtras(anyVideo()), config{gate: "player " + hlsJS(t)})
	p := openTab(t, watchPolicy)
	opacity := func(want string) func() bool {
		return func() bool { return evaluate[string](t, p, `getComputedStyle(controls).opacity`) == want }
	}
	p.open(t, w.page(t, "?muted&loop"))
	p.await(t, "metadata", isReady)
	p.do(t, chromedp.Click(chromedp.CSS("#play")))
	p.await(t, "playback", isPlaying)
	p.do(t, chromedp.MouseEvent("mouseMoved", 10, 10))
	eventually(t, "no controls", opacity("0"))
	p.do(t, chromedp.MouseEvent("mouseMoved", 12, 12))
	eventually(t, "controls, because the mouse has moved", opacity("1"))
	eventually(t, "no controls", opacity("0"))
	p.do(t, chromedp.KeyEvent(kb.Tab))
	eventually(t, "controls, because of the keyboard", opacity("1"))

	// A click on the seek bar goes there, a click on the video pauses.
	p.pointAt(t, "seek", 0.5)
	p.do(t, chromedp.Click(chromedp.CSS("#seek")))
	p.await(t, "the middle", func(v pageView) bool { return v.Position > 5.5 })
	p.do(t, chromedp.MouseClickXY(20, 80))
	p.await(t, "a pause", func(v pageView) bool { return v.Paused })
	p.do(t, chromedp.Click(chromedp.CSS("#mute")))
	p.await(t, "sound", func(v pageView) bool { return !v.Muted })
	p.wantQuiet(t)
}

// A live stream says that it is live, and the viewer can return to its edge.
func TestPlayerPageLive(t *testing.T) {
	t.Parallel()
	next := anyVideo()
	w := startWeb(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasSuffix(r.URL.Path, "p.m3u8") && !strings.HasSuffix(r.URL.Path, "/audio.m3u8") {
			next.ServeHTTP(w, r)
			return
		}
		list, err := os.ReadFile("../examples/media/demo" + strings.TrimPrefix(r.URL.Path, "/live"))
		if err != nil {
			panic(err)
		}
		w.Header().Set("Content-Type", "application/vnd.apple.mpegurl")
		_, _ = io.WriteString(w, strings.NewReplacer("#EXT-X-ENDLIST", "", "#EXT-X-PLAYLIST-TYPE:VOD\n", "").Replace(string(list)))
	}), config{gate: "player " + hlsJS(t)})
	p := openPage(t, w.media("/"+mint(t, "live", nil)+"/iframe?muted"), watchPolicy)
	p.await(t, "metadata", isReady)
	state := func() string {
		return evaluate[string](t, p, `[video.duration, live.checkVisibility(), live.ariaLabel, speed.checkVisibility()].join()`)
	}
	evaluate[bool](t, p, `document.getElementById("video").currentTime = 0.5, true`)
	eventually(t, "a late viewer", func() bool { return state() == "Infinity,true,Go to the live picture,false" })
	p.do(t, chromedp.Click(chromedp.CSS("#live")))
	eventually(t, "the edge", func() bool { return state() == "Infinity,true,Live,false" && p.view(t).Position > 3 })
	p.wantQuiet(t)
}

// The page speaks the language of the browser.
func TestPlayerPageLanguages(t *testing.T) {
	t.Parallel()
	w := startPlayerWeb(t)
	missing := startWeb(t, http.NotFoundHandler(), config{gate: "player " + hlsJS(t)})
	for accepted, want := range map[string]string{
		"en-US":                "en Play Quality This video does not exist, or it has been removed.",
		"de-AT,en":             "de Abspielen Qualität Dieses Video gibt es nicht, oder es wurde entfernt.",
		"pl,fr-CA,de":          "fr Lire Qualité Cette vidéo n’existe pas ou a été supprimée.",
		"es-MX":                "es Reproducir Calidad Este vídeo no existe o se ha eliminado.",
		"pl,constructor,zh-TW": "en Play Quality This video does not exist, or it has been removed.",
	} {
		p := openTab(t, watchPolicy)
		must(chromedp.Call(p.ctx, emulation.SetUserAgentOverride, emulation.SetUserAgentOverrideParams{UserAgent: "Test", AcceptLanguage: accepted}))(t)
		p.open(t, w.page(t, ""))
		p.await(t, "metadata", isReady)
		got := evaluate[string](t, p, `[document.documentElement.lang, play.ariaLabel, quality.ariaLabel].join(" ")`)
		p.open(t, missing.page(t, ""))
		if got += " " + p.await(t, "words", isTold).Alert; got != want {
			t.Errorf("%s: %q, want %q", accepted, got, want)
		}
	}
}

// The player page and the manifest's path of an origin that has another one.
func TestPlayerPageOfAnotherManifest(t *testing.T) {
	t.Parallel()
	w := startWeb(t, anyVideo(), config{gate: "manifest manifest/ts.m3u8\nplayer " + hlsJS(t)})
	openPage(t, w.media("/"+mint(t, "demo", nil)+"/iframe?autoplay=true&muted=true"))
	eventually(t, "the page asks for a segment of that manifest", func() bool {
		_, ok := w.tap.first(http.MethodGet, "/ts/001.ts")
		return ok
	})
}
