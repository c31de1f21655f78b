package signedplayback

import (
	"errors"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/idna"
)

// goodPatterns are allowed origins as operators write them, and what they
// become: the host and port that are compared, and what frame-ancestors says.
var goodPatterns = []struct {
	pattern   string
	want      originPattern
	ancestors string
}{
	{"*", originPattern{any: true}, "*"},
	{"example.com", exactly("example.com", 0), "http://example.com"},
	{"example.com:8443", exactly("example.com", 8443), "http://example.com:8443"},
	{"example.com:80", exactly("example.com", 80), "http://example.com:80"},
	{"example.com:443", exactly("example.com", 443), "http://example.com:443"},
	{"example.com:1", exactly("example.com", 1), "http://example.com:1"},
	{"example.com:65535", exactly("example.com", 65535), "http://example.com:65535"},
	{"*.example.com", below("example.com", 0), "http://example.com http://*.example.com"},
	{"*.example.com:8443", below("example.com", 8443), "http://example.com:8443 http://*.example.com:8443"},
	{"*.localhost", below("localhost", 0), "http://localhost http://*.localhost"},
	{"EXAMPLE.Com", exactly("example.com", 0), "http://example.com"},
	{"example.com.", exactly("example.com", 0), "http://example.com"},
	{"localhost", exactly("localhost", 0), "http://localhost"},
	{"localhost:3000", exactly("localhost", 3000), "http://localhost:3000"},
	{"my_host.example.com", exactly("my_host.example.com", 0), "http://my_host.example.com"},
	{"ab--cd.example.com", exactly("ab--cd.example.com", 0), "http://ab--cd.example.com"},
	{"1.example.com", exactly("1.example.com", 0), "http://1.example.com"},
	{"192.0.2.1", exactly("192.0.2.1", 0), "http://192.0.2.1"},
	{"192.0.2.1:8080", exactly("192.0.2.1", 8080), "http://192.0.2.1:8080"},
	{"[::1]", exactly("::1", 0), "http://[::1]"},
	{"[::1]:8080", exactly("::1", 8080), "http://[::1]:8080"},
	{"[2001:0DB8:0::1]", exactly("2001:db8::1", 0), "http://[2001:db8::1]"},
	{"[::ffff:192.0.2.1]", exactly("::ffff:192.0.2.1", 0), "http://[::ffff:192.0.2.1]"},
	{"пример.example", exactly("xn--e1afmkfd.example", 0), "http://xn--e1afmkfd.example"},
	{"ПРИМЕР.example", exactly("xn--e1afmkfd.example", 0), "http://xn--e1afmkfd.example"},
	{"*.пример.example:8443", below("xn--e1afmkfd.example", 8443), "http://xn--e1afmkfd.example:8443 http://*.xn--e1afmkfd.example:8443"},
	{"xn--e1afmkfd.example", exactly("xn--e1afmkfd.example", 0), "http://xn--e1afmkfd.example"},
	{"XN--E1AFMKFD.example", exactly("xn--e1afmkfd.example", 0), "http://xn--e1afmkfd.example"},
	{"example。com", exactly("example.com", 0), "http://example.com"},
	{"ｅｘａｍｐｌｅ.com", exactly("example.com", 0), "http://example.com"},
	{strings.Repeat("a", 63) + ".example", exactly(strings.Repeat("a", 63)+".example", 0), "http://" + strings.Repeat("a", 63) + ".example"},
}

func exactly(host string, port uint16) originPattern {
	return originPattern{host: host, port: port}
}

func below(domain string, port uint16) originPattern {
	return originPattern{host: domain, port: port, wildcard: true}
}

func TestOriginPatterns(t *testing.T) {
	for _, tc := range goodPatterns {
		t.Run(tc.pattern, func(t *testing.T) {
			got, err := parseOriginPattern(tc.pattern)
			if err != nil {
				t.Fatalf("parseOriginPattern(%q) = %v", tc.pattern, err)
			}
			if diff := cmp.Diff(tc.want, got, cmp.AllowUnexported(originPattern{})); diff != "" {
				t.Errorf("parseOriginPattern(%q) (-want +got):\n%s", tc.pattern, diff)
			}
			if got := must(compileOrigins([]string{tc.pattern})).ancestors(); got != tc.ancestors {
				t.Errorf("frame-ancestors of %q = %q, want %q", tc.pattern, got, tc.ancestors)
			}
		})
	}
}

// A pattern that no browser's origin can equal, or that covers more than its
// author may think, is an error and not a guess. And what gets into the header
// Content-Security-Policy must not end a source, a directive or the header.
var badPatterns = []struct{ name, pattern, want string }{
	{"R12 protocol", "https://example.com", `allowed origin must not specify protocol: "https://example.com"`},
	{"R12 protocol http", "http://example.com", "allowed origin must not specify protocol"},
	{"R12 protocol with a wildcard", "https://*", "allowed origin must not specify protocol"},
	{"R12 protocol with a wildcard domain", "https://*.example.com", "allowed origin must not specify protocol"},
	{"R12 protocol of another kind", "ftp://example.com", "allowed origin must not specify protocol"},
	{"R12 relative protocol", "//example.com", "allowed origin must not specify protocol"},
	{"R12 protocol without slashes", "https:example.com", "port is not a number"},
	{"R12 path", "example.com/path", "has a path"},
	{"R12 path of every page", "example.com/*", "has a path"},
	{"R12 slash at the end", "example.com/", "has a path"},
	{"R12 CIDR", "192.0.2.0/24", "has a path"},
	{"R12 empty", "", "host that is not valid"},
	{"R12 star in front of a name", "*example.com", "host that is not valid"},
	{"R12 star in a name", "ex*ple.com", "host that is not valid"},
	{"R12 star behind a name", "example.*", "host that is not valid"},
	{"R12 two stars", "**.a", "host that is not valid"},
	{"R12 star in the middle", "a.*.b", "host that is not valid"},
	{"R12 wildcard below a wildcard", "*.*.example.com", "host that is not valid"},
	{"R12 wildcard of nothing", "*.", "host that is not valid"},
	{"R12 wildcard of a port", "*:8443", "host that is not valid"},
	{"R12 any port", "example.com:*", "port is not a number"},
	{"R12 wildcard of an IPv4 address", "*.192.0.2.1", "below an IP address"},
	{"R12 wildcard of an IPv6 address", "*.[::1]", "below an IP address"},
	{"R12 line break", "example.com\n", "host that is not valid"},
	{"R12 header injection", "example.com\r\nX: y", "is not [*.]host[:port]"},
	{"R12 space in front", " example.com", "host that is not valid"},
	{"R12 two origins", "example.com,example.org", "host that is not valid"},
	{"R12 two origins with a space", "example.com example.org", "host that is not valid"},
	{"R12 userinfo", "user@example.com", "host that is not valid"},
	{"R12 query", "example.com?x", "host that is not valid"},
	{"R12 fragment", "example.com#x", "host that is not valid"},
	{"R12 backslash", `example.com\x`, "host that is not valid"},
	{"R12 percent-encoding", "ex%61mple.com", "host that is not valid"},
	{"C5 directive injection", "example.com; script-src *", "host that is not valid"},
	{"C5 directive injection by comma", "example.com,default-src *", "host that is not valid"},
	{"C5 keyword", "'self'", "host that is not valid"},
	{"C5 keyword and wildcard", "'self' *", "host that is not valid"},
	{"C5 scheme source", "data:", "port is not a number"},

	{"R4 empty port", "example.com:", "port is not a number"},
	{"R4 port 0", "example.com:0", "port is not a number"},
	{"R4 port beyond 65535", "example.com:65536", "port is not a number"},
	{"R4 port with a leading zero", "example.com:080", "port is not a number"},
	{"R4 port with a sign", "example.com:+80", "port is not a number"},
	{"R4 port in hexadecimal", "example.com:0x50", "port is not a number"},
	{"R4 two ports", "example.com:80:80", "host that is not valid"},
	{"R4 empty label", "example..com", "host that is not valid"},
	{"R4 dot in front", ".example.com", "host that is not valid"},
	{"R4 two dots behind", "example.com..", "host that is not valid"},
	{"R4 label that starts with a hyphen", "-a.example.com", "host that is not valid"},
	{"R4 label that ends in a hyphen", "a-.example.com", "host that is not valid"},
	{"R4 label of 64 bytes", strings.Repeat("a", 64) + ".example", "host that is not valid"},
	{"R4 host of 254 bytes", strings.Repeat("a.", 126) + "aa", "host that is not valid"},
	{"R4 IPv4 of three parts", "192.0.2", "host that is not valid"},
	{"R4 IPv4 with a leading zero", "192.0.2.01", "host that is not valid"},
	{"R4 IPv4 in hexadecimal", "0x7f.0.0.1", "host that is not valid"},
	{"R4 IPv4 whose last part is hexadecimal", "127.0.0.0x1", "host that is not valid"},
	{"R4 IPv4 as one number", "2130706433", "host that is not valid"},
	{"R4 name that ends in a number", "example.1", "host that is not valid"},

	{"R5 IPv6 without brackets", "::1", "IPv6 address stands in brackets"},
	{"R5 IPv6 without brackets, and no port", "fe80::abcd", "IPv6 address stands in brackets"},
	{"R5 IPv6 zone", "[fe80::1%eth0]", "host that is not valid"},
	{"R5 IPv6 zone, encoded", "[fe80::1%25eth0]", "host that is not valid"},
	{"R5 IPv4 in brackets", "[192.0.2.1]", "host that is not valid"},
	{"R5 bracket missing", "[::1", "host that is not valid"},
	{"R5 bracket missing in front of a port", "[::1:8080", "host that is not valid"},
	{"R5 bracket too many", "[::1]]", "host that is not valid"},
	{"R5 text behind the bracket", "[::1]x", "host that is not valid"},
	{"R5 empty brackets", "[]", "host that is not valid"},

	{"R6 Punycode of ASCII alone (CVE-2026-39821)", "xn--example-.com", "host that is not valid"},
	{"R6 broken Punycode", "xn--a-b-c.example", "invalid Punycode"},
	{"R6 empty Punycode", "xn--.example", "host that is not valid"},
	{"R6 Punycode of capitals", "xn--d0a6das0ae0bir7j.example", "invalid Punycode"},
	{"R6 not a letter", "💩\u200b.\u202eexample", "not a valid domain name"},
	{"R6 invalid UTF-8", "ex\xffmple.com", "not valid"},
}

func TestOriginPatternsThatAreRefused(t *testing.T) {
	for _, tc := range badPatterns {
		t.Run(tc.name, func(t *testing.T) {
			p, err := parseOriginPattern(tc.pattern)
			if err == nil {
				t.Fatalf("parseOriginPattern(%q) = %+v, want an error with %q", tc.pattern, p, tc.want)
			}
			if !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), strconv.Quote(tc.pattern)) {
				t.Errorf("parseOriginPattern(%q) = %v, want an error with %q that quotes the pattern", tc.pattern, err, tc.want)
			}
			if p != (originPattern{}) {
				t.Errorf("parseOriginPattern(%q) returned %+v with an error", tc.pattern, p)
			}
			if _, err := compileOrigins([]string{"example.com", tc.pattern}); err == nil {
				t.Errorf("compileOrigins accepted %q behind a good pattern", tc.pattern)
			}
		})
	}
}

func TestFrameAncestorsOfAList(t *testing.T) {
	allowed := must(compileOrigins([]string{"example.com", "*.example.org:8443", "[::1]:3000"}))
	h := make(http.Header)
	originPolicy{allowed: allowed}.setFrameAncestors(h)
	want := http.Header{"Content-Security-Policy": {
		"frame-ancestors http://example.com http://example.org:8443 http://*.example.org:8443 http://[::1]:3000",
	}}
	if diff := cmp.Diff(want, h); diff != "" {
		t.Errorf("setFrameAncestors (-want +got):\n%s", diff)
	}
	none := make(http.Header)
	originPolicy{}.setFrameAncestors(none)
	if len(none) != 0 {
		t.Errorf("setFrameAncestors without allowed origins set %v", none)
	}
}

// headerCases are requests to media.example.net for a video with allowed
// origins. Row R2's names show how deep a wildcard goes.
var headerCases = []struct {
	name            string
	patterns        string // separated by spaces
	origin, referer []string
	want            reason // "" to be allowed
}{
	// The attack: a site whose name contains an allowed one.
	{"R1 name behind a hyphen", "example.com", nil, is("https://evil-example.com/"), reasonOriginNotAllowed},
	{"R1 name in front", "example.com", nil, is("https://example.com.evil.com/"), reasonOriginNotAllowed},
	{"R1 name behind letters", "example.com", is("https://notexample.com"), nil, reasonOriginNotAllowed},
	{"R1 letters behind the name", "example.com", is("https://example.comevil"), nil, reasonOriginNotAllowed},
	{"R1 subdomain", "example.com", is("https://a.example.com"), nil, reasonOriginNotAllowed},
	{"R1 parent", "a.example.com", is("https://example.com"), nil, reasonOriginNotAllowed},
	{"R1 the name itself", "example.com", is("https://example.com"), nil, ""},
	{"R1 the name itself by Referer", "example.com", nil, is("https://example.com/embed?x=1#y"), ""},

	// The attack: a site that a wildcard seems to cover.
	{"R2 subdomain", "*.example.com", is("https://a.example.com"), nil, ""},
	{"R2 deep subdomain", "*.example.com", is("https://a.b.example.com"), nil, ""},
	{"R2 the domain", "*.example.com", is("https://example.com"), nil, ""},
	{"R2 empty label", "*.example.com", is("https://.example.com"), nil, reasonOriginNotAllowed},
	{"R2 empty label in the middle", "*.example.com", is("https://a..example.com"), nil, reasonOriginNotAllowed},
	{"R2 no dot", "*.example.com", is("https://evilexample.com"), nil, reasonOriginNotAllowed},
	{"R2 the pattern itself", "*.example.com", is("https://*.example.com"), nil, reasonOriginNotAllowed},
	{"R2 name in front", "*.example.com", is("https://a.example.com.evil.com"), nil, reasonOriginNotAllowed},
	{"R2 other port", "*.example.com", is("https://a.example.com:8443"), nil, reasonOriginNotAllowed},
	{"R2 port of the pattern", "*.example.com:8443", is("https://a.example.com:8443"), nil, ""},
	{"R2 default port where the pattern has another", "*.example.com:8443", is("https://a.example.com"), nil, reasonOriginNotAllowed},

	// The attack: an allowed name in a part of the URL that is not the host.
	{"R3 userinfo", "example.com", nil, is("https://user@example.com/"), reasonOriginNotAllowed},
	{"R3 name as userinfo", "example.com", nil, is("https://example.com@evil.com/"), reasonOriginNotAllowed},
	{"R3 name as user and password", "example.com", nil, is("https://example.com:443@evil.com/"), reasonOriginNotAllowed},
	{"R3 name in the fragment", "example.com", nil, is("https://evil.com#@example.com"), reasonOriginNotAllowed},
	{"R3 name in the query", "example.com", nil, is("https://evil.com?.example.com"), reasonOriginNotAllowed},
	{"R3 name in the path", "example.com", nil, is("https://evil.com/example.com"), reasonOriginNotAllowed},
	{"R3 URL in the query", "example.com", nil, is("https://evil.com/?u=https://example.com/"), reasonOriginNotAllowed},
	{"R3 backslash", "example.com", nil, is(`https://evil.com\@example.com/`), reasonOriginNotAllowed},
	{"R3 backslash behind the name", "example.com", nil, is(`https://example.com\.evil.com/`), reasonOriginNotAllowed},
	{"R3 backslashes for slashes", "example.com", nil, is(`https:\\example.com/`), reasonOriginNotAllowed},
	{"R3 three slashes", "example.com", nil, is("https:///example.com/"), reasonOriginNotAllowed},
	{"R3 tab in the name", "example.com", nil, is("https://exam\tple.com/"), reasonOriginNotAllowed},
	{"R3 space in front", "example.com", is(" https://example.com"), nil, reasonOriginNotAllowed},
	{"R3 space behind", "example.com", is("https://example.com "), nil, reasonOriginNotAllowed},
	{"R3 percent-encoding", "example.com", is("https://ex%61mple.com"), nil, reasonOriginNotAllowed},
	{"R3 percent-encoded end of the host", "example.com", nil, is("https://example.com%2f.evil.com/"), reasonOriginNotAllowed},
	{"R3 path that is not well-formed", "example.com", nil, is("https://example.com/%zz\x7f"), ""},
	{"R3 path in Origin", "example.com", is("https://example.com/"), nil, reasonOriginNotAllowed},
	{"R3 URL in a Referer's path", "example.com", nil, is("https:/x/https://example.com/"), reasonOriginNotAllowed},

	{"R4 capitals", "example.com", is("HTTPS://EXAMPLE.COM"), nil, ""},
	{"R4 another port than that of http, of a pattern with 443", "secure.example:443", is("https://secure.example:443"), nil, ""},
	{"R4 trailing dot", "example.com", is("https://example.com."), nil, ""},
	{"R4 two trailing dots", "example.com", is("https://example.com.."), nil, reasonOriginNotAllowed},
	{"R4 default port of https", "example.com", is("https://example.com:443"), nil, ""},
	{"R4 default port of http", "example.com", is("http://example.com:80"), nil, ""},
	{"R4 port 80 on https", "example.com", is("https://example.com:80"), nil, reasonOriginNotAllowed},
	{"R4 port 443 on http", "example.com", is("http://example.com:443"), nil, reasonOriginNotAllowed},
	{"R4 other port", "example.com", is("https://example.com:8443"), nil, reasonOriginNotAllowed},
	{"R4 port of the pattern", "example.com:8443", is("https://example.com:8443"), nil, ""},
	{"R4 port of the pattern, on http", "example.com:8443", is("http://example.com:8443"), nil, ""},
	{"R4 port 443 written out in the pattern", "example.com:443", is("https://example.com"), nil, ""},
	{"R4 http where the pattern says 443", "example.com:443", is("http://example.com"), nil, reasonOriginNotAllowed},
	{"R4 empty port", "example.com", is("https://example.com:"), nil, reasonOriginNotAllowed},
	{"R4 port beyond 65535", "example.com", is("https://example.com:99999"), nil, reasonOriginNotAllowed},
	{"R4 port that overflows to 443", "example.com", is("https://example.com:65979"), nil, reasonOriginNotAllowed},
	{"R4 port 0", "example.com", is("https://example.com:0"), nil, reasonOriginNotAllowed},
	{"R4 host longer than any", "*.example.com", is("https://" + strings.Repeat("a.", 200) + "example.com"), nil, reasonOriginNotAllowed},

	{"R5 IPv6", "[::1]:8080", is("http://[::1]:8080"), nil, ""},
	{"R5 IPv6, spelt otherwise", "[::1]:8080", is("http://[0:0::1]:8080"), nil, ""},
	{"R5 IPv6 on another port", "[::1]:8080", is("http://[::1]:8081"), nil, reasonOriginNotAllowed},
	{"R5 IPv6 with a bracket missing", "[::1]:8080", is("http://[::1:8080"), nil, reasonOriginNotAllowed},
	{"R5 IPv4-mapped is another host", "127.0.0.1:8080", is("http://[::ffff:127.0.0.1]:8080"), nil, reasonOriginNotAllowed},
	{"R5 zone", "[fe80::1]", is("http://[fe80::1%25lo]"), nil, reasonOriginNotAllowed},
	{"R5 localhost on its port", "localhost:3000", is("http://localhost:3000"), nil, ""},
	{"R5 IPv4 with a dot behind", "192.0.2.1", is("http://192.0.2.1."), nil, ""},
	{"R5 localhost's address is another host", "localhost:3000", is("http://127.0.0.1:3000"), nil, reasonOriginNotAllowed},
	{"R5 IPv4", "127.0.0.1", is("http://127.0.0.1"), nil, ""},
	{"R5 IPv4 in two parts", "127.0.0.1", is("http://127.1"), nil, reasonOriginNotAllowed},
	{"R5 IPv4 in hexadecimal", "127.0.0.1", is("http://0x7f000001"), nil, reasonOriginNotAllowed},
	{"R5 below a part of an address", "*.example.com", is("http://1.2.3.4"), nil, reasonOriginNotAllowed},

	{"R6 A-label", "xn--e1afmkfd.example", is("https://xn--e1afmkfd.example"), nil, ""},
	{"R6 A-label for a pattern in Cyrillic", "пример.example", is("https://xn--e1afmkfd.example"), nil, ""},
	{"R6 dotted capital I, which Go lowers to i", "wiki.example", is("https://w\u0130ki.example"), nil, reasonOriginNotAllowed},
	{"R6 Kelvin sign", "wiki.example", is("https://wi\u212ai.example"), nil, reasonOriginNotAllowed},
	{"R6 A-label in capitals", "xn--e1afmkfd.example", is("https://XN--E1AFMKFD.example"), nil, ""},
	{"R6 Cyrillic, which browsers do not send", "xn--e1afmkfd.example", is("https://пример.example"), nil, reasonOriginNotAllowed},
	{"R6 fullwidth dot", "example.com", is("https://example。com"), nil, reasonOriginNotAllowed},
	{"R6 Punycode of ASCII alone", "example.com", is("https://xn--example-.com"), nil, reasonOriginNotAllowed},
	{"R6 soft hyphen", "example.com", is("https://exam\u00adple.com"), nil, reasonOriginNotAllowed},

	// The attack: a sandboxed frame or a data: URL, which are any site's.
	{"R7 null", "example.com", is("null"), nil, reasonOriginNotAllowed},
	{"R7 null where the Referer is good", "example.com", is("null"), is("https://example.com/"), reasonOriginNotAllowed},
	{"R7 null where any site will do", "*", is("null"), nil, reasonOriginNotAllowed},
	{"R7 empty", "example.com", is(""), nil, reasonOriginNotAllowed},
	{"R7 empty where any site will do", "*", is(""), nil, reasonOriginNotAllowed},
	{"R7 empty Referer", "example.com", nil, is(""), reasonOriginNotAllowed},
	{"R7 about:blank", "example.com", nil, is("about:blank"), reasonOriginNotAllowed},
	{"R7 file", "example.com", is("file://"), nil, reasonOriginNotAllowed},
	{"R7 app", "example.com", nil, is("android-app://example.com/"), reasonOriginNotAllowed},
	{"R7 blob", "example.com", nil, is("blob:https://example.com/x"), reasonOriginNotAllowed},
	{"R7 extension", "*", is("chrome-extension://example.com"), nil, reasonOriginNotAllowed},

	// The attack: a page that hides where it stands.
	{"R8 neither header", "example.com", nil, nil, reasonOriginRequired},
	{"R8 neither header where any site will do", "*", nil, nil, reasonOriginRequired},

	// The attack: headers of which one program reads one and another the other.
	{"R9 two Referers", "example.com", nil, is("https://example.com/", "https://evil.com/"), reasonOriginNotAllowed},
	{"R9 the same Referer twice", "example.com", nil, is("https://example.com/", "https://example.com/"), reasonOriginNotAllowed},
	{"R9 two Origins", "example.com", is("https://example.com", "https://evil.com"), nil, reasonOriginNotAllowed},
	{"R9 two Origins in one header", "example.com", is("https://example.com, https://evil.com"), nil, reasonOriginNotAllowed},
	{"R9 two Origins with a space", "example.com", is("https://example.com https://example.org"), nil, reasonOriginNotAllowed},
	{"R9 good Origin, two Referers", "example.com", is("https://example.com"), is("https://example.com/", "https://example.com/"), reasonOriginNotAllowed},
	{"R9 good Origin, other Referer", "example.com", is("https://example.com"), is("https://evil.com/"), ""},
	{"R9 other Origin, good Referer", "example.com", is("https://evil.com"), is("https://example.com/"), reasonOriginNotAllowed},

	{"R10 http", "example.com", is("http://example.com"), nil, ""},
	{"R10 another scheme", "example.com", is("ftp://example.com"), nil, reasonOriginNotAllowed},
	{"R10 another scheme of the same beginning", "example.com", is("httpss://example.com"), nil, reasonOriginNotAllowed},
	{"R10 scheme with a long s", "example.com", is("http\u017f://example.com"), nil, reasonOriginNotAllowed},
	{"R10 no scheme", "example.com", is("//example.com"), nil, reasonOriginNotAllowed},
	{"R10 no slashes", "example.com", nil, is("https:example.com"), reasonOriginNotAllowed},
	{"R10 only the host", "example.com", is("example.com"), nil, reasonOriginNotAllowed},

	{"second pattern", "example.org example.com", is("https://example.com"), nil, ""},
	{"any site", "*", is("https://evil.com:8443"), nil, ""},
	{"any site among others", "example.com *", is("http://[2001:db8::1]"), nil, ""},
}

func is(values ...string) []string { return values }

// The attack: sites whose names or ports are nearly those of a pattern.
func TestSitesThatAreAlmostAllowed(t *testing.T) {
	for pattern, sites := range map[string][]string{
		"example.com": {
			"https://www.example.com", "https://example.co", "https://xample.com", "https://com", "https://example_com", "https://example-com",
			"https://example.com-evil.com", "https://user:pass@example.com", "https://@example.com", "https://evil.com;.example.com",
			"https://evil.com&.example.com", "https://evil.com,example.com", "https://evil.com\\.example.com", "https://evil.com\t.example.com",
			"https://example.com%2eevil.com", "https://example.com%00.evil.com", "https://evil.com%23.example.com", "https:////evil.com",
			"https:/example.com", "://example.com", "https://", "https", ":", " https://evil.com",
			"https://example.com:0443", "https://example.com:+443", "https://example.com:-443", "https://example.com:443:443", "https://example.com:4 43",
			"https://example.com:\u0664\u0664\u0663", "NULL", "data:text/html,x", "javascript:1",
			"ws://example.com", "httpsx://example.com", "xhttps://example.com", "http+unix://example.com", "file://example.com", "moz-extension://example.com",
		},
		"*.example.com": {
			"https://-a.example.com", "https://aexample.com", "https://a.example.co", "https://com", "https://..example.com", "https://a.-.example.com",
			"https://a.example.com..", "https://%61.example.com", "https://a b.example.com",
		},
		"example.com:8443":   {"https://example.com:84", "https://a.example.com:8443", "https://example.com:84430"},
		"secure.example:443": {"https://secure.example:8443", "http://secure.example"},
		"localhost":          {"http://[::1]", "http://127.0.0.1"},
		"localhost:3000":     {"http://localhost:3001", "http://a.localhost:3000", "http://[::1]:3000"},
		"[::1]:8080":         {"http://[::1]", "http://::1:8080", "http://[::1%25lo]:8080", "http://[::1]8080", "http://[]:8080", "http://[::ffff:127.0.0.1]:8080"},
		"192.0.2.1":          {"http://[::ffff:192.0.2.1]", "http://192.0.2.01", "http://3221225985", "http://0xc0.0.2.1", "http://192.0.513", "http://1.192.0.2.1"},
		"*":                  {"https://user@example.com"},
		"xn--e1afmkfd.example": {
			"https://xn--e1afmkfd\u3002example", "https://xn--e1afmkfd%E3%80%82example", "https://xn--a.example", "https://xn--.example", "https://primer.example",
			"https://xn--e1afmkfd.example.evil.com", "https://\xd0\xbf.example",
		},
	} {
		policy := originPolicy{allowed: must(compileOrigins([]string{pattern}))}
		for _, site := range sites {
			for name, r := range map[string]*http.Request{"Origin": embedded(is(site), nil), "Referer": embedded(nil, is(site+"/watch"))} {
				if got := reasonOf(t, policy.check(r, kindManifest)); got != reasonOriginNotAllowed {
					t.Errorf("%s %q with the allowed origin %s: %q, want %q", name, site, pattern, got, reasonOriginNotAllowed)
				}
			}
		}
	}
}

func TestAllowedOrigins(t *testing.T) {
	for _, tc := range headerCases {
		t.Run(tc.name, func(t *testing.T) {
			policy := originPolicy{allowed: must(compileOrigins(strings.Fields(tc.patterns)))}
			got := reasonOf(t, policy.check(embedded(tc.origin, tc.referer), kindManifest))
			if got != tc.want {
				t.Errorf("origin %q, referer %q with allowed origins %q: %q, want %q", tc.origin, tc.referer, tc.patterns, got, tc.want)
			}
			// No headers at all would be another row; all others are none of
			// those that missing_origin is about.
			if tc.origin != nil || tc.referer != nil {
				policy.allowMissing = true
				if lenient := reasonOf(t, policy.check(embedded(tc.origin, tc.referer), kindManifest)); lenient != got {
					t.Errorf("with missing_origin allow: %q, want %q", lenient, got)
				}
			}
		})
	}
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

func reasonOf(t testing.TB, err error) reason {
	t.Helper()
	var why *refusal
	if err == nil {
		return ""
	}
	if !errors.As(err, &why) {
		t.Fatalf("the error is a %T, want a *refusal: %v", err, err)
	}
	return why.reason
}

// The four guidelines of Cloudflare's "Secure your stream" on allowed origins.
func TestGuidelinesOnAllowedOrigins(t *testing.T) {
	const (
		wildcard  = "*.example.com covers a.example.com, a.b.example.com, and example.com"
		exact     = "example.com does not cover www.example.com or any subdomain of example.com"
		localhost = "localhost requires a port if it is not being served over HTTP on port 80 or over HTTPS on port 443"
		noPath    = "there is no path support: example.com covers example.com/*"
	)
	for _, tc := range []struct {
		guideline, pattern, referer string
		want                        bool
	}{
		{wildcard, "*.example.com", "https://a.example.com/", true},
		{wildcard, "*.example.com", "https://a.b.example.com/", true},
		{wildcard, "*.example.com", "https://example.com/", true},
		{wildcard, "*.example.com", "https://example.org/", false},
		{exact, "example.com", "https://example.com/", true},
		{exact, "example.com", "https://www.example.com/", false},
		{exact, "example.com", "https://a.b.example.com/", false},
		{localhost, "localhost", "http://localhost/", true},
		{localhost, "localhost", "https://localhost/", true},
		{localhost, "localhost", "http://localhost:80/", true},
		{localhost, "localhost", "https://localhost:443/", true},
		{localhost, "localhost", "http://localhost:3000/", false},
		{localhost, "localhost", "http://localhost:443/", false},
		{localhost, "localhost", "https://localhost:80/", false},
		{localhost, "localhost:3000", "http://localhost:3000/", true},
		{localhost, "localhost:3000", "http://localhost/", false},
		{noPath, "example.com", "https://example.com/a/page.html?x#y", true},
		{noPath, "example.com", "https://example.com", true},
		{noPath, "example.com", "http://example.com/a/page.html", true},
	} {
		t.Run(tc.guideline+": "+tc.pattern+" "+tc.referer, func(t *testing.T) {
			policy := originPolicy{allowed: must(compileOrigins([]string{tc.pattern}))}
			if got := policy.check(embedded(nil, is(tc.referer)), kindIframe) == nil; got != tc.want {
				t.Errorf("%q covers a page at %s = %t, want %t", tc.pattern, tc.referer, got, tc.want)
			}
		})
	}
	if _, err := parseOriginPattern("example.com/a"); err == nil {
		t.Errorf("a pattern with a path is accepted, want an error: %s", noPath)
	}
}

// The player page runs on the gateway's own origin, and what it loads has that
// as its Origin or Referer. The page itself must not count on that, or any site
// could embed a page of the gateway that embeds the player.
func TestOwnOrigin(t *testing.T) {
	for _, tc := range []struct {
		name, host, origin string
		kind               kind
		want               reason
	}{
		{"R11 segment", "media.example.net", "https://media.example.net", kindSegment, ""},
		{"R11 manifest", "media.example.net", "https://media.example.net", kindManifest, ""},
		{"R11 other", "media.example.net", "https://media.example.net", kindOther, ""},
		{"R11 iframe", "media.example.net", "https://media.example.net", kindIframe, reasonOriginNotAllowed},
		{"R11 http, for a proxy may end TLS", "media.example.net", "http://media.example.net", kindSegment, ""},
		{"R11 capitals", "MEDIA.example.net", "https://media.EXAMPLE.net", kindSegment, ""},
		{"R11 default port written out", "media.example.net:443", "https://media.example.net", kindSegment, ""},
		{"R11 port", "media.example.net:8443", "https://media.example.net:8443", kindSegment, ""},
		{"R11 another port", "media.example.net:8443", "https://media.example.net", kindSegment, reasonOriginNotAllowed},
		{"R11 another port the other way round", "media.example.net", "https://media.example.net:8443", kindSegment, reasonOriginNotAllowed},
		{"R11 http on the port of https", "media.example.net:443", "http://media.example.net", kindSegment, reasonOriginNotAllowed},
		{"R11 subdomain", "media.example.net", "https://x.media.example.net", kindSegment, reasonOriginNotAllowed},
		{"R11 IPv6", "[::1]:8080", "http://[::1]:8080", kindSegment, ""},
		{"R11 broken Host", "media.example.net:x", "https://media.example.net", kindSegment, reasonOriginNotAllowed},
		{"R11 no Host", "", "https://media.example.net", kindSegment, reasonOriginNotAllowed},
		{"R11 Host with userinfo", "x@media.example.net", "https://media.example.net", kindSegment, reasonOriginNotAllowed},
	} {
		t.Run(tc.name, func(t *testing.T) {
			policy := originPolicy{allowed: must(compileOrigins([]string{"example.com"}))}
			byOrigin, byReferer := embedded(is(tc.origin), nil), embedded(nil, is(tc.origin+"/token/iframe"))
			byOrigin.Host, byReferer.Host = tc.host, tc.host
			if got := reasonOf(t, policy.check(byOrigin, tc.kind)); got != tc.want {
				t.Errorf("Origin %s at %s: %q, want %q", tc.origin, tc.host, got, tc.want)
			}
			if got := reasonOf(t, policy.check(byReferer, tc.kind)); got != tc.want {
				t.Errorf("Referer %s/token/iframe at %s: %q, want %q", tc.origin, tc.host, got, tc.want)
			}
		})
	}
}

// Whoever hides where he stands is refused, unless the operator says otherwise
// or the browser will ask frame-ancestors.
func TestMissingOrigin(t *testing.T) {
	for _, tc := range []struct {
		name     string
		patterns []string
		allow    bool
		kind     kind
		fetch    []string // Sec-Fetch-Dest
		want     reason
	}{
		{"R8 no allowed origins", nil, false, kindManifest, nil, ""},
		{"R8 deny", is("example.com"), false, kindManifest, nil, reasonOriginRequired},
		{"R8 allow", is("example.com"), true, kindManifest, nil, ""},
		{"R8 deny the iframe", is("example.com"), false, kindIframe, nil, reasonOriginRequired},
		{"R8 allow the iframe", is("example.com"), true, kindIframe, nil, ""},
		{"R8 iframe within an iframe", is("example.com"), false, kindIframe, is("iframe"), ""},
		{"R8 iframe as a page", is("example.com"), false, kindIframe, is("document"), reasonOriginRequired},
		{"R8 iframe by fetch", is("example.com"), false, kindIframe, is("empty"), reasonOriginRequired},
		{"R8 iframe as a frame", is("example.com"), false, kindIframe, is("frame"), reasonOriginRequired},
		{"R8 iframe as an object", is("example.com"), false, kindIframe, is("object"), reasonOriginRequired},
		{"R8 iframe in capitals, which no browser sends", is("example.com"), false, kindIframe, is("IFRAME"), reasonOriginRequired},
		{"R8 header twice", is("example.com"), false, kindIframe, is("iframe", "iframe"), reasonOriginRequired},
		{"R8 header empty", is("example.com"), false, kindIframe, is(""), reasonOriginRequired},
		{"R8 manifest that claims to be a frame", is("example.com"), false, kindManifest, is("iframe"), reasonOriginRequired},
		{"R8 segment that claims to be a frame", is("example.com"), false, kindSegment, is("iframe"), reasonOriginRequired},
	} {
		t.Run(tc.name, func(t *testing.T) {
			policy := originPolicy{allowed: must(compileOrigins(tc.patterns)), allowMissing: tc.allow}
			r := embedded(nil, nil)
			if tc.fetch != nil {
				r.Header["Sec-Fetch-Dest"] = tc.fetch
			}
			if got := reasonOf(t, policy.check(r, tc.kind)); got != tc.want {
				t.Errorf("%q, want %q", got, tc.want)
			}
			// A frame that says where it stands is judged by that.
			r.Header.Set("Referer", "https://evil.com/")
			if got := reasonOf(t, policy.check(r, tc.kind)); tc.patterns != nil && got != reasonOriginNotAllowed {
				t.Errorf("with the Referer of another site: %q, want %q", got, reasonOriginNotAllowed)
			}
		})
	}
}

func TestNoAllowedOriginsAllowEverything(t *testing.T) {
	for _, origins := range [][]string{nil, is("https://evil.com"), is("null"), is("a", "b"), is("\x00")} {
		if err := (originPolicy{}).check(embedded(origins, nil), kindIframe); err != nil {
			t.Errorf("Origin %q without allowed origins: %v", origins, err)
		}
	}
}

// fuzzedPatterns are the lists that FuzzOrigins holds headers against.
var fuzzedPatterns = [][]string{
	{"example.com"},
	{"*.example.com:8443", "localhost:3000"},
	{"*.example.com", "xn--e1afmkfd.example", "[::1]:8080", "[::ffff:127.0.0.1]", "127.0.0.1"},
	{"*.com"},
	{"*"},
}

// FuzzOrigins holds that the gate never reads more into a header than the URL
// standard lets browsers mean by it, and that what an operator may write, a
// browser's header of the same meaning is allowed by.
func FuzzOrigins(f *testing.F) {
	for _, tc := range headerCases {
		for _, value := range append(tc.origin, tc.referer...) {
			f.Add(value, strings.Fields(tc.patterns)[0])
		}
	}
	for _, tc := range goodPatterns {
		f.Add("https://"+tc.pattern, tc.pattern)
	}
	for _, tc := range badPatterns {
		f.Add("http://"+tc.pattern+"/", tc.pattern)
	}
	var lists []*allowedOrigins
	for _, patterns := range fuzzedPatterns {
		lists = append(lists, must(compileOrigins(patterns)))
	}
	f.Fuzz(func(t *testing.T, header, pattern string) {
		for i, list := range lists {
			policy := originPolicy{allowed: list}
			for name, r := range map[string]*http.Request{
				"Origin":  embedded(is(header), nil),
				"Referer": embedded(nil, is(header)),
			} {
				err := policy.check(r, kindIframe)
				if err == nil && !referenceAllows(fuzzedPatterns[i], header, name == "Origin") {
					t.Fatalf("%s %q is allowed by %q, and no browser would mean that", name, header, fuzzedPatterns[i])
				}
			}
		}
		checkPatternAllowsItself(t, pattern)
	})
}

// checkPatternAllowsItself holds that a pattern that is accepted covers the
// origin that it names.
func checkPatternAllowsItself(t *testing.T, pattern string) {
	t.Helper()
	p, err := parseOriginPattern(pattern)
	if err != nil || p.any {
		return
	}
	list, err := compileOrigins([]string{pattern})
	if err != nil {
		t.Fatalf("parseOriginPattern accepts %q, compileOrigins says %v", pattern, err)
	}
	if ancestors := list.ancestors(); strings.ContainsAny(ancestors, ";,\r\n'\"") {
		t.Fatalf("frame-ancestors of %q is %q", pattern, ancestors)
	}
	host := p.host
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if p.port != 0 {
		host += ":" + strconv.Itoa(int(p.port))
	}
	origins := []string{"https://" + host}
	if isASCII(pattern) && !p.wildcard {
		origins = append(origins, "https://"+pattern, "http://"+pattern)
	}
	if p.wildcard && len(p.host) < 250 {
		origins = append(origins, "https://a."+host)
	}
	for _, origin := range origins {
		o, err := parseOrigin(origin)
		if err != nil {
			t.Fatalf("the pattern %q is accepted, and parseOrigin(%q) = %v", pattern, origin, err)
		}
		if !list.allows(o) {
			t.Fatalf("the pattern %q does not cover %q", pattern, origin)
		}
	}
}

// referenceAllows is a slow reading of allowed origins: net/url takes the
// origin apart, and hosts are compared as the URL standard's host parser
// (section 3.5) understands them. One trailing dot counts for nothing.
func referenceAllows(patterns []string, header string, isOrigin bool) bool {
	if !isOrigin {
		header = withoutPath(header)
	}
	u, err := url.Parse(header)
	if err != nil || u.User != nil || u.Opaque != "" || u.Host == "" || u.Path != "" || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" {
		return false
	}
	defaults := map[string]string{"http": "80", "https": "443"}
	if defaults[u.Scheme] == "" {
		return false
	}
	port := u.Port()
	if port == "" {
		port = defaults[u.Scheme]
	}
	host, ok := referenceHost(u.Hostname(), strings.HasPrefix(u.Host, "["))
	for _, pattern := range patterns {
		if ok && referenceCovers(pattern, host, port, defaults[u.Scheme]) {
			return true
		}
	}
	return false
}

// withoutPath cuts a URL off where the URL standard's authority state ends.
// What follows may be anything, also what net/url does not read.
func withoutPath(header string) string {
	scheme, rest, ok := strings.Cut(header, "://")
	if !ok {
		return header
	}
	if end := strings.IndexAny(rest, `/\?#`); end >= 0 {
		rest = rest[:end]
	}
	return scheme + "://" + rest
}

func referenceCovers(pattern, host, port, defaultPort string) bool {
	if pattern == "*" {
		return true
	}
	rest, wildcard := strings.CutPrefix(pattern, "*.")
	parts := must(url.Parse("https://" + rest))
	want, ok := referenceHost(parts.Hostname(), strings.HasPrefix(parts.Host, "["))
	if !ok {
		return false
	}
	if wantPort := parts.Port(); wantPort != port && (wantPort != "" || port != defaultPort) {
		return false
	}
	return host == want || wildcard && strings.HasSuffix(host, "."+want)
}

// webIDNA is "domain to ASCII" of the URL standard, without beStrict.
var webIDNA = idna.New(idna.MapForLookup(), idna.BidiRule(), idna.Transitional(false), idna.CheckHyphens(false), idna.StrictDomainName(false))

// referenceHost is the URL standard's host parser for the hosts of http URLs.
func referenceHost(host string, bracketed bool) (string, bool) {
	if bracketed {
		addr, err := netip.ParseAddr(host)
		if err != nil || !addr.Is6() || addr.Zone() != "" {
			return "", false
		}
		sixteen := addr.As16()
		return "ipv6 " + string(sixteen[:]), true
	}
	ascii := strings.ToLower(host)
	if !isASCII(host) || strings.Contains(ascii, "xn--") {
		var err error
		if ascii, err = webIDNA.ToASCII(host); err != nil {
			return "", false
		}
	}
	ascii = strings.TrimSuffix(ascii, ".")
	if ascii == "" || strings.ContainsAny(ascii, "\x00\t\n\r #%/:<>?@[\\]^|\x7f") {
		return "", false
	}
	labels := strings.Split(ascii, ".")
	if _, isNumber := webNumber(labels[len(labels)-1]); !isNumber {
		return ascii, true
	}
	return webIPv4(labels)
}

// webIPv4 is the URL standard's IPv4 parser, which knows addresses of one to
// four numbers in three bases.
func webIPv4(parts []string) (string, bool) {
	if len(parts) > 4 {
		return "", false
	}
	var addr uint64
	for i, part := range parts {
		n, ok := webNumber(part)
		last := i == len(parts)-1
		if !ok || !last && n > 255 || last && n >= 1<<(8*(5-len(parts))) {
			return "", false
		}
		if last {
			addr += n
			break
		}
		addr += n << (8 * (3 - i))
	}
	return netip.AddrFrom4([4]byte{byte(addr >> 24), byte(addr >> 16), byte(addr >> 8), byte(addr)}).String(), true
}

func webNumber(s string) (uint64, bool) {
	base := 10
	switch {
	case s == "":
		return 0, false
	case strings.HasPrefix(s, "0x"):
		s, base = s[2:], 16
	case len(s) > 1 && s[0] == '0':
		s, base = s[1:], 8
	}
	if s == "" {
		return 0, true
	}
	for _, c := range s {
		if !strings.ContainsRune("0123456789abcdef", c) {
			return 0, false
		}
	}
	n, err := strconv.ParseUint(s, base, 40)
	if err != nil && strings.Trim(s, "0123456789") == "" {
		return 1 << 40, true // digits that are no number of this base end in a number all the same
	}
	return n, err == nil || base == 16
}

// The reference is itself held against what the URL standard's own tests say.
func TestReferenceHost(t *testing.T) {
	for _, tc := range []struct {
		host string
		want string
		ok   bool
	}{
		{"EXAMPLE.com.", "example.com", true},
		{"0x7f.1", "127.0.0.1", true},
		{"0300.168.0xF0", "192.168.0.240", true},
		{"256", "0.0.1.0", true},
		{"256.1.1.1", "", false},
		{"1.2.3.4.5", "", false},
		{"1.2.3.08", "", false},
		{"foo.0x", "", false},
		{"пример.example", "xn--e1afmkfd.example", true},
		{"xn--a", "", false},
		{"a b", "", false},
	} {
		if got, ok := referenceHost(tc.host, false); got != tc.want || ok != tc.ok {
			t.Errorf("referenceHost(%q) = %q, %t, want %q, %t", tc.host, got, ok, tc.want, tc.ok)
		}
	}
}
