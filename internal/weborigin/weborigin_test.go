package weborigin

import (
	"errors"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// goodPatterns are patterns as operators write them, with the pattern that each
// becomes, and its frame-ancestors.
var goodPatterns = []struct {
	pattern   string
	want      Pattern
	ancestors string
}{
	{"*", Pattern{any: true}, "*"},
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

func exactly(host string, port uint16) Pattern { return Pattern{host: host, port: port} }

func below(domain string, port uint16) Pattern {
	return Pattern{host: domain, port: port, wildcard: true}
}

func compile(t testing.TB, patterns ...string) *List {
	t.Helper()
	list, err := Compile(patterns)
	if err != nil {
		t.Fatalf("Compile(%q): %v", patterns, err)
	}
	return list
}

func TestPatterns(t *testing.T) {
	t.Parallel()
	for _, tc := range goodPatterns {
		got, err := ParsePattern(tc.pattern)
		if err != nil || got != tc.want {
			t.Errorf("ParsePattern(%q) = %+v, %v, want %+v", tc.pattern, got, err, tc.want)
			continue
		}
		if got := compile(t, tc.pattern).FrameAncestors(); got != tc.ancestors {
			t.Errorf("frame-ancestors of %q = %q, want %q", tc.pattern, got, tc.ancestors)
		}
		checkPattern(t, tc.pattern)
	}
}

// badPatterns are patterns that no browser's origin can match, that could cover
// more than their author expects (R rows), or that could end a source, a
// directive or the header in Content-Security-Policy (C rows).
var badPatterns = []struct{ name, pattern string }{
	{"R12 protocol", "https://example.com"},
	{"R12 protocol http", "http://example.com"},
	{"R12 protocol with a wildcard", "https://*"},
	{"R12 protocol with a wildcard domain", "https://*.example.com"},
	{"R12 protocol of another kind", "ftp://example.com"},
	{"R12 relative protocol", "//example.com"},
	{"R12 protocol without slashes", "https:example.com"},
	{"R12 path", "example.com/path"},
	{"R12 path of every page", "example.com/*"},
	{"R12 trailing slash", "example.com/"},
	{"R12 CIDR", "192.0.2.0/24"},
	{"R12 empty", ""},
	{"R12 star before a name", "*example.com"},
	{"R12 star in a name", "ex*ple.com"},
	{"R12 star after a name", "example.*"},
	{"R12 two stars", "**.a"},
	{"R12 star in the middle", "a.*.b"},
	{"R12 wildcard below a wildcard", "*.*.example.com"},
	{"R12 wildcard of nothing", "*."},
	{"R12 wildcard of a port", "*:8443"},
	{"R12 any port", "example.com:*"},
	{"R12 wildcard of an IPv4 address", "*.192.0.2.1"},
	{"R12 wildcard of an IPv6 address", "*.[::1]"},
	{"R12 line break", "example.com\n"},
	{"R12 header injection", "example.com\r\nX: y"},
	{"R12 space before the host", " example.com"},
	{"R12 two origins", "example.com,example.org"},
	{"R12 two origins with a space", "example.com example.org"},
	{"R12 userinfo", "user@example.com"},
	{"R12 query", "example.com?x"},
	{"R12 fragment", "example.com#x"},
	{"R12 backslash", `example.com\x`},
	{"R12 percent-encoding", "ex%61mple.com"},
	{"C5 directive injection", "example.com; script-src *"},
	{"C5 directive injection by comma", "example.com,default-src *"},
	{"C5 keyword", "'self'"},
	{"C5 keyword and wildcard", "'self' *"},
	{"C5 scheme source", "data:"},

	{"R4 empty port", "example.com:"},
	{"R4 port 0", "example.com:0"},
	{"R4 port above 65535", "example.com:65536"},
	{"R4 port with a leading zero", "example.com:080"},
	{"R4 port with a sign", "example.com:+80"},
	{"R4 port in hexadecimal", "example.com:0x50"},
	{"R4 two ports", "example.com:80:80"},
	{"R4 empty label", "example..com"},
	{"R4 leading dot", ".example.com"},
	{"R4 two trailing dots", "example.com.."},
	{"R4 label that starts with a hyphen", "-a.example.com"},
	{"R4 label that ends in a hyphen", "a-.example.com"},
	{"R4 label of 64 bytes", strings.Repeat("a", 64) + ".example"},
	{"R4 host of 254 bytes", strings.Repeat("a.", 126) + "aa"},
	{"R4 IPv4 of three parts", "192.0.2"},
	{"R4 IPv4 with a leading zero", "192.0.2.01"},
	{"R4 IPv4 in hexadecimal", "0x7f.0.0.1"},
	{"R4 IPv4 whose last part is hexadecimal", "127.0.0.0x1"},
	{"R4 IPv4 as one number", "2130706433"},
	{"R4 name with a number at the end", "example.1"},

	{"R5 IPv6 without brackets", "::1"},
	{"R5 IPv6 without brackets that ends in no number", "fe80::abcd"},
	{"R5 IPv6 zone", "[fe80::1%eth0]"},
	{"R5 IPv6 zone, encoded", "[fe80::1%25eth0]"},
	{"R5 IPv4 in brackets", "[192.0.2.1]"},
	{"R5 missing bracket", "[::1"},
	{"R5 missing bracket before a port", "[::1:8080"},
	{"R5 extra bracket", "[::1]]"},
	{"R5 text after the bracket", "[::1]x"},
	{"R5 empty brackets", "[]"},

	{"R6 Punycode of ASCII alone (CVE-2026-39821)", "xn--example-.com"},
	{"R6 broken Punycode", "xn--a-b-c.example"},
	{"R6 empty Punycode", "xn--.example"},
	{"R6 Punycode of capitals", "xn--d0a6das0ae0bir7j.example"},
	{"R6 no letter", "💩\u200b.\u202eexample"},
	{"R6 invalid UTF-8", "ex\xffmple.com"},
}

func TestProhibitedPatterns(t *testing.T) {
	t.Parallel()
	for _, tc := range badPatterns {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			p, err := ParsePattern(tc.pattern)
			if err == nil || p != (Pattern{}) {
				t.Fatalf("ParsePattern(%q) = %+v, %v, want an error and no pattern", tc.pattern, p, err)
			}
			if !strings.Contains(err.Error(), strconv.Quote(tc.pattern)) {
				t.Errorf("ParsePattern(%q) = %v, which does not quote the pattern", tc.pattern, err)
			}
			// Cloudflare's API sends the same words for a scheme.
			const scheme = "allowed origin must not specify protocol"
			if got, want := strings.Contains(err.Error(), scheme), strings.Contains(tc.pattern, "//"); got != want {
				t.Errorf("ParsePattern(%q) = %v; mentions the protocol: %t, want %t", tc.pattern, err, got, want)
			}
			if list, err := Compile([]string{"example.com", tc.pattern}); err == nil || list != nil {
				t.Errorf("Compile accepts %q after a valid pattern", tc.pattern)
			}
		})
	}
}

func TestLists(t *testing.T) {
	t.Parallel()
	list := compile(t, "example.com", "*.Example.org:8443", "[::1]:3000", "EXAMPLE.com.", "*.example.org:8443")
	if diff := cmp.Diff([]string{"*.example.org:8443", "[::1]:3000", "example.com"}, list.Patterns()); diff != "" {
		t.Errorf("Patterns, each once (-want +got):\n%s", diff)
	}
	if got, want := list.FrameAncestors(), "http://example.com http://example.org:8443 http://*.example.org:8443 http://[::1]:3000"; got != want {
		t.Errorf("FrameAncestors() = %q, want %q", got, want)
	}
	for _, none := range []*List{nil, compile(t)} {
		if none != nil || !none.Allows(Origin{Host: "evil.com", Port: 80}) || none.FrameAncestors() != "" || none.Patterns() != nil {
			t.Errorf("without patterns: %+v, want a nil List that allows any origin", none)
		}
	}

	most := slices.Repeat([]string{"example.com"}, MaxPatterns)
	if _, err := Compile(most); err != nil {
		t.Errorf("Compile of %d patterns: %v", MaxPatterns, err)
	}
	// The attack: a list whose frame-ancestors do not fit into a header.
	if list, err := Compile(append(most, "example.com")); err == nil || list != nil || !strings.Contains(err.Error(), "more than 200") {
		t.Errorf("Compile of %d patterns = %v, %v, want an error that names the limit", MaxPatterns+1, list, err)
	}
}

func TestOriginAsText(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		origin       Origin
		url, address string
	}{
		{Origin{true, "example.com", 443}, "https://example.com", "example.com:443"},
		{Origin{true, "example.com", 80}, "https://example.com:80", "example.com:80"},
		{Origin{false, "example.com", 80}, "http://example.com", "example.com:80"},
		{Origin{false, "example.com", 443}, "http://example.com:443", "example.com:443"},
		{Origin{false, "::1", 8080}, "http://[::1]:8080", "[::1]:8080"},
		{Origin{true, "::1", 443}, "https://[::1]", "[::1]:443"},
	} {
		if tc.origin.String() != tc.url || tc.origin.Address() != tc.address {
			t.Errorf("%+v is %s at %s, want %s at %s", tc.origin, tc.origin, tc.origin.Address(), tc.url, tc.address)
		}
	}
}

// verdict is the outcome for a request.
type verdict string

const (
	allowed verdict = "allowed"
	refused verdict = "refused"
	missing verdict = "missing"
)

func judge(list *List, origins, referers []string) verdict {
	header := make(map[string][]string)
	if origins != nil {
		header["Origin"] = origins
	}
	if referers != nil {
		header["Referer"] = referers
	}
	o, err := FromHeader(header)
	switch {
	case errors.Is(err, ErrMissing):
		return missing
	case err == nil && list.Allows(o):
		return allowed
	default:
		return refused
	}
}

func is(values ...string) []string { return values }

// headerCases are requests from pages, with the origins that a list allows.
var headerCases = []struct {
	name            string
	patterns        string // separated by spaces
	origin, referer []string
	want            verdict
}{
	// The attack: a site whose name contains an allowed one.
	{"R1 name after a hyphen", "example.com", nil, is("https://evil-example.com/"), refused},
	{"R1 name at the start", "example.com", nil, is("https://example.com.evil.com/"), refused},
	{"R1 name after letters", "example.com", is("https://notexample.com"), nil, refused},
	{"R1 letters after the name", "example.com", is("https://example.comevil"), nil, refused},
	{"R1 subdomain", "example.com", is("https://a.example.com"), nil, refused},
	{"R1 parent", "a.example.com", is("https://example.com"), nil, refused},
	{"R1 the name itself", "example.com", is("https://example.com"), nil, allowed},
	{"R1 the name itself by Referer", "example.com", nil, is("https://example.com/embed?x=1#y"), allowed},

	// The attack: a site that a wildcard seems to cover.
	{"R2 subdomain", "*.example.com", is("https://a.example.com"), nil, allowed},
	{"R2 deep subdomain", "*.example.com", is("https://a.b.example.com"), nil, allowed},
	{"R2 the domain", "*.example.com", is("https://example.com"), nil, allowed},
	{"R2 empty label", "*.example.com", is("https://.example.com"), nil, refused},
	{"R2 empty label in the middle", "*.example.com", is("https://a..example.com"), nil, refused},
	{"R2 no dot", "*.example.com", is("https://evilexample.com"), nil, refused},
	{"R2 the pattern itself", "*.example.com", is("https://*.example.com"), nil, refused},
	{"R2 name at the start", "*.example.com", is("https://a.example.com.evil.com"), nil, refused},
	{"R2 other port", "*.example.com", is("https://a.example.com:8443"), nil, refused},
	{"R2 port of the pattern", "*.example.com:8443", is("https://a.example.com:8443"), nil, allowed},
	{"R2 default port when the pattern has another", "*.example.com:8443", is("https://a.example.com"), nil, refused},

	// The attack: an allowed name in another part of the URL than the host.
	{"R3 userinfo", "example.com", nil, is("https://user@example.com/"), refused},
	{"R3 name as userinfo", "example.com", nil, is("https://example.com@evil.com/"), refused},
	{"R3 name as user and password", "example.com", nil, is("https://example.com:443@evil.com/"), refused},
	{"R3 name in the fragment", "example.com", nil, is("https://evil.com#@example.com"), refused},
	{"R3 name in the query", "example.com", nil, is("https://evil.com?.example.com"), refused},
	{"R3 name in the path", "example.com", nil, is("https://evil.com/example.com"), refused},
	{"R3 URL in the query", "example.com", nil, is("https://evil.com/?u=https://example.com/"), refused},
	{"R3 backslash", "example.com", nil, is(`https://evil.com\@example.com/`), refused},
	{"R3 backslash after the name", "example.com", nil, is(`https://example.com\.evil.com/`), refused},
	{"R3 backslashes instead of slashes", "example.com", nil, is(`https:\\example.com/`), refused},
	{"R3 three slashes", "example.com", nil, is("https:///example.com/"), refused},
	{"R3 tab in the name", "example.com", nil, is("https://exam\tple.com/"), refused},
	{"R3 space before the origin", "example.com", is(" https://example.com"), nil, refused},
	{"R3 space after the origin", "example.com", is("https://example.com "), nil, refused},
	{"R3 percent-encoding", "example.com", is("https://ex%61mple.com"), nil, refused},
	{"R3 percent-encoded end of the host", "example.com", nil, is("https://example.com%2f.evil.com/"), refused},
	{"R3 malformed path of an allowed page", "example.com", nil, is("https://example.com/%zz\x7f"), allowed},
	{"R3 path in Origin", "example.com", is("https://example.com/"), nil, refused},
	{"R3 URL in a Referer's path", "example.com", nil, is("https:/x/https://example.com/"), refused},

	{"R4 capitals", "example.com", is("HTTPS://EXAMPLE.COM"), nil, allowed},
	{"R4 trailing dot", "example.com", is("https://example.com."), nil, allowed},
	{"R4 two trailing dots", "example.com", is("https://example.com.."), nil, refused},
	{"R4 default port of https", "example.com", is("https://example.com:443"), nil, allowed},
	{"R4 default port of http", "example.com", is("http://example.com:80"), nil, allowed},
	{"R4 port 80 on https", "example.com", is("https://example.com:80"), nil, refused},
	{"R4 port 443 on http", "example.com", is("http://example.com:443"), nil, refused},
	{"R4 other port", "example.com", is("https://example.com:8443"), nil, refused},
	{"R4 port of the pattern", "example.com:8443", is("https://example.com:8443"), nil, allowed},
	{"R4 port of the pattern, on http", "example.com:8443", is("http://example.com:8443"), nil, allowed},
	{"R4 explicit port 443 in the pattern", "example.com:443", is("https://example.com"), nil, allowed},
	{"R4 explicit port 443 in the pattern and the origin", "example.com:443", is("https://example.com:443"), nil, allowed},
	{"R4 http when the pattern has port 443", "example.com:443", is("http://example.com"), nil, refused},
	{"R4 empty port", "example.com", is("https://example.com:"), nil, refused},
	{"R4 port above 65535", "example.com", is("https://example.com:99999"), nil, refused},
	{"R4 port that overflows to 443", "example.com", is("https://example.com:65979"), nil, refused},
	{"R4 port 0", "example.com", is("https://example.com:0"), nil, refused},
	{"R4 host that is too long", "*.example.com", is("https://" + strings.Repeat("a.", 200) + "example.com"), nil, refused},

	{"R5 IPv6", "[::1]:8080", is("http://[::1]:8080"), nil, allowed},
	{"R5 IPv6 in another spelling", "[::1]:8080", is("http://[0:0::1]:8080"), nil, allowed},
	{"R5 IPv6 on another port", "[::1]:8080", is("http://[::1]:8081"), nil, refused},
	{"R5 IPv6 with a missing bracket", "[::1]:8080", is("http://[::1:8080"), nil, refused},
	{"R5 IPv4-mapped is another host", "127.0.0.1:8080", is("http://[::ffff:127.0.0.1]:8080"), nil, refused},
	{"R5 zone", "[fe80::1]", is("http://[fe80::1%25lo]"), nil, refused},
	{"R5 localhost on its port", "localhost:3000", is("http://localhost:3000"), nil, allowed},
	{"R5 localhost's address is another host", "localhost:3000", is("http://127.0.0.1:3000"), nil, refused},
	{"R5 IPv4", "127.0.0.1", is("http://127.0.0.1"), nil, allowed},
	{"R5 IPv4 with a trailing dot", "127.0.0.1", is("http://127.0.0.1."), nil, allowed},
	{"R5 IPv4 in two parts", "127.0.0.1", is("http://127.1"), nil, refused},
	{"R5 IPv4 in hexadecimal", "127.0.0.1", is("http://0x7f000001"), nil, refused},
	{"R5 below a part of an address", "*.example.com", is("http://1.2.3.4"), nil, refused},

	{"R6 A-label", "xn--e1afmkfd.example", is("https://xn--e1afmkfd.example"), nil, allowed},
	{"R6 A-label for a pattern in Cyrillic", "пример.example", is("https://xn--e1afmkfd.example"), nil, allowed},
	{"R6 dotted capital I, which Go lowers to i", "wiki.example", is("https://w\u0130ki.example"), nil, refused},
	{"R6 Kelvin sign", "wiki.example", is("https://wi\u212ai.example"), nil, refused},
	{"R6 A-label in capitals", "xn--e1afmkfd.example", is("https://XN--E1AFMKFD.example"), nil, allowed},
	{"R6 Cyrillic, which no browser sends", "xn--e1afmkfd.example", is("https://пример.example"), nil, refused},
	{"R6 fullwidth dot", "example.com", is("https://example。com"), nil, refused},
	{"R6 Punycode of ASCII alone", "example.com", is("https://xn--example-.com"), nil, refused},
	{"R6 soft hyphen", "example.com", is("https://exam\u00adple.com"), nil, refused},

	// The attack: a sandboxed frame or a data: URL, which any site can make.
	{"R7 null", "example.com", is("null"), nil, refused},
	{"R7 null with an allowed Referer", "example.com", is("null"), is("https://example.com/"), refused},
	{"R7 null with pattern *", "*", is("null"), nil, refused},
	{"R7 empty", "example.com", is(""), nil, refused},
	{"R7 empty with pattern *", "*", is(""), nil, refused},
	{"R7 empty Referer", "example.com", nil, is(""), refused},
	{"R7 about:blank", "example.com", nil, is("about:blank"), refused},
	{"R7 file", "example.com", is("file://"), nil, refused},
	{"R7 app", "example.com", nil, is("android-app://example.com/"), refused},
	{"R7 blob", "example.com", nil, is("blob:https://example.com/x"), refused},
	{"R7 extension", "*", is("chrome-extension://example.com"), nil, refused},

	// The attack: a page that hides its address.
	{"R8 neither header", "example.com", nil, nil, missing},
	{"R8 neither header with pattern *", "*", nil, nil, missing},

	// The attack: repeated headers, of which two programs read different ones.
	{"R9 two Referers", "example.com", nil, is("https://example.com/", "https://evil.com/"), refused},
	{"R9 the same Referer twice", "example.com", nil, is("https://example.com/", "https://example.com/"), refused},
	{"R9 two Origins", "example.com", is("https://example.com", "https://evil.com"), nil, refused},
	{"R9 two Origins in one header", "example.com", is("https://example.com, https://evil.com"), nil, refused},
	{"R9 two Origins with a space", "example.com", is("https://example.com https://example.org"), nil, refused},
	{"R9 allowed Origin, two Referers", "example.com", is("https://example.com"), is("https://example.com/", "https://example.com/"), refused},
	{"R9 allowed Origin, other Referer", "example.com", is("https://example.com"), is("https://evil.com/"), allowed},
	{"R9 other Origin, allowed Referer", "example.com", is("https://evil.com"), is("https://example.com/"), refused},

	{"R10 http", "example.com", is("http://example.com"), nil, allowed},
	{"R10 another scheme", "example.com", is("ftp://example.com"), nil, refused},
	{"R10 another scheme with the same prefix", "example.com", is("httpss://example.com"), nil, refused},
	{"R10 scheme with a long s", "example.com", is("http\u017f://example.com"), nil, refused},
	{"R10 no scheme", "example.com", is("//example.com"), nil, refused},
	{"R10 no slashes", "example.com", nil, is("https:example.com"), refused},
	{"R10 only the host", "example.com", is("example.com"), nil, refused},

	{"second pattern", "example.org example.com", is("https://example.com"), nil, allowed},
	{"any origin", "*", is("https://evil.com:8443"), nil, allowed},
	{"any origin and others", "example.com *", is("http://[2001:db8::1]"), nil, allowed},
}

// The attack: sites whose names or ports are nearly those of a pattern.
func TestAlmostAllowedSites(t *testing.T) {
	t.Parallel()
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
		list := compile(t, pattern)
		for _, site := range sites {
			if got := judge(list, is(site), nil); got != refused {
				t.Errorf("Origin %q with pattern %s: %s, want refused", site, pattern, got)
			}
			if got := judge(list, nil, is(site+"/watch")); got != refused {
				t.Errorf("Referer %q with pattern %s: %s, want refused", site+"/watch", pattern, got)
			}
		}
	}
}

func TestHeaders(t *testing.T) {
	t.Parallel()
	for _, tc := range headerCases {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			if got := judge(compile(t, strings.Fields(tc.patterns)...), tc.origin, tc.referer); got != tc.want {
				t.Errorf("Origin %q, Referer %q with patterns %s: %s, want %s", tc.origin, tc.referer, tc.patterns, got, tc.want)
			}
		})
	}
}

// The four guidelines on allowed origins in Cloudflare's "Secure your stream".
func TestGuidelines(t *testing.T) {
	t.Parallel()
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
		if got := judge(compile(t, tc.pattern), nil, is(tc.referer)) == allowed; got != tc.want {
			t.Errorf("%q covers a page at %s = %t, want %t: %s", tc.pattern, tc.referer, got, tc.want, tc.guideline)
		}
	}
}
