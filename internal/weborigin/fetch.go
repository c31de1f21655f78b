package weborigin

import (
	"net/http"
	"slices"
	"strings"
)

// IsOf reports whether an origin is that of a Host header. It does not compare the scheme:
// behind a proxy that terminates TLS, only the client knows it.
func (o Origin) IsOf(host string) bool {
	own, err := ParseAuthority(host, o.HTTPS)
	return err == nil && own == o
}

// IsSameOrigin reports whether a browser says that a request comes from a page of the
// same origin. It says so over https and on localhost only.
func IsSameOrigin(h http.Header) bool {
	site := h["Sec-Fetch-Site"]
	return len(site) == 1 && site[0] == "same-origin"
}

// IsSameOriginFetch reports the same for what a page loads into itself. A link leads
// here from anywhere.
func IsSameOriginFetch(h http.Header) bool {
	return IsSameOrigin(h) && !slices.Contains(h["Sec-Fetch-Mode"], "navigate")
}

// IsFramed reports whether a browser says that it loads a document into an
// iframe. A page can hide its address from the request, but not from
// frame-ancestors, which then decides.
func IsFramed(h http.Header) bool {
	dest := h["Sec-Fetch-Dest"]
	return len(dest) == 1 && dest[0] == "iframe"
}

// PathOfReferer returns the path of the URL in a Referer header, "" for an origin.
func PathOfReferer(referer string) string {
	_, path, _ := strings.Cut(referer, "://")
	if end := strings.IndexAny(path, "?#"); end >= 0 {
		path = path[:end]
	}
	if start := strings.IndexByte(path, '/'); start >= 0 {
		return path[start:]
	}
	return ""
}

// IsEmbeddedElsewhere reports whether a browser says that a page of another site asks for
// something to load into itself. The browser sends the user's credentials even then, and a
// hidden frame or picture would begin playbacks in the user's name and use up `climit`. The
// page cannot read the link. A user who follows a link from another site may pass.
func IsEmbeddedElsewhere(h http.Header) bool {
	for _, site := range h["Sec-Fetch-Site"] {
		if site != "same-origin" && site != "same-site" && site != "none" {
			return !slices.Equal(h["Sec-Fetch-Dest"], []string{"document"})
		}
	}
	return false
}
