package integration

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
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

// A hit changes no decision. TestCrowd has how often the origin is asked.
func TestHitsAreDecidedOn(t *testing.T) {
	t.Parallel()
	o := startOrigin(t, exampleMedia())
	g := start(t, o, config{site: cachedSite + "reverse_proxy " + o.addr()})
	good := mint(t, "demo", func(c *token.Claims) { c.Downloadable = true })
	for _, file := range []string{"/ts/002.ts", "/downloads/default.mp4"} {
		g.get(t, "/"+good+file)
		if got := g.get(t, "/"+good+file).Header.Get("Cache-Status"); got != "signed-playback; hit" {
			t.Errorf("%s: Cache-Status %q", file, got)
		}
	}
	for name, path := range map[string]string{
		"token_required":       "/demo/ts/002.ts",
		"token_expired":        "/" + mint(t, "demo", func(c *token.Claims) { c.ExpiresAt = time.Now().Add(-time.Minute) }) + "/ts/002.ts",
		"rule_blocked":         "/" + mint(t, "demo", withRules(`[{"type":"any","action":"block"}]`)) + "/ts/002.ts",
		"download_not_allowed": "/" + mint(t, "demo", nil) + "/downloads/default.mp4",
	} {
		if res := g.get(t, path); res.reason() != name || res.Header.Get("Cache-Status") != "" {
			t.Errorf("%q, want %s", res.reason(), name)
		}
	}
	if res := g.get(t, "/"+mint(t, "other", nil)+"/ts/002.ts"); res.StatusCode != http.StatusNotFound {
		t.Errorf("a token of another video got status %d", res.StatusCode)
	}
}

// Nothing that a viewer can vary leads to another object, to bytes of another one, or
// to a request that tells the origin something. Package mediacache has all headers.
func TestCacheKeysAreNotConfused(t *testing.T) {
	t.Parallel()
	o := startOrigin(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "video/mp2t")
		fmt.Fprintf(w, "%s %v", r.RequestURI, r.Header)
	}))
	g := start(t, o, config{site: "signed_playback_cache {\nquery v\n}\nreverse_proxy " + o.addr()})
	first := "/" + mint(t, "demo", nil) + "/s.ts"
	want := string(g.get(t, first).body)
	for _, header := range []string{"Accept: text/html", "Cookie: a=b", "X-Original-URL: /other", "Cache-Control: no-cache", "Accept-Encoding: br"} {
		if got := string(g.get(t, first+"?x=1&CMCD=br%3D1", header).body); got != want {
			t.Errorf("%s: %q, want %q", header, got, want)
		}
	}
	if requests := o.take(); len(requests) != 1 {
		t.Errorf("the origin was asked %d times", len(requests))
	}
	for path, want := range map[string]string{"s.ts?v=1": "s.ts?v=1", "s.ts?v=2&x=1": "s.ts?v=2", "S.ts": "S.ts", "%73.ts": "%73.ts"} {
		got, _, _ := strings.Cut(string(g.get(t, strings.TrimSuffix(first, "s.ts")+path).body), " ")
		if got != "/demo/"+want {
			t.Errorf("%s led to %q, want %q", path, got, want)
		}
	}
}

// The cache serves the root of the site, and not the working directory of Caddy.
func TestCacheInFrontOfFileServer(t *testing.T) {
	t.Parallel()
	roots := []string{t.TempDir(), t.TempDir()}
	for i, root := range roots {
		noError(t, os.MkdirAll(root+"/demo", 0o755))
		noError(t, os.WriteFile(root+"/demo/s.ts", fmt.Appendf(nil, "root %d", i), 0o644))
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
	g := startTLS(t, o, config{
		global: "servers {\nlistener_wrappers {\nsigned_playback\ntls\n}\n}",
		site:   cachedSite + "reverse_proxy " + o.addr(),
	})
	viewer := "/" + mint(t, "demo", func(c *token.Claims) { c.Downloadable = true })
	for _, protocol := range protocols {
		c, _ := protocol.connect(t, g)
		var group sync.WaitGroup
		for range 8 {
			group.Go(func() {
				for _, file := range []string{"/ts/002.ts", "/downloads/default.mp4", "/ts/003.ts", "/ts/002.ts", "/downloads/default.mp4"} {
					want := readText(t, "../examples/media/demo"+file)
					if res := g.ask(t, c, http.MethodGet, viewer+file); res.StatusCode != http.StatusOK || string(res.body) != want {
						t.Errorf("%s: %s: status %d, %d bytes of %d", protocol.name, file, res.StatusCode, len(res.body), len(want))
					}
					if res := g.ask(t, c, http.MethodGet, viewer+file, "Range: bytes=1000-40999"); string(res.body) != want[1000:min(41000, len(want))] {
						t.Errorf("%s: %s: status %d, %d bytes of a range", protocol.name, file, res.StatusCode, len(res.body))
					}
				}
			})
		}
		group.Wait()
	}
}

// diskObject returns the body of a path of the origin in the tests of the disk tier.
func diskObject(path string) []byte {
	sum := sha256.Sum256([]byte(path))
	random := rand.NewChaCha8(sum)
	body := make([]byte, 10<<10+int(sum[0])<<12)
	random.Read(body)
	return body
}

func diskOrigin(t *testing.T) *origin {
	t.Helper()
	return startOrigin(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"1"`)
		http.ServeContent(w, r, "s.ts", time.Time{}, bytes.NewReader(diskObject(r.URL.Path)))
	}))
}

// Objects on disk outlive a server that is killed. A purge before that removes the files of its
// video, and no others. TestCacheBytes kills a server that writes, and package mediacache damages files.
func TestDiskTierOverKills(t *testing.T) {
	t.Parallel()
	o := diskOrigin(t)
	folder := filepath.Join(t.TempDir(), "cache")
	c := config{api: withAPI, site: "signed_playback_cache {\nmemory 2MiB\ndisk " + folder + " 64MiB\n}\nreverse_proxy " + o.addr()}
	g := start(t, o, c)
	ask := func(path string) *response {
		video, name, _ := strings.Cut(path[1:], "/")
		return g.get(t, "/"+mint(t, video, nil)+"/"+name)
	}
	for i, path := range []string{"/demo/1.ts", "/demo/2.ts", "/other/1.ts"} {
		ask(path)
		eventually(t, "the object has a file", func() bool { return len(diskFiles(t, folder)) == i+1 })
	}
	g.mustCall(t, "POST", "stream/demo/purge", "", nil)
	g.kill(t)
	g = startAgain(t, o, g, c)
	for path, status := range map[string]string{"/demo/1.ts": "fwd=uri-miss", "/other/1.ts": "hit; detail=disk"} {
		res := ask(path)
		if got := res.Header.Get("Cache-Status"); got != "signed-playback; "+status || !bytes.Equal(res.body, diskObject(path)) {
			t.Errorf("%s: %q with %d bytes, want %s", path, got, len(res.body), status)
		}
	}
	eventually(t, "the old files are gone", func() bool { return len(diskFiles(t, folder)) == 2 })
}

// diskFiles returns the files of the objects in a folder that are written completely.
func diskFiles(t *testing.T, folder string) []string {
	t.Helper()
	files := must(filepath.Glob(filepath.Join(folder, "??", "*")))(t)
	return slices.DeleteFunc(files, func(name string) bool { return strings.HasSuffix(name, ".tmp") })
}

// Reloads take memory and disk over, with another size of the disk too. Another upstream does not get
// their objects.
func TestCacheOverReloads(t *testing.T) {
	t.Parallel()
	o, other := diskOrigin(t), startOrigin(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "other") }))
	folder := filepath.Join(t.TempDir(), "cache")
	site := func(memory, size, upstream string) config {
		return config{site: "signed_playback_cache {\nmemory " + memory + "\ndisk " + folder + " " + size + "\n}\nreverse_proxy " + upstream}
	}
	g := start(t, o, site("2MiB", "16MiB", o.addr()))
	path, object := "/"+mint(t, "demo", nil)+"/s.ts", diskObject("/demo/s.ts")
	check := func(want []byte, status string) {
		t.Helper()
		if res := g.get(t, path); !bytes.Equal(res.body, want) || res.Header.Get("Cache-Status") != "signed-playback; "+status {
			t.Errorf("%q, want %q, %d bytes", res.Header.Get("Cache-Status"), status, len(res.body))
		}
	}
	check(object, "fwd=uri-miss")
	eventually(t, "the object is on disk", func() bool { return len(diskFiles(t, folder)) == 1 })
	for _, step := range []struct {
		c      config
		want   []byte
		status string
	}{
		{site("3MiB", "16MiB", o.addr()), object, "hit; detail=disk"},
		{site("4MiB", "32MiB", o.addr()), object, "hit; detail=disk"},
		{site("4MiB", "32MiB", other.addr()), []byte("other"), "fwd=uri-miss"},
		{site("5MiB", "16MiB", o.addr()), object, "hit; detail=disk"},
	} {
		noError(t, g.load(g.caddyfile(t, o, step.c)))
		check(step.want, step.status)
	}
	if err := g.load(g.caddyfile(t, o, site("5MiB", "16MiB", o.addr()+"\nsigned_playback_cache {\ndisk "+folder+" 32MiB\n}"))); err == nil {
		t.Error("a folder with two sizes is accepted")
	}
	same := site("5MiB", "16MiB", o.addr())
	same.app = "leeway 6s"
	noError(t, g.load(g.caddyfile(t, o, same)))
	check(object, "hit")
}

// A purge on one node holds on all, for a fill that is under way, for a video of the config
// file, and over the removal of settings.
func TestPurge(t *testing.T) {
	t.Parallel()
	for name, store := range map[string]string{"redis": startRedis(t).option(), "files": ""} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var version atomic.Int64
			held, release := make(chan struct{}), make(chan struct{})
			o := startOrigin(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", "video/mp2t")
				fmt.Fprint(w, "version ", version.Load())
				if strings.HasSuffix(r.URL.Path, "/slow.ts") && version.Load() == 0 {
					w.(http.Flusher).Flush()
					held <- struct{}{}
					<-release
				}
			}))
			c := config{api: withAPI, site: cachedSite + "reverse_proxy " + o.addr(), app: store + "\nvideo configured {\nrequire_signed_urls on\n}"}
			if store == "" {
				c.global = sharedFolder(t.TempDir())
			}
			nodes := []*gateway{start(t, o, c), start(t, o, c)}
			files := []string{"/" + mint(t, "demo", nil) + "/a.ts", "/" + mint(t, "configured", nil) + "/a.ts", "/" + mint(t, "demo", nil) + "/slow.ts"}
			other := "/" + mint(t, "other", nil) + "/a.ts"
			var group sync.WaitGroup
			for _, g := range nodes {
				group.Go(func() { g.get(t, files[2]) })
				<-held
				for _, path := range append(files[:2:2], other) {
					g.get(t, path)
				}
			}
			wantVersion := func(want int64, paths ...string) {
				t.Helper()
				for i, g := range nodes {
					for _, path := range paths {
						is := func() bool { return string(g.get(t, path).body) == fmt.Sprint("version ", want) }
						if i == 0 && !is() {
							t.Errorf("the node of the purge does not serve version %d", want)
						}
						eventually(t, "the new version", is)
					}
				}
			}
			version.Store(1)
			for i, video := range []string{"demo", "configured"} {
				nodes[0].mustCall(t, "POST", "stream/"+video+"/purge", "", nil)
				wantVersion(1, files[i])
			}
			wantVersion(1, files...)
			close(release)
			group.Wait()
			wantVersion(1, files...)
			wantVersion(0, other)
			nodes[0].edit(t, "demo", `{"meta":{"name":"x"}}`)
			nodes[0].mustCall(t, "DELETE", "stream/demo", "", nil)
			version.Store(2)
			wantVersion(1, files...)
			nodes[1].mustCall(t, "POST", "stream/demo/purge", "", nil)
			eventually(t, "the third version", func() bool { return string(nodes[0].get(t, files[0]).body) == "version 2" })
		})
	}
}
