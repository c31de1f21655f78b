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

	"github.com/signed-playback/caddy-signed-playback/internal/headerpolicy"
	"github.com/signed-playback/caddy-signed-playback/internal/mediatype"
	"github.com/signed-playback/caddy-signed-playback/internal/metrics"
	"github.com/signed-playback/caddy-signed-playback/internal/refusal"
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
	if gate == nil {
		ready, _, err := withHandlers(t, app)
		return ready, nil, err
	}
	ready, handlers, err := withHandlers(t, app, gate)
	if err != nil {
		return nil, nil, err
	}
	return ready, handlers[0].(*Gate), nil
}

// withHandlers provisions an app, for the length of a test, and handlers of the same config.
func withHandlers(t testing.TB, app *App, handlers ...caddy.Module) (ready *App, loaded []any, err error) {
	t.Helper()
	ctx, err := provisionContext(&caddy.Config{AppsRaw: caddy.ModuleMap{appID: caddyconfig.JSON(app, nil)}})
	if err != nil {
		return nil, nil, err
	}
	ready = appOf(t, ctx)
	for _, handler := range handlers {
		one, err := ctx.LoadModuleByID(string(handler.CaddyModule().ID), caddyconfig.JSON(handler, nil))
		if err != nil {
			return nil, nil, err
		}
		loaded = append(loaded, one)
	}
	return ready, loaded, nil
}

// appOf returns the app of a config at testTime, and cleans it up after the test.
func appOf(t testing.TB, ctx caddy.Context) *App {
	t.Helper()
	app := must(ctx.App(appID)).(*App)
	app.now = func() time.Time { return testTime }
	// A process has one each for all configs, which parallel tests would share.
	app.metrics, app.manifests = metrics.New(), newManifestMemory(math.MaxInt64)
	app.verifier.Metrics = app.metrics
	t.Cleanup(func() {
		if err := app.Cleanup(); err != nil {
			t.Errorf("App.Cleanup() = %v", err)
		}
	})
	return app
}

// newGate makes a gate that trusts testKey, in front of nothing.
func newGate(t testing.TB, app *App, gate *Gate) *Gate {
	t.Helper()
	return newGates(t, app, []*Gate{gate})[0]
}

func newGates(t testing.TB, app *App, gates []*Gate) (ready []*Gate) {
	t.Helper()
	app.KeyFiles = append(app.KeyFiles, writeFile(t, "key.json", publicJWK(testKey())))
	handlers := make([]caddy.Module, len(gates))
	for i, gate := range gates {
		handlers[i] = gate
	}
	_, loaded, err := withHandlers(t, app, handlers...)
	if err != nil {
		t.Fatalf("provisioning: %v", err)
	}
	for _, gate := range loaded {
		ready = append(ready, gate.(*Gate))
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

// answer is what becomes of a request.
type answer struct {
	status int    // of the refusal, or of what was written
	reason string // of the refusal
	text   string // of the refusal's error, all that logs and error pages get
	header http.Header
	body   string
	origin []*http.Request // what the origin saw
}

func (a answer) allowed() bool { return len(a.origin) == 1 && a.reason == "" }

// exchange sends a copy of a request through a gate, which turns it into the one of the origin
// or of an error route.
func exchange(t testing.TB, g *Gate, r *http.Request, origin func(http.ResponseWriter, *http.Request) error) (a answer) {
	t.Helper()
	w := httptest.NewRecorder()
	sent := *r
	err := g.ServeHTTP(w, &sent, caddyhttp.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		a.origin = append(a.origin, r)
		return origin(w, r)
	}))
	a.status, a.header, a.body = w.Code, w.Header(), w.Body.String()
	a.reason = a.header.Get(headerpolicy.ReasonHeader)
	if err == nil {
		return a
	}
	if a.body != "" {
		t.Errorf("a refused request got a body: %q", a.body)
	}
	failed, ok := errors.AsType[caddyhttp.HandlerError](err)
	if !ok {
		t.Fatalf("ServeHTTP returned a %T, want a caddyhttp.HandlerError: %v", err, err)
	}
	a.status, a.text = failed.StatusCode, err.Error()
	return a
}

// originAnswer is what the origin of the tests says: a playlist, so that it passes
// under every name.
const originAnswer = "#EXTM3U\n## from the origin\n"

// ask sends a request through a gate to an origin that gets no body.
func ask(t testing.TB, g *Gate, r *http.Request) answer {
	t.Helper()
	return exchange(t, g, r, func(w http.ResponseWriter, r *http.Request) error {
		if body := must(io.ReadAll(r.Body)); len(body) > 0 {
			t.Errorf("the origin gets a body: %q", body)
		}
		w.Header().Set("Content-Type", mediatype.HLS)
		_, err := io.WriteString(w, originAnswer)
		return err
	})
}

// wantOutcome checks that a request is refused for a reason, or that it passes if that is "".
func wantOutcome(t testing.TB, g *Gate, r *http.Request, want string) answer {
	t.Helper()
	a := ask(t, g, r)
	if want != "" {
		wantRefusal(t, r, a, want)
	} else if !a.allowed() {
		t.Errorf("%s %s %v = %d %s %s, want it allowed", r.Method, shortened(r), r.Header, a.status, a.reason, a.text)
	}
	return a
}

// wantRefusal holds that a request was refused for a reason, with all that
// every refusal carries, and that neither the origin nor an error's text has
// seen anything of it.
func wantRefusal(t testing.TB, r *http.Request, a answer, why string) {
	t.Helper()
	// docs/reasons.md has the statuses, too.
	if status := refusal.Reason(why).Status(); a.reason != why || a.status != status {
		t.Errorf("%s %s = %d %q, want %d %q", r.Method, shortened(r), a.status, a.reason, status, why)
	}
	if len(a.origin) != 0 {
		t.Errorf("%s %s was refused, and the origin saw it", r.Method, shortened(r))
	}
	wants := map[string]string{
		"Cache-Control":               "no-store",
		"Access-Control-Allow-Origin": "*",
		"Vary":                        "Origin",
		"X-Content-Type-Options":      "nosniff",
		"Content-Security-Policy":     "sandbox; default-src 'none'",
		"WWW-Authenticate":            map[bool]string{true: `Bearer error="invalid_token"`}[a.status == http.StatusUnauthorized],
		"Allow":                       map[bool]string{true: "GET, HEAD, OPTIONS"}[a.status == http.StatusMethodNotAllowed],
	}
	for name, want := range wants {
		if got := a.header.Get(name); got != want {
			t.Errorf("%s of the refusal with %d is %q, want %q", name, a.status, got, want)
		}
	}
	exposed := strings.Split(a.header.Get("Access-Control-Expose-Headers"), ", ")
	for _, name := range []string{"Content-Length", "Content-Range", "Accept-Ranges", "Date", "Signed-Playback-Reason"} {
		if !slices.Contains(exposed, name) {
			t.Errorf("Access-Control-Expose-Headers of the refusal is %q, want %s in it", exposed, name)
		}
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
