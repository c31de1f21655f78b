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
	{"*", Pattern{any: true}, "*" + appSources},
	{"capacitor://localhost", Pattern{app: "capacitor", host: "localhost"}, "capacitor://localhost"},
	{"Tauri://localhost:1420", Pattern{app: "tauri", host: "localhost", port: 1420}, "tauri://localhost:1420"},
	{"android-app://com.example.MyApp_2", Pattern{app: "android-app", host: "com.example.MyApp_2"}, "android-app://com.example.MyApp_2"},
	{"app://.", Pattern{app: "app", host: "."}, "app://."},
	{"wails://*.localhost", Pattern{app: "wails", host: "localhost", wildcard: true}, "wails://localhost wails://*.localhost"},
	{"chrome-extension://abcdefghijklmnopabcdefghijklmnop", Pattern{app: "chrome-extension", host: "abcdefghijklmnopabcdefghijklmnop"}, "chrome-extension://abcdefghijklmnopabcdefghijklmnop"},
	{"moz-extension://1c8d1f7a-9b1e-4b7e-8a55-0f6c3d0c2b11", Pattern{app: "moz-extension", host: "1c8d1f7a-9b1e-4b7e-8a55-0f6c3d0c2b11"}, "moz-extension://1c8d1f7a-9b1e-4b7e-8a55-0f6c3d0c2b11"},
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

// badPatterns are patterns by the reason why they are prohibited: no browser's
// origin can match them, they could cover more than their author expects, or (C5)
// they could end a source, a directive or the header in Content-Security-Policy.
var badPatterns = map[string][]string{
	"R12 scheme": {
		"https://example.com", "http://example.com", "https://*", "https://*.example.com", "ftp://example.com", "//example.com", "https:example.com",
		"htps://example.com", "HTTPSS://example.com", "file://", "file://localhost", "data://x", "blob://x", "ws://example.com", "1app://x", "://x", "a b://x", "äpp://x",
	},
	"R12 app": {
		"capacitor:localhost", "tauri:", "android-app://com.example/path", "ionic://", "ionic://*", "ionic://user@localhost", "app://a b", "app://[::1]",
		"app://localhost:0", "app://x;script-src", "app://x,y", "app://x'", "app://%61", "app://exämple", "app://*.*.x",
		strings.Repeat("a", 300) + "://localhost", "app://" + strings.Repeat("a", 300),
	},
	"R12 path": {"example.com/path", "example.com/*", "example.com/", "192.0.2.0/24"},
	"R12 wildcard in another place": {
		"*example.com", "ex*ple.com", "example.*", "**.a", "a.*.b", "*.*.example.com", "*.", "*:8443", "example.com:*", "*.192.0.2.1", "*.[::1]",
	},
	"R12 more than a host": {
		"", " example.com", "example.com\n", "example.com\r\nX: y", "example.com,example.org", "example.com example.org", "user@example.com",
		"example.com?x", "example.com#x", `example.com\x`, "ex%61mple.com",
	},
	"C5 injection": {"example.com; script-src *", "example.com,default-src *", "'self'", "'self' *", "data:"},
	"R4 port": {
		"example.com:", "example.com:0", "example.com:65536", "example.com:080", "example.com:+80", "example.com:0x50", "example.com:80:80",
	},
	"R4 domain name": {
		"example..com", ".example.com", "example.com..", "-a.example.com", "a-.example.com",
		strings.Repeat("a", 64) + ".example", strings.Repeat("a.", 126) + "aa",
	},
	"R4 IPv4 address": {"192.0.2", "192.0.2.01", "0x7f.0.0.1", "127.0.0.0x1", "2130706433", "example.1"},
	"R5 IPv6 address": {
		"::1", "fe80::abcd", "[fe80::1%eth0]", "[fe80::1%25eth0]", "[192.0.2.1]", "[::1", "[::1:8080", "[::1]]", "[::1]x", "[]",
	},
	// xn--example-.com is Punycode of ASCII alone: CVE-2026-39821.
	"R6 Punycode": {"xn--example-.com", "xn--a-b-c.example", "xn--.example", "xn--d0a6das0ae0bir7j.example"},
	"R6 Unicode":  {"💩\u200b.\u202eexample", "ex\xffmple.com"},
}

func TestProhibitedPatterns(t *testing.T) {
	t.Parallel()
	for attack, patterns := range badPatterns {
		for _, pattern := range patterns {
			p, err := ParsePattern(pattern)
			if err == nil || p != (Pattern{}) {
				t.Errorf("%s: ParsePattern(%q) = %+v, %v, want an error and no pattern", attack, pattern, p, err)
				continue
			}
			if !strings.Contains(err.Error(), strconv.Quote(pattern)) {
				t.Errorf("%s: ParsePattern(%q) = %v, which does not quote the pattern", attack, pattern, err)
			}
			// Cloudflare's API uses the same words for a scheme.
			const scheme = "allowed origin must not specify protocol"
			if got, want := strings.Contains(err.Error(), scheme), strings.Contains(pattern, "//") && attack != "R12 app"; got != want {
				t.Errorf("%s: ParsePattern(%q) = %v; mentions the protocol: %t, want %t", attack, pattern, err, got, want)
			}
			if list, err := Compile([]string{"example.com", pattern}); err == nil || list != nil {
				t.Errorf("%s: Compile accepts %q after a valid pattern", attack, pattern)
			}
		}
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
		{Origin{HTTPS: true, Host: "example.com", Port: 443}, "https://example.com", "example.com:443"},
		{Origin{HTTPS: true, Host: "example.com", Port: 80}, "https://example.com:80", "example.com:80"},
		{Origin{HTTPS: false, Host: "example.com", Port: 80}, "http://example.com", "example.com:80"},
		{Origin{HTTPS: false, Host: "example.com", Port: 443}, "http://example.com:443", "example.com:443"},
		{Origin{HTTPS: false, Host: "::1", Port: 8080}, "http://[::1]:8080", "[::1]:8080"},
		{Origin{HTTPS: true, Host: "::1", Port: 443}, "https://[::1]", "[::1]:443"},
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

// siteCases are sites, each sent as Origin and, with a path, as Referer. Rows
// with G have the guidelines on allowed origins of Cloudflare's "Secure your
// stream".
var siteCases = []struct {
	name             string
	patterns         string // separated by spaces
	allowed, refused []string
}{
	{"R1, G: a name that contains an allowed one", "example.com", is("https://example.com", "http://example.com"), is(
		"https://evil-example.com", "https://example.com.evil.com", "https://notexample.com", "https://example.comevil", "https://a.example.com",
		"https://www.example.com", "https://a.b.example.com", "https://example.co", "https://xample.com", "https://com", "https://example_com",
		"https://example-com", "https://example.com-evil.com", "https://evil.com", "https://example.org",
	)},
	{"R1 the parent of an allowed name", "a.example.com", is("https://a.example.com"), is("https://example.com")},
	{"R2, G: a name that a wildcard seems to cover", "*.example.com", is("https://example.com", "https://a.example.com", "https://a.b.example.com"), is(
		"https://.example.com", "https://..example.com", "https://a..example.com", "https://a.example.com..", "https://-a.example.com",
		"https://a.-.example.com", "https://aexample.com", "https://evilexample.com", "https://*.example.com", "https://a.example.com.evil.com",
		"https://a.example.co", "https://com", "https://example.org", "https://%61.example.com", "https://a b.example.com",
		"https://a.example.com:8443", "http://1.2.3.4", "https://"+strings.Repeat("a.", 200)+"example.com",
	)},
	{"R2 a port with a wildcard", "*.example.com:8443", is("https://example.com:8443", "http://a.example.com:8443"), is("https://a.example.com")},
	{"R3 an allowed name in another part of the URL", "example.com", nil, is(
		"https://user@example.com", "https://user:pass@example.com", "https://@example.com", "https://example.com@evil.com",
		"https://example.com:443@evil.com", `https://evil.com\@example.com`, `https://example.com\.evil.com`, `https://evil.com\.example.com`,
		`https:\\example.com`, "https:///example.com", "https:////evil.com", "https:/example.com", "https://exam\tple.com",
		"https://evil.com\t.example.com", " https://example.com", "https://example.com ", " https://evil.com", "https://ex%61mple.com",
		"https://example.com%2f.evil.com", "https://example.com%2eevil.com", "https://example.com%00.evil.com", "https://evil.com%23.example.com",
		"https://evil.com;.example.com", "https://evil.com&.example.com", "https://evil.com,example.com", "https:/x/https://example.com",
	)},
	{"R4 another spelling of the host", "example.com", is("HTTPS://EXAMPLE.COM", "https://example.com."), is("https://example.com..")},
	{"R4 another port", "example.com", is("https://example.com:443", "http://example.com:80"), is(
		"https://example.com:80", "http://example.com:443", "https://example.com:8443", "https://example.com:", "https://example.com:0",
		"https://example.com:99999", "https://example.com:65979", "https://example.com:0443", "https://example.com:+443",
		"https://example.com:-443", "https://example.com:443:443", "https://example.com:4 43", "https://example.com:\u0664\u0664\u0663",
	)},
	{"R4 the port of a pattern", "example.com:8443", is("https://example.com:8443", "http://example.com:8443"), is(
		"https://example.com", "https://example.com:84", "https://example.com:84430", "https://a.example.com:8443",
	)},
	{"R4 a default port in a pattern", "example.com:443", is("https://example.com", "https://example.com:443", "http://example.com:443"), is(
		"http://example.com", "https://example.com:8443",
	)},
	{"R5, G: localhost", "localhost", is("http://localhost", "https://localhost", "http://localhost:80", "https://localhost:443"), is(
		"http://localhost:3000", "http://localhost:443", "https://localhost:80", "http://[::1]", "http://127.0.0.1",
	)},
	{"R5, G: localhost on a port", "localhost:3000", is("http://localhost:3000"), is(
		"http://localhost", "http://localhost:3001", "http://a.localhost:3000", "http://127.0.0.1:3000", "http://[::1]:3000",
	)},
	{"R5 IPv6 address", "[::1]:8080", is("http://[::1]:8080", "http://[0:0::1]:8080"), is(
		"http://[::1]", "http://[::1]:8081", "http://[::1:8080", "http://::1:8080", "http://[::1%25lo]:8080", "http://[::1]8080", "http://[]:8080",
		"http://[::ffff:127.0.0.1]:8080",
	)},
	{"R5 zone of an IPv6 address", "[fe80::1]", is("http://[fe80::1]"), is("http://[fe80::1%25lo]")},
	{"R5 IPv4 address", "192.0.2.1 127.0.0.1", is("http://192.0.2.1", "http://192.0.2.1.", "http://127.0.0.1"), is(
		"http://[::ffff:192.0.2.1]", "http://[::ffff:127.0.0.1]", "http://192.0.2.01", "http://3221225985", "http://0xc0.0.2.1", "http://192.0.513",
		"http://1.192.0.2.1", "http://127.1", "http://0x7f000001",
	)},
	{"R6 Punycode", "xn--e1afmkfd.example", is("https://xn--e1afmkfd.example", "https://XN--E1AFMKFD.example"), is(
		"https://пример.example", "https://xn--e1afmkfd\u3002example", "https://xn--e1afmkfd%E3%80%82example", "https://xn--a.example",
		"https://xn--.example", "https://primer.example", "https://xn--e1afmkfd.example.evil.com", "https://\xd0\xbf.example",
	)},
	{"R6 Unicode pattern", "пример.example", is("https://xn--e1afmkfd.example"), nil},
	// Go's ToLower makes i of a dotted capital I, and k of the Kelvin sign.
	{"R6 Unicode that looks like ASCII", "wiki.example example.com", is("https://wiki.example"), is(
		"https://w\u0130ki.example", "https://wi\u212ai.example", "https://example。com", "https://xn--example-.com", "https://exam\u00adple.com",
	)},
	// Any site can make a sandboxed frame or a data: URL.
	{"R7 opaque origin", "*", is("https://evil.com:8443", "http://[2001:db8::1]"), is(
		"null", "NULL", "", "about:blank", "file://", "file://localhost", "data:text/html,x", "javascript:1", "blob:https://example.com",
		"https://user@example.com", "filesystem:https://example.com", "capacitor:localhost", "capacitor://", "app://user@localhost", "capacitor://a, tauri://b", "app://\u0130",
	)},
	{"an app of any framework", "*", is(
		"capacitor://localhost", "tauri://localhost", "ionic://localhost", "android-app://com.example", "ios-app://123", "app://obsidian.md", "app://.", "wails://wails.localhost:34115",
		"chrome-extension://abcdefghijklmnopabcdefghijklmnop", "vscode-webview://0a1b2c", "ms-appx-web://my.app_1", "httpsionic://localhost",
	), nil},
	{"an app", "capacitor://localhost android-app://com.example tauri://localhost:80", is(
		"capacitor://localhost", "CAPACITOR://localhost", "android-app://com.example", "tauri://localhost:80",
	), is(
		"http://localhost", "https://localhost", "ionic://localhost", "capacitor://localhost:80", "capacitor://localhost.", "capacitor://a.localhost", "capacitor://Localhost",
		"capacitor://evil", "capacitor://localhost@evil", "android-app://com.example.evil", "android-app://com.Example", "android-app://com_example", "tauri://localhost", "capacitor-x://localhost",
	)},
	{"a site of an app's name", "localhost *.example.com", nil, is("capacitor://localhost", "tauri://example.com", "app://a.example.com:80", "app://localhost:80")},
	{"R10 another scheme", "example.com", nil, is(
		"ftp://example.com", "ws://example.com", "file://example.com", "httpss://example.com", "httpsx://example.com", "xhttps://example.com",
		"http+unix://example.com", "http\u017f://example.com", "//example.com", "https:example.com", "example.com", "://example.com", "https://",
		"https", ":",
	)},
	{"the second pattern", "example.org example.com", is("https://example.com"), nil},
	{"* and another pattern", "example.com *", is("https://evil.com"), nil},
}

func TestSites(t *testing.T) {
	t.Parallel()
	for _, tc := range siteCases {
		list := compile(t, strings.Fields(tc.patterns)...)
		for want, sites := range map[verdict][]string{allowed: tc.allowed, refused: tc.refused} {
			for _, site := range sites {
				if got := judge(list, is(site), nil); got != want {
					t.Errorf("%s: Origin %q with %s: %s, want %s", tc.name, site, tc.patterns, got, want)
				}
				if got := judge(list, nil, is(site+"/watch?x=1#y")); got != want {
					t.Errorf("%s: Referer %q with %s: %s, want %s", tc.name, site+"/watch?x=1#y", tc.patterns, got, want)
				}
			}
		}
	}
}

// headerCases are requests to a video that allows example.com.
var headerCases = []struct {
	name            string
	origin, referer []string
	want            verdict
}{
	{"Referer without a path", nil, is("https://example.com"), allowed},
	{"Referer with a query only", nil, is("https://example.com?x"), allowed},
	{"Referer with a fragment only", nil, is("https://example.com#x"), allowed},
	{"R3 allowed name in the fragment", nil, is("https://evil.com#@example.com"), refused},
	{"R3 allowed name in the query", nil, is("https://evil.com?.example.com"), refused},
	{"R3 allowed name in the path", nil, is("https://evil.com/example.com"), refused},
	{"R3 allowed URL in the query", nil, is("https://evil.com/?u=https://example.com/"), refused},
	{"R3 malformed path of an allowed page", nil, is("https://example.com/%zz\x7f"), allowed},
	{"R3 path in Origin", is("https://example.com/"), nil, refused},
	{"R7 empty Referer", nil, is(""), refused},
	{"R7 null with an allowed Referer", is("null"), is("https://example.com/"), refused},
	// The attack: a page hides its address.
	{"R8 neither header", nil, nil, missing},
	// The attack: repeated headers, of which two programs read different ones.
	{"R9 two Referers", nil, is("https://example.com/", "https://evil.com/"), refused},
	{"R9 the same Referer twice", nil, is("https://example.com/", "https://example.com/"), refused},
	{"R9 an app's Origin and a site's", is("capacitor://localhost", "https://example.com"), nil, refused},
	{"R9 two Origins", is("https://example.com", "https://evil.com"), nil, refused},
	{"R9 two Origins in one header", is("https://example.com, https://evil.com"), nil, refused},
	{"R9 two Origins with a space", is("https://example.com https://example.org"), nil, refused},
	{"R9 allowed Origin, two Referers", is("https://example.com"), is("https://example.com/", "https://example.com/"), refused},
	{"R9 allowed Origin, other Referer", is("https://example.com"), is("https://evil.com/"), allowed},
	{"R9 other Origin, allowed Referer", is("https://evil.com"), is("https://example.com/"), refused},
}

func TestHeaders(t *testing.T) {
	t.Parallel()
	list := compile(t, "example.com")
	for _, tc := range headerCases {
		if got := judge(list, tc.origin, tc.referer); got != tc.want {
			t.Errorf("%s: Origin %q, Referer %q: %s, want %s", tc.name, tc.origin, tc.referer, got, tc.want)
		}
	}
	if got := judge(compile(t, "*"), nil, nil); got != missing {
		t.Errorf("R8 neither header with pattern *: %s, want missing", got)
	}
}
