package integration

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"
	"github.com/google/go-cmp/cmp"

	"github.com/signed-playback/caddy-signed-playback/token"
)

// clipSeconds is how long the clip of examples/media plays.
const clipSeconds = 12

// wantSegments checks that the origin has been asked for all segments of the
// clip, and for nothing outside the clip's folder.
func (o *origin) wantSegments(t testing.TB, pattern string, count int) {
	t.Helper()
	asked := make(map[string]bool)
	for _, r := range o.take() {
		asked[r.uri] = true
		if !strings.HasPrefix(r.uri, "/demo/") {
			t.Errorf("the origin was asked for %s", r.uri)
		}
	}
	for i := range count {
		if uri := fmt.Sprintf(pattern, i+1); !asked[uri] {
			t.Errorf("the origin was not asked for %s", uri)
		}
	}
}

// badTokens are tokens for the clip that do not open it to a viewer in the US.
func badTokens(t testing.TB) []badToken {
	t.Helper()
	other, err := token.GenerateSigningKey(keyID)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := token.Sign(token.Claims{VideoID: "demo", ExpiresAt: time.Now().Add(time.Hour)}, other)
	if err != nil {
		t.Fatal(err)
	}
	return []badToken{
		{"expired", mint(t, "demo", func(c *token.Claims) { c.ExpiresAt = time.Now().Add(-time.Second) }), verdict{http.StatusUnauthorized, "token_expired"}},
		{"foreign", foreign, verdict{http.StatusUnauthorized, "signature_invalid"}},
		{"blocked", mint(t, "demo", withRules(`[{"type":"ip.geoip.country","country":["GB"],"action":"allow"},{"type":"any","action":"block"}]`)), verdict{http.StatusForbidden, "rule_blocked"}},
	}
}

type badToken struct {
	name, token string
	want        verdict
}

// Browsers play through the gate, natively and with hls.js, as long as the
// token lets them, and their pages are told why when it does not.
func TestBrowser(t *testing.T) {
	o := startOrigin(t, exampleMedia())
	g := start(t, o, config{
		app: withCountries(t),
		// The page is served beside the gate, so it is of the same origin.
		global: "order file_server before signed_playback",
		site:   fmt.Sprintf("file_server /player/* {\n\troot %s\n}\nreverse_proxy %s", playerPage(t), o.addr()),
	})
	browser := startChromium(t)
	withDownloads := func(c *token.Claims) { c.Downloadable = true }

	for _, tc := range []struct {
		name, how, suffix string
		segments          string
	}{
		{"native HLS", "native", "manifest/video.m3u8", "/demo/audio/%03d.m4s"},
		{"native HLS of MPEG-TS", "native", "manifest/ts.m3u8", "/demo/ts/%03d.ts"},
		{"native MP4", "native", "downloads/default.mp4", ""},
		{"hls.js", "hls.js", "manifest/video.m3u8", "/demo/audio/%03d.m4s"},
		{"hls.js with MPEG-TS", "hls.js", "manifest/ts.m3u8", "/demo/ts/%03d.ts"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := openPlayer(t, browser, g)
			o.take()
			space := "/" + mint(t, "demo", withDownloads) + "/"
			got := p.play(t, tc.how, space+tc.suffix, 4, "{}")
			if got.End != "ended" || math.Abs(got.Position-clipSeconds) > 0.5 || len(got.NetworkErrors) > 0 {
				t.Errorf("it did not play to the end: %+v", got)
			}
			p.wantRequestsIn(t, space, o.uris())
			if tc.segments != "" {
				o.wantSegments(t, tc.segments, 6)
			}
		})
	}

	for _, how := range []string{"native", "hls.js"} {
		for _, bad := range badTokens(t) {
			t.Run(how+", "+bad.name, func(t *testing.T) {
				p := openPlayer(t, browser, g)
				o.take()
				space := "/" + bad.token + "/"
				got := p.play(t, how, space+"manifest/video.m3u8", 4, "{}")
				if how == "native" && (got.End != "error" || got.MediaError == 0) {
					t.Errorf("the video element got no error: %+v", got)
				}
				want := []networkError{{Details: "manifestLoadError", Status: bad.want.Status}}
				if diff := cmp.Diff(want, got.NetworkErrors); how == "hls.js" && (got.End != "fatal" || diff != "") {
					t.Errorf("hls.js ended with %+v (-want +got):\n%s", got, diff)
				}
				if got.Position != 0 {
					t.Errorf("%.1f seconds have played", got.Position)
				}
				seen := evaluate[verdict](t, p, fmt.Sprintf("ask(%q)", space+"manifest/video.m3u8"))
				if diff := cmp.Diff(bad.want, seen); diff != "" {
					t.Errorf("the page sees (-want +got):\n%s", diff)
				}
				if requests := o.take(); len(requests) != 0 {
					t.Errorf("the origin was asked for %v", requests)
				}
				p.wantRequestsIn(t, space, []string{"/demo/manifest/video.m3u8"})
			})
		}
	}

	t.Run("hls.js, expiring in mid-play", func(t *testing.T) {
		p := openPlayer(t, browser, g)
		exp := time.Unix(time.Now().Unix()+4, 0)
		space := "/" + mint(t, "demo", func(c *token.Claims) { c.ExpiresAt = exp }) + "/"
		o.take()
		// At its real speed and with a short buffer, the clip outlasts the token.
		got := p.play(t, "hls.js", space+"manifest/video.m3u8", 1, "{maxBufferLength: 1, maxMaxBufferLength: 1}")
		t.Logf("it ended with %+v", got)
		if ended := time.Now(); got.End != "fatal" || ended.Before(exp) {
			t.Errorf("it ended %s after the token: %+v", ended.Sub(exp), got)
		}
		if got.Position <= 0 || got.Position > clipSeconds-2 {
			t.Errorf("%.1f seconds have played", got.Position)
		}
		if len(got.NetworkErrors) == 0 {
			t.Error("hls.js saw no network error")
		}
		for _, e := range got.NetworkErrors {
			if e.Status != http.StatusUnauthorized {
				t.Errorf("hls.js saw %+v, want the status 401", e)
			}
		}
		p.wantRequestsIn(t, space, o.uris())
		if uris := o.uris(); slices.Contains(uris, "/demo/audio/006.m4s") {
			t.Errorf("the last segment was fetched: %v", uris)
		}
	})
}

// playerPage makes a folder with the page and hls.js below /player/.
func playerPage(t testing.TB) (root string) {
	t.Helper()
	root = t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "player"), 0o700); err != nil {
		t.Fatal(err)
	}
	for from, to := range map[string]string{
		"testdata/player.html":                "index.html",
		"node_modules/hls.js/dist/hls.min.js": "hls.min.js",
	} {
		data, err := os.ReadFile(from)
		if err != nil {
			t.Fatalf("%v; integration/install-tools.sh installs hls.js", err)
		}
		writeFile(t, filepath.Join(root, "player", to), data)
	}
	return root
}

// startChromium starts the browser that all tests here share.
func startChromium(t *testing.T) context.Context {
	t.Helper()
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(tool(t, "chromium")),
		chromedp.UserDataDir(t.TempDir()),
		chromedp.Env("TMPDIR="+t.TempDir()),
		chromedp.WSURLReadTimeout(startTimeout),
		chromedp.NoSandbox, // root has none, and the pages are our own
		chromedp.DisableGPU,
		chromedp.Flag("disable-quic", true),
		chromedp.Flag("disable-component-update", true),
		chromedp.Flag("autoplay-policy", "no-user-gesture-required"),
		chromedp.Flag("mute-audio", true),
	)
	allocator, kill := chromedp.NewExecAllocator(context.Background(), options...)
	t.Cleanup(kill)
	browser, _ := chromedp.NewContext(allocator)
	if err := chromedp.Do(browser); err != nil {
		t.Fatalf("starting Chromium: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(browser, startTimeout)
		defer cancel()
		if err := chromedp.Cancel(ctx); err != nil {
			t.Errorf("stopping Chromium: %v", err)
		}
	})
	return browser
}

// player is a tab of the browser with the page in it.
type player struct {
	ctx  context.Context
	base string // the gateway's address
	page string // the folder of the page

	mu       sync.Mutex
	requests []string
}

func openPlayer(t *testing.T, browser context.Context, g *gateway) *player {
	t.Helper()
	return openPage(t, browser, g, g.url("/player/"))
}

// openPage opens a page, from wherever it comes.
func openPage(t *testing.T, browser context.Context, g *gateway, page string) *player {
	t.Helper()
	ctx, closeTab := chromedp.NewContext(browser)
	t.Cleanup(closeTab)
	p := &player{ctx: ctx, base: g.url(""), page: page}
	err := chromedp.Listen(ctx, func(event any) {
		if sent, ok := event.(*network.EventRequestWillBeSent); ok {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.requests = append(p.requests, sent.Request.URL)
		}
	})
	if err != nil {
		t.Fatalf("opening a tab: %v", err)
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := chromedp.Do(ctx, chromedp.Navigate(page)); err != nil {
		t.Fatalf("opening the page: %v", err)
	}
	return p
}

// ending is how playback has ended.
type ending struct {
	End           string         `json:"end"`
	NetworkErrors []networkError `json:"networkErrors"`
	MediaError    int            `json:"mediaError"`
	Position      float64        `json:"position"`
	Duration      float64        `json:"duration"`
}

type networkError struct {
	Details string `json:"details"`
	Status  int    `json:"status"`
}

// play plays to the end at a speed. The options are hls.js's, in JavaScript.
func (p *player) play(t *testing.T, how, src string, rate int, options string) ending {
	t.Helper()
	return evaluate[ending](t, p, fmt.Sprintf("play(%q, %q, %d, %s)", how, src, rate, options))
}

// evaluate runs a script in the page and awaits the promise that it returns.
func evaluate[T any](t *testing.T, p *player, script string) T {
	t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, startTimeout)
	defer cancel()
	result, err := chromedp.Run(ctx, chromedp.Evaluate[T](script, chromedp.EvalAwaitPromise))
	if err != nil {
		t.Fatalf("%.40s…: %v", script, err)
	}
	return result
}

// wantRequestsIn checks that whatever the browser has asked for, the page apart,
// lies below the viewer's own path, and that what the origin knows as uris is
// among it, so that nothing has escaped the record.
func (p *player) wantRequestsIn(t *testing.T, space string, uris []string) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, address := range p.requests {
		own := strings.HasPrefix(address, p.base+space)
		page := strings.HasPrefix(address, p.page) || strings.HasPrefix(address, "blob:") || strings.HasPrefix(address, "data:")
		if !own && !page {
			t.Errorf("the player asked for %s, outside of %s", address, space)
		}
	}
	for _, uri := range uris {
		_, suffix, _ := strings.Cut(uri[1:], "/") // less the video's folder
		if !slices.Contains(p.requests, p.base+space+suffix) {
			t.Errorf("%s is missing in the record of the browser's requests: %v", suffix, p.requests)
		}
	}
}

// ffmpeg and ffprobe read every format through the gate, and fail with the
// gate's status when the token does not open it.
func TestFFmpeg(t *testing.T) {
	ffmpeg, ffprobe := tool(t, "ffmpeg"), tool(t, "ffprobe")
	o := startOrigin(t, exampleMedia())
	g := start(t, o, config{app: withCountries(t)})
	good := mint(t, "demo", func(c *token.Claims) { c.Downloadable = true })
	for _, tc := range []struct {
		name, suffix, segments string
	}{
		{"HLS", "manifest/video.m3u8", "/demo/video/180p/%03d.m4s"},
		{"HLS of MPEG-TS", "manifest/ts.m3u8", "/demo/ts/%03d.ts"},
		{"DASH", "manifest/video.mpd", "/demo/video/180p/%03d.m4s"},
		{"MP4", "downloads/default.mp4", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			o.take()
			address := g.url("/" + good + "/" + tc.suffix)
			probed := execute(t, "", "", ffprobe, "-v", "error", "-show_entries", "format=duration", "-of", "csv=p=0", address)
			duration, err := strconv.ParseFloat(strings.TrimSpace(probed.stdout), 64)
			if err != nil || math.Abs(duration-clipSeconds) > 0.5 || probed.code != 0 || probed.stderr != "" {
				t.Errorf("ffprobe: %+v", probed)
			}
			decoded := execute(t, "", "", ffmpeg, "-v", "error", "-xerror", "-nostdin", "-i", address, "-f", "null", "-")
			if decoded.code != 0 || decoded.stderr != "" {
				t.Errorf("ffmpeg: %+v", decoded)
			}
			if tc.segments != "" {
				o.wantSegments(t, tc.segments, 6)
			}
		})
		for _, bad := range badTokens(t) {
			t.Run(tc.name+", "+bad.name, func(t *testing.T) {
				o.take()
				address := g.url("/" + bad.token + "/" + tc.suffix)
				for _, program := range [][]string{
					{ffprobe, "-v", "error", address},
					{ffmpeg, "-v", "error", "-nostdin", "-i", address, "-f", "null", "-"},
				} {
					got := execute(t, "", "", program[0], program[1:]...)
					if got.code == 0 || !strings.Contains(got.stderr, strconv.Itoa(bad.want.Status)) {
						t.Errorf("%s: %+v; want a failure with %d", program[0], got, bad.want.Status)
					}
				}
				if requests := o.take(); len(requests) != 0 {
					t.Errorf("the origin was asked for %v", requests)
				}
			})
		}
	}
}
