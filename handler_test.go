package signedplayback

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	_ "github.com/caddyserver/caddy/v2/modules/standard" // the handlers, matchers and writers of the configs
	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"

	"github.com/signed-playback/caddy-signed-playback/internal/headerpolicy"
	"github.com/signed-playback/caddy-signed-playback/internal/redact"
	"github.com/signed-playback/caddy-signed-playback/internal/refusal"
	"github.com/signed-playback/caddy-signed-playback/token"
)

// testApp is a config with something for every step of the gate.
func testApp() *App {
	return &App{
		GeoIPDatabase: "testdata/country.mmdb", ASNDatabase: "testdata/asn.mmdb", AnonymousDatabase: "testdata/anonymous.mmdb",
		Videos: map[string]VideoSettings{
			"public":  {RequireSignedURLs: new(false)},
			"coming":  {RequireSignedURLs: new(false), AvailableFrom: "2027-01-15T10:00:00+01:00"}, // an hour after testTime
			"gone":    {AvailableUntil: "2027-01-15T08:00:00Z"},
			"site":    {AllowedOrigins: []string{"example.com"}},
			"oursite": {RequireSignedURLs: new(false), AllowedOrigins: []string{"example.com"}, MissingOrigin: "allow"},
		},
	}
}

func signedFor(video string) string {
	return signed(func(c *token.Claims) { c.VideoID = video })
}

// The rules of the tests. The viewer is at 203.0.113.7, which is in GB, in AS64496 and a
// VPN.
const (
	blocksASN    = `[{"type":"ip.geoip.asnum","action":"block","asn":[64500,64496]}]`
	blocksVPN    = `[{"type":"ip.anonymous","action":"block","kinds":["tor","vpn"]}]`
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

// refused are requests to a gate of testApp, at least one for each reason. The
// tests of paths, tokens, rules and origins have all ways to be refused.
var refused = []struct {
	name   string
	target func() string
	change func(*http.Request)
	want   string
}{
	{"P1 dot segments", under(plainToken, "/../vidB/x.ts"), nil, "path_invalid"},
	{"P12 neither token nor id", literal("/a.b/x.ts"), nil, "path_invalid"},
	{"P10 a prefix that is not removed", func() string { return "/public/" + plainToken() + "/x.ts" }, nil, "path_invalid"},
	{"P15 CONNECT with a path", under(plainToken, "/x.ts"), method("CONNECT"), "method_not_allowed"},
	{"P15 CONNECT", literal("/x"), func(r *http.Request) { r.Method, r.URL.Path = "CONNECT", "" }, "method_not_allowed"},
	{"H6 POST", under(plainToken, "/x.ts"), method("POST"), "method_not_allowed"},
	{"H6 get in lower case", under(plainToken, "/x.ts"), method("get"), "method_not_allowed"},
	{"H6 a method and a path that are both wrong", literal("/../x"), method("DELETE"), "method_not_allowed"},
	{"a service worker, which would take the host", under(plainToken, "/poster.jpg"), with("Service-Worker", "script"), "service_worker_not_allowed"},
	{"a service worker under a public id", literal("/public/sw.js"), with("Service-Worker", ""), "service_worker_not_allowed"},
	{"P11 unknown video id", literal("/nosuchvideo/x.ts"), nil, "token_required"},
	{"P12 a token cut to its header", func() string { head, _, _ := strings.Cut(plainToken(), "."); return "/" + head + "/x.ts" }, nil, "token_required"},
	{"J16 line break", under(plainToken, "%0a/x.ts"), nil, "token_malformed"},
	{"J25 no exp", under(forgedToken(`{"alg":"RS256","kid":"k1"}`, `{"sub":"demo"}`), "/x.ts"), nil, "token_malformed"},
	{"J1 alg none", under(forgedToken(`{"alg":"none"}`, `{"sub":"demo","exp":1800000060}`), "/x.ts"), nil, "algorithm_not_allowed"},
	{"J11 unknown key", under(forgedToken(`{"alg":"RS256","kid":"k2"}`, `{"sub":"demo","exp":1800000060}`), "/x.ts"), nil, "key_unknown"},
	{"signature of another key", under(func() string {
		return must(token.Sign(token.Claims{VideoID: "demo", ExpiresAt: testTime.Add(time.Hour), ID: "j1", IssuedAt: testTime}, strangerKey()))
	}, "/x.ts"), nil, "signature_invalid"},
	{"expired token for a public video", under(signedAs(func(c *token.Claims) { c.VideoID, c.ExpiresAt = "public", testTime }), "/x.ts"), nil, "token_expired"},
	{"not yet valid", under(signedAs(func(c *token.Claims) { c.NotBefore = testTime.Add(time.Minute) }), "/x.ts"), nil, "token_not_yet_valid"},
	{"J35 rules that nobody understands", under(withRules(`[{"type":"ip.geoip.asnum","action":"allow"}]`), "/x.ts"), nil, "rules_invalid"},
	{"rules block the address", under(withRules(needsAddress), "/x.ts"), from("203.0.114.7"), "rule_blocked"},
	{"rules block the country", under(withRules(needsCountry), "/x.ts"), from("198.51.100.1"), "rule_blocked"},
	{"rules block the autonomous system", under(withRules(blocksASN), "/x.ts"), nil, "rule_blocked"},
	{"rules block the anonymous network", under(withRules(blocksVPN), "/x.ts"), nil, "rule_blocked"},
	{"N5 hidden address of a network", under(withRules(blocksASN), "/x.ts"), from("_hidden"), "client_ip_unknown"},
	{"rules block a public video's token", under(signedAs(func(c *token.Claims) {
		c.VideoID, c.AccessRules = "public", json.RawMessage(blocksAll)
	}), "/x.ts"), nil, "rule_blocked"},
	{"R8 no origin", func() string { return "/" + signedFor("site") + "/x.ts" }, nil, "origin_required"},
	{"R1 other origin", func() string { return "/" + signedFor("site") + "/x.ts" }, with("Origin", "https://evil.com"), "origin_not_allowed"},
	{"R7 null origin", func() string { return "/" + signedFor("site") + "/x.ts" }, with("Origin", "null"), "origin_not_allowed"},
	{"R9 other origin at a public video", literal("/oursite/x.ts"), with("Referer", "https://evil.com/"), "origin_not_allowed"},
	{"R11 iframe within the gateway's own page", func() string { return "/" + signedFor("site") }, with("Referer", "https://media.example.net/x"), "origin_not_allowed"},
	{"a video before its premiere", literal("/coming/x.ts"), nil, "not_available_yet"},
	{"a token for a video before its premiere", func() string { return "/" + signedFor("coming") + "/x.ts" }, nil, "not_available_yet"},
	{"a valid token for a video whose time is over", func() string { return "/" + signedFor("gone") + "/iframe" }, nil, "no_longer_available"},
	{"a video whose time is over, without a token", literal("/gone/x.ts"), nil, "token_required"},
	{"download without the claim", under(plainToken, "/downloads/default.mp4"), nil, "download_not_allowed"},
	{"download of a public video without a token", literal("/public/downloads/default.mp4"), nil, "download_not_allowed"},
	{"N5 address unknown", under(withRules(needsAddress), "/x.ts"), from(""), "client_ip_unknown"},
	{"N7 address of a Unix socket", under(withRules(needsAddress), "/x.ts"), from("@"), "client_ip_unknown"},
	{"N5 address with a port", under(withRules(needsAddress), "/x.ts"), from("203.0.113.7:443"), "client_ip_unknown"},
	{"N5 address in quotes", under(withRules(needsAddress), "/x.ts"), from(`"203.0.113.7"`), "client_ip_unknown"},
	{"N5 hidden address", under(withRules(needsCountry), "/x.ts"), from("_hidden"), "client_ip_unknown"},
	{"H11 early data, address", under(withRules(needsAddress), "/x.ts"), unfinishedHandshake, "too_early"},
	{"H11 early data that the rules would block", under(withRules(`[{"type":"ip.src","action":"block","ip":["203.0.113.7"]}]`), "/x.ts"), unfinishedHandshake, "too_early"},
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	g := newGate(t, testApp(), new(Gate))
	for _, tc := range refused {
		t.Run(tc.name, func(t *testing.T) {
			wantOutcome(t, g, requestFor(t, tc.target(), tc.change), tc.want)
		})
	}
}

// A video plays at available_from, and no longer at available_until, whatever the offsets from
// UTC are.
func TestSchedule(t *testing.T) {
	t.Parallel()
	const from, until = "2027-01-15T09:30:00.5+01:30", "2027-01-15T08:00:01Z" // half a second and a second after testTime
	g := newGate(t, &App{VideoSettings: VideoSettings{RequireSignedURLs: new(false)}, Videos: map[string]VideoSettings{
		"both": {AvailableFrom: from, AvailableUntil: until}, "from": {AvailableFrom: from}, "until": {AvailableUntil: until},
	}}, new(Gate))
	for _, tc := range []struct {
		video string
		after time.Duration // after testTime
		want  string
	}{
		{"both", -time.Hour, "not_available_yet"},
		{"both", time.Second/2 - 1, "not_available_yet"},
		{"both", time.Second / 2, ""},
		{"both", time.Second - 1, ""},
		{"both", time.Second, "no_longer_available"},
		{"both", 1000 * time.Hour, "no_longer_available"},
		{"from", 1000 * time.Hour, ""},
		{"from", -2 * time.Hour, "not_available_yet"},
		{"until", -1000 * time.Hour, ""},
		{"until", time.Second, "no_longer_available"},
	} {
		g.app.now = func() time.Time { return testTime.Add(tc.after) }
		for _, suffix := range []string{"/x.ts", "/iframe", "/manifest/video.m3u8"} {
			wantOutcome(t, g, requestFor(t, "/"+tc.video+suffix, nil), tc.want)
		}
	}
}

// A gate that cannot find out what a check needs refuses. In report-only mode, it lets the
// request through and says why it would refuse.
func TestRefusalsOfWhatCannotBeTold(t *testing.T) {
	t.Parallel()
	inGB := "/" + signedWithRules(needsCountry) + "/x.ts"
	unknownKey := "/" + encoded(`{"alg":"RS256","kid":"k2"}`, `{"sub":"demo","exp":1800000060}`) + "/x.ts"
	noKey := "/" + encoded(`{"alg":"RS256"}`, `{"sub":"demo","exp":1800000060}`) + "/x.ts"
	notLoaded := App{JWKSURL: "http://127.0.0.1:1/" + t.Name()}
	for _, tc := range []struct {
		name   string
		app    App
		target string
		change func(*http.Request)
		want   string // "" if the request passes
	}{
		{"a country without a database", App{}, inGB, nil, "country_unavailable"},
		{"a country in a record that cannot be read", *testApp(), inGB, from("198.18.0.1"), "country_unavailable"},
		{"a network without a database", App{GeoIPDatabase: "testdata/country.mmdb"}, "/" + signedWithRules(blocksASN) + "/x.ts", nil, "network_unavailable"},
		{"a network in a record that cannot be read", *testApp(), "/" + signedWithRules(blocksASN) + "/x.ts", from("198.18.0.1"), "network_unavailable"},
		{"an anonymous network without a database", App{ASNDatabase: "testdata/asn.mmdb"}, "/" + signedWithRules(blocksVPN) + "/x.ts", nil, "network_unavailable"},
		{"an anonymous network in a record that cannot be read", *testApp(), "/" + signedWithRules(blocksVPN) + "/x.ts", from("198.18.0.1"), "network_unavailable"},
		{"a network, and the country has no database", App{ASNDatabase: "testdata/flat_asn.mmdb"}, "/" + signedWithRules(blocksASN) + "/x.ts", from("198.51.100.1"), ""},
		{"a key, and the key set has not been loaded", notLoaded, unknownKey, nil, "state_unavailable"},
		{"no key, which no set contains", notLoaded, noKey, nil, "key_unknown"},
		{"a key of the config", notLoaded, "/" + plainToken() + "/x.ts", nil, ""},
		{"a lifetime that is too long", App{MaxTokenLifetime: caddy.Duration(time.Minute)}, "/" + plainToken() + "/x.ts", nil, "token_lifetime_exceeded"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			gates := newGates(t, &tc.app, []*Gate{{Enforcement: enforced()}, {Enforcement: unenforced()}})
			wantOutcome(t, gates[0], requestFor(t, tc.target, tc.change), tc.want)
			if r := requestFor(t, tc.target, tc.change); tc.want != "" {
				wantReported(t, gates[1], r, tc.want)
			} else {
				wantOutcome(t, gates[1], r, "")
			}
		})
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
	{"manifest", under(plainToken, "/manifest/video.m3u8"), nil, "/demo/manifest/video.m3u8"},
	{"HEAD", under(plainToken, "/manifest/video.m3u8"), method("HEAD"), "/demo/manifest/video.m3u8"},
	{"token alone", under(plainToken, ""), nil, "/demo/iframe"},
	{"token and a slash", under(plainToken, "/"), nil, "/demo/iframe"},
	{"percent-encoding stays as it is", under(plainToken, "/my%20clip%c3%A9/~1.ts"), nil, "/demo/my%20clip%c3%A9/~1.ts"},
	{"the query goes along", under(plainToken, "/x.m3u8?_HLS_msn=4&a=b;c=%zz"), nil, "/demo/x.m3u8?_HLS_msn=4&a=b;c=%zz"},
	{"an empty query", under(plainToken, "/x.m3u8?"), nil, "/demo/x.m3u8?"},
	{"absolute form", func() string { return "http://user:secret@media.example.net/" + plainToken() + "/x.ts" }, nil, "/demo/x.ts"},
	{"P10 video id behind the token", under(plainToken, "/vidB/x.ts"), nil, "/demo/vidB/x.ts"},
	{"public video by its id", literal("/public/x.ts"), nil, "/public/x.ts"},
	{"public video by a token", func() string { return "/" + signedFor("public") + "/x.ts" }, nil, "/public/x.ts"},
	{"any site where no origins are set", under(plainToken, "/x.ts"), with("Origin", "null"), "/demo/x.ts"},
	{"allowed origin", func() string { return "/" + signedFor("site") + "/x.ts" }, with("Origin", "https://example.com"), "/site/x.ts"},
	{"the gate's own page", func() string { return "/" + signedFor("site") + "/x.ts" }, func(r *http.Request) {
		r.Header.Set("Referer", "https://media.example.net"+strings.TrimSuffix(r.URL.Path, "x.ts")+"iframe")
	}, "/site/x.ts"},
	{"iframe that a browser loads", func() string { return "/" + signedFor("site") + "/iframe" }, with("Sec-Fetch-Dest", "iframe"), "/site/iframe"},
	{"missing origin that is allowed", literal("/oursite/x.ts"), nil, "/oursite/x.ts"},
	{"address that the rules allow", under(withRules(needsAddress), "/x.ts"), nil, "/demo/x.ts"},
	{"a network that the rules do not block", under(withRules(blocksASN), "/x.ts"), from("198.51.100.1"), "/demo/x.ts"},
	{"an anonymous network that the rules do not block", under(withRules(blocksVPN), "/x.ts"), from("127.0.0.1"), "/demo/x.ts"},
	{"a network that no database knows", under(withRules(blocksASN), "/x.ts"), from("8.8.8.8"), "/demo/x.ts"},
	{"country that the rules allow", under(withRules(needsCountry), "/x.ts"), nil, "/demo/x.ts"},
	{"N4 mapped address", under(withRules(needsAddress), "/x.ts"), from("::ffff:203.0.113.7"), "/demo/x.ts"},
	{"N4 country of a mapped address", under(withRules(needsCountry), "/x.ts"), from("::ffff:cb00:7107"), "/demo/x.ts"},
	{"N5 zone", under(withRules(`[{"type":"ip.src","action":"allow","ip":["fe80::/10"]},{"type":"any","action":"block"}]`), "/x.ts"), from("fe80::1%eth0"), "/demo/x.ts"},
	{"N5 mapped address with a zone", under(withRules(needsAddress), "/x.ts"), from("::ffff:203.0.113.7%eth0"), "/demo/x.ts"},
	{"N5 country of a mapped address with a zone", under(withRules(needsCountry), "/x.ts"), from("::ffff:203.0.113.7%eth0"), "/demo/x.ts"},
	{"unknown address where no rule needs it", under(withRules(needsNothing), "/x.ts"), from(""), "/demo/x.ts"},
	{"N7 Unix socket where no rule needs it", under(plainToken, "/x.ts"), from("@"), "/demo/x.ts"},
	{"H11 early data where no rule needs the address", under(withRules(needsNothing), "/x.ts"), unfinishedHandshake, "/demo/x.ts"},
	{"H11 early data without rules", under(plainToken, "/x.ts"), unfinishedHandshake, "/demo/x.ts"},
	{"finished handshake", under(withRules(needsAddress), "/x.ts"), func(r *http.Request) {
		r.TLS = &tls.ConnectionState{HandshakeComplete: true}
	}, "/demo/x.ts"},
	{"download with the claim", under(signedAs(func(c *token.Claims) { c.Downloadable = true }), "/downloads/default.mp4"), nil, "/demo/downloads/default.mp4"},
}

func TestRequestsThatPass(t *testing.T) {
	t.Parallel()
	g := newGate(t, testApp(), new(Gate))
	for _, tc := range passed {
		t.Run(tc.name, func(t *testing.T) {
			r := requestFor(t, tc.target(), tc.change)
			a := wantOutcome(t, g, r, "")
			if !a.allowed() {
				return
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
			switch {
			case !tc.want:
				want = http.Header{}
			case tc.ranges != nil:
				want["Accept-Encoding"] = []string{"identity"}
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
				if r.ContentLength != 0 || len(r.TransferEncoding) != 0 || len(r.Trailer) != 0 {
					t.Errorf("the origin gets a body: length %d, encoding %q, trailer %v", r.ContentLength, r.TransferEncoding, r.Trailer)
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
	plain := http.Header{
		"Allow":                   is("GET, HEAD, OPTIONS"),
		"Content-Security-Policy": is("sandbox; default-src 'none'"),
		"X-Content-Type-Options":  is("nosniff"),
	}
	cors := http.Header{
		"Access-Control-Allow-Origin":  is("*"),
		"Access-Control-Allow-Methods": is("GET, HEAD"),
		"Access-Control-Max-Age":       is("86400"),
	}
	maps.Copy(cors, plain)
	asking := func(names ...string) func(*http.Request) {
		return func(r *http.Request) {
			r.Method, r.Header["Access-Control-Request-Headers"] = http.MethodOptions, names
			r.Header.Set("Access-Control-Request-Method", "GET")
		}
	}
	granting := func(names string) http.Header {
		granted := cors.Clone()
		granted["Access-Control-Allow-Headers"] = is(names)
		return granted
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
		{"headers of tracing and CMCD", "/demo/x.ts", asking("traceparent, cmcd-session, pragma, x-requested-with"), granting("traceparent, cmcd-session, pragma, x-requested-with")},
		{"Authorization, which * would not grant", "/demo/x.ts", asking("authorization,range"), granting("authorization,range")},
		{"headers in two lines", "/demo/x.ts", asking("range", "x-a\t, x-b"), granting("range,x-a\t, x-b")},
		{"the longest list", "/demo/x.ts", asking(strings.Repeat("x", 4096)), granting(strings.Repeat("x", 4096))},
		{"a longer list", "/demo/x.ts", asking(strings.Repeat("x", 4097)), cors},
		{"H5 text that is no name", "/demo/x.ts", asking("range, x y"), cors},
		{"H5 another header", "/demo/x.ts", asking("range\r\nSet-Cookie: a=b"), cors},
		{"H5 markup", "/demo/x.ts", asking("<script>"), cors},
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
		wantOutcome(t, g, requestFor(t, "/demo/../x.ts", preflight("GET")), "path_invalid")
	})
}

// TestDownloadGlobs has the globs.
func TestDownloads(t *testing.T) {
	t.Parallel()
	downloadable := signed(func(c *token.Claims) { c.Downloadable = true })
	rows := []struct {
		globs    []string
		suffix   string
		download bool
		kind     string
	}{
		{nil, "downloads/default.mp4", true, "download"},
		{nil, "downloads/x.m3u8", true, "download"},
		{nil, "video/1.m4s", false, "segment"},
		{[]string{"*.mov", "/originals/*"}, "originals/x", true, "download"},
		{[]string{"*.mov"}, "downloads/default.mp4", false, "segment"}, // own globs replace the default
		{[]string{"*"}, "iframe", true, "iframe"},                      // the kind of the player page stays
		{[]string{"promo/*.mp4"}, "promo/x.mp4/", true, "download"},    // some origins ignore the slash
	}
	gates := make([]*Gate, len(rows))
	for i, tc := range rows {
		gates[i] = &Gate{Downloads: tc.globs}
	}
	for i, g := range newGates(t, testApp(), gates) {
		tc := rows[i]
		r := requestFor(t, "/"+plainToken()+"/"+tc.suffix, nil)
		wantOutcome(t, g, r, map[bool]string{true: "download_not_allowed"}[tc.download])
		if got := placeholder(r, "kind"); got != tc.kind {
			t.Errorf("%v: kind of %s = %q, want %q", tc.globs, tc.suffix, got, tc.kind)
		}
		wantOutcome(t, g, requestFor(t, "/"+downloadable+"/"+tc.suffix, nil), "")
	}
}

// The settings of the config reach the check of the dates, and a gate that knows a
// token already checks its dates again. The tests of token have all boundaries.
func TestDates(t *testing.T) {
	t.Parallel()
	const second, hour = time.Second, time.Hour
	compact := signed(func(c *token.Claims) { c.NotBefore = testTime }) // expires in an hour
	for _, tc := range []struct {
		name string
		app  App
		at   time.Duration // from now
		want string
	}{
		{"J30 a nanosecond before nbf and the default leeway", App{}, -5*second - 1, "token_not_yet_valid"},
		{"J30 nbf less the default leeway", App{}, -5 * second, ""},
		{"J30 exp", App{}, hour, "token_expired"},
		{"J30 a leeway does not prolong exp", App{Leeway: new(caddy.Duration(hour))}, hour, "token_expired"},
		{"J30 leeway of a minute", App{Leeway: new(caddy.Duration(time.Minute))}, -time.Minute, ""},
		{"J28 lifetime that just does not", App{MaxTokenLifetime: caddy.Duration(hour)}, -1, "token_lifetime_exceeded"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			g := newGate(t, &tc.app, new(Gate))
			for range 2 {
				g.app.now = func() time.Time { return testTime.Add(tc.at) }
				wantOutcome(t, g, requestFor(t, "/"+compact+"/x.ts", nil), tc.want)
				g.app.now = func() time.Time { return testTime.Add(time.Minute) }
				ask(t, g, requestFor(t, "/"+compact+"/x.ts", nil))
			}
		})
	}
}

// The settings of a video override those for all, one by one. Each want is the
// result without an origin, from example.com and from example.org.
func TestVideoSettings(t *testing.T) {
	t.Parallel()
	g := newGate(t, &App{
		VideoSettings: VideoSettings{RequireSignedURLs: new(false), AllowedOrigins: []string{"example.com"}, MissingOrigin: "allow"},
		Videos: map[string]VideoSettings{
			"empty": {}, "signed": {RequireSignedURLs: new(true)}, "origins": {AllowedOrigins: []string{"example.org"}},
			"strict": {MissingOrigin: "deny"}, "any": {AllowedOrigins: []string{"*"}},
		},
	}, new(Gate))
	const no, token = "origin_not_allowed", "token_required"
	for video, wants := range map[string][]string{
		"unheard-of": {"", "", no}, "empty": {"", "", no}, "signed": {token, token, token}, "origins": {"", no, ""},
		"strict": {"origin_required", "", no}, "any": {"", "", ""},
	} {
		for i, origin := range []string{"", "https://example.com", "https://example.org"} {
			want := wants[i]
			for _, first := range []string{video, signedFor(video)} {
				r := requestFor(t, "/"+first+"/x.ts", func(r *http.Request) {
					if origin != "" {
						r.Header.Set("Origin", origin)
					}
				})
				if a := ask(t, g, r); a.reason != want || a.allowed() != (want == "") {
					t.Errorf("%s from %q = %d %q, want %q", shortened(r), origin, a.status, a.reason, want)
				}
				if want == token { // which the second request has
					want = map[string]string{"https://example.org": no}[origin]
				}
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
	id, blocked := redact.TokenID(plainToken()), signedWithRules(blocksAll)
	g := newGate(t, testApp(), new(Gate))
	for _, tc := range []struct {
		name, target string
		change       func(*http.Request)
		want         string // the video, kind, key id, token id, country, result and reason; "-" for none
	}{
		{"allowed", "/" + plainToken() + "/manifest/video.m3u8", nil, "demo manifest k1 " + id + " GB allowed -"},
		{"public", "/public/x.ts", from("198.51.100.1"), "public segment - - DE allowed -"},
		{"address unknown to the database", "/public/thumbnails/1.jpg", from("8.8.8.8"), "public thumbnail - - - allowed -"},
		{"address unknown", "/public", from("@"), "public iframe - - - allowed -"},
		{"video that the client may not ask for", "/demo/x.ts", nil, "- segment - - GB refused token_required"},
		{"claims that no key has signed", "/a.b.c/x.ts", nil, "- segment - " + redact.TokenID("a.b.c") + " GB refused token_malformed"},
		{"blocked", "/" + blocked + "/x", nil, "demo other k1 " + redact.TokenID(blocked) + " GB refused rule_blocked"},
		{"download", "/" + plainToken() + "/downloads/x", nil, "demo download k1 " + id + " GB refused download_not_allowed"},
		{"path", "/" + plainToken() + "/../x", nil, "- other - - GB refused path_invalid"},
		{"method", "/" + plainToken() + "/x.ts", method("POST"), "- other - - GB refused method_not_allowed"},
		{"preflight", "/" + plainToken() + "/x.ts", method("OPTIONS"), "- segment - " + id + " GB preflight -"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := requestFor(t, tc.target, tc.change)
			ask(t, g, r)
			want := make(map[string]any)
			wants := strings.Fields(tc.want)
			for i, name := range []string{"video", "kind", "key_id", "token_id", "country", "result", "reason"} {
				value := strings.TrimPrefix(wants[i], "-")
				if got := placeholder(r, name); got != value {
					t.Errorf("{http.signed_playback.%s} = %q, want %q", name, got, value)
				}
				if value != "" {
					want["signed_playback_"+name] = value
				}
			}
			if got := placeholder(r, "token"); got != "unknown placeholder" {
				t.Errorf("{http.signed_playback.token} = %q, want no such placeholder", got)
			}
			d := newDecision(g, requestFor(t, tc.target, tc.change), silentObserver{})
			if err := d.decide(); err != nil {
				_ = d.refuse(httptest.NewRecorder(), err)
			}
			if diff := cmp.Diff(want, logged(t, d)); diff != "" {
				t.Errorf("log fields (-want +got):\n%s", diff)
			}
		})
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

func pick[T any](random *rand.Rand, from []T) T { return from[random.IntN(len(from))] }

// under returns a function that returns the path of a URL with a token.
func under(compact func() string, suffix string) func() string {
	return func() string { return "/" + compact() + suffix }
}

func withRules(rules string) func() string { return func() string { return signedWithRules(rules) } }

func signedAs(change func(*token.Claims)) func() string {
	return func() string { return signed(change) }
}

func forgedToken(header, payload string) func() string {
	return func() string { return encoded(header, payload) }
}

func literal(target string) func() string { return func() string { return target } }

// What is not a refusal is an error of the gate itself, and says nothing to a
// player. Both can be told by errors.Is, through Caddy's error.
func TestErrorsOfTheHandler(t *testing.T) {
	t.Parallel()
	w := httptest.NewRecorder()
	err := deny(w, io.ErrUnexpectedEOF)
	var handlerError caddyhttp.HandlerError
	if !errors.As(err, &handlerError) || handlerError.StatusCode != 500 || !errors.Is(err, io.ErrUnexpectedEOF) || w.Header().Get(headerpolicy.ReasonHeader) != "" {
		t.Errorf("deny(%v) = %v, want a HandlerError of status 500 and no reason", io.ErrUnexpectedEOF, err)
	}
	g := newGate(t, testApp(), new(Gate))
	r := requestFor(t, "/"+signed(func(c *token.Claims) { c.ExpiresAt = testTime })+"/x.ts", nil)
	if err := g.ServeHTTP(httptest.NewRecorder(), r, caddyhttp.HandlerFunc(nil)); !errors.Is(err, token.ErrExpired) {
		t.Errorf("ServeHTTP = %v, want an error that is token.ErrExpired", err)
	}
	if got := refusal.Reason("unknown").Status(); got != http.StatusInternalServerError {
		t.Errorf("the status of an unknown reason is %d, want 500", got)
	}
}

// Caddy answers 200 with an empty body if no handler answers. Behind a gate that is a
// mistake in the config, and a player would take it for an empty video. An empty answer
// of the origin passes.
func TestNothingBehindTheGate(t *testing.T) {
	t.Parallel()
	g := newGate(t, testApp(), new(Gate))
	for name, tc := range map[string]struct {
		behind caddyhttp.HandlerFunc
		status int // of an error; 0 without one
	}{
		"no handler":                {func(http.ResponseWriter, *http.Request) error { return nil }, http.StatusBadGateway},
		"headers only":              {func(w http.ResponseWriter, _ *http.Request) error { w.Header().Set("X-A", "b"); return nil }, http.StatusBadGateway},
		"an informational response": {func(w http.ResponseWriter, _ *http.Request) error { w.WriteHeader(http.StatusEarlyHints); return nil }, http.StatusBadGateway},
		"an empty answer":           {func(w http.ResponseWriter, _ *http.Request) error { w.WriteHeader(http.StatusOK); return nil }, 0},
		"an empty body":             {func(w http.ResponseWriter, _ *http.Request) error { _, err := w.Write(nil); return err }, 0},
		"no content":                {func(w http.ResponseWriter, _ *http.Request) error { w.WriteHeader(http.StatusNoContent); return nil }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			w := httptest.NewRecorder()
			err := g.ServeHTTP(w, requestFor(t, "/"+plainToken()+"/x.ts", nil), tc.behind)
			failed, _ := errors.AsType[caddyhttp.HandlerError](err)
			if failed.StatusCode != tc.status || w.Header().Get("Access-Control-Allow-Origin") != "*" {
				t.Errorf("%v and %v, want the status %d, and that a player can read it", err, w.Header(), tc.status)
			}
		})
	}
}

// A gate asks its origin for the path as the viewer wrote it.
func TestAmbiguousPathAtTheOrigin(t *testing.T) {
	t.Parallel()
	g := newGate(t, testApp(), &Gate{AmbiguousPaths: "allow"})
	for _, suffix := range []string{"media%2F0-1.m4s", "a//b.ts", "episode%20%239/s0.ts", "s;p=0.ts", "a%2fb%3B%3f%25.ts"} {
		r := requestFor(t, "/"+plainToken()+"/"+suffix, nil)
		if a := ask(t, g, r); !a.allowed() || a.origin[0].URL.EscapedPath() != "/demo/"+suffix || a.origin[0].RequestURI != "/demo/"+suffix {
			t.Errorf("%s: %d %s, and the origin is asked %d times", suffix, a.status, a.text, len(a.origin))
		}
	}
	wantOutcome(t, g, requestFor(t, "/"+plainToken()+"/downloads//x.ts", nil), "download_not_allowed")
}
