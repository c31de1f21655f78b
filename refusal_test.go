package signedplayback

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/signed-playback/caddy-signed-playback/internal/playbackpath"
)

// requestPlaceholders are those that contain parts of the client's URL or headers.
var requestPlaceholders = []string{
	"uri", "uri_escaped", "uri.path", "uri.path.0", "uri.path.file", "uri.path.dir", "uri.query", "uri.prefixed_query", "uri.query.u",
	"orig_uri", "orig_uri.path", "orig_uri.path.0", "orig_uri.path.file", "orig_uri.path.file_escaped", "orig_uri.path.dir", "orig_uri.query",
	"orig_uri.prefixed_query", "header.Referer", "header.X-Original-Url", "cookie.last",
}

// The attack: an error route (handle_errors) asks another server for the refused
// request, or tells it the token, after a refusal or because the origin is dead.
func TestErrorRoutesGetAnotherRequest(t *testing.T) {
	t.Parallel()
	g := newGate(t, testApp(), new(Gate))
	dead := caddyhttp.HandlerFunc(func(http.ResponseWriter, *http.Request) error {
		return caddyhttp.Error(http.StatusBadGateway, errors.New("connection refused"))
	})
	for name, target := range map[string]string{
		"refused": "/demo/x.ts", "refused token": "/" + forgedToken(`{"alg":"none"}`, `{"sub":"demo"}`)() + "/x.ts", "dead origin": "/" + plainToken() + "/x.ts",
	} {
		for _, copied := range []bool{false, true} { // by an earlier handler
			t.Run(fmt.Sprintf("%s, copied %t", name, copied), func(t *testing.T) {
				server := requestFor(t, target+"?u="+target, func(r *http.Request) {
					r.Header.Set("Referer", "https://media.example.net"+target)
					r.Header.Set("X-Original-URL", target)
					r.Header.Set("Cookie", "last="+target)
				})
				r := server
				if copied {
					r = server.WithContext(server.Context())
				}
				if err := g.ServeHTTP(httptest.NewRecorder(), r, dead); err == nil {
					t.Fatal("no error")
				}
				repl := server.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
				first, _, _ := strings.Cut(target[1:], "/")
				for _, name := range requestPlaceholders {
					value := repl.ReplaceAll("{http.request."+name+"}", "")
					if strings.Contains(value, first) || strings.Contains(value, "x.ts") {
						t.Errorf("{http.request.%s} is %q", name, withoutToken(value))
					}
				}
				original := r.Context().Value(caddyhttp.OriginalRequestCtxKey).(http.Request)
				for _, got := range []string{r.RequestURI, r.URL.String(), server.URL.String(), original.RequestURI, original.URL.String()} {
					if got != errorPath {
						t.Errorf("a URL is %q, want %q", withoutToken(got), errorPath)
					}
				}
				if _, err := (playbackpath.Rules{}).Parse(r.URL); err == nil {
					t.Errorf("%q is a playback path", errorPath)
				}
			})
		}
	}
}

// The attack: a FastCGI origin gets REQUEST_URI from the URL that Caddy remembers.
func TestHandlersBehindTheGateGetNoOriginalURL(t *testing.T) {
	t.Parallel()
	g := newGate(t, testApp(), new(Gate))
	a := ask(t, g, requestFor(t, "/"+plainToken()+"/a%20b.ts?x=1", nil))
	if !a.allowed() {
		t.Fatalf("%d %s, want it allowed", a.status, a.reason)
	}
	original := a.origin[0].Context().Value(caddyhttp.OriginalRequestCtxKey).(http.Request)
	if got, want := original.URL.RequestURI(), "/demo/a%20b.ts?x=1"; got != want {
		t.Errorf("the original URL is %q, want %q", withoutToken(got), want)
	}
}
