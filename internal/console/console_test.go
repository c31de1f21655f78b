package console

import (
	"io/fs"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func newPage(t *testing.T, account, publicURL string) *Page {
	t.Helper()
	p, err := New(account, publicURL)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func ask(p *Page, method, path string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	p.ServeHTTP(w, httptest.NewRequest(method, path, nil))
	return w
}

// TestHeaders compares all headers of each file: another one could weaken them. The attacks:
// another site frames the page, has it load something, or reads it back from a cache.
func TestHeaders(t *testing.T) {
	t.Parallel()
	for publicURL, frames := range map[string]string{
		"":                                  "'none'",
		"https://media.example.com":         "https://media.example.com",
		"http://127.0.0.1:8080/videos/here": "http://127.0.0.1:8080",
	} {
		p := newPage(t, "", publicURL)
		for path := range p.files {
			want := http.Header{
				"Cache-Control": {"no-store"},
				"Content-Security-Policy": {"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; frame-src " + frames +
					"; frame-ancestors 'none'; base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"},
				"Cross-Origin-Opener-Policy":   {"same-origin"},
				"Cross-Origin-Resource-Policy": {"same-origin"},
				"Referrer-Policy":              {"no-referrer"},
				"X-Content-Type-Options":       {"nosniff"},
			}
			w := ask(p, http.MethodGet, path)
			want["Content-Length"] = []string{strconv.Itoa(w.Body.Len())}
			want["Content-Type"] = w.Header()["Content-Type"]
			if diff := cmp.Diff(want, w.Header()); diff != "" || w.Code != http.StatusOK || w.Header().Get("Content-Type") == "" {
				t.Errorf("%s with public_url %q: status %d (-want +got)\n%s", path, publicURL, w.Code, diff)
			}
			if head := ask(p, http.MethodHead, path); head.Body.Len() != 0 || !cmp.Equal(head.Header(), w.Header()) {
				t.Errorf("HEAD %s differs from GET: %v", path, head.Header())
			}
		}
	}
}

func TestPaths(t *testing.T) {
	t.Parallel()
	p := newPage(t, "", "")
	for path, serves := range map[string]bool{
		"/console": true, "/console/": true, "/console/console.js": true, "/console/icon.svg": true,
		"/console/index.html": false, "/console//": false, "//console/": false, "/console/../console/": false, "/consoles": false,
		"/console/manifest/video.m3u8": false, "/console/page": false, "/Console/": false, "": false, "/": false,
	} {
		if got := p.Serves(path); got != serves {
			t.Errorf("Serves(%q) = %t", path, got)
		}
	}
	// The attack: an open redirect. Whatever comes before, it leads to the folder beside it.
	if w := ask(p, http.MethodGet, "/console?next=//evil.example"); w.Code != http.StatusPermanentRedirect || w.Header().Get("Location") != "console/" {
		t.Errorf("/console leads to %q with %d", w.Header().Get("Location"), w.Code)
	}
	if w := ask(p, http.MethodPost, Path); w.Code != http.StatusMethodNotAllowed || w.Body.Len() != 0 {
		t.Errorf("POST is answered with %d", w.Code)
	}
}

// Attacks by values of the config: a public_url adds directives to the policy, an account
// adds attributes to the page.
func TestValuesOfTheConfigStayValues(t *testing.T) {
	t.Parallel()
	for _, address := range []string{"https://a;script-src *", "https://a.example,b", "https://*", "https://'self'", `https://a"b`, "https://exämple.com", ":"} {
		if p, err := New("", address); err == nil {
			t.Errorf("public_url %q is accepted: %s", address, p.policy)
		}
	}
	body := ask(newPage(t, `a" onload="alert(1)`, "https://a&b.example"), http.MethodGet, Path).Body.String()
	if !strings.Contains(body, `data-account="a&#34; onload=&#34;alert(1)" data-gateway="https://a&amp;b.example"`) {
		t.Errorf("the page begins with %.200q", body)
	}
}

// By these, text could become code, the credential could outlast the page, or something of
// another site could be loaded.
var forbidden = regexp.MustCompile(`innerHTML|outerHTML|insertAdjacentHTML|setHTMLUnsafe|document\.write|srcdoc|\beval\b|new Function|` +
	`localStorage|sessionStorage|indexedDB|\.cookie|serviceWorker|pushState|replaceState|postMessage|<script>|<style|style=|@import|url\(|import\('`)

func TestFilesDoNothingForbidden(t *testing.T) {
	t.Parallel()
	files, err := fs.Glob(embedded, "page/*")
	if err != nil || len(files) < 10 {
		t.Fatalf("the page has the files %v, %v", files, err)
	}
	for _, file := range files {
		text, err := embedded.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		// The embed code is text that operators copy.
		for _, found := range forbidden.FindAllString(strings.ReplaceAll(string(text), `style="border: 0"`, ""), -1) {
			t.Errorf("%s has %q", file, found)
		}
	}
}
