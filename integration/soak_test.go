package integration

import (
	"cmp"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"maps"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// soakSettings are the videos of the soak, for the config and for the model.
var soakSettings = map[string]struct {
	config string
	model  referenceSettings
}{
	"demo":                  {"require_signed_urls on", referenceSettings{}},
	"A-b_9":                 {"require_signed_urls on", referenceSettings{}},
	strings.Repeat("v", 64): {"require_signed_urls on", referenceSettings{}},
	"open":                  {"require_signed_urls off", referenceSettings{open: true}},
	"sited": {
		"allowed_origins site.example *.wild.example ported.example:8443 192.0.2.80",
		referenceSettings{allowed: []string{"site.example", "*.wild.example", "ported.example:8443", "192.0.2.80"}},
	},
	"opensited": {
		"require_signed_urls off\nallowed_origins site.example",
		referenceSettings{open: true, allowed: []string{"site.example"}},
	},
	"apps": {
		"allowed_origins site.example\nmissing_origin allow",
		referenceSettings{allowed: []string{"site.example"}, allowMissing: true},
	},
	"anywhere": {"allowed_origins *", referenceSettings{allowed: []string{"*"}}},
	"observed": {
		"allowed_origins site.example\nreport_only origins rules",
		referenceSettings{allowed: []string{"site.example"}, reports: []string{"origins", "rules"}},
	},
	"unenforced": {
		"allowed_origins site.example\nenforce off",
		referenceSettings{allowed: []string{"site.example"}, reports: []string{"token", "origins", "rules", "downloads"}},
	},
}

// soakCountries are networks of testdata/country.mmdb, which package geodb
// makes.
var soakCountries = map[netip.Prefix]string{
	netip.MustParsePrefix("203.0.113.0/24"):  "GB",
	netip.MustParsePrefix("198.51.100.0/24"): "DE",
	netip.MustParsePrefix("2001:db8:1::/48"): "GB",
	netip.MustParsePrefix("2001:db8:2::/48"): "US",
}

const (
	soakLeeway   = 5 * time.Second
	soakLifetime = 24 * time.Hour
	soakPath     = "/library/{video}/v1"
	soakCache    = 1 << 20 // bytes for tokens
)

// soakOrigin answers everything, and records at which URI it was asked. It allows
// everybody everything.
type soakOrigin struct {
	asked sync.Map // URIs by the number of the request
	leaks atomic.Int64
}

// requestNumber is a header that the gate does not know.
const requestNumber = "Soak-Request"

func (o *soakOrigin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Referer") != "" || r.Header.Get("Origin") != "" {
		o.leaks.Add(1)
	}
	o.asked.Store(r.Header.Get(requestNumber), r.RequestURI)
	for name, value := range map[string]string{
		"Content-Type": "application/octet-stream", "Cache-Control": "public, max-age=31536000", "Surrogate-Control": "max-age=31536000",
		"Etag": `"origin"`, "Access-Control-Allow-Origin": "https://origin.example", "Access-Control-Allow-Credentials": "true",
	} {
		w.Header().Set(name, value)
	}
	body := "media"
	switch path := strings.ToLower(strings.TrimSuffix(r.URL.Path, "/")); {
	case strings.HasSuffix(path, ".m3u8"):
		body = "#EXTM3U\n#EXTINF:2,\nseg_1.ts\n"
	case strings.HasSuffix(path, ".mpd"):
		body = `<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"></MPD>`
	}
	_, _ = io.WriteString(w, body)
}

// mill makes tokens of all kinds.
type mill struct {
	random *mathrand.Rand
	wrong  *rsa.PrivateKey // of the same id as the right one
}

// milled is a token. A forged one costs its sender's network trust, so its
// sender is chosen with care.
type milled struct {
	compact string
	forged  bool
}

func pick[T any](random *mathrand.Rand, from ...T) T { return from[random.IntN(len(from))] }

// chance is true so many times in a hundred.
func chance(random *mathrand.Rand, percent int) bool { return random.IntN(100) < percent }

func (m *mill) token() milled {
	header, payload := []string{`"alg":"RS256"`}, []string{m.subject()}
	payload = append(payload, m.dates()...)
	payload = append(payload, m.claims()...)
	id := fmt.Sprintf(`"kid":%q`, keyID)
	switch m.random.IntN(3) {
	case 0:
		header = append(header, id)
	case 1:
		payload = append(payload, id)
	case 2:
		header, payload = append(header, id), append(payload, id)
	}
	if chance(m.random, 30) {
		header = append(header, `"typ":"JWT"`)
	}
	if chance(m.random, 70) {
		return milled{compact: sealed(privateKey(), header, payload)}
	}
	return m.spoiled(header, payload)
}

func (m *mill) subject() string {
	return fmt.Sprintf(`"sub":%q`, pick(m.random, slices.Sorted(maps.Keys(soakSettings))...))
}

// dates are of one kind each time: two reasons to refuse a token would leave
// open which is given.
func (m *mill) dates() []string {
	now, few := time.Now().Unix(), int64(m.random.IntN(20))
	exp := func(at int64) string { return fmt.Sprintf(`"exp":%d`, at) }
	later := exp(now + 3600 + few)
	switch m.random.IntN(20) {
	case 0:
		return []string{exp(now - 1 - few)}
	case 1:
		return []string{exp(now + 1 + few)} // while it is used
	case 2:
		return []string{fmt.Sprintf(`"exp":"%d"`, now+3600)}
	case 3:
		return []string{exp(now + int64(soakLifetime.Seconds()) + 60 + few)}
	case 4:
		return []string{exp(now + int64(soakLifetime.Seconds()) + few)}
	case 5:
		return []string{exp((now + 3600) * 1000)}
	case 6:
		return []string{later, fmt.Sprintf(`"nbf":%d`, now+1800)}
	case 7:
		return []string{later, fmt.Sprintf(`"nbf":"%d"`, now+int64(soakLeeway.Seconds())+few)}
	case 8:
		return []string{later, fmt.Sprintf(`"nbf":%d`, now-few)}
	case 9:
		return []string{later, fmt.Sprintf(`"nbf":%d`, now+2)}
	}
	return []string{later}
}

func (m *mill) claims() (claims []string) {
	if chance(m.random, 40) {
		claims = append(claims, fmt.Sprintf(`"downloadable":%t`, chance(m.random, 70)))
	}
	if chance(m.random, 60) {
		claims = append(claims, `"accessRules":`+m.rules())
	}
	if chance(m.random, 20) {
		claims = append(claims, `"note":{"a":[1,{"b":null}]}`)
	}
	return claims
}

func (m *mill) rules() string {
	if chance(m.random, 8) {
		return pick(m.random,
			`{}`, `"any"`, `[1]`, `[{"type":"any"}]`, `[{"action":"allow"}]`, `[{"type":"ip","action":"allow"}]`,
			`[{"type":"any","action":"deny"}]`, `[{"type":"ip.src","action":"allow"}]`,
			`[{"type":"any","action":"allow"},{"type":"ip.src","action":"block","ip":["203.0.113.300"]}]`,
			`[{"type":"ip.src","action":"block","ip":["203.0.113.0/33"]}]`,
			`[{"type":"ip.geoip.country","action":"block","country":["GBR"]}]`,
			`[{"type":"ip.geoip.country","action":"block","ip":["203.0.113.7"]}]`,
			"["+strings.Repeat(`{"type":"any","action":"allow"},`, 64)+`{"type":"any","action":"allow"}]`)
	}
	var rules []string
	for range m.random.IntN(4) {
		rules = append(rules, pick(m.random,
			`{"type":"ip.src","action":"%s","ip":["203.0.113.0/25","2001:db8:1::/56"]}`,
			`{"type":"ip.src","ip":["198.51.100.7"],"action":"%s","note":1}`,
			`{"type":"ip.src","ip":["100.64.0.0/10","2001:db8:2::1"],"action":"%s"}`,
			`{"type":"ip.geoip.country","country":["GB"],"action":"%s"}`,
			`{"action":"%s","type":"ip.geoip.country","country":["DE","US","FR"],"ip":"ignored"}`))
	}
	if chance(m.random, 50) {
		rules = append(rules, `{"type":"any","action":"%s"}`)
	}
	for i, rule := range rules {
		rules[i] = fmt.Sprintf(rule, pick(m.random, "allow", "block"))
	}
	return "[" + strings.Join(rules, ",") + "]"
}

// sealed signs a token of these members.
func sealed(key *rsa.PrivateKey, header, payload []string) string {
	return signRaw(key, "{"+strings.Join(header, ",")+"}", "{"+strings.Join(payload, ", ")+"}")
}

// spoiled is a token with one thing wrong about it.
func (m *mill) spoiled(header, payload []string) milled {
	good := sealed(privateKey(), header, payload)
	parts := strings.Split(good, ".")
	join := func(parts ...string) string { return strings.Join(parts, ".") }
	without := func(members []string, name string) []string {
		return slices.DeleteFunc(slices.Clone(members), func(s string) bool { return strings.HasPrefix(s, `"`+name+`"`) })
	}
	switch m.random.IntN(12) {
	case 0:
		return milled{sealed(m.wrong, header, payload), true}
	case 1:
		flipped, _ := base64.RawURLEncoding.DecodeString(parts[2])
		flipped[m.random.IntN(len(flipped))] ^= 1 << m.random.IntN(8)
		return milled{join(parts[0], parts[1], b64(string(flipped))), true}
	case 2:
		other := append(without(payload, "downloadable"), `"downloadable":true`, `"forged":true`)
		return milled{join(parts[0], b64("{"+strings.Join(other, ",")+"}"), parts[2]), true}
	case 3, 4:
		unknown := fmt.Sprintf(`"kid":"unknown%d"`, m.random.IntN(1000))
		return milled{compact: sealed(privateKey(), append(without(header, "kid"), unknown), without(payload, "kid"))}
	case 5, 6:
		alg := fmt.Sprintf(`"alg":%q`, pick(m.random, "none", "HS256", "RS384", "RS512", "PS256", "ES256", "EdDSA", "rs256"))
		return milled{compact: sealed(privateKey(), append(without(header, "alg"), alg), payload)}
	case 7:
		more := pick(m.random, header[0], `"crit":["exp"]`, `"jku":"https://keys.example/"`, `"b64":false`, `"x":1`)
		return milled{compact: sealed(privateKey(), append(slices.Clone(header), more), payload)}
	case 8:
		more := pick(m.random, payload[0], payload[1], `"padding":"`+strings.Repeat("x", 7000)+`"`, `"note":{"a":1,"a":2}`)
		return milled{compact: sealed(privateKey(), header, append(slices.Clone(payload), more))}
	case 9:
		return milled{compact: sealed(privateKey(), header, pick(m.random,
			without(payload, "sub"), without(payload, "exp"),
			append(without(payload, "exp"), `"exp":1e9`), append(without(payload, "exp"), `"exp":null`),
			append(without(payload, "sub"), `"sub":"../demo"`), append(without(payload, "sub"), `"sub":7`)))}
	case 10:
		return milled{compact: pick(m.random, good+"=", parts[0]+"=."+parts[1]+"."+parts[2], good[:len(good)-1]+nextUnused(good),
			join(b64(`{"alg":"RS256","kid":"main"} {}`), parts[1], parts[2]), join(b64(`[]`), parts[1], parts[2]),
			join(parts[0], parts[1]+"+", parts[2]), join(parts[0], "", parts[2]))}
	}
	return milled{compact: pick(m.random, "a.b.c", "..", "not.a.token", good+"."+parts[2], join(parts[0], parts[1]), parts[1])}
}

// nextUnused spells the last character of a signature in another way: four of its six bits
// have no meaning.
func nextUnused(compact string) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	return string(alphabet[strings.IndexByte(alphabet, compact[len(compact)-1])+1])
}

// soak is a gateway that is asked everything, and a model that knows the answers.
type soak struct {
	t        *testing.T
	origin   *soakOrigin
	gateway  *tlsGateway
	admin    string // host:port of the admin API
	model    *referenceModel
	clients  []*http.Client
	wrongKey *rsa.PrivateKey

	tokens [300]atomic.Pointer[milled]
	asked  atomic.Int64
	mu     sync.Mutex
	seen   map[verdict]int
	wrong  []string
}

func startSoak(t *testing.T, quick bool) *soak {
	t.Helper()
	wrongKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	s := &soak{t: t, origin: new(soakOrigin), admin: freeAddr(t), seen: make(map[verdict]int), wrongKey: wrongKey}
	app := []string{withCountries(t), "max_token_lifetime " + soakLifetime.String(), "token_cache_size " + strconv.Itoa(soakCache)}
	videos := make(map[string]referenceSettings)
	for id, settings := range soakSettings {
		app = append(app, "video "+id+" {\n"+settings.config+"\n}")
		videos[id] = settings.model
	}
	server := &origin{server: httptest.NewServer(s.origin)} // which keeps no requests
	t.Cleanup(server.server.Close)
	s.gateway = startTLS(t, server, config{
		quick:  quick,
		log:    quiet,
		global: strings.Join([]string{"admin " + s.admin, trusting("127.0.0.1")}, "\n"),
		app:    strings.Join(app, "\n"),
		gate:   "origin_path " + soakPath,
	})
	if err := s.gateway.load(s.admin, s.gateway.reloadable(t, server)); err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(s.gateway.addr)
	s.model = &referenceModel{
		origin:     "https://localhost:" + port,
		originPath: soakPath,
		keys: func(id string, _ time.Time) *rsa.PublicKey {
			if id != keyID {
				return nil
			}
			return &privateKey().PublicKey
		},
		leeway:      soakLeeway,
		maxLifetime: soakLifetime,
		videos:      videos,
		download:    regexp.MustCompile(`(?i)^downloads/`),
		countries:   soakCountries,
	}
	makes := &mill{mathrand.New(mathrand.NewPCG(mathrand.Uint64(), 0)), s.wrongKey}
	for i := range s.tokens {
		made := makes.token()
		s.tokens[i].Store(&made)
	}
	for range 2 {
		for _, protocol := range protocols {
			c, _ := protocol.connect(t, s.gateway)
			s.clients = append(s.clients, c)
		}
	}
	return s
}

// odd is what a path may also consist of.
func odd(random *mathrand.Rand) string {
	if chance(random, 50) {
		return fmt.Sprintf("%%%02X", random.IntN(256))
	}
	const others = "%?" // begin an escape, or the query
	for {
		if c := string(rune('!' + random.IntN('~'-'!'+1))); !strings.Contains(others, c) {
			return c
		}
	}
}

func suffix(random *mathrand.Rand) string {
	path := pick(random,
		"", "/", "/iframe", "/manifest/video.m3u8", "/manifest/video.mpd", "/video/1080p/seg_00001.m4s", "/video/1080p/seg_00002.m4s",
		"/audio/init.mp4", "/thumbnails/thumbnail.jpg", "/downloads/default.mp4", "/Downloads/de/default.mp4", "/d%6Fwnloads/default.mp4",
		"/subtitles/caf%C3%A9/1.vtt", "/a%20b/~x@y:z!$&'()*+,=.ts", "/folder/")
	switch random.IntN(20) {
	case 0:
		return pick(random, "/../demo/1.ts", "/a/./1.ts", "/a//1.ts", "//1.ts", "/a/..", "/%2e%2e/1.ts", "/a%2F1.ts", "/a%5C1.ts", "/a;b/1.ts",
			"/a%00.ts", "/%FF.ts", "/a%3Fb", "/%252e/1.ts", "/\u00fc.ts", "/a%C2%80.ts", "/a#b")
	case 1:
		if i := random.IntN(len(path) + 1); i > 0 && !strings.Contains(path[max(0, i-2):i], "%") {
			path = path[:i] + odd(random) + path[i:]
		}
	}
	if chance(random, 20) {
		path += pick(random, "?a=b", "?protocol=llhls", "?x=%2e%2e/&y=1", "?_HLS_msn=1&_HLS_part=2")
	}
	return path
}

// request makes up what a viewer might ask for.
func (s *soak) request(random *mathrand.Rand) referenceRequest {
	const forgers = 256 // networks: none may send more forged tokens than it may
	viewer := pick(random, "203.0.113.7", "203.0.113.200", "198.51.100.7", "198.51.100.8", "192.0.2.9", "100.64.1.1", "2001:db8:1::5",
		"2001:db8:1:ff00::5", "2001:db8:2::1", "2001:db8:2::2", "2001:db8:9::1", "::ffff:203.0.113.7")
	var first string
	switch kind := random.IntN(100); {
	case kind < 85:
		chosen := s.tokens[random.IntN(len(s.tokens))].Load()
		if first = chosen.compact; chosen.forged {
			viewer = fmt.Sprintf("100.65.%d.%d", random.IntN(forgers), random.IntN(256))
		}
	case kind < 96:
		first = pick(random, slices.Sorted(maps.Keys(soakSettings))...)
	default:
		first = pick(random, "a.b", "a%41", strings.Repeat("v", 65), "demo,", "demo;x", "a.b.c.d", "\u00fc")
	}
	method := http.MethodGet
	if chance(random, 15) {
		method = pick(random, "HEAD", "HEAD", "HEAD", "OPTIONS", "OPTIONS", "POST", "PUT", "DELETE", "PATCH", "PROPFIND", "get")
	}
	return referenceRequest{method, "/" + first + suffix(random), s.header(random), netip.MustParseAddr(viewer)}
}

func (s *soak) header(random *mathrand.Rand) http.Header {
	header := make(http.Header)
	site := func() string {
		return pick(random, "https://site.example", "https://site.example", "http://site.example", "https://www.site.example",
			"https://wild.example", "https://a.b.wild.example", "https://notwild.example", "https://ported.example:8443",
			"https://ported.example", "https://site.example:443", "https://site.example:8443", "http://192.0.2.80", s.model.origin)
	}
	switch random.IntN(10) {
	case 0, 1, 2:
		header.Set("Origin", site())
	case 3, 4:
		header.Set("Referer", site()+"/watch?v=1")
	case 5:
		header.Set("Origin", site())
		header.Set("Referer", site()+"/")
	case 6:
		header["Origin"] = pick(random, []string{"null"}, []string{site(), site()}, []string{"site.example"}, []string{"https://"}, []string{"https://[::1"})
	case 7:
		header["Referer"] = pick(random, []string{site() + "/", site() + "/"}, []string{"about:blank"}, []string{"/watch"})
	}
	if chance(random, 20) {
		header.Set("Sec-Fetch-Dest", pick(random, "iframe", "iframe", "video", "document"))
	}
	return header
}

// ask sends a request and holds the answer against the model.
func (s *soak) ask(random *mathrand.Rand, c *http.Client) {
	r := s.request(random)
	number := strconv.FormatInt(s.asked.Add(1), 10)
	req, err := http.NewRequestWithContext(s.t.Context(), r.method, s.model.origin, nil)
	if err != nil {
		s.t.Error(err)
		return
	}
	req.URL.Opaque = r.target
	req.Header = r.header.Clone()
	req.Header.Set("X-Forwarded-For", r.viewer.String())
	req.Header.Set(requestNumber, number)

	var got referenceDecision
	sent := time.Now()
	res, err := c.Do(req)
	received := time.Now()
	if err == nil {
		got.verdict = verdict{res.StatusCode, res.Header.Get("Signed-Playback-Reason")}
		_, err = io.Copy(io.Discard, res.Body)
		_ = res.Body.Close()
	}
	if uri, asked := s.origin.asked.LoadAndDelete(number); asked {
		got.uri, _ = uri.(string)
	}
	if err == nil {
		err = s.model.checkHeader(r, got.verdict, res.Header, sent, received)
	}
	want, later := s.model.decide(r, sent), s.model.decide(r, received)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen[got.verdict]++
	if failed, ok := errors.AsType[*url.Error](err); ok {
		err = failed.Err
	}
	if err != nil || got != want && got != later {
		s.wrong = append(s.wrong, fmt.Sprintf("%s %s from %s with %v: got %v %v, want %v", r.method, r.target, r.viewer, r.header, got, err, want))
	}
}

// run asks with all clients until done is closed, each at an interval.
func (s *soak) run(done <-chan struct{}, interval time.Duration) {
	const newTokens = 4 // for a hundred requests
	var workers sync.WaitGroup
	for i, c := range s.clients {
		workers.Go(func() {
			random := mathrand.New(mathrand.NewPCG(mathrand.Uint64(), uint64(i)))
			makes := &mill{random, s.wrongKey}
			tick := time.NewTicker(interval)
			defer tick.Stop()
			for {
				select {
				case <-done:
					return
				case <-tick.C:
				}
				if chance(random, newTokens) {
					made := makes.token()
					s.tokens[random.IntN(len(s.tokens))].Store(&made)
				}
				s.ask(random, c)
			}
		})
	}
	workers.Wait()
}

// trend is the growth of values per second, by Theil and Sen: the median of the
// slopes between any two, which no outlier moves.
func trend(times []time.Duration, values []float64) float64 {
	var slopes []float64
	for i := range values {
		for j := range i {
			slopes = append(slopes, (values[i]-values[j])/(times[i]-times[j]).Seconds())
		}
	}
	slices.Sort(slopes)
	return slopes[len(slopes)/2]
}

// memorySample is what the server has taken of memory at a time.
type memorySample struct {
	at             time.Duration
	heap, resident float64
}

// watchMemory takes samples until done is closed.
func (s *soak) watchMemory(every time.Duration, done <-chan struct{}) (samples []memorySample) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for began := time.Now(); ; {
		select {
		case <-done:
			return samples
		case <-tick.C:
			heap := s.gateway.heap(s.t, s.admin)
			samples = append(samples, memorySample{time.Since(began), heap, float64(s.gateway.memory(s.t)["VmRSS"])})
		}
	}
}

// wantFlat checks that memory has not grown over some samples by more than it
// may, however long they have taken and however many requests there were.
func (s *soak) wantFlat(samples []memorySample) {
	s.t.Helper()
	const heapNoise, residentNoise = 512 << 10, 8 << 20
	var times []time.Duration
	var heap, resident []float64
	for _, sample := range samples {
		times, heap, resident = append(times, sample.at), append(heap, sample.heap), append(resident, sample.resident)
	}
	lasted := (times[len(times)-1] - times[0]).Seconds()
	for _, memory := range []struct {
		name  string
		sizes []float64
		most  float64
	}{{"the heap", heap, heapNoise}, {"resident memory", resident, residentNoise}} {
		growth := trend(times, memory.sizes) * lasted
		s.t.Logf("%s of up to %.0f KiB has grown by %.0f KiB in %.0f s", memory.name, slices.Max(memory.sizes)/1024, growth/1024, lasted)
		if growth > memory.most {
			s.t.Errorf("%s has grown by %.0f bytes, want at most %.0f: %.0f", memory.name, growth, memory.most, memory.sizes)
		}
	}
}

// A gate that is asked everything decides as a slow model of it does, and makes no
// error of its own.
func TestReferenceModel(t *testing.T) {
	t.Parallel()
	const requests = 4000
	s := startSoak(t, false)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for s.asked.Load() < requests {
			select {
			case <-time.After(10 * time.Millisecond):
			case <-t.Context().Done():
				return
			}
		}
	}()
	s.run(done, time.Millisecond)
	s.wantRight()
}

// It does so for a long time, and keeps nothing of what it has been asked.
func TestLongSoak(t *testing.T) {
	const (
		samples  = 40
		interval = 10 * time.Millisecond // of each client
	)
	duration, err := time.ParseDuration(cmp.Or(os.Getenv("SIGNED_PLAYBACK_SOAK"), "20m"))
	if err != nil {
		t.Fatalf("SIGNED_PLAYBACK_SOAK: %v", err)
	}
	s := startSoak(t, true) // the race detector keeps memory for goroutines that have ended
	before := s.gateway.rest(t, s.admin, s.clients)
	over, done := make(chan struct{}), make(chan struct{})
	time.AfterFunc(duration, func() { close(over) })
	go func() {
		defer close(done)
		s.run(over, interval)
	}()
	taken := s.watchMemory(duration/samples, done)
	t.Logf("%d requests", s.asked.Load())
	s.wantFlat(taken[len(taken)/2:]) // the rest is to warm up
	s.wantRight()
	s.gateway.rest(t, s.admin, s.clients)
	s.gateway.wantReleased(t, s.admin, before, atRest)
}

// wantRight checks that no decision was wrong, and that all kinds were made.
func (s *soak) wantRight() {
	s.t.Helper()
	if n := len(s.wrong); n > 0 {
		s.t.Errorf("%d of %d decisions were wrong; the first:\n%s", n, s.asked.Load(), strings.Join(s.wrong[:min(n, 20)], "\n"))
	}
	if n := s.origin.leaks.Load(); n > 0 {
		s.t.Errorf("the origin was told the viewer's page %d times", n)
	}
	wanted := []verdict{plays, {Status: http.StatusNoContent}}
	for reason, status := range reasonStatus {
		wanted = append(wanted, verdict{status, reason})
	}
	for _, v := range wanted {
		if s.seen[v] == 0 {
			s.t.Errorf("%v was never the answer", v)
		}
	}
	s.t.Logf("%d requests: %v", s.asked.Load(), s.seen)
}

// S11 A server that may have little memory keeps few tokens, however many come
// that are valid: what it takes of the machine must stay within what it may have,
// for a kernel would end it for more.
func TestLongMemoryLimit(t *testing.T) {
	const (
		limit  = 64 << 20
		most   = limit / 4 // of it is for tokens
		tokens = 5000      // of nearly 8 KiB: more than there is room for, if all were kept
		size   = 5700
		slack  = 8 << 20 // the limit is that of Go's memory, and a soft one
	)
	admin := freeAddr(t)
	o := startOrigin(t, nil)
	g := start(t, o, config{
		quick:  true,
		log:    quiet,
		global: "admin " + admin,
		env:    []string{"GOMEMLIMIT=" + strconv.Itoa(limit)},
	})
	exp, padding := time.Now().Add(time.Hour).Unix(), strings.Repeat("x", size)
	var viewers sync.WaitGroup
	workers := runtime.GOMAXPROCS(0)
	for viewer := range workers {
		viewers.Go(func() {
			conn := &keepAlive{addr: g.addr}
			defer conn.close()
			for i := viewer; i < tokens; i += workers {
				payload := fmt.Sprintf(`{"sub":"demo","exp":%d,"n":%d,"padding":%q}`, exp, i, padding)
				path := segment(signRaw(privateKey(), goodHeader(), payload))
				if got := conn.exchange(t, requestFrom(path, "203.0.113.7")).verdict(); got != plays {
					t.Errorf("token %d: got %v, want %v", i, got, plays)
					return
				}
				if i%500 == 0 {
					o.take() // which keeps all requests
				}
			}
		})
	}
	viewers.Wait()
	kept := g.metric(t, admin, "token_cache_bytes")
	if kept > most || kept < most/2 {
		t.Errorf("%.0f bytes of tokens are kept, want at most %d and not much less", kept, most)
	}
	// The pages of the program itself can be dropped and read again.
	memory := g.memory(t)
	peak := memory["VmHWM"] - memory["RssFile"]
	t.Logf("%.0f MiB of tokens are kept; at its peak, the server has taken %d MiB of the %d that it may", kept/(1<<20), peak>>20, limit>>20)
	if peak > limit+slack {
		t.Errorf("the server has taken %d MiB, and may have %d", peak>>20, limit>>20)
	}
}
