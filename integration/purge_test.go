package integration

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

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
				purged := time.Now()
				wantVersion(1, files[i])
				took := time.Since(purged)
				t.Logf("the purge of %s came to the other node after %s", video, took)
				if took > 10*time.Second { // the promise is 2 s, without other tests on the machine
					t.Error("that is too late")
				}
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
