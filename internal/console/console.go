// Package console is the operator's page of the control API.
//
// The page is static: HTML, CSS and ES modules of this package, which are the same for
// everybody. All that it shows and does is a call of the API, with the bearer token that the
// operator types. The token stays in the memory of the page.
package console

import (
	"embed"
	"fmt"
	"html"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"
)

//go:embed page
var embedded embed.FS

// Path is the folder of the page on its site.
const Path = "/console/"

// contentTypes has the types of all files, by their endings.
var contentTypes = map[string]string{
	".html": "text/html; charset=utf-8",
	".css":  "text/css; charset=utf-8",
	".js":   "text/javascript; charset=utf-8",
	".svg":  "image/svg+xml",
}

// Page serves the files of the page. It is immutable.
type Page struct {
	files  map[string][]byte // by URL path
	policy string            // Content-Security-Policy
}

// New prepares the page. account is the account id in the page's calls, "" for any.
// publicURL is where players find the gate: the page shows players of that origin and of no
// other, and none at all with "".
func New(account, publicURL string) (*Page, error) {
	if account == "" {
		account = "any"
	}
	origin, err := frameOrigin(publicURL)
	if err != nil {
		return nil, err
	}
	source := origin
	if source == "" {
		source = "'none'"
	}
	p := &Page{files: make(map[string][]byte), policy: strings.Join([]string{
		"default-src 'none'",
		"script-src 'self'",
		"style-src 'self'",
		"img-src 'self'",
		"connect-src 'self'",
		"frame-src " + source,
		"frame-ancestors 'none'",
		"base-uri 'none'",
		"form-action 'none'",
		"require-trusted-types-for 'script'", // text never becomes markup or code
		"trusted-types 'none'",
	}, "; ")}
	entries, _ := embedded.ReadDir("page") // the files are in the binary
	for _, entry := range entries {
		data, _ := embedded.ReadFile("page/" + entry.Name())
		name := Path + entry.Name()
		if entry.Name() == "index.html" {
			name = Path
			data = []byte(strings.NewReplacer("{{account}}", html.EscapeString(account), "{{gateway}}", html.EscapeString(origin)).Replace(string(data)))
		}
		p.files[name] = data
	}
	return p, nil
}

// frameOrigin returns the origin of a URL as a source of a Content-Security-Policy, "" for
// "". A host that could end the directive is an error.
func frameOrigin(address string) (string, error) {
	if address == "" {
		return "", nil
	}
	u, err := url.Parse(address)
	if err != nil || strings.ContainsFunc(u.Host, func(c rune) bool { return c <= ' ' || c > '~' || strings.ContainsRune(`;,'"*`, c) }) {
		return "", fmt.Errorf("public_url %q: its host cannot be in a Content-Security-Policy; want one like media.example.com", address)
	}
	return u.Scheme + "://" + u.Host, nil
}

// Serves reports whether a path is one of the page.
func (p *Page) Serves(urlPath string) bool {
	_, ok := p.files[urlPath]
	return ok || urlPath+"/" == Path
}

// ServeHTTP implements http.Handler, for requests whose path Serves.
func (p *Page) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		h.Set("Allow", "GET, HEAD")
		w.WriteHeader(http.StatusMethodNotAllowed)
		return
	}
	if r.URL.Path+"/" == Path {
		// Relative, because the site may be below a path.
		h.Set("Location", strings.TrimPrefix(Path, "/"))
		w.WriteHeader(http.StatusPermanentRedirect)
		return
	}
	data, ending := p.files[r.URL.Path], path.Ext(r.URL.Path)
	if ending == "" {
		ending = ".html"
	}
	h.Set("Content-Type", contentTypes[ending])
	h.Set("Content-Length", strconv.Itoa(len(data)))
	h.Set("Content-Security-Policy", p.policy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cache-Control", "no-store") // and no copy of the page with its memory, for the way back
	if r.Method == http.MethodGet {
		_, _ = w.Write(data) // the client may have cancelled
	}
}
