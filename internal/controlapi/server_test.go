package controlapi

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/signed-playback/caddy-signed-playback/internal/state"
	"github.com/signed-playback/caddy-signed-playback/internal/store"
)

// The API answers every path below its prefix, however it is spelled, and no
// other one.
func TestServes(t *testing.T) {
	t.Parallel()
	for path, want := range map[string]bool{
		"/": false, "/client": false, "/client/v": false, "/client/v40": false, "/client/v4x/accounts/acc/stream": false,
		"/client//v4/accounts/acc/stream": false, "/Client/v4/accounts/acc/stream": false, "/x/client/v4/accounts/acc/stream": false,
		"/demo/manifest/video.m3u8": false,
		"/client/v4":                true, "/client/v4/": true, streamPath: true, "/client/v4/nothing": true, "/client/v4/../x": true,
	} {
		if got := Serves(path); got != want {
			t.Errorf("Serves(%s) = %t, want %t", path, got, want)
		}
	}
}

// Every call that there is, and what looks like one.
func TestRoutes(t *testing.T) {
	t.Parallel()
	any64 := strings.Repeat("A", 64)
	keys := map[string]string{"GET": "keys.list", "POST": "keys.create"}
	key := map[string]string{"DELETE": "keys.delete"}
	videoCalls := map[string]string{"GET": "videos.get", "POST": "videos.edit", "DELETE": "videos.delete"}
	for _, tc := range []struct {
		path string
		want map[string]string // by method
		id   string
	}{
		{streamPath, map[string]string{"GET": "videos.list"}, ""},
		{streamPath + "/", nil, ""}, // the video without an id
		{streamPath + "/keys", keys, ""},
		{streamPath + "/keys/rotate", map[string]string{"POST": "keys.rotate"}, ""},
		{streamPath + "/keys/k", key, "k"},
		{streamPath + "/keys/a.b~c", key, "a.b~c"},
		{streamPath + "/keys/", key, ""},             // refused there
		{streamPath + "/keys/a/b", key, "a/b"},       // refused there
		{streamPath + "/keys/..", key, ".."},         // refused there
		{streamPath + "/keys/%2e%2e", key, "%2e%2e"}, // refused there
		{streamPath + "/vid", videoCalls, "vid"},
		{streamPath + "/..", videoCalls, ".."},         // refused there
		{streamPath + "/%6beys", videoCalls, "%6beys"}, // refused there
		{streamPath + "/vid/token", map[string]string{"POST": "token.create"}, "vid"},
		{streamPath + "/keys/token", key, "token"},
		{"/client/v4/accounts/" + any64 + "/stream", map[string]string{"GET": "videos.list"}, ""},
		{streamPath + "/vid/", nil, ""},
		{streamPath + "/vid/token/", nil, ""},
		{streamPath + "/vid/%74oken", nil, ""},
		{streamPath + "/vid/downloads", nil, ""},
		{streamPath + "//token", map[string]string{"POST": "token.create"}, ""}, // refused there
		{streamPath + "//", nil, ""},
		{streamPath + "x", nil, ""},
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
		for _, method := range []string{"GET", "POST", "DELETE", "PUT", "PATCH", "HEAD", "OPTIONS", "CONNECT", "get", "", "FOO"} {
			c := &call{Server: new(Server), request: request(method, tc.path, "")}
			found, err := c.find()
			if want := tc.want[method]; want != "" {
				if err != nil && refusalOf(err).status != 400 || found.handle == nil || c.route != want || c.subject != tc.id {
					t.Errorf("%s %s is %q of %q, %v, want %q of %q", method, tc.path, c.route, c.subject, err, want, tc.id)
				}
				continue
			}
			why := refusalOf(err)
			if byMethod := strings.Contains(why.Message, "with the method"); byMethod != (tc.want != nil) {
				t.Errorf("%s %s is refused with %q", method, tc.path, why.Message)
			}
			if found.handle != nil || c.route != "" || why.status != http.StatusNotFound || why.Code != codeRoute {
				t.Errorf("%s %s is %q, %v, want no route", method, tc.path, c.route, err)
			}
		}
	}
}

// The option account is the only account that is answered.
func TestAccount(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		configured, asked string
		want              int
	}{
		{"", "acc", 200}, {"", "other", 200}, {"acc", "acc", 200}, {"acc", "other", 404}, {"acc", "ACC", 404}, {"acc", "acc2", 404}, {"acc", "ac", 404},
	} {
		c := control(t, func(config *Config) { config.Account = tc.configured })
		if a := c.call(t, "GET", "/client/v4/accounts/"+tc.asked+"/stream/keys", ""); a.status != tc.want {
			t.Errorf("account %q, asked for %q = %d, want %d", tc.configured, tc.asked, a.status, tc.want)
		}
	}
	for _, account := range []string{"a/b", "..", "a b", strings.Repeat("a", 65)} {
		if _, err := New(Config{Account: account, BearerTokens: []string{apiSecret}}); err == nil || !strings.Contains(err.Error(), "account") {
			t.Errorf("New with the account %q = %v, want an error", account, err)
		}
	}
}

// A11: no page of another site may read an answer, no cache may keep one and no
// browser may take one for something else. Preflights are not answered.
func TestHeadersOfAnswers(t *testing.T) {
	t.Parallel()
	c := control(t, nil)
	elsewhere := with("Origin", "https://evil.example")
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
		{"GET", "keys", without("Authorization"), 401, map[string]string{"Www-Authenticate": "Bearer"}},
		{"POST", "keys", func(*http.Request) { c.store.setHook(down) }, 503, map[string]string{"Retry-After": "1"}},
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

// A5: bodies are read up to a bound, and as JSON one way only, whatever their
// Content-Type: the curl lines of Cloudflare's documentation send a form's.
func TestBodies(t *testing.T) {
	t.Parallel()
	c := control(t, nil)
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
		{"a second value", `{"uid":"v"}{}`, 400, codeBadRequest},
		{"member twice", `{"uid":"v","uid":"v"}`, 400, codeBadRequest},
		{"member twice, one in escapes", `{"uid":"v","\u0075id":"v"}`, 400, codeBadRequest},
		{"member in another case", `{"UID":"v"}`, 400, codeBadRequest},
		{"unknown member", `{"requireSignedUrls":true}`, 400, codeBadRequest},
		{"not UTF-8", "{\"creator\":\"\xff\"}", 400, codeBadRequest},
		{"byte order mark", "\ufeff{}", 400, codeBadRequest},
		{"comment", "{}//", 400, codeBadRequest},
		{"as deep as may be", `{"meta":` + deep(maxBodyDepth-1) + `}`, 200, 0},
		{"too deep", `{"meta":` + deep(maxBodyDepth) + `}`, 400, codeBadRequest},
		{"much too deep", strings.Repeat("[", maxBodyBytes-1), 400, codeBadRequest},
	} {
		for _, contentType := range []string{"", "application/json", "application/json; charset=utf-16", "application/x-www-form-urlencoded", "text/plain"} {
			wantReply(t, tc.name+" as "+contentType, c.call(t, "POST", "v", tc.body, with("Content-Type", contentType)), tc.status, tc.code)
		}
	}
	for what, tc := range map[string]struct {
		rest         io.Reader
		status, code int
	}{
		"of unknown length": {bytes.NewReader(bytes.Repeat([]byte(" "), 10*maxBodyBytes)), 413, codeTooLarge},
		"that ends early":   {brokenReader{}, 400, codeBadRequest},
	} {
		a := c.call(t, "POST", "v", "", func(r *http.Request) {
			r.ContentLength, r.Body = -1, io.NopCloser(io.MultiReader(strings.NewReader("{"), tc.rest))
		})
		wantReply(t, "a body "+what, a, tc.status, tc.code)
	}
	a := c.call(t, "POST", "v", "", without("Authorization"), func(r *http.Request) { r.Body = io.NopCloser(unreadable{t}) })
	wantReply(t, "a body of a stranger", a, 401, codeCredentials)
}

// unreadable is a body that nobody may read.
type unreadable struct{ t *testing.T }

func (u unreadable) Read([]byte) (int, error) {
	u.t.Error("the body of a stranger is read")
	return 0, io.EOF
}

// H11: whoever records a request in the early data of a connection can repeat it.
func TestCallsInEarlyData(t *testing.T) {
	t.Parallel()
	c := control(t, nil)
	early := func(r *http.Request) { r.TLS = new(tls.ConnectionState) }
	a := c.call(t, "POST", "v", `{"requireSignedURLs":false}`, early)
	wantReply(t, "a call in early data", a, http.StatusTooEarly, 0)
	a = c.call(t, "POST", "v", `{"requireSignedURLs":false}`, early, without("Authorization"))
	wantReply(t, "a stranger's call in early data", a, 401, codeCredentials)
	if c.store.count("update") != 0 {
		t.Error("the call was made")
	}
	a = c.call(t, "POST", "v", `{}`, func(r *http.Request) { r.TLS = &tls.ConnectionState{HandshakeComplete: true} })
	wantReply(t, "a call after the handshake", a, 200, 0)
}

// What a client is told of an error. Details of the server are for its log.
func TestErrors(t *testing.T) {
	t.Parallel()
	secret := errors.New("/etc/secret: no such file")
	own := refuse(418, 7, "a %s", "teapot")
	for _, tc := range []struct {
		name         string
		err          error
		status, code int
		text         string
	}{
		{"its own", own, 418, 7, "a teapot"},
		{"its own, wrapped", fmt.Errorf("%w: %w", secret, own), 418, 7, "a teapot"},
		{"bad request", badRequest("x is %d", 1), 400, codeBadRequest, "x is 1"},
		{"store unavailable", state.ErrUnavailable, 503, codeUnavailable, "the store is not available"},
		{"store unavailable, wrapped", fmt.Errorf("%w: %w", state.ErrUnavailable, secret), 503, codeUnavailable, "the store is not available"},
		{"busy", fmt.Errorf("%w: %w", state.ErrUnavailable, state.ErrBusy), 503, codeUnavailable, "another node is writing the same object"},
		{"too late", context.DeadlineExceeded, 503, codeUnavailable, "not available"},
		{"client left", fmt.Errorf("x: %w", context.Canceled), 503, codeUnavailable, "not available"},
		{"too many keys", state.ErrTooManyKeys, 503, codeUnavailable, "too many keys"},
		{"too many lists", errTooManyLists, 503, codeUnavailable, "too many lists"},
		{"limit of keys", state.ErrKeyLimit, 400, codeBadRequest, "1000 keys"},
		{"damaged", fmt.Errorf("%w: %w", state.ErrDamaged, secret), 500, codeInternal, "internal error"},
		{"anything else", secret, 500, codeInternal, "internal error"},
		{"name", store.ErrName, 500, codeInternal, "internal error"},
	} {
		got := refusalOf(tc.err)
		if got.status != tc.status || got.Code != tc.code || !strings.Contains(got.Message, tc.text) || strings.Contains(got.Message, "secret") {
			t.Errorf("%s: %d %d %q, want %d %d %q", tc.name, got.status, got.Code, got.Message, tc.status, tc.code, tc.text)
		}
		// Official SDKs repeat calls with these statuses.
		if got.status == http.StatusConflict || got.status == http.StatusTooManyRequests {
			t.Errorf("%s: %d, which SDKs repeat", tc.name, got.status)
		}
	}
}

// The JSON of an answer is what the SDKs expect, whatever the call.
func TestEnvelope(t *testing.T) {
	t.Parallel()
	server := control(t, nil).Server
	for _, tc := range []struct {
		name   string
		call   call
		result any
		err    error
		want   string
	}{
		{"text", call{}, "Revoked", nil, `{"result":"Revoked","success":true,"errors":[],"messages":[]}`},
		{"nothing", call{}, nil, nil, `{"result":null,"success":true,"errors":[],"messages":[]}`},
		{"list", call{}, []listedKey{}, nil, `{"result":[],"success":true,"errors":[],"messages":[]}`},
		{"counts", call{counts: &listCounts{"2", "1"}}, []int{1}, nil, `{"result":[1],"success":true,"errors":[],"messages":[],"total":"2","range":"1"}`},
		{"warning", call{messages: []message{{1, "x"}}}, 1, nil, `{"result":1,"success":true,"errors":[],"messages":[{"code":1,"message":"x"}]}`},
		{
			"error",
			call{messages: []message{{1, "x"}}},
			"left over", badRequest("why"),
			`{"result":null,"success":false,"errors":[{"code":10005,"message":"why"}],"messages":[{"code":1,"message":"x"}]}`,
		},
	} {
		w := httptest.NewRecorder()
		tc.call.Server = server
		tc.call.answer(w, tc.result, tc.err)
		if got := w.Body.String(); got != tc.want {
			t.Errorf("%s: %s, want %s", tc.name, got, tc.want)
		}
	}
	w := httptest.NewRecorder()
	if status := (&call{Server: server}).answer(w, make(chan int), nil); status != 500 || w.Code != 500 || w.Body.Len() != 0 {
		t.Errorf("a result that cannot be encoded = %d %q, want 500 and nothing", w.Code, w.Body)
	}
}

// The log says what was done and never a secret, not even one that was sent in
// the wrong place.
func TestLogHasNoSecrets(t *testing.T) {
	t.Parallel()
	c := control(t, nil)
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
	for _, tc := range []struct {
		method, body string
		want         []any // require_signed_urls, allowed_origins
	}{
		{"POST", `{"requireSignedURLs":false,"allowedOrigins":["example.com"]}`, []any{false, []any{"example.com"}}},
		{"POST", `{"creator":"x"}`, []any{false, []any{"example.com"}}},
		{"GET", ``, []any{nil, nil}},
		{"DELETE", ``, []any{true, nil}},
	} {
		c.call(t, tc.method, "v", tc.body)
		fields := c.logs.TakeAll()[0].ContextMap()
		if diff := cmp.Diff(tc.want, []any{fields["require_signed_urls"], fields["allowed_origins"]}); diff != "" {
			t.Errorf("%s %s is logged as %v", tc.method, tc.body, fields)
		}
	}
	c.store.setHook(down)
	c.call(t, "GET", "unknown", "")
	if entries := c.logs.TakeAll(); len(entries) != 1 || entries[0].Level.String() != "error" {
		t.Errorf("a call that fails is logged as %v", entries)
	}
}

// A4: ids that are paths, encoded, or reserved never reach the store. What is
// meant for another resource of the API must not become settings of a video.
func TestIDsThatAreRefused(t *testing.T) {
	t.Parallel()
	c := control(t, nil)
	videoCalls := func(id string, want int) {
		for _, method := range []string{"GET", "POST", "DELETE"} {
			wantReply(t, method+" video "+id, c.call(t, method, id, ""), want, codeBadRequest)
		}
		wantReply(t, "token of "+id, c.call(t, "POST", id+"/token", ""), want, codeBadRequest)
	}
	before := c.store.count("get", "update")
	for _, id := range []string{
		"..", ".", "%2e%2e", "%2E", "a%2fb", "a%5cb", "%00", "a%00", "a%20b", "%e9", "%ff", "%e2%84%aa", "%c0%ae%c0%ae", "a%0a", "a%0d%0ab", "%7f", "*", "%2a", "a%3fb", "a%23b", `a\b`, "a|b", "$a", "%64emo", "demo%20", "a%2fb%2f..%2fkeys", "a;b", "a,b", "a:b", "a@b", "a=b", "a+b", "a&b", "(a)",
		strings.Repeat("a", 65), strings.Repeat("a", 300), "%252e%252e",
	} {
		videoCalls(id, 400)
		wantReply(t, "key "+id, c.call(t, "DELETE", "keys/"+id, ""), 400, codeBadRequest)
	}
	for _, id := range []string{"a.b", "a~b", "..."} { // good for keys, and no videos
		wantReply(t, "video "+id, c.call(t, "POST", id, "{}"), 400, codeBadRequest)
		wantReply(t, "key "+id, c.call(t, "DELETE", "keys/"+id, ""), 404, codeNotFound)
	}
	for _, id := range reservedVideos {
		if id != "keys" {
			videoCalls(id, 400)
		}
	}
	wantReply(t, "token of keys", c.call(t, "POST", "keys/token", ""), 404, codeRoute)
	if got := c.store.count("get", "update") - before; got != 0 {
		t.Errorf("%d calls of the store, want none", got)
	}
	for _, id := range []string{"Keys", "copy2", "token", "CLIP"} {
		wantReply(t, "GET "+id, c.call(t, "GET", id, ""), 200, 0)
	}
}

// The store fails in the middle of a call, hangs, or is unavailable: each call
// ends with 503, within a second, and nothing is in force that is not stored.
func TestCallsWithoutTheStore(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ method, path, body string }{
		{"POST", "keys", ""},
		{"DELETE", "keys/k1", ""},
		{"POST", "keys/rotate", ""},
		{"POST", "v", `{"requireSignedURLs":true}`},
		{"GET", "v", ""},
		{"DELETE", "v", ""},
		{"POST", "v/token", ""},
		{"GET", streamPath, ""},
	} {
		for what, fails := range map[string]func(context.Context, string, store.Name) error{"fails": down, "hangs": hang} {
			if tc.path == streamPath && what == "hangs" {
				continue // a list reads for as long as it takes
			}
			t.Run(tc.method+" "+tc.path+" "+what, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					c := control(t, nil)
					c.store.setHook(fails)
					start := time.Now()
					wantReply(t, "the call", c.call(t, tc.method, tc.path, tc.body), 503, codeUnavailable)
					if waited := time.Since(start); waited >= time.Second {
						t.Errorf("the answer took %s", waited)
					}
					if key, _ := c.State.Key("k1"); key.Revoked {
						t.Error("a revocation is in force that was not stored")
					}
					ctx, cancel := context.WithTimeout(t.Context(), time.Second)
					defer cancel()
					c.State.Sync(ctx) // from now on the store counts as unavailable
					updates := c.store.count("update")
					wantReply(t, "the call later", c.call(t, tc.method, tc.path, tc.body), 503, codeUnavailable)
					if c.store.count("update") != updates {
						t.Error("a store that is unavailable is written")
					}
				})
			})
		}
	}
}
