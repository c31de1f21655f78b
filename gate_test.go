package signedplayback

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/certmagic"
	"github.com/rogpeppe/go-internal/testscript"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/signed-playback/caddy-signed-playback/internal/mediatype"
	"github.com/signed-playback/caddy-signed-playback/token"
)

// TestMain runs the tests, or the command caddy for a script of TestCommands.
func TestMain(m *testing.M) {
	testscript.Main(isolatedTests{m}, map[string]func(){"caddy": caddycmd.Main})
}

// isolatedTests keeps the tests out of the storage of the user.
type isolatedTests struct{ *testing.M }

func (m isolatedTests) Run() int {
	folder, err := os.MkdirTemp("", "signed-playback-test-")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(folder)
	caddy.DefaultStorage = &certmagic.FileStorage{Path: folder}
	return m.M.Run()
}

// testTime is the present, as far as the gates of the tests know.
var testTime = time.Unix(1_800_000_000, 0)

// testKey signs what the gates of the tests verify.
var testKey = sync.OnceValue(func() *token.SigningKey { return must(token.GenerateSigningKey("k1")) })

// strangerKey has the id of testKey and is another key.
var strangerKey = sync.OnceValue(func() *token.SigningKey { return must(token.GenerateSigningKey("k1")) })

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

// signed returns a token of testKey for the video "demo", good for an hour,
// with whatever change makes of its claims.
func signed(change func(*token.Claims)) string {
	claims := token.Claims{VideoID: "demo", ExpiresAt: testTime.Add(time.Hour), ID: "j1", IssuedAt: testTime}
	if change != nil {
		change(&claims)
	}
	return must(token.Sign(claims, testKey()))
}

func signedForWithRules(video, rules string) string {
	return signed(func(c *token.Claims) { c.VideoID, c.AccessRules = video, json.RawMessage(rules) })
}

func signedWithRules(rules string) string {
	return signed(func(c *token.Claims) { c.AccessRules = json.RawMessage(rules) })
}

// plainToken is the token of signed(nil). Signing is slow, and fuzzing starts
// many processes.
var plainToken = sync.OnceValue(func() string { return signed(nil) })

// T stands for a valid token in the request targets of the tables.
func withToken(target string) string { return strings.ReplaceAll(target, "T", plainToken()) }

// withoutToken is its inverse, for messages.
func withoutToken(s string) string { return strings.ReplaceAll(s, plainToken(), "T") }

// writeFile puts a file into a folder that the test takes with it.
func writeFile(t testing.TB, name, content string) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// reservedAddr returns an address for a server. A socket that does not listen is bound to
// it until cleanup, so the system gives the port to no program that lets it choose one.
func reservedAddr(cleanup func(func())) string {
	socket := must(syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0))
	cleanup(func() { _ = syscall.Close(socket) })
	err := syscall.SetsockoptInt(socket, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1)
	if err = errors.Join(err, syscall.Bind(socket, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})); err != nil {
		panic(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", must(syscall.Getsockname(socket)).(*syscall.SockaddrInet4).Port)
}

func publicJWK(key *token.SigningKey) string { return string(must(key.Public().JWK())) }

// provisioned runs Caddy's own provisioning of an app and, if gate is not nil, of a gate.
func provisioned(t testing.TB, app *App, gate *Gate) (*App, *Gate, error) {
	t.Helper()
	ready, gates, err := provisionedGates(t, app, gate)
	if err != nil {
		return nil, nil, err
	}
	return ready, gates[0], nil
}

// provisionedGates makes gates of one app. The config's log goes nowhere.
func provisionedGates(t testing.TB, app *App, gates ...*Gate) (*App, []*Gate, error) {
	t.Helper()
	ctx, err := provisionContext(&caddy.Config{
		Logging: &caddy.Logging{Logs: map[string]*caddy.CustomLog{
			"default": {BaseLog: caddy.BaseLog{WriterRaw: json.RawMessage(`{"output":"discard"}`)}},
		}},
		AppsRaw: caddy.ModuleMap{appID: caddyconfig.JSON(app, nil)},
	})
	if err != nil {
		return nil, nil, err
	}
	loaded, err := ctx.App(appID)
	if err != nil {
		return nil, nil, err
	}
	ready := loaded.(*App)
	ready.now = func() time.Time { return testTime }
	// A process has one each for all configs, which parallel tests would share.
	ready.metrics, ready.manifests = newMetrics(), newManifestMemory(math.MaxInt64)
	ready.verifier.metrics = ready.metrics
	t.Cleanup(func() {
		if err := ready.Cleanup(); err != nil {
			t.Errorf("App.Cleanup() = %v", err)
		}
	})
	provisioned := make([]*Gate, len(gates))
	for i, gate := range gates {
		if gate == nil {
			continue
		}
		handler, err := ctx.LoadModuleByID("http.handlers.signed_playback", caddyconfig.JSON(gate, nil))
		if err != nil {
			return nil, nil, err
		}
		provisioned[i] = handler.(*Gate)
	}
	return ready, provisioned, nil
}

// newGate makes a gate that trusts testKey, in front of nothing.
func newGate(t testing.TB, app *App, gate *Gate) *Gate {
	t.Helper()
	return newGates(t, app, []*Gate{gate})[0]
}

func newGates(t testing.TB, app *App, gates []*Gate) []*Gate {
	t.Helper()
	app.KeyFiles = append(app.KeyFiles, writeFile(t, "key.json", publicJWK(testKey())))
	_, ready, err := provisionedGates(t, app, gates...)
	if err != nil {
		t.Fatalf("provisioning: %v", err)
	}
	return ready
}

// requestFor makes a GET request as Go's server reads it from the wire, from
// 203.0.113.7. change may make another one of it.
func requestFor(t testing.TB, target string, change func(*http.Request)) *http.Request {
	t.Helper()
	u, err := url.ParseRequestURI(target)
	if err != nil {
		t.Fatalf("a server would not read the request target: %v", err)
	}
	r := &http.Request{
		Method: http.MethodGet, URL: u, RequestURI: target, Host: "media.example.net",
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: make(http.Header), Body: http.NoBody, RemoteAddr: "203.0.113.7:1234",
	}
	r = caddyhttp.PrepareRequest(r.WithContext(context.Background()), caddy.NewReplacer(), httptest.NewRecorder(), nil)
	caddyhttp.SetVar(r.Context(), caddyhttp.ClientIPVarKey, "203.0.113.7")
	if change != nil {
		change(r)
	}
	return r
}

// answer is what becomes of a request: either the origin sees it, or it is
// refused.
type answer struct {
	status int    // of the refusal, or of what was written
	reason string // of the refusal
	text   string // of the refusal's error, all that logs and error pages get
	header http.Header
	origin []*http.Request // what the origin saw
	body   string          // that came to the origin with it
}

func (a answer) allowed() bool { return len(a.origin) == 1 && a.reason == "" }

// originAnswer is what the origin of the tests says: a playlist, so that it passes
// under every name.
const originAnswer = "#EXTM3U\n## from the origin\n"

// ask sends a request through a gate. The gate turns a copy of the request into the
// one of the origin or of an error route.
func ask(t testing.TB, g *Gate, r *http.Request) answer {
	t.Helper()
	var a answer
	origin := caddyhttp.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		a.origin = append(a.origin, r)
		if r.Body != nil {
			a.body = string(must(io.ReadAll(r.Body)))
		}
		w.Header().Set("Content-Type", mediatype.HLS)
		_, err := io.WriteString(w, originAnswer)
		return err
	})
	w := httptest.NewRecorder()
	sent := *r
	err := g.ServeHTTP(w, &sent, origin)
	a.header, a.status = w.Header(), w.Code
	a.reason = a.header.Get("Signed-Playback-Reason")
	if err == nil {
		return a
	}
	if w.Body.Len() > 0 {
		t.Errorf("a refused request got a body: %q", w.Body)
	}
	a.text = err.Error()
	var handlerError caddyhttp.HandlerError
	if !errors.As(err, &handlerError) {
		t.Fatalf("ServeHTTP returned a %T, want a caddyhttp.HandlerError: %v", err, err)
	}
	a.status = handlerError.StatusCode
	return a
}

// wantRefusal holds that a request was refused for a reason, with all that
// every refusal carries, and that neither the origin nor an error's text has
// seen anything of it.
func wantRefusal(t testing.TB, r *http.Request, a answer, why string) {
	t.Helper()
	// docs/reasons.md has the statuses, too.
	if status := reason(why).status(); a.reason != why || a.status != status {
		t.Errorf("%s %s = %d %q, want %d %q", r.Method, shortened(r), a.status, a.reason, status, why)
	}
	if len(a.origin) != 0 {
		t.Errorf("%s %s was refused, and the origin saw it", r.Method, shortened(r))
	}
	for name, want := range map[string]string{
		"Cache-Control":               "no-store",
		"Access-Control-Allow-Origin": "*",
		"Vary":                        "Origin",
		"X-Content-Type-Options":      "nosniff",
		"Content-Security-Policy":     "sandbox; default-src 'none'",
	} {
		if got := a.header.Get(name); got != want {
			t.Errorf("%s of the refusal is %q, want %q", name, got, want)
		}
	}
	exposed := strings.Split(a.header.Get("Access-Control-Expose-Headers"), ", ")
	for _, name := range []string{"Content-Length", "Content-Range", "Accept-Ranges", "Date", "Signed-Playback-Reason"} {
		if !slices.Contains(exposed, name) {
			t.Errorf("Access-Control-Expose-Headers of the refusal is %q, want %s in it", exposed, name)
		}
	}
	challenge := ""
	if a.status == http.StatusUnauthorized {
		challenge = `Bearer error="invalid_token"`
	}
	if got := a.header.Get("WWW-Authenticate"); got != challenge {
		t.Errorf("WWW-Authenticate of a %d is %q, want %q", a.status, got, challenge)
	}
	allow := ""
	if a.status == http.StatusMethodNotAllowed {
		allow = "GET, HEAD, OPTIONS"
	}
	if got := a.header.Get("Allow"); got != allow {
		t.Errorf("Allow of a %d is %q, want %q", a.status, got, allow)
	}
	wantNoToken(t, r, "the error's text", a.text)
	for name, values := range a.header {
		wantNoToken(t, r, "the header "+name, strings.Join(values, "\n"))
	}
}

// wantNoToken holds that a text contains no segment of the token in a request's
// original path.
func wantNoToken(t testing.TB, r *http.Request, what, text string) {
	t.Helper()
	original := r.Context().Value(caddyhttp.OriginalRequestCtxKey).(http.Request)
	first, _, _ := strings.Cut(strings.TrimPrefix(original.RequestURI, "/"), "/")
	for segment := range strings.SplitSeq(first, ".") {
		if len(segment) >= 16 && strings.Contains(text, segment) {
			t.Errorf("%s contains a part of the token: %q", what, text)
		}
	}
}

// shortened names a request in a failure's message.
func shortened(r *http.Request) string {
	original := r.Context().Value(caddyhttp.OriginalRequestCtxKey).(http.Request)
	const most = 120
	if uri := original.RequestURI; len(uri) > most {
		return uri[:20] + "…" + uri[len(uri)-most+20:]
	}
	return original.RequestURI
}

// observedLog is a logger and what it has been told.
func observedLog() (*zap.Logger, *observer.ObservedLogs) {
	core, logs := observer.New(zapcore.DebugLevel)
	return zap.New(core), logs
}
