package integration

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/signed-playback/caddy-signed-playback/token"
)

// productionExample is what operators start from.
const productionExample = "../examples/Caddyfile.production"

// productionBlock returns what the production example has within the braces
// behind a name: what it tells operators to do is what is tested.
func productionBlock(t testing.TB, name string) string {
	t.Helper()
	example := must(os.ReadFile(productionExample))(t)
	begin := regexp.MustCompile(`(?m)^(\t*)` + regexp.QuoteMeta(name) + ` \{\n`).FindSubmatchIndex(example)
	if begin == nil {
		t.Fatalf("%s has no block %s", productionExample, name)
	}
	indentation, rest := example[begin[2]:begin[3]], string(example[begin[1]:])
	block, _, ended := strings.Cut("\n"+rest, "\n"+string(indentation)+"}\n")
	if !ended {
		t.Fatalf("%s: the block %s does not end", productionExample, name)
	}
	return block
}

// logFormat is how the examples have logs written.
const logFormat = "format signed_playback"

// accessLog is a directive that has a site write its access log to a file.
func accessLog(t testing.TB, file string) string {
	t.Helper()
	return "log {\noutput file " + file + "\n" + logFormat + "\n}\n"
}

// collector is an OpenTelemetry collector that keeps the bytes that it gets.
type collector struct {
	*httptest.Server
	received *logBuffer
}

func startCollector(t testing.TB) *collector {
	t.Helper()
	c := &collector{received: new(logBuffer)}
	c.Server = serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if encoding := r.Header.Get("Content-Encoding"); encoding != "" {
			t.Errorf("spans come in %s, so nothing would be found in them", encoding)
		}
		_, _ = io.Copy(c.received, r.Body)
		w.Header().Set("Content-Type", "application/x-protobuf")
	}))
	return c
}

// environment has a gateway send its spans here, each as soon as it has ended.
func (c *collector) environment() []string {
	return []string{
		"OTEL_EXPORTER_OTLP_ENDPOINT=" + c.URL, "OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf", "OTEL_TRACES_EXPORTER=otlp",
		"OTEL_BSP_SCHEDULE_DELAY=50", "OTEL_PROPAGATORS=tracecontext,baggage",
	}
}

// monitor returns what clients send to the server from now on.
func (r *redisServer) monitor(t testing.TB) *logBuffer {
	t.Helper()
	conn := must(net.Dial("tcp", r.addr))(t)
	sent, ended := new(logBuffer), make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = io.Copy(sent, conn)
	}()
	t.Cleanup(func() {
		conn.Close()
		<-ended
	})
	must(io.WriteString(conn, "MONITOR\r\n"))(t)
	sent.await(t, "+OK")
	return sent
}

// faultyOrigin serves media, and fails as its path says.
type faultyOrigin struct {
	held    chan struct{} // one for each request for /held
	release chan struct{} // ends them
}

func (f *faultyOrigin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch name := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]; name {
	case "inside":
		http.Redirect(w, r, "/demo/video/1.ts", http.StatusFound)
	case "outside":
		http.Redirect(w, r, "https://elsewhere.example.com/", http.StatusFound)
	case "404", "502":
		w.WriteHeader(map[string]int{"404": 404, "502": 502}[name])
		fmt.Fprintf(w, "<p>%s at %s?%s with %v</p>", name, r.URL.Path, r.URL.RawQuery, r.Header)
	case "cut":
		w.Header().Set("Content-Length", "100000")
		_, _ = w.Write(make([]byte, 5000))
		panic(http.ErrAbortHandler)
	case "reset":
		panic(http.ErrAbortHandler)
	case "broken.m3u8":
		_, _ = io.WriteString(w, "no playlist")
	case "video.m3u8":
		_, _ = io.WriteString(w, "#EXTM3U\n#EXTINF:4,\n/demo/video/1.ts\n")
	case "held":
		f.held <- struct{}{}
		select {
		case <-f.release:
		case <-r.Context().Done():
		}
	default:
		_, _ = w.Write(make([]byte, 10_000))
	}
}

// plant is what must not be found, by its name.
type plant map[string]string

// token plants a token's signature, which is what makes it one.
func (p plant) token(name, compact string) (path string) {
	p["the signature of the "+name] = compact[strings.LastIndexByte(compact, '.')+1:]
	return "/" + compact
}

func (p plant) key(t testing.TB, name string, key apiKey) {
	t.Helper()
	for part, secret := range key.privateText(t) {
		p[part+" of "+name] = secret
	}
}

// guarded is a gateway of which every sink is watched.
type guarded struct {
	*tlsGateway
	t         *testing.T
	origin    *origin
	faults    *faultyOrigin
	collector *collector
	monitor   *logBuffer
	mounted   *gateway
	secrets   plant
	tokens    map[string]string // paths of tokens, by what they are
	credited  string            // header lines of the API's owner
	answers   *logBuffer        // bodies that viewers got
}

const guardedSite = `
	log {
		output file access.log
		format signed_playback
	}
	tracing {
		span_attributes {
			video {http.signed_playback.video}
		}
	}
	respond /healthz 204
	reverse_proxy /dead/* 127.0.0.1:1
	reverse_proxy %[1]s
	handle_errors {
		respond "{err.status_code} {err.message} {http.signed_playback.reason} {http.signed_playback.token_id}"
	}`

// guardedSites are a gate below a path, in front of a file server, a site that
// redirects to the gate, and the control API.
const guardedSites = `
http://%[1]s {
	log {
		output file mounted.log
		format signed_playback
	}
	handle_path /play/* {
		tracing
		signed_playback
		reverse_proxy %[2]s
	}
	handle /strip/* {
		uri strip_prefix /strip
		signed_playback {
			enforce off
		}
		reverse_proxy %[2]s
	}
	handle_path /files/* {
		signed_playback
		root files
		file_server browse
	}
	handle {
		redir https://localhost{uri}
	}
}

http://%[3]s {
	log {
		output file api.log
		format signed_playback
	}
	signed_playback_api {
		bearer_token {env.API_BEARER}
		auth_key owner@example.com {env.API_KEY}
	}
}
`

// startGuarded starts a gateway with all that can tell: debug level, access
// logs, traces, metrics, the admin API and an error page.
func startGuarded(t *testing.T) *guarded {
	t.Helper()
	dir := t.TempDir()
	for _, folder := range []string{"files/demo/folder", "files/demo/indexed"} {
		noError(t, os.MkdirAll(filepath.Join(dir, folder), 0o700))
	}
	writeFile(t, filepath.Join(dir, "files/demo/x.ts"), make([]byte, 1000))
	writeFile(t, filepath.Join(dir, "files/demo/indexed/index.html"), []byte("<p>indexed</p>"))

	redis := startRedis(t)
	s := &guarded{
		t: t, faults: &faultyOrigin{make(chan struct{}, 1), make(chan struct{})}, collector: startCollector(t), monitor: redis.monitor(t),
		mounted: &gateway{addr: freeAddr(t)}, secrets: make(plant), tokens: make(map[string]string), answers: new(logBuffer),
	}
	s.origin = startOrigin(t, s.faults)
	fileKey, output := keygen(t, "--kid", "of-a-file")
	writeFile(t, filepath.Join(dir, "file-key.json"), []byte(output))
	s.secrets.key(t, "the key file", apiKey{ID: fileKey.ID, PEM: fileKey.PEM, JWK: fileKey.JWK})
	bearer, authKey := rand.Text(), rand.Text()
	s.secrets["the bearer token"], s.secrets["the auth key"] = bearer, authKey
	s.credited = "Authorization: Bearer " + bearer

	c := config{
		dir: dir, addr: freeAddr(t), apiAddr: freeAddr(t), keys: "main.jwks.json file-key.json",
		global: "metrics\nservers {\ntrusted_proxies static 127.0.0.2\n}",
		app:    redis.option() + "\n" + withCountries(t) + "\npublic_url https://media.example.com",
		gate:   "player", site: fmt.Sprintf(guardedSite, s.origin.addr()),
		env: append(s.collector.environment(), "API_BEARER="+bearer, "API_KEY="+authKey),
	}
	c.sites = fmt.Sprintf(guardedSites, s.mounted.addr, s.origin.addr(), c.apiAddr)
	s.tlsGateway = startTLS(t, s.origin, c)
	s.plantTokens(fileKey)
	return s
}

// plantTokens makes tokens of every sort that viewers come with.
func (s *guarded) plantTokens(fileKey generatedKey) {
	s.t.Helper()
	add := func(name, compact string) { s.tokens[name] = s.secrets.token(name, compact) }
	good := mint(s.t, "demo", func(c *token.Claims) { c.NotBefore = time.Now().Add(-time.Minute) })
	add("good token", good)
	add("dead token", mint(s.t, "dead", nil))
	add("blocked token", mint(s.t, "demo", withRules(`[{"type":"any","action":"block"}]`)))
	add("expired token", mint(s.t, "demo", func(c *token.Claims) { c.ExpiresAt = time.Now().Add(-time.Minute) }))
	add("downloadable token", mint(s.t, "demo", func(c *token.Claims) { c.Downloadable = true }))
	add("token of the key file", signWith(s.t, apiKey{ID: fileKey.ID, PEM: fileKey.PEM}, "demo"))
	add("token of a stranger", strings.TrimPrefix(strings.TrimSuffix(stranger(), "/video/1.ts"), "/"))
	signature := make([]byte, 256)
	_, _ = rand.Read(signature)
	add("forged token", b64(goodHeader())+"."+b64(goodPayload("demo"))+"."+b64(string(signature)))
	garbage := make([]byte, 700)
	_, _ = rand.Read(garbage)
	add("garbage", b64(string(garbage[:40]))+"."+b64(string(garbage[40:400]))+"."+b64(string(garbage[400:])))
	// Spellings that the gate refuses, and that a finder could repair.
	s.tokens["padded token"] = "/" + good + "=="
	s.tokens["escaped token"] = "/" + percentEscaped(good)
	s.tokens["token that is cut"] = "/" + good[:len(good)-50]
	s.tokens["token behind a video id"] = "/demo" + "/" + good
	s.tokens["token in a query"] = "/demo/video/1.ts?token=" + good + "&x="
}

func percentEscaped(text string) string {
	var escaped strings.Builder
	for i := range len(text) {
		fmt.Fprintf(&escaped, "%%%02X", text[i])
	}
	return escaped.String()
}

// request is one that a viewer makes.
func (s *guarded) request(c *http.Client, base, method, path string, header ...string) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), startTimeout)
	defer cancel()
	req := must(http.NewRequestWithContext(ctx, method, base, nil))(s.t)
	req.URL.Opaque = "//" + req.URL.Host + path // as it is
	for _, line := range header {
		name, value, _ := strings.Cut(line, ": ")
		req.Header.Add(name, value)
	}
	res, err := c.Do(req)
	if err != nil {
		return // as the origin's faults make it
	}
	defer res.Body.Close()
	_, _ = io.Copy(s.answers, res.Body)
}

// visit has viewers come by every version of HTTP, with every token and to every
// place.
func (s *guarded) visit() {
	s.t.Helper()
	base := s.url("")
	good := s.tokens["good token"]
	for _, protocol := range protocols {
		c, _ := protocol.connect(s.t, s.tlsGateway)
		c.Timeout = startTimeout
		c.CheckRedirect = client.CheckRedirect
		for _, path := range s.tokens {
			referer := "Referer: " + base + path + "/iframe"
			s.request(c, base, http.MethodGet, path+"/video/1.ts", referer, "Range: bytes=0-99")
			s.request(c, base, http.MethodHead, path+"/manifest/video.m3u8", referer, "Origin: "+base+path)
			s.request(c, base, http.MethodGet, path, "X-Original-Url: "+path, "X-Forwarded-Uri: "+path, "X-Own: "+path[1:])
			s.request(c, base, http.MethodPost, path+"/video/1.ts", referer)
			s.request(c, base, http.MethodOptions, path+"/video/1.ts", "Origin: https://example.com", "Access-Control-Request-Method: GET")
		}
		for _, name := range []string{
			"inside", "outside", "404", "502", "cut", "reset", "broken.m3u8", "manifest/video.m3u8", "downloads/default.mp4", "../x", "a%2fb",
			"video/1.ts?token=" + strings.TrimPrefix(s.tokens["expired token"], "/")[:100],
		} {
			s.request(c, base, http.MethodGet, good+"/"+name, "Referer: "+base+good+"/iframe")
		}
		s.request(c, base, http.MethodGet, s.tokens["dead token"]+"/video/1.ts")
		s.request(c, base, http.MethodGet, s.tokens["downloadable token"]+"/downloads/default.mp4?filename=x")
		s.request(c, base, http.MethodGet, "/healthz", "Referer: "+base+good, "Cookie: token="+good)
		s.request(c, base, http.MethodGet, "/demo/video/1.ts", "Authorization: Bearer "+good[1:])
	}
	s.visitMounts()
	s.leaveEarly()
}

// visitMounts has viewers come to gates below paths, and to a redirect.
func (s *guarded) visitMounts() {
	s.t.Helper()
	base := "http://" + s.mounted.addr
	for _, path := range s.tokens {
		for _, place := range []string{
			"/play%s/video/1.ts", "/play%s/inside", "/play%s/../x", "/files%s/x.ts", "/files%s/folder", "/files%s/indexed", "/files%s/none", "%s", "%s//x",
		} {
			s.request(client, base, http.MethodGet, fmt.Sprintf(place, path), "Referer: "+base+path+"/iframe")
		}
		if !strings.HasPrefix(path, "/demo") { // where the gate that refuses nothing passes on what is no token of its own
			s.request(client, base, http.MethodGet, "/strip"+path+"/video/1.ts")
		}
	}
	for _, path := range s.tokens {
		for _, addr := range []string{s.addr, s.mounted.addr} {
			conn := must(net.Dial("tcp", addr))(s.t) // HTTP to a port of TLS, and a malformed request
			_ = conn.SetDeadline(time.Now().Add(startTimeout))
			_, _ = io.WriteString(conn, "GET "+path+"/video/1.ts HTTP/1.1\r\nHost: localhost\r\nBad Header: "+path+"\r\n\r\n")
			_, _ = io.Copy(s.answers, conn)
			conn.Close()
		}
	}
}

// leaveEarly has a client go away while the origin takes its time. Meanwhile the
// profiles of the server show its request.
func (s *guarded) leaveEarly() {
	s.t.Helper()
	ctx, leave := context.WithCancel(s.t.Context())
	defer leave()
	c, _ := connectTCP(s.t, s.tlsGateway, true)
	req := must(http.NewRequestWithContext(ctx, http.MethodGet, s.url(s.tokens["good token"]+"/held"), nil))(s.t)
	left := make(chan struct{})
	go func() {
		defer close(left)
		if res, err := c.Do(req); err == nil {
			res.Body.Close()
		}
	}()
	await(s.t, s.faults.held, "the request that the origin holds")
	s.wantNothingIn("the admin API", s.askAdmin(), "reverse_proxy", "caddy_signed_playback_requests_total", "goroutine profile", "memstats")
	leave()
	<-left
	close(s.faults.release)
}

// askAdmin returns what the admin API tells.
func (s *guarded) askAdmin() string {
	s.t.Helper()
	var all strings.Builder
	for _, path := range []string{
		"/config/", "/metrics", "/reverse_proxy/upstreams", "/debug/vars", "/debug/pprof/cmdline",
		"/debug/pprof/goroutine?debug=1", "/debug/pprof/goroutine?debug=2", "/debug/pprof/heap?debug=1", "/debug/pprof/allocs?debug=1",
	} {
		answer := send(s.t, client, http.MethodGet, "http://"+s.admin+path, "")
		if all.Write(answer.body); answer.StatusCode != http.StatusOK {
			s.t.Errorf("%s of the admin API: %d", path, answer.StatusCode)
		}
	}
	return all.String()
}

// callAPI makes and revokes keys, mints tokens, which play, and does all of it
// wrong.
func (s *guarded) callAPI() {
	s.t.Helper()
	created := readAPIResponse(s.t, s.onAPI().raw(s.t, s.apiRequest(http.MethodPost, ofAccount("stream/keys"), "", s.credited)))
	var key apiKey
	if err := json.Unmarshal(created.Result, &key); err != nil {
		s.t.Fatalf("%s: %v", created.body, err)
	}
	s.secrets.key(s.t, "a key of the API", key)
	s.tokens["token of a key of the API"] = s.secrets.token("token of a key of the API", signWith(s.t, key, "demo"))
	var minted struct {
		Token string `json:"token"`
	}
	answer := readAPIResponse(s.t, s.onAPI().raw(s.t, s.apiRequest(http.MethodPost, ofAccount("stream/demo/token"), "", s.credited)))
	if err := json.Unmarshal(answer.Result, &minted); err != nil {
		s.t.Fatalf("%s: %v", answer.body, err)
	}
	s.tokens["token of the gateway"] = s.secrets.token("token of the gateway", minted.Token)
	asKey := "X-Auth-Email: owner@example.com\r\nX-Auth-Key: " + s.secrets["the auth key"]
	callEverything(s.t, s.gateway, key, asKey)
	for _, header := range []string{
		s.credited + "x", "authorization: Basic " + s.secrets["the bearer token"], "X-Auth-Key: " + s.secrets["the auth key"],
		asKey + "\r\n" + asKey, s.credited + "\r\n" + asKey, "X-Auth-User-Service-Key: " + s.secrets["the auth key"],
		"Authorization: Bearer " + minted.Token, "Referer: https://media.example.com/" + minted.Token,
	} {
		s.onAPI().raw(s.t, s.apiRequest(http.MethodGet, ofAccount("stream/keys"), "", header))
	}
}

// ownKey returns the private key of the gateway itself, as it is on its way to
// the store.
func (s *guarded) ownKey() (pem string) {
	s.t.Helper()
	for line := range strings.Lines(s.monitor.String()) {
		if found := regexp.MustCompile(`pem[\\"]+:[\\"]+([A-Za-z0-9+/=]{500,})`).FindStringSubmatch(line); found != nil {
			return found[1]
		}
	}
	s.t.Fatal("the gateway's own key is not in the store")
	return ""
}

// wantNothingIn checks that a sink holds no secret, as it is or escaped, and that
// it is one: the texts are what it must hold.
func (s *guarded) wantNothingIn(sink, text string, texts ...string) {
	s.t.Helper()
	for _, want := range texts {
		if !strings.Contains(text, want) {
			s.t.Errorf("%s: it does not hold %q, so it cannot hold a secret with it: %.1000s", sink, want, text)
		}
	}
	plain := text
	for range 2 {
		wantNoPartOf(s.t, sink, plain, s.secrets)
		plain = percentEscape.ReplaceAllStringFunc(plain, func(escape string) string {
			decoded, _ := url.PathUnescape(escape)
			return decoded
		})
	}
}

var percentEscape = regexp.MustCompile(`%[0-9A-Fa-f]{2}`)

// No token, no credential and no private key gets into a log, a trace, a metric,
// an error page, the admin API, the origin or the store, whatever goes well or
// wrong (threats 1.9). What is written to is set up as the production example
// has it.
func TestSecretsStayOutOfEverySink(t *testing.T) {
	t.Parallel()
	s := startGuarded(t)
	s.callAPI()
	s.visit()
	seen := s.origin.take()
	var asked strings.Builder
	for _, r := range seen {
		fmt.Fprintf(&asked, "%s %s %v %s\n", r.method, r.uri, r.header, r.body)
	}
	list := s.onAPI().raw(t, s.apiRequest(http.MethodGet, ofAccount("stream/keys"), "", s.credited))
	s.wantNothingIn("the list of keys", string(list.body), `"key_id":`)
	s.collector.received.await(t, "/held") // the span of the last request
	s.stop(t)                              // which flushes logs and spans

	pem := s.ownKey()
	text := must(base64.StdEncoding.DecodeString(pem))(t)
	inStore := maps.Clone(s.secrets)
	s.secrets["the gateway's own key"], s.secrets["the text of the gateway's own key"] = pem[len(pem)/2:len(pem)-80], string(text[len(text)/2:len(text)-80])

	id := idOf(s.tokens["good token"])
	s.wantNothingIn("the output", s.log.String(), "upstream roundtrip", "token_malformed: ", "/"+id+"/video/1.ts", "aborting with incomplete response",
		"rewrote request", "redirecting to canonical URI", "would refuse: token_expired")
	s.wantNothingIn("the spans", s.collector.received.String(), "url.path", "/"+id+"/video/1.ts", "demo")
	s.wantNothingIn("the origin", asked.String(), "/demo/video/1.ts", "/demo/inside", "Range:[bytes=0-99]")
	s.wantNothingIn("bodies for viewers", s.answers.String(), "401 token_expired: token: expired token_expired "+idOf(s.tokens["expired token"]), "502")
	for _, name := range []string{"access.log", "mounted.log", "api.log"} {
		content := must(os.ReadFile(filepath.Join(s.dir, name)))(t)
		s.wantNothingIn(name, string(content), "handled request", `"status":401`)
		if name != "api.log" {
			s.wantNothingIn(name, string(content), `"uri":"`, "/"+id+"/video/1.ts", "/"+id+"/iframe")
		}
	}
	config := must(os.ReadFile(s.storage("autosave.json")))(t)
	s.wantNothingIn("the saved config", string(config), "{env.API_BEARER}")
	s.secrets = inStore
	s.wantNothingIn("the commands to Redis", s.monitor.String(), `"EVAL"`, "signed_playback", "kty")
	files := tree(t, s.storage())
	s.wantNothingIn("the storage", strings.Join(slices.Collect(maps.Values(files)), "\n"), "signed_playback")
}

// idOf is the id of the token that a path consists of, as logs have it.
func idOf(path string) string {
	digest := sha256.Sum256([]byte(strings.TrimPrefix(path, "/")))
	return hex.EncodeToString(digest[:8])
}
