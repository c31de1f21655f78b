package integration

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/signed-playback/caddy-signed-playback/token"
)

// Whatever a viewer takes for a complete answer has the bytes of the object, and nobody
// who is refused gets any: while the origin fails in every way, configs are reloaded, keys, tokens
// and viewers are revoked, files change and are purged, and the server is killed and comes back.
func TestCacheBytes(t *testing.T) {
	t.Parallel()
	testCacheBytes(t, 12, 1, config{})
}

// So it is under load, for minutes.
func TestLongCacheBytes(t *testing.T) {
	testCacheBytes(t, 200, 20, config{quick: true, log: quiet})
}

func testCacheBytes(t *testing.T, viewers, cycles int, c config) {
	o := startUnreliableOrigin(t)
	c.api = withAPI
	c.site = "signed_playback_cache {\nmemory 8MiB\nmax_object 1MiB\nsegment_ttl 2s\ndisk " + t.TempDir() + " 64MiB\n}\n" + impatient(o.origin, 1)
	s := &bytesCheck{o: o, statuses: make(map[int]int)}
	g := start(t, o.origin, c)
	c.dir, c.addr, c.apiAddr = g.dir, g.addr, g.api
	s.bad = map[string]string{"a token of no known key": tokenOf(t, newSigningKey("unknown", privateKey()), unreliableVideo)}
	for name, bad := range map[string]func(*token.Claims){
		"an expired token":   func(c *token.Claims) { c.ExpiresAt = time.Now().Add(-time.Minute) },
		"a blocked viewer":   withRules(`[{"type":"any","action":"block"}]`),
		"a token for nobody": func(c *token.Claims) { c.NotBefore = time.Now().Add(time.Hour) },
	} {
		s.bad[name] = mint(t, unreliableVideo, bad)
	}
	s.good = viewersOf(t, unreliableVideo, viewers)
	done := make(chan struct{})
	var group sync.WaitGroup
	for i := range viewers {
		group.Go(func() { s.view(t, g.url("/"), uint64(i), done) })
	}
	for i := range cycles {
		s.interfere(t, g, c)
		g.kill(t)
		g = start(t, o.origin, c)
		s.mu.Lock()
		t.Logf("kill %d: answers so far: %v, and %d refused, %d broken off", i+1, s.statuses, s.refused, s.cut)
		s.mu.Unlock()
	}
	s.interfere(t, g, c)
	close(done)
	group.Wait()
	t.Logf("%d statuses: %v; %d answers refused, %d broken off; faults: %v", len(s.statuses), s.statuses, s.refused, s.cut, o.kinds())
	if kinds := len(o.kinds()); kinds < 12 || s.statuses[200] < viewers || s.statuses[206] < viewers || s.refused < viewers || s.cut == 0 {
		t.Errorf("the test shows little: %d kinds of faults, %v, %d refused, %d broken off", kinds, s.statuses, s.refused, s.cut)
	}
}

// unreliableVideo is the video of an unreliable origin.
const unreliableVideo = "show"

// unreliableOrigin fails in most of the ways of faults, each time in another one.
type unreliableOrigin struct {
	*origin
	faults  []fault
	version atomic.Int64 // of all objects

	mu     sync.Mutex
	failed int
	seen   map[string]int // faults by their names
}

func startUnreliableOrigin(t testing.TB) *unreliableOrigin {
	t.Helper()
	o := &unreliableOrigin{seen: make(map[string]int)}
	o.faults = append(o.faults, fault{name: "confirms-what-nobody-has.m4s", fail: say("HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\n\r\n")})
	for _, f := range faults() {
		// After the others, no viewer could tell that something is wrong.
		if strings.HasSuffix(f.name, ".m4s") && !f.leaks && !f.costs && f.leaves == 0 {
			o.faults = append(o.faults, f)
		}
	}
	o.origin = startOrigin(t, o)
	return o
}

// ServeHTTP implements http.Handler.
func (o *unreliableOrigin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	version := o.version.Load()
	if body := objectOf(strings.TrimPrefix(r.URL.Path, "/"+unreliableVideo+"/"), version); rand.IntN(3) > 0 {
		w.Header().Set("ETag", fmt.Sprintf(`"v%d"`, version))
		w.Header().Set("Content-Type", "video/mp4")
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
		return
	}
	o.mu.Lock()
	o.failed++
	f := o.faults[o.failed%len(o.faults)]
	o.seen[f.name]++
	o.mu.Unlock()
	onConnection(w, f.fail)
}

func (o *unreliableOrigin) kinds() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	var kinds []string
	for name := range o.seen {
		kinds = append(kinds, name)
	}
	slices.Sort(kinds)
	return kinds
}

// objectOf returns the bytes of a version of an object. Its size follows from its name: 1 KiB
// to 2 MiB, so that the largest are kept in slices.
func objectOf(name string, version int64) []byte {
	seed := sha256.Sum256([]byte(name))
	body := make([]byte, 1<<10<<(seed[0]%12))
	_, _ = rand.NewChaCha8(sha256.Sum256(fmt.Append(seed[:], version))).Read(body)
	return body
}

// bytesCheck has viewers compare what they get.
type bytesCheck struct {
	o    *unreliableOrigin
	good []string          // tokens
	bad  map[string]string // by what is wrong with them

	purged       atomic.Int64 // the version before which all are purged
	mu           sync.Mutex
	revocable    []string // tokens that are revoked soon
	revoked      []string
	statuses     map[int]int // of complete answers to good tokens
	refused, cut int
}

// interfere reloads the config, purges the video, and revokes a key, a token and a viewer.
func (s *bytesCheck) interfere(t *testing.T, g *gateway, c config) {
	var made apiKey
	g.mustCall(t, http.MethodPost, "stream/keys", "", &made)
	_, pair := decodedPEM(t, made.PEM)
	viewer := rand.Uint64()
	revocable := []string{
		tokenOf(t, newSigningKey(made.ID, pair), unreliableVideo),
		mint(t, unreliableVideo, func(c *token.Claims) { c.ID = fmt.Sprintf("id-%x", viewer) }),
		mint(t, unreliableVideo, func(c *token.Claims) { c.Viewer = fmt.Sprintf("viewer-%x", viewer) }),
	}
	s.mu.Lock()
	s.revocable = revocable
	s.mu.Unlock()
	// net/http ends a connection on which a call has just come when its server shuts down for a reload.
	call := func(method, resource, body string) {
		eventually(t, "an answer to "+method+" "+resource, func() bool {
			res, err := g.tryCall(method, resource, body)
			if err == nil && res.StatusCode != http.StatusOK {
				t.Fatalf("%s %s: status %d", method, resource, res.StatusCode)
			}
			return err == nil && res.Body.Close() == nil
		})
	}
	for i := range 4 {
		c.app = fmt.Sprintf("leeway %ds", i+1)
		if err := g.load(g.caddyfile(t, s.o.origin, c)); err != nil {
			t.Error(err)
		}
		<-time.After(150 * time.Millisecond)
		version := s.o.version.Add(1)
		call(http.MethodPost, "stream/"+unreliableVideo+"/purge", "")
		s.purged.Store(version)
		<-time.After(150 * time.Millisecond)
	}
	call(http.MethodDelete, "stream/keys/"+made.ID, "")
	until := time.Now().Add(time.Hour).Unix()
	call(http.MethodPost, "stream/revocations", fmt.Sprintf(`[{"jti":"id-%x","expires":%d},{"uid":"viewer-%[1]x","expires":%[2]d}]`, viewer, until))
	s.mu.Lock()
	s.revoked, s.revocable = append(s.revoked, revocable...), nil
	s.mu.Unlock()
	<-time.After(300 * time.Millisecond)
}

// view has a viewer ask for random objects with random tokens.
func (s *bytesCheck) view(t *testing.T, base string, seed uint64, done <-chan struct{}) {
	random := rand.New(rand.NewPCG(seed, 1))
	c := &http.Client{Transport: new(http.Transport), Timeout: startTimeout}
	defer c.CloseIdleConnections()
	for {
		select {
		case <-done:
			return
		case <-time.After(time.Duration(random.IntN(20)) * time.Millisecond):
		}
		compact, wrong := s.token(random)
		if err := s.ask(c, random, base+compact+"/", wrong); err != nil {
			t.Errorf("%s: %v", wrong, err)
		}
	}
}

// token returns a token, and what is wrong with it.
func (s *bytesCheck) token(random *rand.Rand) (compact, wrong string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch random.IntN(8) {
	case 0:
		for wrong, compact = range s.bad {
			return compact, wrong // Go's order is random
		}
	case 1:
		if len(s.revoked) > 0 {
			return s.revoked[random.IntN(len(s.revoked))], "a revoked token"
		}
	case 2:
		if len(s.revocable) > 0 {
			return s.revocable[random.IntN(len(s.revocable))], ""
		}
	}
	return s.good[random.IntN(len(s.good))], ""
}

// ask makes one request and checks its answer.
func (s *bytesCheck) ask(c *http.Client, random *rand.Rand, base, wrong string) error {
	name := fmt.Sprintf("s%02d.m4s", random.IntN(40))
	oldest := s.purged.Load()
	whole := objectOf(name, oldest)
	from, to := 0, len(whole)-1
	r, err := http.NewRequest(http.MethodGet, base+name, nil)
	if err != nil {
		return err
	}
	wantStatus := http.StatusOK
	if random.IntN(3) == 0 {
		from = random.IntN(len(whole))
		to = from + random.IntN(len(whole)-from)
		r.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", from, to))
		wantStatus = http.StatusPartialContent
	}
	res, err := c.Do(r)
	if err != nil {
		return nil // the server is being killed
	}
	defer res.Body.Close()
	if random.IntN(10) == 0 {
		_, _ = io.CopyN(io.Discard, res.Body, int64(random.IntN(to-from+1)))
		return nil // the viewer leaves
	}
	body, err := io.ReadAll(res.Body)
	right := false
	for version := oldest; version <= s.o.version.Load(); version++ {
		right = right || bytes.Equal(body, objectOf(name, version)[from:to+1])
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case wrong != "":
		s.refused++
		if res.StatusCode < 400 || res.StatusCode >= 500 || len(body) > 500 {
			return fmt.Errorf("status %d and %d bytes", res.StatusCode, len(body))
		}
	case err != nil:
		s.cut++
	case res.StatusCode == http.StatusPartialContent && !strings.Contains(res.Header.Get("Cache-Status"), "hit") && strings.Trim(string(body), "x") == "":
		// A part of a body that the origin has not broken off yet.
	case res.StatusCode == wantStatus && !right:
		return fmt.Errorf("%s, %q, %s: %d wrong bytes, want %d", name, r.Header["Range"], res.Header["Cache-Status"], len(body), to-from+1)
	case res.StatusCode < 300 && res.StatusCode != wantStatus:
		return fmt.Errorf("%s, %q: status %d with %d bytes", name, r.Header["Range"], res.StatusCode, len(body))
	default:
		s.statuses[res.StatusCode]++
	}
	return nil
}
