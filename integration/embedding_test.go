package integration

import (
	"bytes"
	"context"
	"fmt"
	"html/template"
	"io"
	"log"
	"maps"
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
	"testing"
	"time"

	cdplog "github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/google/go-cmp/cmp"

	"github.com/signed-playback/caddy-signed-playback/token"
)

// The tests of embedding and of the player page share one browser. It finds
// every host below .test on loopback, and treats that of the gate as if it spoke
// TLS, for browsers send Sec-Fetch-Dest to no other.
const gateHost = "gate.media.test"

var chromium struct {
	once sync.Once
	ctx  context.Context
	stop func()
	err  error
}

func TestMain(m *testing.M) {
	for name, value := range map[string]string{"API_SECRET": apiSecret, "API_KEY": apiKeyOf} {
		if err := os.Setenv(name, value); err != nil {
			panic(err)
		}
	}
	code := m.Run()
	if chromium.stop != nil {
		chromium.stop()
	}
	os.Exit(code)
}

func sharedChromium(t *testing.T) context.Context {
	t.Helper()
	path := tool(t, "chromium")
	chromium.once.Do(func() { startSharedChromium(path) })
	if chromium.err != nil {
		t.Fatalf("starting Chromium: %v", chromium.err)
	}
	return chromium.ctx
}

func startSharedChromium(path string) {
	dir, err := os.MkdirTemp("", "chromium")
	if err != nil {
		chromium.err = err
		return
	}
	allocator, kill := chromedp.NewExecAllocator(context.Background(), append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(path),
		chromedp.UserDataDir(filepath.Join(dir, "profile")),
		chromedp.Env("TMPDIR="+dir),
		chromedp.WSURLReadTimeout(startTimeout),
		chromedp.NoSandbox, // root has none, and the pages are our own
		chromedp.DisableGPU,
		chromedp.Flag("disable-quic", true),
		chromedp.Flag("disable-component-update", true),
		chromedp.Flag("autoplay-policy", "no-user-gesture-required"),
		chromedp.Flag("mute-audio", true),
		chromedp.Flag("host-resolver-rules", "MAP *.test 127.0.0.1"),
		chromedp.Flag("unsafely-treat-insecure-origin-as-secure", "*.media.test"),
	)...)
	ctx, _ := chromedp.NewContext(allocator)
	chromium.ctx, chromium.err = ctx, chromedp.Do(ctx)
	chromium.stop = func() {
		ctx, cancel := context.WithTimeout(ctx, startTimeout)
		defer cancel()
		_ = chromedp.Cancel(ctx)
		kill()
		_ = os.RemoveAll(dir)
	}
}

// tab is a tab of the browser, with a cache and a profile of its own.
type tab struct {
	player

	console []string // under the mutex of player, as is the rest
	dialogs int
}

// openTab opens a tab in which scripts run before those of any page.
func openTab(t *testing.T, scripts ...string) *tab {
	t.Helper()
	ctx, closeTab := chromedp.NewContext(sharedChromium(t), chromedp.WithNewBrowserContext())
	t.Cleanup(closeTab)
	p := &tab{player: player{ctx: ctx}}
	if err := chromedp.Listen(ctx, p.hear); err != nil {
		t.Fatalf("opening a tab: %v", err)
	}
	for _, script := range scripts {
		_, err := chromedp.Call(ctx, page.AddScriptToEvaluateOnNewDocument, page.AddScriptToEvaluateOnNewDocumentParams{Source: script})
		if err != nil {
			t.Fatal(err)
		}
	}
	return p
}

func (p *tab) hear(event any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch event := event.(type) {
	case *cdplog.EventEntryAdded:
		p.console = append(p.console, event.Entry.Text)
	case *runtime.EventExceptionThrown:
		p.console = append(p.console, event.ExceptionDetails.Text)
	case *network.EventRequestWillBeSent:
		p.requests = append(p.requests, event.Request.URL)
	case *page.EventJavascriptDialogOpening:
		p.dialogs++
	}
}

// logged reports whether the console has a message with a text in it.
func (p *tab) logged(text string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.ContainsFunc(p.console, func(line string) bool { return strings.Contains(line, text) })
}

func (p *tab) open(t *testing.T, address string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, startTimeout)
	defer cancel()
	if err := chromedp.Do(ctx, chromedp.Navigate(address)); err != nil {
		t.Fatalf("opening %.60s…: %v", address, err)
	}
}

// exchange is a request and its response, as they crossed the wire.
type exchange struct {
	method, uri       string
	request, response http.Header
	status            int
}

func (e exchange) verdict() verdict {
	return verdict{e.status, e.response.Get("Signed-Playback-Reason")}
}

// suffix is what the request asks for, without the token.
func (e exchange) suffix() string {
	_, suffix, _ := strings.Cut(strings.TrimPrefix(e.uri, "/"), "/")
	return suffix
}

// tap stands between browser and gate and records what they say.
type tap struct {
	server *httptest.Server

	mu        sync.Mutex
	exchanges []exchange
	divert    func(http.ResponseWriter, *http.Request) bool
}

func startTap(t *testing.T, g *gateway) *tap {
	t.Helper()
	target, err := url.Parse(g.url(""))
	if err != nil {
		t.Fatal(err)
	}
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
	tp.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		tp.mu.Lock()
		divert := tp.divert
		tp.mu.Unlock()
		if divert == nil || !divert(w, r) {
			proxy.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(tp.server.Close)
	return tp
}

// diverting has a function see each request first. It may change the request,
// or answer it and report true.
func (tp *tap) diverting(divert func(http.ResponseWriter, *http.Request) bool) {
	tp.mu.Lock()
	defer tp.mu.Unlock()
	tp.divert = divert
}

// forget drops what has been recorded.
func (tp *tap) forget() {
	tp.mu.Lock()
	defer tp.mu.Unlock()
	tp.exchanges = nil
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
	path, err := filepath.Abs("node_modules/hls.js/dist/hls.min.js")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%v; integration/install-tools.sh installs hls.js", err)
	}
	return path
}

// anyVideo serves the clip of examples/media under every video id.
func anyVideo() http.Handler {
	clip := exampleMedia()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, suffix, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
		r.URL.Path = "/demo/" + suffix
		clip.ServeHTTP(w, r)
	})
}

// startWeb starts everything but the browser. %PORT% in the options of the app
// stands for the port of the sites.
func startWeb(t *testing.T, next http.Handler, c config) *web {
	t.Helper()
	w := new(web)
	w.origin = startOrigin(t, next)
	w.sites = httptest.NewServer(w.serveSites(t))
	t.Cleanup(w.sites.Close)
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
	manual, err := os.ReadFile("../docs/player.md")
	if err != nil {
		t.Fatal(err)
	}
	// The wrapper is taken from where users copy it.
	_, wrapper, found := bytes.Cut(manual, []byte("```js\n"))
	wrapper, _, closed := bytes.Cut(wrapper, []byte("```"))
	if !found || !closed || !bytes.Contains(wrapper, []byte("function signedPlayer(")) {
		t.Fatal("docs/player.md does not begin its JavaScript with signedPlayer")
	}
	hls := hlsJS(t)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(rw http.ResponseWriter, r *http.Request) {
		if sandbox := r.URL.Query().Get("sandbox"); sandbox != "" {
			rw.Header().Set("Content-Security-Policy", "sandbox "+sandbox)
		}
		_ = site.Execute(rw, struct{ Referrer string }{r.URL.Query().Get("referrer")})
	})
	mux.HandleFunc("GET /hls.min.js", func(rw http.ResponseWriter, r *http.Request) { http.ServeFile(rw, r, hls) })
	mux.HandleFunc("GET /signed-player.js", func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Content-Type", "text/javascript")
		_, _ = rw.Write(wrapper)
	})
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

// forget starts a new record.
func (w *web) forget() {
	w.tap.forget()
	w.origin.take()
}

const allowedSites = `
	video sites {
		allowed_origins *.example.test:%PORT%
	}
	video apps {
		allowed_origins *.example.test:%PORT%
		missing_origin allow
	}
	video apex {
		allowed_origins example.test:%PORT%
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

// shown is what has come of a frame.
type shown struct {
	Page    verdict // the gate's answer to the request for the page
	Blocked bool    // frame-ancestors has kept the browser from showing it
	Plays   bool
	Told    string // the reason that the page gives to viewer and embedder
}

// An iframe plays on the sites of the video's allowed origins, whatever they do
// with their referrer, and on no others, whatever those do.
func TestEmbedding(t *testing.T) {
	w := startWeb(t, anyVideo(), config{app: allowedSites, gate: "player " + hlsJS(t)})
	plays := shown{Page: verdict{Status: 200}, Plays: true}
	blocked := shown{Page: verdict{Status: 200}, Blocked: true}
	notAllowed := shown{Page: verdict{403, "origin_not_allowed"}}
	missing := shown{Page: verdict{403, "origin_required"}}
	const none = `{referrerpolicy: "no-referrer"}`
	for _, tc := range []struct {
		name, video, site, page string
		element, attributes     string // default: an iframe without any
		want                    shown
	}{
		{name: "an allowed site", site: "www.example.test", want: plays},
		{name: "a subdomain's subdomain", site: "a.b.example.test", want: plays},
		{name: "the apex under a wildcard", site: "example.test", want: plays},
		{name: "the apex alone", video: "apex", site: "example.test", want: plays},
		{name: "a subdomain of an apex alone", video: "apex", site: "www.example.test", want: notAllowed},
		{name: "another site", site: "evil.test", want: notAllowed},
		{name: "a name that ends alike", site: "evilexample.test", want: notAllowed},
		{name: "a name that begins alike", site: "www.example.test.evil.test", want: notAllowed},

		{name: "an allowed site, iframe without referrer", site: "www.example.test", attributes: none, want: plays},
		{name: "an allowed site, page without referrer", site: "a.b.example.test", page: "?referrer=no-referrer", want: plays},
		{name: "another site, iframe without referrer", site: "evil.test", attributes: none, want: blocked},
		{name: "another site, page without referrer", site: "evil.test", page: "?referrer=no-referrer", want: blocked},
		{name: "the gate's own site, without referrer", site: gateHost, attributes: none, want: blocked},
		{name: "an object without referrer", site: "evil.test", page: "?referrer=no-referrer", element: "object", want: missing},
		{name: "an embed without referrer", site: "evil.test", page: "?referrer=no-referrer", element: "embed", want: missing},

		// Its origin is null, so it is of no site.
		{
			name: "a sandbox without allow-same-origin", site: "www.example.test", attributes: `{sandbox: "allow-scripts"}`,
			want: shown{Page: verdict{Status: 200}, Told: "origin_not_allowed"},
		},
		{name: "a sandbox with allow-same-origin", site: "www.example.test", attributes: `{sandbox: "allow-scripts allow-same-origin"}`, want: plays},
		{name: "an allowed site in a sandbox", site: "www.example.test", page: "?sandbox=allow-scripts", want: blocked},

		{name: "missing_origin allow, another site", video: "apps", site: "evil.test", want: notAllowed},
		{name: "missing_origin allow, another site without referrer", video: "apps", site: "evil.test", attributes: none, want: blocked},
		{name: "no allowed origins, any site", video: "demo", site: "evil.test", want: plays},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.video == "" {
				tc.video = "sites"
			}
			if tc.element == "" {
				tc.element = "iframe"
			}
			if tc.attributes == "" {
				tc.attributes = "{}"
			}
			p := openTab(t)
			p.open(t, w.site(tc.site)+"/"+tc.page)
			w.forget()
			src := w.media("/" + mint(t, tc.video, nil) + "/iframe?muted")
			script := fmt.Sprintf("embed(%q, %q, %s).then(() => true)", tc.element, src, tc.attributes)
			evaluate[bool](t, &p.player, script)
			if tc.element == "iframe" {
				evaluate[bool](t, &p.player, "playEmbedded(), true")
			}
			got, last := w.watchFrame(t, p)
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("the frame (-want +got):\n%s\nlast seen: %+v", diff, last)
			}
			w.checkFrame(t, p, got, last)
		})
	}

	// All that embed the page have to be allowed, not only the one next to it.
	for outer, wantPlays := range map[string]bool{"a.b.example.test": true, "evil.test": false} {
		t.Run("an allowed site inside "+outer, func(t *testing.T) {
			p := openTab(t)
			p.open(t, w.site(outer)+"/")
			w.forget()
			inner := w.site("www.example.test") + "/?embed=" + url.QueryEscape(w.media("/"+mint(t, "sites", nil)+"/iframe"))
			evaluate[bool](t, &p.player, fmt.Sprintf("embed('iframe', %q, {}).then(() => true)", inner))
			eventually(t, "the inner frame", func() bool { return evaluate[progress](t, &p.player, "seen").Nested })
			page, _ := w.tap.first("GET", "/iframe")
			if diff := cmp.Diff(verdict{Status: 200}, page.verdict()); diff != "" {
				t.Errorf("the page (-want +got):\n%s", diff)
			}
			if wantPlays {
				eventually(t, "media", func() bool { return len(w.origin.uris()) > 0 })
			} else {
				w.wantNotRun(t, p)
			}
		})
	}

	// Browsers send Sec-Fetch-Dest over TLS and to localhost only.
	t.Run("an allowed site without referrer, and a gate without TLS", func(t *testing.T) {
		p := openTab(t)
		p.open(t, w.site("www.example.test")+"/?referrer=no-referrer")
		w.forget()
		src := strings.Replace(w.media("/"+mint(t, "sites", nil)+"/iframe"), gateHost, "plain.test", 1)
		evaluate[bool](t, &p.player, fmt.Sprintf("embed('iframe', %q, {}).then(() => true)", src))
		got, _ := w.watchFrame(t, p)
		if diff := cmp.Diff(missing, got); diff != "" {
			t.Errorf("the frame (-want +got):\n%s", diff)
		}
	})
}

// wantNotRun checks that the gate's page, which is loaded or not going to be,
// has not run: it would have asked for its manifest at once.
func (w *web) wantNotRun(t *testing.T, p *tab) {
	t.Helper()
	// Time for that: a request of this page, there and back.
	evaluate[verdict](t, &p.player, fmt.Sprintf("ask(%q)", w.media("/sentinel/manifest/video.m3u8")))
	for _, e := range w.tap.recorded() {
		if !strings.Contains(e.uri, "/iframe") && !strings.HasPrefix(e.uri, "/sentinel/") {
			t.Errorf("the page has run and asked for %s", e.suffix())
		}
	}
	w.wantUnasked(t)
}

// wantUnasked checks that the origin has been asked for nothing.
func (w *web) wantUnasked(t *testing.T) {
	t.Helper()
	if asked := w.origin.take(); len(asked) != 0 {
		t.Errorf("the origin was asked for %s", asked[0].uri)
	}
}

// watchFrame waits until it is clear what has come of a frame.
func (w *web) watchFrame(t *testing.T, p *tab) (got shown, last progress) {
	t.Helper()
	eventually(t, "something in the frame", func() bool {
		sent, ok := w.tap.first("GET", "/iframe")
		if !ok {
			return false
		}
		got.Page = sent.verdict()
		last = evaluate[progress](t, &p.player, "seen")
		got.Blocked = p.logged("frame-ancestors")
		got.Plays = last.Position > enough
		got.Told = last.Told
		return got.Page.Status != 200 || got.Blocked || got.Plays || got.Told != ""
	})
	return got, last
}

// checkFrame checks what has to follow from it.
func (w *web) checkFrame(t *testing.T, p *tab, got shown, last progress) {
	t.Helper()
	checkCORS(t, w.tap.recorded())
	if !got.Plays {
		w.wantUnasked(t)
		if got.Told == "" {
			w.wantNotRun(t, p)
			if diff := cmp.Diff(progress{Senders: []string{}, Events: []string{}}, last); diff != "" {
				t.Errorf("the frame has spoken (-want +got):\n%s", diff)
			}
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
		if referer := e.request.Get("Referer"); referer != w.media("/") {
			t.Errorf("%s was asked for with the Referer %q, want that of the gate", e.suffix(), referer)
		}
	}
}

// checkCORS holds each answer against the one way in which it may open itself
// to scripts. The paths tell the video with no allowed origins by its own token.
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
		if diff := cmp.Diff(want, e.response.Values("Access-Control-Allow-Origin")); diff != "" {
			t.Errorf("%s from %q: Access-Control-Allow-Origin (-want +got):\n%s", name, origin, diff)
		}
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

// The page itself is for the allowed sites too: whoever follows a link to it
// comes from one of them.
func TestTopLevelPage(t *testing.T) {
	w := startWeb(t, anyVideo(), config{app: allowedSites, gate: "player"})
	for _, tc := range []struct {
		name, video, from string
		want              verdict
	}{
		{"a link on an allowed site", "sites", "www.example.test", plays},
		{"a link on another site", "sites", "evil.test", verdict{403, "origin_not_allowed"}},
		{"a link on the gate's own site", "sites", gateHost, verdict{403, "origin_not_allowed"}},
		{"no link", "sites", "", verdict{403, "origin_required"}},
		{"no link, missing_origin allow", "apps", "", plays},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := openTab(t)
			from := "about:blank"
			if tc.from != "" {
				from = w.site(tc.from) + "/"
			}
			p.open(t, from)
			w.forget()
			evaluate[bool](t, &p.player, fmt.Sprintf("location = %q, true", w.media("/"+mint(t, tc.video, nil)+"/iframe")))
			var page exchange
			eventually(t, "a request for the page", func() (ok bool) { page, ok = w.tap.first("GET", "/iframe"); return ok })
			if diff := cmp.Diff(tc.want, page.verdict()); diff != "" {
				t.Errorf("the page (-want +got):\n%s", diff)
			}
			if got := page.request.Get("Sec-Fetch-Dest"); got != "document" {
				t.Errorf("the browser said Sec-Fetch-Dest: %q", got)
			}
			if tc.want == plays {
				eventually(t, "media", func() bool { return len(w.origin.uris()) > 0 })
			} else {
				w.wantUnasked(t)
			}
		})
	}
}

// ownPlayer is what has come of a player on a site's own page.
type ownPlayer struct {
	Manifest verdict // the gate's answer to the player
	Plays    bool
	Failed   string  // as the player tells
	Script   verdict // what a script on the page is told
}

// A site's own player plays where the site is allowed, and a script of any site
// can read why not.
func TestOwnPlayer(t *testing.T) {
	w := startWeb(t, anyVideo(), config{app: allowedSites})
	notAllowed, missing := verdict{403, "origin_not_allowed"}, verdict{403, "origin_required"}
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
		{name: "native with CORS", site: "www.example.test", how: "native", attributes: cors, want: playing},
		{name: "hls.js", site: "www.example.test", how: "hls.js", want: playing},
		{name: "hls.js on a subdomain's subdomain", site: "a.b.example.test", how: "hls.js", want: playing},
		{name: "hls.js on the apex", site: "example.test", how: "hls.js", want: playing},

		{name: "native on another site", site: "evil.test", how: "native", want: refused(native, notAllowed, notAllowed)},
		{name: "native with CORS on another site", site: "evil.test", how: "native", attributes: cors, want: refused(native, notAllowed, notAllowed)},
		{name: "hls.js on another site", site: "evil.test", how: "hls.js", want: refused(hls, notAllowed, notAllowed)},

		// Without a referrer, only requests with CORS say where they come from.
		{name: "native without referrer", site: "www.example.test", page: noReferrer, how: "native", want: refused(native, missing, plays)},
		{name: "native with CORS without referrer", site: "www.example.test", page: noReferrer, how: "native", attributes: cors, want: playing},
		{name: "hls.js without referrer", site: "www.example.test", page: noReferrer, how: "hls.js", want: playing},
		{name: "native without referrer on another site", site: "evil.test", page: noReferrer, how: "native", want: refused(native, missing, notAllowed)},
		{name: "hls.js without referrer on another site", site: "evil.test", page: noReferrer, how: "hls.js", want: refused(hls, notAllowed, notAllowed)},

		{name: "native in a sandbox", site: "www.example.test", page: sandbox, how: "native", want: refused(native, missing, notAllowed)},
		{name: "native with CORS in a sandbox", site: "www.example.test", page: sandbox, how: "native", attributes: cors, want: refused(native, notAllowed, notAllowed)},
		{name: "hls.js in a sandbox", site: "www.example.test", page: sandbox, how: "hls.js", want: refused(hls, notAllowed, notAllowed)},

		{name: "missing_origin allow, native without referrer", video: "apps", site: "www.example.test", page: noReferrer, how: "native", want: playing},
		{name: "missing_origin allow, hls.js on another site", video: "apps", site: "evil.test", page: noReferrer, how: "hls.js", want: refused(hls, notAllowed, notAllowed)},
		// That is what the option costs: such a page looks like an app.
		{
			name: "missing_origin allow, native without referrer on another site", video: "apps", site: "evil.test", page: noReferrer, how: "native",
			want: ownPlayer{Manifest: plays, Plays: true, Script: notAllowed},
		},

		{name: "no allowed origins, native", video: "demo", site: "evil.test", page: noReferrer, how: "native", want: playing},
		{name: "no allowed origins, hls.js", video: "demo", site: "evil.test", how: "hls.js", want: playing},
		{name: "no allowed origins, hls.js in a sandbox", video: "demo", site: "evil.test", page: sandbox, how: "hls.js", want: playing},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.video == "" {
				tc.video = "sites"
			}
			if tc.attributes == "" {
				tc.attributes = "{}"
			}
			p := openTab(t)
			p.open(t, w.site(tc.site)+"/"+tc.page)
			w.forget()
			src := w.media("/" + mint(t, tc.video, nil) + "/manifest/video.m3u8")
			evaluate[bool](t, &p.player, fmt.Sprintf("playOwn(%q, %q, %s), true", tc.how, src, tc.attributes))
			var got ownPlayer
			eventually(t, "something of the player", func() bool {
				last := evaluate[progress](t, &p.player, "seen")
				got.Plays, got.Failed = last.Position > enough, last.Failed
				return got.Plays || got.Failed != ""
			})
			if manifest, ok := w.tap.first("GET", "/manifest/video.m3u8"); ok {
				got.Manifest = manifest.verdict()
			}
			if !got.Plays {
				w.wantUnasked(t)
			}
			got.Script = evaluate[verdict](t, &p.player, fmt.Sprintf("ask(%q)", src))
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("the player (-want +got):\n%s", diff)
			}
			checkCORS(t, w.tap.recorded())
		})
	}
}

// Scripts can send what players send and read what players need, with CORS
// preflights where the browser wants them, and nothing beyond that.
func TestCORS(t *testing.T) {
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
		{"a condition", "www.example.test", good, `{headers: {"If-None-Match": '"x"'}}`, true, plays},
		{"reload", "www.example.test", good, `{headers: {"Cache-Control": "no-cache"}}`, true, plays},
		{"HEAD", "www.example.test", good, `{method: "HEAD"}`, false, plays},
		{"a header of no use", "www.example.test", good, `{headers: {"X-Custom": "1"}}`, true, kept},
		{"PUT", "www.example.test", good, `{method: "PUT"}`, true, kept},
		{"POST", "www.example.test", good, `{method: "POST"}`, false, verdict{405, "method_not_allowed"}},
		{"credentials", "www.example.test", good, `{credentials: "include"}`, false, kept},
		{"expired", "www.example.test", expired, `{headers: {Range: "bytes=0-1,5-9"}}`, true, verdict{401, "token_expired"}},
		{"ranges on another site", "evil.test", good, `{headers: {Range: "bytes=0-1,5-9"}}`, true, verdict{403, "origin_not_allowed"}},
		{"open, ranges", "evil.test", open, `{headers: {Range: "bytes=0-1,5-9"}}`, true, partial},
		{"open, credentials", "evil.test", open, `{credentials: "include"}`, false, kept},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w.forget()
			// Each address is new to the browser's caches.
			address := w.media(tc.path) + "?" + strconv.Itoa(i)
			got := evaluate[verdict](t, &tabs[tc.site].player, fmt.Sprintf("ask(%q, %s)", address, tc.options))
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("the script sees (-want +got):\n%s", diff)
			}
			preflight, ok := w.tap.first(http.MethodOptions, segment)
			if ok != tc.preflight {
				t.Errorf("a preflight: %t, want %t", ok, tc.preflight)
			}
			if ok {
				checkPreflight(t, preflight)
			}
			checkCORS(t, w.tap.recorded())
		})
	}

	t.Run("what players read", func(t *testing.T) {
		const read = `fetch(%q, {headers: {Range: "bytes=0-9"}}).then(r =>
			["Content-Length", "Content-Range", "Accept-Ranges", "Date", "Content-Type", "Server"].filter(name => r.headers.has(name)))`
		got := evaluate[[]string](t, &tabs["www.example.test"].player, fmt.Sprintf(read, w.media(good)))
		want := []string{"Content-Length", "Content-Range", "Accept-Ranges", "Date", "Content-Type"}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("readable headers (-want +got):\n%s", diff)
		}
	})
}

func checkPreflight(t *testing.T, e exchange) {
	t.Helper()
	got := make(http.Header)
	for name, values := range e.response {
		if strings.HasPrefix(name, "Access-Control-") {
			got[name] = values
		}
	}
	want := http.Header{
		"Access-Control-Allow-Origin":  {"*"},
		"Access-Control-Allow-Methods": {"GET, HEAD"},
		"Access-Control-Allow-Headers": {"Range, If-Range, If-None-Match, If-Modified-Since, Cache-Control"},
		"Access-Control-Max-Age":       {"86400"},
	}
	if diff := cmp.Diff(want, got); diff != "" || e.status != http.StatusNoContent {
		t.Errorf("the preflight: %d (-want +got):\n%s", e.status, diff)
	}
}

// Programs that are no browsers name no site. They play where the video says
// so, and only there.
func TestMissingOrigin(t *testing.T) {
	w := startWeb(t, anyVideo(), config{app: allowedSites, gate: "player"})
	allowed := "Origin: " + w.site("www.example.test")
	own := "Referer: http://" + w.gate.addr + "/"
	for _, tc := range []struct {
		name, video, suffix string
		header              []string
		want                verdict
	}{
		{"nothing", "sites", "/manifest/video.m3u8", nil, verdict{403, "origin_required"}},
		{"nothing, allowed", "apps", "/manifest/video.m3u8", nil, plays},
		{"nothing, allowed, a segment", "apps", "/video/180p/001.m4s", nil, plays},
		{"nothing, allowed, the page", "apps", "/iframe", nil, plays},
		{"another site, where missing is allowed", "apps", "/manifest/video.m3u8", []string{"Origin: https://evil.test"}, verdict{403, "origin_not_allowed"}},
		{"null, where missing is allowed", "apps", "/manifest/video.m3u8", []string{"Origin: null"}, verdict{403, "origin_not_allowed"}},
		{"null and a good referrer", "sites", "/manifest/video.m3u8", []string{"Origin: null", "Referer: " + w.site("www.example.test") + "/"}, verdict{403, "origin_not_allowed"}},
		{"an allowed origin twice", "sites", "/manifest/video.m3u8", []string{allowed, allowed}, verdict{403, "origin_not_allowed"}},
		{"an allowed origin", "sites", "/manifest/video.m3u8", []string{allowed}, plays},
		{"the gate's own page", "sites", "/manifest/video.m3u8", []string{own}, plays},
		{"the gate's own page, for the page", "sites", "/iframe", []string{own}, verdict{403, "origin_not_allowed"}},
		{"the gate's own page, for the page by its short name", "sites", "", []string{own}, verdict{403, "origin_not_allowed"}},
		{"the gate's own page, for hls.js", "sites", "/iframe/hls.js", []string{own}, verdict{Status: 404}}, // none is configured
		{"a frame", "sites", "/iframe", []string{"Sec-Fetch-Dest: iframe"}, plays},
		{"a document", "sites", "/iframe", []string{"Sec-Fetch-Dest: document"}, verdict{403, "origin_required"}},
		{"a frame twice", "sites", "/iframe", []string{"Sec-Fetch-Dest: iframe", "Sec-Fetch-Dest: iframe"}, verdict{403, "origin_required"}},
		{"a frame for a manifest", "sites", "/manifest/video.m3u8", []string{"Sec-Fetch-Dest: iframe"}, verdict{403, "origin_required"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w.forget()
			res := w.gate.get(t, "/"+mint(t, tc.video, nil)+tc.suffix, tc.header...)
			if diff := cmp.Diff(tc.want, verdict{res.StatusCode, res.reason()}); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if tc.want.Reason != "" {
				w.origin.wantRefused(t, res, tc.want.Status, tc.want.Reason)
			}
		})
	}
}

// sharedCache is a cache for many viewers in front of the gate. It keeps what
// RFC 9111 and the headers of CDNs let it keep, as long as they let it, and
// guesses where they say nothing.
type sharedCache struct {
	next http.Handler

	mu   sync.Mutex
	kept map[string]cached // by URI
	hits int
}

type cached struct {
	*httptest.ResponseRecorder
	until time.Time
	vary  http.Header // the request's own, by the names in Vary
}

func (c *sharedCache) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	hit, ok := c.kept[r.RequestURI]
	if ok && r.Method == http.MethodGet && time.Now().Before(hit.until) && hit.matches(r) {
		c.hits++
	} else {
		hit = cached{ResponseRecorder: httptest.NewRecorder(), vary: make(http.Header)}
		c.next.ServeHTTP(hit, r)
		lifetime := sharedLifetime(hit.Result())
		for name := range strings.SplitSeq(strings.Join(hit.Result().Header.Values("Vary"), ","), ",") {
			name = http.CanonicalHeaderKey(strings.TrimSpace(name))
			hit.vary[name] = r.Header[name]
		}
		if hit.until = time.Now().Add(lifetime); lifetime > 0 && r.Method == http.MethodGet && r.Header.Get("Range") == "" {
			c.kept[r.RequestURI] = hit
		}
	}
	maps.Copy(w.Header(), hit.Result().Header)
	w.WriteHeader(hit.Code)
	_, _ = w.Write(hit.Body.Bytes())
}

func (c cached) matches(r *http.Request) bool {
	for name, values := range c.vary {
		if !slices.Equal(values, r.Header[name]) {
			return false
		}
	}
	return true
}

// sharedLifetime is for how long a shared cache may hold a response, 0 for one
// that it may not keep.
func sharedLifetime(r *http.Response) time.Duration {
	for _, name := range []string{"CDN-Cache-Control", "Surrogate-Control", "Cache-Control"} {
		value := strings.ToLower(strings.Join(r.Header.Values(name), ","))
		if value == "" {
			continue
		}
		age := ""
		for directive := range strings.SplitSeq(value, ",") {
			name, argument, _ := strings.Cut(strings.TrimSpace(directive), "=")
			switch name {
			case "private", "no-store", "no-cache":
				return 0
			case "s-maxage":
				age = argument
			case "max-age":
				if age == "" {
					age = argument
				}
			}
		}
		if seconds, err := strconv.Atoi(age); err == nil {
			return time.Duration(seconds) * time.Second
		}
	}
	if expires, err := http.ParseTime(r.Header.Get("Expires")); err == nil {
		return time.Until(expires)
	}
	if modified, err := http.ParseTime(r.Header.Get("Last-Modified")); err == nil {
		return time.Since(modified) / 10
	}
	return 0
}

// cacheable has a server ask everybody to keep its responses.
func cacheable(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for name, value := range map[string]string{
			"Cache-Control": "public, max-age=31536000, s-maxage=31536000, immutable", "CDN-Cache-Control": "max-age=31536000",
			"Surrogate-Control": "max-age=31536000", "Expires": time.Now().AddDate(1, 0, 0).UTC().Format(http.TimeFormat),
		} {
			w.Header().Set(name, value)
		}
		next.ServeHTTP(w, r)
	})
}

// No cache hands the response to a token to anybody else, and none has it when
// the token has expired, whatever the origin allows.
func TestCaches(t *testing.T) {
	w := startWeb(t, cacheable(anyVideo()), config{
		app:  allowedSites + "\nvideo open {\nrequire_signed_urls off\n}",
		gate: "player " + hlsJS(t),
	})
	target, err := url.Parse(w.gate.url(""))
	if err != nil {
		t.Fatal(err)
	}
	cache := &sharedCache{next: httputil.NewSingleHostReverseProxy(target), kept: make(map[string]cached)}
	front := httptest.NewServer(cache)
	defer front.Close()
	ask := func(path string, header ...string) *response {
		t.Helper()
		return (&gateway{addr: strings.TrimPrefix(front.URL, "http://")}).get(t, path, header...)
	}
	suffixes := []string{"/manifest/video.m3u8", "/manifest/video.mpd", "/video/180p/001.m4s", "/thumbnails/thumbnail.jpg", "/iframe", "/iframe/hls.js", "/missing"}

	// The cache does keep what it may.
	ask("/open/video/180p/001.m4s")
	ask("/open/video/180p/001.m4s")
	if cache.hits != 1 {
		t.Fatalf("the shared cache had %d hits for an open video, want 1", cache.hits)
	}

	p := openTab(t)
	p.open(t, w.site("www.example.test")+"/")
	limited := func(c *token.Claims) { c.ExpiresAt = time.Unix(time.Now().Unix()+4, 0) }
	allowed := "Origin: " + w.site("www.example.test")
	var paths []string
	for _, video := range []string{"demo", "sites"} {
		for _, suffix := range suffixes {
			paths = append(paths, "/"+mint(t, video, limited)+suffix)
		}
	}
	for _, path := range paths {
		for range 2 {
			res := ask(path, allowed)
			if strings.HasSuffix(path, "/missing") != (res.StatusCode == http.StatusNotFound) {
				t.Errorf("%s: %d %s", path[strings.LastIndexByte(path, '/'):], res.StatusCode, res.reason())
			}
		}
	}
	// A refusal is not kept either: what is refused to one is for the next.
	other := "/" + mint(t, "sites", nil) + suffixes[0]
	if got := ask(other, "Origin: https://evil.test").StatusCode; got != http.StatusForbidden {
		t.Errorf("another site gets %d", got)
	}
	if got := ask(other, allowed).StatusCode; got != http.StatusOK {
		t.Errorf("an allowed site gets %d after another one", got)
	}
	if cache.hits != 1 || len(cache.kept) != 1 {
		t.Errorf("the shared cache has kept %d responses and served %d from them, want 1 and 1 of the open video", len(cache.kept), cache.hits)
	}

	// A browser's own cache may keep a segment while the token lasts.
	w.forget()
	segment := w.media("/" + mint(t, "sites", limited) + "/video/180p/001.m4s")
	script := fmt.Sprintf("ask(%q)", segment)
	for range 2 {
		if got := evaluate[verdict](t, &p.player, script); got != plays {
			t.Errorf("before the token has expired, the browser gets %v", got)
		}
	}
	if n := len(w.tap.recorded()); n != 1 {
		t.Errorf("the browser asked %d times for a segment that it may keep", n)
	}

	eventually(t, "the tokens to expire", func() bool {
		return w.gate.get(t, strings.TrimPrefix(segment, w.media(""))).reason() == "token_expired"
	})
	for _, path := range paths {
		if res := ask(path, allowed); res.reason() != "token_expired" {
			t.Errorf("after it has expired, a token opens %s: %d", path[strings.LastIndexByte(path, '/'):], res.StatusCode)
		}
	}
	if got := evaluate[verdict](t, &p.player, script); got != (verdict{401, "token_expired"}) {
		t.Errorf("after the token has expired, the browser gets %v", got)
	}
}
