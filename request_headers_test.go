package signedplayback

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/textproto"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// invented returns the name of a header that no program knows.
func invented() string { return fmt.Sprintf("X%x-Q%x", rand.Uint64(), rand.Uint64()) }

// canonical returns header names in canonical form, sorted.
func canonical(names ...string) []string {
	for i, name := range names {
		names[i] = textproto.CanonicalMIMEHeaderKey(name)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// listed are headers that the origin gets.
var listed = canonical(
	"Accept", "Accept-Encoding", "Accept-Language", "Cache-Control", "CMCD-Object", "CMCD-Session", "DNT", "Priority",
	"If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since", "If-Range", "Range", "Save-Data", "Sec-GPC",
	"traceparent", "tracestate", "User-Agent", "Via", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto",
	"X-Playback-Session-Id", "X-Request-Id", "Accept-"+invented(), "CMCD-"+invented(), "If-"+invented(),
)

// Of these, the origin gets none, unless pass_request_headers names it.
var (
	aboutViewer = canonical("Cookie", "Authorization", "X-Api-Key", "X-Real-IP", "Forwarded", "CF-Connecting-IP", "Sec-Fetch-Site",
		"Accepted", "Iffy", "X-Accept-Language", invented(), invented(), invented())
	aboutTarget = canonical("X-Forwarded-URI", "X-Forwarded-Path", "X-Forwarded-Prefix", "X-Forwarded-Method", "X-Original-URL",
		"X-Original-URI", "X-Original-Method", "X-Rewrite-URL", "X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override",
		"X-Envoy-Original-Path", "X-Replaced-Path", "X-MS-Original-URL", "X-Auth-Request-Redirect", "Destination",
		"X-"+invented()+"-Url", invented()+"Path")
	aboutConnection = canonical("Referer", "Origin", "Connection", "Upgrade", "HTTP2-Settings", "Expect", "Content-Length", "Trailer",
		"Te", "Keep-Alive", "Proxy-Authorization", "Proxy-Connection", "Transfer-Encoding")
)

// received sends headers that all have one value, and returns the names of those
// that the origin gets.
func received(t *testing.T, g *Gate, target string, names []string, value string) []string {
	t.Helper()
	a := ask(t, g, requestFor(t, target, func(r *http.Request) {
		for _, name := range names {
			r.Header[name] = is(value)
		}
	}))
	if !a.allowed() {
		t.Fatalf("%d %s, want it allowed", a.status, a.reason)
	}
	return slices.Sorted(maps.Keys(a.origin[0].Header))
}

// The attack: headers that have the origin act on another path or method, or that
// turn the connection into a tunnel. Others differ between viewers.
func TestHeadersThatTheOriginGets(t *testing.T) {
	t.Parallel()
	all := slices.Concat(listed, aboutViewer, aboutTarget, aboutConnection)
	one := aboutViewer[len(aboutViewer)-1]
	for _, tc := range []struct {
		name       string
		pass       []string
		additional []string
	}{
		{"by default", nil, nil},
		{"named", is("authorization", "X-Original-URL", one), is("Authorization", "X-Original-Url", one)},
		{"all", is("*"), aboutViewer},
		{"all, and one that names a path", is("*", "x-replaced-path"), append(is("X-Replaced-Path"), aboutViewer...)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			g := newGate(t, testApp(), &Gate{PassRequestHeaders: tc.pass})
			want := canonical(slices.Concat(listed, tc.additional)...)
			for _, target := range []string{"/" + plainToken() + "/x.ts", "/public/x.ts"} {
				if diff := cmp.Diff(want, received(t, g, target, all, "1")); diff != "" {
					t.Errorf("%.20s: headers at the origin (-want +got):\n%s", target, diff)
				}
			}
			for _, value := range []string{"/vidB/x.ts", "https://evil.example/x", "delete"} {
				if got := received(t, g, "/public/x.ts", is(invented()), value); len(got) != 0 {
					t.Errorf("the origin gets an unknown header %q", value)
				}
			}
		})
	}
}

// The attack: a header of any name that contains the token, in a spelling from which
// a program can restore it.
func TestNoHeaderHasTheToken(t *testing.T) {
	t.Parallel()
	compact := plainToken()
	var encoded, mixed string
	for i, c := range []byte(compact) {
		encoded += fmt.Sprintf("%%%02X", c)
		if mixed += string(c); i%7 == 0 {
			mixed = mixed[:len(mixed)-1] + fmt.Sprintf("%%%02x", c)
		}
	}
	g := newGate(t, testApp(), &Gate{PassRequestHeaders: append(is("*"), aboutTarget...)})
	for name, value := range map[string]string{
		"alone": compact, "in a URL": "https://media.example.net/" + compact + "/x.ts", "in a list": "a, b=" + compact + ";c",
		"encoded": encoded, "partly encoded": mixed, "encoded twice": url.QueryEscape(encoded), "after a broken escape": "%zz%" + encoded,
	} {
		names := slices.Concat(listed, aboutViewer, aboutTarget, aboutConnection)
		if got := received(t, g, "/"+compact+"/x.ts", names, value); len(got) != 0 {
			t.Errorf("the token %s: the origin gets %q", name, got)
		}
	}
}

// The attack: the query hands the token to the origin. CMCD, which differs with each
// request, would defeat a cache.
func TestQueryThatTheOriginGets(t *testing.T) {
	t.Parallel()
	compact := plainToken()
	g := newGate(t, testApp(), new(Gate))
	for query, want := range map[string]string{
		"":                                    "",
		"?":                                   "?",
		"?a=1&&b=%zz;c&=&a":                   "?a=1&&b=%zz;c&=&a",
		"?CMCD=bl%3D1":                        "",
		"?CMCD":                               "",
		"?a=1&CMCD=x%26y&b=2":                 "?a=1&b=2",
		"?CMCD=1&a&CMCD=2&CMCD=3":             "?a",
		"?%43MC%44=1&a=CMCD=1&cmcd=1&XCMCD=1": "?a=CMCD=1&cmcd=1&XCMCD=1",
		"?t=" + compact + "&b":                "?b",
		"?a&" + compact:                       "?a",
		"?u=%2F%" + fmt.Sprintf("%x", compact[0]) + compact[1:] + "%2Fx": "",
	} {
		a := ask(t, g, requestFor(t, "/"+compact+"/x.ts"+query, nil))
		if !a.allowed() {
			t.Errorf("%q: %d %s, want it allowed", withoutToken(query), a.status, a.reason)
			continue
		}
		r := a.origin[0]
		if got := strings.TrimPrefix(r.RequestURI, "/demo/x.ts"); got != want || r.URL.RequestURI() != r.RequestURI {
			t.Errorf("the query %q became %q, in the URL %q; want %q", withoutToken(query), withoutToken(got), withoutToken(r.URL.RequestURI()), want)
		}
	}
}
