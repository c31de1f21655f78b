package signedplayback

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap/zaptest/observer"

	"github.com/signed-playback/caddy-signed-playback/internal/store"
	"github.com/signed-playback/caddy-signed-playback/internal/strictjson"
)

const apiSecret = "s3cret-of-the-tests"

// noBody is the body of a call without one.
var noBody strictjson.Value

func parsed(t testing.TB, body string) strictjson.Value {
	t.Helper()
	value, err := strictjson.Parse([]byte(body), maxBodyDepth)
	if err != nil {
		t.Fatalf("the test's body %s: %v", body, err)
	}
	return value
}

// controlled is a control API, what it keeps and what it has logged.
type controlled struct {
	api   *API
	state *state
	node  *node
	logs  *observer.ObservedLogs
}

// newAPI runs Caddy's own provisioning of a control API and its app, and gives
// them a store in memory.
func newAPI(t testing.TB, app *App, api *API) (*API, error) {
	t.Helper()
	ctx, err := caddy.ProvisionContext(&caddy.Config{
		Logging: &caddy.Logging{Logs: map[string]*caddy.CustomLog{
			"default": {BaseLog: caddy.BaseLog{WriterRaw: json.RawMessage(`{"output":"discard"}`)}},
		}},
		AppsRaw: caddy.ModuleMap{appID: caddyconfig.JSON(app, nil)},
	})
	if err != nil {
		return nil, err
	}
	handler, err := ctx.LoadModuleByID("http.handlers.signed_playback_api", caddyconfig.JSON(api, nil))
	if err != nil {
		return nil, err
	}
	ready := handler.(*API)
	ready.app.now = func() time.Time { return testTime }
	t.Cleanup(func() {
		if err := ready.app.Cleanup(); err != nil {
			t.Errorf("App.Cleanup() = %v", err)
		}
	})
	return ready, nil
}

// control makes a control API with a credential on a store in memory.
func control(t *testing.T, app *App, api *API) controlled {
	t.Helper()
	api.BearerTokens = append(api.BearerTokens, apiSecret)
	ready, err := newAPI(t, app, api)
	if err != nil {
		t.Fatalf("provisioning: %v", err)
	}
	n := newFleet().node()
	s := newTestState(t, n)
	setTime(s)
	useState(t, ready.app, s)
	c := controlled{api: ready, state: s, node: n}
	ready.logger, c.logs = observedLog()
	return c
}

// apiReply is what a call is answered with.
type apiReply struct {
	status   int
	header   http.Header
	raw      string
	result   json.RawMessage
	success  bool
	errors   []apiMessage
	messages []apiMessage
	total    string
	handed   bool // on to the next handler
}

// call makes a call with the right credential. A path that does not start with
// a slash is one below stream.
func (c controlled) call(t testing.TB, method, path, body string, change ...func(*http.Request)) apiReply {
	t.Helper()
	if !strings.HasPrefix(path, "/") {
		path = "/client/v4/accounts/acc/stream/" + path
	}
	r := requestFor(t, path, func(r *http.Request) {
		r.Method = method
		r.Header.Set("Authorization", "Bearer "+apiSecret)
		if body != "" {
			r.Body, r.ContentLength = io.NopCloser(strings.NewReader(body)), int64(len(body))
		}
	})
	for _, change := range change {
		change(r)
	}
	w := httptest.NewRecorder()
	var a apiReply
	err := c.api.ServeHTTP(w, r, caddyhttp.HandlerFunc(func(http.ResponseWriter, *http.Request) error {
		a.handed = true
		return nil
	}))
	if err != nil {
		t.Fatalf("%s %s: ServeHTTP = %v", method, path, err)
	}
	a.status, a.header, a.raw = w.Code, w.Header(), w.Body.String()
	if a.handed {
		return a
	}
	var decoded struct {
		Result   json.RawMessage `json:"result"`
		Success  *bool           `json:"success"`
		Errors   []apiMessage    `json:"errors"`
		Messages []apiMessage    `json:"messages"`
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
	a.result, a.success, a.errors, a.messages, a.total = decoded.Result, *decoded.Success, decoded.Errors, decoded.Messages, decoded.Total
	if a.success != (a.status == http.StatusOK) || a.success != (len(a.errors) == 0) || !a.success && string(a.result) != "null" {
		t.Errorf("%s %s = %d %s", method, path, a.status, a.raw)
	}
	return a
}

// wantReply holds status and code of an answer; 0 stands for any code.
func wantReply(t testing.TB, what string, a apiReply, status, code int) {
	t.Helper()
	got := 0
	if len(a.errors) > 0 {
		got = a.errors[0].Code
	}
	if a.status != status || code != 0 && got != code {
		t.Errorf("%s = %d %s, want %d and the code %d", what, a.status, a.raw, status, code)
	}
}

// Every call that there is, and what looks like one.
func TestRoutes(t *testing.T) {
	const stream = "/client/v4/accounts/acc/stream"
	any64 := strings.Repeat("A", 64)
	for _, tc := range []struct {
		path string
		want map[string]string // by method
		id   string
	}{
		{stream, map[string]string{"GET": "videos.list"}, ""},
		{stream + "/", nil, ""}, // the video without an id
		{stream + "/keys", map[string]string{"GET": "keys.list", "POST": "keys.create"}, ""},
		{stream + "/keys/k", map[string]string{"DELETE": "keys.delete"}, "k"},
		{stream + "/keys/a.b~c", map[string]string{"DELETE": "keys.delete"}, "a.b~c"},
		{stream + "/keys/", map[string]string{"DELETE": "keys.delete"}, ""},             // refused there
		{stream + "/keys/a/b", map[string]string{"DELETE": "keys.delete"}, "a/b"},       // refused there
		{stream + "/keys/..", map[string]string{"DELETE": "keys.delete"}, ".."},         // refused there
		{stream + "/keys/%2e%2e", map[string]string{"DELETE": "keys.delete"}, "%2e%2e"}, // refused there
		{stream + "/vid", map[string]string{"GET": "videos.get", "POST": "videos.edit", "DELETE": "videos.delete"}, "vid"},
		{stream + "/..", map[string]string{"GET": "videos.get", "POST": "videos.edit", "DELETE": "videos.delete"}, ".."}, // refused there
		{stream + "/%6beys", map[string]string{"GET": "videos.get", "POST": "videos.edit", "DELETE": "videos.delete"}, "%6beys"},
		{stream + "/vid/token", map[string]string{"POST": "token.create"}, "vid"},
		{stream + "/keys/token", map[string]string{"DELETE": "keys.delete"}, "token"},
		{"/client/v4/accounts/" + any64 + "/stream", map[string]string{"GET": "videos.list"}, ""},
		{stream + "/vid/", nil, ""},
		{stream + "/vid/token/", nil, ""},
		{stream + "/vid/%74oken", nil, ""},
		{stream + "/vid/downloads", nil, ""},
		{stream + "//token", map[string]string{"POST": "token.create"}, ""}, // refused there
		{stream + "//", nil, ""},
		{stream + "x", nil, ""},
		{"/client/v4", nil, ""},
		{"/client/v4/", nil, ""},
		{"/client/v4/user/tokens/verify", nil, ""},
		{"/client/v4/accounts", nil, ""},
		{"/client/v4/accounts/", nil, ""},
		{"/client/v4/accounts/acc", nil, ""},
		{"/client/v4/accounts/acc/", nil, ""},
		{"/client/v4/accounts//stream", nil, ""},
		{"/client/v4/accounts/../stream", nil, ""},
		{"/client/v4/accounts/a%63c/stream", nil, ""},
		{"/client/v4/accounts/a.c/stream", nil, ""},
		{"/client/v4/accounts/" + any64 + "A/stream", nil, ""},
		{"/client/v4//accounts/acc/stream", nil, ""},
		{"/client/v4/accounts/acc//stream", nil, ""},
		{"/client/v4/accounts/acc/Stream", nil, ""},
		{"/client/v4/accounts/acc%2fstream", nil, ""},
		{"/client/v4/zones/acc/stream", nil, ""},
		{"/client/v4%2faccounts/acc/stream", nil, ""},
		{"/clien%74/v4/accounts/acc/stream", nil, ""},
		{"/client/v4/x/../accounts/acc/stream", nil, ""},
	} {
		t.Run(tc.path, func(t *testing.T) {
			for _, m := range []string{"GET", "POST", "DELETE", "PUT", "PATCH", "HEAD", "OPTIONS", "CONNECT", "get", "", "FOO"} {
				c := &call{api: new(API), request: requestFor(t, tc.path, method(m))}
				handle, err := c.api.find(c)
				if want := tc.want[m]; want != "" {
					if err != nil || handle == nil || c.route != want || c.subject != tc.id {
						t.Errorf("%s is %q of %q, %v, want %q of %q", m, c.route, c.subject, err, want, tc.id)
					}
					continue
				}
				why := apiErrorOf(err)
				if handle != nil || c.route != "" || why.status != http.StatusNotFound || why.Code != codeRoute {
					t.Errorf("%s is %q, %v, want no route", m, c.route, err)
				}
			}
		})
	}
}

// The account option is the only account that is answered.
func TestAccount(t *testing.T) {
	for _, tc := range []struct {
		configured, asked string
		want              int
	}{
		{"", "acc", 200},
		{"", "other", 200},
		{"acc", "acc", 200},
		{"acc", "other", 404},
		{"acc", "ACC", 404},
		{"acc", "acc2", 404},
		{"acc", "ac", 404},
	} {
		c := control(t, new(App), &API{Account: tc.configured})
		if a := c.call(t, "GET", "/client/v4/accounts/"+tc.asked+"/stream/keys", ""); a.status != tc.want {
			t.Errorf("account %q, asked for %q = %d, want %d", tc.configured, tc.asked, a.status, tc.want)
		}
	}
}

// What is not the API's goes on, untouched and without a credential; what is
// the API's never does, however it is spelled.
func TestPathsOfTheAPI(t *testing.T) {
	c := control(t, new(App), new(API))
	for path, handed := range map[string]bool{
		"/":                                    true,
		"/client":                              true,
		"/client/v":                            true,
		"/client/v40":                          true,
		"/client/v4x/accounts/acc/stream":      true,
		"/client//v4/accounts/acc/stream":      true,
		"/Client/v4/accounts/acc/stream":       true,
		"/x/client/v4/accounts/acc/stream":     true,
		"/demo/manifest/video.m3u8":            true,
		"/client/v4":                           false,
		"/client/v4/":                          false,
		"/client/v4/accounts/acc/stream":       false,
		"/client/v4/nothing":                   false,
		"/client/v4/../x":                      false,
		"/client%2fv4/accounts/acc/stream":     false,
		"/client/v4%2faccounts/acc/stream":     false,
		"/%63lient/v4/accounts/acc/stream/key": false,
	} {
		a := c.call(t, "GET", path, "", func(r *http.Request) { r.Header.Del("Authorization") })
		if a.handed != handed {
			t.Errorf("%s is handed on: %t, want %t", path, a.handed, handed)
		}
		if handed && (len(a.header) != 0 || a.raw != "") {
			t.Errorf("%s is handed on with %v", path, a.header)
		}
		if !handed && a.status != http.StatusUnauthorized {
			t.Errorf("%s without a credential = %d, want 401", path, a.status)
		}
	}
}

// A11: no page of another site may read an answer, no cache may keep one and no
// browser may take one for something else. Preflights are not answered.
func TestHeadersOfAnswers(t *testing.T) {
	c := control(t, new(App), new(API))
	elsewhere := func(r *http.Request) { r.Header.Set("Origin", "https://evil.example") }
	away := func(*http.Request) { c.state.away.Store(true) }
	for _, tc := range []struct {
		method, path string
		change       func(*http.Request)
		status       int
		more         map[string]string
	}{
		{"GET", "keys", elsewhere, 200, nil},
		{"GET", "nothing/at/all", elsewhere, 404, nil},
		{"OPTIONS", "keys", elsewhere, 404, nil},
		{"OPTIONS", "keys", func(r *http.Request) {
			elsewhere(r)
			r.Header.Del("Authorization")
			r.Header.Set("Access-Control-Request-Method", "POST")
		}, 401, map[string]string{"Www-Authenticate": "Bearer"}},
		{"GET", "keys", func(r *http.Request) { r.Header.Del("Authorization") }, 401, map[string]string{"Www-Authenticate": "Bearer"}},
		{"POST", "keys", away, 503, map[string]string{"Retry-After": "1"}},
	} {
		a := c.call(t, tc.method, tc.path, "", tc.change)
		want := http.Header{"Content-Type": {"application/json"}, "Cache-Control": {"no-store"}, "X-Content-Type-Options": {"nosniff"}}
		for name, value := range tc.more {
			want.Set(name, value)
		}
		if diff := cmp.Diff(want, a.header); a.status != tc.status || diff != "" {
			t.Errorf("%s %s = %d, want %d; headers (-want +got):\n%s", tc.method, tc.path, a.status, tc.status, diff)
		}
	}
}

// A5: bodies are read up to a bound, and JSON one way only. What it is called
// does not matter: the curl lines of Cloudflare's documentation call it a form.
func TestBodies(t *testing.T) {
	c := control(t, new(App), new(API))
	deep := func(n int) string { return strings.Repeat(`{"a":`, n) + "1" + strings.Repeat("}", n) }
	long := func(n int) string { return `{"uid":"v"` + strings.Repeat(" ", n-len(`{"uid":"v"}`)) + "}" }
	for _, tc := range []struct {
		name, body   string
		status, code int
	}{
		{"none", "", 200, 0},
		{"empty object", "{}", 200, 0},
		{"white space", " \r\n\t", 200, 0},
		{"null", "null", 200, 0},
		{"null within white space", "\n null \n", 200, 0},
		{"object", `{"uid":"v"}`, 200, 0},
		{"as long as may be", long(maxBodyBytes), 200, 0},
		{"one byte longer", long(maxBodyBytes + 1), 413, codeTooLarge},
		{"much longer, of one digit", strings.Repeat("1", 10*maxBodyBytes), 413, codeTooLarge},
		{"white space that is too long", strings.Repeat(" ", maxBodyBytes+1), 413, codeTooLarge},
		{"array", "[]", 400, codeBadRequest},
		{"text", `"uid"`, 400, codeBadRequest},
		{"number", "1", 400, codeBadRequest},
		{"false", "false", 400, codeBadRequest},
		{"form", "uid=v", 400, codeBadRequest},
		{"cut off", `{"uid":"v"`, 400, codeBadRequest},
		{"something behind", `{"uid":"v"}{}`, 400, codeBadRequest},
		{"member twice", `{"uid":"v","uid":"v"}`, 400, codeBadRequest},
		{"member twice, one in escapes", `{"uid":"v","\u0075id":"v"}`, 400, codeBadRequest},
		{"member in another case", `{"UID":"v"}`, 400, codeBadRequest},
		{"unknown member", `{"requireSignedUrls":true}`, 400, codeBadRequest},
		{"not UTF-8", "{\"creator\":\"\xff\"}", 400, codeBadRequest},
		{"byte order mark", "\ufeff{}", 400, codeBadRequest},
		{"comment", "{}//", 400, codeBadRequest},
		{"comma behind", `{"uid":"v",}`, 400, codeBadRequest},
		{"single quotes", `{'uid':'v'}`, 400, codeBadRequest},
		{"NUL behind", "{}\x00", 400, codeBadRequest},
		{"NUL in a string", "{\"creator\":\"a\x00b\"}", 400, codeBadRequest},
		{"line feed in a string", "{\"creator\":\"a\nb\"}", 400, codeBadRequest},
		{"overlong UTF-8", "{\"creator\":\"\xc0\xae\"}", 400, codeBadRequest},
		{"UTF-16", "{\x00}\x00", 400, codeBadRequest},
		{"lone surrogate", `{"creator":"\ud800"}`, 400, codeBadRequest},
		{"no-break space", "\u00a0{}", 400, codeBadRequest},
		{"text of an object", `"{\"uid\":\"v\"}"`, 400, codeBadRequest},
		{"member twice, inside", `{"meta":{"a":1,"a":2}}`, 400, codeBadRequest},
		{"multipart form", "--x\r\nContent-Disposition: form-data; name=\"uid\"\r\n\r\nv\r\n--x--\r\n", 400, codeBadRequest},
		{"compressed", zipped("{}"), 400, codeBadRequest},
		{"as deep as may be", `{"meta":` + deep(maxBodyDepth-1) + `}`, 200, 0},
		{"too deep", `{"meta":` + deep(maxBodyDepth) + `}`, 400, codeBadRequest},
		{"much too deep", strings.Repeat("[", maxBodyBytes-1), 400, codeBadRequest},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, contentType := range []string{"", "application/json", "application/json; charset=utf-16", "application/x-www-form-urlencoded", "text/plain"} {
				a := c.call(t, "POST", "v", tc.body, func(r *http.Request) {
					if contentType != "" {
						r.Header.Set("Content-Type", contentType)
					}
				})
				wantReply(t, contentType, a, tc.status, tc.code)
			}
		})
	}
	t.Run("of unknown length", func(t *testing.T) {
		a := c.call(t, "POST", "v", "x", func(r *http.Request) {
			r.ContentLength = -1
			r.Body = io.NopCloser(io.MultiReader(strings.NewReader("{"), bytes.NewReader(bytes.Repeat([]byte(" "), 10*maxBodyBytes))))
		})
		wantReply(t, "a body of unknown length", a, 413, codeTooLarge)
	})
	t.Run("that ends early", func(t *testing.T) {
		a := c.call(t, "POST", "v", "x", func(r *http.Request) {
			r.Body = io.NopCloser(io.MultiReader(strings.NewReader("{"), brokenReader{}))
		})
		wantReply(t, "a body that ends early", a, 400, codeBadRequest)
	})
	t.Run("without a credential", func(t *testing.T) {
		a := c.call(t, "POST", "v", "x", func(r *http.Request) {
			r.Header.Del("Authorization")
			r.Body = io.NopCloser(unreadable{t})
		})
		wantReply(t, "a body of a stranger", a, 401, codeCredentials)
	})
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// unreadable is a body that nobody may read.
type unreadable struct{ t *testing.T }

func (u unreadable) Read([]byte) (int, error) {
	u.t.Error("the body of a stranger is read")
	return 0, io.EOF
}

// H11: a request in the early data of a connection can be repeated by whoever
// records it.
func TestCallsInEarlyData(t *testing.T) {
	c := control(t, new(App), new(API))
	a := c.call(t, "POST", "v", `{"requireSignedURLs":false}`, unfinishedHandshake)
	wantReply(t, "a call in early data", a, http.StatusTooEarly, 0)
	a = c.call(t, "POST", "v", `{"requireSignedURLs":false}`, unfinishedHandshake, func(r *http.Request) { r.Header.Del("Authorization") })
	wantReply(t, "a stranger's call in early data", a, 401, codeCredentials)
	if c.node.count("update") != 0 {
		t.Error("the call was made")
	}
}

// What a caller is told of an error. Details of the server are for its log.
func TestErrorsOfTheAPI(t *testing.T) {
	secret := errors.New("/etc/secret: no such file")
	own := failure(418, 7, "a %s", "teapot")
	for _, tc := range []struct {
		name         string
		err          error
		status, code int
		text         string
	}{
		{"its own", own, 418, 7, "a teapot"},
		{"its own, wrapped", fmt.Errorf("%w: %w", secret, own), 418, 7, "a teapot"},
		{"bad request", badRequest("x is %d", 1), 400, codeBadRequest, "x is 1"},
		{"store away", errStoreAway, 503, codeUnavailable, "the store is not available"},
		{"store away, wrapped", fmt.Errorf("%w: %w", store.ErrUnavailable, secret), 503, codeUnavailable, "the store is not available"},
		{"busy", fmt.Errorf("%w: %w", store.ErrUnavailable, store.ErrBusy), 503, codeUnavailable, "another node is writing the same object"},
		{"too late", context.DeadlineExceeded, 503, codeUnavailable, "not available"},
		{"caller left", fmt.Errorf("x: %w", context.Canceled), 503, codeUnavailable, "not available"},
		{"too many keys", errTooManyKeys, 503, codeUnavailable, "too many keys"},
		{"damaged", fmt.Errorf("%w: %w", store.ErrDamaged, secret), 500, codeInternal, "internal error"},
		{"anything else", secret, 500, codeInternal, "internal error"},
		{"name", store.ErrName, 500, codeInternal, "internal error"},
	} {
		got := apiErrorOf(tc.err)
		if got.status != tc.status || got.Code != tc.code || !strings.Contains(got.Message, tc.text) || strings.Contains(got.Message, "secret") {
			t.Errorf("%s: %d %d %q, want %d %d %q", tc.name, got.status, got.Code, got.Message, tc.status, tc.code, tc.text)
		}
		// Official SDKs repeat calls that are answered so.
		if got.status == http.StatusConflict || got.status == http.StatusTooManyRequests {
			t.Errorf("%s: %d, which SDKs repeat", tc.name, got.status)
		}
	}
}

// What comes out is what JSON readers of the SDKs expect, whatever the call.
func TestEnvelope(t *testing.T) {
	a := &API{}
	a.logger, _ = observedLog()
	for _, tc := range []struct {
		name   string
		call   *call
		result any
		err    error
		want   string
	}{
		{"text", &call{}, "Revoked", nil, `{"result":"Revoked","success":true,"errors":[],"messages":[]}`},
		{"nothing", &call{}, nil, nil, `{"result":null,"success":true,"errors":[],"messages":[]}`},
		{"list", &call{}, []listedKey{}, nil, `{"result":[],"success":true,"errors":[],"messages":[]}`},
		{
			"counts", &call{counts: &listCounts{"2", "1"}},
			[]int{1},
			nil,
			`{"result":[1],"success":true,"errors":[],"messages":[],"total":"2","range":"1"}`,
		},
		{
			"warning", &call{messages: []apiMessage{{1, "x"}}}, 1, nil,
			`{"result":1,"success":true,"errors":[],"messages":[{"code":1,"message":"x"}]}`,
		},
		{
			"error", &call{messages: []apiMessage{{1, "x"}}}, "left over", badRequest("why"),
			`{"result":null,"success":false,"errors":[{"code":10005,"message":"why"}],"messages":[{"code":1,"message":"x"}]}`,
		},
	} {
		w := httptest.NewRecorder()
		a.answer(w, tc.call, tc.result, tc.err)
		if got := w.Body.String(); got != tc.want {
			t.Errorf("%s: %s, want %s", tc.name, got, tc.want)
		}
	}
	w := httptest.NewRecorder()
	if status := a.answer(w, &call{}, make(chan int), nil); status != 500 || w.Code != 500 || w.Body.Len() != 0 {
		t.Errorf("what cannot be encoded = %d %q, want 500 and nothing", w.Code, w.Body)
	}
}

// The log says what was done and never a secret: not the one that was sent in
// the wrong place either.
func TestLogOfTheAPI(t *testing.T) {
	c := control(t, new(App), new(API))
	for _, tc := range []struct {
		method, path, body string
		level, call, id    string
		status             int64
	}{
		{"GET", "keys", "", "info", "keys.list", "", 200},
		{"POST", "vid", "{}", "info", "videos.edit", "vid", 200},
		{"POST", "vid", "secret-in-the-body", "info", "videos.edit", "vid", 400},
		{"DELETE", "keys/secret-in-the-path/", "", "info", "keys.delete", "", 400},
		{"GET", "/client/v4/secret-in-the-path", "", "info", "", "", 404},
		{"GET", "keys?token=secret-in-the-query", "", "info", "keys.list", "", 200},
		{"GET", "v/secret-in-the-path", "", "info", "", "", 404},
		{"GET", "/client/v4/accounts/secret-in-the-path!/stream/keys", "", "info", "", "", 404},
	} {
		c.logs.TakeAll()
		a := c.call(t, tc.method, tc.path, tc.body)
		entries := c.logs.TakeAll()
		if len(entries) != 1 {
			t.Errorf("%s %s: %d log entries, want 1", tc.method, tc.path, len(entries))
			continue
		}
		fields := entries[0].ContextMap()
		id, _ := fields["id"].(string)
		if entries[0].Level.String() != tc.level || fields["call"] != tc.call || fields["status"] != tc.status || int64(a.status) != tc.status || id != tc.id || fields["client_ip"] != "203.0.113.7" {
			t.Errorf("%s %s = %d, logged as %s %v", tc.method, tc.path, a.status, entries[0].Level, fields)
		}
		if text := fmt.Sprint(entries[0].Message, fields); strings.Contains(text, apiSecret) || strings.Contains(text, "secret-in-the-") {
			t.Errorf("%s %s: the log has a secret: %s", tc.method, tc.path, text)
		}
	}
	c.node.intercept(down, nil)
	c.logs.TakeAll()
	c.call(t, "GET", "unknown", "")
	if entries := c.logs.TakeAll(); len(entries) != 1 || entries[0].Level.String() != "error" {
		t.Errorf("a call that fails is logged as %v", entries)
	}
}

// Caddy's access log has every header but Authorization and Cookie, so a request
// with X-Auth-Key is not in it at all.
func TestAccessLogIsSkippedForKeysInHeaders(t *testing.T) {
	c := control(t, new(App), &API{AuthKeys: []AuthKey{{"a@example.com", "key"}}})
	for _, tc := range []struct {
		path    string
		change  func(*http.Request)
		skipped bool
	}{
		{"keys", func(*http.Request) {}, false},
		{"keys", with("X-Auth-Key", "key"), true},
		{"keys", with("X-Auth-Key", "wrong"), true},
		{"keys", with("X-Auth-Key", "a", "b"), true},
		{"keys", with("X-Auth-Key", ""), true},
		{"/elsewhere", with("X-Auth-Key", "key"), false},
	} {
		var seen *http.Request
		c.call(t, "GET", tc.path, "", tc.change, func(r *http.Request) { seen = r })
		skipped, _ := caddyhttp.GetVar(seen.Context(), caddyhttp.LogSkipVar).(bool)
		if skipped != tc.skipped {
			t.Errorf("%s with %v is left out of the log: %t, want %t", tc.path, seen.Header, skipped, tc.skipped)
		}
	}
}

// A4: ids that are paths, encoded, or reserved never reach the store.
func TestIDsThatAreRefused(t *testing.T) {
	c := control(t, new(App), new(API))
	ids := []string{
		"..", ".", "%2e%2e", "%2E", "a%2fb", "a%5cb", "%00", "a%00", "a%20b", "%e9", "%ff", "%e2%84%aa", "%c0%ae%c0%ae", "a%0a", "a%0d%0ab", "%7f", "*", "%2a", "a%3fb", "a%23b", `a\b`, "a|b", "$a", "%64emo", "demo%20", "a%2fb%2f..%2fkeys", "a;b", "a,b", "a:b", "a@b", "a=b", "a+b", "a&b", "(a)",
		strings.Repeat("a", 65), strings.Repeat("a", 300), "%252e%252e",
	}
	for _, id := range ids {
		for _, m := range []string{"GET", "POST", "DELETE"} {
			wantReply(t, m+" video "+id, c.call(t, m, id, ""), 400, codeBadRequest)
		}
		wantReply(t, "token of "+id, c.call(t, "POST", id+"/token", ""), 400, codeBadRequest)
		wantReply(t, "key "+id, c.call(t, "DELETE", "keys/"+id, ""), 400, codeBadRequest)
	}
	for _, id := range []string{"a.b", "a~b", "..."} { // good for keys, and no videos
		wantReply(t, "video "+id, c.call(t, "POST", id, "{}"), 400, codeBadRequest)
		wantReply(t, "key "+id, c.call(t, "DELETE", "keys/"+id, ""), 404, codeNotFound)
	}
	if got := c.node.count("get") + c.node.count("update"); got != 0 {
		t.Errorf("%d calls of the store, want none", got)
	}
}

// A video cannot have the name of one of the API's own resources: what is meant
// for those must not become settings of a video.
func TestReservedIDs(t *testing.T) {
	c := control(t, new(App), new(API))
	for _, id := range reservedVideos {
		if id != "keys" {
			for _, m := range []string{"GET", "POST", "DELETE"} {
				wantReply(t, m+" "+id, c.call(t, m, id, ""), 400, codeBadRequest)
			}
		}
		wantReply(t, "token of "+id, c.call(t, "POST", id+"/token", ""), map[bool]int{true: 404, false: 400}[id == "keys"], 0)
	}
	for _, id := range []string{"Keys", "copy2", "token", "CLIP"} {
		wantReply(t, "GET "+id, c.call(t, "GET", id, ""), 200, 0)
	}
	if c.node.count("update") != 0 {
		t.Error("something is stored")
	}
}

// The store fails in the middle of a call, or hangs: each call ends with 503,
// within a second.
func TestCallsWithoutTheStore(t *testing.T) {
	calls := []struct{ method, path, body string }{
		{"POST", "keys", ""},
		{"DELETE", "keys/k1", ""},
		{"POST", "keys/rotate", ""},
		{"POST", "v", `{"requireSignedURLs":true}`},
		{"GET", "v", ""},
		{"DELETE", "v", ""},
		{"POST", "v/token", ""},
		{"GET", "/client/v4/accounts/acc/stream", ""},
	}
	for _, tc := range calls {
		t.Run(tc.method+" "+tc.path, func(t *testing.T) {
			c := control(t, new(App), new(API))
			c.api.app.keys.fixed = ringOf(c.state).fixed
			c.node.intercept(down, nil)
			wantReply(t, "the store fails", c.call(t, tc.method, tc.path, tc.body), 503, codeUnavailable)
			c.state.sync(t.Context())
			if tc.path != "v" || tc.method != "GET" { // it reads
				calls := c.node.count("update")
				wantReply(t, "the store is away", c.call(t, tc.method, tc.path, tc.body), 503, codeUnavailable)
				if c.node.count("update") != calls {
					t.Error("a store that is away is asked")
				}
			}
			if key, _ := c.state.keys.get("k1"); key.revoked {
				t.Error("a revocation is in force that was not stored")
			}
		})
	}
	for _, tc := range calls[:7] { // a list reads for as long as it takes
		t.Run(tc.method+" "+tc.path+" hangs", func(t *testing.T) {
			c := control(t, new(App), new(API))
			c.api.app.keys.fixed = ringOf(c.state).fixed
			synctest.Test(t, func(t *testing.T) {
				c.node.intercept(hang, nil)
				c.state.videos, c.state.generator = newStoredVideos(c.state), newKeyGenerator()
				start := time.Now()
				wantReply(t, "the store hangs", c.call(t, tc.method, tc.path, tc.body), 503, codeUnavailable)
				if waited := time.Since(start); waited >= time.Second {
					t.Errorf("the answer took %s", waited)
				}
			})
		})
	}
}

// The same for calls that wait for each other: who is the third to ask for a key
// of a store that hangs must not wait for the first two.
func TestCreationsWithAStoreThatHangs(t *testing.T) {
	c := control(t, new(App), new(API))
	synctest.Test(t, func(t *testing.T) {
		c.state.generator = newKeyGenerator()
		c.node.intercept(hang, nil)
		start := time.Now()
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				wantReply(t, "POST keys", c.call(t, "POST", "keys", ""), 503, codeUnavailable)
				if waited := time.Since(start); waited >= time.Second {
					t.Errorf("the answer took %s", waited)
				}
			})
		}
		wg.Wait()
	})
}

// Before the keys have been read, no list says that there are none, and nothing
// is made.
func TestKeysThatAreNotKnown(t *testing.T) {
	c := control(t, new(App), new(API))
	c.state.keys.forget()
	for _, tc := range []struct{ method, path string }{{"GET", "keys"}, {"POST", "keys"}, {"DELETE", "keys/k1"}} {
		wantReply(t, tc.method, c.call(t, tc.method, tc.path, ""), 503, codeUnavailable)
	}
	if c.node.count("update") != 0 {
		t.Error("something is stored")
	}
}

// 1,000 keys at most, also when the last ones are asked for at the same time.
// The gateway's own do not count.
func TestKeysAreLimited(t *testing.T) {
	c := control(t, new(App), new(API))
	public := testKey().Public()
	fill := func(n int) {
		update := c.state.keys.beginReload()
		for i := range n {
			id := fmt.Sprint("k", i)
			update.add(storedKey{id: id, public: public})
			update.add(storedKey{id: "revoked-" + id, revoked: true})
			update.add(storedKey{id: "own-" + id, public: public, own: true})
		}
		update.commit()
	}
	fill(maxKeys)
	wantReply(t, "one key too many", c.call(t, "POST", "keys", ""), 400, codeBadRequest)
	fill(maxKeys - 1)
	c.state.generator.turn <- struct{}{} // a key is being made
	var wg sync.WaitGroup
	answers := make(chan int, 3)
	for range cap(answers) {
		wg.Go(func() { answers <- c.call(t, "POST", "keys", "").status })
	}
	for len(c.state.generator.waiting) < cap(answers) {
		if len(answers) > 0 { // refused without waiting
			break
		}
		<-time.After(time.Millisecond)
	}
	<-c.state.generator.turn
	wg.Wait()
	close(answers)
	var got []int
	for status := range answers {
		got = append(got, status)
	}
	slices.Sort(got)
	if diff := cmp.Diff([]int{200, 400, 400}, got); diff != "" {
		t.Errorf("three keys at once where there is room for one (-want +got):\n%s", diff)
	}
	count := 0
	for _, key := range c.state.keys.live() {
		if !key.own {
			count++
		}
	}
	if count != maxKeys {
		t.Errorf("there are %d keys, want %d", count, maxKeys)
	}
}

// A12: a call that repeats another replaces its key, whose private half nobody
// has, and a caller who leaves before the answer leaves no key behind.
func TestRepeatedAndAbandonedCreations(t *testing.T) {
	c := control(t, new(App), new(API))
	create := func(change func(*http.Request)) string {
		t.Helper()
		a := c.call(t, "POST", "keys", "{}", change)
		wantReply(t, "POST keys", a, 200, 0)
		var key createdKey
		if err := json.Unmarshal(a.result, &key); err != nil {
			t.Fatal(err)
		}
		return key.ID
	}
	first := create(with("Idempotency-Key", "one"))
	other := create(with("Idempotency-Key", "two"))
	second := create(with("Idempotency-Key", "one"))
	for id, want := range map[string]string{first: "revoked", other: "live", second: "live"} {
		wantKey(t, c.state, id, want)
	}
	gone := create(func(r *http.Request) {
		ctx, cancel := context.WithCancel(r.Context())
		*r = *r.WithContext(ctx)
		c.node.intercept(nil, on("update", "", func(context.Context, string, store.Name) error { cancel(); return nil }))
	})
	c.node.intercept(nil, nil)
	wantKey(t, c.state, gone, "revoked")
	wantKey(t, c.state, second, "live")
	for name := range maps.Keys(c.node.fleet.backup()) {
		if data := c.node.fleet.data(name); strings.Contains(data, "one") && !strings.Contains(name.ID(), "one") {
			t.Errorf("%s has the Idempotency-Key in clear: %s", name, data)
		}
	}
}

// The handler is refused with a config that would let anybody in, or nobody.
func TestConfigsOfTheAPI(t *testing.T) {
	t.Setenv("TEST_ACCOUNT", "acc")
	t.Setenv("TEST_BAD_ACCOUNT", "a/b")
	for _, tc := range []struct {
		name string
		api  API
		want string // in the error; "" for none
	}{
		{"good", API{BearerTokens: []string{"a"}}, ""},
		{"account", API{BearerTokens: []string{"a"}, Account: "{env.TEST_ACCOUNT}"}, ""},
		{"no credential", API{}, "no credential"},
		{"account that is a path", API{BearerTokens: []string{"a"}, Account: "a/b"}, `"a/b"`},
		{"account that is a path by a variable", API{BearerTokens: []string{"a"}, Account: "{env.TEST_BAD_ACCOUNT}"}, `"a/b"`},
		{"account too long", API{BearerTokens: []string{"a"}, Account: strings.Repeat("a", 65)}, "64"},
		{"account of an unset variable", API{BearerTokens: []string{"a"}, Account: "{env.TEST_UNSET}"}, "TEST_UNSET"},
	} {
		api, err := newAPI(t, new(App), &tc.api)
		if tc.want == "" && (err != nil || tc.api.Account != "" && api.account != "acc") {
			t.Errorf("%s: %v", tc.name, err)
		}
		if tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: the error is %v, want %s in it", tc.name, err, tc.want)
		}
	}
}
