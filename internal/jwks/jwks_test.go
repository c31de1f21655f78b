package jwks

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"

	"github.com/signed-playback/caddy-signed-playback/token"
)

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

// The ids of these keys are "k1", "k2", and "k1" again.
var (
	key1     = sync.OnceValue(func() *token.SigningKey { return must(token.GenerateSigningKey("k1")) })
	key2     = sync.OnceValue(func() *token.SigningKey { return must(token.GenerateSigningKey("k2")) })
	stranger = sync.OnceValue(func() *token.SigningKey { return must(token.GenerateSigningKey("k1")) })
)

func jwkOf(key *token.SigningKey) string { return string(must(key.Public().JWK())) }

func keySetOf(keys ...*token.SigningKey) string {
	set := []json.RawMessage{}
	for _, key := range keys {
		set = append(set, must(key.Public().JWK()))
	}
	return string(must(json.Marshal(map[string]any{"keys": set})))
}

func newSet(t *testing.T, address string, interval time.Duration) *Set {
	t.Helper()
	s, err := New(address, interval, zap.NewNop)
	if err != nil {
		t.Fatalf("New = %v", err)
	}
	t.Cleanup(s.Stop)
	return s
}

func wantIDs(t *testing.T, step string, s *Set, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, s.IDs()); diff != "" {
		t.Errorf("%s: keys in force (-want +got):\n%s", step, diff)
	}
}

// While a key server is unavailable, or answers with an error page or a bad set, the last
// good set stays in force: playback continues, and no other key verifies.
func TestTheLastGoodSetStaysInForce(t *testing.T) {
	t.Parallel()
	var status int
	var body string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}))
	t.Cleanup(server.Close)
	s := newSet(t, server.URL, time.Hour)
	enc := strings.Replace(jwkOf(stranger()), `"use":"sig"`, `"use":"enc"`, 1)
	for _, step := range []struct {
		name   string
		status int
		body   string
		err    string
		want   []string
	}{
		{"unavailable at first", 503, "", "status 503", nil},
		{"garbage at first", 200, "<html>", "not a JWK Set", nil},
		{"one key", 200, keySetOf(key1()), "", []string{"k1"}},
		{"error", 500, keySetOf(key2()), "status 500", []string{"k1"}},
		{"another kind of success", 204, "", "status 204", []string{"k1"}},
		{"a part", 206, keySetOf(key2()), "status 206", []string{"k1"}},
		{"empty", 200, "", "not a JWK Set", []string{"k1"}},
		{"cut off", 200, keySetOf(key1(), key2())[:600], "not a JWK Set", []string{"k1"}},
		{"two keys with one id", 200, keySetOf(key1(), stranger()), "two different keys", []string{"k1"}},
		{"too large", 200, `{"keys":[],"x":"` + strings.Repeat("x", maxBytes) + `"}`, "more than 1048576 bytes", []string{"k1"}},
		{"the largest", 200, keySetOf(key1()) + strings.Repeat(" ", maxBytes-len(keySetOf(key1()))), "", []string{"k1"}},
		{"rotated", 200, keySetOf(key2()), "", []string{"k2"}},
		{"keys for other uses", 200, `{"keys":[` + enc + `,{"kty":"EC"},null,7,{},` + jwkOf(key1()) + `]}`, "", []string{"k1"}},
		{"only keys for other uses", 200, `{"keys":[` + enc + `]}`, "", nil},
		{"back", 200, keySetOf(key1(), key2()), "", []string{"k1", "k2"}},
		{"all revoked", 200, `{"keys":[]}`, "", nil},
	} {
		loaded := s.Loaded()
		status, body = step.status, step.body
		err := s.Load()
		if (err == nil) != (step.err == "") || err != nil && !strings.Contains(err.Error(), step.err) {
			t.Errorf("%s: Load = %v, want %q", step.name, err, step.err)
		}
		wantIDs(t, step.name, s, step.want...)
		if want := loaded || err == nil; s.Loaded() != want || (s.LoadedAt().Unix() > 0) != want {
			t.Errorf("%s: loaded %t at %s, want %t", step.name, s.Loaded(), s.LoadedAt(), want)
		}
		for _, id := range []string{"k1", "k2"} {
			if want := strings.Contains(strings.Join(step.want, " "), id); (s.Lookup(id) != nil) != want {
				t.Errorf("%s: Lookup(%q) = %v, want a key: %t", step.name, id, s.Lookup(id), want)
			}
		}
	}
	s.Stop()
	if err := s.Load(); !errors.Is(err, context.Canceled) {
		t.Errorf("Load after Stop = %v, want %v", err, context.Canceled)
	}
}

// The attack: anybody on the path to a plain http server can choose the keys, so a redirect
// from https must not lead there.
func TestRedirects(t *testing.T) {
	t.Parallel()
	var fetched atomic.Int32
	var target string
	server := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/keys" {
			fetched.Add(1)
			_, _ = io.WriteString(w, keySetOf(key1()))
			return
		}
		if more, err := strconv.Atoi(strings.TrimPrefix(r.URL.Path, "/redirects/")); err == nil && more > 1 {
			http.Redirect(w, r, "/redirects/"+strconv.Itoa(more-1), http.StatusFound)
			return
		}
		http.Redirect(w, r, target, http.StatusFound)
	})
	secure, plain := httptest.NewTLSServer(server), httptest.NewServer(server)
	t.Cleanup(secure.Close)
	t.Cleanup(plain.Close)
	for _, tc := range []struct{ name, from, to, err string }{
		{"https to http", secure.URL, plain.URL + "/keys", "redirect from https to http"},
		{"https to https", secure.URL, secure.URL + "/keys", ""},
		{"http to http", plain.URL, plain.URL + "/keys", ""},
		{"http to https", plain.URL, secure.URL + "/keys", ""},
		{"5 times", plain.URL + "/redirects/5", plain.URL + "/keys", ""},
		{"6 times", plain.URL + "/redirects/6", plain.URL + "/keys", "more than 5 redirects"},
		{"in a circle", plain.URL, plain.URL, "more than 5 redirects"},
		{"https to a file", secure.URL, "file:///etc/passwd", "redirect from https to file"},
		{"http to a file", plain.URL, "file:///etc/passwd", "unsupported protocol scheme"},
	} {
		s := newSet(t, tc.from, time.Hour)
		s.client.Transport = secure.Client().Transport
		target = tc.to
		fetched.Store(0)
		err := s.Load()
		if (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) {
			t.Errorf("%s: Load = %v, want %q", tc.name, err, tc.err)
		}
		if want := err == nil; s.Loaded() != want || (fetched.Load() > 0) != want {
			t.Errorf("%s: loaded %t, fetched %d times, want %t", tc.name, s.Loaded(), fetched.Load(), want)
		}
	}
}

// The URL of a key set can contain a password or a secret query, so no error contains it.
func TestURLsThatAreRefused(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.NotFoundHandler())
	server.Close()
	s := newSet(t, strings.Replace(server.URL, "://", "://user:hunter2@", 1)+"/keys?secret=hunter2", time.Hour)
	if err := s.Load(); err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("Load = %v, want an error without the URL", err)
	}
	for _, address := range []string{
		"", "keys.json", "/keys.json", "file:///keys.json", "ftp://example.com/keys", "https://", "https:/keys", "https:keys", "://x", "http://user:hunter2@[::1",
	} {
		if s, err := New(address, time.Hour, zap.NewNop); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("New(%q) = %v, %v, want an error without the URL", address, s, err)
		}
	}
}

// roundTrips is a transport that needs no network.
type roundTrips func() *http.Response

func (f roundTrips) RoundTrip(*http.Request) (*http.Response, error) { return f(), nil }

// The set asks an unavailable key server again soon, then less and less often, and at the
// interval when it is back. After a long outage the doubled wait must not overflow, which
// would end in no wait. The test owns the clock.
func TestRefreshBacksOff(t *testing.T) {
	t.Parallel()
	const m, s = time.Minute, time.Second
	type step struct {
		status int
		wait   time.Duration // until the next request
	}
	steps := []step{{200, 5 * m}}
	for wait := s; wait < 5*m; wait *= 2 {
		steps = append(steps, step{503, wait})
	}
	steps = append(steps, slices.Repeat([]step{{503, 5 * m}}, 100)...)
	steps = append(steps, step{200, 5 * m}, step{200, 5 * m}, step{503, s}, step{503, 2 * s}, step{200, 0})
	keys := keySetOf(key1())
	synctest.Test(t, func(t *testing.T) {
		set := newSet(t, "http://keys.example", 5*time.Minute)
		requests, last := 0, time.Now()
		set.client.Transport = roundTrips(func() *http.Response {
			var want time.Duration
			if requests > 0 {
				want = steps[requests-1].wait
			}
			if got := time.Since(last); got != want {
				t.Errorf("request %d came %s after the one before, want %s", requests, got, want)
			}
			last = time.Now()
			res := &http.Response{StatusCode: steps[requests].status, Body: io.NopCloser(strings.NewReader(keys))}
			if requests++; requests == len(steps) {
				set.Stop()
			}
			return res
		})
		set.Start()
		set.Start() // by another config
		<-set.ctx.Done()
		synctest.Wait()
		wantIDs(t, "after the end", set, "k1")
		if requests != len(steps) {
			t.Errorf("%d requests, want %d", requests, len(steps))
		}
		if at := set.LoadedAt(); !at.Equal(last) {
			t.Errorf("loaded at %s, want the time of the last success, %s", at, last)
		}
	})
}

// A reload that changes the interval while the key server is unavailable must not lose the
// keys. It takes no keys of another address, and no older keys.
func TestInherit(t *testing.T) {
	t.Parallel()
	loaded := func(address string, keys *token.SigningKey) *Set {
		s := newSet(t, address, time.Hour)
		s.client.Transport = roundTrips(func() *http.Response {
			return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(strings.NewReader(keySetOf(keys)))}
		})
		if err := s.Load(); err != nil {
			t.Fatal(err)
		}
		return s
	}
	const address = "http://user:password@keys.example/"
	old := loaded(address, key1())

	next := newSet(t, address, time.Minute)
	next.Inherit(next)
	next.Inherit(loaded(address+"other", key2()))
	wantIDs(t, "another address", next)
	next.Inherit(old)
	wantIDs(t, "another interval", next, "k1")
	if !next.LoadedAt().Equal(old.LoadedAt()) {
		t.Errorf("loaded at %s, want %s", next.LoadedAt(), old.LoadedAt())
	}
	newer := loaded(address, key2())
	newer.Inherit(old)
	wantIDs(t, "loaded already", newer, "k2")
}
