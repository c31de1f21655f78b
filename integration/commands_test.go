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
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/signed-playback/caddy-signed-playback/token"
)

// shell runs a script in a folder, with `caddy` for the binary under test.
func shell(t testing.TB, dir, script string) outcome {
	t.Helper()
	prelude := `set -eu -o pipefail; caddy() { "$0" "$@"; }; `
	return execute(t, dir, "", tool(t, "bash"), "-c", prelude+script, binary(t))
}

// goodPayloadOf is goodPayload without a kid.
func goodPayloadOf(video string) string {
	return fmt.Sprintf(`{"sub":%q,"exp":%d}`, video, time.Now().Add(time.Hour).Unix())
}

// The attack: somebody with a token for another program of the identity provider
// plays the video that its sub names. Without audience, which permits that,
// `caddy validate` warns.
func TestIdentityProvider(t *testing.T) {
	t.Parallel()
	provider := must(token.GenerateSigningKey("provider"))(t)
	issuer := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(publicJWKS(t, provider)) })).URL
	app := "jwks_url " + issuer + "\n"
	g := start(t, startOrigin(t, exampleMedia()), config{app: app + "audience live media\nissuer " + issuer, api: withAPI})
	for audience, want := range map[string]verdict{"media": plays, "shop": refusedFor("audience_not_allowed")} {
		compact := must(token.Sign(token.Claims{
			VideoID: "demo", ExpiresAt: time.Now().Add(time.Hour), Audience: []string{audience}, Issuer: issuer,
		}, provider))(t)
		eventually(t, "the key set is read", func() bool { return g.get(t, segment(compact)).verdict() != unavailable })
		wantVerdict(t, g, "/"+compact+"/manifest/video.m3u8", want)
	}
	wantVerdict(t, g, "/"+g.mintToken(t, "demo", "")+"/manifest/video.m3u8", plays)
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "Caddyfile"), []byte("{\nsigned_playback {\n"+app+"\n}\n}\n"))
	if got := execute(t, dir, "", binary(t), "validate"); got.code != 0 || !strings.Contains(got.stderr, "jwks_url without audience") {
		t.Errorf("caddy validate: exit status %d: %s", got.code, got.stderr)
	}
}

// The attack: an operator runs a command as root beside the server, which then
// cannot read what the command has written. No command but `run` and `start` writes
// into the store, and explain says that there is no key rather than making one.
func TestCommandsWriteNothing(t *testing.T) {
	redis := startRedis(t)
	key, keys := keygen(t)
	compact := mint(t, "demo", nil)
	for _, store := range []string{"", redis.option()} {
		for _, filled := range []bool{false, true} {
			t.Run(fmt.Sprintf("%q, filled %t", store, filled), func(t *testing.T) {
				c := config{app: store, api: withAPI, dir: t.TempDir(), addr: freeAddr(t), apiAddr: freeAddr(t)}
				if filled {
					g := start(t, startOrigin(t, nil), c)
					g.edit(t, "open", `{"requireSignedURLs":false}`)
					g.mustCall(t, http.MethodPost, "stream/demo/token", "", nil)
					g.stop(t)
				}
				stateHome(t, c.dir)
				writeFile(t, filepath.Join(c.dir, "key.json"), []byte(keys))
				writeFile(t, filepath.Join(c.dir, "Caddyfile"), []byte("{\nadmin off\nsigned_playback {\n"+store+"\n}\n}\n"+
					"http://:"+port(c.addr)+" {\nsigned_playback\nrespond ok\n}\n"+
					"http://:"+port(c.apiAddr)+" {\nsigned_playback_api {\nbearer_token 0123456789abcdef0123456789abcdef\n}\n}\n"))
				before := everythingIn(t, c.dir)
				changes := redis.changes(t)
				for _, command := range []string{
					"validate", "adapt", "adapt --validate", "list-modules",
					"signed-playback explain --url http://media.example.com:" + port(c.addr) + segment(compact),
					"signed-playback explain --url http://media.example.com:" + port(c.addr) + segment("open"),
					"signed-playback explain --url http://media.example.com:" + port(c.addr) + segment("unknown"),
					"signed-playback inspect " + compact,
					"signed-playback sign --key key.json --sub demo --kid " + key.ID,
					"signed-playback keygen",
				} {
					got := execute(t, c.dir, "", binary(t), strings.Fields(command)...)
					isExplain := strings.Contains(command, "explain")
					if got.code != 0 && !isExplain {
						t.Errorf("%s: exit status %d: %s", command, got.code, got.stderr)
					}
					if noted := strings.Contains(got.stdout, "no verification keys yet"); noted != (isExplain && !filled) {
						t.Errorf("%s says that there is no key: %t\n%s%s", command, noted, got.stdout, got.stderr)
					}
					if diff := cmp.Diff(before, everythingIn(t, c.dir)); diff != "" {
						t.Fatalf("%s writes (-before +after):\n%s", command, diff)
					}
					if got := redis.changes(t); got != changes {
						t.Fatalf("%s changes Redis", command)
					}
				}
			})
		}
	}
}

// everythingIn returns what is in a folder: the mode, time and size of each file and
// folder, by path.
func everythingIn(t testing.TB, dir string) map[string]string {
	t.Helper()
	found := make(map[string]string)
	noError(t, filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		found[path] = fmt.Sprint(info.Mode(), info.ModTime(), info.Size())
		return nil
	}))
	return found
}

// changes returns how many changes Redis has made to its data, and how many keys it
// has.
func (r *redisServer) changes(t testing.TB) string {
	t.Helper()
	const field = "rdb_changes_since_last_save:"
	for line := range strings.Lines(r.do(t, "INFO", "persistence")) {
		if strings.HasPrefix(line, field) {
			return line + r.do(t, "DBSIZE")
		}
	}
	t.Fatalf("Redis does not say %s", field)
	return ""
}

// proxyProcess is a running `signed-playback proxy`. Its log is its standard error.
type proxyProcess struct {
	gateway
	printed *logBuffer // standard output
}

// startProxy runs the command in a folder that also has its home and its temporary files,
// until it has printed its URLs.
func startProxy(t testing.TB, env []string, args ...string) *proxyProcess {
	t.Helper()
	p := &proxyProcess{gateway{addr: freeAddr(t), dir: t.TempDir(), log: new(logBuffer)}, new(logBuffer)}
	noError(t, os.Mkdir(p.temporary(), 0o700))
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
	noError(t, p.cmd.Process.Signal(syscall.SIGINT))
	p.stopped = true
	await(t, p.gone, "the end after SIGINT")
	if err := p.exit(); err != nil {
		t.Errorf("it ended with %v:\n%s", err, p.log)
	}
	p.wantCleanLog(t)
	written := map[string]string{"standard output": p.printed.String(), "standard error": p.log.String()}
	noError(t, filepath.WalkDir(p.dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		content, err := os.ReadFile(path)
		written[path] = string(content)
		return err
	}))
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
	o.wantRefused(t, p.get(t, forged), "signature_invalid")
	o.wantRefused(t, p.get(t, "/"+mint(t, "demo", nil)+"/manifest/video.m3u8"), "key_unknown")

	page := openPage(t, p.url(p.path(t, "Page")), watchPolicy)
	page.await(t, "a video that can play", isReady)
	page.wantQuiet(t)
	if left, err := os.ReadDir(p.temporary()); err != nil || len(left) != 0 {
		t.Errorf("temporary files are left: %v, %v", left, err)
	}
	for _, want := range []string{"in memory only", "handled request", `"level":"debug"`} {
		p.log.await(t, want)
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
	o.wantRefused(t, p.get(t, p.path(t, "HLS")), "origin_required")
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

// explained is the output of `explain --json`, as far as these tests look at it.
type explained struct {
	Allowed bool   `json:"allowed"`
	Result  string `json:"result"`
	Reason  string `json:"reason"`
	Status  int    `json:"status"`
	Video   string `json:"video"`
	Client  string `json:"client_ip"`
	Country string `json:"country"`
	Checks  []struct {
		Check, Outcome string
	} `json:"checks"`
}

// explain runs the command in a folder. It checks that no output contains a part
// of the token, and that the exit status is that of the outcome.
func explain(t testing.TB, dir, address string, args ...string) (e explained) {
	t.Helper()
	args = append([]string{"signed-playback", "explain", "--config", "Caddyfile", "--url", address, "--json"}, args...)
	got := execute(t, dir, "", binary(t), args...)
	if err := json.Unmarshal([]byte(got.stdout), &e); err != nil {
		t.Fatalf("explain printed %q and %q: %v", got.stdout, got.stderr, err)
	}
	if (got.code == 0) != e.Allowed || got.code > 1 {
		t.Errorf("exit status %d for a request that is allowed: %t", got.code, e.Allowed)
	}
	for part := range strings.SplitSeq(address, "/") {
		if strings.Count(part, ".") == 2 && len(part) > 100 {
			wantNoPartOf(t, "the output of explain", got.stdout+got.stderr, map[string]string{"the token": part})
		}
	}
	return e
}

// stateHome makes commands use the storage in a gateway's folder.
func stateHome(t testing.TB, dir string) {
	t.Helper()
	for _, name := range []string{"HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"} {
		t.Setenv(name, dir)
	}
}

// explain runs beside the server with the same config, and predicts its answer. It reads the keys and settings of the control API in the shared store, and the
// origin gets no request. TestExplainReadsKeySetAndStore and TestExplainAddresses have more.
func TestExplainBesideTheServer(t *testing.T) {
	redis := startRedis(t)
	o := startOrigin(t, nil)
	g := start(t, o, config{
		global: trusting("127.0.0.2/32"),
		api:    withAPI,
		app:    redis.option() + "\n" + withCountries(t) + "\nvideo reported {\nreport_only rules\n}",
		site:   accessLog(t, "access.log") + "@private path /private/*\nrespond @private 403\nreverse_proxy " + o.addr(),
	})
	stateHome(t, g.dir)
	key, revoked := g.createKey(t), g.createKey(t)
	g.mustCall(t, http.MethodDelete, "stream/keys/"+revoked.ID, "", nil)
	g.edit(t, "site", `{"allowedOrigins":["example.com"]}`)
	inGB := withRules(`[{"type":"ip.geoip.country","country":["GB"],"action":"allow"},{"type":"any","action":"block"}]`)
	for _, tc := range []struct {
		name, path, origin string
		want               verdict
	}{
		{"key of the API", segment(signWith(t, key, "demo")), "", plays},
		{"revoked key", segment(signWith(t, revoked, "demo")), "", keyUnknown},
		{"origins of the API", segment(mint(t, "site", nil)), "https://evil.example", refusedFor("origin_not_allowed")},
		{"another country, report-only", segment(mint(t, "reported", inGB)), "", plays},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var header, args []string
			if tc.origin != "" {
				header, args = []string{"Origin: " + tc.origin}, []string{"--origin", tc.origin}
			}
			if got := g.get(t, tc.path, header...).verdict(); got != tc.want {
				t.Fatalf("the server answers %v, want %v", got, tc.want)
			}
			o.take()
			e := explain(t, g.dir, g.url(tc.path), args...)
			var running explained
			asked, _ := json.Marshal(map[string]string{"url": g.url(tc.path), "ip": "127.0.0.1", "origin": tc.origin})
			g.mustCall(t, http.MethodPost, "stream/explain", string(asked), &running)
			if diff := cmp.Diff(e, running); diff != "" {
				t.Errorf("the API explains it differently (-command +API):\n%s", diff)
			}
			want := explained{Allowed: tc.want == plays, Reason: tc.want.Reason, Status: tc.want.Status, Result: "refused", Client: "127.0.0.1", Country: "US"}
			if tc.want == plays {
				want.Status, want.Result = 0, "allowed"
			}
			if strings.Contains(tc.name, "report-only") {
				want.Result, want.Reason = "would_refuse", "rule_blocked"
			}
			want.Video, want.Checks = e.Video, e.Checks
			if diff := cmp.Diff(want, e); diff != "" {
				t.Errorf("(-server +explanation):\n%s", diff)
			}
			if len(e.Checks) < 6 {
				t.Errorf("only %d checks are explained", len(e.Checks))
			}
			o.wantUntouched(t)
		})
	}
	t.Run("counts of the server alone, over a reload", func(t *testing.T) {
		noError(t, g.load(readText(t, filepath.Join(g.dir, "Caddyfile"))))
		var refusals struct {
			Hours []struct{ Refused, WouldRefuse map[string]int }
		}
		g.mustCall(t, http.MethodGet, "stream/refusals", "", &refusals)
		got := make(map[string]int)
		for _, hour := range refusals.Hours {
			for reason, n := range hour.Refused {
				got[reason] += n
			}
			got["reported"] += hour.WouldRefuse["rule_blocked"]
		}
		wantEqual(t, map[string]int{"key_unknown": 1, "origin_not_allowed": 1, "reported": 1}, got, "refusals")
	})
}
