package integration

import (
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The config for production does what its comments say, on addresses of this
// machine: monitors need no token, viewers do, people are told why, Prometheus
// gets its metrics, and no log has a token.
func TestProductionExample(t *testing.T) {
	o := startOrigin(t, nil)
	site, api, metrics := freeAddr(t), freeAddr(t), freeAddr(t)
	dir := t.TempDir()
	text, err := os.ReadFile("../examples/Caddyfile.production")
	if err != nil {
		t.Fatal(err)
	}
	here := string(text)
	for _, change := range [][2]string{
		{"admin unix//run/caddy/admin.sock", "admin off\n\tdefault_bind 127.0.0.1"},
		{"https://media.example.com {", "http://" + site + " {"},
		{"https://api.media.example.com {", "http://" + api + " {"},
		{"http://:9180 {", "http://" + metrics + " {"},
		{"10.0.1.11:8080 10.0.1.12:8080", o.addr()},
	} {
		if !strings.Contains(here, change[0]) {
			t.Fatalf("the example has no %q any more", change[0])
		}
		here = strings.Replace(here, change[0], change[1], 1)
	}
	// 127.0.0.1 stands for the private network, 127.0.0.2 for the world.
	writeFile(t, filepath.Join(dir, "Caddyfile"), []byte(here))
	database, err := filepath.Abs("../testdata/country.mmdb")
	if err != nil {
		t.Fatal(err)
	}

	g := &gateway{addr: site, api: api, dir: dir, log: newLogBuffer()}
	g.cmd = exec.Command(binary(t), "run", "--config", "Caddyfile")
	g.cmd.Dir = dir
	g.cmd.Env = append(os.Environ(), "XDG_DATA_HOME="+dir, "XDG_CONFIG_HOME="+dir, "HOME="+dir, raceOptions,
		"SIGNED_PLAYBACK_API_TOKEN="+apiSecret, "SIGNED_PLAYBACK_GEOIP="+database)
	g.cmd.Stdout, g.cmd.Stderr = g.log, g.log
	g.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := g.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.stop(t) })
	if !g.log.await("serving initial configuration", startTimeout) {
		t.Fatalf("the server did not start:\n%s\n%s", here, g.log)
	}

	if got := g.get(t, "/healthz"); got.StatusCode != http.StatusNoContent {
		t.Errorf("/healthz: status %d, want 204 without a token", got.StatusCode)
	}
	compact := g.mintToken(t, "demo", "")
	if got := g.get(t, segment(compact), "Origin: https://www.example.com").verdict(); got != plays {
		t.Errorf("a token of the API on an allowed site: %v, want %v", got, plays)
	}
	evil := g.get(t, segment(compact), "Origin: https://example.com.evil.example")
	if want := "403 origin_not_allowed"; evil.StatusCode != http.StatusForbidden || string(evil.body) != want {
		t.Errorf("on another site: status %d and %q, want %q", evil.StatusCode, evil.body, want)
	}
	if got := g.get(t, segment("demo"), "Origin: https://example.com").reason(); got != "token_required" {
		t.Errorf("without a token: %q, want token_required", got)
	}
	for name, addr := range map[string]string{"control API": api, "metrics": metrics} {
		if res, err := fromOutside.Get("http://" + addr + "/metrics"); err == nil {
			t.Errorf("the %s answers strangers with status %d", name, res.StatusCode)
			res.Body.Close()
		}
	}
	scraped := (&gateway{addr: metrics}).get(t, "/metrics")
	for _, want := range []string{`caddy_signed_playback_requests_total{kind="segment",reason="origin_not_allowed",result="refused"} 1`, "caddy_http_request_duration_seconds"} {
		if !strings.Contains(string(scraped.body), want) {
			t.Errorf("the metrics have no %s", want)
		}
	}
	eventually(t, "the access log has no id of the token", func() bool {
		return strings.Contains(g.log.String(), `"signed_playback_token_id":"`)
	})
	if signature := compact[strings.LastIndexByte(compact, '.')+1:]; strings.Contains(g.log.String(), signature) {
		t.Errorf("the token is in a log:\n%s", g.log)
	}
	began := time.Now()
	g.stop(t)
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("with nobody playing, the server took %s to end", took)
	}
}

// fromOutside asks from an address that the example does not trust.
var fromOutside = &http.Client{Transport: &http.Transport{
	DialContext: (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}).DialContext,
}}
