package integration

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// tiers runs the examples of three gateways before two cache nodes. The test replaces only
// addresses and keys.
type tiers struct {
	gates, nodes []*gateway
}

func startTiers(t *testing.T, o *origin, gate string) *tiers {
	t.Helper()
	redis, s := startRedis(t), new(tiers)
	run := func(example string, replaced ...string) *gateway {
		g := &gateway{addr: freeAddr(t), api: freeAddr(t), dir: t.TempDir(), log: newLogBuffer()}
		_, port, _ := net.SplitHostPort(g.addr)
		replaced = append(replaced, "{\n\t# Replaces", "{\nadmin off\ndebug\ndefault_bind 127.0.0.1\n# Replaces",
			"http://media.example.com:8080", "http://:"+port, "http://:8081", "http://:"+port, "http://localhost:9090", "http://"+g.api,
			"public_url https://media.example.com", "key_file main.jwks.json", "\tsigned_playback\n", "signed_playback {\n"+gate+"\n}\n",
			"10.0.0.0/24", "127.0.0.1", "origin.internal:80", o.addr(), "GiB", "MiB")
		writeFile(t, filepath.Join(g.dir, "main.jwks.json"), publicJWKS(t, signingKey()))
		writeFile(t, filepath.Join(g.dir, "Caddyfile"), []byte(strings.NewReplacer(replaced...).Replace(readText(t, "../examples/two-tiers-"+example+".caddyfile"))))
		g.launch(t, binary(t), []string{"SIGNED_PLAYBACK_API_TOKEN=" + apiSecret, "SIGNED_PLAYBACK_REDIS=redis://" + redis.addr + "/0"},
			g.log, "serving initial configuration", "run", "--config", "Caddyfile")
		return g
	}
	for range 2 {
		s.nodes = append(s.nodes, run("cache"))
	}
	for range 3 {
		s.gates = append(s.gates, run("gateway", "cache1.internal:8081", s.nodes[0].addr, "cache2.internal:8081", s.nodes[1].addr))
	}
	return s
}

// Viewers of three gateways, each with a token, ask the origin once for each object of live
// streams and videos on demand.
func TestTwoTiersCrowd(t *testing.T) {
	t.Parallel()
	m := startMediaOrigin(t)
	(&crowd{gates: startTiers(t, m.origin, m.gate()).gates, m: m, began: time.Now()}).wantOnce(t, 60)
}

// Both cache nodes get their part, strangers get nothing, a purge reaches both tiers, and a
// dead node's files come by the other one.
func TestTwoTiers(t *testing.T) {
	t.Parallel()
	var version atomic.Int64
	o := startOrigin(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "video/mp2t")
		fmt.Fprint(w, "version ", version.Load(), r.URL.Path)
	}))
	s := startTiers(t, o, "")
	tokens := viewersOf(t, "demo", 6)
	const files = 24
	path := func(i int) string { return fmt.Sprintf("/demo/s%d.ts", i) }
	watch := func() {
		t.Helper()
		var viewers sync.WaitGroup
		for i, token := range tokens {
			viewers.Go(func() {
				for f := range files {
					res := s.gates[i%3].get(t, "/"+token+strings.TrimPrefix(path(f), "/demo"))
					if want := fmt.Sprint("version ", version.Load(), path(f)); string(res.body) != want {
						t.Errorf("status %d, %q, want %q", res.StatusCode, res.body, want)
					}
				}
			})
		}
		viewers.Wait()
	}
	wantOnce := func(what string) {
		t.Helper()
		asked := make(map[string]int)
		for _, uri := range o.uris() {
			asked[uri]++
		}
		o.take()
		for i := range files {
			if got := asked[path(i)]; got != 1 {
				t.Errorf("%s: the origin was asked %d times for %s, want 1", what, got, path(i))
			}
		}
	}
	watch()
	wantOnce("three gateways")
	var statuses []string
	for _, i := range []int{0, 1, 1} {
		statuses = append(statuses, s.gates[i].get(t, "/"+tokens[0]+"/another.ts").Header["Cache-Status"]...)
	}
	const hit, miss = "signed-playback; hit", "signed-playback; fwd=uri-miss"
	if diff := cmp.Diff([]string{miss, miss, hit, miss, hit, hit}, statuses); diff != "" {
		t.Errorf("statuses of both tiers (-want +got):\n%s", diff)
	}
	for n, node := range s.nodes {
		hits := 0
		for i := range files {
			if node.raw(t, "GET "+path(i)+" HTTP/1.1\r\nHost: media.example.com\r\nConnection: close\r\n\r\n").Header.Get("Cache-Status") == hit {
				hits++
			}
		}
		if hits == 0 || hits == files {
			t.Errorf("node %d has %d of %d files", n, hits, files)
		}
	}
	o.take()
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP("127.0.0.2")}}
	stranger := http.Client{Transport: &http.Transport{DialContext: dialer.DialContext}}
	if res, err := stranger.Get(s.nodes[0].url(path(0))); err == nil {
		res.Body.Close()
		t.Error("a stranger gets a file of a cache node")
	}

	purge := func() {
		t.Helper()
		next := version.Add(1)
		s.gates[0].mustCall(t, "POST", "stream/demo/purge", "", nil)
		for _, g := range s.gates {
			eventually(t, "the gateway knows of the purge", func() bool {
				return bytes.HasPrefix(g.get(t, "/"+tokens[0]+"/probe.ts").body, []byte(fmt.Sprint("version ", next)))
			})
		}
		watch()
	}
	purge()
	wantOnce("after a purge")
	s.nodes[0].kill(t)
	purge()
	wantOnce("with one cache node")
}
