package integration

import (
	"bytes"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// proxyProcess is a running `signed-playback proxy`. Its log is its standard
// error.
type proxyProcess struct {
	gateway
	printed *logBuffer
}

// startProxy runs the command in a folder of its own for its home and its
// temporary files, and waits until it has printed its URLs.
func startProxy(t testing.TB, addr string, env []string, args ...string) *proxyProcess {
	t.Helper()
	p := &proxyProcess{gateway{addr: addr, dir: t.TempDir(), log: newLogBuffer()}, newLogBuffer()}
	if err := os.Mkdir(p.temporary(), 0o700); err != nil {
		t.Fatal(err)
	}
	args = append([]string{"signed-playback", "proxy", "--from", "http://" + addr}, args...)
	p.cmd = exec.Command(binary(t), args...)
	p.cmd.Env = append(os.Environ(), "XDG_DATA_HOME="+p.dir, "XDG_CONFIG_HOME="+p.dir, "HOME="+p.dir, "TMPDIR="+p.temporary(), raceOptions)
	p.cmd.Env = append(p.cmd.Env, env...)
	p.cmd.Stdout, p.cmd.Stderr = p.printed, p.log
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.stop(t) })
	if !p.printed.await("Stop with Ctrl-C", startTimeout) {
		t.Fatalf("the gateway did not start:\n%s\n%s", p.printed, p.log)
	}
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
			t.Fatalf("the URL %q is not one of http://%s: %v", fields[1], p.addr, err)
		}
		return printed.EscapedPath()
	}
	t.Fatalf("no %s was printed:\n%s", name, p.printed)
	return ""
}

// interrupt ends the gateway as Ctrl-C does, and checks that it goes quietly.
func (p *proxyProcess) interrupt(t testing.TB) {
	t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- p.cmd.Wait() }()
	if err := await(t, ended, "the end after SIGINT"); err != nil {
		t.Errorf("it ended with %v:\n%s", err, p.log)
	}
	p.wantCleanLog(t)
}

// wantNowhere checks that no secret is in the gateway's output, in its log, or in
// a file of its folder.
func (p *proxyProcess) wantNowhere(t testing.TB, secrets ...string) {
	t.Helper()
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
	for where, text := range written {
		for _, secret := range secrets {
			if strings.Contains(text, secret) {
				t.Errorf("%s has %.12s…", where, secret)
			}
		}
	}
}

// privateForms are in every private key: as PEM, as PEM in base64, and as a JWK.
var privateForms = []string{"PRIVATE KEY", "LS0tLS1CRUdJTi", `"d":`, `"dp":`}

// The printed URL and the printed page play, and a forged token does not. Neither
// the token nor the private key is written anywhere.
func TestProxyCommand(t *testing.T) {
	o := startOrigin(t, exampleMedia())
	p := startProxy(t, freeAddr(t), nil, "--to", o.addr(), "--player", "--hls-js", hlsJS(t), "--access-log", "--debug")
	playback := p.path(t, "HLS")
	space := strings.TrimSuffix(playback, "manifest/video.m3u8")
	compact := strings.Trim(space, "/")
	sig := compact[strings.LastIndexByte(compact, '.')+1:]

	t.Run("the printed URL plays", func(t *testing.T) {
		res := p.get(t, playback)
		o.wantPassed(t, res, "/demo/manifest/video.m3u8")
		if !bytes.Contains(res.body, []byte("\nvideo-180p.m3u8")) {
			t.Fatalf("the manifest is %s", res.body)
		}
		o.wantPassed(t, p.get(t, space+"manifest/video-180p.m3u8"), "/demo/manifest/video-180p.m3u8")
		o.wantPassed(t, p.get(t, space+"ts/001.ts"), "/demo/ts/001.ts")
	})
	t.Run("a changed one does not", func(t *testing.T) {
		forged := strings.Replace(playback, sig, swapFirst(sig), 1)
		o.wantRefused(t, p.get(t, forged), http.StatusUnauthorized, "signature_invalid")
		o.wantRefused(t, p.get(t, "/demo/manifest/video.m3u8"), http.StatusUnauthorized, "token_required")
		o.wantRefused(t, p.get(t, "/"+mint(t, "demo", nil)+"/manifest/video.m3u8"), http.StatusUnauthorized, "key_unknown")
	})
	t.Run("the page plays", func(t *testing.T) {
		page := openTab(t, watchPolicy)
		page.open(t, p.url(p.path(t, "Page")))
		page.await(t, "a video that can play", isReady)
		page.wantQuiet(t)
		if script := p.get(t, space+"iframe/hls.js"); script.StatusCode != http.StatusOK || len(script.body) < 100_000 {
			t.Errorf("hls.js: %d with %d bytes", script.StatusCode, len(script.body))
		}
		o.take()
	})
	t.Run("no token in the log or at the origin", func(t *testing.T) {
		p.get(t, playback, "Referer: "+p.url(playback), "X-Original-Url: "+p.url(playback))
		for _, seen := range o.take() {
			if fields, _ := json.Marshal(seen.header); strings.Contains(seen.uri+string(fields), sig) {
				t.Errorf("the origin got the token: %s %s", seen.uri, fields)
			}
		}
		if !p.log.await("handled request", startTimeout) || !strings.Contains(p.log.String(), `"level":"debug"`) {
			t.Errorf("the log has no requests, or nothing at debug level:\n%s", p.log)
		}
	})
	t.Run("its files are gone", func(t *testing.T) {
		if left, err := os.ReadDir(p.temporary()); err != nil || len(left) != 0 {
			t.Errorf("temporary files are left: %v, %v", left, err)
		}
	})
	if !strings.Contains(p.log.String(), "in memory only") {
		t.Errorf("there is no warning that the key is in memory only:\n%s", p.log)
	}
	p.interrupt(t)
	if strings.Contains(p.log.String(), sig) {
		t.Error("the token is in the log")
	}
	p.wantNowhere(t, privateForms...)
	if listens(p.addr) {
		t.Error("something still listens")
	}
}

// swapFirst changes the first character of base64url.
func swapFirst(text string) string {
	if text[0] == 'A' {
		return "B" + text[1:]
	}
	return "A" + text[1:]
}

// With a key of the user, the printed command signs more, and the key file stays
// as it is. The gate asks an HTTPS origin by the origin's own name, below its
// path.
func TestProxyCommandWithAKey(t *testing.T) {
	hosts := make(chan string, 100)
	o := new(origin)
	o.server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		o.record(r)
		hosts <- r.Host
		http.StripPrefix("/library", exampleMedia()).ServeHTTP(w, r)
	}))
	t.Cleanup(o.server.Close)
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "roots.pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: o.server.Certificate().Raw}))
	key, output := keygen(t)
	keyFile := filepath.Join(dir, "it's my key.json")
	writeFile(t, keyFile, []byte(output))
	database, err := filepath.Abs("../testdata/country.mmdb")
	if err != nil {
		t.Fatal(err)
	}
	p := startProxy(t, freeAddr(t), []string{"SSL_CERT_FILE=" + filepath.Join(dir, "roots.pem")},
		"--to", o.server.URL+"/library", "--key", keyFile, "--sub", "demo", "--exp", "30m",
		"--allowed-origins", "*.example.com", "--geoip-database", database)
	if strings.Contains(p.log.String(), "warning:") {
		t.Errorf("it warns without need:\n%s", p.log)
	}
	const target = "/library/demo/manifest/video.m3u8"

	t.Run("the printed URL plays on the allowed sites", func(t *testing.T) {
		o.wantRefused(t, p.get(t, p.path(t, "HLS")), http.StatusForbidden, "origin_required")
		o.wantRefused(t, p.get(t, p.path(t, "HLS"), "Origin: https://example.net"), http.StatusForbidden, "origin_not_allowed")
		_, rest, _ := strings.Cut(p.printed.String(), "-H '")
		header, _, ok := strings.Cut(rest, "'")
		if !ok {
			t.Fatalf("no header was printed:\n%s", p.printed)
		}
		o.wantPassed(t, p.get(t, p.path(t, "HLS"), header), target)
		if host := await(t, hosts, "a request"); host != strings.TrimPrefix(o.server.URL, "https://") {
			t.Errorf("the origin at %s was asked as %q", o.server.URL, host)
		}
	})
	t.Run("the printed command signs more", func(t *testing.T) {
		_, rest, _ := strings.Cut(p.printed.String(), "  caddy signed-playback sign ")
		line, _, _ := strings.Cut(rest, "\n")
		signed := shell(t, dir, "caddy signed-playback sign "+line)
		below, ok := strings.CutPrefix(strings.TrimSpace(signed.stdout), p.url(""))
		if signed.code != 0 || !ok {
			t.Fatalf("%s: exit status %d: %s%s", line, signed.code, signed.stdout, signed.stderr)
		}
		o.wantPassed(t, p.get(t, below, "Origin: https://www.example.com"), target)
	})
	p.interrupt(t)
	p.wantNowhere(t, append(privateForms, key.JWK, key.PEM)...)
	if after, err := os.ReadFile(keyFile); err != nil || string(after) != output {
		t.Errorf("the key file has changed: %v", err)
	}
}

// An origin that is not there yet gets a warning, and plays once it is there.
func TestProxyCommandBeforeTheOrigin(t *testing.T) {
	addr := freeAddr(t)
	p := startProxy(t, freeAddr(t), nil, "--to", addr)
	if log := p.log.String(); !strings.Contains(log, `warning: --to "`+addr+`" does not answer`) || !strings.Contains(log, "502") {
		t.Errorf("there is no warning:\n%s", log)
	}
	if res := p.get(t, p.path(t, "HLS")); res.StatusCode != http.StatusBadGateway {
		t.Errorf("without an origin, the status is %d", res.StatusCode)
	}
	if sig := p.path(t, "HLS"); strings.Contains(p.log.String(), sig[1:strings.LastIndexByte(sig, '.')]) {
		t.Errorf("the error in the log has the token, without an access log:\n%s", p.log)
	}
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	server := &httptest.Server{Listener: listener, Config: &http.Server{Handler: exampleMedia()}}
	server.Start()
	defer server.Close()
	if res := p.get(t, p.path(t, "HLS")); res.verdict() != plays {
		t.Errorf("with an origin, the answer is %v", res.verdict())
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
	if want := fmt.Sprintf("has revoked the key %q", key.ID); got.code != 1 || got.stdout != "" || !strings.Contains(got.stderr, want) {
		t.Errorf("exit status %d, standard output %q, standard error %q; want 1, nothing and a text with %q", got.code, got.stdout, got.stderr, want)
	}
}
