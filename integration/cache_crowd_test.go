package integration

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// A hundred viewers of a live stream and of videos on demand, each with a token, ask the
// origin once for each object. Among them are real players.
func TestCrowd(t *testing.T) {
	t.Parallel()
	testCrowd(t, 100, config{})
}

// So do a thousand. The log has how much later than the origin's the first byte at the
// live edge is.
func TestLongCrowd(t *testing.T) {
	testCrowd(t, 1000, config{quick: true, log: quiet})
}

func testCrowd(t *testing.T, count int, c config) {
	m := startMediaOrigin(t)
	c.gate, c.site = m.gate(), cachedSite+"reverse_proxy "+m.addr()
	(&crowd{gates: []*gateway{start(t, m.origin, c)}, m: m, began: time.Now()}).wantOnce(t, count)
}

// wantOnce has so many viewers watch, and checks how often the origin is asked.
func (a *crowd) wantOnce(t *testing.T, count int) {
	t.Helper()
	m := a.m
	page := startPlayersPage(t)
	m.stream("relative", "ll").tick(time.Second / 2)
	var viewers sync.WaitGroup
	for i, viewer := range viewersOf(t, "vidA", count) {
		viewers.Go(func() {
			v := &spectator{crowd: a, client: &http.Client{Transport: new(http.Transport)}, base: a.gates[i%len(a.gates)].url("/" + viewer + "/relative/")}
			defer v.client.CloseIdleConnections()
			if err := v.watch(t.Context(), i/len(a.gates)%2 == 0); err != nil {
				t.Error(err)
			}
		})
	}
	if count > 100 { // a browser beside them would take the time that they measure
		viewers.Wait()
	}
	p := openPage(t, page)
	for clip, options := range map[string]string{"ts": "{}", "ll": "{lowLatencyMode: true}"} {
		address := a.gates[0].url("/" + mint(t, "vidA", nil) + "/relative/" + clip + "/master.m3u8")
		if got := play(t, p, "hls.js", address, 1, liveSeconds, options); got.End != "played" || len(got.Errors) > 0 {
			t.Errorf("hls.js, %s: %+v", clip, got)
		}
		wantDecoded(t, address, liveSeconds, "-t", strconv.Itoa(liveSeconds))
	}
	viewers.Wait()
	a.countRequests(t)
	slices.Sort(a.late)
	by := make(map[int64]int)
	for _, late := range a.late {
		by[late.Milliseconds()]++
	}
	t.Logf("parts by the milliseconds that they are late: %v", by)
	t.Logf("%d viewers, %d parts at the live edge: the first byte is later than the origin's by %s (median), %s (p99)",
		count, len(a.late), a.late[len(a.late)/2], a.late[len(a.late)*99/100])
}

// crowd is many viewers of gateways that lead to one origin.
type crowd struct {
	gates []*gateway
	m     *mediaOrigin
	began time.Time

	mu   sync.Mutex
	late []time.Duration // first bytes of parts, after the origin's
}

// countRequests checks that the origin was asked once for each object. A live playlist without
// the directives of LL-HLS is another object every second.
func (a *crowd) countRequests(t *testing.T) {
	t.Helper()
	asked := make(map[string]int)
	for _, uri := range a.m.uris() {
		asked[uri]++
	}
	for uri, n := range asked {
		most := 1
		if strings.HasSuffix(uri, "/ll/big/media.m3u8") || strings.HasSuffix(uri, "/ll/small/media.m3u8") {
			most += int(time.Since(a.began) / time.Second)
		}
		if n > most {
			t.Errorf("the origin was asked %d times for %s", n, uri)
		}
	}
	if kinds := fmt.Sprint(asked); !strings.Contains(kinds, "_HLS_msn=") || !strings.Contains(kinds, "/part0") || !strings.Contains(kinds, "/000.ts") {
		t.Errorf("viewers have not asked for each kind of object: %v", asked)
	}
}

// spectator is one viewer.
type spectator struct {
	*crowd
	client *http.Client
	base   string
}

func (v *spectator) watch(ctx context.Context, live bool) error {
	if live {
		return v.watchLive(ctx)
	}
	return v.watchVideo(ctx)
}

var playlistURI = regexp.MustCompile(`(?m)^[^#\n].*$`)

// watchVideo gets all playlists and segments of a video.
func (v *spectator) watchVideo(ctx context.Context) error {
	master, _, err := v.get(ctx, "ts/master.m3u8")
	for _, rendition := range playlistURI.FindAllString(string(master), -1) {
		playlist, _, err := v.get(ctx, "ts/"+rendition)
		if err != nil {
			return err
		}
		for _, segment := range playlistURI.FindAllString(string(playlist), -1) {
			if err := v.getFile(ctx, "ts/"+filepath.Dir(rendition)+"/"+segment); err != nil {
				return err
			}
		}
	}
	return err
}

// watchLive follows a stream at its live edge: it asks for the next part and the next
// playlist before they exist.
func (v *spectator) watchLive(ctx context.Context) error {
	const parts = 8
	playlist, _, err := v.get(ctx, "ll/big/media.m3u8")
	if err != nil {
		return err
	}
	_, hint, _ := strings.Cut(string(playlist), `TYPE=PART,URI="part`)
	next, err := strconv.Atoi(hint[:min(len(hint), 3)])
	if err != nil {
		return fmt.Errorf("no part is announced in %q: %w", playlist, err)
	}
	for part := next; part < min(next+parts, partsAll-1); part++ {
		reloaded := make(chan error, 1)
		go func() {
			_, _, err := v.get(ctx, fmt.Sprintf("ll/big/media.m3u8?_HLS_msn=%d&_HLS_part=%d", part/partsPerSegment, part%partsPerSegment))
			reloaded <- err
		}()
		if err := v.getFile(ctx, fmt.Sprintf("ll/big/part%03d.m4s", part)); err != nil {
			return err
		}
		if err := <-reloaded; err != nil {
			return err
		}
	}
	return nil
}

// getFile checks that a file is that of the origin, and how late a new part is.
func (v *spectator) getFile(ctx context.Context, name string) error {
	want, err := os.ReadFile(filepath.Join(v.m.dir, name))
	if err != nil {
		return err
	}
	asked := time.Now()
	got, firstByte, err := v.get(ctx, name)
	if err == nil && !bytes.Equal(got, want) {
		err = fmt.Errorf("%s: %d wrong bytes", name, len(got))
	}
	if released, ok := v.m.stream("relative", "ll").releasedAt(name); ok && released.After(asked) {
		v.mu.Lock()
		defer v.mu.Unlock()
		v.late = append(v.late, firstByte.Sub(released))
	}
	return err
}

// get returns a body and the time of its first byte. It tries again when the gate has too
// many new tokens to verify, as players do.
func (v *spectator) get(ctx context.Context, name string) (body []byte, firstByte time.Time, err error) {
	for {
		traced := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotFirstResponseByte: func() { firstByte = time.Now() }})
		r, err := http.NewRequestWithContext(traced, http.MethodGet, v.base+name, nil)
		if err != nil {
			return nil, firstByte, err
		}
		res, err := v.client.Do(r)
		if err != nil {
			return nil, firstByte, err
		}
		body, err = io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil || res.StatusCode == http.StatusOK {
			return body, firstByte, err
		}
		if res.StatusCode != http.StatusTooManyRequests {
			return nil, firstByte, fmt.Errorf("%s: status %d %s", name, res.StatusCode, body)
		}
		<-time.After(50 * time.Millisecond)
	}
}

// releasedAt returns when a stream has released a part.
func (s *stream) releasedAt(name string) (at time.Time, ok bool) {
	var part int
	if _, err := fmt.Sscanf(filepath.Base(name), "part%03d.m4s", &part); err != nil {
		return at, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	i := part - partsAtStart
	if i < 0 || i >= len(s.released) {
		return at, false
	}
	return s.released[i], true
}

// tiers runs the examples of three gateways before two cache nodes. The test replaces only
// addresses and keys.
type tiers struct {
	gates, nodes []*gateway
}

func startTiers(t *testing.T, o *origin, gate string) *tiers {
	t.Helper()
	redis, s := startRedis(t), new(tiers)
	run := func(example string, replaced ...string) *gateway {
		g := &gateway{addr: freeAddr(t), api: freeAddr(t), dir: t.TempDir(), log: new(logBuffer)}
		replaced = append(replaced, "{\n\t# Replaces", "{\nadmin off\ndebug\ndefault_bind 127.0.0.1\n# Replaces",
			"http://media.example.com:8080", "http://:"+port(g.addr), "http://:8081", "http://:"+port(g.addr), "http://localhost:9090", "http://"+g.api,
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
	wantEqual(t, []string{miss, miss, hit, miss, hit, hit}, statuses, "statuses of both tiers")
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
