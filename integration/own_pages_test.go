package integration

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
)

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
			p := openTab(t)
			p.open(t, w.site("www.example.test")+"/")
			w.forget(t)
			evaluate[bool](t, p, fmt.Sprintf("location = %q, true", at(path)))
			eventually(t, "the page", func() bool { _, ok := w.tap.first("GET", "/iframe"); return ok })
			p.do(t, chromedp.WaitReady("video"))
			eventually(t, "its scripts", func() bool { return evaluate[bool](t, p, "document.readyState === 'complete'") })
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
					p := openTab(t)
					p.open(t, site)
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
