package weborigin

import (
	"net/netip"
	"net/url"
	"strconv"
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
	if isASCII(text) && !p.wildcard && !p.any {
		origins = append(origins, "https://"+text, "http://"+text)
	}
	if p.wildcard && len(p.host) < 250 {
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

// The expectations are from the tests of the URL standard.
func TestReferenceHost(t *testing.T) {
	t.Parallel()
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
