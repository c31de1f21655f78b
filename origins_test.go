package signedplayback

import (
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/signed-playback/caddy-signed-playback/internal/playbackpath"
	"github.com/signed-playback/caddy-signed-playback/internal/refusal"
	"github.com/signed-playback/caddy-signed-playback/internal/weborigin"
)

func is(values ...string) []string { return values }

func policyFor(patterns ...string) originPolicy {
	return originPolicy{allowed: must(weborigin.Compile(patterns))}
}

// embedded is a request to media.example.net with the headers of a page.
func embedded(origin, referer []string) *http.Request {
	h := make(http.Header)
	if origin != nil {
		h["Origin"] = origin
	}
	if referer != nil {
		h["Referer"] = referer
	}
	return &http.Request{Host: "media.example.net", Header: h}
}

func reasonOf(t testing.TB, err error) refusal.Reason {
	t.Helper()
	var why *refusal.Error
	if err == nil {
		return ""
	}
	if !errors.As(err, &why) {
		t.Fatalf("the error is a %T, want a *refusal: %v", err, err)
	}
	return why.Reason
}

// Package weborigin tests all headers and patterns. The attack here: a header
// that cannot be read passes as a missing one.
func TestAllowedOrigins(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name            string
		patterns        []string
		origin, referer []string
		want            refusal.Reason
	}{
		{"R1 allowed Origin", is("example.com"), is("https://example.com"), nil, ""},
		{"R1 other Origin", is("example.com"), is("https://evil.com"), nil, refusal.OriginNotAllowed},
		{"R7 null", is("*"), is("null"), nil, refusal.OriginNotAllowed},
		{"any origin", is("*"), is("https://evil.com"), nil, ""},
		{"no patterns", nil, nil, nil, ""},
		{"no patterns, other Origin", nil, is("https://evil.com"), nil, ""},
		{"no patterns, control character", nil, is("\x00"), nil, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			policy := policyFor(tc.patterns...)
			for _, allow := range []bool{false, true} {
				policy.allowMissing = allow
				for _, k := range []playbackpath.Kind{playbackpath.KindManifest, playbackpath.KindIframe} {
					if got := reasonOf(t, policy.check(embedded(tc.origin, tc.referer), k, "T")); got != tc.want {
						t.Errorf("kind %v, missing_origin allow %t: %q, want %q", k, allow, got, tc.want)
					}
				}
			}
		})
	}
}

// The player page runs on the gate's own origin, which its requests have as
// Origin or Referer. The attack: a site embeds a page of the gate's origin, and
// that embeds the player page.
func TestOwnOrigin(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, host, origin string
		kind               playbackpath.Kind
		want               refusal.Reason
	}{
		{"R11 segment", "media.example.net", "https://media.example.net", playbackpath.KindSegment, ""},
		{"R11 manifest", "media.example.net", "https://media.example.net", playbackpath.KindManifest, ""},
		{"R11 other", "media.example.net", "https://media.example.net", playbackpath.KindOther, ""},
		{"R11 iframe", "media.example.net", "https://media.example.net", playbackpath.KindIframe, refusal.OriginNotAllowed},
		{"R11 http behind a proxy that terminates TLS", "media.example.net", "http://media.example.net", playbackpath.KindSegment, ""},
		{"R11 capitals", "MEDIA.example.net", "https://media.EXAMPLE.net", playbackpath.KindSegment, ""},
		{"R11 explicit default port", "media.example.net:443", "https://media.example.net", playbackpath.KindSegment, ""},
		{"R11 port", "media.example.net:8443", "https://media.example.net:8443", playbackpath.KindSegment, ""},
		{"R11 another port", "media.example.net:8443", "https://media.example.net", playbackpath.KindSegment, refusal.OriginNotAllowed},
		{"R11 Origin with another port", "media.example.net", "https://media.example.net:8443", playbackpath.KindSegment, refusal.OriginNotAllowed},
		{"R11 http on the port of https", "media.example.net:443", "http://media.example.net", playbackpath.KindSegment, refusal.OriginNotAllowed},
		{"R11 subdomain", "media.example.net", "https://x.media.example.net", playbackpath.KindSegment, refusal.OriginNotAllowed},
		{"R11 IPv6", "[::1]:8080", "http://[::1]:8080", playbackpath.KindSegment, ""},
		{"R11 broken Host", "media.example.net:x", "https://media.example.net", playbackpath.KindSegment, refusal.OriginNotAllowed},
		{"R11 no Host", "", "https://media.example.net", playbackpath.KindSegment, refusal.OriginNotAllowed},
		{"R11 Host with userinfo", "x@media.example.net", "https://media.example.net", playbackpath.KindSegment, refusal.OriginNotAllowed},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			policy := policyFor("example.com")
			byOrigin, byReferer := embedded(is(tc.origin), nil), embedded(nil, is(tc.origin+"/T/iframe"))
			byOrigin.Host, byReferer.Host = tc.host, tc.host
			byOrigin.Header.Set("Sec-Fetch-Site", "same-origin")
			if got := reasonOf(t, policy.check(byOrigin, tc.kind, "T")); got != tc.want {
				t.Errorf("Origin %s at %s: %q, want %q", tc.origin, tc.host, got, tc.want)
			}
			if got := reasonOf(t, policy.check(byReferer, tc.kind, "T")); got != tc.want {
				t.Errorf("Referer %s/T/iframe at %s: %q, want %q", tc.origin, tc.host, got, tc.want)
			}
		})
	}
}

// The attack: a page or a stylesheet of another video, which is on the gate's own
// origin, too, loads a video that its site may not show.
func TestOwnPages(t *testing.T) {
	t.Parallel()
	const own = "https://media.example.net"
	sameOrigin := []string{"Sec-Fetch-Site: same-origin", "Sec-Fetch-Mode: cors", "Sec-Fetch-Dest: empty"}
	for _, tc := range []struct {
		name   string
		header []string
		want   refusal.Reason
	}{
		{"the player page", is("Referer: " + own + "/T/iframe?muted"), ""},
		{"the player page without a suffix", is("Referer: " + own + "/T?muted"), ""},
		{"a page below", is("Referer: " + own + "/T/pages/a/"), ""},
		{"with all that browsers send", append(is("Referer: "+own+"/T/iframe"), sameOrigin...), ""},
		{"with Origin", append(is("Referer: "+own+"/T/iframe", "Origin: "+own), sameOrigin...), ""},
		{"a link on the page", is("Referer: "+own+"/T/iframe", "Sec-Fetch-Site: same-origin", "Sec-Fetch-Mode: navigate"), ""},
		{"a page that hides its path", append(is("Referer: "+own+"/"), sameOrigin...), ""},
		{"a page or a worker without a referrer", sameOrigin, ""},
		{"Origin and the browser's word", append(is("Origin: "+own), sameOrigin...), ""},

		{"R12 Origin alone", is("Origin: " + own), refusal.OriginNotAllowed},
		{"R12 an origin as Referer alone", is("Referer: " + own + "/"), refusal.OriginNotAllowed},
		{"R12 an origin as Referer without a slash", is("Referer: " + own), refusal.OriginNotAllowed},
		{"R12 another token of the video", append(is("Referer: "+own+"/T2/iframe"), sameOrigin...), refusal.OriginNotAllowed},
		{"R12 a page of another video", append(is("Referer: "+own+"/vidA/poster.jpg"), sameOrigin...), refusal.OriginNotAllowed},
		{"R12 a stylesheet of another video", is("Referer: " + own + "/vidA/style.css"), refusal.OriginNotAllowed},
		{"R12 the token in another place", is("Referer: " + own + "/vidA/T/style.css"), refusal.OriginNotAllowed},
		{"R12 the token in the query", is("Referer: " + own + "/?/T/iframe"), refusal.OriginNotAllowed},
		{"R12 the token in the fragment", is("Referer: " + own + "#/T/iframe"), refusal.OriginNotAllowed},
		{"R12 a longer segment", is("Referer: " + own + "/Tx/iframe"), refusal.OriginNotAllowed},
		{"R12 an empty segment", is("Referer: " + own + "//T/iframe"), refusal.OriginNotAllowed},
		{"R12 the video's own stylesheet on another site", is("Referer: "+own+"/T/style.css", "Sec-Fetch-Site: cross-site"), refusal.OriginNotAllowed},
		{"R12 the video's own stylesheet on a sibling", is("Referer: "+own+"/T/style.css", "Sec-Fetch-Site: same-site"), refusal.OriginNotAllowed},
		{"R12 two words of the browser", is("Referer: "+own+"/T/x", "Sec-Fetch-Site: same-origin", "Sec-Fetch-Site: cross-site"), refusal.OriginNotAllowed},
		{"R12 own Origin, Referer of another site", append(is("Origin: "+own, "Referer: https://evil.com/T/"), sameOrigin...), refusal.OriginNotAllowed},
		{"R12 own Origin, Referer of another scheme", append(is("Origin: "+own, "Referer: http://media.example.net/T/"), sameOrigin...), refusal.OriginNotAllowed},
		{"R12 Origin of another site, own Referer", append(is("Origin: https://evil.com", "Referer: "+own+"/T/iframe"), sameOrigin...), refusal.OriginNotAllowed},
		{"R12 a link without a referrer", is("Sec-Fetch-Site: same-origin", "Sec-Fetch-Mode: navigate"), refusal.OriginRequired},
		{"R12 a link on a page that hides its path", is("Referer: "+own, "Sec-Fetch-Site: same-origin", "Sec-Fetch-Mode: navigate"), refusal.OriginNotAllowed},
		{"R12 another site without a referrer", is("Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: cors"), refusal.OriginRequired},
		{"R12 no site", is("Sec-Fetch-Site: none", "Sec-Fetch-Mode: cors"), refusal.OriginRequired},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			r := requestFor(t, "/T/seg.ts", nil)
			mounted := requestFor(t, "/media/my%20videos/T/seg.ts", nil)
			mounted.URL.Path, mounted.URL.RawPath = "/T/seg.ts", ""
			for _, line := range tc.header {
				name, value, _ := strings.Cut(line, ": ")
				r.Header.Add(name, value)
				mounted.Header.Add(name, strings.NewReplacer(own+"/T", own+"/media/my%20videos/T", own+"/vidA", own+"/media/my%20videos/vidA").Replace(value))
			}
			if got := reasonOf(t, policyFor("example.com").check(r, playbackpath.KindSegment, "T")); got != tc.want {
				t.Errorf("%q, want %q", got, tc.want)
			}
			if got := reasonOf(t, policyFor("example.com").check(mounted, playbackpath.KindSegment, "T")); got != tc.want {
				t.Errorf("behind handle_path: %q, want %q", got, tc.want)
			}
			if got := reasonOf(t, policyFor("example.com").check(r, playbackpath.KindIframe, "T")); got == "" {
				t.Error("the page itself is allowed")
			}
		})
	}
}

// The attack: a page hides its address. It is refused, unless the operator allows
// that or the browser will check frame-ancestors.
func TestMissingOrigin(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name     string
		patterns []string
		allow    bool
		kind     playbackpath.Kind
		fetch    []string // Sec-Fetch-Dest
		want     refusal.Reason
	}{
		{"R8 no allowed origins", nil, false, playbackpath.KindManifest, nil, ""},
		{"R8 deny", is("example.com"), false, playbackpath.KindManifest, nil, refusal.OriginRequired},
		{"R8 allow", is("example.com"), true, playbackpath.KindManifest, nil, ""},
		{"R8 deny the iframe", is("example.com"), false, playbackpath.KindIframe, nil, refusal.OriginRequired},
		{"R8 allow the iframe", is("example.com"), true, playbackpath.KindIframe, nil, ""},
		{"R8 iframe within an iframe", is("example.com"), false, playbackpath.KindIframe, is("iframe"), ""},
		{"R8 iframe as a page", is("example.com"), false, playbackpath.KindIframe, is("document"), refusal.OriginRequired},
		{"R8 iframe by fetch", is("example.com"), false, playbackpath.KindIframe, is("empty"), refusal.OriginRequired},
		{"R8 iframe as a frame", is("example.com"), false, playbackpath.KindIframe, is("frame"), refusal.OriginRequired},
		{"R8 iframe as an object", is("example.com"), false, playbackpath.KindIframe, is("object"), refusal.OriginRequired},
		{"R8 iframe in capitals, which no browser sends", is("example.com"), false, playbackpath.KindIframe, is("IFRAME"), refusal.OriginRequired},
		{"R8 header twice", is("example.com"), false, playbackpath.KindIframe, is("iframe", "iframe"), refusal.OriginRequired},
		{"R8 header empty", is("example.com"), false, playbackpath.KindIframe, is(""), refusal.OriginRequired},
		{"R8 manifest that claims to be a frame", is("example.com"), false, playbackpath.KindManifest, is("iframe"), refusal.OriginRequired},
		{"R8 segment that claims to be a frame", is("example.com"), false, playbackpath.KindSegment, is("iframe"), refusal.OriginRequired},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			policy := policyFor(tc.patterns...)
			policy.allowMissing = tc.allow
			r := embedded(nil, nil)
			if tc.fetch != nil {
				r.Header["Sec-Fetch-Dest"] = tc.fetch
			}
			if got := reasonOf(t, policy.check(r, tc.kind, "T")); got != tc.want {
				t.Errorf("%q, want %q", got, tc.want)
			}
			// A frame that sends its address is judged by it.
			r.Header.Set("Referer", "https://evil.com/")
			if got := reasonOf(t, policy.check(r, tc.kind, "T")); tc.patterns != nil && got != refusal.OriginNotAllowed {
				t.Errorf("with the Referer of another site: %q, want %q", got, refusal.OriginNotAllowed)
			}
		})
	}
}

func TestFrameAncestors(t *testing.T) {
	t.Parallel()
	h := make(http.Header)
	originPolicy{}.setFrameAncestors(h)
	if len(h) != 0 {
		t.Errorf("setFrameAncestors without allowed origins sets %v", h)
	}
	h.Set("Content-Security-Policy", "default-src 'self'")
	policyFor("example.com", "*.example.org:8443").setFrameAncestors(h)
	want := http.Header{"Content-Security-Policy": {
		"default-src 'self'", "frame-ancestors http://example.com http://example.org:8443 http://*.example.org:8443",
	}}
	if diff := cmp.Diff(want, h); diff != "" {
		t.Errorf("setFrameAncestors (-want +got):\n%s", diff)
	}
}
