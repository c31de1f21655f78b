package integration

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
)

// The config for production does what its comments say, with the names in it, over TLS
// and HTTP/1.1, 2 and 3. The test replaces only ports, addresses, paths and the
// certificate authority. TestLongPausedPlayers tests the timeouts for responses.
func TestProductionExample(t *testing.T) {
	t.Parallel() // most of it is waiting
	p := startProduction(t)
	slow := make(chan error, 1)
	go func() { slow <- drip(p.plain, "GET / HTTP/1.1\r\nX-Slow: ", "a") }()
	for _, step := range []struct {
		name  string
		check func(*testing.T)
	}{
		{"the admin socket", p.checkAdmin},
		{"viewers", p.checkViewers},
		{"plain HTTP", p.checkRedirect},
		{"strangers", p.checkStrangers},
		{"addresses", p.checkAddresses},
		{"metrics", p.checkMetrics},
		{"a sick origin", p.checkHealth},
		{"a dead origin", p.checkFailover},
		{"a header that never ends", func(t *testing.T) {
			if err := <-slow; err != nil {
				t.Error(err)
			}
		}},
		{"SIGTERM", p.checkStop},
	} {
		t.Run(step.name, step.check)
	}
	for _, want := range []string{`"signed_playback_token_id":"`, `"status":308`, `"Referer":["https://media.example.com/`} {
		if !strings.Contains(p.log.String(), want) {
			t.Errorf("the access log has no %s, so it does not show that tokens are taken out", want)
		}
	}
}

// Names of the example.
const (
	mediaName = "media.example.com"
	apiName   = "api.media.example.com"
)

// allowedSite is a header of one of the sites that may embed the videos.
const allowedSite = "Origin: https://www.example.com"

// production is a server that runs the example. 127.0.0.1 is the private network,
// 127.0.0.2 the internet, and 127.0.0.3 the load balancer.
type production struct {
	*gateway
	first, second  *pooledOrigin
	plain, metrics string // host:port of http and of the metrics
	socket         string // of the admin API
	authority      *x509.CertPool
}

func startProduction(t *testing.T) *production {
	t.Helper()
	dir := t.TempDir()
	p := &production{
		gateway: &gateway{addr: freeAddr(t), dir: dir, log: new(logBuffer)},
		first:   startPooledOrigin(t), second: startPooledOrigin(t),
		plain: freeAddr(t), metrics: freeAddr(t), socket: filepath.Join(dir, "admin.sock"),
	}
	writeFile(t, filepath.Join(dir, "Caddyfile"), []byte(p.adapt(t)))
	p.launch(t, binary(t), []string{"SIGNED_PLAYBACK_API_TOKEN=" + apiSecret, "SIGNED_PLAYBACK_GEOIP=" + testdata(t, "country.mmdb")},
		p.log, "serving initial configuration", "run", "--config", "Caddyfile")
	p.log.awaitTimes(t, "certificate obtained successfully", 2)
	root := must(os.ReadFile(filepath.Join(dir, "caddy/pki/authorities/local/root.crt")))(t)
	p.authority = x509.NewCertPool()
	p.authority.AppendCertsFromPEM(root)
	p.awaitCertificates(t)
	return p
}

// awaitCertificates waits until the server uses the certificates that it has obtained.
func (p *production) awaitCertificates(t *testing.T) {
	t.Helper()
	for _, name := range []string{mediaName, apiName} {
		eventually(t, "the certificate is in use", func() bool {
			conn, err := tls.Dial("tcp", p.addr, p.site(name).trust)
			if err == nil {
				_ = conn.Close()
			}
			return err == nil
		})
	}
}

// adapt returns the example with the test's own ports, addresses and paths.
func (p *production) adapt(t *testing.T) string {
	t.Helper()
	text := must(os.ReadFile("../examples/Caddyfile.production"))(t)
	adapted := string(text)
	for _, change := range [][2]string{
		// No public authority issues certificates for these names.
		{"email ops@example.com", "email ops@example.com\n\tlocal_certs\n\tskip_install_trust\n\tdefault_bind 127.0.0.1\n" +
			"\thttp_port " + port(p.plain) + "\n\thttps_port " + port(p.addr)},
		{"unix//run/caddy/admin.sock", "unix/" + p.socket},
		{"trusted_proxies static 10.0.0.0/8", "trusted_proxies static 127.0.0.3"},
		{"http://:9180 {", "http://:" + port(p.metrics) + " {"},
		{"10.0.1.11:8080 10.0.1.12:8080", p.first.addr() + " " + p.second.addr()},
	} {
		if strings.Count(adapted, change[0]) != 1 {
			t.Fatalf("the example does not have one %q", change[0])
		}
		adapted = strings.Replace(adapted, change[0], change[1], 1)
	}
	return adapted
}

// site returns one site of the example, for functions that take a tlsGateway.
func (p *production) site(name string) *tlsGateway {
	return &tlsGateway{p.gateway, &tls.Config{RootCAs: p.authority, ServerName: name, MinVersion: tls.VersionTLS12}}
}

// from returns a client whose requests come from an address.
func (p *production) from(t testing.TB, address, name string) *http.Client {
	t.Helper()
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}
	transport := &http.Transport{
		TLSClientConfig: p.site(name).trust,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			if strings.HasPrefix(addr, name) {
				addr = p.addr
			}
			return dialer.DialContext(ctx, network, addr)
		},
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: startTimeout}
}

func (p *production) get(t testing.TB, c *http.Client, path string, header ...string) *response {
	t.Helper()
	return send(t, c, http.MethodGet, "https://"+mediaName+path, "", header...)
}

// mintToken has the example's control API mint a token for the video demo.
func (p *production) mintToken(t testing.TB, body string) string {
	t.Helper()
	res := readAPIResponse(t, send(t, p.from(t, "127.0.0.1", apiName), http.MethodPost,
		"https://"+apiName+"/client/v4/accounts/any/stream/demo/token", body, "Authorization: Bearer "+apiSecret))
	var minted struct {
		Token string `json:"token"`
	}
	if err := json.Unmarshal(res.Result, &minted); err != nil || minted.Token == "" {
		t.Fatalf("no token was minted: %s", res.body)
	}
	return minted.Token
}

// The admin API listens on a socket that only the server's user may open, and reloads
// the config.
func (p *production) checkAdmin(t *testing.T) {
	info := must(os.Stat(p.socket))(t)
	if info.Mode().Perm()&0o077 != 0 {
		t.Errorf("the mode of the socket is %s", info.Mode())
	}
	overSocket := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", p.socket)
		},
	}}
	if got := send(t, overSocket, http.MethodGet, "http://localhost/config/apps/signed_playback/public_url", ""); !strings.Contains(string(got.body), mediaName) {
		t.Errorf("it answers with %d %q", got.StatusCode, got.body)
	}
	reload := exec.CommandContext(t.Context(), binary(t), "reload", "--config", "Caddyfile", "--force")
	reload.Dir, reload.Env = p.dir, p.cmd.Env
	if output, err := reload.CombinedOutput(); err != nil {
		t.Errorf("caddy reload: %v\n%s", err, output)
	}
	p.awaitCertificates(t)
}

func (p *production) checkViewers(t *testing.T) {
	for _, protocol := range protocols {
		t.Run(protocol.name, func(t *testing.T) {
			viewer, _ := protocol.connect(t, p.site(mediaName))
			p.checkViewer(t, viewer, protocol.name)
		})
	}
}

// checkViewer makes the requests of one viewer, over one version of HTTP.
func (p *production) checkViewer(t *testing.T, viewer *http.Client, version string) {
	if got := p.get(t, viewer, "/healthz"); got.StatusCode != http.StatusNoContent || got.Proto != version {
		t.Errorf("/healthz: status %d over %s, want 204 without a token", got.StatusCode, got.Proto)
	}
	compact := p.mintToken(t, "")
	page := "Referer: https://" + mediaName + "/" + compact + "/iframe"
	if got := p.get(t, viewer, segment(compact), allowedSite, page).verdict(); got != plays {
		t.Errorf("a token of the API on an allowed site: %v, want %v", got, plays)
	}
	p.take()
	if got := p.get(t, viewer, "/"+compact+"/iframe", "Sec-Fetch-Dest: iframe"); got.verdict() != plays || !strings.Contains(string(got.body), "<video") || len(p.take()) > 0 {
		t.Errorf("the player page: %v and %.60q", got.verdict(), got.body)
	}
	evil := p.get(t, viewer, segment(compact), "Origin: https://example.com.evil.example")
	if want := "403 origin_not_allowed"; evil.StatusCode != http.StatusForbidden || string(evil.body) != want {
		t.Errorf("on another site: status %d and %q, want %q", evil.StatusCode, evil.body, want)
	}
	if got := p.get(t, viewer, segment("demo"), allowedSite).reason(); got != "token_required" {
		t.Errorf("without a token: %q, want token_required", got)
	}
	long := p.mintToken(t, `{"accessRules":[{"type":"ip.src","action":"block","ip":["192.0.2.1"`+strings.Repeat(`,"192.0.2.1"`, 430)+`]}]}`)
	if len(long) < 7000 {
		t.Fatalf("a token of %d bytes is not long", len(long))
	}
	page = "Referer: https://" + mediaName + "/" + long + "/iframe"
	if got := p.get(t, viewer, segment(long), allowedSite, page, "Cookie: c="+strings.Repeat("c", 4000)).verdict(); got != plays {
		t.Errorf("a token of %d bytes, twice: %v, want %v", len(long), got, plays)
	}
}

// A plain HTTP request is redirected to HTTPS, and the log does not contain the token.
func (p *production) checkRedirect(t *testing.T) {
	target := segment(p.mintToken(t, ""))
	got := rawTo(t, p.plain, rawGet(target))
	if want := "https://" + mediaName + target; got.StatusCode != http.StatusPermanentRedirect || got.Header.Get("Location") != want {
		t.Errorf("got %d to %q, want 308 to %q", got.StatusCode, got.Header.Get("Location"), want)
	}
}

// Only the private network reaches the control API and the metrics.
func (p *production) checkStrangers(t *testing.T) {
	for name, url := range map[string]string{
		"control API": "https://" + apiName + "/client/v4/accounts/any/stream", "metrics": "http://" + p.metrics + "/metrics",
	} {
		req := must(http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil))(t)
		req.Header.Set("Authorization", "Bearer "+apiSecret)
		if res, err := p.from(t, "127.0.0.2", apiName).Do(req); err == nil {
			t.Errorf("the %s answers strangers with status %d", name, res.StatusCode)
			res.Body.Close()
		}
	}
}

// Only the load balancer can tell the gate the address of a viewer.
func (p *production) checkAddresses(t *testing.T) {
	target := segment(p.mintToken(t, `{"accessRules":[{"type":"ip.geoip.country","country":["GB"],"action":"allow"},{"type":"any","action":"block"}]}`))
	blocked := refusedFor("rule_blocked")
	for _, tc := range []struct {
		name, from, forwarded string
		want                  verdict
	}{
		{"in Great Britain", "127.0.0.3", "203.0.113.7", plays},
		{"in Germany", "127.0.0.3", "198.51.100.7", blocked},
		{"in Germany, and writes an address", "127.0.0.3", "203.0.113.7, 198.51.100.7", blocked},
		{"past the load balancer", "127.0.0.1", "203.0.113.7", blocked},
	} {
		if got := p.get(t, p.from(t, tc.from, mediaName), target, allowedSite, "X-Forwarded-For: "+tc.forwarded).verdict(); got != tc.want {
			t.Errorf("a viewer %s: %v, want %v", tc.name, got, tc.want)
		}
	}
}

func (p *production) checkMetrics(t *testing.T) {
	scraped := (&gateway{addr: p.metrics}).get(t, "/metrics")
	for _, want := range []string{`caddy_signed_playback_requests_total{kind="segment",reason="origin_not_allowed",result="refused"} 3`, "caddy_http_request_duration_seconds"} {
		if !strings.Contains(string(scraped.body), want) {
			t.Errorf("the metrics have no %s", want)
		}
	}
}

// spread requests 40 segments, which must all play, and returns how many requests each
// origin got.
func (p *production) spread(t *testing.T) (first, second int) {
	t.Helper()
	p.take()
	viewer, compact := p.from(t, "127.0.0.1", mediaName), p.mintToken(t, "")
	for n := range 40 {
		if got := p.get(t, viewer, fmt.Sprintf("/%s/video/%d.ts", compact, n), allowedSite).verdict(); got != plays {
			t.Errorf("segment %d: %v, want %v", n, got, plays)
		}
	}
	return len(p.first.asked()), len(p.second.asked())
}

// An origin that reports itself unhealthy gets no requests until it is healthy again.
func (p *production) checkHealth(t *testing.T) {
	var first, second int
	eventually(t, "each origin is asked for the same segments again", func() bool {
		first, second = p.spread(t)
		again, others := p.spread(t)
		return first > 0 && second > 0 && first == again && second == others && first+second == 40
	})
	p.first.sick.Store(true)
	eventually(t, "the sick origin is left out", func() bool {
		left, all := p.spread(t)
		return left == 0 && all == 40
	})
	p.first.sick.Store(false)
	eventually(t, "the origin that is well again is asked", func() bool {
		back, _ := p.spread(t)
		return back == first
	})
}

// When an origin dies, viewers do not notice.
func (p *production) checkFailover(t *testing.T) {
	p.first.server.Close()
	if _, second := p.spread(t); second != 40 {
		t.Errorf("the origin that is left was asked for %d segments, want 40", second)
	}
}

// A server that gets SIGTERM finishes its downloads, and does not wait for a paused player.
func (p *production) checkStop(t *testing.T) {
	target := "/" + p.mintToken(t, "") + "/movie.mp4"
	bodies := make(map[string]io.ReadCloser)
	begin := func(name string, viewer *http.Client) {
		req := must(http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+mediaName+target, nil))(t)
		req.Header.Set("Origin", "https://www.example.com")
		res := must(viewer.Do(req))(t)
		bodies[name] = res.Body
	}
	for _, protocol := range protocols {
		viewer, _ := protocol.connect(t, p.site(mediaName))
		begin(protocol.name, viewer)
	}
	begin("paused", p.from(t, "127.0.0.1", mediaName))
	noError(t, p.cmd.Process.Signal(syscall.SIGTERM))
	p.log.await(t, "shutting down apps")
	var all sync.WaitGroup
	for _, protocol := range protocols {
		all.Go(func() {
			if n, err := io.Copy(io.Discard, bodies[protocol.name]); n != movieBytes || err != nil {
				t.Errorf("%s: %d of %d bytes came: %v", protocol.name, n, movieBytes, err)
			}
		})
	}
	all.Wait()
	p.stop(t) // which fails if it takes too long
	bodies["paused"].Close()
}

// pooledOrigin is one of several origins of the same videos.
type pooledOrigin struct {
	*origin
	sick atomic.Bool
}

// movieBytes is larger than all buffers between origin and viewer.
const movieBytes = 24 << 20

func startPooledOrigin(t *testing.T) *pooledOrigin {
	t.Helper()
	o := new(pooledOrigin)
	o.origin = startOrigin(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/healthz":
			if o.sick.Load() {
				w.WriteHeader(http.StatusServiceUnavailable)
			}
		case "/demo/movie.mp4":
			chunk := make([]byte, 1<<20)
			for range movieBytes / len(chunk) {
				_, _ = w.Write(chunk)
			}
		default:
			_, _ = w.Write(goodSegment)
		}
	}))
	return o
}

// asked returns the targets of viewers' requests since the last call of take.
func (o *pooledOrigin) asked() (uris []string) {
	for _, uri := range o.uris() {
		if uri != "/healthz" {
			uris = append(uris, uri)
		}
	}
	return uris
}

// take returns the targets of viewers' requests to both origins, and forgets them.
func (p *production) take() (uris []string) {
	for _, o := range []*pooledOrigin{p.first, p.second} {
		uris = append(uris, o.asked()...)
		o.origin.take()
	}
	return uris
}
