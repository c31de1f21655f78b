package integration

import (
	"bytes"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// stormManifest is a playlist of some MiB, as the origin sends it and rewritten.
func stormManifest(size int) (sent, rewritten []byte) {
	rest := "\n#" + strings.Repeat("x", size)
	return []byte("#EXTM3U\n#EXTINF:2,\n/vidA/1.ts" + rest), []byte("#EXTM3U\n#EXTINF:2,\n1.ts" + rest)
}

// D9 The attack: many clients ask for a manifest of several MiB at the same time, and
// the origin sends it slowly. The server's memory stays bounded, each client gets
// the whole manifest or is refused, and viewers of other videos do not notice.
func TestLongManifestStorm(t *testing.T) {
	const (
		limit    = 256 << 20 // bytes, of which a quarter is for manifests
		viewers  = 100
		size     = 5 << 20 // held once as it is and once rewritten
		pieces   = 20
		over     = 400 * time.Millisecond
		rounds   = 3
		while    = time.Second
		residual = 192 << 20 // by how much the server may grow, garbage included
	)
	sent, rewritten := stormManifest(size)
	o := startOrigin(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasSuffix(r.URL.Path, ".m3u8") {
			_, _ = w.Write(goodSegment)
			return
		}
		tick := time.NewTicker(over / pieces)
		defer tick.Stop()
		for piece := range pieces { // without a length
			<-tick.C
			if _, err := w.Write(sent[piece*len(sent)/pieces : (piece+1)*len(sent)/pieces]); err != nil {
				return
			}
		}
	}))
	admin := freeAddr(t)
	g := start(t, o, config{quick: true, log: quiet, global: "admin " + admin, env: []string{"GOMEMLIMIT=" + strconv.Itoa(limit)}})
	others := newBystanders(t, g.url(""))
	others.watch(t, while) // which verifies the tokens and dials the origin
	before := g.memory(t)["VmRSS"]

	target := g.url("/" + mint(t, "vidA", nil) + "/video.m3u8")
	var storm sync.WaitGroup
	var mu sync.Mutex
	got := make(map[verdict]int)
	for range viewers {
		storm.Go(func() {
			res, err := client.Get(target)
			if err != nil {
				t.Errorf("a viewer of the storm: %v", err)
				return
			}
			defer res.Body.Close()
			body, err := io.ReadAll(res.Body)
			v := verdict{res.StatusCode, res.Header.Get("Signed-Playback-Reason")}
			if err != nil || v == plays && !bytes.Equal(body, rewritten) {
				t.Errorf("a viewer of the storm got %d bytes of %d: %v", len(body), len(rewritten), err)
			}
			mu.Lock()
			defer mu.Unlock()
			got[v]++
		})
	}
	others.watch(t, rounds*while)
	storm.Wait()
	grown := g.memory(t)["VmHWM"] - before
	t.Logf("the storm was answered with %v; the server has grown by %d MiB at the most", got, grown>>20)
	if grown > residual {
		t.Errorf("the server has grown by %d MiB, want at most %d", grown>>20, residual>>20)
	}
	tooMany := verdict{http.StatusBadGateway, "manifest_invalid"}
	if got[plays] == 0 || got[plays]+got[tooMany] != viewers {
		t.Errorf("the storm was answered with %v, want %v, and else %v", got, plays, tooMany)
	}
	if held := g.metric(t, admin, "manifest_memory_bytes"); held != 0 {
		t.Errorf("%.0f bytes are still reserved", held)
	}
}
