package integration

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
)

// startTimeout is how long tests wait for something that has to happen. It is long, because
// machines may be busy, and the race detector makes servers slow.
const startTimeout = 2 * time.Minute

// raceOptions, in the environment, saves the second for which a race-enabled
// program otherwise lingers at its end.
const raceOptions = "GORACE=atexit_sleep_ms=0 exitcode=0"

// gateway is a running binary.
type gateway struct {
	addr  string // host:port of the site
	api   string // host:port of the control API, if there is one
	admin string // host:port of the admin API
	dir   string // its working folder, with keys, Caddyfile and storage
	log   *logBuffer
	cmd   *exec.Cmd

	gone    chan struct{} // closed when the program has ended
	exit    func() error  // waits for that
	stopped bool          // by the test, which has checked the log
}

// binary returns the path of the binary under test.
func binary(t testing.TB) string { return builtBinary(t, "caddy-race") }

// builtBinary returns the path of one of the binaries that make builds, unless the
// environment names another one.
func builtBinary(t testing.TB, name string) string {
	t.Helper()
	path := must(filepath.Abs(cmp.Or(os.Getenv("SIGNED_PLAYBACK_BINARY"), "../bin/"+name)))(t)
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("no binary to test: %v; `make bin/%s` builds it", err, name)
	}
	return path
}

// config is what the Caddyfile of a gateway is made of.
type config struct {
	global string // more global options
	log    string // options of the log; default: debug level, on standard error
	quick  bool   // whether it runs without the race detector, for a test that depends on speed or memory
	app    string // options of the global signed_playback block
	keys   string // what its key_file names; default: the public half of signingKey
	gate   string // options of the directive
	site   string // more directives of the site; default: a reverse_proxy to the origin
	listen string // the site's address; default: http://, on a free port, for any host
	env    []string
	sites  string // more site blocks
	api    string // options of signed_playback_api, on a site of its own; default: no API

	// For a server that comes back after it was killed; default: new ones.
	dir, addr, apiAddr string
}

// start runs the binary with the key of signingKey, in front of an origin. It
// is stopped with the test, which fails if the server panicked or raced.
func start(t testing.TB, o *origin, c config) *gateway {
	t.Helper()
	g := &gateway{addr: c.addr, api: c.apiAddr, admin: freeAddr(t), dir: c.dir, log: new(logBuffer)}
	if g.dir == "" {
		g.dir = t.TempDir()
	}
	if g.addr == "" {
		g.addr = freeAddr(t)
	}
	if c.api != "" && g.api == "" {
		g.api = freeAddr(t)
	}
	writeFile(t, filepath.Join(g.dir, "main.jwks.json"), publicJWKS(t, signingKey()))
	writeFile(t, filepath.Join(g.dir, "Caddyfile"), []byte(g.caddyfile(t, o, c)))

	program := "caddy-race"
	if c.quick {
		program = "caddy"
	}
	g.launch(t, builtBinary(t, program), c.env, g.log, "serving initial configuration", "run", "--config", "Caddyfile")
	return g
}

// launch runs a program in the gateway's folder, which is also its home, until it has
// printed a text. The program is stopped with the test.
func (g *gateway) launch(t testing.TB, program string, env []string, stdout *logBuffer, ready string, args ...string) {
	t.Helper()
	g.cmd = exec.Command(program, args...)
	g.cmd.Dir = g.dir
	g.cmd.Env = append(os.Environ(), "XDG_DATA_HOME="+g.dir, "XDG_CONFIG_HOME="+g.dir, "HOME="+g.dir, raceOptions)
	g.cmd.Env = append(g.cmd.Env, env...)
	g.cmd.Stdout, g.cmd.Stderr = stdout, g.log
	noError(t, g.cmd.Start())
	gone, exit := make(chan struct{}), error(nil)
	go func() {
		defer close(gone)
		exit = g.cmd.Wait()
	}()
	g.gone, g.exit = gone, func() error { <-gone; return exit }
	t.Cleanup(func() { g.stop(t) })
	eventually(t, strings.Join(args, " ")+" is ready", func() bool {
		select {
		case <-gone:
			t.Fatalf("%s %s has ended: %v\n%s", filepath.Base(program), args, exit, g.log)
		default:
		}
		return strings.Contains(stdout.String(), ready)
	})
}

func (g *gateway) caddyfile(t testing.TB, o *origin, c config) string {
	t.Helper()
	if c.listen == "" {
		c.listen = "http://"
	}
	if c.keys == "" {
		c.keys = "main.jwks.json"
	}
	if c.api != "" {
		c.sites += fmt.Sprintf("\nhttp://%s {\n\tsigned_playback_api {\n\t\t%s\n\t}\n}\n", g.api, c.api)
	}
	if c.site == "" {
		c.site = "reverse_proxy " + o.addr()
	}
	app, gate := fmt.Sprintf("signed_playback {\nkey_file %s\n%s\n}", c.keys, c.app), "signed_playback {\n"+c.gate+"\n}"
	return fmt.Sprintf(`{
	admin %s
	debug
	skip_install_trust
	auto_https disable_redirects
	default_bind 127.0.0.1
	log {
		%s
		%s
	}
	%s
	%s
}

%s:%s {
	%s
	%s
}

%s
`, g.admin, logFormat, c.log, c.global, app, c.listen, port(g.addr), gate, c.site, c.sites)
}

// kill ends the server as a power cut would, and checks its log.
func (g *gateway) kill(t testing.TB) {
	t.Helper()
	g.stopped = true
	_ = g.cmd.Process.Kill()
	_ = g.exit()
	g.wantCleanLog(t)
}

// stop ends the server and checks its log.
func (g *gateway) stop(t testing.TB) {
	t.Helper()
	if g.stopped {
		return
	}
	g.stopped = true
	_ = g.cmd.Process.Signal(syscall.SIGTERM)
	timer := time.AfterFunc(startTimeout, func() { _ = g.cmd.Process.Kill() })
	err := g.exit()
	timer.Stop()
	if err != nil {
		t.Errorf("the server ended with %v:\n%s", err, g.log)
	}
	g.wantCleanLog(t)
}

// wantCleanLog checks the log of a server that has ended.
func (g *gateway) wantCleanLog(t testing.TB) {
	t.Helper()
	if strings.Contains(g.log.String(), "panic") {
		t.Errorf("the server panicked:\n%s", g.log)
	}
	g.wantNoSecrets(t)
	for _, race := range g.races() {
		t.Errorf("data race:\n%s", race)
	}
}

// secret is what must not be in a log, whatever a test does: a token, a private
// key, a credential of the control API.
var secret = regexp.MustCompile(`\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]{32,}|PRIVATE KEY|"d"\s*:\s*"[\w-]{16,}|` + apiSecret + `|` + apiKeyOf)

// wantNoSecrets looks for secrets in all that the server has logged, at debug
// level (threats 1.9). TestSecretsStayOutOfEverySink knows more sinks, and each
// secret by its name.
func (g *gateway) wantNoSecrets(t testing.TB) {
	t.Helper()
	logs := must(filepath.Glob(filepath.Join(g.dir, "*.log")))(t)
	texts := map[string]string{"the server's output": g.log.String()}
	for _, name := range logs {
		text := must(os.ReadFile(name))(t)
		texts[name] = string(text)
	}
	for name, text := range texts {
		text = strings.NewReplacer("%2E", ".", "%2e", ".", `\"`, `"`).Replace(text)
		if at := secret.FindStringIndex(text); at != nil {
			t.Errorf("%s holds a secret:\n%s", name, text[max(at[0]-500, 0):min(at[1]+500, len(text))])
		}
	}
}

// races returns the reports of the race detector in which this project's code
// takes part. Caddy has races of its own: it accepts HTTP/3 connections before
// its TLS app has started.
func (g *gateway) races() (reports []string) {
	for report := range strings.SplitSeq(g.log.String(), strings.Repeat("=", 18)) {
		if strings.Contains(report, "DATA RACE") && strings.Contains(report, "signed-playback/caddy-signed-playback") {
			reports = append(reports, report)
		}
	}
	return reports
}

// url returns an address on the gateway.
func (g *gateway) url(path string) string { return "http://" + g.addr + path }

// client follows no redirects and keeps no cookies; it sends what it is given.
var client = &http.Client{
	Timeout:       30 * time.Second,
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

// get asks the gateway for a path, with header fields as "Name: value".
func (g *gateway) get(t testing.TB, path string, header ...string) *response {
	t.Helper()
	return send(t, client, http.MethodGet, g.url(path), "", header...)
}

// send sends a request, with header fields as "Name: value".
func send(t testing.TB, c *http.Client, method, url, body string, header ...string) *response {
	t.Helper()
	req := must(http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body)))(t)
	for _, line := range header {
		name, value, _ := strings.Cut(line, ": ")
		req.Header.Add(name, value)
	}
	res := must(c.Do(req))(t)
	return readResponse(t, res)
}

// raw sends bytes as they are, which no HTTP client would, and reads one
// response.
func (g *gateway) raw(t testing.TB, request string) *response {
	t.Helper()
	return rawTo(t, g.addr, request)
}

func rawTo(t testing.TB, addr, request string) *response {
	t.Helper()
	conn := must(net.Dial("tcp", addr))(t)
	defer conn.Close()
	return rawOn(t, conn, request)
}

// rawOn sends bytes on a connection and reads one response.
func rawOn(t testing.TB, conn net.Conn, request string) *response {
	t.Helper()
	_ = conn.SetDeadline(time.Now().Add(startTimeout))
	must(io.WriteString(conn, request))(t)
	method, _, _ := strings.Cut(request, " ")
	res, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	if err != nil {
		t.Fatalf("reading the response to %.200q: %v", request, err)
	}
	return readResponse(t, res)
}

// rawGet is the request for a target as an HTTP client would not write it.
func rawGet(target string, header ...string) string {
	lines := append([]string{"GET " + target + " HTTP/1.1", "Host: media.example.com", "Connection: close"}, header...)
	return strings.Join(lines, "\r\n") + "\r\n\r\n"
}

// response is a response with its body read.
type response struct {
	*http.Response
	body []byte
}

func readResponse(t testing.TB, res *http.Response) *response {
	t.Helper()
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatalf("reading the body: %v", err)
	}
	return &response{res, body}
}

func (r *response) reason() string { return r.Header.Get("Signed-Playback-Reason") }

// Tests use ports below those that systems give to connections, from a random start.
const (
	firstPort = 10_000
	ports     = 20_000
)

var (
	nextPort = func() *atomic.Int64 {
		counter := new(atomic.Int64)
		counter.Store(rand.Int64N(ports))
		return counter
	}()
	reserved sync.Map // listeners that reserve a port, by their names
)

// freeAddr returns an address on loopback on which nothing listens, a new one each time.
// Until this process ends, other runs of the tests on this machine do not get it.
func freeAddr(t testing.TB) string {
	t.Helper()
	for range ports {
		addr := fmt.Sprintf("127.0.0.1:%d", firstPort+nextPort.Add(1)%ports)
		reservation, err := net.Listen("unix", "@signed-playback-tests-"+addr) // abstract, so it leaves no file
		if err != nil {
			continue
		}
		if listener, err := net.Listen("tcp", addr); err == nil {
			listener.Close()
			reserved.Store(addr, reservation)
			return addr
		}
		reservation.Close()
	}
	t.Fatal("no port is free")
	return ""
}

// eventually polls until done reports true, and fails the test if that takes too long. Use it
// for events that nothing announces.
func eventually(t testing.TB, what string, done func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(startTimeout); !done(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("waited %s in vain: %s", startTimeout, what)
		}
	}
}

// tool returns the path of a program that a test needs.
func tool(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("this test needs %s: integration/install-tools.sh installs it, or says what to install", name)
	}
	return path
}

// runBeside runs a program in a folder until the test ends.
func runBeside(t testing.TB, dir string, env []string, program ...string) {
	t.Helper()
	output := new(logBuffer)
	cmd := exec.Command(program[0], program[1:]...)
	cmd.Dir, cmd.Stdout, cmd.Stderr, cmd.Env = dir, output, output, append(os.Environ(), env...)
	noError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("%s:\n%s", filepath.Base(program[0]), output)
		}
	})
}

// outcome is what a program has done.
type outcome struct {
	stdout, stderr string
	code           int
}

// execute runs a program in a folder to its end.
func execute(t testing.TB, dir, stdin, name string, args ...string) outcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*startTimeout)
	defer cancel()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), raceOptions)
	cmd.Dir, cmd.Stdin, cmd.Stdout, cmd.Stderr = dir, strings.NewReader(stdin), &stdout, &stderr
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil || ctx.Err() != nil {
		t.Fatalf("running %s: %v: %v\n%s", name, err, ctx.Err(), &stderr)
	}
	return outcome{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// must returns a value whose error fails the test.
func must[T any](value T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}

// noError fails the test if there is an error.
func noError(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// wantEqual compares a value with the expected one. The format names the value.
func wantEqual(t testing.TB, want, got any, format string, args ...any) {
	t.Helper()
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", fmt.Sprintf(format, args...), diff)
	}
}

func writeFile(t testing.TB, path string, data []byte) {
	t.Helper()
	noError(t, os.WriteFile(path, data, 0o600))
}

// logBuffer collects a server's output and lets tests await a message in it.
type logBuffer struct {
	mu      sync.Mutex
	written bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.written.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.written.String()
}

// await waits until a text has been written.
func (b *logBuffer) await(t testing.TB, text string) {
	t.Helper()
	b.awaitTimes(t, text, 1)
}

// awaitTimes is await for a text that is written several times.
func (b *logBuffer) awaitTimes(t testing.TB, text string, times int) {
	t.Helper()
	defer func() {
		if t.Failed() {
			t.Logf("the output:\n%s", b)
		}
	}()
	eventually(t, fmt.Sprintf("%q is written %d times", text, times), func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return bytes.Count(b.written.Bytes(), []byte(text)) >= times
	})
}
