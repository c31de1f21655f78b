package integration

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
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
)

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

// Objects on disk outlive a server that is killed while it writes. Afterwards each byte is
// right, although files were damaged meanwhile, and the origin is asked only for what is not
// on the disk.
func TestDiskTierOverKills(t *testing.T) {
	t.Parallel()
	o := diskOrigin(t)
	folder := filepath.Join(t.TempDir(), "cache")
	c := config{site: "signed_playback_cache {\nmemory 2MiB\ndisk " + folder + " 64MiB\n}\nreverse_proxy " + o.addr()}
	g := start(t, o, c)
	viewers := viewersOf(t, "demo", 8)
	var hits atomic.Int64
	for cycle := range 4 {
		o.take()
		var mu sync.Mutex
		asks := make(map[string]int) // that the origin must have seen
		view := func(viewer string, random *rand.Rand) error {
			path := fmt.Sprintf("/s%d.ts", random.IntN(20*(cycle+1)))
			res, err := g.ask(viewer, path)
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			switch status := res.Header.Get("Cache-Status"); {
			case res.StatusCode != http.StatusOK || !bytes.Equal(res.body, diskObject("/demo"+path)):
				t.Errorf("%s: status %d, %q, %d wrong bytes", path, res.StatusCode, status, len(res.body))
			case strings.HasSuffix(status, "detail=disk"):
				hits.Add(1)
			case strings.HasSuffix(status, "fwd=uri-miss"):
				asks["/demo"+path]++
			}
			return nil
		}
		var group sync.WaitGroup
		for i, viewer := range viewers {
			group.Go(func() {
				for random := rand.New(rand.NewPCG(uint64(i), uint64(cycle))); view(viewer, random) == nil; { //nolint:revive // until the server is gone
				}
			})
		}
		eventually(t, "there are files", func() bool { return len(diskFiles(t, folder)) > 10*(cycle+1) && hits.Load() >= int64(20*cycle) })
		g.kill(t)
		group.Wait()
		for _, uri := range o.uris() {
			asks[uri]--
		}
		for uri, n := range asks {
			if n > 0 {
				t.Errorf("%s: %d answers from the origin that it has not seen", uri, n)
			}
		}
		for i, file := range diskFiles(t, folder) {
			if info, err := os.Stat(file); err != nil || info.Mode() != 0o600 {
				t.Errorf("%s has mode %v, %v", file, info.Mode(), err)
			} else if i%7 == 0 {
				damage(t, file, i)
			}
		}
		g = startAgain(t, o, g, c)
	}
}

// ask makes a request to a server that may be killed meanwhile.
func (g *gateway) ask(viewer, path string) (*response, error) {
	res, err := client.Get(g.url("/" + viewer + path))
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	return &response{res, body}, err
}

func diskFiles(t *testing.T, folder string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(folder, "??", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// damage changes, cuts or empties a file.
func damage(t *testing.T, path string, seed int) {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil || len(content) == 0 {
		return // a temporary file
	}
	switch at := seed * 7919 % len(content); seed % 3 {
	case 0:
		content[at] ^= 1
	case 1:
		content = content[:at]
	case 2:
		content = append(content, 0)
	}
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

// Reloads take the disk over, with another size too. Another upstream does not get its objects.
func TestDiskTierOverReloads(t *testing.T) {
	t.Parallel()
	o, other := diskOrigin(t), startOrigin(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "other") }))
	folder, admin := filepath.Join(t.TempDir(), "cache"), freeAddr(t)
	site := func(memory, size, upstream string) config {
		return config{global: "admin " + admin, site: "signed_playback_cache {\nmemory " + memory + "\ndisk " + folder + " " + size + "\n}\nreverse_proxy " + upstream}
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
	eventually(t, "the object is on disk", func() bool {
		return len(diskFiles(t, folder)) == 1 && !strings.HasSuffix(diskFiles(t, folder)[0], ".tmp")
	})
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
		if err := g.load(admin, strings.Replace(g.caddyfile(t, o, step.c), "admin off\n", "", 1)); err != nil {
			t.Fatal(err)
		}
		check(step.want, step.status)
	}
	if err := g.load(admin, strings.Replace(g.caddyfile(t, o, site("5MiB", "16MiB", o.addr()+"\nsigned_playback_cache {\ndisk "+folder+" 32MiB\n}")), "admin off\n", "", 1)); err == nil {
		t.Error("a folder with two sizes is accepted")
	}
	check(object, "hit")
}

// A purge removes the files of the video, and no others, also after a restart.
func TestPurgeOnDisk(t *testing.T) {
	t.Parallel()
	o := diskOrigin(t)
	folder := filepath.Join(t.TempDir(), "cache")
	g := start(t, o, config{api: withAPI, site: "signed_playback_cache {\nmemory 2MiB\ndisk " + folder + " 64MiB\n}\nreverse_proxy " + o.addr()})
	for i := range 6 {
		g.get(t, fmt.Sprintf("/%s/s%d.ts", mint(t, []string{"demo", "other"}[i/3], nil), i%3))
		// Objects that wait for a slow disk are bounded, and others get no file.
		eventually(t, "each object has a file", func() bool {
			files := diskFiles(t, folder)
			return len(files) == i+1 && !slices.ContainsFunc(files, func(name string) bool { return strings.HasSuffix(name, ".tmp") })
		})
	}
	g.mustCall(t, "POST", "stream/demo/purge", "", nil)
	g.kill(t)
	g = start(t, o, config{dir: g.dir, addr: g.addr, site: "signed_playback_cache {\nmemory 2MiB\ndisk " + folder + " 64MiB\n}\nreverse_proxy " + o.addr()})
	g.get(t, "/"+mint(t, "demo", nil)+"/s0.ts")
	eventually(t, "the old files are gone", func() bool { return len(diskFiles(t, folder)) == 4 })
}
