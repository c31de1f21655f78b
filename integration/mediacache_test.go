package integration

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/signed-playback/caddy-signed-playback/token"
)

const cachedSite = "signed_playback_cache\n"

// viewersOf returns tokens that differ from each other, for one video.
func viewersOf(t *testing.T, video string, count int) (tokens []string) {
	t.Helper()
	for i := range count {
		tokens = append(tokens, mint(t, video, func(c *token.Claims) { c.ExpiresAt = c.ExpiresAt.Add(time.Duration(i) * time.Second) }))
	}
	return tokens
}

// Viewers with tokens of their own share each file: the origin is asked once.
func TestEachSegmentOnce(t *testing.T) {
	t.Parallel()
	o := startOrigin(t, exampleMedia())
	g := start(t, o, config{site: cachedSite + "reverse_proxy " + o.addr()})
	files := []string{"manifest/video.m3u8", "manifest/video.mpd", "ts/002.ts", "ts/003.ts", "downloads/default.mp4"}
	var group sync.WaitGroup
	for _, viewer := range viewersOf(t, "demo", 40) {
		group.Go(func() {
			for _, file := range files[1:4] {
				want, err := os.ReadFile("../examples/media/demo/" + file)
				if err != nil {
					t.Error(err)
				}
				res := g.get(t, "/"+viewer+"/"+file+"?CMCD=sid%3D"+viewer[len(viewer)-8:])
				if res.StatusCode != http.StatusOK || file != files[1] && !bytes.Equal(res.body, want) {
					t.Errorf("%s: status %d, %d bytes", file, res.StatusCode, len(res.body))
				}
			}
		})
	}
	group.Wait()
	asked := make(map[string]int)
	for _, r := range o.take() {
		asked[r.uri]++
		if got := fmt.Sprint(r.header["User-Agent"], r.header["X-Forwarded-For"], r.header["Accept-Encoding"]); got != "[signed-playback] [] [identity]" {
			t.Errorf("the origin is told of a viewer: %v", r.header)
		}
	}
	for _, file := range files[2:4] {
		if asked["/demo/"+file] != 1 {
			t.Errorf("%s was asked for %d times", file, asked["/demo/"+file])
		}
	}
	if n := asked["/demo/"+files[1]]; n < 1 || n > 40 {
		t.Errorf("the MPD was asked for %d times", n)
	}

	t.Run("a hit changes no decision", func(t *testing.T) {
		for name, path := range map[string]string{
			"token_required":       "/demo/ts/002.ts",
			"token_expired":        "/" + mint(t, "demo", func(c *token.Claims) { c.ExpiresAt = time.Now().Add(-time.Minute) }) + "/ts/002.ts",
			"rule_blocked":         "/" + mint(t, "demo", func(c *token.Claims) { c.AccessRules = []byte(`[{"type":"any","action":"block"}]`) }) + "/ts/002.ts",
			"download_not_allowed": "/" + mint(t, "demo", nil) + "/downloads/default.mp4",
		} {
			if res := g.get(t, path); res.reason() != name || res.Header.Get("Cache-Status") != "" {
				t.Errorf("%q, want %s", res.reason(), name)
			}
		}
		res := g.get(t, "/"+mint(t, "other", nil)+"/ts/002.ts")
		if res.StatusCode != http.StatusNotFound {
			t.Errorf("a token of another video got status %d", res.StatusCode)
		}
	})
}

var livePart = "moof+mdat" + strings.Repeat(".", 100)

// Viewers of a growing segment get each part when the origin sends it, and all share one
// request: the cache adds no latency to LL-HLS parts and chunked CMAF.
func TestLiveEdgeIsShared(t *testing.T) {
	t.Parallel()
	step := make(chan struct{})
	o := startOrigin(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, ".m3u8") {
			<-step // a blocking playlist reload
			fmt.Fprintf(w, "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\ns%s.m4s\n", r.URL.Query().Get("_HLS_msn"))
			return
		}
		w.Header().Set("Content-Type", "video/mp4")
		for range 3 {
			io.WriteString(w, livePart)
			w.(http.Flusher).Flush()
			<-step
		}
	}))
	g := start(t, o, config{site: cachedSite + "reverse_proxy " + o.addr()})
	const count = 20
	got := make(chan string, count)
	for _, viewer := range viewersOf(t, "live", count) {
		go func() {
			res, err := client.Get(g.url("/" + viewer + "/s7.m4s"))
			if err != nil {
				got <- err.Error()
				return
			}
			defer res.Body.Close()
			for {
				part := make([]byte, len(livePart))
				if _, err := io.ReadFull(res.Body, part); err != nil {
					got <- err.Error()
					return
				}
				got <- string(part)
			}
		}()
	}
	for range 3 {
		for range count {
			if part := <-got; part != livePart {
				t.Fatal(part)
			}
		}
		step <- struct{}{}
	}
	for range count {
		if end := <-got; end != io.EOF.Error() {
			t.Error(end)
		}
	}
	var group sync.WaitGroup
	waiting := viewersOf(t, "live", count)
	for _, viewer := range waiting {
		group.Go(func() {
			res := g.get(t, "/"+viewer+"/v.m3u8?_HLS_msn=8")
			if !strings.Contains(string(res.body), "s8.m4s") {
				t.Errorf("status %d %q", res.StatusCode, res.body)
			}
		})
	}
	eventually(t, "the origin holds the playlist", func() bool { return len(o.uris()) == 2 })
	close(step)
	group.Wait()
	if uris := o.uris(); len(uris) > 3 { // a late viewer may ask again when the playlist is a second old
		t.Errorf("the origin was asked for %q", uris)
	}
}

// Nothing that a viewer can vary leads to another object, to bytes of another one, or
// to a request that tells the origin something.
func TestCacheKeysAreNotConfused(t *testing.T) {
	t.Parallel()
	o := startOrigin(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "video/mp2t")
		fmt.Fprintf(w, "%s %v %x", r.RequestURI, r.Header["X-Any"], sha256.Sum256([]byte(r.Header.Get("Accept")+r.Header.Get("Cookie")+r.Header.Get("Range"))))
	}))
	g := start(t, o, config{site: "signed_playback_cache {\nquery v\n}\nreverse_proxy " + o.addr()})
	first := "/" + mint(t, "demo", nil) + "/s.ts"
	want := string(g.get(t, first).body)
	for _, header := range []string{
		"Accept: text/plain", "Accept: text/html", "Cookie: a=b", "X-Any: x", "X-Forwarded-Host: evil.example", "X-Original-URL: /other",
		"Range: bytes=0-", "Cache-Control: no-cache, no-store", "Pragma: no-cache", `If-Range: "x"`, "X-HTTP-Method-Override: DELETE",
		"Accept-Encoding: br, gzip;q=0", "If-Modified-Since: Mon, 30 Nov 2026 00:00:00 GMT",
	} {
		for _, query := range []string{"", "?x=1", "?CMCD=br%3D1", "?V=2", "?utm=../../other"} {
			if got := string(g.get(t, first+query, header).body); got != want {
				t.Errorf("%s %q: %q, want %q", header, query, got, want)
			}
		}
	}
	if requests := o.take(); len(requests) != 1 {
		t.Errorf("the origin was asked %d times", len(requests))
	}
	for query, want := range map[string]string{"?v=1": "/demo/s.ts?v=1", "?v=2&x=1": "/demo/s.ts?v=2", "?x&v=2%26": "/demo/s.ts?v=2%26"} {
		if got, _, _ := strings.Cut(string(g.get(t, first+query).body), " "); got != want {
			t.Errorf("%q led to %q, want %q", query, got, want)
		}
	}
	for _, path := range []string{"/%73.ts", "/S.ts", "/s.ts/", "/s.tss"} {
		got, _, _ := strings.Cut(string(g.get(t, strings.TrimSuffix(first, "/s.ts")+path).body), " ")
		if got != "/demo"+path {
			t.Errorf("%s got the bytes of %q", path, got)
		}
	}
}

// Objects survive a reload of their site, and a site with another upstream has none of
// them.
func TestCacheOverReloads(t *testing.T) {
	t.Parallel()
	body := "first"
	answer := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, body) })
	o, other := startOrigin(t, answer), startOrigin(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "other") }))
	admin := freeAddr(t)
	c := config{global: "admin " + admin, site: cachedSite + "reverse_proxy " + o.addr()}
	g := start(t, o, c)
	path := "/" + mint(t, "demo", nil) + "/s.ts"
	check := func(what, want string) {
		t.Helper()
		if got := string(g.get(t, path).body); got != want {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	load := func(c config) {
		t.Helper()
		if err := g.load(admin, strings.Replace(g.caddyfile(t, o, c), "admin off\n", "", 1)); err != nil {
			t.Fatal(err)
		}
	}
	check("at the start", "first")
	body = "second"
	c.app = "leeway 6s"
	load(c)
	check("after a reload", "first")
	c.site = cachedSite + "reverse_proxy " + other.addr()
	load(c)
	check("with another upstream", "other")
}

// The cache serves the root of the site, and not the working directory of Caddy.
func TestCacheInFrontOfFileServer(t *testing.T) {
	t.Parallel()
	roots := []string{t.TempDir(), t.TempDir()}
	for i, root := range roots {
		if err := os.MkdirAll(root+"/demo", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(root+"/demo/s.ts", fmt.Appendf(nil, "root %d", i), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	site := fmt.Sprintf("@second query root=1\nroot * %s\nroot @second %s\nsigned_playback_cache {\nquery v\n}\nfile_server", roots[0], roots[1])
	g := start(t, startOrigin(t, exampleMedia()), config{site: site})
	path := "/" + mint(t, "demo", nil) + "/s.ts"
	for range 2 {
		for query, want := range map[string]string{"": "root 0", "?root=1": "root 1"} {
			for _, header := range []string{"Accept: */*", "Authorization: Basic YTpi"} {
				if res := g.get(t, path+query, header); string(res.body) != want {
					t.Errorf("%q, %s: status %d, %q, want %q", query, header, res.StatusCode, res.body, want)
				}
			}
		}
	}
}

// Each version of HTTP gets the same bytes through the listener wrapper, on connections that
// hits of several sizes share.
func TestGatheredWritesAreWhole(t *testing.T) {
	t.Parallel()
	o := startOrigin(t, exampleMedia())
	c := config{
		global: "servers {\nlistener_wrappers {\nsigned_playback\ntls\n}\n}",
		site:   cachedSite + "reverse_proxy " + o.addr(),
	}
	plain, overTLS := start(t, o, c), startTLS(t, o, c)
	get := map[string]func(path string, header ...string) *response{
		"HTTP/1.1 without TLS": func(path string, header ...string) *response { return plain.get(t, path, header...) },
	}
	for _, p := range protocols {
		client, _ := p.connect(t, overTLS)
		get[p.name] = func(path string, header ...string) *response {
			return overTLS.ask(t, client, http.MethodGet, path, header...)
		}
	}
	viewer := "/" + mint(t, "demo", func(c *token.Claims) { c.Downloadable = true })
	for name, get := range get {
		var group sync.WaitGroup
		for range 8 {
			group.Go(func() {
				for _, file := range []string{"ts/002.ts", "downloads/default.mp4", "ts/003.ts", "ts/002.ts", "downloads/default.mp4"} {
					want, err := os.ReadFile("../examples/media/demo/" + file)
					if err != nil {
						t.Error(err)
						return
					}
					if res := get(viewer + "/" + file); res.StatusCode != http.StatusOK || !bytes.Equal(res.body, want) {
						t.Errorf("%s: %s: status %d, %d bytes of %d", name, file, res.StatusCode, len(res.body), len(want))
					}
					if res := get(viewer+"/"+file, "Range: bytes=1000-40999"); !bytes.Equal(res.body, want[1000:min(41000, len(want))]) {
						t.Errorf("%s: %s: status %d, %d bytes of a range", name, file, res.StatusCode, len(res.body))
					}
				}
			})
		}
		group.Wait()
	}
}
