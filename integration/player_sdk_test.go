package integration

import (
	"fmt"
	"net/http"
	"os"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/signed-playback/caddy-signed-playback/token"
)

const (
	sdkPath = "/embed/sdk.latest.js"

	// sdkSite embeds the player in the tests of this file. It is of the gate's site, so that
	// Chromium runs the page and its frame in one process, and scripts can look into the frame.
	sdkSite = "www.media.test"

	sdkVideos = `
	video sites {
		allowed_origins *.media.test:%PORT%
	}`

	// watchFrames has each document count the moments in which its video has lost its picture.
	watchFrames = `window.flashes = 0
addEventListener("emptied", ({ target: video }) => {
	if (!document.querySelector("canvas")) window.flashes++
	new MutationObserver(changes => {
		if (video.readyState < 2 && changes.some(change => change.removedNodes.length > 0)) window.flashes++
	}).observe(video.parentNode, { childList: true })
}, true)`

	// The functions that these tests use in the embedding page.
	sdkPage = `
window.until = async done => { while (!await done()) await new Promise(resume => setTimeout(resume, 20)) }
window.heard = []
addEventListener("message", ({ data }) => heard.push(data))
window.events = []
window.errors = []
window.watch = () => {
	for (const name of ["abort", "canplay", "canplaythrough", "durationchange", "ended", "error", "loadeddata", "loadedmetadata",
		"loadstart", "pause", "play", "playing", "progress", "ratechange", "resize", "seeked", "seeking", "stalled", "suspend",
		"timeupdate", "tokenexpiring", "volumechange", "waiting"]) player.addEventListener(name, () => events.push(name))
	player.addEventListener("error", ({ detail }) => errors.push(detail.reason + " " + detail.status))
}
window.outcome = promise => promise.then(() => "done", error => error.name + (error.reason ? " " + error.reason : ""))
`
)

// sdkPlayers are the means to play HLS: the options of the gate and a script for the browser.
func sdkPlayers(t *testing.T) map[string][2]string {
	t.Helper()
	return map[string][2]string{"native": {"player", ""}, "hls.js": {"player " + hlsJS(t), noNativeHLS}}
}

// embedPlayer opens a site that embeds a player page, with scripts that run in both.
func (w *web) embedPlayer(t *testing.T, browser, credential, query string) *tab {
	t.Helper()
	p := openPage(t, w.site(sdkSite)+"/", sdkPage, watchFrames, browser)
	evaluate[bool](t, p, fmt.Sprintf("window.loaded = embed('iframe', %q, {}); watch(); true", w.media("/"+credential+"/iframe"+query)))
	return p
}

// wantTrue waits until a script is true, in the page or in the frame.
func wantTrue(t *testing.T, p *tab, script string, frame ...string) {
	t.Helper()
	defer func() {
		if t.Failed() {
			t.Logf("the player: %s", evaluate[string](t, p, `(({ currentTime, paused, error, readyState }) => JSON.stringify({
				currentTime, paused, error, readyState, events: window.events, errors: window.errors }))(window.stream?.current ?? player)`))
		}
	}()
	eventually(t, script, func() bool {
		if len(frame) > 0 {
			return evaluate[bool](t, p, script, p.inFrame(frame[0]))
		}
		return evaluate[bool](t, p, script)
	})
}

// The player has the properties of Cloudflare's: each is read from the frame, and set in it.
func TestPlayerSDKProperties(t *testing.T) {
	t.Parallel()
	for how, player := range sdkPlayers(t) {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			w := startWeb(t, anyVideo(), config{app: sdkVideos, gate: player[0]})
			p := w.embedPlayer(t, player[1], mint(t, "sites", nil), "?primaryColor=lime")
			// Before the frame has loaded.
			evaluate[bool](t, p, `player.muted = true, player.volume = 0.5, player.currentTime = 3, player.preload = true, true`)
			if !evaluate[bool](t, p, `player.muted && player.volume === 0.5 && player.currentTime === 3 && player.paused && isNaN(player.duration)`) {
				t.Error("before the frame has loaded, the properties are not as they have been set")
			}
			wantTrue(t, p, `player.readyState >= 2 && Math.abs(player.currentTime - 3) < 0.1`)
			for _, row := range []struct{ set, inPage, inFrame string }{
				{"", `player.muted && player.volume === 0.5`, `video.muted && video.volume === 0.5 && Math.abs(video.currentTime - 3) < 0.1`},
				{"", `player.duration > 11 && player.duration === Math.max(player.duration, player.buffered.end(0))`, `video.preload === "auto"`},
				{"", `player.videoWidth === 320 && player.videoHeight === 180 || player.videoWidth === 160`, `true`},
				{"", `player.buffered.length === 1 && player.buffered.start(0) <= 3 && player.buffered.end(0) > 3`, `true`},
				{"", `player.played.length === 0 && !player.ended && !player.seeking && player.error === null`, `true`},
				{"", `player.primaryColor === "lime"`, `true`},
				{`player.muted = 0`, `player.muted === false`, `!video.muted`},
				{`player.muted = true`, `player.muted`, `video.muted`},
				{`player.volume = "0.25"`, `player.volume === 0.25`, `video.volume === 0.25`},
				{`player.currentTime = 5`, `Math.abs(player.currentTime - 5) < 0.1`, `Math.abs(video.currentTime - 5) < 0.1`},
				{`player.loop = true`, `player.loop`, `video.loop`},
				{`player.loop = false`, `!player.loop`, `!video.loop`},
				{`player.playbackRate = 2`, `player.playbackRate === 2`, `video.playbackRate === 2`},
				{`player.controls = false`, `player.controls === false`, `!document.getElementById("controls").checkVisibility()`},
				{`player.preload = "none"`, `player.preload === "none"`, `video.preload === "none"`},
				{`player.preload = false`, `player.preload === "none"`, `true`},
				{`player.preload = "metadata"`, `player.preload === "metadata"`, `video.preload === "metadata"`},
				{`player.primaryColor = "red"`, `player.primaryColor === "red"`, `document.documentElement.style.getPropertyValue("--primary") === "red"`},
				{`player.primaryColor = undefined`, `player.primaryColor === ""`, `document.documentElement.style.getPropertyValue("--primary") === ""`},
				{`player.letterboxColor = "transparent"`, `player.letterboxColor === "transparent"`, `document.documentElement.style.getPropertyValue("--letterbox") === "transparent"`},
				{`player.defaultTextTrack = "de"`, `player.defaultTextTrack === "de"`, `true`},
				{`player.poster = "thumbnails/thumbnail.jpg"`, `player.poster === "thumbnails/thumbnail.jpg"`, `video.poster === location.href.replace(/iframe.*/, "thumbnails/thumbnail.jpg")`},
				{`player.autoplay = true`, `player.autoplay && !player.paused`, `!video.paused`},
				{``, `player.played.length === 1 && player.played.end(0) > player.played.start(0)`, `true`},
				{`player.pause()`, `player.paused`, `video.paused`},
				{`player.currentTime = 1e9, player.play()`, `player.ended`, `video.ended`},
			} {
				evaluate[bool](t, p, row.set+";true")
				wantTrue(t, p, row.inPage)
				wantTrue(t, p, `(video => `+row.inFrame+`)(document.getElementById("video"))`, w.media(""))
			}

			// A value that the player does not take leaves the old one in force.
			for _, set := range []string{"volume = 2", "volume = NaN", "currentTime = -1", "playbackRate = 100", `primaryColor = "url(x)"`, `preload = "soon"`, `poster = "javascript:1"`} {
				name, _, _ := strings.Cut(set, " ")
				before := evaluate[string](t, p, "String(player."+name+")")
				evaluate[bool](t, p, "player."+set+", true")
				wantTrue(t, p, fmt.Sprintf("String(player.%s) === %q", name, before))
			}
			wantTrue(t, p, `document.getElementById("video").poster.endsWith("thumbnail.jpg")`, w.media(""))
			for _, name := range []string{"buffered", "duration", "ended", "error", "paused", "played", "videoHeight", "videoWidth"} {
				if got := evaluate[string](t, p, `"use strict"; try { player.`+name+` = 1; "set" } catch (error) { error.name }`); got != "TypeError" {
					t.Errorf("setting %s: %s", name, got)
				}
			}
			for script, want := range map[string]string{
				`player.buffered.start(7)`: "IndexSizeError", `player.played.end(-1)`: "IndexSizeError",
				`Stream(null)`: "TypeError", `Stream(document.body)`: "TypeError",
				`player === Stream(document.querySelector("iframe")) && "same"`: "same",
			} {
				if got := evaluate[string](t, p, `(() => { try { return `+script+` } catch (error) { return error.name } })()`); got != want {
					t.Errorf("%s: %s, want %s", script, got, want)
				}
			}
		})
	}
}

// The player has the events of Cloudflare's.
func TestPlayerSDKEvents(t *testing.T) {
	t.Parallel()
	for how, player := range sdkPlayers(t) {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			w := startWeb(t, anyVideo(), config{app: sdkVideos, gate: player[0]})
			p := w.embedPlayer(t, player[1], mint(t, "sites", nil), "?muted")
			evaluate[bool](t, p, `player.play(), true`)
			wantTrue(t, p, `player.currentTime > 0.5`)
			evaluate[bool](t, p, `player.volume = 0.5, player.playbackRate = 2, player.currentTime = 11, true`)
			wantTrue(t, p, `player.ended`)
			evaluate[bool](t, p, `player.load(), true`)
			// Some come when something is wrong with the network, and some players have none of
			// them, so these are not waited for.
			natural := []string{
				"canplay", "canplaythrough", "durationchange", "ended", "loadeddata", "loadedmetadata", "loadstart",
				"pause", "play", "playing", "progress", "ratechange", "resize", "seeked", "seeking", "timeupdate", "volumechange",
			}
			wantTrue(t, p, fmt.Sprintf(`%s.every(name => events.includes(name))`, strings.ReplaceAll(fmt.Sprintf("%q", natural), `" "`, `","`)))
			for _, name := range []string{"abort", "stalled", "suspend", "waiting"} {
				evaluate[bool](t, p, `window.before = events.filter(name => name === "`+name+`").length, true`)
				evaluate[bool](t, p, `document.getElementById("video").dispatchEvent(new Event("`+name+`"))`, p.inFrame(w.media("")))
				wantTrue(t, p, `events.filter(name => name === "`+name+`").length > before`)
			}

			// A listener that has been removed hears nothing any more.
			got := evaluate[string](t, p, `(async () => {
				const heard = []
				const listener = event => heard.push(event.type)
				player.addEventListener("volumechange", listener)
				player.volume = 0.1
				await until(() => heard.length > 0)
				player.removeEventListener("volumechange", listener)
				events.length = 0
				player.volume = 0.2
				await until(() => events.includes("volumechange"))
				return heard.join()
			})()`)
			if got != "volumechange" {
				t.Errorf("the listener has heard %s", got)
			}
		})
	}
}

// Several players are on one page, and go with their frames.
func TestPlayerSDKSeveralPlayers(t *testing.T) {
	t.Parallel()
	w := startWeb(t, anyVideo(), config{app: sdkVideos, gate: "player " + hlsJS(t)})
	p := w.embedPlayer(t, "", mint(t, "sites", nil), "?muted")
	address := w.media("/" + mint(t, "sites", nil) + "/iframe?muted")
	evaluate[bool](t, p, fmt.Sprintf(`window.first = player, embed("iframe", %q, {}), window.second = player, true`, address))
	evaluate[bool](t, p, `first.currentTime = 4, second.currentTime = 8, second.volume = 0.5, second.play(), true`)
	wantTrue(t, p, `first.paused && first.readyState > 1 && first.currentTime === 4 && first.volume === 1 && second.currentTime > 8 && !second.paused`)

	// A frame that is removed is silent, and one that returns plays again. Listeners remain.
	evaluate[bool](t, p, `document.querySelectorAll("iframe")[1].remove(), second.at = second.currentTime, first.play(), true`)
	wantTrue(t, p, `first.currentTime > 4.5`)
	if evaluate[bool](t, p, `second.currentTime !== second.at`) {
		t.Error("a player whose frame has been removed tells of progress")
	}
	evaluate[bool](t, p, `second.addEventListener("playing", () => { window.returned = true }), true`)
	evaluate[string](t, p, fmt.Sprintf(`(async () => {
		const frame = document.createElement("iframe")
		frame.allow = "autoplay"
		window.third = Stream(frame)
		third.play().then(() => { window.played = true })
		await until(() => first.currentTime > 5)
		frame.src = %q
		document.body.append(frame)
		await until(() => window.played)
		frame.remove()
		await until(() => first.currentTime > 6)
		document.body.append(frame)
		await third.play()
		return "plays again"
	})()`, address))
}

// A page written for Cloudflare's player plays here when its host has been replaced.
func TestPagesForCloudflare(t *testing.T) {
	t.Parallel()
	w := startWeb(t, anyVideo(), config{app: sdkVideos, gate: "player " + hlsJS(t)})
	hosts := regexp.MustCompile(`https://(embed|iframe|customer-[^/."]*)\.cloudflarestream\.com`)
	here := func(name string) string {
		text := must(os.ReadFile(name))(t)
		return hosts.ReplaceAllLiteralString(string(text), w.media(""))
	}
	pages := map[string]string{
		"/example":         here("testdata/embedding/cloudflare-example.html"),
		"/react":           here("testdata/embedding/cloudflare-react.html"),
		"/stream-react.js": here("node_modules/@cloudflare/stream-react/dist/stream-react.cjs.production.min.js"),
		"/react.js":        here("node_modules/react/umd/react.production.min.js"),
		"/react-dom.js":    here("node_modules/react-dom/umd/react-dom.production.min.js"),
	}
	w.sites.Config.Handler = http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, ".js") {
			rw.Header().Set("Content-Type", "text/javascript")
		}
		_, _ = fmt.Fprint(rw, strings.ReplaceAll(pages[r.URL.Path], "<VIDEO_UID>", mint(t, "sites", nil)))
	})

	// Their browser lets no video with sound play without a gesture.
	const noSound = `if (parent !== window) {
	const { play } = HTMLMediaElement.prototype
	HTMLMediaElement.prototype.play = function () {
		return this.muted ? play.call(this) : Promise.reject(new DOMException("", "NotAllowedError"))
	}
}`
	t.Run("the example of its documentation", func(t *testing.T) {
		p := openPage(t, w.site(sdkSite)+"/example", noSound, `window.said = []; console.log = text => said.push(text)`)
		wantTrue(t, p, `player.currentTime > 0.5 && player.muted && said.join() === "playback failed, muting to try again,playing!"`)
	})
	t.Run("its React component", func(t *testing.T) {
		p := openPage(t, w.site(sdkSite)+"/react")
		wantTrue(t, p, `stream.current?.currentTime > 4.5 && stream.current.muted && heard.has("canplay") && heard.has("playing")`)
		wantTrue(t, p, `document.querySelector("iframe").parentElement.style.paddingTop === "56.25%"`)
		evaluate[bool](t, p, `render({ muted: true, controls: false, volume: 0.3, playbackRate: 2, loop: true }), true`)
		wantTrue(t, p, `(video => !document.getElementById("controls").checkVisibility() && video.volume === 0.3 && video.playbackRate === 2 && video.loop)(document.getElementById("video"))`, w.media(""))
		evaluate[bool](t, p, fmt.Sprintf(`window.before = stream.current.currentTime, render({ src: %q }), true`, mint(t, "sites", func(c *token.Claims) { c.ExpiresAt = time.Now().Add(2 * time.Hour) })))
		wantTrue(t, p, `stream.current.currentTime !== before && !stream.current.paused`)
	})
}

// renewing is a player page whose token can expire at any moment of a test.
type renewing struct {
	*tab
	web            *web
	old, next      string // tokens for the same video
	forged         string
	expired, holds atomic.Bool   // the old token has expired; the third segments wait
	released       chan struct{} // for this
}

func startRenewing(t *testing.T, player [2]string, query string) *renewing {
	t.Helper()
	later := func(d time.Duration) func(*token.Claims) {
		return func(c *token.Claims) { c.ExpiresAt, c.Viewer = time.Now().Add(d), "fan" }
	}
	w := startWeb(t, anyVideo(), config{app: sdkVideos + "\nsessions on", gate: player[0]})
	r := &renewing{web: w, released: make(chan struct{}), old: mint(t, "sites", later(time.Hour)), next: mint(t, "sites", later(2*time.Hour))}
	r.forged = r.next[:len(r.next)-8] + "AAAAAAAA"
	past := mint(t, "sites", later(-time.Minute))
	w.tap.diverting(func(_ http.ResponseWriter, req *http.Request) bool {
		if r.holds.Load() && strings.HasSuffix(req.URL.Path, "/003.m4s") {
			select {
			case <-r.released:
			case <-req.Context().Done():
			}
		}
		if rest, ok := strings.CutPrefix(req.URL.Path, "/"+r.old+"/"); ok && r.expired.Load() {
			req.URL.Path = "/" + past + "/" + rest
		}
		return false
	})
	r.tab = w.embedPlayer(t, player[1], r.old, query)
	evaluate[bool](t, r.tab, `window.backwards = false, window.at = 0, player.addEventListener("timeupdate", () => {
		window.backwards ||= player.currentTime < at
		window.at = player.currentTime
	}), true`)
	return r
}

// renew hands a token over and returns how that has ended.
func (r *renewing) renew(t *testing.T, compact string) string {
	t.Helper()
	return evaluate[string](t, r.tab, fmt.Sprintf("outcome(player.renew(%q))", compact))
}

// A new token for the same video comes at any time, and playback goes on where it is, in the same
// session.
func TestRenewal(t *testing.T) {
	t.Parallel()
	const playsOn = `player.currentTime > 9 && !backwards`
	playing := func(t *testing.T, r *renewing) {
		r.holds.Store(true)
		evaluate[bool](t, r.tab, `player.play(), true`)
		wantTrue(t, r.tab, `player.currentTime > 0.5`)
		eventually(t, "a request for the third segment", func() bool { return r.web.tap.underWay.Load() > 0 })
		evaluate[bool](t, r.tab, `events.length = 0, true`)
	}
	for _, tc := range []struct {
		name, query string
		do          func(*testing.T, *renewing)
		then        string // what the page sees in the end
		restarts    bool   // the embedding page may hear of it
		errors      string
	}{
		{name: "while it plays", do: func(t *testing.T, r *renewing) {
			playing(t, r)
			r.want(t, "done", r.next)
			close(r.released)
			wantTrue(t, r.tab, `player.currentTime > 4`)
			r.expired.Store(true)
		}, then: playsOn + ` && !player.paused || player.ended`},
		{name: "while requests with the old token are under way, which then fail", do: func(t *testing.T, r *renewing) {
			playing(t, r)
			r.want(t, "done", r.next)
			r.expired.Store(true)
			close(r.released)
		}, then: playsOn, restarts: true},
		{name: "after it has expired", do: func(t *testing.T, r *renewing) {
			playing(t, r)
			r.expired.Store(true)
			close(r.released)
			wantTrue(t, r.tab, `player.error?.reason === "token_expired"`)
			r.want(t, "done", r.next)
			wantTrue(t, r.tab, `player.error === null`)
			wantTrue(t, r.tab, `!document.getElementById("failure").checkVisibility() || !document.getElementById("failure").textContent`, r.web.media(""))
		}, then: playsOn, restarts: true, errors: "token_expired 401"},
		{name: "while it is paused", do: func(t *testing.T, r *renewing) {
			wantTrue(t, r.tab, `player.readyState >= 2`)
			evaluate[bool](t, r.tab, `player.currentTime = 2.5, until(() => events.includes("seeked")).then(() => { events.length = 0; return true })`)
			r.want(t, "done", r.next)
			r.expired.Store(true)
			wantTrue(t, r.tab, `(video => video.readyState >= 2 && video.currentTime === 2.5 && video.paused && !document.querySelector("canvas"))(document.getElementById("video"))`, r.web.media(""))
			if !evaluate[bool](t, r.tab, `player.paused && player.currentTime === 2.5`) {
				t.Error("it is not where it was")
			}
			evaluate[bool](t, r.tab, `player.play(), true`)
		}, then: playsOn},
		{name: "while it seeks", do: func(t *testing.T, r *renewing) {
			playing(t, r)
			evaluate[bool](t, r.tab, `player.currentTime = 5, true`)
			wantTrue(t, r.tab, `player.seeking`)
			r.want(t, "done", r.next)
			close(r.released)
		}, then: `player.currentTime > 6 && !backwards`, restarts: true},
		{name: "before the frame has loaded", do: func(t *testing.T, r *renewing) {
			evaluate[bool](t, r.tab, `player.play(), true`)
			r.want(t, "done", r.next)
			r.expired.Store(true)
		}, query: "&startTime=1", then: playsOn, restarts: true},
		{name: "twice", do: func(t *testing.T, r *renewing) {
			playing(t, r)
			r.want(t, "done", mint(t, "sites", func(c *token.Claims) { c.ExpiresAt, c.Viewer = time.Now().Add(3*time.Hour), "fan" }))
			r.want(t, "done", r.next)
			close(r.released)
		}, then: playsOn},
		{name: "by two assignments to src, of which the first is under way", do: func(t *testing.T, r *renewing) {
			playing(t, r)
			first := mint(t, "sites", func(c *token.Claims) { c.ExpiresAt, c.Viewer = time.Now().Add(3*time.Hour), "fan" })
			evaluate[bool](t, r.tab, fmt.Sprintf(`player.src = %q, player.src = %q, true`, first, r.next))
			wantTrue(t, r.tab, fmt.Sprintf(`player.src === %q`, r.next))
			close(r.released)
		}, then: playsOn},
		{name: "with tokens that are refused", do: func(t *testing.T, r *renewing) {
			playing(t, r)
			r.want(t, "TypeError", "", "demo", "a.b", r.next+".", r.next+"/../x", "https://evil.test/"+r.next, "a.b.c d", r.next+"?x=1")
			r.want(t, "DataError", mint(t, "demo", nil), "a.b.c")
			r.want(t, "DataError signature_invalid", r.forged)
			r.want(t, "DataError token_expired", mint(t, "sites", func(c *token.Claims) { c.ExpiresAt = time.Now().Add(-time.Minute) }))
			r.want(t, "DataError rule_blocked", mint(t, "sites", withRules(`[{"type":"any","action":"block"}]`)))
			r.next = r.old
			close(r.released)
		}, then: playsOn},
	} {
		for how, player := range sdkPlayers(t) {
			t.Run(tc.name+", "+how, func(t *testing.T) {
				t.Parallel()
				r := startRenewing(t, player, "?muted"+tc.query)
				tc.do(t, r)
				wantTrue(t, r.tab, tc.then)
				if got := evaluate[string](t, r.tab, `errors.join()`); got != tc.errors {
					t.Errorf("the embedding page has heard of the errors %q, want %q", got, tc.errors)
				}
				if heard := evaluate[string](t, r.tab, `events.filter(name => ["abort", "loadstart", "error"].includes(name)).join()`); !tc.restarts && heard != "" {
					t.Errorf("the embedding page has heard of a restart: %s", heard)
				}
				if !evaluate[bool](t, r.tab, fmt.Sprintf(`location.pathname === "/%s/iframe"`, r.next), r.inFrame(r.web.media(""))) {
					t.Error("the address of the page has not the token in force")
				}
				if n := evaluate[int](t, r.tab, `flashes`, r.inFrame(r.web.media(""))); n > 0 && tc.errors == "" && tc.query == "" {
					t.Errorf("the video has lost its picture %d times", n)
				}
			})
		}
	}
}

// want hands tokens over and compares how that ends.
func (r *renewing) want(t *testing.T, want string, tokens ...string) {
	t.Helper()
	for _, compact := range tokens {
		if got := r.renew(t, compact); got != want {
			t.Errorf("renew(%.40q…): %s, want %s", compact, got, want)
		}
	}
}

// Only the page that embeds the player commands it, and only the player answers. A token that
// is handed over reaches no other page, and no message of the player contains one.
func TestPlayerSDKStrangers(t *testing.T) {
	t.Parallel()
	r := startRenewing(t, [2]string{"player " + hlsJS(t), noNativeHLS}, "?muted")
	stranger, player := r.web.site("other.media.test"), r.web.media("")
	wantTrue(t, r.tab, `player.readyState >= 2`)
	evaluate[bool](t, r.tab, fmt.Sprintf(`embed("object", %q, {}).then(() => true)`, stranger+"/"))
	evaluate[bool](t, r.tab, fmt.Sprintf(`(() => {
		const type = "signed-playback"
		const commands = [{ method: "play" }, { method: "connect" }, { set: { volume: 0.1 } }, { get: ["volume"] }, { renew: %q }]
		commands.forEach((command, id) => parent.frames[0].postMessage({ type, id, ...command }, "*"))
		for (const event of ["ended", "error", "ready"]) parent.postMessage({ type, event, page: 1, volume: 0.2, reason: "x", status: 1 }, "*")
		return true
	})()`, r.next), r.inFrame(stranger))
	evaluate[bool](t, r.tab, `player.playbackRate = 1.5, true`)
	wantTrue(t, r.tab, `document.getElementById("video").playbackRate === 1.5`, player)
	if !evaluate[bool](t, r.tab, fmt.Sprintf(`(video => video.paused && video.volume === 1 && location.pathname.includes(%q))(document.getElementById("video"))`, r.old), r.inFrame(player)) {
		t.Error("the player obeys another frame of the page")
	}
	if evaluate[bool](t, r.tab, `events.includes("ended") || errors.length > 0 || player.volume !== 1 || player.error !== null`) {
		t.Error("the page believes another frame")
	}
	if heard := evaluate[string](t, r.tab, `JSON.stringify(heard)`, r.inFrame(stranger)); heard != "[]" {
		t.Errorf("another frame has heard %s", heard)
	}
	r.want(t, "done", r.next)
	said := evaluate[string](t, r.tab, `JSON.stringify(heard)`)
	for what, text := range map[string]string{"the old token": r.old, "the new token": r.next, "an address": "://", "a path": "/iframe"} {
		if strings.Contains(said, text) {
			t.Errorf("the messages of the player contain %s", what)
		}
	}

	// Another site has come into the player's frame.
	evaluate[bool](t, r.tab, fmt.Sprintf(`document.querySelector("iframe").contentWindow.location = %q, true`, stranger+"/?in-the-frame"))
	wantTrue(t, r.tab, `location.search === "?in-the-frame"`, stranger)
	evaluate[bool](t, r.tab, `player.renew("a.b.c"), player.volume = 0.3, player.play(), document.querySelector("iframe").contentWindow.postMessage("last", "*"), true`)
	wantTrue(t, r.tab, `heard.includes("last")`, stranger)
	if heard := evaluate[string](t, r.tab, `JSON.stringify(heard)`, r.inFrame(stranger)); heard != `["last"]` {
		t.Errorf("another site in the frame has heard %s", heard)
	}
	evaluate[bool](t, r.tab, `events.length = 0, true`)
	evaluate[bool](t, r.tab, `parent.postMessage({ type: "signed-playback", event: "ended" }, "*"), parent.postMessage("last", "*"), true`, r.inFrame(stranger))
	wantTrue(t, r.tab, `heard.includes("last")`)
	if events := evaluate[string](t, r.tab, `events.join()`); events != "" {
		t.Errorf("the page believes another site in the frame: %s", events)
	}

	// The page itself shows another site in the frame, which pretends to be a player.
	pretender := r.web.site("third.media.test")
	evaluate[bool](t, r.tab, fmt.Sprintf(`window.pending = outcome(player.renew("a.b.c")), document.querySelector("iframe").src = %q, true`, pretender+"/"))
	wantTrue(t, r.tab, `location.hostname === "third.media.test"`, pretender)
	evaluate[bool](t, r.tab, `parent.postMessage({ type: "signed-playback", event: "ready", page: 2 }, "*"), true`, r.inFrame(pretender))
	if got := evaluate[string](t, r.tab, `pending`); got != "AbortError" {
		t.Errorf("renew ends with %s", got)
	}
	if heard := evaluate[string](t, r.tab, `JSON.stringify(heard)`, r.inFrame(pretender)); strings.Contains(heard, "a.b.c") {
		t.Errorf("another site that the page shows in the frame has heard %s", heard)
	}
}

// The embedding page is told in time that a token expires, and that its frame shows something else.
func TestPlayerSDKWarnings(t *testing.T) {
	t.Parallel()
	soon := func(c *token.Claims) { c.ExpiresAt = time.Now().Add(59 * time.Second) }
	w := startWeb(t, anyVideo(), config{app: sdkVideos, gate: "player " + hlsJS(t)})
	for _, tc := range []struct {
		name, credential string
		warns            bool
	}{
		{"a token for an hour", mint(t, "sites", nil), false},
		{"a token for less than a minute", mint(t, "sites", soon), true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := w.embedPlayer(t, "", tc.credential, "?muted")
			wantTrue(t, p, `player.readyState >= 2`)
			if got := evaluate[int](t, p, `events.filter(name => name === "tokenexpiring").length`); (got == 1) != tc.warns {
				t.Errorf("%d warnings", got)
			}
		})
	}
	t.Run("a gate that does not answer", func(t *testing.T) {
		p := openPage(t, w.site(sdkSite)+"/", sdkPage)
		evaluate[bool](t, p, `embed("iframe", "http://gate.media.test:1/a/iframe", {}), watch(), window.playing = outcome(player.play()), true`)
		wantTrue(t, p, `errors.join() === "network_error 0" && player.error.reason === "network_error"`)
		if got := evaluate[string](t, p, `playing`); got != "InvalidStateError" {
			t.Errorf("play ends with %s", got)
		}
	})
}

// The embedding page hears why the gate has refused its frame, also if the SDK comes late, and
// may renew the token. Any site can embed the page of a refusal, so the gate decides again: a
// site that is not allowed must not get a page that plays by handing over a good token.
func TestRenewalOfRefusedFrames(t *testing.T) {
	t.Parallel()
	const refused = `errors.join() === "token_expired 401" && player.error.reason === "token_expired"`
	w := startWeb(t, anyVideo(), config{app: sdkVideos, gate: "player " + hlsJS(t)})
	expired := mint(t, "sites", func(c *token.Claims) { c.ExpiresAt = time.Now().Add(-time.Minute) })
	renew := fmt.Sprintf(`outcome(player.renew(%q))`, mint(t, "sites", nil))
	for _, tc := range []struct {
		name, site, page string
		late             bool // the SDK comes when the frame has loaded
		then             string
	}{
		{"an allowed site", sdkSite, "", false, `player.currentTime > 4.5 && player.error === null`},
		{"an allowed site that loads the SDK late", sdkSite, "", true, `player.currentTime > 4.5 && player.error === null`},
		{"another site", "evil.test", "", false, `errors[1] === "origin_not_allowed 403"`},
		{"another site without a referrer", "evil.test", "?referrer=no-referrer", false, `errors[1] === "network_error 0"`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			p := openPage(t, w.site(tc.site)+"/"+tc.page, sdkPage)
			embedding := fmt.Sprintf("embed('iframe', %q, {})", w.media("/"+expired+"/iframe?muted&autoplay"))
			if !tc.late {
				evaluate[bool](t, p, embedding+"; watch(); player.currentTime = 4; true")
			} else {
				evaluate[bool](t, p, `window.Late = Stream, Stream = () => null, window.loaded = `+embedding+`, loaded.then(() => true)`)
				evaluate[bool](t, p, `player = Late(document.querySelector("iframe")), watch(), player.currentTime = 4, true`)
			}
			wantTrue(t, p, refused)
			if got := evaluate[string](t, p, `outcome(player.play())`); got != "InvalidStateError" {
				t.Errorf("play ends with %s", got)
			}
			if got := evaluate[string](t, p, renew); got != "done" {
				t.Errorf("renew ends with %s", got)
			}
			wantTrue(t, p, tc.then)
			if tc.site != sdkSite && evaluate[bool](t, p, `events.includes("loadedmetadata")`) {
				t.Error("it plays on a site that is not allowed")
			}
		})
	}
}

// A viewer tries again in a refused frame, and the gate sees the site that embeds it as before.
func TestRetryOfRefusedFrame(t *testing.T) {
	t.Parallel()
	w := startWeb(t, anyVideo(), config{app: sdkVideos, gate: "player " + hlsJS(t)})
	good, early := mint(t, "sites", nil), mint(t, "sites", func(c *token.Claims) { c.NotBefore = time.Now().Add(30 * time.Minute) })
	var valid atomic.Bool
	w.tap.diverting(func(_ http.ResponseWriter, r *http.Request) bool {
		if !valid.Load() {
			r.URL.Path = strings.Replace(r.URL.Path, good, early, 1)
		}
		return false
	})
	p := w.embedPlayer(t, "", good, "?muted&autoplay")
	wantTrue(t, p, `errors.join() === "token_not_yet_valid 401"`)
	valid.Store(true)
	evaluate[bool](t, p, `document.querySelector("#failure button").click(), true`, p.inFrame(w.media("")))
	wantTrue(t, p, `player.currentTime > 0.5 && player.error === null`)
}
