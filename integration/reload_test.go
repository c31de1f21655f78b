package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/signed-playback/caddy-signed-playback/token"
)

// reloadable returns the Caddyfile of a gateway, for changes. Connections to the
// origin end a second after their last request: Caddy, with a gate or without,
// keeps the connections of an old config open until then, 2 minutes by default.
func (g *gateway) reloadable(t testing.TB, o *origin) (caddyfile string) {
	t.Helper()
	text := must(os.ReadFile(filepath.Join(g.dir, "Caddyfile")))(t)
	return strings.ReplaceAll(string(text), "reverse_proxy "+o.addr(), "reverse_proxy "+o.addr()+" {\n\t\ttransport http {\n\t\t\tkeepalive 1s\n\t\t}\n\t}")
}

// heldFile is a file in the middle of which an archive stops.
const heldFile = "held.mp4"

// archive is an origin of files with a known content. It records which requests have
// reached it.
type archive struct {
	asked  atomic.Int64
	begun  sync.Map      // by query
	held   chan struct{} // one for each request that has been stopped
	resume atomic.Value  // a chan struct{}, closed when they may go on
}

func segmentName(n int) string { return fmt.Sprintf("video/%d.ts", n) }

// content is the content of a file. The one in which an archive stops is larger than the
// buffers on the way.
func content(name string) []byte {
	size := 16 << 10
	if name == heldFile {
		size = 1 << 20
	}
	return bytes.Repeat([]byte(name+"\n"), size/(len(name)+1))
}

func (a *archive) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.begun.Store(r.URL.RawQuery, true)
	_, name, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/") // all videos have the same files
	file := content(name)
	if name != heldFile {
		_, _ = w.Write(file)
		return
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(file)))
	_, _ = w.Write(file[:len(file)/2])
	_ = http.NewResponseController(w).Flush()
	a.held <- struct{}{}
	select {
	case <-a.resume.Load().(chan struct{}):
	case <-r.Context().Done():
		return
	}
	_, _ = w.Write(file[len(file)/2:])
}

var (
	// errUnanswered is allowed for a request whose connection is closed on its
	// way: no byte of an answer, and the origin has not been asked.
	errUnanswered  = errors.New("no answer")
	errTruncated   = errors.New("the body is not the file")
	errWrongConfig = errors.New("served by a config that is not in force")
)

// play asks for a file of the archive and compares the answer with it. It returns
// the number of the config that has answered.
func (a *archive) play(ctx context.Context, g *tlsGateway, c *http.Client, compact, name string) (config string, err error) {
	query := strconv.FormatInt(a.asked.Add(1), 10)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, g.url("/"+compact+"/"+name+"?"+query), nil)
	if err != nil {
		return "", err
	}
	res, err := c.Do(req)
	_, begun := a.begun.LoadAndDelete(query)
	if failed, ok := errors.AsType[*url.Error](err); ok {
		err = failed.Err // without the address, which is long
	}
	switch {
	case err != nil && begun:
		return "", fmt.Errorf("%s: begun, and not answered: %w", name, err)
	case err != nil:
		return "", fmt.Errorf("%s: %w: %w", name, errUnanswered, err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	switch {
	case err != nil:
		return "", fmt.Errorf("%s: %w: %d bytes, then %w", name, errTruncated, len(body), err)
	case res.StatusCode != http.StatusOK:
		return "", fmt.Errorf("%s: status %d %q", name, res.StatusCode, res.Header.Get("Signed-Playback-Reason"))
	case !bytes.Equal(body, content(name)):
		return "", fmt.Errorf("%s: %w: %d other bytes", name, errTruncated, len(body))
	}
	return res.Header.Get("Generation"), nil
}

// hold starts a request over each version of HTTP that is in the middle of its
// body when hold returns. finish has them go on; they must end well.
func (a *archive) hold(t testing.TB, g *tlsGateway, clients []*http.Client, compact string) (finish func()) {
	t.Helper()
	resume, results := make(chan struct{}), make([]chan error, len(clients))
	a.resume.Store(resume)
	for i, c := range clients {
		results[i] = make(chan error, 1)
		go func() {
			_, err := a.play(t.Context(), g, c, compact, heldFile)
			results[i] <- err
		}()
	}
	for range clients {
		await(t, a.held, "a request in the middle of its body")
	}
	return func() {
		t.Helper()
		close(resume)
		for i, result := range results {
			if err := await(t, result, "the end of a body"); err != nil {
				t.Errorf("%s: a body that was under way: %v", protocols[i].name, err)
			}
		}
	}
}

// generation is a config, as far as reloads change it.
type generation struct {
	number    int
	otherSite bool // whether the video sited may play on b.example, not on a.example
	open      bool // whether the video open plays without a token
	secondKey bool // whether key_file has a second key
	moved     bool // whether the geo database is the one in which 203.0.113.0/24 is in FR, not GB
}

// next changes one thing at a time, so that no change can hide another.
func (n generation) next() generation {
	n.number++
	switch n.number % 4 {
	case 0:
		n.otherSite = !n.otherSite
	case 1:
		n.secondKey = !n.secondKey
	case 2:
		n.moved = !n.moved
	case 3:
		n.open = !n.open
	}
	return n
}

func either[T any](condition bool, yes, no T) T {
	if condition {
		return yes
	}
	return no
}

// app is for the global block of the app.
func (n generation) app(t testing.TB) string {
	t.Helper()
	return fmt.Sprintf("geoip_database %s\nvideo sited {\nallowed_origins %s\n}\nvideo open {\nrequire_signed_urls %s\n}\n",
		testdata(t, either(n.moved, "updated.mmdb", "country.mmdb")),
		either(n.otherSite, "b.example", "a.example"),
		either(n.open, "off", "on"))
}

// probe is a request whose answer depends on the config in force.
type probe struct {
	what   string
	path   string
	header []string
	want   func(generation) verdict
}

func probes(t testing.TB, secondKey *token.SigningKey) []probe {
	t.Helper()
	const file = "/video/90p/001.m4s"
	fromA := []string{"Origin: https://a.example"}
	inBritain := withRules(`[{"type":"ip.geoip.country","country":["GB"],"action":"allow"},{"type":"any","action":"block"}]`)
	return []probe{
		{"allowed_origins", "/" + mint(t, "sited", nil) + file, fromA, func(n generation) verdict {
			return either(n.otherSite, refusedFor("origin_not_allowed"), plays)
		}},
		{"video", "/open" + file, nil, func(n generation) verdict {
			return either(n.open, plays, tokenNeeded)
		}},
		{"key_file", "/" + tokenOf(t, secondKey, "demo") + file, nil, func(n generation) verdict {
			return either(n.secondKey, plays, keyUnknown)
		}},
		{"geoip_database", "/" + mint(t, "demo", inBritain) + file, []string{"X-Forwarded-For: 203.0.113.7"}, func(n generation) verdict {
			return either(n.moved, refusedFor("rule_blocked"), plays)
		}},
	}
}

// theater is a gateway that is reloaded while viewers watch.
type theater struct {
	t         *testing.T
	archive   *archive
	origin    *origin
	gateway   *tlsGateway
	caddyfile string // with a mark for what generations add
	secondKey *token.SigningKey
	tokens    []string // of the audience

	present  generation
	floor    atomic.Int64 // no request may be served by a config before this one
	ceiling  atomic.Int64 // nor by one after this
	clients  []*http.Client
	viewers  []*viewer
	audience sync.WaitGroup
	stop     chan struct{}   // closed when the viewers are to leave
	ending   atomic.Bool     // whether the server is
	patience context.Context // of viewers whom nobody answers

	losePatience context.CancelFunc
	mu           sync.Mutex
	unanswered   []string // requests that had to be sent again, and why
	failures     []string
}

const markOfGenerations = "# what generations add"

func openTheater(t *testing.T) *theater {
	a := &archive{held: make(chan struct{}, len(protocols))}
	patience, losePatience := context.WithCancel(t.Context())
	th := &theater{
		t: t, archive: a, origin: startOrigin(t, a),
		secondKey: fileKeys(1)[0], stop: make(chan struct{}),
		patience: patience, losePatience: losePatience,
	}
	th.gateway = startTLS(t, th.origin, config{
		log:    quiet,
		global: "grace_period 1m\n" + trusting("127.0.0.1"),
		app:    markOfGenerations,
	})
	th.caddyfile = th.gateway.reloadable(t, th.origin)
	for i := range 100 {
		payload := fmt.Sprintf(`{"sub":"demo","exp":%d,"downloadable":true,"n":%d}`, time.Now().Add(time.Hour).Unix(), i)
		th.tokens = append(th.tokens, signRaw(privateKey(), goodHeader(), payload))
	}
	th.put(generation{number: 1, open: true, secondKey: true}) // all probes play
	return th
}

// write returns the Caddyfile of a generation, which names itself in responses.
func (th *theater) write(n generation, name string) string {
	return strings.NewReplacer(markOfGenerations, n.app(th.t), "\ttls ", "\theader Generation "+name+"\n\ttls ").Replace(th.caddyfile)
}

func (th *theater) writeKeys(n generation) {
	keys := []*token.SigningKey{signingKey()}
	if n.secondKey {
		keys = append(keys, th.secondKey)
	}
	writeFile(th.t, th.keyFile(), publicJWKS(th.t, keys...))
}

func (th *theater) keyFile() string { return filepath.Join(th.gateway.dir, "main.jwks.json") }

// put reloads the server with a config, which must be taken.
func (th *theater) put(n generation) {
	th.t.Helper()
	th.writeKeys(n)
	th.ceiling.Store(int64(n.number))
	if err := th.gateway.load(th.write(n, strconv.Itoa(n.number))); err != nil {
		th.t.Fatalf("config %d: %v", n.number, err)
	}
	th.present = n
}

// invalid is a config that must be refused, made of a good one.
type invalid struct {
	name  string
	why   string // in the error
	times int    // to try it
	spoil func(th *theater, caddyfile string) string
}

var invalids = []invalid{
	{"an option that does not exist", "allowed_orgins", 1, func(_ *theater, caddyfile string) string {
		return strings.ReplaceAll(caddyfile, "allowed_origins", "allowed_orgins")
	}},
	{"a key file that is cut off", "main.jwks.json", 1, func(th *theater, caddyfile string) string {
		writeFile(th.t, th.keyFile(), publicJWKS(th.t, signingKey())[:100])
		return caddyfile
	}},
	{"a database of another type", "asn.mmdb", 1, func(th *theater, caddyfile string) string {
		return regexp.MustCompile(`(country|updated)\.mmdb`).ReplaceAllLiteralString(caddyfile, "asn.mmdb")
	}},
	// By then, the app may have been started, or not: their order is random. Until Caddy comes to that
	// address, with a gate or without, it serves new connections by this config, so it is the present one otherwise.
	{"an address that is taken", "address already in use", 4, func(th *theater, _ string) string {
		return th.write(th.present, strconv.Itoa(th.present.number)) + "\nhttp://" + th.origin.addr() + " {\n\trespond taken\n}\n"
	}},
}

// refuse has the server refuse a config, which may have no effect at all.
func (th *theater) refuse(bad invalid) {
	th.t.Helper()
	for range bad.times {
		err := th.gateway.load(bad.spoil(th, th.write(th.present.next(), "refused")))
		if err == nil || !strings.Contains(err.Error(), bad.why) {
			th.t.Fatalf("%s: got %v, want an error that says %q", bad.name, err, bad.why)
		}
	}
	th.writeKeys(th.present)
}

// watchInterval leaves the server time for reloads; without it, it would do
// nothing but serve.
const watchInterval = 40 * time.Millisecond

// viewer is a member of the audience.
type viewer struct {
	protocol       string
	client         *http.Client
	newConnections bool // one for each request
	random         *mathrand.Rand
	played         atomic.Int64
}

// String names viewers of the same kind alike.
func (v *viewer) String() string {
	return v.protocol + either(v.newConnections, ", new connections", ", one connection")
}

// seat has a viewer watch until the end.
func (th *theater) seat(v *viewer) {
	v.random = mathrand.New(mathrand.NewPCG(1, uint64(len(th.viewers))))
	th.viewers = append(th.viewers, v)
	th.audience.Go(func() {
		tick := time.NewTicker(watchInterval)
		defer tick.Stop()
		for {
			select {
			case <-th.stop:
				return
			case <-tick.C:
			}
			if err := th.watch(v); errors.Is(err, errUnanswered) && th.ending.Load() {
				return
			} else if err != nil {
				th.mu.Lock()
				th.failures = append(th.failures, v.protocol+": "+err.Error())
				th.mu.Unlock()
			}
			v.played.Add(1)
			if v.newConnections {
				v.client.CloseIdleConnections()
			}
		}
	})
}

// seatAll seats viewers of all protocols: two who keep their connection, and
// one who does not.
func (th *theater) seatAll() {
	for _, newConnections := range []bool{false, false, true} {
		for i, c := range th.connect() {
			th.seat(&viewer{protocol: protocols[i].name, client: c, newConnections: newConnections})
		}
	}
}

// watch plays something.
func (th *theater) watch(v *viewer) error {
	floor := th.floor.Load()
	compact, name := th.tokens[v.random.IntN(len(th.tokens))], segmentName(v.random.IntN(100))
	play := func() (string, error) {
		ctx, cancel := context.WithTimeout(th.patience, 15*time.Second)
		defer cancel()
		return th.archive.play(ctx, th.gateway, v.client, compact, name)
	}
	served, err := play()
	// Caddy leaves requests without an answer while it is reloaded, with a gate or
	// without: net/http ends a connection whose first request it has read when its
	// server shuts down by then, the kernel resets clients that still wait at the
	// socket of the old config, and the server for HTTP/3 forgets connections that it
	// accepts while it shuts down.
	for tries := 1; tries < 5 && errors.Is(err, errUnanswered) && !th.ending.Load(); tries++ {
		th.mu.Lock()
		th.unanswered = append(th.unanswered, v.String()+": "+err.Error())
		th.mu.Unlock()
		if errors.Is(err, context.DeadlineExceeded) {
			v.client.CloseIdleConnections() // as players do, who have waited in vain
		}
		served, err = play()
	}
	if err != nil {
		return err
	}
	if number, err := strconv.ParseInt(served, 10, 64); err != nil || number < floor || number > th.ceiling.Load() {
		return fmt.Errorf("%w: %q, after %d was in force", errWrongConfig, served, floor)
	}
	return nil
}

// awaitRounds waits until every viewer has played some more.
func (th *theater) awaitRounds(rounds int64) {
	th.t.Helper()
	goals := make([]int64, len(th.viewers))
	for i, v := range th.viewers {
		goals[i] = v.played.Load() + rounds
	}
	for i, v := range th.viewers {
		eventually(th.t, v.protocol+": a viewer has played on", func() bool { return v.played.Load() >= goals[i] })
	}
}

// probe has the present config be in force on the connection that a client
// already has, and returns how many tokens were refused for their key.
func (th *theater) probe(what string, c *http.Client, all []probe) (unknown int) {
	th.t.Helper()
	number := strconv.Itoa(th.present.number)
	eventually(th.t, what+": config "+number, func() bool {
		served, err := th.archive.play(th.t.Context(), th.gateway, c, th.tokens[0], segmentName(0))
		if err != nil && !errors.Is(err, errUnanswered) {
			th.t.Fatalf("%s: %v", what, err)
		}
		return served == number
	})
	for _, p := range all {
		res := th.gateway.ask(th.t, c, http.MethodGet, p.path, p.header...)
		if got, want := res.verdict(), p.want(th.present); got != want {
			th.t.Errorf("%s: %s: got %v, want %v under %+v", what, p.what, got, want, th.present)
		}
		if served := res.Header.Get("Generation"); served != number {
			th.t.Errorf("%s: %s: served by config %q after %s", what, p.what, served, number)
		}
		if res.verdict() == keyUnknown {
			unknown++
		}
	}
	return unknown
}

// leave ends the audience, none of whom must have met a failure.
func (th *theater) leave() {
	th.t.Helper()
	close(th.stop)
	th.audience.Wait()
	var played int64
	for _, v := range th.viewers {
		played += v.played.Load()
	}
	if n := len(th.failures); n > 0 {
		th.t.Errorf("%d of %d requests failed; the first:\n%s", n, played, strings.Join(th.failures[:min(n, 10)], "\n"))
	}
	th.t.Logf("%d files played; asked for twice: %q", played, th.unanswered)
}

// connect makes a client for each version of HTTP.
func (th *theater) connect() (clients []*http.Client) {
	for _, protocol := range protocols {
		c, _ := protocol.connect(th.t, th.gateway)
		clients = append(clients, c)
	}
	th.clients = append(th.clients, clients...)
	return clients
}

// S8 A reload under load, whether the config is valid or not, must not cost a viewer
// a request or a byte, nor the server what it knows of tokens, a goroutine or a
// descriptor; and its changes apply on connections that were open before.
func TestReload(t *testing.T) {
	t.Parallel()
	reloadUnderLoad(t, 2*len(invalids)) // every invalid config once, and as many valid ones
}

// About four minutes on an idle machine with two processors.
func TestLongReload(t *testing.T) { reloadUnderLoad(t, 200) }

func reloadUnderLoad(t *testing.T, count int) {
	th := openTheater(t)
	witnesses, holders := th.connect(), th.connect()
	for _, compact := range th.tokens {
		must(th.archive.play(t.Context(), th.gateway, witnesses[0], compact, segmentName(0)))(t)
	}
	all := probes(t, th.secondKey)
	th.probe("before the first reload", witnesses[0], all)
	before := th.gateway.rest(t, th.clients)

	th.seatAll()
	th.floor.Store(int64(th.present.number))
	start := th.gateway.lookups(t)
	th.awaitRounds(roundsPerReload)
	usual := th.gateway.lookups(t).rateSince(start, 0)
	for i := range count {
		th.reload(i, witnesses, holders, all, usual)
	}
	th.leave()

	th.gateway.rest(t, th.clients)
	th.gateway.wantReleased(t, before, atRest)
}

// roundsPerReload is how many segments each viewer plays from one reload to the
// next, at least.
const roundsPerReload = 8

// reload is one of them, with requests under way.
func (th *theater) reload(i int, witnesses, holders []*http.Client, all []probe, usual float64) {
	t := th.t
	t.Helper()
	start := th.gateway.lookups(t)
	finish := th.archive.hold(t, th.gateway, holders, th.tokens[0])
	if i%2 == 1 {
		th.refuse(invalids[i/2%len(invalids)])
	} else {
		th.put(th.present.next())
	}
	unknown := 0
	for j, c := range witnesses {
		unknown += th.probe(protocols[j].name, c, all)
	}
	finish()
	th.awaitRounds(roundsPerReload)
	rate := th.gateway.lookups(t).rateSince(start, unknown)
	held := th.gateway.holds(t)
	t.Logf("reload %d: of the tokens looked up, %.2f %% were known; resident %d MiB, %+v", i+1, 100*rate, th.gateway.memory(t)["VmRSS"]>>20, held)
	if usual-rate >= 0.01 {
		t.Errorf("reload %d: of the tokens looked up, %.2f %% were known, and %.2f %% before", i+1, 100*rate, 100*usual)
	}
	th.floor.Store(int64(th.present.number))
	th.origin.take()
}

// S12 A server that is told to end must first finish what it has begun, over
// each version of HTTP, and end well.
func TestTermination(t *testing.T) {
	th := openTheater(t)
	holders := th.connect()
	th.seatAll()
	th.awaitRounds(roundsPerReload)
	finish := th.archive.hold(t, th.gateway, holders, th.tokens[0])
	const shuttingDown = "servers shutting down; grace period initiated"
	shutdowns := strings.Count(th.gateway.log.String(), shuttingDown) // of configs
	th.ending.Store(true)
	noError(t, th.gateway.cmd.Process.Signal(syscall.SIGTERM))
	th.gateway.log.awaitTimes(t, shuttingDown, shutdowns+1)
	finish()
	th.gateway.stop(t) // checks the exit status
	// Over HTTP/3, nobody tells those who came too late.
	th.losePatience()
	th.leave()
	if n := len(th.unanswered); n > 0 {
		t.Errorf("%d requests were not answered before the end began: %q", n, th.unanswered)
	}
}
