package controlapi

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/signed-playback/caddy-signed-playback/internal/state"
	"github.com/signed-playback/caddy-signed-playback/internal/store"
	"github.com/signed-playback/caddy-signed-playback/internal/store/storetest"
	"github.com/signed-playback/caddy-signed-playback/internal/strictjson"
	"github.com/signed-playback/caddy-signed-playback/token"
)

const apiSecret = "s3cret-of-the-tests"

var testTime = time.Date(2027, 1, 15, 8, 0, 0, 0, time.UTC)

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

var (
	testKey  = sync.OnceValue(func() *token.SigningKey { return must(token.GenerateSigningKey("k1")) })
	otherKey = sync.OnceValue(func() *token.SigningKey { return must(token.GenerateSigningKey("k2")) })
)

// memStore is a store in memory with one node.
type memStore struct {
	fleet *storetest.Fleet
	*storetest.Node
}

func newMemStore() *memStore {
	fleet := storetest.NewFleet()
	return &memStore{fleet, fleet.Join()}
}

// plant is a change by another node; no data makes a damaged object.
func (m *memStore) plant(collection store.Collection, id, data string) {
	if data == "" {
		data = storetest.Damaged
	}
	m.fleet.Write(must(store.NewName(collection, id)), data)
}

func (m *memStore) data(collection store.Collection, id string) string {
	return m.fleet.Data(must(store.NewName(collection, id)))
}

// plantKeys makes testKey one of the gateway's keys, "gone" a revoked one and
// "own" the one that signs.
func (m *memStore) plantKeys() {
	document := func(id, more string) string {
		key := must(token.ParseSigningKey([]byte(testKey().PEM()), id))
		return fmt.Sprintf(`{"id":%q,"created":"2027-01-15T08:00:00Z","jwk":%s%s}`, id, must(key.Public().JWK()), more)
	}
	m.plant(store.Keys, "k1", document("k1", ""))
	m.plant(store.Keys, "gone", `{"id":"gone","revoked":"2026-01-02T03:04:05Z"}`)
	m.plant(store.Keys, "own", document("own", `,"own":true`))
	m.plant(store.Signing, "current", fmt.Sprintf(`{"id":"own","pem":%q,"created":"2027-01-15T08:00:00Z"}`, testKey().PEM()))
}

// controlled is a control API, its store and its log.
type controlled struct {
	*Server
	store *memStore
	logs  *observer.ObservedLogs
	clock *time.Time
}

// control makes a control API with a credential on a store in memory. change may
// change its configuration.
func control(t testing.TB, change func(*Config)) controlled {
	t.Helper()
	m := newMemStore()
	m.plantKeys()
	clock := testTime
	now := func() time.Time { return clock }
	s := state.New(state.Config{Store: m.Node, Logger: zap.NewNop, CountError: func(string) {}, Now: now})
	t.Cleanup(s.Close)
	core, logs := observer.New(zapcore.DebugLevel)
	config := Config{
		State:        s,
		BearerTokens: []string{apiSecret},
		LookupKey: func(keyID string) (*token.PublicKey, bool) {
			key, known := s.Key(keyID)
			return key.Public, known && key.Damage == nil
		},
		Revocable: func(keyID string) bool {
			key, _ := s.Key(keyID)
			return key.Public != nil || key.Revoked || key.Damage != nil
		},
		CheckRules:    func(json.RawMessage) ([]string, error) { return nil, nil },
		Defaults:      VideoSettings{RequireSignedURLs: true},
		PublicURL:     "https://media.example.com/v",
		ClientAddress: clientAddress,
		Logger:        zap.New(core),
		SampledLogger: zap.New(core),
		Resolve:       verbatim,
		Now:           now,
	}
	if change != nil {
		change(&config)
	}
	server, err := New(config)
	if err != nil {
		t.Fatalf("New = %v", err)
	}
	logs.TakeAll()
	return controlled{server, m, logs, &clock}
}

func verbatim(text string) (string, error) { return text, nil }

func clientAddress(r *http.Request) netip.Addr {
	address, _ := netip.ParseAddrPort(r.RemoteAddr)
	return address.Addr()
}

// reply is the answer to a call.
type reply struct {
	status   int
	header   http.Header
	raw      string
	result   json.RawMessage
	errors   []message
	messages []message
	total    string
}

const streamPath = "/client/v4/accounts/acc/stream"

// with returns a change of a request's header.
func with(name string, values ...string) func(*http.Request) {
	return func(r *http.Request) { r.Header[http.CanonicalHeaderKey(name)] = values }
}

func without(name string) func(*http.Request) { return func(r *http.Request) { r.Header.Del(name) } }

func request(method, path, body string) *http.Request {
	r := httptest.NewRequest("GET", "http://api.example.com/", strings.NewReader(body))
	r.Method, r.URL = method, must(url.ParseRequestURI(path))
	r.RemoteAddr = "203.0.113.7:1234"
	return r
}

// call makes a call with the right credential. A path that does not start with a
// slash is one below stream.
func (c controlled) call(t testing.TB, method, path, body string, change ...func(*http.Request)) reply {
	t.Helper()
	if !strings.HasPrefix(path, "/") {
		path = streamPath + "/" + path
	}
	r := request(method, path, body)
	r.Header.Set("Authorization", "Bearer "+apiSecret)
	for _, change := range change {
		change(r)
	}
	w := httptest.NewRecorder()
	c.ServeHTTP(w, r)
	wantHeaders(t, method+" "+path, w.Code, w.Header())
	a := reply{status: w.Code, header: w.Header(), raw: w.Body.String()}
	var decoded struct {
		Result   json.RawMessage `json:"result"`
		Success  *bool           `json:"success"`
		Errors   []message       `json:"errors"`
		Messages []message       `json:"messages"`
		Total    string          `json:"total"`
	}
	if err := json.Unmarshal(w.Body.Bytes(), &decoded); err != nil {
		t.Fatalf("%s %s = %q: %v", method, path, w.Body, err)
	}
	for _, member := range []string{`"result":`, `"success":`, `"errors":[`, `"messages":[`} {
		if !strings.Contains(a.raw, member) {
			t.Errorf("%s %s = %s, which lacks %s", method, path, a.raw, member)
		}
	}
	a.result, a.errors, a.messages, a.total = decoded.Result, decoded.Errors, decoded.Messages, decoded.Total
	if success := *decoded.Success; success != (a.status == http.StatusOK) || success != (len(a.errors) == 0) || !success && string(a.result) != "null" {
		t.Errorf("%s %s = %d %s", method, path, a.status, a.raw)
	}
	return a
}

// wantHeaders checks that a browser takes an answer for nothing but JSON, keeps no copy, and lets no
// page of another site read it.
func wantHeaders(t testing.TB, what string, status int, got http.Header) {
	t.Helper()
	want := http.Header{"Content-Type": {"application/json"}, "Cache-Control": {"no-store"}, "X-Content-Type-Options": {"nosniff"}}
	switch status {
	case http.StatusUnauthorized:
		want.Set("WWW-Authenticate", "Bearer")
	case http.StatusServiceUnavailable, http.StatusTooManyRequests:
		want.Set("Retry-After", "1")
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s = %d with the headers (-want +got):\n%s", what, status, diff)
	}
}

// resultOf decodes the result of a call that succeeds.
func resultOf[T any](t testing.TB, what string, a reply) (result T) {
	t.Helper()
	wantReply(t, what, a, 200, 0)
	if err := json.Unmarshal(a.result, &result); err != nil || string(a.result) == "null" {
		t.Fatalf("%s = %s: %v", what, a.raw, err)
	}
	return result
}

// wantReply checks status and code of an answer; 0 stands for any code.
func wantReply(t testing.TB, what string, a reply, status, code int) {
	t.Helper()
	got := 0
	if len(a.errors) > 0 {
		got = a.errors[0].Code
	}
	if a.status != status || code != 0 && got != code {
		t.Errorf("%s = %d %s, want %d and the code %d", what, a.status, a.raw, status, code)
	}
}

// wantBadRequest checks that an error refuses a body, and says why.
func wantBadRequest(t *testing.T, body string, err error, why string) {
	t.Helper()
	refused := refusalOf(err)
	if refused.status != http.StatusBadRequest || refused.Code != codeBadRequest || !strings.Contains(refused.Message, why) || len(refused.Message) > 1000 {
		t.Errorf("%.100s: %d %d %q, want a bad request with %q in it", body, refused.status, refused.Code, refused.Message, why)
	}
}

func parsed(t testing.TB, body string) strictjson.Value {
	t.Helper()
	value, err := strictjson.Parse([]byte(body), maxBodyDepth)
	if err != nil {
		t.Fatalf("the test's body %s: %v", body, err)
	}
	return value
}

// brokenReader is a body that ends early.
type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }
