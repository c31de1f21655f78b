// Package weborigin compares the origins of web pages, as browsers send them,
// with patterns, as operators write them.
//
// # Patterns
//
// A pattern is "*" or has the form [*.]host[:port]. It has no scheme, or that of an
// app whose pages have such origins. Without a scheme, it covers http and https alike.
// Without a port it covers the default ports, 80 for http
// and 443 for https. A wildcard covers the domain itself and all subdomains.
// These rules follow "Allowed origins" in the documentation of Cloudflare
// Stream.
//
// Permitted:
//
//	example.com            the host on its default ports, no subdomains
//	example.com:8443       the host on port 8443 only
//	*.example.com          example.com, a.example.com, a.b.example.com, …
//	*.example.com:8443     the same hosts on port 8443 only
//	localhost:3000         a site under development
//	192.0.2.1              an IPv4 address
//	[2001:db8::1]:8443     an IPv6 address in brackets
//	пример.example         the same host as xn--e1afmkfd.example
//	capacitor://localhost  the pages of an app
//	android-app://com.a.b  links in an Android app
//	*                      every origin of a site or an app
//
// Prohibited:
//
//	https://example.com    a scheme of the web
//	file://                a scheme that every file has
//	example.com/videos     a path
//	www.*.example          a wildcard that is not the first label
//	*.192.0.2.1            a wildcard below an IP address
//	example.com:*          a wildcard for ports
//	example.com:0          a port that is not in 1 to 65535
//	2001:db8::1            an IPv6 address without brackets
//	127.1                  an IPv4 address that is not four decimal numbers
//	user@example.com       anything else that is not a part of an origin
//
// # Two parsers
//
// [ParsePattern] reads text that operators write, once. It explains what is
// wrong. [ParseOrigin] and [ParseReferer] read text that anybody sends, on each
// request. They check the length first, and an error does not repeat the
// text. They accept no more than the URL standard
// (https://url.spec.whatwg.org/) does. Each pattern without a wildcard, with
// "https://" in front unless it has a scheme, is an origin that the pattern covers; a fuzz test checks
// that.
package weborigin

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/idna"
)

// Origin is a scheme, a host and a port (RFC 6454). Origins are equal if they
// are equal with ==.
type Origin struct {
	App   string // the scheme of an app's pages, in lower case: capacitor; "" for http and https
	HTTPS bool   // false: http
	Host  string // in lower case without a trailing dot, or an IP address in its canonical form, without brackets; an app's as it is
	Port  uint16 // 0 only for an app
}

// String returns the origin as a URL without a path. It leaves out the default
// port.
func (o Origin) String() string {
	scheme := cmp.Or(o.App, "http")
	if o.HTTPS {
		scheme = "https"
	}
	if o.App == "" && o.Port == DefaultPort(o.HTTPS) {
		o.Port = 0
	}
	return scheme + "://" + o.Address()
}

// Address returns host:port, to dial or to listen on.
func (o Origin) Address() string { return JoinHostPort(o.Host, o.Port) }

// DefaultPort returns the port of a URL that names none.
func DefaultPort(https bool) uint16 {
	if https {
		return 443
	}
	return 80
}

// Errors of the header parsers.
var (
	ErrMissing  = errors.New("the request has neither Origin nor Referer")
	ErrRepeated = errors.New("the header is repeated")
	ErrForm     = errors.New("the header is not the origin of a site or an app")
)

// FromHeader returns the origin of the page that made a request: the value of
// Origin if it was sent, else the origin of Referer. A header that cannot be
// read is never treated as missing: [ErrRepeated] if either was sent twice,
// [ErrForm] if it is no origin of a site or an app, as with "null". [ErrMissing] means
// that neither was sent.
func FromHeader(header map[string][]string) (Origin, error) {
	origins, referers := header["Origin"], header["Referer"]
	switch {
	case len(origins) > 1 || len(referers) > 1:
		return Origin{}, ErrRepeated
	case len(origins) == 1:
		return ParseOrigin(origins[0])
	case len(referers) == 1:
		return ParseReferer(referers[0])
	default:
		return Origin{}, ErrMissing
	}
}

// maxOriginLength is the length of the longest scheme, host and port.
const maxOriginLength = len("https://") + maxHostLength + len(".:65535")

// ParseOrigin reads the value of an Origin header (RFC 6454, section 7). All
// errors are [ErrForm].
func ParseOrigin(s string) (Origin, error) {
	if len(s) > maxOriginLength {
		return Origin{}, ErrForm
	}
	scheme, authority, ok := strings.Cut(s, "://")
	https := strings.EqualFold(scheme, "https")
	if !ok || !isASCII(scheme) {
		return Origin{}, ErrForm
	}
	var o Origin
	var err error
	if https || strings.EqualFold(scheme, "http") {
		o, err = ParseAuthority(authority, https)
	} else {
		o, err = parseAppOrigin(scheme, authority)
	}
	if err != nil {
		return Origin{}, ErrForm
	}
	return o, nil
}

// parseAppOrigin reads an origin whose scheme belongs to an app. By the URL standard,
// its host is opaque: a package name or an extension's id, in which capitals matter.
func parseAppOrigin(scheme, authority string) (Origin, error) {
	host, port, err := SplitHostPort(authority)
	switch {
	case !isAppScheme(scheme):
		return Origin{}, errAppScheme
	case err != nil:
		return Origin{}, err
	case host == "" || !isASCII(host) || strings.Trim(strings.ToLower(host), labelCharacters+".") != "":
		return Origin{}, errAppHost
	case len(scheme)+len("://")+len(authority) > maxOriginLength:
		return Origin{}, errAppLength
	}
	return Origin{App: strings.ToLower(scheme), Host: host, Port: port}, nil
}

// isAppScheme reports whether pages with a scheme belong to an app. Sites have the
// other schemes, and so have files and documents that anybody can make.
func isAppScheme(scheme string) bool {
	scheme = strings.ToLower(scheme)
	switch scheme {
	case "ws", "wss", "ftp", "file", "filesystem", "data", "blob", "about", "javascript", "view-source":
		return false
	}
	return scheme != "" && 'a' <= scheme[0] && scheme[0] <= 'z' &&
		strings.Trim(scheme, "abcdefghijklmnopqrstuvwxyz0123456789+-.") == "" &&
		strings.Trim(scheme, "htps") != "" // http, https and their misspellings
}

// ParseReferer reads the origin of the URL in a Referer header. All errors are
// [ErrForm].
func ParseReferer(s string) (Origin, error) {
	_, afterScheme, ok := strings.Cut(s, "://")
	if !ok {
		return Origin{}, ErrForm
	}
	// Userinfo stays a part of the host, where it is an error.
	if end := strings.IndexAny(afterScheme, "/?#"); end >= 0 {
		s = s[:len(s)-len(afterScheme)+end]
	}
	return ParseOrigin(s)
}

// ParseAuthority reads host[:port], as in a Host header, as an origin of the
// given scheme.
func ParseAuthority(s string, https bool) (Origin, error) {
	host, port, err := SplitHostPort(s)
	if err != nil {
		return Origin{}, err
	}
	if host, err = ParseHost(host); err != nil {
		return Origin{}, err
	}
	if port == 0 {
		port = DefaultPort(https)
	}
	return Origin{HTTPS: https, Host: host, Port: port}, nil
}

var (
	errAppScheme = errors.New("the scheme is not an app's")
	errAppLength = fmt.Errorf("want at most %d bytes, which an Origin header may have", maxOriginLength)
	errAppHost   = errors.New("want the name of an app of letters, digits, dots, hyphens and underscores")
	errPort      = errors.New("the port is not a number from 1 to 65535")
	errHost      = errors.New("want letters, digits, hyphens and dots, or an IP address")
	errIPv6      = errors.New("want an IPv6 address in brackets")
	errIPv4      = errors.New("want an IPv4 address of four decimal numbers")
	errPunycode  = errors.New("it contains invalid Punycode")
)

// SplitHostPort splits host[:port] without a look at the host. An IPv6 address
// keeps its brackets. The port is 0 if there is none.
func SplitHostPort(s string) (host string, port uint16, err error) {
	colon := strings.LastIndexByte(s, ':')
	if colon < 0 || colon < strings.LastIndexByte(s, ']') {
		return s, 0, nil
	}
	digits := s[colon+1:]
	n, err := strconv.ParseUint(digits, 10, 16)
	if err != nil || digits[0] == '0' {
		return "", 0, errPort
	}
	return s[:colon], uint16(n), nil
}

// ParseManifestHost returns the canonical form of a host[:port] to which manifests lead, as a person
// has written it.
func ParseManifestHost(s string) (string, error) {
	if strings.Contains(s, "/") {
		return "", fmt.Errorf("manifest host %q must not specify protocol or path", s)
	}
	host, port, err := SplitHostPort(s)
	if err == nil {
		host, err = ParseWrittenHost(host)
	}
	if err != nil {
		return "", fmt.Errorf("manifest host %q is not host[:port]: %w", s, err)
	}
	return JoinHostPort(host, port), nil
}

// JoinHostPort returns host[:port], with an IPv6 address in brackets. Port 0
// means none.
func JoinHostPort(host string, port uint16) string {
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if port != 0 {
		host += ":" + strconv.Itoa(int(port))
	}
	return host
}

// maxHostLength is the length of the longest domain name (RFC 1035).
const maxHostLength = 253

// ParseHost returns the canonical form of an ASCII host: a domain name in lower
// case without a trailing dot, an IPv4 address of four decimal numbers, or an
// IPv6 address without its brackets. It accepts the hosts of the URL standard
// that browsers send.
func ParseHost(s string) (string, error) {
	if bracketed, ok := strings.CutPrefix(s, "["); ok {
		text, ok := strings.CutSuffix(bracketed, "]")
		addr, err := netip.ParseAddr(text)
		if !ok || err != nil || !addr.Is6() || addr.Zone() != "" {
			return "", errIPv6
		}
		return addr.String(), nil
	}
	host := strings.TrimSuffix(s, ".")
	// Outside of ASCII, ToLower makes letters that the URL standard does not.
	if host == "" || len(host) > maxHostLength || !isASCII(host) {
		return "", errHost
	}
	host = strings.ToLower(host)
	for label := range strings.SplitSeq(host, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || strings.HasSuffix(label, "-") ||
			strings.Trim(label, labelCharacters) != "" {
			return "", errHost
		}
	}
	if endsInNumber(host) {
		// The URL standard reads such a host as an IPv4 address, also in
		// forms like 0x7f.1. Only one form is unambiguous.
		if addr, err := netip.ParseAddr(host); err != nil || !addr.Is4() {
			return "", errIPv4
		}
		return host, nil
	}
	if strings.Contains("."+host, ".xn--") {
		if ascii, err := idna.Lookup.ToASCII(host); err != nil || ascii != host {
			return "", errPunycode
		}
	}
	return host, nil
}

// ParseWrittenHost is ParseHost for a host that a person has written, whose labels may
// have letters beyond ASCII. Programs send the ASCII form (A-labels).
func ParseWrittenHost(s string) (string, error) {
	if !isASCII(s) {
		ascii, err := idna.Lookup.ToASCII(s)
		if err != nil {
			return "", err
		}
		s = ascii
	}
	return ParseHost(s)
}

// labelCharacters are the characters of a domain name in lower case. Some hosts
// have an underscore despite the standards.
const labelCharacters = "abcdefghijklmnopqrstuvwxyz0123456789-_"

// isAddress reports whether a canonical host is an IP address.
func isAddress(host string) bool {
	return strings.Contains(host, ":") || endsInNumber(host)
}

// endsInNumber is the "ends in a number" check of the URL standard, section
// 3.5, for a host in lower case without a trailing dot.
func endsInNumber(host string) bool {
	last := host[strings.LastIndexByte(host, '.')+1:]
	if digits, ok := strings.CutPrefix(last, "0x"); ok {
		return strings.Trim(digits, "0123456789abcdef") == ""
	}
	return last != "" && strings.Trim(last, "0123456789") == ""
}

func isASCII(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r >= utf8.RuneSelf })
}
