package weborigin

import (
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/idna"
)

// fuzzedPatterns are the lists that FuzzOrigins checks headers against.
var fuzzedPatterns = [][]string{
	{"example.com"},
	{"*.example.com:8443", "localhost:3000"},
	{"*.example.com", "xn--e1afmkfd.example", "[::1]:8080", "[::ffff:127.0.0.1]", "127.0.0.1"},
	{"*.com"},
	{"*"},
	{"capacitor://localhost", "app://example.com:80"},
}

// FuzzOrigins checks two relations. A header that is allowed names an allowed
// origin by the URL standard too. And a pattern that is accepted covers the
// origins that it names.
func FuzzOrigins(f *testing.F) {
	for _, tc := range siteCases {
		for _, site := range append(tc.allowed, tc.refused...) {
			f.Add(site, strings.Fields(tc.patterns)[0])
		}
	}
	for _, tc := range headerCases {
		for _, value := range append(tc.origin, tc.referer...) {
			f.Add(value, "example.com")
		}
	}
	for _, tc := range goodPatterns {
		f.Add("https://"+tc.pattern, tc.pattern)
	}
	for _, patterns := range badPatterns {
		for _, pattern := range patterns {
			f.Add("http://"+pattern+"/", pattern)
		}
	}
	var lists []*List
	for _, patterns := range fuzzedPatterns {
		lists = append(lists, compile(f, patterns...))
	}
	f.Fuzz(func(t *testing.T, header, pattern string) {
		for i, list := range lists {
			if judge(list, is(header), nil) == allowed && !referenceAllows(fuzzedPatterns[i], header, true) {
				t.Fatalf("Origin %q is allowed by %q, against the URL standard", header, fuzzedPatterns[i])
			}
			if judge(list, nil, is(header)) == allowed && !referenceAllows(fuzzedPatterns[i], header, false) {
				t.Fatalf("Referer %q is allowed by %q, against the URL standard", header, fuzzedPatterns[i])
			}
		}
		checkPattern(t, pattern)
	})
}

// checkPattern checks that a pattern, if ParsePattern accepts it, has one
// spelling, fits into a Content-Security-Policy and covers the origins that it
// names.
func checkPattern(t *testing.T, text string) {
	t.Helper()
	p, err := ParsePattern(text)
	if err != nil {
		return
	}
	if again, err := ParsePattern(p.String()); err != nil || again != p {
		t.Fatalf("the pattern %q is %+v, and its spelling %q is %+v, %v", text, p, p, again, err)
	}
	list := compile(t, text)
	if ancestors := list.FrameAncestors(); strings.ContainsAny(ancestors, ";,\r\n'\"") {
		t.Fatalf("frame-ancestors of %q is %q", text, ancestors)
	}
	origins := []string{p.Example().String()}
	if isASCII(text) && !p.wildcard && !p.any && p.app == "" {
		origins = append(origins, "https://"+text, "http://"+text)
	}
	if p.wildcard && len(p.host) < 250 && p.app == "" {
		origins = append(origins, "https://a."+JoinHostPort(p.host, p.port))
	}
	for _, origin := range origins {
		o, err := ParseOrigin(origin)
		if err != nil || !list.Allows(o) {
			t.Fatalf("the pattern %q does not cover %q, which is %+v, %v", text, origin, o, err)
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
		app := u.Scheme + "://" + u.Host
		return slices.Contains(patterns, app) || slices.Contains(patterns, "*") && appOrigin.MatchString(app)
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

// appOrigin matches origins that no site, file or document has.
var appOrigin = regexp.MustCompile(`^[a-z][a-z0-9+.-]*://[A-Za-z0-9._-]+(:[1-9][0-9]*)?$`)

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
	if strings.Contains(pattern, "://") {
		return false
	}
	rest, wildcard := strings.CutPrefix(pattern, "*.")
	parts, err := url.Parse("https://" + rest)
	if err != nil {
		return false
	}
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
	if !numeric.MatchString(ascii) {
		return ascii, true
	}
	// The URL standard knows more forms of IPv4 addresses. A header in one of them
	// must not be allowed either, so this reading has none of them.
	addr, err := netip.ParseAddr(ascii)
	return addr.String(), err == nil && addr.Is4()
}

// numeric matches hosts that the URL standard reads as an IPv4 address.
var numeric = regexp.MustCompile(`(^|\.)([0-9]+|0x[0-9a-f]*)$`)
