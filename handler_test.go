package signedplayback

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	_ "github.com/caddyserver/caddy/v2/modules/standard" // the handlers, matchers and writers of the configs
	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"

	"github.com/signed-playback/caddy-signed-playback/internal/redact"
	"github.com/signed-playback/caddy-signed-playback/token"
)

// testApp is a config with something for every step of the gate.
func testApp() *App {
	return &App{
		GeoIPDatabase: "testdata/country.mmdb",
		Videos: map[string]VideoSettings{
			"public":  {RequireSignedURLs: new(false)},
			"site":    {AllowedOrigins: []string{"example.com"}},
			"oursite": {RequireSignedURLs: new(false), AllowedOrigins: []string{"example.com"}, MissingOrigin: "allow"},
		},
	}
}

func signedFor(video string) string {
	return signed(func(c *token.Claims) { c.VideoID = video })
}

// The rules of the tests. The viewer is at 203.0.113.7, which is in GB.
const (
	needsAddress = `[{"type":"ip.src","action":"allow","ip":["203.0.113.0/24"]},{"type":"any","action":"block"}]`
	needsCountry = `[{"type":"ip.geoip.country","action":"allow","country":["GB"]},{"type":"any","action":"block"}]`
	needsNothing = `[{"type":"any","action":"allow"},{"type":"ip.src","action":"block","ip":["203.0.113.7"]},{"type":"ip.geoip.country","action":"block","country":["GB"]}]`
)

func with(name string, values ...string) func(*http.Request) {
	return func(r *http.Request) { r.Header[name] = values }
}

func method(m string) func(*http.Request) { return func(r *http.Request) { r.Method = m } }

func from(ip string) func(*http.Request) {
	return func(r *http.Request) { caddyhttp.SetVar(r.Context(), caddyhttp.ClientIPVarKey, ip) }
}

// unfinishedHandshake is a request in the early data of a TLS connection.
func unfinishedHandshake(r *http.Request) { r.TLS = &tls.ConnectionState{HandshakeComplete: false} }

// encoded makes a token of any header and payload, with the signature of
// another.
func encoded(header, payload string) string {
	enc := base64.RawURLEncoding.EncodeToString
	return enc([]byte(header)) + "." + enc([]byte(payload)) + plainToken()[strings.LastIndexByte(plainToken(), '.'):]
}

// refused are requests to a gate of testApp, one or more for each reason.
var refused = []struct {
	name   string
	target func() string
	change func(*http.Request)
	want   string
}{
	{"P1 dot segments", func() string { return "/" + plainToken() + "/../vidB/x.ts" }, nil, "path_invalid"},
	{"P12 neither token nor id", func() string { return "/a.b/x.ts" }, nil, "path_invalid"},
	{"P15 CONNECT with a path", func() string { return "/" + plainToken() + "/x.ts" }, method("CONNECT"), "method_not_allowed"},
	{"P15 CONNECT", func() string { return "/x" }, func(r *http.Request) { r.Method, r.URL.Path = "CONNECT", "" }, "method_not_allowed"},
	{"H6 POST", func() string { return "/" + plainToken() + "/x.ts" }, method("POST"), "method_not_allowed"},
	{"H6 PUT", func() string { return "/" + plainToken() + "/x.ts" }, method("PUT"), "method_not_allowed"},
	{"H6 DELETE", func() string { return "/" + plainToken() + "/x.ts" }, method("DELETE"), "method_not_allowed"},
	{"H6 PATCH", func() string { return "/" + plainToken() + "/x.ts" }, method("PATCH"), "method_not_allowed"},
	{"H6 TRACE, which would echo the token", func() string { return "/" + plainToken() + "/x.ts" }, method("TRACE"), "method_not_allowed"},
	{"H6 get in lower case", func() string { return "/" + plainToken() + "/x.ts" }, method("get"), "method_not_allowed"},
	{"H6 a method that nobody knows", func() string { return "/" + plainToken() + "/x.ts" }, method("FOO"), "method_not_allowed"},
	{"H6 no method", func() string { return "/" + plainToken() + "/x.ts" }, method(""), "method_not_allowed"},
	{"H6 a method and a path that are both wrong", func() string { return "/../x" }, method("POST"), "method_not_allowed"},
	{"P11 video id where a token is required", func() string { return "/demo/x.ts" }, nil, "token_required"},
	{"P11 unknown video id", func() string { return "/nosuchvideo/x.ts" }, nil, "token_required"},
	{"P11 id of a public video in capitals", func() string { return "/PUBLIC/x.ts" }, nil, "token_required"},
	{"P12 a token cut to its header", func() string { head, _, _ := strings.Cut(plainToken(), "."); return "/" + head + "/x.ts" }, nil, "token_required"},
	{"J14 padding", func() string { return "/" + plainToken() + "=/x.ts" }, nil, "token_malformed"},
	{"J16 line break", func() string { return "/" + plainToken() + "%0a/x.ts" }, nil, "token_malformed"},
	{"J17 nothing but dots", func() string { return "/a.b./x.ts" }, nil, "token_malformed"},
	{"J25 no exp", func() string { return "/" + encoded(`{"alg":"RS256","kid":"k1"}`, `{"sub":"demo"}`) + "/x.ts" }, nil, "token_malformed"},
	{"J1 alg none", func() string { return "/" + encoded(`{"alg":"none"}`, `{"sub":"demo","exp":1800000060}`) + "/x.ts" }, nil, "algorithm_not_allowed"},
	{"J2 alg HS256", func() string {
		return "/" + encoded(`{"alg":"HS256","kid":"k1"}`, `{"sub":"demo","exp":1800000060}`) + "/x.ts"
	}, nil, "algorithm_not_allowed"},
	{"J11 unknown key", func() string {
		return "/" + encoded(`{"alg":"RS256","kid":"k2"}`, `{"sub":"demo","exp":1800000060}`) + "/x.ts"
	}, nil, "key_unknown"},
	{"J11 no key", func() string { return "/" + encoded(`{"alg":"RS256"}`, `{"sub":"demo","exp":1800000060}`) + "/x.ts" }, nil, "key_unknown"},
	{"J11 key id that is a path", func() string {
		return "/" + encoded(`{"alg":"RS256","kid":"../k1"}`, `{"sub":"demo","exp":1800000060}`) + "/x.ts"
	}, nil, "key_unknown"},
	{"signature of another key", func() string {
		return "/" + must(token.Sign(token.Claims{VideoID: "demo", ExpiresAt: testTime.Add(time.Hour)}, strangerKey())) + "/x.ts"
	}, nil, "signature_invalid"},
	{"signature of another token", func() string {
		return "/" + encoded(`{"alg":"RS256","kid":"k1"}`, `{"sub":"vidB","exp":1800000060}`) + "/x.ts"
	}, nil, "signature_invalid"},
	{"expired", func() string {
		return "/" + signed(func(c *token.Claims) { c.ExpiresAt = testTime.Add(-time.Second) }) + "/x.ts"
	}, nil, "token_expired"},
	{"expired token for a public video", func() string {
		return "/" + signed(func(c *token.Claims) { c.VideoID, c.ExpiresAt = "public", testTime }) + "/x.ts"
	}, nil, "token_expired"},
	{"not yet valid", func() string {
		return "/" + signed(func(c *token.Claims) { c.NotBefore = testTime.Add(time.Minute) }) + "/x.ts"
	}, nil, "token_not_yet_valid"},
	{"J35 rules that nobody understands", func() string { return "/" + signedWithRules(`[{"type":"ip.geoip.asnum","action":"allow"}]`) + "/x.ts" }, nil, "rules_invalid"},
	{"J35 rules null", func() string { return "/" + signedWithRules(`null`) + "/x.ts" }, nil, "rules_invalid"},
	{"rules block", func() string { return "/" + signedWithRules(`[{"type":"any","action":"block"}]`) + "/x.ts" }, nil, "rule_blocked"},
	{"rules block the address", func() string { return "/" + signedWithRules(needsAddress) + "/x.ts" }, from("203.0.114.7"), "rule_blocked"},
	{"rules block the country", func() string { return "/" + signedWithRules(needsCountry) + "/x.ts" }, from("198.51.100.1"), "rule_blocked"},
	{"rules block a public video's token", func() string {
		return "/" + signed(func(c *token.Claims) {
			c.VideoID, c.AccessRules = "public", json.RawMessage(`[{"type":"any","action":"block"}]`)
		}) + "/x.ts"
	}, nil, "rule_blocked"},
	{"R8 no origin", func() string { return "/" + signedFor("site") + "/x.ts" }, nil, "origin_required"},
	{"R1 other origin", func() string { return "/" + signedFor("site") + "/x.ts" }, with("Origin", "https://evil.com"), "origin_not_allowed"},
	{"R7 null origin", func() string { return "/" + signedFor("site") + "/x.ts" }, with("Origin", "null"), "origin_not_allowed"},
	{"R9 other origin at a public video", func() string { return "/oursite/x.ts" }, with("Referer", "https://evil.com/"), "origin_not_allowed"},
	{"R11 iframe within the gateway's own page", func() string { return "/" + signedFor("site") }, with("Referer", "https://media.example.net/x"), "origin_not_allowed"},
	{"download without the claim", func() string { return "/" + plainToken() + "/downloads/default.mp4" }, nil, "download_not_allowed"},
	{"download of a public video without a token", func() string { return "/public/downloads/default.mp4" }, nil, "download_not_allowed"},
	{"N5 address unknown", func() string { return "/" + signedWithRules(needsAddress) + "/x.ts" }, from(""), "client_ip_unknown"},
	{"N7 address of a Unix socket", func() string { return "/" + signedWithRules(needsAddress) + "/x.ts" }, from("@"), "client_ip_unknown"},
	{"N5 address with a port", func() string { return "/" + signedWithRules(needsAddress) + "/x.ts" }, from("203.0.113.7:443"), "client_ip_unknown"},
	{"N5 address in quotes", func() string { return "/" + signedWithRules(needsAddress) + "/x.ts" }, from(`"203.0.113.7"`), "client_ip_unknown"},
	{"N5 hidden address", func() string { return "/" + signedWithRules(needsCountry) + "/x.ts" }, from("_hidden"), "client_ip_unknown"},
	{"H11 early data, address", func() string { return "/" + signedWithRules(needsAddress) + "/x.ts" }, unfinishedHandshake, "too_early"},
	{"H11 early data, country", func() string { return "/" + signedWithRules(needsCountry) + "/x.ts" }, unfinishedHandshake, "too_early"},
	{"H11 early data that the rules would block", func() string {
		return "/" + signedWithRules(`[{"type":"ip.src","action":"block","ip":["203.0.113.7"]}]`) + "/x.ts"
	}, unfinishedHandshake, "too_early"},
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	g := newGate(t, testApp(), new(Gate))
	for _, tc := range refused {
		t.Run(tc.name, func(t *testing.T) {
			r := requestFor(t, tc.target(), tc.change)
			wantRefusal(t, r, ask(t, g, r), tc.want)
		})
	}
}

// Two reasons are of gates that lack something.
func TestRefusalsOfWhatCannotBeTold(t *testing.T) {
	t.Parallel()
	t.Run("country without a database", func(t *testing.T) {
		g := newGate(t, new(App), new(Gate))
		r := requestFor(t, "/"+signedWithRules(needsCountry)+"/x.ts", nil)
		wantRefusal(t, r, ask(t, g, r), "country_unavailable")
	})
	t.Run("country of a record that cannot be read", func(t *testing.T) {
		g := newGate(t, testApp(), new(Gate))
		r := requestFor(t, "/"+signedWithRules(needsCountry)+"/x.ts", from("198.18.0.1"))
		wantRefusal(t, r, ask(t, g, r), "country_unavailable")
	})
	t.Run("key set that has not been loaded", func(t *testing.T) {
		g := newGate(t, &App{JWKSURL: "http://127.0.0.1:1/" + t.Name()}, new(Gate))
		r := requestFor(t, "/"+encoded(`{"alg":"RS256","kid":"k2"}`, `{"sub":"demo","exp":1800000060}`)+"/x.ts", nil)
		wantRefusal(t, r, ask(t, g, r), "state_unavailable")
		r = requestFor(t, "/"+encoded(`{"alg":"RS256"}`, `{"sub":"demo","exp":1800000060}`)+"/x.ts", nil)
		wantRefusal(t, r, ask(t, g, r), "key_unknown") // no set will ever have the key of no name
		r = requestFor(t, "/"+plainToken()+"/x.ts", nil)
		if a := ask(t, g, r); !a.allowed() {
			t.Errorf("a token of a key of the config = %d %s, want it allowed meanwhile", a.status, a.reason)
		}
	})
	t.Run("lifetime", func(t *testing.T) {
		g := newGate(t, &App{MaxTokenLifetime: caddy.Duration(time.Minute)}, new(Gate))
		r := requestFor(t, "/"+plainToken()+"/x.ts", nil)
		wantRefusal(t, r, ask(t, g, r), "token_lifetime_exceeded")
	})
}

func TestEachReasonHasItsStatus(t *testing.T) {
	t.Parallel()
	for name, want := range refusals {
		if got := reason(name).status(); got != want {
			t.Errorf("status of %q = %d, want %d", name, got, want)
		}
	}
	if got := reason("nobody has thought of it").status(); got != http.StatusInternalServerError {
		t.Errorf("status of an unknown reason = %d, want 500", got)
	}
}

// What is not a refusal is an error of the gate itself, and says nothing to a
// player.
func TestDenyOfAnotherError(t *testing.T) {
	t.Parallel()
	w := httptest.NewRecorder()
	err := deny(w, io.ErrUnexpectedEOF)
	var handlerError caddyhttp.HandlerError
	if !errors.As(err, &handlerError) || handlerError.StatusCode != 500 || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("deny(%v) = %v, want a HandlerError of status 500", io.ErrUnexpectedEOF, err)
	}
	if got := w.Header().Get("Signed-Playback-Reason"); got != "" {
		t.Errorf("Signed-Playback-Reason = %q, want none", got)
	}
}

// What refused a request can be told by errors.Is, through Caddy's error.
func TestRefusalIsFoundInTheHandlersError(t *testing.T) {
	t.Parallel()
	g := newGate(t, testApp(), new(Gate))
	r := requestFor(t, "/"+signed(func(c *token.Claims) { c.ExpiresAt = testTime })+"/x.ts", nil)
	err := g.ServeHTTP(httptest.NewRecorder(), r, caddyhttp.HandlerFunc(nil))
	if !errors.Is(err, token.ErrExpired) {
		t.Errorf("ServeHTTP = %v, want an error that is token.ErrExpired", err)
	}
}

// passed are requests to a gate of testApp that reach the origin, and the path
// that they have there.
var passed = []struct {
	name   string
	target func() string
	change func(*http.Request)
	want   string
}{
	{"manifest", func() string { return "/" + plainToken() + "/manifest/video.m3u8" }, nil, "/demo/manifest/video.m3u8"},
	{"HEAD", func() string { return "/" + plainToken() + "/manifest/video.m3u8" }, method("HEAD"), "/demo/manifest/video.m3u8"},
	{"token alone", func() string { return "/" + plainToken() }, nil, "/demo/iframe"},
	{"token and a slash", func() string { return "/" + plainToken() + "/" }, nil, "/demo/iframe"},
	{"percent-encoding stays as it is", func() string { return "/" + plainToken() + "/my%20clip%c3%A9/~1.ts" }, nil, "/demo/my%20clip%c3%A9/~1.ts"},
	{"the query goes along", func() string { return "/" + plainToken() + "/x.m3u8?_HLS_msn=4&a=b;c=%zz" }, nil, "/demo/x.m3u8?_HLS_msn=4&a=b;c=%zz"},
	{"an empty query", func() string { return "/" + plainToken() + "/x.m3u8?" }, nil, "/demo/x.m3u8?"},
	{"absolute form", func() string { return "http://user:secret@media.example.net/" + plainToken() + "/x.ts" }, nil, "/demo/x.ts"},
	{"P10 video id behind the token", func() string { return "/" + plainToken() + "/vidB/x.ts" }, nil, "/demo/vidB/x.ts"},
	{"public video by its id", func() string { return "/public/x.ts" }, nil, "/public/x.ts"},
	{"public video by a token", func() string { return "/" + signedFor("public") + "/x.ts" }, nil, "/public/x.ts"},
	{"any site where no origins are set", func() string { return "/" + plainToken() + "/x.ts" }, with("Origin", "null"), "/demo/x.ts"},
	{"allowed origin", func() string { return "/" + signedFor("site") + "/x.ts" }, with("Origin", "https://example.com"), "/site/x.ts"},
	{"the page's own origin", func() string { return "/" + signedFor("site") + "/x.ts" }, with("Referer", "https://media.example.net/token/iframe"), "/site/x.ts"},
	{"iframe that a browser loads", func() string { return "/" + signedFor("site") + "/iframe" }, with("Sec-Fetch-Dest", "iframe"), "/site/iframe"},
	{"missing origin that is allowed", func() string { return "/oursite/x.ts" }, nil, "/oursite/x.ts"},
	{"address that the rules want", func() string { return "/" + signedWithRules(needsAddress) + "/x.ts" }, nil, "/demo/x.ts"},
	{"country that the rules want", func() string { return "/" + signedWithRules(needsCountry) + "/x.ts" }, nil, "/demo/x.ts"},
	{"N4 mapped address", func() string { return "/" + signedWithRules(needsAddress) + "/x.ts" }, from("::ffff:203.0.113.7"), "/demo/x.ts"},
	{"N4 country of a mapped address", func() string { return "/" + signedWithRules(needsCountry) + "/x.ts" }, from("::ffff:203.0.113.7"), "/demo/x.ts"},
	{"N5 zone", func() string {
		return "/" + signedWithRules(`[{"type":"ip.src","action":"allow","ip":["fe80::/10"]},{"type":"any","action":"block"}]`) + "/x.ts"
	}, from("fe80::1%eth0"), "/demo/x.ts"},
	{"N5 mapped address with a zone", func() string { return "/" + signedWithRules(needsAddress) + "/x.ts" }, from("::ffff:203.0.113.7%eth0"), "/demo/x.ts"},
	{"unknown address where nobody asks", func() string { return "/" + signedWithRules(needsNothing) + "/x.ts" }, from(""), "/demo/x.ts"},
	{"N7 Unix socket where nobody asks", func() string { return "/" + plainToken() + "/x.ts" }, from("@"), "/demo/x.ts"},
	{"H11 early data where nobody asks", func() string { return "/" + signedWithRules(needsNothing) + "/x.ts" }, unfinishedHandshake, "/demo/x.ts"},
	{"H11 early data without rules", func() string { return "/" + plainToken() + "/x.ts" }, unfinishedHandshake, "/demo/x.ts"},
	{"finished handshake", func() string { return "/" + signedWithRules(needsAddress) + "/x.ts" }, func(r *http.Request) {
		r.TLS = &tls.ConnectionState{HandshakeComplete: true}
	}, "/demo/x.ts"},
	{"download with the claim", func() string {
		return "/" + signed(func(c *token.Claims) { c.Downloadable = true }) + "/downloads/default.mp4"
	}, nil, "/demo/downloads/default.mp4"},
}

func TestRequestsThatPass(t *testing.T) {
	t.Parallel()
	g := newGate(t, testApp(), new(Gate))
	for _, tc := range passed {
		t.Run(tc.name, func(t *testing.T) {
			r := requestFor(t, tc.target(), tc.change)
			a := ask(t, g, r)
			if !a.allowed() {
				t.Fatalf("%s = %d %s %s, want it allowed", shortened(r), a.status, a.reason, a.text)
			}
			got := a.origin[0]
			if got.RequestURI != tc.want || got.URL.RequestURI() != tc.want {
				t.Errorf("the origin is asked for %q (RequestURI %q), want %q", got.URL.RequestURI(), got.RequestURI, tc.want)
			}
			if got.URL.User != nil {
				t.Errorf("the origin gets the viewer's userinfo")
			}
			for name, values := range got.Header {
				wantNoToken(t, r, "the origin's header "+name, strings.Join(values, "\n"))
			}
			if got := a.header.Get("WWW-Authenticate"); got != "" {
				t.Errorf("WWW-Authenticate = %q, want none", got)
			}
		})
	}
}

// H4: HEAD asks the same question as GET and gets the same decision, or it would
// be a way around it.
func TestHeadIsDecidedAsGet(t *testing.T) {
	t.Parallel()
	g := newGate(t, testApp(), new(Gate))
	for _, tc := range slices.Concat(refused, passed) {
		t.Run(tc.name, func(t *testing.T) {
			get := requestFor(t, tc.target(), tc.change)
			if get.Method != http.MethodGet {
				return
			}
			head := requestFor(t, tc.target(), tc.change)
			head.Method = http.MethodHead
			want, got := outcomeOf(t, g, get), outcomeOf(t, g, head)
			want.Header.Del("Content-Length") // TestHeadOfManifest is about lengths
			got.Header.Del("Content-Length")
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("the decisions differ (-GET +HEAD):\n%s", diff)
			}
		})
	}
}

// The page that embeds an iframe is held against the allowed origins by the
// browser, on every response for the iframe.
func TestIframeNamesItsAncestors(t *testing.T) {
	t.Parallel()
	g := newGate(t, testApp(), new(Gate))
	for _, tc := range []struct {
		target, want string
	}{
		{"/" + signedFor("site"), "frame-ancestors http://example.com"},
		{"/" + signedFor("site") + "/iframe", "frame-ancestors http://example.com"},
		{"/oursite", "frame-ancestors http://example.com"},
		{"/" + signedFor("site") + "/x.ts", ""},
		{"/" + plainToken() + "/iframe", ""},
		{"/public", ""},
	} {
		a := ask(t, g, requestFor(t, tc.target, with("Referer", "https://example.com/page")))
		if !a.allowed() {
			t.Fatalf("%.20s…: %d %s, want it allowed", tc.target, a.status, a.reason)
		}
		if got := a.header.Get("Content-Security-Policy"); got != tc.want {
			t.Errorf("Content-Security-Policy of %.20s… = %q, want %q", tc.target, got, tc.want)
		}
	}
}

// The attack: headers that carry the token to the origin and its logs, or that
// have the origin act on another path or method than the one that was decided
// on, or that turn the connection into a tunnel that outlives the token.
func TestHeadersThatTheOriginDoesNotGet(t *testing.T) {
	t.Parallel()
	const referer = "https://media.example.net/token/iframe"
	removed := http.Header{
		"Referer": is(referer), "Origin": is("https://media.example.net"),
		"X-Forwarded-Uri": is("/token/x"), "X-Forwarded-Path": is("/x"), "X-Forwarded-Prefix": is("/x"),
		"X-Forwarded-Method": is("DELETE"),
		"X-Original-Url":     is("/vidB/x"), "X-Original-Uri": is("/vidB/x"), "X-Original-Method": is("PUT"),
		"X-Rewrite-Url":          is("/vidB/x"),
		"X-Http-Method-Override": is("DELETE"), "X-Http-Method": is("DELETE"), "X-Method-Override": is("DELETE"),
		"Connection": is("Upgrade, HTTP2-Settings"), "Upgrade": is("websocket"), "Http2-Settings": is("AAMAAABk"),
		"Expect": is("100-continue"), "Content-Length": is("5"), "Trailer": is("X"),
	}
	kept := http.Header{
		"Range": is("bytes=0-1"), "If-Range": is(`"x"`), "If-None-Match": is(`"x"`), "If-Match": is(`"x"`), "Accept": is("*/*"),
		"If-Modified-Since": is("Fri, 02 Jan 2026 03:04:05 GMT"),
		"Accept-Encoding":   is("gzip"), "User-Agent": is("test"), "X-Own": is("a", "b"),
	}
	g := newGate(t, testApp(), new(Gate))
	a := ask(t, g, requestFor(t, "/"+plainToken()+"/x.ts", func(r *http.Request) {
		maps.Copy(r.Header, removed)
		maps.Copy(r.Header, kept)
	}))
	if !a.allowed() {
		t.Fatalf("%d %s, want it allowed", a.status, a.reason)
	}
	if diff := cmp.Diff(kept, a.origin[0].Header); diff != "" {
		t.Errorf("headers at the origin (-want +got):\n%s", diff)
	}
}

// The attack: a short request for a thousand overlapping ranges, which an
// origin answers with a thousand times the file.
func TestRangesAreLimited(t *testing.T) {
	t.Parallel()
	g := newGate(t, testApp(), new(Gate))
	ranges := func(n int) string { return "bytes=" + strings.TrimSuffix(strings.Repeat("0-,", n), ",") }
	for _, tc := range []struct {
		name   string
		ranges []string
		want   bool
	}{
		{"none", nil, true},
		{"H9 one", is("bytes=0-1"), true},
		{"H9 eight", is(ranges(8)), true},
		{"H9 nine", is(ranges(9)), false},
		{"H9 a thousand", is(ranges(1000)), false},
		{"H9 two headers", is("bytes=0-1", "bytes=0-1"), false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			want := http.Header{"If-Range": is(`"x"`)}
			if tc.ranges != nil {
				want["Range"] = tc.ranges
			}
			sent := want.Clone()
			if !tc.want {
				want = http.Header{}
			}
			a := ask(t, g, requestFor(t, "/"+plainToken()+"/x.ts", func(r *http.Request) { r.Header = sent }))
			if !a.allowed() {
				t.Fatalf("%d %s, want it allowed", a.status, a.reason)
			}
			if diff := cmp.Diff(want, a.origin[0].Header); diff != "" {
				t.Errorf("headers at the origin (-want +got):\n%s", diff)
			}
		})
	}
}

// The attack: a body on a GET, whose end two servers see at two places.
func TestBodiesEndHere(t *testing.T) {
	t.Parallel()
	body := func(length int64, encoding ...string) func(*http.Request) {
		return func(r *http.Request) {
			r.Body = io.NopCloser(strings.NewReader("GET /vidB/x HTTP/1.1\r\n\r\n"))
			r.ContentLength, r.TransferEncoding, r.Trailer = length, encoding, http.Header{"X": nil}
		}
	}
	overHTTP2 := func(change func(*http.Request)) func(*http.Request) {
		return func(r *http.Request) { change(r); r.Proto, r.ProtoMajor, r.ProtoMinor = "HTTP/2.0", 2, 0 }
	}
	g := newGate(t, testApp(), new(Gate))
	for _, tc := range []struct {
		name, target string
		change       func(*http.Request)
		connection   string
	}{
		{"H8 Content-Length", "/" + plainToken() + "/x.ts", body(24), "close"},
		{"H8 chunked", "/" + plainToken() + "/x.ts", body(-1, "chunked"), "close"},
		{"H8 chunked of length 0", "/" + plainToken() + "/x.ts", body(0, "chunked"), "close"},
		{"H8 of unknown length", "/" + plainToken() + "/x.ts", body(-1), "close"},
		{"H8 HTTP/2", "/" + plainToken() + "/x.ts", overHTTP2(body(-1)), ""},
		{"H8 refused", "/demo/x.ts", body(24), "close"},
		{"H8 preflight", "/demo/x.ts", func(r *http.Request) { body(24)(r); r.Method = "OPTIONS" }, "close"},
		{"no body", "/" + plainToken() + "/x.ts", nil, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a := ask(t, g, requestFor(t, tc.target, tc.change))
			if got := a.header.Get("Connection"); got != tc.connection {
				t.Errorf("Connection = %q, want %q", got, tc.connection)
			}
			for _, r := range a.origin {
				if a.body != "" || r.ContentLength != 0 || len(r.TransferEncoding) != 0 || len(r.Trailer) != 0 {
					t.Errorf("the origin gets a body: %q, length %d, encoding %q, trailer %v",
						a.body, r.ContentLength, r.TransferEncoding, r.Trailer)
				}
			}
		})
	}
}

// The attack: rapid reset (CVE-2023-44487), by which a viewer has many requests
// made in a moment, at no cost, and takes them back.
func TestOriginIsNotAskedForWhoHasGone(t *testing.T) {
	t.Parallel()
	g := newGate(t, testApp(), new(Gate))
	ask(t, g, requestFor(t, "/"+plainToken()+"/x.ts", nil)) // whose token is not known waits to have it verified, and is refused
	for _, tc := range []struct {
		name, target string
		want         int
	}{
		{"segment", "/" + plainToken() + "/x.ts", 499},
		{"manifest", "/" + plainToken() + "/manifest/video.m3u8", 499},
		{"without a token", "/public/x.ts", 499},
		{"refused", "/demo/x.ts", http.StatusUnauthorized},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := requestFor(t, tc.target, nil)
			ctx, cancel := context.WithCancel(r.Context())
			cancel()
			a := ask(t, g, r.WithContext(ctx))
			if a.status != tc.want || len(a.origin) > 0 {
				t.Errorf("status %d, and the origin gets %d requests; want %d and none", a.status, len(a.origin), tc.want)
			}
		})
	}
}

// A preflight is answered whoever asks, for it grants no more than asking. It
// is the request behind it that is decided on.
func TestPreflights(t *testing.T) {
	t.Parallel()
	g := newGate(t, testApp(), new(Gate))
	plain := http.Header{"Allow": is("GET, HEAD, OPTIONS")}
	cors := http.Header{
		"Allow":                        is("GET, HEAD, OPTIONS"),
		"Access-Control-Allow-Origin":  is("*"),
		"Access-Control-Allow-Methods": is("GET, HEAD"),
		"Access-Control-Allow-Headers": is("Range, If-Range, If-None-Match, If-Modified-Since, Cache-Control"),
		"Access-Control-Max-Age":       is("86400"),
	}
	preflight := func(method string) func(*http.Request) {
		return func(r *http.Request) {
			r.Method = http.MethodOptions
			r.Header.Set("Origin", "https://example.com")
			if method != "" {
				r.Header.Set("Access-Control-Request-Method", method)
			}
			r.Header.Set("Access-Control-Request-Headers", strings.Repeat(",", 100_000)+"authorization")
		}
	}
	for _, tc := range []struct {
		name, target string
		change       func(*http.Request)
		want         http.Header
	}{
		{"token", "/" + plainToken() + "/x.ts", preflight("GET"), cors},
		{"video id", "/demo/x.ts", preflight("GET"), cors},
		{"token that is none", "/a.b.c/x.ts", preflight("GET"), cors},
		{"H5 PUT is not granted", "/" + plainToken() + "/x.ts", preflight("PUT"), cors},
		{"no preflight", "/" + plainToken() + "/x.ts", preflight(""), plain},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := requestFor(t, tc.target, tc.change)
			a := ask(t, g, r)
			if a.status != http.StatusNoContent || len(a.origin) != 0 || a.text != "" {
				t.Errorf("%s = %d %s, %d requests to the origin, want 204 and none", shortened(r), a.status, a.text, len(a.origin))
			}
			if diff := cmp.Diff(tc.want, a.header); diff != "" {
				t.Errorf("headers (-want +got):\n%s", diff)
			}
		})
	}
	t.Run("path that is none", func(t *testing.T) {
		r := requestFor(t, "/demo/../x.ts", preflight("GET"))
		wantRefusal(t, r, ask(t, g, r), "path_invalid")
	})
}

func TestDownloads(t *testing.T) {
	t.Parallel()
	downloadable := signed(func(c *token.Claims) { c.Downloadable = true })
	for _, tc := range []struct {
		name     string
		globs    []string
		suffix   string
		want     bool // without the claim
		wantKind string
	}{
		{"default", nil, "downloads/default.mp4", false, "download"},
		{"default in capitals", nil, "DOWNLOADS/default.mp4", false, "download"},
		{"default, percent-encoded", nil, "d%6Fwnloads/default.mp4", false, "download"},
		{"default, the folder itself", nil, "downloads/", false, "download"},
		{"default, a manifest in it", nil, "downloads/x.m3u8", false, "download"},
		{"default, a segment", nil, "video/1.m4s", true, "segment"},
		{"own globs", []string{"*.mov", "/originals/*"}, "a/b.MOV", false, "download"},
		{"own globs, the second", []string{"*.mov", "/originals/*"}, "originals/x", false, "download"},
		{"own globs replace the default", []string{"*.mov"}, "downloads/default.mp4", true, "segment"},
		{"a thumbnail", []string{"thumbnails/*"}, "thumbnails/1.jpg", false, "download"},
		{"the player page, whose kind stays", []string{"*"}, "iframe", false, "iframe"},
		{"a slash at the end, which some origins ignore", []string{"promo/*.mp4"}, "promo/x.mp4/", false, "download"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			g := newGate(t, testApp(), &Gate{Downloads: tc.globs})
			r := requestFor(t, "/"+plainToken()+"/"+tc.suffix, nil)
			a := ask(t, g, r)
			if a.allowed() != tc.want {
				t.Errorf("%s without the claim = %d %s, want allowed = %t", tc.suffix, a.status, a.reason, tc.want)
			}
			if !tc.want {
				wantRefusal(t, r, a, "download_not_allowed")
			}
			if got := placeholder(r, "kind"); got != tc.wantKind {
				t.Errorf("kind of %s = %q, want %q", tc.suffix, got, tc.wantKind)
			}
			if a := ask(t, g, requestFor(t, "/"+downloadable+"/"+tc.suffix, nil)); !a.allowed() {
				t.Errorf("%s with the claim = %d %s, want it allowed", tc.suffix, a.status, a.reason)
			}
		})
	}
}

// Dates count to the nanosecond of the gate's clock: `exp` is the first moment
// at which a token is dead, `nbf` less the leeway the first at which it lives.
func TestDates(t *testing.T) {
	t.Parallel()
	const second = time.Second
	exp, nbf := testTime.Add(time.Hour), testTime
	compact := signed(func(c *token.Claims) { c.NotBefore = nbf })
	for _, tc := range []struct {
		name string
		app  App
		at   time.Time
		want string
	}{
		{"J30 long before", App{}, nbf.Add(-time.Hour), "token_not_yet_valid"},
		{"J30 a nanosecond before nbf and leeway", App{}, nbf.Add(-5*second - 1), "token_not_yet_valid"},
		{"J30 nbf less the leeway", App{}, nbf.Add(-5 * second), ""},
		{"J30 nbf", App{}, nbf, ""},
		{"J30 a nanosecond before exp", App{}, exp.Add(-1), ""},
		{"J30 exp, on which there is no leeway", App{}, exp, "token_expired"},
		{"J30 after exp", App{}, exp.Add(1), "token_expired"},
		{"J30 leeway does not stretch exp", App{Leeway: new(caddy.Duration(time.Hour))}, exp, "token_expired"},
		{"J30 no leeway", App{Leeway: new(caddy.Duration(0))}, nbf.Add(-1), "token_not_yet_valid"},
		{"J30 no leeway, nbf", App{Leeway: new(caddy.Duration(0))}, nbf, ""},
		{"J30 leeway of a minute", App{Leeway: new(caddy.Duration(time.Minute))}, nbf.Add(-time.Minute), ""},
		{"J28 lifetime that just fits", App{MaxTokenLifetime: caddy.Duration(time.Hour)}, nbf, ""},
		{"J28 lifetime that just does not", App{MaxTokenLifetime: caddy.Duration(time.Hour)}, nbf.Add(-1), "token_lifetime_exceeded"},
		{"J28 lifetime of what has yet to begin", App{MaxTokenLifetime: caddy.Duration(time.Hour)}, nbf.Add(-time.Minute), "token_not_yet_valid"},
		{"S9 a clock that is far behind", App{}, time.Unix(0, 0), "token_not_yet_valid"},
		{"S9 a clock that is far ahead", App{}, exp.AddDate(1000, 0, 0), "token_expired"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			g := newGate(t, &tc.app, new(Gate))
			// A gate that has seen the token while it was good decides as one
			// that has not.
			for _, at := range []time.Time{tc.at, testTime.Add(time.Minute), tc.at} {
				g.app.now = func() time.Time { return at }
				r := requestFor(t, "/"+compact+"/x.ts", nil)
				a := ask(t, g, r)
				if at != tc.at {
					continue
				}
				if tc.want == "" && !a.allowed() {
					t.Errorf("at %s: %d %s, want it allowed", at, a.status, a.reason)
				}
				if tc.want != "" {
					wantRefusal(t, r, a, tc.want)
				}
			}
		})
	}
}

// A video's own settings override those for all, one by one.
func TestVideoSettings(t *testing.T) {
	t.Parallel()
	g := newGate(t, &App{
		VideoSettings: VideoSettings{
			RequireSignedURLs: new(false),
			AllowedOrigins:    []string{"example.com"},
			MissingOrigin:     "allow",
		},
		Videos: map[string]VideoSettings{
			"empty":   {},
			"signed":  {RequireSignedURLs: new(true)},
			"origins": {AllowedOrigins: []string{"example.org"}},
			"strict":  {MissingOrigin: "deny"},
			"any":     {AllowedOrigins: []string{"*"}},
		},
	}, new(Gate))
	const com, org = "https://example.com", "https://example.org"
	for _, tc := range []struct{ video, origin, want string }{
		{"unheard-of", "", ""},
		{"unheard-of", com, ""},
		{"unheard-of", org, "origin_not_allowed"},
		{"empty", "", ""},
		{"empty", org, "origin_not_allowed"},
		{"signed", "", "token_required"},
		{"signed", com, "token_required"},
		{"origins", "", ""},
		{"origins", com, "origin_not_allowed"},
		{"origins", org, ""},
		{"strict", "", "origin_required"},
		{"strict", com, ""},
		{"any", org, ""},
		{"any", "null", "origin_not_allowed"},
	} {
		for _, by := range []string{tc.video, signedFor(tc.video)} {
			want := tc.want
			if by != tc.video && want == "token_required" {
				want = "" // what the token is for
			}
			r := requestFor(t, "/"+by+"/x.ts", func(r *http.Request) {
				if tc.origin != "" {
					r.Header.Set("Origin", tc.origin)
				}
			})
			if a := ask(t, g, r); a.reason != want || a.allowed() != (want == "") {
				t.Errorf("%s from %q = %d %q, want %q", shortened(r), tc.origin, a.status, a.reason, want)
			}
		}
	}
}

func placeholder(r *http.Request, name string) string {
	repl := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	value, known := repl.GetString("http.signed_playback." + name)
	if !known {
		return "unknown placeholder"
	}
	return value
}

// logged returns what the access log gets to say about a request.
func logged(t *testing.T, d *decision) map[string]any {
	t.Helper()
	log, entries := observedLog()
	log.Info("handled request", zap.Inline(d))
	return entries.All()[0].ContextMap()
}

func TestPlaceholdersAndLogFields(t *testing.T) {
	t.Parallel()
	id := redact.TokenID(plainToken())
	if len(id) != 16 || strings.Trim(id, "0123456789abcdef") != "" || strings.Contains(plainToken(), id) {
		t.Fatalf("tokenID = %q, want 16 hexadecimal digits that are not the token's", id)
	}
	if got := redact.TokenID(""); got != "" {
		t.Errorf("tokenID of no token = %q, want it empty", got)
	}
	blocked := signedWithRules(`[{"type":"any","action":"block"}]`)
	for _, tc := range []struct {
		name, target string
		change       func(*http.Request)
		want         map[string]string
	}{
		{"allowed", "/" + plainToken() + "/manifest/video.m3u8", nil, map[string]string{
			"video": "demo", "kind": "manifest", "key_id": "k1", "token_id": id, "country": "GB",
		}},
		{"public", "/public/x.ts", from("198.51.100.1"), map[string]string{"video": "public", "kind": "segment", "country": "DE"}},
		{"address unknown to the database", "/public/thumbnails/1.jpg", from("8.8.8.8"), map[string]string{"video": "public", "kind": "thumbnail"}},
		{"address unknown", "/public", from("@"), map[string]string{"video": "public", "kind": "iframe"}},
		{"video that nobody has proved to be allowed to ask for", "/demo/x.ts", nil, map[string]string{
			"kind": "segment", "country": "GB", "reason": "token_required",
		}},
		{"claims that nobody has vouched for", "/a.b.c/x.ts", nil, map[string]string{
			"kind": "segment", "token_id": redact.TokenID("a.b.c"), "country": "GB", "reason": "token_malformed",
		}},
		{"blocked", "/" + blocked + "/x", nil, map[string]string{
			"video": "demo", "kind": "other", "key_id": "k1", "token_id": redact.TokenID(blocked), "country": "GB", "reason": "rule_blocked",
		}},
		{"download", "/" + plainToken() + "/downloads/x", nil, map[string]string{
			"video": "demo", "kind": "download", "key_id": "k1", "token_id": id, "country": "GB", "reason": "download_not_allowed",
		}},
		{"path", "/" + plainToken() + "/../x", nil, map[string]string{"kind": "other", "country": "GB", "reason": "path_invalid"}},
		{"method", "/" + plainToken() + "/x.ts", method("POST"), map[string]string{"kind": "other", "country": "GB", "reason": "method_not_allowed"}},
		{"preflight", "/" + plainToken() + "/x.ts", method("OPTIONS"), map[string]string{"kind": "segment", "token_id": id, "country": "GB"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			switch {
			case tc.want["reason"] != "":
				tc.want["result"] = "refused"
			case tc.name == "preflight":
				tc.want["result"] = "preflight"
			default:
				tc.want["result"] = "allowed"
			}
			g := newGate(t, testApp(), new(Gate))
			r := requestFor(t, tc.target, tc.change)
			ask(t, g, r)
			for _, name := range []string{"video", "kind", "key_id", "token_id", "country", "result", "reason"} {
				got := placeholder(r, name)
				if got != tc.want[name] {
					t.Errorf("{http.signed_playback.%s} = %q, want %q", name, got, tc.want[name])
				}
				wantNoToken(t, r, "the placeholder "+name, got)
			}
			if got := placeholder(r, "token"); got != "unknown placeholder" {
				t.Errorf("{http.signed_playback.token} = %q, want no such placeholder", got)
			}

			d := newDecision(g, requestFor(t, tc.target, tc.change), silentObserver{})
			if err := d.decide(); err != nil {
				_ = d.refuse(httptest.NewRecorder(), err)
			}
			want := make(map[string]any)
			for name, value := range tc.want {
				want["signed_playback_"+name] = value
			}
			if diff := cmp.Diff(want, logged(t, d)); diff != "" {
				t.Errorf("log fields (-want +got):\n%s", diff)
			}
		})
	}
}

// serverConfig is a server with a gate, an error page that says what it can,
// and an access log, as an operator may have them.
const serverConfig = `{
	"logging": {"logs": {"default": {"level": "DEBUG", "writer": {"output": "file", "filename": %q}}}},
	"apps": {
		"signed_playback": {"key_file": [%q], "geoip_database": "testdata/country.mmdb"},
		"http": {"servers": {"playback": {
			"automatic_https": {"disable": true},
			"routes": [{"handle": [
				{"handler": "signed_playback"},
				{"handler": "static_response", "body": "{http.signed_playback.video} {http.request.uri.path} {http.request.header.Referer}"}
			]}],
			"errors": {"routes": [{"handle": [{
				"handler": "static_response",
				"body": "{http.error.status_code} {http.error.message} {http.signed_playback.reason} {http.signed_playback.token_id}"
			}]}]},
			"logs": {}
		}}}
	}
}`

// The whole of it within Caddy's server, which is not started: error pages and
// the access log get to see what they should and no part of the token.
func TestGateWithinCaddysServer(t *testing.T) {
	logFile := filepath.Join(t.TempDir(), "log")
	var cfg caddy.Config
	config := fmt.Sprintf(serverConfig, logFile, writeFile(t, "key.json", publicJWK(testKey())))
	if err := json.Unmarshal([]byte(config), &cfg); err != nil {
		t.Fatal(err)
	}
	ctx, err := provisionContext(&cfg)
	if err != nil {
		t.Fatalf("provisioning: %v", err)
	}
	must(ctx.App(appID)).(*App).now = func() time.Time { return testTime }
	server := must(ctx.App("http")).(*caddyhttp.App).Servers["playback"]

	compact := signedWithRules(needsCountry)
	id := redact.TokenID(compact)
	for _, tc := range []struct {
		name, target, remote string
		status               int
		body                 string
		fields               map[string]any
	}{
		{
			"allowed", "/" + compact + "/x.ts", "203.0.113.7:1234", 200, "demo /demo/x.ts ",
			map[string]any{"video": "demo", "kind": "segment", "key_id": "k1", "token_id": id, "country": "GB", "result": "allowed"},
		},
		{
			"refused", "/" + compact + "/x.ts", "198.51.100.1:1234", 403, "403 rule_blocked: an access rule of the token blocks the viewer rule_blocked " + id,
			map[string]any{"video": "demo", "kind": "segment", "key_id": "k1", "token_id": id, "country": "DE", "result": "refused", "reason": "rule_blocked"},
		},
		{
			"malformed", "/" + compact + "=/x.ts", "203.0.113.7:1234", 401, "401 token_malformed: token: malformed: not canonical unpadded base64url token_malformed " + redact.TokenID(compact+"="),
			map[string]any{"kind": "segment", "token_id": redact.TokenID(compact + "="), "country": "GB", "result": "refused", "reason": "token_malformed"},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := len(must(os.ReadFile(logFile)))
			r := httptest.NewRequest(http.MethodGet, tc.target, nil)
			r.RemoteAddr = tc.remote
			r.Header.Set("Referer", "https://media.example.net/"+compact+"/iframe")
			w := httptest.NewRecorder()
			server.ServeHTTP(w, r)
			if w.Code != tc.status || w.Body.String() != tc.body {
				t.Errorf("%d %q, want %d %q", w.Code, w.Body, tc.status, tc.body)
			}
			for name, values := range w.Header() {
				if strings.Contains(strings.Join(values, " "), compact) {
					t.Errorf("the response's header %s contains the token", name)
				}
			}
			want := make(map[string]any)
			for name, value := range tc.fields {
				want["signed_playback_"+name] = value
			}
			got := accessLog(t, must(os.ReadFile(logFile))[before:])
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("fields of the access log (-want +got):\n%s", diff)
			}
		})
	}
}

// accessLog finds the one line of an access log in what has been logged and
// returns the gate's fields in it. No other line may contain a token outside
// the description of the request, which is the log's own.
func accessLog(t *testing.T, log []byte) map[string]any {
	t.Helper()
	fields := make(map[string]any)
	lines := 0
	for line := range strings.Lines(string(log)) {
		var entry map[string]any
		if err := json.Unmarshal([]byte(line), &entry); err != nil {
			t.Fatalf("the log has the line %q: %v", line, err)
		}
		delete(entry, "request")
		rest := string(must(json.Marshal(entry)))
		for segment := range strings.SplitSeq(plainToken(), ".") {
			if strings.Contains(rest, segment) && len(segment) > 40 {
				t.Errorf("a log line contains a part of a token: %s", rest)
			}
		}
		if strings.Contains(rest, "eyJ") {
			t.Errorf("a log line contains a part of a token: %s", rest)
		}
		if !strings.HasPrefix(entry["logger"].(string), "http.log.access") {
			continue
		}
		lines++
		for name, value := range entry {
			if strings.HasPrefix(name, "signed_playback_") {
				fields[name] = value
			}
		}
	}
	if lines != 1 {
		t.Errorf("the access log has %d lines, want 1:\n%s", lines, log)
	}
	return fields
}

// Earlier requests must not change a decision: a gate that has answered hundreds
// of requests decides on each as a new one does.
func TestGateDecidesAsAFreshOne(t *testing.T) {
	t.Parallel()
	app := testApp()
	app.KeyFiles = []string{writeFile(t, "key.json", publicJWK(testKey()))}
	app.MaxTokenLifetime = caddy.Duration(2 * time.Hour)
	_, old, err := provisioned(t, app, new(Gate))
	if err != nil {
		t.Fatal(err)
	}
	next := randomRequests(t)
	seen := make(map[string]int)
	for i := range 500 {
		makeRequest, now := next()
		_, fresh, err := provisioned(t, app, new(Gate))
		if err != nil {
			t.Fatal(err)
		}
		fresh.app.verifier.cache = newTokenCache(minTokenCacheSize) // gates of one size share theirs
		old.app.now, fresh.app.now = now, now
		got, want := outcomeOf(t, old, makeRequest()), outcomeOf(t, fresh, makeRequest())
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("request %d (-fresh gate +old gate):\n%s", i, diff)
		}
		seen[want.Reason]++
	}
	for _, reason := range []string{"", "path_invalid", "token_expired", "rule_blocked", "origin_not_allowed", "download_not_allowed", "too_early"} {
		if seen[reason] < 5 {
			t.Errorf("%d of the requests ended with %q: the test does not test it", seen[reason], reason)
		}
	}
}

// outcome is all that a decision shows.
type outcome struct {
	Status         int
	Reason, Text   string
	Header, Origin http.Header
	URI            []string
	Recorded       []string
}

func outcomeOf(t *testing.T, g *Gate, r *http.Request) outcome {
	t.Helper()
	a := ask(t, g, r)
	_, text, _ := strings.Cut(a.text, ": HTTP ") // less the random id
	o := outcome{Status: a.status, Reason: a.reason, Text: text, Header: a.header}
	for _, seen := range a.origin {
		o.URI = append(o.URI, seen.RequestURI)
		o.Origin = seen.Header
	}
	for _, name := range recordedNames {
		o.Recorded = append(o.Recorded, placeholder(r, name))
	}
	return o
}

// randomRequests returns a function that makes one pseudo-random request after
// another, always the same ones, and the time at which it is made.
func randomRequests(t *testing.T) func() (request func() *http.Request, now func() time.Time) {
	t.Helper()
	random := rand.New(rand.NewPCG(5, 6))
	firsts := []string{
		"demo", "public", "oursite", "a.b.c", "..", "a.b", plainToken(), plainToken() + "=", signedFor("public"), signedFor("site"),
		signedFor("oursite"), signedWithRules(needsAddress), signedWithRules(needsCountry), signedWithRules(needsNothing),
		signedWithRules(`[]`), signedWithRules(`[{}]`), signedWithRules(`[{"type":"any","action":"block"}]`),
		signed(func(c *token.Claims) { c.Downloadable = true }),
		signed(func(c *token.Claims) { c.NotBefore = testTime }),
		signed(func(c *token.Claims) { c.ExpiresAt = testTime.Add(time.Minute) }),
		must(token.Sign(token.Claims{VideoID: "demo", ExpiresAt: testTime.Add(time.Hour)}, strangerKey())),
	}
	suffixes := []string{"", "/", "/iframe", "/x.ts", "/manifest/video.m3u8?a=b", "/downloads/x.mp4", "/a/../b", "/%20", "/thumbnails/1.jpg"}
	methods := []string{"GET", "GET", "GET", "GET", "HEAD", "OPTIONS", "POST"}
	addresses := []string{"203.0.113.7", "203.0.113.7", "::ffff:203.0.113.7", "198.51.100.1", "8.8.8.8", "2001:db8:1::1", "", "@"}
	headers := []http.Header{
		{},
		{"Origin": is("https://example.com")},
		{"Origin": is("https://evil.com")},
		{"Origin": is("null")},
		{"Referer": is("https://example.com/x")},
		{"Referer": is("https://media.example.net/x/iframe")},
		{"Sec-Fetch-Dest": is("iframe")},
	}
	times := []time.Duration{-2 * time.Hour, -5 * time.Second, 0, 0, 0, time.Minute, time.Hour}
	return func() (func() *http.Request, func() time.Time) {
		target := "/" + pick(random, firsts) + pick(random, suffixes)
		method, address, header := pick(random, methods), pick(random, addresses), pick(random, headers)
		early, now := random.IntN(4) == 0, testTime.Add(pick(random, times))
		return func() *http.Request {
			return requestFor(t, target, func(r *http.Request) {
				r.Method, r.Header = method, header.Clone()
				from(address)(r)
				if early {
					unfinishedHandshake(r)
				}
			})
		}, func() time.Time { return now }
	}
}

func pick[T any](random *rand.Rand, from []T) T { return from[random.IntN(len(from))] }

// The tables above have a case for each reason that there is.
func TestEachReasonIsTested(t *testing.T) {
	t.Parallel()
	elsewhere := []string{
		"country_unavailable", "state_unavailable", "token_lifetime_exceeded", // TestRefusalsOfWhatCannotBeTold
		"verification_limited", // TestForgedTokensAreLimitedByNetwork
	}
	for name := range refusals {
		tested := slices.Contains(elsewhere, name)
		for _, tc := range refused {
			tested = tested || tc.want == name
		}
		if !tested {
			t.Errorf("no request is refused with %q", name)
		}
	}
}

// A client's address is looked up as IPv4 if it is IPv4 in any of its forms.
func TestCountryOfAMappedAddress(t *testing.T) {
	t.Parallel()
	g := newGate(t, testApp(), new(Gate))
	for _, ip := range []string{"203.0.113.7", "::ffff:203.0.113.7", "::ffff:cb00:7107", "::ffff:203.0.113.7%eth0"} {
		r := requestFor(t, "/public/x.ts", from(ip))
		ask(t, g, r)
		if got := placeholder(r, "country"); got != "GB" {
			t.Errorf("country of %s = %q, want GB", ip, got)
		}
	}
}
