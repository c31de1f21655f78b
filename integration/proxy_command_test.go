package integration

import (
	"bytes"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// proxyProcess is a running `signed-playback proxy`. Its log is its standard error.
type proxyProcess struct {
	gateway
	printed *logBuffer // standard output
}

// startProxy runs the command in a folder that also has its home and its temporary files,
// until it has printed its URLs.
func startProxy(t testing.TB, env []string, args ...string) *proxyProcess {
	t.Helper()
	p := &proxyProcess{gateway{addr: freeAddr(t), dir: t.TempDir(), log: newLogBuffer()}, newLogBuffer()}
	if err := os.Mkdir(p.temporary(), 0o700); err != nil {
		t.Fatal(err)
	}
	args = append([]string{"signed-playback", "proxy", "--from", p.url("")}, args...)
	p.launch(t, binary(t), append(env, "TMPDIR="+p.temporary()), p.printed, "Stop with Ctrl-C", args...)
	return p
}

func (p *proxyProcess) temporary() string { return filepath.Join(p.dir, "tmp") }

// path returns the path of the URL that was printed under a name.
func (p *proxyProcess) path(t testing.TB, name string) string {
	t.Helper()
	for line := range strings.Lines(p.printed.String()) {
		fields := strings.Fields(line)
		if len(fields) != 2 || fields[0] != name {
			continue
		}
		printed, err := url.Parse(fields[1])
		if err != nil || printed.Scheme != "http" || printed.Host != p.addr {
			t.Fatalf("the URL %q is not below http://%s: %v", fields[1], p.addr, err)
		}
		return printed.EscapedPath()
	}
	t.Fatalf("no %s was printed:\n%s", name, p.printed)
	return ""
}

// interrupt ends the gateway with Ctrl-C. After that, no secret is in its output, in its
// log or in a file of its folder.
func (p *proxyProcess) interrupt(t testing.TB, secrets ...string) {
	t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	p.stopped = true
	await(t, p.gone, "the end after SIGINT")
	if err := p.exit(); err != nil {
		t.Errorf("it ended with %v:\n%s", err, p.log)
	}
	p.wantCleanLog(t)
	written := map[string]string{"standard output": p.printed.String(), "standard error": p.log.String()}
	err := filepath.WalkDir(p.dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		content, err := os.ReadFile(path)
		written[path] = string(content)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	// A private key contains these: as PEM, as PEM in base64, and as a JWK.
	secrets = append(secrets, "PRIVATE KEY", "LS0tLS1CRUdJTi", `"d":`, `"dp":`)
	for where, text := range written {
		for _, secret := range secrets {
			if strings.Contains(text, secret) {
				t.Errorf("%s contains %.12s…", where, secret)
			}
		}
	}
}

// The printed URL and the printed page play, and a forged token does not. Only the
// printed URL contains the token, and nothing contains the private key.
func TestProxyCommand(t *testing.T) {
	t.Parallel()
	o := startOrigin(t, exampleMedia())
	p := startProxy(t, nil, "--to", o.addr(), "--player", "--hls-js", hlsJS(t), "--access-log", "--debug")
	playback := p.path(t, "HLS")
	compact, _, _ := strings.Cut(playback[1:], "/")
	sig := compact[strings.LastIndexByte(compact, '.')+1:]
	res := p.get(t, playback, "Referer: "+p.url(playback), "X-Original-Url: "+p.url(playback))
	if requests := o.take(); len(requests) != 1 || requests[0].uri != "/demo/manifest/video.m3u8" || !bytes.Contains(res.body, []byte("\nvideo-180p.m3u8")) {
		t.Errorf("the printed URL: %v, %s; the origin saw %v", res.verdict(), res.body, requests)
	} else if fields, _ := json.Marshal(requests[0].header); bytes.Contains(fields, []byte(sig)) {
		t.Errorf("the origin got the token: %s", fields)
	}
	forged := strings.Replace(playback, sig[:20], strings.Repeat("A", 20), 1)
	o.wantRefused(t, p.get(t, forged), http.StatusUnauthorized, "signature_invalid")
	o.wantRefused(t, p.get(t, "/"+mint(t, "demo", nil)+"/manifest/video.m3u8"), http.StatusUnauthorized, "key_unknown")

	page := openTab(t, watchPolicy)
	page.open(t, p.url(p.path(t, "Page")))
	page.await(t, "a video that can play", isReady)
	page.wantQuiet(t)
	if left, err := os.ReadDir(p.temporary()); err != nil || len(left) != 0 {
		t.Errorf("temporary files are left: %v, %v", left, err)
	}
	for _, want := range []string{"in memory only", "handled request", `"level":"debug"`} {
		if !p.log.await(want, startTimeout) {
			t.Errorf("the log does not contain %q:\n%s", want, p.log)
		}
	}
	p.interrupt(t)
	if strings.Contains(p.log.String(), sig) || listens(p.addr) {
		t.Error("the token is in the log, or something still listens")
	}
}

// With a key of yours, the printed command signs more URLs, and the key file stays as it
// is. The gate asks an HTTPS origin by the origin's own name, below its path.
func TestProxyCommandWithAKey(t *testing.T) {
	t.Parallel()
	hosts := make(chan string, 100)
	o := new(origin)
	o.server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		o.record(r)
		hosts <- r.Host
		http.StripPrefix("/library", exampleMedia()).ServeHTTP(w, r)
	}))
	t.Cleanup(o.server.Close)
	dir := t.TempDir()
	roots, keyFile := filepath.Join(dir, "roots.pem"), filepath.Join(dir, "it's my key.json")
	writeFile(t, roots, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: o.server.Certificate().Raw}))
	key, output := keygen(t)
	writeFile(t, keyFile, []byte(output))
	p := startProxy(t, []string{"SSL_CERT_FILE=" + roots}, "--to", o.server.URL+"/library", "--key", keyFile, "--sub", "demo",
		"--allowed-origins", "*.example.com", "--geoip-database", testdata(t, "country.mmdb"))
	if strings.Contains(p.log.String(), "warning:") {
		t.Errorf("it warns:\n%s", p.log)
	}
	const target = "/library/demo/manifest/video.m3u8"
	o.wantRefused(t, p.get(t, p.path(t, "HLS")), http.StatusForbidden, "origin_required")
	o.wantPassed(t, p.get(t, p.path(t, "HLS"), "Origin: https://example.com"), target)
	if host := await(t, hosts, "a request"); host != strings.TrimPrefix(o.server.URL, "https://") {
		t.Errorf("the origin at %s was asked as %q", o.server.URL, host)
	}
	_, rest, _ := strings.Cut(p.printed.String(), "  caddy signed-playback sign ")
	line, _, _ := strings.Cut(rest, "\n")
	signed := shell(t, dir, "caddy signed-playback sign "+line)
	below, ok := strings.CutPrefix(strings.TrimSpace(signed.stdout), p.url(""))
	if signed.code != 0 || !ok {
		t.Fatalf("%s: exit status %d: %s%s", line, signed.code, signed.stdout, signed.stderr)
	}
	o.wantPassed(t, p.get(t, below, "Origin: https://www.example.com"), target)
	p.interrupt(t, key.JWK, key.PEM)
	if readText(t, keyFile) != output {
		t.Error("the key file has changed")
	}
}

// URLs of a key that the control API has revoked on this machine do not play, so
// proxy prints none.
func TestProxyCommandRevokedKey(t *testing.T) {
	o := startOrigin(t, nil)
	dir := t.TempDir()
	key, output := keygen(t)
	writeFile(t, filepath.Join(dir, "key.json"), []byte(output))
	g := start(t, o, config{dir: dir, api: withAPI, keys: "key.json"})
	g.mustCall(t, http.MethodDelete, "stream/keys/"+key.ID, "", nil)
	stateHome(t, dir)
	got := execute(t, dir, "", binary(t), "signed-playback", "proxy",
		"--from", "http://"+freeAddr(t), "--to", o.addr(), "--key", "key.json")
	if want := fmt.Sprintf("has revoked the key %q", key.ID); got.code != 2 || got.stdout != "" || !strings.Contains(got.stderr, want) {
		t.Errorf("exit status %d, standard output %q, standard error %q; want 2, nothing and a text with %q", got.code, got.stdout, got.stderr, want)
	}
}
