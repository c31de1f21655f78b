package signedplayback

import (
	"errors"
	"fmt"
	"iter"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/net/idna"
)

// webOrigin is a scheme, a host and a port, the unit that browsers enforce.
type webOrigin struct {
	https bool
	host  string // lower case without a trailing dot, or an IP address in its canonical form
	port  uint16 // never 0
}

// allowedOrigins is a compiled list of patterns. It is immutable; nil stands
// for no restriction. There may be one for each of very many videos, so it
// takes little: hosts are parts of text, and what only a page needs is made
// when one is asked for.
type allowedOrigins struct {
	text      string         // the patterns, each once, in the order in which they were given, with a space between
	listed    []listedOrigin // those that are not "*", as compare has them
	any       bool
	wildcards bool // there are some in listed
}

// listedOrigin is an originPattern that names a host.
type listedOrigin struct {
	host     string
	port     uint16
	wildcard bool
}

// compare orders by host and port. The lengths of two hosts are the cheapest
// that can be different.
func (l *listedOrigin) compare(host string, port uint16) int {
	if byLength := len(l.host) - len(host); byLength != 0 {
		return byLength
	}
	if byHost := strings.Compare(l.host, host); byHost != 0 {
		return byHost
	}
	return int(l.port) - int(port)
}

// compileOrigins compiles patterns of the form [*.]host[:port]. Without any it
// returns nil: no restriction.
func compileOrigins(patterns []string) (*allowedOrigins, error) {
	if len(patterns) == 0 {
		return nil, nil
	}
	compiled := new(allowedOrigins)
	texts := make([]string, 0, len(patterns))
	parsed := make(map[string]originPattern, len(patterns))
	for _, pattern := range patterns {
		p, err := parseOriginPattern(pattern)
		if err != nil {
			return nil, err
		}
		text := p.String()
		if _, again := parsed[text]; again {
			continue
		}
		parsed[text] = p
		texts = append(texts, text)
		compiled.any = compiled.any || p.any
		compiled.wildcards = compiled.wildcards || p.wildcard
	}
	compiled.text = strings.Join(texts, " ")
	compiled.listed = make([]listedOrigin, 0, len(texts))
	for text := range compiled.each() {
		if p := parsed[text]; !p.any {
			at := strings.Index(text, p.host)
			compiled.listed = append(compiled.listed, listedOrigin{text[at : at+len(p.host)], p.port, p.wildcard})
		}
	}
	slices.SortFunc(compiled.listed, func(a, b listedOrigin) int { return a.compare(b.host, b.port) })
	return compiled, nil
}

// each yields the patterns in the order in which they were given.
func (a *allowedOrigins) each() iter.Seq[string] { return strings.SplitSeq(a.text, " ") }

// patterns returns the patterns in an order that does not change, for showing
// them.
func (a *allowedOrigins) patterns() []string { return slices.Sorted(a.each()) }

// ancestors returns the value of frame-ancestors.
func (a *allowedOrigins) ancestors() string {
	var value []byte
	for pattern := range a.each() {
		value = append(appendAncestors(value, pattern), ' ')
	}
	return strings.TrimSuffix(string(value), " ")
}

// allows reports whether a pattern covers an origin.
func (a *allowedOrigins) allows(o webOrigin) bool {
	if a.any || a.covers(o.host, o, false) {
		return true
	}
	if !a.wildcards || o.isAddress() {
		return false
	}
	for _, parent, ok := strings.Cut(o.host, "."); ok; _, parent, ok = strings.Cut(parent, ".") {
		if a.covers(parent, o, true) {
			return true
		}
	}
	return false
}

// covers reports whether a pattern for a host, that of an origin or one above
// it, covers the origin. Port 0 stands for the default ports: http on 80 and
// https on 443.
func (a *allowedOrigins) covers(host string, o webOrigin, above bool) bool {
	return a.lists(host, o.port, above) || o.port == defaultPort(o.https) && a.lists(host, 0, above)
}

// lists reports whether there is a pattern, a wildcard if need be, for a host
// and a port.
func (a *allowedOrigins) lists(host string, port uint16, wildcard bool) bool {
	from, to := 0, len(a.listed)
	for from < to {
		middle := (from + to) / 2
		if a.listed[middle].compare(host, port) < 0 {
			from = middle + 1
		} else {
			to = middle
		}
	}
	// There may be two: with a wildcard and without.
	for ; from < len(a.listed) && a.listed[from].compare(host, port) == 0; from++ {
		if !wildcard || a.listed[from].wildcard {
			return true
		}
	}
	return false
}

func defaultPort(https bool) uint16 {
	if https {
		return 443
	}
	return 80
}

// isAddress reports whether the host is an IP address, which has no parents.
// No domain ends in a number.
func (o webOrigin) isAddress() bool {
	return strings.Contains(o.host, ":") || endsInNumber(o.host)
}

// originPattern is one allowed origin as it is configured.
type originPattern struct {
	host     string
	port     uint16 // 0 for the default ports
	any      bool
	wildcard bool
}

// parseOriginPattern reads what operators write, strictly: everything that a
// browser's origin could never equal is a mistake to report.
func parseOriginPattern(text string) (originPattern, error) {
	if text == "*" {
		return originPattern{any: true}, nil
	}
	var p originPattern
	invalid := func(why string) (originPattern, error) {
		return originPattern{}, fmt.Errorf("allowed origin %q %s", text, why)
	}
	if strings.Contains(text, "://") || strings.HasPrefix(text, "//") {
		return originPattern{}, fmt.Errorf("allowed origin must not specify protocol: %q", text)
	}
	if strings.Contains(text, "/") {
		return invalid("has a path: an origin is a host and perhaps a port")
	}
	rest, wildcard := strings.CutPrefix(text, "*.")
	p.wildcard = wildcard
	if addr, err := netip.ParseAddr(rest); err == nil && addr.Is6() {
		return invalid("is not host[:port]: an IPv6 address stands in brackets")
	}
	host, port, _, err := splitHostPort(rest)
	p.port = port
	if err != nil {
		return invalid("is not [*.]host[:port]: " + err.Error())
	}
	if !isASCII(host) {
		// Browsers send the A-label form, so that is what is compared.
		if host, err = idna.Lookup.ToASCII(host); err != nil {
			return invalid("has a host that is not a valid domain name: " + err.Error())
		}
	}
	if p.host, err = parseHost(host); err != nil {
		return invalid("has a host that is not valid: " + err.Error())
	}
	if wildcard && (webOrigin{host: p.host}).isAddress() {
		return invalid("is a wildcard below an IP address")
	}
	return p, nil
}

// String returns the one spelling of the pattern.
func (p originPattern) String() string {
	if p.any {
		return "*"
	}
	text := p.host
	if strings.Contains(text, ":") {
		text = "[" + text + "]"
	}
	if p.port != 0 {
		text += ":" + strconv.Itoa(int(p.port))
	}
	if p.wildcard {
		text = "*." + text
	}
	return text
}

// appendAncestors appends a pattern, in its one spelling, as host-sources of a
// Content-Security-Policy. By CSP level 3, section 6.7.2.8, an http source
// covers https as well, and one without a port covers the default ports of both.
func appendAncestors(value []byte, pattern string) []byte {
	if pattern == "*" {
		return append(value, pattern...)
	}
	if host, wildcard := strings.CutPrefix(pattern, "*."); wildcard {
		value = append(append(append(value, "http://"...), host...), ' ')
	}
	return append(append(value, "http://"...), pattern...)
}

// Errors of the header parser.
var (
	errOriginRepeated = errors.New("the header is repeated")
	errOriginForm     = errors.New("the header is not an http or https origin")
)

// requestOrigin finds out on which origin a request was made: what `Origin`
// says if it is sent, else the origin of `Referer`. ok is false if neither was
// sent. A header that is repeated, or that is not an http or https origin
// ("null" is none), is an error, for whoever sends it must not be taken for a
// viewer without one.
func requestOrigin(h http.Header) (o webOrigin, ok bool, err error) {
	origins, referers := h["Origin"], h["Referer"]
	switch {
	case len(origins) > 1 || len(referers) > 1:
		return webOrigin{}, false, errOriginRepeated
	case len(origins) == 1:
		o, err = parseOrigin(origins[0])
	case len(referers) == 1:
		o, err = parseReferer(referers[0])
	default:
		return webOrigin{}, false, nil
	}
	return o, err == nil, err
}

// maxOriginLength bounds what the header parser looks at: the longest scheme,
// host and port.
const maxOriginLength = len("https://") + 253 + len(".:65535")

// parseOrigin reads an `Origin` header as RFC 6454 section 7 has browsers write
// it. It never accepts more than the URL standard's parser would.
func parseOrigin(s string) (webOrigin, error) {
	var o webOrigin
	rest, ok := cutPrefixFold(s, "http")
	if !ok || len(s) > maxOriginLength {
		return webOrigin{}, errOriginForm
	}
	if secure, isHTTPS := cutPrefixFold(rest, "s"); isHTTPS {
		o.https, rest = true, secure
	}
	authority, ok := strings.CutPrefix(rest, "://")
	if !ok {
		return webOrigin{}, errOriginForm
	}
	host, port, hasPort, err := splitHostPort(authority)
	if err != nil {
		return webOrigin{}, errOriginForm
	}
	if o.port = port; !hasPort {
		o.port = defaultPort(o.https)
	}
	if o.host, err = parseHost(host); err != nil {
		return webOrigin{}, errOriginForm
	}
	return o, nil
}

// parseReferer reads the origin of a `Referer` header. Userinfo ends up in the
// host, where it is refused.
func parseReferer(s string) (webOrigin, error) {
	_, afterScheme, ok := strings.Cut(s, "://")
	if !ok {
		return webOrigin{}, errOriginForm
	}
	if end := strings.IndexAny(afterScheme, "/?#"); end >= 0 {
		s = s[:len(s)-len(afterScheme)+end]
	}
	return parseOrigin(s)
}

func cutPrefixFold(s, prefix string) (string, bool) {
	if len(s) < len(prefix) || !strings.EqualFold(s[:len(prefix)], prefix) {
		return s, false
	}
	return s[len(prefix):], true
}

// splitHostPort takes host[:port] apart. An IPv6 address keeps its brackets.
func splitHostPort(s string) (host string, port uint16, hasPort bool, err error) {
	end := strings.LastIndexByte(s, ':')
	if end < strings.LastIndexByte(s, ']') {
		end = -1
	}
	if end < 0 {
		return s, 0, false, nil
	}
	digits := s[end+1:]
	n, err := strconv.ParseUint(digits, 10, 16)
	if err != nil || n == 0 || digits[0] == '0' || digits[0] == '+' {
		return "", 0, false, errors.New("the port is not a number from 1 to 65535")
	}
	return s[:end], uint16(n), true, nil
}

var errHost = errors.New("want letters, digits, hyphens and dots, or an IP address")

// parseHost reads an ASCII host as the URL standard does, less what no browser
// sends: a domain name in lower case without its trailing dot, an IPv4 address
// in four decimal parts, or an IPv6 address in brackets. It returns the one
// form under which hosts are compared.
func parseHost(s string) (string, error) {
	if bracketed, ok := strings.CutPrefix(s, "["); ok {
		addr, err := netip.ParseAddr(strings.TrimSuffix(bracketed, "]"))
		if err != nil || !strings.HasSuffix(bracketed, "]") || !addr.Is6() || addr.Zone() != "" {
			return "", errors.New("want an IPv6 address in brackets")
		}
		// Two spellings of an address are one host, an IPv4-mapped address
		// and the IPv4 address are two.
		return netip.AddrFrom16(addr.As16()).String(), nil
	}
	host := strings.TrimSuffix(s, ".")
	// Beyond ASCII, ToLower makes letters of what the URL standard does not.
	if len(host) == 0 || len(host) > 253 || !isASCII(host) {
		return "", errHost
	}
	host = strings.ToLower(host)
	punycode, err := checkLabels(host)
	if err != nil {
		return "", err
	}
	if endsInNumber(host) {
		// The URL standard reads such a host as an IPv4 address, in forms
		// like 0x7f.1 that only this one is safe from.
		addr, err := netip.ParseAddr(host)
		if err != nil || !addr.Is4() {
			return "", errors.New("want an IPv4 address of four decimal numbers")
		}
		return host, nil
	}
	if punycode {
		if ascii, err := idna.Lookup.ToASCII(host); err != nil || ascii != host {
			return "", errors.New("it contains invalid Punycode")
		}
	}
	return host, nil
}

// checkLabels checks each label of a lower-case domain name. The underscore is
// in use for hosts, if not by the book.
func checkLabels(host string) (punycode bool, err error) {
	for more := true; more; {
		var label string
		label, host, more = strings.Cut(host, ".")
		if len(label) == 0 || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false, errHost
		}
		for i := range len(label) {
			c := label[i]
			if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
				return false, errHost
			}
		}
		punycode = punycode || strings.HasPrefix(label, "xn--")
	}
	return punycode, nil
}

// endsInNumber is the "ends in a number" check of the URL standard, section
// 3.5, for a host without a trailing dot.
func endsInNumber(host string) bool {
	last := host[strings.LastIndexByte(host, '.')+1:]
	if digits, ok := strings.CutPrefix(last, "0x"); ok {
		return strings.Trim(digits, "0123456789abcdef") == ""
	}
	return last != "" && strings.Trim(last, "0123456789") == ""
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

// ownOrigin reports whether an origin is that of the request itself, which is
// where the player page runs. The scheme is not compared: behind a proxy that
// ends TLS, only the viewer knows it.
func ownOrigin(r *http.Request, o webOrigin) bool {
	host, port, hasPort, err := splitHostPort(r.Host)
	if err != nil {
		return false
	}
	if !hasPort {
		port = defaultPort(o.https)
	}
	own, err := parseHost(host)
	return err == nil && own == o.host && port == o.port
}

// originPolicy is what a video demands of the site that a request comes from.
type originPolicy struct {
	allowed      *allowedOrigins // nil: any
	allowMissing bool
}

// check decides on a request for a resource of the given kind.
func (p originPolicy) check(r *http.Request, k kind) error {
	if p.allowed == nil {
		return nil
	}
	o, ok, err := requestOrigin(r.Header)
	switch {
	case err != nil:
		return refuse(reasonOriginNotAllowed, err)
	case ok && p.allowed.allows(o):
		return nil
	case ok && k != kindIframe && ownOrigin(r, o):
		return nil
	case ok:
		return refuse(reasonOriginNotAllowed, errOriginNotListed)
	case p.allowMissing || k == kindIframe && isFramed(r):
		return nil
	}
	return refuse(reasonOriginRequired, errOriginMissing)
}

var (
	errOriginNotListed = errors.New("the video's allowed origins do not cover the site that asks")
	errOriginMissing   = errors.New("the request has neither Origin nor Referer, and the video has allowed origins")
)

// isFramed reports whether a browser says that it loads a document into an
// iframe. A page can hide its address from the request, but not from
// frame-ancestors, which then decides.
func isFramed(r *http.Request) bool {
	dest := r.Header["Sec-Fetch-Dest"]
	return len(dest) == 1 && dest[0] == "iframe"
}

// setFrameAncestors has the browser hold the page that embeds an iframe
// against the allowed origins. It must stand on every iframe response, for
// check relies on it.
func (p originPolicy) setFrameAncestors(h http.Header) {
	if ancestors := p.frameAncestors(); ancestors != "" {
		// Added to what the page itself demands: a browser enforces both.
		h.Add("Content-Security-Policy", "frame-ancestors "+ancestors)
	}
}

// frameAncestors returns the value of frame-ancestors, "" where any page may
// embed the video.
func (p originPolicy) frameAncestors() string {
	if p.allowed == nil {
		return ""
	}
	return p.allowed.ancestors()
}

// exposedHeaders are what a page on another origin may read of a response.
const exposedHeaders = "Content-Length, Content-Range, Accept-Ranges, Date, " + reasonHeader

// setCORS lets the site that asks, which check has accepted, read the response.
// The origin server has no say in it. Without allowed origins any site may.
func (p originPolicy) setCORS(h http.Header, requestOrigin string) {
	dropCORS(h)
	if p.allowed == nil {
		requestOrigin = "*"
	} else {
		h.Add("Vary", "Origin")
	}
	if requestOrigin != "" {
		h.Set("Access-Control-Allow-Origin", requestOrigin)
		h.Set("Access-Control-Expose-Headers", exposedHeaders)
	}
}

// dropCORS removes what an origin server grants.
func dropCORS(h http.Header) {
	for name := range h {
		if strings.HasPrefix(name, "Access-Control-") {
			delete(h, name)
		}
	}
}

// setRefusalCORS lets a player on any site read why it was refused. A refusal
// carries nothing that is secret.
func setRefusalCORS(h http.Header) {
	dropCORS(h)
	h.Set("Access-Control-Allow-Origin", "*")
	h.Set("Access-Control-Expose-Headers", exposedHeaders)
	h.Add("Vary", "Origin")
}

// answerPreflight answers OPTIONS here: the origin server never sees it, and no
// more than reading is granted. It does not grant the reading itself, which the
// request that follows decides, so it needs neither token nor settings.
func answerPreflight(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Allow", allowedMethods)
	if r.Header.Get("Access-Control-Request-Method") != "" {
		h.Set("Access-Control-Allow-Origin", "*")
		h.Set("Access-Control-Allow-Methods", "GET, HEAD")
		h.Set("Access-Control-Allow-Headers", "Range, If-Range, If-None-Match, If-Modified-Since, Cache-Control")
		h.Set("Access-Control-Max-Age", "86400")
	}
	w.WriteHeader(http.StatusNoContent)
}
