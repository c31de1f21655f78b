package integration

import (
	"cmp"
	"fmt"
	"html/template"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	gocmp "github.com/google/go-cmp/cmp"

	"github.com/signed-playback/caddy-signed-playback/token"
)

// exchange is a request and its response, as they crossed the wire.
type exchange struct {
	method, uri       string
	request, response http.Header
	status            int
}

func (e exchange) verdict() verdict {
	return verdict{e.status, e.response.Get("Signed-Playback-Reason")}
}

// space is the token or video id of the request.
func (e exchange) space() string {
	space, _, _ := strings.Cut(strings.TrimPrefix(e.uri, "/"), "/")
	return space
}

// suffix is what the request asks for, without the token.
func (e exchange) suffix() string {
	_, suffix, _ := strings.Cut(strings.TrimPrefix(e.uri, "/"), "/")
	return suffix
}

// tap stands between browser and gate and records what they say.
type tap struct {
	server *httptest.Server

	underWay  atomic.Int64 // requests
	mu        sync.Mutex
	exchanges []exchange
	divert    func(http.ResponseWriter, *http.Request) bool
}

func startTap(t *testing.T, g *gateway) *tap {
	t.Helper()
	target := must(url.Parse(g.url("")))(t)
	tp := new(tap)
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.Out.Host = r.In.Host
		},
		ModifyResponse: func(r *http.Response) error {
			tp.mu.Lock()
			defer tp.mu.Unlock()
			tp.exchanges = append(tp.exchanges, exchange{r.Request.Method, r.Request.URL.RequestURI(), r.Request.Header, r.Header.Clone(), r.StatusCode})
			return nil
		},
		FlushInterval: -1,
		ErrorLog:      log.New(io.Discard, "", 0), // browsers hang up as they like
	}
	tp.server = serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		tp.underWay.Add(1)
		defer tp.underWay.Add(-1)
		tp.mu.Lock()
		divert := tp.divert
		tp.mu.Unlock()
		if divert == nil || !divert(w, r) {
			proxy.ServeHTTP(w, r)
		}
	}))
	return tp
}

// diverting has a function see each request first. It may change the request,
// or answer it and report true.
func (tp *tap) diverting(divert func(http.ResponseWriter, *http.Request) bool) {
	tp.mu.Lock()
	defer tp.mu.Unlock()
	tp.divert = divert
}

// recorded returns what has crossed the wire so far.
func (tp *tap) recorded() []exchange {
	tp.mu.Lock()
	defer tp.mu.Unlock()
	return slices.Clone(tp.exchanges)
}

// first returns the first exchange with a method, about a suffix.
func (tp *tap) first(method, suffix string) (exchange, bool) {
	for _, e := range tp.recorded() {
		if path, _, _ := strings.Cut(e.uri, "?"); e.method == method && strings.HasSuffix(path, suffix) {
			return e, true
		}
	}
	return exchange{}, false
}

// web is a gate and sites that show its videos.
type web struct {
	origin *origin
	gate   *gateway
	tap    *tap
	sites  *httptest.Server

	mu      sync.Mutex
	posters []http.Header // of requests for the sites' poster
}

// hlsJS is where install-tools.sh puts it.
func hlsJS(t *testing.T) string {
	t.Helper()
	path := must(filepath.Abs("node_modules/hls.js/dist/hls.min.js"))(t)
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%v; integration/install-tools.sh installs hls.js", err)
	}
	return path
}

// anyVideo serves the clip of examples/media for every video id.
func anyVideo() http.Handler {
	clip := exampleMedia()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, suffix, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
		r.URL.Path = "/demo/" + suffix
		clip.ServeHTTP(w, r)
	})
}

// startWeb starts everything except the browser. It replaces %PORT% in the options of the
// app by the port of the sites.
func startWeb(t *testing.T, next http.Handler, c config) *web {
	t.Helper()
	w := new(web)
	w.origin = startOrigin(t, next)
	w.sites = serve(t, w.serveSites(t))
	c.app = strings.ReplaceAll(c.app, "%PORT%", portOf(w.sites))
	w.gate = start(t, w.origin, c)
	w.tap = startTap(t, w.gate)
	return w
}

// serveSites answers for every site alike. What the query names is put into the
// page (referrer) and its headers (sandbox).
func (w *web) serveSites(t *testing.T) http.Handler {
	t.Helper()
	site := template.Must(template.ParseFiles("testdata/embedding/site.html"))
	hls := hlsJS(t)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(rw http.ResponseWriter, r *http.Request) {
		if sandbox := r.URL.Query().Get("sandbox"); sandbox != "" {
			rw.Header().Set("Content-Security-Policy", "sandbox "+sandbox)
		}
		_ = site.Execute(rw, struct{ Referrer, SDK string }{r.URL.Query().Get("referrer"), w.media(sdkPath)})
	})
	mux.HandleFunc("GET /hls.min.js", func(rw http.ResponseWriter, r *http.Request) { http.ServeFile(rw, r, hls) })
	mux.HandleFunc("GET /poster.jpg", func(rw http.ResponseWriter, r *http.Request) {
		w.mu.Lock()
		w.posters = append(w.posters, r.Header.Clone())
		w.mu.Unlock()
		http.ServeFile(rw, r, "../examples/media/demo/thumbnails/thumbnail.jpg")
	})
	return mux
}

func portOf(s *httptest.Server) string { return s.URL[strings.LastIndexByte(s.URL, ':')+1:] }

// site is the origin of a site.
func (w *web) site(host string) string { return "http://" + host + ":" + portOf(w.sites) }

// media is an address on the gate.
func (w *web) media(path string) string {
	return "http://" + gateHost + ":" + portOf(w.tap.server) + path
}

// forget starts a new record, once requests of earlier tabs have ended.
func (w *web) forget(t *testing.T) {
	t.Helper()
	eventually(t, "earlier requests have ended", func() bool { return w.tap.underWay.Load() == 0 })
	w.tap.mu.Lock()
	w.tap.exchanges = nil
	w.tap.mu.Unlock()
	w.origin.take()
}

const allowedSites = `
	video sites {
		allowed_origins *.example.test:%PORT%
	}
	video apps {
		allowed_origins *.example.test:%PORT%
		missing_origin allow
	}`

// progress is what seen of site.html holds.
type progress struct {
	Position float64  `json:"position"`
	Told     string   `json:"told"`
	Failed   string   `json:"failed"`
	Senders  []string `json:"senders"`
	Events   []string `json:"events"`
	Nested   bool     `json:"nested"` // a page in a frame has loaded a frame of its own
}

// enough is how far a video has to get to have played.
const enough = 0.3

// shown is the outcome of a frame.
type shown struct {
	Page    verdict // the gate's answer to the request for the page
	Blocked bool    // frame-ancestors has kept the browser from showing it
	Plays   bool
	Told    string // the reason that the page gives to viewer and embedder
}

// An iframe plays on the sites of the video's allowed origins, whether or not they
// send a referrer, and on no others. Which origins match a pattern is for the unit
// tests; here, browsers show what they send and enforce.
func TestEmbedding(t *testing.T) {
	t.Parallel()
	w := startWeb(t, anyVideo(), config{app: allowedSites, gate: "player " + hlsJS(t)})
	plays := shown{Page: verdict{Status: 200}, Plays: true}
	blocked := shown{Page: verdict{Status: 200}, Blocked: true}
	notAllowed := shown{Page: refusedFor("origin_not_allowed"), Told: "origin_not_allowed"}
	missing := shown{Page: refusedFor("origin_required"), Told: "origin_required"}
	const allowed, noReferrer, frameWithout = "a.b.example.test", "?referrer=no-referrer", `{referrerpolicy: "no-referrer"}`
	for _, tc := range []struct {
		name, video, site, page string
		element, attributes     string // default: an iframe without any
		want                    shown
	}{
		{name: "an allowed site", site: allowed, want: plays},
		{name: "another site", site: "evil.test", want: notAllowed},
		{name: "an allowed site, iframe without referrer", site: allowed, attributes: frameWithout, want: plays},
		{name: "another site, iframe without referrer", site: "evil.test", attributes: frameWithout, want: blocked},
		{name: "an allowed site, page without referrer", site: allowed, page: noReferrer, want: plays},
		{name: "another site, page without referrer", site: "evil.test", page: noReferrer, want: blocked},
		{name: "an object without referrer", site: "evil.test", page: noReferrer, element: "object", want: shown{Page: missing.Page}},

		// Its origin is null, so it is of no site.
		{
			name: "a sandbox without allow-same-origin", site: allowed, attributes: `{sandbox: "allow-scripts"}`,
			want: shown{Page: verdict{Status: 200}, Told: "origin_not_allowed"},
		},
		{name: "a sandbox with allow-same-origin", site: allowed, attributes: `{sandbox: "allow-scripts allow-same-origin"}`, want: plays},
		{name: "an allowed site in a sandbox", site: allowed, page: "?sandbox=allow-scripts", want: blocked},

		{name: "missing_origin allow, another site", video: "apps", site: "evil.test", want: notAllowed},
		{name: "missing_origin allow, another site without referrer", video: "apps", site: "evil.test", attributes: frameWithout, want: blocked},
		{name: "no allowed origins, any site", video: "demo", site: "evil.test", want: plays},
	} {
		t.Run(tc.name, func(t *testing.T) {
			video, element, attributes := cmp.Or(tc.video, "sites"), cmp.Or(tc.element, "iframe"), cmp.Or(tc.attributes, "{}")
			p := openPage(t, w.site(tc.site)+"/"+tc.page)
			w.forget(t)
			src := w.media("/" + mint(t, video, nil) + "/iframe?muted")
			evaluate[bool](t, p, fmt.Sprintf("embed(%q, %q, %s).then(() => true)", element, src, attributes))
			if element == "iframe" {
				evaluate[bool](t, p, "playEmbedded(), true")
			}
			got, last := w.watchFrame(t, p, tc.want)
			if diff := gocmp.Diff(tc.want, got); diff != "" {
				t.Errorf("the frame (-want +got):\n%s\nlast seen: %+v", diff, last)
			}
			w.checkFrame(t, p, got, last)
		})
	}

	// All that embed the page have to be allowed, not only the one next to it.
	t.Run("an allowed site inside of another", func(t *testing.T) {
		p := openPage(t, w.site("evil.test")+"/")
		w.forget(t)
		inner := w.site("www.example.test") + "/?embed=" + url.QueryEscape(w.media("/"+mint(t, "sites", nil)+"/iframe"))
		evaluate[bool](t, p, fmt.Sprintf("embed('iframe', %q, {}).then(() => true)", inner))
		eventually(t, "the inner frame", func() bool { return evaluate[progress](t, p, "seen").Nested })
		if page, _ := w.tap.first("GET", "/iframe"); page.verdict() != (verdict{Status: 200}) {
			t.Errorf("the page: %v", page.verdict())
		}
		w.wantNotRun(t, p)
	})

	// Browsers send Sec-Fetch-Dest over TLS and to localhost only.
	t.Run("an allowed site without referrer, and a gate without TLS", func(t *testing.T) {
		p := openPage(t, w.site("www.example.test")+"/"+noReferrer)
		w.forget(t)
		src := strings.Replace(w.media("/"+mint(t, "sites", nil)+"/iframe"), gateHost, "plain.test", 1)
		evaluate[bool](t, p, fmt.Sprintf("embed('iframe', %q, {}).then(() => true)", src))
		if got, _ := w.watchFrame(t, p, missing); got != missing {
			t.Errorf("the frame: %+v, want %+v", got, missing)
		}
	})

	// A page of its own is for the allowed sites, too.
	for _, tc := range []struct {
		name, video, from string
		want              verdict
	}{
		{"a link on an allowed site", "sites", w.site("www.example.test") + "/", verdict{Status: 200}},
		{"no link", "sites", "about:blank", refusedFor("origin_required")},
		{"no link, missing_origin allow", "apps", "about:blank", verdict{Status: 200}},
	} {
		t.Run("at the top, "+tc.name, func(t *testing.T) {
			p := openPage(t, tc.from)
			w.forget(t)
			evaluate[bool](t, p, fmt.Sprintf("location = %q, true", w.media("/"+mint(t, tc.video, nil)+"/iframe")))
			var page exchange
			eventually(t, "a request for the page", func() (ok bool) { page, ok = w.tap.first("GET", "/iframe"); return ok })
			if dest := page.request.Get("Sec-Fetch-Dest"); page.verdict() != tc.want || dest != "document" {
				t.Errorf("the page of a %q: %v, want %v", dest, page.verdict(), tc.want)
			}
			if tc.want.Reason != "" {
				w.origin.wantUntouched(t)
			}
		})
	}
}

// wantNotRun checks that the gate's page has not run: it would have asked for its manifest
// at once.
func (w *web) wantNotRun(t *testing.T, p *tab) {
	t.Helper()
	// Time for that: a request of this page, there and back.
	evaluate[verdict](t, p, fmt.Sprintf("ask(%q)", w.media("/sentinel/manifest/video.m3u8")))
	for _, e := range w.tap.recorded() {
		if !strings.Contains(e.uri, "/iframe") && !strings.HasPrefix(e.uri, "/sentinel/") && e.uri != sdkPath {
			t.Errorf("the page has run and asked for %s", e.suffix())
		}
	}
	w.origin.wantUntouched(t)
}

// watchFrame waits for the outcome of a frame.
func (w *web) watchFrame(t *testing.T, p *tab, want shown) (got shown, last progress) {
	t.Helper()
	eventually(t, "something in the frame", func() bool {
		sent, ok := w.tap.first("GET", "/iframe")
		if !ok {
			return false
		}
		got.Page = sent.verdict()
		last = evaluate[progress](t, p, "seen")
		got.Blocked = p.logged("frame-ancestors")
		got.Plays = last.Position > enough
		got.Told = last.Told
		return got.Page.Status != 200 && want.Told == "" || got.Blocked || got.Plays || got.Told != ""
	})
	return got, last
}

// checkFrame checks what must follow from the outcome.
func (w *web) checkFrame(t *testing.T, p *tab, got shown, last progress) {
	t.Helper()
	checkCORS(t, w.tap.recorded())
	if !got.Plays {
		w.origin.wantUntouched(t)
		if got.Told == "" || got.Page.Status != 200 {
			w.wantNotRun(t, p)
		}
		if got.Told == "" {
			wantEqual(t, progress{Senders: []string{}, Events: []string{}}, last, "the frame has spoken")
		}
		return
	}
	for _, event := range []string{"loadedmetadata", "play", "playing", "timeupdate"} {
		if !slices.Contains(last.Events, event) {
			t.Errorf("no event %s among %v", event, last.Events)
		}
	}
	if want := []string{w.media("")}; !slices.Equal(last.Senders, want) {
		t.Errorf("messages came from %v, want %v", last.Senders, want)
	}
	// The gate's own page is on none of the allowed sites, and plays by being
	// the gate's.
	for _, e := range w.tap.recorded() {
		if strings.Contains(e.uri, "/iframe") {
			continue
		}
		if host, page, _ := strings.Cut(e.request.Get("Referer"), e.space()); host != w.media("/") || page == "" {
			t.Errorf("%s was asked for with the Referer %q, want the page of the same token", e.suffix(), e.request.Get("Referer"))
		}
	}
}

// checkCORS checks that each answer is readable for exactly the scripts that may read it.
// The token in the path tells which video has no allowed origins.
func checkCORS(t *testing.T, exchanges []exchange) {
	t.Helper()
	for _, e := range exchanges {
		var want []string
		origin := e.request.Get("Origin")
		switch {
		case e.method == http.MethodOptions || e.status >= 400:
			want = []string{"*"}
		case isOpen(e.uri):
			want = []string{"*"}
		case origin != "":
			want = []string{origin}
		}
		name := e.method + " of " + e.suffix()
		wantEqual(t, want, e.response.Values("Access-Control-Allow-Origin"), "%s from %q: Access-Control-Allow-Origin", name, origin)
		if got := e.response.Values("Access-Control-Allow-Credentials"); len(got) != 0 {
			t.Errorf("%s: Access-Control-Allow-Credentials %q", name, got)
		}
		varies := strings.Count(strings.Join(e.response.Values("Vary"), ","), "Origin")
		if wanted := !isOpen(e.uri) && e.method != http.MethodOptions; varies > 1 || wanted && varies != 1 {
			t.Errorf("%s: Vary %q", name, e.response.Values("Vary"))
		}
	}
}

// isOpen reports whether a path is of the video without allowed origins.
func isOpen(uri string) bool {
	space, _, _ := strings.Cut(strings.TrimPrefix(uri, "/"), "/")
	parsed, err := token.Parse(space)
	return err == nil && parsed.Unverified().VideoID == "demo"
}

// ownPlayer is the outcome of a player on a site's own page.
type ownPlayer struct {
	Manifest verdict // the gate's answer to the player
	Plays    bool
	Failed   string  // as the player tells
	Script   verdict // what a script on the page is told
}

// A site's own player plays where the site is allowed, and a script of any site
// can read why not.
func TestOwnPlayer(t *testing.T) {
	t.Parallel()
	w := startWeb(t, anyVideo(), config{app: allowedSites})
	notAllowed, missing := refusedFor("origin_not_allowed"), refusedFor("origin_required")
	playing := ownPlayer{Manifest: plays, Plays: true, Script: plays}
	refused := func(failed string, player, script verdict) ownPlayer {
		return ownPlayer{Manifest: player, Failed: failed, Script: script}
	}
	const (
		noReferrer = "?referrer=no-referrer"
		sandbox    = "?sandbox=allow-scripts" // the page's origin is null
		native     = "media error"
		hls        = "manifestLoadError 403"
		cors       = `{crossorigin: "anonymous"}`
	)
	for _, tc := range []struct {
		name, video, site, page string
		how, attributes         string
		want                    ownPlayer
	}{
		{name: "native", site: "www.example.test", how: "native", want: playing},
		{name: "hls.js", site: "www.example.test", how: "hls.js", want: playing},
		{name: "hls.js with CMCD and tracing in headers", site: "www.example.test", how: "hls.js with headers", want: playing},
		{name: "native on another site", site: "evil.test", how: "native", want: refused(native, notAllowed, notAllowed)},
		{name: "hls.js on another site", site: "evil.test", how: "hls.js", want: refused(hls, notAllowed, notAllowed)},

		// Without a referrer, only requests with CORS say where they come from.
		{name: "native without referrer", site: "www.example.test", page: noReferrer, how: "native", want: refused(native, missing, plays)},
		{name: "native with CORS without referrer", site: "www.example.test", page: noReferrer, how: "native", attributes: cors, want: playing},

		{name: "hls.js in a sandbox", site: "www.example.test", page: sandbox, how: "hls.js", want: refused(hls, notAllowed, notAllowed)},

		// That is what the option costs: such a page looks like an app.
		{
			name: "missing_origin allow, native without referrer on another site", video: "apps", site: "evil.test", page: noReferrer, how: "native",
			want: ownPlayer{Manifest: plays, Plays: true, Script: notAllowed},
		},
		{name: "no allowed origins, native", video: "demo", site: "evil.test", page: noReferrer, how: "native", want: playing},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := openPage(t, w.site(tc.site)+"/"+tc.page)
			w.forget(t)
			src := w.media("/" + mint(t, cmp.Or(tc.video, "sites"), nil) + "/manifest/video.m3u8")
			evaluate[bool](t, p, fmt.Sprintf("playOwn(%q, %q, %s), true", tc.how, src, cmp.Or(tc.attributes, "{}")))
			var got ownPlayer
			eventually(t, "something of the player", func() bool {
				last := evaluate[progress](t, p, "seen")
				got.Plays, got.Failed = last.Position > enough, last.Failed
				return got.Plays || got.Failed != ""
			})
			if manifest, ok := w.tap.first("GET", "/manifest/video.m3u8"); ok {
				got.Manifest = manifest.verdict()
			}
			if !got.Plays {
				w.origin.wantUntouched(t)
			}
			got.Script = evaluate[verdict](t, p, fmt.Sprintf("ask(%q)", src))
			wantEqual(t, tc.want, got, "the player")
			checkCORS(t, w.tap.recorded())
		})
	}
}

// Scripts can send what players send and read what players need, with CORS preflights where
// the browser needs them, and nothing more.
func TestCORS(t *testing.T) {
	t.Parallel()
	w := startWeb(t, anyVideo(), config{app: allowedSites})
	const segment = "/video/180p/001.m4s"
	good := "/" + mint(t, "sites", nil) + segment
	expired := "/" + mint(t, "sites", func(c *token.Claims) { c.ExpiresAt = time.Now().Add(-time.Second) }) + segment
	open := "/" + mint(t, "demo", nil) + segment
	partial := verdict{Status: http.StatusPartialContent}
	kept := verdict{} // from the script
	tabs := make(map[string]*tab)
	for _, site := range []string{"www.example.test", "evil.test"} {
		tabs[site] = openTab(t)
		tabs[site].open(t, w.site(site)+"/")
	}
	for i, tc := range []struct {
		name, site, path, options string
		preflight                 bool
		want                      verdict
	}{
		{"nothing special", "www.example.test", good, `{}`, false, plays},
		{"a range", "www.example.test", good, `{headers: {Range: "bytes=0-9"}}`, false, partial},
		{"ranges", "www.example.test", good, `{headers: {Range: "bytes=0-1,5-9"}}`, true, partial},
		{"HEAD", "www.example.test", good, `{method: "HEAD"}`, false, plays},
		{"headers that the gate does not know", "www.example.test", good, `{headers: {"X-Custom": "1", Pragma: "no-cache", Authorization: "Basic eDp5"}}`, true, plays},
		{"PUT", "www.example.test", good, `{method: "PUT"}`, true, kept},
		{"POST", "www.example.test", good, `{method: "POST"}`, false, refusedFor("method_not_allowed")},
		{"credentials", "www.example.test", good, `{credentials: "include"}`, false, kept},
		{"expired", "www.example.test", expired, `{headers: {Range: "bytes=0-1,5-9"}}`, true, refusedFor("token_expired")},
		{"open, ranges", "evil.test", open, `{headers: {Range: "bytes=0-1,5-9"}}`, true, partial},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w.forget(t)
			// Each address is new to the browser's caches.
			address := w.media(tc.path) + "?" + strconv.Itoa(i)
			got := evaluate[verdict](t, tabs[tc.site], fmt.Sprintf("ask(%q, %s)", address, tc.options))
			wantEqual(t, tc.want, got, "the script sees")
			if _, ok := w.tap.first(http.MethodOptions, segment); ok != tc.preflight {
				t.Errorf("a preflight: %t, want %t", ok, tc.preflight)
			}
			checkCORS(t, w.tap.recorded())
		})
	}
}

// ownPages serves for each video the clip, and at /iframe a page of the origin's own
// with all players. style.css is a stylesheet that loads a picture of the video that the
// query names.
func ownPages(t *testing.T) http.Handler {
	t.Helper()
	players, clip := filepath.Join(playersPage(t), "player"), anyVideo()
	index := readText(t, filepath.Join(players, "index.html"))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := filepath.Base(r.URL.Path)
		switch _, err := os.Stat(filepath.Join(players, name)); {
		case name == "iframe":
			w.Header().Set("Content-Type", "text/html; charset=utf-8")
			_, _ = w.Write([]byte(index))
		case name == "style.css":
			w.Header().Set("Content-Type", "text/css")
			_, _ = fmt.Fprintf(w, "body { background: url(/%s/thumbnails/thumbnail.jpg) }", r.URL.Query().Get("of"))
		case err == nil:
			http.ServeFile(w, r, filepath.Join(players, name))
		default:
			clip.ServeHTTP(w, r)
		}
	})
}

// The gate's own host is the page of a video for that video alone. The attack: a page
// or a stylesheet of a video that may be shown anywhere loads one that may not.
func TestOwnPages(t *testing.T) {
	t.Parallel()
	w := startWeb(t, ownPages(t), config{app: allowedSites + "\nvideo open {\nrequire_signed_urls off\n}\nvideo closed {\nrequire_signed_urls off\nallowed_origins *.example.test:%PORT%\n}", gate: "trust_origin_iframe"})
	compact := mint(t, "sites", nil)
	for _, host := range []string{gateHost, "plain.test"} { // with and without Sec-Fetch-Site
		at := func(path string) string { return strings.Replace(w.media(path), gateHost, host, 1) }
		// opened is a page at the top, to which a link on an allowed site leads.
		opened := func(t *testing.T, path string) *tab {
			p := openPage(t, w.site("www.example.test")+"/")
			w.forget(t)
			evaluate[bool](t, p, fmt.Sprintf("location = %q, true", at(path)))
			eventually(t, "the page", func() bool { _, ok := w.tap.first("GET", "/iframe"); return ok })
			p.do(t, chromedp.WaitReady("video"))
			p.until(t, "its scripts", "document.readyState === 'complete'")
			return p
		}
		for how, address := range map[string]string{
			"native": "/closed/manifest/video.m3u8", "hls.js": "/" + compact + "/manifest/video.m3u8",
			"shaka": "/" + compact + "/manifest/video.m3u8", "dash.js": "/closed/manifest/video.mpd",
		} {
			t.Run(host+", "+how, func(t *testing.T) {
				first, _, _ := strings.Cut(address[1:], "/")
				p := opened(t, "/"+first+"/iframe")
				if got := play(t, p, how, at(address), 4, 1, "{}"); got.End != "played" {
					t.Errorf("got %+v", got)
				}
				for _, e := range w.tap.recorded() {
					if e.status >= 400 {
						t.Errorf("%s: %v, Referer %q", e.suffix(), e.verdict(), e.request.Get("Referer"))
					}
				}
			})
		}
		t.Run(host+", worker", func(t *testing.T) {
			const fetchInWorker = `new Promise(resolve => {
				const worker = new Worker(URL.createObjectURL(new Blob(["fetch('" + %q + "').then(r => postMessage(r.status), e => postMessage(0))"])))
				worker.onmessage = event => resolve(event.data)
			})`
			p := opened(t, "/closed/iframe")
			status := evaluate[int](t, p, fmt.Sprintf(fetchInWorker, at("/closed/manifest/video.m3u8")))
			if want := map[bool]int{true: http.StatusOK, false: http.StatusForbidden}[host == gateHost]; status != want {
				t.Errorf("a worker of the page gets %d, want %d", status, want)
			}
		})
		for _, b := range []string{"closed", compact} {
			t.Run(fmt.Sprintf("%s, a page of another video, %.6s", host, b), func(t *testing.T) {
				p := opened(t, "/open/iframe")
				if got := evaluate[verdict](t, p, fmt.Sprintf("ask(%q)", at("/"+b+"/manifest/video.m3u8"))); got != refusedFor("origin_not_allowed") {
					t.Errorf("a script is told %v", got)
				}
			})
			for _, site := range []string{at("/open/iframe"), w.site("evil.test") + "/"} {
				t.Run(fmt.Sprintf("%s, a stylesheet of another video on %s, %.6s", host, site, b), func(t *testing.T) {
					p := openPage(t, site)
					w.forget(t)
					link := fmt.Sprintf("document.head.insertAdjacentHTML('beforeend', '<link rel=stylesheet href=%s>'), true", at("/open/style.css?of="+b))
					evaluate[bool](t, p, link)
					var picture exchange
					eventually(t, "a request for the picture", func() (ok bool) { picture, ok = w.tap.first("GET", "/thumbnail.jpg"); return ok })
					if picture.verdict() != refusedFor("origin_not_allowed") || !strings.Contains(picture.request.Get("Referer"), "/open/style.css") {
						t.Errorf("the picture: %v, Referer %q", picture.verdict(), picture.request.Get("Referer"))
					}
				})
			}
		}
	}
}
