package signedplayback

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/signed-playback/caddy-signed-playback/internal/redact"
)

func init() {
	caddy.RegisterModule(panicking{})
}

// panicking is a handler that panics with the viewer's own URL, which Caddy keeps
// for handlers that want to know.
type panicking struct{}

// CaddyModule returns the Caddy module information.
func (panicking) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.panicking_in_tests", New: func() caddy.Module { return new(panicking) }}
}

// ServeHTTP implements caddyhttp.MiddlewareHandler.
func (panicking) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	original := r.Context().Value(caddyhttp.OriginalRequestCtxKey).(http.Request)
	if !strings.HasSuffix(original.RequestURI, "/panic.ts") {
		w.WriteHeader(http.StatusOK)
		return next.ServeHTTP(w, r)
	}
	panic(fmt.Errorf("cannot serve %s with %v", original.RequestURI, original.Header))
}

// What a handler behind the gate panics with is logged by the server, past every
// filter. It must not hold a token, in whichever way it is written.
func TestPanicsHoldNoToken(t *testing.T) {
	t.Parallel()
	compact := plainToken()
	address := must(url.Parse("https://media.example.net/" + compact + "/x.ts"))
	request := must(http.NewRequest(http.MethodGet, address.String(), nil))
	request.RequestURI = address.RequestURI()
	typed := errors.New("of its own type")
	g := newGate(t, new(App), new(Gate))
	for _, tc := range []struct {
		name  string
		value any
		want  any
	}{
		{"text", "no " + address.RequestURI(), "no /" + redact.TokenID(compact) + "/x.ts"},
		{"error", &url.Error{Op: "Get", URL: address.String(), Err: typed}, `Get "https://media.example.net/` + redact.TokenID(compact) + `/x.ts": of its own type`},
		{"error that says more in a log", talkative{compact}, "more: " + redact.TokenID(compact)},
		{"address", address, "https://media.example.net/" + redact.TokenID(compact) + "/x.ts"},
		{"request", request, "a value of type *http.Request"},
		{"bytes", []byte(compact), "a value of type []uint8"},
		{"error without a token", typed, typed},
		{"the end of a response", http.ErrAbortHandler, http.ErrAbortHandler},
	} {
		t.Run(tc.name, func(t *testing.T) {
			defer func() {
				if got := recover(); got != tc.want {
					t.Errorf("the server gets %q, want %q", got, tc.want)
				}
			}()
			_ = g.ServeHTTP(httptest.NewRecorder(), requestFor(t, "/"+compact+"/x.ts", nil), caddyhttp.HandlerFunc(func(http.ResponseWriter, *http.Request) error {
				panic(tc.value)
			}))
		})
	}
}

// talkative is an error that tells more in a log than elsewhere.
type talkative struct{ token string }

func (talkative) Error() string { return "less" }

// Format implements fmt.Formatter.
func (e talkative) Format(f fmt.State, _ rune) {
	if f.Flag('+') {
		_, _ = fmt.Fprintf(f, "more: %s", e.token)
		return
	}
	_, _ = fmt.Fprint(f, e.Error())
}

// A panic behind the gate puts no token into the log of the real server, over
// either version of HTTP, and the log still says who has panicked, and where.
func TestPanicIsLoggedWithoutTheToken(t *testing.T) {
	file := filepath.Join(t.TempDir(), "log")
	addr := reservedAddr(t.Cleanup)
	const encoder = `, "level": "DEBUG", "encoder": {"format": "filter", "wrap": {"format": "json"}, "fields": {
		"request>uri": {"filter": "signed_playback"}, "request>headers": {"filter": "signed_playback"}
	}}`
	config := gatedServer(t, file, encoder, "", "", `, "listen": ["`+addr+`"], "protocols": ["h1", "h2c"]`, `{"handler": "panicking_in_tests"}`)
	app := must(contextOf(t, config).App("http")).(*caddyhttp.App)
	if err := app.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = app.Stop() })

	compact := plainToken()
	for _, protocol := range []string{"http: ", "http2: "} {
		transport := transportOf(protocol == "http2: ")
		for _, name := range []string{"panic.ts", "x.ts"} {
			r := must(http.NewRequest(http.MethodGet, "http://"+addr+"/"+compact+"/"+name, nil))
			r.Header.Set("Referer", "https://media.example.net/"+compact+"/iframe")
			res, err := transport.RoundTrip(r)
			if err == nil {
				_ = res.Body.Close()
			}
			if panics := name == "panic.ts"; panics != (err != nil) || err == nil && res.StatusCode != http.StatusOK {
				t.Errorf("%s over %q: got %v and %v", name, protocol, res, err)
			}
		}
		transport.CloseIdleConnections()
		line := awaitLineWith(t, file, protocol+"panic serving")
		for _, want := range []string{
			"cannot serve /" + redact.TokenID(compact) + "/panic.ts with map[", "panicking.ServeHTTP", "panic_test.go:",
		} {
			if !strings.Contains(line, want) {
				t.Errorf("the panic's line in the log does not hold %q:\n%s", want, line)
			}
		}
	}
	if log := string(must(os.ReadFile(file))); strings.Contains(log, compact[len(compact)-64:]) {
		t.Errorf("the log holds the token:\n%s", log)
	}
}

// awaitLineWith returns the first line of a file that holds a text. The server
// over HTTP/2 writes it when the client has been told already.
func awaitLineWith(t *testing.T, file, part string) string {
	t.Helper()
	const patience = time.Minute
	look := time.NewTicker(10 * time.Millisecond)
	defer look.Stop()
	for end := time.Now().Add(patience); time.Now().Before(end); <-look.C {
		for line := range strings.Lines(string(must(os.ReadFile(file)))) {
			if strings.Contains(line, part) && strings.HasSuffix(line, "\n") {
				return line
			}
		}
	}
	t.Fatalf("no line of the log holds %q", part)
	return ""
}
