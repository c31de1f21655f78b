package integration

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/signed-playback/caddy-signed-playback/token"
)

const (
	storeAway = "the store cannot be read"
	storeBack = "the store can be read again"
)

var (
	unavailable = refusedFor("state_unavailable")
	keyUnknown  = refusedFor("key_unknown")
	tokenNeeded = refusedFor("token_required")
)

// redisServer is a redis-server of a test's own.
type redisServer struct {
	addr string
	dir  string
	args []string
	cmd  *exec.Cmd
}

func startRedis(t testing.TB, args ...string) *redisServer {
	t.Helper()
	r := &redisServer{addr: freeAddr(t), dir: t.TempDir(), args: args}
	t.Cleanup(r.kill)
	r.start(t)
	return r
}

// start runs the server until it answers, with the data that it had when it was
// killed.
func (r *redisServer) start(t testing.TB) {
	t.Helper()
	args := append([]string{"--port", port(r.addr), "--bind", "127.0.0.1", "--dir", r.dir, "--appendonly", "yes", "--save", ""}, r.args...)
	output := new(logBuffer)
	r.cmd = exec.Command(tool(t, "redis-server"), args...)
	r.cmd.Stdout, r.cmd.Stderr = output, output
	noError(t, r.cmd.Start())
	output.await(t, "Ready to accept connections")
}

// kill ends the server at once, even one that hangs.
func (r *redisServer) kill() {
	if r.cmd != nil {
		_ = r.cmd.Process.Kill()
		_ = r.cmd.Wait()
		r.cmd = nil
	}
}

func (r *redisServer) signal(t testing.TB, signal syscall.Signal) {
	t.Helper()
	noError(t, r.cmd.Process.Signal(signal))
}

// option is the option of the global block that uses the server.
func (r *redisServer) option() string { return "store redis redis://" + r.addr + "/0" }

// do runs one command and returns the reply.
func (r *redisServer) do(t testing.TB, args ...string) string {
	t.Helper()
	got := execute(t, "", "", tool(t, "redis-cli"), append([]string{"-e", "-p", port(r.addr)}, args...)...)
	if got.code != 0 {
		t.Fatalf("redis-cli %.80q: %s%s", args, got.stdout, got.stderr)
	}
	return got.stdout
}

// fleet is some nodes that share a store, each with a folder of its own.
type fleet struct {
	origin *origin
	config config
	nodes  []*gateway
}

// startFleet starts three nodes of the same config, which have the API.
func startFleet(t testing.TB, c config) *fleet {
	t.Helper()
	c.api = withAPI
	f := &fleet{origin: startOrigin(t, nil), config: c}
	for range 3 {
		f.nodes = append(f.nodes, start(t, f.origin, c))
	}
	return f
}

// restart ends a node as a power cut would, and starts it again in its folder.
func (f *fleet) restart(t testing.TB, i int) {
	t.Helper()
	f.nodes[i].kill(t)
	f.nodes[i] = startAgain(t, f.origin, f.nodes[i], f.config)
}

// startAgain starts a server that has ended, in the same place.
func startAgain(t testing.TB, o *origin, g *gateway, c config) *gateway {
	t.Helper()
	c.dir, c.addr, c.apiAddr = g.dir, g.addr, g.api
	return start(t, o, c)
}

// sharedFolder is the global option by which nodes share a folder, as one on a
// network file system.
func sharedFolder(dir string) string { return "storage file_system " + dir }

// wantEverywhere checks what a path gets on each node.
func (f *fleet) wantEverywhere(t testing.TB, what, path string, want verdict, header ...string) {
	t.Helper()
	for i, g := range f.nodes {
		if got := g.get(t, path, header...).verdict(); got != want {
			t.Errorf("%s: node %d answers %v, want %v", what, i+1, got, want)
		}
	}
}

// await waits until a path gets an answer on each node. Package state has the two seconds
// within which a change has to spread.
func (f *fleet) await(t testing.TB, what, path string, want verdict, header ...string) {
	t.Helper()
	for i, g := range f.nodes {
		eventually(t, fmt.Sprintf("%s: node %d answers %v", what, i+1, want), func() bool { return g.get(t, path, header...).verdict() == want })
	}
}

func (f *fleet) awaitLog(t testing.TB, text string) {
	t.Helper()
	for _, g := range f.nodes {
		g.log.await(t, text)
	}
}

// signWith signs a token offline, as a back end with a key of the API does.
func signWith(t testing.TB, key apiKey, video string) string {
	t.Helper()
	return tokenOf(t, must(token.ParseSigningKey([]byte(key.PEM), key.ID))(t), video)
}

// segment is what viewers with a token, or of an open video, ask for.
func segment(tokenOrVideo string) string { return "/" + tokenOrVideo + "/video/1.ts" }

// stranger is a path with a token of a key that nobody has made.
func stranger() string {
	return segment(signRaw(privateKey(), `{"alg":"RS256","kid":"stranger"}`, goodPayloadOf("demo")))
}

// videoView is what these tests look at of a video that the API returns.
type videoView struct {
	RequireSignedURLs bool            `json:"requireSignedURLs"`
	AllowedOrigins    []string        `json:"allowedOrigins"`
	Meta              json.RawMessage `json:"meta"`
}

func (g *gateway) video(t testing.TB, id string) (v videoView) {
	t.Helper()
	g.mustCall(t, http.MethodGet, "stream/"+id, "", &v)
	return v
}

func (g *gateway) edit(t testing.TB, id, body string) {
	t.Helper()
	g.mustCall(t, http.MethodPost, "stream/"+id, body, nil)
}

// keyIDs lists the keys that the API has made.
func (g *gateway) keyIDs(t testing.TB) []string {
	t.Helper()
	var list []struct {
		ID string `json:"id"`
	}
	g.mustCall(t, http.MethodGet, "stream/keys", "", &list)
	ids := []string{}
	for _, key := range list {
		ids = append(ids, key.ID)
	}
	slices.Sort(ids)
	return ids
}

// Every node enforces what another was told: a new key with the very next request, so
// that a fresh token is not refused, and soon a revocation and a setting.
func TestFleet(t *testing.T) {
	t.Parallel()
	for name, shared := range map[string]func(testing.TB) config{
		"redis": func(t testing.TB) config { return config{app: startRedis(t).option()} },
		"files": func(t testing.TB) config { return config{global: sharedFolder(t.TempDir())} },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := startFleet(t, shared(t))
			t.Run("a token of the own key", func(t *testing.T) { mintHerePlayThere(t, f) })
			t.Run("revocations", func(t *testing.T) { spreadRevocations(t, f) })
			t.Run("settings", func(t *testing.T) { spreadSettings(t, f) })
		})
	}
}

// mintHerePlayThere has each node play, with the next request, what another has
// minted: with the key that the first of them makes, and with the key that a
// rotation puts in its place.
func mintHerePlayThere(t *testing.T, f *fleet) {
	for _, rotate := range []bool{false, true} {
		for i, g := range f.nodes {
			if rotate {
				g.mustCall(t, http.MethodPost, "stream/keys/rotate", "", nil)
			}
			minted := g.mintToken(t, "demo", "")
			f.wantEverywhere(t, fmt.Sprintf("minted on node %d", i+1), segment(minted), plays)
		}
	}
}

// spreadRevocations makes a key on each node, whose tokens must play on all with
// the next request, and revokes it on the next node.
func spreadRevocations(t *testing.T, f *fleet) {
	for i, g := range f.nodes {
		key := g.createKey(t)
		path := segment(signWith(t, key, "demo"))
		f.wantEverywhere(t, "a token of a new key", path, plays)
		other := f.nodes[(i+1)%len(f.nodes)]
		other.mustCall(t, http.MethodDelete, "stream/keys/"+key.ID, "", nil)
		wantVerdict(t, other, path, keyUnknown)
		f.await(t, "a revocation", path, keyUnknown)
	}
}

// spreadSettings changes a video that all nodes know. Package state has more changes.
func spreadSettings(t *testing.T, f *fleet) {
	path := segment("showcase")
	f.wantEverywhere(t, "by default", path, tokenNeeded)
	const here = "Origin: https://example.com"
	f.nodes[0].edit(t, "showcase", `{"requireSignedURLs":false,"allowedOrigins":["example.com"]}`)
	f.await(t, "open on a site", path, plays, here)
	f.wantEverywhere(t, "open on a site", path, refusedFor("origin_not_allowed"), "Origin: https://example.net")
	f.nodes[0].edit(t, "showcase", `{"requireSignedURLs":true}`)
	f.await(t, "private again", path, tokenNeeded, here)
}

// audience is viewers who keep asking for the same.
type audience struct {
	stop    chan struct{}
	viewers sync.WaitGroup
	played  atomic.Int64

	mu       sync.Mutex
	failures []string
}

// seat has each path asked for on each node, over and over, until leave.
func seat(t testing.TB, nodes []*gateway, paths map[string]string) *audience {
	t.Helper()
	a := &audience{stop: make(chan struct{})}
	for i, g := range nodes {
		for what, path := range paths {
			if got := g.get(t, path).verdict(); got != plays {
				t.Fatalf("%s: node %d answers %v before anything has happened", what, i+1, got)
			}
			a.viewers.Go(func() { a.watch(g, fmt.Sprintf("%s on node %d", what, i+1), path) })
		}
	}
	t.Cleanup(func() { a.leave(t) })
	return a
}

func (a *audience) watch(g *gateway, what, path string) {
	tick := time.NewTicker(25 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-a.stop:
			return
		}
		if got, err := g.tryGet(path); err != nil || got != plays {
			a.mu.Lock()
			a.failures = append(a.failures, fmt.Sprintf("%s: %v %v", what, got, err))
			a.mu.Unlock()
			continue
		}
		a.played.Add(1)
	}
}

// leave ends the viewers, none of whom must have met a failure.
func (a *audience) leave(t testing.TB) {
	t.Helper()
	select {
	case <-a.stop:
		return
	default:
	}
	eventually(t, "somebody has watched", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.played.Load() > 0 || len(a.failures) > 0
	})
	close(a.stop)
	a.viewers.Wait()
	if len(a.failures) > 0 {
		t.Errorf("%d of %d requests for what is known have failed; the first: %s",
			len(a.failures), int64(len(a.failures))+a.played.Load(), a.failures[0])
	}
}

// tryGet is get for goroutines.
func (g *gateway) tryGet(path string) (verdict, error) {
	res, err := client.Get(g.url(path))
	if err != nil {
		return verdict{}, err
	}
	defer res.Body.Close()
	_, err = io.Copy(io.Discard, res.Body)
	return verdict{res.StatusCode, res.Header.Get("Signed-Playback-Reason")}, err
}

// apiWrite is a call that changes something.
type apiWrite struct{ name, method, resource, body string }

// apiWrites are all kinds of writes, about a key and a video that exist.
func apiWrites(keyID, video string) []apiWrite {
	return []apiWrite{
		{"make a key", http.MethodPost, "stream/keys", ""},
		{"revoke a key", http.MethodDelete, "stream/keys/" + keyID, ""},
		{"rotate the own key", http.MethodPost, "stream/keys/rotate", ""},
		{"edit a video", http.MethodPost, "stream/" + video, `{"requireSignedURLs":true,"meta":{"name":"changed"}}`},
		{"edit a new video", http.MethodPost, "stream/" + video + "-2", `{"requireSignedURLs":false}`},
		{"forget a video", http.MethodDelete, "stream/" + video, ""},
	}
}

// wantWritesRefused makes all writes at the same time, because the first to fail
// may be what tells a node that its store is away.
func (g *gateway) wantWritesRefused(t *testing.T, writes []apiWrite) {
	t.Helper()
	var callers sync.WaitGroup
	for _, w := range writes {
		callers.Go(func() {
			res, err := g.tryCall(w.method, w.resource, w.body)
			if err != nil {
				t.Errorf("%s: %v", w.name, err)
				return
			}
			defer res.Body.Close()
			if answer, _ := io.ReadAll(res.Body); res.StatusCode != http.StatusServiceUnavailable {
				t.Errorf("%s without a store: status %d, want 503: %s", w.name, res.StatusCode, answer)
			}
		})
	}
	callers.Wait()
}

// awaitWrites waits until a video can be edited again.
func (g *gateway) awaitWrites(t testing.TB, video string) {
	t.Helper()
	eventually(t, "the store takes writes", func() bool {
		return g.call(t, http.MethodPost, "stream/"+video, `{"creator":"somebody"}`).StatusCode == http.StatusOK
	})
}

// A Redis that goes away interrupts no viewer and opens nothing, and writers learn of it
// at once. When it is back, everything is as before. If it hangs, its connections stay
// open and silent, which takes longest to notice.
func TestHostileRedisGone(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name      string
		end, mend func(*redisServer, testing.TB)
	}{
		{"killed", func(r *redisServer, _ testing.TB) { r.kill() }, (*redisServer).start},
		{
			"hanging", func(r *redisServer, t testing.TB) { r.signal(t, syscall.SIGSTOP) },
			func(r *redisServer, t testing.TB) { r.signal(t, syscall.SIGCONT) },
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			redis := startRedis(t)
			f := startFleet(t, config{app: redis.option()})
			g := f.nodes[0]
			key, gone := g.createKey(t), g.createKey(t)
			g.edit(t, "open", `{"requireSignedURLs":false}`)
			revoked := segment(signWith(t, gone, "demo"))
			g.mustCall(t, http.MethodDelete, "stream/keys/"+gone.ID, "", nil)
			f.await(t, "revoked", revoked, keyUnknown)
			audience := seat(t, f.nodes, map[string]string{
				"a token of the key file":   segment(mint(t, "demo", nil)),
				"a token of a key made":     segment(signWith(t, key, "demo")),
				"a token of the own key":    segment(g.mintToken(t, "demo", "")),
				"a video that is set open":  segment("open"),
				"a token for an open video": segment(mint(t, "open", nil)),
			})
			tc.end(redis, t)
			writes := apiWrites(key.ID, "open")
			for _, g := range f.nodes { // none of which can know
				g.wantWritesRefused(t, append(writes, writes[0])) // two keys, which are made one after the other
			}
			f.awaitLog(t, storeAway)
			for _, g := range f.nodes {
				g.wantWritesRefused(t, writes)
			}
			f.wantEverywhere(t, "a video that no node knows", segment("unseen"), unavailable)
			f.wantEverywhere(t, "a token for a video that no node knows", segment(mint(t, "unseen", nil)), unavailable)
			f.wantEverywhere(t, "a token of a revoked key", revoked, keyUnknown)
			f.wantEverywhere(t, "a token of a key that may have been made", stranger(), unavailable)

			tc.mend(redis, t)
			f.awaitLog(t, storeBack)
			for _, g := range f.nodes {
				g.awaitWrites(t, "recovered")
			}
			f.wantEverywhere(t, "a token of a key that does not exist", stranger(), keyUnknown)
			f.wantEverywhere(t, "a video that no node has known", segment("unseen"), tokenNeeded)
			f.wantEverywhere(t, "a token of a revoked key", revoked, keyUnknown)
			if got, want := g.keyIDs(t), []string{key.ID}; !slices.Equal(got, want) {
				t.Errorf("keys are %q after the outage, want %q: a refused write was made", got, want)
			}
			if v := g.video(t, "open"); v.RequireSignedURLs || string(v.Meta) != "{}" {
				t.Errorf("a video is %+v after the outage: a refused write was made", v)
			}
			audience.leave(t)
			f.nodes[2].mustCall(t, http.MethodDelete, "stream/keys/"+key.ID, "", nil)
			f.await(t, "a revocation after the outage", segment(signWith(t, key, "demo")), keyUnknown)
		})
	}
}

// After FLUSHALL, Redis answers as if nobody had ever set anything. That must not open
// private videos where videos are open by default, nor bring back a revoked key. Package
// store has more ways to lose data.
func TestHostileFlushAll(t *testing.T) {
	t.Parallel()
	redis := startRedis(t)
	f := startFleet(t, config{app: "require_signed_urls off\n" + redis.option()})
	g := f.nodes[0]
	private, cold, key := segment("private"), segment("cold"), g.createKey(t)
	played := segment(signWith(t, key, "demo"))
	f.wantEverywhere(t, "a token of a key made", played, plays)
	g.edit(t, "private", `{"requireSignedURLs":true}`)
	g.edit(t, "cold", `{"requireSignedURLs":true}`) // no other node is asked for it
	g.mustCall(t, http.MethodDelete, "stream/keys/"+key.ID, "", nil)
	f.await(t, "private", private, tokenNeeded)
	f.await(t, "revoked", played, keyUnknown)
	audience := seat(t, f.nodes, map[string]string{
		"a video that nobody has set": segment("demo"),
		"a token for a private video": segment(mint(t, "private", nil)),
	})

	redis.do(t, "FLUSHALL")
	for _, when := range []string{"at once", "when the loss is noticed"} {
		for _, g := range f.nodes[1:] {
			wantVerdict(t, g, cold, unavailable)
		}
		f.wantEverywhere(t, "a private video, "+when, private, tokenNeeded)
		f.wantEverywhere(t, "a revoked key, "+when, played, keyUnknown)
		f.wantEverywhere(t, "a video that no node knows, "+when, segment("unseen"), unavailable)
		f.awaitLog(t, storeAway)
	}
	audience.leave(t)
	f.restart(t, 1)
	for _, path := range []string{private, cold, segment("unseen"), played} {
		wantVerdict(t, f.nodes[1], path, unavailable)
	}
	for _, g := range f.nodes[:2] {
		g.wantWritesRefused(t, apiWrites(key.ID, "private"))
	}
}

// A connection made under a config that a reload has replaced is still served by
// that config. What is revoked or set private under the next one holds there
// too, or viewers would play on for as long as they keep their connection.
func TestHostileOldConnectionAfterReload(t *testing.T) {
	t.Parallel()
	const marker = "X-Config"
	o := startOrigin(t, nil)
	// Caddy serves old connections on if it delays its shutdown, as it does when
	// one of its addresses goes away: here, that of the API.
	g := startTLS(t, o, config{api: withAPI, global: "shutdown_delay 1m", app: "require_signed_urls off"})
	key := g.createKey(t)
	compact := mint(t, "demo", nil)
	signed, leaked, open := segment(signWith(t, key, "demo")), segment(compact), segment("open")
	viewers, dials := make([]*http.Client, len(protocols)), make([]*atomic.Int32, len(protocols))
	ask := func(i int, path string, want verdict) {
		t.Helper()
		res := g.ask(t, viewers[i], http.MethodGet, path)
		if got := res.verdict(); got != want {
			t.Errorf("%s: got %v, want %v", protocols[i].name, got, want)
		}
		if res.Header.Get(marker) != "" || dials[i].Load() != 1 {
			t.Fatalf("%s: not served by the old config over the old connection", protocols[i].name)
		}
	}
	for i, protocol := range protocols {
		viewers[i], dials[i] = protocol.connect(t, g)
		for _, path := range []string{signed, leaked, open} {
			ask(i, path, plays)
		}
	}
	path := filepath.Join(g.dir, "Caddyfile")
	next := *g.gateway
	next.api = freeAddr(t)
	writeFile(t, path, []byte(strings.NewReplacer(
		g.api, next.api, "shutdown_delay 1m", "", "reverse_proxy ", "header "+marker+" new\n\treverse_proxy ").Replace(readText(t, path))))
	noError(t, g.cmd.Process.Signal(syscall.SIGUSR1))
	eventually(t, "the new config serves", func() bool {
		res, err := next.tryCall(http.MethodGet, "stream/keys", "")
		if err == nil {
			res.Body.Close()
		}
		return err == nil
	})
	for i := range protocols {
		ask(i, signed, plays)
	}
	next.mustCall(t, http.MethodDelete, "stream/keys/"+key.ID, "", nil)
	next.mustCall(t, http.MethodPost, "stream/revocations", fmt.Sprintf(`{"token":%q}`, compact), nil)
	next.edit(t, "open", `{"requireSignedURLs":true}`)
	o.take()
	for i := range protocols {
		ask(i, signed, keyUnknown)
		ask(i, leaked, tokenRevoked)
		ask(i, open, tokenNeeded)
	}
	o.wantUntouched(t)
	g.kill(t) // or it would wait for the minute to end
}
