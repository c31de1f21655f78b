package weborigin

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Pattern is one allowed origin. The zero value covers no origin.
type Pattern struct {
	app      string // as in Origin
	host     string // as in Origin
	port     uint16 // 0: the default port of the origin's scheme; for an app, none
	any      bool   // "*", with neither host nor port
	wildcard bool   // covers subdomains of host too
}

// ParsePattern reads a pattern as the package documentation describes it. A
// pattern that no browser's origin can match is an error, and so is one that
// could cover more than its author expects. The error quotes the pattern.
func ParsePattern(text string) (Pattern, error) {
	if text == "*" {
		return Pattern{any: true}, nil
	}
	scheme, rest, hasScheme := strings.Cut(text, "://")
	if hasScheme && isAppScheme(scheme) {
		rest, wildcard := strings.CutPrefix(rest, "*.")
		o, err := parseAppOrigin(scheme, rest)
		if err != nil {
			return Pattern{}, fmt.Errorf("allowed origin %q is not <scheme>://[*.]host[:port]: %w", text, err)
		}
		return Pattern{app: o.App, host: o.Host, port: o.Port, wildcard: wildcard}, nil
	}
	if hasScheme || strings.HasPrefix(text, "//") {
		// Cloudflare Stream uses the same words, and its clients know them.
		return Pattern{}, fmt.Errorf("allowed origin must not specify protocol: %q", text)
	}
	p, err := parseHostPattern(text)
	if err != nil {
		return Pattern{}, fmt.Errorf("allowed origin %q %w", text, err)
	}
	return p, nil
}

func parseHostPattern(text string) (p Pattern, err error) {
	if strings.Contains(text, "/") {
		return p, errors.New("has a path: an origin is a host and perhaps a port")
	}
	rest, wildcard := strings.CutPrefix(text, "*.")
	if addr, err := netip.ParseAddr(rest); err == nil && addr.Is6() {
		return p, errors.New("is not [*.]host[:port]: write an IPv6 address in brackets")
	}
	host, port, err := SplitHostPort(rest)
	if err != nil {
		return p, fmt.Errorf("is not [*.]host[:port]: %w", err)
	}
	if host, err = ParseWrittenHost(host); err != nil {
		return p, fmt.Errorf("has a host that is not valid: %w", err)
	}
	if wildcard && isAddress(host) {
		return p, errors.New("is a wildcard below an IP address")
	}
	return Pattern{host: host, port: port, wildcard: wildcard}, nil
}

// String returns the canonical spelling of the pattern.
func (p Pattern) String() string {
	text := JoinHostPort(p.host, p.port)
	if p.wildcard {
		text = "*." + text
	}
	switch {
	case p.any:
		return "*"
	case p.app != "":
		return p.app + "://" + text
	}
	return text
}

// Example returns an origin that the pattern covers.
func (p Pattern) Example() Origin {
	if p.any {
		p.host = "www.example.com"
	}
	if p.app != "" {
		return Origin{App: p.app, Host: p.host, Port: p.port}
	}
	return Origin{HTTPS: true, Host: p.host, Port: cmp.Or(p.port, DefaultPort(true))}
}

func (p Pattern) covers(o Origin) bool {
	if p.any {
		return true
	}
	if o.App != p.app || o.Port != p.port && (p.app != "" || p.port != 0 || o.Port != DefaultPort(o.HTTPS)) {
		return false
	}
	if !p.wildcard || len(o.Host) <= len(p.host) {
		return o.Host == p.host
	}
	// The dot keeps evilexample.com out of *.example.com.
	subdomain, ok := strings.CutSuffix(o.Host, p.host)
	return ok && strings.HasSuffix(subdomain, ".")
}

// sources returns the pattern as host-sources of a Content-Security-Policy. An
// http source covers https too, and one without a port covers the default ports
// of both (CSP level 3, section 6.7.2.8). A wildcard source does not cover the
// domain itself, and * no origin of an app.
func (p Pattern) sources() string {
	if p.any {
		return "*" + appSources
	}
	scheme, text := cmp.Or(p.app, "http")+"://", JoinHostPort(p.host, p.port)
	if p.wildcard {
		return scheme + text + " " + scheme + "*." + text
	}
	return scheme + text
}

// appSources are the schemes of frameworks and browsers whose apps have pages that can
// embed others.
const appSources = " app: capacitor: chrome-extension: ionic: moz-extension: safari-web-extension: tauri: vscode-webview: wails:"

// MaxPatterns bounds a [List]. The header with its frame-ancestors must stay
// within the size that servers and browsers accept.
const MaxPatterns = 200

// List is a compiled list of patterns. It is immutable. A nil List covers every
// origin.
type List struct {
	patterns []Pattern // each once, in the order in which they were given
}

// Compile parses patterns. It returns nil if there are none, and an error if a
// pattern is invalid or there are more than [MaxPatterns].
func Compile(patterns []string) (*List, error) {
	switch n := len(patterns); {
	case n == 0:
		return nil, nil
	case n > MaxPatterns:
		return nil, fmt.Errorf("%d allowed origins are more than %d: use wildcards like *.example.com, or *", n, MaxPatterns)
	}
	list := &List{patterns: make([]Pattern, 0, len(patterns))}
	for _, text := range patterns {
		p, err := ParsePattern(text)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(list.patterns, p) {
			list.patterns = append(list.patterns, p)
		}
	}
	return list, nil
}

// Allows reports whether a pattern covers the origin.
func (l *List) Allows(o Origin) bool {
	return l == nil || slices.ContainsFunc(l.patterns, func(p Pattern) bool { return p.covers(o) })
}

// Patterns returns the canonical spellings of the patterns, sorted for display.
func (l *List) Patterns() []string {
	if l == nil {
		return nil
	}
	texts := make([]string, len(l.patterns))
	for i, p := range l.patterns {
		texts[i] = p.String()
	}
	slices.Sort(texts)
	return texts
}

// FrameAncestors returns the value of the directive frame-ancestors that covers
// the same origins as the list, and "" for a nil List.
func (l *List) FrameAncestors() string {
	if l == nil {
		return ""
	}
	sources := make([]string, len(l.patterns))
	for i, p := range l.patterns {
		sources[i] = p.sources()
	}
	return strings.Join(sources, " ")
}
