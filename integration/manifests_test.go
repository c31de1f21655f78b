package integration

import (
	"bytes"
	"compress/gzip"
	"context"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
)

// rootedPlaylist has URIs that lead out of the viewer's own path unless they are
// rewritten, and a feature that no viewer gets. rewrittenPlaylist is what a viewer
// gets.
const (
	rootedPlaylist    = "#EXTM3U\n#EXT-X-CONTENT-STEERING:SERVER-URI=\"https://evil.test/\"\n#EXTINF:2,\n/vidA/video/001.ts\n#EXTINF:2,\nhttp://origin.invalid/vidA/video/002.ts\n"
	rewrittenPlaylist = "#EXTM3U\n#EXTINF:2,\nvideo/001.ts\n#EXTINF:2,\nvideo/002.ts\n"
)

// servePlaylist serves the playlist with everything that caches and players use.
func servePlaylist(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/vnd.apple.mpegurl")
	w.Header().Set("ETag", `"origin"`)
	http.ServeContent(w, r, "", time.Now().Add(-time.Hour), strings.NewReader(rootedPlaylist))
}

// What players and caches ask of a manifest is about the rewritten one, in every
// version of HTTP.
func TestManifestRequests(t *testing.T) {
	t.Parallel()
	g := startTLS(t, startOrigin(t, http.HandlerFunc(servePlaylist)), config{gate: "manifest_hosts origin.invalid"})
	target := "/" + mint(t, "vidA", nil) + "/video.m3u8"
	for _, protocol := range protocols {
		t.Run(protocol.name, func(t *testing.T) {
			c, _ := protocol.connect(t, g)
			for _, tc := range []struct{ method, header string }{
				{http.MethodGet, "Accept: */*"},
				{http.MethodGet, "Range: bytes=0-1"},
				{http.MethodGet, `If-None-Match: "origin"`},
				{http.MethodGet, `If-Match: "other"`},
				{http.MethodHead, "Range: bytes=0-"},
			} {
				got := g.ask(t, c, tc.method, target, tc.header)
				what := tc.method + " with " + tc.header
				if got.StatusCode != http.StatusOK || got.ContentLength != int64(len(rewrittenPlaylist)) {
					t.Errorf("%s: %d, length %d, want 200 and %d", what, got.StatusCode, got.ContentLength, len(rewrittenPlaylist))
				}
				if tc.method == http.MethodGet && string(got.body) != rewrittenPlaylist {
					t.Errorf("%s: the body is %q", what, got.body)
				}
				for _, field := range []string{"ETag", "Last-Modified", "Accept-Ranges", "Content-Range"} {
					if value := got.Header.Get(field); value != "" {
						t.Errorf("%s: %s is %q", what, field, value)
					}
				}
			}
		})
	}
}

// An encode directive compresses the rewritten manifest.
func TestCompressedManifest(t *testing.T) {
	t.Parallel()
	o := startOrigin(t, http.HandlerFunc(servePlaylist))
	g := start(t, o, config{gate: "manifest_hosts origin.invalid", site: `encode gzip {
		minimum_length 1
		match header Content-Type application/vnd.apple.mpegurl*
	}
	reverse_proxy ` + o.addr()})
	got := g.get(t, "/"+mint(t, "vidA", nil)+"/video.m3u8", "Accept-Encoding: gzip") // named here, so that the client does not decompress it
	if got.Header.Get("Content-Encoding") != "gzip" || !strings.Contains(strings.Join(got.Header.Values("Vary"), ","), "Accept-Encoding") {
		t.Fatalf("%d %v", got.StatusCode, got.Header)
	}
	reader, err := gzip.NewReader(bytes.NewReader(got.body))
	if err != nil {
		t.Fatal(err)
	}
	if body, err := io.ReadAll(reader); err != nil || string(body) != rewrittenPlaylist {
		t.Errorf("the compressed manifest: %q, %v", body, err)
	}
	if asked := o.take(); len(asked) != 1 || asked[0].header.Get("Accept-Encoding") != "identity" {
		t.Errorf("the origin was asked %v", asked)
	}
}

// A blocking reload waits at the origin until the origin has what it asks for, and
// the origin learns from the query what that is. A client that goes away leaves no
// request there.
func TestBlockingReload(t *testing.T) {
	t.Parallel()
	const query = "?_HLS_msn=7&_HLS_part=1&_HLS_skip=YES"
	waits, gone, released := make(chan string, 2), make(chan struct{}), make(chan struct{})
	o := startOrigin(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		waits <- r.RequestURI
		select {
		case <-released:
			servePlaylist(w, r)
		case <-r.Context().Done():
			close(gone)
		}
	}))
	g := start(t, o, config{gate: "manifest_hosts origin.invalid"})
	address := g.url("/" + mint(t, "vidA", nil) + "/video.m3u8" + query)
	ctx, leave := context.WithCancel(t.Context())
	impatient, patient := ask(ctx, address), ask(t.Context(), address)
	for range 2 {
		if got := await(t, waits, "a request at the origin"); got != videoFolder+"video.m3u8"+query {
			t.Errorf("the origin was asked for %s", got)
		}
	}
	leave()
	if res := <-impatient; res != nil {
		t.Errorf("the client that went away was answered: %v", res.verdict())
	}
	await(t, gone, "the end of its request at the origin")
	close(released)
	if res := <-patient; res == nil || string(res.body) != rewrittenPlaylist {
		t.Errorf("the client that waited got %v", res)
	}
}

// ask asks for an address and sends what comes, or nil.
func ask(ctx context.Context, address string) <-chan *response {
	answered := make(chan *response, 1)
	go func() {
		defer close(answered)
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
		if err != nil {
			return
		}
		res, err := client.Do(req)
		if err != nil {
			return
		}
		defer res.Body.Close()
		if body, err := io.ReadAll(res.Body); err == nil {
			answered <- &response{res, body}
		}
	}()
	return answered
}

// A redirect within the video's folder leads to the same place below the client's
// own path. A redirect to anywhere else is refused.
func TestRedirects(t *testing.T) {
	t.Parallel()
	o := startOrigin(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if to := r.URL.Query().Get("to"); to != "" {
			w.Header().Set("Location", to)
			w.WriteHeader(http.StatusFound)
			return
		}
		_, _ = io.WriteString(w, "#EXTM3U\n#"+r.URL.Path+"\n")
	}))
	g := start(t, o, config{gate: "manifest_hosts origin.test:8000"})
	good := "/" + mint(t, "vidA", nil) + "/"
	for _, tc := range []struct{ from, to, end string }{
		{"manifest/video.m3u8", "/vidA/b/c.m3u8", "b/c.m3u8"},
		{"video/001.ts", "http://origin.test:8000/vidA/b/c.m3u8", "b/c.m3u8"},
		{"video/001.ts", "http://" + g.addr + "/vidA/c.m3u8", "c.m3u8"}, // by the name that the client asked for
		{"manifest/video.m3u8", `\\evil.test/vidA/c.m3u8`, ""},
		{"manifest/video.m3u8", "/vidA/%2e%2e/vidB/c.m3u8", ""},
	} {
		got := g.get(t, good+tc.from+"?to="+url.QueryEscape(tc.to))
		if tc.end == "" {
			o.take()
			if want := (verdict{http.StatusBadGateway, "manifest_invalid"}); got.verdict() != want || got.Header.Get("Location") != "" {
				t.Errorf("%s to %s: %v to %q, want %v", tc.from, tc.to, got.verdict(), got.Header.Get("Location"), want)
			}
			continue
		}
		next, err := got.Location()
		if err != nil || got.StatusCode != http.StatusFound || next.String() != g.url(good+tc.end) {
			t.Errorf("%s to %s: %d to %v, want %s: %v", tc.from, tc.to, got.StatusCode, next, g.url(good+tc.end), err)
			continue
		}
		o.take()
		o.wantPassed(t, g.get(t, next.RequestURI()), videoFolder+tc.end)
	}
}
