package integration

import (
	"cmp"
	"crypto/rsa"
	"fmt"
	"io"
	"maps"
	mathrand "math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// A soak asks for random combinations of these parts. What each part is refused for is
// known, and the first check that refuses decides, so no second implementation of the
// gate is needed. TestReportOnlyLoosensNothingElse combines more parts without a server.
type (
	soakVideo struct {
		options      string
		open         bool // plays without a token
		restricted   bool // only site.example may embed it
		allowMissing bool
		reports      bool // origins and rules refuse nothing
	}
	soakToken struct {
		compact, video string
		reason         string // why the token check refuses it
		expires        time.Time
		places         []string // where its rules let it play; nil for everywhere
		downloadable   bool
		forged         bool // costs its sender's network trust
	}
	soakSource struct {
		header http.Header
		reason string // why a restricted video is refused; "" if the site is allowed
	}
)

var (
	soakVideos = map[string]soakVideo{
		"demo":     {options: "require_signed_urls on"},
		"open":     {options: "require_signed_urls off", open: true},
		"sited":    {options: "allowed_origins site.example", restricted: true},
		"apps":     {options: "allowed_origins site.example\nmissing_origin allow", restricted: true, allowMissing: true},
		"observed": {options: "allowed_origins site.example\nreport_only origins rules", restricted: true, reports: true},
	}
	soakSources = []soakSource{
		{nil, "origin_required"},
		{http.Header{"Origin": {"https://site.example"}}, ""},
		{http.Header{"Referer": {"https://site.example/watch?v=1"}}, ""},
		{http.Header{"Origin": {"https://evil.example"}, "Referer": {"https://site.example/"}}, "origin_not_allowed"},
		{http.Header{"Origin": {"null"}}, "origin_not_allowed"},
	}
	soakPlaces = map[string]string{"203.0.113.7": "GB", "198.51.100.7": "DE", "2001:db8:2::1": "US", "192.0.2.9": ""}
	soakPaths  = []string{
		"/video/1.ts", "/video/1.ts", "/manifest/video.m3u8", "/manifest/video.m3u8?_HLS_msn=1", "/downloads/x.mp4", "/iframe",
		"/../demo/1.ts", "/%2e%2e/1.ts", "/a%2F1.ts",
	}
	soakMethods = []string{"GET", "GET", "GET", "GET", "GET", "GET", "HEAD", "OPTIONS", "POST"}
)

const (
	soakLifetime = 24 * time.Hour
	soakCache    = 1 << 20 // bytes for tokens
)

func pick[T any](random *mathrand.Rand, from ...T) T { return from[random.IntN(len(from))] }

// chance is true so many times in a hundred.
func chance(random *mathrand.Rand, percent int) bool { return random.IntN(100) < percent }

// newSoakToken makes a token with at most one fault, which the token check finds.
func newSoakToken(random *mathrand.Rand, wrongKey *rsa.PrivateKey) *soakToken {
	made := &soakToken{
		video: pick(random, slices.Sorted(maps.Keys(soakVideos))...), downloadable: chance(random, 50),
		expires: time.Unix(time.Now().Unix()+3600+random.Int64N(20), 0),
	}
	rules := "[]"
	switch random.IntN(4) {
	case 0:
		rules, made.places = `[{"type":"ip.geoip.country","country":["GB"],"action":"allow"},{"type":"any","action":"block"}]`, []string{"GB"}
	case 1:
		rules, made.places = `[{"type":"ip.src","ip":["198.51.100.0/24","2001:db8:2::/48"],"action":"block"}]`, []string{"GB", ""}
	}
	header, key, notBefore, fault := goodHeader(), privateKey(), int64(0), random.IntN(24)
	switch fault {
	case 0:
		made.expires, made.reason = time.Now().Add(-time.Minute), "token_expired"
	case 1, 2:
		made.expires = time.Unix(time.Now().Unix()+1+random.Int64N(20), 0) // expires while it is used
	case 3:
		made.expires, made.reason = time.Now().Add(2*soakLifetime), "token_lifetime_exceeded"
	case 4:
		notBefore, made.reason = time.Now().Unix()+1800, "token_not_yet_valid"
	case 5:
		rules, made.reason = `[{"type":"any","action":"deny"}]`, "rules_invalid"
	case 6:
		header, made.reason = fmt.Sprintf(`{"alg":"RS256","kid":"unknown%d"}`, random.IntN(1000)), "key_unknown"
	case 7:
		header, made.reason = `{"alg":"HS256","kid":"`+keyID+`"}`, "algorithm_not_allowed"
	case 8:
		header, made.reason = headerWith(`"crit":["exp"]`), "token_malformed"
	case 9:
		key, made.reason, made.forged = wrongKey, "signature_invalid", true
	}
	made.compact = signRaw(key, header, fmt.Sprintf(`{"sub":%q,"exp":%d,"nbf":%d,"downloadable":%t,"accessRules":%s}`,
		made.video, made.expires.Unix(), notBefore, made.downloadable, rules))
	return made
}

// soakRequest is one combination of the parts.
type soakRequest struct {
	method, path, viewer string
	source               soakSource
	frame                bool       // a browser loads it into an iframe
	token                *soakToken // nil for the video's id alone
	video                string
}

// refusal is the reason of the first check that refuses the request at a time.
func (r soakRequest) refusal(at time.Time) string {
	video := soakVideos[r.video]
	switch {
	case r.method == http.MethodPost:
		return "method_not_allowed"
	case strings.Contains(r.path, "..") || strings.Contains(r.path, "%"):
		return "path_invalid"
	case r.method == http.MethodOptions:
		return ""
	case r.token == nil && !video.open:
		return "token_required"
	case r.token != nil && r.token.reason != "":
		return r.token.reason
	case r.token != nil && !at.Before(r.token.expires):
		return "token_expired"
	}
	missing := r.source.header == nil && (video.allowMissing || r.frame && strings.HasPrefix(r.path, "/iframe"))
	if video.restricted && !video.reports && !missing && r.source.reason != "" {
		return r.source.reason
	}
	if r.token != nil && r.token.places != nil && !video.reports && !slices.Contains(r.token.places, soakPlaces[r.viewer]) {
		return "rule_blocked"
	}
	if strings.HasPrefix(r.path, "/downloads/") && (r.token == nil || !r.token.downloadable) {
		return "download_not_allowed"
	}
	return ""
}

// want is the answer to the request at a time, and the origin's URI if it is asked.
func (r soakRequest) want(at time.Time) (verdict, string) {
	switch reason := r.refusal(at); {
	case reason != "":
		return refusedFor(reason), ""
	case r.method == http.MethodOptions:
		return verdict{Status: http.StatusNoContent}, ""
	}
	return plays, "/library/" + r.video + "/v1" + r.path
}

// soak is a gateway that gets random requests.
type soak struct {
	t        *testing.T
	gateway  *tlsGateway
	clients  []*http.Client
	wrongKey *rsa.PrivateKey // with the id of the right key

	tokens [300]atomic.Pointer[soakToken]
	asked  atomic.Int64
	uris   sync.Map // that the origin was asked for, by the number of the request
	mu     sync.Mutex
	seen   map[verdict]int
	wrong  []string
}

// ServeHTTP implements http.Handler, for the origin. It allows every cache everything.
func (s *soak) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.uris.Store(r.URL.Query().Get("n"), r.RequestURI)
	w.Header().Set("Cache-Control", "public, max-age=31536000")
	_, _ = io.WriteString(w, "#EXTM3U\n#EXTINF:2,\nseg_1.ts\n")
}

func startSoak(t *testing.T, quick bool) *soak {
	t.Helper()
	s := &soak{t: t, seen: make(map[verdict]int), wrongKey: newPrivateKey()}
	app := []string{withCountries(t), "max_token_lifetime " + soakLifetime.String(), "token_cache_size " + strconv.Itoa(soakCache)}
	for id, video := range soakVideos {
		app = append(app, "video "+id+" {\n"+video.options+"\n}")
	}
	server := &origin{server: serve(t, s)} // which keeps no requests
	s.gateway = startTLS(t, server, config{
		quick: quick, log: quiet, global: trusting("127.0.0.1"),
		app: strings.Join(app, "\n"), gate: "origin_path /library/{video}/v1",
	})
	noError(t, s.gateway.load(s.gateway.reloadable(t, server)))
	random := mathrand.New(mathrand.NewPCG(mathrand.Uint64(), 0))
	for i := range s.tokens {
		s.tokens[i].Store(newSoakToken(random, s.wrongKey))
	}
	for range 2 {
		for _, protocol := range protocols {
			c, _ := protocol.connect(t, s.gateway)
			s.clients = append(s.clients, c)
		}
	}
	return s
}

// request makes a random request.
func (s *soak) request(random *mathrand.Rand) soakRequest {
	r := soakRequest{
		method: pick(random, soakMethods...), path: pick(random, soakPaths...), source: pick(random, soakSources...), frame: chance(random, 20),
		viewer: pick(random, slices.Sorted(maps.Keys(soakPlaces))...), video: pick(random, slices.Sorted(maps.Keys(soakVideos))...),
	}
	if chance(random, 85) {
		r.token = s.tokens[random.IntN(len(s.tokens))].Load()
		r.video = r.token.video
		if r.token.forged { // from so many networks that none is limited
			r.viewer = fmt.Sprintf("100.65.%d.%d", random.IntN(256), random.IntN(256))
		}
	}
	return r
}

// ask sends a request and compares the answer with the expected one.
func (s *soak) ask(random *mathrand.Rand, c *http.Client) {
	r := s.request(random)
	number, first := strconv.FormatInt(s.asked.Add(1), 10), r.video
	if r.token != nil {
		first = r.token.compact
	}
	req, err := http.NewRequestWithContext(s.t.Context(), r.method, s.gateway.url(""), nil)
	if err != nil {
		s.t.Error(err)
		return
	}
	r.path += either(strings.Contains(r.path, "?"), "&n=", "?n=") + number
	req.URL.Opaque = "/" + first + r.path
	req.Header = http.Header{"X-Forwarded-For": {r.viewer}}
	maps.Copy(req.Header, r.source.header)
	if r.frame {
		req.Header.Set("Sec-Fetch-Dest", "iframe")
	}
	var got verdict
	freshness := 0
	sent := time.Now()
	res, err := c.Do(req)
	received := time.Now()
	if err == nil {
		got = verdict{res.StatusCode, res.Header.Get("Signed-Playback-Reason")}
		_, _ = fmt.Sscanf(res.Header.Get("Cache-Control"), "private, max-age=%d", &freshness)
		_, err = io.Copy(io.Discard, res.Body)
		_ = res.Body.Close()
	}
	recorded, _ := s.uris.LoadAndDelete(number)
	uri, _ := recorded.(string)
	wantSent, uriSent := r.want(sent)
	wantReceived, uriReceived := r.want(received)
	right := err == nil && (got == wantSent && uri == uriSent || got == wantReceived && uri == uriReceived) &&
		(r.token == nil || got != plays || float64(freshness) <= r.token.expires.Sub(sent).Seconds())
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen[got]++
	if !right {
		s.wrong = append(s.wrong, fmt.Sprintf("%+v with the token %+v: got %v, %q, fresh for %d seconds, %v; want %v, %q",
			r, r.token, got, uri, freshness, err, wantSent, uriSent))
	}
}

// run asks with all clients until done is closed, each at an interval.
func (s *soak) run(done <-chan struct{}, interval time.Duration) {
	const newTokens = 4 // for a hundred requests
	var workers sync.WaitGroup
	for i, c := range s.clients {
		workers.Go(func() {
			random := mathrand.New(mathrand.NewPCG(mathrand.Uint64(), uint64(i)))
			tick := time.NewTicker(interval)
			defer tick.Stop()
			for {
				select {
				case <-done:
					return
				case <-tick.C:
				}
				if chance(random, newTokens) {
					s.tokens[random.IntN(len(s.tokens))].Store(newSoakToken(random, s.wrongKey))
				}
				s.ask(random, c)
			}
		})
	}
	workers.Wait()
}

// memorySample is how much memory the server uses at one time, in bytes.
type memorySample struct{ heap, resident float64 }

// watchMemory takes samples until done is closed, and logs them.
func (s *soak) watchMemory(every time.Duration, done <-chan struct{}) (samples []memorySample) {
	tick := time.NewTicker(every)
	began := time.Now()
	defer tick.Stop()
	for {
		select {
		case <-done:
			return samples
		case <-tick.C:
			sample := memorySample{s.gateway.heap(s.t), float64(s.gateway.memory(s.t)["VmRSS"])}
			samples = append(samples, sample)
			s.t.Logf("after %s: %d requests, heap %.2f MiB, resident %.2f MiB, %+v", time.Since(began).Round(time.Second), s.asked.Load(),
				sample.heap/(1<<20), sample.resident/(1<<20), s.gateway.holds(s.t))
		}
	}
}

// wantFlat checks that the memory of the last quarter is that of the third quarter. The
// first half is to warm up, and the least value of a quarter has the least garbage in it.
func (s *soak) wantFlat(samples []memorySample) {
	s.t.Helper()
	least := func(samples []memorySample) (m memorySample) {
		m = samples[0]
		for _, sample := range samples {
			m = memorySample{min(m.heap, sample.heap), min(m.resident, sample.resident)}
		}
		return m
	}
	const heapNoise, residentNoise = 512 << 10, 8 << 20
	quarter := len(samples) / 4
	before, after := least(samples[2*quarter:3*quarter]), least(samples[3*quarter:])
	s.t.Logf("in the third quarter %+v, in the last %+v", before, after)
	if after.heap-before.heap > heapNoise || after.resident-before.resident > residentNoise {
		s.t.Errorf("memory has grown from %+v to %+v: %+v", before, after, samples)
	}
}

// The gate decides on random requests as their parts say, over every version of HTTP,
// with known and with new tokens.
func TestRandomRequests(t *testing.T) {
	t.Parallel()
	const requests = 4000
	s := startSoak(t, false)
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for s.asked.Load() < requests && t.Context().Err() == nil {
			<-tick.C
		}
	}()
	s.run(done, time.Millisecond)
	s.wantRight()
}

// It does so for a long time, and its memory does not grow. SIGNED_PLAYBACK_SOAK sets
// how long.
func TestLongSoak(t *testing.T) {
	const (
		samples  = 40                    // at least
		interval = 10 * time.Millisecond // of each client
	)
	s := startSoak(t, true) // the race detector keeps memory for goroutines that have ended
	before := s.gateway.rest(t, s.clients)
	duration := durationFrom(t, "SIGNED_PLAYBACK_SOAK", 20*time.Minute)
	over, done := make(chan struct{}), make(chan struct{})
	time.AfterFunc(duration, func() { close(over) })
	go func() {
		defer close(done)
		s.run(over, interval)
	}()
	taken := s.watchMemory(min(time.Minute, duration/samples), done)
	s.wantFlat(taken)
	s.wantRight()
	s.gateway.rest(t, s.clients)
	s.gateway.wantReleased(t, before, atRest)
}

// durationFrom reads a duration from the environment.
func durationFrom(t testing.TB, variable string, otherwise time.Duration) time.Duration {
	t.Helper()
	duration, err := time.ParseDuration(cmp.Or(os.Getenv(variable), otherwise.String()))
	if err != nil {
		t.Fatalf("%s: %v", variable, err)
	}
	return duration
}

// wantRight checks that every decision was right, and that each outcome came up.
func (s *soak) wantRight() {
	s.t.Helper()
	s.t.Logf("%d requests: %v", s.asked.Load(), s.seen)
	if n := len(s.wrong); n > 0 {
		s.t.Errorf("%d of %d decisions were wrong; the first:\n%s", n, s.asked.Load(), strings.Join(s.wrong[:min(n, 20)], "\n"))
	}
	if outcomes := 17; len(s.seen) != outcomes { // 15 reasons, 200 and 204
		s.t.Errorf("%d different outcomes, want %d: %v", len(s.seen), outcomes, s.seen)
	}
}
