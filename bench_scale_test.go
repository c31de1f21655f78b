package signedplayback

import (
	"context"
	"fmt"
	"iter"
	"maps"
	"math"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/signed-playback/caddy-signed-playback/internal/store"
	"github.com/signed-playback/caddy-signed-playback/token"
)

// scaleSeries is one thing of which a gate can meet more or less.
type scaleSeries struct {
	name    string
	sizes   []int
	prepare func(b *testing.B, n int) scaleCase
}

// scaleCase is a gate that has met so much of it, and what it is asked for.
type scaleCase struct {
	gate   *Gate
	ask    func(path string) // what is asked in the place of a gate
	before iter.Seq[string]  // paths that are asked for before the measurement begins
	paths  []string
	header http.Header
}

// `make bench BENCHFLAGS=scale` reads the names and makes a chart of them.
var scale = []scaleSeries{
	{"tokens", []int{1e2, 1e3, 1e4, 1e5, 1e6}, scaleTokens},
	{"address-rules", []int{1, 2, 4, 8, 16, 32, 64}, scaleRules(func(i int) string {
		return fmt.Sprintf(`{"type":"ip.src","ip":["198.51.100.%d"],"action":"block"}`, i)
	})},
	{"country-rules", []int{1, 2, 4, 8, 16, 32, 64}, scaleRules(func(i int) string {
		return fmt.Sprintf(`{"type":"ip.geoip.country","country":["%c%c"],"action":"block"}`, 'A'+i/26, 'A'+i%26)
	})},
	{"token-bytes", []int{512, 1024, 2048, 4096, 8192}, scaleTokenBytes},
	{"origins", []int{1e0, 1e1, 1e2, 1e3}, scaleOrigins},
	{"videos", []int{1e2, 1e3, 1e4, 1e5, 1e6}, scaleVideos},
	{"go-map", []int{1e2, 1e3, 1e4, 1e5, 1e6}, scaleGoMap},
}

// mostInShort is how much there is at most with -short, for a smoke test.
const mostInShort = 1e4

// BenchmarkScale is the decision about a warm request against how much there is
// of what a gate keeps, a token holds or a video allows.
func BenchmarkScale(b *testing.B) {
	for _, s := range scale {
		for _, n := range s.sizes {
			if testing.Short() && n > mostInShort {
				continue
			}
			b.Run(fmt.Sprintf("%s/%d", s.name, n), func(b *testing.B) {
				c := s.prepare(b, n)
				ask := c.ask
				if ask == nil {
					ask = c.decide(b)
				}
				if c.before != nil {
					for path := range c.before {
						ask(path)
					}
				}
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					ask(c.paths[i%len(c.paths)])
				}
			})
		}
	}
}

// decide has the gate decide about a path.
func (c scaleCase) decide(b *testing.B) (ask func(path string)) {
	r := requestFor(b, "/x", nil)
	maps.Copy(r.Header, c.header)
	var d decision
	return func(path string) {
		r.URL.Path = path
		d = decision{gate: c.gate, app: c.gate.app, request: r, kind: kindOther, requestOrigin: r.Header.Get("Origin")}
		if err := c.gate.decide(&d); err != nil {
			b.Fatal(err)
		}
	}
}

const (
	scaleSuffix      = "/video/1080/seg_123.m4s"
	scaleTokenLength = 700 // in bytes, of one with a rule or two
)

// scaleTokens has viewers come in no order, so that nothing of an entry is in
// the processor's caches but by chance: the worst that can be for a memory of
// tokens. They are not signed, for a hit looks at no signature.
func scaleTokens(b *testing.B, n int) scaleCase {
	const requests, room = 1 << 18, 4 << 30
	g := newGate(b, new(App), new(Gate))
	g.app.tokens.entries.SetMaximum(room)
	for i := range n {
		remember(g, unsigned(i, scaleTokenLength), `[{"type":"any","action":"allow"}]`)
	}
	paths := make([]string, requests)
	for i := range paths {
		paths[i] = "/" + unsigned(rand.IntN(n), scaleTokenLength) + scaleSuffix
	}
	return scaleCase{gate: g, paths: paths}
}

// unsigned is the ith token of so many bytes, of which nothing but the form is
// one's.
func unsigned(i, length int) string {
	const header, signature = 40, 342
	return fmt.Sprintf("%0*d.%0*d.%0*d", header, 0, length-header-signature-len(".."), i, signature, 0)
}

func remember(g *Gate, compact, rules string) {
	claims := token.Claims{VideoID: "demo", ExpiresAt: testTime.Add(time.Hour), KeyID: "k1"}
	verified := newVerifiedToken(claims, must(compileRules([]byte(rules))), g.app.keys.Lookup("k1"))
	g.app.tokens.entries.Set(compact, verified)
}

// scaleTokenBytes has what a token's length costs: each byte is read, and
// compared with what is remembered.
func scaleTokenBytes(b *testing.B, n int) scaleCase {
	g := newGate(b, new(App), new(Gate))
	remember(g, unsigned(0, n), `[{"type":"any","action":"allow"}]`)
	return scaleCase{gate: g, paths: []string{"/" + unsigned(0, n) + scaleSuffix}}
}

// scaleRules has a token with rules of which none matches the viewer, so that
// each of them is looked at. The token is as long with many as with one, since
// what is to be seen is the rules alone; scaleTokenBytes has the rest.
func scaleRules(rule func(i int) string) func(b *testing.B, n int) scaleCase {
	return func(b *testing.B, n int) scaleCase {
		g := newGate(b, &App{GeoIPDatabase: restrictedApp().GeoIPDatabase}, new(Gate))
		rules := make([]string, n)
		for i := range rules {
			rules[i] = rule(i)
		}
		compact := unsigned(0, scaleTokenLength)
		remember(g, compact, "["+strings.Join(rules, ",")+"]")
		return scaleCase{gate: g, paths: []string{"/" + compact + scaleSuffix}}
	}
}

// scaleOrigins has a site far below the last of a video's allowed origins.
func scaleOrigins(b *testing.B, n int) scaleCase {
	var patterns []string
	for i := range n {
		pattern := fmt.Sprintf("site-%d.example", i)
		if (n-i)%2 == 1 {
			pattern = "*." + pattern
		}
		patterns = append(patterns, pattern)
	}
	g := newGate(b, &App{Videos: map[string]VideoSettings{"demo": {AllowedOrigins: patterns}}}, new(Gate))
	origin := fmt.Sprintf("https://a.b.c.site-%d.example", n-1)
	return scaleCase{gate: g, paths: []string{"/" + plainToken() + scaleSuffix}, header: http.Header{"Origin": {origin}}}
}

// audience is what is asked for of so many videos: each in proportion to 1 by its
// rank (Zipf's law). All are asked for once before, in an order that has nothing
// to do with their rank.
func audience(n int) (before iter.Seq[string], paths []string) {
	const requests = 1 << 20
	path := func(rank int) string { return fmt.Sprintf("/%032x%s", rank, scaleSuffix) }
	paths = make([]string, requests)
	for i := range paths {
		rank := int(math.Exp(rand.Float64()*math.Log(float64(n+1)))) - 1
		paths[i] = path(min(rank, n-1))
	}
	return func(yield func(string) bool) {
		for _, rank := range rand.Perm(n) {
			if !yield(path(rank)) {
				return
			}
		}
	}, paths
}

// scaleVideos has videos with settings from the control API.
func scaleVideos(b *testing.B, n int) scaleCase {
	signed := false
	g := newGate(b, &App{VideoSettings: VideoSettings{RequireSignedURLs: &signed}}, new(Gate))
	g.app.state.store = videoStore{g.app.state.store}
	c := scaleCase{gate: g, header: http.Header{"Origin": {"https://www.example.org"}}}
	c.before, c.paths = audience(n)
	return c
}

// scaleGoMap has nothing but the ids of these videos in a map of Go's. A look-up
// in it takes the same number of steps however many there are; what it costs is
// what memory costs of which less and less is in the processor's caches.
func scaleGoMap(_ *testing.B, n int) (c scaleCase) {
	known := make(map[string]*settings, n)
	c.before, c.paths = audience(n)
	c.ask = func(path string) {
		id, _, _ := strings.Cut(path[1:], "/")
		if known[id] == nil {
			known[id] = new(settings)
		}
	}
	return c
}

// videoStore has settings for every video, the same as most of them have, at no
// distance.
type videoStore struct{ store.Store }

func (videoStore) Get(_ context.Context, name store.Name) (store.Object, error) {
	doc := fmt.Appendf(nil, `{"uid":%q,"allowedOrigins":["example.com","*.example.org"]}`, name.ID())
	return store.Object{Name: name, Data: doc}, nil
}
