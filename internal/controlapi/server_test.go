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
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/signed-playback/caddy-signed-playback/internal/state"
	"github.com/signed-playback/caddy-signed-playback/internal/store/storetest"
)

// The API answers every path below its prefix, and no other path.
func TestServes(t *testing.T) {
	t.Parallel()
	for want, paths := range map[bool][]string{
		false: {
			"/", "/client", "/client/v", "/client/v40", "/client/v4x/accounts/acc/stream", "/client//v4/accounts/acc/stream", "/Client/v4/accounts/acc/stream",
			"/x/client/v4/accounts/acc/stream", "/demo/manifest/video.m3u8",
		},
		true: {"/client/v4", "/client/v4/", streamPath, "/client/v4/nothing", "/client/v4/../x"},
	} {
		for _, path := range paths {
			if Serves(path) != want {
				t.Errorf("Serves(%s) = %t, want %t", path, !want, want)
			}
		}
	}
}

// Every call of the API, and paths that resemble one.
func TestRoutes(t *testing.T) {
	t.Parallel()
	any64 := strings.Repeat("A", 64)
	list, token := map[string]string{"GET": "videos.list"}, map[string]string{"POST": "token.create"}
	key, session := map[string]string{"DELETE": "keys.delete"}, map[string]string{"POST": "sessions.extend", "DELETE": "sessions.delete"}
	video := map[string]string{"GET": "videos.get", "POST": "videos.edit", "DELETE": "videos.delete"}
	type route struct {
		calls map[string]string // by method
		id    string
	}
	routes := map[string]route{
		streamPath: {list, ""}, "/client/v4/accounts/" + any64 + "/stream": {list, ""},
		streamPath + "/keys":        {map[string]string{"GET": "keys.list", "POST": "keys.create"}, ""},
		streamPath + "/keys/rotate": {map[string]string{"POST": "keys.rotate"}, ""},
		streamPath + "/keys/k":      {key, "k"}, streamPath + "/keys/a.b~c": {key, "a.b~c"}, streamPath + "/keys/token": {key, "token"},
		streamPath + "/sessions": {map[string]string{"GET": "sessions.list"}, ""}, streamPath + "/vid/sessions": {map[string]string{"GET": "sessions.list"}, "vid"},
		streamPath + "/sessions/s": {session, "s"}, streamPath + "/sessions/": {session, ""}, streamPath + "/sessions/a/b": {session, "a/b"},
		streamPath + "/revocations":   {map[string]string{"GET": "revocations.list", "POST": "revocations.create"}, ""},
		streamPath + "/revocations/r": {map[string]string{"DELETE": "revocations.delete"}, "r"},
		streamPath + "/vid":           {video, "vid"}, streamPath + "/vid/token": {token, "vid"},
		// The call refuses these ids.
		streamPath + "/keys/": {key, ""}, streamPath + "/keys/a/b": {key, "a/b"}, streamPath + "/keys/..": {key, ".."}, streamPath + "/keys/%2e%2e": {key, "%2e%2e"},
		streamPath + "/..": {video, ".."}, streamPath + "/%6beys": {video, "%6beys"}, streamPath + "//token": {token, ""},
	}
	for _, path := range []string{
		"/", "/vid/", "/vid/token/", "/vid/%74oken", "/vid/downloads", "//", "x", // below streamPath
	} {
		routes[streamPath+path] = route{}
	}
	for _, path := range []string{
		"", "/", "/user/tokens/verify", "/accounts", "/accounts/", "/accounts/acc", "/accounts/acc/", "/accounts//stream", "/accounts/../stream", "/accounts/a%63c/stream",
		"/accounts/a.c/stream", "/accounts/" + any64 + "A/stream", "//accounts/acc/stream", "/accounts/acc//stream", "/accounts/acc/Stream", "/accounts/acc%2fstream",
		"/zones/acc/stream", "%2faccounts/acc/stream", "/x/../accounts/acc/stream", "/../v4/accounts/acc/stream",
	} {
		routes["/client/v4"+path] = route{}
	}
	for path, want := range routes {
		for _, method := range []string{"GET", "POST", "DELETE", "PUT", "PATCH", "HEAD", "OPTIONS", "CONNECT", "get", "", "FOO"} {
			c := &call{Server: new(Server), request: request(method, path, "")}
			found, err := c.find()
			if name := want.calls[method]; name != "" {
				if err != nil && refusalOf(err).status != 400 || found.handle == nil || c.route != name || c.subject != want.id {
					t.Errorf("%s %s is %q of %q, %v, want %q of %q", method, path, c.route, c.subject, err, name, want.id)
				}
				continue
			}
			why := refusalOf(err)
			if byMethod := strings.Contains(why.Message, "with the method"); byMethod != (want.calls != nil) {
				t.Errorf("%s %s is refused with %q", method, path, why.Message)
			}
			if found.handle != nil || c.route != "" || why.status != http.StatusNotFound || why.Code != codeRoute {
				t.Errorf("%s %s is %q, %v, want no route", method, path, c.route, err)
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

// A11: no page of another site can read an answer, no cache stores it and no browser
// guesses its type, as call checks. Preflights are refused.
func TestHeadersOfAnswers(t *testing.T) {
	t.Parallel()
	c := control(t, nil)
	elsewhere, preflight := with("Origin", "https://evil.example"), with("Access-Control-Request-Method", "POST")
	for path, status := range map[string]int{"keys": 200, "nothing/at/all": 404} {
		wantReply(t, path, c.call(t, "GET", path, "", elsewhere), status, 0)
		wantReply(t, "a preflight", c.call(t, "OPTIONS", path, "", elsewhere, preflight), 404, codeRoute)
		wantReply(t, "a preflight", c.call(t, "OPTIONS", path, "", elsewhere, preflight, without("Authorization")), 401, codeCredentials)
	}
}

// A5: the API reads bodies up to a bound, and as strict JSON, whatever their
// Content-Type: the curl lines of Cloudflare's documentation send a form's.
func TestBodies(t *testing.T) {
	t.Parallel()
	c := control(t, nil)
	deep := func(n int) string { return `{"meta":` + strings.Repeat(`{"a":`, n) + "1" + strings.Repeat("}", n+1) }
	long := func(n int) string { return `{"uid":"v"` + strings.Repeat(" ", n-len(`{"uid":"v"}`)) + "}" }
	contentTypes := []string{"", "application/json", "application/json; charset=utf-16", "application/x-www-form-urlencoded", "text/plain"}
	codes := map[int]int{200: 0, 400: codeBadRequest, 413: codeTooLarge}
	for status, bodies := range map[int][]string{
		200: {"", "{}", " \r\n\t", "null", "\n null \n", `{"uid":"v"}`, long(maxBodyBytes), deep(maxBodyDepth - 1)},
		413: {long(maxBodyBytes + 1), strings.Repeat("1", 10*maxBodyBytes), strings.Repeat(" ", maxBodyBytes+1)},
		400: {
			"[]", `"uid"`, "1", "false", "uid=v", `{"uid":"v"`, `{"uid":"v"}{}`, `{"uid":"v","uid":"v"}`, `{"uid":"v","\u0075id":"v"}`, `{"UID":"v"}`,
			`{"requireSignedUrls":true}`, "{\"creator\":\"\xff\"}", "\ufeff{}", "{}//", deep(maxBodyDepth), strings.Repeat("[", maxBodyBytes-1),
		},
	} {
		for i, body := range bodies {
			contentType := contentTypes[i%len(contentTypes)]
			wantReply(t, fmt.Sprintf("%.40q as %s", body, contentType), c.call(t, "POST", "v", body, with("Content-Type", contentType)), status, codes[status])
		}
	}
	for status, rest := range map[int]io.Reader{
		413: bytes.NewReader(bytes.Repeat([]byte(" "), 10*maxBodyBytes)), // of unknown length
		400: brokenReader{},
	} {
		a := c.call(t, "POST", "v", "", func(r *http.Request) {
			r.ContentLength, r.Body = -1, io.NopCloser(io.MultiReader(strings.NewReader("{"), rest))
		})
		wantReply(t, "a body without a length", a, status, codes[status])
	}
	a := c.call(t, "POST", "v", "", without("Authorization"), func(r *http.Request) { r.Body = io.NopCloser(unreadable{t}) })
	wantReply(t, "a body without a credential", a, 401, codeCredentials)
}

// unreadable is a body that the API must not read.
type unreadable struct{ t *testing.T }

func (u unreadable) Read([]byte) (int, error) {
	u.t.Error("the API reads a body without a credential")
	return 0, io.EOF
}

// H11: an attacker who records a request in TLS early data can send it again.
func TestCallsInEarlyData(t *testing.T) {
	t.Parallel()
	c := control(t, nil)
	early := func(r *http.Request) { r.TLS = new(tls.ConnectionState) }
	a := c.call(t, "POST", "v", `{"requireSignedURLs":false}`, early)
	wantReply(t, "a call in early data", a, http.StatusTooEarly, 0)
	a = c.call(t, "POST", "v", `{"requireSignedURLs":false}`, early, without("Authorization"))
	wantReply(t, "a stranger's call in early data", a, 401, codeCredentials)
	if c.store.Count("update") != 0 {
		t.Error("the call was made")
	}
	a = c.call(t, "POST", "v", `{}`, func(r *http.Request) { r.TLS = &tls.ConnectionState{HandshakeComplete: true} })
	wantReply(t, "a call after the handshake", a, 200, 0)
}

// Each error has a status, a code and a text for the client. Details of the server are
// only in its log.
func TestErrors(t *testing.T) {
	t.Parallel()
	secret := errors.New("/etc/secret: no such file")
	own := refuse(418, 7, "a %s", "teapot")
	for _, tc := range []struct {
		err          error
		status, code int
		text         string
	}{
		{own, 418, 7, "a teapot"},
		{fmt.Errorf("%w: %w", secret, own), 418, 7, "a teapot"},
		{badRequest("x is %d", 1), 400, codeBadRequest, "x is 1"},
		{fmt.Errorf("%w: %w", state.ErrUnavailable, secret), 503, codeUnavailable, "the store is not available"},
		{fmt.Errorf("%w: %w", state.ErrUnavailable, state.ErrBusy), 503, codeUnavailable, "another node is writing the same object"},
		{context.DeadlineExceeded, 503, codeUnavailable, "not available"},
		{fmt.Errorf("x: %w", context.Canceled), 503, codeUnavailable, "not available"},
		{state.ErrTooManyKeys, 503, codeUnavailable, "too many keys"},
		{errTooManyLists, 503, codeUnavailable, "too many lists"},
		{state.ErrKeyLimit, 400, codeBadRequest, "1000 keys"},
		{fmt.Errorf("%w: %w", state.ErrDamaged, secret), 500, codeInternal, "internal error"},
		{secret, 500, codeInternal, "internal error"},
	} {
		got := refusalOf(tc.err)
		if got.status != tc.status || got.Code != tc.code || !strings.Contains(got.Message, tc.text) || strings.Contains(got.Message, "secret") {
			t.Errorf("%v: %d %d %q, want %d %d %q", tc.err, got.status, got.Code, got.Message, tc.status, tc.code, tc.text)
		}
	}
}

// A result that cannot be encoded is an error of the server. call checks the shape of all
// other answers.
func TestResultThatCannotBeEncoded(t *testing.T) {
	t.Parallel()
	w := httptest.NewRecorder()
	(&call{Server: control(t, nil).Server}).answer(w, make(chan int), nil)
	if w.Code != 500 || w.Body.Len() != 0 {
		t.Errorf("the answer is %d %q, want 500 and no body", w.Code, w.Body)
	}
}

// The log has each call, and never a secret, not even one that a client has sent in the
// wrong place.
func TestLogHasNoSecrets(t *testing.T) {
	t.Parallel()
	c := control(t, nil)
	for _, tc := range []struct {
		method, path, body string
		level, call, id    string
		status             int64
	}{
		{"GET", "keys", "", "debug", "keys.list", "", 200},
		{"GET", "keys/secret-in-the-path", "", "info", "", "", 404},
		{"GET", "vid?limit=secret-in-the-query", "", "debug", "videos.get", "vid", 200},
		{"GET", "/client/v4/accounts/any/stream?limit=secret-in-the-query", "", "debug", "videos.list", "", 400},
		{"POST", "vid/check", "{}", "debug", "videos.check", "vid", 200},
		{"POST", "vid/check", "secret-in-the-body", "debug", "videos.check", "vid", 400},
		{"POST", "explain", "secret-in-the-body", "debug", "explain", "", 400},
		{"POST", "vid/token", "{}", "info", "token.create", "vid", 200},
		{"POST", "vid", "{}", "info", "videos.edit", "vid", 200},
		{"POST", "vid", "secret-in-the-body", "info", "videos.edit", "vid", 400},
		{"DELETE", "keys/secret-in-the-path/", "", "info", "keys.delete", "", 400},
		{"GET", "/client/v4/secret-in-the-path", "", "info", "", "", 404},
		{"GET", "keys?token=secret-in-the-query", "", "debug", "keys.list", "", 200},
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
	c.store.Intercept(storetest.Down, nil)
	c.call(t, "GET", "unknown", "")
	if entries := c.logs.TakeAll(); len(entries) != 1 || entries[0].Level.String() != "error" {
		t.Errorf("a call that fails is logged as %v", entries)
	}
}

// A4: ids that are paths, encoded, or reserved never reach the store. A call for another
// resource of Cloudflare's API must not become settings of a video.
func TestIDsThatAreRefused(t *testing.T) {
	t.Parallel()
	c := control(t, nil)
	before := c.store.Count("get", "update")
	neither := []string{
		"..", ".", "%2e%2e", "%2E", "a%2fb", "a%5cb", "%00", "a%00", "a%20b", "%e9", "%ff", "%e2%84%aa", "%c0%ae%c0%ae", "a%0a", "a%0d%0ab", "%7f", "*", "%2a", "a%3fb",
		"a%23b", `a\b`, "a|b", "$a", "%64emo", "demo%20", "a%2fb%2f..%2fkeys", "a;b", "a,b", "a:b", "a@b", "a=b", "a+b", "a&b", "(a)", "%252e%252e",
		strings.Repeat("a", 65), strings.Repeat("a", 300),
	}
	onlyKeys := []string{"a.b", "a~b", "..."}
	reserved := slices.DeleteFunc(slices.Clone(reservedVideos), func(id string) bool { return reserved[id] })
	for _, id := range slices.Concat(neither, onlyKeys, reserved) {
		for _, call := range []string{"GET " + id, "POST " + id, "DELETE " + id, "POST " + id + "/token"} {
			method, path, _ := strings.Cut(call, " ")
			wantReply(t, call, c.call(t, method, path, ""), 400, codeBadRequest)
		}
	}
	for _, id := range neither {
		wantReply(t, "key "+id, c.call(t, "DELETE", "keys/"+id, ""), 400, codeBadRequest)
	}
	for _, id := range onlyKeys {
		wantReply(t, "key "+id, c.call(t, "DELETE", "keys/"+id, ""), 404, codeNotFound)
	}
	wantReply(t, "token of keys", c.call(t, "POST", "keys/token", ""), 404, codeRoute)
	if got := c.store.Count("get", "update") - before; got != 0 {
		t.Errorf("%d calls of the store, want none", got)
	}
	for _, id := range []string{"Keys", "copy2", "token", "CLIP"} {
		wantReply(t, "GET "+id, c.call(t, "GET", id, ""), 200, 0)
	}
}

// The store fails during a call, hangs, or is unavailable: each call ends with 503 within
// a second, and no change is in force that is not stored.
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
		for what, fails := range map[string]storetest.Step{"fails": storetest.Down, "hangs": storetest.Hang} {
			if tc.path == streamPath && what == "hangs" {
				continue // a list may read for longer
			}
			t.Run(tc.method+" "+tc.path+" "+what, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					c := control(t, nil)
					c.store.Intercept(fails, nil)
					start := time.Now()
					wantReply(t, "the call", c.call(t, tc.method, tc.path, tc.body), 503, codeUnavailable)
					if waited := time.Since(start); waited >= time.Second {
						t.Errorf("the answer took %s", waited)
					}
					if key, _ := c.State.Key("k1"); key.Revoked {
						t.Error("a revocation is in force and not stored")
					}
					ctx, cancel := context.WithTimeout(t.Context(), time.Second)
					defer cancel()
					c.State.Sync(ctx) // from now on the store counts as unavailable
					updates := c.store.Count("update")
					wantReply(t, "the call later", c.call(t, tc.method, tc.path, tc.body), 503, codeUnavailable)
					if c.store.Count("update") != updates {
						t.Error("the call writes to a store that counts as unavailable")
					}
				})
			})
		}
	}
}
