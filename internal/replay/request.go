package replay

import (
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
)

// Request describes a request of a viewer.
type Request struct {
	URL, IP         string
	Origin, Referer string
	Headers         []string // `Name: value`
	Method          string
}

// HTTP returns the request as a server would read it. Its errors begin with the name of the
// member.
func (o Request) HTTP() (*http.Request, error) {
	// The gate must see the path byte for byte, so it is not parsed here.
	scheme, rest, ok := strings.Cut(o.URL, "://")
	if !ok || scheme != "http" && scheme != "https" {
		return nil, errors.New("url: want the whole URL that the viewer requested, like https://media.example.com/eyJhbGci…/manifest/video.m3u8")
	}
	host, target := rest, "/"
	if i := strings.IndexAny(rest, "/?"); i >= 0 {
		host, target = rest[:i], rest[i:]
	}
	target, _, _ = strings.Cut(target, "#") // browsers do not send it
	if strings.HasPrefix(target, "?") {
		target = "/" + target
	}
	u, err := url.ParseRequestURI(target)
	if err != nil || host == "" || strings.ContainsAny(host, "@ ") {
		return nil, errors.New("url: it has no host, or a path that no server accepts")
	}
	ip, err := netip.ParseAddr(cmp.Or(o.IP, "127.0.0.1"))
	if err != nil {
		return nil, fmt.Errorf("ip %q: want an IP address", o.IP)
	}
	r := &http.Request{
		Method: o.Method, URL: u, RequestURI: target, Host: host,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: make(http.Header), Body: http.NoBody,
		RemoteAddr: netip.AddrPortFrom(ip, 12345).String(),
	}
	if scheme == "https" {
		name, _, err := net.SplitHostPort(host)
		if err != nil {
			name = host
		}
		r.TLS = &tls.ConnectionState{HandshakeComplete: true, ServerName: name, Version: tls.VersionTLS13}
	}
	return r, o.setHeaders(r.Header)
}

func (o Request) setHeaders(h http.Header) error {
	if _, host, _ := strings.Cut(o.Origin, "://"); o.Origin != "" && o.Origin != "null" && (host == "" || strings.Contains(host, "/")) {
		return fmt.Errorf("origin %q: want an origin as browsers send it, like https://www.example.com", o.Origin)
	}
	if o.Referer != "" && !strings.Contains(o.Referer, "://") {
		return fmt.Errorf("referer %q: want a URL like https://www.example.com/page", o.Referer)
	}
	for name, value := range map[string]string{"Origin": o.Origin, "Referer": o.Referer} {
		if value != "" {
			h.Set(name, value)
		}
	}
	for _, line := range o.Headers {
		name, value, ok := strings.Cut(line, ":")
		if name = strings.TrimSpace(name); !ok || name == "" || strings.ContainsAny(name, " \t") {
			return fmt.Errorf("header %q: want 'Name: value'", name)
		}
		h.Add(name, strings.TrimSpace(value))
	}
	return nil
}
