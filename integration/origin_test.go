package integration

import (
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
)

// origin is the server behind the gate. It records every request that reaches
// it.
type origin struct {
	server *httptest.Server

	mu       sync.Mutex
	requests []seen
}

// seen is a request as the origin saw it.
type seen struct {
	method string
	uri    string
	header http.Header
	body   string
}

// startOrigin starts an origin that answers with next, or with a playlist under
// every name if that is nil.
func startOrigin(t testing.TB, next http.Handler) *origin {
	t.Helper()
	o := new(origin)
	if next == nil {
		next = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("#EXTM3U\n## from the origin\n")) })
	}
	o.server = serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		o.record(r)
		next.ServeHTTP(w, r)
	}))
	return o
}

// serve starts a server that ends with the test.
func serve(t testing.TB, handler http.Handler) *httptest.Server {
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return server
}

// exampleMedia serves the clip of examples/media.
func exampleMedia() http.Handler {
	return http.FileServer(http.Dir("../examples/media"))
}

func (o *origin) record(r *http.Request) {
	var body strings.Builder
	buf := make([]byte, 512)
	n, _ := r.Body.Read(buf)
	body.Write(buf[:n])
	o.mu.Lock()
	defer o.mu.Unlock()
	o.requests = append(o.requests, seen{r.Method, r.RequestURI, r.Header.Clone(), body.String()})
}

func (o *origin) addr() string { return strings.TrimPrefix(o.server.URL, "http://") }

// take returns the requests since the last call, and forgets them.
func (o *origin) take() []seen {
	o.mu.Lock()
	defer o.mu.Unlock()
	requests := o.requests
	o.requests = nil
	return requests
}

// uris returns the request targets since the last call of take, in order.
func (o *origin) uris() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	var uris []string
	for _, r := range o.requests {
		uris = append(uris, r.uri)
	}
	return slices.Clip(uris)
}

// reasonStatus has the status of each reason.
var reasonStatus = map[string]int{
	"path_invalid":   http.StatusBadRequest,
	"token_required": http.StatusUnauthorized, "token_malformed": http.StatusUnauthorized, "algorithm_not_allowed": http.StatusUnauthorized,
	"key_unknown": http.StatusUnauthorized, "signature_invalid": http.StatusUnauthorized, "token_expired": http.StatusUnauthorized,
	"token_not_yet_valid": http.StatusUnauthorized, "token_lifetime_exceeded": http.StatusUnauthorized, "rules_invalid": http.StatusUnauthorized, "token_revoked": http.StatusUnauthorized, "audience_not_allowed": http.StatusUnauthorized,
	"rule_blocked": http.StatusForbidden, "origin_required": http.StatusForbidden, "origin_not_allowed": http.StatusForbidden,
	"download_not_allowed": http.StatusForbidden, "client_ip_unknown": http.StatusForbidden, "service_worker_not_allowed": http.StatusForbidden,
	"not_available_yet": http.StatusForbidden, "no_longer_available": http.StatusForbidden,
	"method_not_allowed": http.StatusMethodNotAllowed, "too_early": http.StatusTooEarly, "verification_limited": http.StatusTooManyRequests,
	"manifest_invalid":  http.StatusBadGateway,
	"state_unavailable": http.StatusServiceUnavailable, "country_unavailable": http.StatusServiceUnavailable,
	"network_unavailable": http.StatusServiceUnavailable,
	"session_ended":       http.StatusForbidden, "session_limit": http.StatusForbidden, "admission_denied": http.StatusForbidden, "admission_unavailable": http.StatusServiceUnavailable,
}

// refusedFor is the verdict of a refusal.
func refusedFor(reason string) verdict { return verdict{reasonStatus[reason], reason} }

// wantRefused checks everything that a refusal promises: status, reason,
// headers, that the origin has seen nothing, and that no token is echoed.
func (o *origin) wantRefused(t testing.TB, res *response, reason string) {
	t.Helper()
	want := refusedFor(reason)
	if got := res.verdict(); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
	for name, want := range map[string]string{
		"Cache-Control":               "no-store",
		"Access-Control-Allow-Origin": "*",
	} {
		if got := res.Header.Values(name); len(got) != 1 || got[0] != want {
			t.Errorf("%s is %q, want one %q", name, got, want)
		}
	}
	if expose := res.Header.Get("Access-Control-Expose-Headers"); !strings.Contains(expose, "Signed-Playback-Reason") {
		t.Errorf("Access-Control-Expose-Headers is %q, without the reason", expose)
	}
	if got := res.Header.Get("WWW-Authenticate"); (got == `Bearer error="invalid_token"`) != (want.Status == http.StatusUnauthorized) {
		t.Errorf("WWW-Authenticate is %q with status %d", got, want.Status)
	}
	if requests := o.take(); len(requests) != 0 {
		t.Errorf("the origin was asked for %q", requests[0].uri)
	}
	line := string(res.body)
	isReason := strings.HasPrefix(line, reason+": ") && strings.Index(line, "\n") == len(line)-1 && strings.HasPrefix(res.Header.Get("Content-Type"), "text/plain")
	if isHead := res.Request != nil && res.Request.Method == http.MethodHead; isHead != (line == "") || !isHead && !isReason || strings.Contains(line, "eyJ") {
		t.Errorf("the body is %.200q, want one line of text with %s and without a token", line, reason)
	}
}

// wantPassed checks that a request got through, to one place at the origin.
func (o *origin) wantPassed(t testing.TB, res *response, uri string) {
	t.Helper()
	if res.StatusCode != http.StatusOK || res.reason() != "" {
		t.Errorf("got %d %q, want 200", res.StatusCode, res.reason())
	}
	requests := o.take()
	if len(requests) != 1 || requests[0].uri != uri {
		t.Errorf("the origin saw %v, want one request for %q", requests, uri)
	}
}
